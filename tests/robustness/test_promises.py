"""What SECURITY.md promises: for each sentence there is a test; and no message shows what may be secret.

Marked values are given to every parameter of every public function, class and method, one at a time.
"""

import asyncio
import contextlib
import copy
import functools
import importlib
import inspect
import logging
import pkgutil
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from langchain_core.messages import HumanMessage
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.schema import QueryBundle

import unirouter_integrations
from unirouter_integrations import LLMProfile, LocalEmbedder, Outcomes, UniRouter, as_embedder, compare, data, evaluation
from unirouter_integrations import grading, langchain, llamaindex, profiling, watch
from unirouter_integrations.core import ErrorPrior, Exclusion, PromptClusters, SoftmaxGate
from unirouter_integrations.embedding import OnnxEncoder, export_onnx
from unirouter_integrations.grading import Answer, Example, Price, Scorer, Usage
from unirouter_integrations.learning import Learning, MemoryStatistics, RedisStatistics, SQLiteStatistics
from unirouter_integrations.serving import Health, ModelRegistry
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
}
# Where a name is asked for, a text is the name: of a model, a table, a file, a folder.
NAMED = {"name", "path", "folder", "journal", "store"}
SHOWN_AS_NAMES = {"text", "key"}

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
    costs = np.tile([1.0, 2.0, 3.0], (len(PROMPTS), 1))
    return Outcomes(tuple(PROMPTS), ("a", "b", "c"), np.tile(SCORES, (3, 1)).T, costs)


@functools.cache
def evaluated() -> evaluation.Evaluation:
    return evaluation.evaluate(outcomes(), methods=["random", "unirouter"], sizes=[5], n_trials=1, n_jobs=1)


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
    "Health": Health,
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
    "SoftmaxGate": lambda: SoftmaxGate.from_centroids(np.eye(2, dtype=np.float32), 1.0),
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
    "costs": lambda: {"a": 1, "b": 2, "c": 3},
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
    "as_embedder": {"x": lambda: embed},
    "as_outcomes": {"x": outcomes},
}


def functions() -> dict[str, Callable[[], Callable[..., Any]]]:
    """Each public function, class and method of the package by its name: what makes it, anew for each call."""
    found: dict[str, Callable[[], Callable[..., Any]]] = {}
    doors = [
        module.name
        for module in pkgutil.walk_packages(unirouter_integrations.__path__, "unirouter_integrations.")
        if not any(part.startswith("_") for part in module.name.split("."))
        and not module.name.endswith((".cli", ".ray", ".testing", ".errors"))
    ]
    for module in map(importlib.import_module, ["unirouter_integrations", *doors]):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                found[name] = lambda value=value: value  # type: ignore[misc]
            if not inspect.isclass(value) or not value.__module__.startswith("unirouter_integrations."):
                continue
            if issubclass(value, Exception) or getattr(value, "_is_protocol", False):
                continue
            if "__init__" in vars(value) or hasattr(value, "__post_init__") or hasattr(value, "model_fields"):
                found[name] = lambda value=value: value  # type: ignore[misc]
            for method, member in vars(value).items():
                if isinstance(member, classmethod):
                    found[f"{name}.{method}"] = lambda value=value, method=method: getattr(value, method)  # type: ignore[misc]
                elif inspect.isfunction(member) and not method.startswith("_"):
                    found[f"{name}.{method}"] = lambda name=name, method=method: getattr(OBJECTS[name](), method)  # type: ignore[misc]
    return found


FUNCTIONS = functions()


def saved(name: str) -> str:
    """The name of a folder with something saved in it."""
    if not Path(name).exists():
        {"router": router(), "profile": router().profiles["mini"], "embedder": LocalEmbedder.fit(PROMPTS)}[name].save(name)
    return name


def given(name: str, signature: inspect.Signature) -> dict[str, Any]:
    """Arguments that a function takes: those that it needs, and those that are named for it."""
    needed = {
        parameter.name: TAKEN[parameter.name]
        for parameter in signature.parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    } if name not in TAKEN_BY else {}
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
        result = asyncio.run(with_timeout(result))
    if isinstance(result, AsyncIterator):
        asyncio.run(exhaust(result))
    elif isinstance(result, Iterator):
        list(result)
    elif isinstance(result, contextlib.AbstractContextManager) and not isinstance(result, UniRouter):
        with result:
            pass


async def with_timeout(result: Any) -> Any:
    return await result


async def exhaust(parts: AsyncIterator[Any]) -> None:
    async for _ in parts:
        pass


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, without a key."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_message_shows_what_may_be_secret(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the error, nor its causes, nor a log record, whichever parameter is given something else."""
    caplog.set_level(logging.DEBUG, "unirouter_integrations")
    signature = inspect.signature(FUNCTIONS[name]())
    use(FUNCTIONS[name](), signature, given(name, signature))
    shown = []
    for parameter in signature.parameters.values():
        for kind, value in MARKED.items():
            if parameter.name in NAMED and kind in SHOWN_AS_NAMES or parameter.kind is parameter.VAR_KEYWORD:
                continue
            try:
                use(FUNCTIONS[name](), signature, {**given(name, signature), parameter.name: value})
            except Exception as error:  # noqa: BLE001
                if SECRET in "".join(traceback.format_exception(error)) + repr(error):
                    shown.append((parameter.name, kind, repr(error)[:300]))
            if SECRET in caplog.text:
                shown.append((parameter.name, kind, caplog.text))
                caplog.clear()
    assert shown == []
