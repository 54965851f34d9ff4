"""The paper: Phi, Psi and the rule that chooses a model."""

from unirouter_integrations.core._clusters import ClusterDescription, Memberships, PromptClusters
from unirouter_integrations.core._decision import Candidate, Exclusion, RoutingDecision
from unirouter_integrations.core._gate import SoftmaxGate
from unirouter_integrations.core._observers import Listener, RouterStats
from unirouter_integrations.core._pool import Expectations, Pool
from unirouter_integrations.core._profiles import ClusterErrors, ErrorPrior, LLMProfile
from unirouter_integrations.core._snapshot import Snapshot

__all__ = [
    "Candidate",
    "ClusterDescription",
    "ClusterErrors",
    "ErrorPrior",
    "Exclusion",
    "Expectations",
    "LLMProfile",
    "Listener",
    "Memberships",
    "Pool",
    "PromptClusters",
    "RouterStats",
    "RoutingDecision",
    "Snapshot",
    "SoftmaxGate",
]
