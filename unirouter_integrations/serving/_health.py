"""Which models fail at present, and when each may be called again."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

_MAX_FAILURES_IN_A_ROW = 3


class _Record(NamedTuple):
    failures: int
    until: float | None = None  # on the monotonic clock; None: it is not cooling down
    is_requested: bool = False  # whether the provider asked to wait until then


class Health:
    """The recent failures of models, a circuit breaker for each.

    A model that fails three times in a row, or whose provider asks to wait, cools down. Then one call probes it: if it
    answers, its record is cleared; if not, it cools down again. Any number of threads may use it: nothing is changed in
    place, and a failure that is lost between two threads is one more call.
    """

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def failed(self, model: str, cooldown: float, retry_after: float | None = None) -> None:
        """Note that a call failed.

        Args:
            model: The model.
            cooldown: How long it cools down, in seconds, unless its provider says.
            retry_after: How long its provider asks to wait, in seconds; None if it does not say.
        """
        record = self._records.get(model, _Record(0))
        cools_down = (
            retry_after is not None or record.until is not None or record.failures + 1 >= _MAX_FAILURES_IN_A_ROW
        )
        until = time.monotonic() + (cooldown if retry_after is None else retry_after) if cools_down else None
        self._records[model] = _Record(record.failures + 1, until, retry_after is not None)

    def start_call(self, model: str, cooldown: float) -> None:
        """Note that a call begins. If it probes a model that was cooling down, no other call begins until it ends."""
        record = self._records.get(model)
        if record is not None and record.until is not None and record.until <= time.monotonic():
            self._records[model] = record._replace(until=time.monotonic() + cooldown, is_requested=False)

    def succeeded(self, model: str) -> None:
        """Note that a model answered. A wait that its provider asked for still holds."""
        record = self._records.get(model)
        if record is not None and not (record.is_requested and record.until and record.until > time.monotonic()):
            self._records.pop(model, None)

    def cooling_down(self, models: Iterable[str]) -> dict[str, float]:
        """Those of some models that are cooling down, and for how many seconds more."""
        if not self._records:
            return {}
        now = time.monotonic()
        records = {model: self._records.get(model) for model in models}
        return {
            model: record.until - now
            for model, record in records.items()
            if record is not None and record.until is not None and record.until > now
        }
