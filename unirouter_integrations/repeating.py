"""Something done again and again in the background, for as long as somebody holds what it is done for."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable


class Repeating:
    """Calls a method every so often, in a thread of its own.

    The thread does not keep the object of the method alive, and ends with it, with the process, or with `stop`.

    Args:
        method: A bound method without arguments, which raises nothing.
        every: The seconds before the first call, and from the end of each to the next.
        name: The name of the thread.
    """

    def __init__(self, method: Callable[[], None], every: float, name: str) -> None:
        self._method = weakref.WeakMethod(method)
        self._every = every
        self._name = name
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        weakref.finalize(method.__self__, self._stopped.set)  # type: ignore[attr-defined]  # it is a bound method

    def start(self) -> None:
        """Start the thread if it does not run. In a forked process it does not, and has to be started again."""
        if (self._thread is None or not self._thread.is_alive()) and not self._stopped.is_set():
            self._thread = threading.Thread(
                target=_repeat, args=(self._method, self._every, self._stopped), name=self._name, daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End the thread, after the call that it is in."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()


def _repeat(method: weakref.WeakMethod[Callable[[], None]], every: float, stopped: threading.Event) -> None:
    while not stopped.wait(min(every, threading.TIMEOUT_MAX)) and (call := method()) is not None:
        call()
        del call  # while the thread waits, it holds nothing
