"""`ModelRegistry`: models by name, with what belongs to each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

from unirouter_integrations._checks import check_known, check_name
from unirouter_integrations._concurrency import ForkSafeLock
from unirouter_integrations.core import LLMProfile
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.grading import Price
from unirouter_integrations.serving._capabilities import CAPABILITIES
from unirouter_integrations.serving._health import Health

_changing = ForkSafeLock()  # not one per registry: a registry can be copied, a lock cannot


class _Entry(NamedTuple):
    model: Any
    price: Price | None
    capabilities: Mapping[str, Any]


class ModelRegistry(MutableMapping[str, Any]):
    """Models by name, each with its price, its declared capabilities and its health.

    It serves both frameworks. Give the same registry to every chat model, LLM, middleware and query engine that should
    see the same models: a model that fails for one of them cools down for all. Any thread may change it while others
    use it. A plain dict works as well where names and models are enough.

    Args:
        models: The models by name, as the framework takes them: LangChain chat models, bare or bound, or names for
            `init_chat_model` (`"openai:gpt-5-nano"`); LlamaIndex LLMs.
        prices: The known prices.
        capabilities: What models are capable of, in the words of LangChain's `ModelProfile` (`"tool_calling"`,
            `"structured_output"`, `"image_inputs"`, `"max_input_tokens"` ...). It comes before what the model says.

    Attributes:
        health: The recent failures of the models.

    Raises:
        InvalidInputError: If something is no model, or a price or capability is given for a model that is not there.

    Example:
        ```python
        registry = ModelRegistry({"mini": "openai:gpt-5-nano"}, prices={"mini": Price(0.05, 0.40, cached_input=0.005)})
        registry.register("sonnet", ChatAnthropic(...), price=Price(3, 15, cached_input=0.3))
        llm = ChatUniRouter(router=router, models=registry, sticky="cache")
        ```
    """

    def __init__(
        self,
        models: Mapping[str, Any] | None = None,
        *,
        prices: Mapping[str, Price] | None = None,
        capabilities: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.health = Health()
        self._entries: dict[str, _Entry] = {}  # never changed, always replaced: reading it needs no lock
        models, prices, capabilities = models or {}, prices or {}, capabilities or {}
        check_known(prices, models, "prices names a model that is not there: models")
        check_known(capabilities, models, "capabilities names a model that is not there: models")
        for name, model in models.items():
            self.register(name, model, price=prices.get(name), capabilities=capabilities.get(name))

    def register(
        self, name: str, model: Any, *, price: Price | None = None, capabilities: Mapping[str, Any] | None = None
    ) -> None:
        """Add a model, or replace the one of that name.

        Args:
            name: Its name.
            model: The model.
            price: Its price; None keeps the price of the model of this name, if there is one.
            capabilities: Its declared capabilities; None keeps those of the model of this name.

        Raises:
            InvalidInputError: If it is no model, the price is no `Price`, or a capability is not known.
        """
        check_model(name, model)
        check_price(name, price)
        check_known(capabilities or (), CAPABILITIES, f"A declaration of what {name!r} is capable of")
        with _changing:
            old = self._entries.get(name, _Entry(None, None, {}))
            entry = _Entry(
                model,
                old.price if price is None else price,
                old.capabilities if capabilities is None else dict(capabilities),
            )
            self._entries = {**self._entries, name: entry}

    def snapshot(self) -> dict[str, Any]:
        """The models as they are at this moment, in a dict that nobody changes."""
        return {name: entry.model for name, entry in self._entries.items()}

    def price(self, name: str) -> Price | None:
        """The price of a model; None if it is not known."""
        entry = self._entries.get(name)
        return None if entry is None else entry.price

    def capabilities(self, name: str) -> Mapping[str, Any]:
        """The declared capabilities of a model; empty if none are declared."""
        entry = self._entries.get(name)
        return {} if entry is None else entry.capabilities

    def __getitem__(self, name: str) -> Any:
        return self._entries[name].model

    def __setitem__(self, name: str, model: Any) -> None:
        self.register(name, model)

    def __delitem__(self, name: str) -> None:
        with _changing:
            left = dict(self._entries)
            del left[name]
            self._entries = left

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"ModelRegistry({list(self._entries)})"


def models_now(models: Mapping[str, Any]) -> dict[str, Any]:
    """The models of a registry or a dict at this moment, in a dict that nobody changes."""
    return models.snapshot() if isinstance(models, ModelRegistry) else dict(models)


def check_model(name: object, model: object) -> None:
    """Raise an `InvalidInputError` if this is no model of either framework, nor the name of one."""
    check_name(name, "The name of a model")
    is_model = isinstance(model, str) or hasattr(model, "ainvoke") or hasattr(model, "achat")
    if isinstance(model, type) or not is_model:
        msg = (
            f"The model {name!r} should be a LangChain chat model, a LlamaIndex LLM, or a name for init_chat_model, "
            f"not {type(model).__name__}."
        )
        raise InvalidInputError(msg)


def check_price(name: str, price: object) -> None:
    """Raise an `InvalidInputError` if this is neither a `Price` nor None."""
    if price is not None and not isinstance(price, Price):
        msg = f"The price of {name!r} should be a Price(input, output), not {type(price).__name__}."
        raise InvalidInputError(msg)


def declared_capabilities(name: str, models: Mapping[str, Any]) -> Mapping[str, Any]:
    """The capabilities of a model that a registry declares; empty for a dict."""
    return models.capabilities(name) if isinstance(models, ModelRegistry) else {}


def price_of_model(name: str, models: Mapping[str, Any], profiles: Mapping[str, LLMProfile]) -> Price | None:
    """The price of a model: from the registry, or as `profile_model` noted it; None if neither is there."""
    price = models.price(name) if isinstance(models, ModelRegistry) else None
    return noted_price(profiles[name]) if price is None and name in profiles else price


def noted_price(profile: LLMProfile) -> Price | None:
    """The price that `profile_model` noted in a profile."""
    noted = profile.metadata.get("price")
    if isinstance(noted, dict) and {"input", "output"} <= noted.keys() <= set(Price.__match_args__):
        return Price(**noted)
    return None
