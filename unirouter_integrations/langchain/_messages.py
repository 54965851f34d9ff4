"""What a conversation is judged by, and which model works on it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage

from unirouter_integrations.grading import Usage
from unirouter_integrations.grading._models import usage_of
from unirouter_integrations.serving._failures import classify, reports_refusal
from unirouter_integrations.serving._question import Turn, WaysToJudge, question_of
from unirouter_integrations.serving._streams import StreamPart

_SILENT_BLOCKS = frozenset({"text", "refusal", "non_standard"})  # a text block says something by its text
_THOUGHTS = frozenset({"reasoning", "reasoning_content", "thinking", "redacted_thinking"})  # as blocks or beside them
_TOOL_BLOCKS = frozenset({"tool_use", "tool_call", "tool_call_chunk", "server_tool_use"})
_SAID_BESIDE = ("audio", "function_call")
_FINISH_REASONS = ("finish_reason", "stop_reason", "stopReason", "done_reason", "status")

JudgedBy = WaysToJudge | Callable[[Sequence[BaseMessage]], str]


def judged_text(messages: Sequence[BaseMessage], judged_by: JudgedBy) -> str:
    """The text that a conversation is judged by, see `question_of`. Images, files and audio have none."""
    return question_of(messages, judged_by, _turn)


def last_human_text(messages: Sequence[BaseMessage]) -> str:
    """The text of the last human message that has any, or of all messages if there is none."""
    return question_of(messages, "last_human", _turn)


def _turn(message: BaseMessage) -> Turn:
    by: Literal["human", "system", "other"] = "other"
    if is_human(message):
        by = "human"
    elif isinstance(message, SystemMessage):
        by = "system"
    return Turn(message.text, by)


def is_human(message: BaseMessage) -> bool:
    """Whether a message is from the user."""
    return isinstance(message, HumanMessage) or (
        isinstance(message, ChatMessage) and message.role in {"user", "human"}  # the only other class with a role
    )


def in_tool_loop(messages: Sequence[BaseMessage]) -> bool:
    """Whether a model has already worked on the last human message: then the same one should go on."""
    for message in reversed(messages):
        if isinstance(message, AIMessage):
            return True
        if is_human(message):
            return False
    return False


def last_note(messages: Sequence[BaseMessage]) -> Mapping[str, Any] | None:
    """The decision that a router noted on the last answer of a conversation; None if there is none."""
    return next((note_on(message) for message in reversed(messages) if isinstance(message, AIMessage)), None)


def message_in(answer: Any) -> AIMessage | None:
    """The message that an answer is or holds; None if it holds none, such as a form.

    Args:
        answer: A message, what `include_raw=True` makes of one, or what the model call of an agent returns.
    """
    if isinstance(answer, Mapping):
        answer = answer.get("raw")
    answer = getattr(answer, "model_response", answer)  # other middleware may extend it
    result = getattr(answer, "result", None)
    messages = result if isinstance(result, list) else [answer]
    return next((message for message in reversed(messages) if isinstance(message, AIMessage)), None)


def is_refusal(answer: object) -> bool:
    """Whether a provider reports that an answer is a refusal or was filtered. Answers are as of `message_in`."""
    error = answer.get("parsing_error") if isinstance(answer, Mapping) else None
    if isinstance(error, Exception) and classify(error) == "refused":
        return True
    message = message_in(answer)
    if message is None:
        return False
    reports: list[object] = [message.additional_kwargs]
    if message.response_metadata.keys() - {"model_provider"}:  # many parts of a stream report nothing else
        reports.append(message.response_metadata)
    if not isinstance(message.content, str):
        reports.append(message.content)
        with suppress(Exception):  # the standard blocks of content that is none of them
            reports.append(message.content_blocks)
    return any(map(reports_refusal, filter(None, reports)))


def is_empty(answer: object) -> bool:
    """Whether an answer says nothing; thoughts are no answer, and a form that was not filled in is None.

    Answers are as of `message_in`.
    """
    message = message_in(answer)
    return answer is None if message is None else not _answers(message)


def describe(chunk: object) -> StreamPart:
    """What one chunk of a stream says. What is no message, such as a parsed form, is content."""
    if not isinstance(chunk, AIMessage):
        return StreamPart()
    text = chunk.text
    has_content = bool(text) or _answers(chunk) or _thinks(chunk)
    return StreamPart(
        text=text,
        has_content=has_content,
        reports_finish="model_provider" in chunk.response_metadata,  # which LangChain's own clients of providers state
        is_finish=reports_end(chunk.response_metadata),
        is_refusal=not has_content and is_refusal(chunk),
        calls_tool=_calls_tool(chunk),
    )


def _answers(message: AIMessage) -> bool:
    """Whether a message says something beside its thoughts."""
    return bool(
        message.text
        or _calls_tool(message)
        or _block_types(message) - _THOUGHTS
        or any(map(message.additional_kwargs.get, _SAID_BESIDE))
    )


def _thinks(message: AIMessage) -> bool:
    return not _THOUGHTS.isdisjoint(_block_types(message)) or any(map(message.additional_kwargs.get, _THOUGHTS))


def _calls_tool(message: AIMessage) -> bool:
    calls = message.tool_calls or message.invalid_tool_calls or getattr(message, "tool_call_chunks", None)
    return bool(calls) or not _TOOL_BLOCKS.isdisjoint(_block_types(message))


def _block_types(message: AIMessage) -> set[Any]:
    """The types of the blocks of a message that are no text."""
    if isinstance(message.content, str):
        return set()
    return {block.get("type") for block in message.content if isinstance(block, dict)} - _SILENT_BLOCKS


def reports_end(reported: Mapping[str, Any]) -> bool:
    """Whether what a provider reports of an answer, or of a part of it, says why the answer ended."""
    return any(reported.get(key) for key in _FINISH_REASONS)


def usage_in(answer: Any) -> Usage | None:
    """The tokens that an answer, or a chunk of one, reports; None if it reports none."""
    message = message_in(answer)
    return None if message is None else usage_of(message.usage_metadata)


def note_on(answer: AIMessage) -> Mapping[str, Any] | None:
    """The decision that a router noted on an answer; None if there is none."""
    noted = answer.response_metadata.get("unirouter")
    return noted if isinstance(noted, dict) and isinstance(noted.get("model"), str) else None


def model_of(answer: AIMessage) -> str | None:
    """The model that a router chose for an answer; None if the answer does not name it."""
    noted = note_on(answer)
    return None if noted is None else noted["model"]
