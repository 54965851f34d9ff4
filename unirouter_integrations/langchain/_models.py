"""The chat models beside a router."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig, RunnableSequence
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import ensure_config, merge_configs, var_child_runnable_config

from unirouter_integrations._checks import shown
from unirouter_integrations.errors import InvalidInputError, MissingDependencyError
from unirouter_integrations.langchain._capabilities import bare_model

_REPLACED = frozenset({"tools", "tool_choice", "parallel_tool_calls", "response_format"})  # by what is bound later

Model = Runnable[LanguageModelInput, AIMessage]


def as_chat_model(name: object, model: Any) -> Model:
    """Make a chat model of what a user has; a text is a name for `init_chat_model`.

    Raises:
        InvalidInputError: If it is no chat model.
        MissingDependencyError: If it is a name and langchain is not installed.
    """
    if not isinstance(name, str):
        msg = f"models should be named by str, not by {type(name).__name__}."
        raise InvalidInputError(msg)
    if isinstance(model, str):
        try:
            from langchain.chat_models import init_chat_model
        except ImportError as error:
            msg = (
                f"The model {shown(name)} is named by a string, {shown(model)}; making it needs pip install langchain."
            )
            raise MissingDependencyError(msg) from error
        return init_chat_model(model)
    bare = bare_model(model)
    ends_in_parser = isinstance(bare, RunnableSequence) and isinstance(bare.last, BaseOutputParser)
    if not isinstance(model, Runnable) or isinstance(model, BaseLLM) or ends_in_parser:
        msg = f"The model {shown(name)} should be a LangChain chat model, bare or bound, not {type(bare).__name__}."
        raise InvalidInputError(msg)
    return model


def changed(model: Any, method: str, /, *arguments: Any, **keywords: Any) -> Any:
    """What `bind_tools` or `with_structured_output` makes of a model, within what is around it, such as retries."""
    if not isinstance(model, RunnableBindingBase) or isinstance(model.bound, RunnableSequence):
        return getattr(model, method)(*arguments, **keywords)
    inner = changed(model.bound, method, *arguments, **keywords)
    kwargs = {key: value for key, value in model.kwargs.items() if key not in _REPLACED}
    return model.model_copy(update={"bound": inner, "kwargs": kwargs})


def without_bindings(model: Any) -> tuple[Any, dict[str, Any], RunnableConfig]:
    """A chat model, and the arguments and the config that are bound to it."""
    kwargs, config = dict[str, Any](), RunnableConfig()
    while isinstance(model, RunnableBinding):
        kwargs, config, model = {**model.kwargs, **kwargs}, merge_configs(model.config, config), model.bound
    return model, kwargs, config


def binds_tools(model: object) -> bool:
    """Whether a model always has tools, which its provider may run: then two models at once could act twice."""
    while isinstance(model, RunnableBinding):
        if model.kwargs.get("tools"):
            return True
        model = model.bound
    return False


@contextmanager
def traced(config: RunnableConfig) -> Iterator[None]:
    """Add tags and metadata to the runs inside, which inherit them from the surrounding run."""
    token = var_child_runnable_config.set(merge_configs(ensure_config(), config))
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)
