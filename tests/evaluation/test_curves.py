"""Deferral curves and the figures read off them, checked against cases worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unirouter_integrations import InvalidInputError
from unirouter_integrations.evaluation import DeferralCurve, router_arena_score

# Two models, four prompts. The cheap one (cost 1) is right on two of them, the expensive one (cost 5) on three.
SCORES = np.array([[1, 1], [1, 0], [0, 1], [0, 1]], float)
COSTS = np.array([1.0, 5.0])


def test_a_router_that_knows_everything() -> None:
    """It buys the two answers that only the expensive model has: 3 on average, all right. Less money, fewer of them."""
    curve = DeferralCurve.trace(1 - SCORES, SCORES, COSTS)
    np.testing.assert_allclose(curve.costs, [1, 3])
    np.testing.assert_allclose(curve.qualities, [0.5, 1])
    np.testing.assert_allclose(curve.model_qualities, [0.5, 0.75])
    # From 1 to 3 the curve rises from 0.5 to 1, from 3 to 5 it is level: (2 * 0.75 + 2 * 1) / 4.
    assert curve.area == pytest.approx(0.875)
    assert curve.peak_quality == 1
    assert curve.quality_at(2) == pytest.approx(0.75)
    assert curve.quality_at(99) == 1
    assert math.isnan(curve.quality_at(0.5))
    assert curve.cost_at(0.75) == pytest.approx(2)
    assert curve.cost_at(0.1) == 1
    assert math.isinf(curve.cost_at(1.01))
    assert curve.quality_neutral_cost == pytest.approx(2 / 5)


def test_a_router_that_does_not_look_at_the_prompt() -> None:
    """It mixes the two models: a straight line between them, and the best single model's quality at its own cost."""
    curve = DeferralCurve.trace(np.broadcast_to(1 - SCORES.mean(axis=0), SCORES.shape), SCORES, COSTS)
    np.testing.assert_allclose(curve.costs, [1, 5])
    assert curve.area == pytest.approx((0.5 + 0.75) / 2)
    assert curve.quality_neutral_cost == 1


def test_a_router_that_is_wrong_about_everything() -> None:
    """Its curve may fall; the area counts that, the hull does not."""
    curve = DeferralCurve.trace(SCORES, SCORES, COSTS)
    np.testing.assert_allclose(curve.costs, [1, 2])
    np.testing.assert_allclose(curve.qualities, [0.5, 0.25])
    assert curve.area == pytest.approx((1 * 0.375 + 3 * 0.25) / 4)
    np.testing.assert_allclose(curve.hull().qualities, [0.5, 0.5])
    assert curve.average_improvement() == pytest.approx(0.5)
    assert curve.peak_quality == 0.5
    assert curve.quality_neutral_cost == 1


def test_the_hull_by_hand() -> None:
    """Of five points one lies under a line and one falls: the corners are the other three and a level end."""
    curve = DeferralCurve(
        np.array([4.0, 1.0, 2.0, 3.0, 6.0]), np.array([0.8, 0.2, 0.3, 0.7, 0.6]), np.array([1.0, 6.0]), np.ones(2)
    )
    hull = curve.hull()
    np.testing.assert_allclose(hull.costs, [1, 3, 4, 6])
    np.testing.assert_allclose(hull.qualities, [0.2, 0.7, 0.8, 0.8])
    # AIQ on [1, 6]: 2 * 0.45 + 1 * 0.75 + 2 * 0.8, divided by 5.
    assert curve.average_improvement() == pytest.approx((0.9 + 0.75 + 1.6) / 5)
    assert curve.average_improvement(3, 4) == pytest.approx(0.75)


def test_costs_may_differ_from_call_to_call() -> None:
    """The router knows what each call would cost; the axis still runs between the means of the models alone."""
    costs = np.array([[1, 9], [1, 1], [1, 2], [1, 8]], float)
    curve = DeferralCurve.trace(1 - SCORES, SCORES, costs)
    np.testing.assert_allclose(curve.model_costs, [1, 5])
    np.testing.assert_allclose(curve.costs, [1, 1.25, 3])
    np.testing.assert_allclose(curve.qualities, [0.5, 0.75, 1])


def test_models_of_one_price_have_one_budget() -> None:
    """The area is the quality at that cost."""
    curve = DeferralCurve.trace(1 - SCORES, SCORES, [2, 2])
    assert curve.area == curve.peak_quality == 1
    free = DeferralCurve.trace(1 - SCORES, SCORES, [0, 0])
    assert (free.area, free.quality_neutral_cost) == (1, 1)


TABLES = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        arrays(float, (n, 3), elements=st.integers(0, 4).map(lambda x: x / 4)),
        arrays(float, (n, 3), elements=st.sampled_from([0.0, 0.5, 1.0])),
        arrays(float, 3, elements=st.integers(0, 5).map(float)),
    )
)


@given(TABLES)
def test_the_curve_has_the_points_of_every_weight(tables: Any) -> None:
    """Whatever the cost weight, cost and quality of its choices are a point of the curve."""
    expected, scores, costs = tables
    curve = DeferralCurve.trace(expected, scores, costs)
    points = set(zip(curve.costs.round(9).tolist(), curve.qualities.round(9).tolist(), strict=True))
    for weight in (0, 0.013, 0.051, 0.11, 0.26, 0.53, 0.77, 1.3, 1e6):
        objective = expected + weight * costs
        tied = objective == objective.min(axis=1, keepdims=True)
        chosen = np.where(tied, costs, np.inf).argsort(axis=1, kind="stable")[:, 0]
        quality = scores[np.arange(len(scores)), chosen].mean()
        assert (round(float(costs[chosen].mean()), 9), round(float(quality), 9)) in points


@given(TABLES)
def test_the_figures_keep_their_order(tables: Any) -> None:
    """The hull is above the curve, nothing is above the peak, and no router beats the one that knows everything."""
    expected, scores, costs = tables
    curve, oracle = DeferralCurve.trace(expected, scores, costs), DeferralCurve.trace(1 - scores, scores, costs)
    assert 0 <= curve.area <= curve.average_improvement() + 1e-9 <= curve.peak_quality + 2e-9 <= 1 + 2e-9
    assert curve.area <= oracle.area + 1e-9
    assert 0 <= oracle.quality_neutral_cost <= curve.quality_neutral_cost + 1e-9 <= 1 + 1e-9


@pytest.mark.parametrize(
    ("accuracy", "cost", "score"),
    [(0.7969, 0.27, 77.63), (0.7814, 0.27, 76.28), (0.7718, 0.30, 75.30), (0.7584, 0.22, 74.55), (0.7976, 0.70, 76.21)],
)
def test_the_arena_score_is_the_published_one(accuracy: float, cost: float, score: float) -> None:
    """Rows of RouterArena's leaderboard of August 2026, up to the rounding of their costs."""
    assert 100 * router_arena_score(accuracy, cost) == pytest.approx(score, abs=0.1)


def test_the_arena_score_at_its_ends() -> None:
    """Nothing right, or as expensive as it gets: 0. Everything right for nothing: 1."""
    assert router_arena_score(0, 1) == router_arena_score(1, 200) == router_arena_score(1, 1e9) == 0
    assert router_arena_score(1, 1e-9) == pytest.approx(1)
    with pytest.raises(InvalidInputError, match="accuracy should be a number from 0 to 1"):
        router_arena_score(1.1, 1)
    for cost in (0, math.nan):
        with pytest.raises(InvalidInputError, match="cost should be a number above 0"):
            router_arena_score(0.5, cost)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SCORES, SCORES[:2], COSTS), r"both be \(n, M\), but are \(4, 2\) and \(2, 2\)"),
        ((SCORES[0], SCORES[0], COSTS), r"both be \(n, M\)"),
        ((SCORES, SCORES, [1, 2, 3]), r"costs should be \(2,\) or \(4, 2\), but is \(3,\)"),
        ((SCORES, SCORES * np.nan, COSTS), "finite"),
    ],
)
def test_tables_that_do_not_fit_are_refused(arguments: Any, message: str) -> None:
    """The shapes are named."""
    with pytest.raises(InvalidInputError, match=message):
        DeferralCurve.trace(*arguments)
    with pytest.raises(InvalidInputError, match="should have the same shape"):
        DeferralCurve(np.ones(2), np.ones(3), np.ones(1), np.ones(1))
