"""Find the cost weight lambda for a budget or a quality."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from unirouter_integrations._checks import number
from unirouter_integrations.core._decision import best
from unirouter_integrations.core._pool import Expectations
from unirouter_integrations.errors import InvalidInputError

_RELATIVE_TOLERANCE = 1e-9  # of budgets, qualities and weights, for rounding
_MAX_WEIGHT = 1e18  # in units of `_weight_unit`
_MAX_UNIT = 1e289  # so that the largest weight is finite


def goal(budget: float | None, quality: float | None) -> Callable[[Expectations], float]:
    """The function that finds the cost weight for one of these two goals.

    Args:
        budget: See `weight_for_budget`; None if the goal is a quality.
        quality: See `weight_for_quality`; None if the goal is a budget.

    Raises:
        InvalidInputError: If not exactly one is given, or it is out of range; from the function, if there are no
            prompts, or the goal cannot be reached.
    """
    if budget is not None and quality is None:
        return partial(_find, weight_for_budget, number(budget, "budget"))
    if quality is not None and budget is None:
        return partial(_find, weight_for_quality, number(quality, "quality"))
    msg = "Give either budget= or quality= to calibrate."
    raise InvalidInputError(msg)


def _find(rule: Callable[[Expectations, float], float], level: float, expected: Expectations) -> float:
    if not len(expected.error):
        msg = "There are no prompts to calibrate on; give at least one."
        raise InvalidInputError(msg)
    return rule(expected, level)


def routed_means(expected: Expectations, cost_weight: float) -> tuple[float, float]:
    """The mean expected error and cost of some prompts that are routed at this cost weight."""
    chosen = best(expected.error, expected.cost, cost_weight)
    error, cost = (float(table[np.arange(len(chosen)), chosen].mean()) for table in expected)
    return error, cost


def weight_for_budget(expected: Expectations, budget: float) -> float:
    """The smallest cost weight whose mean expected cost per call keeps to the budget.

    Args:
        expected: The expectations of the candidates on some prompts, `(n, M)`.
        budget: The mean cost per call that must not be exceeded.

    Raises:
        InvalidInputError: If the cheapest models cost more than that.
    """
    cheapest = float(expected.cost.min(axis=1).mean())
    if budget < cheapest * (1 - _RELATIVE_TOLERANCE):
        msg = (
            f"A budget of {budget:g} per call cannot be kept: even sending each prompt to the cheapest model for it "
            f"costs {cheapest:g} in the mean."
        )
        raise InvalidInputError(msg)
    limit = budget * (1 + _RELATIVE_TOLERANCE)
    return _turning_point(lambda weight: routed_means(expected, weight)[1] > limit, _weight_unit(expected))[1]


def weight_for_quality(expected: Expectations, quality: float) -> float:
    """The largest cost weight that keeps this share of the best single model's expected quality.

    If sending each prompt to its cheapest model keeps it, this is the smallest weight that does so.

    Args:
        expected: The expectations of the candidates on some prompts, `(n, M)`.
        quality: The share of the quality (1 - error) to keep.

    Raises:
        InvalidInputError: If it cannot be reached.
    """
    best_single, reachable = 1 - float(expected.error.mean(axis=0).min()), 1 - routed_means(expected, 0)[0]
    goal = quality * best_single * (1 - _RELATIVE_TOLERANCE)
    if reachable < goal:
        msg = (
            f"A quality of {quality:g} times the best single model's ({best_single:.3f}) cannot be reached; "
            f"ignoring cost reaches {reachable:.3f}."
        )
        raise InvalidInputError(msg)
    unit = _weight_unit(expected)
    if 1 - routed_means(expected, _MAX_WEIGHT * unit)[0] >= goal:
        return weight_for_budget(expected, float(expected.cost.min(axis=1).mean()))
    return _turning_point(lambda weight: 1 - routed_means(expected, weight)[0] >= goal, unit)[0]


def _weight_unit(expected: Expectations) -> float:
    """The unit in which cost weights are searched: at this weight the most expensive call is worth one error."""
    return min(1 / (float(expected.cost.max()) or 1.0), _MAX_UNIT)


def _turning_point(holds: Callable[[float], bool], unit: float) -> tuple[float, float]:
    """The last weight at which a condition holds, and the first at which it does not, as close as rounding allows.

    Mean cost and quality never rise with the weight, so bisection finds the place. If the condition never holds, both
    are 0.
    """
    if not holds(0):
        return 0.0, 0.0
    low, high = 0.0, unit
    while holds(high):
        if high >= unit * _MAX_WEIGHT:
            return high, high
        low, high = high, high * 2
    while high - low > _RELATIVE_TOLERANCE * high and low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, high
