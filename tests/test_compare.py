"""What a new router would do differently."""

import pytest
from conftest import TOY_PROMPTS, toy_embed, toy_scores

from unirouter_integrations import InvalidInputError, NoModelError, UniRouter
from unirouter_integrations.compare import diff


def fitted(**models: tuple[list[float], float]) -> UniRouter:
    """Three hard clusters and these models, as their scores and cost."""
    router = UniRouter.fit(TOY_PROMPTS, embedder=toy_embed, n_clusters=3, estimator="mean", assignment="hard")
    for name, (scores, cost) in models.items():
        router.register(router.profile(name, TOY_PROMPTS, scores, cost=cost))
    return router


POET, ABACUS, ALL = toy_scores("sum", "date"), toy_scores("poem", "date"), toy_scores()


def test_a_model_that_joins_takes_over_its_kind() -> None:
    """A third of the prompts moves to it; both choices are judged by what the new router expects."""
    before, after = fitted(poet=(POET, 1)), fitted(poet=(POET, 1), abacus=(ABACUS, 0.1))
    found = diff(before, after, TOY_PROMPTS)
    assert found.n_prompts == 60
    assert found.rerouted == pytest.approx(2 / 3)  # sums, where it is better, and dates, where it is cheaper
    assert dict(found.moves) == {("poet", "abacus"): pytest.approx(2 / 3)}
    assert found.quality == pytest.approx((1 / 3, 2 / 3))
    assert found.cost == pytest.approx((1, 0.4))
    assert str(found).splitlines()[:2] == [
        "66.7% of 60 prompts go to another model.",
        "expected quality: 0.3333 -> 0.6667 (+0.3333)",
    ]


def test_a_model_that_is_gone_is_judged_by_the_old_router() -> None:
    """Its expected quality and cost were known there."""
    found = diff(fitted(oracle=(ALL, 9)), fitted(poet=(POET, 1)), TOY_PROMPTS)
    assert found.rerouted == 1
    assert found.quality == pytest.approx((1, 1 / 3))
    assert found.cost == pytest.approx((9, 1))


def test_the_same_router_differs_in_nothing() -> None:
    """Given prompts or their vectors."""
    router = fitted(poet=(POET, 1), abacus=(ABACUS, 0.1))
    for found in (diff(router, router, TOY_PROMPTS), diff(router, router, vectors=toy_embed(TOY_PROMPTS))):
        assert (found.rerouted, dict(found.moves)) == (0, {})
        assert found.quality[0] == pytest.approx(found.quality[1])


def test_nothing_to_compare_is_an_error() -> None:
    """No prompts, or no models."""
    router = fitted(poet=(POET, 1))
    with pytest.raises(InvalidInputError, match="no prompts to compare"):
        diff(router, router, [])
    with pytest.raises(InvalidInputError, match="either prompts or vectors"):
        diff(router, router)
    with pytest.raises(NoModelError, match="no model to choose from"):
        diff(router, fitted(), TOY_PROMPTS)
