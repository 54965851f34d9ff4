"""The decision as an event of LlamaIndex's instrumentation, for tracing tools."""

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # it is how all do
from llama_index.core.instrumentation.events import BaseEvent
from pydantic import Field
from typing_extensions import override

from unirouter_integrations.decision import RoutingDecision

_dispatcher = get_dispatcher(__name__)


class UniRouteDecisionEvent(BaseEvent):
    """A model was chosen. It comes before the events of that model's call, and holds no prompt.

    Attributes:
        model: The name of the model.
        expected_error: Its expected error, between 0 and 1.
        expected_error_std: The standard deviation of that estimate.
        expected_cost: Its expected cost, in the unit of the profiles' costs.
        score: `expected_error + cost_weight * expected_cost`; the least one wins.
        cluster: The index of the cluster the question belongs to most.
        clusters: The fingerprint of the clusters.
        cost_weight: The trade-off lambda.
        familiarity: From 1, a question like those the router was fitted on, to 0, one unlike all of them.
        excluded: The models that could not take the call at all, each with the reason.
    """

    model: str
    expected_error: float
    expected_error_std: float
    expected_cost: float
    score: float
    cluster: int
    clusters: str
    cost_weight: float
    familiarity: float
    excluded: dict[str, str] = Field(default_factory=dict)

    @classmethod
    @override
    def class_name(cls) -> str:
        return "UniRouteDecisionEvent"


def announce(decision: RoutingDecision) -> None:
    """Send the decision to whoever listens."""
    _dispatcher.event(UniRouteDecisionEvent(**decision.as_dict()))
