"""Every example runs, and shows what it promises. Each runs once; tests of the same example share its output."""

import asyncio
import json
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from openai_server import openai_server

ROOT = Path(__file__).parents[1]
PROMPTS = ROOT / "examples" / "data" / "prompts.jsonl"


def run(example: str, *arguments: str) -> str:
    """What an example prints."""
    main = import_module(example).main
    with patch.object(sys, "argv", [example, *arguments]), redirect_stdout(StringIO()) as printed:
        result = main()
        if asyncio.iscoroutine(result):
            asyncio.run(result)
    return printed.getvalue()


run_once = cache(run)


@contextmanager
def llamaindex() -> Iterator[None]:
    """Undo what an example does to LlamaIndex: its setting, its listener, and the event loop that stays open."""
    from llama_index.core import Settings
    from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]

    dispatcher = get_dispatcher()
    llm = Settings._llm
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield
    finally:
        of_others = [each for each in dispatcher.event_handlers if type(each).__module__ != "llamaindex_agent"]
        dispatcher.event_handlers[:] = of_others
        Settings._llm = llm
        loop.close()
        asyncio.set_event_loop(None)


def table(output: str) -> dict[str, tuple[float, float]]:
    """Accuracy and cost of each row of the table at the end."""
    rows = re.findall(r"^   (routed|always the \w+|random).*?([\d.]+)% +([\d.]+)$", output, re.MULTILINE)
    return {title: (float(accuracy), float(cost)) for title, accuracy, cost in rows}


def test_the_main_example_routes_and_says_what_its_models_are() -> None:
    """Better than every single model, at less than half of the cost of the best; the answers shown are explained."""
    pytest.importorskip("langchain_core")
    output = run_once("route_chat_calls")
    assert "LOCAL PROGRAMS" in output
    assert "Their prices are made up" in output
    rows = table(output)
    assert rows["routed"][0] >= rows["always the best"][0] > rows["random"][0]
    assert rows["always the cheapest"][1] < rows["routed"][1] < rows["always the best"][1] / 2
    shown = re.findall(
        r"^   (right|wrong)  .*\n          (.*)\n          (\w+): expected error .* at cost", output, re.MULTILINE
    )
    assert len(shown) == 8
    assert all(grade == "right" and "I do not know" not in answer for grade, answer, _ in shown)
    answered = {model: int(count) for count, model in re.findall(r"(\d+) by (\w+)", output)}
    assert sum(answered.values()) == 56
    assert {"abacus", "almanac", "metric", "scholar", "scribe"} <= set(answered)
    assert re.search(r"This was for scholar\. Now: scribe for cluster", output)


def test_the_readme_shows_its_table() -> None:
    """Word for word."""
    pytest.importorskip("langchain_core")
    blocks = re.findall(r"^```text\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (shown,) = [block for block in blocks if "accuracy" in block]
    assert shown in run_once("route_chat_calls")


def test_the_questions_answered_are_unseen() -> None:
    """No question is in two of the three splits."""
    lines = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    assert len({line["prompt"] for line in lines}) == len(lines) > 400


def test_the_references_accept_right_answers_only() -> None:
    """Each is a regular expression, which an answer that gives up does not match."""
    for line in map(json.loads, PROMPTS.read_text().splitlines()):
        assert not re.search(line["reference"], "I do not know how to answer that.")


def test_the_main_example_runs_with_real_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named models are made by init_chat_model and called over HTTP; here a server on loopback answers for them."""
    pytest.importorskip("langchain_openai")
    example: Any = import_module("route_chat_calls")
    solvers = example.local_models()
    few = tmp_path / "few.jsonl"
    few.write_text("".join(PROMPTS.read_text().splitlines(keepends=True)[::3]))
    monkeypatch.setattr(example, "PROMPTS", few)
    asked: set[str] = set()

    def answer(model: str, messages: list[dict[str, Any]]) -> str:
        asked.add(model)
        text: str = solvers[model].invoke(messages[-1]["content"]).text
        return text

    with openai_server(answer) as url:
        for name, value in {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "test", "NO_PROXY": "127.0.0.1"}.items():
            monkeypatch.setenv(name, value)
        models = ("openai:scholar=15,60", "openai:metric=0.5,1.5", "openai:scribe=1,3")
        output = run("route_chat_calls", *(f"--model={model}" for model in models), "--budget=0.8")
    assert "LIVE models" in output
    assert asked == {"scholar", "metric", "scribe"}
    rows = table(output)
    assert rows["routed"][0] >= rows["always the best"][0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("openai:a", "give its price in USD per million tokens"),
        ("openai:a=1", "give its price in USD per million tokens"),
        ("openai:gpt-4o=1,2", "Name at least two models"),
    ],
)
def test_models_named_badly_are_refused_before_any_call(
    model: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says how to name them."""
    pytest.importorskip("langchain_openai")
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    with pytest.raises(SystemExit) as stopped:
        run("route_chat_calls", "--model", model)
    assert stopped.value.code != 0
    assert message in capsys.readouterr().err


def test_the_agent_keeps_its_tools_whichever_model_is_chosen() -> None:
    """Questions go to different models, each explained; nothing is live."""
    pytest.importorskip("langchain")
    output = run_once("agent_with_tools")
    assert "LOCAL PROGRAMS" in output
    assert len(set(re.findall(r"(\w+) for (?:cluster|a prompt)", output))) >= 2


def test_a_graph_routes_each_turn_or_keeps_the_conversation() -> None:
    """Streamed tokens come once; a sticky conversation keeps even a model that does not know the answer."""
    pytest.importorskip("langgraph")
    output = run_once("langgraph_chat")
    assert "LOCAL PROGRAMS" in output
    answers = re.findall(r"^      (\w+): (.+)$", output, re.MULTILINE)
    assert [model for model, _ in answers] == ["abacus", "scholar", "abacus", "abacus", "abacus", "abacus"]
    assert answers[0] == ("abacus", "441")


def test_a_model_is_registered_for_little_money() -> None:
    """A run that is cut short stays within its budget, is resumed, graded again, looked at and used."""
    pytest.importorskip("langchain_core")
    output = run_once("register_model")
    assert "LOCAL PROGRAMS" in output
    runs = re.findall(r"^   (\d+) answers, [\d.]+% right, ([\d.]+) USD(; stopped by max_cost)?", output, re.MULTILINE)
    (few, spent, stopped), (whole, _, not_stopped) = runs
    assert (float(spent) <= 0.001, bool(stopped), whole, not_stopped) == (True, True, "105", "")
    assert f"   {105 - int(few)} calls, {few} answers are in the journal already." in output
    assert "scholar -> scribe" in output
    assert re.search(
        r"^   scribe for cluster \d+ \(poem|^   scribe for cluster \d+ \(write, poem", output, re.MULTILINE
    )


def test_the_rag_example_names_model_reason_and_sources() -> None:
    """Query engine, newcomer, selector and `Settings.llm`, over a real index; one embedding a query."""
    pytest.importorskip("llama_index.core")
    with llamaindex():
        output = run_once("rag_query_engine")
    assert "LOCAL PROGRAMS" in output
    chosen = re.findall(r"^   why: (\w+) for cluster \d+ .*: expected error .* at cost", output, re.MULTILINE)
    assert chosen == ["reader", "scholar", "scholar", "clerk", "reader"]
    assert len(re.findall(r"^   source: \w+ station", output, re.MULTILINE)) == 4 * 2 + 1
    assert "3 queries, 3 embeddings" in output
    assert "24 questions about 4 other stations: 24 right,\n   8 by the reader, 12 by the clerk, 4 by the scholar." in (
        output
    )


def test_pipelines_are_routed_like_models() -> None:
    """What needs no retrieval has none; the thorough pipeline gets what the quick one fails at."""
    pytest.importorskip("llama_index.core")
    with llamaindex():
        output = run_once("route_pipelines")
    assert "LOCAL PROGRAMS" in output
    shown = re.findall(r"^   (\w+) +(right|wrong)  ", output, re.MULTILINE)
    assert shown == [(name, "right") for name in ("alone", "alone", "quick", "quick", "thorough")]
    assert "20 questions, 1.24 USD per 1,000; all by the thorough one: 5.00" in output
    assert re.search(r"3\. .*\n   (alone|quick) for cluster", output)


def test_the_llamaindex_agent_keeps_each_question_with_its_model() -> None:
    """Also through its tool calls; tracing sees every decision."""
    pytest.importorskip("llama_index.core")
    with llamaindex(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LlamaIndex's agents use what pydantic has deprecated
        output = run_once("llamaindex_agent")
    assert "LOCAL PROGRAMS" in output
    steps = re.findall(r"^   (\w+): expected error", output, re.MULTILINE)
    assert steps == ["clerk", "clerk", "scholar", "scholar", "abacus"]
    assert re.findall(r"^      (\d+.*)$", output, re.MULTILINE) == ["26 francs", "104 francs", "441"]
