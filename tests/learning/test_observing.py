"""Observing: what it does to the profiles, and what it never does to a call."""

import copy
import gc
import json
import math
import threading
import traceback
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import TOY_PROMPTS, blended_vectors, toy_embed, toy_router, toy_scores
from hypothesis import given
from hypothesis import strategies as st

from unirouter_integrations import InvalidInputError, LLMProfile, UniRouter
from unirouter_integrations.learning._learner import Learning
from unirouter_integrations.learning._stores import MemoryStatistics, Sums, combine

NEVER = 1e6  # seconds: in these tests only sync() learns


def learning(router: UniRouter, **options: Any) -> Learning:
    return router.learn(every=NEVER, **options)


def test_what_is_observed_is_profiled(hard_router: UniRouter) -> None:
    """Without forgetting, observing an outcome is the same as having had it in profiling: counts add."""
    with learning(hard_router, half_life=math.inf) as learn:
        more = hard_router.profile("poet", TOY_PROMPTS, toy_scores("poem"), cost=4)
        expected = hard_router.profiles["poet"] + more
        for prompt, score in zip(TOY_PROMPTS, toy_scores("poem"), strict=True):
            assert hard_router.observe(hard_router.route(prompt, among=["poet"]), score, 4)
        learn.sync()
    learned = hard_router.profiles["poet"]
    np.testing.assert_allclose(learned.counts, expected.counts)
    np.testing.assert_allclose(learned.losses, expected.losses)
    np.testing.assert_allclose(learned.cost, expected.cost)


def test_a_prompt_between_clusters_is_counted_in_each_as_far_as_it_belongs(blended: UniRouter) -> None:
    """What is added are the memberships of the decision."""
    vectors = blended_vectors(40, 3)
    before = blended.profiles["bee"]
    with learning(blended, half_life=math.inf) as learn:
        for decision in blended.route_many(vectors=vectors, among=["bee"]):
            blended.observe(decision, 0.25)
        learn.sync()
    phi = blended.clusters.memberships(vectors=vectors).phi
    np.testing.assert_allclose(blended.profiles["bee"].counts, before.counts + phi.sum(axis=0))
    np.testing.assert_allclose(blended.profiles["bee"].losses, before.losses + 0.75 * phi.sum(axis=0))


def test_decisions_change_with_what_is_observed(router: UniRouter) -> None:
    """A model that now fails is left; only the model that was observed is changed, and its cost only if it is given."""
    others = router.profiles["oracle"]
    with learning(router, half_life=10) as learn:
        decision = router.route("a sum")
        assert decision.model == "abacus"
        for _ in range(30):
            router.observe(replace(decision), 0)
        learn.sync()
    assert router.route("a sum").model == "oracle"
    assert router.profiles["oracle"] is others
    assert router.profiles["abacus"].cost == 1


def test_after_a_half_life_what_was_known_counts_half(hard_router: UniRouter) -> None:
    """In counts, losses and cost, and whatever the clusters of the observations: it is the model that may change."""
    before = hard_router.profiles["abacus"]
    decision = hard_router.route("a sum", among=["abacus"])
    others = np.arange(3) != decision.cluster
    with learning(hard_router, half_life=7) as learn:
        for _ in range(7):
            hard_router.observe(replace(decision), 1)
        learn.sync()
    after = hard_router.profiles["abacus"]
    np.testing.assert_allclose(after.counts[others], before.counts[others] / 2)
    np.testing.assert_allclose(after.losses[others], before.losses[others] / 2)
    kept = 0.5 ** (np.arange(7) / 7)
    assert after.counts[decision.cluster] == pytest.approx(before.counts[decision.cluster] / 2 + kept.sum())


def test_what_was_observed_long_ago_is_forgotten(hard_router: UniRouter) -> None:
    """However many wrong answers came before, some twenty half-lives of right ones leave nothing of them."""
    decision = hard_router.route("a sum", among=["abacus"])
    with learning(hard_router, half_life=5) as learn:
        for score in [0] * 1000 + [1] * 100:
            hard_router.observe(replace(decision), score)
        learn.sync()
    assert hard_router.profiles["abacus"].mean_error < 1e-3


def test_a_decision_that_came_back_as_json_is_counted_in_its_cluster(router: UniRouter, blended: UniRouter) -> None:
    """Where clusters lie apart that is the same as the decision itself; where they overlap, in the one it names."""
    for decision in router.route_many(["a sum", "a poem"]):
        counts = []
        for form in (decision, json.loads(json.dumps(decision.as_dict()))):
            with learning(router) as learn:
                before = router.profiles[decision.model].counts
                assert router.observe(form, 1)
                learn.sync()
                counts.append(router.profiles[decision.model].counts - before)
        np.testing.assert_allclose(counts[0], counts[1], atol=0.02)
    plain = blended.route(vector=blended_vectors(1, 3)[0]).as_dict()
    with learning(blended, half_life=math.inf) as learn:
        before = blended.profiles[plain["model"]].counts
        blended.observe({**plain, "familiarity": 0.75}, 1)
        learn.sync()
    added = blended.profiles[plain["model"]].counts - before
    expected = 0.25 * blended.clusters.shares + 0.75 * (np.arange(6) == plain["cluster"])
    np.testing.assert_allclose(added, expected, atol=1e-9)


def test_what_can_no_longer_be_learned_is_not_counted(router: UniRouter, hard_router: UniRouter) -> None:
    """Late feedback for a model or for clusters that are gone is no error."""
    decision = router.route("a sum")
    router.unregister("abacus")
    assert router.observe(decision, 1) is False
    assert router.observe(decision.as_dict(), 1) is False
    assert router.observe(hard_router.route("a poem"), 1) is False


def test_a_decision_counts_once(router: UniRouter) -> None:
    """As it is, as plain JSON, or as a client sends it again and again."""
    decision, other = router.route("a sum"), router.route("a sum")
    with learning(router, half_life=math.inf) as learn:
        before = router.profiles["abacus"].counts.sum()
        found = [router.observe(json.loads(json.dumps(decision.as_dict())), score) for score in (1, 0, 0)]
        found += [router.observe(decision, 0), router.observe(other, 0), router.observe(other.as_dict(), 0)]
        learn.sync()
    assert found == [True, False, False, False, True, False]
    assert router.profiles["abacus"].counts.sum() - before == pytest.approx(2)


def test_only_the_last_decisions_are_remembered(router: UniRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a server may run for ever; an id that somebody made up takes no more memory than another."""
    monkeypatch.setattr("unirouter_integrations.learning._learner._MAX_REMEMBERED", 3)
    decisions = router.route_many(["a sum"] * 5)
    with learning(router) as learn:
        assert [router.observe(decision, 1) for decision in [*decisions, *decisions[2:]]] == [True] * 5 + [False] * 3
        ids: list[Any] = ["x" * 10**6, 10**6, [], {"a": 1}]
        for made_up in ids:
            assert router.observe({**decisions[0].as_dict(), "id": made_up}, 1)
        assert len(learn._counted) == 3
        assert max(map(len, learn._counted)) <= 64


def test_with_a_key_only_what_is_signed_is_counted(router: UniRouter) -> None:
    """A client can neither make a decision nor change one; the decision itself was never with a client."""
    decisions = router.route_many(["a sum"] * 9)
    signed = json.loads(json.dumps(router.learn(every=NEVER, key=b"another").sign(decisions[0])))
    with learning(router, key=b"secret") as learn:
        forged = [
            {**signed},
            decisions[1].as_dict(),
            {**decisions[1].as_dict(), "signature": None},
            {**decisions[1].as_dict(), "signature": "\ud800"},
            *({**learn.sign(decisions[1]), **change} for change in (
                {"model": "poet"}, {"id": "1"}, {"id": None}, {"cluster": 0 if decisions[1].cluster else 1},
                {"familiarity": 0.5}, {"clusters": None},
            )),
        ]  # fmt: skip
        for each in forged:
            with pytest.raises(InvalidInputError, match="not signed with the key"):
                router.observe(each, 1)
        noted = json.loads(json.dumps(router.sign(decisions[1])))
        noted["familiarity"] = round(noted["familiarity"])  # as JavaScript writes 1.0
        assert decisions[1].familiarity == 1
        assert router.observe(noted, 1)
        assert not router.observe(noted, 1)
        assert router.observe(decisions[2], 1)
        assert router.observe(router.sign(decisions[3].as_dict()), 1)


def test_without_a_key_signing_is_plain_json(router: UniRouter) -> None:
    """Before and after learning began."""
    decision = router.route("a sum")
    assert router.sign(decision) == decision.as_dict() == router.sign(decision.as_dict())
    with learning(router):
        assert router.sign(decision) == decision.as_dict()


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan, math.inf, "1", None])
def test_a_score_that_is_none_is_refused(router: UniRouter, score: Any) -> None:
    """Also one that is a text; the message says what a score is."""
    with pytest.raises(InvalidInputError, match=r"score \(0 wrong, 1 right\) should be a number from 0 to 1"):
        router.observe(router.route("a sum"), score)


@pytest.mark.parametrize("cost", [-1, math.nan, math.inf, 1.1e9, "cheap"])
def test_a_cost_that_is_none_is_refused(router: UniRouter, cost: Any) -> None:
    """It is at least 0, and not so high that sums of it would end all learning; where unknown, it is left out."""
    with pytest.raises(InvalidInputError, match=r"cost should be a number from 0 to 1e\+09"):
        router.observe(router.route("a sum"), 1, cost)


@pytest.mark.parametrize(
    "decision", [None, "abacus", {}, {"model": "abacus"}, {"model": "abacus", "cluster": 3}, {"model": 1, "cluster": 0}]
)
def test_what_is_no_decision_is_refused(router: UniRouter, decision: Any) -> None:
    """The message says what is."""
    with pytest.raises(InvalidInputError, match="takes a decision, or one as plain JSON"):
        router.observe(decision, 1)


@pytest.mark.parametrize("key", [None, b"secret"])
@pytest.mark.parametrize("field", ["model", "cluster", "familiarity", "id", "clusters", "signature"])
def test_what_is_refused_is_not_shown(router: UniRouter, field: str, key: bytes | None) -> None:
    """A chat model may stand in the wrong place, and a user may have sent anything."""

    class Client:
        def __repr__(self) -> str:
            return "https://user:password@host"

    noted = router.route("a sum").as_dict()
    said: list[str] = []
    with learning(router, key=key) as learn:
        for value in (Client(), [Client()], "the password is 1234", "password\n" * 10**5):
            try:
                router.observe({**learn.sign(noted), field: value}, 1)
            except InvalidInputError as error:
                said += traceback.format_exception(error)
    assert "password" not in "".join(said)


@pytest.mark.parametrize("terms", [{"half_life": 0}, {"half_life": "long"}, {"every": -1}, {"half_life": math.nan}])
def test_terms_that_make_no_sense_are_refused(router: UniRouter, terms: dict[str, Any]) -> None:
    """A half-life and an interval are above 0."""
    with pytest.raises(InvalidInputError, match="should be a number above 0"):
        router.learn(**terms)


def test_a_store_that_is_none_is_refused(router: UniRouter) -> None:
    """The message names what can be given."""
    with pytest.raises(InvalidInputError, match="methods add and read"):
        router.learn(42)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="RedisStatistics"):
        router.learn("redis://localhost")


def test_it_is_learned_in_the_background_without_being_asked(
    router: UniRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Observing is enough: with nothing said before, the profile follows by itself."""
    before, learned = router.profiles["abacus"], threading.Event()
    update = router._update_profiles

    def updated(profiles: Any) -> None:
        update(profiles)
        learned.set()

    monkeypatch.setattr(router, "_update_profiles", updated)
    router.observe(router.route("a sum"), 0)
    assert learned.wait(30)
    assert router.profiles["abacus"].losses.sum() > before.losses.sum()


def test_observing_waits_for_nothing(router: UniRouter) -> None:
    """Neither it nor routing, while the store takes its time."""
    asked, go_on = threading.Event(), threading.Event()

    class Slow(MemoryStatistics):
        def add(self, observed: Any, batch: str, /) -> None:
            asked.set()
            assert go_on.wait(30)
            super().add(observed, batch)

    decision = router.route("a sum")
    with router.learn(Slow(), every=0.001):
        router.observe(decision, 0)
        assert asked.wait(30)
        for _ in range(100):
            router.observe(router.route("a sum"), 0)
        assert router.profiles["abacus"].counts.sum() == pytest.approx(60)
        go_on.set()
    assert router.route("a sum").model == "oracle"


def test_many_threads_observe_and_nothing_is_lost(hard_router: UniRouter) -> None:
    """While others route and profiles are learned, every observation is counted once."""
    decisions = [hard_router.route(prompt) for prompt in ("a sum", "a poem", "a date")]
    before = sum(profile.counts.sum() for profile in hard_router.profiles.values())
    with hard_router.learn(half_life=math.inf, every=0.001) as learn:

        def work() -> None:
            for _ in range(200):
                for decision in decisions:
                    hard_router.observe(replace(decision), 1)
                    hard_router.route("a sum")

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        learn.sync()
    after = sum(profile.counts.sum() for profile in hard_router.profiles.values())
    assert after - before == pytest.approx(8 * 200 * 3)


def test_a_profile_that_is_registered_begins_anew(hard_router: UniRouter) -> None:
    """What was observed of the one before is not added to it; one that is registered again goes on where it was."""
    measured = hard_router.profiles["abacus"]
    decision = hard_router.route("a sum")
    with learning(hard_router) as learn:
        hard_router.observe(decision, 0)
        learn.sync()
        learned = hard_router.profiles["abacus"]
        assert learned is not measured
        fresh = LLMProfile("abacus", np.full(3, 5.0), np.zeros(3), cost=1)
        hard_router.register(fresh)
        learn.sync()
        assert hard_router.profiles["abacus"] is fresh
        hard_router.register(measured)
        learn.sync()
        np.testing.assert_array_equal(hard_router.profiles["abacus"].losses, learned.losses)


def test_a_saved_router_holds_what_was_learned_and_counts_it_once(hard_router: UniRouter, tmp_path: Any) -> None:
    """Loaded by a worker of the same store, it is the same, not learned twice."""
    decision = hard_router.route("a sum")
    with learning(hard_router, store=tmp_path / "statistics.db") as learn:
        for _ in range(20):
            hard_router.observe(replace(decision), 0)
        learn.sync()
    hard_router.save(tmp_path / "router")
    loaded = UniRouter.load(tmp_path / "router", embedder=toy_embed)
    with learning(loaded, store=tmp_path / "statistics.db") as learn:
        learn.sync()
    np.testing.assert_array_equal(loaded.profiles["abacus"].losses, hard_router.profiles["abacus"].losses)


def test_a_copy_of_a_router_has_learned_what_it_had_and_learns_by_itself(router: UniRouter) -> None:
    """Threads and stores are not sent to other processes."""
    with learning(router) as learn:
        router.observe(router.route("a sum"), 0)
        learn.sync()
    other = copy.copy(router)
    learned = router.profiles["abacus"]
    assert other.profiles["abacus"] is learned
    with learning(other) as learn:
        other.observe(other.route("a sum", among=["abacus"]), 0)
        learn.sync()
    assert other.profiles["abacus"] is not learned
    assert router.profiles["abacus"] is learned


def test_a_router_that_is_let_go_ends_its_thread(router: UniRouter) -> None:
    """Learning does not keep it alive."""
    other = toy_router("soft")
    other.observe(other.route("a sum"), 1)
    gone = weakref.ref(other)
    assert other._learning is not None
    thread = other._learning._background._thread
    assert thread is not None
    del other
    gc.collect()
    thread.join(30)
    gc.collect()
    assert gone() is None
    assert not thread.is_alive()


def test_exploring_finds_a_model_that_has_become_better(hard_router: UniRouter) -> None:
    """Left alone, a model that looked bad is never tried again; explored, it is, and then it is used."""
    chosen = {}
    for explore in (False, True):
        router = toy_router("hard")
        router.unregister("oracle")
        unlucky = LLMProfile("late", np.full(3, 4.0), np.full(3, 1.0), cost=0.1)
        usual = LLMProfile("usual", np.full(3, 200.0), np.full(3, 40.0), cost=0.2)
        empirical = UniRouter(router.clusters, estimator="laplace")
        for profile in (unlucky, usual):
            empirical.register(profile)
        with learning(empirical, explore=explore, seed=0, half_life=math.inf) as learn:
            models = []
            for _ in range(300):
                decision = empirical.route("a sum")
                models.append(decision.model)
                empirical.observe(decision, 1 if decision.model == "late" else 0.8)
                learn.sync()
        chosen[explore] = models
    assert set(chosen[False]) == {"usual"}
    assert chosen[True][-50:] == ["late"] * 50


def test_an_explored_decision_says_so(hard_router: UniRouter) -> None:
    """Its numbers are what is expected of the model, not the draw; the ranking has the best first."""
    router = UniRouter(hard_router.clusters, estimator="laplace")
    for name, losses in (("good", 1.0), ("fair", 2.0)):
        router.register(LLMProfile(name, np.full(3, 4.0), np.full(3, losses), cost=1))
    assert not router.route("a sum").explored
    with learning(router, explore=True, seed=1):
        decisions = router.route_many(["a sum"] * 200)
    explored = [decision for decision in decisions if decision.explored]
    assert 20 < len(explored) < 100
    assert {decision.model for decision in explored} == {"fair"}
    assert explored[0].expected_error == pytest.approx(0.5)
    assert [candidate.model for candidate in explored[0].ranking] == ["good", "fair"]
    assert "; chosen to explore, the best would be good, expected error 0.33" in str(explored[0])
    assert "; next would be fair" in str(next(decision for decision in decisions if not decision.explored))


SUMS = st.lists(st.floats(0, 100), min_size=4, max_size=4).flatmap(
    lambda rest: st.floats(0, 1).map(lambda faded: np.array([[faded], *([value] for value in rest)]))
)


@given(SUMS, SUMS, SUMS)
def test_sums_of_three_times_are_the_same_however_they_are_put_together(a: Sums, b: Sums, c: Sums) -> None:
    """So a worker may add up its own first, for as long as a store is away."""
    np.testing.assert_allclose(combine(combine(a, b), c), combine(a, combine(b, c)), rtol=1e-9, atol=1e-9)


@given(SUMS, SUMS)
def test_without_forgetting_order_does_not_matter(a: Sums, b: Sums) -> None:
    """Counts add."""
    a[0] = b[0] = 0
    np.testing.assert_array_equal(combine(a, b), combine(b, a))
