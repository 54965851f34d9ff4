"""A chat in LangGraph over a router: checkpointed, streamed, and routed per question or kept with one model.

    pip install langgraph
    python examples/langgraph_chat.py

needs no key and no network: the models are small local programs (see `local_models.py`). Real chat models can take
their place without other changes.
"""

from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from local_models import LocalChatModel, arithmetic, count_and_shape, write

from unirouter_integrations import UniRouter
from unirouter_integrations.langchain import ChatUniRouter

ABOUT = """\
The models are small LOCAL PROGRAMS behind LangChain's chat model interface, no language models, with made-up prices:
an abacus that calculates, and a scholar that also writes, at fifty times the price.
"""
TURNS = ("What is 63 times 7?", "Write a poem of two lines about a cat.", "What is 12 times 12?")


def fitted_router() -> UniRouter:
    """A router over the two models. For real models, the scores come from graded answers."""
    prompts = [f"What is {n} times {n + 2}?" for n in range(11, 51)]
    prompts += [f"Write a poem of two lines about {n} birds." for n in range(2, 42)]
    scores = {"abacus": [1.0] * 40 + [0.0] * 40, "scholar": [1.0] * 80}
    router = UniRouter.fit(prompts, scores=scores)
    for name, cost in {"abacus": 0.1, "scholar": 5.0}.items():  # USD per 1,000 questions
        router.register(router.profile(name, prompts, scores[name], cost=cost))
    router.cost_weight = 0.02  # a wrong answer is as bad as 50 USD per 1,000 questions
    return router


def chat(llm: ChatUniRouter, thread: str) -> None:
    """Run one conversation: the graph keeps the messages, and each answer names its model."""

    def answer(state: MessagesState) -> MessagesState:
        return {"messages": [llm.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    app = graph.compile(InMemorySaver())
    config: RunnableConfig = {"configurable": {"thread_id": thread}}
    for turn in TURNS:
        stream: Any = app.stream({"messages": [HumanMessage(turn)]}, config, stream_mode="messages")
        text = "".join(chunk.text for chunk, _ in stream)
        model = app.get_state(config).values["messages"][-1].response_metadata["unirouter"]["model"]
        print(f"   {turn}\n      {model}: {' / '.join(text.splitlines())}")


def main() -> None:
    """Run the example."""
    print(ABOUT)
    router = fitted_router()
    models = {
        "abacus": LocalChatModel(model_name="abacus", solvers=(arithmetic,)),
        "scholar": LocalChatModel(model_name="scholar", solvers=(count_and_shape, write, arithmetic)),
    }
    print("Each question goes to the cheapest model that gets it right:")
    alone: Any = {"judged_by": "last_human"}  # these questions are short, and yet none needs the one before it
    chat(ChatUniRouter(router=router, models=models, **alone), "one")
    print("\nThe conversation stays with the model that began it:")
    chat(ChatUniRouter(router=router, models=models, sticky="thread"), "two")


if __name__ == "__main__":
    main()
