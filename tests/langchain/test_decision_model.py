"""The decision model, by itself and in LangChain's `ModelRouterMiddleware`; both need langchain-core 1.8."""

import importlib.util
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage

from unirouter_integrations import InvalidInputError, MissingDependencyError, UniRouter, UnknownModelError

has_decisions = importlib.util.find_spec("langchain_core.decisions") is not None
needs_decisions = pytest.mark.skipif(not has_decisions, reason="langchain-core is older than 1.8")


@pytest.mark.skipif(has_decisions, reason="langchain-core has decision models")
def test_older_versions_of_langchain_are_told_what_is_needed() -> None:
    """Instead of failing somewhere inside."""
    with pytest.raises(MissingDependencyError, match=r"needs langchain-core 1\.8 or newer, but 1\.\d+\.\d+"):
        importlib.import_module("unirouter_integrations.langchain._decision_model")


def asked(router: UniRouter, state: Any = "a poem", **settings: Any) -> tuple[Any, dict[str, Any]]:
    """A decision model, and a request for a choice among all models."""
    from langchain_core.decisions import Choice  # type: ignore[import-not-found,unused-ignore]

    from unirouter_integrations.langchain._decision_model import UniRouteDecisionModel

    question = Choice(instructions="-", criteria=dict.fromkeys(router.models))
    return UniRouteDecisionModel(router=router, **settings), {"state": state, "questions": {"who": question}}


@needs_decisions
@pytest.mark.parametrize(
    "state",
    ["a poem", HumanMessage("a poem"), [HumanMessage("a poem"), AIMessage("-"), HumanMessage("poem")]],
    ids=["text", "message", "messages"],
)
async def test_it_answers_with_the_routers_choice(router: UniRouter, state: Any) -> None:
    """Sync and async, of every kind of state that has a text, with a distribution over all labels."""
    model, request = asked(router, state)
    for response in (model.invoke(request), await model.ainvoke(request)):
        answer = response.choices["who"]
        assert answer.choice == router.route("a poem").model == "poet"
        assert set(answer.probabilities) == set(router.models)
        assert sum(answer.probabilities.values()) == pytest.approx(1)
        assert answer.confidence == answer.probabilities["poet"] > 0.5


@needs_decisions
def test_its_confidence_falls_where_the_errors_are_uncertain(router: UniRouter) -> None:
    """Of two models alike that were graded on few prompts, either may be the better one."""
    for name, cost in (("ann", 1.0), ("bob", 1.1)):
        router.register(router.profile(name, ["poem", "poem"], [1, 0], cost=cost))
    model, request = asked(router)
    request["questions"]["who"].criteria = {"ann": None, "bob": None}
    assert model.invoke(request).choices["who"].confidence == pytest.approx(0.5, abs=0.1)


@needs_decisions
def test_the_cost_weight_may_be_its_own(router: UniRouter) -> None:
    """As everywhere."""
    model, request = asked(router, "a date", cost_weight=5)
    assert model.invoke(request).choices["who"].choice == "abacus"


@needs_decisions
def test_what_it_cannot_answer_is_named(router: UniRouter) -> None:
    """Another kind of question, a label that is no model, a state without text."""
    from langchain_core.decisions import Choice, Noul

    model, request = asked(router)
    with pytest.raises(InvalidInputError, match="The question 'urgent' is a Noul; a router answers a Choice of models"):
        model.invoke({**request, "questions": {"urgent": Noul(instructions="?")}})
    with pytest.raises(UnknownModelError, match="Not registered: 'fast'"):
        model.invoke({**request, "questions": {"who": Choice(instructions="?", criteria={"fast": None})}})
    with pytest.raises(InvalidInputError, match="should be a text, a message or a list of messages, but is dict"):
        model.invoke({**request, "state": {"ticket": 5}})


@needs_decisions
@pytest.mark.filterwarnings("ignore:.*beta.*")
async def test_langchains_own_router_takes_it(router: UniRouter) -> None:
    """Its choices are named as the router names its models."""
    pytest.importorskip("langchain.agents.middleware.model_router")
    from langchain.agents import create_agent
    from langchain.agents.middleware import (  # type: ignore[attr-defined,unused-ignore]
        ModelChoice,
        ModelRouterMiddleware,
    )

    classifier, _ = asked(router)
    own: Any = FakeListChatModel(responses=["never"])
    choices = {
        name: ModelChoice(model=FakeListChatModel(responses=[f"{name} answers"]), criteria=None)
        for name in router.models
    }
    routing: Any = ModelRouterMiddleware(choices=choices, instructions="-", classifier=classifier)
    agent: Any = create_agent(own, middleware=[routing])
    for question, name in (("a sum", "abacus"), ("a poem", "poet"), ("a date", "oracle")):
        assert agent.invoke({"messages": [("human", question)]})["messages"][-1].text == f"{name} answers"
        assert (await agent.ainvoke({"messages": [("human", question)]}))["messages"][-1].text == f"{name} answers"
