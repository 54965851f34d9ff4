"""What a profiling run will cost, before it begins."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from unirouter_integrations._router import UniRouter
from unirouter_integrations.grading import Example, ModelLike, Price, ScorerLike, Usage
from unirouter_integrations.grading._models import total_usage
from unirouter_integrations.grading._records import as_example
from unirouter_integrations.profiling._journal import Entry, Keys, open_journal, read_entries
from unirouter_integrations.profiling._target import ProfilingTarget, most_informative_examples
from unirouter_integrations.serving._capabilities import CHARACTERS_PER_TOKEN

_BATCH_SIZE = 256  # examples that are looked up in the journal with one query


@dataclass(frozen=True)
class CostEstimate:
    """The estimated cost of a run. Printed, it is a sentence.

    Attributes:
        calls: The number of calls of the model that are still to be made.
        known: The number of answers that are in the journal already.
        input_tokens: About how many tokens the calls will read.
        output_tokens: About how many tokens they will write.
        cost: Their cost in USD, without the judge.
        judgements: The number of calls of the judge that are still to be made.
        is_measured: Whether the tokens are computed from answers in the journal; otherwise they are a guess.
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
        judged = f" In addition, {self.judgements} calls of the judge." if self.judgements else ""
        return (
            f"{self.calls} calls, {self.known} answers are in the journal already. About {self.input_tokens:,} tokens "
            f"in and {self.output_tokens:,} out ({basis}): {self.cost:.4f} USD.{judged}"
        )


def estimate_cost(
    name: str,
    model: ModelLike,
    examples: Iterable[Example | Mapping[str, Any]],
    router: UniRouter,
    *,
    scorer: ScorerLike = "exact",
    price: Price | None = None,
    journal: str | os.PathLike[str] | None = None,
    n: int | None = None,
    output_tokens: int = 300,
) -> CostEstimate:
    """Estimate the cost of `profile_model` with these arguments. No call is made.

    Args:
        name: See `profile_model`.
        model: See `profile_model`.
        examples: See `profile_model`.
        router: See `profile_model`.
        scorer: See `profile_model`.
        price: See `profile_model`.
        journal: See `profile_model`. Answers in it cost nothing, and show how long the others will be.
        n: See `profile_model`.
        output_tokens: The assumed length of an answer, if the journal has no answer of the model.

    Raises:
        InvalidInputError: If the price is unknown, or as in `profile_model`.
    """
    target = ProfilingTarget.from_arguments(name, model, scorer, price)
    remaining: Iterator[Example] = map(as_example, examples)
    if n is not None:
        remaining = iter(most_informative_examples(remaining, n, router))
    seen: set[bytes] = set()
    calls = known = judgements = characters = measured = measured_characters = 0
    used = Usage()
    stored = None if journal is None or not Path(journal).exists() else open_journal(journal)
    try:
        while batch := {target.keys(example): example for example in islice(remaining, _BATCH_SIZE)}:
            found: dict[Keys, Entry] = {} if stored is None else read_entries(stored, list(batch))
            for keys, example in batch.items():
                entry = found.get(keys)
                judgements += target.scorer.calls_model and (entry is None or entry.grade is None)
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
                    used = total_usage([used, entry.answer.usage])
    finally:
        if stored is not None:
            stored.close()
    per_character = used.input_tokens / measured_characters if measured_characters else 1 / CHARACTERS_PER_TOKEN
    per_answer = used.output_tokens / measured if measured else output_tokens
    expected = Usage(round(characters * per_character), round(calls * per_answer))
    return CostEstimate(
        calls,
        known,
        expected.input_tokens,
        expected.output_tokens,
        target.price.cost(expected),
        judgements,
        is_measured=measured > 0,
    )
