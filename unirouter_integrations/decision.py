"""The rule and its outcome: r(x, H) = argmin over h in H of  Phi(x) . Psi(h) + lambda * c(h).

The paper's eq. 8 and 9. A `Pool` holds the tables of Psi and c for some models; Phi(x) times them is what a prompt is
expected to lose and to cost with each model, and `best` is the argmin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unirouter_integrations.clusters import Memberships, PromptClusters
from unirouter_integrations.errors import InvalidInputError, UnknownModelError
from unirouter_integrations.profiles import ClusterErrors, Floats, LLMProfile

_ROUNDING = 1e-9
_LARGEST_WEIGHT = 1e18  # in units of `_weight_unit`
_LARGEST_UNIT = 1e289
_UNFAMILIAR = 0.5
_LARGEST_STD = 0.5  # of what lies between 0 and 1
_DIGITS = 12
_MOST_SUBSETS = 32
_LARGE = 100_000
_FEW = 10
_DEEPEST = 100


def score(error: Any, cost: Any, cost_weight: float) -> Any:
    """What is minimised, for numbers and arrays alike."""
    return error + cost_weight * cost


def best(error: Floats, cost: Floats, cost_weight: float) -> npt.NDArray[np.intp]:
    """The index, along the last axis, of the least score; of equal scores, the cheaper one's."""
    scores = score(error, cost, cost_weight)
    tied = scores == np.minimum.reduce(scores, axis=-1, keepdims=True)
    if np.count_nonzero(tied) * tied.shape[-1] == tied.size:
        return np.asarray(tied.argmax(axis=-1))
    return np.asarray(np.where(tied, cost, np.inf).argmin(axis=-1))


class Expected(NamedTuple):
    """The expected error and cost of each model, `(M,)`, or of each model on each prompt, `(n, M)`."""

    error: Floats
    cost: Floats

    def when_routed(self, cost_weight: float) -> tuple[float, float]:
        """The mean expected error and cost of some prompts at this cost weight."""
        chosen = best(self.error, self.cost, cost_weight)
        error, cost = (float(table[np.arange(len(chosen)), chosen].mean()) for table in self)
        return error, cost


@dataclass(frozen=True)
class Candidate:
    """One model as a decision saw it.

    Attributes:
        model: Its name.
        expected_error: Phi(x) . Psi(h), between 0 and 1.
        expected_error_std: The standard deviation of that estimate.
        expected_cost: Phi(x) . c(h), in the unit of the profiles' costs.
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
        cluster: The index of the cluster the prompt belongs to most.
        terms: The typical words of that cluster.
        cost_weight: The trade-off lambda it was made with.
        familiarity: From 1, a prompt like those the router was fitted on, to 0, one unlike all of them, of which only
            the models' mean errors are known.
        excluded: The models that cannot take the call at all, each with the reason.
    """

    cluster: int
    terms: tuple[str, ...]
    cost_weight: float
    familiarity: float
    _pool: Pool = dataclass_field(repr=False, compare=False)
    _phi: Floats = dataclass_field(repr=False, compare=False)
    excluded: Mapping[str, str] = dataclass_field(default_factory=dict, hash=False)

    @property
    def ranking(self) -> tuple[Candidate, ...]:
        """All candidates, best first: the chosen model, then those that would take over without it."""
        return tuple(self._ranked())

    def _ranked(self) -> Iterator[Candidate]:
        pool = self._pool
        error, cost = pool.expected(self._phi)
        scores = score(error, cost, self.cost_weight)
        for column in np.lexsort((cost, scores)).tolist():
            std = pool.std_of(column, self._phi, self.familiarity)
            yield Candidate(pool.names[column], error.item(column), std, cost.item(column), scores.item(column))

    @property
    def explored(self) -> bool:
        """Whether it was chosen to learn more about it, where another one has the least score."""
        return next(self._ranked()).model != self.model

    @property
    def better(self) -> tuple[str, ...]:
        """The candidates that are expected to err less, whatever they cost; best first."""
        return tuple(each.model for each in self.ranking if each.expected_error < self.expected_error)

    def without(self, model: str, reason: str, among: Iterable[str] | None = None) -> RoutingDecision | None:
        """The decision if this model did not take part, for the reason given; None if no other candidate is left.

        Args:
            model: The model.
            reason: Why; it will be among the excluded ones.
            among: Who may take its place; None for all other candidates.
        """
        left = [name for name in (self._pool.names if among is None else among) if name != model]
        if not left:
            return None
        memberships = Memberships(self._phi[None], np.array([self.familiarity]))
        (others,) = self._pool.among(left).decide(memberships, {self.cluster: self.terms}, self.cost_weight)
        return replace(others, excluded={**self.excluded, model: reason})

    def as_dict(self) -> dict[str, Any]:
        """The decision as plain JSON, without the ranking; `clusters` is the fingerprint of the clusters it is over."""
        plain = {
            name: value for name, value in vars(self).items() if name not in {"terms", "_pool", "_phi", "excluded"}
        }
        plain["clusters"] = self._pool.clusters.fingerprint
        return {**plain, "excluded": dict(self.excluded)} if self.excluded else plain

    def __str__(self) -> str:
        kind = f"cluster {self.cluster}" + (f" ({', '.join(self.terms[:3])})" if self.terms else "")
        if self.familiarity < _UNFAMILIAR:
            kind = "a prompt unlike those the router was fitted on"
        first, *second = islice(self._ranked(), 2)
        against = "; it is the only candidate"
        if first.model != self.model:
            against = f"; chosen to explore, the best would be {first.model}, {_describe(first)}"
        elif second:
            against = f"; next would be {second[0].model}, {_describe(second[0])}"
        without = "".join(f" Without {name}: {reason}." for name, reason in self.excluded.items())
        return f"{self.model} for {kind}: {_describe(self)}{against} (cost weight {self.cost_weight:.3g}).{without}"


class _Contents(NamedTuple):
    profiles: Mapping[str, LLMProfile]
    estimates: Mapping[str, ClusterErrors]
    before: Pool | None
    depth: int


class Pool:
    """An immutable snapshot of some models over their clusters: Psi and c as tables, `(K, M)`, columns sorted by name.

    The order does not depend on that of registration, so neither does the rare choice between equals. What is added to
    another pool, and the tables, are put together when they are first read, so that registering many models in a row
    takes no longer for the last than for the first.

    Args:
        profiles: The profiles by name, in the order of registration.
        estimates: The errors of each model, by name.
        clusters: The clusters they belong to.
        surcharges: What calls of some models cost beyond their profiles.
        before: The pool these are added to; None if they are all.
    """

    def __init__(
        self,
        profiles: Mapping[str, LLMProfile],
        estimates: Mapping[str, ClusterErrors],
        clusters: PromptClusters,
        surcharges: Mapping[str, float] | None = None,
        *,
        before: Pool | None = None,
    ) -> None:
        depth = 0 if before is None else before._contents.depth + 1  # noqa: SLF001
        self._contents: _Contents = _Contents(profiles, estimates, before, depth)
        if depth == _DEEPEST:
            self._whole()
        self.clusters = clusters
        self._surcharges = surcharges or {}
        self._subsets: dict[frozenset[str], Pool] = {}  # candidates seldom differ from call to call

    @property
    def given(self) -> Mapping[str, LLMProfile]:
        """The profiles by name, in the order of registration."""
        return self._whole().profiles

    @property
    def estimates(self) -> Mapping[str, ClusterErrors]:
        """The errors of each model, by name."""
        return self._whole().estimates

    def __getstate__(self) -> dict[str, Any]:
        """Its contents in one piece, without what can be made again."""
        return {"_contents": self._whole(), "clusters": self.clusters, "_surcharges": self._surcharges, "_subsets": {}}

    def _whole(self) -> _Contents:
        if (contents := self._contents).before is None:
            return contents
        added = [contents]
        while contents.before is not None:
            contents = contents.before._contents  # noqa: SLF001  # read once: other threads put together as well
            added.append(contents)
        profiles: dict[str, LLMProfile] = {}
        estimates: dict[str, ClusterErrors] = {}
        for each in reversed(added):
            profiles.update(each.profiles)
            estimates.update(each.estimates)
        self._contents = contents = _Contents(profiles, estimates, None, 0)
        return contents

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the models, sorted."""
        return tuple(sorted(self.given))

    @cached_property
    def profiles(self) -> Mapping[str, LLMProfile]:
        """The profiles by name, sorted."""
        return {name: self.given[name] for name in self.names}

    @cached_property
    def error(self) -> Floats:
        """Psi, `(K, M)`."""
        return self._stacked([self.estimates[name].error for name in self.names])

    @cached_property
    def std(self) -> Floats:
        """The standard deviation of Psi, `(K, M)`."""
        return self._stacked([self.estimates[name].std for name in self.names])

    @cached_property
    def cost(self) -> Floats:
        """c, `(K, M)`."""
        return self._stacked([self.given[name].cost + self._surcharges.get(name, 0.0) for name in self.names])

    def _stacked(self, columns: Sequence[Any]) -> Floats:
        table = np.empty((len(self.clusters), len(columns)))
        for index, column in enumerate(columns):
            table[:, index] = column
        return table

    @cached_property
    def _unit(self) -> Floats:
        # Each model's own, so that its numbers do not depend on others, and a power of two, so that 0.25 stays 0.25.
        return np.asarray(np.exp2(np.frexp(self.cost.max(axis=0, initial=0))[1] - 1))

    @cached_property
    def _tables(self) -> Floats:
        return np.hstack([self.error, self.cost / self._unit])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def expected(self, phi: Floats) -> Expected:
        """Phi(x) . Psi(h) and Phi(x) . c(h), of one prompt `(M,)` or of many `(n, M)`.

        Rounded, so that models that are equal come out equal in whatever order the products are summed.
        """
        tables = self._tables
        if phi.size == len(tables) and tables.size > _LARGE:  # one prompt belongs to few of many clusters
            used = np.flatnonzero(phi)
            if len(used) * _FEW < len(tables):
                phi, tables = phi[..., used], tables[used]
        both = (phi @ tables).round(_DIGITS)
        size = len(self.names)
        return Expected(both[..., :size], both[..., size:] * self._unit)

    def std_of(self, column: int, phi: Floats, familiarity: float) -> float:
        """The standard deviation of Phi(x) . Psi(h) for one model and one prompt.

        Errors in neighbouring clusters are taken to be over- or underestimated together, which errs on the wide side.
        Where a prompt is unfamiliar its cluster is unknown as well, and the spread of errors over clusters is added.
        """
        std = float(phi @ self.std[:, column])
        if familiarity == 1:
            return std
        errors = self.error[:, column]
        return min(math.sqrt(std**2 + (1 - familiarity) * float(phi @ (errors - phi @ errors) ** 2)), _LARGEST_STD)

    def decide(
        self,
        memberships: Memberships,
        terms: Sequence[tuple[str, ...]] | Mapping[int, tuple[str, ...]],
        cost_weight: float,
        explorer: np.random.Generator | None = None,
    ) -> list[RoutingDecision]:
        """The decision for each of some prompts; `terms` describe the clusters.

        With an explorer, each model is judged by a draw from what is believed of its error (Thompson sampling).
        """
        expected = self.expected(memberships.phi)
        judged = expected.error
        if explorer is not None:
            judged = judged + explorer.standard_normal(judged.shape) * (memberships.phi @ self.std)
        chosen = best(judged, expected.cost, cost_weight).tolist()
        clusters = memberships.phi.argmax(axis=1).tolist()
        rows = zip(memberships.phi, memberships.familiarity.tolist(), chosen, clusters, *expected, strict=True)
        return [
            RoutingDecision(
                self.names[column],
                error := errors.item(column),
                self.std_of(column, phi, familiarity),
                cost := costs.item(column),
                score(error, cost, cost_weight),
                cluster,
                terms[cluster],
                cost_weight,
                familiarity,
                self,
                phi,
            )
            for phi, familiarity, column, cluster, errors, costs in rows
        ]

    def columns(self, names: Sequence[str]) -> list[int]:
        """Where these models stand."""
        index = {name: column for column, name in enumerate(self.names)}
        missing = [name for name in names if name not in index]
        if missing:
            raise self.unknown(missing)
        return [index[name] for name in names]

    def among(self, names: Sequence[str]) -> Pool:
        """The snapshot of these models alone."""
        wanted = frozenset(names)
        missing = [name for name in names if name not in self.given]
        if missing:
            raise self.unknown(missing)
        if len(wanted) == len(self.given):
            return self
        some = self._subsets.get(wanted)
        if some is None:
            given = {name: self.given[name] for name in wanted}
            some = Pool(given, self.estimates, self.clusters, self._surcharges)
            if len(self._subsets) < _MOST_SUBSETS:
                self._subsets[wanted] = some
        return some

    def registered(self, names: Iterable[str]) -> Pool:
        """The snapshot of those of these models that are in it."""
        return self.among([name for name in names if name in self.given])

    def surcharged(self, surcharges: Mapping[str, float]) -> Pool:
        """The snapshot in which calls of some models cost more than their profiles say, whatever the prompt."""
        return Pool(self.given, self.estimates, self.clusters, surcharges)

    def unknown(self, names: Sequence[str]) -> UnknownModelError:
        """The error for names that are not registered."""
        known = ", ".join(map(repr, self.names)) or "none"
        return UnknownModelError(f"Not registered: {', '.join(map(repr, names))}. Registered models: {known}.")


def weight_for_budget(expected: Expected, budget: float) -> float:
    """The smallest cost weight whose expected cost per call keeps to the budget.

    Args:
        expected: What is expected of the candidates on some prompts.
        budget: The cost per call that must not be exceeded, in the mean.
    """
    cheapest = float(expected.cost.min(axis=1).mean())
    if budget < cheapest * (1 - _ROUNDING):
        msg = (
            f"A budget of {budget:g} per call cannot be kept: even sending each prompt to the cheapest model for it "
            f"costs {cheapest:g} in the mean."
        )
        raise InvalidInputError(msg)
    over = budget * (1 + _ROUNDING)
    return _turning_point(lambda weight: expected.when_routed(weight)[1] > over, _weight_unit(expected))[1]


def weight_for_quality(expected: Expected, quality: float) -> float:
    """The largest cost weight that keeps this share of the best single model's expected quality.

    If sending each prompt to its cheapest model keeps it, this is the smallest weight that does so.

    Args:
        expected: What is expected of the candidates on some prompts.
        quality: The share of the quality (1 - error) to keep.
    """
    best_single, reachable = 1 - float(expected.error.mean(axis=0).min()), 1 - expected.when_routed(0)[0]
    goal = quality * best_single * (1 - _ROUNDING)
    if reachable < goal:
        msg = (
            f"A quality of {quality:g} times the best single model's ({best_single:.3f}) cannot be reached; "
            f"ignoring cost reaches {reachable:.3f}."
        )
        raise InvalidInputError(msg)
    unit = _weight_unit(expected)
    if 1 - expected.when_routed(_LARGEST_WEIGHT * unit)[0] >= goal:
        return weight_for_budget(expected, float(expected.cost.min(axis=1).mean()))
    return _turning_point(lambda weight: 1 - expected.when_routed(weight)[0] >= goal, unit)[0]


def _weight_unit(expected: Expected) -> float:
    """The unit in which cost weights are searched: at this weight the dearest call costs as much as an error."""
    return min(1 / (float(expected.cost.max()) or 1.0), _LARGEST_UNIT)


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
