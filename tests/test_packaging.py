"""The wheel: what is in it, and that it works outside the checkout."""

import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import unirouter_integrations

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Typed, licensed, without tests or examples."""
    names = zipfile.ZipFile(wheel).namelist()
    assert "unirouter_integrations/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(re.match(r"unirouter_integrations(/|-[\d.]+\.dist-info/)", name) for name in names)


def test_its_metadata_is_right(wheel: Path) -> None:
    """Version, licence, Python, and the extras a user may ask for."""
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Version"] == unirouter_integrations.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"langchain", "llamaindex", "sentence-transformers", "all", "dev"} <= set(
        metadata.get_all("Provides-Extra", [])
    )
    always = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(re.split(r"[<>=]", line)[0] for line in always) == [
        "click", "joblib", "numpy", "safetensors", "scikit-learn", "scipy", "tqdm"
    ]  # fmt: skip


def test_the_version_has_an_entry_in_the_changelog() -> None:
    """The newest entry is this version's."""
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == unirouter_integrations.__version__
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]


def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Unpacked elsewhere, it is what gets imported, and it routes."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = """
import unirouter_integrations
from unirouter_integrations import UniRouter
from unirouter_integrations.langchain import ChatUniRouter
router = UniRouter.fit(["add two numbers", "write a poem"], n_clusters=2)
router.register(router.profile("m", ["add two numbers"], [0], cost=1))
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
