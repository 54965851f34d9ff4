"""What a call costs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

from unirouter_integrations._checks import number, requires, shown
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.grading._records import Usage

_PER_TOKENS = 1_000_000  # prices are per million tokens, as providers list them
_HOW_TO_GIVE = "price=Price(input, output), in USD per million tokens"

_ID_OF_BEDROCK = re.compile(r"([a-z]{2,6}\.)?[a-z0-9]+\.[a-z][\w.-]*:\d+")  # region, maker, model and version


@dataclass(frozen=True)
class Price:
    """The price of a model, in USD per million tokens.

    Attributes:
        input: Price of tokens read.
        output: Price of tokens written.
        cached_input: Price of tokens read from the provider's prompt cache; None if that is no cheaper.
    """

    input: float
    output: float
    cached_input: float | None = None

    def __post_init__(self) -> None:
        for name in ("input", "output", "cached_input"):
            value = getattr(self, name)
            if value is not None or name != "cached_input":
                object.__setattr__(self, name, number(value, f"The {name} price, in USD per million tokens,"))

    def cost(self, usage: Usage) -> float:
        """Return the cost of these tokens, in USD."""
        cached = self.input if self.cached_input is None else self.cached_input
        fresh = usage.input_tokens - usage.cached_tokens
        return (fresh * self.input + usage.cached_tokens * cached + usage.output_tokens * self.output) / _PER_TOKENS


def price_of(model: str) -> Price:
    """Look up the list price of a model in the installed release of genai-prices. Nothing is downloaded.

    It is the price of plain text tokens at the time of the lookup. If the price rises with the length of the prompt, it
    is that of the first tier. Batch prices, discounts and fees per request are not included.

    Args:
        model: The provider and the name, as `init_chat_model` takes them ("openai:gpt-5-mini"), or with a slash
            ("openrouter/openai/gpt-5-mini"). A name alone ("gpt-5-mini") is that of the maker's own service, or an id
            of Bedrock ("us.anthropic.claude-sonnet-4-20250514-v1:0").

    Raises:
        InvalidInputError: If the model is unknown, or has no price per token.
        MissingDependencyError: If genai-prices is not installed.
    """
    with requires(f"Without {_HOW_TO_GIVE}, looking up the price", "prices"):
        from genai_prices import Usage as Tokens
        from genai_prices import calc_price
    provider, name = re.split("[:/]", model, maxsplit=1) if re.search("[:/]", model) else (None, model)
    if _ID_OF_BEDROCK.fullmatch(model):
        provider, name = "aws", model
    price_for = partial(calc_price, model_ref=name, provider_id=provider)
    try:
        # The cost of one token is the price of the first tier, however genai-prices stores tiers and units.
        read = _per_million(price_for(Tokens(input_tokens=1, output_tokens=0)).input_price)
        cached = _per_million(price_for(Tokens(input_tokens=1, cache_read_tokens=1, output_tokens=0)).input_price)
        written = _per_million(price_for(Tokens(input_tokens=0, output_tokens=1)).output_price)
    except LookupError:
        of_provider = "" if provider is None else f" of the provider {shown(provider)}"
        msg = (
            f"genai-prices knows no model {shown(name)}{of_provider}. Use the provider's name for it, with the "
            f'provider in front ("openai:gpt-5-mini"), or give the price: {_HOW_TO_GIVE}.'
        )
        raise InvalidInputError(msg) from None
    if not (read or written):
        msg = (
            f"genai-prices has no price per token for {shown(model)}. Give the price: {_HOW_TO_GIVE}; Price(0, 0) if "
            "it is free."
        )
        raise InvalidInputError(msg)
    return Price(input=read, output=written, cached_input=cached if cached < read else None)


def _per_million(price: Decimal) -> float:
    """Scale a price per token before it becomes a float: 0.25, not 0.24999999999999997."""
    return float(price * _PER_TOKENS)
