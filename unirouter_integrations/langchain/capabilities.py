"""Which chat model can take a call at all: what the call needs, and what a model says it has."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables.base import RunnableBindingBase

from unirouter_integrations.errors import NoModelError

_CHARACTERS_PER_TOKEN = 4
_INPUTS = {
    "image": "image_inputs",
    "image_url": "image_inputs",
    "input_image": "image_inputs",
    "audio": "audio_inputs",
    "input_audio": "audio_inputs",
    "video": "video_inputs",
    "file": "pdf_inputs",
    "input_file": "pdf_inputs",
    "document": "pdf_inputs",
}
_BOTH_WAYS = frozenset({"tool_calling", "structured_output"})


class Needs(NamedTuple):
    """What a call needs of a model.

    Attributes:
        capabilities: Keys of LangChain's `ModelProfile` that have to be true, such as `image_inputs`.
        tokens: How long its input is, at four characters a token.
    """

    capabilities: frozenset[str]
    tokens: int


def needs_of(messages: Sequence[BaseMessage], asked_for: Iterable[str]) -> Needs:
    """What these messages need, with what was asked for beside them (`tool_calling`, `structured_output`)."""
    capabilities, characters = set(asked_for), 0
    for message in messages:
        content = message.content
        if isinstance(content, str):
            characters += len(content)
            continue
        for block in content:
            if isinstance(block, str):
                characters += len(block)
            elif (kind := str(block.get("type"))) in _INPUTS:
                capabilities.add(_INPUTS[kind])
            else:
                characters += len(str(block.get("text", "")))
    return Needs(frozenset(capabilities), characters // _CHARACTERS_PER_TOKEN)


def why_not(model: object, needs: Needs) -> str | None:
    """Why a model cannot take a call; None if it can, or says nothing of what is needed."""
    bare = bare_model(model)
    profile = _profile_of(bare)
    for capability in sorted(needs.capabilities):
        if capability in _BOTH_WAYS:
            if not _takes_tools(model, bare, profile) and not (
                capability == "structured_output"
                and profile.get(capability)
                and hasattr(model, "with_structured_output")
            ):
                return "it takes no tools" if capability == "tool_calling" else "it has no structured output"
        elif profile.get(capability) is False:
            return f"it takes no {capability.removesuffix('_inputs')} inputs"
    longest = profile.get("max_input_tokens")
    if longest is not None and needs.tokens > longest:
        return f"its input is limited to {longest:,} tokens, and this one has about {needs.tokens:,}"
    return None


def able(models: Mapping[str, object], needs: Needs) -> tuple[tuple[str, ...], dict[str, str]]:
    """The names of the models that can take a call, and why the others cannot.

    Raises:
        NoModelError: If none can.
    """
    reasons = {name: reason for name, model in models.items() if (reason := why_not(model, needs)) is not None}
    names = tuple(name for name in models if name not in reasons)
    if models and not names:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        msg = f"None of the models can take this call. {why}. Register one that can."
        raise NoModelError(msg)
    return names, reasons


def joint_profile(models: Iterable[object]) -> dict[str, Any]:
    """What a call can reach through a router over these models, in the words of LangChain's `ModelProfile`.

    An input of any kind or length that one model takes is sent there, so for inputs the most of any counts. Everything
    else, such as what comes out, is claimed only where it holds whichever model is chosen.
    """
    profiles = [_profile_of(bare_model(model)) for model in models]
    if not profiles or not all(profiles):
        return {}
    joint: dict[str, Any] = {}
    for key in set.intersection(*map(set, profiles)):
        values = [profile[key] for profile in profiles]
        if all(isinstance(value, bool) for value in values):
            joint[key] = any(values) if key in _INPUTS.values() or key == "tool_calling" else all(values)
        elif all(isinstance(value, int) for value in values):
            joint[key] = max(values) if key == "max_input_tokens" else min(values)
    # Agents take this as word that the provider's own format can be used, which differs from provider to provider.
    joint.pop("structured_output", None)
    return joint


def _profile_of(bare: object) -> Mapping[str, Any]:
    """What a chat model says it can do; empty if it says nothing."""
    return getattr(bare, "profile", None) or {}


def _takes_tools(model: object, bare: object, profile: Mapping[str, Any]) -> bool:
    if not hasattr(model, "bind_tools"):  # with_retry() and its like have none
        return False
    if (said := profile.get("tool_calling")) is not None:
        return bool(said)
    return not isinstance(bare, BaseChatModel) or type(bare).bind_tools is not BaseChatModel.bind_tools


def bare_model(model: object) -> object:
    """The model without what is bound to it."""
    while isinstance(model, RunnableBindingBase):
        model = model.bound
    return model
