"""The values of grading: examples, answers, tokens, scores and scorers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple, NoReturn

import numpy as np

from unirouter_integrations._checks import number, shown
from unirouter_integrations.errors import InvalidInputError

_ROUNDING = 1e-6  # how far outside of 0 ... 1 a score may lie: a mean of float32 numbers is not exact


@dataclass(frozen=True)
class Example:
    """A prompt and its right answer.

    Attributes:
        prompt: The text that the model is given. The router assigns the example to clusters by it.
        reference: The right answer, in the form that the scorer reads: a text, a letter, a number, JSON, tool calls.
            None if the scorer needs none.
        metadata: Anything else that the scorer reads (plain JSON).
    """

    prompt: str
    reference: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Usage(NamedTuple):
    """The tokens of a call.

    Attributes:
        input_tokens: Tokens read, including cached ones.
        output_tokens: Tokens written, including reasoning.
        cached_tokens: Tokens read from the provider's prompt cache, a part of `input_tokens`.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """The answer of a model to an example.

    Attributes:
        text: Its text.
        usage: Its tokens; None if the model does not report them.
        tool_calls: The tools it called, each `{"name": ..., "args": {...}}`.
        seconds: How long the call took.
        logprob: The mean log-probability of its tokens; None if the model does not report it.
    """

    text: str
    usage: Usage | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0
    logprob: float | None = None

    def __str__(self) -> str:
        return self.text


class Score(NamedTuple):
    """How good an answer is.

    Attributes:
        value: From 0 (wrong) to 1 (right); None if the answer could not be graded.
        cost: The cost of grading, in USD.
        comment: The reason in words. It quotes nothing of the answer, unless a judge wrote it.
    """

    value: float | None
    cost: float = 0.0
    comment: str = ""


@dataclass(frozen=True)
class Scorer:
    """Grades answers.

    Attributes:
        name: Identifies the way of grading in profiles and in the journal, which finds grades by it. The name of a
            callable includes a digest of its source and its settings, but not of the functions that it calls.
        function: Returns a `Score`, or anything else that a callable scorer may return, see `as_scorer`.
        model: The chat model that judges; None if there is none.
        local: Whether grading only computes something from the answer and the reference, without a call or a cost.
        calls_model: Whether grading calls a model. Its grades are stored, and its calls are retried.
    """

    name: str
    function: Callable[[Answer, Example], Awaitable[object]]
    model: object = None
    local: bool = False
    calls_model: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "calls_model", self.calls_model or self.model is not None)

    async def grade(self, answer: Answer, example: Example) -> Score:
        """Return the score of an answer.

        Raises:
            InvalidInputError: If the scorer cannot read the reference, or does not return a score.
        """
        return _as_score(self.name, await self.function(answer, example))

    async def check(self, example: Example) -> None:
        """Check that the scorer can read the reference of an example, before an answer is paid for.

        Raises:
            InvalidInputError: If it cannot.
        """
        if self.local:
            await self.grade(Answer(""), example)


def as_example(x: Example | Mapping[str, Any]) -> Example:
    """Make an `Example` of a mapping with the key "prompt" and, optionally, "reference".

    The other keys of the mapping become the example's metadata. An `Example` is returned as it is.

    Raises:
        InvalidInputError: If it is neither.
    """
    if isinstance(x, Example):
        return x
    if not isinstance(x, Mapping) or not isinstance(x.get("prompt"), str):
        found = f"a mapping with the keys {', '.join(map(shown, x))}" if isinstance(x, Mapping) else type(x).__name__
        msg = f'An example should be an Example, or a mapping with a "prompt" that is a text, not {found}.'
        raise InvalidInputError(msg)
    rest = {key: value for key, value in x.items() if key not in {"prompt", "reference"}}
    return Example(x["prompt"], x.get("reference"), rest)


def reference_texts(scorer: str, example: Example) -> list[str]:
    """Return the reference of an example, or each of a list of references, as a text.

    Raises:
        InvalidInputError: If it is something else.
    """
    reference = example.reference
    references = list(reference) if isinstance(reference, list | tuple) else [reference]
    if not references or not all(isinstance(each, str | Real) for each in references):
        refuse_reference(scorer, "a text or a number, or a list of these", example)
    return [str(each) for each in references]


def refuse_reference(scorer: str, needed: str, example: Example) -> NoReturn:
    """Raise an error that says which reference a scorer needs. It does not quote the reference, which may be private.

    Raises:
        InvalidInputError: Always.
    """
    found = "none" if example.reference is None else f"a {type(example.reference).__name__} that is not"
    msg = f"The scorer {scorer!r} needs {needed} as the reference of an example, but one has {found}."
    raise InvalidInputError(msg) from None


def _as_score(scorer: str, result: Any) -> Score:
    """Turn the result of a scorer into a score."""
    if isinstance(result, list):
        return _mean([_as_score(scorer, each) for each in result])
    if isinstance(result, Score):
        value, cost, comment = result
    elif isinstance(result, Mapping) and "score" in result:
        value, cost, comment = result["score"], 0.0, result.get("comment") or ""
    else:
        value, cost, comment = result, 0.0, ""
    if not (value is None or (isinstance(value, Real | np.bool_) and -_ROUNDING <= float(value) <= 1 + _ROUNDING)):
        found = shown(value) if isinstance(value, Real) else f"a {type(value).__name__}"  # a text may quote the answer
        msg = (
            f"The scorer {scorer!r} returned {found}. A score is a bool, a number from 0 (wrong) to 1 (right), or None "
            "if an answer could not be graded."
        )
        raise InvalidInputError(msg)
    cost = number(cost, f"The cost in USD that the scorer {scorer!r} returned")
    return Score(None if value is None else min(1.0, max(0.0, float(value))), cost, comment)


def _mean(scores: Sequence[Score]) -> Score:
    """Average the scores that have a value, and add up the costs of all."""
    values = [score.value for score in scores if score.value is not None]
    comment = "; ".join(filter(None, (score.comment for score in scores)))
    return Score(sum(values) / len(values) if values else None, sum(score.cost for score in scores), comment)
