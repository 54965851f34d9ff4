"""What goes into profiling a model, and what comes out of each call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from unirouter_integrations.errors import InvalidInputError


@dataclass(frozen=True)
class Example:
    """A prompt and what a right answer to it is.

    Attributes:
        prompt: The text the model is asked, and by which the prompt is judged.
        reference: What a right answer is, in whatever form the scorer reads it: a text, a letter, a number, JSON,
            tool calls. None where the scorer needs none.
        metadata: Whatever else the scorer reads (plain JSON).
    """

    prompt: str
    reference: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Usage(NamedTuple):
    """The tokens of a call.

    Attributes:
        input_tokens: Those read, cached ones included.
        output_tokens: Those written, reasoning included.
        cached_tokens: Those of the read ones that came from the provider's prompt cache.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model answered to an example.

    Attributes:
        text: The text of it.
        usage: Its tokens; None if the model does not say.
        tool_calls: The tools it called, each `{"name": ..., "args": {...}}`.
        seconds: How long it took.
        logprob: The mean log-probability of its tokens; None if the model does not say.
    """

    text: str
    usage: Usage | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0
    logprob: float | None = None

    def __str__(self) -> str:
        return self.text


Model = Callable[[Example], Awaitable[Answer]]
"""A model as profiling sees it. The adapters of the frameworks make one of a chat model, a Runnable or an LLM."""


def as_example(x: object) -> Example:
    """Make an `Example` of what a user has: one, or a mapping with a "prompt" and perhaps a "reference".

    What else is in a mapping becomes the example's metadata.
    """
    if isinstance(x, Example):
        return x
    if not isinstance(x, Mapping) or not isinstance(x.get("prompt"), str):
        found = f"a mapping with the keys {list(x)}" if isinstance(x, Mapping) else type(x).__name__
        msg = f'An example should be an Example, or a mapping with a "prompt" that is a text, not {found}.'
        raise InvalidInputError(msg)
    rest = {key: value for key, value in x.items() if key not in {"prompt", "reference"}}
    return Example(x["prompt"], x.get("reference"), rest)
