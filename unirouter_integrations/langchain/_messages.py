"""What a conversation is judged by, and which model works on it."""

from collections.abc import Callable, Sequence
from typing import Literal

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from unirouter_integrations.errors import InvalidInputError

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


def is_refusal(answer: AIMessage) -> bool:
    """Whether a provider reports that an answer is a refusal or was filtered."""
    reported = answer.response_metadata
    return bool(
        answer.additional_kwargs.get("refusal")
        or reported.get("finish_reason") in {"content_filter", "refusal", "SAFETY"}
        or reported.get("stop_reason") == "refusal"
    )


def model_of(answer: AIMessage) -> str | None:
    """The model that a router chose for an answer; None if the answer does not name it."""
    noted = answer.response_metadata.get("unirouter")
    return str(noted["model"]) if isinstance(noted, dict) and "model" in noted else None


def _joined(messages: Sequence[BaseMessage]) -> str:
    return "\n".join(text for message in messages if (text := message.text))
