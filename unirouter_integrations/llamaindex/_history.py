"""A conversation as one LLM takes it, whichever models wrote it.

LlamaIndex has blocks for what models say, but its clients fill them differently: arguments of tool calls as JSON or
parsed, ids that are missing or the same for two calls, signed thoughts, and more of their own in `additional_kwargs`.
What every client takes is text, and tool calls with their results.
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from llama_index.core.base.llms.types import CacheControl, CachePoint, TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.llms import LLM, ChatMessage, MessageRole

from unirouter_integrations.grading._models import field_of
from unirouter_integrations.serving._tool_ids import BRIDGE, ToolIds, is_of_mistral

_ANSWERERS = (MessageRole.ASSISTANT, MessageRole.MODEL, MessageRole.CHATBOT)
_RESULTS = (MessageRole.TOOL, MessageRole.FUNCTION)
# What the thoughts of a client's models have, or its `additional_kwargs`, and those of no other.
_OWN = {"anthropic": "signature", "bedrock": "signature", "google": "thought_signatures", "openai": "encrypted_content"}
_WANTS_SIGNATURES = re.compile(r"gemini-[3-9]")
_UNSIGNED = "skip_thought_signature_validator"  # it takes this for the signature of a call that it did not write
_CACHE_TYPES = {"anthropic": "ephemeral", "bedrock": "default"}  # no other client takes a cache point


def history_for(messages: Sequence[ChatMessage], name: str, model: LLM) -> list[ChatMessage]:
    """A conversation for a model, without what is foreign to it. Messages that need no change are passed on.

    An answer that this model did not write, by the note of a router in its `additional_kwargs`, becomes its text and
    its tool calls. Answers do not name their provider: without a note, signed thoughts tell whose they are.

    Args:
        messages: The conversation; it is not changed.
        name: The name that the router has for the model.
        model: The LLM.
    """
    kind = _kind(type(model))
    if "unirouter_integrations" in kind:  # it does the same for its own models
        return [*messages]
    model_name = str(getattr(model, "model", ""))  # its metadata may ask a server
    strict, unsigned = is_of_mistral(f"{kind} {model_name}"), bool(_WANTS_SIGNATURES.search(model_name))
    cache_type = next((type_ for client, type_ in _CACHE_TYPES.items() if client in kind), None)
    ids, given = ToolIds(strict=strict), list[ChatMessage]()
    for message in messages:
        taken = message
        if message.role in _ANSWERERS:
            foreign = _is_foreign(message, name, kind)
            calls = [*_calls(message)]
            called = ids.of_calls((call.tool_call_id or call.tool_name for call in calls), foreign=foreign)
            taken = _portable(message, calls, called, unsigned=unsigned) if foreign else message
            if not (taken.blocks or calls):
                continue  # nobody takes an answer that says nothing
        elif message.role in _RESULTS:
            taken = _result(message, ids)
        elif strict and message.role == MessageRole.USER and given and given[-1].role in _RESULTS:
            given.append(ChatMessage(BRIDGE, role=MessageRole.ASSISTANT))
        taken = _cached(taken, cache_type)
        # Google's client joins neighbours in the lists of the first one.
        given.append(_fresh(taken) if "google" in kind else taken)
    return given


@cache
def _kind(client: type) -> str:
    """Which providers' clients an LLM is made from, as text to look in."""
    return " ".join(made_of.__module__ for made_of in client.__mro__).lower()


def _is_foreign(message: ChatMessage, name: str, kind: str) -> bool:
    """Whether an answer has to be made portable."""
    if isinstance(noted := message.additional_kwargs.get("unirouter"), dict):
        return bool(noted.get("model") != name)
    held = [block.additional_information for block in message.blocks if isinstance(block, ThinkingBlock)]
    own = [key for client, key in _OWN.items() if client in kind]
    return not any(information.get(key) for key in own for information in (message.additional_kwargs, *held))


def _calls(message: ChatMessage) -> Iterator[ToolCallBlock]:
    """The tool calls of an answer; clients that write no blocks of them have them in `additional_kwargs`."""
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    yield from blocks
    for call in [] if blocks else message.additional_kwargs.get("tool_calls") or []:
        function: Any = field_of(call, "function") or call
        arguments = (field_of(function, key) for key in ("arguments", "input", "args"))
        yield ToolCallBlock(
            tool_call_id=field_of(call, "id") or field_of(call, "toolUseId"),
            tool_name=field_of(function, "name") or "unknown",
            tool_kwargs=next(filter(None, arguments), {}),
        )


def _portable(
    message: ChatMessage, calls: Sequence[ToolCallBlock], ids: Sequence[str], *, unsigned: bool
) -> ChatMessage:
    """The text and the tool calls of an answer; the same message if there is nothing else in it."""
    texts = [block for block in message.blocks if isinstance(block, TextBlock) and block.text]
    renamed = [
        call
        if call.tool_call_id == called and isinstance(call.tool_kwargs, dict)
        else ToolCallBlock(tool_call_id=called, tool_name=call.tool_name, tool_kwargs=_arguments(call.tool_kwargs))
        for call, called in zip(calls, ids, strict=True)
    ]
    blocks = [*texts, *renamed]
    is_same = len(blocks) == len(message.blocks) and all(map(lambda a, b: a is b, blocks, message.blocks))
    if is_same and message.additional_kwargs.keys() <= {"unirouter"} and not (unsigned and calls):
        return message
    signatures = {"thought_signatures": [*[None] * len(texts), _UNSIGNED]} if unsigned and calls else {}
    return ChatMessage(role=message.role, blocks=blocks, additional_kwargs=signatures)


def _arguments(given: dict[str, Any] | str) -> dict[str, Any]:
    """The arguments of a call, parsed; none if they are no JSON."""
    try:
        parsed = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _result(message: ChatMessage, ids: ToolIds) -> ChatMessage:
    """The result of a call, under the id that the call has now."""
    key = "tool_call_id" if "tool_call_id" in message.additional_kwargs else "call_id"
    called = message.additional_kwargs.get(key)
    if not isinstance(called, str) or (called_by := ids.of_result(called)) == called:
        return message
    return message.model_copy(update={"additional_kwargs": {**message.additional_kwargs, key: called_by}})


def _cached(message: ChatMessage, cache_type: str | None) -> ChatMessage:
    """The message with its cache points as the model's client takes them, or without."""
    if all(not isinstance(block, CachePoint) or block.cache_control.type == cache_type for block in message.blocks):
        return message
    point = CachePoint(cache_control=CacheControl(type=cache_type)) if cache_type else None
    blocks = [point if isinstance(block, CachePoint) else block for block in message.blocks]
    return message.model_copy(update={"blocks": [*filter(None, blocks)]})


def _fresh(message: ChatMessage) -> ChatMessage:
    copied: dict[str, Any] = {"blocks": [*message.blocks], "additional_kwargs": {**message.additional_kwargs}}
    return message.model_copy(update=copied)
