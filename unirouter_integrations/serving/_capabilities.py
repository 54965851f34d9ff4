"""Which models can take a call: what the call needs, and what a model is declared to be capable of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

CHARACTERS_PER_TOKEN = 4  # of English text; the length of an input is only estimated

CAPABILITIES = frozenset(
    {
        "audio_inputs",
        "image_inputs",
        "max_input_tokens",
        "pdf_inputs",
        "structured_output",
        "tool_calling",
        "video_inputs",
    }
)
"""The capabilities that decide whether a model can take a call, in the words of LangChain's `ModelProfile`."""


_REASONS = {"tool_calling": "it takes no tools", "structured_output": "it has no structured output"}


class Needs(NamedTuple):
    """What a call needs of a model.

    Attributes:
        capabilities: The capabilities that must be there, such as `image_inputs`.
        tokens: The estimated length of its input.
    """

    capabilities: frozenset[str] = frozenset()
    tokens: int = 0


def incapabilities(capabilities: Mapping[str, Mapping[str, Any]], needs: Needs) -> dict[str, str]:
    """Why models cannot take a call.

    Lengths are estimates and limits are often defaults. So a call that is too long for all models that could otherwise
    take it is left to those with the highest limit.

    Args:
        capabilities: The capabilities of each model, by name. What is not stated is taken to be there.
        needs: What the call needs.

    Returns:
        The reason for each model that cannot take it.
    """
    reasons = {
        name: _REASONS.get(capability, f"it takes no {capability.replace('_', ' ')}")
        for capability in sorted(needs.capabilities)
        for name, stated in capabilities.items()
        if stated.get(capability) is False
    }
    limits = {
        name: stated["max_input_tokens"]
        for name, stated in capabilities.items()
        if name not in reasons and stated.get("max_input_tokens") is not None
    }
    unlimited = len(limits) + len(reasons) < len(capabilities)
    highest = max(limits.values(), default=0)
    for name, limit in limits.items():
        if needs.tokens > limit and (unlimited or limit < highest):
            reasons[name] = f"its input is limited to {limit:,} tokens, and this one has about {needs.tokens:,}"
    return reasons
