"""Many workers: they learn together, in threads and in processes, and a store that is away stops no call."""

import logging
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TOY_PROMPTS, toy_embed, toy_router

from unirouter_integrations import StorageError, UniRouter
from unirouter_integrations.learning import MemoryStatistics, RedisStatistics, SQLiteStatistics, StatisticsStore
from unirouter_integrations.learning._stores import Sums, combine

NEVER = 1e6  # seconds: in these tests only sync() learns


class RedisServer:
    """A `redis-server` of its own port and folder, that can be stopped and started again with what it held."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            "redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder),
            "--appendonly", "yes", "--appendfsync", "always", "--save", "",
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 30
        while time.monotonic() < until and self._process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)) as tried:
                tried.sendall(b"PING\r\n")
                if tried.recv(5) == b"+PONG":  # it accepts connections before it has loaded what it held
                    return
            time.sleep(0.02)
        pytest.fail("redis-server did not start")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def freeze(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    pytest.importorskip("redis")
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server on this machine")
    server = RedisServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StatisticsStore]:
    if request.param == "memory":
        yield MemoryStatistics()
    elif request.param == "sqlite":
        yield SQLiteStatistics(tmp_path / "statistics.db")
    else:
        redis = RedisStatistics(request.getfixturevalue("redis_server").url)
        yield redis
        redis.close()


def sums(seed: int, clusters: int = 4) -> Sums:
    """What some observations add up to, at random, in an order and with a half-life that are the same for all seeds."""
    rng, found = np.random.default_rng(seed), np.zeros((5, clusters))
    for phi in rng.dirichlet(np.ones(clusters), 5 * seed):
        found = combine(found, np.array([np.full(clusters, 0.01), phi, phi * rng.random(), phi, phi * rng.random()]))
    return found


def learnt(router: UniRouter) -> list[Any]:
    known = router.profiles.values()
    return [np.vstack([each.counts, each.losses, np.broadcast_to(each.cost, 3)]).tolist() for each in known]


def test_a_store_adds_to_the_last_bit_what_the_rule_says(store: StatisticsStore) -> None:
    """Each store holds the same sums, and none for keys that nobody has named."""
    store.add({"a": sums(1), "b": sums(2)}, "first")
    store.add({"a": sums(3)}, "second")
    found = store.read(["a", "b", "c"])
    assert found.keys() == {"a", "b"}
    np.testing.assert_array_equal(found["a"], combine(sums(1), sums(3)))
    np.testing.assert_array_equal(found["b"], sums(2))
    assert store.read([]) == {}


def test_workers_converge_to_the_same_profiles(store: StatisticsStore) -> None:
    """When all have sent what they observed, all know the same, to the last bit, and all of it is counted."""
    workers = [toy_router("hard") for _ in range(3)]
    learnings = [router.learn(store, half_life=math.inf, every=NEVER) for router in workers]
    for number, router in enumerate(workers):
        for _ in range(10 * (number + 1)):
            router.observe(router.route("a sum", among=["abacus"]), 0, 3)
    for _ in range(2):
        for learning in learnings:
            learning.sync()
    assert learnt(workers[0]) == learnt(workers[1]) == learnt(workers[2])
    assert workers[0].profiles["abacus"].counts.sum() == 60 + 60
    assert {router.route("a sum").model for router in workers} == {"oracle"}
    for learning in learnings:
        learning.close()


def test_what_lasts_is_there_after_a_restart(tmp_path: Path) -> None:
    """A worker that starts again from the same saved router goes on where it was; a path is an SQLite file."""
    toy_router("hard").save(tmp_path / "router")
    known = []
    for _ in range(2):
        router = UniRouter.load(tmp_path / "router", embedder=toy_embed)
        with router.learn(tmp_path / "statistics.db", every=NEVER) as learning:
            learning.sync()
            router.observe(router.route("a sum", among=["abacus"]), 0)
            learning.sync()
        known.append(router.profiles["abacus"].losses.sum())
    assert known[0] < known[1]


# Workers load a router over vectors: fitting one takes longer than all that they observe.
WORKER = """
import sys
from unirouter_integrations import UniRouter
from unirouter_integrations.learning import RedisStatistics

folder, where = sys.argv[1:]
store = RedisStatistics(where) if "://" in where else where
router = UniRouter.load(folder)
learning = router.learn(store, half_life=float("inf"), every={every})
for number in range(500):
    router.observe(router.route(vector={a_sum}, among=["abacus"]), number % 2)
{end}
if "://" in where:
    store.close()
"""
A_SUM = toy_embed(["a sum"])[0].tolist()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a router without an embedder, whose only model has 60 grades, 40 of them wrong."""
    folder = tmp_path_factory.mktemp("router")
    vectors = toy_embed(TOY_PROMPTS)
    router = UniRouter.fit(TOY_PROMPTS, embedder=None, vectors=vectors, n_clusters=3, assignment="hard")
    scores = [float("sum" in prompt) for prompt in TOY_PROMPTS]
    router.register(router.profile("abacus", scores=scores, vectors=vectors, cost=1))
    router.save(folder)
    return folder


def worker(folder: Path, where: str, *, every: float, end: str) -> subprocess.Popen[str]:
    """A process that observes 500 answers of the abacus, half of them right."""
    script = WORKER.format(every=every, a_sum=A_SUM, end=end)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, str(folder), where], stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_processes_add_up_without_losing_any(
    kind: str, saved: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Four at once into one store: increments are atomic."""
    where = str(tmp_path / "statistics.db") if kind == "sqlite" else request.getfixturevalue("redis_server").url
    workers = [worker(saved, where, every=0.01, end="learning.close()") for _ in range(4)]
    assert [each.communicate()[1] for each in workers] == [""] * 4
    store: Any = RedisStatistics(where) if kind == "redis" else where
    router = UniRouter.load(saved)
    with router.learn(store, half_life=math.inf, every=NEVER) as learning:
        learning.sync()
    assert router.profiles["abacus"].counts.sum() == 60 + 2000
    assert router.profiles["abacus"].losses.sum() == 40 + 1000
    if kind == "redis":
        store.close()


def test_what_is_left_is_sent_when_the_process_ends(saved: Path, tmp_path: Path) -> None:
    """Without close, if it ends by itself."""
    path = str(tmp_path / "statistics.db")
    process = worker(saved, path, every=NEVER, end="")
    assert (process.communicate()[1], process.returncode) == ("", 0)
    router = UniRouter.load(saved)
    with router.learn(path, half_life=math.inf, every=NEVER) as learning:
        learning.sync()
    assert router.profiles["abacus"].counts.sum() == 60 + 500


class Flaky(MemoryStatistics):
    """Raises while it is away."""

    away = True

    def add(self, observed: Any, batch: str, /) -> None:
        if self.away:
            raise TimeoutError
        super().add(observed, batch)

    def __repr__(self) -> str:
        return "Flaky()"


def test_a_store_that_is_away_delays_learning_and_loses_nothing() -> None:
    """Calls go on, observations add up in memory, and what they take there does not grow with them."""
    store, router = Flaky(), toy_router("hard")
    with router.learn(store, half_life=math.inf, every=NEVER) as learning:
        for _ in range(50):
            for _ in range(20):
                assert router.observe(router.route("a sum", among=["abacus"]), 0)
            with pytest.raises(TimeoutError):
                learning.sync()
        assert router.profiles["abacus"].counts.sum() == 60
        assert len(learning._observed) == 1
        assert learning._unsent is not None
        store.away = False
        learning.sync()
        learning.sync()
        assert router.profiles["abacus"].counts.sum() == 60 + 1000


def test_an_outage_is_said_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    """In the log of the package, whatever was tried in between."""
    store, router = Flaky(), toy_router("hard")
    caplog.set_level(logging.INFO, "unirouter_integrations")
    learning = router.learn(store, every=NEVER)
    router.observe(router.route("a sum"), 0)
    for _ in range(3):
        learning._try_to_sync()
    store.away = False
    learning.close()
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [
        ("WARNING", "Learning waits for Flaky(), which raised TimeoutError."),
        ("INFO", "Learning goes on: Flaky() can be reached again."),
    ]


def test_a_redis_that_stops_and_comes_back_gets_everything_once(redis_server: RedisServer) -> None:
    """Also when it took a batch and did not say so in time: that is counted once."""
    redis = pytest.importorskip("redis")
    store, router = RedisStatistics(redis_server.url, socket_timeout=0.3), toy_router("hard")

    def observe() -> None:
        assert router.observe(router.route("a sum", among=["abacus"]), 0)

    with router.learn(store, half_life=math.inf, every=NEVER) as learning:
        observe()
        learning.sync()
        redis_server.stop()
        observe()
        with pytest.raises(redis.exceptions.ConnectionError):
            learning.sync()
        observe()
        redis_server.start()
        learning.sync()
        learning.sync()
        assert router.profiles["abacus"].counts.sum() == 63
        observe()
        redis_server.freeze()
        with pytest.raises(redis.exceptions.TimeoutError):
            learning.sync()
        observe()
        redis_server.thaw()
        time.sleep(0.1)
        learning.sync()
        learning.sync()
        assert router.profiles["abacus"].counts.sum() == 65
    store.close()


def test_a_batch_that_redis_has_added_is_not_added_again(redis_server: RedisServer) -> None:
    """Which is what makes trying again safe."""
    store = RedisStatistics(redis_server.url)
    store.add({"a": sums(1)}, "one")
    store.add({"a": sums(1)}, "one")
    np.testing.assert_array_equal(store.read(["a"])["a"], sums(1))
    store.close()


def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    """Another database, and one of a newer version, are refused with the remedy."""
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(StorageError, match="not one of statistics; name another file"):
        SQLiteStatistics(other).read(["a"])
    mine = tmp_path / "mine.db"
    SQLiteStatistics(mine).add({"a": sums(1)}, "one")
    with closing(sqlite3.connect(mine)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match="Upgrade unirouter-integrations"):
        SQLiteStatistics(mine).add({"a": sums(1)}, "two")
    assert repr(SQLiteStatistics("a.db")) == f"SQLiteStatistics({str(Path('a.db').absolute())!r})"


def test_no_prompt_is_stored(tmp_path: Path) -> None:
    """Only names of models and sums."""
    router = toy_router("hard")
    with router.learn(tmp_path / "statistics.db", every=NEVER):
        router.observe(router.route("a sum that nobody should read"), 0)
    assert b"nobody" not in (tmp_path / "statistics.db").read_bytes()
    assert b"abacus" in (tmp_path / "statistics.db").read_bytes()


def test_a_relative_path_stays_where_it_was(router: UniRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the process changes its working folder before it sends what was observed."""
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    monkeypatch.chdir(tmp_path / "before")
    with router.learn("statistics.db", every=NEVER):
        router.observe(router.route("sum"), 1.0)
        monkeypatch.chdir(tmp_path / "after")
    assert (tmp_path / "before" / "statistics.db").exists()
    assert not (tmp_path / "after" / "statistics.db").exists()


def write(store: Any, key: str, value: bytes) -> None:
    """Put a value into a store as somebody else would, past its methods."""
    if isinstance(store, RedisStatistics):
        store._client.set(f"{{unirouter}}:{key}", value)
    elif isinstance(store, SQLiteStatistics):
        with closing(sqlite3.connect(store._path)) as connection, connection:
            connection.execute("INSERT OR REPLACE INTO sums VALUES (?, ?)", (key, value))
    else:
        whole = len(value) % 40 == 0
        store._sums[key] = np.frombuffer(value).reshape(5, -1) if whole else value


def sums_of(counts: float, losses: float, priced: float = 0, spent: float = 0, faded: float = 0) -> bytes:
    """The bytes of such sums over three clusters."""
    return np.repeat([[faded], [counts], [losses], [priced], [spent]], 3, axis=1).tobytes()


WRONG = {
    "too short": sums_of(1, 1)[:-8],
    "of other clusters": sums(1).tobytes(),
    "no numbers": b"what is this",
    "empty": b"",
    "not a number": sums_of(1, math.nan),
    "infinite": sums_of(math.inf, 0),
    "negative": sums_of(-1, 0),
    "more wrong than asked": sums_of(1, 2),
    "more paid for than asked": sums_of(1, 0, 2, 0),
    "absurd costs": sums_of(1, 0, 1, 1e300),
    "more faded than all": sums_of(1, 0, faded=1.5),
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_a_wrong_value_harms_only_its_own_key(
    store: StatisticsStore, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """All other models are learned as before, the key is named in one warning, and the model itself begins anew."""
    router, worker = toy_router("hard"), toy_router("hard")
    with (
        router.learn(store, half_life=math.inf, every=NEVER) as learning,
        worker.learn(store, half_life=math.inf, every=NEVER) as other,
    ):
        key = learning._origin(router.profiles["abacus"]).key
        store.add({"another": sums(1, 3)}, "first")  # there is a table in the file
        write(store, key, value)
        for each in (other, learning, other, learning):
            each.sync()
        assert router.profiles["abacus"].counts.sum() == 60
        assert [key in record.getMessage() for record in caplog.records] == [True, True]  # once for each worker
        for name in ("abacus", "poet"):
            assert router.observe(router.route("a sum", among=[name]), 1)
        learning.sync()
        other.sync()
    for one in (router, worker):
        assert [one.profiles[name].counts.sum() for name in ("abacus", "poet")] == [61, 61]
    assert len(caplog.records) == 2


def test_a_value_of_another_type_harms_only_its_own_key(redis_server: RedisServer) -> None:
    """Redis has lists and hashes as well."""
    store, router = RedisStatistics(redis_server.url), toy_router("hard")
    with router.learn(store, half_life=math.inf, every=NEVER) as learning:
        store._client.lpush(f"{{unirouter}}:{learning._origin(router.profiles['abacus']).key}", "a list")
        for name in ("abacus", "poet"):
            router.observe(router.route("a sum", among=[name]), 1)
        learning.sync()
    assert [router.profiles[name].counts.sum() for name in ("abacus", "poet")] == [61, 61]
    store.close()


def test_the_highest_costs_do_not_end_learning(store: StatisticsStore) -> None:
    """Whatever observe takes can be added up."""
    router = toy_router("hard")
    with router.learn(store, every=NEVER) as learning:
        for _ in range(1000):
            assert router.observe(router.route("a sum", among=["abacus"]), 1, 1e9)
        learning.sync()
        assert router.observe(router.route("a poem", among=["poet"]), 0)
        learning.sync()
    assert np.max(router.profiles["abacus"].cost) < 1.01e9
    assert router.profiles["poet"].losses.sum() > 40 * 0.99


def test_no_value_counts_more_than_its_half_life_allows(store: StatisticsStore) -> None:
    """Somebody has written 10^12 right answers. A few half-lives of wrong ones, and it is known to be wrong."""
    router = toy_router("hard")
    with router.learn(store, half_life=10, every=NEVER) as learning:
        store.add({"another": sums(1, 3)}, "first")
        write(store, learning._origin(router.profiles["abacus"]).key, sums_of(1e12, 0, faded=1))
        learning.sync()
        assert router.profiles["abacus"].counts.sum() == pytest.approx(10 / math.log(2), rel=0.05)
        for _ in range(50):
            assert router.observe(router.route("a poem", among=["abacus"]), 0)
        learning.sync()
    assert router.profiles["abacus"].losses.sum() > 0.95 * 10 / math.log(2)
    assert router.profiles["abacus"].counts.sum() == pytest.approx(10 / math.log(2), rel=0.05)


def test_each_worker_counts_a_decision(store: StatisticsStore) -> None:
    """One that a client sends to all of them is counted once by each: none knows what the others have counted."""
    workers = [toy_router("hard") for _ in range(3)]
    learnings = [router.learn(store, half_life=math.inf, every=NEVER, key=b"secret") for router in workers]
    noted = workers[0].sign(workers[0].route("a sum", among=["abacus"]))
    assert [router.observe(noted, 1) for router in workers for _ in range(2)] == [True, False] * 3
    for learning in (*learnings, learnings[0]):
        learning.sync()
    assert workers[0].profiles["abacus"].counts.sum() == 60 + 3
    for learning in learnings:
        learning.close()


def test_a_worker_keeps_what_a_store_loses(store: StatisticsStore, caplog: pytest.LogCaptureFixture) -> None:
    """Such as by FLUSHALL: what is observed after that is added to what the worker knew, twice over if need be."""
    router = toy_router("hard")
    with router.learn(store, half_life=math.inf, every=NEVER) as learning:
        for lost in range(3):
            for _ in range(10):
                assert router.observe(router.route("a sum", among=["abacus"]), 0)
            learning.sync()
            assert router.profiles["abacus"].counts.sum() == 70 + 10 * lost
            if isinstance(store, RedisStatistics):
                store._client.flushall()
            elif isinstance(store, SQLiteStatistics):
                Path(store._path).unlink()
            else:
                store._sums.clear()  # type: ignore[attr-defined]
            if lost == 1:
                learning.sync()  # seen empty; the other times it has new sums when it is read
                assert router.profiles["abacus"].counts.sum() == 80
    assert router.profiles["abacus"].counts.sum() == 90
    assert router.profiles["abacus"].losses.sum() == 70
    assert len(caplog.records) == 1
