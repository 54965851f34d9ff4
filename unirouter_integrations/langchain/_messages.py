"""What a conversation is judged by, and which model works on it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.serving._failures import classify, reports_refusal
from unirouter_integrations.serving._streams import StreamPart

_SILENT_BLOCKS = frozenset({"text", "non_standard"})  # a text block says something by its text
_REASONING = ("reasoning_content", "reasoning")
_FINISH_REASONS = ("finish_reason", "stop_reason", "stopReason", "done_reason", "status")

JudgedBy = Literal["last_human", "system_and_last_human", "conversation"] | Callable[[Sequence[BaseMessage]], str]


def judged_text(messages: Sequence[BaseMessage], judged_by: JudgedBy) -> str:
    """The text that a conversation is judged by. Images, files and audio have none."""
    if callable(judged_by):
        text = judged_by(messages)
        if not isinstance(text, str):
            msg = f"judged_by should return the text to judge by, a str, but it returned {type(text).__name__}."
            raise InvalidInputError(msg)
        return text
    if judged_by == "conversation":
        return _joined(messages)
    text = last_human_text(messages)
    if judged_by == "system_and_last_human":
        system = _joined([message for message in messages if isinstance(message, SystemMessage)])
        return f"{system}\n{text}" if system else text
    return text


def last_human_text(messages: Sequence[BaseMessage]) -> str:
    """The text of the last human message that has any, or of all messages if there is none.

    In a loop of tool calls it stays the same, and so does the model.
    """
    human = [text for message in messages if is_human(message) and (text := message.text)]
    return human[-1] if human else _joined(messages)


def is_human(message: BaseMessage) -> bool:
    """Whether a message is from the user."""
    return isinstance(message, HumanMessage) or getattr(message, "role", None) in {"user", "human"}


def in_tool_loop(messages: Sequence[BaseMessage]) -> bool:
    """Whether a model has already worked on the last human message: then the same one should go on."""
    for message in reversed(messages):
        if isinstance(message, AIMessage):
            return True
        if is_human(message):
            return False
    return False


def last_model(messages: Sequence[BaseMessage]) -> str | None:
    """The model that a router chose for the last answer of a conversation; None if the answer does not name it."""
    return next((model_of(message) for message in reversed(messages) if isinstance(message, AIMessage)), None)


def is_refusal(answer: object) -> bool:
    """Whether a provider reports that an answer is a refusal or was filtered.

    Args:
        answer: A message, one that was put together from a stream, or what `include_raw=True` makes of one.
    """
    if isinstance(answer, Mapping):
        error = answer.get("parsing_error")
        return is_refusal(answer.get("raw")) or (isinstance(error, Exception) and classify(error) == "refused")
    if not isinstance(answer, AIMessage):
        return False
    blocks: list[Any] = []
    with suppress(Exception):  # the standard blocks of content that is none of them
        blocks = answer.content_blocks
    return any(map(reports_refusal, (answer.response_metadata, answer.additional_kwargs, answer.content, blocks)))


def describe(chunk: object) -> StreamPart:
    """What one chunk of a stream says. What is no message, such as a parsed form, is content."""
    if not isinstance(chunk, AIMessage):
        return StreamPart()
    reported = chunk.response_metadata
    content = chunk.content
    blocks = [block for block in content if not isinstance(block, str)] if isinstance(content, list) else []
    says_something = bool(
        chunk.text
        or chunk.tool_calls
        or getattr(chunk, "tool_call_chunks", None)
        or any(block.get("type") not in _SILENT_BLOCKS for block in blocks)
        or any(chunk.additional_kwargs.get(key) for key in _REASONING)
    )
    return StreamPart(
        text=chunk.text,
        has_content=says_something,
        reports_finish="model_provider" in reported,  # which LangChain's own clients of providers state
        is_finish=any(reported.get(key) for key in _FINISH_REASONS),
    )


def model_of(answer: AIMessage) -> str | None:
    """The model that a router chose for an answer; None if the answer does not name it."""
    noted = answer.response_metadata.get("unirouter")
    return str(noted["model"]) if isinstance(noted, dict) and "model" in noted else None


def _joined(messages: Sequence[BaseMessage]) -> str:
    return "\n".join(text for message in messages if (text := message.text))
