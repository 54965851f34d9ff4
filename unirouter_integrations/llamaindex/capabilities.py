"""Which LLM can take a call at all, by its `metadata`; and what all of them together say."""

from collections.abc import Mapping, Sequence

from llama_index.core.llms import LLM, LLMMetadata
from llama_index.core.llms.function_calling import FunctionCallingLLM

from unirouter_integrations.errors import NoModelError
from unirouter_integrations.llamaindex.calls import Call

NO_MODELS = (
    "There is no model to choose from. Register one; or, if this UniRouterLLM comes from a pickle, which leaves its "
    "models out because they hold keys, put them back: llm.models.update(...)."
)
_NO_TOOLS = (
    "None of the models {} can take this call, which offers tools. Register one that can: a FunctionCallingLLM whose "
    "metadata.is_function_calling_model is true."
)


def takes_tools(model: LLM) -> bool:
    """Whether a model can be offered tools."""
    return isinstance(model, FunctionCallingLLM) and model.metadata.is_function_calling_model


def able(models: Mapping[str, LLM], call: Call) -> tuple[list[str], dict[str, str]]:
    """The names of the models that can take a call, and why the others cannot.

    Context windows are often not set by hand but the default ones, and the length is an estimate. So a call that is too
    long for all of them goes to those with the longest.

    Raises:
        NoModelError: If none can.
    """
    tool_less = [name for name, model in models.items() if call.with_tools and not takes_tools(model)]
    if len(tool_less) == len(models):
        raise NoModelError(_NO_TOOLS.format([*models]) if models else NO_MODELS)
    reasons = dict.fromkeys(tool_less, "it takes no tools")
    windows = {name: model.metadata.context_window for name, model in models.items() if name not in reasons}
    longest = max(windows.values())
    reasons |= {
        name: f"its context is limited to {window:,} tokens, and this call has about {call.tokens:,}"
        for name, window in windows.items()
        if call.tokens > window < longest
    }
    return [name for name in models if name not in reasons], reasons


def joint_metadata(models: Sequence[LLM]) -> LLMMetadata:
    """What holds whichever model is chosen; of tools, what a call that offers them can reach.

    Prompts are packed into `context_window` before the model is known, so it is the shortest one.
    """
    if not models:
        return LLMMetadata(model_name="unirouter", is_chat_model=True)
    metadata = [model.metadata for model in models]
    window = min(said.context_window for said in metadata)
    longest_answer = max(said.num_output for said in metadata)
    return LLMMetadata(
        model_name="unirouter",
        is_chat_model=True,
        is_function_calling_model=any(map(takes_tools, models)),
        context_window=window,
        num_output=min(longest_answer, window // 2),  # what is packed needs the rest
    )
