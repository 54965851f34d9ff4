"""Workers report to each other which models fail."""

from __future__ import annotations

import logging
import os

import numpy as np

from unirouter_integrations._checks import number
from unirouter_integrations._concurrency import PeriodicThread, renew_after_fork
from unirouter_integrations.learning import StatisticsStore
from unirouter_integrations.learning._stores import COUNTS, LOSSES, Sums, checked
from unirouter_integrations.serving._health import Health

_PREFIX = "health/"  # of the keys in the store

_log = logging.getLogger("unirouter_integrations")


class SharedHealth:
    """Exchanges the outcomes of calls with other workers, in a thread of its own, see `Health.share`.

    The store keeps how many calls of each model there have ever been, and how many failed. A worker adds its own, and
    takes what is added beyond them for calls elsewhere. A store that cannot be reached changes nothing.
    """

    def __init__(self, health: Health, store: StatisticsStore, every: float) -> None:
        number(every, "every, a number of seconds,", positive=True)
        health.unreported()  # what was before is no news
        self._health, self._store = health, store
        self._pending: tuple[dict[str, Sums], str] | None = None  # a report that the store may have or not
        self._known: dict[str, Sums] = {}
        self._added: dict[str, Sums] = {}  # since the store was last read
        self._is_away = False
        self._thread = PeriodicThread(self.exchange, every, "unirouter-health")
        renew_after_fork(self)
        self._thread.start()

    def exchange(self) -> None:
        """Report what happened here, and hear what happened elsewhere."""
        try:
            self._report()
            found = self._store.read([_PREFIX + model for model in self._health.models()])
        except Exception as error:  # noqa: BLE001  # a store that is away must not stop the thread
            if not self._is_away:
                _log.warning("The health of models is not shared: the store raised %s.", type(error).__name__)
            self._is_away = True
            return
        self._is_away = False
        for key, value in found.items():
            sums = checked(value, 1)
            if sums is None:
                continue
            if key in self._known:
                calls, failures = (sums - self._known[key] - self._added.get(key, 0.0))[[COUNTS, LOSSES], 0].tolist()
                if calls > 0:  # otherwise nobody called it, or the store was emptied
                    self._health.heard(key.removeprefix(_PREFIX), calls, min(max(failures, 0.0), calls))
            self._known[key] = sums
        self._added = {}

    def close(self) -> None:
        """End the exchange."""
        self._thread.stop()

    def after_fork(self) -> None:
        """See `renew_after_fork`. What the parent has not reported yet is the parent's."""
        self._pending = None

    def _report(self) -> None:
        """Add to the store what happened here. A report that failed is repeated under the same id, and counts once."""
        if self._pending is None:
            counted = {_PREFIX + model: each for model, each in self._health.unreported().items()}
            sums = {key: np.array([[0.0], [calls], [failed], [0.0], [0.0]]) for key, (calls, failed) in counted.items()}
            self._pending = sums, os.urandom(16).hex()
        sums, batch = self._pending
        if sums:
            self._store.add(sums, batch)
        self._pending = None
        self._added = {key: self._added.get(key, 0.0) + each for key, each in sums.items()} | {
            key: each for key, each in self._added.items() if key not in sums
        }
