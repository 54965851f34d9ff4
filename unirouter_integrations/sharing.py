"""One embedding for many callers.

Embedding a prompt costs more than deciding about it. Texts come again (a retry, the router and then the selector of one
question, a question that many ask), and in a server many come at once, which a model on this machine embeds quicker
together than one by one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from concurrent.futures import Future

Floats32 = npt.NDArray[np.float32]

_TOGETHER = 32


class RecentVectors:
    """The vectors of the last texts, for any number of threads. It holds digests of the texts, not the texts.

    Args:
        most: How many vectors to keep; the one that was not asked for the longest gives way.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._vectors: OrderedDict[bytes, Floats32] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, texts: Iterable[str]) -> dict[str, Floats32]:
        """Those of these texts that are known, with their vectors."""
        keys = {text: _digest(text) for text in texts}
        with self._lock:
            known = {text: key for text, key in keys.items() if key in self._vectors}
            for key in known.values():
                self._vectors.move_to_end(key)
            return {text: self._vectors[key] for text, key in known.items()}

    def add(self, vectors: dict[str, Floats32]) -> None:
        """Keep these vectors, by text."""
        kept = {_digest(text): vector.copy() for text, vector in list(vectors.items())[-self._most :]}
        with self._lock:
            self._vectors.update(kept)
            while len(self._vectors) > self._most:
                self._vectors.popitem(last=False)


class Together:
    """Calls a function of texts in a thread, once for all who came while it was busy.

    Whoever comes while it is idle is served at once. Callers may be in different threads and event loops. One who is
    cancelled is left out, and where a call for several fails each is served alone, so that one's error is not
    another's.

    Args:
        function: Gives one row per text.
    """

    def __init__(self, function: Callable[[list[str]], Floats32]) -> None:
        self._function = function
        self._waiting: deque[tuple[list[str], Future[Floats32]]] = deque()
        self._busy = threading.Lock()

    async def __call__(self, texts: list[str]) -> Floats32:
        """The rows of these texts."""
        import asyncio
        from concurrent.futures import Future
        from contextvars import copy_context

        future: Future[Floats32] = Future()
        self._waiting.append((texts, future))
        asyncio.get_running_loop().run_in_executor(None, copy_context().run, self._serve)
        return await asyncio.wrap_future(future)

    def _serve(self) -> None:
        # Who finds it busy may leave: whoever keeps it busy looks at the waiting ones again after having let go.
        while self._waiting and self._busy.acquire(blocking=False):
            try:
                self._answer(self._next())
            finally:
                self._busy.release()

    def _next(self) -> list[tuple[list[str], Future[Floats32]]]:
        calls: list[tuple[list[str], Future[Floats32]]] = []
        while self._waiting and sum(len(texts) for texts, _ in calls) < _TOGETHER:
            texts, future = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                calls.append((texts, future))
        return calls

    def _answer(self, calls: list[tuple[list[str], Future[Floats32]]]) -> None:
        if not calls:
            return
        try:
            rows = self._function([text for texts, _ in calls for text in texts])
        except BaseException as error:  # noqa: BLE001  # it belongs to who waits, whatever it is
            if len(calls) == 1:
                calls[0][1].set_exception(error)
                return
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor() as pool:
                pool.map(self._answer, ([call] for call in calls))
            return
        start = 0
        for texts, future in calls:
            future.set_result(rows[start : start + len(texts)])
            start += len(texts)


def _digest(text: str) -> bytes:
    import hashlib

    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
