"""The agent middleware, through the front door: `create_agent(..., middleware=[UniRouterMiddleware(...)])`."""

import contextlib
import dataclasses
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from conftest import TOY_PROMPTS, blended_vectors, toy_embed, toy_scores
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages.tool import tool_call
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field

from unirouter_integrations import InvalidInputError, NoModelError, UniRouter, as_embedder

pytest.importorskip("langchain.agents")

from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware, SummarizationMiddleware, wrap_model_call
from langchain.agents.structured_output import ToolStrategy
from langgraph.checkpoint.memory import InMemorySaver

from unirouter_integrations.grading import Price
from unirouter_integrations.langchain import UniRouterFeedback, UniRouterMiddleware
from unirouter_integrations.serving import ModelRegistry
from unirouter_integrations.testing import ChatFake

USAGE: Any = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


class Agentic(BaseChatModel):
    """Calls the first of its tools once per question, then answers with its name and what the tool said."""

    model_name: str
    provider: str = "openai"
    error: Exception | None = None
    sent: list[tuple[list[BaseMessage], dict[str, Any]]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return f"{self.provider}-chat"

    def bind_tools(self, tools: Any, *, tool_choice: str | None = None, **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self.bind(tools=[convert_to_openai_tool(each)["function"] for each in tools], **kwargs)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self.sent.append((messages, kwargs))
        if self.error is not None:
            raise self.error
        metadata = {"model_name": self.model_name, "model_provider": self.provider, "finish_reason": "stop"}
        message = AIMessage(self._said(messages, kwargs), usage_metadata=USAGE, response_metadata=metadata)
        if (tools := kwargs.get("tools")) and not isinstance(messages[-1], ToolMessage):
            arguments = {"by": self.model_name} if tools[0]["name"] == "Verdict" else {}
            message.tool_calls = [tool_call(name=tools[0]["name"], args=arguments, id=f"call {len(messages)}")]
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        return self._chunks(messages, kwargs)

    def _chunks(self, messages: list[BaseMessage], kwargs: dict[str, Any]) -> Iterator[ChatGenerationChunk]:
        whole = self._generate(messages, **kwargs).generations[0].message
        assert isinstance(whole, AIMessage)
        for word in whole.text.split():
            yield ChatGenerationChunk(message=AIMessageChunk(content=f"{word} "))
        end = AIMessageChunk(
            content="", tool_calls=whole.tool_calls, usage_metadata=USAGE, response_metadata=whole.response_metadata
        )
        yield ChatGenerationChunk(message=end)

    def _said(self, messages: list[BaseMessage], kwargs: dict[str, Any]) -> str:
        if "response_format" in kwargs:
            return json.dumps({"by": self.model_name})
        return f"{self.model_name} {messages[-1].text}"


class Verdict(BaseModel):
    """Who answered."""

    by: str


@tool
def look() -> str:
    """Look."""
    return "seen"


@pytest.fixture
def models(router: UniRouter) -> dict[str, Agentic]:
    return {name: Agentic(model_name=name) for name in router.models}


def agent_of(router: UniRouter, models: Any, *, tools: Any = (), after: Any = (), **settings: Any) -> Any:
    """An agent whose own model always fails: whatever is answered was routed."""
    settings.setdefault("judged_by", "last_human")  # the questions here are too short to stand alone
    own = {key: settings.pop(key) for key in ("cost_weight", "sticky", "judged_by", "fallback") if key in settings}
    never = Agentic(model_name="never", error=AssertionError("the agent's own model was called"))
    middleware: Any = [UniRouterMiddleware(router, models, **own), *after]
    return create_agent(never, list(tools), middleware=middleware, **settings)


def asked(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


def without_id(route: dict[str, Any]) -> dict[str, Any]:
    """A decision as plain JSON; each has an id of its own."""
    return {key: value for key, value in route.items() if key != "id"}


def decision(result: dict[str, Any]) -> dict[str, Any]:
    """The decision on the last answer."""
    said = [message for message in result["messages"] if isinstance(message, AIMessage)]
    noted: dict[str, Any] = said[-1].response_metadata["unirouter"]
    return noted


def answers(result: dict[str, Any]) -> list[str]:
    return [message.text for message in result["messages"] if isinstance(message, AIMessage)]


async def test_each_question_goes_to_its_model_and_the_decision_is_on_its_answers(
    router: UniRouter, models: dict[str, Agentic]
) -> None:
    """Sync and async, with the whole loop of tool calls; the decision is that of the router, as plain JSON."""
    agent = agent_of(router, models, tools=[look])
    for question, name in (("a sum", "abacus"), ("a poem", "poet"), ("a date", "oracle")):
        for result in (agent.invoke(asked(question)), await agent.ainvoke(asked(question))):
            assert answers(result) == [f"{name} {question}", f"{name} seen"]
            assert without_id(decision(result)) == without_id(router.route(question).as_dict())
            assert json.loads(json.dumps(decision(result))) == decision(result)


async def test_the_async_agent_awaits_the_embedder(models: dict[str, Agentic]) -> None:
    """It never calls the blocking one."""

    class Awaited(Embeddings):
        blocking = True

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            assert self.blocking, "a blocking call of the embedder"
            return toy_embed(texts).tolist()  # type: ignore[no-any-return]

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

        async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
            return toy_embed(texts).tolist()  # type: ignore[no-any-return]

    embedder = Awaited()
    awaiting = UniRouter.fit(TOY_PROMPTS, embedder=embedder, n_clusters=3)
    awaiting.register(awaiting.profile("poet", TOY_PROMPTS, toy_scores("sum", "date"), cost=2))
    embedder.blocking = False
    agent = agent_of(awaiting, {"poet": models["poet"]})
    assert answers(await agent.ainvoke(asked("a poem"))) == ["poet a poem"]


def test_the_model_itself_is_called(router: UniRouter) -> None:
    """No copy of it: models may keep clients, tokens or counts on themselves."""
    poet = FakeListChatModel(responses=["first", "second"])
    agent = agent_of(router, {"poet": poet})
    assert [*answers(agent.invoke(asked("a poem"))), *answers(agent.invoke(asked("a poem")))] == ["first", "second"]


def test_a_question_is_embedded_once(models: dict[str, Agentic]) -> None:
    """However many calls it takes."""
    embedded: list[str] = []

    def embed(texts: list[str]) -> Any:
        embedded.extend(texts)
        return toy_embed(texts)

    counted = UniRouter.fit(TOY_PROMPTS, embedder=embed, n_clusters=3)
    counted.register(counted.profile("poet", TOY_PROMPTS, toy_scores("sum", "date"), cost=2))
    embedded.clear()
    agent_of(counted, {"poet": models["poet"]}, tools=[look]).invoke(asked("a poem"))
    assert embedded == ["a poem"]


def test_a_loop_of_tool_calls_stays_with_its_model(router: UniRouter, models: dict[str, Agentic]) -> None:
    """Even if a better one joins on the way, which takes the next question."""

    @tool
    def recruit() -> str:
        """Let a better model join."""
        models["calendar"] = Agentic(model_name="calendar")
        router.register(router.profile("calendar", TOY_PROMPTS, toy_scores(), cost=0))
        return "joined"

    agent = agent_of(router, models, tools=[recruit])
    assert answers(agent.invoke(asked("a date"))) == ["oracle a date", "oracle joined"]
    assert answers(agent.invoke(asked("a date"))) == ["calendar a date", "calendar joined"]


@pytest.mark.parametrize("leave", ["router", "models"])
async def test_a_model_that_leaves_in_the_loop_is_replaced(
    router: UniRouter, models: dict[str, Agentic], leave: str
) -> None:
    """The question is decided anew among those that are left, and the state says so."""

    @tool
    def dismiss() -> str:
        """Take the model away that asks."""
        if leave == "router":
            router.unregister("poet")
        else:
            del models["poet"]
        return "gone"

    agent = agent_of(router, models, tools=[dismiss])
    result = agent.invoke(asked("a poem"))
    assert answers(result) == ["poet a poem", "oracle gone"]
    assert decision(result)["model"] == "oracle"
    models["poet"] = Agentic(model_name="poet")
    router.register(router.profile("poet", TOY_PROMPTS, toy_scores("sum", "date"), cost=2))
    assert answers(await agent.ainvoke(asked("a poem"))) == ["poet a poem", "oracle gone"]


async def test_a_thread_is_decided_anew_for_each_human_message(
    router: UniRouter, models: dict[str, Agentic], caplog: pytest.LogCaptureFixture
) -> None:
    """And comes through a checkpointer without a warning, being plain JSON."""
    agent = agent_of(router, models, tools=[look], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    with caplog.at_level(logging.WARNING):
        agent.invoke(asked("a sum"), config)
        route = decision(agent.get_state(config).values)
        assert without_id(route) == without_id(router.route("a sum").as_dict())
        result = await agent.ainvoke(asked("a poem"), config)
    assert answers(result) == ["abacus a sum", "abacus seen", "poet a poem", "poet seen"]
    assert without_id(decision(result)) == without_id(router.route("a poem").as_dict())
    assert decision(result)["id"] != route["id"]
    assert caplog.records == []


def test_a_response_format_is_a_need(router: UniRouter, models: dict[str, Agentic]) -> None:
    """A model that can neither call tools nor fill in a form is left out, with the reason."""
    models["poet"] = Agentic(model_name="poet", profile={"tool_calling": False, "structured_output": False})
    agent: Any = create_agent(
        models["oracle"], response_format=ToolStrategy(Verdict), middleware=[UniRouterMiddleware(router, models)]
    )
    with contextlib.suppress(Exception):  # the stand-in fills in no form
        agent.invoke(asked("a poem"))
    assert models["poet"].sent == []
    assert models["oracle"].sent


async def test_a_thread_may_keep_the_model_it_began_with(router: UniRouter, models: dict[str, Agentic]) -> None:
    """Whatever is asked next, and in that thread alone; another model takes over only if it leaves."""
    agent = agent_of(router, models, sticky="thread", checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    agent.invoke(asked("a sum"), config)
    assert answers(await agent.ainvoke(asked("a poem"), config))[-1] == "abacus a poem"
    assert answers(agent.invoke(asked("a poem"), {"configurable": {"thread_id": "2"}})) == ["poet a poem"]
    del models["abacus"]
    assert answers(agent.invoke(asked("a poem"), config))[-1] == "poet a poem"


def test_a_run_that_continues_a_loop_stays_with_its_model(router: UniRouter, models: dict[str, Agentic]) -> None:
    """Resumed after an interrupt, or started with the result of a tool that ran elsewhere."""
    agent = agent_of(router, models, tools=[look], checkpointer=InMemorySaver(), interrupt_before=["tools"])
    config: Any = {"configurable": {"thread_id": "1"}}
    elsewhere: Any = {"configurable": {"thread_id": "2"}}
    agent.invoke(asked("a date"), config)
    result = agent.invoke(asked("a date"), elsewhere)
    router.register(router.profile("abacus", TOY_PROMPTS, toy_scores(), cost=0))
    assert answers(agent.invoke(None, config))[-1] == "oracle seen"
    call = result["messages"][-1].tool_calls[0]["id"]
    seen = {"messages": [ToolMessage("seen elsewhere", tool_call_id=call)]}
    assert answers(agent.invoke(seen, elsewhere))[-1] == "oracle seen elsewhere"


def test_messages_added_on_the_way_count(router: UniRouter, models: dict[str, Agentic]) -> None:
    """A human message between two calls of a run is a new question."""
    agent = agent_of(router, models, tools=[look], checkpointer=InMemorySaver(), interrupt_after=["tools"])
    config: Any = {"configurable": {"thread_id": "1"}}
    agent.invoke(asked("a sum"), config)
    agent.update_state(config, asked("a poem"), as_node="tools")
    assert answers(agent.invoke(None, config)) == ["abacus a sum", "poet a poem"]


def test_the_context_of_a_run_may_bring_its_own_cost_weight(router: UniRouter, models: dict[str, Agentic]) -> None:
    """As attribute or key; before the middleware's, and that before the router's."""

    @dataclass
    class Context:
        unirouter_cost_weight: float | None = None
        user: str = "me"

    agent = agent_of(router, models, cost_weight=0, context_schema=Context)
    router.cost_weight = 5
    for context, name in ((Context(), "oracle"), (Context(5), "abacus")):
        result = agent.invoke(asked("a date"), context=context)
        assert decision(result)["model"] == name
    follows = agent_of(router, models)
    assert decision(follows.invoke(asked("a date")))["cost_weight"] == 5
    assert decision(follows.invoke(asked("a date"), context={"unirouter_cost_weight": 2}))["cost_weight"] == 2
    with pytest.raises(InvalidInputError, match="cost_weight should be a number of at least 0, but is -1"):
        agent.invoke(asked("a date"), context=Context(-1))


def test_a_run_may_have_options_in_any_kind_of_context(router: UniRouter, models: dict[str, Agentic]) -> None:
    """With or without a dict of its attributes; what it leaves open, the config of the run may set."""

    @dataclass(slots=True)
    class Slots:
        unirouter_among: list[str] | None = None
        user: str = "me"

    class Pydantic(BaseModel):
        unirouter_model: str | None = None

    agent = agent_of(router, models)
    config = {"configurable": {"unirouter_model": "abacus"}}
    for context, name in ((Slots(), "abacus"), (Pydantic(), "abacus"), ({}, "abacus"), (None, "abacus")):
        assert decision(agent.invoke(asked("a poem"), config, context=context))["model"] == name
    assert decision(agent.invoke(asked("a poem"), context=Slots(["oracle", "abacus"])))["model"] == "oracle"
    both = agent.invoke(asked("a poem"), config, context=Pydantic(unirouter_model="oracle"))
    assert decision(both)["model"] == "oracle"
    with pytest.raises(InvalidInputError, match=r"no 'unirouter_cost_wieght'.* Did you mean 'unirouter_cost_weight'"):
        agent.invoke(asked("a poem"), context={"unirouter_cost_wieght": 1})


def test_the_calls_of_a_run_share_one_decision(blended: UniRouter) -> None:
    """Where clusters overlap, too: the state and every trace have the same numbers, and it is counted once."""
    vectors = blended_vectors(3, 4)

    def embed(texts: list[str]) -> Any:
        return np.array([vectors[len(text) % 3] for text in texts])

    router = UniRouter(dataclasses.replace(blended.clusters, embedder=as_embedder(embed)), cost_weight=0.02)
    router.register(*blended.profiles.values())
    started: list[dict[str, Any]] = []

    class Watch(BaseCallbackHandler):
        def on_chat_model_start(self, *_: Any, metadata: Any = None, **__: Any) -> None:
            noted = {key.removeprefix("unirouter_"): value for key, value in metadata.items() if "unirouter" in key}
            started.append(noted)

    agent = agent_of(router, {name: ChatFake(model=name) for name in router.models}, tools=[look])
    feedback, run_id = UniRouterFeedback(router), uuid4()
    result = agent.invoke(asked("what is 1 + 1"), {"callbacks": [Watch(), feedback], "run_id": run_id})
    assert started == [decision(result)] * 2
    assert router.stats().decisions == 1
    assert feedback.observe(run_id, 1) == 1


async def test_a_model_that_fails_in_the_loop_is_replaced(router: UniRouter, models: dict[str, Agentic]) -> None:
    """By the next best one, which goes on and is in the state; the next question is free again."""

    @tool
    def break_down() -> str:
        """Let the model fail from now on."""
        models["poet"].error = TimeoutError("too slow")
        return "broken"

    agent = agent_of(router, models, tools=[break_down])
    for _ in range(2):
        result = await agent.ainvoke(asked("a poem"))
        models["poet"].error = None
        assert answers(result) == ["poet a poem", "oracle broken"]
        route = decision(result)
        assert route["model"] == "oracle"
        assert route["excluded"] == [{"model": "poet", "kind": "failed", "reason": "it failed with TimeoutError"}]


async def test_a_thread_decides_each_question_and_keeps_its_model(
    router: UniRouter, models: dict[str, Agentic]
) -> None:
    """So the decision is about the question that is answered, also by another model; it needs no embedding for it."""
    agent = agent_of(router, models, sticky="thread", checkpointer=InMemorySaver(), tools=[look])
    config: Any = {"configurable": {"thread_id": "1"}}
    first = decision(agent.invoke(asked("a sum"), config))
    second = decision(await agent.ainvoke(asked("a poem"), config))
    poem = router.route("a poem")
    assert (first["model"], first["basis"]) == ("abacus", "best")
    assert (second["model"], second["basis"], second["cluster"]) == ("abacus", "kept", poem.cluster)
    assert second["expected_error"] == pytest.approx(1)
    models["abacus"].error = TimeoutError("too slow")
    third = agent.invoke(asked("another poem"), config)
    assert (answers(third)[-1], decision(third)["model"]) == ("poet seen", "poet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(router.clusters), "embed", lambda *_: 1 / 0)
        fourth = agent.invoke(asked("one more poem"), config)
    assert answers(fourth)[-1] == "poet seen"


async def test_each_model_gives_the_response_format_in_its_own_way(
    router: UniRouter, models: dict[str, Agentic]
) -> None:
    """One by the provider's format, the others by a tool call; the agent sees the model that really answers."""
    models["poet"].profile = {"structured_output": True}
    agent = agent_of(router, models, response_format=Verdict)
    for question, name in (("a sum", "abacus"), ("a poem", "poet")):
        assert agent.invoke(asked(question))["structured_response"] == Verdict(by=name)
        assert (await agent.ainvoke(asked(question)))["structured_response"] == Verdict(by=name)
    assert "response_format" in models["poet"].sent[0][1]
    assert models["abacus"].sent[0][1]["tools"][0]["name"] == "Verdict"


async def test_without_fallback_an_error_passes_through_and_a_fallback_listed_after_takes_over(
    router: UniRouter, models: dict[str, Agentic]
) -> None:
    """The failing model is tried once."""
    models["poet"].error = TimeoutError("too slow")
    agent = agent_of(router, models, fallback=False)
    with pytest.raises(TimeoutError, match="too slow"):
        agent.invoke(asked("a poem"))
    with pytest.raises(TimeoutError, match="too slow"):
        await agent.ainvoke(asked("a poem"))
    models["poet"].sent.clear()
    agent = agent_of(router, models, after=[ModelFallbackMiddleware(Agentic(model_name="spare"))])
    assert answers(agent.invoke(asked("a poem"))) == ["spare a poem"]
    assert answers(await agent.ainvoke(asked("a poem"))) == ["spare a poem"]
    assert len(models["poet"].sent) == 2


async def test_an_answer_of_somebody_else_has_no_decision(router: UniRouter, models: dict[str, Agentic]) -> None:
    """So nobody takes it for the model's that failed, and no feedback is credited to that."""
    models["poet"].error = TimeoutError("too slow")
    agent = agent_of(router, models, fallback=False, after=[ModelFallbackMiddleware(Agentic(model_name="spare"))])
    feedback, run_id = UniRouterFeedback(router), uuid4()
    config = {"callbacks": [feedback], "run_id": run_id}
    for result in (agent.invoke(asked("a poem"), config), await agent.ainvoke(asked("a poem"))):
        assert answers(result) == ["spare a poem"]
        assert "unirouter" not in result["messages"][-1].response_metadata
    assert feedback.observe(run_id, 1) == 0


async def test_the_trace_of_each_model_run_carries_the_decision(router: UniRouter, models: dict[str, Agentic]) -> None:
    """As metadata and tag, beside the model's own and the caller's; tokens are counted once."""
    models["poet"].metadata, models["poet"].tags = {"team": "verse"}, ["mine"]
    counter, started = UsageMetadataCallbackHandler(), []

    class Watch(BaseCallbackHandler):
        def on_chat_model_start(self, *_: Any, tags: Any = None, metadata: Any = None, **__: Any) -> None:
            started.append((tags, metadata))

    config = {"callbacks": [counter, Watch()], "tags": ["yours"], "metadata": {"user": "me"}}
    agent = agent_of(router, models, tools=[look])
    agent.invoke(asked("a poem"), config)
    await agent.ainvoke(asked("a poem"), config)
    assert len(started) == 4
    for tags, metadata in started:
        assert {"mine", "yours", "unirouter"} <= set(tags)
        assert {"team": "verse", "user": "me", "unirouter_model": "poet"}.items() <= metadata.items()
        assert metadata["unirouter_expected_cost"] == 2
    assert {name: usage["total_tokens"] for name, usage in counter.usage_metadata.items()} == {"poet": 60}


async def test_a_stream_of_messages_has_each_token_once(router: UniRouter, models: dict[str, Agentic]) -> None:
    """With the decision beside it."""
    agent = agent_of(router, models)
    parts = list(agent.stream(asked("a poem"), stream_mode="messages"))
    parts_too = [part async for part in agent.astream(asked("a poem"), stream_mode="messages")]
    for each in (parts, parts_too):
        assert [chunk.text for chunk, _ in each if chunk.text] == ["poet ", "a ", "poem "]
        assert {metadata["unirouter_model"] for _, metadata in each} == {"poet"}


def test_models_may_come_and_go_while_an_agent_is_in_use(router: UniRouter, models: dict[str, Agentic]) -> None:
    """A thread registers and removes a model all the time: no error, and whoever was chosen answered."""
    agent = agent_of(router, models)
    profile = router.profile("calendar", TOY_PROMPTS, toy_scores(), cost=0.5)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            models["calendar"] = Agentic(model_name="calendar")
            router.register(profile)
            router.unregister("calendar")
            del models["calendar"]

    changing = threading.Thread(target=change)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    changing.start()
    try:
        results = [agent.invoke(asked("a date")) for _ in range(60)]
    finally:
        stop.set()
        changing.join()
        sys.setswitchinterval(switch)
    assert all(answers(result) == [f"{decision(result)['model']} a date"] for result in results)


THOUGHTFUL = AIMessage(
    [
        {"type": "thinking", "thinking": "hm", "signature": "xyz"},
        {"type": "text", "text": "let me see"},
        {"type": "tool_use", "id": "t1", "name": "look", "input": {}},
    ],
    id="msg_1",
    tool_calls=[{"name": "look", "args": {}, "id": "t1"}],
    additional_kwargs={"reasoning_content": "hm"},
    response_metadata={"model_provider": "anthropic"},
)
PAST = [HumanMessage("a date"), THOUGHTFUL, ToolMessage("seen", tool_call_id="t1"), HumanMessage("a poem")]


def test_answers_of_another_provider_are_sent_as_text_and_tool_calls(
    router: UniRouter, models: dict[str, Agentic]
) -> None:
    """Its reasoning is none of theirs; in the state everything stays."""
    result = agent_of(router, models).invoke({"messages": PAST})
    messages, _ = models["poet"].sent[0]
    assert messages[1] == AIMessage("let me see", tool_calls=THOUGHTFUL.tool_calls)
    assert [messages[0], *messages[2:]] == [result["messages"][0], *result["messages"][2:4]]
    assert result["messages"][1] == THOUGHTFUL


@pytest.mark.parametrize("metadata", [{"model_provider": "anthropic"}, {"model_provider": "claude"}, {}])
def test_answers_of_the_same_or_of_an_unknown_provider_are_sent_as_they_are(
    router: UniRouter, models: dict[str, Agentic], metadata: dict[str, str]
) -> None:
    """Reasoning may be needed there. The provider is known by the model's type or by its name in traces."""

    class Named(Agentic):
        def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
            return {**super()._get_ls_params(stop, **kwargs), "ls_provider": "claude"}

    models["poet"] = Named(model_name="poet", provider="anthropic")
    said = THOUGHTFUL.model_copy(update={"response_metadata": metadata})
    agent_of(router, models).invoke({"messages": [PAST[0], said, *PAST[2:]]})
    assert models["poet"].sent[0][0][1] == said


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_settings_made_for_another_provider_are_dropped(
    router: UniRouter, models: dict[str, Agentic], provider: str
) -> None:
    """Those that all models know are kept; for a model of the same provider, all."""

    @wrap_model_call
    def outer(request: Any, handler: Callable[[Any], Any]) -> Any:
        return handler(request.override(model_settings={"temperature": 0, "prompt_cache_key": "k"}))

    models["poet"] = Agentic(model_name="poet", provider=provider)
    never = Agentic(model_name="never", error=AssertionError("called"))
    agent: Any = create_agent(never, middleware=[outer, UniRouterMiddleware(router, models)])
    agent.invoke(asked("a poem"))
    kept = {"temperature": 0} | ({"prompt_cache_key": "k"} if provider == "openai" else {})
    assert models["poet"].sent[0][1] == kept


def test_names_of_models_are_made_into_models_once(
    router: UniRouter, models: dict[str, Agentic], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `init_chat_model`, at once, and those that join later when they are first chosen."""
    made: list[str] = []

    def init_chat_model(name: str) -> Agentic:
        made.append(name)
        return Agentic(model_name=name)

    monkeypatch.setattr("langchain.chat_models.init_chat_model", init_chat_model)
    named: dict[str, Any] = {**models, "poet": "acme:poet"}
    agent = agent_of(router, named)
    assert made == ["acme:poet"]
    named["oracle"] = "acme:oracle"
    for _ in range(2):
        assert answers(agent.invoke(asked("a poem"))) == ["acme:poet a poem"]
        assert answers(agent.invoke(asked("a date"))) == ["acme:oracle a date"]
    assert made == ["acme:poet", "acme:oracle"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {}}, "models is empty; give at least one model"),
        ({"models": ["poet"]}, "models should be a dict from names to models, or a ModelRegistry, not list"),
        ({"models": {"gpt": Agentic(model_name="gpt")}}, r"no profile of 'gpt'; it has \['abacus', 'oracle', 'poet'\]"),
        ({"models": {"poet": 5}}, "The model 'poet' should be a LangChain chat model.*not int"),
        ({"cost_weight": -1}, "cost_weight should be a number of at least 0, but is -1"),
        ({"cost_weight": "cheap"}, "cost_weight should be a number of at least 0, but is 'cheap'"),
        ({"sticky": "turn"}, "sticky should be one of 'tools', 'thread', 'cache', but is 'turn'"),
        ({"sticky": "cache"}, "sticky=\"cache\" needs the price of 'abacus'"),
        (
            {"fallback": "refusal"},
            "fallback, if it is no .* one of True, False, 'refusals', .* Did you mean 'refusals'",
        ),
        ({"cooldown": -1}, "cooldown, a number of seconds, should be a number of at least 0, but is -1"),
        ({"default": "bard"}, "default should be one of the models, 'abacus', 'oracle', 'poet', but is 'bard'"),
        ({"embedding_timeout": 0}, "embedding_timeout, a number of seconds, should be a number above 0, but is 0"),
        ({"escalate": "contains"}, "'contains' needs a reference, .* escalate by confidence or probability"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    router: UniRouter, models: dict[str, Agentic], arguments: dict[str, Any], message: str
) -> None:
    """When it is built, not at the first call."""
    with pytest.raises(InvalidInputError, match=message):
        UniRouterMiddleware(**{"router": router, "models": models, **arguments})


def test_without_any_model_left_it_says_so(router: UniRouter, models: dict[str, Agentic]) -> None:
    """The error is the router's."""
    agent = agent_of(router, models)
    models.clear()
    with pytest.raises(NoModelError, match="no model to choose from"):
        agent.invoke(asked("a poem"))


def test_without_langchain_it_says_what_to_install() -> None:
    """The package itself does without: it imports neither `langchain` nor LangGraph."""
    script = """
import sys
import unirouter_integrations.langchain
assert not {"langchain", "langgraph"} & set(sys.modules)
sys.modules["langchain.agents.middleware.types"] = None
from unirouter_integrations import MissingDependencyError
try:
    import unirouter_integrations.langchain._middleware
except MissingDependencyError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'langchain>=1.3'" in result.stdout


def test_a_model_that_cannot_take_the_call_is_left_out(router: UniRouter) -> None:
    """An image before the run, tools when they are known; the state says why."""
    models: dict[str, BaseChatModel | str] = {name: ChatFake(model=name) for name in router.models}
    models["abacus"] = ChatFake(model="abacus", profile={"image_inputs": False, "tool_calling": False})
    image = HumanMessage([{"type": "text", "text": "sum number i"}, {"type": "image", "url": "x"}])
    plain = create_agent(models["oracle"], middleware=[UniRouterMiddleware(router, models)])
    assert decision(plain.invoke({"messages": [HumanMessage("sum number i")]}))["model"] == "abacus"
    route = decision(plain.invoke({"messages": [image]}))
    no_images = {"model": "abacus", "kind": "incapable", "reason": "it takes no image inputs"}
    assert (route["model"], route["excluded"]) == ("oracle", [no_images])

    def multiply(a: int, b: int) -> int:
        """Multiply two numbers."""
        return a * b

    armed = create_agent(models["oracle"], [multiply], middleware=[UniRouterMiddleware(router, models)])
    state = armed.invoke({"messages": [HumanMessage("sum number 6 7")]})
    assert (decision(state)["model"], state["messages"][-2].text) == ("oracle", "42")
    no_tools = {"model": "abacus", "kind": "incapable", "reason": "it takes no tools"}
    assert decision(state)["excluded"] == [no_tools]


def test_agents_within_agents_keep_their_own_models(router: UniRouter, models: dict[str, Agentic]) -> None:
    """One middleware for the agent and for those that its tools start, two of them at once: each has its question."""
    routed = UniRouterMiddleware(router, models)
    inner: Any = create_agent(models["oracle"], [look], middleware=[routed])

    @tool
    def delegate() -> str:
        """Have others work on it."""
        both = inner.batch([asked("a sum"), asked("a date")])
        return " and ".join(answers(result)[-1] for result in both)

    outer: Any = create_agent(models["oracle"], [delegate], middleware=[routed])
    result = outer.invoke(asked("a poem"))
    assert answers(result) == ["poet a poem", "poet abacus seen and oracle seen"]
    assert decision(result)["model"] == "poet"


def test_a_graph_with_agents_as_nodes_side_by_side(router: UniRouter, models: dict[str, Agentic]) -> None:
    """They share their state, and nothing in it collides."""
    from langgraph.graph import MessagesState, StateGraph

    graph: Any = StateGraph(MessagesState)
    for name in ("first", "second"):
        graph.add_node(name, agent_of(router, models))
        graph.set_entry_point(name)
    result = graph.compile().invoke(asked("a poem"))
    assert answers(result) == ["poet a poem"] * 2
    assert [*result] == ["messages"]


def test_summaries_come_before_the_decision(router: UniRouter) -> None:
    """A thread that has grown too long for a model is first made shorter by what is there for it."""
    models: dict[str, BaseChatModel] = {name: ChatFake(model=name) for name in router.models}
    models["poet"] = ChatFake(model="poet", profile={"max_input_tokens": 100})
    summary = SummarizationMiddleware(ChatFake(replies=["they talked"]), trigger=("messages", 3), keep=("messages", 1))
    agent = agent_of(router, models, after=[summary])
    long = [HumanMessage("a sum " * 200), AIMessage("42 " * 200), HumanMessage("a poem")]
    result = agent.invoke({"messages": long})
    assert decision(result)["model"] == "poet"
    assert "excluded" not in decision(result)


def test_what_an_agent_is_judged_by_can_be_chosen(router: UniRouter, models: dict[str, Agentic]) -> None:
    """As for a chat model, the agent's own system prompt included."""
    agent = agent_of(router, models, judged_by="system_and_last_human", system_prompt="poem poem poem poem")
    assert decision(agent.invoke(asked("go on")))["model"] == "poet"
    agent = agent_of(router, models, judged_by=lambda messages: messages[0].text, system_prompt="date")
    assert decision(agent.invoke(asked("a sum")))["model"] == "oracle"


def test_a_conversation_of_an_agent_moves_only_for_more_than_the_lost_cache(router: UniRouter) -> None:
    """With the prices of a registry."""
    prices = {name: Price(5, 20, cached_input=0.5) for name in router.models}
    registry = ModelRegistry({name: ChatFake(model=name) for name in router.models}, prices=prices)
    agent = agent_of(router, registry, sticky="cache", cost_weight=0.02)
    read: Any = {"input_tokens": 90_000, "output_tokens": 0, "total_tokens": 90_000}
    said = AIMessage("42", usage_metadata=read, response_metadata={"unirouter": {"model": "abacus"}})
    history = [HumanMessage("a sum"), said, HumanMessage("a poem")]
    assert decision(agent.invoke({"messages": history}))["model"] == "abacus"
    assert decision(agent.invoke({"messages": history[2:]}))["model"] == "poet"


def test_what_others_add_to_the_messages_is_kept(router: UniRouter, models: dict[str, Agentic]) -> None:
    """The list that is sent is the agent's own, unless something in it has to be changed."""
    lists = []

    @wrap_model_call
    def outer(request: Any, handler: Callable[[Any], Any]) -> Any:
        lists.append(request.messages)
        return handler(request)

    @wrap_model_call
    def inner(request: Any, handler: Callable[[Any], Any]) -> Any:
        lists.append(request.messages)
        return handler(request)

    agent: Any = create_agent(models["poet"], middleware=[outer, UniRouterMiddleware(router, models), inner])
    agent.invoke(asked("a poem"))
    assert lists[0] is lists[1]


def test_the_messages_are_in_traces_once(router: UniRouter, models: dict[str, Agentic]) -> None:
    """With the run of the model; where LangGraph can leave them out, they are not also with the middleware's."""
    policies = pytest.importorskip("langgraph.types")
    if not hasattr(policies, "TracePolicy"):
        pytest.skip("this LangGraph has no trace policies")
    policy: Any = UniRouterMiddleware(router, models).trace_policy
    assert policy.process_inputs is policies.omit_payload
