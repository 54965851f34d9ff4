"""Route each prompt to the chat model with the least `error[cluster] + cost_weight * cost`.

The core knows no framework. The integrations are `unirouter_integrations.langchain` and
`unirouter_integrations.llamaindex`.
"""

from typing import TYPE_CHECKING, Any

from unirouter_integrations._router import UniRouter
from unirouter_integrations.core import (
    Candidate,
    ClusterDescription,
    ErrorPrior,
    Exclusion,
    LLMProfile,
    PromptClusters,
    RouterStats,
    RoutingDecision,
    Snapshot,
)
from unirouter_integrations.data import Outcomes
from unirouter_integrations.embedding import Embedder, LocalEmbedder, as_embedder
from unirouter_integrations.errors import (
    EmbeddingError,
    InvalidInputError,
    MissingDependencyError,
    NoModelError,
    StorageError,
    StreamCutError,
    UniRouterError,
    UnknownModelError,
)

if TYPE_CHECKING:
    from unirouter_integrations.grading import Example as Example
    from unirouter_integrations.grading import Price as Price
    from unirouter_integrations.profiling import aprofile_model as aprofile_model
    from unirouter_integrations.profiling import profile_model as profile_model
    from unirouter_integrations.serving import ModelRegistry as ModelRegistry

__version__ = "0.1.0"

__all__ = [
    "Candidate",
    "ClusterDescription",
    "Embedder",
    "EmbeddingError",
    "ErrorPrior",
    "Example",
    "Exclusion",
    "InvalidInputError",
    "LLMProfile",
    "LocalEmbedder",
    "MissingDependencyError",
    "ModelRegistry",
    "NoModelError",
    "Outcomes",
    "Price",
    "PromptClusters",
    "RouterStats",
    "RoutingDecision",
    "Snapshot",
    "StorageError",
    "StreamCutError",
    "UniRouter",
    "UniRouterError",
    "UnknownModelError",
    "aprofile_model",
    "as_embedder",
    "profile_model",
]


def __getattr__(name: str) -> Any:
    """Import what routing does not need when it is first used."""
    if name in {"Example", "Price"}:
        from unirouter_integrations import grading

        return getattr(grading, name)
    if name == "ModelRegistry":
        from unirouter_integrations.serving import ModelRegistry

        return ModelRegistry
    if name in {"aprofile_model", "profile_model"}:
        from unirouter_integrations import profiling

        return getattr(profiling, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
