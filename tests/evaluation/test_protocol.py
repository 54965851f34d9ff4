"""The protocol: what is split how, what each method may see, and what comes out."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import SKILLS, made_up_outcomes

from unirouter_integrations import InvalidInputError
from unirouter_integrations.data import Outcomes
from unirouter_integrations.evaluation import METHODS, Evaluation, Trial, average, evaluate, summary
from unirouter_integrations.evaluation._baselines import DEFAULT, FIXED, KMEANS, profiled_router
from unirouter_integrations.evaluation._protocol import split, with_validation


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    return made_up_outcomes()


@pytest.fixture(scope="module")
def evaluation(outcomes: Outcomes) -> Evaluation:
    """Every method, two splits."""
    return evaluate(outcomes, sizes=(20, 40), n_trials=2, n_jobs=1)


def trial_of(outcomes: Outcomes, size: int = 40, seed: int = 0) -> Trial:
    return with_validation(split(outcomes, None, size, seed), size)


@pytest.fixture(scope="module")
def trial(outcomes: Outcomes) -> Trial:
    """One fitted split."""
    return trial_of(outcomes)


@pytest.fixture(scope="module")
def blinded(trial: Trial) -> Trial:
    """The same split without the scores that a method must not read, and with a cache of its own."""
    return replace(
        trial,
        test=trial.test._replace(scores=np.full_like(trial.test.scores, np.nan)),
        all_labels=trial.all_labels._replace(scores=np.full_like(trial.all_labels.scores, np.nan)),
        cache={},
    )


def test_a_split_is_a_partition(outcomes: Outcomes, trial: Trial) -> None:
    """No prompt is in two parts, 30% are for testing, and a third of the models is new."""
    parts = [set(part.prompts) for part in (trial.training, trial.validation, trial.test)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert len(trial.test.prompts) == round(0.3 * len(outcomes.prompts))
    assert (len(trial.costs), len(trial.known_costs)) == (len(SKILLS) // 3, len(SKILLS) - len(SKILLS) // 3)
    assert trial.all_labels.prompts == trial.training.prompts
    other = trial_of(outcomes, seed=1)
    assert other.test.prompts != trial.test.prompts
    assert trial_of(outcomes).test.prompts == trial.test.prompts


def test_the_router_of_a_trial_has_not_seen_the_new_models(trial: Trial, blinded: Trial) -> None:
    """Whatever the new models did in training, or do in the test, the default's expectations are the same."""
    np.testing.assert_array_equal(METHODS[DEFAULT](blinded), METHODS[DEFAULT](trial))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in FIXED])
def test_a_method_looks_at_nothing_it_should_not(method: str, trial: Trial, blinded: Trial) -> None:
    """Only validation, and what is known: with the other labels gone it expects the same."""
    expected = METHODS[method](trial)
    assert expected.shape == trial.test.scores.shape
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(METHODS[method](blinded), expected)


def test_all_methods_are_measured_on_all_sizes(evaluation: Evaluation) -> None:
    """Tables of trials by sizes, areas between 0 and 1; those that need no validation do not depend on its size."""
    assert list(evaluation.areas) == list(METHODS)
    for method, areas in evaluation.areas.items():
        assert areas.shape == (2, 2)
        assert ((areas >= 0) & (areas <= 1)).all()
        assert evaluation.curves[method].shape == (2, 2, 41)
        if method in FIXED:
            np.testing.assert_array_equal(areas[:, 0], areas[:, 1])
    assert evaluation.n_trials == 2
    assert evaluation.sizes == (20, 40)


def test_the_order_is_as_it_must_be(evaluation: Evaluation) -> None:
    """Nothing is above the oracle; specialists are told apart; knowing nothing is worse than knowing the means."""
    area = {method: areas[:, -1].mean() for method, areas in evaluation.areas.items()}
    assert max(area, key=area.__getitem__) == "oracle"
    assert area[DEFAULT] > area["prompt-blind (ZeroRouter)"] + 0.02
    assert area["random"] < area["prompt-blind (ZeroRouter)"]
    assert area["clairvoyant unirouter"] >= area[DEFAULT] - 0.02


def test_it_can_be_repeated_and_run_in_parallel(evaluation: Evaluation, outcomes: Outcomes) -> None:
    """The same seeds give the same figures in one process and in two; another seed gives others."""
    chosen = [DEFAULT, KMEANS]
    again = evaluate(outcomes, methods=chosen, sizes=evaluation.sizes, n_trials=2, n_jobs=2)
    other = evaluate(outcomes, methods=chosen, sizes=evaluation.sizes, n_trials=1, n_jobs=1, seed=7)
    for method in chosen:
        np.testing.assert_allclose(again.areas[method], evaluation.areas[method], rtol=1e-9)
    assert not np.isin(other.areas[DEFAULT], evaluation.areas[DEFAULT]).any()


def test_a_method_of_ones_own_takes_part(outcomes: Outcomes) -> None:
    """A function from a trial to expected errors; one that is the default ties with it in every split."""
    mine = {"mine": METHODS[DEFAULT], DEFAULT: METHODS[DEFAULT]}
    found = evaluate(outcomes, methods=mine, sizes=[20], n_trials=2, n_jobs=1)
    comparison = found.compare("mine", DEFAULT, 20)
    assert (comparison.difference, comparison.wins, comparison.losses, comparison.p) == (0, 0, 0, 1)


def test_a_comparison_is_paired(evaluation: Evaluation) -> None:
    """Hand-made areas: +0.1, +0.2 and +0.3 have the mean 0.2, the interval of Student's t, and p = 1/4."""
    base = np.array([[0.1], [0.5], [0.3]])
    made = replace(evaluation, sizes=(20,), areas={"a": base + np.array([[0.1], [0.2], [0.3]]), "b": base})
    found = made.compare("a", "b", 20)
    assert found.difference == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx(
        (0.2 - 4.3027 * 0.1 / 3**0.5, 0.2 + 4.3027 * 0.1 / 3**0.5), rel=1e-4
    )
    assert (found.wins, found.losses, found.p) == (3, 0, 0.25)
    assert made.gap_closed("a", low="b", high="a") == pytest.approx([1])
    assert str(found).startswith("+0.2000 [")


def test_the_table_says_what_was_measured(evaluation: Evaluation) -> None:
    """Every method is in it with its areas, and the number of splits and prompts."""
    table = str(evaluation)
    assert "9 models, 300 prompts, 2 splits" in table
    for method, areas in evaluation.areas.items():
        assert f"{method}" in table
        assert f"{areas[:, 0].mean():.4f}" in table
    assert "90% intervals cover" in table


def test_evaluations_are_averaged_with_equal_weight(evaluation: Evaluation) -> None:
    """Twice the same is the same; other sizes are refused."""
    np.testing.assert_allclose(average([evaluation, evaluation])[DEFAULT], evaluation.areas[DEFAULT].mean(axis=0))
    assert f"{DEFAULT} goes from" in summary([evaluation, evaluation])
    with pytest.raises(InvalidInputError, match="same numbers of validation prompts"):
        average([evaluation, replace(evaluation, sizes=(20, 50))])


def test_expectations_are_calibrated() -> None:
    """On many outcomes drawn from known rates, errors are expected as they come, and intervals cover them."""
    found = evaluate(made_up_outcomes(1500), methods=[DEFAULT], sizes=[400], n_trials=2, n_jobs=1)
    assert found.calibration is not None
    assert found.calibration.error.mean() < 0.08
    assert found.calibration.coverage.mean() > 0.8


def test_what_is_kept_to_look_at_holds_no_prompt(evaluation: Evaluation, outcomes: Outcomes, trial: Trial) -> None:
    """The first trial's router with its new models, and memberships."""
    assert len(evaluation.router.models) == 3
    assert evaluation.phi.shape == (round(0.3 * len(outcomes.prompts)), len(evaluation.router.clusters))
    assert profiled_router(trial).models == evaluation.router.models


def test_progress_goes_to_stderr(outcomes: Outcomes, capsys: pytest.CaptureFixture[str]) -> None:
    """One bar over the splits, if asked for."""
    evaluate(outcomes, methods=["random"], sizes=[20], n_trials=2, n_jobs=1, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "2/2" in shown.err


def test_an_embedder_is_called_once_for_all_prompts(outcomes: Outcomes) -> None:
    """And its vectors serve every split."""
    calls = []

    def embed(texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        return np.array([[text.count("sum"), text.count("poem"), text.count("date"), 1] for text in texts], float)

    found = evaluate(outcomes, methods=[DEFAULT], sizes=[20], n_trials=2, n_jobs=1, embedder=embed)
    assert calls == [300]
    assert found.areas[DEFAULT].mean() > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["nonsense"]}, "methods should be some of 'unirouter'"),
        ({"methods": []}, "methods should be some of"),
        ({"methods": "unirouter"}, "methods should be some of"),
        ({"sizes": []}, "sizes should be whole numbers"),
        ({"sizes": [0]}, "sizes should be whole numbers"),
        ({"n_trials": 0}, "n_trials"),
        ({"sizes": [200]}, "for 200 validation prompts at least 572 prompts"),
    ],
)
def test_senseless_arguments_are_refused(outcomes: Outcomes, arguments: dict[str, object], message: str) -> None:
    """Before anything is fitted."""
    with pytest.raises(InvalidInputError, match=message):
        evaluate(outcomes, **arguments)  # type: ignore[arg-type]


def test_too_few_models_are_refused(outcomes: Outcomes) -> None:
    """Two models leave none that is known and another that is new."""
    few = Outcomes(outcomes.prompts, outcomes.models[:2], outcomes.scores[:, :2], outcomes.costs[:, :2])
    with pytest.raises(InvalidInputError, match="has 2 models"):
        evaluate(few, sizes=[20])
