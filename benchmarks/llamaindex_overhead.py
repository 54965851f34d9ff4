"""What routing costs in LlamaIndex, beside the embedding and the chosen model's own call.

    python benchmarks/llamaindex_overhead.py

Three fake LLMs, 50 clusters, vectors of 384 numbers that lie ready. All are timed in turn, so that a slow moment hits
all of them; p50 of 3,000 calls each. Times differ from machine to machine; look at the ratios.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.schema import QueryBundle
from llama_index.core.tools import ToolMetadata
from typing_extensions import override

from unirouter_integrations import UniRouter, as_embedder
from unirouter_integrations.llamaindex import UniRouterLLM, UniRouterSelector

CALLS = 3000
NAMES = ("abacus", "poet", "oracle")
VECTORS = np.random.default_rng(0).normal(size=(2000, 384)).astype(np.float32)
GIVEN: list[float] = VECTORS[0].tolist()


class Ready(BaseEmbedding):
    """Vectors, looked up."""

    @override
    def _get_query_embedding(self, query: str) -> list[float]:
        return GIVEN

    @override
    async def _aget_query_embedding(self, query: str) -> list[float]:
        return GIVEN

    @override
    def _get_text_embedding(self, text: str) -> list[float]:
        return GIVEN


def fitted() -> UniRouter:
    """Fifty soft clusters with a learned gate."""
    rng = np.random.default_rng(1)
    outcomes = {name: rng.random(len(VECTORS)) for name in NAMES}
    fit = UniRouter.fit([""] * len(VECTORS), embedder=None, vectors=VECTORS, n_clusters=50, outcomes=outcomes)
    router = UniRouter(replace(fit.clusters, embedder=as_embedder(Ready())), prior=fit.prior, cost_weight=0.1)
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
    models: dict[str, LLM] = {name: MockFunctionCallingLLM() for name in NAMES}
    llm = UniRouterLLM(router=router, models=models)
    selector = UniRouterSelector(router=router, embed_model=Ready())
    choices = [ToolMetadata("answers", name) for name in NAMES]
    messages = [ChatMessage("What is 2 times 3?")]
    query = QueryBundle("What is 2 times 3?", embedding=GIVEN)
    found = medians(
        model=lambda: models["abacus"].chat(messages),
        routed=lambda: llm.chat(messages),
        embedding=lambda: router.embed(["What is 2 times 3?"]),
        decision=lambda: router.route(vector=VECTORS[0]),
        selector=lambda: selector.select(choices, query),
    )
    for name, median in found.items():
        print(f"{name:10} {median:7.1f} us")
    extra = found["routed"] - found["model"] - found["embedding"]
    print(f"LLM hop    {extra:7.1f} us beside the model's own call and the embedding")
    print(f"selector   {found['selector']:7.1f} us on a given embedding")


if __name__ == "__main__":
    main()
