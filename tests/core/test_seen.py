"""What a router lets be seen of its decisions: figures, log records, spans and metrics."""

import asyncio
import copy
import logging
import math
import sys
from typing import Any

import pytest

from unirouter_integrations import Exclusion, MissingDependencyError, RoutingDecision, UniRouter
from unirouter_integrations.opentelemetry import instrument


def reroute(router: UniRouter, decision: RoutingDecision, reason: str) -> RoutingDecision:
    """The decision for the next model after this one's failed."""
    following = router.snapshot().reroute(decision, Exclusion(decision.model, "failed", reason))
    assert following is not None
    return following


def test_stats_are_of_the_last_decisions(hard_router: UniRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares, means and fallbacks; nothing before the first."""
    empty = hard_router.stats()
    assert (empty.decisions, empty.shares, empty.fallbacks) == (0, {}, 0)
    assert math.isnan(empty.expected_error)
    poem = hard_router.route_many(["sum", "poem", "poem"])[1]
    asyncio.run(hard_router.aroute("date"))
    assert reroute(hard_router, poem, "it failed").model == "oracle"
    stats = hard_router.stats()
    assert stats == (5, {"poet": 0.4, "oracle": 0.4, "abacus": 0.2}, 0, (1 + 2 + 2 + 10 + 10) / 5, 1)
    for _ in range(5):
        hard_router.route_many(["sum"] * 3000)
    assert hard_router.stats().shares == {"abacus": 1}
    assert hard_router.stats().decisions == 10_000


def test_nothing_is_logged_unless_asked_for(router: UniRouter, caplog: pytest.LogCaptureFixture) -> None:
    """Decisions are for debugging, fallbacks are information; a prompt is neither."""
    decision = router.route("poem number secret")
    reroute(router, decision, "it failed with TimeoutError")
    assert caplog.records == []
    with caplog.at_level(logging.DEBUG, "unirouter_integrations"):
        reroute(router, router.route("poem number secret"), "it failed with TimeoutError")
    assert [record.levelname for record in caplog.records] == ["DEBUG", "INFO"]
    assert caplog.messages[0] == str(decision)
    assert caplog.messages[1].endswith("Without poet: it failed with TimeoutError.")
    assert "secret" not in caplog.text


def test_a_listener_is_called_until_it_unsubscribes(router: UniRouter) -> None:
    """Of each decision of a batch; copies of the router have none."""
    seen: list[tuple[RoutingDecision, float, str | None]] = []
    end = router.subscribe(lambda *event: seen.append(event))
    decisions = router.route_many(["sum", "poem"])
    reroute(router, decisions[1], "it failed")
    copy.deepcopy(router).route("sum")
    end()
    router.route("sum")
    assert [(decision.model, failed) for decision, _, failed in seen] == [
        ("abacus", None),
        ("poet", None),
        ("oracle", "poet"),
    ]
    assert all(seconds > 0 for _, seconds, _ in seen)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Providers as an application sets them, and what arrives there: an exporter of spans and a reader of metrics."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracing, metering = TracerProvider(), MeterProvider([reader])
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "get_tracer", tracing.get_tracer)
    monkeypatch.setattr(metrics, "get_meter", metering.get_meter)
    return spans, reader


def test_spans_and_metrics(router: UniRouter, exported: tuple[Any, Any]) -> None:
    """A span per decision under the current one, and the metrics by model; no prompt in any of them."""
    from opentelemetry import trace

    spans, reader = exported
    end = instrument(router)
    with trace.get_tracer("app").start_as_current_span("request") as request:
        reroute(router, router.route("poem number secret"), "it failed")
    end()
    router.route("sum")
    first, second, _ = spans.get_finished_spans()
    assert first.name == "unirouter.route"
    assert first.parent == request.get_span_context()
    assert first.attributes["gen_ai.request.model"] == "poet"
    assert first.attributes["unirouter.expected_cost"] == pytest.approx(2)
    assert first.end_time > first.start_time
    assert second.attributes["unirouter.replaces"] == "poet"
    data = reader.get_metrics_data()
    points = {metric.name: metric.data.data_points for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    assert {name: len(found) for name, found in points.items()} == {
        "unirouter.route.duration": 2,
        "unirouter.expected_cost": 2,
        "unirouter.fallbacks": 1,
    }
    assert points["unirouter.fallbacks"][0].value == 1
    assert "secret" not in "".join(span.to_json() for span in spans.get_finished_spans()) + str(data)


def test_without_opentelemetry_the_remedy_is_named(router: UniRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra of ours."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'unirouter-integrations\[otel\]'"):
        instrument(router)
