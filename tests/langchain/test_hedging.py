"""A second model is asked as well when an answer takes long, unless that could be seen or act twice."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langchain_core.language_models.chat_models import agenerate_from_stream
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_fakes import Saying
from pydantic import Field

from unirouter_integrations import UniRouter
from unirouter_integrations.langchain import ChatUniRouter, UniRouterMiddleware
from unirouter_integrations.serving import ModelRegistry

pytest.importorskip("langchain.agents")

from langchain.agents import create_agent

ASKED: Any = {"messages": [("user", "a poem")]}


class Waiting(Saying):
    """Answers when it is released."""

    released: Any = Field(exclude=True)

    def _stream(self, *arguments: Any, **keywords: Any) -> Iterator[ChatGenerationChunk]:
        assert self.released.wait(30), "no other model was asked"
        yield from super()._stream(*arguments, **keywords)

    async def _astream(self, *arguments: Any, **keywords: Any) -> AsyncIterator[ChatGenerationChunk]:
        while not self.released.is_set():  # noqa: ASYNC110  # threads release it
            await asyncio.sleep(0.001)
        for each in self._stream(*arguments, **keywords):
            yield each

    async def _agenerate(self, *arguments: Any, **keywords: Any) -> ChatResult:
        return await agenerate_from_stream(self._astream(*arguments, **keywords))


@pytest.fixture
def released() -> Iterator[threading.Event]:
    released = threading.Event()
    yield released
    released.set()


def models_of(released: threading.Event) -> ModelRegistry:
    """Models whose answers usually take no time."""
    models = ModelRegistry(
        {
            "abacus": Saying(model="abacus"),
            "poet": Waiting(model="poet", said="the poet sings", released=released),
            "oracle": Saying(model="oracle", said="oracle sings"),
        }
    )
    for _ in range(100):
        models.health.succeeded(models.health.start("poet"), 0.0)
    return models


async def test_the_first_answer_counts(router: UniRouter, released: threading.Event) -> None:
    """Plain, streamed and in agents, sync and async."""
    llm = ChatUniRouter(router=router, models=models_of(released), hedge=True)
    middleware: Any = UniRouterMiddleware(router, models_of(released), hedge=True)
    agent = create_agent(Saying(), [], middleware=[middleware])
    answers = [
        llm.invoke("a poem").text,
        (await llm.ainvoke("a poem")).text,
        "".join(chunk.text for chunk in llm.stream("a poem")),
        "".join([chunk.text async for chunk in llm.astream("a poem")]),
        agent.invoke(ASKED)["messages"][-1].text,
        (await agent.ainvoke(ASKED))["messages"][-1].text,
    ]
    assert answers == ["oracle sings "] * 6


async def test_what_is_seen_or_may_act_is_asked_once(router: UniRouter, released: threading.Event) -> None:
    """Tokens of two models at once would be a muddle, and tools of a provider would run twice."""
    released.set()
    models = models_of(released)
    llm = ChatUniRouter(router=router, models=models, hedge=True)
    middleware: Any = UniRouterMiddleware(router, models, hedge=True)
    agent = create_agent(Saying(), [], middleware=[middleware])
    assert [*agent.stream(ASKED, stream_mode="messages")]
    assert [event async for event in llm.astream_events("a poem", version="v2")]
    models["abacus"] = models["abacus"].bind(tools=[{"type": "web_search"}])
    assert llm.invoke("a poem").text == "the poet sings "
    assert (models["poet"].n_calls, models["oracle"].n_calls) == (3, 0)
