"""Decisions as events of LlamaIndex's instrumentation, for tracing tools."""

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # as all of its users import it
from llama_index.core.instrumentation.events import BaseEvent
from pydantic import Field
from typing_extensions import override

from unirouter_integrations.core._decision import RoutingDecision

_dispatcher = get_dispatcher(__name__)


class UniRouteDecisionEvent(BaseEvent):
    """A model was chosen. The event comes before those of the model's call, and holds no prompt.

    Attributes:
        model: The name of the model.
        expected_error: Its expected error, between 0 and 1.
        expected_error_std: The standard deviation of that estimate.
        expected_cost: Its expected cost, in the unit of the profiles' costs.
        objective: `expected_error + cost_weight * expected_cost`; the least one wins.
        cluster: The index of the cluster the question belongs to most.
        clusters: The fingerprint of the clusters.
        cost_weight: The trade-off lambda.
        familiarity: From 1, a question like those the router was fitted on, to 0, one unlike all of them.
        basis: Why it was chosen, see `RoutingDecision`.
        excluded: The models that did not take part: `{"model": ..., "kind": ..., "reason": ...}` for each.
        id: Identifies the decision, as in the answer.
        format_version: Of these fields.
    """

    model: str
    expected_error: float
    expected_error_std: float
    expected_cost: float
    objective: float
    cluster: int
    clusters: str
    cost_weight: float
    familiarity: float
    basis: str
    excluded: list[dict[str, str]] = Field(default_factory=list)
    id: str
    format_version: int

    @classmethod
    @override
    def class_name(cls) -> str:
        return "UniRouteDecisionEvent"


def announce(decision: RoutingDecision) -> None:
    """Dispatch the event of a decision."""
    _dispatcher.event(UniRouteDecisionEvent(**decision.as_dict()))
