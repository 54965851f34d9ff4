"""Threads, timeouts and the border between synchronous and asynchronous code."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from unirouter_integrations.errors import InvalidInputError

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

_MAX_EXECUTOR_THREADS = 256  # of the background loop; more calls than that wait for each other
_POLL_SECONDS = 0.1  # how often a waiting thread looks for Ctrl-C


class PeriodicThread:
    """Calls a method again and again in a thread of its own.

    The thread does not keep the method's object alive. It ends with the object, with the process, or with `stop`.

    Args:
        method: A bound method without arguments that raises nothing.
        every: Seconds before the first call, and from the end of each call to the next.
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
        """Start the thread if it is not running. A forked process has to start it again."""
        if (self._thread is None or not self._thread.is_alive()) and not self._stopped.is_set():
            self._thread = threading.Thread(
                target=_repeat, args=(self._method, self._every, self._stopped), name=self._name, daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread. A call in progress is finished first."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()


def _repeat(method: weakref.WeakMethod[Callable[[], None]], every: float, stopped: threading.Event) -> None:
    while not stopped.wait(min(every, threading.TIMEOUT_MAX)) and (call := method()) is not None:
        call()
        del call  # no reference is held while the thread waits


def run_with_timeout(seconds: float | None, call: Callable[[], T]) -> T:
    """Return the result of a call, or raise `TimeoutError` if it takes longer.

    A call that takes longer is not interrupted. It goes on in its thread.

    Args:
        seconds: The timeout; None for none, and then no thread is made.
        call: The call.
    """
    if seconds is None:
        return call()
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001  # raised below, in the waiting thread
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        msg = f"It took longer than {seconds:g} s."
        raise TimeoutError(msg)
    return results[0]


def in_thread(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Make a blocking function awaitable. Each call runs in a thread of its own.

    An event loop's executor has too few threads for many calls at once, and at its end the loop would wait for a call
    that never returns.
    """
    import asyncio
    from contextvars import copy_context

    async def call(*arguments: Any) -> Any:
        loop, context = asyncio.get_running_loop(), copy_context()
        done = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if not done.done():
                done.set_result(result) if error is None else done.set_exception(error)

        def work() -> None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = context.run(function, *arguments)
            except StopIteration as stopped:  # a future cannot hold it
                error = RuntimeError("It raised StopIteration.")
                error.__cause__ = stopped
            except Exception as raised:  # noqa: BLE001  # raised where the call is awaited
                error = raised
            except BaseException as raised:  # noqa: BLE001  # such as SystemExit, which would end the event loop
                error = RuntimeError(f"It raised {type(raised).__name__}.")
                error.__cause__ = raised
            with suppress(RuntimeError):  # the loop is closed: nobody is waiting
                loop.call_soon_threadsafe(settle, result, error)

        threading.Thread(target=work, name="unirouter-call", daemon=True).start()
        return await done

    return call


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from synchronous code, also where an event loop is running, as in a notebook.

    The coroutine runs on the event loop of a background thread. Ctrl-C cancels it there and waits for its end.

    Raises:
        InvalidInputError: If this is called on the background loop itself, which would wait for itself.
    """
    import asyncio
    from concurrent.futures import wait

    loop = _background_loop(os.getpid())
    with suppress(RuntimeError):
        if asyncio.get_running_loop() is loop:
            msg = (
                "This was called synchronously from asynchronous work that itself was called synchronously, and would "
                "wait for itself. Await it there: ainvoke in place of invoke, aprofile_model in place of profile_model."
            )
            work.close()
            raise InvalidInputError(msg)
    started: list[asyncio.Task[T]] = []

    async def finished() -> asyncio.Task[T]:
        started.append(asyncio.ensure_future(work))
        await asyncio.wait(started)
        return started[0]

    done = asyncio.run_coroutine_threadsafe(finished(), loop)
    interrupted = False
    while not done.done():
        try:
            wait([done], _POLL_SECONDS)  # not longer: a thread that waits for a lock may not see Ctrl-C
        except KeyboardInterrupt:
            interrupted = True
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in started])
    if interrupted:
        raise KeyboardInterrupt
    return done.result().result()


@cache
def _background_loop(pid: int) -> asyncio.AbstractEventLoop:  # noqa: ARG001
    """An event loop that runs in a daemon thread until the process ends.

    There is one for all calls: clients keep connections open, and these cannot be used on another loop. The process id
    is the key because a forked process has none of its parent's threads and needs a loop of its own.
    """
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(_MAX_EXECUTOR_THREADS, "unirouter-background"))
    threading.Thread(target=loop.run_forever, name="unirouter-background", daemon=True).start()
    return loop
