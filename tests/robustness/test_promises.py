"""What SECURITY.md promises: each promise has a test; and no message shows what may be secret.

Marked values are given to every parameter of every public function, class and method, one at a time.
"""

import ast
import asyncio
import contextlib
import copy
import functools
import importlib.util
import inspect
import logging
import pickle
import pkgutil
import re
import subprocess
import sys
import textwrap
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import MockLLM
from llama_index.core.schema import QueryBundle
from pydantic import ValidationError

import unirouter_integrations
from unirouter_integrations import (
    LLMProfile,
    LocalEmbedder,
    MissingDependencyError,
    Outcomes,
    StorageError,
    UniRouter,
    UniRouterError,
    as_embedder,
    evaluation,
    grading,
    langchain,
    llamaindex,
    profiling,
    watch,
)
from unirouter_integrations._checks import shown, shown_path
from unirouter_integrations.core import ErrorPrior, Exclusion
from unirouter_integrations.grading import Answer, Example, Price, Usage
from unirouter_integrations.learning import Learning, MemoryStatistics, SQLiteStatistics
from unirouter_integrations.serving import ModelRegistry
from unirouter_integrations.testing import ChatFake

SECRET = "marked7secret"  # noqa: S105
TEXT = f"Please tell nobody that my name is {SECRET}."


class Client:
    """An object that shows an address with a password."""

    def __repr__(self) -> str:
        return f"Client(base_url='https://user:{SECRET}@host')"


class Silent:
    """An object that must not be shown at all."""

    def __repr__(self) -> str:
        raise RuntimeError(SECRET)


MARKED: dict[str, Any] = {
    "client": Client(),
    "silent object": Silent(),
    "text": TEXT,
    "key": f"sk-proj-{SECRET}0123456789abcdefghijklmnopqrstuvwxyz",
    "url": f"https://user:{SECRET}@host/v1;token={SECRET}?key={SECRET}#{SECRET}",
    "chained url": f"zip://{SECRET}::http://user:{SECRET}@host/a.zip",
    "bytes": TEXT.encode(),
    "clients": [Client(), Silent()],
    "texts": [TEXT, TEXT],
    "mapping": {TEXT: TEXT},
    "mapping of clients": {"mini": Client()},
    "records": [{TEXT: TEXT}],
    "records of clients": [dict.fromkeys(("prompt", "model", "score", "reference"), Client())],
    "decision of clients": dict.fromkeys(("model", "cluster", "clusters", "id"), Client()),
}
# Where a name is asked for, a text is one: of a model, a table, a file, a folder. And so are the keys of some mappings.
SHOWN = {
    **dict.fromkeys(("name", "path", "folder", "journal", "store"), ("text", "key")),
    **dict.fromkeys(("scores", "models", "prices", "capabilities", "costs"), ("mapping",)),
}

PROMPTS = [f"{kind} number {n}" for n in range(12) for kind in ("sum", "poem")]
SCORES = [float("poem" not in prompt) for prompt in PROMPTS]
VECTORS = np.tile(np.eye(2, dtype=np.float32), (12, 1))
TWO, HALVES = np.ones(2), np.full(2, 0.5)


@functools.cache
def fitted() -> UniRouter:
    router = UniRouter.fit(PROMPTS, n_clusters=2, scores={"mini": SCORES, "large": [1.0] * len(PROMPTS)})
    router.register(router.profile("mini", PROMPTS, SCORES, cost=1), router.profile("large", PROMPTS, SCORES, cost=2))
    return router


def router() -> UniRouter:
    return copy.deepcopy(fitted())


def embed(texts: list[str]) -> Any:
    return np.tile(TWO, (len(texts), 1))


def outcomes() -> Outcomes:
    scores = np.column_stack([SCORES, 1 - np.array(SCORES), np.ones(len(PROMPTS))] * 2)
    return Outcomes(tuple(PROMPTS), tuple("abcdef"), scores, np.tile(np.arange(1.0, 7.0), (len(PROMPTS), 1)))


@functools.cache
def evaluated() -> evaluation.Evaluation:
    return evaluation.evaluate(
        outcomes(), methods=["unirouter", "random", "best single model"], sizes=[5], n_trials=1, n_jobs=1
    )


class Nothing(BaseRetriever):
    """Finds nothing."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[Any]:
        return []


def ask(prompt: str) -> Answer:
    return Answer("sum", Usage(1, 1))


class Evaluator:
    """A LlamaIndex evaluator."""

    async def aevaluate(self, **_: Any) -> Any:
        raise NotImplementedError


def chat() -> langchain.ChatUniRouter:
    return langchain.ChatUniRouter(router=router(), models={"mini": ChatFake(), "large": ChatFake()})


def llm() -> llamaindex.UniRouterLLM:
    return llamaindex.UniRouterLLM(router=router(), models={"mini": MockLLM(), "large": MockLLM()})


def engine() -> llamaindex.UniRouterQueryEngine:
    models: Any = {"mini": MockLLM(), "large": MockLLM()}
    return llamaindex.UniRouterQueryEngine(router=router(), models=models, retriever=Nothing())


def frame() -> Any:
    import pyarrow as pa

    return pa.table({"prompt": ["a", "b"], "model": ["m", "m"], "score": [0.0, 1.0]})


def learning() -> Learning:
    return Learning(router().snapshot, lambda _: None)


# An object of each class with public methods.
OBJECTS: dict[str, Callable[[], Any]] = {
    "ChatUniRouter": chat,
    "DeferralCurve": lambda: evaluation.DeferralCurve(TWO, TWO, TWO, TWO),
    "ErrorPrior": lambda: ErrorPrior.uninformed(2),
    "Evaluation": evaluated,
    "LLMProfile": lambda: router().profiles["mini"],
    "Learning": learning,
    "LocalEmbedder": lambda: LocalEmbedder.fit(PROMPTS),
    "MemoryStatistics": MemoryStatistics,
    "ModelRegistry": ModelRegistry,
    "Outcomes": outcomes,
    "Pool": lambda: router().snapshot().pool,
    "Price": lambda: Price(1, 1),
    "PromptClusters": lambda: router().clusters,
    "RoutingDecision": lambda: router().route("sum"),
    "Score": lambda: grading.Score(1.0),
    "Scorer": lambda: grading.as_scorer("exact"),
    "Snapshot": lambda: router().snapshot(),
    "SQLiteStatistics": lambda: SQLiteStatistics("store.db"),
    "UniRouter": router,
    "UniRouterFeedback": lambda: langchain.UniRouterFeedback(router()),
    "UniRouterLLM": llm,
    "UniRouterQueryEngine": engine,
    "Watch": lambda: watch.Watch(UniRouter.load(saved("router")), "router", every=1000),
}
# What each parameter takes, unless it is optional ...
TAKEN: dict[str, Callable[[], Any]] = {
    "accuracy": lambda: 0.5,
    "after": router,
    "against": lambda: "random",
    "answer": lambda: ask("sum"),
    "batch": lambda: "1",
    "before": router,
    "centroids": lambda: np.eye(2, dtype=np.float32),
    "clusters": lambda: router().clusters,
    "column": lambda: 0,
    "cooldown": lambda: 1.0,
    "cost": lambda: 1.0,
    "costs": lambda: dict.fromkeys("abcdef", 1.0),
    "counts": lambda: TWO,
    "covariance": lambda: np.eye(2),
    "decision": lambda: router().route("sum").as_dict(),
    "embedder": lambda: embed,
    "errors": lambda: np.eye(2),
    "estimates": dict,
    "evaluations": lambda: [evaluated()],
    "evaluator": Evaluator,
    "example": lambda: Example("sum", "sum"),
    "examples": lambda: [Example(prompt, "sum") for prompt in PROMPTS],
    "exclusion": lambda: Exclusion("mini", "failed", "it failed"),
    "expected_errors": lambda: VECTORS,
    "familiarity": lambda: 1.0,
    "frame": frame,
    "function": lambda: grading.as_scorer("exact").function,
    "input": lambda: "sum",
    "inputs": lambda: ["sum"],
    "keys": lambda: ["mini"],
    "listener": lambda: print,
    "losses": lambda: HALVES,
    "max_error": lambda: 1.0,
    "mean": lambda: HALVES,
    "method": lambda: "unirouter",
    "model": lambda: ask,
    "models": lambda: {"mini": ChatFake(), "large": ChatFake()},
    "n": lambda: 2,
    "n_clusters": lambda: 2,
    "name": lambda: "mini",
    "names": lambda: ["mini"],
    "noted": lambda: router().route("sum").as_dict(),
    "observed": lambda: {"mini": np.ones((5, 2))},
    "other": router,
    "outcomes": outcomes,
    "output": lambda: 1.0,
    "folder": lambda: "there",
    "path": lambda: "there",
    "phi": lambda: VECTORS,
    "profile": lambda: router().profiles["mini"],
    "profiles": lambda: [router().profiles["mini"]],
    "prompt": lambda: "sum",
    "prompts": lambda: PROMPTS,
    "quality": lambda: 0.5,
    "records": lambda: [{"prompt": "sum", "model": "mini", "score": 1}],
    "retriever": Nothing,
    "router": router,
    "run_id": lambda: "12345678-1234-5678-1234-567812345678",
    "score": lambda: 1.0,
    "scores": lambda: SCORES,
    "scorer": lambda: "exact",
    "shares": lambda: HALVES,
    "size": lambda: 5,
    "snapshot": lambda: router().snapshot,
    "surcharges": lambda: {"mini": 1.0},
    "temperature": lambda: 1.0,
    "text": lambda: "sum",
    "texts": lambda: ["sum"],
    "update": lambda: lambda _: None,
    "usage": lambda: Usage(1, 1),
    "vectors": lambda: VECTORS,
}
# ... and where that depends on the function.
TAKEN_BY: dict[str, dict[str, Callable[[], Any]]] = {
    "ChatUniRouter.register": {"name": lambda: "mini", "model": ChatFake, "profile": TAKEN["profile"]},
    "DeferralCurve": {name: lambda: TWO for name in ("costs", "qualities", "model_costs", "model_qualities")},
    "DeferralCurve.trace": {"expected_errors": lambda: VECTORS, "scores": lambda: VECTORS, "costs": lambda: TWO},
    "Evaluation.gap_closed": {"low": lambda: "random", "high": lambda: "best single model"},
    "Example": {"prompt": lambda: "sum"},
    "LLMProfile.load": {"path": lambda: saved("profile")},
    "Learning": {"snapshot": lambda: router().snapshot, "update": lambda: lambda _: None},
    "LocalEmbedder": {"vocabulary": lambda: {"sum": 0}, "projection": lambda: np.ones((1, 2), np.float32)},
    "LocalEmbedder.load": {"path": lambda: saved("embedder")},
    "ModelRegistry.register": {"name": lambda: "mini", "model": ChatFake},
    "Outcomes": {
        name: lambda name=name: getattr(outcomes(), name)  # type: ignore[misc]
        for name in ("prompts", "models", "scores", "costs")
    },
    "Pool.expected": {"phi": lambda: np.eye(2)},
    "Pool.std_of": {"column": lambda: 0, "phi": lambda: HALVES, "familiarity": lambda: 1.0},
    "Pool.with_profiles": {"profiles": dict, "estimates": dict},
    "Price": {"input": lambda: 1.0, "output": lambda: 1.0},
    "PromptClusters.phi": {"vectors": lambda: np.ones((2, router().clusters.dimension), np.float32)},
    "PromptClusters.vectors": {"prompts": lambda: PROMPTS, "vectors": lambda: None},
    "RedisStatistics": {"url": lambda: "redis://localhost:1"},
    "RoutingDecision.identified": {"noted": lambda: "0123456789abcdef"},
    "RoutingDecision.keeping": {"model": lambda: "large"},
    "Scorer": {"name": lambda: "mine", "function": lambda: grading.as_scorer("exact").function},
    "Snapshot.reroute": {"decision": lambda: router().route("sum"), "exclusion": TAKEN["exclusion"]},
    "UniRouter.calibrate": {"prompts": lambda: PROMPTS, "budget": lambda: 1.5},
    "UniRouter.choose_validation": {"prompts": lambda: PROMPTS, "n": lambda: 2},
    "UniRouter.load": {"path": lambda: saved("router")},
    "UniRouter.profile": {
        "name": lambda: "mini",
        "prompts": lambda: PROMPTS,
        "scores": lambda: SCORES,
        "cost": lambda: 1.0,
    },
    "UniRouterLLM": {"router": router, "models": lambda: {"mini": MockLLM(), "large": MockLLM()}},
    "UniRouterLLM.register": {"name": lambda: "mini", "model": MockLLM, "profile": TAKEN["profile"]},
    "UniRouterQueryEngine.register": {"name": lambda: "mini", "model": MockLLM, "profile": TAKEN["profile"]},
    "UniRouterQueryEngine": {
        "router": router,
        "models": lambda: {"mini": MockLLM(), "large": MockLLM()},
        "retriever": Nothing,
    },
    "Watch": {"router": lambda: UniRouter.load(saved("router")), "path": lambda: "router"},
    "PromptClusters.memberships": {"prompts": lambda: PROMPTS},
    "export_onnx": {"sentence_transformer": lambda: "x", "folder": lambda: "there"},
    "as_embedder": {"x": lambda: embed},
    "as_outcomes": {"x": outcomes},
    "check_pictures": {"path": lambda: "picture.svg"},
    "estimate_cost": {
        "name": lambda: "mini",
        "model": lambda: ask,
        "examples": TAKEN["examples"],
        "router": router,
        "price": lambda: Price(1, 1),
    },
    "evaluate": {
        "outcomes": outcomes,
        "methods": lambda: ["random"],
        "sizes": lambda: [5],
        "n_trials": lambda: 1,
        "n_jobs": lambda: 1,
    },
    "judge": {"model": lambda: ask, "price": lambda: Price(1, 1)},
    "price_of": {"model": lambda: "openai:gpt-5-mini"},
    "profile_model": {
        "name": lambda: "mini",
        "model": lambda: ask,
        "examples": TAKEN["examples"],
        "router": router,
        "price": lambda: Price(1, 1),
    },
    "read_embedllm": {"path": lambda: table("prompt,prompt_id,model_name,label")},
    "read_examples": {"path": lambda: table("prompt,reference,model,score")},
    "read_outcomes": {"path": lambda: table("prompt,prompt_id,model,score")},
    "read_prompts": {"path": lambda: table("prompt,prompt_id,model,score")},
    "read_routerbench": {"path": lambda: table("prompt,id,mini,mini|total_cost")},
    "write_picture": {"evaluations": TAKEN["evaluations"], "path": lambda: "picture.svg"},
}
TAKEN_BY |= {
    "UniRouter.route": {"prompt": TAKEN["prompt"]},
    "UniRouter.aroute": {"prompt": TAKEN["prompt"]},
    "Snapshot.route": {"prompt": TAKEN["prompt"]},
    "Snapshot.aroute": {"prompt": TAKEN["prompt"]},
    "aprofile_model": TAKEN_BY["profile_model"],
    "diff": {"before": router, "after": router, "prompts": TAKEN["prompts"]},
}
for _name in ("route_many", "aroute_many", "expected_errors"):
    TAKEN_BY[f"UniRouter.{_name}"] = TAKEN_BY[f"Snapshot.{_name}"] = {"prompts": TAKEN["prompts"]}


def table(header: str) -> str:
    """The name of a file with a table in it."""
    Path("table.csv").write_text(f"{header}\na,1,0.5,0.5\nb,2,0.5,0.5\n")
    return "table.csv"


MADE_BY_USERS = {"Example", "OnnxEncoder", "RedisStatistics", "UniRouterMiddleware", "UniRouterSelector"}
HANDED_OUT = {"Evaluation", "Pool", "PromptClusters", "RoutingDecision", "Score", "Snapshot"}
# Methods that frameworks call with what users say, and those that need a server.
OTHERS = re.compile(
    r"ChatUniRouter\.(?!register|unregister)|UniRouterLLM\.(?!register|unregister)|UniRouterFeedback\.on_|RedisStatistics\.|OnnxEncoder\."
    r"|UniRouterQueryEngine\.a?(retrieve|synthesize)"
)


def functions() -> dict[str, Callable[[], Callable[..., Any]]]:
    """Each public function, class and method of the package by its name: what makes it, anew for each call."""
    doors = [
        module.name
        for module in pkgutil.walk_packages(unirouter_integrations.__path__, "unirouter_integrations.")
        if not any(part.startswith("_") for part in module.name.split("."))
        and not module.name.endswith((".cli", ".ray", ".testing", ".errors"))
    ]
    modules = map(importlib.import_module, ["unirouter_integrations", *doors])
    public = {name: getattr(module, name) for module in modules for name in module.__all__}
    public["UniRouterMiddleware"] = langchain.UniRouterMiddleware  # imported on request, so not in `__all__`
    found: dict[str, Callable[[], Callable[..., Any]]] = {}
    for name, value in public.items():
        if inspect.isfunction(value) or name in MADE_BY_USERS | OBJECTS.keys() - HANDED_OUT:
            found[name] = partial(identity, value)
        if name in OBJECTS:
            for method, member in vars(value).items():
                owner = partial(identity, value) if isinstance(member, classmethod) else OBJECTS[name]
                if not method.startswith("_") and (isinstance(member, classmethod) or inspect.isfunction(member)):
                    found[f"{name}.{method}"] = partial(member_of, owner, method)
    return {name: make for name, make in found.items() if not OTHERS.match(name)}


def identity(value: Any) -> Any:
    return value


def member_of(owner: Callable[[], Any], name: str) -> Any:
    return getattr(owner(), name)


FUNCTIONS = functions()


def saved(name: str) -> str:
    """The name of a folder with something saved in it."""
    made: Any = {"router": router, "profile": OBJECTS["LLMProfile"], "embedder": OBJECTS["LocalEmbedder"]}[name]
    if not Path(name).exists():
        made().save(name)
    return name


def given(name: str, signature: inspect.Signature) -> dict[str, Any]:
    """Arguments that a function takes: those that it needs, and those that are named for it."""
    needed = (
        {
            parameter.name: TAKEN[parameter.name]
            for parameter in signature.parameters.values()
            if parameter.default is parameter.empty and not str(parameter).startswith("**") and parameter.name in TAKEN
        }
        if name not in TAKEN_BY
        else {}
    )
    return {key: make() for key, make in (needed | TAKEN_BY.get(name, {})).items()}


def use(function: Callable[..., Any], signature: inspect.Signature, arguments: dict[str, Any]) -> None:
    """Call a function, and use up what it returns."""
    positional, named = [], dict(arguments)
    for parameter in signature.parameters.values():
        if parameter.name in named and parameter.kind in {parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL}:
            value = named.pop(parameter.name)
            positional += value if parameter.kind is parameter.VAR_POSITIONAL and isinstance(value, list) else [value]
    result = function(*positional, **named)
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    if isinstance(result, AsyncIterator):
        asyncio.run(exhaust(result))
    elif isinstance(result, Iterator):
        list(result)
    elif isinstance(result, contextlib.AbstractContextManager) and not isinstance(result, UniRouter):
        with result:
            pass


async def exhaust(parts: AsyncIterator[Any]) -> None:
    async for _ in parts:
        pass


def is_ours(error: BaseException) -> bool:
    """Whether an error is raised by this package, and not by a framework or a library that it calls."""
    if isinstance(error, UniRouterError | ValidationError):
        return True
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].startswith((*unirouter_integrations.__path__, __file__))


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, and ask no hub for models with the marked names."""
    monkeypatch.chdir(tmp_path)
    if importlib.util.find_spec("huggingface_hub"):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """What this package has logged. Libraries log the names that are given to them."""
    ours = [record for record in caplog.records if record.name.startswith("unirouter_integrations")]
    return "\n".join(map(caplog.handler.format, ours))


DRAWING = {"report", "write_picture", "write_report"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in DRAWING else name for name in FUNCTIONS]
)
def test_no_message_shows_what_may_be_secret(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the error, nor its causes, nor a log record, whichever parameter is given something else."""
    caplog.set_level(logging.DEBUG, "unirouter_integrations")
    signature = inspect.signature(FUNCTIONS[name]())
    try:
        use(FUNCTIONS[name](), signature, given(name, signature))
    except MissingDependencyError as error:
        pytest.skip(str(error))
    except (OSError, StorageError):
        assert name in {"OnnxEncoder", "export_onnx"}  # there is no model to load or to export
    shown = []
    of_framework = {
        field for base in getattr(FUNCTIONS[name](), "__bases__", ()) for field in getattr(base, "model_fields", ())
    }
    for parameter in signature.parameters.values():
        if parameter.name in of_framework:
            continue
        for kind, value in MARKED.items():
            if kind in SHOWN.get(parameter.name, ()) or parameter.kind is parameter.VAR_KEYWORD:
                continue
            try:
                use(FUNCTIONS[name](), signature, {**given(name, signature), parameter.name: value})
            except Exception as error:  # noqa: BLE001
                if is_ours(error) and SECRET in "".join(traceback.format_exception(error)) + repr(error):
                    shown.append((parameter.name, kind, repr(error)[:300]))
            if SECRET in logged(caplog):
                shown.append((parameter.name, kind, logged(caplog)))
            caplog.clear()
    assert shown == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "None"),
        (True, "True"),
        (-3, "-3"),
        (0.5, "0.5"),
        (float("nan"), "nan"),
        (np.float32(0.5), "0.5"),
        (np.int64(3), "3"),
        (10**18, "1e+18"),
        (10**400, "<int>"),
        ("", "''"),
        ("gpt-5-mini", "'gpt-5-mini'"),
        ("openai:gpt-5-mini-2025-08-07", "'openai:gpt-5-mini-2025-08-07'"),
        ("sentence-transformers/all-MiniLM-L6-v2", "'sentence-transformers/all-MiniLM-L6-v2'"),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "'us.anthropic.claude-sonnet-4-5-20250929-v1:0'"),
        ("two words", "<text of 9 characters>"),
        ("a\nb", "<text of 3 characters>"),
        ("\x1b[31m", "<text of 5 characters>"),
        ("\ud800", "<text of 1 characters>"),
        ("请告诉我我的名字", "<text of 8 characters>"),
        ("x" * 2000, "<text of 2,000 characters>"),
        ("sk-proj-abcdefghijklmnop0123", "<text of 28 characters>"),
        ("AIzaSyA1234567890abcdefghijklmnopqrstu", "<text of 38 characters>"),
        ("0123456789abcdef0123456789abcdef", "<text of 32 characters>"),
        ("123e4567-e89b-12d3-a456-426614174000", "<text of 36 characters>"),
        ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "<text of 40 characters>"),
        ("https://user:pass@host:8000/v1?key=k", "'https://host:8000/...'"),
        ("https://user:pa/ss@host/v1", "'https://...'"),
        ("https://host/v1?mail=a@b", "'https://...'"),
        ("https://host;token=k", "'https://host/...'"),
        ("https://host#k", "'https://host/...'"),
        ("zip://k::simplecache://k::s3://bucket/k", "'zip://...::simplecache://...::s3://bucket/...'"),
        ("github://org:repo@main/k", "'github://main/...'"),
        ("tell nobody: https://host", "<text of 25 characters>"),
        (b"bytes", "<bytes>"),
        ([1], "<list>"),
        (Client(), "<Client>"),
        (Silent(), "<Silent>"),
    ],
)
def test_what_is_shown_of_a_value(value: object, expected: str) -> None:
    """Numbers and names; of a URL the scheme and the host; of anything else what it is."""
    assert shown(value) == expected


@pytest.mark.parametrize("piece", ["://", "a::", "a@", "https://", "a-", "0x", "zip://::", "\ud800"])
def test_a_text_of_megabytes_is_shown_in_short(piece: str) -> None:
    """No pattern backtracks, which at this length would take for ever."""
    for begin in ("", "https://"):
        text = begin + piece * (2**21 // len(piece))
        assert shown(text) in {f"<text of {len(text):,} characters>", "'https://...'"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/me/my router", "'/home/me/my router'"),
        (Path("router"), "'router'"),
        ("a\n\x1b[31m", r"'a\n\x1b[31m'"),
        ("s3://user:pass@bucket/k", "'s3://bucket/...'"),
        (Path("s3://user:pass@bucket/k"), "'s3://bucket/...'"),
        ("memory://router?key=k", "'memory://router/...'"),
        ("two words://k", "'a URL'"),
    ],
)
def test_what_is_shown_of_a_path(path: str | Path, expected: str) -> None:
    """All of it, on one line; of a URL the scheme and the host."""
    assert shown_path(path) == expected


FORGED = "mini\nWARNING:root:all models are down"


@pytest.mark.parametrize("sign", ["\n", "\r", "\x1b", "\x7f", "\x9b", "\u2028", "\u202e", "\ud800"])
def test_a_name_is_one_line(sign: str, caplog: pytest.LogCaptureFixture) -> None:
    """So neither decisions nor log records can be forged by it."""
    name, models = f"mini{sign}x", {"mini": ChatFake(), f"mini{sign}x": ChatFake()}
    for make in (
        lambda: LLMProfile(name, TWO, HALVES, 1.0),
        lambda: router().profile(name, PROMPTS, SCORES, cost=1),
        lambda: UniRouter.fit(PROMPTS, n_clusters=2, scores={name: SCORES}),
        lambda: Outcomes(("p",), (name,), np.ones((1, 1)), np.ones((1, 1))),
        lambda: Outcomes.from_records([{"prompt": "p", "model": name, "score": 1}]),
        lambda: ModelRegistry(models),
        lambda: ModelRegistry().register(name, ChatFake()),
        lambda: langchain.ChatUniRouter(router=router(), models=models),
        lambda: langchain.UniRouterMiddleware(router(), models),
        lambda: llamaindex.UniRouterLLM(router=router(), models={name: MockLLM()}),
        lambda: router().route("sum", among=[name]),
        lambda: profiling.profile_model(name, ask, [Example("sum", "sum")], router(), price=Price(0, 0)),
    ):
        with pytest.raises((UniRouterError, ValidationError)) as caught:
            make()
        assert sign not in str(caught.value).replace("\n", "", 2 * isinstance(caught.value, ValidationError))
    assert sign not in caplog.text


def test_log_records_are_one_line(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Those of decisions, and of a folder with a name like a record."""
    caplog.set_level(logging.DEBUG, "unirouter_integrations")
    used = router()
    used.save(folder := tmp_path / FORGED)
    with watch.Watch(UniRouter.load(folder), folder, every=1000) as watching:
        (folder / "router.json").unlink()
        watching._try_to_check()
    used.route(FORGED)
    assert len(caplog.messages) == 2
    assert not any("\n" in message for message in caplog.messages)


def test_no_source_file_unpickles_or_evaluates() -> None:
    """Or runs a program. Two modules import by a name: the command line one that it is given, a door one of its own."""
    forbidden = re.compile(
        r"\b(pickle|marshal|shelve|subprocess|eval|exec|compile|__import__|import_module|system|popen)\b"
    )
    for file in Path(unirouter_integrations.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [alias.name for alias in getattr(node, "names", ())]
                if isinstance(node, ast.Import | ast.ImportFrom)
                else []
            )
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names.append(node.func.id)
            assert not any(map(forbidden.fullmatch, names)), f"{file}: {names}"
            assert "pkgutil" not in names or file.name == "_profiling.py"


def test_an_embedder_keeps_no_text() -> None:
    """Of the last texts it keeps digests, and their vectors."""
    embedder: Any = as_embedder(embed)
    embedder.embed([TEXT])
    kept = embedder._cache._vectors
    assert len(kept) == 1
    assert SECRET not in repr(kept)
    assert SECRET.encode() not in pickle.dumps(embedder._cache._vectors)


def test_nothing_is_sent(tmp_path: Path) -> None:
    """Fitting, registering, routing, calling, learning, saving and loading open no connection."""
    script = """
        import sys
        def watch(event, arguments):
            if event.startswith(("socket.connect", "socket.sendto", "socket.getaddrinfo", "urllib.")):
                raise SystemExit(f"{event} {arguments}")
        sys.addaudithook(watch)
        from unirouter_integrations import UniRouter
        from unirouter_integrations.langchain import ChatUniRouter
        from unirouter_integrations.testing import ChatFake
        prompts = [f"{kind} number {n}" for n in range(12) for kind in ("sum", "poem")]
        router = UniRouter.fit(prompts, n_clusters=2, scores={"mini": [1.0] * 24})
        router.register(router.profile("mini", prompts, [1.0] * 24, cost=1))
        with router.learn("learned.db"):
            answer = ChatUniRouter(router=router, models={"mini": ChatFake()}).invoke("sum")
            assert router.observe(answer.response_metadata["unirouter"], 1)
        router.save("router")
        print(UniRouter.load("router").route("sum").model)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("mini\n", "")


# How each sentence of SECURITY.md begins, and the tests of those that are promises.
PROMISES: dict[str, tuple[str, ...]] = {
    "Please do not open": (),
    "Report it privately": (),
    "Give the version": (),
    "You will have an answer": (),
    "We mend what we can confirm": (),
    "Only the latest release": (),
    "Its changes are listed": ("tests/test_packaging.py::test_the_version_has_an_entry_in_the_changelog",),
    "Any text is routed": (
        "tests/robustness/test_bad_input.py::test_any_conversation_has_an_answer",
        "tests/robustness/test_bad_input.py::test_a_strange_prompt_is_judged_by_what_can_be_read_of_it",
        "tests/robustness/test_bad_input.py::test_any_text_is_routed_through_any_embedder",
    ),
    "A text that cannot be judged": (
        "tests/robustness/test_bad_input.py::test_a_prompt_that_says_nothing_goes_to_the_best_model_in_the_mean",
    ),
    "Options choose among": (),
    "So does an answer in the history": (),
    "Where clients write either": (
        "tests/langchain/test_overrides.py::test_no_option_of_a_call_is_taken",
        "tests/langchain/test_overrides.py::test_no_option_of_a_context_is_taken",
        "tests/langchain/test_overrides.py::test_a_forged_history_forces_no_model",
    ),
    "A name that is empty": (
        "tests/core/test_profiles.py::test_profiles_that_make_no_sense_are_refused",
        "tests/robustness/test_promises.py::test_a_name_is_one_line",
        "tests/robustness/test_loaders.py::test_names_that_cannot_be_printed_do_not_load",
    ),
    "So a name cannot look like a log record": (
        "tests/robustness/test_promises.py::test_log_records_are_one_line",
        "tests/test_cli.py::test_nothing_gives_orders_to_the_terminal",
    ),
    "A wrong number, shape or type": (
        "tests/robustness/test_bad_input.py::test_a_service_that_replies_something_else_is_named",
    ),
    "Loading parses JSON": ("tests/robustness/test_loaders.py::test_nothing_in_a_file_is_executed",),
    "Nothing in it can make loading": ("tests/robustness/test_loaders.py::test_nothing_in_a_file_is_executed",),
    "At most 16 MiB of JSON": (
        "tests/robustness/test_loaders.py::test_a_file_that_is_too_large_is_refused_before_it_is_read",
        "tests/robustness/test_loaders.py::test_a_stream_without_an_end_is_read_up_to_the_limit",
        "tests/robustness/test_loaders.py::test_a_zip_bomb_is_refused",
        "tests/robustness/test_loaders.py::test_only_regular_files_are_read",
        "tests/robustness/test_loaders.py::test_a_prior_that_takes_long_to_compute_with_is_refused",
    ),
    "Content that does not fit, or that claims": (
        "tests/robustness/test_loaders.py::test_a_document_with_anything_anywhere_is_read_whole_or_refused",
        "tests/robustness/test_loaders.py::test_any_array_anywhere_is_read_whole_or_refused",
        "tests/robustness/test_loaders.py::test_a_lying_header_is_refused",
        "tests/robustness/test_loaders.py::test_memory_stays_bounded",
    ),
    "But a router made by someone else": (),
    "Reading parses text": (
        "tests/robustness/test_loaders.py::test_only_regular_files_are_read",
        "tests/robustness/test_loaders.py::test_nothing_in_a_file_is_executed",
    ),
    "Content that does not fit, a line": (
        "tests/robustness/test_loaders.py::test_a_damaged_file_is_read_whole_or_refused",
        "tests/robustness/test_loaders.py::test_a_line_without_an_end_is_refused",
        "tests/robustness/test_loaders.py::test_a_table_with_more_rows_than_fit_in_memory_is_refused",
    ),
    "Pickles are refused": ("tests/data/test_outcomes.py::test_files_that_are_damaged_are_refused",),
    "Parquet is compressed": ("tests/robustness/test_loaders.py::test_a_parquet_bomb_is_refused",),
    "A score that is not between": (
        "tests/learning/test_observing.py::test_a_score_that_is_none_is_refused",
        "tests/learning/test_observing.py::test_a_cost_that_is_none_is_refused",
    ),
    "A worker counts a decision once": (
        "tests/learning/test_observing.py::test_a_decision_counts_once",
        "tests/learning/test_observing.py::test_only_the_last_decisions_are_remembered",
        "tests/learning/test_workers.py::test_each_worker_counts_a_decision",
    ),
    "With `learn(key=...)`": ("tests/learning/test_observing.py::test_with_a_key_only_what_is_signed_is_counted",),
    "Who may score decisions": (),
    "A value that observations cannot": (
        "tests/learning/test_workers.py::test_a_wrong_value_harms_only_its_own_key",
        "tests/learning/test_workers.py::test_a_value_of_another_type_harms_only_its_own_key",
    ),
    "Counts are capped": ("tests/learning/test_workers.py::test_no_value_counts_more_than_its_half_life_allows",),
    "But who can write to the store": (),
    "It is a database that": (),
    "A damaged one raises": ("tests/robustness/test_journals.py::test_a_damaged_journal_is_read_or_refused",),
    "Keep it where only you": (),
    "The answer stands between tags": (
        "tests/grading/test_judges.py::test_the_seal_is_drawn_for_each_call",
        "tests/grading/test_judges.py::test_an_answer_that_orders_the_judge_about_changes_nothing",
    ),
    "Only the whole last line": ("tests/grading/test_judges.py::test_a_verdict_is_its_whole_last_line",),
    "A model that obeys the answer": (
        "tests/grading/test_judges.py::test_a_naive_judge_shows_that_the_attacks_are_real",
    ),
    "A save follows no link": (
        "tests/robustness/test_writers.py::test_a_link_is_replaced_and_never_followed",
        "tests/robustness/test_writers.py::test_nobody_can_lay_a_link_where_a_temporary_file_will_be",
    ),
    "`--model py:module:attribute`": (
        "tests/test_cli.py::test_no_file_of_the_working_folder_is_run_unless_it_is_named_as_a_python_object",
    ),
    "Nothing else that is named in an option": (
        "tests/test_cli.py::test_no_file_of_the_working_folder_is_run_unless_it_is_named_as_a_python_object",
    ),
    "They are your code": (),
    "So does everything that is loaded by a name": (),
    "A text that cannot be a name": (
        "tests/robustness/test_bad_input.py::test_a_text_that_cannot_be_the_name_of_an_embedder_is_not_looked_up",
    ),
    "A name in a saved router loads nothing": (
        "tests/core/test_storage.py::test_an_embedder_that_is_not_saved_must_be_given",
        "tests/robustness/test_loaders.py::test_nothing_in_a_file_is_executed",
    ),
    "Nothing in this package reads or writes": (
        "tests/robustness/test_promises.py::test_no_source_file_unpickles_or_evaluates",
        "tests/robustness/test_loaders.py::test_nothing_in_a_file_is_executed",
    ),
    "If you apply Python's own": (),
    "A save that is killed": (
        "tests/robustness/test_killed.py::test_a_save_killed_at_any_step_leaves_a_whole_router",
        "tests/robustness/test_writers.py::test_a_full_disk_is_a_storage_error",
    ),
    "The next save removes": ("tests/robustness/test_writers.py::test_what_killed_writers_have_left_is_removed",),
    "Processes that save to the same": (
        "tests/robustness/test_writers.py::test_two_writers_at_once",
        "tests/robustness/test_writers.py::test_writers_wait_for_each_other",
        "tests/robustness/test_writers.py::test_a_file_system_without_locks_is_written_to_all_the_same",
    ),
    "**A saved router** holds": (
        "tests/core/test_storage.py::test_the_files_are_json_and_safetensors_and_hold_no_prompt",
        "tests/robustness/test_secrets.py::test_the_address_of_an_embedding_service_is_not_saved",
    ),
    "The local embedder is saved whole": ("tests/core/test_storage.py::test_a_router_comes_back_as_it_was",),
    "No prompt is saved.": ("tests/core/test_storage.py::test_the_files_are_json_and_safetensors_and_hold_no_prompt",),
    "A centroid is the mean": (),
    "From 20 distinct prompts on": (
        "tests/core/test_embedding.py::test_the_local_embedder_keeps_no_word_of_a_single_prompt",
    ),
    "So **a word that several": (),
    "**A journal** holds": ("tests/robustness/test_secrets.py::test_a_journal_holds_answers_only_if_it_shall",),
    "Prompts, references, names": (
        "tests/profiling/test_journal.py::test_the_journal_holds_no_prompt_and_no_reference",
    ),
    "Someone who guesses a prompt": (),
    "No key of a provider is stored": (
        "tests/robustness/test_secrets.py::test_a_journal_holds_answers_only_if_it_shall",
    ),
    "**A store for learning": ("tests/learning/test_workers.py::test_no_prompt_is_stored",),
    "**In memory**, every embedder": (
        "tests/core/test_embedding.py::test_the_texts_asked_for_last_are_remembered",
        "tests/robustness/test_promises.py::test_an_embedder_keeps_no_text",
    ),
    "Log records, representations": (
        "tests/robustness/test_promises.py::test_no_message_shows_what_may_be_secret",
        "tests/robustness/test_secrets.py::test_a_run_leaves_no_secret",
        "tests/robustness/test_secrets.py::test_what_is_refused_is_not_shown",
        "tests/learning/test_observing.py::test_what_is_refused_is_not_shown",
        "tests/robustness/test_secrets.py::test_errors_of_profiling_hold_no_secret",
    ),
    "Of a URL, messages show": (
        "tests/robustness/test_promises.py::test_what_is_shown_of_a_path",
        "tests/robustness/test_secrets.py::test_the_address_of_a_saved_router_is_not_shown",
    ),
    "They do hold names": (),
    "A value that is refused is shown": ("tests/robustness/test_promises.py::test_what_is_shown_of_a_value",),
    "So a prompt of a single word": (),
    "Of anything else the type": ("tests/robustness/test_promises.py::test_what_is_shown_of_a_value",),
    "The command line escapes": ("tests/test_cli.py::test_nothing_gives_orders_to_the_terminal",),
    "Some output is not ours": (),
    "Errors of chat models": ("tests/robustness/test_bad_input.py::test_what_a_service_raises_comes_out_as_it_was",),
    "They may quote what": (),
    "Clients of providers have": (),
    "A tracer (such as": (),
    "This package sends nothing": ("tests/robustness/test_promises.py::test_nothing_is_sent",),
    "Data leaves only": (),
    "The package does not filter": (),
    "A person who writes prompts": (),
    "Pass `among`": (),
    "A router judges a prompt": (),
    "Such prompts are as familiar": (
        "tests/robustness/test_rerouting.py::test_a_few_words_choose_the_model_and_are_familiar",
    ),
    "Words that are found by search": (),
    "On three sets of recorded outcomes": (),
    "The share of the weakest model": (),
    "Hard K-means and K-NN": (),
    "Four defences were tried": (),
    "They changed the accuracy": (),
    "So none is built in": (),
    "The figures are in": (),
    "What holds is what": (),
    "No words reach a model": (
        "tests/robustness/test_rerouting.py::test_no_words_reach_a_model_that_is_not_listed_or_that_another_one_beats_everywhere",
    ),
    "None make the router prefer": (
        "tests/core/test_laws.py::test_a_dominated_model_is_never_chosen",
        "tests/robustness/test_rerouting.py::test_no_words_reach_a_model_that_is_not_listed_or_that_another_one_beats_everywhere",
    ),
    "Limit what each user": (),
    "The decision in the metadata": (),
    "In the same measurement": (),
    "It cost users of mixed": (),
    "Watch the shares": ("tests/core/test_seen.py::test_stats_are_of_the_last_decisions",),
    "Each sentence above that is a promise": (
        "tests/robustness/test_promises.py::test_each_sentence_is_known_and_each_promise_has_its_test",
    ),
}
ROOT = Path(__file__).parents[2]


def sentences() -> list[str]:
    """The sentences of SECURITY.md; of its table, those of the column that says what can happen."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    text = re.sub(r"^\|.*\| (.*) \|.*\|$", r"\n\1\n", text, flags=re.MULTILINE)  # rows of the table
    text = re.sub(r"^#.*$|^Tests: .*$|^- ", "\n", text, flags=re.MULTILINE)
    blocks = [" ".join(block.split()) for block in text.split("\n\n")]
    found = [sentence for block in blocks for sentence in re.split(r"(?<=[.]) (?=[A-Z`*])", block)]
    return [sentence for sentence in found if sentence not in {"", "---", "what can happen"}]


def test_each_sentence_is_known_and_each_promise_has_its_test() -> None:
    """A sentence that is new or begins otherwise has to be looked at here, and so has a test that is gone."""
    unknown = [each for each in sentences() if sum(map(each.startswith, PROMISES)) != 1]
    assert unknown == []
    assert [begin for begin in PROMISES if sum(each.startswith(begin) for each in sentences()) != 1] == []
    for test in {test for tests in PROMISES.values() for test in tests}:
        file, _, name = test.partition("::")
        assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test


def test_the_document_names_the_files_of_these_tests() -> None:
    """Beside each row of its table, and below each section."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line[2:-2].split(" | ")[-2:] for line in text.splitlines() if line.startswith("| ")][2:]
    sections = [part.split("\nTests: ") for part in re.sub(r"^\|.*$", "", text, flags=re.MULTILINE).split("\n## ")]
    for promises, *named in rows + sections:
        words = " ".join(promises.split())
        files = {test.partition("::")[0] for begin, tests in PROMISES.items() if begin in words for test in tests}
        expected = ", ".join(f"`{file.removeprefix('tests/').removesuffix('.py')}`" for file in sorted(files))
        assert "".join(named).strip() == expected
