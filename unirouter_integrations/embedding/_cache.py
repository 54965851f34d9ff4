"""One embedding for many callers: a cache of recent vectors, and batches of the texts that wait.

Embedding a prompt costs more than deciding about it. Texts are repeated (a retry, the router and then the selector of
one question, a question that many users ask). And a server embeds many at the same time, which a model on the same
machine does faster in one batch.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from unirouter_integrations._concurrency import ForkSafeLock, renew_after_fork
from unirouter_integrations.embedding._base import Vectors

if TYPE_CHECKING:
    from concurrent.futures import Future

_MAX_BATCH = 32  # texts; a batch that has reached it takes no further caller (SentenceTransformer's batch size, too)
_PATIENCE_SECONDS = 1.0  # after which a call is taken to hang
_MAX_HANGING = 8  # calls that run beside each other because those before them hang


class VectorCache:
    """A thread-safe cache of the most recently used vectors. It keeps digests of the texts, not the texts.

    Args:
        capacity: The number of vectors to keep; the least recently used one is dropped first.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._vectors: OrderedDict[bytes, Vectors] = OrderedDict()
        self._lock = ForkSafeLock()

    def get(self, texts: Iterable[str]) -> dict[str, Vectors]:
        """Return the vectors, `(d,)`, of those texts that are in the cache, by text."""
        keys = {text: _digest(text) for text in texts}
        with self._lock:
            known = {text: key for text, key in keys.items() if key in self._vectors}
            for key in known.values():
                self._vectors.move_to_end(key)
            return {text: self._vectors[key] for text, key in known.items()}

    def add(self, vectors: dict[str, Vectors]) -> None:
        """Store copies of these vectors, given by text."""
        kept = {_digest(text): vector.copy() for text, vector in list(vectors.items())[-self._capacity :]}
        with self._lock:
            self._vectors.update(kept)
            while len(self._vectors) > self._capacity:
                self._vectors.popitem(last=False)


class _Call(NamedTuple):
    """A caller that waits for the rows of some texts."""

    texts: list[str]
    rows: Future[Vectors]


class Batcher:
    """Calls a function of texts in a thread, once for all callers that arrived while it was busy.

    A caller that arrives while it is idle is served at once. Callers may be in different threads and event loops. A
    caller that is cancelled is left out. If a batch fails, each caller is served alone, so that nobody gets the error
    of another. Nobody waits for a call that hangs: after a second the next one is made beside it.

    Args:
        function: Returns one row per text.
    """

    def __init__(self, function: Callable[[list[str]], Vectors]) -> None:
        self._function = function
        self._lock = ForkSafeLock()
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """See `renew_after_fork`."""
        self._waiting: deque[_Call] = deque()
        self._running: dict[object, float] = {}  # when each thread began its batch, on the monotonic clock

    async def __call__(self, texts: list[str]) -> Vectors:
        """Return the rows of these texts."""
        import asyncio
        from concurrent.futures import Future

        call = _Call(texts, Future())
        self._waiting.append(call)
        rows = asyncio.wrap_future(call.rows)
        try:
            while not rows.done():
                self._serve_waiting()
                await asyncio.wait([rows], timeout=_PATIENCE_SECONDS)
        finally:  # where the caller is cancelled: its texts are not embedded, or their rows are for nobody
            rows.cancel()
            call.rows.cancel()
        return rows.result()

    def _serve_waiting(self) -> None:
        """Start a thread for the callers that wait, unless one is at work."""
        thread = object()
        if batch := self._next_batch(thread):
            _start(self._work, thread, batch)

    def _work(self, thread: object, batch: list[_Call]) -> None:
        while batch:
            self._serve(batch)
            batch = self._next_batch(thread)

    def _next_batch(self, thread: object) -> list[_Call]:
        """The calls for a thread to serve now; none if it has nothing more to do."""
        batch: list[_Call] = []
        with self._lock:
            self._running.pop(thread, None)
            now = time.monotonic()
            latest = max(self._running.values(), default=-math.inf)
            if now - latest >= _PATIENCE_SECONDS and len(self._running) < _MAX_HANGING:
                while self._waiting and sum(len(call.texts) for call in batch) < _MAX_BATCH:
                    call = self._waiting.popleft()
                    if call.rows.set_running_or_notify_cancel():
                        batch.append(call)
            if batch:
                self._running[thread] = now
        return batch

    def _serve(self, batch: list[_Call]) -> None:
        try:
            rows = self._function([text for call in batch for text in call.texts])
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is raised where the caller waits
            if len(batch) == 1:
                batch[0].rows.set_exception(error)
            else:
                for call in batch:
                    _start(self._serve, [call])
            return
        start = 0
        for call in batch:
            call.rows.set_result(rows[start : start + len(call.texts)])
            start += len(call.texts)


def _start(work: Callable[..., None], *arguments: object) -> None:
    """Run this in a thread that the end of the process does not wait for."""
    from contextvars import copy_context

    run = copy_context().run
    threading.Thread(target=run, args=(work, *arguments), name="unirouter-embedding", daemon=True).start()


def _digest(text: str) -> bytes:
    import hashlib

    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
