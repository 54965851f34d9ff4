"""The laws of `Health`, on a clock that only the tests move."""

import copy
import math
import os
import pickle
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from unirouter_integrations.serving import Health
from unirouter_integrations.serving._health import TrackedCall

WELL = ("well",)  # one that nobody calls; without it, health would be ignored
FIVE = ("best", "second", "third", "fourth", "last")


class Clock:
    """Time that passes when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


def cooling(health: Health, model: str = "mini") -> float | None:
    """For how many seconds a model cools down; None if it does not."""
    return health.cooling_down([model, *WELL]).get(model)


def call(health: Health, outcomes: str, *, cooldown: float = 30.0, model: str = "mini") -> None:
    """Make some calls, one after the other: + is an answer, - is a failure, and anything else has no verdict."""
    for outcome in outcomes:
        tracked = health.start(model)
        if outcome == "+":
            health.succeeded(tracked)
        elif outcome == "-":
            health.failed(tracked, cooldown=cooldown)
        else:
            health.abandoned(tracked)


def ask_to_wait(health: Health, seconds: float, model: str = "mini") -> None:
    health.failed(health.start(model), cooldown=30.0, retry_after=seconds)


# ---------------------------------------------------------------- when a model cools down


@pytest.mark.parametrize(
    ("outcomes", "cools"),
    [
        ("----", False),  # too few calls to know
        ("-----", True),
        ("++---", True),
        ("+++---", False),  # half of them
        ("+++----", True),
        ("----?????????", False),  # what has no verdict is no call
        ("+" * 100 + "-" * 9, False),
        ("+" * 100 + "-" * 10, True),  # an outage
        ("+" * 100 + "-" * 9 + "+" + "-" * 9, False),
    ],
)
def test_a_model_cools_down_if_more_than_half_of_its_calls_fail(health: Health, outcomes: str, *, cools: bool) -> None:
    """Of at least five, or ten in a row; not at the failures before that."""
    call(health, outcomes[:-1])
    assert cooling(health) is None
    call(health, outcomes[-1])
    assert (cooling(health) is not None) == cools


def test_older_calls_count_less(health: Health, clock: Clock) -> None:
    """Half as much after thirty seconds: neither do they hold up a cooldown, nor do they bring it about.

    Five calls within a few seconds are five.
    """
    for _ in range(4):
        call(health, "-", model="quick")
        clock.now += 1
    assert cooling(health, "quick") is None
    call(health, "-", model="quick")
    assert cooling(health, "quick") is not None
    call(health, "++++++++")
    clock.now += 60
    call(health, "--")
    assert cooling(health) is None
    call(health, "-")  # three of five
    assert cooling(health) is not None
    call(health, "----", model="large")
    clock.now += 30
    call(health, "--", model="large")
    assert cooling(health, "large") is None
    call(health, "-", model="large")
    assert cooling(health, "large") is not None


@pytest.mark.parametrize(("asked", "granted"), [(0.5, 0.5), (7.0, 7.0), (120.0, 120.0), (31_536_000.0, 120.0)])
def test_a_provider_that_asks_to_wait_is_heard(health: Health, clock: Clock, asked: float, granted: float) -> None:
    """At the first failure, to the second, but for two minutes at most.

    An older call does not end it, nor does one that is made as a last resort: neither if it succeeds, nor if it fails.
    """
    older = health.start("mini")
    ask_to_wait(health, asked)
    assert cooling(health) == granted
    health.succeeded(older)
    call(health, "+-", cooldown=0.0)
    assert cooling(health) == granted
    clock.now += granted
    assert cooling(health) is None


@pytest.mark.parametrize(("cooldown", "longest"), [(5.0, 60.0), (30.0, 60.0), (100.0, 100.0)])
def test_a_model_that_fails_again_cools_down_for_longer(
    health: Health, clock: Clock, cooldown: float, longest: float
) -> None:
    """Twice as long each time, up to a minute or the setting, with a jitter of a fifth; once recovered, as at first."""
    call(health, "-----", cooldown=cooldown)
    expected = cooldown
    for _ in range(6):
        left = cooling(health)
        assert left is not None
        assert 0.8 * expected <= left <= 1.2 * expected
        expected = min(2 * expected, longest)
        clock.now += left
        call(health, "-", cooldown=cooldown)
    clock.now += cooling(health) or 0
    call(health, "++++-----", cooldown=cooldown)
    assert 0.8 * cooldown <= (cooling(health) or 0) <= 1.2 * cooldown


def test_workers_do_not_probe_at_the_same_moment(clock: Clock) -> None:
    """Each has a cooldown of its own length."""
    workers = [Health(clock) for _ in range(20)]
    for worker in workers:
        call(worker, "-----")
    assert len({cooling(worker) for worker in workers}) == 20


def test_calls_from_before_a_cooldown_say_nothing_of_it(health: Health, clock: Clock) -> None:
    """Their failures do not lengthen it, and their successes do not end it."""
    before = [health.start("mini") for _ in range(20)]
    call(health, "-----")
    left = cooling(health)
    for index, tracked in enumerate(before):
        if index % 2:
            health.failed(tracked, cooldown=300.0, retry_after=300.0)
        else:
            health.succeeded(tracked)
    assert cooling(health) == left
    clock.now += left or 0
    assert cooling(health) is None


# ---------------------------------------------------------------- how it comes back


def test_a_model_comes_back_slowly(health: Health, clock: Clock) -> None:
    """One call probes it. Each answer lets twice as many in at once, until any number may come."""
    call(health, "-----")
    clock.now += cooling(health) or 0
    for slots in (1, 2, 4, 8):
        calls = []
        while cooling(health) is None:
            calls.append(health.start("mini"))
        assert len(calls) == slots
        assert cooling(health) == 0
        health.succeeded(calls[0])
        for tracked in calls[1:]:
            health.abandoned(tracked)
    for _ in range(100):
        health.start("mini")
    assert cooling(health) is None


@pytest.mark.parametrize("in_recovery", ["", "+", "++", "+++"])
def test_one_failure_ends_a_recovery(health: Health, clock: Clock, in_recovery: str) -> None:
    """Until it has recovered; after that, it takes as many as for any model."""
    call(health, "-----")
    clock.now += cooling(health) or 0
    call(health, in_recovery + "-")
    assert cooling(health) is not None
    clock.now += cooling(health) or 0
    call(health, "++++----")
    assert cooling(health) is None


def test_a_probe_without_a_verdict_is_handed_back(health: Health, clock: Clock) -> None:
    """It was cancelled, or the request itself was wrong. A call ends once, however often that is said."""
    call(health, "-----")
    clock.now += cooling(health) or 0
    probe = health.start("mini")
    assert cooling(health) == 0
    health.abandoned(probe)
    assert cooling(health) is None
    second = health.start("mini")
    for ended in (probe, probe):
        health.abandoned(ended)
        health.succeeded(ended)
        health.failed(ended, cooldown=30.0)
    assert cooling(health) == 0  # the second one is still on its way, and alone
    health.succeeded(second)
    health.failed(second, cooldown=30.0)
    assert cooling(health) is None


def test_a_model_that_becomes_slow_cools_down(health: Health, clock: Clock) -> None:
    """Ten times as slow as usual, for more than half of its calls; a stream counts until its first content."""

    def answers(n: int, seconds: float, model: str, until_content: float | None = None) -> None:
        begun = [health.start(model) for _ in range(n)]
        clock.now += seconds
        for tracked in begun:
            health.succeeded(tracked, until_content)

    for model, before, after, until_content in (
        ("slow", 1.0, 11.0, None),
        ("usual", 1.0, 10.0, None),
        ("streaming", 1.0, 60.0, 1.0),
        ("cached", 0.001, 0.9, None),  # until now a cache answered
    ):
        answers(16, before, model)
        clock.now += 300
        answers(30, after, model, until_content)
        left = cooling(health, model)
        assert 0 < left <= 5 if model == "slow" and left is not None else left is None, model


# ---------------------------------------------------------------- the others


@given(
    st.lists(st.sampled_from("abcdefg"), unique=True, min_size=1),
    st.sets(st.sampled_from("abcdefg")),
    st.sets(st.sampled_from("abcdefg")),
)
def test_if_no_model_is_healthy_health_is_ignored(asked: list[str], waiting: set[str], probed: set[str]) -> None:
    """The fault may be on our side. While one is healthy, the others are listed, however many they are."""
    clock = Clock()
    health = Health(clock)
    for model in probed - waiting:
        ask_to_wait(health, 0.0, model)
        health.start(model)
    for model in waiting:
        ask_to_wait(health, 10.0, model)
    found = health.cooling_down(asked)
    bad = (waiting | probed) & set(asked)
    assert found == ({} if len(bad) == len(asked) else {model: 10.0 * (model in waiting) for model in bad})


def test_the_first_failure_that_makes_a_model_cool_down_is_reported(health: Health, clock: Clock) -> None:
    """Once for each cooldown, so that a model that is gone is not in the log at every call that is forced on it."""
    calls = [health.start("mini") for _ in range(3)]
    assert [health.failed(each, cooldown=5.0, retry_after=60.0) for each in calls] == [True, False, False]
    assert not health.failed(health.start("mini"), cooldown=5.0, retry_after=60.0)
    clock.now += 60
    assert health.failed(health.start("mini"), cooldown=5.0, retry_after=60.0)
    assert not health.failed(health.start("other"), cooldown=5.0)


def test_copies_share_nothing(clock: Clock) -> None:
    """They know what the original knew, and have none of its calls in progress."""
    original = Health(lambda: clock.now)  # a function is not copied with it
    ask_to_wait(original, 10.0)
    copies = [copy.copy(original), copy.deepcopy(original)]
    assert [cooling(each) for each in copies] == [10.0, 10.0]
    clock.now += 10
    probe = original.start("mini")
    copies.append(copy.deepcopy(original))
    assert [cooling(each) for each in (original, *copies)] == [0, None, None, None]
    original.succeeded(probe)
    ask_to_wait(copies[0], 7.0)
    assert [cooling(each) for each in (original, *copies)] == [None, 7.0, None, None]
    real = Health()
    ask_to_wait(real, 100.0)
    assert 90 < (cooling(pickle.loads(pickle.dumps(real))) or 0) <= 100  # noqa: S301


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_no_calls_in_progress(health: Health, clock: Clock) -> None:
    """A probe that the parent has on its way will never end in the child; a lock that was held there is free."""
    ask_to_wait(health, 0.0)
    health.start("mini")
    assert cooling(health) == 0
    held = health._lock
    with held:
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)  # in place of waiting for ever
            os._exit(0 if cooling(health) is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_any_number_of_threads_may_use_it(clock: Clock, health: Health) -> None:
    """No call is lost: at the end, none is on its way."""
    chance = random.Random(0)  # noqa: S311
    outcomes = ["".join(chance.choices("+-?", k=500)) for _ in range(8)]
    threads = [threading.Thread(target=call, args=(health, each), kwargs={"cooldown": 0.0}) for each in outcomes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ask_to_wait(health, 0.0)
    assert cooling(health) is None
    health.start("mini")
    assert cooling(health) == 0


# ---------------------------------------------------------------- the laws, on random histories


@dataclass
class Known:
    """What a test knows of a model, by the rules as they are written down.

    Attributes:
        ended: When its calls since the last cooldown ended, and whether they failed.
        in_flight: Its calls in progress, with the cooldown that they began in.
        cooldowns: How many times it has cooled down.
        slots: How many calls it may have at once; None for any number.
        until: When the last cooldown ends.
        seconds: How long it was to be, without the jitter.
    """

    ended: list[tuple[float, bool]] = field(default_factory=list)
    in_flight: list[tuple[TrackedCall, int]] = field(default_factory=list)
    cooldowns: int = 0
    slots: int | None = None
    until: float = 0.0
    seconds: float = 0.0

    def should_cool_down(self, now: float) -> bool | None:
        """Whether too many of its calls failed; None if it is a matter of rounding."""
        weights = [(math.exp2((when - now) / 30), failed) for when, failed in self.ended]
        calls, failures = sum(weight for weight, _ in weights), sum(weight for weight, failed in weights if failed)
        if len(self.ended) >= 10 and all(failed for _, failed in self.ended[-10:]):
            return True
        if abs(calls - 4.5) < 1e-9 or abs(failures - calls / 2) < 1e-9:
            return None if calls > 4.5 - 1e-9 and failures > calls / 2 - 1e-9 else False
        return calls > 4.5 and failures > calls / 2


MODELS = st.sampled_from(["ant", "bee"])
NUMBERS = st.integers(1, 6)


class Histories(RuleBasedStateMachine):
    """Any calls at any time, also of models that cool down: as a last resort, or forced."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.health = Health(self.clock)
        self.known = {model: Known() for model in ("ant", "bee")}
        self.longest = 60.0  # of all cooldowns, without the jitter

    @rule(seconds=st.sampled_from([0.1, 3.0, 30.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(model=MODELS, n=NUMBERS, is_forced=st.booleans())
    def begin(self, model: str, n: int, *, is_forced: bool) -> None:
        """Calls that are not forced begin only where health lets them."""
        known = self.known[model]
        for _ in range(n):
            if is_forced or cooling(self.health, model) is None:
                known.in_flight.append((self.health.start(model), known.cooldowns))

    @rule(model=MODELS, outcomes=st.text("+?", min_size=1, max_size=6), newest=st.booleans())
    def end(self, model: str, outcomes: str, *, newest: bool) -> None:
        """Calls that are answered, and calls without a verdict."""
        known = self.known[model]
        for outcome in outcomes[: len(known.in_flight)]:
            tracked, cooldowns = known.in_flight.pop(-newest)
            if outcome == "?":
                self.health.abandoned(tracked)
                continue
            self.health.succeeded(tracked, 1.0)
            if cooldowns == known.cooldowns:
                known.ended.append((self.clock.now, False))
                if known.slots is not None and known.until <= self.clock.now:
                    known.slots = None if known.slots == 8 else 2 * known.slots

    @rule(
        model=MODELS,
        n=NUMBERS,
        cooldown=st.sampled_from([0.0, 5.0, 90.0]),
        wait=st.sampled_from([None, None, None, 0.0, 10.0, 1e9]),
        newest=st.booleans(),
    )
    def fail(self, model: str, n: int, cooldown: float, wait: float | None, *, newest: bool) -> None:
        """Calls that fail: they count if they began after the last cooldown did."""
        known, now = self.known[model], self.clock.now
        for _ in range(min(n, len(known.in_flight))):
            tracked, cooldowns = known.in_flight.pop(-newest)
            self.health.failed(tracked, cooldown=cooldown, retry_after=wait)
            if cooldowns != known.cooldowns:
                continue
            known.ended.append((now, True))
            next_call = self.health.start(model)
            self.health.abandoned(next_call)
            has_cooled = next_call.cooldown > known.cooldowns
            if wait is not None or known.slots is not None:
                assert has_cooled
            else:
                assert known.should_cool_down(now) in {has_cooled, None}
            if has_cooled:
                self.cooled_down(known, cooling(self.health, model) or 0.0, cooldown, wait)

    def cooled_down(self, known: Known, left: float, cooldown: float, wait: float | None) -> None:
        """A model has just begun to cool down: for as long as the provider asks, or else by the rules."""
        before = max(known.until - self.clock.now, 0.0)  # is not shortened
        if wait is not None:
            expected = min(wait, 120.0)
            assert left == pytest.approx(max(expected, before))
            self.longest = max(self.longest, expected / 1.2)
        else:
            longer = 0.0 if known.slots is None else 2 * known.seconds
            known.seconds = min(max(cooldown, longer), max(60.0, cooldown))
            assert max(0.8 * known.seconds, before) - 1e-6 <= left <= max(1.2 * known.seconds, before) + 1e-6
            self.longest = max(self.longest, known.seconds)
        known.ended, known.slots, known.until = [], 1, self.clock.now + left
        known.cooldowns += 1

    @invariant()
    def only_those_that_are_unwell_are_listed(self) -> None:
        """And all of them: until their time is over, and then while they have as many calls as they may."""
        for model, known in self.known.items():
            left = known.until - self.clock.now
            is_full = known.slots is not None and len(known.in_flight) >= known.slots
            assert cooling(self.health, model) == (pytest.approx(left) if left > 0 else 0 if is_full else None)

    def teardown(self) -> None:
        """Once failures stop, each model is back in a bounded time, however it had failed before."""
        for model, known in self.known.items():
            for tracked, _ in known.in_flight:
                self.health.abandoned(tracked)
            for _ in range(int(1.2 * self.longest) + 5):
                if cooling(self.health, model) is None:
                    call(self.health, "+", model=model)
                self.clock.now += 1
            for _ in range(100):
                self.health.start(model)
            assert cooling(self.health, model) is None


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=25)


@given(st.lists(st.tuples(st.sampled_from(["answers", "retries", "seconds"]), st.integers(1, 150)), max_size=30))
def test_retries_have_a_budget(events: list[tuple[str, int]]) -> None:
    """In any span of time, at most 100, 4 for each answer, and one a second; one a second is always granted.

    That holds for a model that cools down. A healthy one may always be tried.
    """
    clock = Clock()
    health = Health(clock)
    used, asked = 0, -1.0  # beyond what the answers and the seconds of the worst span bring
    for event, n in events:
        if event == "answers":
            call(health, "+" * n)
            used = max(used - 4 * n, 0)
        elif event == "retries":
            for _ in range(n):
                ask_to_wait(health, 120.0, "down")
                granted = health.retry("down")
                assert health.retry("mini")
                assert granted or clock.now - asked < 1
                used, asked = used + granted, clock.now
                assert used <= 100
        else:
            clock.now += n
            used = max(used - n, 0)


def test_an_outage_of_all_models_does_not_multiply_their_calls(health: Health, clock: Clock) -> None:
    """After a hundred retries, one a second is made; when answers come again, so do retries."""
    ask_to_wait(health, 120.0, "down")
    assert sum(health.retry("down") for _ in range(1000)) == 100
    clock.now += 10
    assert sum(health.retry("down") for _ in range(1000)) == 10
    call(health, "+++")
    assert sum(health.retry("down") for _ in range(1000)) == 12


# ---------------------------------------------------------------- traffic


def never(_: str) -> bool:
    return False


def traffic(
    health: Health,
    clock: Clock,
    fails: Callable[[str], bool] = never,
    *,
    speed: float,
    n: int,
    models: Sequence[str] = FIVE,
    seconds: Callable[[str], float] = lambda _: 1.0,
) -> Counter[str]:
    """Make calls at a steady speed, of healthy models first. Returns how many each model answered."""
    answers: Counter[str] = Counter()
    begin = clock.now
    for number in range(n):
        clock.now = begin + number / speed
        unwell = health.cooling_down(models)
        order = [model for model in models if model not in unwell] + sorted(unwell, key=unwell.__getitem__)
        for attempt, model in enumerate(order):
            if attempt and not health.retry(model):
                continue
            tracked = health.start(model)
            if fails(model):
                health.failed(tracked, cooldown=5.0)
            else:
                health.succeeded(tracked, seconds(model))
                answers[model] += 1
                break
    return answers


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("speed", [2, 20, 200])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_failures_cost_neither_answers_nor_traffic(
    health: Health, clock: Clock, rate: float, speed: int, seed: int
) -> None:
    """Five models that fail at random: nearly every call is answered, and the best model keeps its share of them."""
    chance = random.Random(seed)  # noqa: S311
    answers = traffic(health, clock, lambda _: chance.random() < rate, speed=speed, n=20_000)
    assert answers.total() >= 0.999 * 20_000
    assert answers["best"] >= (1 - rate - 0.03) * answers.total()


@pytest.mark.parametrize("speed", [2, 20, 200])
def test_after_an_outage_traffic_returns(health: Health, clock: Clock, speed: int) -> None:
    """The others answer meanwhile. The best model is asked little while it is down, and is soon back."""
    asked: Counter[str] = Counter()

    def down(*models: str) -> Callable[[str], bool]:
        def fails(model: str) -> bool:
            asked[model] += 1
            return model in models

        return fails

    for models in (FIVE[:1], FIVE):
        assert traffic(health, clock, speed=speed, n=60 * speed) == {"best": 60 * speed}
        asked.clear()
        answers = traffic(health, clock, down(*models), speed=speed, n=10 * speed)
        assert answers == ({"second": 10 * speed} if len(models) == 1 else {})
        assert asked["best"] <= (12 if len(models) == 1 else 10 * speed)
        assert traffic(health, clock, speed=speed, n=25 * speed).total() == 25 * speed
        assert traffic(health, clock, speed=speed, n=5 * speed) == {"best": 5 * speed}


@pytest.mark.parametrize("speed", [2, 20, 200])
def test_a_brown_out_costs_a_model_its_traffic(health: Health, clock: Clock, speed: int) -> None:
    """It is twenty times as slow as usual; in the end that is usual, as latency is no fault."""

    def seconds(model: str) -> float:
        return 20.0 if model == "best" else 1.0

    assert traffic(health, clock, speed=speed, n=60 * speed) == {"best": 60 * speed}
    answers = traffic(health, clock, speed=speed, n=30 * speed, seconds=seconds)
    assert answers.total() == 30 * speed
    answers = traffic(health, clock, speed=speed, n=30 * speed, seconds=seconds)
    assert answers["best"] <= 0.1 * answers.total()
    traffic(health, clock, speed=1, n=300, seconds=seconds)
    assert traffic(health, clock, speed=speed, n=60 * speed, seconds=seconds) == {"best": 60 * speed}


@pytest.mark.parametrize("n_models", [2, 3, 4, 5, 10, 30])
@pytest.mark.parametrize("speed", [2, 20, 200])
def test_one_healthy_model_is_enough(health: Health, clock: Clock, n_models: int, speed: int) -> None:
    """All calls are answered, whichever it is."""
    models = [f"model {n}" for n in range(n_models)]
    for healthy in models:
        answers = traffic(health, clock, lambda model: model != healthy, speed=speed, n=10 * speed, models=models)  # noqa: B023
        assert answers == {healthy: 10 * speed}
