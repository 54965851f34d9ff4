"""What routing takes in LlamaIndex, in addition to the embedding and the chosen model's own call.

    OMP_NUM_THREADS=1 python benchmarks/llamaindex_overhead.py [--record]

Three fake LLMs, 50 clusters, and vectors of 384 numbers that are looked up. All calls are timed in turn, 3,000 times
each. Times differ from machine to machine; look at the ratios.
"""

from dataclasses import replace

import numpy as np
from _record import medians, record
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


class LookUp(BaseEmbedding):
    """Embeds texts in no time."""

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
    """Fit fifty soft clusters with a learned gate."""
    rng = np.random.default_rng(1)
    scores = {name: rng.random(len(VECTORS)) for name in NAMES}
    fit = UniRouter.fit([""] * len(VECTORS), embedder=None, vectors=VECTORS, n_clusters=50, scores=scores)
    router = UniRouter(replace(fit.clusters, embedder=as_embedder(LookUp())), prior=fit.prior, cost_weight=0.1)
    for cost, name in enumerate(NAMES, start=1):
        router.register(router.profile(name, vectors=VECTORS[:300], scores=rng.random(300), cost=cost))
    return router


def main() -> None:
    """Print the medians and the overhead."""
    router = fitted()
    models: dict[str, LLM] = {name: MockFunctionCallingLLM() for name in NAMES}
    llm = UniRouterLLM(router=router, models=models)
    selector = UniRouterSelector(router=router, embed_model=LookUp())
    choices = [ToolMetadata("answers", name) for name in NAMES]
    messages = [ChatMessage("What is 2 times 3?")]
    query = QueryBundle("What is 2 times 3?", embedding=GIVEN)
    calls = {
        "model": lambda: models["abacus"].chat(messages),
        "routed": lambda: llm.chat(messages),
        "embedding": lambda: router.embed(["What is 2 times 3?"]),
        "decision": lambda: router.route(vector=VECTORS[0]),
        "selector": lambda: selector.select(choices, query),
    }
    found = medians(calls, CALLS)
    for name, median in found.items():
        print(f"{name:10} {median:7.1f} us")
    extra = found["routed"] - found["model"] - found["embedding"]
    print(f"overhead   {extra:7.1f} us in addition to the model's own call and the embedding")
    print(f"selector   {found['selector']:7.1f} us on a given embedding")
    record({"us": {**found, "overhead": extra}})


if __name__ == "__main__":
    main()
