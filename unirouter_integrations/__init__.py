"""Route each prompt to the chat model with the least `error[cluster] + cost_weight * cost`.

The core knows no framework. Its faces are `unirouter_integrations.langchain` and `unirouter_integrations.llamaindex`.
"""

from typing import TYPE_CHECKING, Any

from unirouter_integrations.clusters import ClusterDescription, PromptClusters
from unirouter_integrations.decision import Candidate, RoutingDecision
from unirouter_integrations.embedding import Embedder, LocalEmbedder, as_embedder
from unirouter_integrations.errors import (
    EmbeddingError,
    InvalidInputError,
    MissingDependencyError,
    NoModelError,
    StorageError,
    UniRouterError,
    UnknownModelError,
)
from unirouter_integrations.profiles import ClusterErrors, ErrorPrior, LLMProfile
from unirouter_integrations.router import UniRouter

if TYPE_CHECKING:
    from unirouter_integrations.profiling import Example as Example
    from unirouter_integrations.profiling import Price as Price
    from unirouter_integrations.profiling import aprofile_model as aprofile_model
    from unirouter_integrations.profiling import profile_model as profile_model

__version__ = "0.1.0"

_OF_PROFILING = ("Example", "Price", "aprofile_model", "profile_model")

__all__ = [
    "Candidate",
    "ClusterDescription",
    "ClusterErrors",
    "Embedder",
    "EmbeddingError",
    "ErrorPrior",
    "Example",
    "InvalidInputError",
    "LLMProfile",
    "LocalEmbedder",
    "MissingDependencyError",
    "NoModelError",
    "Price",
    "PromptClusters",
    "RoutingDecision",
    "StorageError",
    "UniRouter",
    "UniRouterError",
    "UnknownModelError",
    "aprofile_model",
    "as_embedder",
    "profile_model",
]


def __getattr__(name: str) -> Any:
    """Profiling is imported when it is asked for, and asyncio with it."""
    if name in _OF_PROFILING:
        from unirouter_integrations import profiling

        return getattr(profiling, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
