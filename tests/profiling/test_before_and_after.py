"""What a run will take, and what its profile would change."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TOY_PROMPTS, toy_losses

from unirouter_integrations import InvalidInputError, PromptClusters, UniRouter
from unirouter_integrations.evaluation import diff
from unirouter_integrations.profiling import Answer, Example, Price, Usage, estimate, profile_model, what_if
from unirouter_integrations.profiling.scorers import Score, Scorer

EXAMPLES = [Example(prompt, "right") for prompt in TOY_PROMPTS]
CHARACTERS = sum(map(len, TOY_PROMPTS))


def model(prompt: str) -> Answer:
    return Answer("right", Usage(2 * len(prompt), 7))


def never(prompt: str) -> Answer:
    raise AssertionError


def test_before_anything_is_known_an_estimate_is_a_guess(router: UniRouter) -> None:
    """Four characters a token, and so many tokens an answer; nothing is called."""
    found = estimate("m", never, EXAMPLES, router, price=Price(1, 10), output_tokens=50)
    assert (found.calls, found.known, found.output_tokens) == (60, 0, 3000)
    assert found.input_tokens == pytest.approx(CHARACTERS / 4, abs=1)
    assert found.cost == pytest.approx(Price(1, 10).cost(Usage(found.input_tokens, 3000)))
    assert str(found).startswith("60 calls, 0 answers are in the journal already. About ")
    assert "(a guess)" in str(found)


def test_what_is_in_the_journal_is_free_and_tells_about_the_rest(router: UniRouter, tmp_path: Path) -> None:
    """After half of the run the estimate for the other half is what it then takes."""
    settings: Any = {"price": Price(1, 10), "journal": tmp_path / "profiles.db"}
    assert estimate("m", model, EXAMPLES, router, **settings).known == 0
    assert not (tmp_path / "profiles.db").exists()
    half = profile_model("m", model, EXAMPLES[:30], router, **settings)
    found = estimate("m", model, [*EXAMPLES, *EXAMPLES], router, **settings)
    whole = profile_model("m", model, EXAMPLES, router, **settings)
    assert (found.calls, found.known) == (30, 30)
    assert found.is_measured
    assert found.cost == pytest.approx(whole.metadata["answers_usd"] - half.metadata["answers_usd"])
    done = estimate("m", model, EXAMPLES, router, **settings)
    assert (done.calls, done.cost) == (0, 0)


def test_an_estimate_counts_the_calls_of_the_judge(router: UniRouter, tmp_path: Path) -> None:
    """Of those that are not graded yet; what they cost is not known."""

    async def grade(answer: Answer, example: Example) -> Score:
        return Score(1.0)

    judge = Scorer("judge:fake", grade, model=object())
    settings: Any = {"price": Price(1, 10), "journal": tmp_path / "profiles.db"}
    profile_model("m", model, EXAMPLES[:20], router, scorer=judge, **settings)
    profile_model("m", model, EXAMPLES[:30], router, **settings)
    found = estimate("m", model, EXAMPLES, router, scorer=judge, **settings)
    assert (found.calls, found.judgements) == (30, 40)
    assert "40 calls of the judge come on top." in str(found)


def test_an_estimate_of_fewer_examples_is_of_the_chosen_ones(router: UniRouter) -> None:
    """As many as are asked for."""
    assert estimate("m", never, EXAMPLES, router, price=Price(1, 10), n=7).calls == 7


def test_what_if_is_what_happens(router: UniRouter) -> None:
    """Shares, moves, quality and cost are those of routing prompts before and after; nothing is registered by it."""
    router.cost_weight = 0.02
    profile = router.profile("new", TOY_PROMPTS, toy_losses("poem"), cost=0.5)
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
    assert sorted(outlook.before or "" for outlook in found.clusters) == ["abacus", "oracle", "poet"]
    assert sum(outlook.after == "new" for outlook in found.clusters) == 2


def test_the_intervals_hold_the_estimate_and_shrink_with_answers(router: UniRouter) -> None:
    """More graded prompts leave less open."""
    router.cost_weight = 0.02
    few, many = (
        what_if(router, router.profile("new", TOY_PROMPTS * times, toy_losses("poem") * times, cost=0.5))
        for times in (1, 100)
    )
    for less, more in zip(few.clusters, many.clusters, strict=True):
        for outlook in (less, more):
            assert outlook.interval[0] <= outlook.error <= outlook.interval[1]
        assert np.subtract(*more.interval) > np.subtract(*less.interval)
    assert many.undecided == 0


def test_a_close_race_is_undecided() -> None:
    """Three right answers out of five against six out of ten: either may be better."""
    prompts = ["a sum"] * 10
    clusters = PromptClusters.fit(prompts, embedder=lambda texts: np.ones((len(texts), 2)), n_clusters=1)
    router = UniRouter(clusters)
    router.register(router.profile("old", prompts, [1.0] * 4 + [0.0] * 6, cost=1))
    found = what_if(router, router.profile("new", prompts[:5], [1.0] * 2 + [0.0] * 3, cost=1))
    assert found.undecided == 1
    assert "? The intervals leave open who has these 100.0% of the prompts." in str(found)


def test_the_first_model_has_nothing_to_beat(router: UniRouter) -> None:
    """It would get everything."""
    empty = UniRouter(router.clusters)
    found = what_if(empty, router.profile("new", TOY_PROMPTS, toy_losses("poem"), cost=0.5))
    assert found.shares["new"] == pytest.approx((0, 1))
    assert (found.difference, found.undecided) == (None, 0)
    assert all(outlook.before is None for outlook in found.clusters)


def test_a_new_profile_of_a_registered_model_is_compared_with_the_old_one(router: UniRouter) -> None:
    """A model that got worse loses its prompts."""
    found = what_if(router, router.profile("poet", TOY_PROMPTS, toy_losses("sum", "poem", "date"), cost=2))
    assert found.shares["poet"] == pytest.approx((1 / 3, 0))


def test_it_prints_a_table(router: UniRouter) -> None:
    """A row for each cluster with its words, then the shares and what they change."""
    router.cost_weight = 0.02
    printed = str(what_if(router, router.profile("new", TOY_PROMPTS, toy_losses("poem"), cost=0.5)))
    assert "abacus -> new   (sum)" in printed
    assert "33.3% ->   0.0%  abacus" in printed
    assert "of the prompts go to another model." in printed


def test_a_profile_of_other_clusters_is_refused(router: UniRouter) -> None:
    """As in registering it."""
    other = UniRouter.fit(TOY_PROMPTS, n_clusters=2)
    with pytest.raises(InvalidInputError, match="measured on 2 clusters"):
        what_if(router, other.profile("new", TOY_PROMPTS, toy_losses(), cost=1))
