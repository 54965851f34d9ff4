"""What a call through `ChatUniRouter` takes in addition to the chosen model's own call and the embedding.

    OMP_NUM_THREADS=1 python benchmarks/chat_overhead.py [--record]

Three fake models, 50 clusters, and vectors of 384 numbers that are looked up. All calls are timed in turn, 3,000 times
each. Times differ from machine to machine; look at the ratios.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from _record import medians, record

from unirouter_integrations import UniRouter, as_embedder
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.testing import ChatFake

CALLS = 3000
NAMES = ("abacus", "poet", "oracle")
VECTORS = np.random.default_rng(0).normal(size=(2000, 384)).astype(np.float32)


def look_up(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Embed texts in no time."""
    return VECTORS[: len(texts)]


def fitted() -> UniRouter:
    """Fit fifty soft clusters with a learned gate."""
    rng = np.random.default_rng(1)
    scores = {name: rng.random(len(VECTORS)) for name in NAMES}
    fit = UniRouter.fit([""] * len(VECTORS), embedder=None, vectors=VECTORS, n_clusters=50, scores=scores)
    router = UniRouter(replace(fit.clusters, embedder=as_embedder(look_up)), prior=fit.prior, cost_weight=0.1)
    for cost, name in enumerate(NAMES, start=1):
        router.register(router.profile(name, vectors=VECTORS[:300], scores=rng.random(300), cost=cost))
    return router


def main() -> None:
    """Print the medians and the overhead."""
    router = fitted()
    models = {name: ChatFake(model=name) for name in NAMES}
    llm = ChatUniRouter(router=router, models=models)
    calls = {
        "model": lambda: models["abacus"].invoke("What is 2 times 3?"),
        "routed": lambda: llm.invoke("What is 2 times 3?"),
        "embedding": lambda: router.embed(["What is 2 times 3?"]),
        "decision": lambda: router.route(vector=VECTORS[0]),
    }
    found = medians(calls, CALLS)
    for name, median in found.items():
        print(f"{name:10} {median:7.1f} us")
    extra = found["routed"] - found["model"] - found["embedding"]
    print(f"overhead   {extra:7.1f} us, {extra / found['model']:.2f} of the model's own call")
    record({"us": {**found, "overhead": extra}, "overhead / model": extra / found["model"]})


if __name__ == "__main__":
    main()
