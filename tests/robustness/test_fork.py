"""A process that forks, as gunicorn and multiprocessing do, while its threads learn, watch, embed and hold locks."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import unirouter_integrations

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

TESTS = Path(__file__).parents[1]
BEGIN = """
    import asyncio, math, os, signal, sys, threading, traceback
    from contextlib import ExitStack, contextmanager, suppress
    sys.path.insert(0, sys.argv[1])
    from conftest import TOY_PROMPTS, toy_embed, toy_router, toy_scores
    from unirouter_integrations import UniRouter, _concurrency
    from unirouter_integrations.learning import SQLiteStatistics

    folder, NEVER = sys.argv[2], 1e6

    def in_child(work):
        \"\"\"Run this in a forked process, and return what its exit code says: 0 if it works, 14 if it hangs.\"\"\"
        child = os.fork()
        if not child:
            signal.alarm(60)
            code = 1
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        return abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    @contextmanager
    def held_elsewhere(locks):
        \"\"\"Another thread holds these locks meanwhile.\"\"\"
        held, let_go = threading.Event(), threading.Event()

        def hold():
            with ExitStack() as stack:
                for lock in locks:
                    stack.enter_context(lock)
                held.set()
                let_go.wait()

        threading.Thread(target=hold).start()
        held.wait()
        yield
        let_go.set()
"""


def run(folder: Path, script: str) -> str:
    """What the script prints, after the beginning above."""
    # Python 3.12 warns of any fork beside threads, which is what this is about.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(BEGIN + script)]
    result = subprocess.run([*command, str(TESTS), str(folder)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_what_the_parent_observed_is_sent_once(tmp_path: Path) -> None:
    """By the parent; each child sends what it observed itself. What was in the middle of being sent, too."""
    script = """
    router = toy_router("hard")
    learning = router.learn(folder + "/statistics.db", half_life=math.inf, every=NEVER)

    def observe():
        assert router.observe(router.route("a sum", among=["abacus"]), 1)

    def work():
        observe()
        learning.close()

    for _ in range(50):
        observe()
    learning._store.add, add = lambda *_: 1 / 0, learning._store.add
    with suppress(ZeroDivisionError):
        learning.sync()
    learning._store.add = add
    for _ in range(50):
        observe()
    print([in_child(work) for _ in range(4)])
    learning.sync()
    learning.sync()
    print(router.profiles["abacus"].counts.sum() - 60)
    """
    assert run(tmp_path, script).splitlines() == ["[0, 0, 0, 0]", "104.0"]


def test_a_child_is_free_of_the_locks_of_its_parent(tmp_path: Path) -> None:
    """All of them are held by another thread when it forks: it can route, learn, register, embed and watch."""
    script = """
    router = UniRouter.fit(TOY_PROMPTS, embedder=toy_embed, n_clusters=3)
    router.register(router.profile("abacus", TOY_PROMPTS, toy_scores("poem"), cost=1))
    from unirouter_integrations.serving import ModelRegistry
    registry = ModelRegistry({"abacus": "openai:abacus"})
    learning = router.learn(every=NEVER, explore=True)
    memory = learning._store

    def work():
        decision = router.route("a sum of the child")
        assert router.observe(decision, 0)
        learning.sync()
        memory.read([])
        router.register(router.profile("poet", TOY_PROMPTS, toy_scores("sum"), cost=2))
        router.subscribe(print)()
        registry.register("poet", "openai:poet")
        asyncio.run(router.aroute("a date of the child"))
        learning.close()
        router.learn(every=NEVER).close()
        _concurrency.run_sync(asyncio.sleep(0))

    router.route("a sum")
    asyncio.run(router.aroute("a poem"))
    _concurrency.run_sync(asyncio.sleep(0))
    locks = [each for each in _concurrency._forkable if isinstance(each, _concurrency.ForkSafeLock)]
    assert not [each for each in locks if each.delays_forks]
    assert len(locks) > 7
    with held_elsewhere([*locks, learning.explorer.bit_generator.lock]):
        print(in_child(work))
    """
    assert run(tmp_path, script) == "0\n"


def test_a_child_has_its_own_threads(tmp_path: Path) -> None:
    """It learns what others observed, and reloads the router, without being asked; what was closed stays closed."""
    script = """
    from unirouter_integrations.watch import Watch
    toy_router("hard").save(folder + "/router")
    router, closed, other = (UniRouter.load(folder + "/router", embedder=toy_embed) for _ in range(3))
    where = folder + "/statistics.db"
    learning, watch = router.learn(where, half_life=math.inf, every=0.01), Watch(router, folder + "/router", every=0.01)
    closed.learn(where, every=0.01).close()

    def alive():
        return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("unirouter-"))

    def work():
        assert alive() == ["unirouter-learning", "unirouter-watch"], alive()
        with other.learn(where, half_life=math.inf, every=NEVER):
            other.observe(other.route("a sum", among=["abacus"]), 1)
        while router.profiles["abacus"].counts.sum() != 61:
            pass
        other.unregister("poet")
        other.save(folder + "/router")
        while "poet" in router.models:
            pass
        learning.close()
        watch.close()
        assert alive() == [], alive()

    print(in_child(work))
    """
    assert run(tmp_path, script) == "0\n"


def test_a_child_can_write_to_a_file_that_its_parent_was_writing_to(tmp_path: Path) -> None:
    """SQLite would take the locks of its parent for its own, and the file for locked, for ever."""
    script = """
    import sqlite3
    from unirouter_integrations.learning import _stores

    store, sums = SQLiteStatistics(folder + "/statistics.db"), _stores.np.ones((5, 3))
    entered, go_on, read = threading.Event(), threading.Event(), _stores._read_sums

    def slowly(*arguments):
        entered.set()
        assert go_on.wait(60)
        return read(*arguments)

    _stores._read_sums = slowly
    writer = threading.Thread(target=store.add, args=({"a": sums}, "first"))
    writer.start()
    entered.wait()
    threading.Timer(0.2, go_on.set).start()
    _stores._LOCK_TIMEOUT = 0.1
    print(in_child(lambda: store.add({"a": sums}, "second")))
    writer.join()
    store.add({"a": sums}, "third")
    """
    assert run(tmp_path, script) == "0\n"


def test_a_child_embeds_while_its_parent_waits_for_an_embedding(tmp_path: Path) -> None:
    """What the parent waits for is not embedded in the child."""
    script = """
    entered, seen = threading.Event(), []

    def embed(texts):
        seen.extend(texts)
        if "the parent" in texts:
            entered.set()
            threading.Event().wait()
        return toy_embed(texts)

    router = UniRouter.fit(TOY_PROMPTS, embedder=embed, n_clusters=3)
    router.register(router.profile("abacus", TOY_PROMPTS, toy_scores("poem"), cost=1))

    async def wait():
        await asyncio.gather(router.aroute("the parent"), router.aroute("the parent, too"))

    threading.Thread(target=asyncio.run, args=(wait(),), daemon=True).start()
    entered.wait()
    seen.clear()

    def work():
        asyncio.run(router.aroute("the child"))
        assert seen == ["the child"], seen

    print(in_child(work))
    """
    assert run(tmp_path, script) == "0\n"


def test_children_explore_differently(tmp_path: Path) -> None:
    """Workers that all tried the same model for the same prompt would learn less."""
    script = """
    router = toy_router("hard")
    router.learn(every=NEVER, explore=True, seed=0)

    def work():
        print(router._learning.explorer.random(), flush=True)

    assert [in_child(work) for _ in range(3)] == [0, 0, 0]
    """
    assert len(set(run(tmp_path, script).split())) == 3


def test_no_other_kind_of_lock_is_used() -> None:
    """One that is not renewed in a forked process would stay locked there."""
    package = Path(unirouter_integrations.__file__).parent
    found = {file.name for file in package.rglob("*.py") if "threading.Lock()" in file.read_text("utf-8")}
    assert found == {"_concurrency.py", "testing.py"}  # the fake models of tests
