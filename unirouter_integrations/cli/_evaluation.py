"""`unirouter evaluate`, `unirouter report`, `unirouter diff`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from unirouter_integrations._checks import shown
from unirouter_integrations.cli._options import (
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

_FORMATS = ("records", "routerbench", "embedllm")


@click.command(short_help="Compare routers on recorded outcomes.")
@click.argument("outcomes", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--format", "layout", type=click.Choice(_FORMATS), default="records", help="Layout of the files.")
@click.option("--sizes", default="50,100,200,400", show_default=True, help="Numbers of validation prompts.")
@click.option("--trials", default=20, show_default=True, type=click.IntRange(1), help="Number of random splits.")
@click.option("--methods", help="Names of methods, separated by commas. All by default.")
@new_embedder_option
@click.option("--cost", "costs", multiple=True, metavar="MODEL=COST", help="Cost per call of a model, if not recorded.")
@click.option("--jobs", default=-1, show_default=True, help="Number of processes, -1 for one per core.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the first split.")
@click.option("--report", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML report.")
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw the areas (.svg or .png).")
@json_option
def evaluate(
    *,
    outcomes: tuple[Path, ...],
    layout: str,
    sizes: str,
    trials: int,
    methods: str | None,
    embedder: str,
    costs: tuple[str, ...],
    jobs: int,
    seed: int,
    page: Path | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Compare routers on OUTCOMES: recorded scores and costs of models on prompts.

    Each of OUTCOMES is a .parquet, .csv or .jsonl file with the columns prompt, model, score (0 wrong to 1 right) and
    cost, or a folder with prompts.parquet and outcomes.parquet. In each trial, a third of the models is new to the
    router.
    """
    from unirouter_integrations import data, evaluation

    readers: dict[str, Callable[[Path], data.Outcomes]] = {
        "records": data.read_outcomes,
        "routerbench": data.read_routerbench,
        "embedllm": data.read_embedllm,
    }
    prices = dict(map(_price, costs))
    if page is not None or picture is not None:
        evaluation.check_pictures(picture)  # fail before the long computation, not after it
    results = []
    for path in outcomes:
        table = readers[layout](path)
        result = evaluation.evaluate(
            table.with_costs(prices) if prices else table,
            methods=split_names(methods),
            sizes=_sizes(sizes),
            n_trials=trials,
            embedder=embedder,
            n_jobs=jobs,
            seed=seed,
            progress=sys.stderr.isatty(),
        )
        if not as_json:
            echo(f"{result}\n")
        results.append(result)
    if as_json:
        print_json([result.as_dict() for result in results])
    elif len(results) > 1:
        echo(evaluation.summary(results))
    if page is not None:
        evaluation.write_report(results, page)
        echo(f"Report: {page}", err=as_json)
    if picture is not None:
        evaluation.write_picture(results, picture)
        echo(f"Picture: {picture}", err=as_json)


@click.command(short_help="Write an HTML page about a router.")
@click.argument("router", type=existing_folder)
@click.argument("page", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--prompts", type=existing_file, help="A file of prompts like those that are routed.")
@fitted_embedder_option
@json_option
def report(*, router: Path, page: Path, prompts: Path | None, embedder: str | None, as_json: bool) -> None:
    """Write an HTML page about a saved ROUTER: its models, its clusters, and the effect of the cost weight."""
    from unirouter_integrations import UniRouter, data, evaluation

    texts = None if prompts is None else data.read_prompts(prompts)
    evaluation.report(UniRouter.load(router, embedder=embedder), page, texts)
    print_json({"report": str(page)}) if as_json else echo(f"Report: {page}")


@click.command(short_help="Compare the decisions of two routers.")
@click.argument("before", type=existing_folder)
@click.argument("after", type=existing_folder)
@click.argument("prompts", type=existing_file)
@fitted_embedder_option
@click.option("--max-rerouted", type=click.FloatRange(0, 1), help="Fail if more than this share of the prompts moves.")
@click.option("--max-quality-loss", type=click.FloatRange(0), help="Fail if the expected quality falls by more.")
@click.option("--max-cost-increase", type=click.FloatRange(0), help="Fail if the expected cost per call rises by more.")
@json_option
def diff(
    *,
    before: Path,
    after: Path,
    prompts: Path,
    embedder: str | None,
    max_rerouted: float | None,
    max_quality_loss: float | None,
    max_cost_increase: float | None,
    as_json: bool,
) -> None:
    """Show how the saved routers BEFORE and AFTER differ on PROMPTS (.txt with one per line, .csv, .jsonl, .parquet).

    The exit code is 1 if a limit is exceeded, so that the command can guard a deployment.
    """
    from unirouter_integrations import UniRouter, compare, data

    old, new = (UniRouter.load(path, embedder=embedder) for path in (before, after))
    difference = compare.diff(old, new, data.read_prompts(prompts))
    print_json(difference.as_dict()) if as_json else echo(difference)
    changes = (
        ("rerouted", difference.rerouted, max_rerouted),
        ("quality loss", difference.quality[0] - difference.quality[1], max_quality_loss),
        ("cost increase", difference.cost[1] - difference.cost[0], max_cost_increase),
    )
    exceeded = [
        f"{what} {value:.4g} > {limit:g}" for what, value, limit in changes if limit is not None and value > limit
    ]
    if exceeded:
        raise click.ClickException("; ".join(exceeded))


def _sizes(text: str) -> list[int]:
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        msg = f"--sizes should be whole numbers separated by commas, but is {shown(text)}."
        raise InvalidInputError(msg) from None


def _price(text: str) -> tuple[str, float]:
    model, _, cost = text.rpartition("=")
    try:
        return model, float(cost)
    except ValueError:
        msg = f"--cost should be MODEL=COST, but is {shown(text)}."
        raise InvalidInputError(msg) from None
