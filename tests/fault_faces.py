"""Every way to call the faces of the package, and their peers of LangChain: functions from a question to a text."""

import inspect
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from fault_server import Way
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware
from langchain_core.messages import AIMessage
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from unirouter_integrations import UniRouter
from unirouter_integrations.langchain import ChatUniRouter, UniRouterMiddleware
from unirouter_integrations.llamaindex import UniRouterLLM, UniRouterQueryEngine

KINDS = ("sum", "poem", "date")

Settings = Mapping[str, Any]
Models = MutableMapping[str, Any]


class Note(BaseModel):
    """Write something down."""

    text: str


def note(text: str) -> str:
    """Write something down."""
    return text


def embed(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """One axis per kind of question."""
    return np.array([[10.0 * (kind in text) for kind in KINDS] + [len(text) % 7] for text in texts])


@cache
def router_of(names: tuple[str, ...]) -> UniRouter:
    """A router that prefers these models in this order, whatever the question."""
    prompts = [f"{kind} number {'i' * i}" for i in range(20) for kind in KINDS]
    router = UniRouter.fit(prompts, embedder=embed, n_clusters=3)
    for place, name in enumerate(names):
        router.register(router.profile(name, prompts, [1 - 0.1 * place] * len(prompts), cost=1))
    return router


@cache
def client(framework: str, name: str, url: str, **settings: Any) -> Any:
    """A real OpenAI client of a framework. It tries once: trying again is the router's part."""
    if framework == "langchain":
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(model=name, base_url=url, api_key="test", max_retries=0, **settings)  # type: ignore[arg-type]
    from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped,unused-ignore]

    return OpenAILike(
        model=name,
        api_base=url,
        api_key="test",
        max_retries=0,
        is_chat_model=True,
        is_function_calling_model=True,
        **({"timeout": 600} | settings),
    )


def accepted(face: Any, settings: Settings) -> dict[str, Any]:
    """Those of some settings that a face has."""
    known = {*getattr(face, "model_fields", ()), *inspect.signature(face).parameters}
    return {name: value for name, value in settings.items() if name in known}


# ---------------------------------------------------------------- LangChain's chat models


def _routed_chat(models: Models, settings: Settings) -> Any:
    router = router_of(tuple(models))
    return ChatUniRouter(router=router, models=models, **accepted(ChatUniRouter, settings))


def _with_fallbacks(models: Models, settings: Settings) -> Any:
    first, *others = models.values()
    return first.with_fallbacks(others)


def _arguments(answer: Any) -> str:
    """What the called tool was given; nothing if none was called."""
    return "".join(call["args"]["text"] for call in answer.tool_calls)


def _field(form: Any) -> str:
    return getattr(form, "text", "")


async def _ainvoke(chat: Any, question: str) -> str:
    answer = await chat.ainvoke(question)
    return str(answer.text)


async def _abatch(chat: Any, question: str) -> list[str]:
    return [answer.text for answer in await chat.abatch([question] * 2)]


async def _ainvoke_tools(chat: Any, question: str) -> str:
    return _arguments(await chat.bind_tools([note]).ainvoke(question))


async def _astructured(chat: Any, question: str) -> str:
    return _field(await chat.with_structured_output(Note).ainvoke(question))


async def _astream(chat: Any, question: str) -> str:
    return "".join([chunk.text async for chunk in chat.astream(question)])


async def _aevents(chat: Any, question: str) -> str:
    stream = await chat.astream_events(question, version="v3")
    return "".join([piece async for piece in stream.text])


def _stream_tools(chat: Any, question: str) -> str:
    first, *others = chat.bind_tools([note]).stream(question)
    return _arguments(sum(others, first))


def chat_ways(make: Callable[[Models, Settings], Any]) -> dict[str, Way]:
    """The ways to call a chat model of LangChain."""
    return {
        "invoke": Way(make, lambda chat, question: chat.invoke(question).text),
        "ainvoke": Way(make, _ainvoke),
        "batch": Way(make, lambda chat, question: [answer.text for answer in chat.batch([question] * 2)]),
        "abatch": Way(make, _abatch),
        "tools, invoke": Way(make, lambda chat, question: _arguments(chat.bind_tools([note]).invoke(question))),
        "tools, ainvoke": Way(make, _ainvoke_tools),
        "form, invoke": Way(make, lambda chat, question: _field(chat.with_structured_output(Note).invoke(question))),
        "form, ainvoke": Way(make, _astructured),
        "stream": Way(make, lambda chat, question: "".join(chunk.text for chunk in chat.stream(question)), True),
        "astream": Way(make, _astream, True),
        "tools, stream": Way(make, _stream_tools, True),
    }


def _events_ways(make: Callable[[Models, Settings], Any]) -> dict[str, Way]:
    return {
        "stream_events v3": Way(
            make, lambda chat, question: "".join(chat.stream_events(question, version="v3").text), True
        ),
        "astream_events v3": Way(make, _aevents, True),
    }


# ---------------------------------------------------------------- LangChain's agents


def _routed_agent(tools: Sequence[Any] = ()) -> Callable[[Models, Settings], Any]:
    def make(models: Models, settings: Settings) -> Any:
        router = router_of(tuple(models))
        middleware: Any = UniRouterMiddleware(router, models, **accepted(UniRouterMiddleware, settings))
        return create_agent(next(iter(models.values())), [*tools], middleware=[middleware])

    return make


def _fallback_agent(tools: Sequence[Any] = ()) -> Callable[[Models, Settings], Any]:
    def make(models: Models, settings: Settings) -> Any:
        first, *others = models.values()
        return create_agent(first, [*tools], middleware=[ModelFallbackMiddleware(*others)])

    return make


def _asked(question: str) -> dict[str, Any]:
    return {"messages": [("user", question)]}


async def _agent_ainvoke(agent: Any, question: str) -> str:
    result = await agent.ainvoke(_asked(question))
    return str(result["messages"][-1].text)


def _last_message(chunks: Sequence[Any]) -> str:
    """The text of the last message of a stream, which tells its messages apart by their ids."""
    texts: dict[str | None, str] = {}
    for chunk in chunks:
        if isinstance(chunk, AIMessage):
            texts[chunk.id] = texts.get(chunk.id, "") + chunk.text
    return [*texts.values()][-1] if texts else ""


def _agent_stream(agent: Any, question: str) -> str:
    return _last_message([chunk for chunk, _ in agent.stream(_asked(question), stream_mode="messages")])


async def _agent_astream(agent: Any, question: str) -> str:
    parts = agent.astream(_asked(question), stream_mode="messages")
    return _last_message([chunk async for chunk, _ in parts])


def agent_ways(make: Callable[..., Callable[[Models, Settings], Any]]) -> dict[str, Way]:
    """The ways to call an agent."""
    return {
        "invoke": Way(make(), lambda agent, question: agent.invoke(_asked(question))["messages"][-1].text),
        "ainvoke": Way(make(), _agent_ainvoke),
        "tools, invoke": Way(make([note]), lambda agent, question: agent.invoke(_asked(question))["messages"][-1].text),
        "tools, ainvoke": Way(make([note]), _agent_ainvoke),
        "stream": Way(make(), _agent_stream, True),
        "astream": Way(make(), _agent_astream, True),
        "tools, stream": Way(make([note]), _agent_stream, True),
    }


# ---------------------------------------------------------------- LlamaIndex


_TOOLS = [FunctionTool.from_defaults(note)]
_TEMPLATE = PromptTemplate("{query_str}")


def _routed_llm(models: Models, settings: Settings) -> Any:
    router = router_of(tuple(models))
    return UniRouterLLM(router=router, models=models, **accepted(UniRouterLLM, settings))


def _said(question: str) -> list[ChatMessage]:
    return [ChatMessage(question)]


def _tool_arguments(llm: LLM, response: Any) -> str:
    calls = llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)  # type: ignore[attr-defined]
    return "".join(str(call.tool_kwargs["text"]) for call in calls)


async def _achat(llm: Any, question: str) -> str:
    return str((await llm.achat(_said(question))).message.content)


async def _acomplete(llm: Any, question: str) -> str:
    return str((await llm.acomplete(question)).text)


async def _achat_with_tools(llm: Any, question: str) -> str:
    return _tool_arguments(llm, await llm.achat_with_tools(_TOOLS, user_msg=question))


async def _apredicted_form(llm: Any, question: str) -> str:
    return _field(await llm.astructured_predict(Note, _TEMPLATE, query_str=question))


async def _astream_chat(llm: Any, question: str) -> str:
    return "".join([part.delta or "" async for part in await llm.astream_chat(_said(question))])


async def _astream_complete(llm: Any, question: str) -> str:
    return "".join([part.delta or "" async for part in await llm.astream_complete(question)])


def _stream_tools_of_llm(llm: Any, question: str) -> str:
    *_, last = llm.stream_chat_with_tools(_TOOLS, user_msg=question)
    return _tool_arguments(llm, last)


def _llm_ways() -> dict[str, Way]:
    def way(ask: Callable[[Any, str], Any], *, streamed: bool = False) -> Way:
        return Way(_routed_llm, ask, streamed, "llamaindex")

    return {
        "chat": way(lambda llm, question: llm.chat(_said(question)).message.content),
        "achat": way(_achat),
        "complete": way(lambda llm, question: llm.complete(question).text),
        "acomplete": way(_acomplete),
        "tools, chat": way(lambda llm, question: _tool_arguments(llm, llm.chat_with_tools(_TOOLS, user_msg=question))),
        "tools, achat": way(_achat_with_tools),
        "form, predict": way(lambda llm, question: _field(llm.structured_predict(Note, _TEMPLATE, query_str=question))),
        "form, apredict": way(_apredicted_form),
        "stream_chat": way(
            lambda llm, question: "".join(part.delta or "" for part in llm.stream_chat(_said(question))), streamed=True
        ),
        "astream_chat": way(_astream_chat, streamed=True),
        "stream_complete": way(
            lambda llm, question: "".join(part.delta or "" for part in llm.stream_complete(question)), streamed=True
        ),
        "astream_complete": way(_astream_complete, streamed=True),
        "tools, stream_chat": way(_stream_tools_of_llm, streamed=True),
    }


@cache
def _retriever() -> BaseRetriever:
    documents = [Document(text=f"The {kind}.") for kind in KINDS]
    return VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(embed_dim=4)).as_retriever()


def _routed_engine(*, streaming: bool) -> Callable[[Models, Settings], Any]:
    def make(models: Models, settings: Settings) -> Any:
        router = router_of(tuple(models))
        known = accepted(UniRouterQueryEngine, settings)
        return UniRouterQueryEngine(
            router=router,
            models=models,
            retriever=_retriever(),
            streaming=streaming,
            **known,
        )

    return make


async def _aquery(engine: Any, question: str) -> str:
    return str((await engine.aquery(question)).response)


async def _aquery_stream(engine: Any, question: str) -> str:
    response = await engine.aquery(question)
    return "".join([part async for part in response.async_response_gen()])


def _engine_ways() -> dict[str, Way]:
    plain, streaming = _routed_engine(streaming=False), _routed_engine(streaming=True)
    return {
        "query": Way(plain, lambda engine, question: engine.query(question).response, framework="llamaindex"),
        "aquery": Way(plain, _aquery, framework="llamaindex"),
        "query, streaming": Way(
            streaming, lambda engine, question: "".join(engine.query(question).response_gen), True, "llamaindex"
        ),
        "aquery, streaming": Way(streaming, _aquery_stream, True, "llamaindex"),
    }


FACES: dict[str, dict[str, Way]] = {
    "ChatUniRouter": {**chat_ways(_routed_chat), **_events_ways(_routed_chat)},
    "UniRouterMiddleware": agent_ways(_routed_agent),
    "UniRouterLLM": _llm_ways(),
    "UniRouterQueryEngine": _engine_ways(),
}
PEERS: dict[str, dict[str, Way]] = {
    "with_fallbacks": chat_ways(_with_fallbacks),
    "ModelFallbackMiddleware": agent_ways(_fallback_agent),
}
