"""The journal: every answer that was paid for, so that none is paid for twice.

An SQLite database. Of each answer it stores its text and tool calls (unless that is switched off), its tokens, and how
long it took, under a hash of the model's name, its settings and the prompt. Of each grade that a judge gave it stores
the value and what the judge cost, under a hash of that of the answer, the scorer's name and the reference. Where the
text is not stored, every grade is. No prompt, no reference and no key of a provider is stored.

Several processes on one machine may share it: before a call, a process claims the prompt, and a claim ends with the
process that holds it. What is stored is on the disk when the call counts as done.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self, TypeVar
from uuid import uuid4

from unirouter_integrations.errors import StorageError
from unirouter_integrations.profiling.adapters import plain
from unirouter_integrations.profiling.records import Answer, Example, Usage

T = TypeVar("T")

_APPLICATION = 0x756E6972  # "unir", in the header of the file
_VERSION = 2
_PATIENCE = 60.0
_BEAT = 1.0
_DEAD_AFTER = 5.0
_POLL = 0.1
_SCHEMA = (
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_VERSION}",
    """CREATE TABLE answers (key BLOB PRIMARY KEY, text TEXT, tool_calls TEXT, input_tokens INTEGER,
    output_tokens INTEGER, cached_tokens INTEGER, seconds REAL NOT NULL, logprob REAL) WITHOUT ROWID""",
    "CREATE TABLE grades (key BLOB PRIMARY KEY, value REAL, cost REAL NOT NULL) WITHOUT ROWID",
    "CREATE TABLE claims (key BLOB PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE owners (owner TEXT PRIMARY KEY, seen REAL NOT NULL) WITHOUT ROWID",
)
_UPGRADES = {1: ("ALTER TABLE answers ADD COLUMN logprob REAL", "PRAGMA user_version = 2")}
_ANSWER = (str | None, str | None, int | None, int | None, int | None, float, float | None)
_GRADE = (float | int | None, float | int)


class Grade(NamedTuple):
    """What an answer was worth, from 0 to 1 or None if that could not be said, and what saying so has cost in USD."""

    value: float | None
    cost: float


class Keys(NamedTuple):
    """Under what an answer and its grade are stored."""

    answer: bytes
    grade: bytes


class Entry(NamedTuple):
    """An answer that is in the journal.

    Attributes:
        answer: With an empty text if that is not stored.
        has_text: Whether it is.
        grade: By the scorer that was asked for; None if there is none.
    """

    answer: Answer
    has_text: bool
    grade: Grade | None


def keys_of(name: str, settings: Any, scorer: str, example: Example) -> Keys:
    """Under what the answer of a model to an example, and its grade by a scorer, are stored.

    The same prompt has the same answer: given twice it is asked once. To ask it again, number the repetitions:
    `Example(prompt, reference, {"repetition": 1})`.
    """
    answer = _hash([name, settings, example.prompt, example.metadata.get("repetition", 0)])
    reference = [plain(example.reference), plain(example.metadata)]
    return Keys(answer, _hash([answer.hex(), scorer, *reference]))


def _hash(parts: Any) -> bytes:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).digest()


class Journal:
    """A journal that is open. All work is done in one thread, what comes at the same time in one transaction.

    Args:
        path: The file, made if there is none; None for a journal that is gone when it is closed.
        store_answers: Whether to store what the model said. Without it an answer cannot be graded by another scorer.
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, store_answers: bool = True) -> None:
        self.path = path
        self.store_answers = store_answers
        self._owner = uuid4().hex
        self._thread = ThreadPoolExecutor(1, "unirouter-journal")
        self._waiting: list[tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        try:
            self._connection = await loop.run_in_executor(self._thread, open_journal, self.path)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        await self._do(self._beat)
        self._heart = loop.create_task(self._keep_beating())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._heart.cancel()
        await self._do(self._leave)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown(wait=False)

    async def find(self, keys: Sequence[Keys]) -> dict[Keys, Entry]:
        """Those of some answers that are stored."""
        return await self._do(lambda connection: read(connection, keys))

    async def claim(self, key: bytes) -> bool:
        """Whether the caller should ask for this answer: nobody has it yet, and nobody else is asking."""

        def work(connection: sqlite3.Connection) -> bool:
            if connection.execute("SELECT 1 FROM answers WHERE key = ?", (key,)).fetchone():
                return False
            dead = "SELECT owner FROM owners WHERE seen < ?"
            connection.execute(
                f"DELETE FROM claims WHERE key = ? AND owner IN ({dead})",  # noqa: S608
                (key, time.time() - _DEAD_AFTER),
            )
            claimed = connection.execute("INSERT OR IGNORE INTO claims VALUES (?, ?)", (key, self._owner))
            return claimed.rowcount == 1

        return await self._do(work)

    async def release(self, key: bytes) -> None:
        """Give up a claim: there will be no answer."""
        await self._do(lambda connection: self._release(connection, key))

    async def store(self, keys: Keys, answer: Answer | None = None, grade: Grade | None = None) -> None:
        """Store an answer that was claimed, or its grade, or both at once."""

        def work(connection: sqlite3.Connection) -> None:
            if answer is not None:
                text = answer.text.encode("utf-8", "replace").decode()  # SQLite takes no lone surrogates
                said = (text, json.dumps([plain(call) for call in answer.tool_calls]))
                connection.execute(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        keys.answer,
                        *(said if self.store_answers else (None, None)),
                        *(answer.usage or (None, None, None)),
                        answer.seconds,
                        answer.logprob,
                    ),
                )
                self._release(connection, keys.answer)
            if grade is not None:
                connection.execute("INSERT OR REPLACE INTO grades VALUES (?, ?, ?)", (keys.grade, *grade))

        await self._do(work)

    def _release(self, connection: sqlite3.Connection, key: bytes) -> None:
        connection.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self._owner))

    def _beat(self, connection: sqlite3.Connection) -> None:
        connection.execute("INSERT OR REPLACE INTO owners VALUES (?, ?)", (self._owner, time.time()))

    def _leave(self, connection: sqlite3.Connection) -> None:
        """Take back what is this run's, and what the dead have left."""
        connection.execute("DELETE FROM owners WHERE owner = ?", (self._owner,))
        connection.execute("DELETE FROM owners WHERE seen < ?", (time.time() - _DEAD_AFTER,))
        connection.execute("DELETE FROM claims WHERE owner NOT IN (SELECT owner FROM owners)")

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(_BEAT)
            await self._do(self._beat)

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The result of some work on the database, once it is committed."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._waiting.append((work, done))
        if self._writer is None or self._writer.done():
            self._writer = loop.create_task(self._write())
        return await done

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            commit = asyncio.get_running_loop().run_in_executor(self._thread, self._commit, [work for work, _ in batch])
            try:
                results = await commit
            except Exception as error:  # noqa: BLE001  # it is raised where the work was asked for
                for _, done in batch:
                    if not done.cancelled():
                        done.set_exception(error)
                continue
            for (_, done), result in zip(batch, results, strict=True):
                if not done.cancelled():
                    done.set_result(result)

    def _commit(self, works: list[Callable[[sqlite3.Connection], Any]]) -> list[Any]:
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                return [work(self._connection) for work in works]
        except StorageError:
            raise
        except (sqlite3.Error, ValueError) as error:
            full = isinstance(error, sqlite3.OperationalError) and "decode" not in str(error)
            why = f"{error}" if full else "it is damaged"
            msg = f"The journal {os.fspath(self.path or '')!r} cannot be used: {why}."
            raise StorageError(msg) from None  # the original may quote an answer


def open_journal(path: str | os.PathLike[str] | None) -> sqlite3.Connection:
    """The database of a journal, made if there is none.

    Raises:
        StorageError: If the file is something else, was written by a newer version, or cannot be opened.
    """
    where = "" if path is None else os.fspath(path)
    try:
        connection = sqlite3.connect(where, timeout=_PATIENCE, isolation_level=None)
        try:
            _prepare(connection, where)
        except BaseException:
            connection.close()
            raise
    except (sqlite3.Error, UnicodeDecodeError) as error:  # of a damaged file not even the schema may be text
        msg = f"The journal {where!r} cannot be opened: {error}. Name a file of its own in a folder that exists."
        raise StorageError(msg) from error
    return connection


def _prepare(connection: sqlite3.Connection, where: str) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        application, version, tables = (
            connection.execute(f"{what}").fetchone()[0]
            for what in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_schema")
        )
        if not tables or (application == _APPLICATION and version in _UPGRADES):
            for statement in _UPGRADES[version] if tables else _SCHEMA:
                connection.execute(statement)
        elif application != _APPLICATION:
            msg = f"{where!r} is a database, but not a journal; name another file for the journal."
            raise StorageError(msg)
        elif version != _VERSION:
            msg = (
                f"The journal {where!r} has version {version}, but this version of unirouter-integrations reads "
                f"{_VERSION}. Upgrade unirouter-integrations."
            )
            raise StorageError(msg)
        if [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema")] != [*_SCHEMA[2:]]:
            msg = f"The tables in {where!r} are not those of a journal; the file is damaged."
            raise StorageError(msg)
    until = time.monotonic() + _PATIENCE
    while where:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:  # another process does the same; here SQLite does not wait by itself
            if time.monotonic() > until:
                raise
            time.sleep(_POLL)
    connection.execute("PRAGMA synchronous = FULL")


def read(connection: sqlite3.Connection, keys: Sequence[Keys]) -> dict[Keys, Entry]:
    """Those of some answers that are stored, each with its grade."""
    answers, grades = (
        {
            row[0]: row[1:]
            for row in connection.execute(
                f"SELECT * FROM {table} WHERE key IN ({', '.join('?' * len(wanted))})",  # noqa: S608
                wanted,
            )
        }
        for table, wanted in (
            ("answers", [key.answer for key in keys]),
            ("grades", [key.grade for key in keys]),
        )
    )
    found = {}
    for key in keys:
        if key.answer in answers:
            text, calls, read_, written, cached, seconds, logprob = _checked(answers[key.answer], _ANSWER)
            usage = None if read_ is None else Usage(read_, written or 0, cached or 0)
            (called,) = _checked([json.loads(calls or "[]")], [list])
            answer = Answer(text or "", usage, tuple(called), seconds, logprob)
            grade = Grade(*_checked(grades[key.grade], _GRADE)) if key.grade in grades else None
            found[key] = Entry(answer, text is not None, grade)
    return found


def _checked(row: Sequence[Any], kinds: Sequence[Any]) -> Sequence[Any]:
    if not all(map(isinstance, row, kinds)):
        msg = "A value is of another kind than what was stored."
        raise ValueError(msg)
    return row
