"""Psi: the profiles of models, and the estimators that turn a profile into an error per cluster.

A profile keeps *sufficient statistics* (per cluster: how many prompts were graded, and the sum of their losses), not
an estimate. So two runs of the same model add, and the same counts can be read under another estimator or prior. The
loss of a prompt is 1 - score: 0 is right, 1 is wrong.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from unirouter_integrations._checks import check_name, one_of, shown, shown_path, whole_number
from unirouter_integrations._storage import SavedState, read_folder, write_folder
from unirouter_integrations.errors import InvalidInputError, StorageError

Floats = npt.NDArray[np.float64]
Estimator = Literal["empirical_bayes", "laplace", "mean"]

ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
_FORMAT = "unirouter profile"
_FORMAT_VERSION = 1
_MAX_VARIANCE = 0.25  # of any quantity between 0 and 1
_LAPLACE_COUNT = 1.0  # prompts: one wrong and one right answer are added
# Prompts. More shrinkage suits models that are good or bad at everything, less suits specialists. On recorded outcomes
# of language models, with 60 to 600 prompts and 3 to 50 clusters, 8 was above 4 by up to 0.008 of area, and 16 above 8
# by up to 0.005; but with 16, six wrong answers out of six in a cluster could win against six right ones.
_OWN_MEAN_STRENGTH = 8.0
# The prior on error rates before any model is known: models differ by 0.2 (standard deviation), and the clusters of a
# model by 0.1 about its mean. It counts as much as one known model.
_ABILITY_VARIANCE = 0.2**2
_CLUSTER_VARIANCE = 0.1**2
# Clusters on which all known models err alike are expected to be alike for a new one. Their similarity falls with the
# squared distance of their error rates, in units of 0.3 times its median, and is at most 0.8. This structure counts as
# 10 known models. On recorded outcomes 10 and 30, and units of 0.25 to 0.4, were within 0.002 of area of each other.
_SIMILARITY_WIDTH = 0.3
_MAX_SIMILARITY = 0.8
_STRUCTURE_STRENGTH = 10.0
# The known models' errors were shrunk and averaged over prompts of a kind, which hides some of how models differ. On
# recorded outcomes 1.5 covered better than 1, with up to 0.002 more area.
_COVARIANCE_INFLATION = 1.5
_OUTCOME_VARIANCE = 0.2  # p(1 - p) of a typical outcome, to weigh a grade that is not known yet
_MIN_COUNT = 1e-9  # prompts; a smaller count is a rounding error
_SINGULAR = 1e-9  # of the trace of a covariance; a negative eigenvalue that is smaller is a rounding error
_ROUNDING = 1e-12  # squared distance of error rates; a smaller one is a rounding error


class ClusterErrors(NamedTuple):
    """The expected error of a model in each cluster, and its standard deviation, both `(K,)`."""

    error: Floats
    std: Floats


@dataclass(frozen=True, eq=False)
class LLMProfile:
    """The graded prompts of a model, summed per cluster, and its cost.

    Profiles of the same model add: `first + second` is the profile of both runs together.

    Attributes:
        name: The name under which the model is registered.
        counts: `(K,)`, the number of graded prompts in each cluster. A prompt may belong to several in parts.
        losses: `(K,)`, the sum of their losses (1 - score), each between 0 (right) and 1 (wrong).
        cost: The expected cost of one call, a number or one per cluster `(K,)`, in any unit that is the same for
            all models. With USD per 1,000 calls, `cost_weight` is a readable number.
        metadata: Further plain JSON to keep with the profile.
        clusters: The fingerprint of the clusters the counts belong to; None if unknown.

    Raises:
        InvalidInputError: If the arguments are not valid or do not fit each other.
    """

    name: str
    counts: Floats
    losses: Floats
    cost: float | Floats
    metadata: Mapping[str, Any] = field(default_factory=dict)
    clusters: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", check_name(self.name, "The name of a model"))
        counts = self._checked_array("counts", self.counts)
        losses = self._checked_array("losses", self.losses)
        if counts.ndim != 1 or len(counts) == 0 or losses.shape != counts.shape:
            msg = (
                f"The profile of {self.name!r} needs one count and one sum of losses for each cluster, but counts has "
                f"shape {counts.shape} and losses {losses.shape}."
            )
            raise InvalidInputError(msg)
        excessive = losses > counts * (1 + 1e-9)  # sums of parts may exceed by rounding
        if excessive.any():
            cluster = int(excessive.argmax())
            msg = (
                f"The profile of {self.name!r} has a loss of {losses[cluster]:g} in cluster {cluster} from "
                f"{counts[cluster]:g} prompts; a loss lies between 0 and 1 per prompt."
            )
            raise InvalidInputError(msg)
        cost = self._checked_array("cost", self.cost)
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
    def from_scores(
        cls,
        name: str,
        phi: Floats,
        scores: Sequence[float] | Floats,
        *,
        cost: float | Sequence[float] | Floats,
        metadata: Mapping[str, Any] | None = None,
        clusters: str | None = None,
    ) -> LLMProfile:
        """Count graded prompts per cluster.

        Args:
            name: The name of the model.
            phi: `(n, K)`, the memberships of each prompt.
            scores: `(n,)`, the score of each prompt, 0 (wrong) to 1 (right), NaN where not graded.
            cost: The cost of a call: one number, or the cost of each of the n calls, `(n,)`. Of these the mean per
                cluster is kept, and the mean of all calls for a cluster without calls.
            metadata: See the class.
            clusters: See the class.

        Raises:
            InvalidInputError: If scores or costs do not fit the prompts, or no prompt is graded.
        """
        counts, losses, graded = _cluster_sums(name, scores, phi)
        price = as_floats(cost, f"the cost of {name!r}")
        if price.ndim:
            if price.shape != graded.shape:
                msg = (
                    f"The cost of {name!r} should be a number or {len(graded)} numbers, one per prompt, but its shape "
                    f"is {price.shape}."
                )
                raise InvalidInputError(msg)
            price = _mean_or_default(counts, price[graded] @ phi[graded], price[graded].mean())
        return cls(name, counts, losses, price if price.ndim else float(price), metadata or {}, clusters)

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
            _combined_cost(self, other),
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
        """The mean loss (1 - score) over all graded prompts; 0.5 if there are none."""
        total = self.counts.sum()
        return float(self.losses.sum() / total) if total else 0.5

    def estimate(self, estimator: Estimator = "empirical_bayes", prior: ErrorPrior | None = None) -> ClusterErrors:
        """Estimate the expected error in each cluster and its standard deviation.

        With n graded prompts of summed loss e in a cluster:

        * `"mean"`: e / n, the paper's eq. 12; the model's mean error where n = 0.
        * `"laplace"`: (e + 1) / (n + 2), which is 0.5 where n = 0.
        * `"empirical_bayes"`: the posterior under `prior`. Without a prior it is shrunk to the model's own mean error m
          as if 8 more prompts had given it: (e + 8m) / (n + 8). There m = (E + 1) / (N + 2) over all N prompts, because
          one right answer does not show that the model is never wrong.

        Args:
            estimator: One of the three.
            prior: The distribution of errors over known models. Only `"empirical_bayes"` reads it.

        Raises:
            InvalidInputError: If there is no such estimator.
        """
        check_estimator(estimator)
        if estimator == "laplace":
            error = (self.losses + _LAPLACE_COUNT) / (self.counts + 2 * _LAPLACE_COUNT)
            return ClusterErrors(error, np.sqrt(error * (1 - error) / (self.counts + 2 * _LAPLACE_COUNT + 1)))
        if estimator == "empirical_bayes":
            if prior is not None:
                return prior.posterior(self.counts, self.losses)
            overall = (self.losses.sum() + _LAPLACE_COUNT) / (self.counts.sum() + 2 * _LAPLACE_COUNT)
            error = _shrink(self.counts, self.losses, overall)
            variance = _outcome_variance(self.counts, error * self.counts)
            return ClusterErrors(error, np.sqrt(variance / (self.counts + _OWN_MEAN_STRENGTH + 1)))
        error = _mean_or_default(self.counts, self.losses, self.mean_error)
        return ClusterErrors(error, np.sqrt(_outcome_variance(self.counts, self.losses) / np.maximum(self.counts, 1)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save to `profile.json` and `profile.safetensors` in a folder, replacing a profile saved there."""
        document = {"format": _FORMAT, "format_version": _FORMAT_VERSION, **profile_to_record(self)}
        costs = np.broadcast_to(self.cost, self.counts.shape)
        write_folder(
            path, "profile", SavedState(document, {"counts": self.counts, "losses": self.losses, "costs": costs})
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LLMProfile:
        """Load a profile that `save` wrote. Nothing in the folder is executed or imported.

        Raises:
            StorageError: If the folder is missing, damaged, or written by a newer version.
        """
        state = read_folder(path, "profile")
        state.check_format(_FORMAT, _FORMAT_VERSION, "profile", path)
        counts, losses, costs = (state.array(name, (None,), low=0) for name in ("counts", "losses", "costs"))
        try:
            return profile_from_record(state, counts, losses, costs)
        except InvalidInputError as error:
            msg = f"The profile in {shown_path(path)} is damaged. {error}"
            raise StorageError(msg) from error

    def _checked_array(self, what: str, values: npt.ArrayLike) -> Floats:
        array = as_floats(values, f"the {what} of the profile of {self.name!r}")
        if not np.isfinite(array).all() or (array < 0).any():
            msg = (
                f"The {what} of the profile of {self.name!r} should be finite and not negative, but is {shown(values)}."
            )
            raise InvalidInputError(msg)
        array.setflags(write=False)
        return array


def profile_to_record(profile: LLMProfile) -> dict[str, Any]:
    """Everything of a profile but its arrays, as plain JSON."""
    return {
        "name": profile.name,
        "cost": profile.cost if isinstance(profile.cost, float) else None,
        "clusters": profile.clusters,
        "metadata": dict(profile.metadata),
    }


def profile_from_record(record: SavedState, counts: Floats, losses: Floats, costs: Floats) -> LLMProfile:
    """Restore a profile from its record and its arrays, each `(K,)`.

    Raises:
        StorageError: If the record is damaged.
        InvalidInputError: If the numbers do not fit each other.
    """
    return LLMProfile(
        record.value("name", str),
        counts,
        losses,
        costs if record.document.get("cost") is None else record.value("cost", float),
        record.value("metadata", dict),
        None if record.document.get("clusters") is None else record.value("clusters", str),
    )


@dataclass(frozen=True, eq=False)
class ErrorPrior:
    """The distribution of errors over models, learned from known models and used to profile a new one.

    Psi of a new model is assumed to be drawn from a Gaussian over models. Its graded prompts are noisy observations of
    Psi, and `posterior` combines both in closed form.

    Attributes:
        mean: `(K,)`, the expected error of an unknown model in each cluster.
        covariance: `(K, K)`, the covariance between clusters of the errors of different models.

    Raises:
        InvalidInputError: If the shapes do not fit, or the numbers are no mean error and no covariance.
    """

    mean: Floats
    covariance: Floats

    def __post_init__(self) -> None:
        mean = as_floats(self.mean, "the mean of a prior")
        covariance = as_floats(self.covariance, "the covariance of a prior")
        if mean.ndim != 1 or not len(mean) or covariance.shape != 2 * mean.shape:
            msg = (
                f"A prior needs a mean (K,) and a covariance (K, K), but they are {mean.shape} and {covariance.shape}."
            )
            raise InvalidInputError(msg)
        plausible = (mean >= 0).all() and (mean <= 1).all() and np.isfinite(covariance).all()
        if not plausible or not np.allclose(covariance, covariance.T):
            msg = "A prior needs a mean between 0 and 1 and a finite, symmetric covariance."
            raise InvalidInputError(msg)
        try:  # a Cholesky decomposition takes a seventh of the time of the eigenvalues
            jitter = max(_SINGULAR * float(np.trace(covariance)), np.finfo(float).tiny)
            np.linalg.cholesky(covariance + jitter * np.eye(len(mean)))
        except np.linalg.LinAlgError:
            msg = "The covariance of a prior has negative eigenvalues, which no covariance has."
            raise InvalidInputError(msg) from None
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)

    @classmethod
    def fit(cls, errors: Floats, shares: Floats) -> ErrorPrior:
        """Learn the prior from the errors of known models.

        There are fewer models than clusters, so their sample covariance alone would be a poor estimate. It is shrunk to
        a structured covariance, in which a model has one ability, the same in all clusters, and clusters on which the
        known models err alike vary together. The uninformed prior counts as one more model, so that one or two known
        models do not make the prior certain.

        Args:
            errors: `(M, K)`, the error of each known model in each cluster, see `errors_of_known`.
            shares: `(K,)`, the share of the prompts in each cluster.
        """
        models, size = errors.shape
        mean = errors.mean(axis=0)
        deviations = errors - mean
        degrees_of_freedom = max(models - 1, 1)
        sample = deviations.T @ deviations / degrees_of_freedom
        ability = deviations @ shares
        ability_variance = (ability**2).sum() / degrees_of_freedom
        cluster_variance = ((deviations - ability[:, None]) ** 2 @ shares).sum() / degrees_of_freedom
        structured = ability_variance + cluster_variance * _cluster_similarity(errors)
        shrunk = (models * sample + _STRUCTURE_STRENGTH * structured) / (models + _STRUCTURE_STRENGTH)
        # A new model differs from the mean of M others by 1 + 1 / M of the variance: its own and that of the mean.
        of_new_model = _COVARIANCE_INFLATION * (1 + 1 / models) * shrunk
        return cls(mean, (models * of_new_model + _uninformed_covariance(size)) / (models + 1))

    @classmethod
    def uninformed(cls, n_clusters: int) -> ErrorPrior:
        """The prior without any known model."""
        n_clusters = whole_number(n_clusters, "n_clusters", low=1)
        return cls(np.full(n_clusters, 0.5), _uninformed_covariance(n_clusters))

    def most_informative(self, phi: Floats, n: int) -> list[int]:
        """Choose the n prompts whose grades reduce the uncertainty about a new model most.

        Greedy: each next prompt is the one that reduces the posterior variance of the errors most, averaged over the
        clusters by their shares among these prompts (A-optimal design). Ties go to the first.

        Args:
            phi: `(N, K)`, the memberships of the prompts to choose from.
            n: How many to choose, at most N.

        Returns:
            The rows of the chosen prompts, the most informative first.
        """
        shares = phi.mean(axis=0)
        covariance = phi @ self.covariance  # (N, K), of the expected error of each prompt with that of each cluster
        available = np.ones(len(phi), bool)
        chosen = []
        for _ in range(n):
            gain = (covariance**2 @ shares) / ((covariance * phi).sum(axis=1) + _OUTCOME_VARIANCE)
            best = int(np.where(available, gain, -1).argmax())
            chosen.append(best)
            available[best] = False
            scaled = covariance[best] / np.sqrt(covariance[best] @ phi[best] + _OUTCOME_VARIANCE)
            covariance = covariance - np.outer(phi @ scaled, scaled)
        return chosen

    def posterior(self, counts: Floats, losses: Floats) -> ClusterErrors:
        """Psi of a model with these counts and summed losses, each `(K,)`, and its standard deviation.

        With S the covariance, mu the mean, and R the variance p(1 - p) / n of the observed mean errors y of the
        clusters that have prompts: `mu + S (S + R)^-1 (y - mu)` and `S - S (S + R)^-1 S`. This is the same as the
        information form `(S^-1 + A'A / s2)^-1 (S^-1 mu + A'e / s2)` and needs no inverse of S.
        """
        observed = counts > _MIN_COUNT
        n = counts[observed]
        noise = np.asarray(_outcome_variance(counts.sum(), losses.sum()) / n)
        gain = np.linalg.solve(self.covariance[np.ix_(observed, observed)] + np.diag(noise), self.covariance[observed])
        error = self.mean + (losses[observed] / n - self.mean[observed]) @ gain
        variance = np.diag(self.covariance) - (self.covariance[:, observed] * gain.T).sum(axis=1)
        return ClusterErrors(np.clip(error, 0, 1), np.sqrt(np.clip(variance, 0, _MAX_VARIANCE)))


def check_scores(scores: Sequence[float] | Floats, length: int, what: str) -> Floats:
    """Check scores that a user gave, `(length,)`, from 0 (wrong) to 1 (right), NaN where not graded.

    Args:
        scores: The scores.
        length: The number of prompts.
        what: Their name in the message.

    Raises:
        InvalidInputError: If they are no numbers, too many or too few, or out of range.
    """
    array = as_floats(scores, what)
    if array.shape != (length,):
        msg = f"Expected {what} to be one number for each of the {length} prompts, but the shape is {array.shape}."
        raise InvalidInputError(msg)
    outside = (array < 0) | (array > 1)
    if outside.any():
        index = int(outside.argmax())
        msg = (
            f"Expected {what} to lie between 0 (wrong) and 1 (right), NaN where not graded, but number {index} is "
            f"{array[index]:g}."
        )
        raise InvalidInputError(msg)
    return array


def as_floats(values: Any, what: str) -> Floats:
    """Return numbers that a user gave as an array.

    Raises:
        InvalidInputError: If they are something else.
    """
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError, OverflowError):
        msg = f"Expected {what} to be numbers, but they are a {type(values).__name__} of something else."
        raise InvalidInputError(msg) from None  # the original may quote what was given


def check_estimator(estimator: str) -> None:
    """Raise `InvalidInputError` if there is no estimator of that name."""
    one_of(estimator, "estimator", ESTIMATORS)


def _outcome_variance(counts: Any, losses: Any) -> Any:
    """The variance p(1 - p) of one outcome; p is smoothed, so that a few right answers do not make it 0."""
    p = (losses + 1) / (counts + 2)
    return p * (1 - p)


def _uninformed_covariance(size: int) -> Floats:
    """The covariance of errors before any model is known, `(K, K)`."""
    return np.full((size, size), _ABILITY_VARIANCE) + _CLUSTER_VARIANCE * np.eye(size)


def _cluster_similarity(errors: Floats) -> Floats:
    """How similar the known models' errors are in each pair of clusters, `(K, K)`, from 0 to 1: a Gaussian kernel."""
    squares = (errors * errors).sum(axis=0)
    distances = squares[:, None] + squares - 2 * errors.T @ errors  # squared
    distances = np.where(distances > _ROUNDING, (distances + distances.T) / 2, 0)
    size = len(distances)
    typical = float(np.median(distances[np.triu_indices(size, 1)])) if size > 1 else 0.0
    kernel = np.exp(-distances / (2 * _SIMILARITY_WIDTH**2 * max(typical, _ROUNDING)))
    return np.asarray(_MAX_SIMILARITY * kernel + (1 - _MAX_SIMILARITY) * np.eye(size))


def _mean_or_default(counts: Any, sums: Any, default: float) -> Floats:
    """The mean of each cluster, or the default where it has no prompts."""
    counted = counts > 0
    return np.where(counted, sums / np.where(counted, counts, 1), default)


def _combined_cost(first: LLMProfile, second: LLMProfile) -> float | Floats:
    """The mean cost of the calls of both runs, per cluster if either cost is."""
    if np.array_equal(first.cost, second.cost):
        return first.cost
    if not (first.counts.any() and second.counts.any()):
        return first.cost if first.counts.any() else second.cost
    spent = first.counts * first.cost + second.counts * second.cost
    counts = first.counts + second.counts
    mean = float(spent.sum() / counts.sum())
    if isinstance(first.cost, float) and isinstance(second.cost, float):
        return mean
    return _mean_or_default(counts, spent, mean)


def _cluster_sums(name: str, scores: Any, phi: Floats) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Per cluster the number of graded prompts and their summed loss, both `(K,)`, and which are graded, `(n,)`."""
    checked = check_scores(scores, len(phi), f"the scores of {check_name(name, 'The name of a model')!r}")
    graded = ~np.isnan(checked)
    if not graded.any():
        msg = f"None of the {len(checked)} scores of {name!r} is known; at least one graded prompt is needed."
        raise InvalidInputError(msg)
    return phi[graded].sum(axis=0), (1 - checked[graded]) @ phi[graded], graded


def errors_of_known(phi: Floats, scores: Mapping[str, Sequence[float] | Floats]) -> Floats:
    """The error of each known model in each cluster, `(M, K)`.

    Each error is shrunk to the model's own mean plus the cluster's effect on all models. Otherwise the sampling noise
    of few scores would be taken for differences between models and clusters. Shrinkage also fills clusters in which a
    model has no scores.

    Args:
        phi: `(n, K)`, the memberships of each prompt.
        scores: For each known model its scores on these prompts, `(n,)`, 0 (wrong) to 1 (right), NaN where not graded.

    Raises:
        InvalidInputError: If there is no model, or scores do not fit the prompts.
    """
    if not (hasattr(scores, "items") and len(scores)):
        msg = "scores should map the name of at least one known model to its scores; without any, leave it out."
        raise InvalidInputError(msg)
    counts, losses = np.zeros((2, len(scores), phi.shape[1]))
    for row, (name, of_model) in enumerate(scores.items()):
        counts[row], losses[row], _ = _cluster_sums(name, of_model, phi)
    own_mean = losses.sum(axis=1, keepdims=True) / counts.sum(axis=1, keepdims=True)
    cluster_effect = (losses - counts * own_mean).sum(axis=0) / (counts.sum(axis=0) + _OWN_MEAN_STRENGTH)
    return np.asarray(_shrink(counts, losses, np.clip(own_mean + cluster_effect, 0, 1)))


def _shrink(counts: Any, losses: Any, mean: Any) -> Any:
    """The mean loss of each cluster as if `_OWN_MEAN_STRENGTH` more prompts had given this mean."""
    return (losses + _OWN_MEAN_STRENGTH * mean) / (counts + _OWN_MEAN_STRENGTH)
