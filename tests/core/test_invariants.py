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
SOURCES = sorted(PACKAGE.rglob("*.py"))

CORE = (
    "errors",
    "storage",
    "sharing",
    "onnx",
    "embedding",
    "learned_map",
    "clusters",
    "profiles",
    "decision",
    "repeating",
    "statistics_store",
    "learning",
    "router",
    "watching",
    "datasets",
    "checks",
    "fallback",
    "telemetry",
)
LAYERS = (*CORE, "evaluation", "profiling", "escalation", "langchain", "llamaindex", "testing", "cli")
FRAMEWORKS = {"langchain", "langchain_core", "langgraph", "llama_index", "torch", "sentence_transformers"}


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


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_only(source: Path) -> None:
    """A layer knows those below it; the two frameworks' faces do not know each other."""
    if layer(source) == "__init__":
        return
    assert layer(source) in LAYERS, "name the layer of a new module"
    ours = {
        name.split(".")[1] for name in imported(source, everywhere=True) if name.startswith("unirouter_integrations.")
    }
    allowed = set(LAYERS[: LAYERS.index(layer(source)) + (layer(source) not in CORE)])
    assert ours <= (allowed - {"langchain"} if layer(source) == "llamaindex" else allowed)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_faces_import_a_framework(source: Path) -> None:
    """The core imports none at module level, nor scikit-learn, nor anything that can read or write a pickle."""
    top = {name.split(".")[0] for name in imported(source, everywhere=False)}
    if layer(source) not in {"langchain", "llamaindex", "testing"}:
        assert not top & FRAMEWORKS
    assert "sklearn" not in top
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "importlib", "runpy"}
    if source.name == "protocol.py":
        banned -= {"joblib"}  # which runs trials in processes of its own; it reads and writes no file here
        assert not re.search(r"joblib\.(load|dump)|import (load|dump|Memory)", source.read_text())
    assert not {name.split(".")[0] for name in imported(source, everywhere=True)} & banned
    assert not re.search(r"allow_pickle|\beval\(|\bexec\(|__import__|np\.load\b|np\.save\b", source.read_text())


def test_the_argmin_is_written_once() -> None:
    """One place decides."""
    found = [source.name for source in SOURCES for _ in re.findall(r"argmin\(", source.read_text())]
    assert found == ["decision.py"]


def test_the_public_names_are_sorted_and_exist() -> None:
    """What `__all__` lists is there, and what is there without an underscore is listed or a module."""
    names = unirouter_integrations.__all__
    assert list(names) == sorted(names)
    public = {
        name
        for name, value in vars(unirouter_integrations).items()
        if getattr(value, "__module__", "").startswith("unirouter_integrations") and not name.startswith("_")
    }
    assert public <= set(names)
    assert all(hasattr(unirouter_integrations, name) for name in names)


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
        router.register(router.profile("m", prompts, [0, 0, 1, 1], cost=1))
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
