"""The interface as users type it. Nothing here runs: mypy checks that right uses pass and that wrong ones fail.

Strict mode reports an ignore that is not needed, so each `type: ignore` is a wrong use that has to stay an error.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import LLM

from unirouter_integrations import (
    Example,
    Exclusion,
    LLMProfile,
    ModelRegistry,
    Price,
    RoutingDecision,
    Snapshot,
    UniRouter,
    aprofile_model,
    as_embedder,
    profile_model,
)
from unirouter_integrations.compare import RouterDifference, WhatIf, diff, what_if
from unirouter_integrations.grading import Answer, Scorer, as_scorer, judge
from unirouter_integrations.langchain import ChatUniRouter, UniRouterFeedback
from unirouter_integrations.langchain._middleware import UniRouterMiddleware
from unirouter_integrations.learning import Learning, RedisStatistics
from unirouter_integrations.llamaindex import UniRouterLLM, UniRouterQueryEngine, call_options
from unirouter_integrations.profiling import CostEstimate, estimate_cost
from unirouter_integrations.watch import Watch


def embed(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    return np.zeros((len(texts), 3))


def grade(answer: Answer, example: Example) -> bool:
    return bool(answer.text == example.reference)


def ask(prompt: str) -> str:
    return prompt


def routers(texts: list[str], documents: Embeddings, queries: BaseEmbedding, frame: Any) -> None:
    router = UniRouter.fit(texts, embedder="local", n_clusters="auto", seed=0, scores={"mini": [1.0, 0.0]})
    UniRouter.fit(frame)
    UniRouter.fit(texts, embedder=embed)
    UniRouter.fit(texts, embedder=documents)
    UniRouter.fit(texts, embedder=queries)
    UniRouter.fit(texts, embedder=lambda given: np.zeros((len(given), 2)))
    UniRouter.fit(texts, embedder=42)  # type: ignore[arg-type]
    UniRouter.fit(texts, outcomes={"mini": [1.0]})  # type: ignore[call-arg]
    as_embedder(None)  # type: ignore[arg-type]

    profile: LLMProfile = router.profile("mini", texts, [1, 0], cost=0.4)
    router.register(profile, profile)
    router.register("mini")  # type: ignore[arg-type]
    router.cost_weight = 0.02
    weight: float = router.calibrate(texts, budget=0.5, among=["mini"])
    decision: RoutingDecision = router.route("a prompt", cost_weight=weight, among=["mini"])
    exclusions: tuple[Exclusion, ...] = decision.excluded
    for exclusion in exclusions:
        if exclusion.kind == "failed":
            assert exclusion.reason
        if exclusion.kind == "it failed":  # type: ignore[comparison-overlap]
            pass
    snapshot: Snapshot = router.snapshot(among=["mini"])
    snapshot.route_many(texts)
    router.route(["a prompt"])  # type: ignore[arg-type]
    learning: Learning = router.learn(RedisStatistics("redis://localhost"), half_life=100)
    learning.close()
    router.learn(7)  # type: ignore[arg-type]
    changes: RouterDifference = diff(router, router, texts)
    impact: WhatIf = what_if(router, profile)
    assert changes.rerouted == impact.undecided
    with Watch(router, "router/", every=60):
        pass


def profiles(router: UniRouter, chat_model: BaseChatModel, llm: LLM) -> None:
    examples: list[Example | dict[str, Any]] = [Example("a prompt", reference="an answer"), {"prompt": "another"}]
    for model in (chat_model, llm, ask):
        profile_model("haiku", model, examples, router, scorer="exact", price=Price(1.0, 5.0))
    profile_model("haiku", ask, examples, router, scorer=grade)
    profile_model("haiku", ask, examples, router, scorer=judge(chat_model, price=Price(1, 5)))
    profile_model("haiku", ask, examples, router, scorer=42)  # type: ignore[arg-type]
    profile_model("haiku", 42, examples, router)  # type: ignore[arg-type]
    profile_model("haiku", ask, examples, router, on_failure="ignore")  # type: ignore[arg-type]
    profile_model("haiku", ask, examples, router, max_costs=1.0)  # type: ignore[call-arg]
    cost: CostEstimate = estimate_cost("haiku", ask, examples, router)
    scorer: Scorer = as_scorer("number")
    assert cost.calls
    assert scorer.name


async def later(router: UniRouter) -> LLMProfile:
    decision = await router.aroute("a prompt")
    assert decision.objective
    assert decision.score  # type: ignore[attr-defined]
    return await aprofile_model("haiku", ask, [], router)


def faces(router: UniRouter, chat_model: BaseChatModel, llm: LLM, retriever: Any) -> None:
    registry = ModelRegistry({"mini": chat_model}, prices={"mini": Price(1, 2)}, capabilities={"mini": {}})
    chat = ChatUniRouter(router=router, models=registry, fallback="refusals", sticky="thread", default="mini")
    chat.register("haiku", chat_model, router.profile("haiku", ["a"], [1], cost=1), price=Price(1, 2))
    middleware: UniRouterMiddleware[None, Any] = UniRouterMiddleware(router, registry, escalate=grade)
    UniRouterMiddleware(router, registry, sticky="cache", judged_by=lambda messages: messages[-1].text)
    UniRouterMiddleware(router, registry, sticky="turn")  # type: ignore[arg-type]
    chat.bind_tools([grade], tool_choice="any", parallel_tool_calls=False, strict=True)
    UniRouterFeedback(router, max_runs=10).observe("0" * 32, 1.0)
    UniRouterLLM(router=router, models={"mini": llm}, cost_weight=0.1)
    engine = UniRouterQueryEngine(router=router, models={"mini": llm}, retriever=retriever, escalate="confidence")
    with call_options(cost_weight=0.5, among=["mini"]):
        engine.query("a question")
    with call_options(weight=0.5):  # type: ignore[call-arg]
        pass
    assert middleware.router is router
