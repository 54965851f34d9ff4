"""Psi: what is known of a model, and the estimators that turn it into an error per cluster.

A profile keeps *sufficient statistics* (per cluster: how many prompts were graded, and the sum of their losses), not
an estimate. So two runs of the same model add, and the same counts can be read under another estimator or prior.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from unirouter_integrations.errors import InvalidInputError, StorageError
from unirouter_integrations.storage import State, read_folder, write_folder

Floats = npt.NDArray[np.float64]
Estimator = Literal["empirical_bayes", "laplace", "mean"]

ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
_FORMAT = "unirouter profile"
_FORMAT_VERSION = 1
_MOST_VARIANCE = 0.25  # of what lies between 0 and 1
_LAPLACE = 1.0
# More shrinkage suits models that are good or bad at everything, less suits specialists. On recorded outcomes of
# language models, with 60 to 600 prompts and 3 to 50 clusters, 8 was above 4 by up to 0.008 of area, and 16 above 8 by
# up to 0.005; but with 16, six wrong answers out of six in a cluster could win against six right ones.
_OWN_MEAN_STRENGTH = 8.0
# What is believed of error rates before any model is known: good and bad models differ by 0.2 (standard deviation), and
# a model's clusters by 0.1 about its mean. Counts as much as one known model.
_ABILITY_VARIANCE = 0.2**2
_CLUSTER_VARIANCE = 0.1**2
# Clusters on which all known models err alike are taken to be alike for a new one: the likeness falls with the squared
# distance of their error rates, in units of 0.3 times its median, and is 0.8 at most. That counts as 10 known models.
# On recorded outcomes 10 and 30, and units of 0.25 to 0.4, were within 0.002 of area of each other.
_ALIKE_WITHIN = 0.3
_ALIKE_MOST = 0.8
_ALIKE_STRENGTH = 10.0
# The known models' errors were shrunk and averaged over prompts of a kind, which hides some of how models differ. On
# recorded outcomes 1.5 covered better than 1, with up to 0.002 more area.
_WIDER = 1.5
_LEAST_COUNT = 1e-9
_ROUNDING = 1e-12
# p(1 - p) of a typical outcome, to weigh a grade that is not there yet.
_OUTCOME_VARIANCE = 0.2


class ClusterErrors(NamedTuple):
    """The expected error of a model in each cluster, and its standard deviation, both `(K,)`."""

    error: Floats
    std: Floats


@dataclass(frozen=True, eq=False)
class LLMProfile:
    """What one run over graded prompts has told about a model.

    Profiles of the same model add: `first + second` is the profile of both runs together.

    Attributes:
        name: The name under which the model is registered.
        counts: `(K,)`, the number of graded prompts in each cluster; a prompt may belong to several in parts.
        losses: `(K,)`, the sum of their losses, each between 0 (right) and 1 (wrong).
        cost: The expected cost of one call, a number or one per cluster `(K,)`, in any unit that is the same for
            all models. USD per 1,000 calls makes `cost_weight` a readable number.
        metadata: Whatever else is worth keeping with it (plain JSON).
        clusters: The fingerprint of the clusters the counts belong to; None if they were counted elsewhere.

    Raises:
        InvalidInputError: If the numbers do not fit each other.
    """

    name: str
    counts: Floats
    losses: Floats
    cost: float | Floats
    metadata: Mapping[str, Any] = field(default_factory=dict)
    clusters: str | None = None

    def __post_init__(self) -> None:
        if type(self.name) is not str or not self.name:
            msg = f"A profile needs the name of its model, a text that is not empty; it is {self.name!r}."
            raise InvalidInputError(msg)
        counts = self._numbers("counts", self.counts)
        losses = self._numbers("losses", self.losses)
        if counts.ndim != 1 or len(counts) == 0 or losses.shape != counts.shape:
            msg = (
                f"The profile of {self.name!r} needs one count and one sum of losses for each cluster, but counts has "
                f"shape {counts.shape} and losses {losses.shape}."
            )
            raise InvalidInputError(msg)
        if (losses > counts * (1 + 1e-9)).any():
            cluster = int((losses > counts * (1 + 1e-9)).argmax())
            msg = (
                f"The profile of {self.name!r} has a loss of {losses[cluster]:g} in cluster {cluster} from "
                f"{counts[cluster]:g} prompts; a loss lies between 0 and 1 per prompt."
            )
            raise InvalidInputError(msg)
        cost = self._numbers("cost", self.cost)
        if cost.shape not in ((), counts.shape):
            msg = (
                f"The cost of {self.name!r} should be a number or {len(counts)} numbers, one per cluster, but its "
                f"shape is {cost.shape}."
            )
            raise InvalidInputError(msg)
        try:
            metadata = json.loads(json.dumps(dict(self.metadata), allow_nan=False))
        except (TypeError, ValueError) as error:
            msg = f"The metadata of {self.name!r} should be plain JSON: {error}"
            raise InvalidInputError(msg) from error
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "losses", losses)
        object.__setattr__(self, "cost", float(cost) if cost.ndim == 0 else cost)
        object.__setattr__(self, "metadata", metadata)

    @classmethod
    def from_outcomes(
        cls,
        name: str,
        phi: Floats,
        losses: Sequence[float] | Floats,
        *,
        cost: float | Sequence[float] | Floats,
        metadata: Mapping[str, Any] | None = None,
        clusters: str | None = None,
    ) -> LLMProfile:
        """Count graded prompts per cluster.

        Args:
            name: The name of the model.
            phi: `(n, K)`, the memberships of each prompt.
            losses: `(n,)`, the loss of each prompt between 0 and 1; NaN where it was not graded.
            cost: The cost of a call: one number, or what each of the n calls has cost (`(n,)`), of which the mean per
                cluster is kept and, where a cluster has no call, the mean of all.
            metadata: See the class.
            clusters: See the class.
        """
        counts, sums, known = _counted(name, "losses", losses, phi)
        price = _as_floats(cost, f"the cost of {name!r}")
        if price.ndim:
            if price.shape != known.shape:
                msg = (
                    f"The cost of {name!r} should be a number or {len(known)} numbers, one per prompt, but its shape "
                    f"is {price.shape}."
                )
                raise InvalidInputError(msg)
            price = _mean_where_seen(counts, price[known] @ phi[known], price[known].mean())
        return cls(name, counts, sums, price if price.ndim else float(price), metadata or {}, clusters)

    def __add__(self, other: LLMProfile) -> LLMProfile:
        if not isinstance(other, LLMProfile):
            return NotImplemented
        same = (self.name, len(self), self.clusters or other.clusters)
        if same != (other.name, len(other), other.clusters or self.clusters):
            msg = (
                f"Only profiles of one model over the same clusters add; these are {self.name!r} over {len(self)} "
                f"clusters ({self.clusters}) and {other.name!r} over {len(other)} ({other.clusters})."
            )
            raise InvalidInputError(msg)
        return LLMProfile(
            self.name,
            self.counts + other.counts,
            self.losses + other.losses,
            _joined_cost(self, other),
            {**self.metadata, **other.metadata},
            self.clusters or other.clusters,
        )

    def __len__(self) -> int:
        return len(self.counts)

    def __repr__(self) -> str:
        low, high = f"{np.min(self.cost):g}", f"{np.max(self.cost):g}"
        cost = low if low == high else f"{low} to {high}"
        return (
            f"LLMProfile({self.name!r}, {self.counts.sum():g} prompts over {len(self)} clusters, "
            f"mean error {self.mean_error:.3f}, cost {cost})"
        )

    @property
    def mean_error(self) -> float:
        """The mean loss over all graded prompts; 0.5 if there are none."""
        total = self.counts.sum()
        return float(self.losses.sum() / total) if total else 0.5

    def estimate(self, estimator: Estimator = "empirical_bayes", prior: ErrorPrior | None = None) -> ClusterErrors:
        """The expected error in each cluster and its standard deviation.

        With n graded prompts of summed loss e in a cluster:

        * `"mean"`: e / n, the paper's eq. 12; the model's mean error where n = 0.
        * `"laplace"`: (e + 1) / (n + 2), which is 0.5 where n = 0.
        * `"empirical_bayes"`: the posterior under `prior`; without one, shrunk to the model's own mean error m as if
          8 more prompts had given it, (e + 8m) / (n + 8), where m is (E + 1) / (N + 2) of all N prompts: of one right
          answer nobody knows that the model is never wrong.

        Args:
            estimator: One of the three.
            prior: What other models have told about the clusters; only read by `"empirical_bayes"`.
        """
        check_estimator(estimator)
        mean = self.mean_error
        if estimator == "laplace":
            error = (self.losses + _LAPLACE) / (self.counts + 2 * _LAPLACE)
            return ClusterErrors(error, np.sqrt(error * (1 - error) / (self.counts + 2 * _LAPLACE + 1)))
        if estimator == "empirical_bayes":
            if prior is not None:
                return prior.posterior(self.counts, self.losses)
            overall = (self.losses.sum() + _LAPLACE) / (self.counts.sum() + 2 * _LAPLACE)
            error = _shrunk(self.counts, self.losses, overall)
            spread = _spread(self.counts, error * self.counts)
            return ClusterErrors(error, np.sqrt(spread / (self.counts + _OWN_MEAN_STRENGTH + 1)))
        error = _mean_where_seen(self.counts, self.losses, mean)
        return ClusterErrors(error, np.sqrt(_spread(self.counts, self.losses) / np.maximum(self.counts, 1)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save as `profile.json` and `profile.safetensors` in a folder, replacing a profile saved there."""
        document = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            **self.as_record(),
        }
        costs = np.broadcast_to(self.cost, self.counts.shape)
        write_folder(path, "profile", State(document, {"counts": self.counts, "losses": self.losses, "costs": costs}))

    def as_record(self) -> dict[str, Any]:
        """What is saved of it beside its arrays, as plain JSON."""
        return {
            "name": self.name,
            "cost": self.cost if isinstance(self.cost, float) else None,
            "clusters": self.clusters,
            "metadata": dict(self.metadata),
        }

    @classmethod
    def from_record(cls, record: State, counts: Floats, losses: Floats, costs: Floats) -> LLMProfile:
        """The profile of a saved record and its arrays, each `(K,)`.

        Raises:
            StorageError: If the record is damaged.
            InvalidInputError: If the numbers do not fit each other.
        """
        return cls(
            record.value("name", str),
            counts,
            losses,
            costs if record.document.get("cost") is None else record.value("cost", float),
            record.value("metadata", dict),
            None if record.document.get("clusters") is None else record.value("clusters", str),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LLMProfile:
        """Load what `save` wrote. Nothing in the folder is executed or imported.

        Raises:
            StorageError: If the folder is missing, damaged, or written by a newer version.
        """
        state = read_folder(path, "profile")
        state.check_format(_FORMAT, _FORMAT_VERSION, "profile", path)
        counts, losses, costs = (state.numbers(name, (None,), low=0) for name in ("counts", "losses", "costs"))
        try:
            return cls.from_record(state, counts, losses, costs)
        except InvalidInputError as error:
            msg = f"The profile in {os.fspath(path)!r} is damaged. {error}"
            raise StorageError(msg) from error

    def _numbers(self, what: str, values: npt.ArrayLike) -> Floats:
        array = _as_floats(values, f"the {what} of the profile of {self.name!r}")
        if not np.isfinite(array).all() or (array < 0).any():
            msg = f"The {what} of the profile of {self.name!r} should be finite and not negative, but is {values!r}."
            raise InvalidInputError(msg)
        array.setflags(write=False)
        return array


@dataclass(frozen=True, eq=False)
class ErrorPrior:
    """What the known models tell about the errors of a model that nobody has profiled yet.

    Psi of a new model is taken to be drawn from a Gaussian over models. Its graded prompts are noisy observations of
    it, and `posterior` is what is then known, in closed form.

    Attributes:
        mean: `(K,)`, the expected error of an unknown model in each cluster.
        covariance: `(K, K)`, how their errors vary together from model to model.
    """

    mean: Floats
    covariance: Floats

    def __post_init__(self) -> None:
        mean = _as_floats(self.mean, "the mean of a prior")
        covariance = _as_floats(self.covariance, "the covariance of a prior")
        if mean.ndim != 1 or not len(mean) or covariance.shape != 2 * mean.shape:
            msg = (
                f"A prior needs a mean (K,) and a covariance (K, K), but they are {mean.shape} and {covariance.shape}."
            )
            raise InvalidInputError(msg)
        sane = (mean >= 0).all() and (mean <= 1).all() and np.isfinite(covariance).all()
        if not sane or not np.allclose(covariance, covariance.T):
            msg = "A prior needs a mean between 0 and 1 and a finite, symmetric covariance."
            raise InvalidInputError(msg)
        if np.linalg.eigvalsh(covariance)[0] < -1e-9 * np.trace(covariance):
            msg = "The covariance of a prior has negative eigenvalues, which no covariance has."
            raise InvalidInputError(msg)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)

    @classmethod
    def fit(
        cls,
        errors: Floats,
        shares: Floats,
    ) -> ErrorPrior:
        """Learn the prior from the errors of known models.

        Their covariance alone would be a poor one: there are fewer models than clusters. It is shrunk to a structured
        one, in which a model has an ability, the same in all clusters, and clusters on which the known models err alike
        vary together. A fixed weak belief counts as one more model, so that one or two known models do not make the
        prior certain of anything.

        Args:
            errors: `(M, K)`, the error of each known model in each cluster, see `errors_of_known`.
            shares: `(K,)`, the share of the prompts in each cluster.
        """
        models, size = errors.shape
        mean = errors.mean(axis=0)
        by_model = errors - mean
        unbiased = max(models - 1, 1)
        seen = by_model.T @ by_model / unbiased
        ability = by_model @ shares
        of_ability = (ability**2).sum() / unbiased
        of_clusters = ((by_model - ability[:, None]) ** 2 @ shares).sum() / unbiased
        structured = of_ability + of_clusters * _likeness(errors)
        shrunk = (models * seen + _ALIKE_STRENGTH * structured) / (models + _ALIKE_STRENGTH)
        # A new model differs from the mean of M others as one more draw does, by 1 + 1 / M of their variance.
        of_new = _WIDER * (1 + 1 / models) * shrunk
        return cls(mean, (models * of_new + _belief(size)) / (models + 1))

    @classmethod
    def uninformed(cls, n_clusters: int) -> ErrorPrior:
        """What is believed where no model is known."""
        return cls(np.full(n_clusters, 0.5), _belief(n_clusters))

    def most_informative(self, phi: Floats, n: int) -> list[int]:
        """The n prompts whose grades would tell most about a new model's errors on all of them, most telling first.

        Greedy: each next prompt is the one that shrinks the posterior variance of the errors most, in the mean over the
        clusters' shares among these prompts (A-optimal design). Of equals, the first.

        Args:
            phi: `(N, K)`, the memberships of the prompts there are.
            n: How many to choose, at most N.
        """
        shares = phi.mean(axis=0)
        told = phi @ self.covariance
        free = np.ones(len(phi), bool)
        chosen = []
        for _ in range(n):
            gain = (told**2 @ shares) / ((told * phi).sum(axis=1) + _OUTCOME_VARIANCE)
            best = int(np.where(free, gain, -1).argmax())
            chosen.append(best)
            free[best] = False
            seen = told[best] / np.sqrt(told[best] @ phi[best] + _OUTCOME_VARIANCE)
            told = told - np.outer(phi @ seen, seen)
        return chosen

    def posterior(self, counts: Floats, losses: Floats) -> ClusterErrors:
        """Psi of a model with these counts and summed losses, each `(K,)`, and its standard deviation.

        With S the covariance, mu the mean, and R the variance p(1 - p) / n of the observed mean errors y of the
        clusters that have prompts: `mu + S (S + R)^-1 (y - mu)` and `S - S (S + R)^-1 S`. It is the same as the
        information form `(S^-1 + A'A / s2)^-1 (S^-1 mu + A'e / s2)` and needs no inverse of S.
        """
        seen = counts > _LEAST_COUNT
        n = counts[seen]
        noise = np.asarray(_spread(counts.sum(), losses.sum()) / n)
        gain = np.linalg.solve(self.covariance[np.ix_(seen, seen)] + np.diag(noise), self.covariance[seen])
        error = self.mean + (losses[seen] / n - self.mean[seen]) @ gain
        variance = np.diag(self.covariance) - (self.covariance[:, seen] * gain.T).sum(axis=1)
        return ClusterErrors(np.clip(error, 0, 1), np.sqrt(np.clip(variance, 0, _MOST_VARIANCE)))


def check_losses(losses: Sequence[float] | Floats, length: int, what: str) -> Floats:
    """The losses as `(length,)` floats between 0 and 1 (NaN: unknown), or an error that says what is wrong."""
    array = _as_floats(losses, what)
    if array.shape != (length,):
        msg = f"Expected {what} to be one number for each of the {length} prompts, but the shape is {array.shape}."
        raise InvalidInputError(msg)
    outside = (array < 0) | (array > 1)
    if outside.any():
        index = int(outside.argmax())
        msg = (
            f"Expected {what} to lie between 0 (right) and 1 (wrong), NaN where unknown, but number {index} is "
            f"{array[index]:g}. A score s becomes the loss 1 - s."
        )
        raise InvalidInputError(msg)
    return array


def _as_floats(values: Any, what: str) -> Floats:
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError, OverflowError):
        msg = f"Expected {what} to be numbers, but they are a {type(values).__name__} of something else."
        raise InvalidInputError(msg) from None  # the original may quote what was given


def check_estimator(estimator: str) -> None:
    """Raise an error if there is no estimator of that name."""
    if estimator not in ESTIMATORS:
        msg = f"There is no estimator {estimator!r}; choose one of {', '.join(ESTIMATORS)}."
        raise InvalidInputError(msg)


def _spread(counts: Any, losses: Any) -> Any:
    """The variance p(1 - p) of one outcome; p is smoothed, so that a few right answers do not make it 0."""
    p = (losses + 1) / (counts + 2)
    return p * (1 - p)


def _belief(size: int) -> Floats:
    return np.full((size, size), _ABILITY_VARIANCE) + _CLUSTER_VARIANCE * np.eye(size)


def _likeness(errors: Floats) -> Floats:
    """How alike each two clusters are to the known models, `(K, K)`, from 0 to 1."""
    squares = (errors * errors).sum(axis=0)
    apart = squares[:, None] + squares - 2 * errors.T @ errors
    apart = np.where(apart > _ROUNDING, (apart + apart.T) / 2, 0)
    size = len(apart)
    typical = float(np.median(apart[np.triu_indices(size, 1)])) if size > 1 else 0.0
    alike = np.exp(-apart / (2 * _ALIKE_WITHIN**2 * max(typical, _ROUNDING)))
    return np.asarray(_ALIKE_MOST * alike + (1 - _ALIKE_MOST) * np.eye(size))


def _mean_where_seen(counts: Any, sums: Any, otherwise: float) -> Floats:
    """The mean of each cluster that has prompts."""
    seen = counts > 0
    return np.where(seen, sums / np.where(seen, counts, 1), otherwise)


def _joined_cost(first: LLMProfile, second: LLMProfile) -> float | Floats:
    """The mean cost of the calls of both runs, per cluster where either is; the mean of all where neither has any."""
    if np.array_equal(first.cost, second.cost):
        return first.cost
    if not (first.counts.any() and second.counts.any()):
        return first.cost if first.counts.any() else second.cost
    spent = first.counts * first.cost + second.counts * second.cost
    counts = first.counts + second.counts
    mean = float(spent.sum() / counts.sum())
    if isinstance(first.cost, float) and isinstance(second.cost, float):
        return mean
    return _mean_where_seen(counts, spent, mean)


def _counted(name: str, what: str, losses: Any, phi: Floats) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """In each cluster how many losses are known and their sum, both `(K,)`; and which are known, `(n,)`."""
    checked = check_losses(losses, len(phi), f"the {what} of {name!r}")
    known = ~np.isnan(checked)
    if not known.any():
        msg = f"None of the {len(checked)} {what} of {name!r} is known; at least one graded prompt is needed."
        raise InvalidInputError(msg)
    return phi[known].sum(axis=0), checked[known] @ phi[known], known


def errors_of_known(phi: Floats, outcomes: Mapping[str, Sequence[float] | Floats]) -> Floats:
    """The error of each known model in each cluster, `(M, K)`.

    Shrunk to what the model's own mean and the cluster's effect on all models together make likely: otherwise the
    chance errors of a few outcomes would pass for differences between models and clusters. It fills gaps as well.

    Args:
        phi: `(n, K)`, the memberships of each prompt.
        outcomes: For each known model its losses on these prompts, `(n,)`, NaN where unknown.

    Raises:
        InvalidInputError: If there is no model, or losses do not fit the prompts.
    """
    if not (hasattr(outcomes, "items") and len(outcomes)):
        msg = "outcomes should map the name of at least one known model to its losses; without any, leave it out."
        raise InvalidInputError(msg)
    counts, sums = np.zeros((2, len(outcomes), phi.shape[1]))
    for row, (name, losses) in enumerate(outcomes.items()):
        counts[row], sums[row], _ = _counted(name, "outcomes", losses, phi)
    own = sums.sum(axis=1, keepdims=True) / counts.sum(axis=1, keepdims=True)
    effect = (sums - counts * own).sum(axis=0) / (counts.sum(axis=0) + _OWN_MEAN_STRENGTH)
    return np.asarray(_shrunk(counts, sums, np.clip(own + effect, 0, 1)))


def _shrunk(counts: Any, losses: Any, mean: Any) -> Any:
    """The mean loss of each cluster as if some more prompts had given this mean."""
    return (losses + _OWN_MEAN_STRENGTH * mean) / (counts + _OWN_MEAN_STRENGTH)
