"""The README is true: its blocks run, and what it quotes is what its commands and blocks print."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_every_python_block_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as a reader would paste them."""
    pytest.importorskip("llama_index.core")
    pytest.importorskip("langchain")
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert len(found) == 9
    namespace: dict[str, object] = {}
    for block in found:
        exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102
    assert sorted(file.name for file in (tmp_path / "router").iterdir()) == ["router.json", "router.safetensors"]


def test_the_quoted_decision_is_what_the_router_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word, up to who would be next."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks("python")[:5]:
        exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102
    said = str(namespace["router"].route("Write a poem about three birds."))  # type: ignore[attr-defined]
    quoted = re.search(r"reads like this: `(.*?)next would", README, re.DOTALL)
    assert quoted is not None
    assert said.startswith(" ".join(quoted[1].split()))


def test_the_table_of_the_example_is_what_it_prints() -> None:
    """The figures of the README's first command."""
    script = ROOT / "examples" / "route_chat_calls.py"
    printed = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    (table,) = [block for block in blocks("text") if "accuracy" in block]
    assert table in printed


def test_the_shell_blocks_name_files_and_options_that_exist() -> None:
    """The two set-up commands stand first; CI runs them as they are. The examples they name are there."""
    run, test, real, measure = blocks("sh")
    assert run.startswith("python3 -m venv .venv && .venv/bin/pip install")
    assert test.startswith("python3 -m venv .venv && .venv/bin/pip install")
    assert test.strip().endswith("-m pytest")
    for script in re.findall(r"examples/\w+\.py", README):
        assert (ROOT / script).is_file()
    assert "--model openai:gpt-5-nano=0.05,0.40" in real
    assert measure.startswith("unirouter evaluate ")
    for option in re.findall(r"--[\w-]+", measure):
        assert option in (ROOT / "unirouter_integrations" / "cli.py").read_text()


def test_links_lead_to_files() -> None:
    """Those that do not leave the repository."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).is_file()
