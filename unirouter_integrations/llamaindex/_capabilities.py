"""What an LLM is capable of, by its `metadata`; and what all LLMs of a router together are."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from llama_index.core.llms import LLM, LLMMetadata
from llama_index.core.llms.function_calling import FunctionCallingLLM

from unirouter_integrations._checks import shown
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.serving._registry import declared_capabilities, models_now


def as_llm(name: object, model: object) -> LLM:
    """Check that this is an LLM under a name.

    Raises:
        InvalidInputError: If it is not.
    """
    if not isinstance(name, str):
        msg = f"models should be named by str, not by {type(name).__name__}."
        raise InvalidInputError(msg)
    if not isinstance(model, LLM):
        msg = f"The model {shown(name)} should be a LlamaIndex LLM, not {type(model).__name__}."
        raise InvalidInputError(msg)
    return model


def capabilities_of(model: LLM) -> dict[str, Any]:
    """What an LLM is capable of, in the words that the rules of a call use."""
    takes_tools = isinstance(model, FunctionCallingLLM) and model.metadata.is_function_calling_model
    return {"tool_calling": takes_tools, "max_input_tokens": model.metadata.context_window}


def models_with_tools(models: Mapping[str, LLM]) -> dict[str, FunctionCallingLLM]:
    """The models that can be offered tools."""
    return {
        name: model
        for name, model in models_now(models).items()
        if isinstance(model, FunctionCallingLLM) and _capabilities(name, model, models)["tool_calling"]
    }


def may_repeat(models: Mapping[str, LLM]) -> bool:
    """Whether two models may take a call at once: no provider runs tools for one of them, which could act twice."""
    return not any(getattr(model, "built_in_tools", None) for model in models_now(models).values())


ContextWindow = Literal["widest", "shortest"] | int


def joint_metadata(models: Mapping[str, LLM], context_window: ContextWindow = "widest") -> LLMMetadata:
    """What holds whichever model is chosen; of tools, what a call that offers them can reach.

    What a `ModelRegistry` declares comes before what a model says. A model that cannot say anything, because its server
    is away, is left out.

    Args:
        models: The models.
        context_window: Prompts are packed into it before the model is known. `"widest"`: then models with a shorter one
            take no longer prompts. `"shortest"`: all models can take all prompts. Or a number of tokens.
    """
    stated = []
    for name, model in models_now(models).items():
        with suppress(Exception):
            stated.append((model.metadata, _capabilities(name, model, models)))
    if not stated:
        return LLMMetadata(model_name="unirouter", is_chat_model=True)
    windows = [each["max_input_tokens"] for _, each in stated]
    limits = {"widest": max(windows), "shortest": min(windows)}
    window = limits[context_window] if isinstance(context_window, str) else context_window
    return LLMMetadata(
        model_name="unirouter",
        is_chat_model=all(metadata.is_chat_model for metadata, _ in stated),
        is_function_calling_model=any(each["tool_calling"] for _, each in stated),
        context_window=window,
        num_output=min(
            max(metadata.num_output for metadata, _ in stated), window // 2
        ),  # what is packed needs the rest
    )


def _capabilities(name: str, model: LLM, models: Mapping[str, LLM]) -> dict[str, Any]:
    return {**capabilities_of(model), **declared_capabilities(name, models)}
