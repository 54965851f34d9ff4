"""The routers that are compared: this package's, the published ones, and lower and upper bounds.

A method is a function from a `Trial` to the error that it expects of each new model on each test prompt, `(test, M)`.
All methods route by the same rule, and each is tuned on known models and training prompts only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from unirouter_integrations._router import UniRouter
from unirouter_integrations.core import LLMProfile, SoftmaxGate
from unirouter_integrations.core._profiles import Estimator, Floats, errors_of_known
from unirouter_integrations.embedding import Vectors
from unirouter_integrations.evaluation._curves import DeferralCurve

DEFAULT = "unirouter"
CHOSEN = "unirouter, chosen prompts"
BLIND = "prompt-blind (ZeroRouter)"
KNN = "K-NN"
KMEANS = "K-means (UniRoute)"
LEARNED_MAP = "LearnedMap (UniRoute)"
RIDGE = "ridge per model"
CLAIRVOYANT = "clairvoyant clusters"

Setting = TypeVar("Setting", int, float)

# The settings that are tried when a method is tuned.
_CLUSTERS = (3, 5, 10, 20, 50)
_NEIGHBOURS = (5, 10, 20, 35, 60, 100)
_PENALTIES = (0.1, 1.0, 10.0, 100.0)
_RANKS = (1, 2, 4, 8)
_TUNING_DRAWS = 3
_TUNING_TEST = 1000  # training prompts that are routed in one draw

_LENGTH_BINS = 5
_MIN_EARLY_STOPPING = 20  # prompts; a tenth of fewer would be a single prompt to stop by
_NEVER = 1e6  # an expected error so large that the rule chooses the model at no cost weight in use


class Graded(NamedTuple):
    """Some graded prompts.

    Attributes:
        prompts: Their texts.
        vectors: `(n, d)`, their embeddings, of length 1.
        scores: `(n, M)`, the scores of some models on them.
    """

    prompts: list[str]
    vectors: Vectors
    scores: Floats

    @property
    def errors(self) -> Floats:
        """`(n, M)`, 1 - score: what methods predict."""
        return 1 - self.scores

    def select(self, rows: npt.NDArray[np.intp]) -> Graded:
        """Select prompts by their row."""
        return Graded([self.prompts[row] for row in rows], self.vectors[rows], self.scores[rows])


@dataclass(frozen=True)
class Trial:
    """One split of models and prompts.

    Attributes:
        router: Fitted on the training prompts and the scores of the known models; no model is registered.
        models: The names of the new models.
        training: The training prompts, graded for the known models.
        known_costs: `(known models,)`, the cost per call of each known model.
        validation: The few prompts that the new models are graded on.
        candidates: The prompts from which these were drawn at random; a method may choose as many others of them.
        test: The prompts to route, graded for the new models; only the oracle may read these scores.
        all_labels: The training prompts, graded for the new models; only clairvoyant methods may read these scores.
        costs: `(M,)`, the cost per call of each new model.
        seed: The seed of all random choices.
        cache: Results that do not depend on the validation prompts, computed once.
    """

    router: UniRouter
    models: tuple[str, ...]
    training: Graded
    known_costs: Floats
    validation: Graded
    candidates: Graded
    test: Graded
    all_labels: Graded
    costs: Floats
    seed: int
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def cached(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return the result of `make`, which is called once per key."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]


Method = Callable[[Trial], Floats]


def unirouter(trial: Trial) -> Floats:
    """This package's default: learned soft clusters, and empirical Bayes over them."""
    return profiled_router(trial).expected_errors(vectors=trial.test.vectors, among=trial.models)


def profiled_router(trial: Trial) -> UniRouter:
    """Return the router of a trial with its new models, profiled on the validation prompts."""
    router = UniRouter(trial.router.clusters, prior=trial.router.prior)
    for name, scores, cost in zip(trial.models, trial.validation.scores.T, trial.costs.tolist(), strict=True):
        router.register(router.profile(name, vectors=trial.validation.vectors, scores=scores, cost=cost))
    return router


def chosen_validation(trial: Trial) -> Floats:
    """The default, graded on prompts that `choose_validation` selects."""
    rows = trial.router.choose_validation(vectors=trial.candidates.vectors, n=len(trial.validation.prompts))
    return unirouter(replace(trial, validation=trial.candidates.select(np.array(rows))))


def best_single(trial: Trial) -> Floats:
    """The best model in validation, mixed with the cheapest one where the budget is smaller."""
    errors = trial.validation.errors.mean(axis=0)
    kept = [int(np.lexsort((trial.costs, errors))[0]), int(np.lexsort((errors, trial.costs))[0])]
    expected = np.full(trial.test.scores.shape, _NEVER)
    expected[:, kept] = errors[kept]
    return expected


def at_random(trial: Trial) -> Floats:
    """Expectations drawn at random."""
    return np.random.default_rng(trial.seed).random(trial.test.scores.shape)


def oracle(trial: Trial) -> Floats:
    """The recorded errors on the test prompts."""
    return trial.test.errors


def prompt_length(trial: Trial) -> Floats:
    """Clusters of prompts of about the same length, and the mean error in each."""
    edges = np.quantile([len(text) for text in trial.training.prompts], np.arange(1, _LENGTH_BINS) / _LENGTH_BINS)
    labels = [np.searchsorted(edges, [len(text) for text in part.prompts]) for part in (trial.validation, trial.test)]
    return _cluster_errors(trial.validation.scores, labels[0], _LENGTH_BINS, "empirical_bayes")[labels[1]]


def prompt_blind(trial: Trial) -> Floats:
    """The mean error in validation for every prompt: the rule then follows the hull of the single models."""
    return np.broadcast_to(trial.validation.errors.mean(axis=0), trial.test.scores.shape)


def knn(trial: Trial) -> Floats:
    """The mean error on the k nearest validation prompts; k is tuned from 5 to a third of them."""
    most = max(len(trial.validation.prompts) // 3, 1)
    return _knn(trial, _tuned(trial, _knn, sorted({min(k, most) for k in (*_NEIGHBOURS, most)})))


def _knn(trial: Trial, k: int) -> Floats:
    nearest = np.argpartition(-(trial.test.vectors @ trial.validation.vectors.T), k - 1, axis=1)[:, :k]
    return np.asarray(trial.validation.errors[nearest].mean(axis=1))


def kmeans(trial: Trial) -> Floats:
    """The paper's section 5.1: the mean error in the cluster, or the model's mean in an empty one; K is tuned."""
    return _kmeans(trial, _tuned(trial, _kmeans, _cluster_choices(trial)))


def _kmeans(trial: Trial, n_clusters: int) -> Floats:
    return _errors_by_cluster(trial, n_clusters, "mean")


def laplace(trial: Trial) -> Floats:
    """K-means with (errors + 1) / (prompts + 2) in each cluster; K is tuned."""
    return _laplace(trial, _tuned(trial, _laplace, _cluster_choices(trial)))


def _laplace(trial: Trial, n_clusters: int) -> Floats:
    return _errors_by_cluster(trial, n_clusters, "laplace")


def learned_map(trial: Trial) -> Floats:
    """The paper's section 5.2: the cluster errors of K-means, weighted by a gate learned from the known models."""
    n_clusters = _tuned(trial, _kmeans, _cluster_choices(trial))
    fitted = _fitted_kmeans(trial, n_clusters)

    def learn() -> SoftmaxGate:
        labels = fitted.predict(trial.training.vectors)
        names = map(str, range(len(trial.known_costs)))
        psi = errors_of_known(np.eye(n_clusters)[labels], dict(zip(names, trial.training.scores.T, strict=True)))
        start = SoftmaxGate.from_centroids(fitted.cluster_centers_, _temperature(fitted, trial.training.vectors))
        return start.fit(trial.training.vectors, trial.training.errors, psi, seed=trial.seed)

    gate: SoftmaxGate = trial.cached(("gate", n_clusters), learn)
    labels = fitted.predict(trial.validation.vectors)
    return np.asarray(gate(trial.test.vectors) @ _cluster_errors(trial.validation.scores, labels, n_clusters, "mean"))


def ridge(trial: Trial) -> Floats:
    """A linear regression per model on the embedding; its penalty is tuned."""
    return _ridge(trial, _tuned(trial, _ridge, _PENALTIES))


def _ridge(trial: Trial, penalty: float) -> Floats:
    from sklearn.linear_model import Ridge

    return _regress(trial, Ridge(alpha=penalty))


def matrix_factorisation(trial: Trial) -> Floats:
    """A linear map of low rank from the embedding to the models (the paper's MatFac), by partial least squares."""
    return _factorised(trial, _tuned(trial, _factorised, _RANKS))


def _factorised(trial: Trial, rank: int) -> Floats:
    from sklearn.cross_decomposition import PLSRegression

    return _regress(trial, PLSRegression(min(rank, len(trial.validation.prompts) - 1), scale=False))


def mlp(trial: Trial) -> Floats:
    """The paper's MLP: two hidden layers of 100 units, one output per model, the best epoch on a held-out tenth."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    n = len(trial.validation.prompts)
    network = MLPRegressor(
        hidden_layer_sizes=(100, 100),
        batch_size=max(1, min(64, n * 9 // 10)),
        max_iter=100,
        early_stopping=n >= _MIN_EARLY_STOPPING,
        random_state=trial.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _regress(trial, network)


def clairvoyant_kmeans(trial: Trial) -> Floats:
    """The default's clusters, hard, with the mean error of each new model over all training prompts."""
    labels = [_nearest(trial, part.vectors) for part in (trial.all_labels, trial.test)]
    return _cluster_errors(trial.all_labels.scores, labels[0], len(trial.router.clusters), "mean")[labels[1]]


def clairvoyant(trial: Trial) -> Floats:
    """The default, profiled on all training prompts."""
    return unirouter(replace(trial, validation=trial.all_labels))


def clairvoyant_mlp(trial: Trial) -> Floats:
    """The paper's MLP, trained on all training prompts."""
    return mlp(replace(trial, validation=trial.all_labels))


METHODS: dict[str, Method] = {
    DEFAULT: unirouter,
    CHOSEN: chosen_validation,
    BLIND: prompt_blind,
    "prompt length": prompt_length,
    KNN: knn,
    KMEANS: kmeans,
    "Laplace": laplace,
    LEARNED_MAP: learned_map,
    RIDGE: ridge,
    "matrix factorisation": matrix_factorisation,
    "MLP": mlp,
    "best single model": best_single,
    "random": at_random,
    CLAIRVOYANT: clairvoyant_kmeans,
    "clairvoyant unirouter": clairvoyant,
    "clairvoyant MLP": clairvoyant_mlp,
    "oracle": oracle,
}
"""All methods by their name in tables."""

BOUNDS: frozenset[str] = frozenset({CLAIRVOYANT, "clairvoyant unirouter", "clairvoyant MLP", "oracle"})
"""The methods that read labels which no router has."""

FIXED: frozenset[str] = BOUNDS | {"random"}
"""The methods that do not depend on the validation prompts."""


def _tuned(trial: Trial, method: Callable[[Trial, Setting], Floats], settings: Sequence[Setting]) -> Setting:
    """Return the setting with the largest area when known models take the part of new ones.

    They are graded on as many training prompts as there are validation prompts, and others are routed, several times.
    """
    n = len(trial.validation.prompts)
    return trial.cached((method, n, tuple(settings)), lambda: _best_setting(trial, method, settings, n))  # type: ignore[no-any-return]


def _best_setting(
    trial: Trial, method: Callable[[Trial, Setting], Floats], settings: Sequence[Setting], n: int
) -> Setting:
    rng = np.random.default_rng([trial.seed, n])
    areas = np.zeros(len(settings))
    for _ in range(_TUNING_DRAWS):
        order = rng.permutation(len(trial.training.prompts))
        validation, test = trial.training.select(order[:n]), trial.training.select(order[n : n + _TUNING_TEST])
        tuning = replace(trial, validation=validation, test=test, costs=trial.known_costs)
        for index, setting in enumerate(settings):
            areas[index] += DeferralCurve.trace(method(tuning, setting), test.scores, trial.known_costs).area
    return settings[int(areas.argmax())]


def _cluster_choices(trial: Trial) -> list[int]:
    most = len(trial.training.prompts) // 2
    return [n_clusters for n_clusters in _CLUSTERS if n_clusters <= most] or [1]


def _errors_by_cluster(trial: Trial, n_clusters: int, estimator: Estimator) -> Floats:
    fitted = _fitted_kmeans(trial, n_clusters)
    labels = fitted.predict(trial.validation.vectors)
    errors = _cluster_errors(trial.validation.scores, labels, n_clusters, estimator)
    return np.asarray(errors[fitted.predict(trial.test.vectors)])


def _cluster_errors(scores: Floats, labels: npt.NDArray[Any], n_clusters: int, estimator: Estimator) -> Floats:
    """Estimate the error of each model in each cluster, `(K, M)`."""
    phi = np.eye(n_clusters)[labels]
    profiles = [LLMProfile.from_scores(str(m), phi, column, cost=0.0) for m, column in enumerate(scores.T)]
    return np.column_stack([profile.estimate(estimator).error for profile in profiles])


def _fitted_kmeans(trial: Trial, n_clusters: int) -> Any:
    from sklearn.cluster import KMeans

    def fit() -> Any:
        return KMeans(n_clusters, n_init=4, random_state=trial.seed).fit(trial.training.vectors)

    return trial.cached(("K-means", n_clusters), fit)


def _temperature(fitted: Any, vectors: Vectors) -> float:
    """Return the median gap between a vector's squared distances to the two nearest centroids."""
    nearest_two = np.sort(fitted.transform(vectors) ** 2, axis=1)[:, :2]
    return float(np.median(nearest_two[:, -1] - nearest_two[:, 0])) or 1.0


def _nearest(trial: Trial, vectors: Vectors) -> npt.NDArray[np.intp]:
    hard = replace(trial.router.clusters, gate=None)
    return np.asarray(hard.memberships(vectors=vectors).phi.argmax(axis=1))


def _regress(trial: Trial, model: Any) -> Floats:
    """Fit a scikit-learn regressor to the errors in validation and predict those of the test prompts."""
    errors = trial.validation.errors
    mean = errors.mean(axis=0)
    fitted = model.fit(trial.validation.vectors, errors - mean)
    predicted = np.reshape(fitted.predict(trial.test.vectors), trial.test.scores.shape)
    return np.asarray(np.clip(mean + predicted, 0, 1), np.float64)
