"""A damaged journal is read as it was written, or refused with one of our errors."""

import contextlib
import sqlite3
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unirouter_integrations import LLMProfile, StorageError, UniRouter, UniRouterError
from unirouter_integrations.grading import Example, ModelLike, Price
from unirouter_integrations.profiling import profile_model

PROMPTS = ["add two numbers", "add three numbers", "write a poem", "write a song"]
EXAMPLES = [Example(prompt=prompt, reference="yes") for prompt in PROMPTS]
ANSWER = "yes, marked7answer"
ASKED: list[str] = []


@cache
def router() -> UniRouter:
    """A router."""
    return UniRouter.fit(PROMPTS, n_clusters=2)


@cache
def folder() -> TemporaryDirectory[str]:
    """The folder of the journals."""
    return TemporaryDirectory(ignore_cleanup_errors=True)


async def answer(prompt: str) -> str:
    """A model."""
    ASKED.append(prompt)
    return ANSWER


async def answer_with_a_surrogate(prompt: str) -> str:
    """A model whose answer cannot be written in UTF-8."""
    return "yes \ud800"


def profiled(journal: Path, model: ModelLike = answer) -> LLMProfile:
    """Profile the model, with the answers that are in the journal."""
    return profile_model(
        "new", model, EXAMPLES, router(), scorer="contains", price=Price(0, 0), journal=journal, progress=False
    )


@cache
def seed_journal() -> bytes:
    """The bytes of a whole journal."""
    file = Path(folder().name) / "whole.db"
    profiled(file)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")
    return file.read_bytes()


def read_journal(data: bytes) -> None:
    """Profile a model with this journal; if that works, the profile is a whole one."""
    file = Path(folder().name) / "profiles.db"
    for name in (file, *file.parent.glob("profiles.db-*")):
        name.unlink(missing_ok=True)
    file.write_bytes(data)
    try:
        profile = profiled(file)
    except UniRouterError as error:
        shown = str(error)
    else:
        shown = repr(profile)
        assert profile.counts.sum() == pytest.approx(len(EXAMPLES))
    assert ANSWER not in shown


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_damaged_journal_is_read_or_refused(edits: list[tuple[int, int]]) -> None:
    """Any of the bytes in use may have changed; no error quotes an answer."""
    data = bytearray(seed_journal())
    used = [place for place, byte in enumerate(data) if byte]
    for place, byte in edits:
        data[used[place % len(used)]] = byte
    read_journal(bytes(data))


@given(st.binary(max_size=200), st.integers(0, 10**6))
def test_another_file_or_half_a_journal_is_read_or_refused(noise: bytes, length: int) -> None:
    """Cut off anywhere, and with anything at its end; an empty file is a new journal."""
    whole = seed_journal()
    read_journal(whole[: length % len(whole)] + noise)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE answers SET text = x'ff'",
        "UPDATE answers SET text = CAST(x'ff' AS TEXT)",
        "UPDATE answers SET tool_calls = '{'",
        "UPDATE answers SET tool_calls = '3'",
        "UPDATE answers SET input_tokens = 'many'",
        "UPDATE answers SET seconds = 'long'",
        "ALTER TABLE answers ADD COLUMN more TEXT",
        "DROP TABLE claims",
        "CREATE TRIGGER t AFTER INSERT ON claims BEGIN DELETE FROM answers; END",
        "DROP TABLE answers; CREATE VIEW answers AS SELECT zeroblob(1000000000) AS key",
    ],
)
def test_a_journal_that_was_changed_by_others_is_refused(damage: str, tmp_path: Path) -> None:
    """Values of another kind, and tables, triggers and views that no journal has."""
    file = tmp_path / "profiles.db"
    file.write_bytes(seed_journal())
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.executescript(damage)
    with pytest.raises(StorageError):
        profiled(file)


def test_an_answer_that_is_no_text_is_stored(tmp_path: Path) -> None:
    """It was paid for."""
    first = profiled(tmp_path / "profiles.db", answer_with_a_surrogate)
    assert profiled(tmp_path / "profiles.db", answer_with_a_surrogate).losses.tolist() == first.losses.tolist()


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_journal_is_read(version: int, tmp_path: Path) -> None:
    """Its answers are not paid for again."""
    file = tmp_path / "older.db"
    file.write_bytes(seed_journal())
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE owners (owner TEXT PRIMARY KEY, seen REAL NOT NULL) WITHOUT ROWID")
        if version == 1:
            connection.execute("ALTER TABLE answers DROP COLUMN logprob")
        connection.execute(f"PRAGMA user_version = {version}")
        connection.commit()
    ASKED.clear()
    assert profiled(file).mean_error == pytest.approx(0)
    assert ASKED == []
