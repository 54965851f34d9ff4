"""The gate: soft memberships by distance, and learned from what known models got right and wrong."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import blended_clusters, blended_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unirouter_integrations import LLMProfile, UniRouter
from unirouter_integrations.core._clusters import Assignment
from unirouter_integrations.core._gate import SoftmaxGate
from unirouter_integrations.core._profiles import errors_of_known
from unirouter_integrations.embedding._base import unit

Floats = npt.NDArray[np.float64]

START = SoftmaxGate.from_centroids(np.eye(2, 8, dtype=np.float32), 1.0)


def misleading(n: int, seed: int) -> tuple[Floats, dict[str, Floats]]:
    """Vectors, and the scores of two models on them.

    The vectors differ most in their first number, by which they are clustered. But which model is right depends on the
    sign of the second number, which equals that of the first for three in four vectors.
    """
    rng = np.random.default_rng(seed)
    side = rng.choice([-1.0, 1.0], n)
    cue = np.where(rng.random(n) < 0.75, side, -side)
    vectors = rng.normal(0, 0.5, (n, 8))
    vectors[:, :2] += np.column_stack([side, 0.7 * cue])
    right = {"left": cue < 0, "right": cue > 0}
    return vectors, {name: np.where(rng.random(n) < 0.1, ~scores, scores) * 1.0 for name, scores in right.items()}


def thinned(scores: Floats, seed: int) -> Floats:
    """Three in five prompts not graded."""
    return np.where(np.random.default_rng(seed).random(scores.shape) < 0.6, np.nan, scores)


def losses_of(scores: dict[str, Floats]) -> Floats:
    """1 - score, one column per model."""
    return 1 - np.column_stack([*scores.values()])


def fitted(
    vectors: Floats, scores: dict[str, Floats] | None, *, assignment: Assignment = "soft", seed: int = 0
) -> UniRouter:
    return UniRouter.fit(
        [""] * len(vectors),
        embedder=None,
        vectors=vectors,
        n_clusters=2,
        scores=scores,
        assignment=assignment,
        seed=seed,
    )


def gate_of(router: UniRouter) -> SoftmaxGate:
    assert router.clusters.gate is not None
    return router.clusters.gate


def same(first: SoftmaxGate, second: SoftmaxGate) -> bool:
    return np.array_equal(first.weights, second.weights) and np.array_equal(first.bias, second.bias)


def entropy(expected: Floats, losses: Floats) -> float:
    """The mean cross-entropy of expected errors and losses."""
    p = np.clip(expected, 1e-6, 1 - 1e-6)
    return float(-(losses * np.log(p) + (1 - losses) * np.log1p(-p)).mean())


def on_unseen(router: UniRouter, graded: tuple[Floats, dict[str, Floats]]) -> float:
    """The cross-entropy of the errors expected of new models, on prompts that are in neither fit nor profile."""
    vectors, scores = graded
    for name, known in scores.items():
        router.register(router.profile(f"new {name}", vectors=vectors, scores=known, cost=1))
    unseen, actual = misleading(1000, seed=99)
    expected = router.expected_errors(vectors=unseen)
    assert router.models == ("new left", "new right")
    return entropy(expected, losses_of(actual))


def test_from_centroids_is_a_softmax_of_squared_distances() -> None:
    """Checked against the distances themselves; |x|^2 does not matter, nor do clusters a thousand times less likely."""
    rng = np.random.default_rng(0)
    centroids, points = (rng.normal(size=(n, 8)).astype(np.float32) for n in (5, 50))
    squares = ((points[:, None].astype(float) - centroids) ** 2).sum(axis=2)
    weights = np.exp((squares.min(axis=1, keepdims=True) - squares) / 0.7)
    weights[weights <= 1e-3] = 0
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(SoftmaxGate.from_centroids(centroids, 0.7)(points), expected, atol=1e-5)


@given(
    arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32)),
    arrays(np.float32, 3, elements=st.floats(-1e6, 1e6, width=32)),
    arrays(np.float32, st.tuples(st.integers(0, 5), st.just(4)), elements=st.floats(-1, 1, width=32)),
)
def test_it_gives_a_distribution_whatever_its_weights(weights: Any, bias: Any, points: Any) -> None:
    """No overflow, nothing negative, rows that sum to 1."""
    phi = SoftmaxGate(weights, bias)(points)
    assert phi.shape == (len(points), 3)
    assert (phi >= 0).all()
    np.testing.assert_allclose(phi.sum(axis=1), 1)


@pytest.mark.parametrize("thin", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_where_embeddings_mislead_scores_inform(seed: int, thin: bool) -> None:  # noqa: FBT001
    """The learned gate predicts new models' errors on unseen prompts better than distance or hard clusters."""
    vectors, scores = misleading(600, seed)
    if thin:
        scores = {name: thinned(known, seed) for name, known in scores.items()}
    graded = misleading(300, seed + 50)
    by_distance = on_unseen(fitted(vectors, None), graded)
    learned = on_unseen(fitted(vectors, scores, seed=seed), graded)
    assert learned < by_distance - 0.05
    assert learned < on_unseen(fitted(vectors, scores, assignment="hard"), graded) - 0.05


def test_learning_uses_what_the_clusters_ignore() -> None:
    """After it, the second number of a vector moves its memberships more than it did before."""
    vectors, scores = misleading(600, 0)
    up, down = [[1.0, 0.7, *[0.0] * 6]], [[1.0, -0.7, *[0.0] * 6]]
    moved = []
    for known in (None, scores):
        clusters = fitted(vectors, known).clusters
        phi = [clusters.memberships(vectors=vector).phi for vector in (up, down)]
        moved.append(float(np.abs(phi[0] - phi[1]).max()))
    assert moved[1] > 2 * moved[0]


def test_the_same_seed_learns_the_same_gate() -> None:
    """Bit for bit; another seed holds other prompts out. The gate it starts from is not changed."""
    vectors, scores = misleading(400, 1)
    gates = [gate_of(fitted(vectors, scores, seed=seed)) for seed in (3, 3)]
    assert same(*gates)
    points, losses = vectors.astype(np.float32), losses_of(scores)
    psi = np.array([[0.3, 0.7], [0.7, 0.3]])
    first, again, other = (START.fit(points, losses, psi, seed=seed) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)
    assert not same(first, START)
    assert same(START, SoftmaxGate.from_centroids(np.eye(2, 8, dtype=np.float32), 1.0))


def test_learning_does_not_depend_on_the_order_of_the_models() -> None:
    """Another order gives the same gate up to rounding."""
    vectors, scores = misleading(400, 1)
    swapped = dict(reversed(scores.items()))
    first, second = (fitted(vectors, known).clusters.memberships(vectors=vectors).phi for known in (scores, swapped))
    np.testing.assert_allclose(first, second, atol=1e-2)


@pytest.mark.parametrize("n", [3, 79])
def test_few_prompts_teach_nothing(n: int) -> None:
    """Under 80 there are fewer than 10 to hold out, and the gate stays that of the distances."""
    vectors, scores = misleading(n, 0)
    assert START.fit(vectors.astype(np.float32), losses_of(scores), np.full((2, 2), 0.5)) is START
    assert same(gate_of(fitted(vectors, scores)), gate_of(fitted(vectors, None)))


def test_uninformative_scores_teach_nothing() -> None:
    """Models that are all alike leave the gate as it is; random scores mostly do, and do no harm otherwise."""
    vectors, unseen = (blended_vectors(n, seed).astype(np.float32) for n, seed in ((400, 0), (2000, 9)))
    start, kept = blended_clusters().gate, []
    assert start is not None
    phi = blended_clusters("hard").memberships(vectors=vectors).phi
    for seed in range(20):
        losses = (np.random.default_rng(seed).random((400, 5)) < 0.5).astype(float)
        psi = errors_of_known(phi, {str(model): 1 - column for model, column in enumerate(losses.T)})
        gate = start.fit(vectors, losses, psi, seed=seed)
        kept.append(gate is start)
        at_random = (np.random.default_rng(seed + 100).random((2000, 5)) < 0.5).astype(float)
        assert entropy(gate(unseen) @ psi.T, at_random) < entropy(start(unseen) @ psi.T, at_random) + 0.005
    assert sum(kept) >= 14  # a gain counts from one standard error on
    for loss in (0.0, 0.5, 1.0):
        assert start.fit(vectors, np.full((400, 2), loss), np.full((2, 6), loss)) is start


def test_prompts_that_are_not_graded_teach_nothing() -> None:
    """NaN is neither right nor wrong: nothing but NaN leaves the gate as it is, and NaN at a prompt hides its loss."""
    vectors, scores = misleading(400, 2)
    points, losses = vectors.astype(np.float32), losses_of(scores)
    psi = np.array([[0.3, 0.7], [0.7, 0.3]])
    assert START.fit(points, np.full_like(losses, np.nan), psi) is START
    hidden = np.where(np.arange(400)[:, None] % 3, losses, np.nan)
    gate = START.fit(points, hidden, psi)
    assert np.isfinite(gate.weights).all()
    assert not same(gate, START)
    assert not same(gate, START.fit(points, losses, psi))


def test_nothing_is_learned_without_scores_or_for_hard_clusters() -> None:
    """Both keep the clusters of `PromptClusters.fit`; a learned gate changes nothing but the memberships."""
    vectors, scores = misleading(400, 0)
    plain, learned, hard = (
        fitted(vectors, None),
        fitted(vectors, scores),
        fitted(vectors, scores, assignment="hard"),
    )
    assert hard.clusters.gate is None
    assert not same(gate_of(plain), gate_of(learned))
    assert len({router.clusters.fingerprint for router in (plain, learned, hard)}) == 3
    for router in (learned, hard):
        np.testing.assert_array_equal(router.clusters.centroids, plain.clusters.centroids)
        assert router.clusters.familiar_radius == plain.clusters.familiar_radius
        assert router.clusters.familiar_falloff == plain.clusters.familiar_falloff


def test_shares_are_mean_memberships() -> None:
    """Of the fitting prompts, under any gate; for hard clusters that is the share of prompts in each."""
    vectors, scores = misleading(400, 0)
    for router in (fitted(vectors, None), fitted(vectors, scores), fitted(vectors, scores, assignment="hard")):
        clusters, points = router.clusters, unit(vectors.astype(np.float32))
        phi = clusters.memberships(vectors=vectors).phi if clusters.gate is None else clusters.gate(points)
        np.testing.assert_allclose(clusters.shares, phi.mean(axis=0))
        assert clusters.shares.sum() == pytest.approx(1)
        assert [cluster.share for cluster in clusters.describe()] == clusters.shares.tolist()


def test_a_profile_counts_by_the_learned_gate() -> None:
    """Its counts are the memberships the router routes by."""
    vectors, scores = misleading(400, 0)
    router = fitted(vectors, scores)
    profile = router.profile("m", vectors=vectors, scores=scores["left"], cost=1)
    phi = router.clusters.memberships(vectors=vectors).phi
    np.testing.assert_allclose(profile.counts, phi.sum(axis=0))
    np.testing.assert_allclose(profile.losses, (1 - scores["left"]) @ phi)
    assert isinstance(profile, LLMProfile)
    assert not np.allclose(profile.counts, np.round(profile.counts), atol=1e-3)


@settings(max_examples=40)
@given(
    arrays(np.float32, (88, 8), elements=st.floats(-1, 1, width=32)),
    arrays(float, (88, 2), elements=st.sampled_from([0.0, 0.25, 1.0, np.nan]), fill=st.nothing()),
    arrays(float, (2, 2), elements=st.floats(0, 1)),
    st.integers(0, 2**32 - 1),
)
def test_no_losses_spoil_the_gate(points: Any, losses: Any, psi: Any, seed: int) -> None:
    """For any losses, also of models that never or always err, the weights are finite and rows sum to 1."""
    gate = START.fit(points, losses, psi, seed=seed)
    assert np.isfinite(gate.weights).all()
    assert np.isfinite(gate.bias).all()
    assert gate.weights.dtype == gate.bias.dtype == np.float32
    np.testing.assert_allclose(gate(points).sum(axis=1), 1)
