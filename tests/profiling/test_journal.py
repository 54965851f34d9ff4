"""No answer is paid for twice: a prompt whose answer is in the journal is not asked again."""

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import TOY_PROMPTS
from openai_server import openai_server

from unirouter_integrations import InvalidInputError, LLMProfile, StorageError, UniRouter
from unirouter_integrations.grading import Answer, Example, ModelLike, Price, Usage
from unirouter_integrations.profiling import profile_model
from unirouter_integrations.profiling._journal import Journal, keys_of

TESTS = Path(__file__).parents[1]
EXAMPLES = [Example(prompt, "right") for prompt in TOY_PROMPTS]
PRICE = Price(1.0, 10.0)
CONCURRENCY = 4
N_LONG = 400
# A run in another process, with a minimal client. It prints the profile to the last bit.
RUN = """
import json, sys, urllib.request
sys.path.insert(0, sys.argv[1])
from conftest import toy_embed
from unirouter_integrations import UniRouter
from unirouter_integrations.grading import Answer, Price, Usage
from unirouter_integrations.profiling import profile_model

folder, url, n, concurrency = sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])

def model(prompt):
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}]}).encode()
    with urllib.request.urlopen(url + "/chat/completions", body, timeout=60) as response:
        reply = json.load(response)
    usage = reply["usage"]
    return Answer(reply["choices"][0]["message"]["content"], Usage(usage["prompt_tokens"], usage["completion_tokens"]))

examples = ({"prompt": f"{('sum', 'poem', 'date')[i % 3]} {i}", "reference": "right"} for i in range(n))
router = UniRouter.load(folder + "/router", embedder=toy_embed)
journal = folder + "/" + sys.argv[6]
profile = profile_model("m", model, examples, router, price=Price(1, 10), journal=journal, max_concurrency=concurrency)
arrays = [[number.hex() for number in array.tolist()] for array in (profile.counts, profile.losses, profile.cost)]
print(json.dumps([arrays, profile.metadata]))
"""


class Asked:
    """Counts the calls of each prompt; sums are answered right, in different ways."""

    def __init__(self) -> None:
        self.calls = Counter[str]()
        self.lock = threading.Lock()
        self.delay = 0.0

    def __call__(self, model: str, messages: list[dict[str, Any]]) -> str:
        prompt = messages[-1]["content"]
        with self.lock:
            self.calls[prompt] += 1
        time.sleep(random.uniform(0, 2 * self.delay))  # noqa: S311
        return "right" if "sum" in prompt else f"{'very ' * (len(prompt) % 5)}wrong"


class Runs:
    """Runs of the script above with one router and, by default, one journal."""

    def __init__(self, folder: Path, router: UniRouter) -> None:
        self.folder = folder
        self.router = router
        self.asked = Asked()
        self.url = ""

    def start(self, n: int, journal: str = "profiles.db") -> subprocess.Popen[str]:
        arguments = [str(TESTS), str(self.folder), self.url, str(n), str(CONCURRENCY), journal]
        return subprocess.Popen([sys.executable, "-c", RUN, *arguments], stdout=subprocess.PIPE, text=True)

    def finished(self, *started: subprocess.Popen[str]) -> list[Any]:
        printed = [process.communicate()[0] for process in started]
        assert [process.returncode for process in started] == [0] * len(started)
        return [json.loads(text) for text in printed]

    def stored(self, n: int) -> set[str]:
        """The prompts whose answers are in the journal."""
        if not (self.folder / "profiles.db").exists():
            return set()
        with closing(sqlite3.connect(self.folder / "profiles.db", timeout=60)) as connection:
            keys = {key for (key,) in connection.execute("SELECT key FROM answers")}
        return {prompt for prompt in long_prompts(n) if stored_under(prompt) in keys}


def long_prompts(n: int) -> list[str]:
    return [f"{('sum', 'poem', 'date')[i % 3]} {i}" for i in range(n)]


def stored_under(prompt: str) -> bytes:
    return keys_of("m", ["function", "model"], "exact", Example(prompt, "right")).answer


@pytest.fixture
def runs(router: UniRouter, tmp_path: Path) -> Iterator[Runs]:
    router.save(tmp_path / "router")
    found = Runs(tmp_path, router)
    with openai_server(found.asked) as found.url:
        yield found


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed_it_pays_once(runs: Runs, kills: int) -> None:
    """After SIGKILLs, a stored answer is never asked for again, few are lost, and the profile is the same."""
    rng = random.Random(0)  # noqa: S311
    runs.asked.delay = 0.005
    settled: dict[str, int] = {}
    lost = 0
    for _ in range(kills):
        before = runs.asked.calls.total()
        process = runs.start(N_LONG)
        until = before + rng.randint(1, N_LONG // (2 * kills))  # a late kill leaves enough to do, too
        while runs.asked.calls.total() < until:
            assert process.poll() is None
            time.sleep(rng.uniform(0, 0.01))
        process.kill()
        process.communicate()
        time.sleep(0.1)  # calls that were sent arrive
        stored = runs.stored(N_LONG)
        new = runs.asked.calls.total() - before
        lost_now = new - (len(stored) - len(settled))
        assert lost_now <= 2 * CONCURRENCY
        lost += lost_now
        settled.update({prompt: runs.asked.calls[prompt] for prompt in stored if prompt not in settled})
    assert 0 < len(settled) < N_LONG
    (resumed,) = runs.finished(runs.start(N_LONG))
    assert {prompt: runs.asked.calls[prompt] for prompt in settled} == settled
    assert runs.asked.calls.total() == N_LONG + lost
    assert runs.stored(N_LONG) == set(long_prompts(N_LONG))
    (again,) = runs.finished(runs.start(N_LONG))
    assert again == resumed
    assert runs.asked.calls.total() == N_LONG + lost
    (uninterrupted,) = runs.finished(runs.start(N_LONG, "other.db"))
    for facts in (resumed[1], uninterrupted[1]):
        del facts["seconds"], facts["seconds_per_cluster"]
    assert uninterrupted == resumed


def test_two_processes_share_a_journal(runs: Runs) -> None:
    """Both profile the same examples at the same time: each prompt is asked once, and both profiles are the same."""
    runs.asked.delay = 0.005
    first, second = runs.finished(runs.start(N_LONG), runs.start(N_LONG))
    assert set(runs.asked.calls.values()) == {1}
    assert len(runs.asked.calls) == N_LONG
    assert first == second


class Model:
    """Counts its calls by prompt."""

    def __init__(self, temperature: float = 0.0) -> None:
        self.temperature = temperature
        self.calls = Counter[str]()

    def __call__(self, prompt: str) -> Answer:
        self.calls[prompt] += 1
        return Answer("right" if "sum" in prompt else f"not RIGHT {self.calls[prompt]}", Usage(100, 10))


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "profiles.db"


def profiled(router: UniRouter, model: ModelLike, journal: Path | None, **settings: Any) -> LLMProfile:
    return profile_model("m", model, EXAMPLES, router, price=PRICE, journal=journal, **settings)


def test_answers_are_graded_again_without_a_call(router: UniRouter, journal: Path) -> None:
    """By another scorer, or against other references."""
    model = Model()
    assert profiled(router, model, journal).mean_error == pytest.approx(2 / 3)
    assert profiled(router, model, journal, scorer="contains").mean_error == 0
    other = [Example(prompt, "not RIGHT 1") for prompt in TOY_PROMPTS]
    assert profile_model("m", model, other, router, price=PRICE, journal=journal).mean_error == pytest.approx(1 / 3)
    assert set(model.calls.values()) == {1}


def test_another_price_is_applied_without_a_call(router: UniRouter, journal: Path) -> None:
    """The tokens are in the journal, not the money."""
    model = Model()
    first, second = (
        profile_model("m", model, EXAMPLES, router, price=price, journal=journal) for price in (PRICE, Price(2.0, 20.0))
    )
    assert second.metadata["answers_usd"] == pytest.approx(2 * first.metadata["answers_usd"])
    assert set(model.calls.values()) == {1}


def test_another_name_settings_or_prompt_is_another_answer(router: UniRouter, journal: Path) -> None:
    """As is a repetition that is numbered; a key or a timeout is not."""
    pytest.importorskip("langchain_core")
    from unirouter_integrations import testing as fakes

    one = EXAMPLES[:1]

    def calls(model: Any, name: str = "m", examples: list[Example] = one) -> int:
        profile_model(name, model, examples, router, price=PRICE, journal=journal)
        return int(model.n_calls)

    assert calls(fakes.ChatFake(model="mini")) == 1
    assert calls(fakes.ChatFake(model="mini")) == 0
    assert calls(fakes.ChatFake(model="mini", tags=["new"], verbose=True)) == 0
    assert calls(fakes.ChatFake(model="large")) == 1
    assert calls(fakes.ChatFake(model="mini"), "other") == 1
    assert calls(fakes.ChatFake(model="mini"), examples=[Example(f"{TOY_PROMPTS[0]} ", "right")]) == 1
    repeated = [Example(TOY_PROMPTS[0], "right", {"repetition": number}) for number in range(3)]
    assert calls(fakes.ChatFake(model="mini"), examples=repeated) == 2


@pytest.mark.parametrize("kept", [True, False])
def test_the_same_prompt_is_asked_once(router: UniRouter, journal: Path, kept: bool) -> None:  # noqa: FBT001
    """Even while it is being asked, and without a journal; it counts as often as it is given."""
    model = Model()
    examples = [Example("a sum", "right")] * 5 + [Example("a sum", "wrong")] * 5
    profile = profile_model("m", model, examples, router, price=PRICE, journal=journal if kept else None)
    assert model.calls == {"a sum": 1}
    assert (profile.counts.sum(), profile.losses.sum()) == (pytest.approx(10), pytest.approx(5))


def test_a_failed_call_is_not_in_the_journal(router: UniRouter, journal: Path) -> None:
    """It is made again by the next run, and only it."""
    model = Model()
    broken = True

    def sometimes(prompt: str) -> Answer:
        if broken and "poem" in prompt:
            raise ValueError
        return model(prompt)

    with pytest.raises(ValueError) as raised:
        profiled(router, sometimes, journal, max_concurrency=1)
    assert "the same call again goes on from there" in raised.value.__notes__[0]
    assert profiled(router, sometimes, journal, on_failure="skip").metadata["failures"] == 20
    broken = False
    assert profiled(router, sometimes, journal).metadata["answers"] == 60
    assert set(model.calls.values()) == {1}


def test_without_their_texts_answers_keep_their_grades(router: UniRouter, journal: Path) -> None:
    """The same scorer needs no call; another one cannot grade, which is an error."""
    model = Model()
    first = profiled(router, model, journal, store_answers=False)
    again = profiled(router, model, journal, store_answers=False)
    assert (first.losses == again.losses).all()
    assert first.metadata == again.metadata
    assert set(model.calls.values()) == {1}
    with pytest.raises(InvalidInputError, match="not their texts"):
        profiled(router, model, journal, scorer="contains")
    assert set(model.calls.values()) == {1}


def test_the_journal_holds_no_prompt_and_no_reference(router: UniRouter, journal: Path) -> None:
    """Nor, if that is switched off, an answer."""
    examples = [Example(f"sum of the SECRET-PROMPT {n}", "SECRET-REFERENCE") for n in range(9)]

    def model(prompt: str) -> Answer:
        return Answer("SECRET-ANSWER", Usage(1, 1), ({"name": "SECRET-TOOL", "args": {}},))

    for store_answers in (False, True):
        profile = profile_model("m", model, examples, router, price=PRICE, journal=journal, store_answers=store_answers)
        held = b"".join(file.read_bytes() for file in journal.parent.glob("profiles.db*"))
        assert b"SECRET-PROMPT" not in held
        assert b"SECRET-REFERENCE" not in held
        assert (b"SECRET-ANSWER" in held, b"SECRET-TOOL" in held) == (store_answers, store_answers)
        assert "SECRET" not in repr(profile) + json.dumps(dict(profile.metadata))
        journal.unlink()


def test_tool_calls_and_missing_tokens_survive_the_journal(router: UniRouter, journal: Path) -> None:
    """An answer from the journal has all that is graded."""
    call = {"name": "add", "args": {"a": 1, "b": [2, "ü"]}}
    examples = [Example("a sum", [call])]
    calls = 0

    def model(prompt: str) -> Answer:
        nonlocal calls
        calls += 1
        return Answer("", None, (call,))

    for _ in range(2):
        profile = profile_model("m", model, examples, router, price=Price(0, 0), journal=journal, scorer="tool_calls")
        assert profile.mean_error == 0
    assert calls == 1


def test_what_is_no_journal_is_refused_and_left_as_it_is(router: UniRouter, journal: Path) -> None:
    """Another file, another database, a journal of a newer version, a folder that is not there."""
    model = Model()
    journal.write_text("no database, but a text that is long enough to be taken for one" * 20)
    before = journal.read_bytes()
    with pytest.raises(StorageError, match="cannot be opened"):
        profiled(router, model, journal)
    assert journal.read_bytes() == before
    other = journal.with_name("other.db")
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE mine (x)")
    before = other.read_bytes()
    with pytest.raises(StorageError, match="not a journal"):
        profiled(router, model, other)
    assert other.read_bytes() == before
    newer = journal.with_name("newer.db")
    profiled(router, Model(), newer)
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match="has version 99"):
        profiled(router, model, newer)
    with pytest.raises(StorageError, match="cannot be opened"):
        profiled(router, model, journal.parent / "missing" / "profiles.db")
    assert not model.calls


async def test_a_claim_lasts_as_long_as_its_process(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However late it is by the clock: it may be paused, its event loop may be busy, the clocks may differ."""
    async with Journal(journal) as first, Journal(journal) as second:
        assert await first.claim(b"key")
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 3600)
        assert not await second.claim(b"key")
        assert not await first.claim(b"key")
        await first.release(b"key")
        assert await second.claim(b"key")


# A process that claims an answer, and waits until it is killed.
CLAIM = """
import asyncio, sys
from unirouter_integrations.profiling._journal import Journal

async def claim():
    async with Journal(sys.argv[1]) as journal:
        print(await journal.claim(b"key"), flush=True)
        await asyncio.Event().wait()

asyncio.run(claim())
"""


def claiming(journal: Path) -> subprocess.Popen[str]:
    """Such a process, once it has claimed the answer."""
    process = subprocess.Popen([sys.executable, "-c", CLAIM, str(journal)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
async def test_a_paused_process_keeps_its_claims_and_a_killed_one_does_not(journal: Path) -> None:
    """The system frees the lock at once; the file of the lock is removed."""
    process = claiming(journal)
    async with Journal(journal) as other:
        process.send_signal(signal.SIGSTOP)
        assert not await other.claim(b"key")
        process.kill()
        process.communicate()
        assert await other.claim(b"key")
    assert not list(journal.parent.glob("profiles.db-*"))


async def test_claims_of_the_dead_that_nobody_asks_for_are_removed(journal: Path) -> None:
    """By the next run that ends, with the files of their locks."""
    process = claiming(journal)
    async with Journal(journal):
        process.kill()
        process.communicate()
    assert not list(journal.parent.glob("profiles.db-*"))
    with closing(sqlite3.connect(journal)) as connection:
        assert connection.execute("SELECT count(*) FROM claims").fetchone() == (0,)


async def test_owners_that_no_journal_has_named_are_dead(journal: Path, tmp_path: Path) -> None:
    """Whatever a damaged journal names; no other file is touched."""
    (tmp_path / "profiles.db-x").mkdir()
    victim = tmp_path / "profiles.db-x" / "victim"
    victim.write_text("mine")
    async with Journal(journal) as opened:
        for number, owner in enumerate(["x/victim", "../victim", "", "\0", "a" * 5000, 3.5]):
            with closing(sqlite3.connect(journal)) as connection, connection:
                connection.execute("INSERT INTO claims VALUES (?, ?)", (bytes([number]), owner))
            assert await opened.claim(bytes([number]))
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("failing", ["_clean_up", "_commit"])
async def test_an_error_at_the_end_closes_all_and_hides_no_other_error(
    journal: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a full disk: what the run raised is what is raised, and the claims end all the same."""

    def full(*_: object) -> None:
        raise StorageError

    opened = Journal(journal)

    async def run() -> None:
        async with opened:
            assert await opened.claim(b"key")
            monkeypatch.setattr(opened, failing, full)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run()
    assert [*journal.parent.glob("profiles.db*")] == [journal]  # SQLite removes its files with the last connection
    async with Journal(journal) as other:
        assert await other.claim(b"key")


async def test_a_journal_that_cannot_be_opened_leaves_nothing_open(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is cancelled while it is being opened."""
    entered, go_on = threading.Event(), threading.Event()
    opened, open_it = Journal(journal), Journal._open

    def slowly(self: Journal) -> None:
        entered.set()
        assert go_on.wait(60)
        open_it(self)

    monkeypatch.setattr(Journal, "_open", slowly)
    opening = asyncio.create_task(opened.__aenter__())
    await asyncio.to_thread(entered.wait)
    opening.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert [*journal.parent.glob("profiles.db*")] == [journal]  # SQLite removes its files with the last connection


async def test_if_every_task_is_cancelled_what_was_given_is_stored(journal: Path) -> None:
    """As servers do when they end: nothing waits for a task that is no more."""
    keys = keys_of("m", None, "exact", EXAMPLES[0])

    async def work() -> None:
        async with Journal(journal) as opened:
            assert await opened.claim(keys.answer)
            await opened.store(keys, Answer("right", Usage(1, 1)))

    task = asyncio.create_task(work())
    while not await asyncio.to_thread(journal.exists):  # noqa: ASYNC110  # a file has no event
        await asyncio.sleep(0)
    for each in asyncio.all_tasks() - {asyncio.current_task()}:
        each.cancel()
    await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 60)
    async with Journal(journal) as other:
        assert await other.find([keys]) or await other.claim(keys.answer)


def test_after_ctrl_c_the_answers_are_stored_and_nothing_is_claimed(router: UniRouter, journal: Path) -> None:
    """The next run asks for the others."""
    model = Model()

    def interrupted(prompt: str) -> Answer:
        if TOY_PROMPTS.index(prompt) >= 30:  # again, if Python dropped it: a finalizer that was running ignores it
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.5)
        return model(prompt)

    with pytest.raises(KeyboardInterrupt):
        profiled(router, interrupted, journal, max_concurrency=1)
    with closing(sqlite3.connect(journal)) as connection:
        stored = connection.execute("SELECT count(*) FROM answers").fetchone()[0]
        assert connection.execute("SELECT count(*) FROM claims").fetchone() == (0,)
    assert 30 <= stored < 60
    assert not [file for file in journal.parent.glob("profiles.db-*") if file.suffix not in {".db-wal", ".db-shm"}]
    assert profiled(router, model, journal).metadata["answers"] == 60


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_nobody_else_can_read_a_journal(router: UniRouter, journal: Path) -> None:
    """It holds answers. So it is from the first byte on, with SQLite's files beside it."""
    profiled(router, Model(), journal)
    assert journal.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(journal)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM grades")
        assert {file.stat().st_mode & 0o777 for file in journal.parent.glob("profiles.db*")} == {0o600}
