"""What learning from production does when the model that is used most gets worse halfway.

    OMP_NUM_THREADS=1 python benchmarks/learning_replay.py DATA [--record]

DATA is anything that `read_outcomes` reads: recorded scores and costs of models on prompts.

RECORDED are all scores and costs. MADE UP is the change: from the middle of the stream on, the model that the router
had used most (without learning) scores on each prompt what the worst of all models scored there. Its cost and name stay
the same. Each seed has its own prompts for fitting (with the scores of 3/4 of the models), for profiling (of all
models, so that the router begins well informed) and for the stream. Only the call that was made is observed.

The price of a call is `error + cost_weight * cost`, in percent of a wrong answer, with the cost weight that
`calibrate(quality=...)` gives. Regret is the mean price over the second half in excess of that of the one model that
was best for it, a choice that can only be made with hindsight. The change is "noticed" when the share of the changed
model among the last 50 prompts is below half of what it was before. Spread is the standard deviation over the seeds.
"""

import math
import sys
import warnings
from collections import defaultdict
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from _record import record

from unirouter_integrations import UniRouter
from unirouter_integrations.data import Outcomes, read_outcomes

SEEDS, FITTED, PROFILED, STREAM, AT_ONCE, SEEN = 5, 600, 200, 2000, 10, 50
QUALITY = 0.98
REGIMES: dict[str, dict[str, Any] | None] = {
    "no learning": None,
    "nothing is forgotten": {"half_life": math.inf},
    "half-life 1,000": {"half_life": 1000},
    "half-life 200 (default)": {"half_life": 200},
    "half-life 50": {"half_life": 50},
    "half-life 200, plain JSON": {"half_life": 200, "plain": True},
    "half-life 200, explore": {"half_life": 200, "explore": True},
}


class Stream(NamedTuple):
    """The prompts that a router is asked, with the score and the cost of each model on them."""

    vectors: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float64]
    costs: npt.NDArray[np.float64]


def prepared(outcomes: Outcomes, seed: int) -> tuple[UniRouter, Stream]:
    """Fit, profile and calibrate a router, and select the prompts that it is asked then."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(outcomes.prompts))
    fit, profile, stream = np.split(order[: FITTED + PROFILED + STREAM], [FITTED, FITTED + PROFILED])
    known = rng.permutation(len(outcomes.models))[: len(outcomes.models) * 3 // 4]
    router = UniRouter.fit(
        [outcomes.prompts[row] for row in fit],
        scores={outcomes.models[column]: outcomes.scores[fit, column] for column in known},
        seed=seed,
    )
    texts = [outcomes.prompts[row] for row in profile]
    for column, name in enumerate(outcomes.models):
        scores, costs = outcomes.scores[profile, column], outcomes.costs[profile, column]
        router.register(router.profile(name, texts, scores, cost=costs))
    router.calibrate(texts, quality=QUALITY)
    vectors = router.embed([outcomes.prompts[row] for row in stream])
    return router, Stream(vectors, outcomes.scores[stream], outcomes.costs[stream])


def replayed(router: UniRouter, stream: Stream, options: dict[str, Any] | None, seed: int) -> npt.NDArray[np.intp]:
    """Return the model that each prompt of the stream goes to."""
    chosen: list[int] = []
    plain = False
    if options is not None:
        plain = options.get("plain", False)
        settings = {key: value for key, value in options.items() if key != "plain"}
        learning = router.learn(every=3600, seed=seed, **settings)
    for start in range(0, len(stream.vectors), AT_ONCE):
        for row, decision in enumerate(router.route_many(vectors=stream.vectors[start : start + AT_ONCE]), start):
            column = router.models.index(decision.model)
            chosen.append(column)
            if options is not None:
                observed: Any = decision.as_dict() if plain else decision
                router.observe(observed, stream.scores[row, column], stream.costs[row, column])
        if options is not None:
            learning.sync()
    if options is not None:
        learning.close()
    return np.array(chosen)


def noticed(chosen: npt.NDArray[np.intp], changed: int) -> float:
    """Return the number of prompts after which the changed model was hardly used any more; NaN if never."""
    used, middle = chosen == changed, len(chosen) // 2
    before = used[:middle].mean()
    lately = np.convolve(used, np.ones(SEEN) / SEEN, "valid")[middle - SEEN + 1 :]
    below = np.flatnonzero(lately < before / 2)
    return float(below[0]) if len(below) else math.nan


def main() -> None:
    """Print the table."""
    outcomes = read_outcomes(sys.argv[1]).complete()
    columns = np.argsort(outcomes.models)  # the order of router.models
    outcomes = Outcomes(
        outcomes.prompts,
        tuple(outcomes.models[column] for column in columns),
        outcomes.scores[:, columns],
        np.where(np.isnan(outcomes.costs), np.nanmean(outcomes.costs, axis=0), outcomes.costs)[:, columns],
        outcomes.name,
    )
    found: dict[str, list[list[float]]] = defaultdict(list)
    for seed in range(SEEDS):
        router, stream = prepared(outcomes, seed)
        middle = len(stream.vectors) // 2
        before = replayed(router, stream, None, seed)[:middle]
        changed = int(np.bincount(before).argmax())
        worst = int(outcomes.scores.mean(axis=0).argmin())
        stream.scores[middle:, changed] = stream.scores[middle:, worst]
        paid = (1 - stream.scores) + router.cost_weight * stream.costs
        best = paid[middle:, paid[middle:].mean(axis=0).argmin()].mean()
        for regime, options in REGIMES.items():
            chosen = replayed(copy(router), stream, options, seed)
            row = 100 * paid[np.arange(len(chosen)), chosen]
            after = noticed(chosen, changed)
            use = (chosen == changed).reshape(2, -1).mean(axis=1)
            first, second = row[:middle].mean(), row[middle:].mean()
            found[regime].append([first, second, second - 100 * best, *(100 * use), after])
    size = f"{len(outcomes.models)} models, {len(stream.vectors)} prompts, {len(router.clusters)} clusters"
    print(f"{outcomes.name or sys.argv[1]}: {size}, {SEEDS} seeds")
    print("                            paid per call, in % of an error   regret, 2nd   share of changed   noticed")
    print("regime                      first half      second half       half          model, in %        after")
    recorded = {}
    for regime, rows in found.items():
        with warnings.catch_warnings(action="ignore"):  # where it was never noticed, there is no mean
            mean, spread = np.nanmean(rows, axis=0), np.nanstd(rows, axis=0, ddof=1)
        recorded[regime] = {"first half": mean[0], "second half": mean[1], "regret": mean[2], "± regret": spread[2]}
        figures = [f"{value:6.2f} ± {wide:4.2f}" for value, wide in zip(mean[:3], spread[:3], strict=True)]
        never = sum(math.isnan(each[-1]) for each in rows)
        when = f"{mean[-1]:.0f} ± {spread[-1]:.0f}" if never < SEEDS else ""
        when += f" (never in {never} of {SEEDS})" if never else ""
        used = f"{mean[3]:3.0f} -> {mean[4]:3.0f}"
        print(f"{regime:27} {figures[0]}   {figures[1]}     {figures[2]}   {used}         {when}")
    record(recorded)


if __name__ == "__main__":
    main()
