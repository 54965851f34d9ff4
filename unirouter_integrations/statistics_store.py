"""Where several workers add up what they have observed: in memory, in an SQLite file, or in Redis.

What is kept of a model are five sums for each cluster, an array `(5, K)`, `Sums`. Its rows:

* `FADED`: how much of what was known before no longer counts, from 0, nothing observed or nothing forgotten, to 1;
* `COUNTS` and `LOSSES`: as in `LLMProfile`;
* `PRICED` and `SPENT`: how many of the prompts had a known cost, and its sum.

The sums of two times add, by `later`: each whole of the later one fades the earlier one. So a worker adds up in its own
memory what it observes, and a store has a single thing to do, to put that on top of what it holds, in one step.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from unirouter_integrations.errors import InvalidInputError, MissingDependencyError, StorageError

if TYPE_CHECKING:
    import sqlite3

Sums = npt.NDArray[np.float64]

FADED, COUNTS, LOSSES, PRICED, SPENT = range(5)

_APPLICATION = 0x756E6973  # "unis", in the header of the file
_VERSION = 1
_PATIENCE = 5.0
_BATCH_KEPT = 24 * 3600
# The sums are packed as they lie in NumPy's memory, little-endian doubles. `struct` is part of Redis.
_ADD = """
if not redis.call('SET', KEYS[1], 1, 'NX', 'EX', ARGV[1]) then return 0 end
for i = 2, #KEYS do
  local observed, earlier, sums = ARGV[i], redis.call('GET', KEYS[i]), {}
  local width = #observed / 5
  for at = 1, #observed, 8 do
    local sum = struct.unpack('<d', observed, at)
    if earlier then
      local faded = struct.unpack('<d', observed, (at - 1) % width + 1)
      sum = sum + (1 - faded) * struct.unpack('<d', earlier, at)
    end
    sums[#sums + 1] = struct.pack('<d', sum)
  end
  redis.call('SET', KEYS[i], table.concat(sums))
end
return 1
"""


class StatisticsStore(Protocol):
    """Keeps the sums of all workers. Each call may take long, and may raise anything if the store is away."""

    def add(self, observed: Mapping[str, Sums], batch: str, /) -> None:
        """Put these sums on top of those kept under their keys, all or none of them, whoever else does so meanwhile.

        Args:
            observed: The sums, by key.
            batch: A name of this call. If it raises it is repeated under the same name, and must not add twice.
        """

    def read(self, keys: Iterable[str], /) -> dict[str, Sums]:
        """The sums under those of these keys that have any."""


def later(earlier: Sums, observed: Sums) -> Sums:
    """The sums of both times together. Of three times it does not matter which two are put together first."""
    return np.asarray(earlier * (1 - observed[FADED]) + observed)


class MemoryStatistics:
    """Keeps sums in this process, for its routers; they are gone when it ends."""

    def __init__(self) -> None:
        self._sums: dict[str, Sums] = {}
        self._lock = threading.Lock()

    def add(self, observed: Mapping[str, Sums], batch: str, /) -> None:  # noqa: ARG002  # it never fails halfway
        """See `StatisticsStore`."""
        with self._lock:
            for key, sums in observed.items():
                self._sums[key] = later(self._sums[key], sums) if key in self._sums else sums

    def read(self, keys: Iterable[str], /) -> dict[str, Sums]:
        """See `StatisticsStore`."""
        with self._lock:
            return {key: self._sums[key] for key in keys if key in self._sums}


class SQLiteStatistics:
    """Keeps sums in an SQLite file, for all processes of one machine. It is made if there is none.

    Args:
        path: The file, on a disk of this machine.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.path.abspath(path)  # noqa: PTH100  # the working folder may be another one when it is next opened

    def __repr__(self) -> str:
        return f"SQLiteStatistics({self._path!r})"

    def add(self, observed: Mapping[str, Sums], batch: str, /) -> None:  # noqa: ARG002  # a transaction that fails adds nothing
        """See `StatisticsStore`."""
        with closing(self._opened()) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            for key, earlier in _select(connection, observed).items():
                observed = {**observed, key: later(earlier, observed[key])}
            connection.executemany(
                "INSERT OR REPLACE INTO sums VALUES (?, ?)", [(key, _packed(sums)) for key, sums in observed.items()]
            )

    def read(self, keys: Iterable[str], /) -> dict[str, Sums]:
        """See `StatisticsStore`."""
        with closing(self._opened()) as connection:
            return _select(connection, keys)

    def _opened(self) -> sqlite3.Connection:
        """A connection for one call: none is shared by threads or carried into a forked process."""
        import sqlite3

        connection = sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if self._found(connection) == (0, 0, 0):
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("CREATE TABLE IF NOT EXISTS sums (key TEXT PRIMARY KEY, sums BLOB NOT NULL)")
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
        application, version, _ = self._found(connection)
        if application != _APPLICATION:
            msg = f"{self._path!r} is a database, but not one of statistics; name another file for them."
            raise StorageError(msg)
        if version != _VERSION:
            msg = (
                f"The statistics in {self._path!r} have version {version}, but this version of unirouter-integrations "
                f"reads {_VERSION}. Upgrade unirouter-integrations."
            )
            raise StorageError(msg)

    def _found(self, connection: sqlite3.Connection) -> tuple[int, ...]:
        asked = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_schema")
        return tuple(connection.execute(what).fetchone()[0] for what in asked)


class RedisStatistics:
    """Keeps sums in Redis, for workers on any number of machines. Needs the extra `redis`.

    Args:
        url: As `redis.Redis.from_url` takes it: `"redis://host:6379/0"`.
        options: What else it takes. A call gives up after a second, unless `socket_timeout` says otherwise.
    """

    def __init__(self, url: str, **options: Any) -> None:
        try:
            from redis import Redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            msg = "RedisStatistics needs pip install 'unirouter-integrations[redis]'."
            raise MissingDependencyError(msg) from error
        patience = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0, "retry": Retry(NoBackoff(), 0)}
        self._client: Any = Redis.from_url(url, **{**patience, **options})
        self._add: Any = self._client.register_script(_ADD)

    def add(self, observed: Mapping[str, Sums], batch: str, /) -> None:
        """See `StatisticsStore`."""
        keys = [_redis_key(f"batch:{batch}"), *map(_redis_key, observed)]
        self._add(keys, [_BATCH_KEPT, *map(_packed, observed.values())])

    def read(self, keys: Iterable[str], /) -> dict[str, Sums]:
        """See `StatisticsStore`."""
        wanted = list(keys)
        found = self._client.mget(map(_redis_key, wanted)) if wanted else []
        return {key: _unpacked(sums) for key, sums in zip(wanted, found, strict=True) if sums is not None}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def as_store(store: StatisticsStore | str | os.PathLike[str] | None) -> StatisticsStore:
    """The store that is meant: None is memory, and a path an SQLite file."""
    if store is None:
        return MemoryStatistics()
    if isinstance(store, str) and "://" in store:
        msg = "A store that is named is the path of an SQLite file; for Redis give RedisStatistics(url)."
        raise InvalidInputError(msg)
    if isinstance(store, str | os.PathLike):
        return SQLiteStatistics(store)
    if not (hasattr(store, "add") and hasattr(store, "read")):
        msg = (
            "store should be the path of an SQLite file, RedisStatistics(url), or anything else with the methods add "
            f"and read, but is {type(store).__name__}."
        )
        raise InvalidInputError(msg)
    return store


def _redis_key(key: str) -> str:
    return f"{{unirouter}}:{key}"  # the part in braces keeps all keys on one node of a Redis cluster


def _packed(sums: Sums) -> bytes:
    return np.ascontiguousarray(sums, "<f8").tobytes()


def _unpacked(data: bytes) -> Sums:
    return np.frombuffer(data, "<f8").reshape(5, -1)


def _select(connection: sqlite3.Connection, keys: Iterable[str]) -> dict[str, Sums]:
    found = {}
    for key in keys:
        row = connection.execute("SELECT sums FROM sums WHERE key = ?", (key,)).fetchone()
        if row is not None:
            found[key] = _unpacked(row[0])
    return found
