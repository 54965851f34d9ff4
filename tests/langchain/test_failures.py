"""A model that fails is replaced by the next best of the same decision; a failing embedder by a default model."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from uuid import uuid4

import pytest
from conftest import TOY_PROMPTS, toy_embed, toy_scores
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from langchain_core.tracers.context import collect_runs
from langchain_fakes import Saying

from unirouter_integrations import InvalidInputError, UniRouter, UnknownModelError
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.serving import Health
from unirouter_integrations.testing import ChatFake

NAMES = ("abacus", "poet", "oracle")


class Limited(Exception):  # noqa: N818
    """A rate limit."""

    status_code = 429


def chat(router: UniRouter, *failing: str, error: Exception | None = None, **fields: Any) -> ChatUniRouter:
    """A router whose models fail, some of them."""
    models = {name: ChatFake(model=name, error=(error or Limited()) if name in failing else None) for name in NAMES}
    return ChatUniRouter(router=router, models=models, **fields)


Excluded = dict[str, tuple[str, str]]
"""The kind and the reason of the exclusion of each model."""


def noted(answer: BaseMessage) -> tuple[str, Excluded]:
    decision = answer.response_metadata["unirouter"]
    return decision["model"], {each["model"]: (each["kind"], each["reason"]) for each in decision.get("excluded", ())}


FAILED = {"poet": ("failed", "it failed with Limited")}


async def test_the_next_best_takes_over(router: UniRouter) -> None:
    """However it is called; the decision names the model that answered and the one that failed."""
    llm = chat(router, "poet")
    answers = [
        llm.invoke("poem"),
        await llm.ainvoke("poem"),
        *llm.batch(["poem", "sum"])[:1],
        *(await llm.abatch(["poem", "sum"]))[:1],
        next(llm.stream("poem")),
        *[chunk async for chunk in llm.astream("poem")][:1],
        llm.generate([[HumanMessage("poem")]]).generations[0][0].message,  # type: ignore[union-attr]
    ]
    # After five failures it cools down, and another model is asked first.
    assert [noted(answer) for answer in answers[:5]] == [("oracle", FAILED)] * 5
    for answer in answers[5:]:
        kind, reason = noted(answer)[1]["poet"]
        assert kind == "cooling_down"
        assert reason.startswith("it failed recently and is cooling down for ")
    assert {noted(answer)[0] for answer in answers} == {"oracle"}
    assert llm.models["poet"].n_calls == 5


def test_each_that_fails_is_left_out(router: UniRouter) -> None:
    """In the order of the ranking, down to the last one, whose error is raised."""
    model, excluded = noted(chat(router, "poet", "oracle").invoke("poem"))
    assert (model, list(excluded)) == ("abacus", ["poet", "oracle"])
    with pytest.raises(Limited):
        chat(router, *NAMES).invoke("poem")


@pytest.mark.parametrize("error", [InvalidInputError("wrong"), UnknownModelError("x")])
async def test_errors_of_the_caller_are_raised_as_they_come(router: UniRouter, error: Exception) -> None:
    """And no other model is asked."""
    llm = chat(router, "poet", error=error)
    for call in (lambda: llm.invoke("poem"), lambda: list(llm.stream("poem"))):
        with pytest.raises(type(error)) as caught:
            call()
        assert caught.value is error
    with pytest.raises(type(error)):
        await llm.ainvoke("poem")
    with pytest.raises(Limited):
        chat(router, "poet", fallback=False).invoke("poem")
    assert llm.models["oracle"].n_calls == 0


class Breaking(ChatFake):
    """Breaks off after its first word."""

    def _stream(self, *arguments: Any, **keywords: Any) -> Iterator[ChatGenerationChunk]:
        yield next(super()._stream(*arguments, **keywords))
        raise Limited


async def test_a_stream_that_has_begun_is_not_begun_again(router: UniRouter) -> None:
    """What was streamed cannot be taken back."""
    llm = chat(router)
    llm.models["poet"] = Breaking(model="poet")
    seen: list[str] = []
    with pytest.raises(Limited):
        seen.extend(chunk.text for chunk in llm.stream("poem"))
    with pytest.raises(Limited):
        seen.extend([chunk.text async for chunk in llm.astream("poem")])
    assert llm.models["oracle"].n_calls == 0


def test_what_was_asked_for_by_name_is_not_replaced(router: UniRouter) -> None:
    """A forced model is not, however it is forced."""
    llm = chat(router, "poet")
    with pytest.raises(Limited):
        llm.invoke("poem", model="poet")
    forced: list[Any] = [{"unirouter_model": "poet"}, {"unirouter_among": ["poet"]}]
    for options in forced:
        with pytest.raises(Limited):
            llm.invoke("poem", {"configurable": options})
    assert llm.models["oracle"].n_calls == 0


CALL = AIMessage(
    "", tool_calls=[{"name": "f", "args": {}, "id": "1"}], response_metadata={"unirouter": {"model": "poet"}}
)
LOOP = [HumanMessage("poem"), CALL, ToolMessage("1", tool_call_id="1")]


async def test_a_model_that_fails_in_a_loop_of_tool_calls_is_replaced(router: UniRouter) -> None:
    """By the next best one, now and awaited; until it fails it goes on, even while it cools down."""
    llm = chat(router, "poet")
    for answer in (llm.invoke(LOOP), await llm.ainvoke(LOOP), next(llm.stream(LOOP)), llm.invoke(LOOP)):
        assert noted(answer) == ("oracle", FAILED)
    assert llm.models["poet"].n_calls == 4
    llm.models["poet"].error = None
    assert noted(llm.invoke(LOOP)) == ("poet", {})


def test_a_thread_moves_on_when_its_model_fails_and_while_it_cools_down(router: UniRouter) -> None:
    """It comes back when the model does."""
    settings: Any = {"sticky": "thread", "judged_by": "last_human"}
    llm = chat(router, "poet", **settings)
    history = [HumanMessage("poem"), CALL.model_copy(update={"tool_calls": []}), HumanMessage("sum")]
    for _ in range(5):
        assert noted(llm.invoke(history)) == ("abacus", FAILED)
    llm.models["poet"].error = None
    model, excluded = noted(llm.invoke(history))
    assert (model, excluded["poet"][0]) == ("abacus", "cooling_down")
    assert llm.models["poet"].n_calls == 5
    fresh = chat(router, **settings)
    assert noted(fresh.invoke(history)) == ("poet", {})


def test_every_attempt_is_one_run_and_tokens_count_once(router: UniRouter) -> None:
    """The failed run has its error in the trace, and each run the decision it was made by."""
    usage = UsageMetadataCallbackHandler()
    with collect_runs() as runs:
        chat(router, "poet").invoke("poem", config={"callbacks": [usage]})
    assert list(usage.usage_metadata) == ["oracle"]
    found = [(run.extra["metadata"]["unirouter_model"], bool(run.error)) for run in runs.traced_runs]
    assert found == [("poet", True), ("oracle", False)]


def test_tools_and_schemas_are_bound_to_the_one_that_takes_over(router: UniRouter) -> None:
    """In its own form."""

    @tool
    def count(n: int) -> int:
        """Count."""
        return n

    llm = chat(router, "poet")
    assert llm.bind_tools([count]).invoke("poem 3").tool_calls[0]["args"] == {"n": 3}
    structured = llm.with_structured_output(
        {"title": "T", "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    )
    assert structured.invoke("poem 3") == {"n": 3}


def test_a_model_that_has_cooled_down_is_tried_again(router: UniRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one call, and if that is answered it is back; the copies with tools share what is known."""
    llm = chat(router, "poet", cooldown=30)
    llm.models["poet"].n_errors = 5
    now = 100.0
    monkeypatch.setattr(llm, "_health", Health(lambda: now))
    copy = llm.bind_tools([])
    for _ in range(5):
        llm.invoke("poem")
    kind, reason = noted(copy.invoke("poem"))[1]["poet"]
    assert kind == "cooling_down"
    assert re.fullmatch(r"it failed recently and is cooling down for (2[4-9]|3[0-6]) s", reason)
    now += 37
    assert noted(llm.invoke("poem")) == ("poet", {})
    assert noted(llm.invoke("poem")) == ("poet", {})


def test_where_all_cool_down_one_is_tried(router: UniRouter) -> None:
    """Better an error of a provider than one of ours."""
    llm = chat(router, *NAMES)
    for _ in range(3):
        with pytest.raises(Limited):
            llm.invoke("poem")
    for model in llm.models.values():
        model.error = None
    assert noted(llm.invoke("poem"))[0] == "poet"


class Refusing(ChatFake):
    """Refuses, as OpenAI reports it."""

    def _generate(self, *arguments: Any, **keywords: Any) -> ChatResult:
        result = super()._generate(*arguments, **keywords)
        result.generations[0].message.additional_kwargs["refusal"] = "I cannot help with that."
        return result


async def test_a_refusal_may_be_survived(router: UniRouter) -> None:
    """If that is asked for; if all refuse, the last refusal is the answer."""
    llm = chat(router, fallback="refusals")
    llm.models["poet"] = Refusing(model="poet")
    assert noted(llm.invoke("poem")) == ("oracle", {"poet": ("refused", "it refused")})
    assert noted(await llm.ainvoke("poem")) == ("oracle", {"poet": ("refused", "it refused")})
    plain = llm.model_copy(update={"fallback": True})
    assert noted(plain.invoke("poem")) == ("poet", {})
    for name in NAMES:
        llm.models[name] = Refusing(model=name)
    assert llm.invoke("poem").additional_kwargs["refusal"] == "I cannot help with that."


class Giving(ChatFake):
    """Gives this answer."""

    gives: AIMessage

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        fields = self.gives.model_dump(include={"content", "additional_kwargs", "tool_calls", "invalid_tool_calls"})
        yield ChatGenerationChunk(message=AIMessageChunk(**fields))

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.gives)])


A_CALL: Any = {"name": "look", "args": {}, "id": "1"}
SAID = [
    pytest.param(AIMessage("", tool_calls=[A_CALL]), id="tool call"),
    pytest.param(AIMessage("", invalid_tool_calls=[{**A_CALL, "args": "{", "error": "half"}]), id="wrong tool call"),
    pytest.param(AIMessage("", additional_kwargs={"audio": {"id": "1"}}), id="audio"),
    pytest.param(AIMessage([{"type": "image_url", "image_url": {"url": "https://example.com"}}]), id="image"),
    pytest.param(AIMessage([{"type": "refusal", "refusal": "No."}]), id="refusal, which is another matter"),
]
NOT_SAID = [
    pytest.param(AIMessage(""), id="nothing"),
    pytest.param(AIMessage([]), id="no block"),
    pytest.param(AIMessage([{"type": "text", "text": ""}]), id="empty block"),
    pytest.param(AIMessage([{"type": "thinking", "thinking": "Hm."}]), id="thought"),
    pytest.param(AIMessage("", additional_kwargs={"reasoning_content": "Hm."}), id="thought beside it"),
]


async def whoever_answers(llm: ChatUniRouter, *, streamed: bool) -> list[str]:
    if not streamed:
        return [noted(each)[0] for each in (llm.invoke("poem"), await llm.ainvoke("poem"))]
    return [noted(next(llm.stream("poem")))[0], noted(await anext(llm.astream("poem")))[0]]


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("gives", SAID)
async def test_an_answer_without_text_may_say_something(router: UniRouter, gives: AIMessage, *, streamed: bool) -> None:
    """A call of a tool, also a wrong one, is one, and so is what is not text."""
    llm = chat(router)
    llm.models["poet"] = Giving(gives=gives)
    assert await whoever_answers(llm, streamed=streamed) == ["poet"] * 2


@pytest.mark.parametrize("gives", NOT_SAID)
async def test_an_empty_answer_is_none(router: UniRouter, gives: AIMessage) -> None:
    """Nor is a thought without an answer; another model gives one, also in a form."""
    llm = chat(router)
    llm.models["poet"] = Giving(gives=gives)
    excluded = {"poet": ("failed", "its answer was empty")}
    assert noted(llm.invoke("poem")) == noted(await llm.ainvoke("poem")) == ("oracle", excluded)
    form: Any = {"title": "look", "description": "Look.", "type": "object", "properties": {"at": {"type": "string"}}}
    for include_raw in (False, True):
        filled: Any = llm.with_structured_output(form, include_raw=include_raw).invoke("poem")
        assert (filled["parsed"] if include_raw else filled) == {}
    assert noted(llm.model_copy(update={"fallback": False}).invoke("poem")) == ("poet", {})


class Embedding:
    """An embedding service that is away, or slow."""

    name = "service"

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.seconds = 0.0

    def embed(self, texts: Sequence[str]) -> Any:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return toy_embed(texts)

    async def aembed(self, texts: Sequence[str]) -> Any:
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return toy_embed(texts)


@pytest.fixture
def service() -> Embedding:
    return Embedding()


@pytest.fixture
def served(service: Embedding) -> UniRouter:
    """The toy router, embedded by a service."""
    router = UniRouter.fit(TOY_PROMPTS, embedder=service, n_clusters=3, estimator="mean")
    router.register(router.profile("abacus", TOY_PROMPTS, toy_scores("poem", "date"), cost=1))
    router.register(router.profile("poet", TOY_PROMPTS, toy_scores("sum", "date"), cost=2))
    router.register(router.profile("oracle", TOY_PROMPTS, toy_scores(), cost=10))
    return router


async def answered(llm: ChatUniRouter) -> AsyncIterator[BaseMessage]:
    yield llm.invoke("poem")
    yield await llm.ainvoke("poem")
    yield llm.batch(["poem", "poem"])[1]
    yield (await llm.abatch(["poem", "poem"]))[1]
    yield next(llm.stream("poem"))


async def test_without_an_embedding_the_default_answers(served: UniRouter, service: Embedding) -> None:
    """And the decision says why; without a default the error is raised."""
    llm = chat(served, default="abacus")
    service.error = ConnectionError("away")
    reason = ("not_embedded", "the prompt could not be embedded (ConnectionError)")
    async for answer in answered(llm):
        assert noted(answer) == ("abacus", {"poet": reason, "oracle": reason})
        assert answer.response_metadata["unirouter"]["familiarity"] == 0
    with pytest.raises(ConnectionError, match="away"):
        chat(served).invoke("poem")
    service.error = None
    assert noted(llm.invoke("poem")) == ("poet", {})


async def test_a_slow_embedding_is_not_waited_for(served: UniRouter, service: Embedding) -> None:
    """Longer than the limit; a default that may not take the call is no default, and the best in the mean answers."""
    llm = chat(served, default="abacus", embedding_timeout=0.02)
    service.seconds = 0.3
    async for answer in answered(llm):
        assert noted(answer)[0] == "abacus"
        assert "TimeoutError" in noted(answer)[1]["poet"][1]
    among = {"configurable": {"unirouter_among": ["poet", "oracle"]}}
    assert noted(llm.invoke("poem", config=among)) == ("oracle", {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"default should be one of the models, .*'oracle', but is 'bard'"):
        chat(served, default="bard")


def streaming(router: UniRouter, **settings: Any) -> ChatUniRouter:
    """The best model breaks after some words, and then the next one."""
    models: dict[str, Any] = {name: Saying(model=name, said=f"{name} sings", end=ConnectionError()) for name in NAMES}
    models["abacus"] = Saying(model="abacus", said="all the way")
    return ChatUniRouter(router=router, models=models, **settings)


@pytest.mark.parametrize("on_cut", ["continue", "restart"])
async def test_another_model_may_go_on_with_a_stream(router: UniRouter, on_cut: str) -> None:
    """A chunk says so; to continue, a model is given what there is of the answer, and asked to continue it."""
    for sync in (True, False):
        llm = streaming(router, on_cut=on_cut)
        chunks = [*llm.stream("poem")] if sync else [chunk async for chunk in llm.astream("poem")]
        message = sum(chunks[1:], chunks[0])
        assert message.text == "poet sings oracle sings all the way "
        assert message.response_metadata["unirouter"]["model"] == "poet"
        cuts = [{"on_cut": on_cut, "model": "oracle"}, {"on_cut": on_cut, "model": "abacus"}]
        assert message.response_metadata["unirouter_cuts"] == cuts
        given = llm.models["abacus"].given
        assert [each.text for each in given[:2]] == ["poem", "poet sings oracle sings "][: len(given)]
        assert len(given) == (3 if on_cut == "continue" else 1)


@pytest.mark.filterwarnings("ignore:.*is in beta")
async def test_blocks_are_not_gone_on_with(router: UniRouter) -> None:
    """Those of two models make no message."""
    llm = streaming(router, on_cut="continue")
    with pytest.raises(ConnectionError):
        _ = llm.stream_events("poem", version="v3").output
    with pytest.raises(ConnectionError):
        await (await llm.astream_events("poem", version="v3"))


async def test_the_run_id_of_a_caller_is_of_one_run(router: UniRouter) -> None:
    """The model that takes over, after an error or a rejected answer, has another one, and says whose place it took."""
    models = {name: ChatFake(model=name) for name in router.models}
    models["abacus"] = ChatFake(model="abacus", error=TimeoutError())
    failing = ChatUniRouter(router=router, models=models)
    fine = {name: ChatFake(model=name) for name in router.models}
    strict = ChatUniRouter(router=router, models=fine, escalate=lambda answer, example: "abacus" not in answer.text)
    router.cost_weight = 0.2
    for llm, question in ((failing, "a sum"), (strict, "a date")):
        run_id = uuid4()
        for call in (llm.invoke, llm.ainvoke):
            with collect_runs() as runs:
                answer = call(question, {"run_id": run_id})
                if not isinstance(answer, AIMessage):
                    answer = await answer
            first, second = runs.traced_runs
            assert (first.id == run_id, second.id == run_id) == (True, False)
            assert (second.extra or {})["metadata"]["unirouter_run_id"] == str(run_id)
            assert "unirouter_run_id" not in (first.extra or {})["metadata"]
            assert answer.response_metadata["unirouter"]["model"] != "abacus"
