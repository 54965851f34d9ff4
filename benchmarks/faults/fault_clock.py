"""Thousands of calls on a clock turned by hand: random failures, outages and recoveries, in the default settings."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fault_faces import FACES
from fault_traffic import FIVE
from langchain_core.messages import BaseMessage
from llamaindex_fakes import Fake

from unirouter_integrations.serving import Health, ModelRegistry
from unirouter_integrations.testing import ChatFake

CALLS = 2000
RATES = (0.05, 0.1, 0.2)
SPEEDS = (2, 20, 200)  # calls a second
_MAIN = ("UniRouterLLM", "complete")  # the quickest; the rules are the same for all, as the others' row shows
_OTHERS = (("ChatUniRouter", "invoke"), ("UniRouterMiddleware", "invoke"), ("UniRouterQueryEngine", "query"))
_OUTAGE_FROM, _OUTAGE_TO = 10.0, 15.0  # seconds
_LONG = 60.0  # seconds of calls after an outage

Fails = Callable[[str, float], bool]
"""Whether a model fails at a time."""


class Failing(ChatFake):
    """Fails when it is told to."""

    fails: Callable[[str], None]

    def _reply(self, messages: list[BaseMessage], model: str) -> str:  # noqa: ARG002
        self.fails(model)
        return model


@dataclass
class Clocked:
    """What came of calls at a steady speed.

    Attributes:
        face: The face.
        scenario: What was wrong.
        speed: Calls a second.
        answered: The share of calls that were answered.
        possible: The share that could have been: some model would not have failed.
        best: The share of calls that the best model answered.
        attempts: How often models were asked, per call.
        most_attempts: How often they were asked per call while no model could answer; None if one always could.
        first_after: Seconds from the end of the outage to the first answer; None without an outage.
        best_after: Seconds from the end of the outage to the first answer of the best model.
    """

    face: str
    scenario: str
    speed: float
    answered: float
    possible: float
    best: float
    attempts: float
    most_attempts: float | None = None
    first_after: float | None = None
    best_after: float | None = None


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def clocked() -> list[Clocked]:
    """All scenarios for one face, and random failures for the others."""
    rows = [_called(*_MAIN, _random(rate), speed) for rate in RATES for speed in SPEEDS]
    rows.append(_called(*_MAIN, ("all fail 5%, longer", _at_random(0.05, FIVE)), 200, 3 * CALLS))
    rows.append(_called(*_MAIN, ("all fail 40%", _at_random(0.4, FIVE)), 20))
    rows.append(_called(*_MAIN, ("the best fails 5%", _at_random(0.05, FIVE[:1])), 200, 3 * CALLS))
    rows.append(_called(*_MAIN, ("each is down for 10 of 20 s in turn", _flapping), 2, 400))
    for what, models in (("the best is down for 5 s", FIVE[:1]), ("all are down for 5 s", FIVE)):
        rows.append(_called(*_MAIN, (what, _outage(models)), 20, int(20 * (_OUTAGE_TO + _LONG)), outage=True))
    rows += [_called(*face, _random(0.2), 200, CALLS // 2) for face in _OTHERS]
    return rows


def _random(rate: float) -> tuple[str, Fails]:
    return f"all fail {rate:.0%}", _at_random(rate, FIVE)


def _at_random(rate: float, models: tuple[str, ...]) -> Fails:
    chance = random.Random(f"{rate} {models}")  # noqa: S311
    return lambda model, now: model in models and chance.random() < rate


def _outage(models: tuple[str, ...]) -> Fails:
    return lambda model, now: model in models and _OUTAGE_FROM <= now < _OUTAGE_TO


def _flapping(model: str, now: float) -> bool:
    """Every other ten seconds, each model four seconds later than the one before it: two or three are always well."""
    return (now - 4 * FIVE.index(model)) % 20 < 10  # noqa: PLR2004


def _called(
    face: str, way: str, what: tuple[str, Fails], speed: float, n: int = CALLS, *, outage: bool = False
) -> Clocked:
    (scenario, fails), clock, n_asked = what, _Clock(), [0]
    would: dict[str, bool] = {}  # whether each model fails this call

    def ask(model: str) -> None:
        n_asked[0] += 1
        if would[model]:
            raise ConnectionError

    made, question = FACES[face][way], "poem number 1"
    if made.framework == "langchain":
        models: dict[str, Any] = {name: Failing(model=name, fails=ask) for name in FIVE}
    else:
        models = {name: Fake(model_name=name, reply=_reply(ask, name)) for name in FIVE}
    answers: list[tuple[float, str | None]] = []
    possible, in_vain = 0, []
    registry = ModelRegistry(models)
    registry.health = Health(clock)
    called = made.make(registry, {})
    for number in range(n):
        clock.now = number / speed
        would.update({name: fails(name, clock.now) for name in FIVE})
        before = n_asked[0]
        try:
            answers.append((clock.now, made.ask(called, question).split(":")[0]))
        except ConnectionError:
            answers.append((clock.now, None))
        possible += not all(would.values())
        if all(would.values()):
            in_vain.append(n_asked[0] - before)
    answered = [model for _, model in answers if model]
    after = [(now - _OUTAGE_TO, model) for now, model in answers if now >= _OUTAGE_TO and model] if outage else []
    return Clocked(
        face,
        scenario,
        speed,
        len(answered) / n,
        possible / n,
        answered.count(FIVE[0]) / n,
        n_asked[0] / n,
        sum(in_vain) / len(in_vain) if outage and in_vain else None,
        next((seconds for seconds, _ in after), None),
        next((seconds for seconds, model in after if model == FIVE[0]), None),
    )


def _reply(ask: Callable[[str], None], name: str) -> Callable[[Any], str]:
    def reply(_: Any) -> str:
        ask(name)
        return name

    return reply
