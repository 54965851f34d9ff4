"""What a profiling run will take, before it is begun."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from unirouter_integrations.profiling.journal import Entry, Keys, open_journal, read
from unirouter_integrations.profiling.prices import Price
from unirouter_integrations.profiling.records import Example, Usage, as_example
from unirouter_integrations.profiling.runner import CHARACTERS_PER_TOKEN, Subject, most_telling
from unirouter_integrations.router import UniRouter

_AT_ONCE = 256


@dataclass(frozen=True)
class Estimate:
    """What a run will take. Printed, it is a sentence.

    Attributes:
        calls: The calls of the model that are still to be made.
        known: The answers that are in the journal already.
        input_tokens: About how many tokens the calls will read.
        output_tokens: About how many they will write.
        cost: What they will cost, in USD; the judge not included.
        judgements: The calls of the judge that are still to be made.
        is_measured: Whether the tokens are reckoned from answers that are in the journal; otherwise they are a guess.
    """

    calls: int
    known: int
    input_tokens: int
    output_tokens: int
    cost: float
    judgements: int
    is_measured: bool

    def __str__(self) -> str:
        basis = f"as the {self.known} answers in the journal suggest" if self.is_measured else "a guess"
        judged = f" {self.judgements} calls of the judge come on top." if self.judgements else ""
        return (
            f"{self.calls} calls, {self.known} answers are in the journal already. About {self.input_tokens:,} tokens "
            f"in and {self.output_tokens:,} out ({basis}): {self.cost:.4f} USD.{judged}"
        )


def estimate(
    name: str,
    model: object,
    examples: Iterable[Example | Mapping[str, Any]],
    router: UniRouter,
    *,
    scorer: object = "exact",
    price: Price | None = None,
    journal: str | os.PathLike[str] | None = None,
    n: int | None = None,
    output_tokens: int = 300,
) -> Estimate:
    """Say what `profile_model` with these arguments would take. Calls nothing, and pays for nothing.

    Args:
        name: See `profile_model`.
        model: See `profile_model`.
        examples: See `profile_model`.
        router: See `profile_model`.
        scorer: See `profile_model`.
        price: See `profile_model`.
        journal: See `profile_model`. Answers that are in it cost nothing, and tell how long the others will be.
        n: See `profile_model`.
        output_tokens: How many tokens an answer is taken to have where the journal has none of the model's.

    Raises:
        InvalidInputError: If the price is unknown, or as in `profile_model`.
    """
    subject = Subject.of(name, model, scorer, price)
    taken: Iterator[Example] = map(as_example, examples)
    if n is not None:
        taken = iter(most_telling(list(taken), n, router))
    seen: set[bytes] = set()
    calls = known = judgements = characters = measured = measured_characters = 0
    used = Usage()
    stored = None if journal is None or not Path(journal).exists() else open_journal(journal)
    try:
        while some := {subject.keys(example): example for example in islice(taken, _AT_ONCE)}:
            found: dict[Keys, Entry] = {} if stored is None else read(stored, list(some))
            for keys, example in some.items():
                entry = found.get(keys)
                judgements += subject.scorer.asks and (entry is None or entry.grade is None)
                if keys.answer in seen:
                    continue
                seen.add(keys.answer)
                if entry is None:
                    calls += 1
                    characters += len(example.prompt)
                    continue
                known += 1
                if entry.answer.usage is not None:
                    measured += 1
                    measured_characters += len(example.prompt)
                    used = Usage(*map(sum, zip(used, entry.answer.usage, strict=True)))
    finally:
        if stored is not None:
            stored.close()
    per_character = used.input_tokens / measured_characters if measured_characters else 1 / CHARACTERS_PER_TOKEN
    per_answer = used.output_tokens / measured if measured else output_tokens
    expected = Usage(round(characters * per_character), round(calls * per_answer))
    return Estimate(
        calls,
        known,
        expected.input_tokens,
        expected.output_tokens,
        subject.price.cost(expected),
        judgements,
        is_measured=measured > 0,
    )
