"""Workers that share their health hear of each other's failures, through a store."""

import multiprocessing
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unirouter_integrations import InvalidInputError
from unirouter_integrations.learning import MemoryStatistics, SQLiteStatistics, StatisticsStore
from unirouter_integrations.serving import Health
from unirouter_integrations.serving._shared_health import SharedHealth

NEVER = 1e6  # seconds; the tests themselves say when


class Worker:
    """A worker, which exchanges when a test says so, and what it heard."""

    def __init__(self, store: StatisticsStore) -> None:
        self.health = Health(lambda: 0.0)
        self.heard: dict[str, list[float]] = {}
        self.health.heard = self.hear  # type: ignore[method-assign]
        self.shared = SharedHealth(self.health, store, NEVER)

    def hear(self, model: str, calls: float, failures: float) -> None:
        before = self.heard.get(model, [0, 0])
        self.heard[model] = [before[0] + calls, before[1] + failures]
        Health.heard(self.health, model, calls, failures)

    def call(self, model: str, n: int = 1, *, fails: bool = False) -> None:
        for _ in range(n):
            tracked = self.health.start(model)
            if fails:
                self.health.failed(tracked, cooldown=0.0)
            else:
                self.health.succeeded(tracked, 1.0)


class Failing(MemoryStatistics):
    """A store that fails at planned calls, before or after it has added something."""

    def __init__(self, fails: Iterable[int] = ()) -> None:
        super().__init__()
        self.n, self.fails, self.batches = 0, set(fails), set[str]()

    def _turn(self) -> bool:
        self.n += 1
        return self.n in self.fails

    def add(self, observed: Mapping[str, Any], batch: str, /) -> None:
        if batch not in self.batches:
            super().add(observed, batch)
        self.batches.add(batch)
        if self._turn():
            raise TimeoutError

    def read(self, keys: Iterable[str], /) -> dict[str, Any]:
        if self._turn():
            raise ConnectionError
        return super().read(keys)


def in_turn(workers: Iterable[Worker], n: int) -> None:
    for worker in [*workers] * n:
        worker.shared.exchange()


def test_a_model_that_fails_elsewhere_cools_down_here() -> None:
    """For as long as at first; the calls made here count as well."""
    here, there = (Worker(store := MemoryStatistics()), Worker(store))
    for worker in (here, there):
        worker.call("mini")
        worker.call("well")
        worker.shared.exchange()
    there.call("mini", 4, fails=True)
    assert here.health.cooling_down(["mini", "well"]) == {}
    there.shared.exchange()
    here.shared.exchange()
    assert 4 <= here.health.cooling_down(["mini", "well"])["mini"] <= 6


def test_a_few_failures_elsewhere_change_nothing() -> None:
    """More than half of at least five calls have to fail, wherever they are made."""
    here, there = (Worker(store := MemoryStatistics()), Worker(store))
    here.call("mini", 5)
    here.shared.exchange()
    there.call("mini", 5, fails=True)
    there.shared.exchange()
    here.shared.exchange()
    assert here.health.cooling_down(["mini", "well"]) == {}


def test_a_model_that_recovers_here_is_left_to_its_probes() -> None:
    """What others say of it is older than what a probe will say."""
    here, there = (Worker(store := MemoryStatistics()), Worker(store))
    here.call("mini", 5, fails=True)
    here.shared.exchange()
    there.call("mini", 50, fails=True)
    there.shared.exchange()
    here.shared.exchange()
    assert here.health.cooling_down(["mini", "well"]) == {}  # its cooldown of 0 seconds is over


CALLS = st.tuples(st.integers(0, 2), st.sampled_from(["ant", "bee"]), st.booleans())


@given(st.lists(st.one_of(CALLS, st.integers(0, 2)), max_size=40), st.sets(st.integers(1, 30)))
def test_each_worker_hears_of_all_calls_of_the_others_once(events: list[Any], fails: set[int]) -> None:
    """However the store fails, and in whatever order they exchange."""
    store = Failing()
    workers = [Worker(store) for _ in range(3)]
    made = {(number, model): np.zeros(2) for number in range(3) for model in ("ant", "bee")}
    for worker in workers:  # the first exchange only learns what there is
        worker.call("ant")
        worker.call("bee")
    in_turn(workers, 2)
    for worker in workers:
        worker.heard.clear()
    store.fails = {store.n + turn for turn in fails}
    for event in events:
        if isinstance(event, int):
            workers[event].shared.exchange()
        else:
            number, model, failed = event
            workers[number].call(model, fails=failed)
            made[number, model] += [1, failed]
    store.fails = set()
    in_turn(workers, 3)  # to repeat what failed, to report the rest, and to hear it
    for number, worker in enumerate(workers):
        for model in ("ant", "bee"):
            others = sum(made[other, model] for other in range(3) if other != number)
            np.testing.assert_array_equal(worker.heard.get(model, [0, 0]), others)


def test_a_store_that_is_away_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """And changes nothing; when it is back, all is reported."""
    store = Failing(range(1, 8))
    worker = Worker(store)
    worker.call("mini")
    for _ in range(7):
        worker.shared.exchange()
    assert [record.message for record in caplog.records] == [
        "The health of models is not shared: the store raised TimeoutError."
    ]
    worker.shared.exchange()
    assert store.read(["health/mini"])["health/mini"][1, 0] == 1


@pytest.mark.parametrize("value", [np.full((5, 1), np.nan), np.zeros((5, 3)), "text"])
def test_a_store_that_is_damaged_or_emptied_is_not_heard(value: Any) -> None:
    """Nor is a number of calls that became smaller."""
    store = MemoryStatistics()
    worker = Worker(store)
    worker.call("mini", 3)
    worker.shared.exchange()
    store._sums["health/mini"] = value
    worker.shared.exchange()
    store._sums.clear()
    worker.call("mini")
    worker.shared.exchange()
    assert worker.heard == {}


def _work(path: str, over: Any, *, fails: bool) -> None:
    signal.alarm(60)  # in place of waiting for ever
    health = Health()
    health.share(SQLiteStatistics(path), every=0.01)
    health.succeeded(health.start("mini"), 1.0)
    while fails and not over.wait(0.01):
        health.failed(health.start("mini"), cooldown=60.0)
    while not health.cooling_down(["mini", "well"]):
        time.sleep(0.01)
    over.set()


def test_processes_share_their_health_in_a_file(tmp_path: Path) -> None:
    """Each in a thread of its own, which ends with it."""
    context = multiprocessing.get_context("spawn")
    over, path = context.Event(), str(tmp_path / "health.db")
    workers = [context.Process(target=_work, args=(path, over), kwargs={"fails": fails}) for fails in (True, False)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_sharing_can_be_ended_and_is_not_copied() -> None:
    """A copy of a health would report everything twice."""
    import copy

    health = Health()
    health.share(MemoryStatistics(), every=NEVER)
    shared: Any = health._shared
    assert copy.deepcopy(Health())._shared is None
    health.share(MemoryStatistics(), every=NEVER)
    assert shared._thread._stopped.is_set()
    health.share(None)
    assert health._shared is None
    with pytest.raises(InvalidInputError, match="every, a number of seconds"):
        health.share(MemoryStatistics(), every=0)
