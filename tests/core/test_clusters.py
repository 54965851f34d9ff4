"""Prompts to clusters."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from conftest import KINDS, TOY_PROMPTS, blended_clusters, blended_vectors, toy_embed
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unirouter_integrations import EmbeddingError, InvalidInputError, PromptClusters
from unirouter_integrations.core._clusters import Assignment
from unirouter_integrations.embedding._base import unit


@pytest.fixture(scope="module")
def clusters() -> PromptClusters:
    return PromptClusters.fit(TOY_PROMPTS, toy_embed, n_clusters=3)


def test_prompts_of_one_kind_share_a_cluster(clusters: PromptClusters) -> None:
    """K-means finds the three kinds, and unseen prompts go where their kind is."""
    found = [set(clusters.assign([f"{kind} number one", f"another {kind}"]).tolist()) for kind in KINDS]
    assert all(len(one) == 1 for one in found)
    assert len(set.union(*found)) == 3
    np.testing.assert_allclose(clusters.shares, 1 / 3)


def test_assignment_is_the_nearest_centroid(clusters: PromptClusters) -> None:
    """Checked against all distances, for prompts and for their vectors, whatever the length of the vectors."""
    vectors = toy_embed(TOY_PROMPTS)
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = np.linalg.norm(directions[:, None] - clusters.centroids[None], axis=2).argsort(axis=1)[:, 0]
    hard = PromptClusters.fit(TOY_PROMPTS, toy_embed, n_clusters=3, assignment="hard")
    for either in (clusters, hard):
        np.testing.assert_array_equal(either.assign(TOY_PROMPTS), nearest)
        for scale in (1e-30, 1, 1e30):
            phi = either.memberships(vectors=vectors * scale).phi
            np.testing.assert_array_equal(phi.argmax(axis=1), nearest)
    np.testing.assert_array_equal(hard.memberships(TOY_PROMPTS).phi, np.eye(3)[nearest])


def test_soft_memberships_agree_with_the_hard_ones(clusters: PromptClusters) -> None:
    """Each row is a distribution whose largest entry is the hard assignment."""
    hard = PromptClusters.fit(TOY_PROMPTS, toy_embed, n_clusters=3, assignment="hard")
    soft = clusters.memberships(TOY_PROMPTS)
    np.testing.assert_allclose(soft.phi.sum(axis=1), 1)
    assert (soft.phi >= 0).all()
    np.testing.assert_array_equal(soft.phi.argsort(axis=1)[:, -1], hard.assign(TOY_PROMPTS))
    for ours, theirs in zip(soft, clusters.memberships(vectors=toy_embed(TOY_PROMPTS)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    vectors = blended_vectors(300, 3)
    phi, familiarity = blended_clusters().memberships(vectors=vectors)
    nearest = blended_clusters("hard").memberships(vectors=vectors).phi.argmax(axis=1)
    np.testing.assert_array_equal(phi.argmax(axis=1)[familiarity == 1], nearest[familiarity == 1])


def test_soft_memberships_are_those_of_the_distances() -> None:
    """Softmax of minus the squared distance over one temperature; a typical prompt is e^4 times more in the nearest.

    A cluster to which a prompt belongs less than a thousandth as much as to the nearest has no part in it.
    """
    clusters, points = blended_clusters(), unit(blended_vectors(300, 3).astype(np.float32)).astype(float)
    phi, familiarity = clusters.memberships(vectors=points)
    distances = ((points[:, None] - clusters.centroids) ** 2).sum(axis=2)
    phi, distances = phi[familiarity == 1], distances[familiarity == 1]
    farther = distances - distances.min(axis=1, keepdims=True)
    kept = (phi > 0) & (farther > 0)
    odds = -np.log(phi / phi.max(axis=1, keepdims=True), where=kept, out=np.zeros_like(phi))
    temperature = (farther[kept] / odds[kept]).mean()
    np.testing.assert_allclose(odds[kept] * temperature, farther[kept], atol=1e-4)
    assert farther[phi == 0].min() > temperature * np.log(1000) - 1e-4 > farther[phi > 0].max() - 2e-4
    of_fit = np.sort(clusters.memberships(vectors=blended_vectors(400, 0)).phi, axis=1)
    assert np.median(of_fit[:, -1] / np.maximum(of_fit[:, -2], 1e-9)) == pytest.approx(np.exp(4), rel=0.1)


def test_clusters_that_lie_far_apart_are_as_good_as_hard() -> None:
    """No prompt lies between them, so the memberships are one-hot up to rounding."""
    soft, hard = (
        PromptClusters.fit(TOY_PROMPTS, toy_embed, n_clusters=3, assignment=assignment).memberships(TOY_PROMPTS)
        for assignment in ("soft", "hard")
    )
    np.testing.assert_allclose(soft.phi, hard.phi, atol=1e-12)


@given(
    arrays(np.float32, st.tuples(st.integers(0, 6), st.just(16)), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from(["soft", "hard"]),
)
def test_memberships_are_a_distribution_whatever_the_vector(vectors: Any, assignment: Assignment) -> None:
    """No entry is negative, each row sums to 1, familiarity lies between 0 and 1, and hard rows are one-hot."""
    phi, familiarity = blended_clusters(assignment).memberships(vectors=vectors)
    assert phi.shape == (len(vectors), 6)
    assert familiarity.shape == (len(vectors),)
    assert (phi >= 0).all()
    np.testing.assert_allclose(phi.sum(axis=1), 1)
    assert ((familiarity >= 0) & (familiarity <= 1)).all()
    if assignment == "hard":
        np.testing.assert_array_equal(np.sort(phi)[:, -1:], np.ones((len(vectors), 1)))
        assert (familiarity == 1).all()


@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_a_prompt_has_the_same_memberships_alone_and_among_others(assignment: Assignment) -> None:
    """At any position in a batch; soft memberships up to the rounding of float32."""
    clusters, vectors = blended_clusters(assignment), blended_vectors(200, 4)
    rounding = 0 if assignment == "hard" else 1e-6
    together = clusters.memberships(vectors=vectors)
    backwards = clusters.memberships(vectors=vectors[::-1])
    alone = [clusters.memberships(vectors=vector[None]) for vector in vectors]
    for of_all, reverse, of_each in zip(together, backwards, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(of_all, reverse[::-1], rtol=0, atol=rounding)
        np.testing.assert_allclose(of_all, np.concatenate(of_each), rtol=0, atol=rounding)


def test_the_prompts_of_the_fit_and_those_like_them_are_familiar(clusters: PromptClusters) -> None:
    """At least 98% of the former, most of the latter."""
    assert np.mean(clusters.memberships(TOY_PROMPTS).familiarity == 1) >= 0.98
    texts = [f"What is {n} times {n}?" for n in range(40)] + [f"Write a poem about {n} birds." for n in range(40)]
    assert np.mean(PromptClusters.fit(texts).memberships(texts).familiarity == 1) >= 0.98
    for vectors, share in ((blended_vectors(400, 0), 0.98), (blended_vectors(1000, 5), 0.9)):
        assert np.mean(blended_clusters().memberships(vectors=vectors).familiarity == 1) >= share


def test_an_unfamiliar_prompt_belongs_to_all_clusters_by_their_shares(clusters: PromptClusters) -> None:
    """The more so the farther it is from every centroid; entirely if its vector is zero."""
    strange = -np.ones(4)
    path = unit(np.array([(1 - t) * clusters.centroids[0] + t * strange for t in np.linspace(0, 1, 41)], np.float32))
    phi, familiarity = clusters.memberships(vectors=path)
    apart = ((path[:, None] - clusters.centroids) ** 2).sum(axis=2).min(axis=1)
    assert familiarity[0] == 1
    assert familiarity[-1] < 1e-6
    assert len(np.unique(familiarity)) > 10
    assert (np.diff(familiarity[apart.argsort()]) <= 1e-6).all()
    gate = clusters.gate
    assert gate is not None
    expected = familiarity[:, None] * gate(path) + (1 - familiarity[:, None]) * clusters.shares
    np.testing.assert_allclose(phi, expected, atol=1e-6)
    for either in (clusters, blended_clusters()):
        phi, familiarity = either.memberships(vectors=np.zeros((1, either.dimension)))
        assert familiarity[0] == 0
        np.testing.assert_array_equal(phi[0], either.shares)
    assert (
        blended_clusters("hard").memberships(vectors=np.zeros((1, 16))).familiarity[0] == 1
    )  # hard clusters measure no distance


def test_the_fewer_words_of_a_prompt_are_known_the_less_familiar_it_is() -> None:
    """Under the local embedder. Otherwise one known word among many unknown ones would decide."""
    clusters = PromptClusters.fit(TOY_PROMPTS, n_clusters=3)
    assert np.mean(clusters.memberships(TOY_PROMPTS).familiarity == 1) >= 0.98
    texts = ["sum number", "sum number qwerty", "sum number qwerty asdf", "sum number qwerty asdf zxcv", "qwerty asdf"]
    phi, familiarity = clusters.memberships(texts)
    assert familiarity[0] == pytest.approx(1)
    assert (np.diff(familiarity) < -0.05).all()
    assert familiarity[-1] == 0
    np.testing.assert_array_equal(phi[-1], clusters.shares)
    by_vectors = clusters.memberships(vectors=clusters.embed(texts))
    np.testing.assert_array_equal(by_vectors.phi, phi)
    np.testing.assert_array_equal(by_vectors.familiarity, familiarity)


def test_assignment_is_one_of_two(clusters: PromptClusters) -> None:
    """Hard clusters have no gate; any other assignment is refused, naming both."""
    assert clusters.gate is not None
    hard = PromptClusters.fit(TOY_PROMPTS, toy_embed, n_clusters=3, assignment="hard")
    assert hard.gate is None
    np.testing.assert_array_equal(hard.centroids, clusters.centroids)
    with pytest.raises(InvalidInputError, match="assignment should be one of 'hard', 'soft', but is 'fuzzy'"):
        PromptClusters.fit(TOY_PROMPTS, toy_embed, assignment="fuzzy")  # type: ignore[arg-type]


def test_memberships_are_of_prompts_or_of_vectors(clusters: PromptClusters) -> None:
    """One of the two, not both and not neither."""
    with pytest.raises(InvalidInputError, match="either prompts or vectors"):
        clusters.memberships()
    with pytest.raises(InvalidInputError, match="either prompts or vectors"):
        clusters.memberships(["a sum"], vectors=toy_embed(["a sum"]))


def test_a_fit_is_frozen_and_repeatable(clusters: PromptClusters) -> None:
    """The same prompts and seed give the same clusters and fingerprint, and nothing can be set afterwards."""
    again = PromptClusters.fit(TOY_PROMPTS, toy_embed, n_clusters=3)
    assert again.fingerprint == clusters.fingerprint
    assert PromptClusters.fit(TOY_PROMPTS[:30], toy_embed, n_clusters=3).fingerprint != clusters.fingerprint
    assert (again.familiar_radius, again.familiar_falloff) == (clusters.familiar_radius, clusters.familiar_falloff)
    assert (again.min_known_share, again.shares.tolist()) == (clusters.min_known_share, clusters.shares.tolist())
    with pytest.raises(dataclasses.FrozenInstanceError):
        clusters.gate = None  # type: ignore[misc]


def test_soft_and_hard_clusters_have_different_fingerprints(clusters: PromptClusters) -> None:
    """A profile counted with whole prompts does not fit clusters that count in parts, nor those of another gate."""
    hard = PromptClusters.fit(TOY_PROMPTS, toy_embed, n_clusters=3, assignment="hard")
    assert clusters.gate is not None
    moved = dataclasses.replace(clusters.gate, bias=np.float32(0.5) + clusters.gate.bias[::-1])
    other = dataclasses.replace(clusters, gate=moved)
    assert len({hard.fingerprint, clusters.fingerprint, other.fingerprint}) == 3
    assert dataclasses.replace(clusters, gate=None).fingerprint == hard.fingerprint


def test_clusters_can_be_read(clusters: PromptClusters) -> None:
    """Each cluster names the word that sets it apart, and its share."""
    described = clusters.describe()
    assert sorted(cluster.keywords[0] for cluster in described) == sorted(KINDS)
    assert re.fullmatch(r"cluster 0 \(33% of prompts\): \w+", str(described[0]))


def test_a_description_holds_no_word_of_a_single_prompt() -> None:
    """A name that one prompt alone holds, even if that prompt is repeated, is not kept."""
    clusters = PromptClusters.fit([*TOY_PROMPTS, *["sum for Rumpelstiltskin"] * 5], toy_embed, n_clusters=3)
    assert not any("rumpel" in word for cluster in clusters.describe() for word in cluster.keywords)


def test_a_description_has_words_not_letters() -> None:
    """Neither what is left of "don't" nor the x of an equation."""
    prompts = [f"Don't solve for x and y, it's Mary's number {n}" for n in "abcdefghij"]
    (cluster,) = PromptClusters.fit([*prompts, "something else"], n_clusters=1).describe()
    assert all(len(word) > 1 for word in cluster.keywords)


def test_the_number_of_clusters_can_be_left_open() -> None:
    """One for every 20 prompts, never more than 50 or than there are distinct prompts."""
    assert len(PromptClusters.fit(TOY_PROMPTS, toy_embed)) == 3
    assert len(PromptClusters.fit(["only one"])) == 1
    assert len(PromptClusters.fit(["the same"] * 500)) == 1
    parallel = np.outer(np.linspace(0.1, 7, 60), [1, 2, 3])
    assert len(PromptClusters.fit(["x"] * 60, None, vectors=parallel)) == 1
    many = np.random.default_rng(0).normal(size=(1200, 4))
    assert len(PromptClusters.fit(["x"] * 1200, None, vectors=many)) == 50


@pytest.mark.parametrize("n_clusters", [0, -1, 2.5, "many", True])
def test_a_senseless_number_of_clusters_is_refused(n_clusters: Any) -> None:
    """It must be a whole number of at least 1."""
    with pytest.raises(InvalidInputError, match='n_clusters, if not "auto", should be a whole number'):
        PromptClusters.fit(TOY_PROMPTS, toy_embed, n_clusters=n_clusters)


@pytest.mark.parametrize("seed", [-1, 2**32, "x", 1.5, None])
def test_a_senseless_seed_is_refused(seed: Any) -> None:
    """Before scikit-learn sees it."""
    with pytest.raises(InvalidInputError, match="seed should be a whole number"):
        PromptClusters.fit(TOY_PROMPTS, toy_embed, seed=seed)


def test_numpys_whole_numbers_are_whole_numbers() -> None:
    """As they come out of a search over settings."""
    assert len(PromptClusters.fit(TOY_PROMPTS, toy_embed, n_clusters=np.int64(2), seed=np.int32(3))) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("prompts", [["one"], ["a", "b", "c"], ["same"] * 10])
def test_fewer_distinct_prompts_than_clusters_is_a_clear_error(prompts: list[str]) -> None:
    """The message names both numbers."""
    with pytest.raises(InvalidInputError, match=r"n_clusters=4, but the \d+ prompts have only \d distinct"):
        PromptClusters.fit(prompts, n_clusters=4)


def test_as_many_clusters_as_distinct_prompts_is_fine() -> None:
    """Duplicates do not get in the way of one cluster per prompt."""
    clusters = PromptClusters.fit(["a word", "b thing", "c stuff", "c stuff"], n_clusters=3)
    assert len(set(clusters.assign(["a word", "b thing", "c stuff"]).tolist())) == 3


def test_no_prompts_is_a_clear_error() -> None:
    """Nothing to fit on."""
    with pytest.raises(InvalidInputError, match="no prompts"):
        PromptClusters.fit([])


def test_zero_vectors_have_a_cluster(clusters: PromptClusters) -> None:
    """A prompt unknown to the embedder is always assigned the same way."""
    zeros = np.zeros((2, 4))
    hard = PromptClusters.fit(TOY_PROMPTS, toy_embed, n_clusters=3, assignment="hard")
    for either in (clusters, hard):
        phi = either.memberships(vectors=zeros).phi
        np.testing.assert_array_equal(phi[0], phi[1])
        np.testing.assert_allclose(phi.sum(axis=1), 1)


def test_no_prompts_have_no_clusters(clusters: PromptClusters) -> None:
    """An empty batch is an empty answer."""
    assert clusters.assign([]).shape == (0,)
    phi, familiarity = clusters.memberships([])
    assert (phi.shape, familiarity.shape) == ((0, 3), (0,))


def test_vectors_of_another_dimension_are_refused(clusters: PromptClusters) -> None:
    """Both dimensions are named."""
    with pytest.raises(EmbeddingError, match="dimension 5, but the router was fitted on dimension 4"):
        clusters.memberships(vectors=np.ones((1, 5)))
    with pytest.raises(EmbeddingError, match="60 texts should give 60 vectors, but there are 2"):
        PromptClusters.fit(TOY_PROMPTS, None, vectors=np.ones((2, 3)))


def test_clusters_of_vectors_alone_ask_for_vectors() -> None:
    """Without an embedder, prompts cannot be assigned, and fitting needs vectors."""
    clusters = PromptClusters.fit(TOY_PROMPTS, None, vectors=toy_embed(TOY_PROMPTS), n_clusters=3)
    assert clusters.memberships(vectors=toy_embed(["a poem"])).phi.shape == (1, 3)
    with pytest.raises(EmbeddingError, match="give it vectors"):
        clusters.assign(["a poem"])
    with pytest.raises(InvalidInputError, match="give vectors= or embedder="):
        PromptClusters.fit(TOY_PROMPTS, None)


def test_given_vectors_must_be_of_the_given_embedder() -> None:
    """Another dimension, or another space of the same dimension, is found while fitting, not while routing."""
    with pytest.raises(EmbeddingError, match="dimension"):
        PromptClusters.fit(TOY_PROMPTS, toy_embed, vectors=np.ones((len(TOY_PROMPTS), 9)))
    with pytest.raises(EmbeddingError, match="not those of the embedder 'callable:toy_embed'"):
        PromptClusters.fit(TOY_PROMPTS, toy_embed, vectors=-toy_embed(TOY_PROMPTS))
    with pytest.raises(InvalidInputError, match="vectors= cannot be those of the local embedder"):
        PromptClusters.fit(TOY_PROMPTS, vectors=toy_embed(TOY_PROMPTS))
    same = PromptClusters.fit(TOY_PROMPTS, toy_embed, vectors=toy_embed(TOY_PROMPTS), n_clusters=3)
    assert same.fingerprint == PromptClusters.fit(TOY_PROMPTS, toy_embed, n_clusters=3).fingerprint


def test_an_array_in_the_place_of_the_embedder_is_refused() -> None:
    """As happens if vectors are given by position."""
    with pytest.raises(InvalidInputError, match="ndarray is not an embedder"):
        PromptClusters.fit(TOY_PROMPTS, toy_embed(TOY_PROMPTS))  # type: ignore[arg-type]


@pytest.mark.parametrize("prompts", [set(TOY_PROMPTS), dict.fromkeys(TOY_PROMPTS), None, 5, "one prompt"])
def test_prompts_without_an_order_are_refused(prompts: Any) -> None:
    """Scores and vectors are matched to prompts by position, which a set does not have."""
    with pytest.raises(InvalidInputError, match="prompts should be a list of texts"):
        PromptClusters.fit(prompts, toy_embed)


async def test_prompts_are_embedded_asynchronously(clusters: PromptClusters) -> None:
    """`aembed` gives what `embed` gives."""
    np.testing.assert_array_equal(await clusters.aembed(TOY_PROMPTS), clusters.embed(TOY_PROMPTS))
