"""Report the decisions of a router as OpenTelemetry spans and metrics."""

from __future__ import annotations

import time
from collections.abc import Callable

from unirouter_integrations._checks import requires
from unirouter_integrations._router import UniRouter
from unirouter_integrations.core import RoutingDecision

__all__ = ["instrument"]

_NAME = "unirouter_integrations"
_NANOSECONDS = 1_000_000_000  # per second; the times of spans are in nanoseconds


def instrument(router: UniRouter) -> Callable[[], None]:
    """Report every decision of a router to the OpenTelemetry providers that the application has set.

    * A span `unirouter.route` per decision, a child of the current span, with the attributes `gen_ai.request.model` (of
      the GenAI semantic conventions: the chosen model), `unirouter.cluster`, `unirouter.expected_error`,
      `unirouter.expected_cost`, `unirouter.cost_weight`, `unirouter.familiarity` and, if the decision replaces a model
      that has failed, `unirouter.replaces`.
    * The histograms `unirouter.route.duration` (seconds, with the embedding if the router embeds) and
      `unirouter.expected_cost` (in the unit of the profiles' costs), and the counter `unirouter.fallbacks`, by model.

    No prompt is reported. The call of the chosen model is for its client to report.

    Args:
        router: The router.

    Returns:
        The function that ends the reports.

    Raises:
        MissingDependencyError: If opentelemetry-api is not installed.
    """
    with requires("instrument()", "otel"):
        from opentelemetry import metrics, trace
    tracer, meter = trace.get_tracer(_NAME), metrics.get_meter(_NAME)
    duration = meter.create_histogram("unirouter.route.duration", "s", "The time a decision took")
    cost = meter.create_histogram("unirouter.expected_cost", "1", "The expected cost of the chosen model's call")
    fallbacks = meter.create_counter("unirouter.fallbacks", "1", "Decisions that replaced a model that had failed")

    def report(decision: RoutingDecision, seconds: float, replaced: str | None) -> None:
        model = {"gen_ai.request.model": decision.model}
        attributes: dict[str, str | float] = {
            **model,
            "unirouter.cluster": decision.cluster,
            "unirouter.expected_error": decision.expected_error,
            "unirouter.expected_cost": decision.expected_cost,
            "unirouter.cost_weight": decision.cost_weight,
            "unirouter.familiarity": decision.familiarity,
        }
        if replaced is not None:
            attributes["unirouter.replaces"] = replaced
            fallbacks.add(1, {"unirouter.replaces": replaced, **model})
        end = time.time_ns()
        start = end - round(seconds * _NANOSECONDS)
        tracer.start_span("unirouter.route", attributes=attributes, start_time=start).end(end)
        duration.record(seconds, model)
        cost.record(decision.expected_cost, model)

    return router.subscribe(report)
