"""What a run will cost, before it begins."""

from pathlib import Path
from typing import Any

import pytest
from conftest import TOY_PROMPTS

from unirouter_integrations import UniRouter
from unirouter_integrations.grading import Answer, Example, Price, Score, Scorer, Usage
from unirouter_integrations.profiling import estimate_cost, profile_model

EXAMPLES = [Example(prompt, "right") for prompt in TOY_PROMPTS]
CHARACTERS = sum(map(len, TOY_PROMPTS))


def model(prompt: str) -> Answer:
    return Answer("right", Usage(2 * len(prompt), 7))


def never(prompt: str) -> Answer:
    raise AssertionError


def test_before_anything_is_known_an_estimate_is_a_guess(router: UniRouter) -> None:
    """It assumes four characters per token and a given number of tokens per answer; no call is made."""
    found = estimate_cost("m", never, EXAMPLES, router, price=Price(1, 10), output_tokens=50)
    assert (found.calls, found.known, found.output_tokens) == (60, 0, 3000)
    assert found.input_tokens == pytest.approx(CHARACTERS / 4, abs=1)
    assert found.cost == pytest.approx(Price(1, 10).cost(Usage(found.input_tokens, 3000)))
    assert str(found).startswith("60 calls, 0 answers are in the journal already. About ")
    assert "(a guess)" in str(found)


def test_answers_in_the_journal_are_free_and_predict_the_others(router: UniRouter, tmp_path: Path) -> None:
    """After half of the run, the estimate for the other half is what it then costs."""
    arguments: Any = {"price": Price(1, 10), "journal": tmp_path / "profiles.db"}
    assert estimate_cost("m", model, EXAMPLES, router, **arguments).known == 0
    assert not (tmp_path / "profiles.db").exists()
    half = profile_model("m", model, EXAMPLES[:30], router, **arguments)
    found = estimate_cost("m", model, [*EXAMPLES, *EXAMPLES], router, **arguments)
    whole = profile_model("m", model, EXAMPLES, router, **arguments)
    assert (found.calls, found.known) == (30, 30)
    assert found.is_measured
    assert found.cost == pytest.approx(whole.metadata["answers_usd"] - half.metadata["answers_usd"])
    done = estimate_cost("m", model, EXAMPLES, router, **arguments)
    assert (done.calls, done.cost) == (0, 0)


def test_an_estimate_counts_the_calls_of_the_judge(router: UniRouter, tmp_path: Path) -> None:
    """It counts those of answers without a grade; their cost is not known."""

    async def grade(answer: Answer, example: Example) -> Score:
        return Score(1.0)

    judge = Scorer("judge:fake", grade, model=object())
    arguments: Any = {"price": Price(1, 10), "journal": tmp_path / "profiles.db"}
    profile_model("m", model, EXAMPLES[:20], router, scorer=judge, **arguments)
    profile_model("m", model, EXAMPLES[:30], router, **arguments)
    found = estimate_cost("m", model, EXAMPLES, router, scorer=judge, **arguments)
    assert (found.calls, found.judgements) == (30, 40)
    assert "In addition, 40 calls of the judge." in str(found)


def test_an_estimate_can_be_of_the_most_informative_examples(router: UniRouter) -> None:
    """As in the run, there are n of them."""
    assert estimate_cost("m", never, EXAMPLES, router, price=Price(1, 10), n=7).calls == 7
