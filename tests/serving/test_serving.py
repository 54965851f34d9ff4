"""The rules of a call, without a framework: what is asked of whom, in which order, and what comes of it."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import pytest
from conftest import toy_router
from hypothesis import given, settings
from hypothesis import strategies as st

from unirouter_integrations import PromptClusters, UniRouter
from unirouter_integrations.embedding import Vectors
from unirouter_integrations.grading import Answer, Example
from unirouter_integrations.serving import Health
from unirouter_integrations.serving._serving import Fallback, Serving, as_check
from unirouter_integrations.serving._steps import CallRequest, Framework, RoutedCall

NAMES = ("abacus", "oracle", "poet", "scribe")
Outcome = Literal["good", "poor", "refusal", "timeout", "retry later", "too long", "bug", "refusal by error"]
OUTCOMES: tuple[Outcome, ...] = Outcome.__args__  # type: ignore[attr-defined]
KINDS = {"poor": "rejected", "refusal": "refused"}  # the others fail


class RetryLaterError(Exception):
    """A rate limit, for twenty seconds."""

    status_code = 429
    headers: dict[str, str] = {"retry-after": "20"}  # noqa: RUF012


class ContextOverflowError(Exception):
    """An input that is too long, which says nothing about the model."""

    def __str__(self) -> str:
        return "the context window is exceeded"


class OpenAIRefusalError(Exception):
    """A refusal, as langchain-openai raises it."""


ERRORS: dict[str, type[Exception]] = {
    "timeout": TimeoutError,
    "retry later": RetryLaterError,
    "too long": ContextOverflowError,
    "bug": ZeroDivisionError,
    "refusal by error": OpenAIRefusalError,
}
FRAMEWORK = Framework(
    as_model=lambda name, model: model,
    capabilities_of=lambda model: {},
    is_refusal=lambda answer: answer == "refusal",
    text_answer=lambda answer: answer if isinstance(answer, str) else None,
)


@cache
def fitted() -> UniRouter:
    """Four models with errors between 0 and 1, so that some are better than a cheap one."""
    router = toy_router("soft")
    router.register(router.profile("scribe", ["sum", "poem", "date"], [0.5, 0.6, 0.4], cost=0.5))
    router.cost_weight = 0.3
    return router


@dataclass(frozen=True)
class Plan:
    """Some calls, and what comes of them: of each model the outcomes of its calls, in order and over again."""

    outcomes: dict[str, list[Outcome]]
    requests: list[CallRequest]
    pauses: list[int]
    fallback: Fallback
    cooldown: float
    checks: bool


REQUESTS = st.builds(
    CallRequest,
    question=st.sampled_from(["a date", "a sum", "a poem", "something else"]),
    cost_weight=st.sampled_from([None, 0.0, 2.0]),
    among=st.one_of(st.none(), st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)),
    kept=st.one_of(st.none(), st.sampled_from(NAMES)),
    is_in_tool_loop=st.booleans(),
)
PLANS = st.builds(
    Plan,
    outcomes=st.fixed_dictionaries(
        {name: st.lists(st.sampled_from(OUTCOMES + ("poor",) * 4), min_size=1, max_size=4) for name in NAMES}
    ),
    requests=st.lists(REQUESTS, min_size=1, max_size=6),
    pauses=st.lists(st.sampled_from([0, 5, 40]), min_size=6, max_size=6),
    fallback=st.sampled_from([True, False, "refusals"]),
    cooldown=st.sampled_from([0.0, 30.0]),
    checks=st.sampled_from([True, True, False]),
)


@dataclass
class Player:
    """Plays a plan through the rules, and records each step and each result."""

    plan: Plan
    steps: list[Any] = field(default_factory=list)
    clock: Any = field(default_factory=lambda: SimpleNamespace(now=100.0))

    def __post_init__(self) -> None:
        self.n_calls = dict.fromkeys(NAMES, 0)
        self.health = Health()
        self.router = UniRouter.__new__(UniRouter)
        self.router.__setstate__(fitted().__getstate__())
        self.serving = Serving(
            self.router,
            dict.fromkeys(NAMES),
            FRAMEWORK,
            self.health,
            fallback=self.plan.fallback,
            cooldown=self.plan.cooldown,
            check=as_check(self.check) if self.plan.checks else None,
        )

    def check(self, answer: Answer, example: Example) -> bool:
        self.steps.append(("check", answer.text, example.prompt))
        return answer.text != "poor"

    def outcome(self, routed: RoutedCall) -> Outcome:
        """The next outcome of the model that is asked; its error is raised."""
        name = routed.decision.model
        planned = self.plan.outcomes[name]
        outcome = planned[self.n_calls[name] % len(planned)]
        self.n_calls[name] += 1
        self.steps.append(("ask", name, outcome))
        if outcome in ERRORS:
            raise ERRORS[outcome]
        return outcome

    async def aoutcome(self, routed: RoutedCall) -> Outcome:
        await asyncio.sleep(0)
        return self.outcome(routed)

    def parts(self, routed: RoutedCall) -> Iterator[str]:
        """A stream of three parts that fails before the first one, or, where its outcome is poor, after it."""
        outcome = self.outcome(routed)
        if outcome == "refusal":  # a stream without any part
            return
        yield f"{routed.decision.model}: "
        if outcome == "poor":
            raise TimeoutError
        yield from ("one ", "two")

    async def aparts(self, routed: RoutedCall) -> AsyncGenerator[str, None]:
        for part in self.parts(routed):
            await asyncio.sleep(0)
            yield part

    async def opened(self, routed: RoutedCall) -> AsyncGenerator[str, None]:
        return self.aparts(routed)

    def called(self, request: CallRequest) -> None:
        (routed,) = self.serving.decide([request])
        self.begin(routed)
        try:
            self.end(*self.serving.call(routed, self.outcome))
        except Exception as error:  # noqa: BLE001
            self.steps.append(("raised", type(error)))

    async def acalled(self, request: CallRequest) -> None:
        (routed,) = await self.serving.adecide([request])
        self.begin(routed)
        try:
            self.end(*await self.serving.acall(routed, self.aoutcome))
        except Exception as error:  # noqa: BLE001
            self.steps.append(("raised", type(error)))

    def streamed(self, request: CallRequest) -> None:
        (routed,) = self.serving.decide([request])
        self.begin(routed)
        try:
            for part in self.serving.stream(routed, self.parts):
                self.steps.append(("part", part))
        except Exception as error:  # noqa: BLE001
            self.steps.append(("raised", type(error)))

    async def astreamed(self, request: CallRequest) -> None:
        (routed,) = await self.serving.adecide([request])
        self.begin(routed)
        try:
            async for part in await self.serving.astream(routed, self.opened):
                self.steps.append(("part", part))
        except Exception as error:  # noqa: BLE001
            self.steps.append(("raised", type(error)))

    def begin(self, routed: RoutedCall) -> None:
        self.steps.append(("decided", routed.decision.as_dict()))

    def end(self, routed: RoutedCall, answer: str) -> None:
        self.steps.append(("answered", routed.decision.as_dict(), answer))

    def play(self, kind: Literal["called", "streamed"]) -> list[Any]:
        """Play the plan, synchronously."""
        for request, pause in zip(self.plan.requests, self.plan.pauses, strict=False):
            getattr(self, kind)(request)
            self.pause(pause)
        return self.steps

    async def aplay(self, kind: Literal["acalled", "astreamed"]) -> list[Any]:
        """Play the plan, asynchronously."""
        for request, pause in zip(self.plan.requests, self.plan.pauses, strict=False):
            await getattr(self, kind)(request)
            self.pause(pause)
        return self.steps

    def pause(self, seconds: int) -> None:
        self.steps.append(("cooling down", self.health.cooling_down(NAMES), self.router.stats()))
        self.clock.now += seconds


def played(plan: Plan, kind: str) -> list[Any]:
    """The steps of a plan, with a clock that only its pauses move."""
    player = Player(plan)
    clock = SimpleNamespace(monotonic=lambda: player.clock.now)
    with mock.patch("unirouter_integrations.serving._health.time", clock):
        if kind.startswith("a"):
            return asyncio.run(player.aplay(kind))  # type: ignore[arg-type]
        return player.play(kind)  # type: ignore[arg-type]


@settings(max_examples=50)
@given(PLANS)
def test_calls_take_the_same_steps_now_and_awaited(plan: Plan) -> None:
    """Decisions, models asked, answers checked, errors, cooldowns, statistics: whatever comes of the calls."""
    assert played(plan, "called") == played(plan, "acalled")


@settings(max_examples=50)
@given(PLANS)
def test_streams_take_the_same_steps_now_and_awaited(plan: Plan) -> None:
    """And every part of the stream that was begun arrives, once and in order."""
    steps = played(plan, "streamed")
    assert steps == played(plan, "astreamed")
    parts = [step[1] for step in steps if step[0] == "part"]
    assert parts.count("one ") == parts.count("two")


def in_order(request: CallRequest, first: dict[str, Any], asked: list[tuple[str, Outcome]]) -> list[str]:
    """Who is asked, by the ranking: of models that are expected to err less where an answer does not pass."""
    without = {each["model"] for each in first.get("excluded", ())}
    candidates = [name for name in request.among or NAMES if name not in without]
    ranking = list(fitted().route(request.question, cost_weight=request.cost_weight, among=candidates).ranking)
    errors = {each.model: each.expected_error for each in ranking}
    order = [first["model"]]
    for name, outcome in asked:
        limit = errors[name] if outcome == "poor" else 2
        ranking = [each for each in ranking if each.model != name and each.expected_error < limit]
        order += [each.model for each in ranking[:1]]
    return order[: len(asked)]


@settings(max_examples=100)
@given(PLANS)
def test_a_call_goes_on_to_the_next_best_until_an_answer_stands(plan: Plan) -> None:
    """Each model is asked once at most, in the order of the ranking, and the decision names each that was replaced."""
    asked: list[tuple[str, Outcome]] = []
    first: dict[str, Any] = {}
    requests = iter(plan.requests)
    for step in played(plan, "called"):
        match step:
            case ("decided", decision):
                asked, first, request = [], decision, next(requests)
            case ("ask", name, outcome):
                asked.append((name, outcome))
            case ("answered", decision, answer):
                names = [name for name, _ in asked]
                assert names == in_order(request, first, asked)
                assert len(names) == len(set(names))
                assert (decision["model"], answer) in asked
                replaced = asked[: asked.index((decision["model"], answer))]
                excluded = [(each["model"], each["kind"]) for each in decision.get("excluded", ())]
                before = [(each["model"], each["kind"]) for each in first.get("excluded", ())]
                assert excluded == before + [(name, KINDS.get(outcome, "failed")) for name, outcome in replaced]
                if not plan.fallback:
                    assert all(outcome == "poor" for _, outcome in replaced)
                if answer == "poor" and plan.checks and names[-1] != decision["model"]:
                    assert asked[-1][1] in ERRORS  # it stands because no better one came
            case ("raised", error):
                assert error is ERRORS[asked[-1][1]]
                assert all(outcome in ERRORS for _, outcome in asked)


@pytest.mark.parametrize("succeeds", [True, False])
def test_one_call_at_a_time_probes_a_model_that_has_cooled_down(*, succeeds: bool) -> None:
    """Calls that begin meanwhile go elsewhere; its end decides whether those after it may go there again."""
    player = Player(Plan({}, [], [], fallback=True, cooldown=30.0, checks=False))
    player.health.failed("poet", 30, retry_after=0)
    meanwhile: list[str] = []

    def chosen() -> RoutedCall:
        return player.serving.decide([CallRequest("a poem", among=["poet", "oracle"], cost_weight=0)])[0]

    def ask(routed: RoutedCall) -> str:
        if routed.decision.model == "poet":
            meanwhile.append(chosen().decision.model)
            if not succeeds:
                raise TimeoutError
        return routed.decision.model

    answered, _ = player.serving.call(chosen(), ask)
    assert meanwhile == ["oracle"]
    assert answered.decision.model == chosen().decision.model == ("poet" if succeeds else "oracle")


def test_a_batch_on_different_terms_is_embedded_once() -> None:
    """Each call has its own candidates, weight and surcharges; a vector or a noted decision needs no embedding."""
    player = Player(Plan({}, [], [], fallback=True, cooldown=0.0, checks=False))
    vector = player.router.embed(["a date"])[0]
    noted = player.router.route("a sum").as_dict()
    requests = [
        CallRequest("a poem"),
        CallRequest("a poem", among=["oracle", "abacus"], cost_weight=0),
        CallRequest("a poem", surcharges={"poet": 100.0, "scribe": 100.0}),
        CallRequest("a poem", kept="abacus"),
        CallRequest("never embedded", vector=vector, cost_weight=0),
        CallRequest("never embedded", kept=noted["model"], noted=noted),
    ]
    embedded: list[list[str]] = []
    clusters = type(player.router.clusters)
    embed = clusters.embed

    def counted(self: PromptClusters, texts: Sequence[str]) -> Vectors:
        embedded.append(list(texts))
        return embed(self, texts)

    with mock.patch.object(clusters, "embed", counted):
        routed = player.serving.decide(requests)
    assert embedded == [["a poem"] * 4]
    alone = [player.serving.decide([request])[0].decision for request in requests]
    assert [each.decision for each in routed] == alone
    assert [each.decision.model for each in routed[:2]] == ["scribe", "oracle"]
    assert [each.decision.basis for each in routed] == ["best", "best", "best", "kept", "best", "best"]
    assert routed[4].decision.model == "oracle"
    assert (routed[5].decision.model, routed[5].decision.cluster) == (noted["model"], noted["cluster"])


@pytest.mark.parametrize("default", [None, "poet"])
async def test_a_model_that_is_kept_needs_no_embedding(default: str | None) -> None:
    """It goes on; of all other calls the default model takes care, or the error is raised."""
    player = Player(Plan({}, [], [], fallback=True, cooldown=0.0, checks=False))
    serving = Serving(player.router, dict.fromkeys(NAMES), FRAMEWORK, Health(), default=default)
    away = mock.Mock(side_effect=ConnectionError("away"))
    with mock.patch.object(type(player.router.clusters), "embed", away):
        (kept,) = serving.decide([CallRequest("a poem", kept="abacus")])
        assert (kept.decision.model, kept.decision.excluded, kept.decision.familiarity) == ("abacus", (), 0)
        if default is None:
            with pytest.raises(ConnectionError, match="away"):
                serving.decide([CallRequest("a poem", kept="abacus"), CallRequest("a poem")])
        else:
            both = serving.decide([CallRequest("a poem", kept="abacus"), CallRequest("a poem")])
            assert [each.decision.model for each in both] == ["abacus", "poet"]
            assert {each.kind for each in both[1].decision.excluded} == {"not_embedded"}
