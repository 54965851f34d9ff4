"""How fast the core is, beside what its work would cost in bare NumPy.

    pytest benchmarks/bench_speed.py --benchmark-columns=median,iqr --benchmark-sort=name

Needs `pip install pytest-benchmark`. Each group holds a baseline and ours, timed in the same run; the figures in
brackets are the ratios. Vectors have 384 numbers; times differ from machine to machine.

"topics": vectors lie around centres, and a prompt belongs to a few clusters, as real prompts do (of 1,000 clusters of
8,000 MMLU-Pro questions to 10, in the median). "noise": they lie anywhere, and a prompt belongs to nearly all clusters,
which is the worst that can be.
"""

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from unirouter_integrations import LLMProfile, LocalEmbedder, PromptClusters, UniRouter

DIMENSION = 384
_RNG = np.random.default_rng(0)
VECTORS = {"noise": _RNG.normal(size=(100_000, DIMENSION)).astype(np.float32)}
_CENTRES = _RNG.normal(size=(1000, DIMENSION))
VECTORS["topics"] = (_CENTRES[_RNG.integers(0, 1000, 100_000)] + VECTORS["noise"] / 2).astype(np.float32)


@cache
def router(models: int, clusters: int, kind: str = "topics") -> UniRouter:
    """Soft clusters, and models whose costs differ from cluster to cluster."""
    rng = np.random.default_rng(1)
    fitted = PromptClusters.fit([""] * 4000, None, vectors=VECTORS[kind][:4000], n_clusters=clusters)
    made = UniRouter(fitted, cost_weight=0.1)
    for number in range(models):
        made.register(profile(rng, f"model {number}", clusters))
    made.route(vector=VECTORS[kind][0])
    return made


def profile(rng: np.random.Generator, name: str, clusters: int) -> LLMProfile:
    """Made-up counts."""
    return LLMProfile(name, np.full(clusters, 10.0), rng.uniform(0, 10, clusters), rng.uniform(0, 5, clusters))


def tables(of: UniRouter) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The centroids, and error + cost_weight * cost."""
    pool = of.registered(of.models)
    return of.clusters.centroids.T.copy(), pool.error + of.cost_weight * pool.cost


@pytest.mark.parametrize("kind", ["topics", "noise"])
@pytest.mark.parametrize(("models", "clusters"), [(30, 50), (10_000, 1000)])
@pytest.mark.parametrize("what", ["bare NumPy", "route"])
def test_one_decision(benchmark: Any, models: int, clusters: int, kind: str, what: str) -> None:
    """From a vector: the nearest centroid and the least score of its row, against all that `route` does."""
    benchmark.group = f"one decision, {models} models x {clusters} clusters, {kind}"
    ours = router(models, clusters, kind)
    centroids, scores = tables(ours)
    vector = VECTORS[kind][7]
    calls: dict[str, Callable[[], Any]] = {
        "bare NumPy": lambda: np.argmin(scores[(vector @ centroids).argmax()]),
        "route": lambda: ours.route(vector=vector),
    }
    benchmark(calls[what])


@pytest.mark.parametrize("what", ["bare NumPy", "memberships", "route_many"])
def test_many_decisions(benchmark: Any, what: str) -> None:
    """100,000 vectors: the matrix product with the centroids alone, memberships, and a decision for each."""
    benchmark.group = "100,000 decisions, 30 models x 50 clusters"
    ours = router(30, 50)
    centroids, _ = tables(ours)
    vectors = VECTORS["topics"]
    calls: dict[str, Callable[[], Any]] = {
        "bare NumPy": lambda: vectors @ centroids,
        "memberships": lambda: ours.clusters.memberships(vectors=vectors),
        "route_many": lambda: ours.route_many(vectors=vectors),
    }
    benchmark.pedantic(calls[what], rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("models", [10, 10_000])
def test_registering(benchmark: Any, models: int) -> None:
    """One more model, beside few and beside many."""
    benchmark.group = "register one more model, 50 clusters"
    ours, rng = router(models, 50), np.random.default_rng(2)
    one = profile(rng, "one more", 50)
    benchmark(lambda: ours.register(one))


def test_local_embedder(benchmark: Any) -> None:
    """One prompt of 50 words."""
    benchmark.group = "LocalEmbedder, one prompt of 50 words"
    words = [f"word{number}" for number in range(200)]
    rng = np.random.default_rng(3)
    prompts = [" ".join(rng.choice(words, 50)) for _ in range(500)]
    embedder = LocalEmbedder.fit(prompts)
    benchmark(lambda: embedder.embed([prompts[0]]))


@pytest.mark.parametrize("module", ["numpy", "unirouter_integrations"])
def test_importing(benchmark: Any, module: str) -> None:
    """In a new process."""
    benchmark.group = "import"
    command = [sys.executable, "-c", f"import {module}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    benchmark.pedantic(lambda: subprocess.run(command, check=True, env=environment), rounds=31, warmup_rounds=2)


def test_memory() -> None:
    """Printed, not timed: 1,000 models x 100 clusters."""
    fitted = router(10, 100).clusters
    rng = np.random.default_rng(4)
    tracemalloc.start()
    made = UniRouter(fitted)
    for number in range(1000):
        made.register(profile(rng, f"model {number}", 100))
    made.route(vector=VECTORS["topics"][0])
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"\n1,000 models x 100 clusters: {size / 1e6:.1f} MB")
