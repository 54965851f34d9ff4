"""The rule and its outcome: r(x, H) = argmin over h in H of  Phi(x) . Psi(h) + lambda * c(h).

The paper's eq. 8 and 9. With Phi(x) the one-hot vector of a cluster, Phi(x) . Psi(h) is one entry of a table; a `Pool`
holds the tables of Psi and c for some models, and `best` is the argmin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np
import numpy.typing as npt

from unirouter_integrations.errors import InvalidInputError, UnknownModelError
from unirouter_integrations.profiles import ClusterErrors, Floats, LLMProfile

_ROUNDING = 1e-9
_LARGEST_WEIGHT = 1e18  # in units of `Pool.weight_unit`
_LARGEST_UNIT = 1e289


def score(error: Any, cost: Any, cost_weight: float) -> Any:
    """What is minimised, for numbers and arrays alike."""
    return error + cost_weight * cost


def best(error: Floats, cost: Floats, cost_weight: float) -> npt.NDArray[np.intp]:
    """The index, along the last axis, of the least score; of equal scores, the cheaper one's."""
    scores = score(error, cost, cost_weight)
    tied = scores == scores.min(axis=-1, keepdims=True)
    return np.asarray(np.argmin(np.where(tied, cost, np.inf), axis=-1))


@dataclass(frozen=True)
class Candidate:
    """One model as a decision saw it.

    Attributes:
        model: Its name.
        expected_error: Phi(x) . Psi(h), between 0 and 1.
        expected_error_std: The standard deviation of that estimate.
        expected_cost: c(h) for a prompt of this cluster.
        score: `expected_error + cost_weight * expected_cost`; the least one wins.
    """

    model: str
    expected_error: float
    expected_error_std: float
    expected_cost: float
    score: float


@dataclass(frozen=True)
class RoutingDecision(Candidate):
    """Which model a prompt goes to, and why: the winning candidate, and what it won against.

    Printed, it is a sentence. It holds no prompt.

    Attributes:
        cluster: The index of the prompt's cluster.
        terms: The typical words of that cluster.
        cost_weight: The trade-off lambda it was made with.
    """

    cluster: int
    terms: tuple[str, ...]
    cost_weight: float
    _pool: Pool = dataclass_field(repr=False, compare=False)

    @property
    def ranking(self) -> tuple[Candidate, ...]:
        """All candidates, best first: the chosen model, then those that would take over without it."""
        pool, k = self._pool, self.cluster
        order = np.lexsort((pool.cost[k], score(pool.error[k], pool.cost[k], self.cost_weight)))
        return tuple(pool.candidate(k, int(column), self.cost_weight) for column in order)

    def as_dict(self) -> dict[str, Any]:
        """The decision as plain JSON, without the ranking."""
        return {name: value for name, value in vars(self).items() if name not in {"terms", "_pool"}}

    def __str__(self) -> str:
        kind = f"cluster {self.cluster}" + (f" ({', '.join(self.terms[:3])})" if self.terms else "")
        others = self.ranking[1:]
        against = (
            f"; next would be {others[0].model}, {_describe(others[0])}" if others else "; it is the only candidate"
        )
        return f"{self.model} for {kind}: {_describe(self)}{against} (cost weight {self.cost_weight:.3g})."


class Pool:
    """An immutable snapshot of some models: Psi and c as tables, `(K, M)`, their columns sorted by name.

    The order does not depend on that of registration, so neither does the rare choice between equals.
    """

    def __init__(
        self,
        profiles: Mapping[str, LLMProfile],
        estimates: Mapping[str, ClusterErrors],
        n_clusters: int,
        fingerprint: str,
    ) -> None:
        self.names = tuple(sorted(profiles))
        self.profiles = {name: profiles[name] for name in self.names}
        self.estimates = estimates
        self.fingerprint = fingerprint
        shape = (n_clusters, len(self.names))
        self.error, self.std, self.cost = np.empty(shape), np.empty(shape), np.empty(shape)
        for column, (name, profile) in enumerate(self.profiles.items()):
            self.error[:, column], self.std[:, column] = estimates[name]
            self.cost[:, column] = profile.cost

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def candidate(self, cluster: int, column: int, cost_weight: float) -> Candidate:
        """One model as seen from one cluster."""
        error, cost = float(self.error[cluster, column]), float(self.cost[cluster, column])
        std = float(self.std[cluster, column])
        return Candidate(self.names[column], error, std, cost, score(error, cost, cost_weight))

    def decide(self, cluster: int, terms: tuple[str, ...], cost_weight: float) -> RoutingDecision:
        """The decision for a prompt of this cluster."""
        winner = self.candidate(cluster, int(best(self.error[cluster], self.cost[cluster], cost_weight)), cost_weight)
        return RoutingDecision(**vars(winner), cluster=cluster, terms=terms, cost_weight=cost_weight, _pool=self)

    def mean_of_best(self, table: Floats, share: Floats, cost_weight: float) -> float:
        """The mean of a table's entries for the chosen models, over prompts of which each cluster has this share."""
        chosen = best(self.error, self.cost, cost_weight)
        return float(share @ np.take_along_axis(table, chosen[:, None], axis=1)[:, 0])

    @property
    def weight_unit(self) -> float:
        """The unit in which cost weights are searched: at this weight the dearest call costs as much as an error."""
        return min(1 / (float(self.cost.max()) or 1.0), _LARGEST_UNIT)

    def columns(self, names: Sequence[str]) -> list[int]:
        """Where these models stand."""
        index = {name: column for column, name in enumerate(self.names)}
        missing = [name for name in names if name not in index]
        if missing:
            raise self.unknown(missing)
        return [index[name] for name in names]

    def among(self, names: Sequence[str]) -> Pool:
        """The snapshot of these models alone."""
        self.columns(names)
        if self.profiles.keys() == set(names):
            return self
        return Pool({name: self.profiles[name] for name in names}, self.estimates, len(self.error), self.fingerprint)

    def unknown(self, names: Sequence[str]) -> UnknownModelError:
        """The error for names that are not registered."""
        known = ", ".join(map(repr, self.names)) or "none"
        return UnknownModelError(f"Not registered: {', '.join(map(repr, names))}. Registered models: {known}.")


def weight_for_budget(pool: Pool, share: Floats, budget: float) -> float:
    """The smallest cost weight whose expected cost per call keeps to the budget.

    Args:
        pool: The candidates.
        share: `(K,)`, the share of the prompts in each cluster.
        budget: The cost per call that must not be exceeded, in the mean.
    """
    cheapest = float(share @ pool.cost.min(axis=1))
    if budget < cheapest * (1 - _ROUNDING):
        msg = (
            f"A budget of {budget:g} per call cannot be kept: even sending each prompt to the cheapest model for it "
            f"costs {cheapest:g} in the mean."
        )
        raise InvalidInputError(msg)
    over = budget * (1 + _ROUNDING)
    return _turning_point(lambda weight: pool.mean_of_best(pool.cost, share, weight) > over, pool.weight_unit)[1]


def weight_for_quality(pool: Pool, share: Floats, quality: float) -> float:
    """The largest cost weight that keeps this share of the best single model's expected quality.

    If sending each prompt to its cheapest model keeps it, this is the smallest weight that does so.

    Args:
        pool: The candidates.
        share: `(K,)`, the share of the prompts in each cluster.
        quality: The share of the quality (1 - error) to keep.
    """
    success = 1 - pool.error
    best_single, reachable = float((share @ success).max()), pool.mean_of_best(success, share, 0)
    goal = quality * best_single * (1 - _ROUNDING)
    if reachable < goal:
        msg = (
            f"A quality of {quality:g} times the best single model's ({best_single:.3f}) cannot be reached; "
            f"ignoring cost reaches {reachable:.3f}."
        )
        raise InvalidInputError(msg)
    if pool.mean_of_best(success, share, _LARGEST_WEIGHT * pool.weight_unit) >= goal:
        return weight_for_budget(pool, share, float(share @ pool.cost.min(axis=1)))
    return _turning_point(lambda weight: pool.mean_of_best(success, share, weight) >= goal, pool.weight_unit)[0]


def _turning_point(holds: Callable[[float], bool], unit: float) -> tuple[float, float]:
    """The last weight at which a condition holds, and the first at which it does not, as close as rounding allows.

    Mean cost and quality never rise with the weight, so bisection finds the place. If the condition never holds, both
    are 0.
    """
    if not holds(0):
        return 0.0, 0.0
    low, high = 0.0, unit
    while holds(high):
        if high >= unit * _LARGEST_WEIGHT:
            return high, high
        low, high = high, high * 2
    while high - low > _ROUNDING * high and low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, high


def _describe(candidate: Candidate) -> str:
    error, std = candidate.expected_error, candidate.expected_error_std
    return f"expected error {error:.2f} ± {std:.2f} at cost {candidate.expected_cost:.3g}"
