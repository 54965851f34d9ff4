"""When a call may begin: within the rate, within the budget, and not after the run was stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import monotonic

_SECONDS_PER_MINUTE = 60.0
_MAX_UNSPENT_SHARE = 0.1  # of a budget, that may be held back for answers as long as the output limit allows


@dataclass
class CallCost:
    """What a call has cost.

    Attributes:
        usd: The cost so far, in USD.
        is_answered: Whether the model has answered, so that its cost predicts that of other calls.
    """

    usd: float = 0.0
    is_answered: bool = False


class BudgetClosedError(Exception):
    """A call did not begin because the budget was closed while it waited."""


class Budget:
    """Decides when a call may begin, and counts what the calls cost.

    Args:
        max_cost: The most that may be spent, in USD; None for no limit.
        requests_per_minute: How many calls may begin in a minute; None for no limit.

    Attributes:
        spent: The cost of all calls so far, in USD.
        closed_by: Why no further call may begin; empty while calls may begin.
    """

    def __init__(self, max_cost: float | None, requests_per_minute: float | None) -> None:
        self.spent = 0.0
        self.closed_by = ""
        self._max_cost = max_cost
        self._interval = 0.0 if requests_per_minute is None else _SECONDS_PER_MINUTE / requests_per_minute
        self._next_start = 0.0
        self._reserved: list[float] = []
        self._highest_cost: float | None = None
        self._closed = asyncio.Event()
        self._changed = asyncio.Condition()

    def close(self, reason: str) -> None:
        """Let no further call begin."""
        if not self.closed_by:
            self.closed_by = reason
            self._closed.set()

    @asynccontextmanager
    async def call(self, min_cost: float) -> AsyncIterator[CallCost | None]:
        """Wait until the budget has room for a call, and record its cost when it has ended.

        Args:
            min_cost: What the call costs at least, in USD.

        Yields:
            Where to record the cost; None if the call must not be made.
        """
        if not await self._reserve(min_cost):
            yield None
            return
        cost = CallCost()
        try:
            yield cost
        finally:
            async with self._changed:
                self._reserved.remove(min_cost)
                self.spent += cost.usd
                if cost.is_answered:
                    self._highest_cost = max(self._highest_cost or 0.0, cost.usd)
                self._changed.notify_all()

    def can_reserve(self, cost: float) -> bool:
        """Whether each call may reserve this much, in USD, without leaving a large share of the budget unspent."""
        return self._max_cost is not None and cost <= self._max_cost * _MAX_UNSPENT_SHARE

    async def wait_for_turn(self) -> None:
        """Wait until the rate allows another call.

        Raises:
            BudgetClosedError: If the budget was closed by then.
        """
        now = monotonic()
        start = max(self._next_start, now)
        self._next_start = start + self._interval
        await self._sleep(start - now)
        if self.closed_by:
            raise BudgetClosedError

    async def pause(self, seconds: float, *, for_all: bool) -> None:
        """Wait for some seconds, or until the budget is closed. With `for_all` no other call begins until then."""
        if for_all:
            self._next_start = max(self._next_start, monotonic() + seconds)
        await self._sleep(seconds)

    async def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._closed.wait()

    async def _reserve(self, min_cost: float) -> bool:
        """Reserve the cost of a call as soon as the calls in progress leave room for it."""
        async with self._changed:
            while not self.closed_by:
                # Each call in progress, and this one, counts as much as the most expensive one so far.
                reserved = sum(max(self._highest_cost or 0.0, each) for each in (*self._reserved, min_cost))
                fits = self._max_cost is None or self.spent + reserved <= self._max_cost
                is_alone = not self._reserved
                # The first call is made alone, because nothing is known of what a call costs.
                if fits and (is_alone or self._max_cost is None or self._highest_cost is not None):
                    self._reserved.append(min_cost)
                    return True
                if is_alone:
                    self.close(f"max_cost, {self._max_cost} USD, of which this run has spent {self.spent:.6g}")
                    break
                await self._changed.wait()
            self._changed.notify_all()
            return False
