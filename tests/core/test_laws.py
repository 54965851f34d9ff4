"""Laws of the rule that hold for any pool."""

import tempfile

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from unirouter_integrations import ErrorPrior, LLMProfile, PromptClusters, UniRouter
from unirouter_integrations.profiles import Estimator

Models = list[tuple[list[int], float | tuple[float, ...]]]
"""For each model how often out of 8 it was wrong in each cluster, and its cost or costs."""

K = 3
CLUSTERS = PromptClusters.fit(["a", "b", "c"], None, vectors=np.eye(K), n_clusters=K)
VECTORS = np.eye(K)
PRIOR = UniRouter.fit(
    ["a", "b", "c"], embedder=None, vectors=np.eye(K), n_clusters=K, outcomes={"x": [0, 1, 0], "y": [1, 1, 0]}
).prior

# Quarters and eighths: sums and products of them are exact, so that laws about ties and order hold to the letter.
EXACT = st.integers(0, 16).map(lambda n: n / 4)
PROFILE = st.tuples(st.lists(st.integers(0, 8), min_size=K, max_size=K), st.one_of(EXACT, st.tuples(*[EXACT] * K)))
POOL = st.lists(PROFILE, min_size=1, max_size=6)
WEIGHT = st.integers(0, 64).map(lambda n: n / 8)


def routed(pool: Models, order: list[int] | None = None) -> UniRouter:
    """A router over models that were wrong so many times out of 8 in each cluster."""
    router = UniRouter(CLUSTERS, estimator="mean")
    for index in order or range(len(pool)):
        errors, cost = pool[index]
        cost_array = cost if isinstance(cost, float) else np.array(cost)
        router.register(LLMProfile(f"m{index}", np.full(K, 8.0), np.array(errors, float), cost=cost_array))
    return router


def outcome(router: UniRouter, weight: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    decisions = router.route_many(vectors=VECTORS, cost_weight=weight)
    return np.array([d.expected_error for d in decisions]), np.array([d.expected_cost for d in decisions])


@given(POOL, WEIGHT, WEIGHT)
def test_more_cost_weight_never_costs_more_nor_errs_less(pool: Models, a: float, b: float) -> None:
    """As the weight rises, expected cost never rises and expected error never falls, on any prompt."""
    router = routed(pool)
    (error_low, cost_low), (error_high, cost_high) = outcome(router, min(a, b)), outcome(router, max(a, b))
    assert (cost_high <= cost_low).all()
    assert (error_high >= error_low).all()


@given(POOL)
def test_at_weight_zero_the_least_error_wins_and_of_these_the_cheapest(pool: Models) -> None:
    """Compared with all candidates of the ranking."""
    for decision in routed(pool).route_many(vectors=VECTORS, cost_weight=0):
        assert decision.expected_error == min(c.expected_error for c in decision.ranking)
        equals = [c.expected_cost for c in decision.ranking if c.expected_error == decision.expected_error]
        assert decision.expected_cost == min(equals)


@given(POOL, WEIGHT)
def test_the_score_is_the_formula_and_the_winner_has_the_least(pool: Models, w: float) -> None:
    """It is error + cost_weight * cost; the ranking is sorted by it and starts with the winner."""
    for decision in routed(pool).route_many(vectors=VECTORS, cost_weight=w):
        assert decision.score == decision.expected_error + w * decision.expected_cost
        scores = [candidate.score for candidate in decision.ranking]
        assert scores == sorted(scores)
        assert decision.ranking[0].model == decision.model
        assert len({candidate.model for candidate in decision.ranking}) == len(pool)


@given(POOL, WEIGHT, st.integers(0, 5), st.integers(1, 8))
def test_a_dominated_model_is_never_chosen(pool: Models, w: float, which: int, worse: int) -> None:
    """A copy of a model that is nowhere better and everywhere dearer stays out; so does one that only errs more."""
    errors, cost = pool[which % len(pool)]
    dearer = (errors, float(np.max(cost)) + 1)
    wronger = ([min(8, error + worse) for error in errors], cost)
    decisions = routed([*pool, dearer, wronger]).route_many(vectors=VECTORS, cost_weight=w)
    for k, decision in enumerate(decisions):
        assert decision.model != f"m{len(pool)}"
        assert decision.model != f"m{len(pool) + 1}" or wronger[0][k] == errors[k]


@given(st.data(), POOL, WEIGHT)
def test_the_order_of_registration_does_not_matter(data: st.DataObject, pool: Models, w: float) -> None:
    """Not even between models that are equal in everything."""
    order = data.draw(st.permutations(range(len(pool))))
    a = routed(pool).route_many(vectors=VECTORS, cost_weight=w)
    assert [d.model for d in routed(pool, order).route_many(vectors=VECTORS, cost_weight=w)] == [d.model for d in a]


@given(POOL, WEIGHT)
def test_candidates_that_do_not_win_do_not_matter(pool: Models, w: float) -> None:
    """Taking a loser away changes nothing; among the winner alone, it wins with the same numbers."""
    router = routed(pool)
    for vector in VECTORS:
        decision = router.route(vector=vector, cost_weight=w)
        alone = router.route(vector=vector, cost_weight=w, among=[decision.model])
        assert alone == decision
        without_last = [candidate.model for candidate in decision.ranking[:-1]] or [decision.model]
        assert router.route(vector=vector, cost_weight=w, among=without_last) == decision


@given(POOL, st.floats(0, 1))
def test_a_calibrated_budget_is_kept(pool: Models, position: float) -> None:
    """Anywhere between the cheapest possible and the dearest."""
    router = routed(pool)
    cheapest = float(np.mean([min(c.expected_cost for c in d.ranking) for d in router.route_many(vectors=VECTORS)]))
    budget = cheapest + position * 4
    router.calibrate(vectors=VECTORS, budget=budget)
    assert np.mean([d.expected_cost for d in router.route_many(vectors=VECTORS)]) <= budget * (1 + 1e-8)


@settings(max_examples=25)
@given(POOL, WEIGHT, st.sampled_from(["mean", "laplace", "empirical_bayes"]), st.sampled_from([None, PRIOR]))
def test_a_loaded_router_decides_like_the_saved_one(
    pool: Models, w: float, estimator: Estimator, prior: ErrorPrior | None
) -> None:
    """To the last bit, ranking included, for every estimator and with or without a prior."""
    router = UniRouter(CLUSTERS, estimator=estimator, prior=prior)
    for profile in routed(pool).profiles.values():
        router.register(profile)
    router.cost_weight = w
    with tempfile.TemporaryDirectory() as folder:
        router.save(folder)
        loaded = UniRouter.load(folder)
    for a, b in zip(router.route_many(vectors=VECTORS), loaded.route_many(vectors=VECTORS), strict=True):
        assert a == b
        assert a.ranking == b.ranking
