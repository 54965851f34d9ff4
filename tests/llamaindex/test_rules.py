"""The rules of a call hold for the LLM and the query engine alike, sync and async, and for streams where they can."""

import asyncio
import inspect
import threading
from collections.abc import Iterator, MutableMapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TOY_PROMPTS, toy_router, toy_scores
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.llms import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import FunctionTool, ToolMetadata
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from llamaindex_fakes import BadRequestError, Clock, Fake, Service, doubtful, excluded, fakes, terse
from pydantic import BaseModel, Field
from typing_extensions import override

from unirouter_integrations import InvalidInputError, NoModelError, UniRouter, UnknownModelError
from unirouter_integrations.grading import Answer, Example, Price, as_model, judge
from unirouter_integrations.llamaindex import UniRouterLLM, UniRouterQueryEngine, UniRouterSelector, call_options
from unirouter_integrations.serving import Health, ModelRegistry, _health, _serving

Routed = UniRouterLLM | UniRouterQueryEngine
LLM_WAYS = ["chat", "acomplete"]  # sync and async; what holds for chats holds for completions
STREAMS = ["stream_complete", "astream_chat"]
PLAIN_ENGINE_WAYS = ["query", "aquery"]
ENGINE_WAYS = [*PLAIN_ENGINE_WAYS, "query, stream", "aquery, stream"]
ALL = pytest.mark.parametrize("way", [*LLM_WAYS, *STREAMS, *ENGINE_WAYS])
PLAIN = pytest.mark.parametrize("way", [*LLM_WAYS, *PLAIN_ENGINE_WAYS])
FAILED = excluded("failed", "it failed with TimeoutError", "poet")


class Fixed(BaseRetriever):
    """Retrieves the same texts for every query."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.texts = texts

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text=text)) for text in self.texts]


def made(way: str, router: UniRouter, models: MutableMapping[str, Any] | None = None, **settings: Any) -> Routed:
    """The LLM or the query engine, depending on how it will be asked."""
    models = terse() if models is None else models
    if way not in ENGINE_WAYS:
        return UniRouterLLM(router=router, models=models, **settings)
    settings = {"retriever": Fixed("A long text."), "streaming": "stream" in way, **settings}
    return UniRouterQueryEngine(router=router, models=models, **settings)


async def asked(way: str, routed: Routed, question: str = "a poem") -> tuple[str, dict[str, Any]]:
    """The text of the answer, and the decision as it is noted on it."""
    found: Any = getattr(routed, way.removesuffix(", stream"))([ChatMessage(question)] if "chat" in way else question)
    if inspect.isawaitable(found):
        found = await found
    if way in ENGINE_WAYS:
        if "stream" in way:
            parts = [part async for part in found.response_gen] if way.startswith("a") else [*found.response_gen]
            return "".join(parts), found.metadata["unirouter"]
        return str(found), found.metadata["unirouter"]
    if "stream" in way:
        found = [part async for part in found][-1] if way.startswith("a") else [*found][-1]
    return found.message.content if "chat" in way else found.text, found.additional_kwargs["unirouter"]


def failing(*names: str, error: Exception | None = None) -> dict[str, Any]:
    """Models of which some fail."""
    models: dict[str, Any] = terse()
    for name in names:
        models[name].error = error or TimeoutError("too slow")
    return models


def cooling_for(seconds: int) -> list[dict[str, str]]:
    return excluded("cooling_down", f"it failed recently and is cooling down for {seconds} s", "poet")


class Hanging(Fake):
    """Answers once it is released."""

    released: Any = Field(exclude=True)

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        self.released.wait()
        answer: ChatResponse = super().chat(messages, **kwargs)
        return answer

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        await asyncio.Event().wait()
        raise AssertionError

    @override
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        await asyncio.Event().wait()
        raise AssertionError

    @override
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        self.released.wait()
        yield from super().stream_complete(prompt, formatted, **kwargs)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        self.released.wait()
        yield from super().stream_chat(messages, **kwargs)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        await asyncio.Event().wait()


def n_calls(models: MutableMapping[str, Any], name: str) -> int:
    return len(models[name].sent)


# What happens after a failure, a refusal and an answer that is not good enough


@ALL
async def test_the_next_best_takes_over_after_a_failure(router: UniRouter, way: str) -> None:
    """The decision names the model that answered and the one that failed."""
    text, decision = await asked(way, made(way, router, failing("poet")))
    assert (text, decision["model"], decision["excluded"]) == ("oracle: yes", "oracle", FAILED)


@ALL
@pytest.mark.parametrize(
    ("settings", "errors", "n_asked"),
    [
        ({}, {"poet": BadRequestError()}, 1),
        ({"fallback": False}, {"poet": TimeoutError()}, 1),
        ({"fallback": lambda error: not isinstance(error, TimeoutError)}, {"poet": TimeoutError()}, 1),
        ({"max_attempts": 2}, {"poet": TimeoutError(), "oracle": ConnectionError()}, 2),
        ({}, {"poet": TimeoutError(), "oracle": TimeoutError(), "abacus": ConnectionError()}, 3),
    ],
    ids=["the caller's own", "no fallback", "not survived", "no attempt is left", "no model is left"],
)
async def test_other_errors_are_raised(
    router: UniRouter, way: str, settings: Any, errors: dict[str, Exception], n_asked: int
) -> None:
    """Unchanged: that of the model that was asked last."""
    models = failing()
    for name, error in errors.items():
        models[name].error = error
    with pytest.raises(type([*errors.values()][-1])) as raised:
        await asked(way, made(way, router, models, **settings))
    assert raised.value is [*errors.values()][-1]
    assert sum(n_calls(models, name) for name in models) == n_asked


@ALL
@pytest.mark.parametrize("error", [ValueError("a bug"), TypeError(), KeyError("choices")], ids=str)
async def test_what_nobody_knows_is_survived(router: UniRouter, way: str, error: Exception) -> None:
    """Also the errors that LlamaIndex's synthesizers log, and would go on without an answer."""
    text, decision = await asked(way, made(way, router, failing("poet", error=error)))
    reason = f"it failed with {type(error).__name__}"
    assert (text, decision["excluded"]) == ("oracle: yes", excluded("failed", reason, "poet"))


@ALL
async def test_a_call_has_a_deadline(router: UniRouter, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it has passed, no further model is asked."""
    clock = Clock()
    monkeypatch.setattr(_serving, "time", SimpleNamespace(monotonic=clock))
    models = failing()

    def slow(_: Any) -> str:
        clock.now += 40
        raise TimeoutError

    for model in models.values():
        model.reply = slow
    with pytest.raises(TimeoutError):
        await asked(way, made(way, router, models, deadline=60))
    assert [n_calls(models, name) for name in ("poet", "oracle", "abacus")] == [1, 1, 0]


@ALL
async def test_a_model_that_hangs_costs_its_timeout_alone(router: UniRouter, way: str) -> None:
    """The next one answers."""
    released, timeout = threading.Event(), 1.0
    hanging = Hanging(model_name="poet", released=released)
    limit = "first_token_timeout" if "stream" in way else "timeout"
    try:
        text, decision = await asked(way, made(way, router, {**terse(), "poet": hanging}, **{limit: timeout}))
    finally:
        released.set()
    assert (text, decision["excluded"]) == ("oracle: yes", FAILED)


@PLAIN
async def test_after_a_refusal_another_model_answers_if_asked(router: UniRouter, way: str) -> None:
    """As a provider reports it on the answer, or raises it."""
    models: dict[str, Any] = terse()
    models["poet"].report = {"choices": [{"finish_reason": "content_filter"}]}
    text, decision = await asked(way, made(way, router, models, fallback="refusals"))
    assert (text, decision["excluded"]) == ("oracle: yes", excluded("refused", "it refused", "poet"))
    assert (await asked(way, made(way, router, models)))[0] == "poet: yes"
    models = failing("poet", error=RuntimeError("Error code: 400 - {'code': 'content_filter'}"))
    text, decision = await asked(way, made(way, router, models, fallback="refusals"))
    reason = "it failed with RuntimeError"
    assert (text, decision["excluded"]) == ("oracle: yes", excluded("refused", reason, "poet"))
    with pytest.raises(RuntimeError):
        await asked(way, made(way, router, models))


@PLAIN
async def test_an_answer_that_does_not_pass_goes_on_to_a_better_model(router: UniRouter, way: str) -> None:
    """It is judged by the question alone; the best model's answer is not checked."""
    checked: list[tuple[str, str]] = []

    def check(answer: Answer, example: Example) -> bool:
        checked.append((example.prompt, answer.text))
        return answer.text == passing

    passing, rejected = "poet: yes", ("rejected", "its answer did not pass")
    routed = made(way, doubtful(router), escalate=check)
    text, decision = await asked(way, routed)
    assert (text, decision["excluded"]) == (passing, excluded(*rejected, "abacus"))
    assert checked == [("a poem", "abacus: yes"), ("a poem", "poet: yes")]
    passing = "no answer"
    text, decision = await asked(way, routed)
    assert (text, decision["excluded"]) == ("oracle: yes", excluded(*rejected, "abacus", "poet"))
    assert len(checked) == 4


@PLAIN
async def test_an_answer_that_is_there_is_not_lost(
    router: UniRouter, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither if the better models fail, nor if the check does."""
    models = failing("poet", "oracle", error=RuntimeError("a bug"))
    assert (await asked(way, made(way, doubtful(router), models, escalate=lambda answer, example: False)))[0] == (
        "abacus: yes"
    )

    def broken(answer: Answer, example: Example) -> bool:
        raise KeyError(answer.text)

    assert (await asked(way, made(way, doubtful(router), escalate=broken)))[0] == "abacus: yes"
    assert "The check of an answer of abacus raised KeyError" in caplog.text


async def test_what_is_no_answer_of_a_model_or_has_begun_is_not_checked(router: UniRouter) -> None:
    """Streams, and the fixed text of LlamaIndex where nothing was retrieved."""
    checked: list[str] = []
    settings: dict[str, Any] = {"escalate": lambda answer, example: checked.append(answer.text)}
    for way in [*STREAMS, "query, stream", "aquery, stream"]:
        assert (await asked(way, made(way, doubtful(router), **settings)))[0] == "abacus: yes"
    for way in ENGINE_WAYS:
        empty = made(way, doubtful(router), retriever=Fixed(), **settings)
        assert (await asked(way, empty))[0].strip() == "Empty Response"
    assert checked == []


# Which models cool down


@ALL
async def test_a_model_that_fails_again_and_again_cools_down(
    router: UniRouter, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then one call probes it. It cools down for longer if that fails; if it answers, the model takes part again."""
    monkeypatch.setattr(_health, "random", SimpleNamespace(uniform=lambda low, high: (low + high) / 2))
    models, clock = ModelRegistry(failing("poet")), Clock()
    models.health = Health(clock)
    routed = made(way, router, models, cooldown=20)
    for _ in range(5):
        assert (await asked(way, routed))[1]["excluded"] == FAILED
    assert (await asked(way, routed))[1]["excluded"] == cooling_for(20)
    assert n_calls(models, "poet") == 5
    clock.now = 20
    assert (await asked(way, routed))[1]["excluded"] == FAILED
    assert (await asked(way, routed))[1]["excluded"] == cooling_for(40)
    clock.now, models["poet"].error = 60, None
    assert (await asked(way, routed))[0] == "poet: yes"
    assert "excluded" not in (await asked(way, routed))[1]


@ALL
async def test_a_model_that_cools_down_is_asked_last(router: UniRouter, way: str) -> None:
    """A call that nobody else can answer is not lost."""
    models = ModelRegistry(failing("poet"))
    models.health = Health(Clock())
    routed = made(way, router, models)
    for _ in range(5):
        await asked(way, routed)
    models["poet"].error, models["oracle"].error, models["abacus"].error = None, TimeoutError(), TimeoutError()
    text, decision = await asked(way, routed)
    assert (text, decision["excluded"]) == (
        "poet: yes",
        excluded("failed", "it failed with TimeoutError", "oracle", "abacus"),
    )


@ALL
async def test_a_provider_says_how_long(router: UniRouter, way: str) -> None:
    """After one failure; but at most two minutes."""
    error = TimeoutError("too many requests")
    error.headers = {"Retry-After": "20"}  # type: ignore[attr-defined]
    models = ModelRegistry(failing("poet", error=error))
    models.health = Health(Clock())
    routed = made(way, router, models)
    assert (await asked(way, routed))[1]["excluded"] == FAILED
    assert (await asked(way, routed))[1]["excluded"] == cooling_for(20)
    assert n_calls(models, "poet") == 1
    models.health, error.headers = Health(Clock()), {"Retry-After": "3600"}  # type: ignore[attr-defined]
    routed = made(way, router, models)
    assert (await asked(way, routed))[1]["excluded"] == FAILED
    assert (await asked(way, routed))[1]["excluded"] == cooling_for(120)
    assert n_calls(models, "poet") == 2


# What answers where the question cannot be embedded


@pytest.fixture
def service() -> Iterator[Service]:
    found = Service()
    yield found
    found.answers.set()  # a thread that waits for it can end


def served(service: Service) -> UniRouter:
    """The toy router, with an embedding service that can fail."""
    router = UniRouter.fit(TOY_PROMPTS, embedder=service, n_clusters=3, estimator="mean")
    for name in fakes():
        router.register(router.profile(name, TOY_PROMPTS, toy_scores(), cost=1))
    return router


@ALL
async def test_without_an_embedding_the_default_answers(service: Service, way: str) -> None:
    """With the reason; without a default, the error is raised."""
    router = served(service)
    service.error = ConnectionError("away")
    text, decision = await asked(way, made(way, router, default="poet"))
    reason = "the prompt could not be embedded (ConnectionError)"
    assert (text, decision["excluded"]) == ("poet: yes", excluded("not_embedded", reason, "abacus", "oracle"))
    with pytest.raises(ConnectionError):
        await asked(way, made(way, router))
    with pytest.raises(InvalidInputError, match="default should be one of the models"):
        made(way, router, default="bard")


@ALL
async def test_an_embedding_that_takes_too_long_is_not_waited_for(service: Service, way: str) -> None:
    """Nor without a default, where the error is raised."""
    router = served(service)
    service.answers.clear()
    text, decision = await asked(way, made(way, router, default="poet", embedding_timeout=0.01))
    assert (text, {each["reason"] for each in decision["excluded"]}) == (
        "poet: yes",
        {"the prompt could not be embedded (TimeoutError)"},
    )
    with pytest.raises(TimeoutError):
        await asked(way, made(way, router, embedding_timeout=0.01))
    with pytest.raises(ValueError, match="embedding_timeout"):
        made(way, router, embedding_timeout=0)


# Which models can take a call


@ALL
async def test_models_with_too_short_a_context_are_left_out(router: UniRouter, way: str) -> None:
    """By what they state, or what a registry declares; a text that is retrieved has to fit, too."""
    long = "sum " * 1000
    settings: dict[str, Any] = {"retriever": Fixed(long)} if way in ENGINE_WAYS else {}
    question = "a sum" if way in ENGINE_WAYS else long
    about = f"{len(question + long * (way in ENGINE_WAYS)) // 4:,}"
    small = fakes(abacus={"window": 500}, poet={"terse": True}, oracle={"terse": True})
    declared = ModelRegistry(terse(), capabilities={"abacus": {"max_input_tokens": 500}})
    for models in (small, declared):
        text, decision = await asked(way, made(way, router, models, **settings), question)
        reason = f"its input is limited to 500 tokens, and this one has about {about}"
        assert (text, decision["excluded"]) == ("oracle: yes", excluded("incapable", reason, "abacus"))
    assert (await asked(way, made(way, router, declared), "a sum"))[0] == "abacus: yes"


def test_models_without_tools_or_images_are_left_out(router: UniRouter) -> None:
    """By what a registry declares, which comes before what a model states."""
    capabilities = {"abacus": {"tool_calling": False, "image_inputs": False}, "poet": {"tool_calling": True}}
    models = {**terse(), "poet": Fake(model_name="poet", calls_functions=False)}
    llm = UniRouterLLM(router=router, models=ModelRegistry(models, capabilities=capabilities))
    tools = [FunctionTool.from_defaults(lambda text: text, name="note", description="Write something down.")]
    decision = llm.chat_with_tools(tools, "a sum").additional_kwargs["unirouter"]
    assert decision["excluded"] == excluded("incapable", "it takes no tools", "abacus")
    answer = llm.chat_with_tools(tools, "a poem")
    assert answer.additional_kwargs["unirouter"]["model"] == "poet"
    assert llm.get_tool_calls_from_response(answer)[0].tool_name == "note"
    picture = ChatMessage(blocks=[ImageBlock(url="https://example.com/sum.png"), TextBlock(text="which sum?")])
    decision = llm.chat([picture]).additional_kwargs["unirouter"]
    assert decision["model"] == "oracle"
    assert decision["excluded"] == excluded("incapable", "it takes no image inputs", "abacus")
    assert llm.chat([ChatMessage("a sum")]).additional_kwargs["unirouter"]["model"] == "abacus"
    del llm.models["oracle"], llm.models["poet"]
    with pytest.raises(NoModelError, match=r"can take this call\. abacus: it takes no image inputs"):
        llm.chat([picture])
    assert not llm.metadata.is_function_calling_model


# The options of a call


@ALL
async def test_a_call_may_have_its_own_cost_weight_candidates_and_model(router: UniRouter, way: str) -> None:
    """Inside the block alone."""
    routed = made(way, router, cost_weight=0.01)
    with call_options(cost_weight=5):
        text, decision = await asked(way, routed, "a date")
        assert (text, decision["cost_weight"]) == ("abacus: yes", 5)
    with call_options(among=["abacus", "poet"]):
        assert (await asked(way, routed, "a date"))[0] == "abacus: yes"
    with call_options(model="poet"):
        assert (await asked(way, routed, "a date"))[0] == "poet: yes"
    text, decision = await asked(way, routed, "a date")
    assert (text, decision["cost_weight"]) == ("oracle: yes", 0.01)


@ALL
async def test_no_other_model_takes_over_from_a_forced_one(router: UniRouter, way: str) -> None:
    """Nor one that is no candidate."""
    routed = made(way, router, failing("poet"))
    with call_options(model="poet"), pytest.raises(TimeoutError):
        await asked(way, routed)
    with call_options(among=["poet", "abacus"]):
        assert (await asked(way, routed))[0] == "abacus: yes"


@ALL
async def test_options_are_checked(router: UniRouter, way: str) -> None:
    """When they are given; names when the call is made."""
    routed = made(way, router)
    with (
        call_options(model="bard"),
        pytest.raises(UnknownModelError, match="no model 'bard'; the models are 'abacus', 'poet', 'oracle'"),
    ):
        await asked(way, routed)
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"cost_weight": -1}, "cost_weight should be a number of at least 0, but is -1"),
        ({"among": "poet"}, "among should be a list of one or more names"),
        ({"among": []}, "among should be a list of one or more names"),
    ]
    for wrong, message in wrongs:
        with pytest.raises(InvalidInputError, match=message), call_options(**wrong):
            pass
    assert (await asked(way, routed))[0] == "poet: yes"


@ALL
async def test_inner_options_come_before_outer_ones(router: UniRouter, way: str) -> None:
    """What the inner ones leave out is that of the outer ones."""
    routed = made(way, router)
    with call_options(cost_weight=5, among=["oracle"]):
        with call_options(model="poet"):
            text, decision = await asked(way, routed)
            assert (text, decision["cost_weight"]) == ("poet: yes", 5)
        with call_options(cost_weight=0):
            text, decision = await asked(way, routed)
            assert (text, decision["cost_weight"]) == ("oracle: yes", 0)


@pytest.mark.parametrize("way", ["acomplete", "astream_chat", "aquery"])
async def test_options_of_tasks_do_not_mix(router: UniRouter, way: str) -> None:
    """Each task has those that it set or started with."""
    routed = made(way, router)

    async def ask(name: str) -> str:
        with call_options(model=name):
            await asyncio.sleep(0)
            task = asyncio.create_task(asked(way, routed))
            await asyncio.sleep(0)
        return (await task)[0]

    names = ["abacus", "poet", "oracle"] * 10
    assert await asyncio.gather(*map(ask, names)) == [f"{name}: yes" for name in names]
    assert (await asked(way, routed))[0] == "poet: yes"


def note(text: str) -> str:
    """Write something down."""
    return f"noted: {text}"


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")  # of LlamaIndex's agents
@pytest.mark.parametrize("streaming", [False, True])
async def test_options_reach_the_llm_of_an_agent(router: UniRouter, streaming: Any) -> None:
    """Through its whole loop of tool calls, also if its run is awaited later."""
    llm = UniRouterLLM(router=router, models=fakes())
    agent: Any = FunctionAgent(tools=[note], llm=llm, streaming=streaming)

    def run() -> Any:
        return agent.run(user_msg="a sum", memory=ChatMemoryBuffer.from_defaults(token_limit=3000))

    with call_options(model="poet"):
        assert str(await run()) == "poet: noted: poet: a sum"
        later = run()
    assert str(await later) == "poet: noted: poet: a sum"
    assert str(await run()) == "abacus: noted: abacus: a sum"


async def test_options_reach_the_llm_of_a_workflow(router: UniRouter) -> None:
    """In each of its steps; those of two runs at once do not mix."""
    llm = UniRouterLLM(router=router, models=terse())

    class Flow(Workflow):
        @step
        async def ask(self, event: StartEvent) -> StopEvent:
            return StopEvent(result=str(await llm.acomplete(event.question)))

    with call_options(model="poet"):
        first = Flow().run(question="a sum")
    with call_options(model="oracle"):
        second = Flow().run(question="a sum")
    assert [await first, await second, await Flow().run(question="a sum")] == [
        "poet: yes",
        "oracle: yes",
        "abacus: yes",
    ]


async def test_options_reach_calls_in_the_threads_of_llamaindex(router: UniRouter) -> None:
    """Synchronous code inside an event loop runs its asynchronous calls in another thread."""
    llm = UniRouterLLM(router=router, models=terse())
    nodes = [NodeWithScore(node=TextNode(text="A long text. " * 300)) for _ in range(4)]
    synthesizer = get_response_synthesizer(llm, response_mode=ResponseMode.TREE_SUMMARIZE, use_async=True)
    with call_options(model="poet"):
        assert str(synthesizer.synthesize("a sum", nodes)) == "poet: yes"
    assert {name for name in llm.models if n_calls(llm.models, name)} == {"poet"}


async def test_a_selector_has_them_too(router: UniRouter) -> None:
    """Sync and async; names that are no choice do not matter, as long as one is."""
    selector, choices = UniRouterSelector(router=router), [ToolMetadata("answers", name) for name in fakes()]

    async def chosen(**options: Any) -> tuple[str | None, float]:
        with call_options(**options):
            results: list[Any] = [selector.select(choices, "a date"), await selector.aselect(choices, "a date")]
        ((name, weight),) = {(choices[result.ind].name, result.decision.cost_weight) for result in results}
        return name, weight

    assert await chosen() == ("oracle", 0)
    assert await chosen(cost_weight=5) == ("abacus", 5)
    assert await chosen(among=["abacus", "bard"]) == ("abacus", 0)
    assert await chosen(model="poet") == ("poet", 0)
    with pytest.raises(NoModelError):
        await chosen(model="bard")


def around(router: UniRouter) -> tuple[UniRouter, dict[str, Any]]:
    """A router over a cheap team, which is a router itself, and another model, which is better and expensive."""
    outer = UniRouter(router.clusters)
    for name, score, cost in (("team", 0.5, 0), ("other", 1, 100)):
        outer.register(outer.profile(name, ["sum", "poem", "date"], [score] * 3, cost=cost))
    team = UniRouterLLM(router=router, models=terse())
    return outer, {"team": team, "other": Fake(model_name="other", terse=True)}


@ALL
async def test_the_candidates_of_a_call_are_not_those_of_a_router_inside_it(router: UniRouter, way: str) -> None:
    """That has other models. Its cost weight is."""
    routed = made(way, *around(router))
    with call_options(model="team", cost_weight=5):
        assert (await asked(way, routed, "a date"))[0] == "abacus: yes"
    with call_options(among=["team"], cost_weight=0):
        assert (await asked(way, routed, "a date"))[0] == "oracle: yes"


@PLAIN
async def test_the_candidates_of_a_call_are_not_those_of_its_check(router: UniRouter, way: str) -> None:
    """A judge may be a router, too."""
    judges: dict[str, Any] = fakes(**{name: {"reply": lambda _: "Score: 0"} for name in fakes()})
    check = judge(UniRouterLLM(router=toy_router("soft"), models=judges), price=Price(0, 0))
    routed = made(way, *around(router), escalate=check)
    with call_options(among=["team", "other"], cost_weight=5):
        text, decision = await asked(way, routed)
    assert (text, [each["kind"] for each in decision["excluded"]]) == ("other: yes", ["rejected"])
    assert sum(n_calls(judges, name) for name in judges) == 1


# Registries


@ALL
async def test_users_of_a_registry_share_its_health(router: UniRouter, way: str) -> None:
    """An LLM, a query engine, another LLM over another router, and one that is made for each request."""
    models = ModelRegistry(failing("poet"))
    models.health = Health(Clock())
    settings: dict[str, Any] = {"models": models, "cooldown": 3600}
    users = [
        made(way, router, **settings),
        made("query", router, **settings),
        made("chat", toy_router("hard"), **settings),
    ]
    ways = [way, "query", "chat"]
    for each, routed in [*zip(ways, users, strict=True)] * 2:
        expected = FAILED if n_calls(models, "poet") < 5 else ["cooling_down"]
        found = (await asked(each, routed))[1]["excluded"]
        assert (found if expected is FAILED else [one["kind"] for one in found]) == expected
    for each, routed in zip([*ways, way], [*users, made(way, router, models)], strict=True):
        assert [one["kind"] for one in (await asked(each, routed))[1]["excluded"]] == ["cooling_down"]
    assert n_calls(models, "poet") == 5
    alone = dict(models)
    assert (await asked(way, made(way, router, alone)))[1]["excluded"] == FAILED
    assert (await asked(way, made(way, router, alone)))[1]["excluded"] == FAILED


@ALL
async def test_a_model_joins_all_users_of_a_registry_with_its_price(router: UniRouter, way: str) -> None:
    """And leaves them; a dict has no place for a price."""
    models = ModelRegistry(terse())
    routed, other = made(way, router, models), made("query" if way in LLM_WAYS else "chat", router, models)
    profile = router.profile("calendar", TOY_PROMPTS, toy_scores(), cost=0.5)
    other.register("calendar", Fake(model_name="calendar", terse=True), profile, price=Price(1, 2))
    assert (await asked(way, routed, "a date"))[0] == "calendar: yes"
    assert models.price("calendar") == Price(1, 2)
    routed.register("calendar", Fake(model_name="again", terse=True), profile)
    assert (await asked(way, routed, "a date"))[0] == "again: yes"
    routed.unregister("calendar")
    assert (await asked(way, routed, "a date"))[0] == "oracle: yes"
    with pytest.raises(InvalidInputError, match="A dict of models has no place for the price of 'calendar'"):
        made(way, router).register("calendar", Fake(model_name="calendar"), profile, price=Price(1, 2))
    with pytest.raises(InvalidInputError, match="'poet' should be a LlamaIndex LLM, not str"):
        made(way, router, ModelRegistry({**terse(), "poet": "openai:gpt-5-nano"}))


# Loops of tool calls, streams, settings


async def test_the_next_best_takes_over_a_loop_whose_model_fails(router: UniRouter) -> None:
    """And goes on with it, also where it cools down."""
    models = failing()
    llm = UniRouterLLM(router=router, models=models, cooldown=3600)
    loop = [ChatMessage("a poem"), llm.chat([ChatMessage("a poem")]).message, ChatMessage("Observation: 3")]
    models["poet"].error = TimeoutError("too slow")
    answer = llm.chat(loop)
    assert answer.message.content == "oracle: yes"
    assert answer.additional_kwargs["unirouter"]["excluded"] == FAILED
    models["poet"].error, models["oracle"].error = None, TimeoutError("too slow")
    for _ in range(5):
        with call_options(model="oracle"), pytest.raises(TimeoutError):
            llm.chat([ChatMessage("a date")])
    models["oracle"].error = None
    assert (await llm.achat([ChatMessage("a date")])).message.content != "oracle: yes"
    for answer in (llm.chat(loop), await llm.achat(loop)):
        decision = answer.additional_kwargs["unirouter"]
        assert (decision["model"], decision["basis"]) == ("oracle", "kept")
        assert "excluded" not in decision


@pytest.mark.parametrize("way", ["stream_chat", "astream_chat"])
async def test_the_first_part_of_a_stream_has_arrived_when_its_method_returns(router: UniRouter, way: str) -> None:
    """So an error is raised there, and not where the stream is read; no part is lost or doubled."""

    class Lazy(Fake):
        """Makes its call when the stream is read, as OpenAI's client does."""

        def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
            return (part for opened in [super().stream_chat] for part in opened(messages, **kwargs))

        async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
            async def read() -> Any:
                async for part in await super(Lazy, self).astream_chat(messages, **kwargs):
                    yield part

            return read()

    lazy: Any = Lazy(model_name="poet")
    routed = made(way, router, {**terse(), "poet": lazy}, fallback=False)
    given = [ChatMessage("a poem")]
    found: Any = getattr(routed, way)(given)
    stream = await found if way.startswith("a") else found
    assert len(lazy.sent) == 1
    parts = [part async for part in stream] if way.startswith("a") else [*stream]
    assert [part.delta for part in parts] == ["poet: ", "a ", "poem"]
    lazy.error = TimeoutError("too slow")
    with pytest.raises(TimeoutError):
        await found if inspect.isawaitable(found := getattr(routed, way)(given)) else found


@ALL
async def test_settings_can_be_changed_at_any_time(router: UniRouter, way: str) -> None:
    """They hold from the next call on."""
    routed = made(way, router, failing("poet"))
    routed.cost_weight = 5
    assert (await asked(way, routed, "a date"))[0] == "abacus: yes"
    routed.cost_weight, routed.fallback = None, False
    with pytest.raises(TimeoutError):
        await asked(way, routed)


async def test_the_tokens_of_a_query_engine_are_counted_when_it_is_profiled(router: UniRouter) -> None:
    """Those of every model that wrote for the answer."""
    models: dict[str, Any] = terse()
    models["poet"].report = {"choices": [{"finish_reason": "content_filter"}]}
    answer = await as_model(made("aquery", router, models, fallback="refusals"))(Example("a poem"))
    used = [models[name].raws[-1]["usage"] for name in ("poet", "oracle")]
    assert answer.text == "oracle: yes"
    assert answer.usage is not None
    assert answer.usage.input_tokens == sum(usage["prompt_tokens"] for usage in used)
    assert answer.usage.output_tokens == sum(usage["completion_tokens"] for usage in used)


def test_templates_and_forms_have_the_options_and_rules_as_well(router: UniRouter) -> None:
    """Those that the query engines and agents of LlamaIndex fill in."""
    llm = UniRouterLLM(router=router, models=failing("poet"))
    template = PromptTemplate("{query_str}")
    assert llm.predict(template, query_str="a poem") == "oracle: yes"
    assert "".join(llm.stream(template, query_str="a poem")) == "oracle: yes"
    with call_options(model="abacus"):
        assert llm.predict(template, query_str="a poem") == "abacus: yes"
        assert "".join(llm.stream(template, query_str="a poem")) == "abacus: yes"


# A second model, and streams that break


class Broken(Fake):
    """Streams that break after the first word."""

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        yield next(iter(super().stream_chat(messages, **kwargs)))
        raise ConnectionError

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        async def parts() -> Any:
            for part in self.stream_chat(messages, **kwargs):
                yield part

        return parts()

    @override
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        yield next(iter(super().stream_complete(prompt, formatted, **kwargs)))
        raise ConnectionError

    @override
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        async def parts() -> Any:
            for part in self.stream_complete(prompt, formatted, **kwargs):
                yield part

        return parts()


EVERY_STREAM = pytest.mark.parametrize("way", ["stream_chat", "astream_chat", "stream_complete", "astream_complete"])


async def parts_of(way: str, routed: Any) -> list[Any]:
    """All parts of a stream."""
    found = getattr(routed, way)([ChatMessage("a poem")] if "chat" in way else "a poem")
    return [part async for part in await found] if way.startswith("a") else [*found]


@EVERY_STREAM
@pytest.mark.parametrize("on_cut", ["continue", "restart"])
async def test_another_model_goes_on_with_a_stream_that_breaks(router: UniRouter, way: str, on_cut: Any) -> None:
    """Each part holds the text so far, as LlamaIndex has it, and which model it is of; from the break on, also how."""
    models: dict[str, Any] = {**terse(), "poet": Broken(model_name="poet", terse=True)}
    llm = UniRouterLLM(router=router, models=models, on_cut=on_cut)
    parts = await parts_of(way, llm)
    assert "".join(part.delta for part in parts) == "poet: oracle: yes"
    texts = [part.message.content if "chat" in way else part.text for part in parts]
    before = "poet: " if on_cut == "continue" else ""
    assert texts == ["poet: ", f"{before}oracle: ", f"{before}oracle: yes"]
    notes = [part.additional_kwargs for part in parts]
    assert [each["unirouter"]["model"] for each in notes] == ["poet", "oracle", "oracle"]
    assert notes[1]["unirouter"]["excluded"] == excluded("failed", "it failed with ConnectionError", "poet")
    cuts = [{"on_cut": on_cut, "model": "oracle"}]
    assert [each.get("unirouter_cuts") for each in notes] == [None, cuts, cuts]
    given = [message.content for message in models["oracle"].sent[-1]]
    if on_cut == "restart":
        assert given == ["a poem"]
    elif "chat" in way:
        assert given[:2] == ["a poem", "poet: "]
        assert given[2].startswith("Your last answer was cut off.")
    else:
        assert given[0].startswith("a poem\n\npoet: \n\nYour last answer was cut off.")


@EVERY_STREAM
async def test_by_default_a_stream_that_breaks_raises(router: UniRouter, way: str) -> None:
    """With the text so far."""
    models: dict[str, Any] = {**terse(), "poet": Broken(model_name="poet", terse=True)}
    with pytest.raises(ConnectionError) as raised:
        await parts_of(way, UniRouterLLM(router=router, models=models))
    assert raised.value.partial_text == "poet: "  # type: ignore[attr-defined]


@ALL
async def test_a_second_model_answers_for_one_that_takes_long(router: UniRouter, way: str) -> None:
    """Longer than its last answers did."""
    released = threading.Event()
    models = ModelRegistry({**terse(), "poet": Hanging(model_name="poet", terse=True, released=released)})
    for _ in range(16):
        models.health.succeeded(models.health.start("poet"), 0.0)
    text, decision = await asked(way, made(way, router, models, hedge=True))
    released.set()
    assert text == "oracle: yes"
    assert decision["excluded"] == excluded("slow", "it took longer than 95% of its answers", "poet")


async def test_an_llm_whose_provider_runs_tools_is_not_hedged(router: UniRouter) -> None:
    """They might act twice."""
    released = threading.Event()

    class Acting(Hanging):
        built_in_tools: list[str] = Field(default=["web_search"])

    poet: Any = Acting(model_name="poet", terse=True, released=released)
    models = ModelRegistry({**terse(), "poet": poet})
    for _ in range(16):
        models.health.succeeded(models.health.start("poet"), 0.0)
    llm: Any = made("chat", router, models, hedge=True)
    task = asyncio.create_task(asyncio.to_thread(llm.chat, [ChatMessage("a poem")]))
    while n_calls(models, "poet") + n_calls(models, "oracle") == 0 and not task.done():
        await asyncio.sleep(0.001)
        released.set()
    assert (await task).message.content == "poet: yes"
    assert n_calls(models, "oracle") == 0


@ALL
async def test_a_call_costs_no_more_than_it_may(router: UniRouter, way: str) -> None:
    """The costs of the toy models are 2, 10 and 1."""
    models = failing("poet")
    text, decision = await asked(way, made(way, router, models, max_cost=5))
    assert text == "abacus: yes"
    assert [(each["model"], each["kind"]) for each in decision["excluded"]] == [
        ("oracle", "too_expensive"),
        ("poet", "failed"),
    ]
    with pytest.raises(NoModelError, match="is above max_cost"):
        await asked(way, made(way, router, models, max_cost=0.5))


@ALL
async def test_a_call_has_limits_of_its_own(router: UniRouter, way: str) -> None:
    """In error and in cost; those of an inner block come before those of an outer one."""
    routed = made(way, router, cost_weight=10)
    assert (await asked(way, routed))[0] == "abacus: yes"
    with call_options(max_error=0.1):
        text, decision = await asked(way, routed)
        assert text == "poet: yes"
        assert [(each["model"], each["kind"]) for each in decision["excluded"]] == [("abacus", "error_too_high")]
        with call_options(max_cost=1.5):
            text, decision = await asked(way, routed)
            assert text == "abacus: yes"
            assert {each["kind"] for each in decision["excluded"]} == {"too_expensive"}
    with pytest.raises(InvalidInputError, match="max_error"), call_options(max_error=2):
        pass


class Signed(BaseModel):
    """An answer that only two models fill in as it should be."""

    text: str = Field(pattern="^(poet|oracle)")


async def test_a_form_that_is_filled_in_badly_goes_to_a_better_model(router: UniRouter) -> None:
    """It counts against no model; if no better one can fill it in, the error is raised."""
    models = ModelRegistry(fakes())
    llm = UniRouterLLM(router=router, models=models, cost_weight=10)
    template = PromptTemplate("{query_str}")
    for form in (
        llm.structured_predict(Signed, template, query_str="a date"),
        await llm.astructured_predict(Signed, template, query_str="a date"),
    ):
        assert form.text.startswith(("poet", "oracle"))
    assert n_calls(models, "abacus") == 2
    for name in ("poet", "oracle"):
        models[name].reply = lambda _: "bard"
    for _ in range(6):
        with pytest.raises(ValueError, match="validation error for Signed"):
            llm.structured_predict(Signed, template, query_str="a date")
    assert models.health.cooling_down([*models]) == {}
    with pytest.raises(ValueError, match="validation error for Signed"):
        UniRouterLLM(router=router, models=fakes(), cost_weight=10, fallback=False).structured_predict(
            Signed, template, query_str="a date"
        )
