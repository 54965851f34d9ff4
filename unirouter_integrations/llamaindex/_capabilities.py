"""What an LLM is capable of, by its `metadata`; and what all LLMs of a router together are."""

from collections.abc import Mapping
from typing import Any

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


def joint_metadata(models: Mapping[str, LLM]) -> LLMMetadata:
    """What holds whichever model is chosen; of tools, what a call that offers them can reach.

    Prompts are packed into `context_window` before the model is known, so it is the shortest one. What a
    `ModelRegistry` declares comes before what a model says.
    """
    present = models_now(models)
    if not present:
        return LLMMetadata(model_name="unirouter", is_chat_model=True)
    stated = [_capabilities(name, model, models) for name, model in present.items()]
    window = min(each["max_input_tokens"] for each in stated)
    longest_answer = max(model.metadata.num_output for model in present.values())
    return LLMMetadata(
        model_name="unirouter",
        is_chat_model=True,
        is_function_calling_model=any(each["tool_calling"] for each in stated),
        context_window=window,
        num_output=min(longest_answer, window // 2),  # what is packed needs the rest
    )


def _capabilities(name: str, model: LLM, models: Mapping[str, LLM]) -> dict[str, Any]:
    return {**capabilities_of(model), **declared_capabilities(name, models)}
