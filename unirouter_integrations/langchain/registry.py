"""`ModelRegistry`: chat models by name, each with its price, that come and go while calls are in flight."""

import threading
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.runnables import Runnable, RunnableSequence
from typing_extensions import override

from unirouter_integrations.errors import InvalidInputError, MissingDependencyError
from unirouter_integrations.langchain.capabilities import bare_model
from unirouter_integrations.profiling import Price

Model = Runnable[LanguageModelInput, AIMessage]

_changing = threading.Lock()  # not one per registry: a registry can be copied, a lock cannot


class _Entry(NamedTuple):
    model: Model
    price: Price | None


class ModelRegistry(MutableMapping[str, Model]):
    """The chat models of one or several routers: a dict of them that any thread may change, with their prices.

    Hand the same one to every `ChatUniRouter` and `UniRouterMiddleware` that shall see the same models. A plain dict
    does as well; the registry adds prices, checks what is put in, and can be changed while another thread copies it.
    What a model can do is not kept here: it is the model's own `profile`, which its constructor takes.

    Args:
        models: The chat models by name; bare, with arguments bound, or named as `init_chat_model` names them
            (`"openai:gpt-5-nano"`, needs `langchain`), and then made at once.
        prices: The prices of those for which they are known.

    Raises:
        InvalidInputError: If something is no chat model, or a price is given for a model that is not there.

    Example:
        ```python
        registry = ModelRegistry({"mini": "openai:gpt-5-nano"}, prices={"mini": Price(0.05, 0.40, cached_input=0.005)})
        registry.register("sonnet", ChatAnthropic(...), price=Price(3, 15, cached_input=0.3))
        llm = ChatUniRouter(router=router, models=registry, sticky="cache")
        ```
    """

    def __init__(
        self, models: Mapping[str, Model | str] | None = None, *, prices: Mapping[str, Price] | None = None
    ) -> None:
        self._entries: dict[str, _Entry] = {}  # never changed, always replaced: who reads it needs no lock
        models, prices = models or {}, prices or {}
        if without := [name for name in prices if name not in models]:
            msg = f"There is a price for {without[0]!r}, but no such model; the models are {', '.join(models)}."
            raise InvalidInputError(msg)
        for name, model in models.items():
            self.register(name, model, price=prices.get(name))

    def register(self, name: str, model: Model | str, *, price: Price | None = None) -> None:
        """Put a model in, or replace the one of that name.

        Args:
            name: Its name.
            model: The chat model, or its name for `init_chat_model`.
            price: Its price; None to keep that of the model of this name, if it is known.

        Raises:
            InvalidInputError: If it is not a chat model, or the price not a `Price`.
        """
        made = checked_model(name, model)
        if price is not None and not isinstance(price, Price):
            msg = f"The price of {name!r} should be a Price(input, output), not {type(price).__name__}."
            raise InvalidInputError(msg)
        with _changing:
            self._entries = {**self._entries, name: _Entry(made, self.price(name) if price is None else price)}

    def snapshot(self) -> dict[str, Model]:
        """The models as they are at this moment."""
        return {name: entry.model for name, entry in self._entries.items()}

    def price(self, name: str) -> Price | None:
        """The price of a model; None if it is not known."""
        entry = self._entries.get(name)
        return None if entry is None else entry.price

    @override
    def __getitem__(self, name: str) -> Model:
        return self._entries[name].model

    @override
    def __setitem__(self, name: str, model: Model | str) -> None:
        self.register(name, model)

    @override
    def __delitem__(self, name: str) -> None:
        with _changing:
            left = dict(self._entries)
            del left[name]
            self._entries = left

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    @override
    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"ModelRegistry({list(self._entries)})"


def snapshot(models: Mapping[str, Any]) -> dict[str, Any]:
    """The models of a registry or a dict, in a dict that nobody changes."""
    return models.snapshot() if isinstance(models, ModelRegistry) else dict(models)


def checked_model(name: object, model: Any) -> Model:
    """The model, made by `init_chat_model` if it is named by a string."""
    if not isinstance(name, str):
        msg = f"models should be named by str, not by {type(name).__name__}."
        raise InvalidInputError(msg)
    if isinstance(model, str):
        try:
            from langchain.chat_models import init_chat_model
        except ImportError as error:
            msg = f"The model {name!r} is named by a string, {model!r}; making it needs pip install langchain."
            raise MissingDependencyError(msg) from error
        return init_chat_model(model)
    bare = bare_model(model)
    ends_in_parser = isinstance(bare, RunnableSequence) and isinstance(bare.last, BaseOutputParser)
    if not isinstance(model, Runnable) or isinstance(model, BaseLLM) or ends_in_parser:
        msg = f"The model {name!r} should be a LangChain chat model, bare or bound, not {type(bare).__name__}."
        raise InvalidInputError(msg)
    return model
