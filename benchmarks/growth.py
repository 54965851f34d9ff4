"""How the cost of routing grows with prompts, models, clusters and workers.

    python benchmarks/growth.py

Prompts are vectors of 384 numbers around 1,000 centres, made in parts of 10,000 and routed part by part. Each figure is
the median of three runs, with the least and the most. The slope is that of a line through the logarithms: 0 if the
figure does not grow, 1 if it grows in proportion. Takes about ten minutes. One core per process: set OMP_NUM_THREADS=1.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt

from unirouter_integrations import LLMProfile, PromptClusters, UniRouter

DIMENSION = 384
PART = 10_000
RUNS = 3
CENTRES = np.random.default_rng(0).normal(size=(1000, DIMENSION)).astype(np.float32)
PROMPTS_OF_WORKERS = 400_000


@cache
def vectors(seed: int = 0) -> npt.NDArray[np.float32]:
    """A part of the prompts."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(PART, DIMENSION)).astype(np.float32)
    return np.asarray(CENTRES[rng.integers(0, len(CENTRES), PART)] + noise / 2, np.float32)


@cache
def router(models: int, clusters: int) -> UniRouter:
    """Soft clusters, and models whose costs differ from cluster to cluster."""
    rng = np.random.default_rng(1)
    fitted = PromptClusters.fit([""] * PART, None, vectors=vectors(), n_clusters=clusters)
    made = UniRouter(fitted, cost_weight=0.1)
    for number in range(models):
        losses, costs = rng.uniform(0, 10, clusters), rng.uniform(0, 5, clusters)
        made.register(LLMProfile(f"model {number}", np.full(clusters, 10.0), losses, costs))
    made.route(vector=vectors()[0])
    return made


def seconds(work: Callable[[], object]) -> list[float]:
    """How long it takes, three times."""
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return taken


def routed(ours: UniRouter, prompts: int) -> int:
    """Route so many prompts, part by part; returns how many went to one of the models."""
    parts = (vectors()[: min(PART, prompts - start)] for start in range(0, prompts, PART))
    return sum(decision.model == "model 0" for part in parts for decision in ours.route_many(vectors=part))


def one_by_one(ours: UniRouter) -> None:
    """Route a thousand prompts, each by itself."""
    for vector in vectors()[:1000]:
        ours.route(vector=vector)


def of_worker(prompts: int) -> int:
    """What one worker does."""
    return routed(router(30, 50), prompts)


def measured(
    name: str, sizes: Sequence[int], unit: str, per: Callable[[int], float], work: Callable[[int], Callable[[], object]]
) -> Iterator[str]:
    """The rows of a table: for each size the median, the least and the most; then the slope."""
    yield f"{name:>28}   {unit}"
    medians = []
    for size in sizes:
        figures = [taken * per(size) for taken in seconds(work(size))]
        medians.append(statistics.median(figures))
        yield f"{size:>28,}   {medians[-1]:<10.4g} ({min(figures):.4g} to {max(figures):.4g})"
    slope = np.polyfit(np.log(sizes), np.log(medians), 1)[0]
    yield f"{'slope':>28}   {slope:.2f}"


def _together(pool: ProcessPoolExecutor, count: int, prompts: int) -> int:
    return sum(pool.map(of_worker, [prompts // count] * count))


def workers() -> Iterator[str]:
    """Prompts per second of so many processes, each with a copy of the router."""
    yield f"{'workers':>28}   prompts per second, {os.cpu_count()} cores"
    for count in (1, 2, 4, 8):
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            work = partial(_together, pool, count)
            work(PART * count)  # each has its router from then on
            rates = [PROMPTS_OF_WORKERS / taken for taken in seconds(partial(work, PROMPTS_OF_WORKERS))]
        yield f"{count:>28,}   {statistics.median(rates):<10,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


def main() -> None:
    """Print the tables."""
    million = 1e6
    tables = (
        measured(
            "prompts, 30 models x 50",
            [10**power for power in range(3, 8)],
            "seconds",
            lambda _: 1,
            lambda prompts: partial(routed, router(30, 50), prompts),
        ),
        measured(
            "models, 50 clusters",
            [10, 100, 1000, 10_000],
            "microseconds, one decision",
            lambda _: million / 1000,
            lambda models: partial(one_by_one, router(models, 50)),
        ),
        measured(
            "models, 50 clusters",
            [10, 100, 1000, 10_000],
            "microseconds per prompt, 1,000 at once",
            lambda _: million / 1000,
            lambda models: partial(routed, router(models, 50), 1000),
        ),
        measured(
            "clusters, 30 models",
            [10, 30, 100, 300, 1000],
            "microseconds, one decision",
            lambda _: million / 1000,
            lambda clusters: partial(one_by_one, router(30, clusters)),
        ),
        measured(
            "clusters, 30 models",
            [10, 30, 100, 300, 1000],
            "microseconds per prompt, 10,000 at once",
            lambda _: million / PART,
            lambda clusters: partial(routed, router(30, clusters), PART),
        ),
        workers(),
    )
    for table in tables:
        for row in table:
            print(row, flush=True)
        print()


if __name__ == "__main__":
    main()
