"""Every example runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openai_server import openai_server

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(script: str, *arguments: str, warnings: str = "error", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", warnings, str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )


def table(output: str) -> dict[str, tuple[float, float]]:
    """Accuracy and cost of each row of the table at the end."""
    rows = re.findall(r"^   (routed|always the \w+|random).*?([\d.]+)% +([\d.]+)$", output, re.MULTILINE)
    return {title: (float(accuracy), float(cost)) for title, accuracy, cost in rows}


def test_the_main_example_routes_and_says_what_its_models_are() -> None:
    """Better than every single model, at a fraction of the cost of the best; each of 56 questions is explained."""
    result = run("route_chat_calls.py")
    assert (result.returncode, result.stderr) == (0, "")
    assert "LOCAL PROGRAMS" in result.stdout
    assert "Their prices are made up" in result.stdout
    rows = table(result.stdout)
    assert rows["routed"][0] >= rows["always the best"][0] > rows["random"][0]
    assert rows["always the cheapest"][1] < rows["routed"][1] < rows["always the best"][1] / 2
    explained = re.findall(r"^          (\w+) for cluster \d+.*expected error .* at cost", result.stdout, re.MULTILINE)
    assert len(explained) == 56
    assert {"abacus", "almanac", "metric", "scholar", "scribe"} <= set(explained)


def test_the_questions_answered_are_unseen() -> None:
    """No question is in two of the three splits."""
    lines = [json.loads(line) for line in (EXAMPLES / "data" / "prompts.jsonl").read_text().splitlines()]
    assert len({line["prompt"] for line in lines}) == len(lines) > 400


def test_the_main_example_runs_with_real_clients() -> None:
    """Named models are made by init_chat_model and called over HTTP; here a server on loopback answers for them."""
    pytest.importorskip("langchain_openai")
    sys.path.insert(0, str(EXAMPLES))
    try:
        from local_models import local_models
    finally:
        sys.path.remove(str(EXAMPLES))
    solvers = local_models()
    asked: set[str] = set()

    def answer(model: str, messages: list[dict[str, Any]]) -> str:
        asked.add(model)
        return solvers[model].invoke(messages[-1]["content"]).text

    models = ["--model", "openai:scholar=15,60", "--model", "openai:metric=0.5,1.5", "--model", "openai:scribe=1,3"]
    with openai_server(answer) as url:
        result = run("route_chat_calls.py", *models, OPENAI_BASE_URL=url, OPENAI_API_KEY="test", NO_PROXY="127.0.0.1")
    assert (result.returncode, result.stderr) == (0, "")
    assert "LIVE models" in result.stdout
    assert asked == {"scholar", "metric", "scribe"}
    rows = table(result.stdout)
    assert rows["routed"][0] >= rows["always the best"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "openai:a"], "give its price in USD per million tokens"),
        (["--model", "openai:a=1"], "give its price in USD per million tokens"),
        (["--model", "openai:gpt-4o=1,2"], "Name at least two models"),
    ],
)
def test_models_named_badly_are_refused_before_any_call(arguments: list[str], message: str) -> None:
    """The message says how to name them."""
    pytest.importorskip("langchain_openai")
    result = run("route_chat_calls.py", *arguments, OPENAI_API_KEY="test")
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_agent_keeps_its_tools_whichever_model_is_chosen() -> None:
    """Questions go to different models, each explained; nothing is live."""
    pytest.importorskip("langchain")
    result = run("agent_with_tools.py")
    assert (result.returncode, result.stderr) == (0, "")
    assert "LOCAL PROGRAMS" in result.stdout
    assert len(set(re.findall(r"(\w+) for (?:cluster|a prompt)", result.stdout))) >= 2


def test_a_graph_routes_each_turn_or_keeps_the_conversation() -> None:
    """Streamed tokens come once; a sticky conversation keeps even a model that does not know the answer."""
    pytest.importorskip("langgraph")
    result = run("langgraph_chat.py")
    assert (result.returncode, result.stderr) == (0, "")
    assert "LOCAL PROGRAMS" in result.stdout
    answers = re.findall(r"^      (\w+): (.+)$", result.stdout, re.MULTILINE)
    assert [model for model, _ in answers] == ["abacus", "scholar", "abacus", "abacus", "abacus", "abacus"]
    assert answers[0] == ("abacus", "441")


def test_a_model_is_registered_for_little_money() -> None:
    """A run that is cut short stays within its budget, is resumed, graded again, looked at and used."""
    result = run("register_model.py")
    assert (result.returncode, result.stderr) == (0, "")
    assert "LOCAL PROGRAMS" in result.stdout
    runs = re.findall(
        r"^   (\d+) answers, [\d.]+% right, ([\d.]+) USD(; stopped by max_cost)?", result.stdout, re.MULTILINE
    )
    (few, spent, stopped), (whole, _, not_stopped) = runs
    assert (float(spent) <= 0.001, bool(stopped), whole, not_stopped) == (True, True, "105", "")
    assert f"   {105 - int(few)} calls, {few} answers are in the journal already." in result.stdout
    assert "pocket -> scribe" in result.stdout
    assert re.search(r"^   scribe for cluster \d+ \(poem", result.stdout, re.MULTILINE)


def test_the_rag_example_names_model_reason_and_sources() -> None:
    """Query engine, newcomer, selector and `Settings.llm`, over a real index; one embedding a query."""
    pytest.importorskip("llama_index.core")
    result = run("rag_query_engine.py")
    assert (result.returncode, result.stderr) == (0, "")
    assert "LOCAL PROGRAMS" in result.stdout
    chosen = re.findall(r"^   why: (\w+) for cluster \d+ .*: expected error .* at cost", result.stdout, re.MULTILINE)
    assert chosen == ["reader", "scholar", "scholar", "clerk", "reader"]
    assert len(re.findall(r"^   source: \w+ station", result.stdout, re.MULTILINE)) == 4 * 2 + 1
    assert "3 queries, 3 embeddings" in result.stdout
    assert "24 questions about 4 other stations: 24 right,\n   8 by the reader, 12 by the clerk, 4 by the scholar." in (
        result.stdout
    )


def test_the_llamaindex_agent_keeps_each_question_with_its_model() -> None:
    """Also through its tool calls; tracing sees every decision."""
    pytest.importorskip("llama_index.core")
    result = run("llamaindex_agent.py", warnings="ignore")  # LlamaIndex's agents use what pydantic has deprecated
    assert result.returncode == 0, result.stderr
    assert "LOCAL PROGRAMS" in result.stdout
    steps = re.findall(r"^   (\w+): expected error", result.stdout, re.MULTILINE)
    assert steps == ["clerk", "clerk", "scholar", "scholar", "abacus"]
    assert re.findall(r"^      (\d+.*)$", result.stdout, re.MULTILINE) == ["26 francs", "104 francs", "441"]
