"""Prompts to clusters."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from conftest import KINDS, TOY_PROMPTS, toy_embed

from unirouter_integrations import EmbeddingError, InvalidInputError, PromptClusters


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
    np.testing.assert_array_equal(clusters.assign(TOY_PROMPTS), nearest)
    np.testing.assert_array_equal(clusters.assign_vectors(vectors * 1e-30), nearest)
    np.testing.assert_array_equal(clusters.assign_vectors(vectors * 1e30), nearest)


def test_soft_memberships_agree_with_the_hard_ones(clusters: PromptClusters) -> None:
    """Each row is a distribution whose largest entry is the hard assignment."""
    soft = clusters.soft_assign(TOY_PROMPTS)
    np.testing.assert_allclose(soft.sum(axis=1), 1)
    assert (soft >= 0).all()
    np.testing.assert_array_equal(soft.argsort(axis=1)[:, -1], clusters.assign(TOY_PROMPTS))
    np.testing.assert_array_equal(soft, clusters.soft_assign_vectors(toy_embed(TOY_PROMPTS)))


def test_a_fit_is_frozen_and_repeatable(clusters: PromptClusters) -> None:
    """The same prompts and seed give the same clusters and fingerprint, and nothing can be set afterwards."""
    again = PromptClusters.fit(TOY_PROMPTS, toy_embed, n_clusters=3)
    assert again.fingerprint == clusters.fingerprint
    assert PromptClusters.fit(TOY_PROMPTS[:30], toy_embed, n_clusters=3).fingerprint != clusters.fingerprint
    with pytest.raises(dataclasses.FrozenInstanceError):
        clusters.temperature = 2.0  # type: ignore[misc]


def test_clusters_can_be_read(clusters: PromptClusters) -> None:
    """Each cluster names the word that sets it apart, and its share."""
    described = clusters.describe()
    assert sorted(cluster.terms[0] for cluster in described) == sorted(KINDS)
    assert re.fullmatch(r"cluster 0 \(33% of prompts\): \w+", str(described[0]))


def test_a_description_holds_no_word_of_a_single_prompt() -> None:
    """A name that one prompt alone holds, even if that prompt is repeated, is not kept."""
    clusters = PromptClusters.fit([*TOY_PROMPTS, *["sum for Rumpelstiltskin"] * 5], toy_embed, n_clusters=3)
    assert not any("rumpel" in term for cluster in clusters.describe() for term in cluster.terms)


def test_a_description_has_words_not_letters() -> None:
    """Neither what is left of "don't" nor the x of an equation."""
    prompts = [f"Don't solve for x and y, it's Mary's number {n}" for n in "abcdefghij"]
    (cluster,) = PromptClusters.fit([*prompts, "something else"], n_clusters=1).describe()
    assert all(len(term) > 1 for term in cluster.terms)


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
    with pytest.raises(InvalidInputError, match="n_clusters should be a whole number"):
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
    """A prompt the embedder knows nothing about goes somewhere, always the same place."""
    zeros = np.zeros((2, 4))
    assert len(set(clusters.assign_vectors(zeros).tolist())) == 1
    np.testing.assert_allclose(clusters.soft_assign_vectors(zeros).sum(axis=1), 1)


def test_no_prompts_have_no_clusters(clusters: PromptClusters) -> None:
    """An empty batch is an empty answer."""
    assert clusters.assign([]).shape == (0,)
    assert clusters.soft_assign([]).shape == (0, 3)


def test_vectors_of_another_dimension_are_refused(clusters: PromptClusters) -> None:
    """Both dimensions are named."""
    with pytest.raises(EmbeddingError, match="dimension 5, but the router was fitted on dimension 4"):
        clusters.assign_vectors(np.ones((1, 5)))
    with pytest.raises(EmbeddingError, match="60 texts should give 60 vectors, but there are 2"):
        PromptClusters.fit(TOY_PROMPTS, None, vectors=np.ones((2, 3)))


def test_clusters_of_vectors_alone_ask_for_vectors() -> None:
    """Without an embedder, prompts cannot be assigned, and fitting needs vectors."""
    clusters = PromptClusters.fit(TOY_PROMPTS, None, vectors=toy_embed(TOY_PROMPTS), n_clusters=3)
    assert clusters.assign_vectors(toy_embed(["a poem"])).shape == (1,)
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
    """The slip of giving vectors by position."""
    with pytest.raises(InvalidInputError, match="ndarray is not an embedder"):
        PromptClusters.fit(TOY_PROMPTS, toy_embed(TOY_PROMPTS))


@pytest.mark.parametrize("prompts", [set(TOY_PROMPTS), dict.fromkeys(TOY_PROMPTS), None, 5, "one prompt"])
def test_prompts_without_an_order_are_refused(prompts: Any) -> None:
    """Losses and vectors are matched to prompts by position, which a set does not have."""
    with pytest.raises(InvalidInputError, match="prompts should be a list of texts"):
        PromptClusters.fit(prompts, toy_embed)


async def test_embedding_is_awaited(clusters: PromptClusters) -> None:
    """`aembed` gives what `embed` gives."""
    np.testing.assert_array_equal(await clusters.aembed(TOY_PROMPTS), clusters.embed(TOY_PROMPTS))
