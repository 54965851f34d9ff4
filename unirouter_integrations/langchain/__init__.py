"""The LangChain face: a chat model that picks, for each call, among chat models."""

from unirouter_integrations.errors import MissingDependencyError

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    msg = "unirouter_integrations.langchain needs pip install 'unirouter-integrations[langchain]'."
    raise MissingDependencyError(msg) from error

from unirouter_integrations.langchain.chat_models import ChatUniRouter

__all__ = ["ChatUniRouter"]
