"""Threads, forks, timeouts and the border between synchronous and asynchronous code."""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from unirouter_integrations.errors import InvalidInputError

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

_MAX_EXECUTOR_THREADS = 256  # of the background loop; more calls than that wait for each other
_MAX_HANGING = 100  # calls that took too long and still run in their threads
_HANGING_PAUSE_SECONDS = 60.0  # after which one more is tried nevertheless: they may never end
_POLL_SECONDS = 0.1  # how often a waiting thread looks for Ctrl-C
_MAX_IDLE_WORKERS = 64
_MAX_GUARDED_THREADS = 64  # per guard, those that hang included; further calls wait for one of them to end
_TIMEOUTS_UNTIL_PAUSE = 3  # in a row
_FIRST_PAUSE_SECONDS = 30.0  # doubled whenever the next call takes too long as well, ...
_LONGEST_PAUSE_SECONDS = 3600.0  # ... up to this: one hanging thread per hour


class _Forkable(Protocol):
    def after_fork(self) -> None:
        """Make the object usable in a forked process, which has none of the threads of its parent."""


_idle_workers: deque[queue.SimpleQueue[Callable[[], None]]] = deque()
_forkable: weakref.WeakKeyDictionary[_Forkable, None] = weakref.WeakKeyDictionary()
_held_for_fork: list[ForkSafeLock] = []


def renew_after_fork(thing: _Forkable) -> None:
    """Have `thing.after_fork()` called in every process that is forked from this one, in the order of these calls.

    A forked process has a copy of the memory, but only the thread that forked. What other threads had locked stays
    locked in it, and what they had begun stays half done. The object is not kept alive.
    """
    _forkable[thing] = None


def _wait_until_forkable() -> None:
    for thing in list(_forkable):
        if isinstance(thing, ForkSafeLock) and thing.delays_forks:
            thing.__enter__()
            _held_for_fork.append(thing)


def _go_on() -> None:
    while _held_for_fork:
        _held_for_fork.pop().__exit__()


def _renew_all() -> None:
    _held_for_fork.clear()
    _idle_workers.clear()
    for thing in list(_forkable):
        thing.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_wait_until_forkable, after_in_parent=_go_on, after_in_child=_renew_all)


class ForkSafeLock:
    """A lock that is free in a forked process, even if a thread of the parent held it.

    Args:
        delays_forks: Whether a fork waits until the lock is free, because what it guards cannot be forked halfway.
    """

    def __init__(self, *, delays_forks: bool = False) -> None:
        self.delays_forks = delays_forks
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """See `renew_after_fork`."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class PeriodicThread:
    """Calls a method again and again in a thread of its own.

    The thread does not keep the method's object alive. It ends with the object, with the process, or with `stop`. A
    forked process starts a thread of its own.

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
        weakref.finalize(method.__self__, self._end)  # type: ignore[attr-defined]  # it is a bound method
        renew_after_fork(self)

    def start(self) -> None:
        """Start the thread if it is not running."""
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

    def after_fork(self) -> None:
        """See `renew_after_fork`."""
        if self._thread is not None and not self._stopped.is_set():
            self._thread, self._stopped = None, threading.Event()
            self.start()

    def _end(self) -> None:
        self._stopped.set()


def _repeat(method: weakref.WeakMethod[Callable[[], None]], every: float, stopped: threading.Event) -> None:
    while not stopped.wait(min(every, threading.TIMEOUT_MAX)) and (call := method()) is not None:
        call()
        del call  # no reference is held while the thread waits


class HangingCalls:
    """Calls of one kind that took too long and still run in their threads, so that these do not pile up."""

    def __init__(self) -> None:
        self._calls: set[object] = set()
        self._last = 0.0  # on the monotonic clock

    def __len__(self) -> int:
        return len(self._calls)

    def check(self) -> None:
        """Raise a `TimeoutError` if there are so many that no further call should be made for now."""
        if len(self._calls) >= _MAX_HANGING and time.monotonic() < self._last + _HANGING_PAUSE_SECONDS:
            msg = f"{len(self._calls)} calls that took too long have not returned yet; for now no further one is made."
            raise TimeoutError(msg)

    def add(self, call: object) -> None:
        """Note that a call took too long."""
        self._calls.add(call)
        self._last = time.monotonic()

    def discard(self, call: object) -> None:
        """Note that a call has ended."""
        self._calls.discard(call)


def run_with_timeout(
    seconds: float | None,
    call: Callable[[], T],
    threads: threading.Semaphore | None = None,
    hanging: HangingCalls | None = None,
) -> T:
    """Return the result of a call, or raise `TimeoutError` if it takes longer.

    A call that takes longer is not interrupted. It goes on in its thread.

    Args:
        seconds: The timeout; None for none, and then no thread is made.
        call: The call.
        threads: How many threads may run, those of calls that go on included; None for any number. A call that is given
            no thread in time is not made.
        hanging: The calls of this kind that go on. If they are too many, this one is not made.
    """
    if seconds is None:
        return call()
    from concurrent.futures import Future

    hanging = HangingCalls() if hanging is None else hanging
    hanging.check()
    deadline, future = time.monotonic() + seconds, Future[T]()
    too_long = TimeoutError(f"It took longer than {seconds:g} s.")
    if threads is not None and not threads.acquire(timeout=seconds):
        raise too_long

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  # raised below, in the waiting thread
            future.set_exception(error)
        if threads is not None:
            threads.release()
        hanging.discard(future)

    try:
        _in_worker(work)
    except RuntimeError:  # there are too many threads
        if threads is not None:
            threads.release()
        raise
    try:
        return future.result(min(max(deadline - time.monotonic(), 0), threading.TIMEOUT_MAX))
    except TimeoutError:
        hanging.add(future)
        if future.done():  # the call itself raised it, or it ended at this moment
            hanging.discard(future)
            return future.result()
        raise too_long from None


def race(
    first: Callable[[], T],
    after: float,
    second: Callable[[], Callable[[], T] | None],
    discard: Callable[[T | BaseException], None],
) -> list[tuple[int, T | BaseException]]:
    """Make a call, and a second one as well if it takes long, until one of them succeeds.

    Args:
        first: The call.
        after: After how many seconds the second is made.
        second: Returns the second call; None if there is to be none.
        discard: Is given what comes too late. A call is not interrupted; it goes on in its thread.

    Returns:
        Those that ended, in this order: 0 for the first or 1 for the second, with the result or the error. All but the
        last are errors.
    """
    outcomes: queue.SimpleQueue[tuple[int, T | BaseException]] = queue.SimpleQueue()
    ended: list[tuple[int, T | BaseException]] = []
    lock, is_over, n_calls = threading.Lock(), threading.Event(), 1

    def start(number: int, call: Callable[[], T]) -> None:
        def work() -> None:
            outcome: T | BaseException
            try:
                outcome = call()
            except BaseException as error:  # noqa: BLE001  # returned to the waiting thread
                outcome = error
            with lock:
                if not is_over.is_set():
                    outcomes.put((number, outcome))
                    return
            discard(outcome)

        _in_worker(work)

    start(0, first)
    try:
        with suppress(queue.Empty):
            ended.append(outcomes.get(timeout=after))
        if not ended and (other := second()) is not None:
            n_calls = 2
            start(1, other)
        while not ended or (isinstance(ended[-1][1], BaseException) and len(ended) < n_calls):
            ended.append(outcomes.get())
    finally:
        with lock:
            is_over.set()
        while not outcomes.empty():
            discard(outcomes.get()[1])
    return ended


def _in_worker(work: Callable[[], None]) -> None:
    """Have a thread do some work that raises nothing. Idle threads are used again: starting one takes much longer."""
    try:
        inbox = _idle_workers.pop()
    except IndexError:
        inbox = queue.SimpleQueue()
        threading.Thread(target=_serve, args=(inbox,), name="unirouter-call", daemon=True).start()
    inbox.put(work)


def _serve(inbox: queue.SimpleQueue[Callable[[], None]]) -> None:
    while True:
        inbox.get()()
        if len(_idle_workers) >= _MAX_IDLE_WORKERS:
            return
        _idle_workers.append(inbox)


class HangGuard:
    """Makes calls that may never return: each with a timeout, in a limited number of threads.

    After three timeouts in a row, calls fail at once for 30 seconds. Then one call is let through. If that takes too
    long as well, the pause doubles, up to an hour; otherwise all are let through again.
    """

    def __init__(self) -> None:
        self._timeouts = 0  # in a row
        self._pause = 0.0  # seconds
        self._paused_until = 0.0  # on the monotonic clock
        self._lock = ForkSafeLock()
        self.after_fork()
        renew_after_fork(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return HangGuard, ()  # a copy has seen no timeouts

    def after_fork(self) -> None:
        """See `renew_after_fork`."""
        self._threads = threading.Semaphore(_MAX_GUARDED_THREADS)

    def call(self, timeout: float | None, function: Callable[[], T]) -> T:
        """Return the result of a function.

        Args:
            timeout: After how many seconds to give up; None for never, and then it is called without any guard.
            function: The function.

        Raises:
            TimeoutError: If it takes longer, or if the calls before it did.
            Exception: What the function raises.
        """
        if timeout is None:
            return function()
        with self._guarded(timeout):
            return run_with_timeout(timeout, function, self._threads)

    async def acall(self, timeout: float | None, function: Callable[[], Awaitable[T]]) -> T:  # noqa: ASYNC109  # it guards it
        """Async version of `call`. What takes too long is cancelled."""
        if timeout is None:
            return await function()
        import asyncio

        with self._guarded(timeout):
            async with asyncio.timeout(timeout):
                return await function()

    @contextmanager
    def _guarded(self, timeout: float) -> Iterator[None]:
        is_probe = self._begin(timeout)
        try:
            yield
        except Exception as error:
            self._end(is_probe=is_probe, is_timeout=isinstance(error, TimeoutError))
            raise
        self._end(is_probe=is_probe, is_timeout=False)

    def _begin(self, timeout: float) -> bool:
        """Return whether this call is the one that is let through after a pause."""
        with self._lock:
            if self._timeouts < _TIMEOUTS_UNTIL_PAUSE:
                return False
            wait = self._paused_until - time.monotonic()
            if wait > 0:
                msg = f"The last calls took too long; the next one is made in {wait:.0f} s."
                raise TimeoutError(msg)
            self._paused_until = time.monotonic() + timeout  # the other calls do not wait for the outcome
            return True

    def _end(self, *, is_probe: bool, is_timeout: bool) -> None:
        with self._lock:
            if not is_timeout:
                self._timeouts, self._pause = 0, 0.0
                return
            self._timeouts += 1
            if is_probe or self._timeouts == _TIMEOUTS_UNTIL_PAUSE:
                self._pause = min(max(2 * self._pause, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
                self._paused_until = time.monotonic() + self._pause


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


async def off_loop(is_long: bool, function: Callable[..., T], *arguments: Any) -> T:  # noqa: FBT001
    """Call a function in a thread if it takes long, so that the event loop goes on, or else here, which is quicker."""
    import asyncio

    return await asyncio.to_thread(function, *arguments) if is_long else function(*arguments)


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
