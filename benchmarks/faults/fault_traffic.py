"""Many calls at once through real clients while models fail. Knows no framework and no router."""

import inspect
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fault_cells import Caller, Faces, new_question
from fault_server import HEALTHY, FaultServer, Way

FIVE = ("best", "second", "third", "fourth", "fifth")
BROKEN = ("hang", "503", "reset", "429 for 20 s", HEALTHY)
_TRANSIENT = ("500", "503", "429", "reset")
_CALLS, _AT_ONCE = 600, 16
_BURST = 200
_PATIENCE = 120.0  # seconds; two hundred calls at once take their time
_BURST_TIMEOUT = 10.0  # of an attempt: two hundred clients are made at once, which takes longer than an answer


@dataclass
class Row:
    """What came of some calls.

    Attributes:
        face: The face, or a peer.
        scenario: What was wrong.
        calls: How many calls there were.
        answered: The share of good answers.
        wrong: The share of answers that were not good.
        hangs: The share of calls without an end.
        attempts: How often models were asked, per call.
        best: How often the best model was asked, per call.
        seconds: The median time of a call.
    """

    face: str
    scenario: str
    calls: int
    answered: float
    wrong: float
    hangs: float
    attempts: float
    best: float
    seconds: float


def traffic(
    faces: Faces, server: FaultServer, make: Callable[[Way, Mapping[str, str], Mapping[str, Any]], Any]
) -> list[Row]:
    """Call every face while five models fail at random, and while four of them always fail."""
    chance = random.Random(0)  # noqa: S311
    server.rules["flaky"] = lambda: chance.choice(_TRANSIENT) if chance.random() < 0.2 else HEALTHY  # noqa: PLR2004
    caller, rows = Caller(_PATIENCE), []
    with _quick(server):
        for name, ways in faces.items():
            plain = [way for way in ways.values() if not way.streamed]
            way = next(way for way in plain if not inspect.iscoroutinefunction(way.ask))
            face = make(way, dict.fromkeys(FIVE, server.url("flaky")), {})
            come = _called(caller, server, way, face, _CALLS, _AT_ONCE)
            rows.append(Row(name, "each fails 20% at random", _CALLS, *come))
            way = next(way for way in plain if inspect.iscoroutinefunction(way.ask))
            urls = {model: server.url(fault) for model, fault in zip(FIVE, BROKEN, strict=True)}
            face = make(way, urls, {"timeout": _BURST_TIMEOUT})
            come = _called(caller, server, way, face, _BURST, _BURST)
            rows.append(Row(name, "four of five broken, all at once", _BURST, *come))
    return rows


def _called(caller: Caller, server: FaultServer, way: Way, face: Any, n: int, at_once: int) -> list[float]:  # noqa: PLR0917
    """Make some calls, so many at once; the figures of a row."""
    questions = [new_question() for _ in range(n)]

    def ask(question: str) -> tuple[str, float]:
        began = time.perf_counter()
        outcome, _ = caller.ask(way, face, question, FIVE)
        return outcome, time.perf_counter() - began

    with ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(ask, questions))
    came = Counter(outcome for outcome, _ in found)
    return [
        *(came[outcome] / n for outcome in ("answered", "wrong", "hangs")),
        _asked(server, questions, FIVE) / n,
        _asked(server, questions, FIVE[:1]) / n,
        statistics.median(seconds for _, seconds in found),
    ]


def _asked(server: FaultServer, questions: Sequence[str], models: Sequence[str]) -> int:
    return sum(server.asked[question, model] for question in questions for model in models)


@contextmanager
def _quick(server: FaultServer) -> Iterator[None]:
    """Good answers that take no time, so that many calls do not take minutes."""
    latency, server.latency = server.latency, 0
    try:
        yield
    finally:
        server.latency = latency
