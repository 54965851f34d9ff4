"""`unirouter fit`, `register`, `list`, `route` and `calibrate`: create, change and use a saved router."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from unirouter_integrations.cli._options import (
    among_option,
    echo,
    existing_file,
    existing_folder,
    fitted_embedder_option,
    json_option,
    new_embedder_option,
    print_json,
    split_names,
)
from unirouter_integrations.errors import InvalidInputError


@click.command(short_help="Create a router from prompts.")
@click.argument("prompts", type=existing_file)
@click.argument("router", type=click.Path(file_okay=False, path_type=Path))
@new_embedder_option
@click.option("--clusters", type=click.IntRange(1), help="Number of clusters. By default it depends on the prompts.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Seed of the clustering.")
@click.option(
    "--scores",
    "has_scores",
    is_flag=True,
    help="PROMPTS also has scores of known models (columns model and score, 0 wrong to 1 right). They show how the "
    "errors of models vary over the clusters, so that new models need fewer examples.",
)
@click.option("--replace", is_flag=True, help="Replace an existing router.")
@json_option
def fit(
    *,
    prompts: Path,
    router: Path,
    embedder: str,
    clusters: int | None,
    seed: int,
    has_scores: bool,
    replace: bool,
    as_json: bool,
) -> None:
    """Find the kinds of prompts in PROMPTS, and save a new router in the folder ROUTER.

    PROMPTS is a .txt file with one prompt per line, or a .csv, .jsonl or .parquet file with a column prompt. The router
    has no models yet: add them with `unirouter profile` or `unirouter register`.
    """
    from unirouter_integrations import UniRouter, data

    if (router / "router.json").exists() and not replace:
        msg = f"There is a router in {router} already. Use --replace to replace it and its profiles."
        raise InvalidInputError(msg)
    table = data.read_outcomes(prompts) if has_scores else None
    texts = data.read_prompts(prompts) if table is None else list(table.prompts)
    fitted = UniRouter.fit(
        texts if table is None else table,
        embedder=embedder,
        n_clusters="auto" if clusters is None else clusters,
        seed=seed,
    )
    fitted.save(router)
    known = () if table is None else table.models
    described = fitted.clusters.describe()
    if as_json:
        print_json(
            {
                "router": str(router),
                "prompts": len(texts),
                "known_models": list(known),
                "clusters": [{"share": each.share, "keywords": list(each.keywords)} for each in described],
            }
        )
        return
    learned = f", with the scores of {len(known)} known models" if known else ""
    echo(f"{len(texts)} prompts in {len(described)} clusters{learned}. Saved: {router}")
    for each in described:
        echo(f"  {each}")


@click.command(short_help="Add profiled models to a router.")
@click.argument("router", type=existing_folder)
@click.argument("profiles", nargs=-1, type=existing_folder)
@click.option(
    "--outcomes",
    type=existing_file,
    help="Add models from recorded outcomes: a file with the columns prompt, model, score (0 wrong to 1 right) and "
    "cost.",
)
@fitted_embedder_option
@json_option
def register(
    *, router: Path, profiles: tuple[Path, ...], outcomes: Path | None, embedder: str | None, as_json: bool
) -> None:
    """Add the models of PROFILES, which `unirouter profile --output` saves, to a saved ROUTER."""
    from unirouter_integrations import LLMProfile, UniRouter, data

    if not profiles and outcomes is None:
        msg = "There is nothing to register. Give PROFILES or --outcomes."
        raise InvalidInputError(msg)
    loaded = UniRouter.load(router, embedder=embedder)
    new = [LLMProfile.load(path) for path in profiles]
    if outcomes is not None:
        table = data.read_outcomes(outcomes)
        vectors = loaded.embed(table.prompts)
        for column, name in enumerate(table.models):
            scores, costs = table.scores[:, column], table.costs[:, column]
            new.append(loaded.profile(name, scores=scores, vectors=vectors, cost=costs))
    loaded.register(*new)
    loaded.save(router)
    if as_json:
        print_json({"registered": [each.name for each in new]})
    else:
        echo("\n".join(f"Registered: {each!r}" for each in new))


@click.command("list", short_help="Print the models of a router.")
@click.argument("router", type=existing_folder)
@fitted_embedder_option
@json_option
def list_models(*, router: Path, embedder: str | None, as_json: bool) -> None:
    """Print the models of a saved ROUTER with their mean expected error and cost over the clusters."""
    from unirouter_integrations import UniRouter

    loaded = UniRouter.load(router, embedder=embedder)
    shares = loaded.clusters.shares
    rows: list[dict[str, Any]] = []
    for name, profile in loaded.profiles.items():
        errors = profile.estimate(loaded.estimator, loaded.prior)
        costs = shares * profile.cost
        rows.append(
            {
                "model": name,
                "expected_error": float(errors.error @ shares),
                "expected_error_std": float(errors.std @ shares),
                "expected_cost": float(costs.sum()),
                "graded": float(profile.counts.sum()),
                "metadata": dict(profile.metadata),
            }
        )
    if as_json:
        print_json({"cost_weight": loaded.cost_weight, "clusters": len(shares), "models": rows})
        return
    echo(f"{len(rows)} models, {len(shares)} clusters, cost weight {loaded.cost_weight:g}")
    width = max((len(row["model"]) for row in rows), default=0)
    for row in rows:
        echo(
            f"  {row['model']:{width}}  expected error {row['expected_error']:.3f} ± {row['expected_error_std']:.3f}  "
            f"cost {row['expected_cost']:.4g}  from {row['graded']:.0f} graded prompts"
        )


@click.command(short_help="Show which model a prompt goes to, and why.")
@click.argument("router", type=existing_folder)
@click.argument("prompt", required=False)
@click.option("--prompts", type=existing_file, help="A file of prompts, in place of PROMPT.")
@click.option(
    "--cost-weight", type=click.FloatRange(0), help="Cost weight of these decisions. By default the router's."
)
@among_option
@fitted_embedder_option
@json_option
def route(
    *,
    router: Path,
    prompt: str | None,
    prompts: Path | None,
    cost_weight: float | None,
    among: str | None,
    embedder: str | None,
    as_json: bool,
) -> None:
    """Show which model of a saved ROUTER the PROMPT goes to, and why. Without PROMPT, read it from standard input.

    With --json, each decision is one line.
    """
    from unirouter_integrations import UniRouter, data

    if prompt is not None and prompts is not None:
        msg = "Give either PROMPT or --prompts."
        raise InvalidInputError(msg)
    loaded = UniRouter.load(router, embedder=embedder)
    texts = data.read_prompts(prompts) if prompts else [sys.stdin.read() if prompt is None else prompt]
    for decision in loaded.route_many(texts, cost_weight=cost_weight, among=split_names(among)):
        if as_json:
            ranking = [vars(candidate) for candidate in decision.ranking]
            print_json({**decision.as_dict(), "keywords": list(decision.keywords), "ranking": ranking})
        else:
            echo(decision)


@click.command(short_help="Set the cost weight for a budget or a quality.")
@click.argument("router", type=existing_folder)
@click.argument("prompts", type=existing_file)
@click.option("--budget", type=click.FloatRange(0), help="The highest mean expected cost per call.")
@click.option(
    "--quality", type=click.FloatRange(0), help="The share of the best single model's quality to keep, such as 0.97."
)
@among_option
@fitted_embedder_option
@json_option
def calibrate(
    *,
    router: Path,
    prompts: Path,
    budget: float | None,
    quality: float | None,
    among: str | None,
    embedder: str | None,
    as_json: bool,
) -> None:
    """Set the cost weight of a saved ROUTER for a budget or a quality, on PROMPTS like those that will be routed."""
    from unirouter_integrations import UniRouter, data

    if (budget is None) == (quality is None):
        msg = "Give either --budget or --quality."
        raise InvalidInputError(msg)
    loaded = UniRouter.load(router, embedder=embedder)
    names = split_names(among)
    vectors = loaded.embed(data.read_prompts(prompts))
    loaded.calibrate(vectors=vectors, budget=budget, quality=quality, among=names)
    loaded.save(router)
    decisions = loaded.route_many(vectors=vectors, among=names)
    expected_quality = 1 - sum(decision.expected_error for decision in decisions) / len(decisions)
    expected_cost = sum(decision.expected_cost for decision in decisions) / len(decisions)
    if as_json:
        print_json(
            {
                "cost_weight": loaded.cost_weight,
                "expected_quality": expected_quality,
                "expected_cost": expected_cost,
            }
        )
    else:
        echo(
            f"cost weight {loaded.cost_weight:.6g}: expected quality {expected_quality:.3f} at {expected_cost:.4g} per "
            "call"
        )
