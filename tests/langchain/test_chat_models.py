"""The chat model, through the front door: `prompt | router | parser`."""

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from conftest import TOY_PROMPTS, toy_embed, toy_scores
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.language_models import BaseChatModel, FakeListLLM
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.context import collect_runs

from unirouter_integrations import EmbeddingError, InvalidInputError, UniRouter, UnknownModelError
from unirouter_integrations.langchain import ChatUniRouter


class Echo(BaseChatModel):
    """Answers with its name and the last message, word by word when streaming; counts and may fail."""

    model_name: str
    error: Exception | None = None

    @property
    def _llm_type(self) -> str:
        return "echo"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {**super()._get_ls_params(stop, **kwargs), "ls_provider": "echo", "ls_model_name": self.model_name}

    def _words(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> list[str]:
        if self.error is not None:
            raise self.error
        return [self.model_name, " ", messages[-1].text, *(stop or []), *(str(kwargs[key]) for key in sorted(kwargs))]

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        message = AIMessage(
            "".join(self._words(messages, stop, kwargs)),
            usage_metadata={"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
            response_metadata={"model_name": self.model_name},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        usage: Any = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
        for word in self._words(messages, stop, kwargs):
            yield ChatGenerationChunk(message=AIMessageChunk(content=word))
        end = AIMessageChunk(content="", usage_metadata=usage, response_metadata={"model_name": self.model_name})
        yield ChatGenerationChunk(message=end)

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        await asyncio.sleep(0)
        return self._generate(messages, stop, **kwargs)

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages, stop, **kwargs):
            yield chunk


PROMPT = ChatPromptTemplate.from_messages([("system", "You are brief. A poem is text."), ("human", "{question}")])
QUESTIONS = [{"question": "a sum"}, {"question": "a poem"}, {"question": "a date"}]
ANSWERS = ["abacus a sum", "poet a poem", "oracle a date"]


@pytest.fixture
def llm(router: UniRouter) -> ChatUniRouter:
    return ChatUniRouter(router=router, models={name: Echo(model_name=name) for name in router.models})


async def test_every_way_to_call_a_chain_reaches_the_chosen_model(llm: ChatUniRouter) -> None:
    """invoke, stream, batch and their async forms, in `prompt | router | parser`."""
    chain = PROMPT | llm | StrOutputParser()
    assert [chain.invoke(question) for question in QUESTIONS] == ANSWERS
    assert [await chain.ainvoke(question) for question in QUESTIONS] == ANSWERS
    assert ["".join(chain.stream(question)) for question in QUESTIONS] == ANSWERS
    assert ["".join([part async for part in chain.astream(question)]) for question in QUESTIONS] == ANSWERS
    assert chain.batch(QUESTIONS) == ANSWERS
    assert await chain.abatch(QUESTIONS) == ANSWERS
    assert sorted(chain.batch_as_completed(QUESTIONS)) == list(enumerate(ANSWERS))
    assert sorted([pair async for pair in chain.abatch_as_completed(QUESTIONS)]) == list(enumerate(ANSWERS))


def test_a_stream_comes_in_pieces(llm: ChatUniRouter) -> None:
    """Not collected first."""
    assert [chunk.content for chunk in llm.stream("a poem")][:3] == ["poet", " ", "a poem"]


@pytest.mark.parametrize(
    "given_input",
    ["a poem", [HumanMessage("a poem")], [("human", "a poem")], PROMPT.invoke({"question": "a poem"})],
    ids=["text", "messages", "tuples", "prompt value"],
)
async def test_every_kind_of_input_is_taken(llm: ChatUniRouter, given_input: Any) -> None:
    """What a chat model takes."""
    assert llm.invoke(given_input).content == (await llm.ainvoke(given_input)).content == "poet a poem"


def test_the_last_human_message_decides(llm: ChatUniRouter) -> None:
    """Neither the system message nor earlier turns; without a human message, everything there is."""
    llm.judged_by = "last_human"
    history = [SystemMessage("poem"), HumanMessage("a poem"), AIMessage("a poem"), HumanMessage("a sum")]
    assert llm.invoke(history).text == "abacus a sum"
    assert llm.invoke([*history, AIMessage("poem: see tool")]).response_metadata["unirouter"]["model"] == "abacus"
    assert llm.invoke([SystemMessage("write a poem")]).response_metadata["unirouter"]["model"] == "poet"
    picture = HumanMessage([{"type": "text", "text": "a sum"}, {"type": "image_url", "image_url": {"url": "poem"}}])
    assert llm.invoke([picture]).response_metadata["unirouter"]["model"] == "abacus"
    wordless = HumanMessage([{"type": "image_url", "image_url": {"url": "poem"}}])
    assert llm.invoke([HumanMessage("a poem"), wordless]).response_metadata["unirouter"]["model"] == "poet"
    chat = [ChatMessage(content="a date", role="user"), ChatMessage(content="a poem", role="assistant")]
    assert llm.invoke(chat).response_metadata["unirouter"]["model"] == "oracle"


def without_id(noted: dict[str, Any]) -> dict[str, Any]:
    """A decision as plain JSON; each has an id of its own."""
    return {key: value for key, value in noted.items() if key != "id"}


async def test_the_decision_is_on_every_answer(llm: ChatUniRouter) -> None:
    """In `response_metadata`, beside what the model put there; of a stream on the first chunk, and so on their sum."""
    expected = llm.router.route("a poem").as_dict()
    ids = {expected.pop("id")}
    for answer in (llm.invoke("a poem"), await llm.ainvoke("a poem"), *llm.batch(["a poem"])):
        decision = dict(answer.response_metadata["unirouter"])
        ids.add(decision.pop("id"))
        assert decision == expected
        assert answer.response_metadata["model_name"] == "poet"
    for chunks in (list(llm.stream("a poem")), [chunk async for chunk in llm.astream("a poem")]):
        assert [("unirouter" in chunk.response_metadata) for chunk in chunks[:2]] == [True, False]
        total = chunks[0]
        for chunk in chunks[1:]:
            total += chunk
        assert without_id(total.response_metadata["unirouter"]) == expected
        assert total.text == "poet a poem"
    assert len(ids) == 4  # one for each decision


def test_there_is_one_model_run_per_call_and_it_is_the_chosen_models(llm: ChatUniRouter) -> None:
    """With its own name and provider in the trace, and the decision as metadata and tag."""
    for call in (lambda c: llm.invoke("a poem", c), lambda c: list(llm.stream("a poem", c))):
        with collect_runs() as runs:
            call({"tags": ["mine"], "metadata": {"user": "me"}})
        (run,) = runs.traced_runs
        assert run.run_type == "llm"
        assert run.metadata["ls_model_name"] == "poet"
        assert run.metadata["unirouter_model"] == "poet"
        assert run.metadata["unirouter_expected_cost"] == 2
        assert run.metadata["user"] == "me"
        assert {"mine", "unirouter"} <= set(run.tags or [])


async def test_tokens_are_counted_once(llm: ChatUniRouter) -> None:
    """Under the name of the model that really answered, whichever way it was called."""
    counter = UsageMetadataCallbackHandler()
    config: Any = {"callbacks": [counter]}
    llm.invoke("a poem", config)
    await llm.ainvoke("a poem", config)
    list(llm.stream("a poem", config))
    llm.batch(["a poem", "a sum"], config)
    llm.generate([[HumanMessage("a poem")]], callbacks=[counter])
    assert {name: usage["total_tokens"] for name, usage in counter.usage_metadata.items()} == {"poet": 75, "abacus": 15}


def test_a_batch_is_embedded_in_one_call(router: UniRouter) -> None:
    """And every input still goes to its own model."""
    calls: list[int] = []

    def counting(texts: list[str]) -> Any:
        calls.append(len(texts))
        return toy_embed(texts)

    counted = UniRouter.fit(TOY_PROMPTS, embedder=counting, n_clusters=3, estimator="mean")
    counted.register(counted.profile("abacus", TOY_PROMPTS, toy_scores("poem", "date"), cost=1))
    counted.register(counted.profile("poet", TOY_PROMPTS, toy_scores("sum", "date"), cost=2))
    llm = ChatUniRouter(router=counted, models={name: Echo(model_name=name) for name in counted.models})
    calls.clear()
    answers = (PROMPT | llm).batch([{"question": f"a {kind} {n}"} for n in range(50) for kind in ("sum", "poem")])
    assert calls == [100]
    assert [answer.text for answer in answers[:2]] == ["abacus a sum 0", "poet a poem 0"]
    assert llm.batch([]) == []


def test_arguments_reach_the_chosen_model(llm: ChatUniRouter) -> None:
    """`stop`, keyword arguments, and what was bound to one of the models."""
    assert llm.invoke("a poem", stop=["END"], temperature=0).content == "poet a poemEND0"
    llm.models["poet"] = Echo(model_name="bound").bind(temperature=7)
    assert llm.invoke("a poem").content == "bound a poem7"
    assert "".join(chunk.text for chunk in llm.stream("a poem")) == "bound a poem7"


async def test_an_error_of_the_chosen_model_passes_through(llm: ChatUniRouter) -> None:
    """As it came, if no other model shall take over; in a batch it may be returned in its place."""
    llm = llm.model_copy(update={"fallback": False})
    llm.models["poet"] = Echo(model_name="poet", error=TimeoutError("too slow"))
    with pytest.raises(TimeoutError, match="too slow"):
        llm.invoke("a poem")
    with pytest.raises(TimeoutError):
        await llm.ainvoke("a poem")
    with pytest.raises(TimeoutError):
        list(llm.stream("a poem"))
    for answers in (
        llm.batch(["a poem", "a sum", 5], return_exceptions=True),  # type: ignore[list-item]
        await llm.abatch(["a poem", "a sum", 5], return_exceptions=True),  # type: ignore[list-item]
    ):
        failed, answered, senseless = answers
        assert isinstance(failed, TimeoutError)
        assert answered.text == "abacus a sum"
        assert isinstance(senseless, ValueError)
    with pytest.raises(ValueError, match="Invalid input type"):
        llm.batch(["a poem", 5])  # type: ignore[list-item]


def test_callbacks_tags_and_metadata_of_the_router_apply(router: UniRouter) -> None:
    """What was given to the constructor is not lost by delegating."""
    started = []

    class Watch(BaseCallbackHandler):
        def on_chat_model_start(self, *_: Any, tags: Any = None, metadata: Any = None, **__: Any) -> None:
            started.append((tags, metadata))

    models = {name: Echo(model_name=name) for name in router.models}
    llm = ChatUniRouter(router=router, models=models, callbacks=[Watch()], tags=["team"], metadata={"unit": 7})
    llm.invoke("a sum", {"tags": ["call"]})
    ((tags, metadata),) = started
    assert {"team", "call", "unirouter"} <= set(tags)
    assert metadata["unit"] == 7


def test_a_handler_given_twice_counts_once(router: UniRouter) -> None:
    """On the chat model and on the call, as with any chat model."""
    counter = UsageMetadataCallbackHandler()
    models = {name: Echo(model_name=name) for name in router.models}
    llm = ChatUniRouter(router=router, models=models, callbacks=[counter])
    (PROMPT | llm).invoke({"question": "a poem"}, {"callbacks": [counter]})
    llm.invoke("a poem", {"callbacks": [counter]})
    assert counter.usage_metadata["poet"]["total_tokens"] == 30


@pytest.mark.parametrize(
    "setting",
    [{"cache": True}, {"rate_limiter": InMemoryRateLimiter(requests_per_second=1)}, {"disable_streaming": True}],
)
def test_settings_that_only_the_models_can_have_are_refused(router: UniRouter, setting: Any) -> None:
    """Ignoring them would be worse."""
    models = {name: Echo(model_name=name) for name in router.models}
    with pytest.raises(ValueError, match=f"{next(iter(setting))} has no effect.*set it on its models"):
        ChatUniRouter(router=router, models=models, **setting)


def test_a_misspelt_argument_is_an_error(router: UniRouter) -> None:
    """With the nearest name, of the constructor as of a call; other settings of LangChain's are not ours to check."""
    models = {name: Echo(model_name=name) for name in router.models}
    misspelt: dict[str, Any] = {"cost_wieght": 1}
    with pytest.raises(ValueError, match=r"ChatUniRouter has no 'cost_wieght'.* Did you mean 'cost_weight'"):
        ChatUniRouter(router=router, models=models, **misspelt)
    llm = ChatUniRouter(router=router, models=models)
    with pytest.raises(InvalidInputError, match=r"A call has no 'unirouter_amnog'.* Did you mean 'unirouter_among'"):
        llm.invoke("a poem", {"configurable": {"unirouter_amnog": ["poet"]}})
    with pytest.raises(InvalidInputError, match="A call has no 'unirouter_zzz'"):
        llm.batch(["a poem"], {"configurable": {"unirouter_zzz": 1}})
    assert llm.invoke("a poem", {"configurable": {"thread_id": "1", "cost_wieght": 1}}).text == "poet a poem"


def test_the_standard_model_arguments_are_accepted_and_have_no_effect(
    router: UniRouter, caplog: pytest.LogCaptureFixture
) -> None:
    """As they are the models' own; that they have none is logged, without their values."""
    models = {name: Echo(model_name=name) for name in router.models}
    standard: dict[str, Any] = {"api_key": "SECRET", "model": "gpt", "max_tokens": 77, "stop": ["poem"]}
    with caplog.at_level(logging.INFO, "unirouter_integrations"):
        llm = ChatUniRouter(router=router, models=models, **standard)
    assert llm.invoke("a poem").text == "poet a poem"
    (message,) = caplog.messages
    assert "'api_key', 'max_tokens', 'model', 'stop'] has no effect; set it on its models" in message
    assert "SECRET" not in message + repr(llm)


async def test_closing_a_stream_early_closes_that_of_the_model(router: UniRouter) -> None:
    """At once, so that no connection outlives a cancelled request."""
    closed = []

    class Watched(Echo):
        async def _astream(self, messages: Any, *arguments: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
            try:
                async for chunk in super()._astream(messages, *arguments, **kwargs):
                    yield chunk
            finally:
                closed.append(self.model_name)

    class Errors(BaseCallbackHandler):
        def on_llm_error(self, error: BaseException, **_: Any) -> None:
            closed.append(type(error).__name__)

    llm = ChatUniRouter(router=router, models={name: Watched(model_name=name) for name in router.models})
    stream: Any = llm.astream("a poem", {"callbacks": [Errors()]})
    assert (await anext(stream)).text == "poet"
    await stream.aclose()
    assert "GeneratorExit" in closed
    with contextlib.closing(llm.stream("a poem")) as chunks:  # type: ignore[type-var]
        assert next(chunks).text == "poet"


def test_a_router_inside_a_router_names_the_model_that_answered(llm: ChatUniRouter) -> None:
    """In the message and in the trace."""
    outer_router = UniRouter.fit(TOY_PROMPTS, embedder=toy_embed, n_clusters=1)
    outer_router.register(outer_router.profile("team", TOY_PROMPTS, toy_scores(), cost=1))
    outer = ChatUniRouter(router=outer_router, models={"team": llm})
    with collect_runs() as runs:
        answer = outer.invoke("a poem")
    assert answer.response_metadata["unirouter"]["model"] == "poet"
    assert runs.traced_runs[0].metadata["unirouter_model"] == "poet"


def test_a_chain_in_the_place_of_a_model_is_named(router: UniRouter) -> None:
    """Its answer is no message; the error says which one, before a call is paid for if that can be seen."""
    chain: Any = Echo(model_name="poet") | StrOutputParser()
    with pytest.raises(
        ValueError, match="'poet' should be a LangChain chat model, bare or bound, not RunnableSequence"
    ):
        ChatUniRouter(router=router, models={"poet": chain})
    chain = Echo(model_name="poet") | RunnableLambda(lambda message: message.text)
    with pytest.raises(InvalidInputError, match=r"'poet' answered with \w+, not with an AIMessage"):
        ChatUniRouter(router=router, models={"poet": chain}).invoke("a poem")


async def test_models_may_come_and_go_during_calls(llm: ChatUniRouter) -> None:
    """Threads register and remove a model while others call: no error, and each answer is of the model it names."""
    profile = llm.router.profile("calendar", TOY_PROMPTS, toy_scores(), cost=0.5)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            llm.register("calendar", Echo(model_name="calendar"), profile)
            llm.unregister("calendar")

    changing = threading.Thread(target=change)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    changing.start()
    try:
        answers = [llm.invoke("a date") for _ in range(300)] + llm.batch(["a date"] * 300)
    finally:
        stop.set()
        changing.join()
        sys.setswitchinterval(switch)
    assert all(answer.text == f"{answer.response_metadata['unirouter']['model']} a date" for answer in answers)


def test_a_model_joins_every_chain_that_holds_the_router(llm: ChatUniRouter) -> None:
    """Registered while the chain is in use: its next call goes there, and after removal no longer."""
    chain = PROMPT | llm.with_config(tags=["x"]) | StrOutputParser()
    assert chain.invoke({"question": "a date"}) == "oracle a date"
    profile = llm.router.profile("calendar", TOY_PROMPTS, toy_scores("sum", "poem"), cost=0.5)
    llm.register("calendar", Echo(model_name="calendar"), profile)
    assert chain.invoke({"question": "a date"}) == "calendar a date"
    llm.unregister("calendar")
    assert chain.invoke({"question": "a date"}) == "oracle a date"
    with pytest.raises(UnknownModelError):
        llm.unregister("calendar")


def test_registering_what_does_not_fit_changes_nothing(llm: ChatUniRouter) -> None:
    """Another name, other clusters, no chat model: refused, and the pool is as it was."""
    profile = llm.router.profile("calendar", TOY_PROMPTS, toy_scores(), cost=0.5)
    other = UniRouter.fit(TOY_PROMPTS, n_clusters=2).profile("poet", TOY_PROMPTS, toy_scores(), cost=0)
    before = dict(llm.models)
    for name, model, given_profile in (
        ("kalender", Echo(model_name="x"), profile),
        ("calendar", object(), profile),
        ("poet", Echo(model_name="x"), other),
    ):
        with pytest.raises(InvalidInputError):
            llm.register(name, model, given_profile)  # type: ignore[arg-type]
    assert llm.models == before
    assert llm.router.models == ("abacus", "oracle", "poet")


def test_the_router_may_know_more_models_than_the_chat_model(router: UniRouter) -> None:
    """Only those with a chat model take part."""
    llm = ChatUniRouter(router=router, models={"poet": Echo(model_name="poet"), "oracle": Echo(model_name="oracle")})
    assert llm.invoke("a sum").text == "oracle a sum"


def test_the_cost_weight_may_be_the_chat_models_own(router: UniRouter) -> None:
    """Two chat models over one router, each with its own trade-off; without one, the router's."""
    models = {name: Echo(model_name=name) for name in router.models}
    frugal, careful = (ChatUniRouter(router=router, models=models, cost_weight=weight) for weight in (5, 0))
    assert (frugal.invoke("a date").text, careful.invoke("a date").text) == ("abacus a date", "oracle a date")
    follows = ChatUniRouter(router=router, models=models)
    router.cost_weight = 5
    assert follows.invoke("a date").text == "abacus a date"
    for weight in (-1, float("nan")):
        with pytest.raises(ValueError, match="cost_weight should be a number of at least 0, but is"):
            ChatUniRouter(router=router, models=models, cost_weight=weight)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({}, "models is empty"),
        ({"gpt": Echo(model_name="gpt")}, r"no profile of 'gpt'; it has \['abacus', 'oracle', 'poet'\]"),
        ({"poet": object()}, "'poet' should be a LangChain chat model, bare or bound, not object"),
        ({"poet": FakeListLLM(responses=["x"])}, "'poet' should be a LangChain chat model.*not FakeListLLM"),
        ({1: Echo(model_name="gpt")}, "named by str"),
        ([Echo(model_name="gpt")], "models should be a dict"),
    ],
)
def test_models_that_cannot_work_are_refused_at_once(router: UniRouter, models: Any, message: str) -> None:
    """When it is built, not at the first call."""
    with pytest.raises(ValueError, match=message):
        ChatUniRouter(router=router, models=models)


def test_the_repr_names_models_and_shows_nothing_else_of_them(router: UniRouter) -> None:
    """Chat models hold keys."""
    models = {name: Echo(model_name=name, metadata={"key": "SECRET"}) for name in router.models}
    llm = ChatUniRouter(router=router, models=models)
    assert "SECRET" not in repr(llm) + str(llm)
    assert "abacus" in repr(llm)
    with pytest.raises(ValueError, match="no profile") as error:
        ChatUniRouter(router=router, models={"x": models["poet"]})
    assert "SECRET" not in str(error.value)


async def test_legacy_callers_of_generate_are_served(llm: ChatUniRouter) -> None:
    """`generate`, `agenerate` and `generate_prompt` route each list of messages."""
    batches: list[list[BaseMessage]] = [[HumanMessage("a sum")], [HumanMessage("a poem")]]
    for result in (
        llm.generate(batches),
        await llm.agenerate(batches),
        llm.generate_prompt([PROMPT.invoke({"question": kind}) for kind in ("a sum", "a poem")]),
    ):
        assert [generations[0].text for generations in result.generations] == ANSWERS[:2]


async def test_events_show_the_chosen_model_once(llm: ChatUniRouter) -> None:
    """`astream_events`: one start, one end, under the metadata of the decision."""
    events = [event async for event in llm.astream_events("a poem", version="v2")]
    kinds = [event["event"] for event in events]
    assert kinds.count("on_chat_model_start") == kinds.count("on_chat_model_end") == 1
    assert events[0]["metadata"]["unirouter_model"] == "poet"


async def test_an_embedder_that_fails_is_not_hidden(router: UniRouter) -> None:
    """Its error reaches the caller, sync and async, single and in a batch."""
    working = True

    def sometimes(texts: list[str]) -> Any:
        return toy_embed(texts) if working else [[float("nan")] * 4 for _ in texts]

    broken = UniRouter.fit(TOY_PROMPTS, embedder=sometimes, n_clusters=3)
    broken.register(broken.profile("m", TOY_PROMPTS, toy_scores(), cost=1))
    llm = ChatUniRouter(router=broken, models={"m": Echo(model_name="m")})
    working = False
    with pytest.raises(EmbeddingError):
        llm.invoke("a sum")
    with pytest.raises(EmbeddingError):
        await llm.ainvoke("a sum")
    with pytest.raises(EmbeddingError):
        llm.batch(["a sum"])
    with pytest.raises(EmbeddingError):
        list(llm.stream("a sum"))


async def test_answers_do_not_cross_under_concurrency(llm: ChatUniRouter) -> None:
    """Two hundred calls at once, in tasks and in threads: each is answered by the model of its own decision."""
    questions = [f"a {kind} {n}" for n in range(70) for kind in ("sum", "poem", "date")]
    before = threading.active_count()  # idle ones that other tests left included
    answers = await asyncio.gather(*(llm.ainvoke(question) for question in questions))
    answers += llm.batch([*questions], {"max_concurrency": 16})
    for question, answer in zip(questions * 2, answers, strict=True):
        assert answer.text == f"{answer.response_metadata['unirouter']['model']} {question}"
    assert threading.active_count() - before < 50
