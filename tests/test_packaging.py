"""What is released and how: the wheel, the source distribution, and the files that CI and contributors work with."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import unirouter_integrations

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = unirouter_integrations.__version__


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution."""
    pytest.importorskip("hatchling")
    if not (ROOT / "unirouter_integrations").is_dir():
        pytest.skip("there is no checkout of the package")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (built,) = dist.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Typed, licensed, without tests or examples."""
    names = zipfile.ZipFile(wheel).namelist()
    assert "unirouter_integrations/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(re.match(r"unirouter_integrations(/|-[\d.]+\.dist-info/)", name) for name in names)


def test_the_source_distribution_holds_what_a_contributor_needs(dist: Path) -> None:
    """Tests, examples, benchmarks, documents, and the commands over them; nothing of this machine."""
    (built,) = dist.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.removeprefix(f"unirouter_integrations-{VERSION}/") for name in archive.getnames()}
    assert {
        "Makefile", "benchmarks/speed.py", "docs/architecture.md", "examples/data/prompts.jsonl",
        "requirements/dev.txt", "tests/conftest.py", "unirouter_integrations/py.typed",
    } <= names  # fmt: skip
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", ".ci"))]


def test_its_metadata_is_right(wheel: Path) -> None:
    """Version, licence, Python, and the extras a user may ask for."""
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Version"] == VERSION
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"langchain", "llamaindex", "sentence-transformers", "all", "dev"} <= set(
        metadata.get_all("Provides-Extra", [])
    )
    always = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(re.split(r"[<>=]", line)[0] for line in always) == [
        "click", "joblib", "narwhals", "numpy", "safetensors", "scikit-learn", "scipy", "tqdm"
    ]  # fmt: skip


def test_the_version_has_an_entry_in_the_changelog() -> None:
    """The newest entry is this version's."""
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == VERSION
    assert PROJECT["project"]["dynamic"] == ["version"]


def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Unpacked elsewhere, it is what gets imported, and it routes."""
    zipfile.ZipFile(wheel).extractall(tmp_path)  # noqa: S202  # it was built here
    script = """
import unirouter_integrations
from unirouter_integrations import UniRouter
from unirouter_integrations.langchain import ChatUniRouter
router = UniRouter.fit(["add two numbers", "write a poem"], n_clusters=2)
router.register(router.profile("m", ["add two numbers"], [1], cost=1))
print(unirouter_integrations.__file__, router.route("add").model)
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    assert result.stdout.split() == [str(tmp_path / "unirouter_integrations" / "__init__.py"), "m"]


def test_development_versions_are_pinned_and_of_no_machine() -> None:
    """A constraints file of plain versions, that pre-commit's linter agrees with."""
    lines = (ROOT / "requirements" / "dev.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"[\w.-]+", part) for line in pinned.items() for part in line)
    needed = {re.split(r"[\[<>=]", line)[0] for line in PROJECT["project"]["optional-dependencies"]["dev"]}
    assert needed - {"unirouter-integrations"} <= {name.lower() for name in pinned}
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"ruff-pre-commit\n *rev: v(\S+)", hooks) == [pinned["ruff"]]


def test_ci_tests_each_python_that_is_promised() -> None:
    """The workflow's versions are those of the classifiers."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (listed,) = re.findall(r"python: \[(.*)\]", workflow)
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert re.findall(r"3\.\d+", listed) == promised


def test_each_command_of_contributing_is_in_the_makefile() -> None:
    """One word each, with a line that says what it does."""
    targets = re.findall(r"^([a-z-]+):.*## \S", (ROOT / "Makefile").read_text(), re.MULTILINE)
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    used = re.findall(r"`make ([a-z -]+)`|^make ([a-z -]+?) +#", contributing, re.MULTILINE)
    assert {word for pair in used for words in pair for word in words.split()} <= set(targets)
    assert {"install", "check", "test", "test-slow", "bench", "docs", "ci"} <= set(targets)
