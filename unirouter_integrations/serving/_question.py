"""The text that a conversation is judged by."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal, NamedTuple, TypeVar

from unirouter_integrations.errors import InvalidInputError

M = TypeVar("M")

WaysToJudge = Literal["recent_human", "last_human", "system_and_last_human", "conversation"]
_HAS_A_SUBJECT = 60  # characters; benchmarks/conversations.py compares this form and number with others


class Turn(NamedTuple):
    """A message as it is judged.

    Attributes:
        text: Its text; images, files and audio have none.
        by: Who wrote it: the user, the developer, or another.
    """

    text: str
    by: Literal["human", "system", "other"]


def question_of(
    messages: Sequence[M], judged_by: WaysToJudge | Callable[[Sequence[M]], str], read: Callable[[M], Turn]
) -> str:
    """The text that a conversation is judged by: that of all its messages where none with text is from the user.

    Args:
        messages: The conversation, in the classes of a framework.
        judged_by: What of it counts, or a function from the messages to the text.
        read: From one message to what is judged of it.

    Raises:
        InvalidInputError: If the function returns no text.
    """
    if callable(judged_by):
        text = judged_by(messages)
        if not isinstance(text, str):
            msg = f"judged_by should return the text to judge by, a str, but it returned {type(text).__name__}."
            raise InvalidInputError(msg)
        return text
    turns = [turn for turn in map(read, messages) if turn.text]
    human = [turn.text for turn in turns if turn.by == "human"]
    if judged_by == "conversation" or not human:
        return "\n".join(turn.text for turn in turns)
    if judged_by == "recent_human":
        return recent(human)
    system = [turn.text for turn in turns if turn.by == "system"] if judged_by == "system_and_last_human" else []
    return "\n".join([*system, human[-1]])


def recent(human: Sequence[str]) -> str:
    """The turns of the user from the last one on that is long enough to have a subject of its own.

    "And in words?" keeps the subject of the question before it, and a new question does not inherit the last one's.

    Args:
        human: The texts of these turns, at least one, oldest first.
    """
    said = [text for text, _ in groupby(human)]  # agents say a question again when they try again
    first = next((at for at in reversed(range(len(said))) if len(said[at]) >= _HAS_A_SUBJECT), 0)
    return "\n".join(said[first:])
