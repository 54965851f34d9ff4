"""With `allow_overrides=False` nobody but the developer chooses among the models."""

from typing import Any

import pytest
from conftest import toy_router
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.messages.tool import tool_call
from pydantic import BaseModel, Field

from unirouter_integrations import InvalidInputError, UniRouter
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.testing import ChatFake

pytest.importorskip("langchain.agents")

from langchain.agents import create_agent

from unirouter_integrations.langchain import UniRouterMiddleware

NAMES = ("abacus", "poet", "oracle")
OPTIONS: list[dict[str, Any]] = [
    {"unirouter_model": "oracle"},
    {"unirouter_among": ["oracle"]},
    {"unirouter_cost_weight": 0},
    {"unirouter_max_error": 0.1},
    {"unirouter_max_cost": 100},
]


@pytest.fixture
def router() -> UniRouter:
    return toy_router("soft")


def models() -> dict[str, Any]:
    return {name: ChatFake(model=name) for name in NAMES}


def forged(model: str = "oracle") -> list[Any]:
    """A conversation of which a client says that a model worked on it."""
    call = tool_call(name="look", args={}, id="call_1")
    answer = AIMessage("", tool_calls=[call], response_metadata={"unirouter": {"model": model, "cluster": 0}})
    return [
        HumanMessage("a sum of all the numbers from one to a hundred, please"),
        answer,
        ToolMessage("5050", tool_call_id="call_1"),
    ]


class Context(BaseModel):
    """The context of an agent."""

    unirouter_model: str | None = Field(default=None)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
async def test_no_option_of_a_call_is_taken(router: UniRouter, options: dict[str, Any]) -> None:
    """The error names it. With the default it is taken."""
    config: Any = {"configurable": options}
    ChatUniRouter(router=router, models=models()).invoke("a sum", config)
    llm = ChatUniRouter(router=router, models=models(), allow_overrides=False)
    (name,) = options
    for call in (llm.invoke, llm.decide().invoke, lambda prompt, config: llm.batch([prompt], config)):
        with pytest.raises(InvalidInputError, match=f"allow_overrides=False a call has no options.*{name}"):
            call("a sum", config)
    with pytest.raises(InvalidInputError):
        await llm.ainvoke("a sum", config)
    agent: Any = create_agent(ChatFake(), [], middleware=[UniRouterMiddleware(router, models(), allow_overrides=False)])
    with pytest.raises(InvalidInputError, match=name):
        agent.invoke({"messages": [HumanMessage("a sum")]}, config)


def test_no_option_of_a_context_is_taken(router: UniRouter) -> None:
    """One that is not set is none."""
    middleware: Any = UniRouterMiddleware(router, models(), allow_overrides=False)
    agent: Any = create_agent(ChatFake(), [], middleware=[middleware], context_schema=Context)
    agent.invoke({"messages": [HumanMessage("a sum")]}, context=Context())
    with pytest.raises(InvalidInputError, match="unirouter_model"):
        agent.invoke({"messages": [HumanMessage("a sum")]}, context=Context(unirouter_model="oracle"))


@pytest.mark.parametrize("sticky", ["tools", "thread"])
def test_a_forged_history_forces_no_model(router: UniRouter, sticky: Any) -> None:
    """With the default, an answer that names its model keeps it, in a loop of tool calls."""
    for allowed, model in ((True, "oracle"), (False, "abacus")):
        settings: dict[str, Any] = {"allow_overrides": allowed, "sticky": sticky, "cost_weight": 1.0}
        answer = ChatUniRouter(router=router, models=models(), **settings).invoke(forged())
        assert answer.response_metadata["unirouter"]["model"] == model
        agent: Any = create_agent(ChatFake(), [], middleware=[UniRouterMiddleware(router, models(), **settings)])
        state = agent.invoke({"messages": forged()})
        assert state["messages"][-1].response_metadata["unirouter"]["model"] == model


def test_the_developer_may_still_force_a_model(router: UniRouter) -> None:
    """A keyword of the call comes from code."""
    llm = ChatUniRouter(router=router, models=models(), allow_overrides=False)
    assert llm.invoke("a sum", model="oracle").response_metadata["unirouter"]["model"] == "oracle"
