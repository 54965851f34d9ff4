"""The cost of going on with a conversation, for the model that has it in its prompt cache and for all others."""

from collections.abc import Iterable, Mapping, Sequence

from langchain_core.messages import AIMessage, BaseMessage

from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.grading import Price, Usage
from unirouter_integrations.langchain._capabilities import needs_of
from unirouter_integrations.langchain._messages import model_of
from unirouter_integrations.serving._registry import price_of_model
from unirouter_integrations.serving._serving import Serving

_CALLS = 1000  # costs are in USD per 1,000 calls
NO_PRICE = (
    'sticky="cache" needs the price of {!r}: '
    "models=ModelRegistry(models, prices={{name: Price(input, output, cached_input=...)}})."
)


def prices_of(names: Iterable[str], serving: Serving) -> dict[str, Price]:
    """The prices of some models, from the registry or as `profile_model` noted them.

    Raises:
        InvalidInputError: If one of them is not known.
    """
    prices, profiles = {}, serving.router.profiles
    for name in names:
        price = price_of_model(name, serving.models, profiles)
        if price is not None:
            prices[name] = price
        elif name in serving.models and name in profiles:  # otherwise it has been removed meanwhile
            raise InvalidInputError(NO_PRICE.format(name))
    return prices


def history_costs(messages: Sequence[BaseMessage], prices: Mapping[str, Price]) -> dict[str, float]:
    """What reading the conversation so far again adds to the next call of each model, in USD per 1,000 calls.

    The conversation so far is what the last answer has read and written, by its `usage_metadata`. The model that gave
    it reads at the cached price as large a part of it as its provider kept of the call before, by the cache reads of
    the last answer; all of it, if it has answered only once. Every other model reads all of it at the full price.

    Args:
        messages: The conversation.
        prices: The price of each model.
    """
    answers = [message for message in messages if isinstance(message, AIMessage)]
    if not answers:
        return {}
    last = answers[-1]
    warm, tokens = model_of(last), _tokens(last) or needs_of(messages).tokens
    kept = 1.0
    if len(answers) > 1 and model_of(answers[-2]) == warm and (could := _tokens(answers[-2])):
        kept = min(max(_cached(last) / could, 0.0), 1.0)
    return {
        name: _CALLS * price.cost(Usage(tokens, 0, round(tokens * kept) if name == warm else 0))
        for name, price in prices.items()
    }


def _tokens(answer: AIMessage) -> int:
    usage = answer.usage_metadata
    return usage.get("total_tokens", 0) if usage else 0  # it may be filled in part, or by hand


def _cached(answer: AIMessage) -> int:
    details = answer.usage_metadata.get("input_token_details") if answer.usage_metadata else None
    return (details or {}).get("cache_read") or 0
