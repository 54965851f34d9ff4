"""What a new router would do otherwise than the one in use, before it goes live."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.profiles import Floats
from unirouter_integrations.router import UniRouter


@dataclass(frozen=True)
class RouterDifference:
    """How two routers differ on some prompts.

    Attributes:
        n_prompts: The number of prompts; None where clusters stand for them, weighed by their shares.
        rerouted: The share of them that go to another model.
        moves: For each pair of models, from and to, the share of the prompts that move, largest first.
        quality: The mean expected quality (1 - error) before and after.
        cost: The mean expected cost per call before and after.
    """

    n_prompts: int | None
    rerouted: float
    moves: Mapping[tuple[str, str], float]
    quality: tuple[float, float]
    cost: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON; moves are triples of from, to and share."""
        return {**vars(self), "moves": [[a, b, share] for (a, b), share in self.moves.items()]}

    def __str__(self) -> str:
        of = "the prompts" if self.n_prompts is None else f"{self.n_prompts} prompts"
        lines = [
            f"{self.rerouted:.1%} of {of} go to another model.",
            _change("expected quality", *self.quality),
            _change("expected cost per call", *self.cost),
        ]
        return "\n".join([*lines, *(f"  {share:6.1%}  {a} -> {b}" for (a, b), share in self.moves.items())])


def diff(
    before: UniRouter,
    after: UniRouter,
    prompts: Sequence[str] | None = None,
    *,
    vectors: npt.ArrayLike | None = None,
) -> RouterDifference:
    """Route some prompts with two routers and compare.

    Both choices are judged by what the second router expects, which is the newer knowledge; a model that it no longer
    has, by what the first expected.

    Args:
        before: The router in use.
        after: The one that would take its place.
        prompts: Prompts like those in use.
        vectors: Their embeddings in place of the texts, if both routers have the same embedder.

    Raises:
        InvalidInputError: If there are no prompts.
        NoModelError: If one of the routers has no model.
    """
    old = before.route_many(prompts, vectors=vectors)
    if vectors is None and prompts is not None:
        vectors = after.embed(prompts)
    new = after.route_many(vectors=vectors)
    if not new:
        msg = "There are no prompts to compare the routers on; give at least one."
        raise InvalidInputError(msg)
    pool = after.registered(after.models)
    index = {name: column for column, name in enumerate(pool.names)}
    errors, costs = pool.expected(after.clusters.memberships(vectors=vectors).phi)

    def judged(table: Floats, own: list[float]) -> float:
        values = [
            table[row, index[decision.model]] if decision.model in index else value
            for row, (decision, value) in enumerate(zip(old, own, strict=True))
        ]
        return float(np.mean(values))

    moved = Counter((a.model, b.model) for a, b in zip(old, new, strict=True) if a.model != b.model)
    return RouterDifference(
        len(new),
        moved.total() / len(new),
        {pair: count / len(new) for pair, count in moved.most_common()},
        (
            1 - judged(errors, [decision.expected_error for decision in old]),
            1 - float(np.mean([decision.expected_error for decision in new])),
        ),
        (
            judged(costs, [decision.expected_cost for decision in old]),
            float(np.mean([decision.expected_cost for decision in new])),
        ),
    )


def _change(what: str, before: float, after: float) -> str:
    return f"{what}: {before:.4g} -> {after:.4g} ({after - before:+.4g})"
