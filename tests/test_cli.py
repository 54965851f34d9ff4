"""The command line. Commands run in this process, except where a process is what is tested."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import TOY_PROMPTS, made_up_outcomes, toy_scores
from openai_server import openai_server

from unirouter_integrations import UniRouter
from unirouter_integrations.cli import main


def run(*arguments: object, ok: bool = True, stdin: str | None = None) -> str:
    """Run a command, and return its standard output, or its standard error if it should fail."""
    done = CliRunner().invoke(main, [*map(str, arguments)], input=stdin, prog_name="unirouter")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception  # a user would see a traceback
    assert (done.exit_code == 0) == ok, done.stderr
    return done.stdout if ok else done.stderr


def run_process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "unirouter_integrations.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder, without a key, and forget the modules that commands import from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name in {"models", "broken"}:
            del sys.modules[name]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up outcomes as JSON lines."""
    table = made_up_outcomes(150)
    path = tmp_path_factory.mktemp("data") / "made_up.jsonl"
    lines = [
        {"prompt": prompt, "model": model, "score": table.scores[row, column], "cost": table.costs[row, column]}
        for row, prompt in enumerate(table.prompts)
        for column, model in enumerate(table.models)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def saved(path: Path, **models: tuple[list[float], float]) -> Path:
    router = UniRouter.fit(TOY_PROMPTS, n_clusters=3)
    for name, (scores, cost) in models.items():
        router.register(router.profile(name, TOY_PROMPTS, scores, cost=cost))
    router.save(path)
    return path


def test_evaluate_prints_the_table_and_writes_the_page(records: Path, tmp_path: Path) -> None:
    """Two sets of outcomes (here the same file twice) give a table each, their average, and one page."""
    pytest.importorskip("matplotlib")
    page, picture = tmp_path / "report.html", tmp_path / "areas.svg"
    methods = ["--methods", "unirouter, K-means (UniRoute), clairvoyant clusters"]
    files = ["--report", page, "--picture", picture]
    printed = run("evaluate", records, records, *methods, "--sizes", "20", "--trials", 2, "--jobs", 1, *files)
    assert printed.count("made_up: 9 models, 150 prompts, 2 splits") == 2
    assert "unirouter goes from K-means (UniRoute) to clairvoyant clusters by" in printed
    assert page.read_text(encoding="utf-8").lstrip().startswith("<!DOCTYPE html>")
    assert "<svg" in picture.read_text(encoding="utf-8")


def test_what_is_measured_can_be_read_by_programs(records: Path, tmp_path: Path) -> None:
    """Every figure of every split, and nothing else on the standard output."""
    pytest.importorskip("matplotlib")
    picture = tmp_path / "areas.svg"
    options = ["--methods", "unirouter,random", "--sizes", "20,30", "--trials", 3, "--jobs", 1]
    (found,) = json.loads(run("evaluate", records, *options, "--json", "--picture", picture))
    assert (found["name"], found["n_prompts"], len(found["models"]), found["sizes"]) == ("made_up", 150, 9, [20, 30])
    table = run("evaluate", records, *options)
    mean = sum(found["methods"]["unirouter"]["area"][0]) / 3
    assert f"unirouter    {mean:.4f}" in table
    assert [len(sizes) for sizes in found["methods"]["random"].values()] == [2, 2, 2]
    assert picture.exists()
    before = saved(tmp_path / "before", poet=(toy_scores("sum", "date"), 1))
    after = saved(tmp_path / "after", oracle=(toy_scores(), 5))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(TOY_PROMPTS))
    changed = json.loads(run("diff", before, after, prompts, "--json"))
    assert changed["moves"] == [["poet", "oracle", 1.0]]
    assert changed["n_prompts"] == len(TOY_PROMPTS)
    page = tmp_path / "page.html"
    assert json.loads(run("report", after, page, "--json")) == {"report": str(page)}


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
    pytest.importorskip("matplotlib")
    folder = saved(tmp_path / "router", poet=(toy_scores("sum"), 1), oracle=(toy_scores(), 5))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("poem number SECRETWORD\nsum number i\n")
    for number, extra in enumerate(([], ["--prompts", prompts])):
        page = tmp_path / f"{number}.html"
        assert run("report", folder, page, *extra) == f"Report: {page}\n"
        text = page.read_text(encoding="utf-8")
        assert "oracle" in text
        assert "SECRETWORD" not in text


def test_an_error_of_a_provider_is_printed_in_one_line(tmp_path: Path) -> None:
    """Without a traceback, and with a note on the journal."""
    folder = saved(tmp_path / "router", poet=(toy_scores("sum"), 1))
    (tmp_path / "broken.py").write_text("def llm(prompt):\n    raise LookupError('no such key')\n")
    examples = tmp_path / "examples.jsonl"
    examples.write_text(json.dumps({"prompt": "a poem", "reference": "x"}) + "\n")
    options = ["--examples", examples, "--price", "0,0", "--journal", tmp_path / "j.db"]
    printed = run("profile", "--model", "py:broken:llm", "--router", folder, *options, ok=False)
    assert "'py:broken:llm' failed with LookupError: no such key" in printed
    assert "goes on from there" in printed


def test_a_reader_may_close_the_pipe(tmp_path: Path) -> None:
    """As `head` does. It is not an error."""
    folder = saved(tmp_path / "router", poet=(toy_scores("sum"), 1))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a poem\n" * 3000)
    command = f"{sys.executable} -m unirouter_integrations.cli route {folder} --prompts {prompts} --json | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
    assert json.loads(done.stdout)["model"] == "poet"
    assert done.stderr == ""


def test_diff_can_guard_a_deployment(tmp_path: Path) -> None:
    """It shows what changes, and fails if a limit is exceeded."""
    before = saved(tmp_path / "before", poet=(toy_scores("sum", "date"), 1))
    after = saved(tmp_path / "after", poet=(toy_scores("sum", "date"), 1), oracle=(toy_scores(), 5))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in TOY_PROMPTS))
    printed = run(
        "diff", before, after, prompts, "--max-rerouted", 1, "--max-quality-loss", 0, "--max-cost-increase", 9
    )
    assert "prompts go to another model" in printed
    assert "poet -> oracle" in printed
    assert "rerouted" in run("diff", before, after, prompts, "--max-rerouted", 0.1, ok=False)
    assert "cost increase" in run("diff", before, after, prompts, "--max-cost-increase", 0.1, ok=False)
    assert "quality loss" in run("diff", after, before, prompts, "--max-quality-loss", 0.1, ok=False)


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
    if "--picture" in arguments:
        pytest.importorskip("matplotlib")
    filled = [argument.format(records=records, folder=tmp_path) for argument in arguments]
    assert message in " ".join(run(*filled, ok=False).split())


def test_help_and_version() -> None:
    """Every command explains itself."""
    assert "evaluate" in run("--help")
    assert "0.1.0" in run("--version")
    for command in ("evaluate", "report", "diff"):
        assert "Usage:" in run(command, "-h")


EXAMPLES = [{"prompt": prompt, "reference": prompt.split()[0]} for prompt in TOY_PROMPTS]
MODELS = '''
def knows(prompt):
    """A made-up model that knows sums and poems."""
    kind = prompt.split()[0]
    return kind if kind != "date" else "?"

def strict(answer, example):
    return answer.text == example.reference
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Prompts, examples and a module with a model, as a user has them."""
    (tmp_path / "prompts.txt").write_text("\n".join(TOY_PROMPTS))
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(each) + "\n" for each in EXAMPLES))
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


def outcomes(path: Path, **models: tuple[list[float], float]) -> Path:
    """Recorded outcomes as JSON lines."""
    lines = [
        {"prompt": prompt, "model": name, "score": score, "cost": cost}
        for name, (scores, cost) in models.items()
        for prompt, score in zip(TOY_PROMPTS, scores, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_router_from_the_first_prompt_to_the_decision(folder: Path) -> None:
    """Fit, profile, register, list, calibrate, route: what one command saves the next one reads."""
    assert "60 prompts in 3 clusters. Saved: router" in run("fit", "prompts.txt", "router", "--clusters", 3)
    profile = [
        "profile",
        "--model",
        "py:models:knows",
        "--router",
        "router",
        "--examples",
        "val.jsonl",
        "--price",
        "0,0",
    ]
    printed = run(*profile, "--journal", "profiles.db", "--output", "knows")
    assert "LLMProfile('knows', 60 prompts over 3 clusters, mean error 0.333, cost 0)" in printed
    assert "Shares of the prompts:\n    0.0% -> 100.0%  knows" in printed
    assert "Registered: LLMProfile('knows'" in run("register", "router", "knows")
    table = outcomes(folder / "graded.jsonl", oracle=(toy_scores(), 5.0))
    assert "Registered: LLMProfile('oracle'" in run("register", "router", "--outcomes", table)
    listed = json.loads(run("list", "router", "--json"))
    assert [row["model"] for row in listed["models"]] == ["knows", "oracle"]
    assert "  knows " in run("list", "router")
    assert run("calibrate", "router", "prompts.txt", "--quality", 0.9).startswith("cost weight ")
    weight = json.loads(run("calibrate", "router", "prompts.txt", "--budget", 2.5, "--json"))["cost_weight"]
    assert UniRouter.load(folder / "router").cost_weight == weight > 0
    route = ["route", "router", "--cost-weight", 0.1]
    assert run(*route, "poem number i").startswith("knows for cluster ")
    assert run(*route, stdin="date number i").startswith("oracle for cluster ")
    many = run("route", "router", "--prompts", "prompts.txt", "--among", "knows", "--json")
    assert {json.loads(line)["model"] for line in many.splitlines()} == {"knows"}


def test_profiling_estimates_its_cost_and_resumes(folder: Path) -> None:
    """An estimate makes no call; a second run takes all answers from the journal; `--register` is one step."""
    run("fit", "prompts.txt", "router", "--clusters", 3, "--scores", ok=False)  # it has no scores
    known = outcomes(folder / "known.jsonl", first=(toy_scores("sum"), 1.0), second=(toy_scores("poem"), 1.0))
    fitted = json.loads(run("fit", known, "router", "--clusters", 3, "--scores", "--json"))
    assert fitted["known_models"] == ["first", "second"]
    assert {keyword for cluster in fitted["clusters"] for keyword in cluster["keywords"]} >= {"sum", "poem", "date"}
    profile = ["profile", "--model", "py:models:knows", "--router", "router", "--examples", "val.jsonl"]
    profile += ["--price", "1,2,0.1", "--journal", "profiles.db", "--scorer", "py:models:strict"]
    assert run(*profile, "--estimate").startswith("60 calls, 0 answers are in the journal already.")
    assert "does not report how many tokens" in run(*profile, ok=False)
    profile[profile.index("1,2,0.1")] = "0,0"
    first = json.loads(run(*profile, "-n", 30, "--register", "--json"))
    assert (first["metadata"]["answers"], first["registered"]) == (30, True)
    estimate = json.loads(run(*profile, "--estimate", "--json"))
    assert estimate["calls"] == 60 - estimate["known"]
    assert UniRouter.load(folder / "router").models == ("knows",)


def test_a_model_behind_a_url_is_profiled(folder: Path) -> None:
    """By a real client, over HTTP; its tokens are priced."""
    pytest.importorskip("langchain_openai")
    run("fit", "prompts.txt", "router", "--clusters", 3)
    with openai_server(lambda model, messages: messages[-1]["content"].split()[0]) as url:
        found = run(
            *("profile", "--model", f"{url}#qwen", "--router", "router", "--examples", "val.jsonl"),
            *("--price", "100,100", "--json"),
        )
    profile = json.loads(found)
    assert (profile["name"], profile["mean_error"]) == ("qwen", 0)
    assert profile["metadata"]["answers_usd"] == pytest.approx((57 * 3 + 3 * 2 + 60) * 100 / 1e6)  # words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "prompts.txt", "there"], "There is a router in there already. Use --replace"),
        (["register", "there"], "There is nothing to register"),
        (["route", "there", "x"], "There is no model to choose from"),
        (["route", "there", "x", "--prompts", "prompts.txt"], "Give either PROMPT or --prompts."),
        (["calibrate", "there", "prompts.txt"], "Give either --budget or --quality."),
        (["profile", "py:models:nothing", "--price", "0,0"], "'py:models:nothing' should be py:module:attribute"),
        (["profile", "models:knows", "--price", "0,0"], "'models:knows' cannot be made. ValueError: "),
        (["profile", "gpt-5", "--price", "1,1"], "'gpt-5' cannot be made. OpenAIError: "),
        (["profile", "nobody:gpt-5", "--price", "1,1"], "'nobody:gpt-5' cannot be made. ValueError: "),
        (["profile", "nobody:gpt-55"], "gpt-55"),
        (["profile", "http://localhost:1/v1", "--price", "0,0"], "names no model. Add # and its name"),
        (["profile", "http://localhost:1/v1#x"], "A model behind a URL needs --price"),
        (["fit", "prompts.txt", "prompts.txt/router"], "could not be saved in 'prompts.txt/router': Not a directory"),
        (["profile", "py:models:knows", "--price", "0,0", "--output", "val.jsonl/x"], "Error: NotADirectoryError"),
        (["profile", "py:models:knows", "--price", "1"], "--price should be USD per million tokens, IN,OUT"),
        (["profile", "py:models:knows", "--scorer", "exactly"], "Did you mean 'exact'?"),
    ],
)
def test_errors_name_the_remedy(folder: Path, arguments: list[str], message: str) -> None:
    """They are one line, without a traceback."""
    if any("gpt-5" in argument for argument in arguments):
        pytest.importorskip("langchain_openai")
    saved(folder / "there")
    if arguments[0] == "profile":
        model, *rest = arguments[1:]
        arguments = ["profile", "--router", "there", "--examples", "val.jsonl", "--model", model, *rest]
    assert message in " ".join(run(*arguments, ok=False).split())


def test_no_file_of_the_working_folder_is_run_unless_it_is_named_as_a_python_object(folder: Path) -> None:
    """Neither as a provider, nor as what its client imports, nor as a scorer."""
    pytest.importorskip("langchain_openai")
    saved(folder / "there")
    for name in ("openai", "models", "langchain_openai", "exact"):
        (folder / f"{name}.py").write_text(f"open('{name}.was.run', 'w').close()\n{MODELS}")
    profile = ["profile", "--router", "there", "--examples", "val.jsonl", "--price", "0,0", "--estimate", "--model"]
    for arguments in (
        ["openai:gpt", "--scorer", "exact"],
        ["models:knows"],
        ["py:models:knows", "--scorer", "exact:strict"],
    ):
        run_process(*profile, *arguments, OPENAI_API_KEY="none")
        assert [file.name for file in folder.glob("*.was.run")] == [] or arguments[0].startswith("py:")
    assert [file.name for file in folder.glob("*.was.run")] == ["models.was.run"]


def test_nothing_gives_orders_to_the_terminal(folder: Path) -> None:
    """Names and words with control characters do not load; errors of a provider and the rest are printed escaped."""
    orders = "\x1b]0;owned\x07\x9b31m\u202e"
    saved(folder / "there", poet=(toy_scores("sum"), 1))
    document = (folder / "there" / "router.json").read_text()
    for old in ('"poet"', '"sum"'):
        assert old in document
        (folder / "there" / "router.json").write_text(document.replace(old, json.dumps(old[1:-1] + orders), 1))
        for command in (["list", "there"], ["list", "there", "--json"], ["route", "there", "a poem"]):
            shown = run(*command, ok=False)
            assert shown.startswith("Error: ")
            assert shown.rstrip("\n").isprintable()
    (folder / "there" / "router.json").write_text(document)
    (folder / "broken.py").write_text(f"def llm(prompt):\n    raise LookupError({orders!r})\n")
    options = ["--examples", "val.jsonl", "--price", "0,0"]
    shown = run("profile", "--model", "py:broken:llm", "--router", "there", *options, ok=False)
    assert r"LookupError: \x1b]0;owned\x07\x9b31m\u202e" in shown
    assert shown.rstrip("\n").isprintable()
    metadata = json.loads(document)
    metadata["profiles"][0]["metadata"] = {orders: orders}
    (folder / "there" / "router.json").write_text(json.dumps(metadata))
    listed = run("list", "there", "--json")
    assert listed.rstrip("\n").isprintable()
    assert json.loads(listed)["models"][0]["metadata"] == {orders: orders}


def test_the_exit_code_is_that_of_a_command(folder: Path) -> None:
    """It is 0, or 1 with a message on standard error."""
    fitted = run_process("fit", "prompts.txt", "router", "--clusters", 3)
    assert (fitted.returncode, fitted.stderr) == (0, "")
    failed = run_process("fit", "prompts.txt", "router")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("Error: There is a router in router already.")


def test_the_shell_completes_commands() -> None:
    """`unirouter --help` names the line that switches it on."""
    assert "_UNIROUTER_COMPLETE=bash_source unirouter" in run("--help")
    environment = {"_UNIROUTER_COMPLETE": "bash_complete", "COMP_WORDS": "unirouter cal", "COMP_CWORD": "1"}
    assert run_process(**environment).stdout.strip() == "plain,calibrate"
