"""A conversation as one model takes it, whichever models wrote it.

Providers do not understand all of each other's messages. Thoughts and their signatures, the ids of items and responses,
citations, the provider's own tools and marks for its cache are refused elsewhere, or break the client. What everybody
takes is text, and tool calls with their results.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage

from unirouter_integrations.langchain._capabilities import bare_model, kind_of
from unirouter_integrations.langchain._messages import model_of
from unirouter_integrations.serving._tool_ids import BRIDGE, ToolIds, is_of_mistral

_PORTABLE_SETTINGS = frozenset({"max_tokens", "stop", "temperature"})  # which every provider's model takes
_TAKE_MARKS = {"cache_control": ("anthropic", "litellm", "openrouter"), "cachePoint": ("bedrock",)}
_PRIVATE = re.compile("reasoning|thinking|signature")  # in the keys of what only its author can read


def history_for(messages: Sequence[BaseMessage], name: str, model: object) -> list[BaseMessage]:
    """A conversation for a model, without what is foreign to it. Messages that need no change are passed on.

    An answer of another provider becomes its text and its tool calls. So does one with thoughts in it by another model
    of the same provider, if a router noted who wrote it: behind one client there may be different servers.

    Args:
        messages: The conversation; it is not changed.
        name: The name that the router has for the model.
        model: The chat model, bare or bound.
    """
    bare: Any = bare_model(model)
    kind = kind_of(bare)
    if kind == "unirouter":  # it does the same for its own models
        return [*messages]
    strict = is_of_mistral(f"{kind} {getattr(bare, 'model_name', '')} {getattr(bare, 'model', '')}")
    marks = [mark for mark, takers in _TAKE_MARKS.items() if not any(taker in kind for taker in takers)]
    is_own = cache(lambda provider: provider in kind or provider == bare._get_ls_params().get("ls_provider"))  # noqa: SLF001
    ids, given = ToolIds(strict=strict), list[BaseMessage]()
    for message in messages:
        taken: BaseMessage | None = message
        if isinstance(message, AIMessage):
            foreign = _is_foreign(message, name, is_own if kind else None)
            calls = [*_calls(message, messages)] if foreign else message.tool_calls
            had = [call["id"] or call["name"] for call in calls]
            called = ids.of_calls(had, foreign=foreign or model_of(message) not in {None, name})
            taken = _portable(message, calls, called) if foreign or called != had else message
        elif isinstance(message, ToolMessage):
            if (called_by := ids.of_result(message.tool_call_id)) != message.tool_call_id:
                taken = message.model_copy(update={"tool_call_id": called_by})
        elif strict and isinstance(message, HumanMessage) and given and isinstance(given[-1], ToolMessage):
            given.append(AIMessage(BRIDGE))
        if taken is not None:
            given.append(taken if isinstance(taken.content, str) else _unmarked(taken, marks))
    return given


def settings_for(settings: dict[str, Any], meant: BaseChatModel, model: BaseChatModel) -> dict[str, Any]:
    """The settings of a call; if they are meant for a model of another provider, those that every model takes."""
    if kind_of(meant) == kind_of(model):
        return settings
    return {key: value for key, value in settings.items() if key in _PORTABLE_SETTINGS}


def _is_foreign(message: AIMessage, name: str, is_own: Callable[[str], bool] | None) -> bool:
    """Whether an answer has to be made portable; without `is_own` only the note of a router tells."""
    author, provider = model_of(message), message.response_metadata.get("model_provider")
    if is_own and provider and not is_own(str(provider)):
        return True
    return author not in {None, name} and (not (is_own and provider) or any(map(_PRIVATE.search, _keys(message))))


def _keys(message: AIMessage) -> Iterator[str]:
    """The kinds of what an answer holds beside text."""
    yield from message.additional_kwargs
    for block in message.content:
        if isinstance(block, dict):
            yield from (str(block.get("type")), *block, *(block.get("extras") or ()))


def _calls(message: AIMessage, messages: Sequence[BaseMessage]) -> Iterator[ToolCall]:
    """The tool calls of an answer; also those whose arguments were no JSON, if there are results of them."""
    yield from message.tool_calls
    for call in message.invalid_tool_calls:
        if any(isinstance(result, ToolMessage) and result.tool_call_id == call["id"] for result in messages):
            yield ToolCall(name=call["name"] or "unknown", args={}, id=call["id"], type="tool_call")


def _portable(message: AIMessage, calls: Sequence[ToolCall], ids: Sequence[str]) -> AIMessage | None:
    """The text and the tool calls of an answer; None if there is neither, which no provider takes."""
    text = message.text or _refusal(message)
    renamed = [ToolCall(**{**call, "id": called}) for call, called in zip(calls, ids, strict=True)]
    return AIMessage(text, name=message.name, tool_calls=renamed) if text or calls else None


def _refusal(message: AIMessage) -> str:
    """What a model said when it refused, which is no text."""
    said = [block.get("refusal") for block in message.content if isinstance(block, dict)]
    return "".join(filter(None, [*said, message.additional_kwargs.get("refusal")]))


def _unmarked(message: BaseMessage, marks: Sequence[str]) -> BaseMessage:
    """The message without the marks of other providers for their caches."""
    if not any(mark in block for block in message.content if isinstance(block, dict) for mark in marks):
        return message
    blocks: list[Any] = [
        {key: value for key, value in block.items() if key not in marks} if isinstance(block, dict) else block
        for block in message.content
    ]
    return message.model_copy(update={"content": [block for block in blocks if block]})
