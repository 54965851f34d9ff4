"""Deferral curves: the quality a router reaches for each budget, and the figures read off them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unirouter_integrations._checks import number
from unirouter_integrations.core._decision import best
from unirouter_integrations.core._profiles import Floats, as_floats
from unirouter_integrations.errors import InvalidInputError

_MAX_WEIGHTS = 400  # cost weights, and so points, of a curve
_MAX_ROWS = 1000  # different prompts among which cost weights are looked for; memory grows with rows * models ** 2


@dataclass(frozen=True, eq=False)
class DeferralCurve:
    """Mean quality against mean cost per call, over all cost weights of a router.

    A router may mix two points by choosing between them at random for each prompt, so straight lines join the points.
    Beyond the last point the rest of the budget is left unspent, so the curve stays level. Quality is the mean score.

    Attributes:
        costs: `(P,)`, increasing: the mean cost per call at each point.
        qualities: `(P,)`: the mean quality at each point.
        model_costs: `(M,)`: the mean cost per call of each model alone, on the same prompts.
        model_qualities: `(M,)`: the mean quality of each model alone.
    """

    costs: Floats
    qualities: Floats
    model_costs: Floats
    model_qualities: Floats

    def __post_init__(self) -> None:
        for pair in (("costs", "qualities"), ("model_costs", "model_qualities")):
            first, second = (as_floats(getattr(self, name), name) for name in pair)
            if first.ndim != 1 or first.shape != second.shape or not len(first):
                msg = f"{pair[0]} and {pair[1]} should have the same shape (n,), not {first.shape} and {second.shape}."
                raise InvalidInputError(msg)
            if not (np.isfinite(first).all() and np.isfinite(second).all()):
                msg = f"{pair[0]} and {pair[1]} should be finite."
                raise InvalidInputError(msg)
            order = np.lexsort((second, first)) if pair[0] == "costs" else slice(None)
            for name, values in zip(pair, (first, second), strict=True):
                object.__setattr__(self, name, values[order])

    @classmethod
    def trace(cls, expected_errors: npt.ArrayLike, scores: npt.ArrayLike, costs: npt.ArrayLike) -> DeferralCurve:
        """Route prompts by their expected errors at every cost weight, and look up the recorded scores.

        Args:
            expected_errors: `(n, M)`, the error (1 - score) that the router expects of each model on each prompt.
            scores: `(n, M)`, the recorded scores, 0 (wrong) to 1 (right).
            costs: `(M,)`, the cost of a call of each model; or `(n, M)`, that of each call, which the router is then
                assumed to know.

        Raises:
            InvalidInputError: If the tables do not fit each other, or hold numbers that are not finite.
        """
        expected, actual = as_floats(expected_errors, "expected_errors"), as_floats(scores, "scores")
        cost = as_floats(costs, "costs")
        if expected.ndim != 2 or not expected.size or actual.shape != expected.shape:  # noqa: PLR2004
            msg = f"expected_errors and scores should both be (n, M), but are {expected.shape} and {actual.shape}."
            raise InvalidInputError(msg)
        if cost.shape not in {expected.shape, expected.shape[1:]}:
            msg = f"costs should be {expected.shape[1:]} or {expected.shape}, but is {cost.shape}."
            raise InvalidInputError(msg)
        cost = np.broadcast_to(cost, expected.shape)
        points = {
            (_mean_of_chosen(cost, chosen), _mean_of_chosen(actual, chosen))
            for chosen in (best(expected, cost, float(weight))[:, None] for weight in _weights(expected, cost))
        }
        spent, quality = (np.array(column) for column in zip(*points, strict=True))
        return cls(spent, quality, cost.mean(axis=0), actual.mean(axis=0))

    @property
    def area(self) -> float:
        """The mean quality over a uniform budget from the cheapest to the most expensive model of the pool.

        The UniRoute paper's "normalised area" (arXiv 2502.08773, section 6): the integral of the curve over
        [c_min, c_max], divided by the length of that range. If all models cost the same, it is the quality at that
        cost.
        """
        return self._mean_quality(float(self.model_costs.min()), float(self.model_costs.max()))

    @property
    def quality_neutral_cost(self) -> float:
        """The least cost that reaches the quality of the best single model, as a share of that model's cost.

        The paper's QNC. It is 1 if the router never reaches that quality for less.
        """
        alone = int(np.lexsort((self.model_costs, -self.model_qualities))[0])
        if self.model_costs[alone] == 0:
            return 1.0
        return min(1.0, self.cost_at(float(self.model_qualities[alone])) / float(self.model_costs[alone]))

    @property
    def peak_quality(self) -> float:
        """The best quality at any cost."""
        return float(self.qualities.max())

    def quality_at(self, cost: float) -> float:
        """Return the quality at this mean cost per call; NaN if no point is that cheap."""
        return float(np.interp(as_floats(cost, "cost"), *self._steps(), left=np.nan))

    def cost_at(self, quality: float) -> float:
        """Return the least mean cost per call that reaches this quality; infinity if none does."""
        costs, qualities = self._steps()
        reached = np.flatnonzero(qualities >= quality)
        if not len(reached):
            return math.inf
        after = int(reached[0])
        if after == 0:
            return float(costs[0])
        share = (quality - qualities[after - 1]) / (qualities[after] - qualities[after - 1])
        return float(costs[after - 1] + share * (costs[after] - costs[after - 1]))

    def hull(self) -> DeferralCurve:
        """Return the non-decreasing convex hull: the best mixture of any two points for each budget.

        RouterBench's NDCH (arXiv 2403.12031, section 3).
        """
        best_so_far = np.maximum.accumulate(self.qualities)
        corners: list[tuple[float, float]] = []
        for x, y in zip(self.costs.tolist(), best_so_far.tolist(), strict=True):
            if corners and corners[-1][0] == x:
                corners.pop()
            while len(corners) > 1 and _above(corners[-2], corners[-1], (x, y)):
                corners.pop()
            corners.append((x, y))
        costs, qualities = zip(*corners, strict=True)
        return DeferralCurve(np.array(costs), np.array(qualities), self.model_costs, self.model_qualities)

    def average_improvement(self, low: float | None = None, high: float | None = None) -> float:
        """Return the mean quality of the hull over a uniform budget from `low` to `high`: RouterBench's AIQ.

        Args:
            low: The least budget; None for the cost of the cheapest model.
            high: The largest budget; None for the cost of the most expensive model. Routers that are compared should
                share both.
        """
        ends = float(self.model_costs.min()), float(self.model_costs.max())
        return self.hull()._mean_quality(ends[0] if low is None else low, ends[1] if high is None else high)  # noqa: SLF001

    def _steps(self) -> tuple[Floats, Floats]:
        """Return the points with only the best quality for each cost."""
        last = np.append(np.diff(self.costs) > 0, True)
        return self.costs[last], self.qualities[last]

    def _mean_quality(self, low: float, high: float) -> float:
        costs, qualities = self._steps()
        if high <= low:
            return float(np.interp(low, costs, qualities))
        knots = np.unique(np.concatenate([[low, high], costs[(costs > low) & (costs < high)]]))
        heights = np.interp(knots, costs, qualities)
        return float(((heights[1:] + heights[:-1]) / 2 * np.diff(knots)).sum() / (high - low))


def router_arena_score(
    accuracy: float, cost: float, *, least_cost: float = 0.0044, largest_cost: float = 200.0, beta: float = 0.1
) -> float:
    """Compute RouterArena's score of a router: (1 + beta) A C / (beta A + C), from 0 to 1.

    The defaults are those of https://github.com/RouteWorks/RouterArena (`compute_scores.py`, 2025).

    Args:
        accuracy: A, the mean accuracy, 0 to 1.
        cost: USD per 1,000 calls. C is its place on a logarithmic scale from `largest_cost` (0) to `least_cost` (1).
        least_cost: The least cost of the scale.
        largest_cost: The largest cost of the scale.
        beta: The weight of cost against accuracy; the less, the less cost counts.

    Raises:
        InvalidInputError: If accuracy or cost are out of range.
    """
    accuracy, cost = number(accuracy, "accuracy", high=1), number(cost, "cost", positive=True)
    cheapness = math.log2(largest_cost / min(max(cost, least_cost), largest_cost)) / math.log2(
        largest_cost / least_cost
    )
    if accuracy == 0 or cheapness == 0:
        return 0.0
    return (1 + beta) * accuracy * cheapness / (beta * accuracy + cheapness)


def _mean_of_chosen(table: Floats, chosen: npt.NDArray[np.intp]) -> float:
    return float(np.take_along_axis(table, chosen, axis=1).mean())


def _above(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]) -> bool:
    """Return whether the line from left to right passes above the middle point or through it."""
    return (middle[1] - left[1]) * (right[0] - left[0]) <= (right[1] - left[1]) * (middle[0] - left[0])


def _weights(expected: Floats, cost: Floats) -> Floats:
    """Return a cost weight between any two at which some prompt changes its model, so that no point is missed.

    Of very many different prompts, or weights, an even selection is taken.
    """
    rows = np.unique(np.concatenate([expected, cost], axis=1), axis=0)
    rows = rows[:: math.ceil(len(rows) / _MAX_ROWS)]
    errors, costs = rows[:, : expected.shape[1]], rows[:, expected.shape[1] :]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossings = (errors[:, :, None] - errors[:, None, :]) / (costs[:, None, :] - costs[:, :, None])
    found = np.unique(crossings[np.isfinite(crossings) & (crossings > 0)])
    if not len(found):
        return np.zeros(1)
    between: Floats = np.concatenate([[0, found[0] / 2], np.sqrt(found[1:] * found[:-1]), [found[-1] * 2]])
    if len(between) <= _MAX_WEIGHTS:
        return between
    return np.asarray(between[np.linspace(0, len(between) - 1, _MAX_WEIGHTS).round().astype(int)])
