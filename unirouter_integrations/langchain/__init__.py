"""The router for LangChain: a chat model that picks, for each call, among chat models; and a middleware for agents."""

from typing import TYPE_CHECKING, Any

from unirouter_integrations._checks import requires

with requires("unirouter_integrations.langchain", "langchain"):
    import langchain_core  # noqa: F401

from unirouter_integrations.langchain._chat_model import ChatUniRouter
from unirouter_integrations.langchain._feedback import UniRouterFeedback

if TYPE_CHECKING:
    from unirouter_integrations.langchain._decision_model import UniRouteDecisionModel as UniRouteDecisionModel
    from unirouter_integrations.langchain._middleware import UniRouterMiddleware as UniRouterMiddleware

# What langchain-core alone gives. UniRouterMiddleware and UniRouteDecisionModel need more, and are imported on request.
__all__ = ["ChatUniRouter", "UniRouterFeedback"]


def __getattr__(name: str) -> Any:
    """Import what needs more than langchain-core when it is first used."""
    if name == "UniRouterMiddleware":
        from unirouter_integrations.langchain._middleware import UniRouterMiddleware

        return UniRouterMiddleware
    if name == "UniRouteDecisionModel":
        from unirouter_integrations.langchain._decision_model import UniRouteDecisionModel

        return UniRouteDecisionModel
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
