"""Real OpenAI clients of LlamaIndex against a server on loopback that speaks their protocol."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llamaindex_fakes import ToyEmbedding, toy_index, watched
from openai_server import openai_server
from pydantic import BaseModel

from unirouter_integrations import UniRouter
from unirouter_integrations.llamaindex import UniRouterLLM, UniRouterQueryEngine

QUESTIONS = ["a sum", "a poem", "a date"]
NAMES = ["abacus", "poet", "oracle"]
ANSWERS = ["abacus says a sum", "poet says a poem", "oracle says a date"]


class Note(BaseModel):
    """Write something down."""

    text: str


def note(text: str) -> str:
    """Write something down."""
    return text


TOOLS = [FunctionTool.from_defaults(note)]


def answer(model: str, messages: list[dict[str, Any]]) -> str:
    return f"{model} says {messages[-1]['content']}"


def clients(names: Iterable[str], url: str) -> dict[str, LLM]:
    openai_like = pytest.importorskip("llama_index.llms.openai_like")
    return {
        name: openai_like.OpenAILike(
            model=name,
            api_base=url,
            api_key="sk-SECRET",
            max_retries=0,
            is_chat_model=True,
            is_function_calling_model=True,
        )
        for name in names
    }


async def test_real_clients_are_routed_in_every_form(router: UniRouter) -> None:
    """Plain and streamed, sync and async: the text of the chosen model, word by word; tokens as the server counted."""
    with openai_server(answer) as url:
        llm = UniRouterLLM(router=router, models=clients(NAMES, url))
        counter = TokenCountingHandler(tokenizer=str.split)
        llm.callback_manager = CallbackManager([counter])
        for question, name, text in zip(QUESTIONS, NAMES, ANSWERS, strict=True):
            messages = [ChatMessage(question)]
            answers: list[Any] = [llm.chat(messages), await llm.achat(messages)]
            assert [each.message.content for each in answers] == [text] * 2
            assert [each.raw.model for each in answers] == [name] * 2
            assert llm.complete(question).text == (await llm.acomplete(question)).text == text
            assert {each.additional_kwargs["unirouter"]["model"] for each in answers} == {name}
        assert [count.total_token_count for count in counter.llm_token_counts] == [6] * 12
        for question, text in zip(QUESTIONS, ANSWERS, strict=True):
            streamed = [*llm.stream_chat([ChatMessage(question)])]
            assert "".join(part.delta or "" for part in streamed) == text
            assert len(streamed) > 3
            astreamed = [part async for part in await llm.astream_chat([ChatMessage(question)])]
            assert [part.delta for part in astreamed] == [part.delta for part in streamed]
            assert [*llm.stream_complete(question)][-1].text == text
        assert "SECRET" not in repr(llm) + str(llm.to_dict())


async def test_real_clients_call_tools(router: UniRouter) -> None:
    """The chosen one does, in all forms, and goes on when the tool has answered."""
    with openai_server(answer) as url:
        llm = UniRouterLLM(router=router, models=clients(NAMES, url))
        history = [ChatMessage("Be brief.", role="system")]
        called = [
            llm.chat_with_tools(TOOLS, "a poem", history),
            await llm.achat_with_tools(TOOLS, "a poem", history),
            [*llm.stream_chat_with_tools(TOOLS, "a poem", history)][-1],
            [part async for part in await llm.astream_chat_with_tools(TOOLS, "a poem", history)][-1],
        ]
        assert len(history) == 1
        for response in called:
            (call,) = llm.get_tool_calls_from_response(response)
            assert (call.tool_name, call.tool_kwargs) == ("note", {"text": "poet says a poem"})
        result = ChatMessage("noted", role="tool", additional_kwargs={"tool_call_id": "call_1"})
        asked = [*history, ChatMessage("a poem"), called[0].message, result]
        assert llm.chat_with_tools(TOOLS, chat_history=asked).message.content == "poet says noted"
        assert llm.predict_and_call(TOOLS, "a sum").response == "abacus says a sum"


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")  # LlamaIndex's agents
async def test_an_agent_over_real_clients(router: UniRouter) -> None:
    """Streamed, with its tool, each question by its own model."""
    with openai_server(answer) as url:
        agent: Any = FunctionAgent(tools=[note], llm=UniRouterLLM(router=router, models=clients(NAMES, url)))
        for question, name in zip(QUESTIONS, NAMES, strict=True):
            response = await agent.run(user_msg=question, memory=ChatMemoryBuffer.from_defaults(token_limit=3000))
            assert str(response) == f"{name} says {name} says {question}"


async def test_real_clients_fill_in_forms(router: UniRouter) -> None:
    """Each in its own way, as the chosen client does."""
    with openai_server(answer) as url:
        llm = UniRouterLLM(router=router, models=clients(NAMES, url))
        template = PromptTemplate("{query_str}")
        for question, text in zip(QUESTIONS, ANSWERS, strict=True):
            assert llm.structured_predict(Note, template, query_str=question) == Note(text=text)
            assert await llm.astructured_predict(Note, template, query_str=question) == Note(text=text)
            assert llm.as_structured_llm(Note).chat([ChatMessage(question)]).raw == Note(text=text)
            assert [*llm.stream_structured_predict(Note, template, query_str=question)][-1] == Note(text=text)


async def test_rag_over_real_clients(router: UniRouter) -> None:
    """A query engine with a real index, thirty queries at once, one pair of events each under the real model's name."""
    with openai_server(lambda model, _: model) as url:
        models = clients(NAMES, url)
        engine = UniRouterQueryEngine(
            router=router, models=models, retriever=toy_index(ToyEmbedding()).as_retriever(similarity_top_k=4)
        )
        assert [str(engine.query(question)) for question in QUESTIONS] == NAMES
        with watched() as watch:
            found = await asyncio.gather(
                *(engine.aquery(f"{question} {n}") for n in range(10) for question in QUESTIONS)
            )
        assert [str(response) for response in found] == NAMES * 10
        assert sorted(event.model_dict["model_name"] for event in watch.of("LLMChatStartEvent")) == sorted(NAMES * 10)
        assert len(watch.of("LLMChatEndEvent")) == 30
        assert "SECRET" not in "".join(str(event) for event in watch.of("LLMChatStartEvent"))
