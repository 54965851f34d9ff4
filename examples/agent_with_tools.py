"""Route the questions to an agent: each goes, with all its tool calls, to the cheapest model that gets it right.

    pip install langchain
    python examples/agent_with_tools.py

needs no key and no network: the models are small local programs (see `local_models.py`), some of which know how to use
the agent's tool. Real chat models can take their place without other changes.
"""

import re
from typing import Any

from langchain.agents import create_agent
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from local_models import LocalChatModel, arithmetic, count_and_shape, write
from typing_extensions import override

from unirouter_integrations import UniRouter
from unirouter_integrations.langchain import UniRouterMiddleware

ORDERS = {f"{1000 + n}": ("packed", "on its way", "delivered")[n % 3] for n in range(60)}
COSTS = {"abacus": 0.1, "clerk": 0.2, "scholar": 5.0}  # USD per 1,000 questions
ABOUT = """\
The models are small LOCAL PROGRAMS behind LangChain's chat model interface, no language models, with made-up prices:
an abacus that calculates, a clerk that asks the tool about orders, and a scholar that does both and writes.
"""


@tool
def order_status(number: str) -> str:
    """Look up where an order is."""
    return f"Order {number} is {ORDERS.get(number, 'unknown')}."


class LocalAgentModel(LocalChatModel):
    """A local program that may know how to use the tool: it finds the number, calls the tool, reports the result."""

    asks_tools: bool

    @override
    def bind_tools(self, tools: Any, *, tool_choice: str | None = None, **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self.bind(**kwargs)

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        number = re.search(r"order (\d+)", messages[-1].text)
        if isinstance(messages[-1], ToolMessage):
            message = AIMessage(messages[-1].text)
        elif self.asks_tools and number:
            call = ToolCall(name=order_status.name, args={"number": number[1]}, id=f"call-{number[1]}")
            message = AIMessage("", tool_calls=[call])
        else:
            return super()._generate(messages, stop, run_manager, **kwargs)
        return ChatResult(generations=[ChatGeneration(message=message)])


def main() -> None:
    """Run the example."""
    print(ABOUT)
    models: dict[str, BaseChatModel] = {
        "abacus": LocalAgentModel(model_name="abacus", solvers=(arithmetic,), asks_tools=False),
        "clerk": LocalAgentModel(model_name="clerk", solvers=(), asks_tools=True),
        "scholar": LocalAgentModel(model_name="scholar", solvers=(count_and_shape, write, arithmetic), asks_tools=True),
    }
    right = {f"Where is order {number} now?": status for number, status in list(ORDERS.items())[:40]}
    right |= {f"What is {n} times {n + 2}?": str(n * (n + 2)) for n in range(11, 51)}
    right |= {f"Write a poem of two lines about {n} birds.": f"{n} birds" for n in range(2, 42)}

    scores = {}
    for name, model in models.items():
        alone = create_agent(model, [order_status])
        answers = [alone.invoke({"messages": [HumanMessage(question)]})["messages"][-1].text for question in right]
        scores[name] = [float(word in answer) for word, answer in zip(right.values(), answers, strict=True)]
    router = UniRouter.fit(list(right), scores=scores)
    for name, cost in COSTS.items():
        router.register(router.profile(name, list(right), scores[name], cost=cost))
        print(router.profiles[name])
    router.cost_weight = 0.02  # a wrong answer is as bad as 50 USD per 1,000 questions

    agent: Any = create_agent(models["scholar"], [order_status], middleware=[UniRouterMiddleware(router, models)])
    for question in (
        "Where is order 1052 now?",
        "What is 63 times 7?",
        "Write a poem of two lines about a cat.",
    ):
        result = agent.invoke({"messages": [HumanMessage(question)]})
        print(f"\n{question}")
        for message in result["messages"][1:]:
            calls = [f"calls {call['name']}({call['args']['number']})" for call in getattr(message, "tool_calls", [])]
            print(f"   {message.type:>4}: {', '.join(calls) or ' / '.join(message.text.splitlines())}")
        why = result["messages"][-1].response_metadata["unirouter"]
        keywords = ", ".join(router.clusters.keywords[why["cluster"]][:3])
        print(
            f"    why: {why['model']} for cluster {why['cluster']} ({keywords}): expected error "
            f"{why['expected_error']:.2f} ± {why['expected_error_std']:.2f} at cost {why['expected_cost']:.3g}"
        )


if __name__ == "__main__":
    main()
