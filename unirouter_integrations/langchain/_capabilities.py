"""What a call needs of a chat model, and what a chat model is capable of."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables.base import RunnableBindingBase

from unirouter_integrations.serving._capabilities import CHARACTERS_PER_TOKEN, Needs

_CAPABILITY_OF_BLOCK = {
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
_NO_ATTACHMENTS = dict.fromkeys(_CAPABILITY_OF_BLOCK.values(), False)

# The forms of the tools that providers run themselves, and whose clients take them.
_SERVER_TOOLS = {
    r"web_search(_preview)?(_\d{4}_\d\d_\d\d)?|image_generation|computer_use_preview|local_shell": ("openai",),
    r"code_interpreter|mcp": ("openai", "groq"),
    r"file_search": ("openai", "google"),
    r"\w+_20\d{6}|mcp_toolset": ("anthropic",),
    r"google_\w+|url_context|code_execution": ("google",),
    r"browser_search": ("groq",),
}
# The clients of which it is known. A kind begins with the client's own name: some are made from OpenAI's.
_CLIENTS = re.compile("mistral|ollama|bedrock_converse|cohere|fireworks|together|anthropic|groq|google|openai")


def needs_of(messages: Sequence[BaseMessage], asked_for: Iterable[str] = ()) -> Needs:
    """What a call with these messages needs, with what is asked for beside them, such as `tool_calling`."""
    capabilities, characters = set(asked_for), 0
    for message in messages:
        content = message.content
        if isinstance(content, str):
            characters += len(content)
            continue
        for block in content:
            if isinstance(block, str):
                characters += len(block)
            elif (kind := str(block.get("type"))) in _CAPABILITY_OF_BLOCK:
                capabilities.add(_CAPABILITY_OF_BLOCK[kind])
            else:
                characters += len(str(block.get("text", "")))
    return Needs(frozenset(capabilities), characters // CHARACTERS_PER_TOKEN)


def capabilities_of(model: object) -> dict[str, Any]:
    """What a chat model is capable of, by its `profile` and its methods."""
    bare = bare_model(model)
    profile: Mapping[str, Any] = getattr(bare, "profile", None) or {}
    takes_tools = _takes_tools(bare, profile)
    has_form = bool(profile.get("structured_output")) and hasattr(bare, "with_structured_output")
    follows = _NO_ATTACHMENTS if profile.get("attachment") is False else {}  # many profiles say no more than that
    own = _server_tools(kind_of(bare))
    return {**follows, **profile, **own, "tool_calling": takes_tools, "structured_output": takes_tools or has_form}


def server_tools_in(tools: Iterable[Any]) -> list[str]:
    """The tools among these that a provider runs itself, as capabilities. Unknown forms are left to the models."""
    forms = [str(tool.get("type") or next(iter(tool), "")) for tool in tools if isinstance(tool, dict)]
    return [
        _capability(takers) for form in forms for known, takers in _SERVER_TOOLS.items() if re.fullmatch(known, form)
    ]


@cache
def _server_tools(kind: str) -> Mapping[str, bool]:
    """Which tools of providers a client, see `kind_of`, cannot have."""
    client = _CLIENTS.search(kind)
    return {_capability(takers): False for takers in _SERVER_TOOLS.values() if client and client[0] not in takers}


def _capability(takers: Iterable[str]) -> str:
    return f"server_tools_of_{'_or_'.join(takers)}"


def joint_profile(models: Iterable[tuple[object, Mapping[str, Any]]]) -> dict[str, Any]:
    """What a call can reach through a router over some models, in the words of LangChain's `ModelProfile`.

    A call with an input of some kind or length is sent to a model that takes it, so for inputs the most of any model
    counts. Everything else, such as outputs, is claimed only where it holds whichever model is chosen.

    Args:
        models: The models, each with its declared capabilities.
    """
    profiles = [{**(getattr(bare_model(model), "profile", None) or {}), **declared} for model, declared in models]
    if not profiles or not all(profiles):
        return {}
    joint: dict[str, Any] = {}
    for key in set.intersection(*map(set, profiles)):
        values = [profile[key] for profile in profiles]
        if all(isinstance(value, bool) for value in values):
            of_any = key in _CAPABILITY_OF_BLOCK.values() or key == "tool_calling"
            joint[key] = any(values) if of_any else all(values)
        elif all(isinstance(value, int) for value in values):
            joint[key] = max(values) if key == "max_input_tokens" else min(values)
    # Agents conclude from it that the provider's own format can be used, which differs from provider to provider.
    joint.pop("structured_output", None)
    return joint


def bare_model(model: object) -> object:
    """The model without what is bound to it."""
    while isinstance(model, RunnableBindingBase):
        model = model.bound
    return model


def kind_of(model: object) -> str:
    """Which providers' clients a model is, as text to look in; empty if it is no chat model.

    A client of servers with another provider's API is made from that provider's client, and named by it in answers.
    """
    return f"{model._llm_type}{_packages(type(model))}" if isinstance(model, BaseChatModel) else ""  # noqa: SLF001


@cache
def _packages(client: type) -> str:
    packages = dict.fromkeys(made_of.__module__.partition(".")[0] for made_of in client.__mro__)
    return "".join(f" {package}" for package in packages if package.startswith("langchain_") and "core" not in package)


def _takes_tools(bare: object, profile: Mapping[str, Any]) -> bool:
    if not hasattr(bare, "bind_tools"):
        return False
    if (stated := profile.get("tool_calling")) is not None:
        return bool(stated)
    return not isinstance(bare, BaseChatModel) or type(bare).bind_tools is not BaseChatModel.bind_tools
