"""What users have seen of an answer is not said again by another model, also where an answer is awaited as a whole."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import RunnableLambda
from langchain_fakes import Saying

from unirouter_integrations import UniRouter
from unirouter_integrations.errors import StreamCutError
from unirouter_integrations.langchain import ChatUniRouter, UniRouterMiddleware
from unirouter_integrations.testing import ChatFake

pytest.importorskip("langchain.agents")

from langchain.agents import create_agent
from langgraph.graph import MessagesState, StateGraph

pytestmark = pytest.mark.filterwarnings("ignore:.* is experimental", "ignore:.*is in beta")

Make = Callable[..., Any]


def agent_of(router: UniRouter, models: dict[str, Any], **settings: Any) -> Any:
    middleware: Any = UniRouterMiddleware(router, models, **settings)
    return create_agent(models["poet"], [], middleware=[middleware])


def graph_of(router: UniRouter, models: dict[str, Any], **settings: Any) -> Any:
    """A graph whose node asks for a whole answer."""
    llm = ChatUniRouter(router=router, models=models, **settings)

    def answer(state: MessagesState) -> dict[str, list[AnyMessage]]:
        return {"messages": [llm.invoke(state["messages"])]}

    async def aanswer(state: MessagesState) -> dict[str, list[AnyMessage]]:
        return {"messages": [await llm.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node("answer", RunnableLambda(answer, aanswer))
    return graph.set_entry_point("answer").compile()


graphs = pytest.mark.parametrize("make", [agent_of, graph_of], ids=["agent", "node"])
ASKED = {"messages": [("user", "a poem")]}


def models_of(**poet: Any) -> dict[str, Any]:
    models: dict[str, Any] = {"abacus": ChatFake(model="abacus"), "poet": Saying(model="poet", **poet)}
    return models | {"oracle": Saying(model="oracle", said="oracle sings")}


def messages(graph: Any) -> Iterator[str]:
    for chunk, _ in graph.stream(ASKED, stream_mode="messages"):
        if isinstance(chunk, AIMessage):
            yield chunk.text


async def amessages(graph: Any) -> AsyncIterator[str]:
    async for chunk, _ in graph.astream(ASKED, stream_mode="messages"):
        if isinstance(chunk, AIMessage):
            yield chunk.text


async def events(graph: Any) -> AsyncIterator[str]:
    async for event in graph.astream_events(ASKED, version="v2"):
        if event["event"] == "on_chat_model_stream":
            yield event["data"]["chunk"].text


def blocks(graph: Any) -> Iterator[str]:
    for message in graph.stream_events(ASKED, version="v3").messages:
        yield from message.text


async def ablocks(graph: Any) -> AsyncIterator[str]:
    stream = await graph.astream_events(ASKED, version="v3")
    async for message in stream.messages:
        async for text in message.text:
            yield text


watched = pytest.mark.parametrize("watch", [messages, amessages, events, blocks, ablocks])


async def seen(watch: Callable[[Any], Any], graph: Any, into: list[str] | None = None) -> str:
    """What a user sees of an answer, and in a list also what came before an error."""
    texts: list[str] = [] if into is None else into
    shown = watch(graph)
    if isinstance(shown, Iterator):
        texts.extend(shown)
    else:
        async for text in shown:
            texts += [text]
    return "".join(texts)


@graphs
@watched
@pytest.mark.parametrize("end", [None, ConnectionError()], ids=["cut", "broken"])
async def test_an_answer_that_breaks_after_some_of_it_was_seen_is_an_error(
    router: UniRouter, make: Make, watch: Callable[[Any], Any], end: Any
) -> None:
    """With what was seen, and its model has failed; no other model is asked."""
    models = models_of(said="the poet sings", end=end)
    graph, texts = make(router, models), list[str]()
    with pytest.raises(StreamCutError if end is None else ConnectionError) as caught:
        await seen(watch, graph, texts)
    assert caught.value.partial_text == "".join(texts) == "the poet sings "  # type: ignore[attr-defined]
    assert models["oracle"].n_calls == 0


@graphs
@watched
@pytest.mark.parametrize("end", [None, ConnectionError()], ids=["cut", "broken"])
async def test_an_answer_that_breaks_before_anything_was_seen_is_another_models(
    router: UniRouter, make: Make, watch: Callable[[Any], Any], end: Any
) -> None:
    """Nobody notices."""
    graph = make(router, models_of(end=end))
    assert await seen(watch, graph) == "oracle sings "


@graphs
@pytest.mark.parametrize("watch", [messages, amessages])
async def test_an_answer_that_stops_coming_is_an_error_once_some_of_it_was_seen(
    router: UniRouter, make: Make, watch: Callable[[Any], Any]
) -> None:
    """As one that breaks."""
    released = threading.Event()

    class Hanging(Saying):
        def _stream(self, *arguments: Any, **keywords: Any) -> Iterator[ChatGenerationChunk]:
            *parts, _ = super()._stream(*arguments, **keywords)
            yield from parts
            assert released.wait(30), "nobody gave up"

    models, texts = models_of(), list[str]()
    models["poet"] = Hanging(model="poet", said="the poet sings")
    try:
        with pytest.raises(TimeoutError) as caught:
            await seen(watch, make(router, models, timeout=0.5), texts)
        assert caught.value.partial_text == "".join(texts) == "the poet sings "  # type: ignore[attr-defined]
        assert models["oracle"].n_calls == 0
    finally:
        released.set()


@graphs
@watched
@pytest.mark.parametrize("said", ["", "the poet"])
async def test_a_refusal_is_another_models_unless_some_of_it_was_seen(
    router: UniRouter, make: Make, watch: Callable[[Any], Any], said: str
) -> None:
    """If the caller wants other models after refusals."""
    graph = make(router, models_of(said=said, end="content_filter"), fallback="refusals")
    assert await seen(watch, graph) == ("the poet " if said else "oracle sings ")


@graphs
@pytest.mark.parametrize("end", [None, ConnectionError()], ids=["cut", "broken"])
async def test_what_nobody_sees_may_be_said_again(router: UniRouter, make: Make, end: Any) -> None:
    """A model that streams by itself, while the caller waits for the whole."""

    class Streaming(Saying):
        streaming: bool = True

    models = models_of()
    models["poet"] = Streaming(model="poet", said="the poet sings", end=end, streaming=True)
    graph = make(router, models)
    results = [graph.invoke(ASKED), await graph.ainvoke(ASKED)]
    assert [result["messages"][-1].text for result in results] == ["oracle sings "] * 2
    assert models["poet"].n_calls == 2


@graphs
async def test_a_model_whose_answers_are_cut_is_put_last(router: UniRouter, make: Make) -> None:
    """As one that fails otherwise."""
    models = models_of(said="the poet sings", end=None)
    graph = make(router, models)
    for _ in range(5):
        with pytest.raises(StreamCutError):
            list(messages(graph))
    assert "".join(messages(graph)) == "oracle sings "
    assert models["poet"].n_calls == 5
