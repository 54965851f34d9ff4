"""Tools that are bound, and what is said about their use, as each provider's client takes it."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from langchain_core.utils.function_calling import convert_to_openai_tool

from unirouter_integrations.langchain._capabilities import kind_of

_SAY = {"required": ("anthropic|bedrock|fireworks", "any"), "any": ("cohere", "required")}  # of `tool_choice`
_FAIL_ON = {"parallel_tool_calls": "google|ollama|bedrock|cohere", "strict": "cohere"}

ABOUT_TOOLS = frozenset(_FAIL_ON)
"""The settings of a call that are about its tools, which every model is given that knows them."""


class BoundTools(list[dict[str, Any]]):
    """The tools that a router's models bind, for those who look for them. They are not sent a second time."""


def as_bound(tools: Iterable[Any]) -> BoundTools:
    """Describe tools in the form of OpenAI; one that cannot be is an empty dict, and a provider's own is as it is."""
    described = BoundTools()
    for tool in tools:
        description = tool if isinstance(tool, dict) else {}
        with suppress(Exception):  # of a form that only the models know
            description = convert_to_openai_tool(tool)
        described.append(description)
    return described


def tool_arguments(said: Mapping[str, Any], model: object) -> dict[str, Any]:
    """What is said about the use of tools, in the words of a model's client, without what the client would fail on."""
    kind = kind_of(model)
    said = {key: value for key, value in said.items() if key not in _FAIL_ON or not re.search(_FAIL_ON[key], kind)}
    choice = said.get("tool_choice")
    if isinstance(choice, str) and choice in _SAY and re.search(_SAY[choice][0], kind):
        said["tool_choice"] = _SAY[choice][1]
    return said
