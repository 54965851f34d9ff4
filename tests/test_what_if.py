"""What would change if a profile were registered."""

from typing import Any

import numpy as np
import pytest
from conftest import TOY_PROMPTS, toy_scores

from unirouter_integrations import InvalidInputError, PromptClusters, UniRouter
from unirouter_integrations.compare import diff, what_if


def test_what_if_is_what_happens(router: UniRouter) -> None:
    """Shares, moves, quality and cost are those of routing prompts before and after; nothing is registered by it."""
    router.cost_weight = 0.02
    profile = router.profile("new", TOY_PROMPTS, toy_scores("poem"), cost=0.5)
    found = what_if(router, profile)
    assert "new" not in router.models
    after = UniRouter(router.clusters, estimator=router.estimator, cost_weight=0.02)
    for known in (*router.profiles.values(), profile):
        after.register(known)
    actual = diff(router, after, TOY_PROMPTS)
    assert found.difference is not None
    assert found.difference.rerouted == pytest.approx(actual.rerouted)
    assert found.difference.moves == pytest.approx(actual.moves)
    assert found.difference.quality == pytest.approx(actual.quality, abs=0.02)
    assert found.difference.cost == pytest.approx(actual.cost, abs=0.02)
    shares: Any = {
        "abacus": pytest.approx((1 / 3, 0)),
        "new": pytest.approx((0, 2 / 3)),
        "oracle": pytest.approx((1 / 3, 0)),
        "poet": pytest.approx((1 / 3, 1 / 3)),
    }
    assert found.shares == shares
    assert sorted(impact.before or "" for impact in found.clusters) == ["abacus", "oracle", "poet"]
    assert sum(impact.after == "new" for impact in found.clusters) == 2


def test_the_intervals_hold_the_estimate_and_shrink_with_answers(router: UniRouter) -> None:
    """More graded prompts leave less open."""
    router.cost_weight = 0.02
    few, many = (
        what_if(router, router.profile("new", TOY_PROMPTS * times, toy_scores("poem") * times, cost=0.5))
        for times in (1, 100)
    )
    for less, more in zip(few.clusters, many.clusters, strict=True):
        for impact in (less, more):
            assert impact.interval[0] <= impact.error <= impact.interval[1]
        assert np.subtract(*more.interval) > np.subtract(*less.interval)
    assert many.undecided == 0


def test_a_close_race_is_undecided() -> None:
    """Three right answers out of five against six out of ten: either may be better."""
    prompts = ["a sum"] * 10
    clusters = PromptClusters.fit(prompts, embedder=lambda texts: np.ones((len(texts), 2)), n_clusters=1)
    router = UniRouter(clusters)
    router.register(router.profile("old", prompts, [0.0] * 4 + [1.0] * 6, cost=1))
    found = what_if(router, router.profile("new", prompts[:5], [0.0] * 2 + [1.0] * 3, cost=1))
    assert found.undecided == 1
    assert "? The intervals leave open which model gets these 100.0% of the prompts." in str(found)


def test_the_first_model_has_nothing_to_beat(router: UniRouter) -> None:
    """It would get everything."""
    empty = UniRouter(router.clusters)
    found = what_if(empty, router.profile("new", TOY_PROMPTS, toy_scores("poem"), cost=0.5))
    assert found.shares["new"] == pytest.approx((0, 1))
    assert (found.difference, found.undecided) == (None, 0)
    assert all(impact.before is None for impact in found.clusters)


def test_a_new_profile_of_a_registered_model_is_compared_with_the_old_one(router: UniRouter) -> None:
    """A model that got worse loses its prompts."""
    found = what_if(router, router.profile("poet", TOY_PROMPTS, toy_scores("sum", "poem", "date"), cost=2))
    assert found.shares["poet"] == pytest.approx((1 / 3, 0))


def test_it_prints_a_table(router: UniRouter) -> None:
    """A row for each cluster with its words, then the shares and what they change."""
    router.cost_weight = 0.02
    printed = str(what_if(router, router.profile("new", TOY_PROMPTS, toy_scores("poem"), cost=0.5)))
    assert "abacus -> new   (sum)" in printed
    assert "33.3% ->   0.0%  abacus" in printed
    assert "of the prompts go to another model." in printed


def test_a_profile_of_other_clusters_is_refused(router: UniRouter) -> None:
    """As in registering it."""
    other = UniRouter.fit(TOY_PROMPTS, n_clusters=2)
    with pytest.raises(InvalidInputError, match="measured on 2 clusters"):
        what_if(router, other.profile("new", TOY_PROMPTS, toy_scores(), cost=1))
