"""The README is true: its blocks run, and what it quotes is what its commands and blocks print."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def event_loop_that_is_closed() -> Iterator[None]:
    """LlamaIndex takes the thread's event loop where it is called synchronously, and does not close it."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()
    asyncio.set_event_loop(None)


@pytest.mark.usefixtures("event_loop_that_is_closed")
def test_every_python_block_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as a reader would paste them."""
    pytest.importorskip("llama_index.core")
    pytest.importorskip("langchain")
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert len(found) == 16
    namespace: dict[str, object] = {}
    for block in found:
        exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102
    assert sorted(file.name for file in (tmp_path / "router").iterdir()) == ["router.json", "router.safetensors"]


def test_what_profiling_is_said_to_print_is_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Word for word."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks("python"):
        capsys.readouterr()
        exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102
        if "profile_model(" in block:
            break
    (printed,) = [block for block in blocks("text") if "answers are in the journal" in block]
    assert capsys.readouterr().out == printed


def test_the_table_of_the_example_is_what_it_prints() -> None:
    """The figures of the README's first command."""
    script = ROOT / "examples" / "route_chat_calls.py"
    printed = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    (table,) = [block for block in blocks("text") if "accuracy" in block]
    assert table in printed


def test_the_shell_blocks_name_files_and_options_that_exist() -> None:
    """The two set-up commands stand first; CI runs them as they are. The examples they name are there."""
    run, test, real, commands, _embedders, _export, measure = blocks("sh")
    assert run.startswith("python3 -m venv .venv && .venv/bin/pip install")
    assert test.startswith("python3 -m venv .venv && .venv/bin/pip install")
    assert test.strip().endswith("-m pytest")
    for script in re.findall(r"examples/\w+\.py", README):
        assert (ROOT / script).is_file()
    assert "--model openai:gpt-5-nano=0.05,0.40" in real
    assert measure.startswith("unirouter evaluate ")
    sources = "".join(file.read_text() for file in (ROOT / "unirouter_integrations" / "cli").glob("*.py"))
    for option in re.findall(r"--[\w-]+", commands + measure):
        assert f'"{option}"' in sources


def test_links_lead_to_files() -> None:
    """Those that do not leave the repository."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).is_file()
