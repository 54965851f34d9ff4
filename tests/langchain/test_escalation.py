"""An answer that does not pass a check goes on to a model that is expected to do better."""

import asyncio
import math
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from unirouter_integrations import InvalidInputError, UniRouter
from unirouter_integrations.grading import Answer, Example, Price, as_scorer, judge
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.testing import ChatFake


def chat(router: UniRouter, escalate: Any, **replies: str) -> ChatUniRouter:
    """The cheap one is chosen; the others are better, and more expensive."""
    models = {name: ChatFake(model=name, replies=[replies.get(name, name)]) for name in ("cheap", "good", "best")}
    return ChatUniRouter(router=router, models=models, escalate=escalate, cost_weight=0.5)


@pytest.fixture
def router(router: UniRouter) -> UniRouter:
    prompts = ["sum", "poem", "date"]
    for name, error, cost in (("cheap", 0.3, 0.1), ("good", 0.2, 2), ("best", 0.1, 5)):
        router.register(router.profile(name, prompts, [1 - error] * 3, cost=cost))
    for name in ("abacus", "poet", "oracle"):
        router.unregister(name)
    return router


def noted(answer: AIMessage) -> tuple[str, dict[str, tuple[str, str]]]:
    """The model, and the kind and the reason of the exclusion of each other one."""
    decision = answer.response_metadata["unirouter"]
    return decision["model"], {each["model"]: (each["kind"], each["reason"]) for each in decision.get("excluded", ())}


REJECTED = ("rejected", "its answer did not pass")


async def test_an_answer_that_does_not_pass_goes_on(router: UniRouter) -> None:
    """To the next better model, again and again; the best one's is not checked."""
    checked: list[str] = []

    def check(answer: Answer, example: Example) -> bool:
        checked.append(f"{example.prompt}: {answer}")
        return answer.text == "good"

    llm = chat(router, check)
    assert noted(llm.invoke("sum")) == ("good", {"cheap": REJECTED})
    assert noted(await llm.ainvoke("sum")) == ("good", {"cheap": REJECTED})
    assert noted(llm.batch(["sum", "poem"])[1]) == ("good", {"cheap": REJECTED})
    assert checked[:2] == ["sum: cheap", "sum: good"]
    checked.clear()
    llm = chat(router, lambda answer, example: checked.append(answer.text))  # None: it cannot tell
    assert noted(llm.invoke("sum")) == ("cheap", {})
    assert checked == ["cheap"]
    never = chat(router, lambda answer, example: False)
    assert noted(never.invoke("sum")) == ("best", {"cheap": REJECTED, "good": REJECTED})
    assert router.stats().fallbacks > 0


async def test_an_async_check_and_a_judge_work_everywhere(router: UniRouter) -> None:
    """Also where the call is not async."""

    async def check(answer: Answer, example: Example) -> float:
        return 0.4 if answer.text == "cheap" else 0.6

    assert noted(chat(router, check).invoke("sum"))[0] == "good"
    assert noted(await chat(router, check).ainvoke("sum"))[0] == "good"
    strict = judge(ChatFake(model="judge", replies=["Wrong.\nScore: 0"]), price=Price(0, 0))
    assert noted(chat(router, strict).invoke("sum"))[0] == "best"


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("4. Confidence: 85%", 0.85),
        ("Confidence: 20%. No: confidence is **0.3**", 0.3),
        ("CONFIDENCE = 7/10", 0.7),
        ("confidence 90 / 100", 0.9),
        ("Confidence: 95", 0.95),
        ("I am sure.", None),
    ],
)
async def test_confidence_that_is_stated_is_read(router: UniRouter, said: str, score: float | None) -> None:
    """The last one; an answer that says nothing passes."""
    assert (await as_scorer("confidence").grade(Answer(said), Example("sum"))).value == score
    model, _ = noted(chat(router, "confidence", cheap=said).invoke("sum"))
    assert model == ("good" if score is not None and score < 0.5 else "cheap")


@pytest.mark.parametrize(("logprob", "model"), [(-0.1, "cheap"), (-1.0, "good"), (None, "cheap")])
def test_token_probabilities_are_read_where_there_are_any(
    router: UniRouter, monkeypatch: pytest.MonkeyPatch, logprob: float | None, model: str
) -> None:
    """As OpenAI reports them."""
    llm = chat(router, "probability")
    invoke = ChatFake.invoke

    def with_logprobs(self: ChatFake, *arguments: Any, **keywords: Any) -> AIMessage:
        answer = invoke(self, *arguments, **keywords)
        if logprob is not None and self.model == "cheap":
            answer.response_metadata["logprobs"] = {"content": [{"token": "a", "logprob": logprob}] * 2}
        return answer

    monkeypatch.setattr(ChatFake, "invoke", with_logprobs)
    assert noted(llm.invoke("sum"))[0] == model


async def test_the_probability_is_the_mean_of_the_tokens() -> None:
    """The geometric one."""
    score = await as_scorer("probability").grade(Answer("x", logprob=math.log(0.25)), Example("sum"))
    assert score.value == pytest.approx(0.25)


def test_what_has_no_text_or_has_begun_is_not_checked(router: UniRouter) -> None:
    """Tool calls, forms and streams."""

    @tool
    def count(n: int) -> int:
        """Count."""
        return n

    llm = chat(router, lambda answer, example: False)
    assert llm.bind_tools([count]).invoke("sum 3").response_metadata["unirouter"]["model"] == "cheap"
    form = {"title": "T", "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert llm.with_structured_output(form).invoke("sum 3") == {"n": 3}
    assert next(llm.stream("sum")).response_metadata["unirouter"]["model"] == "cheap"
    for wrong, said in (
        ("contains", "needs a reference, .* escalate by confidence or"),
        ("nope", "The name of a scorer should be one of .* but is 'nope'"),
    ):
        with pytest.raises(ValueError, match=said):
            chat(router, wrong)
    with pytest.raises(ValueError, match=r"should be callable as f\(answer, example\)"):
        chat(router, lambda answer: True)


async def test_a_paid_answer_is_not_lost(router: UniRouter, caplog: pytest.LogCaptureFixture) -> None:
    """Neither if the better model fails, nor if the check does."""
    llm = chat(router, lambda answer, example: False)
    for name in ("good", "best"):
        llm.models[name] = ChatFake(model=name, error=ValueError("a bug"))
    assert noted(llm.invoke("sum"))[0] == "cheap"
    assert noted(await llm.ainvoke("sum"))[0] == "cheap"

    def broken(answer: Answer, example: Example) -> bool:
        raise ZeroDivisionError

    assert noted(chat(router, broken).invoke("sum"))[0] == "cheap"
    assert "The check of an answer of cheap raised ZeroDivisionError; a check should" in caplog.text


async def test_waiting_for_oneself_is_an_error(router: UniRouter) -> None:
    """A synchronous call inside asynchronous work that was called synchronously says what to do."""
    inner = chat(router, lambda answer, example: True)

    async def nested(answer: Answer, example: Example) -> bool:
        await asyncio.sleep(0)
        with pytest.raises(InvalidInputError, match="ainvoke in place of invoke"):
            inner.invoke("sum")
        return bool((await inner.ainvoke("sum")).text)

    assert noted(chat(router, nested).invoke("sum"))[0] == "cheap"
