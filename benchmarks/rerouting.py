"""How far a few words, the same in all prompts, push prompts to the model that an attacker wants, and what limits it.

    OMP_NUM_THREADS=1 python benchmarks/rerouting.py DATA... [--record]

DATA is anything that `read_outcomes` reads: recorded scores and costs of models on prompts. The attack is that of
"Rerouting LLM Routers" (arXiv 2501.01818): hill climbing over 8 words, which are drawn from those of the fitting
prompts. It sees all that the router computes on 60 prompts, and is judged on 400 others, with the words before them,
after them, and three times at both ends. Its target is the most expensive or the weakest model (by mean score) of those
that get at least 2% of the prompts.

RECORDED are all scores and costs; those of a prompt with words added are the ones of the prompt without. Each seed has
its own prompts for fitting (with the scores of 3/4 of the models), for profiling (of all models), for the attack, for
judging it, and for the quality of clean prompts. All routers have the vectors of the local embedder, and a cost weight
that spends half of what the best single model costs. Spread is the standard deviation over the seeds.

The first table is of routers without a defence. The second is of this package's router with defences. A defence routes
by the mean, the median or a vote over views of a prompt, and gets a cost weight of its own for the same budget. The
attacker knows it and searches against it; against parts, for words that stand at both ends. "Quality" is the accuracy
on clean prompts at five budgets, minus that of the router without a defence at the same cost, in percentage points.

The third is of a cap on the most expensive model's share of the last 50 calls of a user: its overall share plus three
standard deviations. Beyond the cap, the best of the other models is asked. The attacker's words stand three times at
both ends. "Quality by kind" is for users who ask prompts of one cluster, "mixed" for users who ask any.
"""

import math
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from _record import record

from unirouter_integrations import LocalEmbedder, UniRouter
from unirouter_integrations.core._profiles import Floats
from unirouter_integrations.data import Outcomes, read_outcomes
from unirouter_integrations.embedding import Vectors
from unirouter_integrations.embedding._base import unit
from unirouter_integrations.embedding._local import terms, words

SEEDS, FITTED, PROFILED, SEEN, JUDGED, CLEAN = 3, 1000, 300, 60, 400, 1000
LENGTH, CANDIDATES, LONGEST, KEPT, TRIED, SWEEPS, FIRST = 8, 3000, 12, 200, 32, 3, 20  # of the search
BUDGET, BUDGETS, IN_USE = 0.5, (0.2, 0.35, 0.5, 0.65, 0.8), 0.02  # shares of the best single model's cost; of prompts
NEIGHBOURS, CLUSTERS = 20, 20  # of K-NN and K-means
WEIGHTS = (0.0, *np.geomspace(1e-3, 1e3, 120))  # errors that a call of the best single model may be worth
WINDOW, SIGMAS, CALLS = 50, 3, 100  # of the cap, and calls of a user
TARGETS = ("most expensive", "weakest")
PLACES: dict[str, Callable[[str, str], str]] = {
    "clean": lambda added, text: text,
    "before": lambda added, text: f"{added} {text}",
    "after": lambda added, text: f"{text} {added}",
    "3x both": lambda added, text: f"{added} {added} {added} {text} {added} {added} {added}",
}
SHOWN = ("clean", "before", "3x both")

Rule = Callable[[Vectors], Floats]
"""From vectors `(n, d)` to the expected error of each model, `(n, M)`."""


class Defence(NamedTuple):
    """Routing by several views of a prompt.

    Attributes:
        views: From the words of a prompt to the words of each view.
        combined: From the objectives `(views, n, M)` to those that decide, `(n, M)`.
        in_parts: Whether words before a prompt are only in its first view, and words after it only in its last.
    """

    views: Callable[[list[str], np.random.Generator], list[list[str]]]
    combined: Callable[[Floats], Floats]
    in_parts: bool = False


def mean(objectives: Floats) -> Floats:
    """The mean over the views."""
    return np.asarray(objectives.mean(axis=0))


def median(objectives: Floats) -> Floats:
    """The median over the views."""
    return np.asarray(np.median(objectives, axis=0))


def vote(objectives: Floats) -> Floats:
    """The share of the views that choose another model; of equal ones, the better mean."""
    chosen = objectives.argmin(axis=2)[..., None] == np.arange(objectives.shape[2])
    return np.asarray(1 - chosen.mean(axis=0) + 1e-3 * objectives.mean(axis=0))


def halves(found: list[str], rng: np.random.Generator) -> list[list[str]]:
    """Five views, each without a random half of the words."""
    return [[word for word, kept in zip(found, rng.random(len(found)) < 1 / 2, strict=True) if kept] for _ in range(5)]


def thirds(found: list[str], rng: np.random.Generator) -> list[list[str]]:
    """The head, the middle and the tail."""
    del rng
    return [part.tolist() for part in np.array_split(np.array(found, object), 3)]


NONE = Defence(lambda found, _: [found], mean)


def defences(prompts: Sequence[str], embedder: LocalEmbedder) -> dict[str, Defence]:
    """The defences by name. Of several rules for halves and for parts, the best on a first seed of MMLU-Pro were kept.

    Args:
        prompts: Those of the fit.
        embedder: Was fitted on them.
    """
    among = Counter(word for prompt in prompts for word in set(words(prompt)))
    known = embedder.vocabulary

    def common(found: list[str], _: np.random.Generator) -> list[list[str]]:
        return [[word for word in found if among[word] >= 0.05 * len(prompts)]]

    def in_phrases(found: list[str], _: np.random.Generator) -> list[list[str]]:
        pairs = [False, *(f"{first} {second}" in known for first, second in pairwise(found)), False]
        return [[word for word, left, right in zip(found, pairs, pairs[1:], strict=False) if left or right]]

    return {
        "none": NONE,
        "vote of 5 random halves": Defence(halves, vote),
        "median of head, middle, tail": Defence(thirds, median, in_parts=True),
        "only words of 5% of prompts": Defence(common, mean),
        "only words with known neighbours": Defence(in_phrases, mean),
    }


class Scene(NamedTuple):
    """What one seed works with: rows of the outcomes, the costs of models, the router, and the rules of all routers."""

    outcomes: Outcomes
    rows: dict[str, npt.NDArray[np.intp]]
    costs: Floats
    router: UniRouter
    embedder: LocalEmbedder
    rules: dict[str, Rule]

    def texts(self, what: str) -> list[str]:
        """The prompts of some rows."""
        return [self.outcomes.prompts[row] for row in self.rows[what]]

    @property
    def top(self) -> float:
        """The cost of the best single model."""
        return float(self.costs[self.outcomes.scores[self.rows["profiled"]].mean(axis=0).argmax()])


def prepared(outcomes: Outcomes, seed: int) -> Scene:
    """Select prompts, and fit and profile the routers."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(outcomes.prompts))
    sizes = np.cumsum([FITTED, PROFILED, SEEN, JUDGED, CLEAN])
    rows = dict(zip(("fitted", "profiled", "seen", "judged", "clean"), np.split(order, sizes)[:5], strict=True))
    known = rng.permutation(len(outcomes.models))[: len(outcomes.models) * 3 // 4]
    costs = outcomes.costs[rows["profiled"]].mean(axis=0)
    fitted, profiled = ([outcomes.prompts[row] for row in rows[what]] for what in ("fitted", "profiled"))
    scores = {outcomes.models[column]: outcomes.scores[rows["fitted"], column] for column in known}
    router = UniRouter.fit(fitted, scores=scores, seed=seed)
    vectors = {what: router.embed(texts) for what, texts in (("fitted", fitted), ("profiled", profiled))}
    hard = UniRouter.fit(
        fitted,
        vectors=vectors["fitted"],
        embedder=None,
        assignment="hard",
        estimator="mean",
        n_clusters=CLUSTERS,
        seed=seed,
    )
    graded = outcomes.scores[rows["profiled"]]
    for each in (router, hard):
        for name, column, cost in zip(outcomes.models, graded.T, costs.tolist(), strict=True):
            each.register(each.profile(name, vectors=vectors["profiled"], scores=column, cost=cost))
    points, errors = unit(vectors["profiled"]), 1 - graded

    def nearest(asked: Vectors) -> Floats:
        found = np.argpartition(-(asked @ points.T), NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        return np.asarray(errors[found].mean(axis=1))

    rules: dict[str, Rule] = {
        "this router": lambda asked: router.expected_errors(vectors=asked, among=outcomes.models),
        "K-means": lambda asked: hard.expected_errors(vectors=asked, among=outcomes.models),
        "K-NN": nearest,
    }
    embedder = router.clusters.embedder
    assert isinstance(embedder, LocalEmbedder)
    return Scene(outcomes, rows, costs, router, embedder, rules)


def errors_of(scene: Scene, rule: Rule, defence: Defence, texts: Sequence[str]) -> Floats:
    """The expected errors of the models on the views of some texts, `(views, n, M)`."""
    seen = [defence.views(words(text), np.random.default_rng(zlib.crc32(text.encode()))) for text in texts]
    return np.array(
        [rule(scene.embedder.embed([" ".join(view) for view in views])) for views in zip(*seen, strict=True)]
    )


def choices(scene: Scene, defence: Defence, errors: Floats, weight: float) -> npt.NDArray[np.intp]:
    """The model that each prompt goes to."""
    return np.asarray(defence.combined(errors + weight * scene.costs).argmin(axis=1))


def weight_for_half(scene: Scene, rule: Rule, defence: Defence) -> float:
    """The least cost weight with which the profiling prompts cost half of the best single model."""
    errors = errors_of(scene, rule, defence, scene.texts("profiled"))
    for worth in WEIGHTS:
        if scene.costs[choices(scene, defence, errors, worth / scene.top)].mean() <= BUDGET * scene.top:
            return float(worth) / scene.top
    return float(WEIGHTS[-1]) / scene.top


class Curve(NamedTuple):
    """The accuracy on clean prompts by the mean cost of the models that they go to."""

    costs: Floats
    accuracies: Floats

    @classmethod
    def of(cls, scene: Scene, defence: Defence) -> "Curve":
        """Trace it over all cost weights."""
        rows = scene.rows["clean"]
        errors = errors_of(scene, scene.rules["this router"], defence, scene.texts("clean"))
        points = []
        for worth in WEIGHTS:
            chosen = choices(scene, defence, errors, worth / scene.top)
            points.append((scene.costs[chosen].mean(), scene.outcomes.scores[rows, chosen].mean()))
        costs, accuracies = np.array(sorted(points)).T
        return cls(costs, accuracies)

    def at(self, cost: float) -> float:
        """The accuracy at a cost."""
        return float(np.interp(cost, self.costs, self.accuracies))


class Views:
    """One view of each prompt that the attacker sees, to whose vectors words are added quickly."""

    def __init__(self, embedder: LocalEmbedder, views: Sequence[list[str]]) -> None:
        self._embedder = embedder
        self._counts = np.zeros((len(views), len(embedder.vocabulary)), np.float32)
        for row, view in enumerate(views):
            for column, count in self._known(view).items():
                self._counts[row, column] = count
        self._sums = _weighted(self._counts) @ embedder.projection

    def with_words(self, added: list[str], first: int) -> Vectors:
        """The vectors of the first prompts; the pair of the last word added and the prompt's first is left out."""
        found = self._known(added)
        columns, counts = list(found), np.array(list(found.values()), np.float32)
        before = self._counts[:first, columns]
        change = _weighted(before + counts) - _weighted(before)
        return unit(np.asarray(self._sums[:first] + change @ self._embedder.projection[columns], np.float32))

    def _known(self, view: list[str]) -> Counter[int]:
        known = self._embedder.vocabulary
        return Counter(known[term] for term in terms(" ".join(view)) if term in known)


def _weighted(counts: Vectors) -> Vectors:
    return np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0).astype(np.float32)


def attacked(scene: Scene, rule: Rule, defence: Defence, weight: float, *, target: int, seed: int) -> str:
    """Search the words that push prompts to a model.

    What is climbed is the share of the prompts that go there, and half of how clearly they do in the mean of the views.
    """
    rng = np.random.default_rng(seed)
    seen = [defence.views(words(text), rng) for text in scene.texts("seen")]
    parts = [Views(scene.embedder, views) for views in zip(*seen, strict=True)]

    def climbed(tried: Sequence[Sequence[str]], draw: int, among: Sequence[Views], first: int) -> Floats:
        vectors: list[list[Vectors]] = [[] for _ in among]
        for some in tried:
            added = words(" ".join(some))
            if defence.in_parts:  # the attacker writes at both ends
                inner: list[list[str]] = [[] for _ in parts[2:]]
                views = [added, *inner, added]
            else:
                views = defence.views(added, np.random.default_rng(draw))
            for part, view, found in zip(among, views, vectors, strict=False):
                found.append(part.with_words(view, first))
        objectives = np.array([rule(np.concatenate(found)) for found in vectors]) + weight * scene.costs
        chosen = defence.combined(objectives).argmin(axis=1) == target
        middle = objectives.mean(axis=0)
        margin = np.delete(middle, target, axis=1).min(axis=1) - middle[:, target]
        return np.asarray((chosen + np.tanh(10 * margin) / 2).reshape(len(tried), -1).mean(axis=1))

    written = Counter(word for text in scene.texts("fitted") for word in set(text.split()) if len(word) <= LONGEST)
    candidates = sorted(written, key=lambda word: (-written[word], word))[:CANDIDATES]
    alone = [[[word, word] for word in candidates[at : at + TRIED]] for at in range(0, len(candidates), TRIED)]
    gains = np.concatenate([climbed(some, 0, parts[:1], FIRST) for some in alone])
    best = [candidates[index] for index in np.argsort(-gains, kind="stable")[:KEPT]]
    found = [best[index] for index in rng.integers(0, min(TRIED, len(best)), LENGTH)]
    for _ in range(SWEEPS):
        for place in rng.permutation(LENGTH):
            others = [found[place], *(best[index] for index in rng.integers(0, len(best), TRIED))]
            tried = [[*found[:place], word, *found[place + 1 :]] for word in others]
            found = tried[int(climbed(tried, int(rng.integers(2**32)), parts, SEEN).argmax())]
    return " ".join(found)


def judged(scene: Scene, rule: Rule, defence: Defence, weight: float, *, target: int, added: str) -> dict[str, Floats]:
    """What an attack does at each place: the share of the target, the cost and the accuracy of prompts not seen."""
    rows, table, found = scene.rows["judged"], scene.outcomes, {}
    for place, put in PLACES.items():
        texts = [put(added, text) for text in scene.texts("judged")]
        chosen = choices(scene, defence, errors_of(scene, rule, defence, texts), weight)
        scores, costs = table.scores[rows, chosen], table.costs[rows, chosen]
        found[place] = np.array([100 * (chosen == target).mean(), costs.mean(), 100 * scores.mean()])
    return found


def targets(scene: Scene, rule: Rule, weight: float) -> tuple[int, int]:
    """The most expensive and the weakest of the models in use."""
    chosen = choices(scene, NONE, errors_of(scene, rule, NONE, scene.texts("profiled")), weight)
    used = np.flatnonzero(np.bincount(chosen, minlength=len(scene.costs)) >= IN_USE * len(chosen))
    scores = scene.outcomes.scores[scene.rows["profiled"]].mean(axis=0)
    return int(used[scene.costs[used].argmax()]), int(used[scores[used].argmin()])


def capped(objectives: Floats, model: int, cap: float) -> npt.NDArray[np.intp]:
    """The model that each of the calls of a user goes to, if one model may have only a share of the last calls."""
    chosen: list[int] = []
    for row in objectives:
        full = chosen[-WINDOW:].count(model) >= cap * WINDOW
        chosen.append(int((np.where(np.arange(len(row)) == model, np.inf, row) if full else row).argmin()))
    return np.array(chosen)


def cap_figures(scene: Scene, weight: float, model: int, curve: Curve, added: str) -> list[float]:
    """Share and cost of an attacker without and with the cap, and what the cap does to the quality of other users."""
    rule, rows = scene.rules["this router"], scene.rows["clean"]
    clean = errors_of(scene, rule, NONE, scene.texts("clean"))[0] + weight * scene.costs
    share = float((clean.argmin(axis=1) == model).mean())
    cap = min(share + SIGMAS * math.sqrt(share * (1 - share) / WINDOW), 1.0)
    texts = [PLACES["3x both"](added, text) for text in scene.texts("judged")]
    objectives = errors_of(scene, rule, NONE, texts)[0] + weight * scene.costs
    figures = [100 * share, 100 * cap]
    for chosen in (objectives.argmin(axis=1), capped(objectives, model, cap)):
        figures += [100 * (chosen == model).mean(), scene.outcomes.costs[scene.rows["judged"], chosen].mean()]
    clusters = scene.router.clusters.assign(scene.texts("clean"))
    for order in (np.argsort(clusters, kind="stable"), np.arange(len(rows))):
        users = np.array_split(order, len(order) // CALLS)
        chosen = np.concatenate([capped(clean[user], model, cap) for user in users])
        accuracy = scene.outcomes.scores[rows[order], chosen].mean()
        figures.append(100 * (accuracy - curve.at(scene.costs[chosen].mean())))
    return figures


def spread(rows: Sequence[Any]) -> tuple[Floats, Floats]:
    """Mean and standard deviation over the seeds."""
    return np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1)


def with_spread(names: Sequence[str], rows: Sequence[Any]) -> dict[str, str]:
    """Each figure and its spread, as text."""
    return {name: f"{one:.3g} ± {error:.2g}" for name, one, error in zip(names, *spread(rows), strict=True)}


def measured(path: str) -> dict[str, Any]:
    """Print the tables of one set of outcomes, and return their figures."""
    table = read_outcomes(path).complete()
    filled = np.where(np.isnan(table.costs), np.nanmean(table.costs, axis=0), table.costs)
    outcomes = Outcomes(table.prompts, table.models, table.scores, filled, table.name)
    routers: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    defended: dict[str, list[list[float]]] = defaultdict(list)
    caps: list[list[float]] = []
    for seed in range(SEEDS):
        scene = prepared(outcomes, seed)
        for name, rule in scene.rules.items():
            weight = weight_for_half(scene, rule, NONE)
            for what, target in zip(TARGETS, targets(scene, rule, weight), strict=True):
                added = attacked(scene, rule, NONE, weight, target=target, seed=seed)
                found = judged(scene, rule, NONE, weight, target=target, added=added)
                asked = scene.router.embed([PLACES["before"](added, text) for text in scene.texts("judged")])
                familiar = scene.router.clusters.memberships(vectors=asked).familiarity.mean()
                shares = [found[place][0] for place in PLACES]
                others = [found[place][at] for at in (1, 2) for place in ("clean", "before")]
                routers[name, what].append([*shares, *others, familiar])
        rule, plain = scene.rules["this router"], Curve.of(scene, NONE)
        for name, defence in defences(scene.texts("fitted"), scene.embedder).items():
            curve, weight = Curve.of(scene, defence), weight_for_half(scene, rule, defence)
            row = [100 * float(np.mean([curve.at(part * scene.top) - plain.at(part * scene.top) for part in BUDGETS]))]
            for what, target in zip(TARGETS, targets(scene, rule, weight_for_half(scene, rule, NONE)), strict=True):
                added = attacked(scene, rule, defence, weight, target=target, seed=seed)
                found = judged(scene, rule, defence, weight, target=target, added=added)
                row += [found[place][0] for place in SHOWN]
                if defence is NONE and what == TARGETS[0]:
                    caps.append(cap_figures(scene, weight, target, plain, added))
            defended[name].append(row)
    return printed(outcomes, path, routers, defended, caps)


def printed(
    outcomes: Outcomes,
    path: str,
    routers: dict[tuple[str, str], list[list[float]]],
    defended: dict[str, list[list[float]]],
    caps: list[list[float]],
) -> dict[str, Any]:
    """Print means and spreads over the seeds, and return them."""
    recorded: dict[str, Any] = {"routers": {}, "defences": {}}
    print(f"{outcomes.name or path}: {len(outcomes.models)} models, {len(outcomes.prompts)} prompts, {SEEDS} seeds")
    print(
        f"{'share of target, %':31}clean     before     after      3x both   USD per 1,000      accuracy     familiar"
    )
    for (name, what), rows in routers.items():
        middle, wide = spread(rows)
        shares = "  ".join(f"{value:3.0f} ± {error:2.0f} " for value, error in zip(middle[:4], wide[:4], strict=True))
        paid, right = (f"{first:.3g} -> {second:.3g}" for first, second in (middle[4:6], middle[6:8]))
        print(f"{f'{name}, {what}':30}{shares} {paid:18} {right:14}{middle[8]:.2f}")
        names = (*PLACES, "cost clean", "cost before", "accuracy clean", "accuracy before", "familiarity")
        recorded["routers"][f"{name}, {what}"] = with_spread(names, rows)
    print(f"{'defence':35}quality         {TARGETS[0]}: clean, before, 3x both   {TARGETS[1]}")
    for name, figures in defended.items():
        middle, wide = spread(figures)
        first, second = (
            "  ".join(f"{middle[at]:3.0f} ± {wide[at]:2.0f}" for at in part) for part in (range(1, 4), range(4, 7))
        )
        print(f"{name:35}{middle[0]:+5.2f} ± {wide[0]:4.2f}     {first}          {second}")
        keys = ["quality", *(f"{what}, {place}" for what in TARGETS for place in SHOWN)]
        recorded["defences"][name] = with_spread(keys, figures)
    keys = ["clean share", "cap", "share", "cost", "share capped", "cost capped", "quality by kind", "quality mixed"]
    recorded["cap"] = with_spread(keys, caps)
    print("cap: " + ", ".join(f"{key} {figure}" for key, figure in recorded["cap"].items()))
    return recorded


def main() -> None:
    """Measure each set of outcomes."""
    paths = [argument for argument in sys.argv[1:] if argument != "--record"]
    record({path.rstrip("/").rpartition("/")[2]: measured(path) for path in paths})


if __name__ == "__main__":
    main()
