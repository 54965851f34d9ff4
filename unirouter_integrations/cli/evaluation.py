"""`unirouter evaluate`, `unirouter report`, `unirouter diff`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from unirouter_integrations.cli.options import embedder_option, existing_file, existing_folder, json_option, print_json
from unirouter_integrations.errors import InvalidInputError

_FORMATS = ("records", "routerbench", "embedllm")


@click.command(short_help="Compare routers on recorded outcomes.")
@click.argument("outcomes", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--format", "layout", type=click.Choice(_FORMATS), default="records", help="How the files are laid out.")
@click.option("--sizes", default="50,100,200,400", show_default=True, help="Numbers of validation prompts.")
@click.option("--trials", default=20, show_default=True, type=click.IntRange(1), help="Number of random splits.")
@click.option("--methods", help="Names of methods, separated by commas; all by default.")
@click.option(
    "--embedder",
    default="local",
    show_default=True,
    help='"local", onnx:FOLDER, model2vec:NAME, or the name of a SentenceTransformer.',
)
@click.option("--cost", "costs", multiple=True, metavar="MODEL=COST", help="Cost per call of a model, if not recorded.")
@click.option("--jobs", default=-1, show_default=True, help="Number of processes; -1 for one per core.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the first split.")
@click.option("--report", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML report here.")
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw the areas here (.svg or .png).")
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
    """Compare routers on OUTCOMES, recorded scores and costs of models on prompts.

    Each of OUTCOMES is a .parquet, .csv or .jsonl file with the columns prompt, model, score (0 to 1) and cost, or a
    folder with prompts.parquet and outcomes.parquet. Models are hidden in turn and routed unseen.
    """
    from unirouter_integrations import evaluation

    readers: dict[str, Callable[[Path], evaluation.Outcomes]] = {
        "records": evaluation.read_outcomes,
        "routerbench": evaluation.read_routerbench,
        "embedllm": evaluation.read_embedllm,
    }
    prices = dict(map(_price, costs))
    if page is not None or picture is not None:
        evaluation.check_pictures(picture)  # before the long work, not after it
    found = []
    for path in outcomes:
        table = readers[layout](path)
        result = evaluation.evaluate(
            table.with_costs(prices) if prices else table,
            methods=None if methods is None else [name.strip() for name in methods.split(",")],
            sizes=_sizes(sizes),
            n_trials=trials,
            embedder=embedder,
            n_jobs=jobs,
            seed=seed,
            progress=sys.stderr.isatty(),
        )
        if not as_json:
            click.echo(f"{result}\n")
        found.append(result)
    if as_json:
        print_json([result.as_dict() for result in found])
    elif len(found) > 1:
        click.echo(evaluation.summary(found))
    if page is not None:
        evaluation.write_report(found, page)
        click.echo(f"Report: {page}", err=as_json)
    if picture is not None:
        evaluation.write_picture(found, picture)
        click.echo(f"Picture: {picture}", err=as_json)


@click.command(short_help="Write an HTML page about a router.")
@click.argument("router", type=existing_folder)
@click.argument("page", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--prompts", type=existing_file, help="Prompts like those in use.")
@embedder_option
@json_option
def report(*, router: Path, page: Path, prompts: Path | None, embedder: str | None, as_json: bool) -> None:
    """Write an HTML page about a saved ROUTER: its models, its clusters, and what the cost weight does."""
    from unirouter_integrations import UniRouter, evaluation

    texts = None if prompts is None else evaluation.read_prompts(prompts)
    evaluation.report(UniRouter.load(router, embedder=embedder), page, texts)
    print_json({"report": str(page)}) if as_json else click.echo(f"Report: {page}")


@click.command(short_help="What a new router would do otherwise.")
@click.argument("before", type=existing_folder)
@click.argument("after", type=existing_folder)
@click.argument("prompts", type=existing_file)
@embedder_option
@click.option("--most-rerouted", type=click.FloatRange(0, 1), help="Fail if a larger share of the prompts moves.")
@click.option("--most-quality-lost", type=click.FloatRange(0), help="Fail if expected quality falls by more than this.")
@click.option("--most-cost-added", type=click.FloatRange(0), help="Fail if the expected cost per call rises by more.")
@json_option
def diff(
    *,
    before: Path,
    after: Path,
    prompts: Path,
    embedder: str | None,
    most_rerouted: float | None,
    most_quality_lost: float | None,
    most_cost_added: float | None,
    as_json: bool,
) -> None:
    """Say what the router AFTER would do otherwise than BEFORE on PROMPTS (.txt, one a line; .csv, .jsonl, .parquet).

    The exit code is 1 if a limit is exceeded, so that it can stand before a deployment.
    """
    from unirouter_integrations import UniRouter, evaluation

    old, new = (UniRouter.load(path, embedder=embedder) for path in (before, after))
    found = evaluation.diff(old, new, evaluation.read_prompts(prompts))
    print_json(found.as_dict()) if as_json else click.echo(str(found))
    changes = (
        ("rerouted", found.rerouted, most_rerouted),
        ("quality lost", found.quality[0] - found.quality[1], most_quality_lost),
        ("cost added", found.cost[1] - found.cost[0], most_cost_added),
    )
    exceeded = [f"{what} {value:.4g} > {most:g}" for what, value, most in changes if most is not None and value > most]
    if exceeded:
        raise click.ClickException("; ".join(exceeded))


def _sizes(text: str) -> list[int]:
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        msg = f"--sizes should be whole numbers separated by commas, but is {text!r}."
        raise InvalidInputError(msg) from None


def _price(text: str) -> tuple[str, float]:
    model, _, cost = text.rpartition("=")
    try:
        return model, float(cost)
    except ValueError:
        msg = f"--cost should be MODEL=COST, but is {text!r}."
        raise InvalidInputError(msg) from None
