"""The paper's protocol: hide some models, profile them on a few prompts, route others, and compare methods in pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unirouter_integrations._checks import one_of, shown
from unirouter_integrations._router import UniRouter
from unirouter_integrations.core._profiles import Floats
from unirouter_integrations.data import Outcomes
from unirouter_integrations.embedding import EmbedderLike, Vectors, as_embedder
from unirouter_integrations.embedding._base import unit
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.evaluation._baselines import (
    CLAIRVOYANT,
    DEFAULT,
    FIXED,
    KMEANS,
    METHODS,
    Graded,
    Method,
    Trial,
    profiled_router,
)
from unirouter_integrations.evaluation._curves import DeferralCurve

# Shares of the prompts and of the models in a split, as the UniRoute paper (arXiv 2502.08773) splits EmbedLLM.
_TEST = 0.3
_VALIDATION = 0.1
_HIDDEN = 1 / 3
_BUDGETS = 41  # at which the quality of a curve is kept, for the picture
_MIN_MODELS = 3  # one new, two known
_MIN_TEST = 30  # test prompts of a cluster; the mean of fewer is too noisy to compare with
_BINS = 10  # of the expected calibration error, as usual
_INTERVAL = 1.645  # standard deviations to either side of the mean of a Gaussian that hold 90% of it
SIGNIFICANT = 0.05  # the p-value below which tables mark a difference


class Comparison(NamedTuple):
    """How far one method is above another, over the same splits.

    The splits share models and prompts, so interval and p-value describe these recorded outcomes. They are too narrow
    for outcomes of other models.

    Attributes:
        difference: The mean difference in area.
        low: The lower end of its 95% confidence interval.
        high: The upper end.
        wins: The number of splits in which the first is above the second.
        losses: The number of splits in which it is below.
        p: The p-value of the two-sided sign test.
    """

    difference: float
    low: float
    high: float
    wins: int
    losses: int
    p: float

    def __str__(self) -> str:
        return f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}], {self.wins}:{self.losses}, p={self.p:.2g}"


class Calibration(NamedTuple):
    """How well the default's expected errors and standard deviations agree with what happened.

    Attributes:
        error: `(trials, sizes)`, the expected calibration error: over 10 bins of pairs of prompt and model with similar
            expected errors, the mean distance between the mean expected and the mean recorded error.
        coverage: `(trials, sizes)`, of the mean errors of each new model in each cluster with at least 30 test prompts,
            the share inside the 90% interval about the expected one. The interval covers the standard deviation of the
            estimate and the sampling of the test prompts.
    """

    error: Floats
    coverage: Floats


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of `evaluate`. Printed, it is a table.

    Attributes:
        name: The name of the outcomes.
        n_prompts: The number of prompts.
        models: The names of the models.
        sizes: The numbers of validation prompts.
        areas: For each method the area under the deferral curve, `(trials, sizes)`.
        quality_neutral_costs: The same for the quality-neutral cost.
        peak_qualities: The same for the peak quality.
        curves: For each method its mean quality at even budgets from the cheapest to the most expensive new model,
            `(trials, sizes, budgets)`; NaN where it cannot be that cheap.
        calibration: The calibration of the default; None if the default was not evaluated.
        router: The router of the first trial, with its new models profiled on the most validation prompts.
        phi: `(n, K)`, the memberships of that trial's test prompts.
    """

    name: str
    n_prompts: int
    models: tuple[str, ...]
    sizes: tuple[int, ...]
    areas: Mapping[str, Floats]
    quality_neutral_costs: Mapping[str, Floats]
    peak_qualities: Mapping[str, Floats]
    curves: Mapping[str, Floats]
    calibration: Calibration | None
    router: UniRouter
    phi: Floats

    @property
    def n_trials(self) -> int:
        """The number of random splits."""
        return len(next(iter(self.areas.values())))

    def compare(self, method: str, against: str, size: int) -> Comparison:
        """Compare the areas of two methods at one number of validation prompts."""
        from scipy import stats

        one_of(method, "method", self.areas)
        one_of(against, "against", self.areas)
        column = self.sizes.index(size)
        gains = self.areas[method][:, column] - self.areas[against][:, column]
        error = float(stats.sem(gains)) if len(gains) > 1 else math.nan
        half = float(stats.t.ppf(0.975, len(gains) - 1)) * error if len(gains) > 1 else math.nan
        wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
        p = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
        mean = float(gains.mean())
        return Comparison(mean, mean - half, mean + half, wins, losses, p)

    def gap_closed(self, method: str = DEFAULT, *, low: str = KMEANS, high: str = CLAIRVOYANT) -> Floats:
        """Return the share of the gap in area from `low` to `high` that a method closes, `(sizes,)`."""
        for name in (low, method, high):
            one_of(name, "A method", self.areas)
        return _gap_closed(*(self.areas[name].mean(axis=0) for name in (low, method, high)))

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON: a list per number of validation prompts, with one figure per split."""

        def by_size(table: Floats) -> list[list[float | None]]:
            return [[None if math.isnan(x) else x for x in column] for column in table.T.tolist()]

        calibration = None if self.calibration is None else self.calibration._asdict()
        return {
            "name": self.name,
            "n_prompts": self.n_prompts,
            "models": list(self.models),
            "sizes": list(self.sizes),
            "methods": {
                name: {
                    "area": by_size(self.areas[name]),
                    "quality_neutral_cost": by_size(self.quality_neutral_costs[name]),
                    "peak_quality": by_size(self.peak_qualities[name]),
                }
                for name in self.areas
            },
            "calibration": calibration and {name: by_size(table) for name, table in calibration.items()},
        }

    def __str__(self) -> str:
        """Return the table of mean areas and of the comparison of the first method with each other one."""
        first = next(iter(self.areas))
        width = max(map(len, self.areas)) + 2
        lines = [
            f"{self.name}: {len(self.models)} models, {self.n_prompts} prompts, {self.n_trials} splits.",
            "Area under the deferral curve, by number of validation prompts; then how far",
            f"{first} is above it: mean, wins:losses (* where the sign test has p < 0.05).",
            f"{'':{width}}" + "".join(f"{size:>8}" for size in self.sizes) + "".join(f"{s:>16}" for s in self.sizes),
        ]
        for method, areas in self.areas.items():
            line = f"{method:{width}}" + "".join(f"{area:8.4f}" for area in areas.mean(axis=0))
            if method != first:
                for size in self.sizes:
                    found = self.compare(first, method, size)
                    star = "*" if found.p < SIGNIFICANT else ""
                    line += f"{f'{found.difference:+.4f} {found.wins}:{found.losses}{star}':>16}"
            lines.append(line)
        if self.calibration is not None:
            lines.append(
                f"Calibration of {DEFAULT}: error {_means(self.calibration.error)}; "
                f"90% intervals cover {_means(self.calibration.coverage)}"
            )
        return "\n".join(lines)


def evaluate(
    outcomes: Outcomes,
    *,
    methods: Mapping[str, Method] | Sequence[str] | None = None,
    sizes: Sequence[int] = (50, 100, 200, 400),
    n_trials: int = 20,
    embedder: EmbedderLike = "local",
    n_jobs: int = -1,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Compare routers on recorded outcomes of models they have not seen.

    For each split, a third of the models is hidden: these are the new models, the others are known. 30% of the prompts
    are for testing, 10% (or as many as the largest size) for validation, the rest for training. A method may learn from
    the training prompts and the known models' scores on them, and from the new models' scores on the first few
    validation prompts. Then it routes the test prompts among the new models, at every cost weight.

    Args:
        outcomes: The score and cost of each model on each prompt. Models with less than 95% of the prompts are left
            out, then prompts that one of the other models lacks.
        methods: Names out of `METHODS`, or methods of your own by name; None for all. The first one is compared with
            the others.
        sizes: One or more numbers of validation prompts.
        n_trials: The number of random splits.
        embedder: `"local"` is fitted on each split's training prompts; any other goes through `as_embedder` and
            embeds all prompts once.
        n_jobs: The number of processes; -1 for one per core.
        seed: The seed of the first split; the seeds of the others follow it.
        progress: Whether to show a progress bar.

    Raises:
        InvalidInputError: If there are too few models or prompts, or a method is unknown.
    """
    table = outcomes.complete()
    chosen = _chosen_methods(methods)
    sizes = tuple(sizes)
    _check(table, sizes, n_trials)
    vectors = None
    if not (isinstance(embedder, str) and embedder == "local"):
        vectors = unit(np.asarray(as_embedder(embedder).embed(list(table.prompts)), np.float32))
    from joblib import Parallel, delayed

    seeds = range(seed, seed + n_trials)
    work = (delayed(_run)(table, vectors, chosen, sizes, one, keep=one == seed) for one in seeds)
    results = Parallel(n_jobs=n_jobs, return_as="generator")(work)
    found = list(_with_progress_bar(results, n_trials, table.name) if progress else results)

    def stacked(index: int) -> dict[str, Floats]:
        return {method: np.array([result.figures[method][index] for result in found]) for method in chosen}

    calibration = None
    if DEFAULT in chosen:
        errors, coverages = (np.array([result.calibration[index] for result in found]) for index in (0, 1))
        calibration = Calibration(errors, coverages)
    router, phi = next(result.kept for result in found if result.kept is not None)
    return Evaluation(
        table.name,
        len(table.prompts),
        table.models,
        sizes,
        areas=stacked(0),
        quality_neutral_costs=stacked(1),
        peak_qualities=stacked(2),
        curves=stacked(3),
        calibration=calibration,
        router=router,
        phi=phi,
    )


class _Result(NamedTuple):
    """The result of one trial.

    Attributes:
        figures: For each method area, QNC, peak quality and curve, each by size.
        calibration: `(2, sizes)`, error and coverage.
        kept: The router and the memberships of the test prompts; None if they are not kept.
    """

    figures: dict[str, tuple[Floats, Floats, Floats, Floats]]
    calibration: Floats
    kept: tuple[UniRouter, Floats] | None


def _run(
    table: Outcomes,
    vectors: Vectors | None,
    methods: Mapping[str, Method],
    sizes: tuple[int, ...],
    seed: int,
    *,
    keep: bool,
) -> _Result:
    trial = split(table, vectors, max(sizes), seed)
    columns: dict[str, list[tuple[float, float, float, Floats]]] = {method: [] for method in methods}
    calibration = np.full((2, len(sizes)), np.nan)
    for index, size in enumerate(sizes):
        sized = with_validation(trial, size)
        for name, method in methods.items():
            if name in FIXED and index:
                columns[name].append(columns[name][0])
                continue
            expected = method(sized)
            columns[name].append(_figures(DeferralCurve.trace(expected, sized.test.scores, sized.costs)))
        if DEFAULT in methods:
            calibration[:, index] = _calibration(sized)
    figures = {name: tuple(np.array(column) for column in zip(*rows, strict=True)) for name, rows in columns.items()}
    kept = None
    if keep:
        router = profiled_router(with_validation(trial, max(sizes)))
        kept = router, router.clusters.memberships(vectors=trial.test.vectors).phi
    return _Result(figures, calibration, kept)  # type: ignore[arg-type]  # four columns each


def split(table: Outcomes, vectors: Vectors | None, most: int, seed: int) -> Trial:
    """Make one split and fit its router. The new models are graded on all validation candidates.

    Args:
        table: Complete outcomes.
        vectors: `(n, d)`, the embeddings of the prompts; None to fit the local embedder.
        most: The largest number of validation prompts that will be asked for.
        seed: The seed of the split.
    """
    rng = np.random.default_rng(seed)
    order, models = rng.permutation(len(table.prompts)), rng.permutation(len(table.models))
    new, known = np.split(models, [round(len(models) * _HIDDEN)])
    first_test = round(len(order) * (1 - _TEST))
    first_validation = first_test - max(most, round(len(order) * _VALIDATION))
    training, validation, test = np.split(order, [first_validation, first_test])
    prompts = [table.prompts[row] for row in training]
    router = UniRouter.fit(
        prompts,
        embedder="local" if vectors is None else None,
        vectors=None if vectors is None else vectors[training],
        scores={table.models[column]: table.scores[training, column] for column in known},
        seed=seed,
    )

    def graded(rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Graded:
        texts = [table.prompts[row] for row in rows]
        embedded = router.embed(texts) if vectors is None else vectors[rows]
        return Graded(texts, unit(embedded), table.scores[np.ix_(rows, columns)])

    trained_on, candidates = graded(training, known), graded(validation, new)
    costs = table.mean_costs
    return Trial(
        router,
        models=tuple(table.models[column] for column in new),
        training=trained_on,
        known_costs=costs[known],
        validation=candidates,
        candidates=candidates,
        test=graded(test, new),
        all_labels=trained_on._replace(scores=table.scores[np.ix_(training, new)]),
        costs=costs[new],
        seed=seed,
    )


def with_validation(trial: Trial, size: int) -> Trial:
    """Return the same split with this many validation prompts."""
    return replace(trial, validation=trial.candidates.select(np.arange(size)))


def _figures(curve: DeferralCurve) -> tuple[float, float, float, Floats]:
    budgets = np.linspace(curve.model_costs.min(), curve.model_costs.max(), _BUDGETS)
    at = np.array([curve.quality_at(budget * (1 + 1e-9)) for budget in budgets])
    return curve.area, curve.quality_neutral_cost, curve.peak_quality, at


def _calibration(trial: Trial) -> tuple[float, float]:
    router = profiled_router(trial)
    pool, phi = router.snapshot().pool, router.clusters.memberships(vectors=trial.test.vectors).phi
    columns = pool.columns(trial.models)
    errors, stds = pool.error[:, columns], pool.std[:, columns]
    expected = pool.expected(phi).error[:, columns]
    actual = trial.test.errors
    bins = np.minimum((expected * _BINS).astype(int), _BINS - 1)
    off = [abs(float((expected - actual)[bins == one].sum())) for one in range(_BINS)]
    labels = phi.argmax(axis=1)
    inside = []
    for cluster in range(phi.shape[1]):
        rows = labels == cluster
        if (n := int(rows.sum())) < _MIN_TEST:
            continue
        weight = phi[rows].mean(axis=0)
        means = actual[rows].mean(axis=0)
        margin = _INTERVAL * np.hypot(weight @ stds, np.sqrt(means * (1 - means) / n))
        inside.extend(np.abs(means - weight @ errors) <= margin)
    return sum(off) / expected.size, float(np.mean(inside)) if inside else math.nan


def _chosen_methods(methods: Mapping[str, Method] | Sequence[str] | None) -> dict[str, Method]:
    if methods is None:
        return dict(METHODS)
    if isinstance(methods, Mapping):
        return dict(methods)
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods or isinstance(methods, str):
        found = shown(unknown[0] if unknown else methods)
        msg = f"methods should be some of {', '.join(map(repr, METHODS))}; got {found}."
        raise InvalidInputError(msg)
    return {name: METHODS[name] for name in methods}


def _check(table: Outcomes, sizes: tuple[int, ...], n_trials: int) -> None:
    if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes) or n_trials < 1:
        found = f"{', '.join(map(shown, sizes)) or 'none'} and {shown(n_trials)}"
        msg = f"sizes should be whole numbers of at least 1, and n_trials too, but they are {found}."
        raise InvalidInputError(msg)
    prompts, models = table.scores.shape
    most = max(sizes)
    if models < _MIN_MODELS or prompts * (1 - _TEST) - most < most:
        msg = (
            f"{table.name or 'The table'} has {models} models and {prompts} prompts that all of them have. At least "
            f"{_MIN_MODELS} models are needed, and for {most} validation prompts at least "
            f"{math.ceil(2 * most / (1 - _TEST))} prompts."
        )
        raise InvalidInputError(msg)


def _with_progress_bar(results: Iterable[_Result], n_trials: int, name: str) -> Iterator[_Result]:
    from tqdm.auto import tqdm

    yield from tqdm(results, total=n_trials, desc=name or "splits", unit="split")


def _gap_closed(low: Floats, reached: Floats, high: Floats) -> Floats:
    return np.asarray((reached - low) / (high - low))


def _means(table: Floats) -> str:
    known = [column[~np.isnan(column)] for column in table.T]
    return " ".join(f"{values.mean():.3f}" if len(values) else "n/a" for values in known)


def average(evaluations: Sequence[Evaluation]) -> dict[str, Floats]:
    """Average the areas of the methods that several evaluations share, each set of outcomes with the same weight.

    Returns:
        For each method the mean area, `(sizes,)`.

    Raises:
        InvalidInputError: If the evaluations have other sizes.
    """
    if len({evaluation.sizes for evaluation in evaluations}) != 1:
        msg = "Only evaluations with the same numbers of validation prompts can be averaged."
        raise InvalidInputError(msg)
    shared = [m for m in evaluations[0].areas if all(m in evaluation.areas for evaluation in evaluations)]
    return {m: np.mean([one.areas[m].mean(axis=0) for one in evaluations], axis=0) for m in shared}


def summary(evaluations: Sequence[Evaluation]) -> str:
    """Return a table of the mean areas over several evaluations, and the share of the gap to all labels closed."""
    areas, sizes = average(evaluations), evaluations[0].sizes
    width = max(map(len, areas)) + 2
    names = ", ".join(one.name for one in evaluations)
    lines = [f"Mean area over {names}.", f"{'':{width}}" + "".join(f"{size:>8}" for size in sizes)]
    lines += [f"{method:{width}}" + "".join(f"{area:8.4f}" for area in row) for method, row in areas.items()]
    if {DEFAULT, KMEANS, CLAIRVOYANT} <= areas.keys():
        closed = _gap_closed(areas[KMEANS], areas[DEFAULT], areas[CLAIRVOYANT])
        lines.append(
            f"{DEFAULT} goes from {KMEANS} to {CLAIRVOYANT} by " + " ".join(f"{share:.0%}" for share in closed)
        )
    return "\n".join(lines)
