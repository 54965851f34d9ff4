"""The rule and its outcome: r(x, H) = argmin over h in H of  Phi(x) . Psi(h) + lambda * c(h).

The paper's equations 8 and 9. A `Pool` holds the tables of Psi and c for some models. Phi(x) times them is what a
prompt is expected to lose and to cost with each model, and `best` is the argmin.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from unirouter_integrations._checks import number
from unirouter_integrations.core._clusters import Memberships, PromptClusters
from unirouter_integrations.core._pool import Pool
from unirouter_integrations.core._profiles import Floats

Basis = Literal["best", "explored", "kept"]
ExclusionKind = Literal[
    "incapable",
    "too_expensive",
    "error_too_high",
    "cooling_down",
    "failed",
    "slow",
    "refused",
    "rejected",
    "not_embedded",
]

FORMAT_VERSION = 1  # of `RoutingDecision.as_dict`
_UNFAMILIAR = 0.5  # below it, the sentence says that the prompt is unlike those of the fit


def objective(error: Any, cost: Any, cost_weight: float) -> Any:
    """What is minimised, for numbers and arrays alike."""
    return error + cost_weight * cost


def best(error: Floats, cost: Floats, cost_weight: float) -> npt.NDArray[np.intp]:
    """The index of the least objective along the last axis; of equal ones, the cheaper model's."""
    values = objective(error, cost, cost_weight)
    tied = values == np.minimum.reduce(values, axis=-1, keepdims=True)
    if np.count_nonzero(tied) * tied.shape[-1] == tied.size:
        return np.asarray(tied.argmax(axis=-1))
    return np.asarray(np.where(tied, cost, np.inf).argmin(axis=-1))


class Exclusion(NamedTuple):
    """Why a model did not take part in a decision.

    Attributes:
        model: Its name.
        kind: `"incapable"`: it cannot take the call. `"too_expensive"`, `"error_too_high"`: it is expected to cost
            more, or to err more, than the call allows. `"cooling_down"`: it failed recently. `"failed"`, `"slow"`,
            `"refused"`, `"rejected"`: it was asked, and its call failed, took too long, its answer was a refusal, or
            its answer did not pass the check. `"not_embedded"`: the prompt could not be embedded, so the default model
            answers.
        reason: A sentence for people.
    """

    model: str
    kind: ExclusionKind
    reason: str


@dataclass(frozen=True)
class Candidate:
    """One model as a decision saw it.

    Attributes:
        model: Its name.
        expected_error: Phi(x) . Psi(h), from 0 to 1.
        expected_error_std: The standard deviation of that estimate.
        expected_cost: Phi(x) . c(h), in the unit of the profiles' costs.
        objective: `expected_error + cost_weight * expected_cost`; the least one wins.
    """

    model: str
    expected_error: float
    expected_error_std: float
    expected_cost: float
    objective: float


@dataclass(frozen=True)
class RoutingDecision(Candidate):
    """Which model a prompt goes to, and why: the winning candidate, and what it won against.

    Printed, it is a sentence. It holds no prompt.

    Attributes:
        cluster: The index of the cluster the prompt belongs to most.
        keywords: The typical words of that cluster.
        cost_weight: The trade-off lambda it was made with.
        familiarity: From 1, a prompt like those the router was fitted on, to 0, one unlike all of them, for which only
            the models' mean errors are known.
        basis: `"best"`: the model has the least objective. `"explored"`: it was drawn to learn more about it.
            `"kept"`: it already works on the conversation.
        pool: The candidates. A decision keeps their tables, from which `ranking` is computed when it is read.
        memberships: `(K,)`, Phi(x).
        excluded: The models that did not take part, each with the reason.
    """

    cluster: int
    keywords: tuple[str, ...]
    cost_weight: float
    familiarity: float
    basis: Basis
    pool: Pool = dataclass_field(repr=False, compare=False)
    memberships: Floats = dataclass_field(repr=False, compare=False)
    excluded: tuple[Exclusion, ...] = ()

    @property
    def id(self) -> str:
        """Identifies the decision, for a score that comes later. It is drawn at random when it is first read."""
        drawn: str = vars(self).setdefault("_id", os.urandom(8).hex())
        return drawn

    def identified(self, noted: object) -> RoutingDecision:
        """The same decision with an id that was noted; anything that is no id of a decision is left out."""
        found = replace(self)
        if isinstance(noted, str) and re.fullmatch("[0-9a-f]{16}", noted):
            vars(found)["_id"] = noted
        return found

    @property
    def clusters(self) -> str:
        """The fingerprint of the clusters that `cluster` and `memberships` belong to."""
        return self.pool.clusters.fingerprint

    @property
    def ranking(self) -> tuple[Candidate, ...]:
        """All candidates, best first: those that would take over without the chosen one."""
        return tuple(self._ranked())

    def _ranked(self) -> Iterator[Candidate]:
        error, cost = self.pool.expected(self.memberships)
        values = objective(error, cost, self.cost_weight)
        for column in np.lexsort((cost, values)).tolist():
            std = self.pool.std_of(column, self.memberships, self.familiarity)
            name = self.pool.names[column]
            yield Candidate(name, error.item(column), std, cost.item(column), values.item(column))

    @property
    def explored(self) -> bool:
        """Whether the model was drawn to learn more about it, while another one has the least objective."""
        return self.basis == "explored"

    @property
    def better(self) -> tuple[str, ...]:
        """The candidates that are expected to err less, whatever they cost; best first."""
        return tuple(each.model for each in self.ranking if each.expected_error < self.expected_error)

    def within(self, max_error: float) -> RoutingDecision:
        """The decision among the candidates that are expected to err at most so much, if there are any.

        Raises:
            InvalidInputError: If it is no number from 0 to 1.
        """
        number(max_error, "max_error", high=1)
        fit = [each.model for each in self.ranking if each.expected_error <= max_error]
        above = [each for each in self.ranking if each.expected_error > max_error]
        if not (fit and above):
            return self
        pool = self.pool.among(fit)
        expected, (column,) = pool.expected(self.memberships), pool.columns(fit[:1])
        found = _decision(pool, self.cost_weight, self.memberships, self.familiarity, *expected, column, "best")
        reasons = [(each.model, f"its expected error is {each.expected_error:.2f}") for each in above]
        excluded = (Exclusion(model, "error_too_high", reason) for model, reason in reasons)
        return replace(found, excluded=(*self.excluded, *excluded))

    def keeping(self, model: str) -> RoutingDecision:
        """The same decision for a model that already works on the conversation, whether or not it is the best one."""
        if model == self.model:
            return self
        (column,) = self.pool.columns([model])
        phi, expected = self.memberships, self.pool.expected(self.memberships)
        kept = _decision(self.pool, self.cost_weight, phi, self.familiarity, *expected, column, "kept")
        return replace(kept, excluded=self.excluded)

    def without(
        self, exclusion: Exclusion, among: Iterable[str] | None = None, pool: Pool | None = None
    ) -> RoutingDecision | None:
        """The decision if a model had not taken part; None if no other candidate is left.

        Args:
            exclusion: The model, and why it is excluded.
            among: The candidates to take its place; None for all others.
            pool: Where these are found, over the same clusters; None for the decision's own pool.
        """
        left = [name for name in (self.pool.names if among is None else among) if name != exclusion.model]
        if not left:
            return None
        memberships = Memberships(self.memberships[None], np.array([self.familiarity]))
        (other,) = decide((pool or self.pool).among(left), memberships, self.cost_weight)
        before = (each for each in self.excluded if each.model != other.model)  # one that cooled down may be tried last
        return replace(other, excluded=(*before, exclusion))

    def as_dict(self) -> dict[str, Any]:
        """The decision as plain JSON, without the ranking. `clusters` is the fingerprint of the clusters."""
        left_out = {"keywords", "pool", "memberships", "excluded", "_id"}
        fields = {name: value for name, value in vars(self).items() if name not in left_out}
        fields |= {"clusters": self.clusters, "id": self.id, "format_version": FORMAT_VERSION}
        return {**fields, "excluded": [each._asdict() for each in self.excluded]} if self.excluded else fields

    def __str__(self) -> str:
        kind = f"cluster {self.cluster}" + (f" ({', '.join(self.keywords[:3])})" if self.keywords else "")
        if self.familiarity < _UNFAMILIAR:
            kind = "a prompt unlike those the router was fitted on"
        first, *second = islice(self._ranked(), 2)
        against = "; it is the only candidate"
        if first.model != self.model:
            why = "it already works on the conversation" if self.basis == "kept" else "chosen to explore"
            against = f"; {why}, the best would be {first.model}, {_describe(first)}"
        elif second:
            against = f"; next would be {second[0].model}, {_describe(second[0])}"
        excluded = "".join(f" Without {each.model}: {each.reason}." for each in self.excluded)
        return f"{self.model} for {kind}: {_describe(self)}{against} (cost weight {self.cost_weight:.3g}).{excluded}"


def noted_memberships(noted: Mapping[str, Any], clusters: PromptClusters) -> Memberships | None:
    """Phi(x) of a decision that was noted as plain JSON, as far as that is known.

    Plain JSON does not hold Phi(x). The nearest to it is the one cluster that is named and, as far as the prompt was
    unfamiliar, the shares of the clusters.

    Returns:
        The memberships, of one row; None if the JSON names no cluster of these.
    """
    cluster, familiarity = noted.get("cluster"), noted.get("familiarity", 1.0)
    if noted.get("clusters", clusters.fingerprint) != clusters.fingerprint:
        return None
    if type(cluster) is not int or not 0 <= cluster < len(clusters):
        return None
    known = number(familiarity, "familiarity", high=1)
    phi = (1 - known) * clusters.shares
    phi[cluster] += known
    return Memberships(phi[None], np.array([known]))


def decide(
    pool: Pool, memberships: Memberships, cost_weight: float, explorer: np.random.Generator | None = None
) -> list[RoutingDecision]:
    """Choose a model for each prompt.

    Args:
        pool: The candidates.
        memberships: Phi of the prompts.
        cost_weight: lambda.
        explorer: Where given, each model is judged by a draw from its error's distribution (Thompson sampling).
    """
    expected = pool.expected(memberships.phi)
    least = chosen = best(expected.error, expected.cost, cost_weight)
    if explorer is not None:
        std = memberships.phi @ pool.std
        chosen = best(expected.error + explorer.standard_normal(std.shape) * std, expected.cost, cost_weight)
    rows = zip(
        memberships.phi, memberships.familiarity.tolist(), *expected, chosen.tolist(), least.tolist(), strict=True
    )
    return [
        _decision(
            pool,
            cost_weight,
            phi,
            familiarity,
            errors,
            costs,
            column,
            "best" if column == usual else "explored",
        )
        for phi, familiarity, errors, costs, column, usual in rows
    ]


def _decision(  # noqa: PLR0917  # the columns of a table of decisions
    pool: Pool,
    cost_weight: float,
    phi: Floats,
    familiarity: float,
    errors: Floats,
    costs: Floats,
    column: int,
    basis: Basis,
) -> RoutingDecision:
    cluster = int(phi.argmax())
    error, cost = errors.item(column), costs.item(column)
    return RoutingDecision(
        pool.names[column],
        error,
        pool.std_of(column, phi, familiarity),
        cost,
        objective(error, cost, cost_weight),
        cluster,
        pool.clusters.keywords[cluster],
        cost_weight,
        familiarity,
        basis,
        pool,
        phi,
    )


def _describe(candidate: Candidate) -> str:
    error, std = candidate.expected_error, candidate.expected_error_std
    return f"expected error {error:.2f} ± {std:.2f} at cost {candidate.expected_cost:.3g}"
