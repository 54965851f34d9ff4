"""The router for LlamaIndex: an LLM, a selector and a query engine that pick, for each question, among LLMs."""

from unirouter_integrations._checks import requires

with requires("unirouter_integrations.llamaindex", "llamaindex"):
    import llama_index.core  # noqa: F401

from unirouter_integrations.llamaindex._events import UniRouteDecisionEvent
from unirouter_integrations.llamaindex._llm import UniRouterLLM
from unirouter_integrations.llamaindex._options import call_options
from unirouter_integrations.llamaindex._query_engine import UniRouterQueryEngine
from unirouter_integrations.llamaindex._selector import UniRouterSelector, UniRouterSelectorResult

__all__ = [
    "UniRouteDecisionEvent",
    "UniRouterLLM",
    "UniRouterQueryEngine",
    "UniRouterSelector",
    "UniRouterSelectorResult",
    "call_options",
]
