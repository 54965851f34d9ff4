"""What a call costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.profiling.records import Usage

_PER = 1e6


@dataclass(frozen=True)
class Price:
    """The price of a model, in USD per million tokens.

    Attributes:
        input: Of tokens read.
        output: Of tokens written.
        cached_input: Of tokens read from the provider's prompt cache; None if that is no cheaper, or there is none.
    """

    input: float
    output: float
    cached_input: float | None = None

    def __post_init__(self) -> None:
        for what in ("input", "output", "cached_input"):
            value = getattr(self, what)
            if value is None and what == "cached_input":
                continue
            if not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
                msg = f"The {what} price should be USD per million tokens, at least 0, but is {value!r}."
                raise InvalidInputError(msg)

    def cost(self, usage: Usage) -> float:
        """What these tokens cost, in USD."""
        cached = self.input if self.cached_input is None else self.cached_input
        fresh = usage.input_tokens - usage.cached_tokens
        return (fresh * self.input + usage.cached_tokens * cached + usage.output_tokens * self.output) / _PER
