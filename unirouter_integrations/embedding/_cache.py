"""One embedding for many callers: a cache of recent vectors, and batches of the texts that wait.

Embedding a prompt costs more than deciding about it. Texts are repeated (a retry, the router and then the selector of
one question, a question that many users ask). And a server embeds many at the same time, which a model on the same
machine does faster in one batch.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from unirouter_integrations.embedding._base import Vectors

if TYPE_CHECKING:
    from concurrent.futures import Future

_MAX_BATCH = 32  # texts; a batch that has reached it takes no further caller (SentenceTransformer's batch size, too)


class VectorCache:
    """A thread-safe cache of the most recently used vectors. It keeps digests of the texts, not the texts.

    Args:
        capacity: The number of vectors to keep; the least recently used one is dropped first.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._vectors: OrderedDict[bytes, Vectors] = OrderedDict()
        self._lock = threading.Lock()

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


class Batcher:
    """Calls a function of texts in a thread, once for all callers that arrived while it was busy.

    A caller that arrives while it is idle is served at once. Callers may be in different threads and event loops. A
    caller that is cancelled is left out. If a batch fails, each caller is served alone, so that nobody gets the error
    of another.

    Args:
        function: Returns one row per text.
    """

    def __init__(self, function: Callable[[list[str]], Vectors]) -> None:
        self._function = function
        self._waiting: deque[tuple[list[str], Future[Vectors]]] = deque()
        self._busy = threading.Lock()

    async def __call__(self, texts: list[str]) -> Vectors:
        """Return the rows of these texts."""
        import asyncio
        from concurrent.futures import Future
        from contextvars import copy_context

        future: Future[Vectors] = Future()
        self._waiting.append((texts, future))
        asyncio.get_running_loop().run_in_executor(None, copy_context().run, self._serve_waiting)
        return await asyncio.wrap_future(future)

    def _serve_waiting(self) -> None:
        # If another thread is serving, return: it looks at the queue again after it has released the lock.
        while self._waiting and self._busy.acquire(blocking=False):
            try:
                self._serve(self._next_batch())
            finally:
                self._busy.release()

    def _next_batch(self) -> list[tuple[list[str], Future[Vectors]]]:
        calls: list[tuple[list[str], Future[Vectors]]] = []
        while self._waiting and sum(len(texts) for texts, _ in calls) < _MAX_BATCH:
            texts, future = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                calls.append((texts, future))
        return calls

    def _serve(self, calls: list[tuple[list[str], Future[Vectors]]]) -> None:
        if not calls:
            return
        try:
            rows = self._function([text for texts, _ in calls for text in texts])
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is raised where the caller waits
            if len(calls) == 1:
                calls[0][1].set_exception(error)
                return
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor() as pool:
                pool.map(self._serve, ([call] for call in calls))
            return
        start = 0
        for texts, future in calls:
            future.set_result(rows[start : start + len(texts)])
            start += len(texts)


def _digest(text: str) -> bytes:
    import hashlib

    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
