"""How fast the core is, beside what its work would cost in bare NumPy.

    OMP_NUM_THREADS=1 python benchmarks/speed.py [--record]

Each group holds a baseline and ours, timed in turn in the same run. Times differ from machine to machine; look at the
ratios. Vectors have 384 numbers. Takes about a minute and a gigabyte.

"topics": vectors lie around centres, and a prompt belongs to a few clusters, as real prompts do (to 10 of 1,000
clusters of 8,000 MMLU-Pro questions, in the median). "noise": vectors lie anywhere, and a prompt belongs to nearly all
clusters, which is the worst case.
"""

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from _record import medians, record

from unirouter_integrations import LLMProfile, LocalEmbedder, PromptClusters, UniRouter

DIMENSION = 384
MANY = 100_000
RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(1000, DIMENSION))
NOISE = RNG.normal(size=(MANY, DIMENSION)).astype(np.float32)
VECTORS = {"topics": (CENTRES[RNG.integers(0, 1000, MANY)] + NOISE / 2).astype(np.float32), "noise": NOISE}

Group = tuple[str, dict[str, Callable[[], Any]], int]


def profile(name: str, clusters: int, rng: np.random.Generator) -> LLMProfile:
    """Make up a profile."""
    return LLMProfile(name, np.full(clusters, 10.0), rng.uniform(0, 10, clusters), rng.uniform(0, 5, clusters))


def fitted(models: int, clusters: int, kind: str = "topics") -> UniRouter:
    """Fit soft clusters, and register models whose costs differ from cluster to cluster."""
    rng = np.random.default_rng(1)
    phi = PromptClusters.fit([""] * 4000, None, vectors=VECTORS[kind][:4000], n_clusters=clusters)
    router = UniRouter(phi, cost_weight=0.1)
    router.register(*(profile(f"model {number}", clusters, rng) for number in range(models)))
    return router


def one_decision(models: int, clusters: int, kind: str, rounds: int) -> Group:
    """From a vector: the nearest centroid and the least objective of its row, against all that `route` does."""
    router = fitted(models, clusters, kind)
    pool, vector = router.snapshot().pool, VECTORS[kind][7]
    centroids, objectives = router.clusters.centroids.T.copy(), pool.error + router.cost_weight * pool.cost
    calls: dict[str, Callable[[], Any]] = {
        "bare NumPy": lambda: np.argmin(objectives[(vector @ centroids).argmax()]),
        "route": lambda: router.route(vector=vector),
    }
    return f"one decision, {models:,} models x {clusters:,} clusters, {kind}", calls, rounds


def many_decisions() -> Group:
    """The matrix product with the centroids alone, memberships, and a decision for each vector."""
    router = fitted(30, 50)
    centroids, vectors = router.clusters.centroids.T.copy(), VECTORS["topics"]
    calls: dict[str, Callable[[], Any]] = {
        "bare NumPy": lambda: vectors @ centroids,
        "memberships": lambda: router.clusters.memberships(vectors=vectors),
        "route_many": lambda: router.route_many(vectors=vectors),
    }
    return f"{MANY:,} decisions, 30 models x 50 clusters", calls, 3


def registering() -> Group:
    """One more model, beside few and beside many."""
    few, many = fitted(10, 50), fitted(10_000, 50)
    one = profile("one more", 50, np.random.default_rng(2))
    calls: dict[str, Callable[[], Any]] = {
        "beside 10": lambda: few.register(one),
        "beside 10,000": lambda: many.register(one),
    }
    return "register one more model, 50 clusters", calls, 200


def embedding() -> Group:
    """One prompt of 50 words, each time another one."""
    rng = np.random.default_rng(3)
    words = [f"word{number}" for number in range(200)]
    prompts = [" ".join(rng.choice(words, 50)) for _ in range(2000)]
    embedder, left = LocalEmbedder.fit(prompts[:500]), iter(prompts)
    return "LocalEmbedder", {"one prompt of 50 words": lambda: embedder.embed([next(left)])}, 1000


def importing() -> Group:
    """In a new process."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def run(module: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True, env=environment)

    return "import", {module: run(module) for module in ("numpy", "unirouter_integrations")}, 15


def megabytes() -> float:
    """Measure what 1,000 registered models take, over 100 clusters."""
    phi, rng = fitted(0, 100).clusters, np.random.default_rng(4)
    tracemalloc.start()
    router = UniRouter(phi)
    router.register(*(profile(f"model {number}", 100, rng) for number in range(1000)))
    router.route(vector=VECTORS["topics"][0])
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / 1e6


def groups() -> Iterator[Group]:
    """Make the groups one after the other, so that only one holds its routers at a time."""
    for kind in VECTORS:
        yield one_decision(30, 50, kind, rounds=2000)
        yield one_decision(10_000, 1000, kind, rounds=200)
    yield many_decisions()
    yield registering()
    yield embedding()
    yield importing()


def main() -> None:
    """Print the medians and their ratios to the first call of each group."""
    figures: dict[str, Any] = {}
    for name, calls, rounds in groups():
        found = medians(calls, rounds)
        baseline = next(iter(found.values()))
        print(name)
        for call, median in found.items():
            print(f"  {call:24} {median:14,.1f} us   x {median / baseline:.2f}", flush=True)
        figures[name] = {call: {"us": median, "ratio": median / baseline} for call, median in found.items()}
    size = megabytes()
    print(f"1,000 models x 100 clusters: {size:.1f} MB")
    record({**figures, "MB of 1,000 models x 100 clusters": size})


if __name__ == "__main__":
    main()
