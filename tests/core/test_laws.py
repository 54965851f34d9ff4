"""Laws of the rule that hold for any pool, under hard and under soft assignment."""

import dataclasses
import tempfile

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unirouter_integrations import ErrorPrior, LLMProfile, PromptClusters, UniRouter
from unirouter_integrations.core._gate import SoftmaxGate
from unirouter_integrations.core._profiles import Estimator

Models = list[tuple[list[int], float | tuple[float, ...]]]
"""For each model how often out of 8 it was wrong in each cluster, and its cost or costs."""

K = 3
HARD = PromptClusters.fit(["a", "b", "c"], None, vectors=np.eye(K), n_clusters=K, assignment="hard")
SOFT = dataclasses.replace(
    HARD,
    gate=SoftmaxGate.from_centroids(HARD.centroids, 0.5),
    shares=np.array([0.5, 0.375, 0.125]),
    familiar_radius=0.8,
    familiar_falloff=0.2,
)
# One of each cluster, some between clusters (the third between all, alike), one unlike all of them, one of no length.
VECTORS = np.vstack([np.eye(K), [[1, 1, 0], [1, 2, 3], [1, 1, 1], [9, 0, 1], [-1, -2, -1], [0, 0, 0]]])
both = pytest.mark.parametrize("clusters", [HARD, SOFT], ids=["hard", "soft"])
PRIOR = UniRouter.fit(
    ["a", "b", "c"], embedder=None, vectors=np.eye(K), n_clusters=K, scores={"x": [1, 0, 1], "y": [0, 0, 1]}
).prior

# Quarters and eighths: sums and products of them are exact, so that laws about ties and order hold to the letter.
EXACT = st.integers(0, 16).map(lambda n: n / 4)
PROFILE = st.tuples(st.lists(st.integers(0, 8), min_size=K, max_size=K), st.one_of(EXACT, st.tuples(*[EXACT] * K)))
POOL = st.lists(PROFILE, min_size=1, max_size=6)
WEIGHT = st.integers(0, 64).map(lambda n: n / 8)
NUMBERS = ("expected_error", "expected_error_std", "expected_cost", "objective", "familiarity")


def routed(clusters: PromptClusters, pool: Models, order: list[int] | None = None) -> UniRouter:
    """A router over models that were wrong so many times out of 8 in each cluster."""
    router = UniRouter(clusters, estimator="mean")
    for index in order or range(len(pool)):
        errors, cost = pool[index]
        cost_array = cost if isinstance(cost, float) else np.array(cost)
        router.register(LLMProfile(f"m{index}", np.full(K, 8.0), np.array(errors, float), cost=cost_array))
    return router


def outcome(router: UniRouter, weight: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    decisions = router.route_many(vectors=VECTORS, cost_weight=weight)
    return np.array([d.expected_error for d in decisions]), np.array([d.expected_cost for d in decisions])


@both
@given(POOL, WEIGHT, WEIGHT)
def test_more_cost_weight_never_costs_more_nor_errs_less(
    clusters: PromptClusters, pool: Models, a: float, b: float
) -> None:
    """As the weight rises, expected cost never rises and expected error never falls, on any prompt."""
    router = routed(clusters, pool)
    (error_low, cost_low), (error_high, cost_high) = outcome(router, min(a, b)), outcome(router, max(a, b))
    assert (cost_high <= cost_low).all()
    assert (error_high >= error_low).all()


@both
@given(POOL)
def test_at_weight_zero_the_least_error_wins_and_of_these_the_cheapest(clusters: PromptClusters, pool: Models) -> None:
    """Compared with all candidates of the ranking."""
    for decision in routed(clusters, pool).route_many(vectors=VECTORS, cost_weight=0):
        assert decision.expected_error == min(c.expected_error for c in decision.ranking)
        equals = [c.expected_cost for c in decision.ranking if c.expected_error == decision.expected_error]
        assert decision.expected_cost == min(equals)


@both
@given(POOL, WEIGHT)
def test_the_objective_is_the_formula_and_the_winner_has_the_least(
    clusters: PromptClusters, pool: Models, w: float
) -> None:
    """It is error + cost_weight * cost; the ranking is sorted by it and starts with the winner."""
    for decision in routed(clusters, pool).route_many(vectors=VECTORS, cost_weight=w):
        assert decision.objective == decision.expected_error + w * decision.expected_cost
        objectives = [candidate.objective for candidate in decision.ranking]
        assert objectives == sorted(objectives)
        assert decision.ranking[0].model == decision.model
        assert len({candidate.model for candidate in decision.ranking}) == len(pool)


@both
@given(POOL, WEIGHT, st.integers(0, 5), st.integers(1, 8))
def test_a_dominated_model_is_never_chosen(
    clusters: PromptClusters, pool: Models, w: float, which: int, worse: int
) -> None:
    """A copy of a model that is nowhere better and everywhere dearer stays out; so does one that only errs more."""
    errors, cost = pool[which % len(pool)]
    dearer = (errors, float(np.max(cost)) + 1)
    wronger = ([min(8, error + worse) for error in errors], cost)
    decisions = routed(clusters, [*pool, dearer, wronger]).route_many(vectors=VECTORS, cost_weight=w)
    for decision in decisions:
        expected = {candidate.model: candidate.expected_error for candidate in decision.ranking}
        assert decision.model != f"m{len(pool)}"
        assert decision.model != f"m{len(pool) + 1}" or decision.expected_error == expected[f"m{which % len(pool)}"]


@both
@given(st.data(), POOL, WEIGHT)
def test_the_order_of_registration_does_not_matter(
    clusters: PromptClusters, data: st.DataObject, pool: Models, w: float
) -> None:
    """Not even between models that are equal in everything."""
    order = data.draw(st.permutations(range(len(pool))))
    a = routed(clusters, pool).route_many(vectors=VECTORS, cost_weight=w)
    assert [d.model for d in routed(clusters, pool, order).route_many(vectors=VECTORS, cost_weight=w)] == [
        d.model for d in a
    ]


@both
@given(POOL, WEIGHT)
def test_candidates_that_do_not_win_do_not_matter(clusters: PromptClusters, pool: Models, w: float) -> None:
    """Taking a loser away changes nothing; among the winner alone, it wins with the same numbers.

    Where they are sums over clusters, the same but for rounding.
    """
    router = routed(clusters, pool)
    for vector in VECTORS:
        decision = router.route(vector=vector, cost_weight=w)
        without_last = [candidate.model for candidate in decision.ranking[:-1]] or [decision.model]
        for among in ([decision.model], without_last):
            again = router.route(vector=vector, cost_weight=w, among=among)
            if clusters is SOFT:
                assert again.model == decision.model
                numbers = {name: pytest.approx(getattr(decision, name), abs=1e-10) for name in NUMBERS}
                assert {name: getattr(again, name) for name in NUMBERS} == numbers
            else:
                assert again == decision


@both
@given(POOL, st.floats(0, 1))
def test_a_calibrated_budget_is_kept(clusters: PromptClusters, pool: Models, position: float) -> None:
    """Anywhere between the cheapest possible and the dearest."""
    router = routed(clusters, pool)
    cheapest = float(np.mean([min(c.expected_cost for c in d.ranking) for d in router.route_many(vectors=VECTORS)]))
    budget = cheapest + position * 4
    router.calibrate(vectors=VECTORS, budget=budget)
    assert np.mean([d.expected_cost for d in router.route_many(vectors=VECTORS)]) <= budget * (1 + 1e-8)


@both
@settings(max_examples=25)
@given(POOL, WEIGHT, st.sampled_from(["mean", "laplace", "empirical_bayes"]), st.sampled_from([None, PRIOR]))
def test_a_loaded_router_decides_like_the_saved_one(
    clusters: PromptClusters, pool: Models, w: float, estimator: Estimator, prior: ErrorPrior | None
) -> None:
    """To the last bit, ranking included, for every estimator and with or without a prior."""
    router = UniRouter(clusters, estimator=estimator, prior=prior)
    for profile in routed(clusters, pool).profiles.values():
        router.register(profile)
    router.cost_weight = w
    with tempfile.TemporaryDirectory() as folder:
        router.save(folder)
        loaded = UniRouter.load(folder)
    for a, b in zip(router.route_many(vectors=VECTORS), loaded.route_many(vectors=VECTORS), strict=True):
        assert a == b
        assert a.ranking == b.ranking


@both
@given(POOL, WEIGHT)
def test_what_is_expected_is_memberships_times_tables(clusters: PromptClusters, pool: Models, w: float) -> None:
    """Phi . Psi and Phi . c of every candidate, so always between the least and the most of any cluster."""
    router = routed(clusters, pool)
    phi = clusters.memberships(vectors=VECTORS).phi
    psi = np.column_stack([router.profiles[name].estimate("mean").error for name in router.models])
    costs = np.column_stack([np.broadcast_to(router.profiles[name].cost, K) for name in router.models])
    np.testing.assert_allclose(router.expected_errors(vectors=VECTORS), phi @ psi, atol=1e-11)
    for row, decision in enumerate(router.route_many(vectors=VECTORS, cost_weight=w)):
        for candidate in decision.ranking:
            column = router.models.index(candidate.model)
            assert candidate.expected_error == pytest.approx(phi[row] @ psi[:, column], abs=1e-11)
            assert candidate.expected_cost == pytest.approx(phi[row] @ costs[:, column], abs=1e-10)
            for number, table in ((candidate.expected_error, psi), (candidate.expected_cost, costs)):
                assert table[:, column].min() - 1e-10 <= number <= table[:, column].max() + 1e-10


@both
@given(POOL, WEIGHT)
def test_the_winner_is_the_first_of_the_ranking_in_every_number(
    clusters: PromptClusters, pool: Models, w: float
) -> None:
    """To the last bit."""
    for decision in routed(clusters, pool).route_many(vectors=VECTORS, cost_weight=w):
        assert vars(decision.ranking[0]).items() <= vars(decision).items()


@both
@given(POOL, WEIGHT)
def test_a_prompt_is_decided_alone_as_among_others(clusters: PromptClusters, pool: Models, w: float) -> None:
    """To the last bit, wherever in the batch it stands."""
    router = routed(clusters, pool)
    together = router.route_many(vectors=VECTORS, cost_weight=w)
    assert router.route_many(vectors=VECTORS[::-1], cost_weight=w)[::-1] == together
    assert [router.route(vector=vector, cost_weight=w) for vector in VECTORS] == together


@given(POOL, WEIGHT)
def test_soft_memberships_that_are_one_hot_decide_like_hard_ones(pool: Models, w: float) -> None:
    """In every number: a cold gate, and prompts right at the centroids."""
    cold = dataclasses.replace(SOFT, gate=SoftmaxGate.from_centroids(HARD.centroids, 1e-3))
    np.testing.assert_array_equal(cold.memberships(vectors=np.eye(K)).phi, HARD.memberships(vectors=np.eye(K)).phi)
    soft, hard = (routed(clusters, pool).route_many(vectors=np.eye(K), cost_weight=w) for clusters in (cold, HARD))
    assert soft == hard
    assert [decision.ranking for decision in soft] == [decision.ranking for decision in hard]


@given(POOL)
def test_of_a_prompt_of_which_nothing_is_known_the_means_are_expected(pool: Models) -> None:
    """Shares . Psi, with the spread over clusters added to the doubt; the hard rule has one cluster for it."""
    router = routed(SOFT, pool)
    decision = router.route(vector=np.zeros(K))
    assert decision.familiarity == 0
    for candidate in decision.ranking:
        error, std = router.profiles[candidate.model].estimate("mean")
        mean = SOFT.shares @ error
        assert candidate.expected_error == pytest.approx(mean, abs=1e-11)
        spread = SOFT.shares @ (error - mean) ** 2
        assert candidate.expected_error_std == pytest.approx(min(np.sqrt((SOFT.shares @ std) ** 2 + spread), 0.5))
    assert routed(HARD, pool).route(vector=np.zeros(K)).familiarity == 1
