"""`record`: what the calls of a block decided, took and cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from unirouter_integrations.core import RoutingDecision
from unirouter_integrations.grading import Usage
from unirouter_integrations.grading._models import total_usage


@dataclass(frozen=True)
class RecordedCall:
    """An answer of a model, and what it took.

    Attributes:
        decision: Why the model was chosen; `router.observe` takes it. It names the models that failed before.
        seconds: How long the answer took, of a stream until its end.
        usage: Its tokens; None if the provider does not report them.
        usd: Its cost in USD; None if its tokens or the price of its model are not known.
    """

    decision: RoutingDecision
    seconds: float
    usage: Usage | None
    usd: float | None

    @property
    def model(self) -> str:
        """The model that answered."""
        return self.decision.model


class Record(list[RecordedCall]):
    """The calls of a block, in the order of their answers. One that a check rejected was paid, and is among them."""

    @property
    def usd(self) -> float:
        """The cost of all calls whose cost is known, in USD."""
        return sum(call.usd for call in self if call.usd is not None)

    @property
    def usage(self) -> Usage:
        """The tokens of all calls whose tokens are known."""
        return total_usage([call.usage for call in self if call.usage is not None])

    def __repr__(self) -> str:
        shares = ", ".join(f"{model} {n}" for model, n in Counter(call.model for call in self).most_common())
        unknown = sum(call.usd is None for call in self)
        gap = f", without {unknown} of unknown cost" if unknown else ""
        return f"Record({len(self)} calls{f': {shares}' if shares else ''}; {self.usd:.6g} USD{gap})"


_current: ContextVar[tuple[Record, ...]] = ContextVar("unirouter_records", default=())


@contextmanager
def record() -> Iterator[Record]:
    """Record the routed calls that are made inside the block, in either framework.

    It holds for this thread, or for this task and those it starts. Blocks can be nested; a call is in all of them. A
    stream is recorded when it has ended, even if that is after the block.

    Example:
        ```python
        with record() as calls:
            agent.invoke({"messages": [HumanMessage("Who invented it?")]})
        print(calls, calls.usd, [call.model for call in calls])
        ```
    """
    found = Record()
    token = _current.set((*_current.get(), found))
    try:
        yield found
    finally:
        _current.reset(token)


def current_records() -> tuple[Record, ...]:
    """Those of the surrounding blocks."""
    return _current.get()
