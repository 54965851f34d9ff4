"""Prompts that are written to reach a model: what a few words can do, and what no words can.

How far words that are found by search push ordinary prompts is measured by `benchmarks/rerouting.py`.
"""

import pytest
from conftest import TOY_PROMPTS, toy_scores
from hypothesis import given
from hypothesis import strategies as st

from unirouter_integrations import UniRouter

WORDS = ["sum", "poem", "date", "number", "iii", "42", "naïve", "\0", "\ud800"]
ADDED = st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join)


def made() -> UniRouter:
    """A specialist in sums, an expensive generalist, and one that is worse than it everywhere and costs more."""
    router = UniRouter.fit(TOY_PROMPTS, n_clusters=3)
    router.register(router.profile("abacus", TOY_PROMPTS, toy_scores("poem", "date"), cost=1))
    router.register(router.profile("oracle", TOY_PROMPTS, toy_scores(), cost=10))
    router.register(router.profile("pretender", TOY_PROMPTS, [score / 2 for score in toy_scores("sum")], cost=20))
    router.cost_weight = 0.04
    return router


ROUTER = made()


def test_a_few_words_choose_the_model_and_are_familiar() -> None:
    """Who writes a prompt says of what kind it is. Nothing in the router tells such a prompt from an honest one."""
    asked = [prompt for prompt in TOY_PROMPTS if "sum" in prompt]
    assert {decision.model for decision in ROUTER.route_many(asked)} == {"abacus"}
    moved = ROUTER.route_many([f"poem number poem number {prompt}" for prompt in asked])
    assert {decision.model for decision in moved} == {"oracle"}
    assert min(decision.familiarity for decision in moved) == pytest.approx(1)


@given(ADDED, ADDED, st.sampled_from(TOY_PROMPTS))
def test_no_words_reach_a_model_that_is_not_listed_or_that_another_one_beats_everywhere(
    before: str, after: str, prompt: str
) -> None:
    """Whatever stands around a prompt, `among` holds, and a model that loses in each cluster loses between them."""
    text = f"{before} {prompt} {after}"
    assert ROUTER.route(text, among=["abacus", "pretender"]).model != "oracle"
    assert ROUTER.route(text).model != "pretender"
