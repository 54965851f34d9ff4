"""The router: who is chosen, why, and what is refused."""

import contextlib
import copy
import dataclasses
import pickle
import re
import threading
from typing import Any

import numpy as np
import pytest
from conftest import TOY_PROMPTS, blended_vectors, toy_embed, toy_scores

from unirouter_integrations import (
    EmbeddingError,
    InvalidInputError,
    LLMProfile,
    NoModelError,
    PromptClusters,
    UniRouter,
    UnknownModelError,
)


def test_the_least_error_plus_weighted_cost_wins(router: UniRouter) -> None:
    """At weight 0 the best of each kind; ties go to the cheaper; a high weight buys the cheapest whatever it does."""
    assert [router.route(prompt).model for prompt in ("a sum", "a poem", "a date")] == ["abacus", "poet", "oracle"]
    assert router.route("a date", cost_weight=0.12).model == "abacus"
    assert router.route("a poem", cost_weight=2).model == "abacus"
    router.cost_weight = 2
    assert router.route("a poem").model == "abacus"


def test_a_decision_says_what_and_why(router: UniRouter) -> None:
    """Model, cluster, expected error and its spread, expected cost, objective, and all candidates in order."""
    decision = router.route("a poem", cost_weight=0.05)
    assert (decision.model, decision.expected_error, decision.expected_cost) == ("poet", 0, 2)
    assert decision.objective == pytest.approx(0.1)
    assert decision.cost_weight == 0.05
    assert decision.expected_error_std > 0
    assert decision.cluster == router.clusters.assign(["a poem"])[0]
    assert [candidate.model for candidate in decision.ranking] == ["poet", "oracle", "abacus"]
    assert [candidate.objective for candidate in decision.ranking] == pytest.approx([0.1, 0.5, 1.05])
    assert str(decision) == (
        f"poet for cluster {decision.cluster} (poem): expected error 0.00 ± 0.05 at cost 2; "
        "next would be oracle, expected error 0.00 ± 0.05 at cost 10 (cost weight 0.05)."
    )
    noted = decision.as_dict()
    assert re.fullmatch("[0-9a-f]{16}", noted.pop("id"))
    assert noted == {
        "model": "poet",
        "cluster": decision.cluster,
        "expected_error": 0.0,
        "expected_error_std": decision.expected_error_std,
        "expected_cost": 2.0,
        "objective": 0.1,
        "cost_weight": 0.05,
        "familiarity": 1.0,
        "basis": "best",
        "format_version": 1,
        "clusters": router.clusters.fingerprint,
    }
    assert "only candidate" in str(router.route("a poem", among=["poet"]))


def test_thousands_of_prompts_are_decided_like_one(router: UniRouter) -> None:
    """What is decided part by part is in order, and a vector that cannot be used is named by its place among all."""
    vectors = np.tile(router.embed(["a sum", "a poem", "a date"]), (900, 1))
    decisions = router.route_many(vectors=vectors)
    assert [decision.model for decision in decisions] == ["abacus", "poet", "oracle"] * 900
    assert decisions[-3:] == [router.route(vector=vector) for vector in vectors[-3:]]
    assert router.stats().decisions == 2703
    vectors[2500, 1] = np.nan
    with pytest.raises(EmbeddingError, match="Vector 2500 holds NaN"):
        router.route_many(vectors=vectors)


def test_one_prompt_reads_a_large_table_as_many_prompts_do() -> None:
    """Only the rows of its clusters are read, and the decision is the same."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(200, 32))
    vectors = centres[rng.integers(0, 200, 2000)] + rng.normal(size=(2000, 32)) / 4
    router = UniRouter(PromptClusters.fit([""] * 2000, None, vectors=vectors, n_clusters=200), cost_weight=0.1)
    wrong, costs = rng.uniform(0, 10, (400, 200)), rng.uniform(0, 5, (400, 200))
    router.register(
        *(LLMProfile(f"model {number}", np.full(200, 10.0), wrong[number], costs[number]) for number in range(400))
    )
    for vector, decision in zip(vectors[:50], router.route_many(vectors=vectors[:50]), strict=True):
        alone = router.route(vector=vector)
        assert (alone.model, alone.cluster) == (decision.model, decision.cluster)
        assert alone.expected_error == pytest.approx(decision.expected_error, abs=1e-4)
        assert alone.expected_cost == pytest.approx(decision.expected_cost, abs=1e-4)


def test_many_models_registered_in_a_row_are_all_there(router: UniRouter) -> None:
    """Also those replaced and removed on the way, for whoever reads at any moment, and in a copy."""
    prompts = ["a sum", "a poem", "a date"]
    early = router.snapshot()
    for number in range(350):
        router.register(router.profile(f"model {number % 300}", prompts, [1 - number / 1000] * 3, cost=1))
        if number % 60 == 59:
            router.unregister("model 7")
            router.register(router.profile("model 7", prompts, [0.5] * 3, cost=1))  # until 307 replaces it
        if number == 100:
            halfway = router.snapshot()
    assert (len(router.models), len(halfway.models), early.models) == (303, 104, ("abacus", "oracle", "poet"))
    for seen in (router, copy.deepcopy(router), pickle.loads(pickle.dumps(router))):  # noqa: S301
        assert [*seen.profiles] == sorted(seen.models)
        assert seen.expected_errors(["a sum"], among=["model 7", "model 10", "model 200"])[0] == pytest.approx(
            [0.307, 0.31, 0.2], abs=0.01
        )


def test_a_decision_outlives_changes_of_the_pool(router: UniRouter) -> None:
    """Its ranking is that of the moment it was made."""
    decision = router.route("a sum")
    router.unregister("abacus")
    assert [candidate.model for candidate in decision.ranking] == ["abacus", "oracle", "poet"]


async def test_one_and_many_prompts_and_vectors_sync_and_async_decide_alike(router: UniRouter) -> None:
    """Eight ways to ask, one answer."""
    prompts = ["a sum", "a poem", "a date", "a sum"]
    vectors = router.embed(prompts)
    expected = router.route_many(prompts)
    assert [decision.model for decision in expected] == ["abacus", "poet", "oracle", "abacus"]
    assert router.route_many(vectors=vectors) == expected
    assert await router.aroute_many(prompts) == expected
    assert await router.aroute_many(vectors=vectors) == expected
    assert [router.route(prompt) for prompt in prompts] == expected
    assert [router.route(vector=vector.tolist()) for vector in vectors] == expected
    assert [await router.aroute(prompt) for prompt in prompts] == expected
    assert [await router.aroute(vector=vector) for vector in vectors] == expected
    assert router.route_many([]) == await router.aroute_many([]) == []


def test_many_prompts_are_embedded_in_one_call() -> None:
    """Fitting (with its probe), routing a batch, profiling: one call each."""
    calls: list[int] = []

    def counting(texts: list[str]) -> Any:
        calls.append(len(texts))
        return toy_embed(texts)

    router = UniRouter.fit(TOY_PROMPTS, embedder=counting, n_clusters=3, scores={"known": toy_scores("sum")})
    router.register(router.profile("m", [f"a {prompt}" for prompt in TOY_PROMPTS], toy_scores(), cost=1))
    router.route_many(["a", "b", "c"])
    assert calls == [61, 60, 3]
    router.profile("again", TOY_PROMPTS, toy_scores(), cost=1)
    assert calls == [61, 60, 3]  # remembered


async def test_the_async_path_never_calls_the_sync_embedder() -> None:
    """An embedder with an async method is awaited, so that the event loop is not blocked."""
    pytest.importorskip("langchain_core")
    from langchain_core.embeddings import Embeddings

    class Both(Embeddings):
        blocked = False

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            assert not self.blocked
            vectors: list[list[float]] = toy_embed(texts).tolist()
            return vectors

        def embed_query(self, text: str) -> list[float]:
            raise AssertionError

        async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
            vectors: list[list[float]] = toy_embed(texts).tolist()
            return vectors

    embedder = Both()
    router = UniRouter.fit(TOY_PROMPTS, embedder=embedder, n_clusters=3)
    router.register(router.profile("m", TOY_PROMPTS, toy_scores(), cost=1))
    embedder.blocked = True
    assert (await router.aroute("a sum")).model == "m"


def test_models_join_and_leave_without_retraining(router: UniRouter) -> None:
    """Registered, replaced, removed: seen by the next decision."""
    before = router.clusters
    router.register(router.profile("calendar", TOY_PROMPTS, toy_scores("sum", "poem"), cost=0.5))
    assert router.route("a date").model == "calendar"
    router.register(router.profile("calendar", TOY_PROMPTS, toy_scores("sum", "poem", "date"), cost=0.5))
    assert router.route("a date").model == "oracle"
    assert router.unregister("calendar").name == "calendar"
    assert router.models == tuple(router.profiles) == ("abacus", "oracle", "poet")
    assert router.clusters is before


def test_two_runs_of_a_model_can_be_registered_as_one(hard_router: UniRouter) -> None:
    """The sum of two profiles is a profile."""
    router = hard_router
    more = router.profile("oracle", TOY_PROMPTS, toy_scores("sum"), cost=10)
    router.register(router.profiles["oracle"] + more)
    assert router.expected_errors(["a sum", "a poem"], among=["oracle"]).ravel().tolist() == [0.5, 0]


def test_two_soft_runs_are_that_of_both_together(blended: UniRouter) -> None:
    """Counts in parts add as whole ones do, and the router expects the same of the sum as of the joined data."""
    vectors, scores = blended_vectors(80, 8), (blended_vectors(80, 8)[:, 3] <= 0).astype(float)
    halves = [
        blended.profile("fox", vectors=vectors[part], scores=scores[part], cost=2)
        for part in np.split(np.arange(80), 2)
    ]
    unseen = blended_vectors(50, 9)
    expected = []
    for profile in (halves[0] + halves[1], blended.profile("fox", vectors=vectors, scores=scores, cost=2)):
        blended.register(profile)
        expected.append(blended.expected_errors(vectors=unseen, among=["fox"]))
    np.testing.assert_allclose(expected[0], expected[1])


def test_candidates_can_be_named(router: UniRouter) -> None:
    """Only those take part, in any order, repeated or not."""
    assert router.route("a sum", among=("oracle", "poet", "oracle")).model == "oracle"
    assert router.route("a sum", among={"poet": 1}).model == "poet"


def test_expected_errors_come_in_the_order_asked_for(hard_router: UniRouter) -> None:
    """`(n, m)`, in the order of `among`, or of `models` if it is left out."""
    router = hard_router
    prompts = ["a sum", "a date"]
    assert router.expected_errors(prompts).tolist() == [[0, 0, 1], [1, 0, 1]]
    assert router.expected_errors(prompts, among=["poet", "abacus"]).tolist() == [[1, 0], [1, 1]]
    assert router.expected_errors(prompts, among=["poet", "poet"]).tolist() == [[1, 1], [1, 1]]
    vectors = router.embed(prompts)
    assert router.expected_errors(vectors=vectors, among=["oracle"]).tolist() == [[0], [0]]


def test_soft_expected_errors_are_memberships_times_profiles(blended: UniRouter) -> None:
    """Phi . Psi, in the order asked for, and those of the decisions."""
    vectors = blended_vectors(200, 5)
    phi = blended.clusters.memberships(vectors=vectors).phi
    psi = {name: profile.estimate("laplace").error for name, profile in blended.profiles.items()}
    expected = blended.expected_errors(vectors=vectors)
    np.testing.assert_allclose(expected, phi @ np.column_stack([psi[name] for name in blended.models]), atol=1e-11)
    np.testing.assert_allclose(
        blended.expected_errors(vectors=vectors, among=["elk", "ant", "elk"]), expected[:, [4, 0, 4]], atol=1e-11
    )
    for row, decision in enumerate(blended.route_many(vectors=vectors)):
        for candidate in decision.ranking:
            column = blended.models.index(candidate.model)
            assert candidate.expected_error == pytest.approx(expected[row, column], abs=1e-11)
            assert candidate.expected_cost == pytest.approx(
                phi[row] @ np.broadcast_to(blended.profiles[candidate.model].cost, 6), abs=1e-10
            )


def test_soft_and_hard_routers_agree_where_clusters_lie_apart(router: UniRouter, hard_router: UniRouter) -> None:
    """The same models and, to what can be measured, the same numbers."""
    for soft, hard in zip(router.route_many(TOY_PROMPTS), hard_router.route_many(TOY_PROMPTS), strict=True):
        assert (soft.model, soft.cluster, soft.expected_cost) == (hard.model, hard.cluster, hard.expected_cost)
        if soft.familiarity == 1:
            assert soft.expected_error == pytest.approx(hard.expected_error, abs=1e-4)
            assert soft.expected_error_std == pytest.approx(hard.expected_error_std)


def test_a_prompt_between_clusters_is_expected_to_be_between_them(blended: UniRouter) -> None:
    """Errors are no longer those of one cluster: on most prompts they differ from every entry of the table."""
    table = blended.profiles["ant"].estimate("laplace").error
    errors = blended.expected_errors(vectors=blended_vectors(200, 5), among=["ant"]).ravel()
    assert ((errors >= table.min()) & (errors <= table.max())).all()
    assert np.mean(np.abs(errors[:, None] - table).min(axis=1) > 1e-4) > 0.5
    assert len(np.unique(errors.round(6))) > 150


@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_a_vector_is_routed_alone_as_in_a_batch(blended: UniRouter, assignment: Any) -> None:
    """Wherever in the batch it stands, and so is the ranking; soft ones up to the rounding of float32."""
    clusters = blended.clusters if assignment == "soft" else dataclasses.replace(blended.clusters, gate=None)
    router = UniRouter(clusters, estimator="laplace", cost_weight=0.05)
    for profile in blended.profiles.values():
        router.register(dataclasses.replace(profile, clusters=None))
    vectors = blended_vectors(300, 6)
    together = router.route_many(vectors=vectors)
    backwards = router.route_many(vectors=vectors[::-1])[::-1]
    for vector, decision, again in zip(vectors, together, backwards, strict=True):
        for other in (router.route(vector=vector), again):
            if assignment == "hard":
                assert other == decision
            for ours, theirs in zip(other.ranking, decision.ranking, strict=True):
                assert ours.model == theirs.model
                assert ours.expected_error == pytest.approx(theirs.expected_error, abs=1e-4)
                assert ours.expected_error_std == pytest.approx(theirs.expected_error_std, abs=1e-4)
                assert ours.objective == pytest.approx(theirs.objective, abs=1e-5)


def test_the_winner_leads_the_ranking_in_every_number(blended: UniRouter) -> None:
    """The decision is the first of its ranking, and the ranking holds every model once, by objective."""
    for decision in blended.route_many(vectors=blended_vectors(400, 6)):
        assert vars(decision.ranking[0]).items() <= vars(decision).items()
        assert tuple(sorted(candidate.model for candidate in decision.ranking)) == blended.models
        objectives = [candidate.objective for candidate in decision.ranking]
        assert objectives == sorted(objectives)


def test_of_equal_models_the_cheaper_wins_under_soft_assignment(blended: UniRouter) -> None:
    """At weight 0, on every prompt, in whatever order they come: no rounding makes one of them the better."""
    router, twin = UniRouter(blended.clusters), dataclasses.replace(blended.profiles["bee"], cost=1.0)
    for index in range(9):
        router.register(dataclasses.replace(twin, name=f"twin{index}", cost=1.0 + (index * 5 + 3) % 9))
    for decision in router.route_many(vectors=blended_vectors(400, 6), cost_weight=0):
        assert decision.model == "twin3"
        assert decision.expected_cost == pytest.approx(1)
        assert [round(candidate.expected_cost) for candidate in decision.ranking] == [*range(1, 10)]
        assert len({candidate.expected_error for candidate in decision.ranking}) == 1


def test_of_models_that_tie_on_a_prompt_the_cheaper_wins_there() -> None:
    """Right between two clusters, a specialist of the one is as good as one of the other."""
    prompts, vectors = ["a"] * 20 + ["b"] * 20, np.repeat([[1.0, 0.2], [0.2, 1.0]], 20, axis=0)
    router = UniRouter.fit(prompts, embedder=None, vectors=vectors, n_clusters=2, estimator="mean")
    scores = np.repeat([1.0, 0.0], 20)
    for name, known, cost in (("expensive", scores, 2), ("cheap", 1 - scores, 1)):
        router.register(router.profile(name, vectors=vectors, scores=known, cost=cost))
    assert [router.route(vector=vector).model for vector in vectors[[0, -1]]] == ["expensive", "cheap"]
    middle = router.route(vector=[1, 1])
    assert middle.model == "cheap"
    assert {candidate.expected_error for candidate in middle.ranking} == {0.5}


def strange_path() -> list[list[float]]:
    """From a sum to something that is none of the kinds."""
    return [[10.0, 0, 0, length] for length in (3, 12, 14, 16, 18, 20, 25, 1000)]


def test_an_unfamiliar_prompt_is_expected_to_be_like_the_mean_of_all(router: UniRouter) -> None:
    """Known prompts are familiar; the less a prompt is, the nearer its errors are to each model's mean."""
    assert np.mean([decision.familiarity == 1 for decision in router.route_many(TOY_PROMPTS)]) >= 0.98
    path = router.route_many(vectors=strange_path())
    familiarity = [decision.familiarity for decision in path]
    assert familiarity[0] == 1
    assert familiarity[-1] < 1e-3
    assert familiarity == sorted(familiarity, reverse=True)
    shares = router.clusters.shares
    for vector in (strange_path()[-1], [0, 0, 0, 0]):
        for candidate in router.route(vector=vector).ranking:
            mean = shares @ router.profiles[candidate.model].estimate("mean").error
            assert candidate.expected_error == pytest.approx(mean, abs=1e-3)
    nothing = router.route(vector=[0, 0, 0, 0])
    assert nothing.familiarity == 0
    assert nothing.model == "oracle"
    assert nothing.as_dict()["familiarity"] == 0


def test_the_less_familiar_a_prompt_the_greater_the_doubt(router: UniRouter) -> None:
    """A model equally well known in all clusters, but not equally good: what is unknown is where the prompt belongs."""
    even = UniRouter(router.clusters, estimator="laplace")
    even.register(LLMProfile("m", np.full(3, 8.0), np.array([2.0, 6.0, 6.0]), cost=1))
    path = even.route_many(vectors=strange_path())
    doubt = [decision.expected_error_std for decision in path]
    assert doubt == sorted(doubt)
    assert doubt[-1] > 1.3 * doubt[0]
    flat = UniRouter(router.clusters, estimator="laplace")
    flat.register(LLMProfile("m", np.full(3, 8.0), np.full(3, 2.0), cost=1))
    doubt = [decision.expected_error_std for decision in flat.route_many(vectors=strange_path())]
    np.testing.assert_allclose(doubt, doubt[0])


def test_a_decision_says_that_a_prompt_is_unlike_those_of_the_fit(router: UniRouter, hard_router: UniRouter) -> None:
    """In place of a cluster it does not belong to; hard assignment knows no such prompt."""
    strange = "for a prompt unlike those the router was fitted on: expected error"
    for vector in ([0, 0, 0, 0], [-1, -1, -1, 0]):
        assert strange in str(router.route(vector=vector))
        assert strange not in str(hard_router.route(vector=vector))
        assert hard_router.route(vector=vector).familiarity == 1
    for decision in router.route_many(vectors=strange_path()):
        assert (strange in str(decision)) == (decision.familiarity < 0.5)
        assert (f"for cluster {decision.cluster} (" in str(decision)) == (decision.familiarity >= 0.5)


def test_hard_and_soft_routers_do_not_take_each_others_profiles(router: UniRouter, hard_router: UniRouter) -> None:
    """The one counts whole prompts, the other parts of them."""
    assert router.clusters.fingerprint != hard_router.clusters.fingerprint
    for ours, theirs in ((router, hard_router), (hard_router, router)):
        with pytest.raises(InvalidInputError, match="measured on 3 clusters"):
            ours.register(theirs.profiles["poet"])
    with pytest.raises(InvalidInputError, match="assignment should be one of 'hard', 'soft', but is 'firm'"):
        UniRouter.fit(TOY_PROMPTS, assignment="firm")  # type: ignore[arg-type]


def test_known_outcomes_help_a_new_model_with_few_labels() -> None:
    """With a prior, one failed poem tells that other poems fail too; without, all clusters move alike."""
    rng = np.random.default_rng(0)
    is_poem = ["poem" in prompt for prompt in TOY_PROMPTS]
    scores = {f"m{m}": 1 - np.where(is_poem, m % 2, rng.random() < 0.5) for m in range(6)}
    router = UniRouter.fit(TOY_PROMPTS, embedder=toy_embed, n_clusters=3, scores=scores)
    assert router.prior is not None
    profile = router.profile("new", ["a poem", "a sum"], [0, 1], cost=1)
    error = profile.estimate("empirical_bayes", router.prior).error
    poem, total, date = router.clusters.assign(["a poem", "a sum", "a date"])
    without = profile.estimate("empirical_bayes").error
    assert error[poem] > without[poem] > without[date] > without[total] > error[total]
    assert error[date] < 0.45 < without[date] == 0.5


@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_the_same_seed_gives_the_same_router(assignment: Any) -> None:
    """Fitting draws nothing from anywhere else."""
    prompts, scores = TOY_PROMPTS * 3, {"a": toy_scores("sum") * 3, "b": toy_scores("date") * 3}
    first, second = (
        UniRouter.fit(prompts, scores=scores, seed=4, assignment=assignment).clusters.fingerprint for _ in range(2)
    )
    assert first == second


def test_an_empty_pool_says_how_to_fill_it(router: UniRouter) -> None:
    """Nothing registered, or nothing named."""
    empty = UniRouter.fit(TOY_PROMPTS, embedder=toy_embed, n_clusters=3)
    with pytest.raises(NoModelError, match=r"none is registered.*router.register"):
        empty.route("a sum")
    with pytest.raises(NoModelError, match="or among is empty"):
        router.route("a sum", among=[])
    assert empty.expected_errors(["a sum"]).shape == (1, 0)


def test_an_unknown_name_lists_the_known_ones(router: UniRouter) -> None:
    """In routing, in asking for errors, in removing."""
    for call in (
        lambda: router.route("a sum", among=["abacus", "gpt"]),
        lambda: router.expected_errors(["a sum"], among=["gpt"]),
        lambda: router.unregister("gpt"),
    ):
        with pytest.raises(UnknownModelError, match=r"'gpt'\. Registered models: 'abacus', 'oracle', 'poet'"):
            call()


@pytest.mark.parametrize("weight", [-1, -1e-9, float("nan"), float("inf"), "much", [1]])
def test_a_cost_weight_that_makes_no_sense_is_refused(router: UniRouter, weight: Any) -> None:
    """Negative, not finite, not a number; and the router keeps the one it had."""
    with pytest.raises(InvalidInputError, match="cost_weight should be a number of at least 0"):
        router.route("a sum", cost_weight=weight)
    with pytest.raises(InvalidInputError, match="cost_weight"):
        router.cost_weight = weight
    assert router.cost_weight == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either prompts or vectors"),
        ({"prompt": "a", "vector": [1, 2, 3, 4]}, "either prompts or vectors"),
        ({"prompt": ["a"]}, r"one prompt.*route_many"),
        ({"prompt": 3}, "not int"),
        ({"vector": [[1, 2, 3, 4]]}, r"one vector.*route_many"),
        ({"vector": [[1], [2, 3]]}, r"one vector.*route_many"),
        ({"prompt": "a", "among": "abacus"}, "among should be a list of model names, but is 'abacus'"),
        ({"prompt": "a", "among": 3}, "among should be a list of model names, but is 3"),
        ({"prompt": "a", "among": [["abacus"]]}, "among should be a list of model names"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(router: UniRouter, arguments: Any, message: str) -> None:
    """The message says what to give instead."""
    with pytest.raises(InvalidInputError, match=message):
        router.route(**arguments)


@pytest.mark.parametrize("vector", [[1, 2, 3], [1, 2, 3, float("nan")], [1, 2, 3, float("inf")], ["a", "b", "c", "d"]])
def test_a_vector_that_cannot_be_used_is_refused(router: UniRouter, vector: Any) -> None:
    """Wrong dimension, not finite, not numbers."""
    with pytest.raises(EmbeddingError):
        router.route(vector=vector)


def test_an_embedder_that_goes_wrong_later_is_caught(router: UniRouter) -> None:
    """A service that starts to return another shape is named, and nothing is decided."""
    router = UniRouter.fit(TOY_PROMPTS, embedder=lambda texts: toy_embed(texts)[:, : 4 if len(texts) > 1 else 2])
    router.register(router.profile("m", TOY_PROMPTS, toy_scores(), cost=1))
    with pytest.raises(EmbeddingError, match="dimension 2, but the router was fitted on dimension 4"):
        router.route("a sum")


def test_profiles_of_other_clusters_are_refused(router: UniRouter) -> None:
    """Another number of clusters, or as many but others; and something that is no profile."""
    other = UniRouter.fit(TOY_PROMPTS, n_clusters=3)
    with pytest.raises(InvalidInputError, match="measured on 3 clusters"):
        router.register(other.profile("m", TOY_PROMPTS, toy_scores(), cost=1))
    with pytest.raises(InvalidInputError, match="measured on 2 clusters"):
        router.register(LLMProfile("m", np.ones(2), np.ones(2), cost=1))
    with pytest.raises(InvalidInputError, match="not str"):
        router.register("m")  # type: ignore[arg-type]
    router.register(LLMProfile("m", np.ones(3), np.zeros(3), cost=1))  # counted elsewhere: the shape is all there is


def test_scores_that_cannot_make_a_profile_are_refused(router: UniRouter) -> None:
    """Lengths that differ, scores out of range, nothing graded."""
    for scores, message in (([0], "2 prompts"), ([0, 3], "number 1 is 3"), ([np.nan, np.nan], "at least one graded")):
        with pytest.raises(InvalidInputError, match=message):
            router.profile("m", ["a sum", "a poem"], scores, cost=1)
    with pytest.raises(InvalidInputError, match="scores of 'gpt'"):
        UniRouter.fit(TOY_PROMPTS, scores={"gpt": [0, 1]})
    with pytest.raises(InvalidInputError, match="estimator should be one of"):
        UniRouter.fit(TOY_PROMPTS, estimator="best")  # type: ignore[arg-type]


def test_a_profile_from_vectors_is_that_from_prompts(router: UniRouter) -> None:
    """Graded prompts may be given as their embeddings."""
    a = router.profile("m", TOY_PROMPTS, toy_scores("sum"), cost=1)
    b = router.profile("m", scores=toy_scores("sum"), vectors=toy_embed(TOY_PROMPTS), cost=1)
    np.testing.assert_array_equal(a.losses, b.losses)
    assert a.clusters == b.clusters == router.clusters.fingerprint


def test_costs_may_differ_between_clusters(router: UniRouter) -> None:
    """A model that writes long poems is expensive for poems only, and ties are settled by the cost of the cluster."""
    costs = [30.0 if "poem" in prompt else 0.1 for prompt in TOY_PROMPTS]
    router.register(router.profile("chatty", TOY_PROMPTS, toy_scores(), cost=costs))
    assert router.route("a sum").model == router.route("a date").model == "chatty"
    assert router.route("a poem").model == "poet"
    assert router.route("a date").expected_cost == pytest.approx(0.1)


def test_the_repr_is_short_and_holds_no_prompt(router: UniRouter) -> None:
    """What it was fitted on does not show."""
    assert repr(router).startswith("UniRouter(PromptClusters(n_clusters=3, dimension=4")
    assert "abacus" in repr(router)
    assert "number" not in repr(router)


class TestCalibrate:
    """A cost weight from a budget or a quality, without labels."""

    PROMPTS = ("a sum", "a sum", "a poem", "a date")

    def test_a_budget_is_kept_and_used(self, router: UniRouter) -> None:
        """The mean expected cost keeps to it, and a little less weight would not."""
        for budget in (1.0, 1.3, 2.0, 3.5, 4.0, 100.0):
            weight = router.calibrate(self.PROMPTS, budget=budget)
            assert router.cost_weight == weight
            assert np.mean([d.expected_cost for d in router.route_many(self.PROMPTS)]) <= budget
            if weight:
                dearer = router.route_many(self.PROMPTS, cost_weight=weight * (1 - 1e-6))
                assert np.mean([d.expected_cost for d in dearer]) > budget

    def test_a_quality_is_kept_at_the_least_cost(self, router: UniRouter) -> None:
        """The mean expected quality is kept, and a little more weight would lose it."""
        for quality in (1.0, 0.8, 0.75, 0.5):
            weight = router.calibrate(self.PROMPTS, quality=quality)
            assert np.mean([1 - d.expected_error for d in router.route_many(self.PROMPTS)]) >= quality
            worse = router.route_many(self.PROMPTS, cost_weight=weight * (1 + 1e-6))
            assert np.mean([1 - d.expected_error for d in worse]) < quality or weight == pytest.approx(1)

    def test_a_quality_that_costs_nothing_gives_the_cheapest(self, router: UniRouter) -> None:
        """If the cheapest model keeps it, every prompt goes there, at a weight that is still a sensible number."""
        weight = router.calibrate(self.PROMPTS, quality=0.25)
        assert {decision.model for decision in router.route_many(self.PROMPTS)} == {"abacus"}
        assert weight == pytest.approx(1)

    def test_a_budget_is_kept_and_used_where_clusters_overlap(self, blended: UniRouter) -> None:
        """As above, prompt by prompt instead of cluster by cluster."""
        vectors = blended_vectors(150, 7)
        cheapest = np.mean([min(c.expected_cost for c in d.ranking) for d in blended.route_many(vectors=vectors)])
        for budget in (cheapest * 1.01, cheapest * 1.5, cheapest * 3, 100.0):
            weight = blended.calibrate(vectors=vectors, budget=float(budget))
            assert np.mean([d.expected_cost for d in blended.route_many(vectors=vectors)]) <= budget * (1 + 1e-8)
            if weight:
                dearer = blended.route_many(vectors=vectors, cost_weight=weight * (1 - 1e-6))
                assert np.mean([d.expected_cost for d in dearer]) > budget
        with pytest.raises(InvalidInputError, match="cannot be kept"):
            blended.calibrate(vectors=vectors, budget=float(cheapest * 0.99))

    def test_a_quality_is_kept_at_the_least_cost_where_clusters_overlap(self, blended: UniRouter) -> None:
        """The best single model's mean expected quality, times what is asked for."""
        vectors = blended_vectors(150, 7)
        best_single = 1 - blended.expected_errors(vectors=vectors).mean(axis=0).min()
        for quality in (1.0, 0.95, 0.9):
            weight = blended.calibrate(vectors=vectors, quality=quality)
            kept = np.mean([1 - d.expected_error for d in blended.route_many(vectors=vectors)])
            assert kept >= quality * best_single * (1 - 1e-8)
            worse = blended.route_many(vectors=vectors, cost_weight=weight * (1 + 1e-6))
            assert np.mean([1 - d.expected_error for d in worse]) < quality * best_single
        assert weight > 0

    def test_vectors_and_candidates_may_be_given(self, router: UniRouter) -> None:
        """As in routing."""
        a = router.calibrate(self.PROMPTS, budget=3, among=["poet", "oracle"])
        assert a == router.calibrate(vectors=router.embed(self.PROMPTS), budget=3, among=["oracle", "poet"])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "either budget= or quality="),
            ({"budget": 1, "quality": 1}, "either budget= or quality="),
            ({"budget": 0.9}, "budget of 0.9 per call cannot be kept.*costs 1 "),
            ({"budget": float("nan")}, "budget should be a number of at least 0, but is nan"),
            ({"budget": "1"}, "budget should be a number"),
            ({"quality": 1.01}, "cannot be reached; ignoring cost reaches 1"),
            ({"quality": -1}, "quality should be a number"),
            ({"quality": float("nan")}, "quality should be a number"),
        ],
    )
    def test_a_goal_that_cannot_be_reached_says_what_can(self, router: UniRouter, arguments: Any, message: str) -> None:
        """And the cost weight stays as it was."""
        router.cost_weight = 0.5
        with pytest.raises(InvalidInputError, match=message):
            router.calibrate(self.PROMPTS, **arguments)
        assert router.cost_weight == 0.5

    @pytest.mark.parametrize("unit", [1e-20, 1e-300, 1e300])
    def test_any_unit_of_cost_will_do(self, router: UniRouter, unit: float) -> None:
        """Costs of 1, 2 and 10 of whatever is counted: the same choices, for a budget and for a quality."""
        router.calibrate(self.PROMPTS, budget=2)
        expected = router.route_many(self.PROMPTS)
        scaled = UniRouter(router.clusters, estimator="mean")
        for profile in router.profiles.values():
            scaled.register(LLMProfile(profile.name, profile.counts, profile.losses, profile.cost * unit))
        scaled.calibrate(self.PROMPTS, budget=2 * unit)
        assert [d.model for d in scaled.route_many(self.PROMPTS)] == [d.model for d in expected]
        scaled.calibrate(self.PROMPTS, quality=0.25)
        assert {d.model for d in scaled.route_many(self.PROMPTS)} == {"abacus"}

    def test_it_needs_prompts_and_models(self, router: UniRouter) -> None:
        """Neither can be guessed."""
        with pytest.raises(InvalidInputError, match="no prompts to calibrate on"):
            router.calibrate([], budget=1)
        with pytest.raises(NoModelError):
            router.calibrate(self.PROMPTS, budget=1, among=[])


def start_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()


def join_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


def test_routing_goes_on_while_the_pool_changes(router: UniRouter) -> None:
    """Eight threads route while two register and remove: no error, and every decision is consistent in itself."""
    extra = [router.profile(f"m{i}", TOY_PROMPTS, toy_scores(), cost=5 + i) for i in range(4)]
    stop, errors = threading.Event(), []

    def change() -> None:
        while not stop.is_set():
            for profile in extra:
                router.register(profile)
            for profile in extra:
                with contextlib.suppress(UnknownModelError):  # the other thread was first
                    router.unregister(profile.name)

    def route() -> None:
        try:
            for _ in range(300):
                decision = router.route("a date")
                assert (decision.ranking[0].model, decision.expected_error) == (decision.model, 0)
        except Exception as error:  # noqa: BLE001  # whatever it is, the test shall fail with it
            errors.append(error)

    changing = [threading.Thread(target=change) for _ in range(2)]
    routing = [threading.Thread(target=route) for _ in range(8)]
    start_all(changing + routing)
    join_all(routing)
    stop.set()
    join_all(changing)
    assert not errors


def test_a_snapshot_may_be_of_some_models(router: UniRouter) -> None:
    """Those that are named, all of which have to be registered."""
    snapshot = router.snapshot(among=["poet", "oracle"])
    assert snapshot.models == ("oracle", "poet")
    assert snapshot.among(["poet"]).models == ("poet",)
    for taken in (router, snapshot):
        with pytest.raises(UnknownModelError, match="'gpt'"):
            taken.snapshot(["gpt"]) if isinstance(taken, UniRouter) else taken.among(["gpt"])


def test_a_snapshot_is_not_a_list_of_candidates(router: UniRouter) -> None:
    """It decides by itself; in the place of the names of candidates it is refused."""
    snapshot: Any = router.snapshot()
    for call in (router.route, lambda prompt, among: router.expected_errors([prompt], among=among)):
        with pytest.raises(InvalidInputError, match="among should be a list of model names, but is <Snapshot>"):
            call("a poem", among=snapshot)


def test_a_prior_over_other_clusters_is_refused(router: UniRouter) -> None:
    """Both numbers are named."""
    other = UniRouter.fit(TOY_PROMPTS, n_clusters=2, scores={"m": toy_scores()}).prior
    with pytest.raises(InvalidInputError, match="over 2 clusters, but there are 3"):
        UniRouter(router.clusters, prior=other)


def test_a_router_can_be_copied_and_sent_to_workers(router: UniRouter) -> None:
    """A copy decides alike and goes its own way from there."""
    twin = copy.deepcopy(router)
    assert [d.model for d in twin.route_many(TOY_PROMPTS)] == [d.model for d in router.route_many(TOY_PROMPTS)]
    twin.unregister("poet")
    assert twin.models == ("abacus", "oracle")
    assert router.models == ("abacus", "oracle", "poet")


class TestChooseValidation:
    """Which prompts to grade a new model on."""

    def test_the_clusters_are_covered_in_turn(self, hard_router: UniRouter) -> None:
        """Three kinds that tell nothing of each other: of the first three prompts, each kind has one."""
        chosen = hard_router.choose_validation(TOY_PROMPTS, 9)
        kinds = [TOY_PROMPTS[index].split()[0] for index in chosen]
        assert set(kinds[:3]) == {"sum", "poem", "date"}
        assert sorted(kinds) == ["date"] * 3 + ["poem"] * 3 + ["sum"] * 3

    def test_any_first_part_of_a_choice_is_a_choice(self, blended: UniRouter) -> None:
        """The prompts are distinct, and fewer of them are the first of more."""
        vectors = blended_vectors(100, 8)
        chosen = blended.choose_validation(vectors=vectors, n=100)
        assert sorted(chosen) == list(range(100))
        assert blended.choose_validation(vectors=vectors, n=7) == chosen[:7]

    def test_it_leaves_less_doubt_than_chance(self) -> None:
        """The mean posterior variance over the prompts is below that of any of 50 random choices."""
        vectors = blended_vectors(300, 9)
        scores = {f"m{i}": (vectors[:, i] <= 0).astype(float) for i in range(5)}
        router = UniRouter.fit([""] * 300, embedder=None, vectors=vectors, n_clusters=6, scores=scores)
        phi = router.clusters.memberships(vectors=vectors).phi
        assert router.prior is not None

        def doubt(rows: list[int]) -> float:
            of_chosen, covariance = phi[list(rows)], router.prior.covariance  # type: ignore[union-attr]  # asserted
            noise = 0.2 * np.eye(len(of_chosen))
            gain = np.linalg.solve(of_chosen @ covariance @ of_chosen.T + noise, of_chosen @ covariance)
            return float(phi.mean(axis=0) @ np.diag(covariance - covariance @ of_chosen.T @ gain))

        rng = np.random.default_rng(0)
        by_chance = min(doubt(rng.permutation(300)[:12].tolist()) for _ in range(50))
        assert doubt(router.choose_validation(vectors=vectors, n=12)) < by_chance

    @pytest.mark.parametrize("n", [0, 61, 2.5, "many"])
    def test_a_senseless_number_is_refused(self, router: UniRouter, n: Any) -> None:
        """Not more than there are prompts."""
        with pytest.raises(InvalidInputError, match=r"the number of prompts to choose, should be .* from 1 to 60"):
            router.choose_validation(TOY_PROMPTS, n)
