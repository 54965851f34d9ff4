"""The rules of a call, without a framework: what is asked of which model, in which order, and what comes of it."""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal, get_args
from unittest import mock

import pytest
from conftest import toy_router
from hypothesis import given, settings
from hypothesis import strategies as st

from unirouter_integrations import InvalidInputError, NoModelError, PromptClusters, StreamCutError, UniRouter
from unirouter_integrations._concurrency import run_with_timeout
from unirouter_integrations.embedding import Vectors
from unirouter_integrations.grading import Answer, Example
from unirouter_integrations.serving import Health
from unirouter_integrations.serving._serving import Fallback, OnCut, Serving, as_check
from unirouter_integrations.serving._steps import CallRequest, Framework, RoutedCall
from unirouter_integrations.serving._streams import StreamPart

NAMES = ("abacus", "oracle", "poet", "scribe")
Outcome = Literal[
    "good",
    "poor",
    "refusal",
    "empty",
    "unsaid",
    "broken",
    "cut",
    "timeout",
    "retry later",
    "too long",
    "bug",
    "gone",
    "request",
    "refusal by error",
    "unparsed",
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


class RetryLaterError(Exception):
    """A rate limit, for twenty seconds."""

    status_code = 429
    headers: dict[str, str] = {"retry-after": "20"}  # noqa: RUF012


class ContextOverflowError(Exception):
    """An input that is too long, which says nothing about the model."""

    def __str__(self) -> str:
        return "the context window is exceeded"


class AuthenticationError(Exception):
    """A key that is no longer valid."""

    status_code = 401


class BadRequestError(Exception):
    """What the caller asks for is wrong, whichever model it is asked of."""

    status_code = 400


class OpenAIRefusalError(Exception):
    """A refusal, as langchain-openai raises it."""


class OutputParserException(Exception):  # noqa: N818  # the name of LangChain's
    """An answer that does not fit the form."""


ERRORS: dict[str, type[Exception]] = {
    "unparsed": OutputParserException,
    "unsaid": ConnectionError,
    "broken": ConnectionError,
    "cut": ConnectionError,
    "timeout": TimeoutError,
    "retry later": RetryLaterError,
    "too long": ContextOverflowError,
    "bug": ZeroDivisionError,
    "gone": AuthenticationError,
    "request": BadRequestError,
    "refusal by error": OpenAIRefusalError,
}
ROLE, END, REFUSED = "", ".", "!"  # a part of a stream that says nothing yet, and the two that report its end
FRAMEWORK = Framework(
    as_model=lambda name, model: model,
    capabilities_of=lambda model: {},
    is_refusal=lambda answer: answer == "refusal",
    is_empty=lambda answer: answer == "empty",
    text_answer=lambda answer: answer if isinstance(answer, str) else None,
    describe=lambda part: StreamPart(
        part if part not in {ROLE, END, REFUSED} else "",
        part not in {ROLE, END, REFUSED},
        reports_finish=True,
        is_finish=part in {END, REFUSED},
        is_refusal=part == REFUSED,
    ),
)


@cache
def fitted() -> UniRouter:
    """Four models with errors between 0 and 1, so that some are better than a cheap one."""
    router = toy_router("soft")
    router.register(router.profile("scribe", ["sum", "poem", "date"], [0.5, 0.6, 0.4], cost=0.5))
    router.cost_weight = 0.3
    return router


def only_timeouts(error: Exception) -> bool:
    return isinstance(error, TimeoutError)


@dataclass(frozen=True)
class Plan:
    """Some calls, and what comes of them: of each model the outcomes of its calls, in order and over again."""

    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    requests: list[CallRequest] = field(default_factory=list)
    pauses: list[int] = field(default_factory=list)
    fallback: Fallback = True
    cooldown: float = 30.0
    checks: bool = False
    max_attempts: int | None = None


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
    pauses=st.lists(st.sampled_from([0, 0, 5, 40]), min_size=6, max_size=6),
    fallback=st.sampled_from([True, True, False, "refusals", "refusals", only_timeouts]),
    cooldown=st.sampled_from([0.0, 30.0]),
    checks=st.sampled_from([True, True, False]),
    max_attempts=st.sampled_from([None, None, None, 1, 2]),
)


@dataclass
class Player:
    """Plays a plan through the rules on a clock of its own, and records each step and each result."""

    plan: Plan = field(default_factory=Plan)
    steps: list[Any] = field(default_factory=list)
    now: float = 100.0

    def __post_init__(self) -> None:
        self.n_calls = dict.fromkeys(NAMES, 0)
        self.health = Health(lambda: self.now)
        self.router = UniRouter.__new__(UniRouter)
        self.router.__setstate__(fitted().__getstate__())
        self.serving = Serving(
            self.router,
            dict.fromkeys(NAMES),
            FRAMEWORK,
            self.health,
            fallback=self.plan.fallback,
            cooldown=self.plan.cooldown,
            escalate=as_check(self.check) if self.plan.checks else None,
            max_attempts=self.plan.max_attempts,
        )

    def check(self, answer: Answer, example: Example) -> bool:
        self.steps.append(("check", answer.text, example.prompt))
        return answer.text != "poor"

    def next_outcome(self, routed: RoutedCall) -> Outcome:
        name = routed.decision.model
        planned = self.plan.outcomes[name]
        outcome = planned[self.n_calls[name] % len(planned)]
        self.n_calls[name] += 1
        self.steps.append(("ask", name, outcome))
        return outcome

    def outcome(self, routed: RoutedCall) -> Outcome:
        """The next outcome of the model that is asked; its error is raised."""
        outcome = self.next_outcome(routed)
        if outcome in ERRORS:
            raise ERRORS[outcome]
        return outcome

    async def aoutcome(self, routed: RoutedCall) -> Outcome:
        await asyncio.sleep(0)
        return self.outcome(routed)

    def parts(self, routed: RoutedCall) -> Iterator[str]:
        """A stream. Where its outcome is unsaid, it ends too soon; poor or cut, in the middle, with an error or not."""
        outcome = self.next_outcome(routed)
        yield ROLE
        if outcome == "unsaid":
            return
        if outcome in {"refusal", "empty"}:
            yield REFUSED if outcome == "refusal" else END
            return
        if outcome in ERRORS and outcome != "cut":
            raise ERRORS[outcome]
        yield f"{routed.decision.model}: "
        if outcome == "poor":
            raise TimeoutError
        yield from ("one ", "two")
        if outcome != "cut":
            yield END

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
            self.raised(error)

    async def acalled(self, request: CallRequest) -> None:
        (routed,) = await self.serving.adecide([request])
        self.begin(routed)
        try:
            self.end(*await self.serving.acall(routed, self.aoutcome))
        except Exception as error:  # noqa: BLE001
            self.raised(error)

    def streamed(self, request: CallRequest) -> None:
        (routed,) = self.serving.decide([request])
        self.begin(routed)
        try:
            for part in self.serving.stream(routed, self.parts)[1]:
                self.steps.append(("part", part))
        except Exception as error:  # noqa: BLE001
            self.raised(error)

    async def astreamed(self, request: CallRequest) -> None:
        (routed,) = await self.serving.adecide([request])
        self.begin(routed)
        try:
            async for part in (await self.serving.astream(routed, self.opened))[1]:
                self.steps.append(("part", part))
        except Exception as error:  # noqa: BLE001
            self.raised(error)

    def begin(self, routed: RoutedCall) -> None:
        self.steps.append(("decided", without_id(routed), routed.reserve))

    def end(self, routed: RoutedCall, answer: str) -> None:
        self.steps.append(("answered", without_id(routed), answer))

    def raised(self, error: Exception) -> None:
        self.steps.append(("raised", type(error), getattr(error, "partial_text", None)))

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
        self.now += seconds

    def unwell(self, model: str, seconds: float) -> None:
        """Have a model cool down."""
        self.health.failed(self.health.start(model), cooldown=30.0, retry_after=seconds)


def without_id(routed: RoutedCall) -> dict[str, Any]:
    return {key: value for key, value in routed.decision.as_dict().items() if key != "id"}


def played(plan: Plan, kind: str) -> list[Any]:
    """The steps of a plan, with cooldowns of the same lengths each time."""
    player = Player(plan)
    with mock.patch("unirouter_integrations.serving._health.random", SimpleNamespace(uniform=lambda low, high: 1.0)):
        if kind.startswith("a"):
            return asyncio.run(player.aplay(kind))  # type: ignore[arg-type]
        return player.play(kind)  # type: ignore[arg-type]


@settings(max_examples=25)
@given(PLANS)
def test_calls_take_the_same_steps_now_and_awaited(plan: Plan) -> None:
    """Decisions, models asked, answers checked, errors, cooldowns, statistics: whatever comes of the calls."""
    assert played(plan, "called") == played(plan, "acalled")


@settings(max_examples=25)
@given(PLANS)
def test_streams_take_the_same_steps_now_and_awaited(plan: Plan) -> None:
    """And every part of the stream that was begun arrives, once and in order."""
    steps = played(plan, "streamed")
    assert steps == played(plan, "astreamed")
    parts = [step[1] for step in steps if step[0] == "part"]
    assert parts.count("one ") == parts.count("two")


# ---------------------------------------------------------------- the rules, written a second time


@dataclass
class Expected:
    """What should come of one call, by the rules as the documentation has them.

    Attributes:
        order: The models that are asked.
        answered: The model whose answer stands, and its outcome; None if an error is raised.
        excluded: The model and the kind of each exclusion that the answer names.
        raised: The model whose error is raised, and its outcome.
    """

    order: list[str] = field(default_factory=list)
    answered: tuple[str, Outcome] | None = None
    excluded: list[tuple[str, str]] = field(default_factory=list)
    raised: tuple[str, Outcome] | None = None


def expected(
    plan: Plan,
    request: CallRequest,
    first: dict[str, Any],
    reserve: Sequence[str],
    asked: Sequence[tuple[str, Outcome]],
    *,
    is_stream: bool = False,
) -> Expected:
    """Follow the rules, with the outcomes of the models as they were asked."""
    excluded = [(each["model"], each["kind"]) for each in first.get("excluded", ())]
    candidates = [name for name in request.among or NAMES if name not in dict(excluded)]
    ranking = list(fitted().route(request.question, cost_weight=request.cost_weight, among=candidates).ranking)
    errors = {each.model: each.expected_error for each in ranking}
    left, reserve = [each.model for each in ranking], list(reserve)
    name, found = first["model"], Expected()
    outcomes = {each: iter([outcome for model, outcome in asked if model == each]) for each in NAMES}
    while True:
        outcome = next(outcomes[name], None)
        if outcome is None:  # it should have been asked, and was not
            return found
        found.order.append(name)
        left = [each for each in left if each != name]
        has_begun = is_stream and outcome in {"poor", "cut"}
        kind = None if has_begun else kind_of(plan, outcome)
        if kind == "rejected":
            better = [each for each in left if errors[each] < errors.get(name, 0.0)]
            if not ((plan.checks or outcome == "unparsed") and better):
                kind = None
            else:
                left, reserve = better, []
        if outcome in ERRORS and not has_begun:
            found.raised = None if found.answered else (name, outcome)
        else:
            found.answered, found.excluded = (name, outcome), excluded
        if kind is None or len(found.order) == plan.max_attempts or not (left or reserve):
            return found
        excluded = [*excluded, (name, kind)]
        name = left[0] if left else reserve.pop(0)
        excluded = [each for each in excluded if each[0] != name]


def kind_of(plan: Plan, outcome: Outcome) -> str | None:
    """The kind of exclusion after which another model is asked; None if the outcome stands."""
    if outcome == "poor":
        return "rejected"
    if outcome == "good" or not plan.fallback:
        return None
    if outcome == "refusal":
        return "refused" if plan.fallback == "refusals" else None
    if outcome != "empty" and callable(plan.fallback) and outcome != "timeout":
        return None
    if outcome == "refusal by error":
        return "refused" if plan.fallback == "refusals" else None
    return {"request": None, "unparsed": "rejected"}.get(outcome, "failed")


@settings(max_examples=60)
@given(PLANS)
def test_a_call_goes_on_to_the_next_best_until_an_answer_stands(plan: Plan) -> None:
    """Each model is asked once at most, in the order of the ranking, and those that cool down last.

    After an answer that does not pass, only models that are expected to err less are asked. The decision names each
    model that was replaced. An error is raised only if no answer was given before.
    """
    asked: list[tuple[str, Outcome]] = []
    requests = iter(plan.requests)
    for step in played(plan, "called"):
        match step:
            case ("decided", first, reserve):
                asked, request = [], next(requests)
            case ("ask", name, outcome):
                asked.append((name, outcome))
            case ("answered", decision, answer):
                found = expected(plan, request, first, reserve, asked)
                assert found.order == [name for name, _ in asked]
                assert found.answered == (decision["model"], answer)
                assert found.excluded == [(each["model"], each["kind"]) for each in decision.get("excluded", ())]
            case ("raised", error, _):
                found = expected(plan, request, first, reserve, asked)
                assert found.order == [name for name, _ in asked]
                assert found.answered is None
                assert found.raised is not None
                assert error is ERRORS[found.raised[1]]


@settings(max_examples=60)
@given(PLANS)
def test_a_stream_goes_on_to_the_next_best_until_it_says_something(plan: Plan) -> None:
    """What comes before counts for nothing; after that, no other model takes over, and what had arrived is kept."""
    asked: list[tuple[str, Outcome]] = []
    parts: list[str] = []
    requests = iter(plan.requests)
    for step in played(plan, "streamed"):
        match step:
            case ("decided", first, reserve):
                asked, parts, raised, request = [], [], None, next(requests)
            case ("ask", name, outcome):
                asked.append((name, outcome))
            case ("part", part):
                parts.append(part)
            case ("raised", error, partial_text):
                raised = (error, partial_text)
            case ("cooling down", *_):
                found = expected(plan, request, first, reserve, asked, is_stream=True)
                assert found.order == [name for name, _ in asked]
                if found.answered:
                    name, outcome = found.answered
                    said = [ROLE, f"{name}: ", "one ", "two", END]
                    assert (parts, raised) == {
                        "good": (said, None),
                        "refusal": ([ROLE, REFUSED], None),
                        "empty": ([ROLE, END], None),
                        "poor": (said[:2], (TimeoutError, f"{name}: ")),
                        "cut": (said[:4], (StreamCutError, f"{name}: one two")),
                    }[outcome]
                else:
                    assert found.raised is not None
                    error = StreamCutError if found.raised[1] == "unsaid" else ERRORS[found.raised[1]]
                    assert parts == []
                    assert raised is not None
                    assert raised[0] is error


# ---------------------------------------------------------------- who is asked, and when it ends


def answer(routed: RoutedCall) -> str:
    return routed.decision.model


def asked_in(player: Player, request: CallRequest, failing: Sequence[str] = NAMES) -> list[str]:
    """The models that are asked for a call, in order."""
    asked: list[str] = []

    def ask(routed: RoutedCall) -> str:
        asked.append(routed.decision.model)
        if routed.decision.model in failing:
            raise TimeoutError
        return routed.decision.model

    (routed,) = player.serving.decide([request])
    try:
        _, answered = player.serving.call(routed, ask)
    except TimeoutError:
        assert asked[-1] in failing
    else:
        assert asked[-1] == answered
    return asked


def test_a_model_that_cools_down_is_asked_last_and_never_left_out() -> None:
    """The first to be healthy again comes first; if all cool down, health is ignored."""
    player, request = Player(), CallRequest("a poem", cost_weight=0)
    usual = asked_in(player, request)
    assert sorted(usual) == sorted(NAMES)
    first, second, third, fourth = usual
    player = Player()
    player.unwell(first, 60)
    player.unwell(second, 20)
    (routed,) = player.serving.decide([request])
    assert (routed.decision.model, routed.reserve) == (third, (second, first))
    assert [(each.model, each.kind) for each in routed.decision.excluded] == [
        (second, "cooling_down"),
        (first, "cooling_down"),
    ]
    assert asked_in(player, request, failing=[third, fourth, second]) == [third, fourth, second, first]
    answered, _ = player.serving.call(routed, answer)
    assert answered.decision == routed.decision
    player = Player()
    for model, seconds in ((first, 60), (second, 40), (third, 20)):
        player.unwell(model, seconds)
    assert asked_in(player, request) == [fourth, third, second, first]
    player.unwell(fourth, 60)
    assert asked_in(player, request) == usual


def test_the_decision_of_one_that_is_asked_last_does_not_exclude_it() -> None:
    """It names the others, each with its reason."""
    player = Player()
    player.unwell("poet", 60)
    (routed,) = player.serving.decide([CallRequest("a poem", among=["poet", "oracle"])])

    def ask(routed: RoutedCall) -> str:
        if routed.decision.model == "oracle":
            raise TimeoutError
        return "poem"

    answered, _ = player.serving.call(routed, ask)
    assert (answered.decision.model, answered.reserve) == ("poet", ())
    assert [(each.model, each.kind) for each in answered.decision.excluded] == [("oracle", "failed")]


def test_a_model_that_is_named_twice_is_one_candidate() -> None:
    """Also while it cools down."""
    player = Player()
    player.unwell("poet", 60)
    assert asked_in(player, CallRequest("a poem", among=["poet", "poet"]), failing=[]) == ["poet"]
    assert asked_in(player, CallRequest("a poem", among=["poet", "oracle", "poet"]), failing=[]) == ["oracle"]


def test_a_batch_asks_for_the_health_when_each_call_starts() -> None:
    """Not when it was decided: a hundred calls do not all wait for a model that has begun to fail."""
    player = Player()
    calls = player.serving.decide([CallRequest("a poem", among=["poet", "oracle", "abacus"])] * 100)
    assert {routed.decision.model for routed in calls} == {"poet"}
    n_asked: Counter[str] = Counter()

    def ask(routed: RoutedCall) -> str:
        n_asked[routed.decision.model] += 1
        if routed.decision.model == "poet":
            raise TimeoutError
        return routed.decision.model

    answered = [player.serving.call(routed, ask)[0].decision for routed in calls]
    assert n_asked == {"poet": 5, "abacus": 100}
    assert {each.model for each in answered} == {"abacus"}
    assert [each.excluded[0].kind for each in answered] == ["failed"] * 5 + ["cooling_down"] * 95
    player.now += 60
    assert player.serving.call(calls[0], answer)[1] == "poet"


@pytest.mark.parametrize("max_attempts", [1, 2, 3])
def test_a_call_may_have_a_number_of_attempts(max_attempts: int) -> None:
    """The error of the last one is raised."""
    player = Player(Plan(max_attempts=max_attempts))
    assert len(asked_in(player, CallRequest("a poem"))) == max_attempts


def test_an_outage_of_all_models_does_not_multiply_their_calls() -> None:
    """After five calls all cool down; after a hundred retries more a call asks one, and soon one a second another."""
    player, request = Player(), CallRequest("a poem")
    n_asked = [len(asked_in(player, request)) for _ in range(50)]
    assert n_asked == [4] * (5 + 33) + [2] + [1] * 11
    player.now += 2
    assert [len(asked_in(player, request)) for _ in range(2)] == [3, 1]


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_deadline_is_for_all_attempts_together(monkeypatch: pytest.MonkeyPatch, *, is_stream: bool) -> None:
    """Each may take what is left of it; when it is over, no other model is asked."""
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr("unirouter_integrations.serving._serving.time", SimpleNamespace(monotonic=lambda: clock.now))
    player, limits = Player(), list[float | None]()
    serving = replace(player.serving, deadline=10.0, timeout=7.0, first_token_timeout=7.0)
    (routed,) = serving.decide([CallRequest("a poem")])
    rule = serving._call(routed, is_stream=is_stream)
    step: Any = next(rule)
    while step:
        limits.append(step.timeout)
        clock.now += 4
        step = in_vain(rule)
    assert limits == [7, 6, 2]


def in_vain(rule: Any) -> Any:
    """The next step of a rule after an error; None if the rule raises it."""
    with suppress(TimeoutError):
        return rule.throw(TimeoutError("in vain"))
    return None


# ---------------------------------------------------------------- what an error is, and what it costs a model


@pytest.mark.parametrize(
    ("outcome", "goes_on", "seconds"),
    [
        ("timeout", True, None),
        ("bug", True, None),  # whatever is raised inside a model's call
        ("too long", True, None),
        ("retry later", True, 20.0),
        ("gone", True, 60.0),
        ("request", False, None),
        ("refusal by error", False, None),
    ],
)
def test_errors_are_survived_unless_they_are_the_callers_own(
    outcome: Outcome, seconds: float | None, caplog: pytest.LogCaptureFixture, *, goes_on: bool
) -> None:
    """A model that is gone rests for a minute, with one warning; one that fails again and again cools down."""
    counts = outcome in {"timeout", "bug"}
    player = Player(Plan({"poet": [outcome], "oracle": ["good"]}))
    request = CallRequest("a poem", among=["poet", "oracle"])
    with caplog.at_level(logging.WARNING):
        player.called(request)
    last = player.steps[-1]
    assert last[0] == ("answered" if goes_on else "raised")
    if goes_on:
        reason = f"it failed with {ERRORS[outcome].__name__}"
        assert last[1]["excluded"] == [{"model": "poet", "kind": "failed", "reason": reason}]
    cooling = player.health.cooling_down(["poet", "oracle"])
    assert cooling == ({} if seconds is None else {"poet": seconds})
    warned = ["poet is not available (AuthenticationError); it is tried last for a while."]
    assert [record.message for record in caplog.records] == (warned if outcome == "gone" else [])
    for _ in range(4):
        player.called(request)
    assert ("poet" in player.health.cooling_down(["poet", "oracle"])) == (counts or seconds is not None)
    assert len(caplog.records) == (outcome == "gone")


def test_fallback_may_be_a_function_of_the_error() -> None:
    """It decides alone, also on what would be raised otherwise; health does not depend on it."""

    def survives(error: Exception) -> bool:
        return isinstance(error, BadRequestError | OpenAIRefusalError)

    outcomes: dict[Outcome, bool] = {"request": True, "gone": False, "refusal by error": True, "unsaid": False}
    for outcome, is_answered in outcomes.items():
        for kind in ("called", "streamed"):
            player = Player(Plan({"poet": [outcome], "oracle": ["good"]}, fallback=survives))
            getattr(player, kind)(CallRequest("a poem", among=["poet", "oracle"]))
            assert (player.steps[-1][0] != "raised") == is_answered
    player = Player(Plan({"poet": ["gone"]}, fallback=False))
    player.called(CallRequest("a poem", cost_weight=0))
    assert player.steps[-1][:2] == ("raised", AuthenticationError)
    assert player.health.cooling_down(NAMES) == {"poet": 60.0}


def test_a_doubted_answer_stands_if_no_better_model_answers() -> None:
    """One that cools down need not be better, so it is not asked."""
    player = Player(Plan({"abacus": ["poor"], "oracle": ["timeout"], "poet": ["good"]}, checks=True))
    player.unwell("poet", 60)
    player.called(CallRequest("a date", among=["abacus", "oracle", "poet"], cost_weight=5))
    asked = [step[1:] for step in player.steps if step[0] == "ask"]
    assert asked == [("abacus", "poor"), ("oracle", "timeout")]
    kind, decision, text = player.steps[-1]
    assert (kind, decision["model"], text) == ("answered", "abacus", "poor")


@pytest.mark.parametrize("succeeds", [True, False])
def test_one_call_at_a_time_probes_a_model_that_has_cooled_down(*, succeeds: bool) -> None:
    """Calls that begin meanwhile go elsewhere; its end decides whether those after it may go there again."""
    player = Player()
    player.unwell("poet", 0)
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


POEM = CallRequest("a poem", among=["poet", "oracle"])


def is_handed_back(player: Player) -> bool:
    """Whether a model that is probed may be probed again."""
    return player.health.cooling_down(["poet", "oracle"]) == {}


async def test_a_probe_that_is_given_up_is_handed_back() -> None:
    """Cancelled, interrupted, raised for the caller's own error, or a stream that is closed, read or unread."""
    player = Player(Plan({"poet": ["good"]}))
    player.unwell("poet", 0)
    serving = player.serving

    def interrupted(_: RoutedCall) -> str:
        assert not is_handed_back(player)
        raise KeyboardInterrupt

    def wrong(_: RoutedCall) -> str:
        raise BadRequestError

    for ask, error in ((interrupted, KeyboardInterrupt), (wrong, BadRequestError)):
        with pytest.raises(error):
            replace(serving, timeout=None).call(serving.decide([POEM])[0], ask)
        assert is_handed_back(player)
    begun = asyncio.Event()

    async def hangs(_: RoutedCall) -> str:
        begun.set()
        await asyncio.Event().wait()
        return ""

    task = asyncio.create_task(serving.acall(serving.decide([POEM])[0], hangs))
    await begun.wait()
    assert not is_handed_back(player)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_handed_back(player)
    for n_read in (0, 1, 2):
        stream = serving.stream(serving.decide([POEM])[0], player.parts)[1]
        for _ in range(n_read):
            next(stream)
        assert not is_handed_back(player)
        stream.close()
        assert is_handed_back(player)
        astream = (await serving.astream(serving.decide([POEM])[0], player.opened))[1]
        for _ in range(n_read):
            await anext(astream)
        assert not is_handed_back(player)
        await astream.aclose()
        assert is_handed_back(player)
    stream = serving.stream(serving.decide([POEM])[0], player.parts)[1]
    del stream  # the caller lost interest
    assert is_handed_back(player)


# ---------------------------------------------------------------- streams, and what hangs


@pytest.mark.parametrize(("outcome", "is_unwell"), [("good", False), ("poor", True), ("cut", True), ("unsaid", True)])
@pytest.mark.parametrize("kind", ["streamed", "astreamed"])
async def test_a_stream_that_breaks_is_a_failure_of_its_model(outcome: Outcome, kind: str, *, is_unwell: bool) -> None:
    """And a success only at its end."""
    player = Player(Plan({"poet": [outcome], "oracle": ["good"]}))
    for _ in range(5):
        assert is_handed_back(player)
        done = getattr(player, kind)(POEM)
        if kind == "astreamed":
            await done
    assert is_handed_back(player) != is_unwell
    player = Player(Plan({"poet": ["good"]}))
    player.unwell("poet", 0)
    stream = player.serving.stream(player.serving.decide([POEM])[0], player.parts)[1]
    assert [next(stream) for _ in range(4)][-1] == "two"
    assert not is_handed_back(player)  # it is not over
    assert list(stream) == [END]
    assert is_handed_back(player)


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """What a hanging model waits for; it is set at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


@dataclass
class Hanging:
    """Models of which one hangs, after some words if it streams."""

    released: threading.Event
    words: Sequence[str] = ()

    def ask(self, routed: RoutedCall) -> str:
        if routed.decision.model == "poet":
            self.released.wait()
        return routed.decision.model

    async def aask(self, routed: RoutedCall) -> str:
        if routed.decision.model == "poet":
            await asyncio.Event().wait()
        return routed.decision.model

    def parts(self, routed: RoutedCall) -> Iterator[str]:
        yield from self.words
        yield self.ask(routed)
        yield END

    async def aparts(self, routed: RoutedCall) -> AsyncGenerator[str, None]:
        for word in self.words:
            yield word
        yield await self.aask(routed)
        yield END

    async def opened(self, routed: RoutedCall) -> AsyncGenerator[str, None]:
        return self.aparts(routed)


async def test_what_hangs_costs_its_timeout_and_not_the_call(released: threading.Event) -> None:
    """A plain call and a stream that says nothing, now and awaited; it counts as a failure."""
    player = Player()
    serving = replace(player.serving, timeout=0.02, first_token_timeout=0.02)
    silent, role = Hanging(released), Hanging(released, [ROLE])

    def chosen() -> RoutedCall:
        return serving.decide([POEM])[0]

    assert serving.call(chosen(), silent.ask)[1] == "oracle"
    assert (await serving.acall(chosen(), silent.aask))[1] == "oracle"
    assert list(serving.stream(chosen(), role.parts)[1]) == [ROLE, "oracle", END]
    assert [part async for part in (await serving.astream(chosen(), role.opened))[1]] == [ROLE, "oracle", END]
    assert is_handed_back(player)
    assert "".join(serving.stream(chosen(), silent.parts)[1]) == "oracle."
    assert not is_handed_back(player)  # five calls failed


def test_a_call_that_takes_too_long_is_a_timeout(released: threading.Event) -> None:
    """A fast one returns, a failing one raises as it would without a limit."""
    assert run_with_timeout(None, lambda: 1) == run_with_timeout(60, lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        run_with_timeout(60, lambda: 1 // 0)
    with pytest.raises(TimeoutError, match=r"longer than 0\.01 s"):
        run_with_timeout(0.01, released.wait)


async def test_a_stream_that_hangs_in_the_middle_is_an_error(released: threading.Event) -> None:
    """After the timeout of a call, which holds for the time between two parts; what had arrived is kept."""
    player, seen = Player(), list[str]()
    serving, midway = replace(player.serving, timeout=0.02), Hanging(released, [ROLE, "one "])

    async def read() -> None:
        async for part in (await serving.astream(serving.decide([POEM])[0], midway.opened))[1]:
            seen.append(part)  # what came before the error

    with pytest.raises(TimeoutError) as caught:
        seen.extend(serving.stream(serving.decide([POEM])[0], midway.parts)[1])
    with pytest.raises(TimeoutError) as acaught:
        await read()
    errors: list[Any] = [caught.value, acaught.value]
    assert [error.partial_text for error in errors] == ["one ", "one "]
    assert seen == [ROLE, "one ", ROLE, "one "]


@pytest.mark.parametrize("setting", ["timeout", "first_token_timeout", "deadline", "embedding_timeout"])
def test_times_that_cannot_work_are_refused(setting: Any) -> None:
    """None is no limit."""
    settings: dict[str, Any] = {setting: None}
    replace(Player().serving, **settings).validate()
    settings = {setting: 0}
    with pytest.raises(InvalidInputError, match=f"{setting}, a number of seconds, should be a number above 0"):
        replace(Player().serving, **settings).validate()


@pytest.mark.parametrize("wrong", [0, 1.5, True, "two"])
def test_a_number_of_attempts_that_cannot_work_is_refused(wrong: Any) -> None:
    """It is a whole number."""
    with pytest.raises(InvalidInputError, match="max_attempts should be a whole number"):
        replace(Player().serving, max_attempts=wrong).validate()


# ---------------------------------------------------------------- embeddings


def test_a_batch_on_different_terms_is_embedded_once() -> None:
    """Each call has its own candidates, weight and surcharges; a vector or a noted decision needs no embedding."""
    player = Player()
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

    def counted(self: PromptClusters, texts: Sequence[str], **settings: Any) -> Vectors:
        embedded.append(list(texts))
        return embed(self, texts, **settings)

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
    player = Player()
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


# ---------------------------------------------------------------- money


@pytest.mark.parametrize(
    ("max_cost", "order"), [(None, "poet oracle scribe abacus"), (15, "poet oracle scribe abacus")]
)
def test_money_has_no_limit_unless_one_is_set(max_cost: float | None, order: str) -> None:
    """The costs are 2, 10, 0.5 and 1."""
    player = Player()
    player.serving = replace(player.serving, max_cost=max_cost)
    assert asked_in(player, CallRequest("a poem", cost_weight=0)) == order.split()


def test_a_call_costs_no_more_than_it_may() -> None:
    """A model that alone is too expensive is no candidate; of the others, those that can still be paid are asked."""
    player, request = Player(), CallRequest("a poem", cost_weight=0)
    player.serving = replace(player.serving, max_cost=3)
    assert asked_in(player, request) == ["poet", "scribe"]  # with abacus it would be 3.5
    (routed,) = player.serving.decide([request])
    assert [(each.model, each.kind) for each in routed.decision.excluded] == [("oracle", "too_expensive")]
    player.serving = replace(player.serving, max_cost=11)
    assert asked_in(player, request) == ["poet", "scribe", "abacus"]  # oracle was passed over
    player.serving = replace(player.serving, max_cost=0.1)
    with pytest.raises(NoModelError, match=r"None of the models can take this call.*its cost, 2, is above max_cost"):
        player.serving.decide([request])


# ---------------------------------------------------------------- streams that break


class Story:
    """Streams of which some break, and what each model was asked to go on with."""

    def __init__(self, **ends: Any) -> None:
        self.ends, self.given = ends, list[tuple[str, str, str]]()

    def parts(self, routed: RoutedCall) -> Iterator[str]:
        name = routed.decision.model
        self.given.append((name, routed.text_before, routed.on_cut))
        end = self.ends.get(name)
        if end == "at once":
            raise TimeoutError
        yield ROLE
        yield f"{name} "
        if isinstance(end, Exception):
            raise end
        yield "goes on "
        if end != "cut":
            yield END

    async def opened(self, routed: RoutedCall) -> AsyncGenerator[str, None]:
        async def parts() -> AsyncGenerator[str, None]:
            for part in self.parts(routed):
                yield part

        return parts()

    async def read(self, way: str, player: Player, request: CallRequest) -> str:
        """All text that arrives; if an error is raised at the end, with its name."""
        text = ""
        (routed,) = player.serving.decide([request])
        try:
            if way == "stream":
                for part in player.serving.stream(routed, self.parts)[1]:
                    text += part
            else:
                async for part in (await player.serving.astream(routed, self.opened))[1]:
                    text += part
        except Exception as error:  # noqa: BLE001
            text += f"{type(error).__name__}({getattr(error, 'partial_text', '')})"
        return text


TELL = CallRequest("a poem", cost_weight=0, can_go_on=True)


@pytest.mark.parametrize("way", ["stream", "astream"])
@pytest.mark.parametrize("end", ["cut", ConnectionError()])
async def test_another_model_goes_on_with_a_stream_that_breaks(way: str, end: Any) -> None:
    """It is given the text, unless it is to start again; if it breaks as well, the next one is given both texts."""
    said = "poet goes on " if end == "cut" else "poet "
    ways: tuple[tuple[OnCut, str], ...] = (("continue", said), ("restart", ""))
    for on_cut, before in ways:
        player, story = Player(), Story(poet=end)
        player.serving = replace(player.serving, on_cut=on_cut)
        assert await story.read(way, player, TELL) == f"{said}oracle goes on ."
        assert story.given == [("poet", "", ""), ("oracle", before, on_cut)]
        player, story = Player(), Story(poet=end, oracle=end, scribe="at once")
        player.serving = replace(player.serving, on_cut=on_cut)
        then = said.replace("poet", "oracle")
        assert await story.read(way, player, TELL) == f"{said}{then}abacus goes on ."
        both = before and before + then
        assert story.given[1:] == [("oracle", before, on_cut), ("scribe", both, on_cut), ("abacus", both, on_cut)]


@pytest.mark.parametrize("way", ["stream", "astream"])
async def test_a_stream_that_breaks_raises_where_no_model_can_go_on(way: str) -> None:
    """By default; if it is none of text alone; if no model is left; if the request was wrong. Its text is kept."""
    broken = "poet ConnectionError(poet )"
    on, raises = {"on_cut": "continue"}, dict[str, Any]()
    for changed, request, ends, text in (
        (raises, TELL, {}, broken),
        (on, replace(TELL, can_go_on=False), {}, broken),
        (on, replace(TELL, among=["poet"]), {}, broken),
        ({**on, "fallback": False}, TELL, {}, broken),
        ({**on, "max_attempts": 1}, TELL, {}, broken),
        (on, TELL, {"poet": BadRequestError()}, "poet BadRequestError(poet )"),
        (on, replace(TELL, among=["poet", "oracle"]), {"oracle": "at once"}, "poet TimeoutError(poet )"),
        (
            on,
            replace(TELL, among=["poet", "oracle"]),
            {"oracle": OSError()},
            "poet oracle OSError(poet oracle )",
        ),
    ):
        player, story = Player(), Story(**{"poet": ConnectionError(), **ends})
        player.serving = replace(player.serving, **changed)
        assert await story.read(way, player, request) == text


@pytest.mark.parametrize("way", ["stream", "astream"])
async def test_both_models_of_a_stream_have_their_verdict(way: str) -> None:
    """The one that broke has failed, the other one has answered."""
    player = Player()
    player.serving = replace(player.serving, on_cut="continue")
    for _ in range(6):
        await Story(poet="cut").read(way, player, TELL)
    assert player.health.cooling_down(NAMES).keys() == {"poet"}
    assert player.router.stats().fallbacks == 5


@pytest.mark.parametrize("way", ["stream", "astream"])
async def test_a_deadline_holds_within_a_stream(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part may take what is left of it."""
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr("unirouter_integrations.serving._serving.time", SimpleNamespace(monotonic=lambda: clock.now))
    player, story = Player(), Story()
    player.serving = replace(player.serving, deadline=10.0)
    parts = story.parts

    def slow(routed: RoutedCall) -> Iterator[str]:
        for part in parts(routed):
            yield part
            clock.now += 6

    monkeypatch.setattr(story, "parts", slow)
    assert await story.read(way, player, TELL) == "poet goes on TimeoutError(poet goes on )"


# ---------------------------------------------------------------- quality


def test_a_call_may_ask_for_quality() -> None:
    """Of the models that are expected to err at most so much, the best one takes it; if there is none, the usual one.

    If all of these fail, the others are asked.
    """
    player, request = Player(), CallRequest("a poem", cost_weight=2.0)
    errors = {each.model: each.expected_error for each in fitted().route("a poem", cost_weight=2.0).ranking}
    usual = asked_in(player, request)
    limit = sorted(errors.values())[1]
    fit = [name for name in usual if errors[name] <= limit]
    others = [name for name in usual if errors[name] > limit]
    assert others
    strict = replace(request, max_error=limit)
    assert asked_in(Player(), strict) == [*fit, *others]
    (routed,) = player.serving.decide([strict])
    assert routed.decision.model == fit[0]
    assert {(each.model, each.kind) for each in routed.decision.excluded} == {(n, "error_too_high") for n in others}
    for max_error in (0.0, 1.0):
        (routed,) = player.serving.decide([replace(request, max_error=max_error)])
        if max_error == 1 or min(errors.values()) > 0:
            assert (routed.decision.model, routed.decision.excluded) == (usual[0], ())
    assert sum(player.router.stats().shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("max_error", [-0.1, 1.1, float("nan")])
def test_quality_is_from_0_to_1(max_error: float) -> None:
    """Like all errors."""
    with pytest.raises(InvalidInputError, match="max_error"):
        Player().serving.decide([CallRequest("a poem", max_error=max_error)])


# ---------------------------------------------------------------- decisions that were noted


@pytest.mark.parametrize(
    "wrong",
    [
        {"familiarity": "much"},
        {"familiarity": 7},
        {"cost_weight": -1.0},
        {"cost_weight": float("nan")},
        {"cluster": 99},
        {"cluster": None},
        {"model": ["poet"]},
        {"clusters": "of another router"},
    ],
    ids=str,
)
def test_a_noted_decision_that_makes_no_sense_is_made_anew(wrong: dict[str, Any]) -> None:
    """A client may have written it."""
    player, request = Player(), CallRequest("a poem", kept="poet", is_in_tool_loop=True)
    (first,) = player.serving.decide([request])
    noted = {**first.decision.as_dict(), **wrong}
    (routed,) = player.serving.decide([replace(request, noted=noted)])
    assert routed.decision.model == "poet"
    assert routed.decision.id != first.decision.id


@pytest.mark.parametrize("given", [None, 7, "x" * 16, "0" * 400])
def test_a_decision_that_goes_on_keeps_its_id(given: Any) -> None:
    """So learning counts it once. What is no id is none."""
    player, request = Player(), CallRequest("a poem", kept="poet", is_in_tool_loop=True)
    (first,) = player.serving.decide([request])
    noted = first.decision.as_dict()
    (routed,) = player.serving.decide([replace(request, noted=noted)])
    assert routed.decision.id == noted["id"]
    assert routed.decision.as_dict() == {**noted, "basis": routed.decision.basis}
    (routed,) = player.serving.decide([replace(request, noted={**noted, "id": given})])
    assert len(routed.decision.id) == 16
    assert routed.decision.id not in {noted["id"], given}


def test_an_empty_refusal_is_checked_like_any_answer() -> None:
    """It moves on by itself only if that is asked for; the check of answers may still send it on."""
    player = Player(Plan(checks=True))
    framework = player.serving.framework._replace(
        is_refusal=lambda answer: answer == "", is_empty=lambda answer: answer == ""
    )
    serving = replace(player.serving, framework=framework, escalate=as_check(lambda answer, _: answer.text != ""))
    (routed,) = serving.decide([CallRequest("a date", cost_weight=2.0)])
    assert routed.decision.better
    first = routed.decision.model
    routed, answer = serving.call(routed, lambda routed: "" if routed.decision.model == first else "fine")
    assert answer == "fine"
    assert [(each.model, each.kind) for each in routed.decision.excluded] == [(first, "rejected")]
