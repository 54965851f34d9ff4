"""The LangChain face: a chat model that picks, for each call, among chat models; and the same for agents."""

from typing import TYPE_CHECKING, Any

from unirouter_integrations.errors import MissingDependencyError

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    msg = "unirouter_integrations.langchain needs pip install 'unirouter-integrations[langchain]'."
    raise MissingDependencyError(msg) from error

from unirouter_integrations.langchain.chat_models import ChatUniRouter
from unirouter_integrations.langchain.registry import ModelRegistry

if TYPE_CHECKING:
    from unirouter_integrations.langchain.decision_model import UniRouteDecisionModel as UniRouteDecisionModel
    from unirouter_integrations.langchain.middleware import UniRouterMiddleware as UniRouterMiddleware

__all__ = ["ChatUniRouter", "ModelRegistry"]  # what langchain-core alone gives; the others are there on request


def __getattr__(name: str) -> Any:
    """These two need more than langchain-core, so they are imported when they are asked for."""
    if name == "UniRouterMiddleware":
        from unirouter_integrations.langchain.middleware import UniRouterMiddleware

        return UniRouterMiddleware
    if name == "UniRouteDecisionModel":
        from unirouter_integrations.langchain.decision_model import UniRouteDecisionModel

        return UniRouteDecisionModel
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
