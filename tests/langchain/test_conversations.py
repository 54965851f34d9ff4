"""What a conversation is judged by, and when it stays with its model."""

from operator import itemgetter
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnablePassthrough
from langchain_core.tracers.context import collect_runs

from unirouter_integrations import InvalidInputError, RoutingDecision, UniRouter
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.testing import ChatFake


def chat(router: UniRouter, **settings: Any) -> ChatUniRouter:
    return ChatUniRouter(router=router, models={name: ChatFake(model=name) for name in router.models}, **settings)


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


def test_the_texts_are_what_their_names_say() -> None:
    """With the system message, or all of it; an image has no text."""
    from unirouter_integrations.langchain.messages import judged_text

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
    router.register(router.profile("bargain", ["sum", "poem", "date"], [0, 0, 0], cost=0))
    llm.models["bargain"] = ChatFake(model="bargain")
    going_on = [*asked, call, ToolMessage("42", tool_call_id="1")]
    assert chosen(llm.invoke(going_on)) == "abacus"
    assert chosen(llm.invoke([*going_on, AIMessage("42"), HumanMessage("sum number i")])) == "bargain"


def test_a_sticky_conversation_keeps_its_model(router: UniRouter) -> None:
    """Whatever is asked next, as long as the model takes part and can take the call."""
    llm = chat(router, sticky="conversation")
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
