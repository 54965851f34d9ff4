"""What escalation gains: an answer that does not pass a check goes on to the next model that is expected to err less.

    OMP_NUM_THREADS=1 python benchmarks/escalation.py DATA [--record]

DATA is a folder with `prompts.parquet` (prompt_id, prompt or question), `outcomes.parquet` (prompt_id, model, score,
cost_usd) and `responses.parquet` (prompt_id, model, response). All of them are RECORDED. The checks are whether the
answer states a final answer at all (a JSON field, a box, "the answer is ..."), which anybody can check, and whether it
is right, which NOBODY can check in use: it shows the most that a check could gain. Both answers are paid.

Each seed has its own prompts for fitting, profiling and testing. The router knows the scores of 3/4 of the models on
1,000 prompts, and all models are profiled on 200. Spread is the standard deviation over the seeds.
"""

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from _record import record

from unirouter_integrations import RoutingDecision, UniRouter
from unirouter_integrations.core import Exclusion
from unirouter_integrations.grading._extraction import answer_candidates

SEEDS, TESTED = 5, 600
COST_WEIGHTS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # error per USD per 1,000 calls
BUDGETS = (0.2, 0.5, 1.0, 1.5, 2.0)  # USD per 1,000 prompts


class Call(NamedTuple):
    """The recorded call of one model on one prompt."""

    score: float
    cost: float
    marked: bool


CHECKS: dict[str, Callable[[Call], bool]] = {
    "no check": lambda call: True,
    "a final answer": lambda call: call.marked,
    "perfect check": lambda call: call.score >= 1,
}


def read(folder: Path) -> tuple[dict[str, str], dict[str, dict[str, Call]]]:
    """Read the texts of the prompts, and the calls of the models that have nearly all of them."""
    prompts = pq.read_table(folder / "prompts.parquet").to_pylist()
    texts = {row["prompt_id"]: row.get("question") or row["prompt"] for row in prompts}
    marked = {
        (row["prompt_id"], row["model"]): any(
            candidate.marked for candidate in answer_candidates(row["response"] or "")
        )
        for row in pq.read_table(folder / "responses.parquet").to_pylist()
    }
    calls: dict[str, dict[str, Call]] = defaultdict(dict)
    for row in pq.read_table(folder / "outcomes.parquet").to_pylist():
        key = (row["prompt_id"], row["model"])
        if key in marked:
            calls[row["model"]][row["prompt_id"]] = Call(row["score"], 1000 * row["cost_usd"], marked[key])
    taken = {name: each for name, each in calls.items() if len(each) > 0.95 * len(texts)}
    common = set.intersection(*(set(each) for each in taken.values()))
    return {prompt: text for prompt, text in texts.items() if prompt in common}, taken


def fitted(texts: dict[str, str], calls: dict[str, dict[str, Call]], prompts: list[str], seed: int) -> UniRouter:
    """Fit a router that knows some models' scores, and profile all models."""
    fit, profile = prompts[:1000], prompts[1000:1200]
    known = np.random.default_rng(seed).permutation(sorted(calls))[: len(calls) * 3 // 4].tolist()
    scores = {name: [calls[name][prompt].score for prompt in fit] for name in known}
    router = UniRouter.fit([texts[prompt] for prompt in fit], scores=scores)
    for name, of_model in calls.items():
        graded = [of_model[prompt] for prompt in profile]
        router.register(
            router.profile(
                name,
                [texts[prompt] for prompt in profile],
                [call.score for call in graded],
                cost=[call.cost for call in graded],
            )
        )
    return router


def answered(decision: RoutingDecision, calls: dict[str, dict[str, Call]], prompt: str, passes: Any) -> list[float]:
    """Return the score, the cost and the number of calls until an answer passes or no better model is left."""
    spent, made = 0.0, 0
    while True:
        call = calls[decision.model][prompt]
        spent, made = spent + call.cost, made + 1
        rejected = Exclusion(decision.model, "rejected", "its answer did not pass")
        better = None if passes(call) else decision.without(rejected, decision.better)
        if better is None:
            return [call.score, spent, made]
        decision = better


def main() -> None:
    """Print the tables."""
    texts, calls = read(Path(sys.argv[1]))
    found: dict[tuple[str, float], list[Any]] = defaultdict(list)
    for seed in range(SEEDS):
        prompts = np.random.default_rng(seed).permutation(sorted(texts)).tolist()
        router, test = fitted(texts, calls, prompts, seed), prompts[1200 : 1200 + TESTED]
        vectors = router.embed([texts[prompt] for prompt in test])
        for weight in COST_WEIGHTS:
            decisions = router.route_many(vectors=vectors, cost_weight=weight)
            for name, passes in CHECKS.items():
                rows = [answered(one, calls, prompt, passes) for one, prompt in zip(decisions, test, strict=True)]
                found[name, weight].append(np.mean(rows, axis=0))
    figures = {}
    print(f"{len(calls)} models, {SEEDS} seeds of {TESTED} prompts")
    print("cost weight   check            accuracy         USD per 1,000      calls per prompt")
    for (name, weight), rows in sorted(found.items(), key=lambda item: item[0][1]):
        (right, usd, made), spread = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1)
        figures[f"{name}, cost weight {weight:g}"] = {"accuracy": right, "USD per 1,000": usd, "calls per prompt": made}
        print(f"{weight:<13g} {name:16} {right:.3f} ± {spread[0]:.3f}    {usd:.3f} ± {spread[1]:.3f}      {made:.2f}")
    print("\nUSD per 1,000   accuracy (between the cost weights, by straight lines): " + ", ".join(CHECKS))
    for budget in BUDGETS:
        reached = np.array([[accuracy_at(budget, name, seed, found) for name in CHECKS] for seed in range(SEEDS)])
        columns = zip(reached.mean(axis=0), reached.std(axis=0, ddof=1), strict=True)
        print(f"{budget:<15g} " + "   ".join(f"{mean:.3f} ± {spread:.3f}" for mean, spread in columns))
    record(figures)


def accuracy_at(budget: float, check: str, seed: int, found: dict[tuple[str, float], list[Any]]) -> float:
    """Compute the accuracy of one seed with a check at this mean cost."""
    points = sorted((rows[seed][1], rows[seed][0]) for (name, _), rows in found.items() if name == check)
    spent, right = zip(*points, strict=True)
    return float(np.interp(budget, spent, right, left=np.nan))


if __name__ == "__main__":
    main()
