"""What a conversation is judged by."""

from collections.abc import Sequence

from langchain_core.messages import BaseMessage, HumanMessage


def last_human_text(messages: Sequence[BaseMessage]) -> str:
    """The text of the last human message that has any, or of all messages if there is none.

    In a loop of tool calls it stays the same, and so does the model. Of images, files and audio there is no text.
    """
    human = [text for message in messages if is_human(message) and (text := message.text)]
    return human[-1] if human else "\n".join(message.text for message in messages)


def is_human(message: BaseMessage) -> bool:
    """Whether a message is the user's."""
    return isinstance(message, HumanMessage) or getattr(message, "role", None) in {"user", "human"}
