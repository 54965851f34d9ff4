"""`record`: what the calls of a block decided, took and cost, in both frameworks."""

import asyncio
import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from conftest import toy_router

pytest.importorskip("langchain.agents")
pytest.importorskip("llama_index.core")

from fault_faces import FACES
from langchain_core.messages import AIMessage
from llamaindex_fakes import Fake

from unirouter_integrations.grading import Price, Usage
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.serving import ModelRegistry, Record, record
from unirouter_integrations.testing import ChatFake

WAYS = [f"{face}.{way}" for face, ways in FACES.items() for way in ways if not way.startswith(("tools", "form"))]


def registry_for(framework: str) -> ModelRegistry:
    """Models whose tokens cost a dollar each, if they are read, and two if they are written."""
    names = ("best", "second", "third")
    if framework == "langchain":
        models: dict[str, Any] = {name: ChatFake(model=name) for name in names}
    else:
        models = {name: Fake(model_name=name) for name in names}
    return ModelRegistry(models, prices=dict.fromkeys(names, Price(1e6, 2e6)))


async def ask(face: Any, way: Callable[[Any, str], Any]) -> None:
    found = way(face, "poem number 7")
    if inspect.isawaitable(found):
        await found


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.filterwarnings("ignore:.*is in beta")
async def test_each_call_is_recorded_with_its_tokens_and_its_cost(name: str) -> None:
    """Whichever way it is made; a router takes the decision with a score."""
    face, _, how = name.partition(".")
    way = FACES[face][how]
    models = registry_for(way.framework)
    routed = way.make(models, {})
    with record() as outer, record() as calls:
        await ask(routed, way.ask)
    await ask(routed, way.ask)  # after the block
    assert list(outer) == list(calls)
    assert calls
    assert {call.model for call in calls} == {"best"}
    for call in calls:
        assert call.decision.model == "best"
        assert call.usage is not None
        assert call.usage.output_tokens > 0
        assert call.usd == call.usage.input_tokens + 2 * call.usage.output_tokens
        assert call.seconds >= 0
    assert calls.usd == sum(call.usd or 0 for call in calls)
    assert repr(calls) == f"Record({len(calls)} calls: best {len(calls)}; {calls.usd:.6g} USD)"


def chat(**models: ChatFake) -> ChatUniRouter:
    registry = ModelRegistry(models, prices={name: Price(1e6, 1e6) for name in models if name != "abacus"})
    router = toy_router("soft")
    return ChatUniRouter(router=router, models=registry, cost_weight=0, escalate=lambda answer, _: answer.text != "no")


def test_answers_that_do_not_stand_were_paid_as_well() -> None:
    """Those that a check rejected; an answer of a model without a price has no cost. What failed has no answer."""
    llm = chat(
        abacus=ChatFake(model="abacus", replies=["no"]),
        poet=ChatFake(model="poet", error=TimeoutError()),
        oracle=ChatFake(model="oracle", replies=["yes"]),
    )
    with record() as calls:
        assert llm.invoke("a sum").text in {"yes", "no"}
        llm.invoke("a poem")
    models = [call.model for call in calls]
    assert "poet" not in models
    unknown = sum(call.usd is None for call in calls)
    assert unknown == models.count("abacus")
    assert calls.usage.output_tokens == sum(call.usage.output_tokens for call in calls if call.usage)
    assert (f", without {unknown} of unknown cost" in repr(calls)) == (unknown > 0)


async def test_tasks_and_threads_are_apart() -> None:
    """Each has the calls that it makes, and those that are made for it."""
    llm = chat(oracle=ChatFake(model="oracle"), poet=ChatFake(model="poet"))

    async def calls_of(n: int) -> Record:
        with record() as calls:
            await asyncio.gather(*(llm.ainvoke("a poem") for _ in range(n)))
            await asyncio.to_thread(llm.batch, ["a poem"] * n)
        return calls

    found = await asyncio.gather(*map(calls_of, range(1, 6)))
    assert [len(calls) for calls in found] == [2, 4, 6, 8, 10]


def test_what_is_not_answered_is_not_recorded() -> None:
    """Nor what is only decided."""
    llm = chat(oracle=ChatFake(model="oracle", error=TimeoutError()))
    with record() as calls:
        llm.decide().invoke("a poem")
        with suppress(TimeoutError):
            llm.invoke("a poem")
    assert calls == []
    assert repr(calls) == "Record(0 calls; 0 USD)"
    assert calls.usage == Usage()


def test_a_recorded_decision_can_be_scored() -> None:
    """`router.observe` takes it."""
    router = toy_router("soft")
    models = ModelRegistry({"oracle": ChatFake(model="oracle"), "poet": ChatFake(model="poet")})
    llm = ChatUniRouter(router=router, models=models)
    with router.learn() as learning, record() as calls:
        assert isinstance(llm.invoke("a poem"), AIMessage)
        router.observe(calls[0].decision, 1.0)
        assert learning is not None
