"""The text that a conversation is judged by."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Literal, NamedTuple, TypeVar

from unirouter_integrations.errors import InvalidInputError

M = TypeVar("M")

WaysToJudge = Literal["recent_human", "last_human", "system_and_last_human", "conversation"]
# Among other forms and numbers in benchmarks/conversations.py, these keep 94% to 99% of follow-ups with the model of
# their question, at the least price for questions that change the subject.
_LONG = 64  # characters, of a turn that has a subject of its own
_ENOUGH = 192  # characters, of short turns together
_MINOR = 3 / 4  # of the length of the first of them: what is shorter says little beside it


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
    human = (turn.text for turn in map(read, reversed(messages)) if turn.text and turn.by == "human")
    text = "" if judged_by == "conversation" else recent(human) if judged_by == "recent_human" else next(human, "")
    if text and judged_by != "system_and_last_human":
        return text
    turns = [turn for turn in map(read, messages) if turn.text]
    if not text:
        return "\n".join(turn.text for turn in turns)
    return "\n".join([*(turn.text for turn in turns if turn.by == "system"), text])


def recent(human: Iterable[str]) -> str:
    """What the user asks now: the last turn, or the ones before it as well if it is too short to have a subject.

    "And in words?" is judged by the question that it follows, and a new question by itself.

    Args:
        human: The texts of the user's turns, newest first, which are read no further than they count.
    """
    taken: list[str] = []
    for text, _ in groupby(human):  # agents say a question again when they try again
        taken.append(text)
        if len(text) >= _LONG or sum(map(len, taken)) >= _ENOUGH:
            break
    enough = _MINOR * min(len(taken[-1]), _LONG) if taken else 0
    return "\n".join(text for text in reversed(taken) if len(text) >= enough)
