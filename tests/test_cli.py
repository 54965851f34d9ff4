"""The command line, run as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TOY_PROMPTS, made_up_outcomes, toy_losses

from unirouter_integrations import UniRouter


def run(*arguments: object, ok: bool = True) -> str:
    command = [sys.executable, "-W", "error", "-m", "unirouter_integrations.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert (done.returncode == 0) == ok, done.stderr
    return done.stdout if ok else done.stderr


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up outcomes as JSON lines."""
    table = made_up_outcomes(150)
    path = tmp_path_factory.mktemp("data") / "made_up.jsonl"
    lines = [
        {"prompt": prompt, "model": model, "score": 1 - table.losses[row, column], "cost": table.costs[row, column]}
        for row, prompt in enumerate(table.prompts)
        for column, model in enumerate(table.models)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def saved(path: Path, **models: tuple[list[float], float]) -> Path:
    router = UniRouter.fit(TOY_PROMPTS, n_clusters=3)
    for name, (losses, cost) in models.items():
        router.register(router.profile(name, TOY_PROMPTS, losses, cost=cost))
    router.save(path)
    return path


def test_evaluate_prints_the_table_and_writes_the_page(records: Path, tmp_path: Path) -> None:
    """Two sets of outcomes (here the same file twice) give a table each, their average, and one page."""
    page, picture = tmp_path / "report.html", tmp_path / "areas.svg"
    methods = ["--methods", "unirouter, K-means (UniRoute), clairvoyant clusters"]
    files = ["--report", page, "--picture", picture]
    printed = run("evaluate", records, records, *methods, "--sizes", "20", "--trials", 2, "--jobs", 1, *files)
    assert printed.count("made_up: 9 models, 150 prompts, 2 splits") == 2
    assert "unirouter goes from K-means (UniRoute) to clairvoyant clusters by" in printed
    assert page.read_text(encoding="utf-8").lstrip().startswith("<!DOCTYPE html>")
    assert "<svg" in picture.read_text(encoding="utf-8")


def test_costs_can_be_given(records: Path, tmp_path: Path) -> None:
    """For files that hold none; all models need one."""
    bare = tmp_path / "bare.jsonl"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    bare.write_text("".join(json.dumps({**line, "cost": None}) + "\n" for line in lines))
    options = ["--methods", "random", "--sizes", "20", "--trials", 2, "--jobs", 1]
    costs = [part for i in range(9) for part in ("--cost", f"model {i}={i + 1}")]
    assert "9 models" in run("evaluate", bare, *options, *costs)
    assert "No cost of 'model 0' is recorded" in run("evaluate", bare, *options, ok=False)
    assert "'model 1' is missing" in run("evaluate", bare, *options, "--cost", "model 0=1", ok=False)
    assert "--cost should be MODEL=COST" in run("evaluate", bare, *options, "--cost", "model 0", ok=False)


def test_report_shows_a_router_in_use(tmp_path: Path) -> None:
    """With prompts like those in use, or without; no prompt is in the page."""
    folder = saved(tmp_path / "router", poet=(toy_losses("sum"), 1), oracle=(toy_losses(), 5))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("poem number SECRETWORD\nsum number i\n")
    for number, extra in enumerate(([], ["--prompts", prompts])):
        page = tmp_path / f"{number}.html"
        assert run("report", folder, page, *extra) == f"Report: {page}\n"
        text = page.read_text(encoding="utf-8")
        assert "oracle" in text
        assert "SECRETWORD" not in text


def test_diff_can_stand_before_a_deployment(tmp_path: Path) -> None:
    """It says what changes, and fails where a limit is exceeded."""
    before = saved(tmp_path / "before", poet=(toy_losses("sum", "date"), 1))
    after = saved(tmp_path / "after", poet=(toy_losses("sum", "date"), 1), oracle=(toy_losses(), 5))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in TOY_PROMPTS))
    printed = run(
        "diff", before, after, prompts, "--most-rerouted", 1, "--most-quality-lost", 0, "--most-cost-added", 9
    )
    assert "prompts go to another model" in printed
    assert "poet -> oracle" in printed
    assert "rerouted" in run("diff", before, after, prompts, "--most-rerouted", 0.1, ok=False)
    assert "cost added" in run("diff", before, after, prompts, "--most-cost-added", 0.1, ok=False)
    assert "quality lost" in run("diff", after, before, prompts, "--most-quality-lost", 0.1, ok=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nowhere.jsonl"], "does not exist"),
        (["evaluate", __file__], "should end in .parquet, .csv, .jsonl"),
        (["evaluate", "--sizes", "many", "{records}"], "--sizes should be whole numbers"),
        (["evaluate", "--methods", "magic", "{records}"], "methods should be some of"),
        (["evaluate", "--format", "routerbench", "{records}"], "two columns 'X' and 'X|total_cost'"),
        (["report", "{folder}", "page.html"], "router.json"),
        (["evaluate", "{records}", "--methods", "random", "--sizes", "9", "--picture", "x.pdf"], ".svg or .png"),
    ],
)
def test_bad_input_is_a_message(arguments: list[str], message: str, records: Path, tmp_path: Path) -> None:
    """Not a traceback."""
    filled = [argument.format(records=records, folder=tmp_path) for argument in arguments]
    assert message in " ".join(run(*filled, ok=False).split())


def test_help_and_version() -> None:
    """Every command explains itself."""
    assert "evaluate" in run("--help")
    assert "0.1.0" in run("--version")
    for command in ("evaluate", "report", "diff"):
        assert "Usage:" in run(command, "-h")
