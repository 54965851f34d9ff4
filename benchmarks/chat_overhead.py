"""What a call through `ChatUniRouter` costs more than the chosen model's own call and the embedding.

    python benchmarks/chat_overhead.py

Three fake models, 50 clusters, vectors of 384 numbers that lie ready. All are timed in turn, so that a slow moment hits
all of them; p50 of 3,000 calls each. Times differ from machine to machine; look at the ratios.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from unirouter_integrations import UniRouter, as_embedder
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.testing import ChatFake

CALLS = 3000
NAMES = ("abacus", "poet", "oracle")
VECTORS = np.random.default_rng(0).normal(size=(2000, 384)).astype(np.float32)


def ready(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Vectors, looked up."""
    return VECTORS[: len(texts)]


def fitted() -> UniRouter:
    """Fifty soft clusters with a learned gate."""
    rng = np.random.default_rng(1)
    outcomes = {name: rng.random(len(VECTORS)) for name in NAMES}
    fit = UniRouter.fit([""] * len(VECTORS), embedder=None, vectors=VECTORS, n_clusters=50, outcomes=outcomes)
    router = UniRouter(replace(fit.clusters, embedder=as_embedder(ready)), prior=fit.prior, cost_weight=0.1)
    for cost, name in enumerate(NAMES, start=1):
        router.register(router.profile(name, vectors=VECTORS[:300], losses=rng.random(300), cost=cost))
    return router


def medians(**calls: Callable[[], object]) -> dict[str, float]:
    """The median time of each, in microseconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(CALLS):
        for name, call in calls.items():
            began = time.perf_counter_ns()
            call()
            times[name].append((time.perf_counter_ns() - began) / 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print the medians and the overhead."""
    router = fitted()
    models = {name: ChatFake(model=name) for name in NAMES}
    llm = ChatUniRouter(router=router, models=models)
    found = medians(
        model=lambda: models["abacus"].invoke("What is 2 times 3?"),
        routed=lambda: llm.invoke("What is 2 times 3?"),
        embedding=lambda: router.embed(["What is 2 times 3?"]),
        decision=lambda: router.route(vector=VECTORS[0]),
    )
    for name, median in found.items():
        print(f"{name:10} {median:7.1f} us")
    extra = found["routed"] - found["model"] - found["embedding"]
    print(f"overhead   {extra:7.1f} us, {extra / found['model']:.2f} of the model's own call")


if __name__ == "__main__":
    main()
