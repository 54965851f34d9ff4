"""How the cost of routing grows with prompts, models, clusters and workers.

    OMP_NUM_THREADS=1 python benchmarks/growth.py [--record]

Prompts are vectors of 384 numbers around 1,000 centres, made in parts of 10,000 and routed part by part. Each figure is
the median of three runs, with the minimum and the maximum. The slope is that of a line through the logarithms: 0 if the
figure does not grow, 1 if it grows in proportion. Takes about ten minutes. OMP_NUM_THREADS=1 gives each process one
core.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt
from _record import record

from unirouter_integrations import LLMProfile, PromptClusters, UniRouter

DIMENSION = 384
PART = 10_000
RUNS = 3
CENTRES = np.random.default_rng(0).normal(size=(1000, DIMENSION)).astype(np.float32)
PROMPTS_OF_WORKERS = 400_000


@cache
def vectors(seed: int = 0) -> npt.NDArray[np.float32]:
    """Make one part of the prompts."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(PART, DIMENSION)).astype(np.float32)
    return np.asarray(CENTRES[rng.integers(0, len(CENTRES), PART)] + noise / 2, np.float32)


@cache
def router(models: int, clusters: int) -> UniRouter:
    """Fit soft clusters, and register models whose costs differ from cluster to cluster."""
    rng = np.random.default_rng(1)
    fitted = PromptClusters.fit([""] * PART, None, vectors=vectors(), n_clusters=clusters)
    made = UniRouter(fitted, cost_weight=0.1)
    profiles = [
        LLMProfile(f"model {n}", np.full(clusters, 10.0), rng.uniform(0, 10, clusters), rng.uniform(0, 5, clusters))
        for n in range(models)
    ]
    made.register(*profiles)
    made.route(vector=vectors()[0])
    return made


def seconds(work: Callable[[], object]) -> list[float]:
    """Measure how long some work takes, three times."""
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return taken


def routed(ours: UniRouter, prompts: int) -> int:
    """Route prompts part by part; return how many went to one of the models."""
    parts = (vectors()[: min(PART, prompts - start)] for start in range(0, prompts, PART))
    return sum(decision.model == "model 0" for part in parts for decision in ours.route_many(vectors=part))


def one_by_one(ours: UniRouter) -> None:
    """Route a thousand prompts, each by itself."""
    for vector in vectors()[:1000]:
        ours.route(vector=vector)


def of_worker(prompts: int) -> int:
    """Do the work of one worker."""
    return routed(router(30, 50), prompts)


def measured(
    name: str, unit: str, sizes: Sequence[int], factor: float, work: Callable[[int], Callable[[], object]]
) -> dict[str, float]:
    """Print a table: for each size the median, the minimum and the maximum; then the slope.

    Args:
        name: The size that grows.
        unit: What is measured.
        sizes: The sizes.
        factor: How many of the unit one second is.
        work: Makes the work of a size.

    Returns:
        The median of each size, and the slope.
    """
    print(f"{name:>28}   {unit}")
    found: dict[str, float] = {}
    for size in sizes:
        figures = [taken * factor for taken in seconds(work(size))]
        found[str(size)] = statistics.median(figures)
        print(f"{size:>28,}   {found[str(size)]:<10.4g} ({min(figures):.4g} to {max(figures):.4g})", flush=True)
    slope = float(np.polyfit(np.log(sizes), np.log(list(found.values())), 1)[0])
    print(f"{'slope':>28}   {slope:.2f}\n", flush=True)
    return {**found, "slope": slope}


def in_workers(pool: ProcessPoolExecutor, count: int, prompts: int) -> int:
    """Route prompts in a number of processes."""
    return sum(pool.map(of_worker, [prompts // count] * count))


def workers() -> dict[str, float]:
    """Print the prompts per second of some processes, each with a copy of the router."""
    found: dict[str, float] = {}
    print(f"{'workers':>28}   prompts per second, {os.cpu_count()} cores")
    for count in (1, 2, 4, 8):
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            work = partial(in_workers, pool, count)
            work(PART * count)  # so that each process has made its router
            rates = [PROMPTS_OF_WORKERS / taken for taken in seconds(partial(work, PROMPTS_OF_WORKERS))]
        found[str(count)] = statistics.median(rates)
        print(f"{count:>28,}   {found[str(count)]:<10,.0f} ({min(rates):,.0f} to {max(rates):,.0f})", flush=True)
    return found


def main() -> None:
    """Print the tables."""
    prompts = [10**power for power in range(3, 8)]
    models, clusters = [10, 100, 1000, 10_000], [10, 30, 100, 300, 1000]
    one, each = "microseconds, one decision", "microseconds per prompt, {:,} at once"
    record(
        {
            "seconds by prompts, 30 models x 50 clusters": measured(
                "prompts, 30 models x 50", "seconds", prompts, 1, lambda size: partial(routed, router(30, 50), size)
            ),
            "microseconds of one decision by models, 50 clusters": measured(
                "models, 50 clusters", one, models, 1e6 / 1000, lambda size: partial(one_by_one, router(size, 50))
            ),
            "microseconds per prompt by models, 1,000 prompts at once, 50 clusters": measured(
                "models, 50 clusters",
                each.format(1000),
                models,
                1e6 / 1000,
                lambda size: partial(routed, router(size, 50), 1000),
            ),
            "microseconds of one decision by clusters, 30 models": measured(
                "clusters, 30 models", one, clusters, 1e6 / 1000, lambda size: partial(one_by_one, router(30, size))
            ),
            "microseconds per prompt by clusters, 10,000 prompts at once, 30 models": measured(
                "clusters, 30 models",
                each.format(PART),
                clusters,
                1e6 / PART,
                lambda size: partial(routed, router(30, size), PART),
            ),
            "prompts per second by workers": workers(),
        }
    )


if __name__ == "__main__":
    main()
