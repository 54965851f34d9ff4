"""Profile a model: let it answer examples, grade and price the answers, and describe it to a router."""

from unirouter_integrations.profiling._api import aprofile_model, profile_model
from unirouter_integrations.profiling._estimate import CostEstimate, estimate_cost
from unirouter_integrations.profiling._examples import read_examples
from unirouter_integrations.profiling._run import OnFailure, StopWhen

__all__ = [
    "CostEstimate",
    "OnFailure",
    "StopWhen",
    "aprofile_model",
    "estimate_cost",
    "profile_model",
    "read_examples",
]
