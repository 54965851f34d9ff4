"""Profiling a model from end to end: what it gives, and what it does when things go wrong."""

import asyncio
import json
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TOY_PROMPTS, toy_scores

from unirouter_integrations import InvalidInputError, LLMProfile, UniRouter
from unirouter_integrations.compare import what_if
from unirouter_integrations.grading import Answer, Example, Price, Score, Scorer, Usage, as_model
from unirouter_integrations.profiling import _budget, _run, aprofile_model, profile_model

EXAMPLES = [Example(prompt, "right") for prompt in TOY_PROMPTS]
PRICE = Price(1.0, 10.0)
USAGE = Usage(100, 10)  # of 0.0002 USD
CALL = PRICE.cost(USAGE)


class Counted:
    """An async model that counts its calls by prompt; a function of the prompt and the attempt gives the answer."""

    def __init__(self, answer: Callable[[str, int], object] = lambda prompt, attempt: "right") -> None:
        self.answer = answer
        self.calls = Counter[str]()
        self.in_progress = self.most_in_progress = 0

    async def __call__(self, prompt: str) -> Answer:
        self.calls[prompt] += 1
        self.in_progress += 1
        self.most_in_progress = max(self.most_in_progress, self.in_progress)
        try:
            await asyncio.sleep(0)
            text: Any = self.answer(prompt, self.calls[prompt])
            if isinstance(text, Awaitable):
                text = await text
            if isinstance(text, Exception):
                raise text
            return Answer(text, USAGE)
        finally:
            self.in_progress -= 1


class StatusError(Exception):
    """The error of an HTTP client, as far as it is read."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"status {status}")
        self.status_code = status
        self.response = type("Response", (), {"status_code": status, "headers": headers or {}})()


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait before a retry, unless the server requests it."""
    monkeypatch.setattr(_run, "_FIRST_BACKOFF_SECONDS", 0.0)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stop the clock of the budget, and collect the seconds that it would have slept."""
    seconds: list[float] = []

    async def sleep(_: object, duration: float) -> None:
        seconds.append(duration)

    monkeypatch.setattr(_budget, "monotonic", lambda: 0.0)
    monkeypatch.setattr(_budget.Budget, "_sleep", sleep)
    return seconds


def specialist(prompt: str, _: int = 0) -> str:
    """Right on sums only."""
    return "right" if "sum" in prompt else "wrong"


def test_the_profile_is_that_of_the_graded_answers(router: UniRouter) -> None:
    """Counts, losses and cost per cluster are those that `router.profile` gives for the same scores."""
    profile = profile_model("new", Counted(specialist), EXAMPLES, router, price=PRICE)
    costs = [1000 * CALL] * len(TOY_PROMPTS)
    expected = router.profile("new", TOY_PROMPTS, toy_scores("poem", "date"), cost=costs)
    assert profile.counts == pytest.approx(expected.counts)
    assert profile.losses == pytest.approx(expected.losses)
    assert profile.cost == pytest.approx(expected.cost)
    router.register(profile)
    assert "new" in router.models


def test_the_metadata_hold_the_facts_of_the_run(router: UniRouter) -> None:
    """Answers, failures and what was done with them, tokens, money, time, scorer, price, and why it stopped."""
    metadata = profile_model("new", Counted(), EXAMPLES, router, price=PRICE).metadata
    seconds = metadata.pop("seconds"), metadata.pop("seconds_per_cluster")  # type: ignore[attr-defined]
    assert seconds[0] > 0
    assert len(seconds[1]) == 3
    assert metadata == {
        "answers": 60,
        "failures": 0,
        "on_failure": "raise",
        "ungraded": 0,
        "scorer": "exact",
        "price": {"input": 1.0, "output": 10.0, "cached_input": None},
        "tokens": {"input_tokens": 6000, "output_tokens": 600, "cached_tokens": 0},
        "answers_usd": pytest.approx(60 * CALL),
        "judge_usd": 0.0,
        "stopped_by": None,
    }


async def test_it_works_where_an_event_loop_runs(router: UniRouter) -> None:
    """As in a notebook: the synchronous form does not need the loop that is running; the other form uses it."""
    first = profile_model("new", Counted(specialist), EXAMPLES, router, price=PRICE)
    loops: set[object] = set()

    async def model(prompt: str) -> Answer:
        loops.add(asyncio.get_running_loop())
        return Answer(specialist(prompt), USAGE)

    second = await aprofile_model("new", model, EXAMPLES, router, price=PRICE)
    assert loops == {asyncio.get_running_loop()}
    assert (first.counts == second.counts).all()
    assert (first.losses == second.losses).all()


def test_all_runs_share_one_loop(router: UniRouter) -> None:
    """Connections that a client keeps open belong to a loop: a second run can use those of the first."""
    loops: set[object] = set()

    async def model(prompt: str) -> str:
        loops.add(asyncio.get_running_loop())
        return "right"

    for _ in range(2):
        profile_model("new", model, EXAMPLES[:3], router, price=Price(0, 0))
    assert len(loops) == 1


def test_calls_overlap_up_to_the_limit(router: UniRouter) -> None:
    """So many at once and no more; without waiting for the slowest of a batch."""
    model = Counted()
    profile_model("new", model, EXAMPLES, router, price=PRICE, max_concurrency=5)
    assert model.most_in_progress == 5
    held = threading.Event()

    def first_waits_for_the_last(prompt: str) -> str:
        if prompt == TOY_PROMPTS[0]:
            assert held.wait(60)
        if prompt == TOY_PROMPTS[-1]:
            held.set()
        return "right"

    profile = profile_model("new", first_waits_for_the_last, EXAMPLES, router, price=Price(0, 0), max_concurrency=2)
    assert profile.mean_error == 0


def test_examples_may_be_mappings_and_come_as_they_are_read(router: UniRouter) -> None:
    """No more are read ahead than the window of calls holds."""
    read, model = 0, Counted()

    def examples() -> Iterator[dict[str, Any]]:
        nonlocal read
        for index in range(2000):
            read += 1
            assert read - sum(model.calls.values()) <= _run._MIN_WINDOW + 2 * _run._BLOCK_SIZE
            yield {"prompt": f"{TOY_PROMPTS[index % 3]} {index}", "reference": "right", "kind": index % 3}

    assert profile_model("new", model, examples(), router, price=PRICE).metadata["answers"] == 2000


@pytest.mark.parametrize("n", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_examples(router: UniRouter, n: int) -> None:
    """No more objects are alive while the other examples are read than while the first 10,000 are."""
    alive: list[int] = []

    def examples() -> Iterator[dict[str, Any]]:
        for index in range(n):
            if index % 100 == 0:
                alive.append(sys.getallocatedblocks())
            yield {"prompt": TOY_PROMPTS[index % 60], "reference": "right"}

    profile = profile_model("new", Counted(), examples(), router, price=PRICE, scorer="contains")
    assert profile.metadata["answers"] == n
    assert max(alive[100:]) < max(alive[:100]) + 1000


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        StatusError(429),
        StatusError(429, {"Retry-After": "0"}),
        StatusError(503, {"retry-after-ms": "1"}),
        StatusError(529),
        StatusError(408, {"Retry-After": formatdate(0)}),
        TimeoutError(),
        ConnectionResetError(),
        type("APIConnectionError", (Exception,), {})(),
        type("ServiceUnavailable", (Exception,), {"code": 503})(),
        type("ClientError", (Exception,), {"response": {"ResponseMetadata": {"HTTPStatusCode": 429}}})(),
        type("ModelError", (Exception,), {"is_retryable": True})(),
    ],
    ids=repr,
)
def test_errors_that_may_pass_are_retried(router: UniRouter, error: Exception) -> None:
    """A storm of them costs nothing but calls: twice each, then every answer comes."""
    model = Counted(lambda prompt, attempt: error if attempt <= 2 else "right")
    profile = profile_model("new", model, EXAMPLES, router, price=PRICE)
    assert set(model.calls.values()) == {3}
    assert (profile.mean_error, profile.metadata["failures"]) == (0, 0)


@pytest.mark.parametrize(
    "error",
    [
        StatusError(401),
        StatusError(400),
        ValueError("malformed"),
        type("RateLimitError", (StatusError,), {"code": "insufficient_quota"})(429),
        type("ModelError", (Exception,), {"is_retryable": False})(),
        json.JSONDecodeError("malformed body", "", 0),
    ],
    ids=repr,
)
def test_other_errors_are_raised_as_they_came(router: UniRouter, error: Exception) -> None:
    """Once, and no new call is made after it."""
    model = Counted(lambda prompt, attempt: error if prompt == TOY_PROMPTS[20] else "right")
    with pytest.raises(type(error)) as raised:
        profile_model("new", model, EXAMPLES, router, price=PRICE, max_concurrency=2)
    assert raised.value is error
    assert model.calls[TOY_PROMPTS[20]] == 1
    assert model.calls.total() <= 20 + 2 * 2


def test_a_failure_for_good_is_raised_after_so_many_retries(router: UniRouter) -> None:
    """The first call and two more."""
    model = Counted(lambda prompt, attempt: StatusError(500))
    with pytest.raises(StatusError):
        profile_model("new", model, EXAMPLES[:1], router, price=PRICE, max_retries=2)
    assert model.calls.total() == 3


def test_the_wait_that_a_server_requests_is_kept(router: UniRouter, slept: list[float]) -> None:
    """No other call begins in that time either. An unreasonable wait is a failure."""
    model = Counted(
        lambda prompt, attempt: StatusError(429, {"Retry-After": "30"}) if model.calls.total() == 1 else "right"
    )
    profile_model("new", model, EXAMPLES[:9], router, price=PRICE, max_concurrency=1)
    assert slept == [0] + [30] * 10  # the first call; its wait, its repetition, and the calls after it
    impossible = Counted(lambda prompt, attempt: StatusError(429, {"Retry-After": "86400"}))
    with pytest.raises(StatusError):
        profile_model("new", impossible, EXAMPLES, router, price=PRICE, max_concurrency=1)


def test_calls_keep_to_a_rate(router: UniRouter, slept: list[float]) -> None:
    """At 60 a minute, the tenth call begins nine seconds after the first."""
    profile_model("new", Counted(), EXAMPLES[:10], router, price=PRICE, requests_per_minute=60)
    assert slept == list(range(10))


def test_a_call_that_takes_too_long_is_made_again(router: UniRouter) -> None:
    """The first call for each prompt never ends."""

    async def hang() -> None:
        await asyncio.Event().wait()

    model = Counted(lambda prompt, attempt: hang() if attempt == 1 else "right")
    profile = profile_model("new", model, EXAMPLES[:6], router, price=PRICE, timeout=0.3)
    assert profile.metadata["answers"] == 6
    assert set(model.calls.values()) == {2}


def half_fail(prompt: str, _: int) -> object:
    return StatusError(400) if TOY_PROMPTS.index(prompt) % 2 else specialist(prompt)


def test_failures_are_skipped_on_request(router: UniRouter) -> None:
    """A failure is not a wrong answer: the profile is that of the answered half, with the number of failures."""
    profile = profile_model("new", Counted(half_fail), EXAMPLES, router, price=PRICE, on_failure="skip")
    expected = router.profile("new", TOY_PROMPTS[::2], toy_scores("poem", "date")[::2], cost=1000 * CALL)
    assert profile.counts == pytest.approx(expected.counts)
    assert profile.losses == pytest.approx(expected.losses)
    facts = [profile.metadata[key] for key in ("answers", "failures", "on_failure")]
    assert facts == [30, 30, "skip"]


def test_failures_are_wrong_on_request(router: UniRouter) -> None:
    """Each counts as a wrong answer, but not in the cost of a call."""
    profile = profile_model("new", Counted(half_fail), EXAMPLES, router, price=PRICE, on_failure="wrong")
    scores = [0.0 if index % 2 else score for index, score in enumerate(toy_scores("poem", "date"))]
    expected = router.profile("new", TOY_PROMPTS, scores, cost=1000 * CALL)
    assert profile.counts == pytest.approx(expected.counts)
    assert profile.losses == pytest.approx(expected.losses)
    assert np.asarray(profile.cost) == pytest.approx(1000 * CALL)


def test_where_every_call_fails_there_is_no_profile(router: UniRouter) -> None:
    """The error says how many failed, and the last failure is its cause."""
    model = Counted(lambda prompt, attempt: StatusError(400))
    for policy in ("skip", "wrong"):
        with pytest.raises(InvalidInputError, match="60 of its calls failed") as raised:
            profile_model("new", model, EXAMPLES, router, price=PRICE, on_failure=policy)
        assert isinstance(raised.value.__cause__, StatusError)


def test_an_empty_answer_is_an_answer(router: UniRouter) -> None:
    """It was paid for, and is wrong."""
    profile = profile_model("new", Counted(lambda prompt, attempt: ""), EXAMPLES, router, price=PRICE)
    assert (profile.mean_error, profile.metadata["answers"]) == (1, 60)


@pytest.mark.parametrize("output", [None, object(), b"bytes"])
def test_what_is_no_answer_is_a_failure(router: UniRouter, output: object) -> None:
    """It is one under any policy; the message names its type."""

    def model(prompt: str) -> object:
        return output if "sum" in prompt else "right"

    with pytest.raises(InvalidInputError, match="should answer with a text"):
        profile_model("new", model, EXAMPLES, router, price=Price(0, 0))
    profile = profile_model("new", model, EXAMPLES, router, price=Price(0, 0), on_failure="skip")
    assert profile.metadata["failures"] == 20


# --- money --------------------------------------------------------------------------------------------------------


def test_a_run_stops_before_it_exceeds_its_budget(router: UniRouter, tmp_path: Path) -> None:
    """However many calls are under way; it keeps what it has paid for, and the next run goes on from there."""
    journal = tmp_path / "profiles.db"
    model = Counted(specialist)
    budget = 10.5 * CALL
    profile = profile_model(
        "new", model, EXAMPLES, router, price=PRICE, journal=journal, max_cost=budget, max_concurrency=8
    )
    assert model.calls.total() == profile.metadata["answers"] == 10
    assert profile.metadata["answers_usd"] <= budget
    assert profile.metadata["stopped_by"].startswith("max_cost")
    again = profile_model("new", model, EXAMPLES, router, price=PRICE, journal=journal, max_cost=budget)
    assert model.calls.total() == again.metadata["answers"] == 20
    whole = profile_model("new", model, EXAMPLES, router, price=PRICE, journal=journal)
    assert set(model.calls.values()) == {1}
    assert whole.metadata["stopped_by"] is None


def test_a_budget_counts_expensive_calls_as_they_come(router: UniRouter) -> None:
    """If costs rise tenfold during the run, a call in progress counts as much as the most expensive so far."""

    async def model(prompt: str) -> Answer:
        await asyncio.sleep(0)
        return Answer("right", Usage(1000 if TOY_PROMPTS.index(prompt) == 3 else 100, 0))

    for budget in (500, 1000, 1500, 2500, 4000):
        profile = profile_model(
            "new", model, EXAMPLES, router, price=Price(1, 1), max_cost=budget / 1e6, max_concurrency=2
        )
        # The expensive call, one of the first five, cannot be foreseen. After it, nothing is exceeded.
        assert profile.metadata["answers_usd"] * 1e6 <= max(budget, 1000 + 4 * 100) + 0.001


def test_a_budget_is_kept_where_the_output_is_limited(router: UniRouter) -> None:
    """However expensive the later answers are: a call in progress counts as much as its limit allows."""

    class Limited:
        max_tokens = 100

        async def __call__(self, prompt: str) -> Answer:
            await asyncio.sleep(0)
            return Answer("right", Usage(0, 1 if TOY_PROMPTS.index(prompt) < 20 else self.max_tokens))

    for budget in (1000, 1500, 2500):
        settings: dict[str, Any] = {"price": Price(0, 1), "max_cost": budget / 1e6, "max_concurrency": 16}
        profile = profile_model("new", Limited(), EXAMPLES, router, **settings)
        assert budget - 100 < profile.metadata["answers_usd"] * 1e6 <= budget + 0.001
    # A limit that is out of proportion does not keep the run from beginning.
    profile = profile_model("new", Limited(), EXAMPLES[:10], router, price=Price(0, 1), max_cost=50 / 1e6)
    assert profile.metadata["answers"] == 10


def test_the_output_limit_of_a_chat_model_is_read() -> None:
    """It may be bound to the model."""
    pytest.importorskip("langchain_core")
    from unirouter_integrations import testing as fakes

    bound = fakes.ChatFake(model="m").bind(max_tokens=7).with_config(tags=["x"])
    assert (as_model(bound).max_output_tokens, as_model(fakes.ChatFake()).max_output_tokens) == (7, None)


def test_a_model_that_ends_the_process_is_an_error(router: UniRouter) -> None:
    """And the next run works."""
    with pytest.raises(RuntimeError, match=r"It raised SystemExit"):
        profile_model("new", lambda prompt: sys.exit(3), EXAMPLES, router, price=Price(0, 0))
    assert profile_model("new", specialist, EXAMPLES, router, price=Price(0, 0)).metadata["answers"] == len(EXAMPLES)


def test_arguments_in_the_wrong_order_are_named(router: UniRouter) -> None:
    """The router and the examples are easily exchanged."""
    wrong: Any = EXAMPLES
    with pytest.raises(InvalidInputError, match=r"router should be a UniRouter .* not list"):
        profile_model("new", specialist, wrong, wrong, price=Price(0, 0))


def test_without_examples_there_is_no_profile(router: UniRouter) -> None:
    """The error says so."""
    with pytest.raises(InvalidInputError, match="there are no examples"):
        profile_model("new", specialist, [], router, price=Price(0, 0))


def test_a_budget_that_not_even_the_first_prompt_fits_in_pays_for_nothing(router: UniRouter) -> None:
    """The prompt alone is too expensive."""
    model = Counted()
    with pytest.raises(InvalidInputError, match="stopped by max_cost"):
        profile_model("new", model, [Example("word " * 1000, "right")], router, price=PRICE, max_cost=0.001)
    assert not model.calls


def test_tokens_that_are_not_reported_cannot_be_priced(router: UniRouter) -> None:
    """Unless they are free; the message says what to do."""

    def model(prompt: str) -> str:
        return "right"

    with pytest.raises(InvalidInputError, match=r"does not report how many tokens it used.*price=Price\(0, 0\)"):
        profile_model("new", model, EXAMPLES, router, price=PRICE, on_failure="skip")
    assert np.all(profile_model("new", model, EXAMPLES, router, price=Price(0, 0)).cost == 0)


# --- judges -------------------------------------------------------------------------------------------------------


def judged_by(model: object, grade: Callable[[Answer, Example], Score]) -> Scorer:
    async def function(answer: Answer, example: Example) -> Score:
        return grade(answer, example)

    return Scorer("judge:fake", function, model=model)


def test_the_cost_of_a_judge_is_counted_apart_and_in_the_budget(router: UniRouter) -> None:
    """It is not a cost of the model's calls, but it is money."""
    scorer = judged_by(object(), lambda answer, example: Score(1.0, 9 * CALL))
    profile = profile_model("new", Counted(), EXAMPLES, router, price=PRICE, scorer=scorer)
    assert profile.metadata["judge_usd"] == pytest.approx(60 * 9 * CALL)
    assert np.asarray(profile.cost) == pytest.approx(1000 * CALL)
    limited = profile_model("new", Counted(), EXAMPLES, router, price=PRICE, scorer=scorer, max_cost=50.5 * CALL)
    assert limited.metadata["answers"] == 5


def test_a_grade_is_not_paid_twice_either(router: UniRouter, tmp_path: Path) -> None:
    """The second run calls neither the model nor the judge."""
    grades, model = Counter[str](), Counted()

    def grade(answer: Answer, example: Example) -> Score:
        grades[example.prompt] += 1
        return Score(1.0, CALL)

    scorer = judged_by(object(), grade)
    first, second = (
        profile_model("new", model, EXAMPLES, router, price=PRICE, scorer=scorer, journal=tmp_path / "profiles.db")
        for _ in range(2)
    )
    assert set(model.calls.values()) == set(grades.values()) == {1}
    assert first.metadata == second.metadata


def test_what_the_judge_cannot_grade_is_not_counted(router: UniRouter) -> None:
    """This holds for answers that it declines to grade and, unless failures are raised, for failed calls."""

    def grade(answer: Answer, example: Example) -> Score:
        if "poem" in example.prompt:
            raise StatusError(400)
        return Score(None if "date" in example.prompt else 1.0)

    scorer = judged_by(object(), grade)
    profile = profile_model("new", Counted(), EXAMPLES, router, price=PRICE, scorer=scorer, on_failure="wrong")
    assert (profile.metadata["answers"], profile.metadata["ungraded"], profile.mean_error) == (60, 40, 0)
    assert profile.counts.sum() == pytest.approx(20)
    with pytest.raises(StatusError):
        profile_model("new", Counted(), EXAMPLES, router, price=PRICE, scorer=scorer)


def test_a_model_is_not_its_own_judge(router: UniRouter) -> None:
    """Nor is another object for the same model."""
    pytest.importorskip("langchain_core")
    from unirouter_integrations import testing as fakes

    model = fakes.ChatFake(model="mini")
    for judge in (model, fakes.ChatFake(model="mini"), model.bind(stop=["x"])):
        with pytest.raises(InvalidInputError, match="cannot be its own judge"):
            profile_model("new", model, EXAMPLES, router, price=PRICE, scorer=judged_by(judge, lambda a, e: Score(1)))
    other = judged_by(fakes.ChatFake(model="large"), lambda answer, example: Score(1))
    assert profile_model("new", model, EXAMPLES, router, price=PRICE, scorer=other).mean_error == 0


def test_a_scorer_that_breaks_stops_the_run(router: UniRouter) -> None:
    """Under any policy: it is not the provider's failure."""

    def broken(answer: Answer, example: Example) -> bool:
        raise KeyError

    with pytest.raises(KeyError):
        profile_model("new", Counted(), EXAMPLES, router, price=PRICE, scorer=broken, on_failure="skip")


def test_a_reference_that_cannot_be_read_is_refused_before_its_call_is_paid(router: UniRouter) -> None:
    """The scorer looks at it first."""
    model = Counted()
    with pytest.raises(InvalidInputError):
        profile_model("new", model, [Example("a sum", "no number")], router, price=PRICE, scorer="number")
    assert not model.calls


# --- fewer examples -----------------------------------------------------------------------------------------------


def test_the_most_informative_examples_are_chosen(router: UniRouter) -> None:
    """Those that `choose_validation` names."""
    model = Counted()
    profile_model("new", model, EXAMPLES, router, price=PRICE, n=6)
    assert set(model.calls) == {TOY_PROMPTS[index] for index in router.choose_validation(TOY_PROMPTS, 6)}


def many(n: int) -> list[Example]:
    return [Example(f"{prompt} {index}", "right") for index in range(n // 60) for prompt in TOY_PROMPTS]


def test_a_run_stops_when_enough_is_known(router: UniRouter) -> None:
    """After whole blocks of examples, with no call wasted, and so the same every time."""
    sizes = []

    def enough(profile: LLMProfile) -> bool:
        sizes.append(round(profile.counts.sum()))
        return len(sizes) == 3

    model = Counted(specialist)
    profile = profile_model("new", model, many(600), router, price=PRICE, stop_when=enough, max_concurrency=32)
    assert sizes == [_run._BLOCK_SIZE * 1, _run._BLOCK_SIZE * 2, _run._BLOCK_SIZE * 3]
    assert model.calls.total() == profile.metadata["answers"] == 3 * _run._BLOCK_SIZE
    assert profile.metadata["stopped_by"] == f"stop_when, after {3 * _run._BLOCK_SIZE} answers"


def test_a_run_stops_when_the_intervals_leave_the_routing_as_it_is(router: UniRouter) -> None:
    """More answers would not change the routing; before that, they might."""
    router.cost_weight = 0.02
    profile = profile_model("new", Counted(specialist), many(6000), router, price=PRICE, stop_when=0.0)
    assert 0 < profile.metadata["answers"] < 6000
    assert what_if(router, profile).undecided == 0
    one_less = many(6000)[: profile.metadata["answers"] - _run._BLOCK_SIZE]
    if one_less:
        assert what_if(router, profile_model("new", Counted(specialist), one_less, router, price=PRICE)).undecided > 0


# --- interruptions ------------------------------------------------------------------------------------------------


async def test_a_cancelled_run_waits_for_calls_that_are_paid_for(router: UniRouter, tmp_path: Path) -> None:
    """No new call begins, and the answers of those in progress get into the journal."""
    started, finish = asyncio.Event(), asyncio.Event()
    calls: list[str] = []

    async def model(prompt: str) -> Answer:
        calls.append(prompt)
        if len(calls) == 4:
            started.set()
        await finish.wait()
        return Answer("right", USAGE)

    settings: Any = {"price": PRICE, "journal": tmp_path / "profiles.db", "max_concurrency": 4}
    run = asyncio.create_task(aprofile_model("new", model, EXAMPLES, router, **settings))
    await started.wait()
    run.cancel()
    await asyncio.sleep(0)
    finish.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert len(calls) == 4
    await aprofile_model("new", model, EXAMPLES, router, **settings)
    assert len(calls) == len(set(calls)) == 60


async def test_a_run_that_is_cancelled_twice_leaves_at_once(router: UniRouter) -> None:
    """Even if the calls never end."""
    started = asyncio.Event()

    async def model(prompt: str) -> Answer:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    run = asyncio.create_task(aprofile_model("new", model, EXAMPLES, router, price=PRICE))
    await started.wait()
    run.cancel()
    await asyncio.sleep(0.05)
    assert not run.done()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


def test_ctrl_c_in_a_script(router: UniRouter, tmp_path: Path) -> None:
    """It raises KeyboardInterrupt, once the answers of the calls in progress are in the journal."""
    router.save(tmp_path / "router")
    script = """
        import os, signal, sys, threading
        signal.signal(signal.SIGINT, signal.default_int_handler)  # inherited as ignored under nohup
        sys.path.insert(0, sys.argv[2])
        from conftest import TOY_PROMPTS, toy_embed
        from unirouter_integrations import UniRouter
        from unirouter_integrations.grading import Price
        from unirouter_integrations.profiling import profile_model
        router = UniRouter.load(sys.argv[1] + "/router", embedder=toy_embed)
        calls, go = [], threading.Event()
        def model(prompt):
            calls.append(prompt)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGINT)
                threading.Timer(0.3, go.set).start()
            go.wait()
            return "right"
        examples = [{"prompt": prompt, "reference": "right"} for prompt in TOY_PROMPTS]
        settings = dict(price=Price(0, 0), journal=sys.argv[1] + "/profiles.db", max_concurrency=4)
        try:
            profile_model("new", model, examples, router, **settings)
        except KeyboardInterrupt:
            print("interrupted", len(calls))
        profile_model("new", model, examples, router, **settings)
        print(len(calls), len(set(calls)))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(Path(__file__).parents[1])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("interrupted 4\n60 60\n", "")


# --- what is shown ------------------------------------------------------------------------------------------------


def test_nothing_is_printed_if_standard_error_is_no_terminal(
    router: UniRouter, capfd: pytest.CaptureFixture[str]
) -> None:
    """In logs and in CI."""
    profile_model("new", Counted(), EXAMPLES, router, price=PRICE)
    assert capfd.readouterr() == ("", "")


def test_a_bar_shows_answers_accuracy_and_money(
    router: UniRouter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a terminal, unless it is switched off."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    profile_model("new", Counted(specialist), EXAMPLES, router, price=PRICE)
    last = capsys.readouterr().err.rstrip().rpartition("\r")[2]
    for part in ("new:", "60/60", "accuracy 33.3%", f"{60 * CALL:.4f} USD"):
        assert part in last
    profile_model("new", Counted(specialist), EXAMPLES, router, price=PRICE, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        {"on_failure": "ignore"},
        {"max_concurrency": 0},
        {"max_retries": -1},
        {"n": 0},
        {"timeout": 0},
        {"requests_per_minute": -1},
        {"max_cost": -1},
        {"max_cost": float("nan")},
        {"scorer": "nobody"},
        {"stop_when": 2},
        {"price": (1, 2)},
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused_before_any_call(router: UniRouter, arguments: dict[str, Any]) -> None:
    """The message names the argument and the value."""
    model = Counted()
    (name,) = arguments
    with pytest.raises(InvalidInputError, match=name):
        profile_model("new", model, EXAMPLES, router, **{"price": PRICE, **arguments})
    assert not model.calls


@pytest.mark.parametrize("example", ["a text", {"reference": "right"}, {"prompt": 3}, 7, ("a", "b")])
def test_what_is_no_example_is_refused(router: UniRouter, example: Any) -> None:
    """The message names its type, and nothing of its content."""
    with pytest.raises(InvalidInputError, match="An example should be"):
        profile_model("new", Counted(), [example], router, price=PRICE)


def test_no_examples_no_profile(router: UniRouter) -> None:
    """There is nothing to count."""
    with pytest.raises(InvalidInputError, match="cannot be profiled"):
        profile_model("new", Counted(), [], router, price=PRICE)
