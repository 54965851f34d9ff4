"""The README is true: its blocks run, they print what it shows, and the names, files and options in it exist."""

import asyncio
import importlib
import io
import re
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from unirouter_integrations.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def llamaindex_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """LlamaIndex takes the thread's event loop where it is called synchronously, and does not close it."""
    settings = pytest.importorskip("llama_index.core").Settings
    monkeypatch.setattr(settings, "_llm", settings._llm)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()
    asyncio.set_event_loop(None)


@pytest.mark.usefixtures("llamaindex_as_before")
def test_every_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as a reader would paste them. Profiling prints what is shown, word for word."""
    pytest.importorskip("langchain")
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert len(found) == 18
    printed = {}
    namespace: dict[str, object] = {}
    for block in found:
        with redirect_stdout(io.StringIO()) as output:
            exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102
        printed[block] = output.getvalue()
    for page in sorted((ROOT / "docs").glob("*.md")):
        for block in blocks("python", page.read_text(encoding="utf-8")):
            exec(compile(block, page.name, "exec"), {})  # noqa: S102
    assert sorted(file.name for file in (tmp_path / "router").iterdir()) == ["router.json", "router.safetensors"]
    (profiling,) = [output for block, output in printed.items() if "profile_model(" in block]
    (shown,) = [block for block in blocks("text") if "answers are in the journal" in block]
    assert profiling == shown
    (failing,) = [output for block, output in printed.items() if "failing.n_calls" in block]
    assert re.findall(r"\['(\w+)'\]|^(\d)$", failing, re.MULTILINE) == [
        *[("failed", "")] * 5,
        *[("cooling_down", "")] * 3,
        ("", "5"),
    ]


def test_the_two_commands_stand_first() -> None:
    """CI runs them as they are: the main example, and the tests."""
    run, test, *_ = blocks("sh")
    for command in (run, test):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
        assert len(command.splitlines()) == 1
    assert run.strip().endswith("examples/route_chat_calls.py")
    assert test.strip().endswith("-m pytest")


def test_commands_and_their_options_exist() -> None:
    """Wherever `unirouter` is called, in a block or in a sentence."""
    called = re.findall(r"(?:^|`)unirouter ([a-z]+) ?([^`#]*?)(?:`| +#|$)", README, re.MULTILINE)
    assert {name for name, _ in called} == main.commands.keys() - {"register"}  # of which only the name is mentioned
    for name, arguments in called:
        options = {option for parameter in main.commands[name].params for option in parameter.opts} | {"--help"}
        assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", arguments)) <= options


def test_files_and_links_exist() -> None:
    """Those of the repository, with the headings that are linked to."""
    named = re.findall(r"(?:examples|benchmarks)/\w+\.py", README)
    linked = [link.partition("#") for link in re.findall(r"\]\((?!https?:)([^)]+)\)", README)]
    assert named
    assert [name for name in [*named, *(file for file, _, _ in linked)] if not (ROOT / name).is_file()] == []
    for file, _, heading in linked:
        headings = re.findall(r"^#+ (.*)$", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert not heading or heading in [each.lower().replace(" ", "-") for each in headings]


def test_extras_exist() -> None:
    """Each that the README installs."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"(?:unirouter-integrations|\.)\[([\w-]+)\]", README)
    assert named
    assert set(named) <= known.keys()


def test_imports_outside_of_python_blocks_exist() -> None:
    """In blocks that need Ray or a download, and in sentences: modules and names."""
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    for module, names in re.findall(r"from (unirouter_integrations[\w.]*) import (\w+(?:, \w+)*)", README):
        assert [name for name in names.split(", ") if not hasattr(importlib.import_module(module), name)] == []
    for module in re.findall(r"`(unirouter_integrations\.[\w.]+)`", README):
        importlib.import_module(module)
