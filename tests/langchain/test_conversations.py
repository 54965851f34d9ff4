"""What a conversation is judged by, and when it stays with its model."""

from dataclasses import asdict, replace
from operator import itemgetter
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnablePassthrough
from langchain_core.tracers.context import collect_runs

from unirouter_integrations import InvalidInputError, RoutingDecision, UniRouter
from unirouter_integrations.grading import Price
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.serving import ModelRegistry
from unirouter_integrations.testing import ChatFake


def chat(router: UniRouter, *, judged_by: Any = "last_human", **settings: Any) -> ChatUniRouter:
    """Judged by the last question, as those here are too short to stand alone."""
    models = {name: ChatFake(model=name) for name in router.models}
    return ChatUniRouter(router=router, models=models, judged_by=judged_by, **settings)


def chosen(answer: AIMessage) -> str:
    return str(answer.response_metadata["unirouter"]["model"])


CONVERSATION = [
    SystemMessage("poem poem poem"),
    HumanMessage("date"),
    AIMessage("it was"),
    HumanMessage("sum number i"),
]


@pytest.mark.parametrize(
    ("judged_by", "model"),
    [
        ("last_human", "abacus"),
        (lambda messages: messages[1].text, "oracle"),
        (lambda messages: messages[0].text, "poet"),
    ],
)
def test_what_a_prompt_is_judged_by_can_be_chosen(router: UniRouter, judged_by: Any, model: str) -> None:
    """The last human message, or what a function makes of the messages."""
    assert chosen(chat(router, judged_by=judged_by).invoke(CONVERSATION)) == model


ABOUT_POEMS = "poem " * 20


@pytest.mark.parametrize(
    ("asked", "model"), [("and", "poet"), ("sum " * 20, "abacus"), ("go on", "poet"), ("and in words?", "poet")]
)
def test_a_short_question_keeps_the_subject_of_the_one_before(router: UniRouter, asked: str, model: str) -> None:
    """By default, in a chat model and in an agent; a question that is long enough stands alone."""
    history = [HumanMessage(ABOUT_POEMS), AIMessage("sum"), HumanMessage(asked)]
    models: dict[str, Any] = {name: ChatFake(model=name) for name in router.models}
    assert chosen(ChatUniRouter(router=router, models=models).invoke(history)) == model
    agents = pytest.importorskip("langchain.agents")
    from unirouter_integrations.langchain import UniRouterMiddleware

    agent = agents.create_agent(models["oracle"], middleware=[UniRouterMiddleware(router, models)])
    assert chosen(agent.invoke({"messages": history})["messages"][-1]) == model


def test_the_texts_are_what_their_names_say() -> None:
    """With the system message, or all of it; an image has no text."""
    from unirouter_integrations.langchain._messages import judged_text

    image: BaseMessage = HumanMessage([{"type": "image", "url": "x"}])
    assert judged_text(CONVERSATION, "system_and_last_human") == "poem poem poem\nsum number i"
    assert judged_text([HumanMessage("sum")], "system_and_last_human") == "sum"
    assert judged_text([*CONVERSATION, image], "conversation") == "poem poem poem\ndate\nit was\nsum number i"
    assert judged_text([*CONVERSATION, image], "last_human") == "sum number i"


def test_a_function_that_gives_no_text_is_named(router: UniRouter) -> None:
    """It says what came instead."""
    with pytest.raises(InvalidInputError, match=r"judged_by should return the text to judge by, a str, .* NoneType"):
        chat(router, judged_by=lambda messages: None).invoke("sum")


def test_a_loop_of_tool_calls_stays_with_its_model(router: UniRouter) -> None:
    """Even if another one would be better by now; the next question is free again."""
    llm = chat(router)
    asked: list[BaseMessage] = [HumanMessage("sum number i")]
    call = llm.invoke(asked).model_copy(update={"tool_calls": [{"name": "f", "args": {}, "id": "1"}]})
    router.register(router.profile("bargain", ["sum", "poem", "date"], [1, 1, 1], cost=0))
    llm.models["bargain"] = ChatFake(model="bargain")
    going_on = [*asked, call, ToolMessage("42", tool_call_id="1")]
    assert chosen(llm.invoke(going_on)) == "abacus"
    assert chosen(llm.invoke([*going_on, AIMessage("42"), HumanMessage("sum number i")])) == "bargain"


def test_a_sticky_conversation_keeps_its_model(router: UniRouter) -> None:
    """Whatever is asked next, as long as the model takes part and can take the call."""
    llm = chat(router, sticky="thread")
    answer = llm.invoke("sum number i")
    history = [HumanMessage("sum number i"), answer, HumanMessage("poem number i")]
    assert chosen(llm.invoke(history)) == "abacus"
    assert chosen(chat(router).invoke(history)) == "poet"
    assert chosen(llm.invoke(history, model="poet")) == "poet"
    llm.models["abacus"] = ChatFake(model="abacus", profile={"image_inputs": False})
    image = HumanMessage([{"type": "text", "text": "poem number i"}, {"type": "image", "url": "x"}])
    assert chosen(llm.invoke([*history[:2], image])) == "poet"
    llm.unregister("abacus")
    assert chosen(llm.invoke(history)) == "poet"


PRICES = {"abacus": Price(1, 4, cached_input=0.1), "poet": Price(1, 4, cached_input=0.1), "oracle": Price(5, 20)}


def said(model: str, read: int, *, cached: int = 0) -> AIMessage:
    """An answer of a model through the router, after reading this many tokens."""
    usage = UsageMetadata(
        input_tokens=read, output_tokens=0, total_tokens=read, input_token_details={"cache_read": cached}
    )
    return AIMessage("-", usage_metadata=usage, response_metadata={"unirouter": {"model": model}})


def cache_aware(router: UniRouter, **fields: Any) -> ChatUniRouter:
    """USD per 1,000 calls; an error is worth 50 of them."""
    models: dict[str, Any] = {name: ChatFake(model=name) for name in PRICES}
    registry = ModelRegistry(models, prices=PRICES)
    given = {"judged_by": "last_human", "cost_weight": 0.02, **fields}
    return ChatUniRouter(router=router, models=registry, sticky="cache", **given)


@pytest.mark.parametrize(
    ("before", "model", "history_cost"),
    [
        ([said("abacus", 10_000)], "poet", 10),  # 10 at full price against 1 from the cache: 9 are less than 50
        ([said("abacus", 100_000)], "abacus", 10),  # 100 against 10
        ([said("abacus", 100_000), said("abacus", 100_000, cached=100_000)], "abacus", 10),
        ([said("abacus", 100_000), said("abacus", 100_000)], "poet", 100),  # the provider keeps nothing
        ([said("poet", 100_000, cached=90_000), said("abacus", 100_000)], "abacus", 10),  # only just moved there
        ([AIMessage("who said this?")], "poet", 0.003),  # 3 tokens by their characters
        ([], "poet", 0),
    ],
)
def test_a_conversation_moves_only_for_more_than_the_lost_cache(
    router: UniRouter, before: list[BaseMessage], model: str, history_cost: float
) -> None:
    """What reading the history costs is in the expected cost of the decision."""
    first = [HumanMessage("sum number i")] if before else []
    decision = cache_aware(router).decide().invoke([*first, *before, HumanMessage("poem number i")])
    own = {"abacus": 1, "poet": 2}[model]
    assert decision.model == model
    assert decision.expected_cost == pytest.approx(own + history_cost, abs=0.006)


def test_cost_free_routing_knows_no_cache(router: UniRouter) -> None:
    """At a cost weight of 0 a cache is worth nothing; within a loop of tool calls nothing moves all the same."""
    llm = cache_aware(router, cost_weight=0)
    history = [HumanMessage("sum number i"), said("abacus", 10**6)]
    assert llm.decide().invoke([*history, HumanMessage("poem number i")]).model == "poet"
    assert cache_aware(router).decide().invoke([*history, ToolMessage("4", tool_call_id="1")]).model == "abacus"


def test_prices_may_be_those_that_profiling_noted(router: UniRouter) -> None:
    """A registry's price counts more; without any, the model that lacks one is named."""
    models = {name: ChatFake(model=name) for name in PRICES}
    with pytest.raises(ValueError, match=r"sticky=\"cache\" needs the price of 'abacus'"):
        ChatUniRouter(router=router, models=models, sticky="cache")
    for name, profile in router.profiles.items():
        router.register(replace(profile, metadata={"price": asdict(PRICES[name])}))
    history = [HumanMessage("sum number i"), said("abacus", 100_000), HumanMessage("poem number i")]
    assert chat(router, sticky="cache", cost_weight=0.02).decide().invoke(history) == cache_aware(
        router
    ).decide().invoke(history)


async def test_deciding_alone_calls_no_model(router: UniRouter) -> None:
    """In a chain and in a branch, now and awaited; one run, which is not a model's."""
    llm = chat(router)
    chain = RunnablePassthrough.assign(route=itemgetter("question") | llm.decide())
    with collect_runs() as runs:
        decision = chain.invoke({"question": "poem number i"})["route"]
    assert isinstance(decision, RoutingDecision)
    assert (decision.model, (await llm.decide().ainvoke("sum number i")).model) == ("poet", "abacus")
    assert llm.decide().batch(["sum number i", "poem number i"])[1] == decision
    assert not any(run.run_type == "llm" for run in runs.traced_runs)
    assert all(model.n_calls == 0 for model in llm.models.values())
    rhyme: RunnableLambda[object, str] = RunnableLambda(lambda _: "a rhyme")
    branch = llm.decide() | RunnableBranch((lambda route: route.model == "poet", rhyme), RunnableLambda(lambda _: "no"))
    assert (branch.invoke("poem number i"), branch.invoke("sum number i")) == ("a rhyme", "no")


async def test_each_model_is_sent_the_conversation_as_it_takes_it(router: UniRouter) -> None:
    """Thoughts of another provider's model are none of its; the caller's messages stay as they are."""
    given: list[list[BaseMessage]] = []

    def reply(messages: list[BaseMessage]) -> str:
        given.append(messages)
        return "ok"

    models = {name: ChatFake(model=name, replies=reply) for name in router.models}
    llm = ChatUniRouter(router=router, models=models, judged_by="last_human")
    thoughts: list[Any] = [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "42"}]
    metadata = {"model_provider": "anthropic", "unirouter": {"model": "abacus"}}
    history = [HumanMessage("sum"), AIMessage(thoughts, response_metadata=metadata), HumanMessage("poem")]
    llm.invoke(history)
    await llm.ainvoke(history)
    list(llm.stream(history))
    assert [chunk async for chunk in llm.astream(history)]
    assert [messages[1] for messages in given] == [AIMessage("42")] * 4
    assert history[1].content == thoughts
    plain = [HumanMessage("sum"), AIMessage("42"), HumanMessage("poem")]
    llm.invoke(plain)
    assert all(one is other for one, other in zip(given[-1], plain, strict=True))
