"""Streams: what has begun and what was cut, with real clients of OpenAI against a server on loopback."""

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from typing import Any

import httpx
import pytest
from fault_server import HEALTHY, FaultServer, answer_of, fault_server
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.base.llms.types import ImageBlock, TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.llms import LLM, ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.prompts import PromptTemplate
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.tools import FunctionTool
from llamaindex_fakes import CORPUS, Clock, Fake, ToyEmbedding, excluded, fakes, terse, toy_index
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

from unirouter_integrations import StreamCutError, UniRouter
from unirouter_integrations.llamaindex import UniRouterLLM, UniRouterQueryEngine
from unirouter_integrations.llamaindex._calls import describe, is_empty, is_refusal
from unirouter_integrations.llamaindex._reports import Written
from unirouter_integrations.serving import Health, ModelRegistry
from unirouter_integrations.serving._streams import StreamPart

QUESTION = "poem number 7"
POETS, ORACLES = answer_of("poet", QUESTION), answer_of("oracle", QUESTION)
TEMPLATE = PromptTemplate("{query_str}")
GIVEN: dict[str, Any] = {"query_str": QUESTION}


class Note(BaseModel):
    """Write something down."""

    text: str


def note(text: str) -> str:
    """Write something down."""
    return text


TOOLS = [FunctionTool.from_defaults(note)]
MESSAGES = [ChatMessage(QUESTION)]


# What one part says


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **fields: Any) -> ChatCompletionChunk:
    """A part of a chat, as OpenAI's client has it."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    common = {"id": "1", "created": 1, "model": "m", "object": "chat.completion.chunk"}
    return ChatCompletionChunk.model_validate({**common, "choices": [choice], **fields})


def completion(text: str, finish: str | None = None) -> dict[str, Any]:
    """A part of a completion."""
    choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
    common = {"id": "1", "created": 1, "model": "m", "object": "text_completion"}
    return {**common, "choices": [choice]}


def chat(*blocks: Any, delta: str | None = "", raw: Any = None, **noted: Any) -> ChatResponse:
    message = ChatMessage(role="assistant", blocks=[*blocks], additional_kwargs=noted)
    return ChatResponse(message=message, delta=delta, raw=raw)


ROLE = chat(TextBlock(text=""), raw=chunk({"role": "assistant", "content": ""}))
WORD = chat(TextBlock(text="yes"), delta="yes", raw=chunk({"content": "yes"}))
CALL = ToolCallBlock(tool_name="note", tool_kwargs="")
STOP = chat(TextBlock(text=""), raw=chunk(finish="stop"))
SILENT, FINISH = StreamPart(has_content=False, reports_finish=True), StreamPart("", False, True, True)
UNKNOWN = StreamPart(has_content=False)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        pytest.param(ROLE, SILENT, id="role"),
        pytest.param(WORD, StreamPart("yes", reports_finish=True), id="text"),
        pytest.param(STOP, FINISH, id="finish"),
        pytest.param(chat(TextBlock(text=""), raw=chunk(choices=[])), SILENT, id="usage"),
        pytest.param(chat(CALL, raw=chunk({})), StreamPart(reports_finish=True, calls_tool=True), id="tool call"),
        pytest.param(
            chat(raw=chunk({}), tool_calls=["call_1"]),
            StreamPart(reports_finish=True, calls_tool=True),
            id="old tool call",
        ),
        pytest.param(chat(ThinkingBlock(content="hm"), raw=chunk({})), StreamPart(reports_finish=True), id="thought"),
        pytest.param(chat(ThinkingBlock(content=""), raw=chunk({})), SILENT, id="no thought yet"),
        pytest.param(chat(ImageBlock(url="https://example.com/a.png")), StreamPart(), id="image"),
        pytest.param(chat(TextBlock(text=""), delta=None), UNKNOWN, id="no delta, no text"),
        pytest.param(chat(TextBlock(text="yes"), delta=None), StreamPart(), id="no delta"),
        pytest.param(
            chat(raw=chunk(finish="content_filter")),
            StreamPart("", False, True, True, True),
            id="filtered",
        ),
        pytest.param(chat(raw={"type": "message_start"}), UNKNOWN, id="another provider"),
        pytest.param(CompletionResponse(text="", delta="", raw=completion("")), SILENT, id="empty completion"),
        pytest.param(
            CompletionResponse(text="yes", delta="yes", raw=completion("yes")),
            StreamPart("yes", reports_finish=True),
            id="completion",
        ),
        pytest.param(CompletionResponse(text="", delta="", raw=completion("", "stop")), FINISH, id="completed"),
        pytest.param(Written("", [ROLE]), SILENT, id="token of a role"),
        pytest.param(Written("yes", [WORD]), StreamPart("yes", reports_finish=True), id="token"),
        pytest.param(Written("", [STOP, chat(raw=chunk(choices=[]))]), FINISH, id="token of two parts"),
        pytest.param(Written("yes", []), StreamPart("yes"), id="token of an LLM that reports nothing"),
        pytest.param(Written("", []), UNKNOWN, id="empty token of an LLM that reports nothing"),
        pytest.param(Written(Note(text=""), [ROLE]), SILENT, id="form of a role"),
        pytest.param(Written(Note(text=""), [chat(CALL)]), StreamPart(calls_tool=True), id="form"),
        pytest.param(Written(Note(text=""), []), StreamPart(), id="form of an LLM that reports nothing"),
        pytest.param(Written(None, []), UNKNOWN, id="end"),
        pytest.param(Note(text=""), StreamPart(), id="anything else"),
    ],
)
def test_what_a_part_says(part: Any, said: StreamPart) -> None:
    """Whether it has content, and whether it is the end of the answer."""
    assert describe(part) == said


def test_empty_answers_say_nothing() -> None:
    """A thought is none; a tool call is an answer without text."""
    assert is_empty(chat(TextBlock(text="")))
    assert is_empty(chat(ThinkingBlock(content="hm")))
    assert is_empty(CompletionResponse(text=""))
    assert is_empty(Written("", [WORD, ROLE]))
    assert not is_empty(WORD)
    assert not is_empty(chat(CALL))
    assert not is_empty(CompletionResponse(text="yes"))
    assert not is_empty(Written("", []))
    assert not is_refusal(chat(TextBlock(text="")))


# Real clients


@cache
def client(name: str, url: str) -> LLM:
    openai_like = pytest.importorskip("llama_index.llms.openai_like")
    made: LLM = openai_like.OpenAILike(
        model=name,
        api_base=url,
        api_key="test",
        max_retries=0,
        timeout=60,
        is_chat_model=True,
        is_function_calling_model=True,
        additional_kwargs={"stream_options": {"include_usage": True}},
    )
    return made


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with fault_server() as running:
        yield running


def registry(server: FaultServer, fault: str = HEALTHY) -> ModelRegistry:
    """The models, of which the best for a poem has a fault."""
    urls = {name: server.url(fault if name == "poet" else HEALTHY) for name in ("abacus", "poet", "oracle")}
    models = ModelRegistry({name: client(name, url) for name, url in urls.items()})
    models.health = Health(Clock())
    return models


def joined(parts: list[Any]) -> str:
    return "".join(part.delta or "" for part in parts)


async def _astream_chat(llm: UniRouterLLM) -> str:
    return joined([part async for part in await llm.astream_chat(MESSAGES)])


async def _astream_complete(llm: UniRouterLLM) -> str:
    return joined([part async for part in await llm.astream_complete(QUESTION)])


async def _astream(llm: UniRouterLLM) -> str:
    return "".join([token async for token in await llm.astream(TEMPLATE, **GIVEN)])


def called(llm: UniRouterLLM, parts: list[ChatResponse]) -> str:
    (call,) = llm.get_tool_calls_from_response(parts[-1])
    return str(call.tool_kwargs["text"])


async def _astream_tools(llm: UniRouterLLM) -> str:
    return called(llm, [part async for part in await llm.astream_chat_with_tools(TOOLS, QUESTION)])


async def _astream_form(llm: UniRouterLLM) -> str:
    forms = [form async for form in await llm.astream_structured_predict(Note, TEMPLATE, **GIVEN)]
    return str(forms[-1].text)


@cache
def index() -> VectorStoreIndex:
    return toy_index(ToyEmbedding())


def engine_of(llm: UniRouterLLM, n_texts: int = 1, **settings: Any) -> Any:
    """A query engine with the same models and settings."""
    retriever = index().as_retriever(similarity_top_k=n_texts)
    settings = {"fallback": llm.fallback, "streaming": True, **settings}
    return UniRouterQueryEngine(router=llm.router, models=llm.models, retriever=retriever, **settings)


async def _aquery(llm: UniRouterLLM) -> str:
    response = await engine_of(llm).aquery(QUESTION)
    return "".join([token async for token in response.async_response_gen()])


Way = Callable[[UniRouterLLM], str] | Callable[[UniRouterLLM], Awaitable[str]]
WAYS: dict[str, Way] = {
    "stream_chat": lambda llm: joined([*llm.stream_chat(MESSAGES)]),
    "astream_chat": _astream_chat,
    "stream_complete": lambda llm: joined([*llm.stream_complete(QUESTION)]),
    "astream_complete": _astream_complete,
    "stream": lambda llm: "".join(llm.stream(TEMPLATE, **GIVEN)),
    "astream": _astream,
    "tools": lambda llm: called(llm, [*llm.stream_chat_with_tools(TOOLS, QUESTION)]),
    "atools": _astream_tools,
    "form": lambda llm: str([*llm.stream_structured_predict(Note, TEMPLATE, **GIVEN)][-1].text),
    "aform": _astream_form,
    "query": lambda llm: "".join(engine_of(llm).query(QUESTION).response_gen),
    "aquery": _aquery,
}
ALL = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
TEXTS = pytest.mark.parametrize("way", [way for name, way in WAYS.items() if not name.endswith(("tools", "form"))])


async def asked(way: Way, llm: UniRouterLLM) -> str:
    found = way(llm)
    return await found if inspect.isawaitable(found) else found


@ALL
async def test_a_whole_stream_comes_as_it_is(router: UniRouter, server: FaultServer, way: Way) -> None:
    """Its first part has a role and no text, and its last one the usage and no choice."""
    server.asked.clear()
    models = registry(server)
    assert await asked(way, UniRouterLLM(router=router, models=models)) == POETS
    assert [*server.asked.values()] == [1]
    assert models.health._records["poet"].answers == 1
    assert models.health._records["poet"].in_flight == 0


async def test_no_part_is_lost(router: UniRouter, server: FaultServer) -> None:
    """Nor doubled: neither those that were held back nor the one with the usage."""
    llm, alone = UniRouterLLM(router=router, models=registry(server)), client("poet", server.url())
    expected: list[tuple[str | None, Any]] = [(part.delta, part.raw) for part in alone.stream_chat(MESSAGES)]
    assert expected[0][0] == expected[-1][0] == ""
    assert expected[-1][1].usage.total_tokens
    assert [(part.delta, part.raw) for part in llm.stream_chat(MESSAGES)] == expected
    assert [(part.delta, part.raw) async for part in await llm.astream_chat(MESSAGES)] == expected
    tokens = [delta for delta, _ in expected]
    assert [*llm.stream(TEMPLATE, **GIVEN)] == tokens
    assert [token async for token in await llm.astream(TEMPLATE, **GIVEN)] == tokens
    forms: list[Any] = [*alone.stream_structured_predict(Note, TEMPLATE, **GIVEN)]
    routed: list[Any] = [*llm.stream_structured_predict(Note, TEMPLATE, **GIVEN)]
    assert [form.model_dump() for form in routed] == [form.model_dump() for form in forms]


@ALL
@pytest.mark.parametrize(
    "fault",
    [
        *("401 key revoked", "null choices", "empty choices", "no event", "error event", "headers, cut"),
        *("role, cut", "role, error event", "role, no finish"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning")  # of the client, whose connection broke
async def test_a_stream_that_fails_before_its_first_content_goes_on_to_the_next_model(
    router: UniRouter, server: FaultServer, way: Way, fault: str
) -> None:
    """Which is asked once, and whose answer comes from the beginning."""
    server.asked.clear()
    models = registry(server, fault)
    assert await asked(way, UniRouterLLM(router=router, models=models)) == ORACLES
    assert server.asked == {(QUESTION, "poet"): 1, (QUESTION, "oracle"): 1}
    assert models.health._records["poet"].answers == 0
    assert models.health._records["oracle"].answers == 1


@ALL
@pytest.mark.parametrize("fault", ["refusal", "content filter", "role, end"])
async def test_a_stream_that_is_refused_or_empty_goes_on_if_asked(
    router: UniRouter, server: FaultServer, way: Way, fault: str
) -> None:
    """The model is well."""
    server.asked.clear()
    models = registry(server, fault)
    assert await asked(way, UniRouterLLM(router=router, models=models, fallback="refusals")) == ORACLES
    assert server.asked == {(QUESTION, "poet"): 1, (QUESTION, "oracle"): 1}
    assert models.health._records["poet"].answers == 1


@TEXTS
async def test_a_refused_stream_stands_otherwise(router: UniRouter, server: FaultServer, way: Way) -> None:
    """Without a text."""
    assert await asked(way, UniRouterLLM(router=router, models=registry(server, "refusal"))) == ""


@TEXTS
@pytest.mark.parametrize(
    "fault", ["text, cut", "text, error event", "text, half JSON", "text, no finish", "text, done without finish"]
)
@pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning")
async def test_a_stream_that_is_cut_raises_with_the_text_so_far(
    router: UniRouter, server: FaultServer, way: Way, fault: str
) -> None:
    """Nothing is repeated, and no cut answer is taken for a whole one. It counts as a failure of the model."""
    models = registry(server, fault)
    llm = UniRouterLLM(router=router, models=models)
    for _ in range(5):
        with pytest.raises(Exception, match=r".") as raised:
            await asked(way, llm)
        assert getattr(raised.value, "partial_text", None) == "best answers"
        assert isinstance(raised.value, StreamCutError) == fault.endswith("finish")
    assert models.health.cooling_down(models).keys() == {"poet"}
    assert await asked(way, llm) == ORACLES


async def test_a_stream_that_nobody_begins_raises(router: UniRouter, server: FaultServer) -> None:
    """An empty one is no answer."""
    models = registry(server, "no event")
    for name in ("abacus", "oracle"):
        del models[name]
    llm = UniRouterLLM(router=router, models=models)
    with pytest.raises(StreamCutError, match="'poet'"):
        llm.stream_chat(MESSAGES)
    with pytest.raises(StreamCutError, match="'poet'"):
        await llm.astream_chat(MESSAGES)
    with pytest.raises(StreamCutError, match="'poet'"):
        llm.stream(TEMPLATE, **GIVEN)
    with pytest.raises(StreamCutError, match="'poet'"):
        await llm.astream(TEMPLATE, **GIVEN)


# Streams of the completions API


def completions(*texts: str) -> httpx.MockTransport:
    """A provider that completes prompts, and streams that in these parts; one without the last is cut."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path.endswith("/v1/completions")
        lines = [json.dumps(completion(text)) for text in texts]
        lines += [json.dumps(completion("", "stop")), "[DONE]"] if texts[-1].endswith(".") else []
        events = "".join(f"data: {line}\n\n" for line in lines)
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, text=events)

    return httpx.MockTransport(answer)


def completing(name: str, *texts: str) -> LLM:
    openai_like = pytest.importorskip("llama_index.llms.openai_like")
    made: LLM = openai_like.OpenAILike(
        model=name,
        api_key="test",
        api_base="http://test/v1",
        max_retries=0,
        http_client=httpx.Client(transport=completions(*texts)),
        async_http_client=httpx.AsyncClient(transport=completions(*texts)),
    )
    return made


COMPLETED = {name: WAYS[name] for name in WAYS if not name.endswith(("tools", "form"))}


@pytest.mark.parametrize("way", COMPLETED.values(), ids=COMPLETED)
async def test_completion_models_stream_as_well(router: UniRouter, way: Way) -> None:
    """Also where they chat, or fill in a template: whole, cut before and after the first text."""
    models = {name: completing(name, "", f"{name} ", "completes.") for name in ("abacus", "poet", "oracle")}
    llm = UniRouterLLM(router=router, models=models)
    assert await asked(way, llm) == "poet completes."
    models["poet"] = completing("poet", "", "")
    assert await asked(way, llm) == "oracle completes."
    models["poet"] = completing("poet", "", "poet ")
    with pytest.raises(StreamCutError) as raised:
        await asked(way, llm)
    assert raised.value.partial_text == "poet "


# Streams of templates, forms and query engines


async def test_a_stream_of_tokens_or_forms_closed_early_closes_the_models(router: UniRouter) -> None:
    """Sync and async; that is no verdict on the model."""
    poet = Fake(model_name="poet")
    models = ModelRegistry({**fakes(), "poet": poet})
    llm = UniRouterLLM(router=router, models=models)
    for opened in (
        llm.stream(TEMPLATE, **GIVEN),
        llm.stream_structured_predict(Note, TEMPLATE, **GIVEN),
        engine_of(llm).query(QUESTION).response_gen,
    ):
        next(opened)
        opened.close()
    assert poet.closed == ["poet"] * 3
    for aopened in (await llm.astream(TEMPLATE, **GIVEN), (await engine_of(llm).aquery(QUESTION)).response_gen):
        await anext(aopened)
        await aopened.aclose()
        await asyncio.sleep(0.01)  # LlamaIndex's own wrappers leave the closing to the event loop
    assert poet.closed == ["poet"] * 5
    record = models.health._records["poet"]
    assert (record.in_flight, record.answers, record.failures) == (0, 0, 0)


async def test_the_decision_of_a_streamed_answer_names_who_answered(router: UniRouter, server: FaultServer) -> None:
    """And the sources are those of its synthesizer."""
    engine = engine_of(UniRouterLLM(router=router, models=registry(server, "role, error event")))
    for response in (engine.query(QUESTION), await engine.aquery(QUESTION)):
        assert response.metadata["unirouter"]["model"] == "oracle"
        assert response.metadata["unirouter"]["excluded"] == excluded("failed", "it failed with APIError", "poet")
        assert response.metadata["selector_result"].ind == 2
        assert len(response.source_nodes) == 1


async def test_what_is_no_stream_in_a_streaming_engine(router: UniRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The modes that ask no model."""
    monkeypatch.setattr(Settings, "_llm", Fake(model_name="of the settings"))  # which LlamaIndex looks for there
    llm = UniRouterLLM(router=router, models=terse())
    for mode in (ResponseMode.NO_TEXT, ResponseMode.CONTEXT_ONLY):
        engine = engine_of(llm, response_mode=mode)
        plain = engine_of(llm, response_mode=mode, streaming=False)
        assert str(engine.query(QUESTION)) == str(await engine.aquery(QUESTION)) == str(plain.query(QUESTION))
        assert engine.query(QUESTION).metadata["unirouter"]["model"] == "poet"


@pytest.mark.parametrize("mode", [ResponseMode.REFINE, ResponseMode.TREE_SUMMARIZE, ResponseMode.ACCUMULATE])
async def test_no_prompt_of_a_query_is_left_out_silently(router: UniRouter, mode: ResponseMode) -> None:
    """Where one of several calls of a model fails, LlamaIndex may log it and go on; the next model answers all."""

    def reply(messages: Any) -> str:
        return str(json.loads("<html>")) if CORPUS[5] in str(messages) else "poet: yes"

    models = {**terse(), "poet": Fake(model_name="poet", reply=reply)}
    llm = UniRouterLLM(router=router, models=models)
    engine = engine_of(llm, len(CORPUS), response_mode=mode, streaming=False)
    for response in (engine.query(QUESTION), await engine.aquery(QUESTION)):
        assert response.metadata["unirouter"]["excluded"] == excluded(
            "failed", "it failed with JSONDecodeError", "poet"
        )
        assert "oracle: yes" in str(response)


async def test_routers_inside_routers_stream_and_refuse_as_well(router: UniRouter, server: FaultServer) -> None:
    """The inner one takes care of its models, and the outer one of the inner one."""
    outer = UniRouter(router.clusters)
    for name, score in (("team", 0.9), ("other", 0.5)):
        outer.register(outer.profile(name, ["sum", "poem", "date"], [score] * 3, cost=1))
    for fault, settings in (("role, no finish", {}), ("refusal", {"fallback": "refusals"})):
        team = UniRouterLLM(router=router, models=registry(server, fault), **settings)
        llm = UniRouterLLM(router=outer, models={"team": team, "other": client("other", server.url())}, **settings)
        for name in ("stream_chat", "astream_complete", "stream", "astream", "form", "query", "aquery"):
            assert await asked(WAYS[name], llm) == ORACLES
        assert llm.predict(TEMPLATE, **GIVEN) == ORACLES
        team.models["oracle"] = team.models["abacus"] = client("down", server.url("500"))
        assert await asked(WAYS["stream"], llm) == answer_of("other", QUESTION)
