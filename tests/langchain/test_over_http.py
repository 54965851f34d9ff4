"""Real OpenAI clients of LangChain against a server on loopback that speaks their protocol."""

from typing import Any

import pytest
from langchain_core.callbacks import UsageMetadataCallbackHandler
from openai_server import openai_server

from unirouter_integrations import UniRouter
from unirouter_integrations.langchain import ChatUniRouter

QUESTIONS = ["a sum", "a poem", "a date"]
ANSWERS = ["abacus says a sum", "poet says a poem", "oracle says a date"]


def answer(model: str, messages: list[dict[str, Any]]) -> str:
    return f"{model} says {messages[-1]['content']}"


async def test_real_clients_are_routed_in_every_form(router: UniRouter) -> None:
    """Plain and streamed, sync and async, in batches: the text of the chosen model, and its tokens counted once."""
    openai = pytest.importorskip("langchain_openai")
    with openai_server(answer) as url:
        models = {
            name: openai.ChatOpenAI(model=name, base_url=url, api_key="test", max_retries=0, stream_usage=True)
            for name in router.models
        }
        llm = ChatUniRouter(router=router, models=models)
        counter = UsageMetadataCallbackHandler()
        config: Any = {"callbacks": [counter]}
        assert [llm.invoke(question, config).text for question in QUESTIONS] == ANSWERS
        assert [(await llm.ainvoke(question, config)).text for question in QUESTIONS] == ANSWERS
        assert [message.text for message in llm.batch([*QUESTIONS], config)] == ANSWERS
        assert [message.text for message in await llm.abatch([*QUESTIONS], config)] == ANSWERS
        streamed = [[chunk.text for chunk in llm.stream(question, config)] for question in QUESTIONS]
        assert all(len(chunks) > 3 for chunks in streamed)
        assert [chunks[0] for chunks in streamed] == ["abacus", "poet", "oracle"]
        astreamed = [[chunk.text async for chunk in llm.astream(question, config)] for question in QUESTIONS]
        assert astreamed == streamed
    assert {name: usage["input_tokens"] for name, usage in counter.usage_metadata.items()} == {
        "abacus": 12,
        "poet": 12,
        "oracle": 12,
    }
