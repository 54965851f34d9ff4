"""What holds for the package as a whole: its layers, and what importing it does and does not do."""

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import unirouter_integrations

PACKAGE = Path(unirouter_integrations.__file__).parent
ROOT = Path(__file__).parents[2]  # the package itself may be installed elsewhere
SOURCES = sorted(PACKAGE.rglob("*.py"))
FRAMEWORKS = {"langchain", "langchain_core", "langgraph", "llama_index", "torch", "sentence_transformers"}


def picture(document: str) -> str:
    """The layers as a document draws them."""
    text = (ROOT / document).read_text()
    return text.split("<!-- layers -->")[1].split("<!-- /layers -->")[0].strip().strip("`").removeprefix("text").strip()


def layers() -> list[list[str]]:
    """The layers of the picture from the bottom up; modules of one layer do not know each other."""
    lines = [re.split(r"\s{2,}", line.strip())[0] for line in picture("docs/architecture.md").splitlines()]
    return [[name.strip() for name in line.split(",")] for line in reversed(lines)]


LAYERS = layers()
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported(source: Path, *, everywhere: bool) -> set[str]:
    """The full names of the modules a file imports, at its top level or everywhere in it."""
    tree = ast.parse(source.read_text())
    names = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source.name} has a relative import"
            names.add(node.module or "")
    return names


def layer(source: Path) -> str:
    return source.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_all_documents_show_the_same_layers() -> None:
    """README and CONTRIBUTING have the picture of docs/architecture.md, and it has every module once."""
    assert picture("README.md") == picture("CONTRIBUTING.md") == picture("docs/architecture.md")
    modules = {layer(source) for source in SOURCES} - {"__init__"}
    assert sorted(name for names in LAYERS for name in names) == sorted(modules)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_only(source: Path) -> None:
    """A layer knows those below it, and none beside it."""
    if layer(source) == "__init__":
        return
    ours = {
        name.split(".")[1] for name in imported(source, everywhere=True) if name.startswith("unirouter_integrations.")
    }
    assert {name: LEVEL[name] for name in ours - {layer(source)} if LEVEL[name] >= LEVEL[layer(source)]} == {}


def test_modules_inside_packages_are_private() -> None:
    """A package is a door, and what is behind it begins with an underscore."""
    inner = [source for source in SOURCES if source.parent != PACKAGE]
    assert [source.name for source in inner if not source.name.startswith("_")] == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_faces_import_a_framework(source: Path) -> None:
    """The core imports none at module level, nor scikit-learn, nor anything that can read or write a pickle."""
    top = {name.split(".")[0] for name in imported(source, everywhere=False)}
    if layer(source) not in {"langchain", "llamaindex", "testing"}:
        assert not top & FRAMEWORKS
    assert "sklearn" not in top
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "importlib", "runpy"}
    if source.name == "_protocol.py":
        banned -= {"joblib"}  # which runs trials in processes of its own; it reads and writes no file here
        assert not re.search(r"joblib\.(load|dump)|import (load|dump|Memory)", source.read_text())
    assert not {name.split(".")[0] for name in imported(source, everywhere=True)} & banned
    assert not re.search(r"allow_pickle|\beval\(|\bexec\(|__import__|np\.load\b|np\.save\b", source.read_text())


def test_the_argmin_is_written_once() -> None:
    """One place decides."""
    found = [source.name for source in SOURCES for _ in re.findall(r"argmin\(", source.read_text())]
    assert found == ["_decision.py"]


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)


def test_importing_loads_nothing_heavy() -> None:
    """No framework, no torch, no scikit-learn, no pydantic: NumPy and the standard library."""
    result = run("""
        import sys
        import unirouter_integrations
        heavy = {name.split(".")[0] for name in sys.modules}
        print(sorted(heavy & {"sklearn", "scipy", "torch", "langchain_core", "langchain", "llama_index", "pydantic",
                              "sentence_transformers", "asyncio", "safetensors", "requests", "httpx"}))
    """)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_importing_does_no_io_and_reads_no_environment() -> None:
    """Only Python files are opened, the environment is not read, and no logging is configured."""
    result = run("""
        import numpy, dataclasses, json, hashlib, threading, tempfile, logging, os, sys
        opened = []
        def watch(event, arguments):
            if event == "open" and not str(arguments[0]).endswith((".py", ".pyc")):
                opened.append(arguments[0])
            if event.startswith(("socket.", "subprocess.", "os.system")):
                opened.append(event)
        class Watched(dict):
            def __getitem__(self, key): opened.append(key); return super().__getitem__(key)
            def get(self, key, default=None): opened.append(key); return super().get(key, default)
            def __contains__(self, key): opened.append(key); return super().__contains__(key)
        handlers = list(logging.root.handlers)
        sys.addaudithook(watch)
        os.environ = Watched(os.environ)
        import unirouter_integrations
        assert logging.root.handlers == handlers
        print(opened)
    """)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_a_vector_is_routed_without_scikit_learn() -> None:
    """Loading a router with its local embedder and routing with it never import scikit-learn."""
    result = run("""
        import subprocess, sys, tempfile
        folder = tempfile.mkdtemp()
        fit = '''
        import sys
        from unirouter_integrations import UniRouter
        prompts = ["add two numbers", "add three numbers", "write a poem", "write a song"]
        router = UniRouter.fit(prompts, n_clusters=2)
        router.register(router.profile("m", prompts, [1, 1, 0, 0], cost=1))
        router.save(sys.argv[1])
        '''
        import textwrap
        subprocess.run([sys.executable, "-c", textwrap.dedent(fit), folder], check=True)
        from unirouter_integrations import UniRouter
        router = UniRouter.load(folder)
        router.calibrate(["add"], budget=1)
        print(router.route("write a poem").model, "sklearn" in sys.modules)
    """)
    assert (result.stdout, result.stderr) == ("m False\n", "")


def test_the_langchain_face_needs_only_langchain_core() -> None:
    """The middleware is imported when it is asked for."""
    pytest.importorskip("langchain_core")
    result = run("""
        import sys
        import unirouter_integrations.langchain
        print(sorted({name.split(".")[0] for name in sys.modules} & {"langchain", "langgraph"}))
    """)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_the_langchain_face_without_langchain_says_what_to_install() -> None:
    """The remedy is in the message, and it is an ImportError."""
    result = run("""
        import sys
        sys.modules["langchain_core"] = None
        try:
            import unirouter_integrations.langchain
        except ImportError as error:
            print(type(error).__name__, error)
    """)
    assert result.stdout.startswith("MissingDependencyError unirouter_integrations.langchain needs pip install")


@pytest.mark.parametrize("face", ["langchain", "llamaindex", "serving", "testing"])
def test_importing_a_face_loads_no_offline_tools(face: str) -> None:
    """A user's call needs no profiling, evaluation, report or journal, and no database."""
    pytest.importorskip("llama_index.core" if face == "llamaindex" else "langchain_core")
    result = run(f"""
        import sys
        import unirouter_integrations.{face}
        ours = {{name.split(".")[1] for name in sys.modules if name.startswith("unirouter_integrations.")}}
        print(sorted(ours & {{"profiling", "evaluation", "cli", "compare", "ray", "opentelemetry", "watch"}}))
        print([name for name in sys.modules if name == "unirouter_integrations.profiling._journal"])
    """)
    assert (result.stdout, result.stderr) == ("[]\n[]\n", "")


def test_routing_and_serving_need_no_database() -> None:
    """SQLite is loaded by the store that needs it."""
    result = run("""
        import sys
        import unirouter_integrations.serving
        import unirouter_integrations.learning
        print("sqlite3" in sys.modules)
    """)
    assert (result.stdout, result.stderr) == ("False\n", "")
