"""Route each prompt to the chat model with the least `error[cluster] + cost_weight * cost`.

The core knows no framework. The faces are in `unirouter_integrations.langchain` and, to come,
`unirouter_integrations.llamaindex`.
"""

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

__version__ = "0.1.0"

__all__ = [
    "Candidate",
    "ClusterDescription",
    "ClusterErrors",
    "Embedder",
    "EmbeddingError",
    "ErrorPrior",
    "InvalidInputError",
    "LLMProfile",
    "LocalEmbedder",
    "MissingDependencyError",
    "NoModelError",
    "PromptClusters",
    "RoutingDecision",
    "StorageError",
    "UniRouter",
    "UniRouterError",
    "UnknownModelError",
    "as_embedder",
]
