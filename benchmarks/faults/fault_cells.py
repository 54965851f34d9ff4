"""The cells of the matrix: every fault of a provider, in every way to call a face. Knows no framework and no router."""

import asyncio
import inspect
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from fault_server import ENDLESS, HEALTHY, PLAIN, STREAMED, Fault, FaultServer, Way, answer_of

LATENCY = 0.05  # seconds; of a good answer
TIMEOUT = 2.0  # seconds for an attempt, where that can be set
FIRST_TOKEN_TIMEOUT = 1.0  # seconds; the same until the first content of a stream
GUARD = 5.0  # seconds after which a call counts as hanging; enough for one attempt that ends by its timeout
MODELS = ("best", "second", "third")
REPEATS = 10  # calls in a row while the best model always fails
_WORKERS, _WAITING_WORKERS = 6, 48
_BASELINES = 5  # healthy calls of each way
_ALLOWED = {"answered": {"answered"}, "raised": {"raised"}, "cut": {"answered", "raised"}}

_numbers = itertools.count(1)


Faces = Mapping[str, Mapping[str, Way]]


@dataclass
class Cell:
    """One way to call one face while its best model has one fault.

    Attributes:
        face: The face, or a peer.
        way: How it is called.
        streamed: Whether the answer comes in parts.
        fault: What is wrong with the best model.
        outcomes: What came of each call: answered, wrong, raised or hangs.
        error: The class of the last error.
        seconds: How long the calls took, on average.
        attempts: How often models were asked, per call.
        best: How often the best model was asked, in all.
    """

    face: str
    way: str
    streamed: bool
    fault: str
    outcomes: list[str] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0
    attempts: float = 0
    best: int = 0

    @property
    def what(self) -> Fault:
        """The fault, and what should come of it."""
        return Fault() if self.fault == HEALTHY else (STREAMED if self.streamed else PLAIN)[self.fault]

    @property
    def verdict(self) -> str:
        """`right`, or what came of the calls in place of what should."""
        allowed = _ALLOWED[self.what.outcome]
        return next((outcome for outcome in self.outcomes if outcome not in allowed), "right")


def new_question() -> str:
    """A question that nobody has asked."""
    return f"poem number {next(_numbers)}"


class Caller:
    """Makes calls that may hang: the sync ones in threads, the async ones in one event loop.

    Args:
        guard: Seconds after which a call counts as hanging.
    """

    def __init__(self, guard: float = GUARD) -> None:
        self._guard = guard
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def ask(self, way: Way, face: Any, question: str, able: Iterable[str]) -> tuple[str, str | None]:
        """Call a face once.

        Args:
            way: How.
            face: What `way.make` made.
            question: The question.
            able: The models whose answers are good.

        Returns:
            What came of it, and the class of the error.
        """
        future = self._start(way.ask, face, question)
        wait([future], self._guard)
        if not future.done():
            future.cancel()
            return "hangs", None
        if error := future.exception():
            return "raised", type(error).__name__
        found = future.result()
        good = {answer_of(name, question) for name in able}
        right = set(found if isinstance(found, list) else [found]) <= good
        return ("answered" if right else "wrong"), None

    def _start(self, ask: Callable[[Any, str], Any], face: Any, question: str) -> "Future[Any]":
        """Begin a call. A call that is given up leaves its thread behind, until the server stops."""
        if inspect.iscoroutinefunction(ask):
            return asyncio.run_coroutine_threadsafe(ask(face, question), self._loop)
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def work() -> None:
            try:
                future.set_result(ask(face, question))
            except Exception as error:  # noqa: BLE001  # it is what is measured
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        return future


def all_cells(faces: Faces) -> Iterator[Cell]:
    """All cells of some faces, with a few healthy ones of each way to compare with."""
    for name, ways in faces.items():
        for how, way in ways.items():
            yield from (Cell(name, how, way.streamed, fault) for fault in (STREAMED if way.streamed else PLAIN))
            yield from (Cell(name, how, way.streamed, HEALTHY) for _ in range(_BASELINES))


def cells_in_a_row(faces: Faces) -> Iterator[Cell]:
    """One plain and one streamed way of each face, with the faults that should make a model cool down."""
    for name, ways in faces.items():
        for streamed in (False, True):
            how = next(how for how, way in ways.items() if way.streamed == streamed)
            for fault, what in (STREAMED if streamed else PLAIN).items():
                if what.blames and fault != "refused":  # the server does not see its calls
                    yield Cell(name, how, streamed, fault)


def run(
    cells: Iterable[Cell],
    faces: Faces,
    server: FaultServer,
    make: Callable[[Way, Mapping[str, str], Mapping[str, Any]], Any],
    repeats: int = 1,
) -> list[Cell]:
    """Make the calls of cells, in a random order, and those that mostly wait after the others.

    Args:
        cells: The cells; they are filled in.
        faces: The ways to call each face.
        server: The server that is called.
        make: Makes a face: of the way, the base URL of each model, and further settings.
        repeats: How many calls are made in a row, until one hangs.
    """
    caller, ordered = Caller(), list(cells)

    def fill(cell: Cell) -> None:
        way = faces[cell.face][cell.way]
        urls = {name: server.url(cell.fault if name == MODELS[0] else HEALTHY) for name in MODELS}
        face = make(way, urls, cell.what.settings)
        questions = []
        began = time.perf_counter()
        for _ in range(repeats):
            questions.append(new_question())
            able = MODELS if cell.fault == HEALTHY else MODELS[1:]
            outcome, cell.error = caller.ask(way, face, questions[-1], able)
            cell.outcomes.append(outcome)
            if outcome == "hangs":
                break
        cell.seconds = (time.perf_counter() - began) / len(questions)
        cell.attempts = sum(server.asked[each, name] for each in questions for name in MODELS) / len(questions)
        cell.best = sum(server.asked[each, MODELS[0]] for each in questions)

    shuffled = random.Random(0).sample(ordered, len(ordered))  # noqa: S311
    for workers, waiting in ((_WORKERS, False), (_WAITING_WORKERS, True)):
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(fill, [cell for cell in shuffled if (cell.fault in ENDLESS) == waiting]))
    return ordered
