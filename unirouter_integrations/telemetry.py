"""Decisions as OpenTelemetry spans and metrics, for a router that is asked to report them."""

from __future__ import annotations

import time
from collections.abc import Callable

from unirouter_integrations.decision import RoutingDecision
from unirouter_integrations.errors import MissingDependencyError
from unirouter_integrations.router import UniRouter

_NAME = "unirouter_integrations"
_NANO = 1_000_000_000


def instrument(router: UniRouter) -> Callable[[], None]:
    """Report every decision of a router through the OpenTelemetry API, to whatever providers the application has set.

    * A span `unirouter.route` for each, a child of the current span, with the attributes `gen_ai.request.model` (of the
      GenAI semantic conventions: the chosen model), `unirouter.cluster`, `unirouter.expected_error`,
      `unirouter.expected_cost`, `unirouter.cost_weight`, `unirouter.familiarity` and, if it replaces a model that has
      failed, `unirouter.replaces`.
    * The histograms `unirouter.route.duration` (seconds, embedding included where the router embeds) and
      `unirouter.expected_cost` (in the unit of the profiles' costs), and the counter `unirouter.fallbacks`, by model.

    No prompt is reported. The chosen model's own call is its client's to report.

    Args:
        router: The router.

    Returns:
        A function that ends it.

    Raises:
        MissingDependencyError: If opentelemetry-api is not installed.
    """
    try:
        from opentelemetry import metrics, trace
    except ImportError as error:
        msg = "instrument() needs pip install 'unirouter-integrations[otel]'."
        raise MissingDependencyError(msg) from error
    tracer, meter = trace.get_tracer(_NAME), metrics.get_meter(_NAME)
    duration = meter.create_histogram("unirouter.route.duration", "s", "How long a decision took")
    cost = meter.create_histogram("unirouter.expected_cost", "1", "What the chosen model's call is expected to cost")
    fallbacks = meter.create_counter("unirouter.fallbacks", "1", "Decisions that replaced a model that had failed")

    def report(decision: RoutingDecision, seconds: float, failed: str | None) -> None:
        model = {"gen_ai.request.model": decision.model}
        attributes: dict[str, str | float] = {
            **model,
            "unirouter.cluster": decision.cluster,
            "unirouter.expected_error": decision.expected_error,
            "unirouter.expected_cost": decision.expected_cost,
            "unirouter.cost_weight": decision.cost_weight,
            "unirouter.familiarity": decision.familiarity,
        }
        if failed is not None:
            attributes["unirouter.replaces"] = failed
            fallbacks.add(1, {"unirouter.replaces": failed, **model})
        end = time.time_ns()
        tracer.start_span("unirouter.route", attributes=attributes, start_time=end - round(seconds * _NANO)).end(end)
        duration.record(seconds, model)
        cost.record(decision.expected_cost, model)

    return router.subscribe(report)
