"""Tools in a pool of different providers: each model gets them in its own words, or is left out."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_core.tools import tool
from langchain_core.tracers.context import collect_runs
from pydantic import Field

from unirouter_integrations import InvalidInputError, NoModelError, UniRouter
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.testing import ChatFake


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


class Client(ChatFake):
    """Notes what is bound to it, as the client of a provider."""

    client: str = "openai-chat"
    bound: list[tuple[list[Any], dict[str, Any]]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return self.client

    def bind_tools(self, tools: Any, **keywords: Any) -> Runnable[Any, AIMessage]:
        self.bound.append((list(tools), keywords))
        return super().bind_tools([multiply], stop=keywords.get("stop"))


def clients(*kinds: str) -> dict[str, Client]:
    """The models of the toy router; the first answers sums, and all of them need no more than that."""
    return {
        name: Client(model=name, client=kind) for name, kind in zip(("abacus", "poet", "oracle"), kinds, strict=True)
    }


@pytest.fixture
def pool() -> dict[str, Client]:
    return clients("openai-chat", "anthropic-chat", "chat-ollama")


def by_chat(router: UniRouter, pool: dict[str, Client], tools: Any, **said: Any) -> Callable[[str], str]:
    """Who answers a question with tools, in a chat model."""
    llm = ChatUniRouter(router=router, models=pool).bind_tools(tools, **said)
    return lambda question: str(llm.invoke(question).response_metadata["unirouter"]["model"])


def by_agent(
    router: UniRouter, pool: dict[str, Client], tools: Any, *, tool_choice: Any = None, **said: Any
) -> Callable[[str], str]:
    """Who answers a question with tools, in an agent."""
    agents = pytest.importorskip("langchain.agents")
    from langchain.agents.middleware import wrap_model_call

    from unirouter_integrations.langchain import UniRouterMiddleware

    @wrap_model_call
    def saying(request: Any, handler: Any) -> Any:
        return handler(request.override(tool_choice=tool_choice, model_settings=said))

    agent = agents.create_agent(
        ChatFake(error=AssertionError()), tools, middleware=[saying, UniRouterMiddleware(router, pool)]
    )
    return lambda question: str(
        agent.invoke({"messages": [HumanMessage(question)]})["messages"][1].response_metadata["unirouter"]["model"]
    )


both_faces = pytest.mark.parametrize("who", [by_chat, by_agent])


def test_bound_tools_can_be_seen_and_are_sent_once(router: UniRouter, pool: dict[str, Client]) -> None:
    """In the binding, as of other chat models; also of a copy."""
    bound = ChatUniRouter(router=router, models=pool).bind_tools([multiply, {"type": "unheard_of"}])
    assert isinstance(bound, RunnableBinding)
    for each in (bound, deepcopy(bound)):
        assert each.kwargs["tools"][0]["function"]["name"] == "multiply"
        assert each.kwargs["tools"][1:] == [{"type": "unheard_of"}]
    answer = bound.invoke("sum 2 3")
    assert [call["name"] for call in answer.tool_calls] == ["multiply"]
    assert pool["abacus"].bound == [([multiply, {"type": "unheard_of"}], {})]


@pytest.mark.filterwarnings("ignore:create_react_agent")
def test_the_agents_of_langgraph_do_not_bind_again(router: UniRouter, pool: dict[str, Client]) -> None:
    """So that what was said about the use of the tools is kept."""
    prebuilt = pytest.importorskip("langgraph.prebuilt")
    llm = ChatUniRouter(router=router, models=pool)
    agent = prebuilt.create_react_agent(llm.bind_tools([multiply], parallel_tool_calls=False), [multiply])
    assert agent.invoke({"messages": [HumanMessage("sum 2 3")]})["messages"][2].text == "6"
    assert pool["abacus"].bound == [([multiply], {"parallel_tool_calls": False})]


@both_faces
def test_what_is_said_about_tools_reaches_each_model_in_its_words(
    router: UniRouter, pool: dict[str, Client], who: Any
) -> None:
    """Whichever is chosen; what a client does not know is left away, as it would fail on it."""
    ask = who(router, pool, [multiply], tool_choice="required", parallel_tool_calls=False, strict=True)
    assert [ask("sum 2 3"), ask("poem 2 3"), ask("date 2 3")] == ["abacus", "poet", "oracle"]
    said = [pool[name].bound[0][1] for name in ("abacus", "poet", "oracle")]
    assert said == [
        {"tool_choice": "required", "parallel_tool_calls": False, "strict": True},
        {"tool_choice": "any", "parallel_tool_calls": False, "strict": True},
        {"tool_choice": "required", "strict": True},
    ]


SERVER_TOOLS: dict[str, tuple[dict[str, Any], str]] = {
    "OpenAI's": ({"type": "web_search"}, "openai"),
    "of Google": ({"google_search": {}}, "google"),
    "of Anthropic": ({"type": "web_search_20250305", "name": "web_search"}, "anthropic"),
    "of two": ({"type": "code_interpreter", "container": {"type": "auto"}}, "openai or groq"),
}


@both_faces
@pytest.mark.parametrize(("given", "provider"), SERVER_TOOLS.values(), ids=[*SERVER_TOOLS])
def test_a_tool_that_a_provider_runs_goes_to_its_models(
    router: UniRouter, given: dict[str, Any], provider: str, who: Any
) -> None:
    """Those of others are left out, with the reason."""
    takes = {"openai": "openai-chat", "google": "chat-google-generative-ai"}.get(
        provider.split(maxsplit=1)[0], "anthropic-chat"
    )
    pool = clients("chat-ollama", "mistralai-chat", takes)
    assert who(router, pool, [multiply, given])("sum 2 3") == "oracle"
    assert pool["oracle"].bound[0][0][1] == given
    assert pool["abacus"].bound == pool["poet"].bound == []
    del pool["oracle"]
    with pytest.raises(NoModelError, match=f"abacus: it takes no server tools of {provider}"):
        who(router, pool, [multiply, given])("sum 2 3")


@both_faces
def test_a_tool_or_a_client_that_is_not_known_is_left_to_the_model(
    router: UniRouter, pool: dict[str, Client], who: Any
) -> None:
    """A table cannot know all of them."""
    assert who(router, pool, [multiply, {"type": "x_search"}])("sum 2 3") == "abacus"
    pool["abacus"] = Client(model="abacus", client="own-server")
    assert who(router, pool, [multiply, {"type": "web_search"}])("sum 2 3") == "abacus"


def test_what_is_around_a_model_stays_around_it(router: UniRouter, pool: dict[str, Client]) -> None:
    """Retries, bound arguments and a config: the tools are bound to the model inside."""
    flaky = Client(model="abacus", error=TimeoutError(), n_errors=1)
    wrapped: dict[str, Any] = {
        **pool,
        "abacus": flaky.with_retry(retry_if_exception_type=(TimeoutError,), wait_exponential_jitter=False),
        "poet": pool["poet"].bind(stop=["poem"], tools=[{"own": 1}]).with_config(tags=["mine"]),
    }
    llm = ChatUniRouter(router=router, models=wrapped, fallback=False)
    with collect_runs() as runs:
        answers = [llm.bind_tools([multiply]).invoke(question) for question in ("sum 2 3", "poem 2 3")]
    assert [answer.tool_calls[0]["args"] for answer in answers] == [{"a": 2, "b": 3}] * 2
    assert flaky.n_calls == 2
    *_, last = runs.traced_runs
    assert "mine" in (last.tags or [])
    assert (last.extra or {})["invocation_params"]["stop"] == ["poem"]
    form = {
        "title": "T",
        "description": "-",
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
    }
    plain: dict[str, Any] = {**wrapped, "abacus": ChatFake(model="abacus").with_retry()}
    filled = ChatUniRouter(router=router, models=plain).with_structured_output(form)
    assert filled.invoke("sum 4") == {"n": 4}


def test_what_is_around_a_model_stays_around_it_in_an_agent(
    router: UniRouter, pool: dict[str, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for retries and tools of its own, which an agent brings by itself."""
    agents = pytest.importorskip("langchain.agents")
    from langchain.chat_models import init_chat_model

    from unirouter_integrations.langchain import UniRouterMiddleware

    wrapped: dict[str, Any] = {
        **pool,
        "abacus": init_chat_model("openai:mini", configurable_fields=("temperature",)),
        "poet": pool["poet"].bind(stop=["poem"]).with_config(tags=["mine"]),
    }
    agent = agents.create_agent(
        ChatFake(error=AssertionError()), [multiply], middleware=[UniRouterMiddleware(router, wrapped)]
    )
    temperatures = []

    def make(*_: Any, temperature: float | None = None, **__: Any) -> Client:
        temperatures.append(temperature)
        return pool["abacus"]

    monkeypatch.setattr("langchain.chat_models.base._init_chat_model_helper", make)
    said = agent.invoke({"messages": [HumanMessage("sum 2 3")]}, {"configurable": {"temperature": 0.5}})["messages"]
    assert (said[2].text, said[3].text) == ("6", "abacus: sum 2 3")
    assert temperatures[-1] == 0.5
    tags: list[set[str]] = []

    class Watch(BaseCallbackHandler):
        def on_chat_model_start(self, *_: Any, **run: Any) -> None:
            tags.append({"mine", "unirouter"} & {*run["tags"]})

    said = agent.invoke({"messages": [HumanMessage("poem 2 3")]}, {"callbacks": [Watch()]})["messages"]
    assert said[-1].text == "poet: "
    assert tags == [{"mine", "unirouter"}] * 2
    assert pool["poet"].bound[0][1] == {"stop": ["poem"], "tool_choice": None}
    for wrong in (pool["poet"].with_retry(), pool["poet"].bind(tools=[])):
        with pytest.raises(InvalidInputError, match=r"The model 'poet' should be .* agent"):
            UniRouterMiddleware(router, {**pool, "poet": wrong})
