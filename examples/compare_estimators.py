"""How good are the estimators on models the router has never seen? Measured on recorded outcomes.

    pip install pyarrow
    python examples/compare_estimators.py --data FOLDER

FOLDER holds recorded outcomes of real models: `prompts.parquet` (prompt_id, prompt, and perhaps question, which is then
what is embedded) and `outcomes.parquet` (prompt_id, model, score between 0 and 1, cost_usd).

For each seed, a third of the models is hidden. The router is fitted on 60% of the prompts and on the outcomes of the
other models; each hidden model is profiled on a few validation prompts (from another 10%), and the hidden models are
routed on the remaining 30%. The figure is the area under the curve of quality against cost: the mean quality over all
budgets between the cheapest and the dearest hidden model. Nothing is tuned on the test prompts.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from unirouter_integrations import PromptClusters, UniRouter
from unirouter_integrations.evaluation import DeferralCurve
from unirouter_integrations.profiles import Estimator

Floats = npt.NDArray[np.float64]

BLIND = "prompt-blind"
METHODS = (*get_args(Estimator), BLIND)


class Outcomes(NamedTuple):
    """A table of recorded outcomes: every model on every prompt."""

    prompts: list[str]
    models: list[str]
    losses: Floats
    """(prompts, models)"""
    costs: Floats
    """(models,): mean USD per 1,000 calls."""


def read_outcomes(folder: Path) -> Outcomes:
    """Read the models that answered at least 95% of the prompts, and the prompts that all of these answered."""
    prompts = pq.read_table(folder / "prompts.parquet").to_pydict()
    texts = dict(zip(prompts["prompt_id"], prompts.get("question", prompts["prompt"]), strict=True))
    table = pq.read_table(folder / "outcomes.parquet", columns=["prompt_id", "model", "score", "cost_usd"]).to_pydict()
    rows = {prompt: row for row, prompt in enumerate(texts)}
    columns = {model: column for column, model in enumerate(sorted(set(table["model"])))}
    losses, costs = np.full((2, len(rows), len(columns)), np.nan)
    at = [rows[prompt] for prompt in table["prompt_id"]], [columns[model] for model in table["model"]]
    losses[at], costs[at] = 1 - np.array(table["score"], float), np.array(table["cost_usd"], float)
    core = (~np.isnan(losses)).mean(axis=0) >= 0.95  # noqa: PLR2004
    complete = ~np.isnan(losses[:, core]).any(axis=1)
    return Outcomes(
        [text for text, keep in zip(texts.values(), complete, strict=True) if keep],
        [model for model, keep in zip(columns, core, strict=True) if keep],
        losses[np.ix_(complete, core)],
        1000 * np.nanmean(costs[:, core], axis=0),
    )


def trial(data: Outcomes, vectors: npt.NDArray[np.float32] | None, n_validation: int, seed: int) -> dict[str, float]:
    """The area of each method for one split of models and prompts."""
    rng = np.random.default_rng(seed)
    order, models = rng.permutation(len(data.prompts)), rng.permutation(len(data.models))
    train, rest, test = np.split(order, [int(0.6 * len(order)), int(0.7 * len(order))])
    validation = rest[:n_validation]
    hidden, known = np.split(models, [round(len(models) / 3)])
    prompts = [data.prompts[row] for row in train]
    fitted = UniRouter.fit(
        prompts,
        embedder="local" if vectors is None else None,
        vectors=None if vectors is None else vectors[train],
        outcomes={data.models[column]: data.losses[train, column] for column in known},
        seed=seed,
    )

    def embed(rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        return fitted.embed([data.prompts[row] for row in rows]) if vectors is None else vectors[rows]

    on_validation, on_test = embed(validation), embed(test)
    blind = PromptClusters.fit(["any prompt"], None, vectors=np.ones((1, on_test.shape[1])), n_clusters=1)
    areas = {}
    for method in METHODS:
        router = UniRouter(blind, estimator="mean")
        if method != BLIND:
            router = UniRouter(fitted.clusters, prior=fitted.prior, estimator=method)
        for column in hidden:
            name, losses = data.models[column], data.losses[validation, column]
            router.register(router.profile(name, vectors=on_validation, losses=losses, cost=data.costs[column]))
        expected = router.expected_errors(vectors=on_test, among=[data.models[column] for column in hidden])
        areas[method] = DeferralCurve.trace(expected, data.losses[np.ix_(test, hidden)], data.costs[hidden]).area
    return areas


def summary(trials: Sequence[dict[str, float]]) -> str:
    """A table: the mean area of each method, its spread over seeds, and how far empirical Bayes is above it."""
    lines = [f"{'method':18}{'area':>8}{'sd':>8}{'empirical_bayes above it by':>30}{'in':>10}"]
    ours = np.array([areas["empirical_bayes"] for areas in trials])
    for method in METHODS:
        theirs = np.array([areas[method] for areas in trials])
        line = f"{method:18}{theirs.mean():8.4f}{theirs.std(ddof=1):8.4f}"
        if method != "empirical_bayes":
            gain = ours - theirs
            error = gain.std(ddof=1) / np.sqrt(len(gain))
            line += f"{f'{gain.mean():+.4f} ± {error:.4f} (s.e.)':>30}{f'{(gain > 0).sum()} of {len(gain)}':>10}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Run the trials and print the table."""
    parser = argparse.ArgumentParser(description="Compare the estimators on recorded outcomes of unseen models.")
    parser.add_argument("--data", type=Path, required=True, help="folder with prompts.parquet and outcomes.parquet")
    parser.add_argument("--seeds", type=int, default=10, help="number of random splits")
    parser.add_argument("--validation", type=int, default=200, help="graded prompts per new model")
    parser.add_argument("--embedder", default="local", help='"local", or the name of a SentenceTransformer')
    arguments = parser.parse_args()
    if arguments.seeds < 2:  # noqa: PLR2004
        parser.error("--seeds should be at least 2: one split has no spread")
    data = read_outcomes(arguments.data)
    print(f"RECORDED outcomes: {len(data.models)} models, {len(data.prompts)} prompts from {arguments.data.name}.")
    print(f"{arguments.seeds} splits, {arguments.validation} validation prompts, embedder {arguments.embedder}.")
    vectors = None
    if arguments.embedder != "local":
        from unirouter_integrations import as_embedder

        vectors = as_embedder(arguments.embedder).embed(data.prompts)
    trials = []
    for seed in range(arguments.seeds):
        trials.append(trial(data, vectors, arguments.validation, seed))
        print(f"seed {seed}: " + ", ".join(f"{method} {area:.4f}" for method, area in trials[-1].items()), flush=True)
    print(summary(trials))


if __name__ == "__main__":
    main()
