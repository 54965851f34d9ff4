"""Shared fixtures: a toy embedder whose clusters are known, vectors whose clusters overlap, and routers over them."""

import os
import re
from collections.abc import Generator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

from unirouter_integrations import PromptClusters, UniRouter
from unirouter_integrations.core._clusters import Assignment
from unirouter_integrations.data import Outcomes

settings.register_profile("untimed", deadline=None)  # nothing is timed in a test
settings.load_profile("untimed")

KINDS = ("sum", "poem", "date")
OF_EXTRAS = {
    *("langchain", "langchain_core", "langchain_openai", "langchain_tests", "langgraph", "llama_index"),
    *("httpx", "matplotlib", "openai", "opentelemetry", "pyarrow"),
}


def pytest_configure() -> None:
    """Tests run in several processes, one a core: more threads in each would wait for each other, twice as long."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip a file that imports a package of an extra that is not installed, in place of stopping the run."""
    report = yield
    missing = re.search(r"No module named '(\w+)", str(report.longrepr))
    if report.failed and missing and missing[1] in OF_EXTRAS:
        report.outcome, report.longrepr = "skipped", (report.nodeid, 0, f"Skipped: {missing[1]} is not installed")
    return report


def toy_embed(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """One axis per kind of prompt, and a little of the length, so that prompts of a kind differ but stay together."""
    return np.array([[10.0 * (kind in text) for kind in KINDS] + [len(text) % 7] for text in texts])


TOY_PROMPTS = [f"{kind} number {'i' * i}" for i in range(20) for kind in KINDS]


def toy_scores(*wrong: str) -> list[float]:
    """0 on the prompts of these kinds, 1 on the others."""
    return [float(not any(kind in prompt for kind in wrong)) for prompt in TOY_PROMPTS]


def toy_router(assignment: Assignment) -> UniRouter:
    """Three clusters (sum, poem, date), two specialists and an expensive generalist, under the paper's estimator."""
    router = UniRouter.fit(TOY_PROMPTS, embedder=toy_embed, n_clusters=3, assignment=assignment, estimator="mean")
    router.register(router.profile("abacus", TOY_PROMPTS, toy_scores("poem", "date"), cost=1))
    router.register(router.profile("poet", TOY_PROMPTS, toy_scores("sum", "date"), cost=2))
    router.register(router.profile("oracle", TOY_PROMPTS, toy_scores(), cost=10))
    return router


@pytest.fixture
def router() -> UniRouter:
    """The toy router as it is by default."""
    return toy_router("soft")


@pytest.fixture
def hard_router() -> UniRouter:
    """The toy router with one cluster per prompt: expected errors are entries of a table, exact to the last bit."""
    return toy_router("hard")


_CENTRES = np.random.default_rng(7).normal(size=(6, 16))


def blended_vectors(n: int, seed: int) -> npt.NDArray[np.float64]:
    """Vectors of six kinds that overlap, so that most belong to several clusters."""
    rng = np.random.default_rng(seed)
    return _CENTRES[rng.integers(0, 6, n)] + rng.normal(0, 1, (n, 16))


@cache
def blended_clusters(assignment: Assignment = "soft") -> PromptClusters:
    """Six clusters of 400 such vectors."""
    return PromptClusters.fit([""] * 400, None, vectors=blended_vectors(400, 0), n_clusters=6, assignment=assignment)


@pytest.fixture
def blended() -> UniRouter:
    """Clusters that overlap; each model is good in its own direction, and costs are one number or one per call."""
    router = UniRouter(blended_clusters(), estimator="laplace", cost_weight=0.02)
    vectors = blended_vectors(300, 1)
    for index, name in enumerate(("ant", "bee", "cat", "dog", "elk")):
        scores = (vectors[:, index] <= 0.3 * index - 0.5).astype(float)
        cost = 0.3 + 1.7 * index if index % 2 else 1 + np.abs(vectors[:, index + 8])
        router.register(router.profile(name, scores=scores, vectors=vectors, cost=cost))
    return router


SKILLS = [("sum",), ("poem",), ("date",), ("sum", "poem"), ("poem", "date"), ("sum", "date"), KINDS, (), ("sum",)]
_WORDS = ["amber", "brook", "cedar", "delta", "ember", "fable", "grove", "haven", "inlet", "jewel", "knoll", "lemon"]


def made_up_outcomes(n: int = 300, seed: int = 0) -> Outcomes:
    """MADE-UP outcomes of nine models on three kinds of prompts: right 90% of the time in their kinds, else 10%."""
    rng = np.random.default_rng(seed)
    kinds = [KINDS[i % len(KINDS)] for i in range(n)]
    prompts = tuple(f"{kind} about {' '.join(rng.choice(_WORDS, 3))} number {i}" for i, kind in enumerate(kinds))
    skilled = np.array([[kind in skills for skills in SKILLS] for kind in kinds])
    scores = (rng.random((n, len(SKILLS))) <= np.where(skilled, 0.9, 0.1)).astype(float)
    costs = np.tile([1.0 + len(skills) for skills in SKILLS], (n, 1))
    return Outcomes(prompts, tuple(f"model {i}" for i in range(len(SKILLS))), scores, costs, "made up")
