"""Route the questions to a LlamaIndex agent: each goes, with all its tool calls, to the cheapest capable model.

    python examples/llamaindex_agent.py

needs no key and no network: the models are small local programs, some of which know how to use the agent's tool. Real
LLMs of LlamaIndex can take their place without other changes.
"""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms import LLM, ChatMessage, LLMMetadata, MessageRole
from llama_index.core.llms.mock import MockFunctionCallingLLM
from typing_extensions import override

from unirouter_integrations import UniRouter
from unirouter_integrations.llamaindex import UniRouteDecisionEvent, UniRouterLLM

TEXT = (Path(__file__).parent / "data" / "railway.txt").read_text()
FARES = {station: int(price) for station, price in re.findall(r"A ticket to (\w+) costs (\d+) francs", TEXT)}
COSTS = {"abacus": 0.1, "clerk": 0.3, "scholar": 5.0}  # USD per 1,000 questions
ABOUT = """\
The models are small LOCAL PROGRAMS behind LlamaIndex's LLM interface, no language models, with made-up prices: an
abacus that calculates, a clerk that asks the tool for a fare, and a scholar that does both and calculates with fares.
"""


def fare(station: str) -> str:
    """Look up what a ticket to a station costs."""
    return f"{FARES[station]} francs" if station in FARES else "There is no such station."


class LocalAgentLLM(MockFunctionCallingLLM):
    """A local program that may know how to use the tool: it names the station, calls the tool, and uses the result.

    Attributes:
        model_name: Its name.
        calculates: Whether it multiplies.
        asks_tools: Whether it uses the tool.
    """

    model_name: str
    calculates: bool
    asks_tools: bool

    def __init__(self, **fields: Any) -> None:
        super().__init__(is_chat_model=True, response_generator=self.reply, **fields)

    @property
    @override
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model_name, is_chat_model=True, is_function_calling_model=True)

    def reply(self, messages: Sequence[ChatMessage], **_: Any) -> ChatMessage:
        """A tool call, or the answer."""
        question = next(str(each.content) for each in reversed(messages) if each.role == MessageRole.USER)
        numbers = [int(number) for number in re.findall(r"\d+", question)]
        station = re.search(r" to ([A-Z]\w+)", question)
        if messages[-1].role == MessageRole.TOOL:
            price = int(re.findall(r"\d+", str(messages[-1].content))[0])
            return answer(f"{price * numbers[0] if numbers and self.calculates else price} francs")
        if station and self.asks_tools:
            call = ToolCallBlock(
                tool_call_id=f"fare-{station[1]}", tool_name="fare", tool_kwargs={"station": station[1]}
            )
            return ChatMessage(role="assistant", blocks=[call])
        if self.calculates and len(numbers) == 2:
            return answer(str(numbers[0] * numbers[1]))
        return answer("I cannot tell.")


def answer(text: str) -> ChatMessage:
    """A message of the assistant."""
    return ChatMessage(text, role="assistant")


class DecisionPrinter(BaseEventHandler):
    """Prints the decision of every step. A tracing tool receives the same events."""

    @override
    def handle(self, event: BaseEvent, **_: Any) -> None:
        if isinstance(event, UniRouteDecisionEvent):
            print(f"   {event.model}: expected error {event.expected_error:.2f} at cost {event.expected_cost:.3g}")


async def scores_of(model: LLM, right: dict[str, int]) -> list[float]:
    """The scores of an agent with this model alone: 1 right, 0 wrong."""
    agent: Any = FunctionAgent(tools=[fare], llm=model)
    answers = [str(await agent.run(user_msg=question)) for question in right]
    return [
        float(re.findall(r"\d+", text) == [str(wanted)]) for text, wanted in zip(answers, right.values(), strict=True)
    ]


async def main() -> None:
    """Run the example."""
    print(ABOUT)
    models: dict[str, LLM] = {
        "abacus": LocalAgentLLM(model_name="abacus", calculates=True, asks_tools=False),
        "clerk": LocalAgentLLM(model_name="clerk", calculates=False, asks_tools=True),
        "scholar": LocalAgentLLM(model_name="scholar", calculates=True, asks_tools=True),
    }
    *known, unseen = FARES
    right = {f"What does a ticket to {station} cost?": FARES[station] for station in known}
    right |= {
        f"{n} friends travel to {station}. How much do they pay altogether?": n * FARES[station]
        for n, station in enumerate(known, 2)
    }
    right |= {f"What is {n} multiplied by {n + 5}?": n * (n + 5) for n in range(11, 24)}
    scores = {name: await scores_of(model, right) for name, model in models.items()}
    router = UniRouter.fit(list(right), n_clusters=3, scores=scores)
    for name, cost in COSTS.items():
        router.register(router.profile(name, list(right), scores[name], cost=cost))
        print(router.profiles[name])
    router.cost_weight = 0.1  # a wrong answer is as bad as 10 USD per 1,000 questions

    get_dispatcher().add_event_handler(DecisionPrinter())
    agent: Any = FunctionAgent(tools=[fare], llm=UniRouterLLM(router=router, models=models))
    for question in (
        f"What does a ticket to {unseen} cost?",
        f"4 friends travel to {unseen}. How much do they pay altogether?",
        "What is 63 multiplied by 7?",
    ):
        print(f"\n{question}")
        handler = agent.run(user_msg=question)
        async for event in handler.stream_events():
            if isinstance(event, ToolCallResult):
                print(f"      fare({event.tool_kwargs['station']}): {event.tool_output}")
        print(f"      {await handler}")


if __name__ == "__main__":
    asyncio.run(main())
