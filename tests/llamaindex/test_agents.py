"""Agents, workflows and chat engines that hold the router as their LLM."""

from collections.abc import Sequence
from typing import Any

import pytest
from conftest import TOY_PROMPTS, toy_scores
from llama_index.core import Settings
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llamaindex_fakes import Fake, Reply, ToyEmbedding, Watch, fakes, toy_index, watched
from pydantic import BaseModel

from unirouter_integrations import UniRouter
from unirouter_integrations.llamaindex import UniRouterLLM

pytestmark = pytest.mark.filterwarnings(  # of LlamaIndex's agents, which look at themselves in old ways
    "ignore::pydantic.warnings.PydanticDeprecationWarning", "ignore:is_running called from within a step"
)
QUESTIONS = {"a sum": "abacus", "a poem": "poet", "a date": "oracle"}


class Note(BaseModel):
    """Write something down."""

    text: str


@pytest.fixture
def llm(router: UniRouter) -> UniRouterLLM:
    return UniRouterLLM(router=router, models=fakes())


def memory() -> ChatMemoryBuffer:
    """Not the default one, which leaves a SQLite connection open."""
    return ChatMemoryBuffer.from_defaults(token_limit=3000)


async def asked(agent: Any, question: str) -> Any:
    return await agent.run(user_msg=question, memory=memory())


def models_of(watch: Watch) -> list[str]:
    return [event.model for event in watch.of("UniRouteDecisionEvent")]


def noting(noted: list[str]) -> Any:
    def note(text: str) -> str:
        """Write something down."""
        noted.append(text)
        return f"noted: {text}"

    return note


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_function_agent_keeps_a_question_with_its_model(llm: UniRouterLLM, streaming: Any) -> None:
    """Through its tool calls, streamed or not; each question goes to its own model."""
    noted: list[str] = []
    agent = FunctionAgent(tools=[noting(noted)], llm=llm, streaming=streaming, system_prompt="Write poems.")
    for question, name in QUESTIONS.items():
        with watched() as watch:
            response = await asked(agent, question)
        assert models_of(watch) == [name, name]
        assert noted[-1] == f"{name}: {question}"
        assert str(response) == f"{name}: noted: {name}: {question}"


async def test_a_model_that_joins_during_a_loop_waits_for_the_next_question(llm: UniRouterLLM) -> None:
    """The loop is finished by the model that began it."""
    profile = llm.router.profile("calendar", TOY_PROMPTS, toy_scores(), cost=0.5)

    def note(text: str) -> str:
        """Write something down."""
        llm.register("calendar", Fake(model_name="calendar"), profile)
        return "noted"

    agent = FunctionAgent(tools=[note], llm=llm)
    assert str(await asked(agent, "a date")) == "oracle: noted"
    assert str(await asked(agent, "which date")) == "calendar: noted"


async def test_a_react_agent_keeps_a_question_with_its_model(router: UniRouter) -> None:
    """Though it reports what its tools answered, and what was wrong with an answer, as the user."""

    def thinking(name: str) -> Reply:
        def reply(messages: Sequence[ChatMessage]) -> str:
            texts = [str(message.content) for message in messages]
            if not any(text.startswith("Error while parsing") for text in texts):
                return "Thought: I forgot the form.\nAction: note\nAction Input: poem"
            if not any(text.startswith("Observation") for text in texts):
                return 'Thought: I note a poem.\nAction: note\nAction Input: {"text": "poem"}'
            return f"Thought: I can answer without using any more tools.\nAnswer: {name} is done"

        return reply

    llm = UniRouterLLM(router=router, models=fakes(**{name: {"reply": thinking(name)} for name in QUESTIONS.values()}))
    noted: list[str] = []
    agent = ReActAgent(tools=[noting(noted)], llm=llm)
    with watched() as watch:
        response = await asked(agent, "a sum")
    assert str(response) == "abacus is done"
    assert noted == ["poem"]
    assert len(models_of(watch)) >= 3
    assert set(models_of(watch)) == {"abacus"}


async def test_an_agent_workflow_hands_over_with_the_router(llm: UniRouterLLM) -> None:
    """Made of functions it is a function agent; of several agents each asks the router."""
    noted: list[str] = []
    workflow = AgentWorkflow.from_tools_or_functions([noting(noted)], llm=llm)
    assert isinstance(next(iter(workflow.agents.values())), FunctionAgent)
    assert str(await asked(workflow, "a poem")).startswith("poet")
    writer = FunctionAgent(name="writer", description="writes", tools=[noting(noted)], llm=llm)
    other = FunctionAgent(name="other", description="waits", tools=[noting(noted)], llm=llm)
    two = AgentWorkflow(agents=[writer, other], root_agent="writer")
    with watched() as watch:
        assert str(await asked(two, "a sum")).startswith("abacus")
    assert set(models_of(watch)) == {"abacus"}


async def test_an_agent_answers_in_a_form(llm: UniRouterLLM) -> None:
    """The question's model fills it in."""
    agent = FunctionAgent(tools=[noting([])], llm=llm, output_cls=Note)
    with watched() as watch:
        response = await asked(agent, "a poem")
    assert response.structured_response["text"].startswith("poet")
    assert set(models_of(watch)) == {"poet"}


async def test_chat_engines_route_each_turn(llm: UniRouterLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the last message, or the condensed question; plain, awaited and streamed."""
    monkeypatch.setattr(Settings, "_llm", llm)
    engine = SimpleChatEngine.from_defaults(system_prompt="Write poems.", memory=memory())
    for short, name in QUESTIONS.items():
        question = short + ", please" * 8  # too long to be a follow-up
        assert str(engine.chat(question)).startswith(name)
        assert str(await engine.achat(question)).startswith(name)
        assert "".join(engine.stream_chat(question).response_gen).startswith(name)
        awaited = await engine.astream_chat(question)
        assert "".join([part async for part in awaited.async_response_gen()]).startswith(name)


@pytest.mark.parametrize("mode", ["context", "condense_plus_context", "condense_question"])
async def test_chat_engines_over_documents_are_judged_by_the_question(llm: UniRouterLLM, mode: Any) -> None:
    """Not by what they retrieve."""
    for question, name in QUESTIONS.items():
        engine = toy_index(ToyEmbedding()).as_chat_engine(chat_mode=mode, llm=llm, similarity_top_k=12, memory=memory())
        with watched() as watch:
            assert str(engine.chat(question)).startswith(name)
        assert set(models_of(watch)) == {name}
        engine.reset()
        assert str(await engine.achat(question)).startswith(name)
        engine.reset()
        assert "".join(engine.stream_chat(question).response_gen).startswith(name)
