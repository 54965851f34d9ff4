"""What is known of a model, and the estimators."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unirouter_integrations import ErrorPrior, InvalidInputError, LLMProfile
from unirouter_integrations.core._profiles import ESTIMATORS, errors_of_known


def counted(counts: list[float], losses: list[float], clusters: str | None = None) -> LLMProfile:
    return LLMProfile("gpt", np.array(counts), np.array(losses), cost=1.0, clusters=clusters)


ARTICLE = counted([400, 400, 400], [80, 220, 60])


def test_the_article_example_under_the_mean() -> None:
    """400 prompts per cluster with 80, 220 and 60 errors."""
    error, std = ARTICLE.estimate("mean")
    np.testing.assert_allclose(error, [0.20, 0.55, 0.15])
    np.testing.assert_allclose(std, [0.02, 0.0249, 0.0179], atol=2e-4)


def test_the_article_example_under_laplace() -> None:
    """One more error and one more right answer in each cluster; 0.5 where there is nothing."""
    error, std = ARTICLE.estimate("laplace")
    np.testing.assert_allclose(error, [81 / 402, 221 / 402, 61 / 402])
    np.testing.assert_allclose(std, np.sqrt(error * (1 - error) / 403))
    empty = counted([10, 0], [5, 0]).estimate("laplace")
    assert empty.error[1] == 0.5
    assert empty.std[1] > empty.std[0]


def test_an_empty_cluster_under_the_mean_takes_the_mean_of_the_model() -> None:
    """The paper does not say; without any graded prompt at all it is 0.5."""
    some = counted([10, 0], [2, 0])
    np.testing.assert_allclose(some.estimate("mean").error, [0.2, 0.2])
    none = counted([0, 0], [0, 0])
    for estimator in ESTIMATORS:
        np.testing.assert_allclose(none.estimate(estimator).error, 0.5)


def test_without_a_prior_empirical_bayes_shrinks_to_the_mean_of_the_model() -> None:
    """As if 8 more prompts had given the model's own mean."""
    profile = counted([4, 0, 16], [0, 0, 10])
    np.testing.assert_allclose(profile.estimate().error, [(0 + 4) / 12, 0.5, (10 + 4) / 24])
    assert profile.estimate().std[1] > profile.estimate().std[0] > profile.estimate().std[2]


def normalised(rows: Any) -> Any:
    return rows / rows.sum(axis=1, keepdims=True)


def prior_of(assignment: Any, scores: Mapping[str, Any], clusters: int) -> ErrorPrior:
    """The prior from scores on prompts that belong to one cluster each."""
    shares = np.bincount(assignment, minlength=clusters) / len(assignment)
    return ErrorPrior.fit(errors_of_known(np.eye(clusters)[assignment], scores), shares)


def prior(models: int = 6, clusters: int = 4, seed: int = 0) -> ErrorPrior:
    rng = np.random.default_rng(seed)
    assignment = np.repeat(np.arange(clusters), 50)
    error = rng.uniform(0.1, 0.9, size=(models, 1)) + rng.normal(0, 0.05, size=(models, clusters))
    scores = {f"m{m}": (rng.random(200) >= error[m, assignment]).astype(float) for m in range(models)}
    return prior_of(assignment, scores, clusters)


KNOWN = prior()


def test_the_posterior_is_the_one_of_the_information_form() -> None:
    """(S^-1 + A'A/s2)^-1 (S^-1 mu + A'e/s2), with A one-hot: the same numbers by another way."""
    known = prior()
    counts, losses = np.array([3.0, 0, 10, 1]), np.array([1.0, 0, 9, 0])
    p = (losses.sum() + 1) / (counts.sum() + 2)
    s2 = p * (1 - p)
    information = np.linalg.inv(known.covariance) + np.diag(counts) / s2
    covariance = np.linalg.inv(information)
    mean = covariance @ (np.linalg.solve(known.covariance, known.mean) + losses / s2)
    error, std = known.posterior(counts, losses)
    np.testing.assert_allclose(error, np.clip(mean, 0, 1))
    np.testing.assert_allclose(std, np.sqrt(np.diag(covariance)))


def test_the_posterior_runs_from_the_prior_to_the_data() -> None:
    """Without prompts it is the prior, with very many the means. Certainty only grows."""
    known = prior()
    nothing, much = np.zeros(4), np.full(4, 1e7)
    np.testing.assert_allclose(known.posterior(nothing, nothing).error, known.mean)
    np.testing.assert_allclose(known.posterior(nothing, nothing).std, np.sqrt(np.diag(known.covariance)))
    np.testing.assert_allclose(known.posterior(much, much * 0.3).error, 0.3, atol=1e-4)
    few = known.posterior(np.full(4, 5.0), np.full(4, 1.0)).std
    assert (known.posterior(much, much * 0.3).std < few).all()
    assert (few < known.posterior(nothing, nothing).std).all()


def test_prompts_of_one_cluster_inform_about_the_others() -> None:
    """Known models are good or bad everywhere, so a new one that fails in one cluster is expected to fail in all."""
    known = prior()
    bad = known.posterior(np.array([40.0, 0, 0, 0]), np.array([40.0, 0, 0, 0])).error
    good = known.posterior(np.array([40.0, 0, 0, 0]), np.array([0.0, 0, 0, 0])).error
    assert (bad > good + 0.2).all()


@pytest.mark.parametrize("models", [1, 2])
def test_one_or_two_known_models_do_not_make_it_certain(models: int) -> None:
    """A new model is still free to be quite different from them."""
    known = prior(models)
    assert (np.sqrt(np.diag(known.covariance)) > 0.1).all()
    assert (known.posterior(np.full(4, 200.0), np.full(4, 20.0)).error < 0.15).all()


def test_prompts_that_are_not_graded_are_left_out() -> None:
    """NaN is not a wrong answer; a cluster without grades takes the model's own mean."""
    assignment = np.repeat([0, 1], 100)
    complete = {"a": np.repeat([1.0, 0.0], 100), "b": np.repeat([0.8, 0.2], 100)}
    thinned = {name: np.where(np.arange(200) % 2, scores, np.nan) for name, scores in complete.items()}
    np.testing.assert_allclose(prior_of(assignment, thinned, 2).mean, prior_of(assignment, complete, 2).mean, atol=0.05)
    one_sided = prior_of(assignment, {"a": np.where(assignment == 0, 0.75, np.nan)}, 2)
    np.testing.assert_allclose(one_sided.mean, [0.25, 0.25])


def test_few_scores_of_known_models_do_not_make_a_wild_prior() -> None:
    """Random errors are not taken for differences: one score per cluster says little about the clusters."""
    rng = np.random.default_rng(0)
    scores = {f"m{m}": (rng.random(20) >= 0.5).astype(float) for m in range(5)}
    prior = prior_of(np.arange(20), scores, 20)
    assert prior.mean.std() < 0.6 * np.mean(list(scores.values()), axis=0).std()
    assert prior.covariance.diagonal().max() < 0.05


def test_errors_of_known_models_are_shrunk_to_model_and_cluster() -> None:
    """As if 8 more prompts had given the model's own mean plus the effect of the cluster on all models."""
    phi = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.0, 1.0]])
    scores = {"a": [0.0, 0.0, 1.0, 1.0], "b": [0.0, 1.0, 1.0, np.nan]}
    counts, losses = np.array([[1.5, 2.5], [1.5, 1.5]]), np.array([[1.5, 0.5], [1, 0]])
    own = np.array([[1 / 2], [1 / 3]])
    effect = (losses - counts * own).sum(axis=0) / (counts.sum(axis=0) + 8)
    np.testing.assert_allclose(errors_of_known(phi, scores), (losses + 8 * (own + effect)) / (counts + 8))


ERRORS = st.tuples(st.integers(1, 9), st.integers(1, 7)).flatmap(
    lambda shape: st.tuples(
        arrays(float, shape, elements=st.floats(0, 1)),
        arrays(float, (1, shape[1]), elements=st.floats(0.01, 1)).map(lambda shares: normalised(shares)[0]),
    )
)


@given(ERRORS)
def test_any_errors_of_known_models_make_a_prior(known: Any) -> None:
    """Its mean is theirs; its covariance is one, and is never certain of a cluster."""
    errors, shares = known
    prior = ErrorPrior.fit(errors, shares)
    np.testing.assert_allclose(prior.mean, errors.mean(axis=0))
    np.testing.assert_allclose(prior.covariance, prior.covariance.T)
    of_one = np.diag(ErrorPrior.fit(errors.mean(axis=0)[None], shares).covariance)
    assert np.linalg.eigvalsh(prior.covariance)[0] > 0
    assert (np.diag(prior.covariance) >= of_one * 2 / (len(errors) + 1) - 1e-12).all()


def test_clusters_on_which_known_models_err_alike_inform_each_other() -> None:
    """Twins most of all: errors in one raise those expected in the other, more than where the known models differ."""
    rng = np.random.default_rng(0)
    ability, knack, other = rng.uniform(0.3, 0.7, (12, 1)), *rng.normal(0, 0.15, (2, 12, 1))
    errors = np.clip(np.hstack([ability + knack, ability + knack, ability + other, ability - other]), 0, 1)
    known = ErrorPrior.fit(errors, np.full(4, 0.25))
    bad = known.posterior(np.array([30.0, 0, 0, 0]), np.array([29.0, 0, 0, 0]))
    moved = bad.error - known.mean
    assert moved[1] > 0.8 * moved[0]
    assert moved[1] > 1.3 * max(moved[2:])
    assert bad.std[1] < 0.7 * min(bad.std[2:])


def test_the_prior_follows_what_all_known_models_share() -> None:
    """Thirty models that are all right in one cluster and all wrong in the other leave little doubt about either."""
    scores = {f"m{m}": np.repeat([1.0, 0.0], 20) for m in range(30)}
    mean = prior_of(np.repeat([0, 1], 20), scores, 2).mean
    np.testing.assert_allclose(mean, [0, 1], atol=0.01)


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        ([0.5], [[1.0, 0.0], [0.0, 1.0]], r"they are \(1,\) and \(2, 2\)"),
        ([0.5, 0.5], [[1.0, 0.5], [0.0, 1.0]], "symmetric covariance"),
        ([0.5, 0.5], [[1.0, 2.0], [2.0, 1.0]], "negative eigenvalues"),
        ([0.5, np.nan], [[1.0, 0.0], [0.0, 1.0]], "mean between 0 and 1"),
        ([7.0, 0.5], [[1.0, 0.0], [0.0, 1.0]], "mean between 0 and 1"),
        (["a", "b"], [[1.0, 0.0], [0.0, 1.0]], "the mean of a prior to be numbers"),
    ],
)
def test_a_prior_that_makes_no_sense_is_refused(mean: Any, covariance: Any, message: str) -> None:
    """Before a posterior is taken from it."""
    with pytest.raises(InvalidInputError, match=message):
        ErrorPrior(np.array(mean), np.array(covariance))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "scores should map the name of at least one known model"),
        ([[1, 0, 0]], "scores should map the name"),
        ({"a": [1, 0]}, "the scores of 'a' to be one number for each of the 3 prompts"),
        ({"a": [1, 0, 2]}, "number 2 is 2"),
        ({"a": [1, -0.5, 0]}, "number 1 is -0.5"),
        ({"a": [np.nan] * 3}, "None of the 3 scores of 'a' is known"),
        ({"a": ["right", "wrong", "right"]}, "to be numbers"),
    ],
)
def test_scores_that_make_no_sense_are_refused(scores: Any, message: str) -> None:
    """The message names the model and what is wrong with its scores."""
    with pytest.raises(InvalidInputError, match=message):
        errors_of_known(np.eye(2)[[0, 1, 1]], scores)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", [1], [1], 1), "name of a model should be a text of 1 to 200 printable characters, but is ''"),
        ((None, [1], [1], 1), "name of a model should be a text of 1 to 200 printable characters, but is None"),
        (("x" * 201, [1], [1], 1), "but is <text of 201 characters>"),
        *(
            ((f"m{sign}", [1], [1], 1), "but is <text of 2 characters>")
            for sign in "\n\r\t\0\x1b\x7f\x9b\u2028\u202e\u200b\ud800"
        ),
        (("m", [1, 2], [1], 1), r"counts has shape \(2,\) and losses \(1,\)"),
        (("m", [[1]], [[1]], 1), "one count and one sum"),
        (("m", [], [], 1), "one count and one sum"),
        (("m", [1, 2], [1, 3], 1), "loss of 3 in cluster 1 from 2 prompts"),
        (("m", [1], [-1], 1), "finite and not negative"),
        (("m", [np.nan], [0], 1), "finite and not negative"),
        (("m", [1], [1], np.nan), "cost of the profile of 'm' should be finite"),
        (("m", [1], [1], -2), "cost of the profile of 'm' should be finite"),
        (("m", [1], [1], [1, 2]), "a number or 1 numbers, one per cluster"),
        (("m", [1], [1], "free"), "the cost of the profile of 'm' to be numbers"),
        (("m", [1], [1], 1, {"when": object()}), "plain JSON"),
        (("m", [1], [1], 1, {"rate": float("nan")}), "plain JSON"),
    ],
)
def test_profiles_that_make_no_sense_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    """The message names the model and the numbers that disagree."""
    with pytest.raises(InvalidInputError, match=message):
        LLMProfile(*arguments)


def test_there_is_no_other_estimator() -> None:
    """The message lists the three there are."""
    with pytest.raises(InvalidInputError, match="'empirical_bayes', 'laplace', 'mean', but is 'median'"):
        ARTICLE.estimate("median")  # type: ignore[arg-type]


def test_a_profile_cannot_be_changed() -> None:
    """Neither its arrays nor, from outside, those it was made of."""
    counts = np.array([4.0, 4.0])
    profile = LLMProfile("m", counts, np.array([1.0, 1.0]), cost=1)
    counts[0] = 100
    assert profile.counts[0] == 4
    with pytest.raises(ValueError, match="read-only"):
        profile.counts[0] = 5


def test_costs_are_kept_per_cluster_where_they_were_measured() -> None:
    """The mean of the calls of a cluster; the mean of all calls where a cluster has none."""
    phi = np.eye(3)[[0, 0, 1]]
    profile = LLMProfile.from_scores("m", phi, [1, 0, 1], cost=[1.0, 3.0, 8.0])
    np.testing.assert_allclose(profile.cost, [2, 8, 4])
    assert LLMProfile.from_scores("m", np.ones((1, 1)), [0.5], cost=0.25).cost == 0.25
    with pytest.raises(InvalidInputError, match="one per prompt"):
        LLMProfile.from_scores("m", phi, [1, 0, 1], cost=[1.0, 3.0])


def test_a_prompt_counts_in_parts_for_the_clusters_it_belongs_to() -> None:
    """So do its loss and its cost; a prompt that is not graded does not count."""
    phi = np.array([[0.5, 0.5, 0], [0.25, 0, 0.75], [0, 1, 0], [1, 0, 0]])
    profile = LLMProfile.from_scores("m", phi, [0, 1, 0.5, np.nan], cost=[1.0, 3.0, 4.0, 100.0])
    np.testing.assert_allclose(profile.counts, [0.75, 1.5, 0.75])
    np.testing.assert_allclose(profile.losses, [0.5, 1, 0])
    np.testing.assert_allclose(profile.cost, [(0.5 + 0.75) / 0.75, (0.5 + 4) / 1.5, 3])
    np.testing.assert_allclose(profile.estimate("mean").error, [2 / 3, 2 / 3, 0])
    np.testing.assert_allclose(profile.estimate("laplace").error, [1.5 / 2.75, 2 / 3.5, 1 / 2.75])
    assert profile.mean_error == pytest.approx(0.5)


def test_only_profiles_of_one_model_add() -> None:
    """Another name, other clusters, something else: an error, not a wrong sum."""
    other = LLMProfile("claude", ARTICLE.counts, ARTICLE.losses, 1.0)
    short = LLMProfile("gpt", ARTICLE.counts[:2], ARTICLE.losses[:2], 1.0)
    for profile in (other, short):
        with pytest.raises(InvalidInputError, match="Only profiles of one model over the same clusters add"):
            ARTICLE + profile
    with pytest.raises(InvalidInputError, match="clusters add"):
        counted([1], [1], "a") + counted([1], [1], "b")
    with pytest.raises(TypeError):
        ARTICLE + 1  # type: ignore[operator]


RUN = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        st.one_of(
            arrays(np.intp, n, elements=st.integers(0, 3)).map(lambda labels: np.eye(4)[labels]),
            arrays(float, (n, 4), elements=st.sampled_from([1e-12, 0.1, 1.0, 3.0])).map(normalised),
        ),
        arrays(float, n, elements=st.sampled_from([0.0, 0.25, 1.0, np.nan])).filter(lambda x: not np.isnan(x).all()),
        arrays(float, n, elements=st.sampled_from([0.0, 0.5, 2.0])),
    )
)


@given(RUN, RUN)
def test_adding_profiles_equals_profiling_the_joined_data(first: Any, second: Any) -> None:
    """Counts, losses and measured costs are equal, and so are all estimates, for hard and soft memberships."""
    parts = [LLMProfile.from_scores("m", phi, scores, cost=costs) for phi, scores, costs in (first, second)]
    phi, scores, costs = (np.concatenate(pair) for pair in zip(first, second, strict=True))
    joined, added = LLMProfile.from_scores("m", phi, scores, cost=costs), parts[0] + parts[1]
    np.testing.assert_allclose(added.counts, joined.counts)
    np.testing.assert_allclose(added.losses, joined.losses)
    np.testing.assert_allclose(added.cost, joined.cost)
    for estimator in ESTIMATORS:
        for ours, theirs in zip(added.estimate(estimator), joined.estimate(estimator), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


@given(RUN)
def test_each_graded_prompt_counts_once(run: Any) -> None:
    """In any number of clusters. No estimate leaves the range of losses, and the mean loss is that of the prompts."""
    phi, scores, costs = run
    profile = LLMProfile.from_scores("m", phi, scores, cost=costs)
    known = ~np.isnan(scores)
    np.testing.assert_allclose(profile.counts.sum(), known.sum())
    np.testing.assert_allclose(profile.mean_error, 1 - scores[known].mean())
    for estimator in ESTIMATORS:
        error, std = profile.estimate(estimator, KNOWN)
        assert ((error >= 0) & (error <= 1 + 1e-12)).all()
        assert (np.isfinite(std) & (std >= 0)).all()
    assert isinstance(profile.cost, np.ndarray)
    assert ((profile.cost >= costs[known].min() - 1e-9) & (profile.cost <= costs[known].max() + 1e-9)).all()


@given(RUN)
def test_whole_memberships_count_like_labels(run: Any) -> None:
    """One-hot rows give the counts and losses of a bincount."""
    labels = run[0].argmax(axis=1)
    known = ~np.isnan(run[1])
    profile = LLMProfile.from_scores("m", np.eye(4)[labels], run[1], cost=1)
    np.testing.assert_array_equal(profile.counts, np.bincount(labels[known], minlength=4))
    np.testing.assert_allclose(profile.losses, np.bincount(labels[known], 1 - run[1][known], minlength=4))


def test_a_profile_describes_itself_in_one_line() -> None:
    """Name, how much was graded, how it did, what it costs."""
    assert repr(ARTICLE) == "LLMProfile('gpt', 1200 prompts over 3 clusters, mean error 0.300, cost 1)"


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_one_answer_does_not_make_a_model_perfect(score: float) -> None:
    """Nor always wrong; its estimates stay away from both ends."""
    profile = LLMProfile.from_scores("new", np.eye(3)[:1], [score], cost=1)
    for prior in (None, ErrorPrior.uninformed(3)):
        error, std = profile.estimate(prior=prior)
        assert np.all((error > 0.1) & (error < 0.9))
        assert np.all((std > 0.1) & (std <= 0.5))
