"""Real clients against a server that misbehaves in every way: another model answers, and never a wrong one."""

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from conftest import toy_router
from langchain_core.messages import AIMessage, HumanMessage
from openai_server import FAULTS, HANG, openai_server

from unirouter_integrations import UniRouter
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.testing import ChatFake


def answer(model: str, messages: list[dict[str, Any]]) -> str:
    return f"{model} says {messages[-1]['content']}"


def chat(router: UniRouter, url: str, **fields: Any) -> ChatUniRouter:
    openai = pytest.importorskip("langchain_openai")
    models = {
        name: openai.ChatOpenAI(model=name, base_url=url, api_key="test", max_retries=0, timeout=HANG / 2)
        for name in router.models
    }
    return ChatUniRouter(router=router, models=models, **fields)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning")  # of the client, whose connection broke
async def test_another_model_answers(router: UniRouter, fault: str) -> None:
    """Sync and async, plain and streamed; a stream that was cut after its first token is an error."""
    with openai_server(answer, lambda model: fault if model == "poet" else None) as url:
        llm = chat(router, url, cooldown=0)
        answers: list[Any] = [llm.invoke("a poem"), await llm.ainvoke("a poem")]
        if fault == "cut":
            seen: list[str] = []
            with pytest.raises(Exception, match=r"incomplete|peer closed|Connection"):
                seen.extend(chunk.text for chunk in llm.stream("a poem"))
            assert llm.models.keys() == {"abacus", "poet", "oracle"}
        else:
            chunks: list[Any] = list(llm.stream("a poem"))
            answers.append(sum(chunks[1:], chunks[0]))
            chunks = [chunk async for chunk in llm.astream("a poem")]
            answers.append(sum(chunks[1:], chunks[0]))
    assert [each.text for each in answers] == ["oracle says a poem"] * len(answers)
    assert {each.response_metadata["unirouter"]["model"] for each in answers} == {"oracle"}
    for each in answers:
        assert [one["model"] for one in each.response_metadata["unirouter"]["excluded"]] == ["poet"]


def test_an_answer_is_of_the_model_its_decision_names_whatever_fails(router: UniRouter) -> None:
    """Every fault in turn, on calls that come at the same time."""
    faults = itertools.cycle([None, *FAULTS])
    with openai_server(answer, lambda model: next(faults) if model != "oracle" else None) as url:
        llm = chat(router, url, cooldown=0.05)
        questions = [f"{kind} {n}" for n in range(20) for kind in ("sum", "poem", "date")]
        answers = llm.batch([*questions], config={"max_concurrency": 8})
    assert [
        each.text == f"{each.response_metadata['unirouter']['model']} says {question}"
        for each, question in zip(answers, questions, strict=True)
    ] == [True] * len(questions)


class Flaky(ChatFake):
    """Fails one call in five, at random."""

    rate: float = 0.2

    def _reply(self, messages: Any, model: str) -> str:
        if random.random() < self.rate:  # noqa: S311
            raise ConnectionError
        return super()._reply(messages, model)


@pytest.mark.parametrize("n_calls", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_fifth_of_the_calls_failing_is_hardly_seen(n_calls: int) -> None:
    """Three models that fail 20% of their calls and two that are healthy: all are answered, none wrongly."""
    random.seed(0)
    router = toy_router("soft")
    for name in ("bard", "clerk"):
        router.register(router.profile(name, ["sum", "poem", "date"], [0, 0, 0], cost=20))
    models: dict[str, Any] = {name: Flaky(model=name) for name in ("abacus", "poet", "oracle")}
    models |= {name: ChatFake(model=name) for name in ("bard", "clerk")}
    llm = ChatUniRouter(router=router, models=models, cooldown=0.01)
    questions = [("sum", "poem", "date")[n % 3] for n in range(n_calls)]
    answers: list[AIMessage] = llm.batch([*questions], config={"max_concurrency": 16})
    wrong = [
        each
        for each, question in zip(answers, questions, strict=True)
        if each.text != f"{each.response_metadata['unirouter']['model']}: {question}"
    ]
    assert wrong == []
    chosen = Counter(each.response_metadata["unirouter"]["model"] for each in answers)
    assert chosen.keys() >= {"abacus", "poet", "oracle", "bard"}
    assert router.stats().fallbacks > 0


def test_history_of_a_replaced_model_goes_on(router: UniRouter) -> None:
    """The next question is decided anew, and the answer in the history says who gave it."""
    with openai_server(answer, lambda model: "500" if model == "poet" else None) as url:
        llm = chat(router, url, sticky="thread")
        first = llm.invoke("a poem")
        second = llm.invoke([HumanMessage("a poem"), first, HumanMessage("a sum")])
    assert (first.text, second.text) == ("oracle says a poem", "oracle says a sum")
