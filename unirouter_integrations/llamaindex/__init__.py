"""The LlamaIndex face: an LLM, a selector and a query engine that pick, for each question, among LLMs."""

from unirouter_integrations.errors import MissingDependencyError

try:
    import llama_index.core  # noqa: F401
except ImportError as error:
    msg = "unirouter_integrations.llamaindex needs pip install 'unirouter-integrations[llamaindex]'."
    raise MissingDependencyError(msg) from error

from unirouter_integrations.llamaindex.events import UniRouteDecisionEvent
from unirouter_integrations.llamaindex.llm import UniRouterLLM
from unirouter_integrations.llamaindex.query_engine import UniRouterQueryEngine
from unirouter_integrations.llamaindex.selector import UniRouterSelector

__all__ = ["UniRouteDecisionEvent", "UniRouterLLM", "UniRouterQueryEngine", "UniRouterSelector"]
