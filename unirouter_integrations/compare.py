"""What would change: with another router, or with a profile that is not registered yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unirouter_integrations._router import UniRouter
from unirouter_integrations.core import ClusterDescription, Expectations, LLMProfile, Pool
from unirouter_integrations.core._decision import best
from unirouter_integrations.core._profiles import Floats
from unirouter_integrations.errors import InvalidInputError

__all__ = ["ClusterImpact", "RouterDifference", "WhatIf", "diff", "what_if"]

_INTERVAL = 1.645  # standard deviations to either side of the mean of a Gaussian that hold 90% of it
_KEYWORDS = 4  # of a cluster, in a printed row


@dataclass(frozen=True)
class RouterDifference:
    """How two routers differ on some prompts. Printed, it is a list.

    Attributes:
        n_prompts: The number of prompts; None where clusters stand for them, weighted by their shares.
        rerouted: The share of the prompts that go to another model.
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
        """Return the same as plain JSON; moves are triples of from, to and share."""
        return {**vars(self), "moves": [[a, b, share] for (a, b), share in self.moves.items()]}

    def __str__(self) -> str:
        of = "the prompts" if self.n_prompts is None else f"{self.n_prompts} prompts"
        lines = [
            f"{self.rerouted:.1%} of {of} go to another model.",
            _change("expected quality", *self.quality),
            _change("expected cost per call", *self.cost),
        ]
        return "\n".join([*lines, *(f"  {share:6.1%}  {a} -> {b}" for (a, b), share in self.moves.items())])


@dataclass(frozen=True)
class ClusterImpact:
    """What would change in one cluster if a profile were registered.

    Attributes:
        cluster: The cluster.
        error: The expected error of the profiled model in it.
        interval: The 90% interval of that error, low and high.
        cost: The expected cost of a call of the model.
        before: The model that the cluster's prompts go to now; None if none is registered.
        after: The model that they would go to.
        undecided: Whether the two ends of the interval would send the prompts to different models.
    """

    cluster: ClusterDescription
    error: float
    interval: tuple[float, float]
    cost: float
    before: str | None
    after: str
    undecided: bool


@dataclass(frozen=True)
class WhatIf:
    """What would change if a profile were registered. Printed, it is a table.

    The figures hold for prompts that come in the clusters' shares, each wholly in one cluster. For how given prompts
    would be routed, see `diff`.

    Attributes:
        model: The name of the profiled model.
        clusters: What would change in each cluster.
        shares: For each model, the share of the prompts that it has now and that it would have.
        difference: Which prompts would move, and what that changes; None if no model is registered.
    """

    model: str
    clusters: tuple[ClusterImpact, ...]
    shares: Mapping[str, tuple[float, float]]
    difference: RouterDifference | None

    @property
    def undecided(self) -> float:
        """The share of the prompts whose routing the intervals leave open; more graded prompts would decide it."""
        return _share(impact for impact in self.clusters if impact.undecided)

    def __str__(self) -> str:
        lines = [
            f"{self.model}, by cluster, the most frequent first:",
            f"  {'share':>6}  {'error':>5}  {'90% interval':>12}  {'cost':>8}  goes to",
        ]
        lines += map(_row, sorted(self.clusters, key=lambda impact: -impact.cluster.share))
        if self.undecided:
            lines.append(f"? The intervals leave open which model gets these {self.undecided:.1%} of the prompts.")
        lines.append("Shares of the prompts:")
        for model, (before, after) in sorted(self.shares.items(), key=lambda item: -item[1][1]):
            lines.append(f"  {before:6.1%} -> {after:6.1%}  {model}")
        return "\n".join([*lines, *([str(self.difference)] if self.difference else [])])


def diff(
    before: UniRouter,
    after: UniRouter,
    prompts: Sequence[str] | None = None,
    *,
    vectors: npt.ArrayLike | None = None,
) -> RouterDifference:
    """Compare how two routers route some prompts.

    Both choices are judged by what the second router expects, which is the newer knowledge; a model that it no longer
    has, by what the first expected. Nothing is counted in the routers' statistics.

    Args:
        before: The router in use.
        after: The router that would replace it.
        prompts: Prompts like those in use.
        vectors: Their embeddings in place of the texts, if both routers have the same embedder.

    Raises:
        InvalidInputError: If there are no prompts.
        NoModelError: If one of the routers has no model.
    """
    old, new = before.snapshot(), after.snapshot()
    old.check_candidates()
    new.check_candidates()
    old_expected, new_expected = (
        each.pool.expected(each.clusters.memberships(prompts, vectors=vectors).phi) for each in (old, new)
    )
    if not len(new_expected.error):
        msg = "There are no prompts to compare the routers on; give at least one."
        raise InvalidInputError(msg)
    choices = _choose(old.pool, old_expected, old.cost_weight)
    errors, costs = choices.errors.copy(), choices.costs.copy()
    still = np.array([model in new.profiles for model in choices.models])
    newer = Expectations(new_expected.error[still], new_expected.cost[still])
    _, errors[still], costs[still] = _look_up(
        new.pool, newer, [name for name in choices.models if name in new.profiles]
    )
    return _difference(
        len(still),
        np.ones(len(still)),
        _Choices(choices.models, errors, costs),
        _choose(new.pool, new_expected, new.cost_weight),
    )


def what_if(router: UniRouter, profile: LLMProfile) -> WhatIf:
    """Show what would change if a profile were registered. Registers nothing.

    Args:
        router: The router in use, with its cost weight.
        profile: The profile of a new model, or a new profile of a registered one.

    Raises:
        InvalidInputError: If the profile was measured on other clusters than this router's.
    """
    if not isinstance(router, UniRouter) or not isinstance(profile, LLMProfile):
        msg = (
            "what_if() takes a UniRouter and an LLMProfile (router.profile(...) makes one), not "
            f"{type(router).__name__} and {type(profile).__name__}."
        )
        raise InvalidInputError(msg)
    old = router.snapshot()
    new = old.with_profiles([profile])
    pool, weight = new.pool, new.cost_weight
    each_cluster = np.eye(len(new.clusters))
    expected = pool.expected(each_cluster)
    column = pool.names.index(profile.name)
    error, margin = expected.error[:, column], _INTERVAL * pool.std[:, column]
    low, high = np.clip(error - margin, 0, 1), np.clip(error + margin, 0, 1)

    def choose(error_of_model: Floats) -> _Choices:
        errors = expected.error.copy()
        errors[:, column] = error_of_model
        return _choose(pool, Expectations(errors, expected.cost), weight)

    after, at_low, at_high = choose(error), choose(low), choose(high)
    before = _choose(old.pool, old.pool.expected(each_cluster), weight).models if old.models else None
    impacts = tuple(
        ClusterImpact(
            cluster,
            float(error[k]),
            (float(low[k]), float(high[k])),
            float(expected.cost[k, column]),
            before[k] if before else None,
            after.models[k],
            at_low.models[k] != at_high.models[k],
        )
        for k, cluster in enumerate(new.clusters.describe())
    )
    shares = {
        name: (_share(i for i in impacts if i.before == name), _share(i for i in impacts if i.after == name))
        for name in pool.names
    }
    difference = None
    if before:
        difference = _difference(None, new.clusters.shares, _look_up(pool, expected, before), after)
    return WhatIf(profile.name, impacts, shares, difference)


class _Choices(NamedTuple):
    """The chosen model of each prompt (or cluster), and its expected error and cost, `(n,)`."""

    models: list[str]
    errors: Floats
    costs: Floats


def _choose(pool: Pool, expected: Expectations, cost_weight: float) -> _Choices:
    return _look_up(pool, expected, [pool.names[column] for column in best(*expected, cost_weight)])


def _look_up(pool: Pool, expected: Expectations, models: list[str]) -> _Choices:
    rows, columns = np.arange(len(models)), pool.columns(models)
    return _Choices(models, expected.error[rows, columns], expected.cost[rows, columns])


def _difference(n_prompts: int | None, weights: Floats, before: _Choices, after: _Choices) -> RouterDifference:
    """Compare two choices over the same prompts (or clusters), which count by their weights `(n,)`."""
    total = float(weights.sum())
    moved: dict[tuple[str, str], float] = defaultdict(float)
    for old, new, weight in zip(before.models, after.models, weights.tolist(), strict=True):
        if old != new:
            moved[old, new] += weight

    def mean(values: Floats) -> float:
        return float(values @ weights) / total

    return RouterDifference(
        n_prompts,
        sum(moved.values()) / total,
        {pair: weight / total for pair, weight in sorted(moved.items(), key=lambda move: -move[1])},
        (1 - mean(before.errors), 1 - mean(after.errors)),
        (mean(before.costs), mean(after.costs)),
    )


def _row(impact: ClusterImpact) -> str:
    low, high = impact.interval
    goes = impact.after if impact.before in (None, impact.after) else f"{impact.before} -> {impact.after}"
    mark, cluster = "?" if impact.undecided else " ", impact.cluster
    return (
        f"{mark} {cluster.share:6.1%}  {impact.error:5.2f}  {low:.2f} to {high:.2f}  {impact.cost:8.3g}  {goes}"
        f"   ({', '.join(cluster.keywords[:_KEYWORDS]) or 'no shared words'})"
    )


def _share(impacts: Iterable[ClusterImpact]) -> float:
    return sum(impact.cluster.share for impact in impacts)


def _change(what: str, before: float, after: float) -> str:
    return f"{what}: {before:.4g} -> {after:.4g} ({after - before:+.4g})"
