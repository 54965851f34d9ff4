"""`unirouter fit`, `register`, `list`, `route`, `calibrate`: a saved router, made, changed and asked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from unirouter_integrations.cli.options import (
    embedder_option,
    existing_file,
    existing_folder,
    json_option,
    print_json,
)
from unirouter_integrations.errors import InvalidInputError


@click.command(short_help="Learn from prompts which kinds there are.")
@click.argument("prompts", type=existing_file)
@click.argument("router", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--embedder",
    default="local",
    show_default=True,
    help='"local", onnx:FOLDER, model2vec:NAME, or the name of a SentenceTransformer.',
)
@click.option(
    "--clusters", type=click.IntRange(1), help="How many kinds to tell apart; by default as the prompts allow."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Seed of the clustering.")
@click.option(
    "--outcomes",
    is_flag=True,
    help="PROMPTS holds outcomes of known models as well (columns model and score), which teach about new ones.",
)
@click.option("--replace", is_flag=True, help="Replace a router that is there.")
@json_option
def fit(
    *,
    prompts: Path,
    router: Path,
    embedder: str,
    clusters: int | None,
    seed: int,
    outcomes: bool,
    replace: bool,
    as_json: bool,
) -> None:
    """Learn from PROMPTS which kinds of prompts there are, and save a ROUTER, a folder.

    PROMPTS is a .txt file, one prompt a line, or a .csv, .jsonl or .parquet file with a column prompt. No model is
    registered yet: `unirouter profile` or `unirouter register` come next.
    """
    from unirouter_integrations import UniRouter, evaluation

    if (router / "router.json").exists() and not replace:
        msg = f"There is a router in {router} already; give --replace to replace it, with its profiles."
        raise InvalidInputError(msg)
    known = None
    if outcomes:
        table = evaluation.read_outcomes(prompts)
        texts = list(table.prompts)
        known = {name: table.losses[:, column] for column, name in enumerate(table.models)}
    else:
        texts = evaluation.read_prompts(prompts)
    fitted = UniRouter.fit(
        texts,
        embedder=embedder,
        n_clusters="auto" if clusters is None else clusters,
        seed=seed,
        outcomes=known,
    )
    fitted.save(router)
    described = fitted.clusters.describe()
    if as_json:
        print_json(
            {
                "router": str(router),
                "prompts": len(texts),
                "known_models": list(known or ()),
                "clusters": [{"share": each.share, "terms": list(each.terms)} for each in described],
            }
        )
        return
    learnt = f", and how {len(known)} known models err on them" if known else ""
    click.echo(f"{len(texts)} prompts of {len(described)} kinds{learnt}. Saved: {router}")
    for each in described:
        click.echo(f"  {each}")


@click.command(short_help="Let profiled models take part in a router.")
@click.argument("router", type=existing_folder)
@click.argument("profiles", nargs=-1, type=existing_folder)
@click.option(
    "--outcomes",
    type=existing_file,
    help="Register models from recorded outcomes: a file with the columns prompt, model, score (0 to 1) and cost.",
)
@embedder_option
@json_option
def register(
    *, router: Path, profiles: tuple[Path, ...], outcomes: Path | None, embedder: str | None, as_json: bool
) -> None:
    """Let models take part in a saved ROUTER: those of PROFILES, as `unirouter profile --output` saves them."""
    from unirouter_integrations import LLMProfile, UniRouter, evaluation

    if not profiles and outcomes is None:
        msg = "There is nothing to register; give PROFILES or --outcomes."
        raise InvalidInputError(msg)
    loaded = UniRouter.load(router, embedder=embedder)
    found = [LLMProfile.load(path) for path in profiles]
    if outcomes is not None:
        table = evaluation.read_outcomes(outcomes)
        vectors = loaded.embed(table.prompts)
        for column, name in enumerate(table.models):
            losses, costs = table.losses[:, column], table.costs[:, column]
            found.append(loaded.profile(name, losses=losses, vectors=vectors, cost=costs))
    for each in found:
        loaded.register(each)
    loaded.save(router)
    if as_json:
        print_json({"registered": [each.name for each in found]})
    else:
        click.echo("\n".join(f"Registered: {each!r}" for each in found))


@click.command("list", short_help="Print the models of a router.")
@click.argument("router", type=existing_folder)
@embedder_option
@json_option
def list_models(*, router: Path, embedder: str | None, as_json: bool) -> None:
    """Print the models of a saved ROUTER: their mean error over the kinds of prompts, and their cost."""
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
    click.echo(f"{len(rows)} models, {len(shares)} kinds of prompts, cost weight {loaded.cost_weight:g}")
    width = max((len(row["model"]) for row in rows), default=0)
    for row in rows:
        click.echo(
            f"  {row['model']:{width}}  expected error {row['expected_error']:.3f} ± {row['expected_error_std']:.3f}  "
            f"cost {row['expected_cost']:.4g}  from {row['graded']:.0f} graded prompts"
        )


@click.command(short_help="Say which model a prompt goes to, and why.")
@click.argument("router", type=existing_folder)
@click.argument("prompt", required=False)
@click.option("--prompts", type=existing_file, help="A file of prompts in place of one.")
@click.option("--cost-weight", type=click.FloatRange(0), help="lambda of these decisions; by default the router's.")
@click.option("--among", help="Names of the candidates, separated by commas; all by default.")
@embedder_option
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
    """Say which model of a saved ROUTER the PROMPT goes to, and why. Without PROMPT it is read from standard input.

    With --json each decision is one line.
    """
    from unirouter_integrations import UniRouter, evaluation

    if prompt is not None and prompts is not None:
        msg = "Give either PROMPT or --prompts."
        raise InvalidInputError(msg)
    loaded = UniRouter.load(router, embedder=embedder)
    texts = evaluation.read_prompts(prompts) if prompts else [sys.stdin.read() if prompt is None else prompt]
    names = None if among is None else [name.strip() for name in among.split(",")]
    for decision in loaded.route_many(texts, cost_weight=cost_weight, among=names):
        if as_json:
            ranking: list[Any] = [vars(candidate) for candidate in decision.ranking]
            print_json({**decision.as_dict(), "terms": list(decision.terms), "ranking": ranking})
        else:
            click.echo(str(decision))


@click.command(short_help="Set the cost weight for a budget or a quality.")
@click.argument("router", type=existing_folder)
@click.argument("prompts", type=existing_file)
@click.option("--budget", type=click.FloatRange(0), help="The mean expected cost per call that must not be exceeded.")
@click.option("--quality", type=click.FloatRange(0), help="The share of the best single model's quality to keep: 0.97.")
@click.option("--among", help="Names of the candidates, separated by commas; all by default.")
@embedder_option
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
    from unirouter_integrations import UniRouter, evaluation

    if (budget is None) == (quality is None):
        msg = "Give either --budget or --quality."
        raise InvalidInputError(msg)
    loaded = UniRouter.load(router, embedder=embedder)
    names = loaded.models if among is None else [name.strip() for name in among.split(",")]
    vectors = loaded.embed(evaluation.read_prompts(prompts))
    loaded.calibrate(vectors=vectors, budget=budget, quality=quality, among=names)
    loaded.save(router)
    decisions = loaded.route_many(vectors=vectors, among=names)
    quality_now = 1 - sum(decision.expected_error for decision in decisions) / len(decisions)
    cost_now = sum(decision.expected_cost for decision in decisions) / len(decisions)
    if as_json:
        print_json({"cost_weight": loaded.cost_weight, "expected_quality": quality_now, "expected_cost": cost_now})
    else:
        click.echo(
            f"cost weight {loaded.cost_weight:.6g}: expected quality {quality_now:.3f} at {cost_now:.4g} per call"
        )
