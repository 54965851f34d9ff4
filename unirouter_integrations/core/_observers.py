"""What watches decisions: statistics, listeners and log records. It is beside the router's state, not in it."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from unirouter_integrations._concurrency import ForkSafeLock
from unirouter_integrations.core._decision import RoutingDecision

_MAX_COUNTED = 10_000  # decisions in the statistics, the most recent ones

_log = logging.getLogger("unirouter_integrations")

Listener = Callable[[RoutingDecision, float, str | None], None]
"""Is given each decision, how many seconds it took, and the name of the model it replaces (None: it replaces none)."""


class RouterStats(NamedTuple):
    """What a router decided recently.

    Attributes:
        decisions: How many decisions these figures are of: the most recent ones, at most 10,000.
        shares: The share of each model.
        expected_error: The mean expected error.
        expected_cost: The mean expected cost.
        fallbacks: How many of the decisions replaced a model that had failed, refused, or not passed a check.
    """

    decisions: int
    shares: dict[str, float]
    expected_error: float
    expected_cost: float
    fallbacks: int


class Observers:
    """Counts, logs and hands on the decisions of one router. Any number of threads may use it."""

    def __init__(self) -> None:
        self._recent: deque[tuple[str, float, float, str | None]] = deque(maxlen=_MAX_COUNTED)
        self._listeners: tuple[Listener, ...] = ()
        self._lock = ForkSafeLock()

    def note(self, decisions: Sequence[RoutingDecision], began: float, replaced: str | None = None) -> None:
        """Report some decisions.

        Args:
            decisions: The decisions.
            began: The `time.perf_counter()` at which deciding began.
            replaced: The model that they replace; None if they are first decisions.
        """
        self._recent.extend((one.model, one.expected_error, one.expected_cost, replaced) for one in decisions)
        if _log.isEnabledFor(logging.INFO):
            level = logging.DEBUG if replaced is None else logging.INFO
            for one in decisions:
                _log.log(level, "%s", one)
        for listener in self._listeners:
            for one in decisions:
                try:
                    listener(one, (time.perf_counter() - began) / len(decisions), replaced)
                except Exception as error:  # noqa: BLE001  # a failing listener must not fail the call
                    _log.warning("A listener raised %s.", type(error).__name__)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Add a listener, and return the function that removes it."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = tuple(each for each in self._listeners if each is not listener)

        return unsubscribe

    def stats(self) -> RouterStats:
        """Sum up the recent decisions."""
        recent = list(self._recent)
        if not recent:
            return RouterStats(0, {}, math.nan, math.nan, 0)
        models, errors, costs, replaced = zip(*recent, strict=True)
        n = len(recent)
        return RouterStats(
            n,
            {name: count / n for name, count in Counter(models).most_common()},
            math.fsum(errors) / n,
            math.fsum(costs) / n,
            sum(name is not None for name in replaced),
        )
