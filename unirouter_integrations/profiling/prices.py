"""What a call costs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

from unirouter_integrations.errors import InvalidInputError, MissingDependencyError
from unirouter_integrations.profiling.records import Usage

_PER = 1e6
_GIVEN = "price=Price(input, output), in USD per million tokens"


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


def price_of(model: str) -> Price:
    """Look the list price of a model up in the installed release of genai-prices. Nothing is downloaded.

    It is the price of plain text tokens at the time of the lookup. Of a price that rises with the length of the prompt
    it is the first tier; a price for batches, a discount or a fee per request is not in it.

    Args:
        model: The provider and the name, as `init_chat_model` takes them ("openai:gpt-5-mini") or with a slash
            ("openrouter/openai/gpt-5-mini"). A name alone ("gpt-5-mini") is that of the maker's own service.

    Raises:
        InvalidInputError: If the model is unknown, or has no price per token.
        MissingDependencyError: If genai-prices is not installed.
    """
    try:
        from genai_prices import Usage as Tokens
        from genai_prices import calc_price
    except ImportError as error:
        msg = f"Looking a price up needs pip install 'unirouter-integrations[prices]'. Or give the price: {_GIVEN}."
        raise MissingDependencyError(msg) from error
    provider, name = re.split("[:/]", model, maxsplit=1) if re.search("[:/]", model) else (None, model)
    ask = partial(calc_price, model_ref=name, provider_id=provider)
    try:
        # One token at a time: the first tier, and nothing said here of how tiers and units are stored.
        read = _per_million(ask(Tokens(input_tokens=1, output_tokens=0)).input_price)
        cached = _per_million(ask(Tokens(input_tokens=1, cache_read_tokens=1, output_tokens=0)).input_price)
        written = _per_million(ask(Tokens(input_tokens=0, output_tokens=1)).output_price)
    except LookupError:
        of = "" if provider is None else f" of the provider {provider!r}"
        msg = (
            f"genai-prices knows no model {name!r}{of}. Name it as its provider does, with the provider before it "
            f'("openai:gpt-5-mini"), or give the price: {_GIVEN}.'
        )
        raise InvalidInputError(msg) from None
    if not (read or written):
        msg = f"genai-prices has no price per token for {model!r}. Give the price: {_GIVEN}; Price(0, 0) if it is free."
        raise InvalidInputError(msg)
    return Price(input=read, output=written, cached_input=cached if cached < read else None)


def _per_million(price: Decimal) -> float:
    """Scaled before it becomes a float: 0.25, not 0.24999999999999997."""
    return float(price * int(_PER))
