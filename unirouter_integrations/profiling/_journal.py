"""The journal: a file of all answers that were paid for, so that no answer is paid for twice.

It is an SQLite database. For each answer it stores the text and the tool calls (unless that is switched off), the
tokens and the time, under a hash of the model's name, its settings and the prompt. For each grade that a judge gave it
stores the value and the cost, under a hash of the answer's hash, the scorer's name and the reference. If texts are not
stored, it stores every grade. It never stores a prompt, a reference or a provider's key.

Several processes on one machine may share a journal. A process claims a prompt before it makes the call, and its claims
end when it does: it holds a lock on a file beside the journal, which the system frees however the process ends, and
only then. A call counts as done once its answer is on the disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar
from uuid import uuid4

from unirouter_integrations._checks import shown_path
from unirouter_integrations.errors import StorageError
from unirouter_integrations.grading import Answer, Example, Usage
from unirouter_integrations.grading._models import settings_json

T = TypeVar("T")

_APPLICATION_ID = 0x756E6972  # "unir", in the header of the file
_VERSION = 3
_LOCK_TIMEOUT_SECONDS = 60.0  # how long to wait for another process that writes
_POLL_SECONDS = 0.1
_SCHEMA = (
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
    """CREATE TABLE answers (key BLOB PRIMARY KEY, text TEXT, tool_calls TEXT, input_tokens INTEGER,
    output_tokens INTEGER, cached_tokens INTEGER, seconds REAL NOT NULL, logprob REAL) WITHOUT ROWID""",
    "CREATE TABLE grades (key BLOB PRIMARY KEY, value REAL, cost REAL NOT NULL) WITHOUT ROWID",
    "CREATE TABLE claims (key BLOB PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID",
)
# From each version to the next. There the order of columns is that of today's tables as well.
_UPGRADES = {1: "ALTER TABLE answers ADD COLUMN logprob REAL", 2: "DROP TABLE owners"}
_ANSWER_TYPES = (str | None, str | None, int | None, int | None, int | None, float, float | None)
_GRADE_TYPES = (float | int | None, float | int)


class Grade(NamedTuple):
    """The score of an answer from 0 to 1 (None: it could not be graded), and the cost of grading in USD."""

    value: float | None
    cost: float


class Keys(NamedTuple):
    """The keys of an answer and of its grade."""

    answer: bytes
    grade: bytes


class Entry(NamedTuple):
    """An answer in the journal.

    Attributes:
        answer: The answer. Its text is empty if texts are not stored.
        has_text: Whether its text is stored.
        grade: Its grade by the scorer of the keys; None if there is none.
    """

    answer: Answer
    has_text: bool
    grade: Grade | None


def keys_of(name: str, settings: Any, scorer: str, example: Example) -> Keys:
    """Return the keys of the answer of a model to an example, and of its grade by a scorer.

    Examples with the same prompt share an answer, unless their metadata numbers a "repetition".
    """
    answer = _hash([name, settings, example.prompt, example.metadata.get("repetition", 0)])
    reference = [settings_json(example.reference), settings_json(example.metadata)]
    return Keys(answer, _hash([answer.hex(), scorer, *reference]))


def _hash(parts: Any) -> bytes:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).digest()


class Journal:
    """An open journal. One thread does all work on the database; work that arrives together is one transaction.

    Args:
        path: The file, which is created if it does not exist; None for a journal that is lost when it is closed.
        store_answers: Whether to store texts and tool calls. Without them, no other scorer can grade an answer.
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, store_answers: bool = True) -> None:
        self.path = path
        self.store_answers = store_answers
        self._owner = uuid4().hex
        self._thread = ThreadPoolExecutor(1, "unirouter-journal")
        self._opened = ExitStack()
        # The working folder may have changed by the next look at a lock.
        self._locks = None if path is None else os.path.abspath(path)  # noqa: PTH100
        self._queue: list[tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]] = []
        self._is_committing = False

    async def __aenter__(self) -> Self:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._open)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            with suppress(StorageError):  # such as a full disk; the claims end with the lock, too
                await self._do(self._clean_up)
        finally:
            await self._close()

    def _open(self) -> None:
        self._connection = self._opened.enter_context(closing(open_journal(self.path)))
        if self._locks is not None:
            try:
                self._opened.enter_context(_holding(_lock_path(self._locks, self._owner)))
            except sqlite3.Error as error:
                msg = f"The journal {shown_path(self._locks)} cannot be locked: {error}."
                raise StorageError(msg) from error

    async def _close(self) -> None:
        closed = asyncio.get_running_loop().run_in_executor(self._thread, self._opened.close)
        self._thread.shutdown(wait=False)  # what is queued is done, also if this is cancelled now
        await closed

    async def find(self, keys: Sequence[Keys]) -> dict[Keys, Entry]:
        """Return the stored answers among these keys."""
        return await self._do(lambda connection: read_entries(connection, keys))

    async def claim(self, key: bytes) -> bool:
        """Claim an answer. True if the caller should ask for it; False if it is stored or claimed already."""

        def work(connection: sqlite3.Connection) -> bool:
            if connection.execute("SELECT 1 FROM answers WHERE key = ?", (key,)).fetchone():
                return False
            for (owner,) in connection.execute("SELECT owner FROM claims WHERE key = ?", (key,)).fetchall():
                if self._is_alive(owner):
                    return False
                _remove_claims(connection, owner)
            connection.execute("INSERT INTO claims VALUES (?, ?)", (key, self._owner))
            return True

        return await self._do(work)

    async def release(self, key: bytes) -> None:
        """Give up a claim, because there will be no answer."""
        await self._do(lambda connection: self._release(connection, key))

    async def store(self, keys: Keys, answer: Answer | None = None, grade: Grade | None = None) -> None:
        """Store a claimed answer, its grade, or both in one transaction."""

        def work(connection: sqlite3.Connection) -> None:
            if answer is not None:
                text = answer.text.encode("utf-8", "replace").decode()  # SQLite accepts no lone surrogates
                content = (text, json.dumps([settings_json(call) for call in answer.tool_calls]))
                connection.execute(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        keys.answer,
                        *(content if self.store_answers else (None, None)),
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

    def _clean_up(self, connection: sqlite3.Connection) -> None:
        """Remove the claims of this process, and those of processes that died."""
        for (owner,) in connection.execute("SELECT DISTINCT owner FROM claims").fetchall():
            if owner == self._owner or not self._is_alive(owner):
                _remove_claims(connection, owner)

    def _is_alive(self, owner: object) -> bool:
        """Whether the process of a claim is running. If it died, the file of its lock is removed."""
        if owner == self._owner:
            return True
        if self._locks is None or not isinstance(owner, str) or not owner.isalnum():
            return False
        lock = _lock_path(self._locks, owner)
        if _is_held(lock):
            return True
        _remove(lock)
        return False

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of some work on the database, once it is committed."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._queue.append((work, done))
        if not self._is_committing:
            self._is_committing = True
            loop.call_soon(self._commit_queue)  # with what arrives at the same time; no task, which could be cancelled
        return await done

    def _commit_queue(self) -> None:
        batch, self._queue = self._queue, []
        works, waiting = zip(*batch, strict=True)
        commit = asyncio.get_running_loop().run_in_executor(self._thread, self._commit, works)
        commit.add_done_callback(partial(self._settle, waiting))

    def _settle(self, waiting: Sequence[asyncio.Future[Any]], commit: asyncio.Future[list[Any]]) -> None:
        error = commit.exception()
        for index, done in enumerate(waiting):
            if not done.done():
                done.set_result(commit.result()[index]) if error is None else done.set_exception(error)
        self._is_committing = bool(self._queue)
        if self._queue:
            self._commit_queue()

    def _commit(self, works: Sequence[Callable[[sqlite3.Connection], Any]]) -> list[Any]:
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                return [work(self._connection) for work in works]
        except StorageError:
            raise
        except (sqlite3.Error, ValueError) as error:
            is_operational = isinstance(error, sqlite3.OperationalError) and "decode" not in str(error)
            reason = f"{error}" if is_operational else "it is damaged"
            msg = f"The journal {shown_path(self.path or '')} cannot be used: {reason}."
            raise StorageError(msg) from None  # the original may quote an answer


def open_journal(path: str | os.PathLike[str] | None) -> sqlite3.Connection:
    """Open the database of a journal, or create it.

    Raises:
        StorageError: If the file is not a journal, was written by a newer version, or cannot be opened.
    """
    where = "" if path is None else os.fspath(path)
    try:
        connection = sqlite3.connect(where, timeout=_LOCK_TIMEOUT_SECONDS, isolation_level=None)
        try:
            _prepare(connection, where)
        except BaseException:
            connection.close()
            raise
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the schema of a damaged file may not be text
        msg = (
            f"The journal {shown_path(where)} cannot be opened: {error}. The journal needs its own file, in a folder "
            "that exists."
        )
        raise StorageError(msg) from error
    return connection


def _prepare(connection: sqlite3.Connection, where: str) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        application, version, tables = (
            connection.execute(f"{what}").fetchone()[0]
            for what in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_schema")
        )
        if not tables:
            _make(connection, where)
        elif application == _APPLICATION_ID and version in _UPGRADES:
            for earlier in range(version, _VERSION):
                connection.execute(_UPGRADES[earlier])
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        elif application != _APPLICATION_ID:
            msg = f"{shown_path(where)} is a database, but not a journal. Use another file for the journal."
            raise StorageError(msg)
        elif version != _VERSION:
            msg = (
                f"The journal {shown_path(where)} has version {version}, but this version of unirouter-integrations "
                f"reads {_VERSION}. Upgrade unirouter-integrations."
            )
            raise StorageError(msg)
        if [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema")] != [*_SCHEMA[2:]]:
            msg = f"The tables in {shown_path(where)} are not those of a journal; the file is damaged."
            raise StorageError(msg)
    deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
    while where:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:  # another process does the same; for this, SQLite does not wait by itself
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
    connection.execute("PRAGMA synchronous = FULL")


def _make(connection: sqlite3.Connection, where: str) -> None:
    if where:
        with suppress(FileNotFoundError):  # a database that is not in a file
            os.chmod(where, 0o600)  # noqa: PTH101  # it may be a str; SQLite's other files follow it
    for statement in _SCHEMA:
        connection.execute(statement)


def _lock_path(journal: str, owner: str) -> Path:
    return Path(f"{journal}-{owner}")


@contextmanager
def _holding(path: Path) -> Iterator[None]:
    """Hold a lock on a file, as long as this process lives at most. SQLite knows how, on every system."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
    _remove(path)


def _is_held(path: Path) -> bool:
    """Whether a process holds the lock."""
    where = f"{path.absolute().as_uri()}?mode=rw"  # which does not make the file
    try:
        with closing(sqlite3.connect(where, timeout=0, isolation_level=None, uri=True)) as connection:
            connection.execute("SELECT 1 FROM sqlite_schema")
    except sqlite3.DatabaseError as error:
        return error.sqlite_errorcode == sqlite3.SQLITE_BUSY
    return False


def _remove(path: Path) -> None:
    with suppress(OSError):  # on Windows, while another process looks at it
        path.unlink()


def _remove_claims(connection: sqlite3.Connection, owner: object) -> None:
    connection.execute("DELETE FROM claims WHERE owner = ?", (owner,))


def read_entries(connection: sqlite3.Connection, keys: Sequence[Keys]) -> dict[Keys, Entry]:
    """Read the stored answers among these keys, each with its grade."""
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
            text, calls, read, written, cached, seconds, logprob = _checked(answers[key.answer], _ANSWER_TYPES)
            usage = None if read is None else Usage(read, written or 0, cached or 0)
            (tool_calls,) = _checked([json.loads(calls or "[]")], [list])
            answer = Answer(text or "", usage, tuple(tool_calls), seconds, logprob)
            grade = Grade(*_checked(grades[key.grade], _GRADE_TYPES)) if key.grade in grades else None
            found[key] = Entry(answer, text is not None, grade)
    return found


def _checked(row: Sequence[Any], types: Sequence[Any]) -> Sequence[Any]:
    """Return the values of a row, if they have the types that were stored. SQLite accepts any type in any column."""
    if not all(map(isinstance, row, types)):
        msg = "A value does not have the type that was stored."
        raise ValueError(msg)
    return row
