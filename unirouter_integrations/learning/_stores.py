"""Stores in which several workers add up their observations: in memory, in an SQLite file, or in Redis.

A store keeps five sums per cluster for each model, an array `(5, K)`, `Sums`. Its rows:

* `FADED`: the share of earlier knowledge that no longer counts, from 0 (nothing is forgotten) to 1 (everything is);
* `COUNTS` and `LOSSES`: as in `LLMProfile`;
* `PRICED` and `SPENT`: how many of the prompts had a known cost, and the sum of these costs.

`combine` adds the sums of a later period to those of an earlier one, which fade by the later period's `FADED`. So a
worker adds up its own observations in memory, and a store has one thing to do: combine them with what it holds, in
one atomic step. What it holds may have been damaged or written by others: `merge` drops what no observations can have
led to, so that one wrong value harms no other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from unirouter_integrations._checks import requires
from unirouter_integrations._concurrency import ForkSafeLock
from unirouter_integrations.errors import InvalidInputError, StorageError

if TYPE_CHECKING:
    import sqlite3

Sums = npt.NDArray[np.float64]

FADED, COUNTS, LOSSES, PRICED, SPENT = range(5)

MAX_COST = 1e9  # of one observation, in the unit of the profiles' costs; a sum of as many as anybody makes is finite
_SLACK = 1.001  # sums that are equal by the formulas may differ by rounding

_APPLICATION_ID = 0x756E6973  # "unis", in the header of an SQLite file
_FORMAT_VERSION = 1
_LOCK_TIMEOUT = 5.0  # seconds that a call waits while other processes write; the default of `sqlite3`
_BATCH_ID_TTL = 24 * 3600  # seconds for which Redis remembers a batch; one that is repeated later would count twice
# `merge` in Lua, once for each batch. Sums are stored as in NumPy's memory, as little-endian doubles. Nothing in it may
# raise: Redis would keep the mark of the batch, and the batch would be lost.
_ADD_SCRIPT = f"""
local function numbers(data)
  local found = {{}}
  for at = 1, #data, 8 do found[#found + 1] = struct.unpack('<d', data, at) end
  return found
end
local function counted(sums)
  local total = 0
  for at = #sums / 5 + 1, 2 * #sums / 5 do total = total + sums[at] end
  return total
end
local function checked(data, size)
  if type(data) ~= 'string' or #data ~= size then return nil end
  local sums = numbers(data)
  local n = #sums / 5
  for k = 1, n do
    local faded, counts, losses, priced, spent = sums[k], sums[n + k], sums[2 * n + k], sums[3 * n + k], sums[4 * n + k]
    local most = counts * {_SLACK}
    if not (faded >= 0 and faded <= 1 and counts < math.huge and losses >= 0 and losses <= most and priced >= 0
      and priced <= most and spent >= 0 and spent <= priced * {_SLACK * MAX_COST}) then return nil end
  end
  return sums
end
if not redis.call('SET', KEYS[1], 1, 'NX', 'EX', ARGV[1]) then return 0 end
for i = 2, #KEYS do
  local observed, earlier = numbers(ARGV[i]), checked(redis.pcall('GET', KEYS[i]), #ARGV[i])
  local n, scale, sums = #observed / 5, 1, {{}}
  if earlier and counted(earlier) * observed[1] > counted(observed) * {_SLACK} then
    scale = counted(observed) / observed[1] / counted(earlier)
  end
  for at, sum in ipairs(observed) do
    if earlier then
      local kept = at > n and earlier[at] * scale or earlier[at]
      sum = sum + kept * (1 - observed[(at - 1) % n + 1])
    end
    sums[at] = struct.pack('<d', sum)
  end
  redis.call('SET', KEYS[i], table.concat(sums))
end
return 1
"""


class StatisticsStore(Protocol):
    """Keeps the sums of all workers. A call may take long, and may raise anything if the store cannot be reached."""

    def add(self, observed: Mapping[str, Sums], batch: str, /) -> None:
        """Combine these sums with those kept under their keys: all or none of them, atomically.

        Args:
            observed: The sums by key.
            batch: The id of this call. A call that raised is repeated with the same id, and must not be added twice.
        """

    def read(self, keys: Iterable[str], /) -> dict[str, Sums]:
        """Return the sums by key, without the keys that have none. What is not `(5, K)` counts as damaged."""


def combine(earlier: Sums, observed: Sums) -> Sums:
    """Return the sums of two successive periods together. The operation is associative."""
    return np.asarray(earlier * (1 - observed[FADED]) + observed)


def checked(found: object, clusters: int) -> Sums | None:
    """Return what a store holds if observations can have led to it; None if it is damaged."""
    try:
        sums = np.asarray(found, np.float64)
    except (TypeError, ValueError):
        return None
    if sums.shape != (5, clusters):
        return None
    faded, counts, losses, priced, spent = sums
    most = counts * _SLACK
    possible = (faded >= 0) & (faded <= 1) & (counts < np.inf) & (losses >= 0) & (losses <= most)
    possible &= (priced >= 0) & (priced <= most) & (spent >= 0) & (spent <= priced * (_SLACK * MAX_COST))
    return sums if possible.all() else None


def capped(sums: Sums, most: float) -> Sums:
    """Return the sums, scaled to the largest count that fading allows, if they are above it.

    Observations that fade to a share 1 - f with each further one add up to at most 1 / f.
    """
    total = sums[COUNTS].sum()
    return sums if total <= most * _SLACK else np.vstack([sums[:1], sums[1:] * (most / total)])


def merge(earlier: object, observed: Sums) -> Sums:
    """`combine` with what a store holds, as far as observations that fade like these can have led to it."""
    kept = checked(earlier, observed.shape[1])
    if kept is None:
        return observed
    faded = float(observed[FADED, 0])
    return combine(capped(kept, observed[COUNTS].sum() / faded) if faded else kept, observed)


class MemoryStatistics:
    """Keeps sums in memory, for the routers of this process. They are lost when it ends."""

    def __init__(self) -> None:
        self._sums: dict[str, Sums] = {}
        self._lock = ForkSafeLock()

    def add(self, observed: Mapping[str, Sums], batch: str, /) -> None:  # noqa: ARG002  # a call in memory is never repeated
        """See `StatisticsStore`."""
        with self._lock:
            for key, sums in observed.items():
                self._sums[key] = merge(self._sums.get(key), sums)

    def read(self, keys: Iterable[str], /) -> dict[str, Sums]:
        """See `StatisticsStore`."""
        with self._lock:
            return {key: self._sums[key] for key in keys if key in self._sums}


class SQLiteStatistics:
    """Keeps sums in an SQLite file, for all processes of one machine.

    Args:
        path: The file, on a disk of this machine. It is made if it does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.path.abspath(path)  # noqa: PTH100  # the working folder may have changed by the next call
        # Forked during a call, SQLite would take the file for locked by the child itself, for ever.
        self._lock = ForkSafeLock(delays_forks=True)

    def __repr__(self) -> str:
        return f"SQLiteStatistics({self._path!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return SQLiteStatistics, (self._path,)  # a copy has a lock of its own

    def add(self, observed: Mapping[str, Sums], batch: str, /) -> None:  # noqa: ARG002  # a failed transaction adds nothing
        """See `StatisticsStore`."""
        with self._lock, closing(self._connect()) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            earlier = _read_sums(connection, observed)
            rows = [(key, _to_bytes(merge(earlier.get(key), sums))) for key, sums in observed.items()]
            connection.executemany("INSERT OR REPLACE INTO sums VALUES (?, ?)", rows)

    def read(self, keys: Iterable[str], /) -> dict[str, Sums]:
        """See `StatisticsStore`."""
        with self._lock, closing(self._connect()) as connection:
            return _read_sums(connection, keys)

    def _connect(self) -> sqlite3.Connection:
        """Open a connection for one call, so that none is shared by threads or carried into a forked process."""
        import sqlite3

        connection = sqlite3.connect(self._path, timeout=_LOCK_TIMEOUT, isolation_level=None)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if _header(connection) == (0, 0, 0):
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("CREATE TABLE IF NOT EXISTS sums (key TEXT PRIMARY KEY, sums BLOB NOT NULL)")
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {_FORMAT_VERSION}")
        application, version, _ = _header(connection)
        if application != _APPLICATION_ID:
            msg = f"{self._path!r} is a database, but not one of statistics; name another file for them."
            raise StorageError(msg)
        if version != _FORMAT_VERSION:
            msg = (
                f"The statistics in {self._path!r} have version {version}, but this version of unirouter-integrations "
                f"reads {_FORMAT_VERSION}. Upgrade unirouter-integrations."
            )
            raise StorageError(msg)


class RedisStatistics:
    """Keeps sums in Redis, for workers on any number of machines. Needs the extra `redis`.

    Args:
        url: The URL for `redis.Redis.from_url`, such as `"redis://host:6379/0"`.
        options: Further arguments of `from_url`. `socket_timeout` and `socket_connect_timeout` are 1 second by default.
    """

    def __init__(self, url: str, **options: Any) -> None:
        with requires("RedisStatistics", "redis"):
            from redis import Redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        # No retries: learning tries again by itself.
        defaults = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0, "retry": Retry(NoBackoff(), 0)}
        self._client: Any = Redis.from_url(url, **{**defaults, **options})
        self._add: Any = self._client.register_script(_ADD_SCRIPT)

    def add(self, observed: Mapping[str, Sums], batch: str, /) -> None:
        """See `StatisticsStore`."""
        keys = [_redis_key(f"batch:{batch}"), *map(_redis_key, observed)]
        self._add(keys, [_BATCH_ID_TTL, *map(_to_bytes, observed.values())])

    def read(self, keys: Iterable[str], /) -> dict[str, Sums]:
        """See `StatisticsStore`."""
        names = list(keys)
        values = self._client.mget(map(_redis_key, names)) if names else []
        return {name: _from_bytes(value) for name, value in zip(names, values, strict=True) if value is not None}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def as_store(store: StatisticsStore | str | os.PathLike[str] | None) -> StatisticsStore:
    """Make a store of the argument of `UniRouter.learn`: None stands for memory, a path for an SQLite file."""
    if store is None:
        return MemoryStatistics()
    if isinstance(store, str) and "://" in store:
        msg = "A str should be the path of an SQLite file, but a URL was given; for Redis give RedisStatistics(url)."
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
    return f"{{unirouter}}:{key}"  # the part in braces puts all keys on one node of a Redis cluster


def _to_bytes(sums: Sums) -> bytes:
    return np.ascontiguousarray(sums, "<f8").tobytes()


def _from_bytes(data: object) -> Sums:
    """Return the sums; of no clusters if the value is damaged."""
    if not isinstance(data, bytes) or len(data) % 40:
        return np.empty((5, 0))
    return np.frombuffer(data, "<f8").reshape(5, len(data) // 40)


def _header(connection: sqlite3.Connection) -> tuple[int, ...]:
    """Return application id, format version and number of tables; all are 0 in a new file."""
    queries = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_schema")
    return tuple(connection.execute(query).fetchone()[0] for query in queries)


def _read_sums(connection: sqlite3.Connection, keys: Iterable[str]) -> dict[str, Sums]:
    found = {}
    for key in keys:
        row = connection.execute("SELECT sums FROM sums WHERE key = ?", (key,)).fetchone()
        if row is not None:
            found[key] = _from_bytes(row[0])
    return found
