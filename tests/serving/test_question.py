"""The text that a conversation is judged by."""

from collections.abc import Sequence
from typing import Any, get_args

import pytest

from unirouter_integrations import InvalidInputError
from unirouter_integrations.serving._question import Turn, WaysToJudge, question_of

LONG = "How many of the numbers from one to a hundred are sums of two squares?"
OTHER = "Which poet of the nineteenth century wrote about the sea and its storms?"


def judged(turns: Sequence[str], way: Any = "recent_human") -> str:
    """What a conversation of the user's turns is judged by, an answer after each but the last."""
    messages = [turn for text in turns for turn in (Turn(text, "human"), Turn("an answer", "other"))][:-1]
    return question_of([Turn("be kind", "system"), *messages], way, lambda turn: turn)


@pytest.mark.parametrize(
    ("turns", "text"),
    [
        ([LONG], LONG),
        (["why?"], "why?"),
        ([LONG, "and in words?"], LONG),
        ([LONG, "and in words?", "go on", "もう一度"], LONG),
        ([LONG, OTHER], OTHER),
        ([LONG, OTHER, "shorter"], OTHER),
        (
            [LONG, "now only those that are sums of two cubes, too, please"],
            f"{LONG}\nnow only those that are sums of two cubes, too, please",
        ),
        (["Who wrote Faust?", "why?"], "Who wrote Faust?"),
        (["Who wrote Faust?", "Who wrote Emma, then?"], "Who wrote Faust?\nWho wrote Emma, then?"),
        ([LONG, "", "go on"], LONG),
    ],
)
def test_a_follow_up_keeps_its_subject(turns: list[str], text: str) -> None:
    """A turn that is too short to have one is judged by what it follows; one that has a subject, by itself."""
    assert judged(turns) == text


def test_a_question_that_is_said_again_changes_nothing() -> None:
    """Agents do that when they try again, within one loop."""
    assert judged(["a sum", "a sum"]) == "a sum"
    assert judged(["a poem", "a sum", "a sum"]) == judged(["a poem", "a sum"])


def test_of_many_short_turns_only_the_last_ones_count() -> None:
    """However long the conversation is."""
    turns = [f"What is the square of {number}?" for number in range(1000)]
    assert judged(turns) == "\n".join(turns[-8:])


@pytest.mark.parametrize(
    ("way", "text"),
    [
        ("recent_human", LONG),
        ("last_human", "why?"),
        ("system_and_last_human", "be kind\nwhy?"),
        ("conversation", f"be kind\n{LONG}\nan answer\nwhy?"),
        (lambda messages: messages[0].text, "be kind"),
    ],
)
def test_the_texts_are_what_their_names_say(way: Any, text: str) -> None:
    """Or what a function makes of the messages."""
    assert judged([LONG, "why?"], way) == text


@pytest.mark.parametrize("way", get_args(WaysToJudge))
def test_without_a_human_turn_everything_counts(way: Any) -> None:
    """A text is judged rather than none."""
    turns = [Turn("be kind", "system"), Turn("", "human"), Turn("a sum", "other")]
    assert question_of(turns, way, lambda turn: turn) == "be kind\na sum"
    assert question_of([], way, lambda turn: turn) == ""


def test_a_function_that_gives_no_text_is_named() -> None:
    """It says what came instead."""
    with pytest.raises(InvalidInputError, match=r"judged_by should return the text to judge by, a str, .* NoneType"):
        judged(["a sum"], lambda messages: None)
