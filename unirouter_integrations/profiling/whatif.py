"""What would change if a profile were registered."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from unirouter_integrations.checks import check_router
from unirouter_integrations.clusters import ClusterDescription
from unirouter_integrations.decision import Pool, best
from unirouter_integrations.evaluation.difference import RouterDifference
from unirouter_integrations.profiles import Floats, LLMProfile
from unirouter_integrations.router import UniRouter

_INTERVAL = 1.645  # standard deviations to either side of the mean: 90%
_TERMS = 4


@dataclass(frozen=True)
class Outlook:
    """What is known of a model in one cluster, and who would have the prompts there.

    Attributes:
        cluster: The cluster.
        error: The expected error of the model in it.
        interval: The 90% interval of that, low and high.
        cost: The expected cost of a call.
        before: The model that the cluster's prompts go to now; None if none is registered.
        after: The model that they would go to.
        undecided: Whether they would go to another one if the error were at the other end of its interval.
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

    Prompts are taken to come in the clusters' shares, each to lie wholly in one cluster. For how given prompts would be
    routed there is `evaluation.diff`.

    Attributes:
        model: The name of the model.
        clusters: What is known of it in each cluster, and who would have the prompts there.
        shares: For each model the share of the prompts that it has now, and that it would have.
        difference: Which prompts would move, and what that changes; None if no model is registered.
    """

    model: str
    clusters: tuple[Outlook, ...]
    shares: Mapping[str, tuple[float, float]]
    difference: RouterDifference | None

    @property
    def undecided(self) -> float:
        """The share of the prompts whose routing the intervals leave open; more graded prompts would decide it."""
        return _share(outlook for outlook in self.clusters if outlook.undecided)

    def __str__(self) -> str:
        lines = [f"{self.model}, by cluster, the most frequent first:", _HEAD]
        lines += map(_row, sorted(self.clusters, key=lambda outlook: -outlook.cluster.share))
        if self.undecided:
            lines.append(f"? The intervals leave open who has these {self.undecided:.1%} of the prompts.")
        lines.append("Shares of the prompts:")
        for model, (before, after) in sorted(self.shares.items(), key=lambda item: -item[1][1]):
            lines.append(f"  {before:6.1%} -> {after:6.1%}  {model}")
        return "\n".join([*lines, *([str(self.difference)] if self.difference else [])])


_HEAD = f"  {'share':>6}  {'error':>5}  {'90% interval':>12}  {'cost':>8}  goes to"


def _row(outlook: Outlook) -> str:
    low, high = outlook.interval
    goes = outlook.after if outlook.before in (None, outlook.after) else f"{outlook.before} -> {outlook.after}"
    mark, cluster = "?" if outlook.undecided else " ", outlook.cluster
    return (
        f"{mark} {cluster.share:6.1%}  {outlook.error:5.2f}  {low:.2f} to {high:.2f}  {outlook.cost:8.3g}  {goes}"
        f"   ({', '.join(cluster.terms[:_TERMS]) or 'no shared words'})"
    )


def what_if(router: UniRouter, profile: LLMProfile) -> WhatIf:
    """Say what would change if this profile were registered. Registers nothing.

    Args:
        router: The router in use, with its cost weight.
        profile: The profile of a new model, or a new one of a model that is registered.

    Raises:
        InvalidInputError: If the profile was measured on other clusters than this router's.
    """
    check_router(router)
    changed = copy.copy(router)
    changed.register(profile)
    weight, clusters, kinds = router.cost_weight, router.clusters.describe(), np.eye(len(router.clusters))
    old, new = router.registered(router.models), changed.registered(changed.models)
    error, cost = new.expected(kinds)
    column = new.names.index(profile.name)

    def choose(errors: Floats) -> list[str]:
        return [new.names[chosen] for chosen in best(errors, cost, weight)]

    ends = []
    for side in (-1, 1):
        end = error.copy()
        end[:, column] = np.clip(end[:, column] + side * _INTERVAL * new.std[:, column], 0, 1)
        ends.append(end)
    low, high = (end[:, column].tolist() for end in ends)
    after, at_low, at_high = choose(error), *map(choose, ends)
    before: list[str | None] = [None] * len(after)
    if old.names:
        before = [old.names[chosen] for chosen in best(*old.expected(kinds), weight)]
    outlooks = tuple(
        Outlook(
            clusters[k],
            float(error[k, column]),
            (low[k], high[k]),
            float(cost[k, column]),
            before[k],
            after[k],
            at_low[k] != at_high[k],
        )
        for k in range(len(clusters))
    )
    shares = {
        name: (_share(o for o in outlooks if o.before == name), _share(o for o in outlooks if o.after == name))
        for name in new.names
    }
    return WhatIf(
        profile.name, outlooks, shares, _difference(outlooks, new, router.clusters.shares) if old.names else None
    )


def _difference(outlooks: tuple[Outlook, ...], pool: Pool, shares: Floats) -> RouterDifference:
    """As `evaluation.diff` has it: both choices are judged by what the router with the new profile expects."""
    error, cost = pool.expected(np.eye(len(outlooks)))
    moves: dict[tuple[str, str], float] = {}
    for outlook in outlooks:
        if outlook.before is not None and outlook.before != outlook.after:
            pair = (outlook.before, outlook.after)
            moves[pair] = moves.get(pair, 0) + outlook.cluster.share
    rows = np.arange(len(outlooks))

    def mean(table: Floats, names: list[str]) -> float:
        return float(table[rows, pool.columns(names)] @ shares)

    before, after = [o.before or o.after for o in outlooks], [o.after for o in outlooks]
    return RouterDifference(
        None,
        sum(moves.values()),
        dict(sorted(moves.items(), key=lambda move: -move[1])),
        (1 - mean(error, before), 1 - mean(error, after)),
        (mean(cost, before), mean(cost, after)),
    )


def _share(outlooks: Iterable[Outlook]) -> float:
    return sum(outlook.cluster.share for outlook in outlooks)
