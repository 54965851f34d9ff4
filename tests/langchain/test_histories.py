"""Conversations that move from one provider's model to another's: each gets what it takes."""

import functools
import importlib
import operator
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import pytest
from history_server import Providers, providers
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from provider_clients import AWS, is_installed
from pydantic import Field

from unirouter_integrations.langchain._history import history_for, settings_for

KEY: dict[str, Any] = {"api_key": "k", "max_retries": 0}
# The package and class of each client, the name of its URL, and its settings.
CLIENTS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "openai": ("langchain_openai", "ChatOpenAI", "base_url", KEY),
    "responses": ("langchain_openai", "ChatOpenAI", "base_url", {**KEY, "use_responses_api": True}),
    "anthropic": ("langchain_anthropic", "ChatAnthropic", "base_url", KEY),
    "google": ("langchain_google_genai", "ChatGoogleGenerativeAI", "base_url", {**KEY, "max_retries": 1}),
    "mistral": ("langchain_mistralai", "ChatMistralAI", "endpoint", {**KEY, "max_retries": 1}),
    "ollama": ("langchain_ollama", "ChatOllama", "base_url", {}),
    "bedrock": ("langchain_aws", "ChatBedrockConverse", "endpoint_url", {"provider": "anthropic", **AWS}),
    "groq": ("langchain_groq", "ChatGroq", "base_url", KEY),
}
INSTALLED = [name for name, (package, *_) in CLIENTS.items() if is_installed(package)]
ASKED = HumanMessage("Which date is it in Rome and Oslo?")

pytestmark = pytest.mark.filterwarnings("ignore")  # of clients that CI does not have


@tool
def date_in(city: str) -> str:
    """The date in a city."""
    return f"today in {city}"


@pytest.fixture(scope="module")
def served() -> Iterator[Providers]:
    with providers() as serving:
        yield serving


@pytest.fixture(scope="module")
def clients(served: Providers) -> dict[str, BaseChatModel]:
    """One model of each provider whose client is installed."""
    return {name: client_of(served, name) for name in INSTALLED}


def client_of(served: Providers, provider: str, model: str = "m", client: str | None = None) -> BaseChatModel:
    package, name, at, settings = CLIENTS[client or provider]
    made = getattr(importlib.import_module(package), name)
    answer: BaseChatModel = made(**{"model": model, at: served.of(provider), **settings})
    return answer


def answer_of(served: Providers, model: BaseChatModel, scene: str, *, streamed: bool = False) -> AIMessage:
    served.scene = scene
    asked: Any = model.bind_tools([date_in])
    return functools.reduce(operator.add, asked.stream("hi")) if streamed else asked.invoke("hi")  # type: ignore[no-any-return]


def noted(answer: AIMessage, author: str) -> AIMessage:
    """The answer as a router hands it on."""
    metadata = {**answer.response_metadata, "unirouter": {"model": author}}
    return answer.model_copy(update={"response_metadata": metadata})


def going_on(answer: AIMessage, *, asks_again: bool = True) -> list[BaseMessage]:
    """A conversation with an answer in it, and the results of its tool calls."""
    results = [ToolMessage("today", tool_call_id=call["id"], name=call["name"]) for call in answer.tool_calls]
    return [ASKED, answer, *results, *([HumanMessage("And in words?")] if asks_again or not results else [])]


def refusals(served: Providers, name: str, model: BaseChatModel, conversation: Sequence[BaseMessage]) -> list[str]:
    """Why a model cannot go on with a conversation: the error of its client, or what its provider refuses."""
    served.refused.clear()
    served.scene = "answers"
    try:
        model.bind_tools([date_in]).invoke(history_for(conversation, name, model))
    except Exception as error:  # noqa: BLE001  # whatever it is
        return [*served.refused] or [repr(error)]
    return [*served.refused]


def test_the_clients_of_all_providers() -> None:
    """All of them, if possible: what one does not take may be missed where it is not installed."""
    missing = [name for name in CLIENTS if name not in INSTALLED]
    if missing:
        pytest.skip(f"not installed, so not tried: {', '.join(missing)}")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("scene", ["calls", "thinks", "refuses"])
@pytest.mark.parametrize("author", INSTALLED)
def test_every_model_goes_on_after_every_other(
    served: Providers, clients: dict[str, BaseChatModel], author: str, scene: str, *, streamed: bool
) -> None:
    """After tool calls, thoughts, citations, server tools and refusals; in the loop, and when the user asks again."""
    answer = noted(answer_of(served, clients[author], scene, streamed=streamed), author)
    assert len(answer.tool_calls) == (2 if scene == "calls" and author != "refuses" else 0)
    for conversation in (going_on(answer), going_on(answer, asks_again=False)):
        before = deepcopy(conversation)
        found = {name: refusals(served, name, model, conversation) for name, model in clients.items()}
        assert found == {name: [] for name in clients}
        assert conversation == before


@pytest.mark.parametrize("provider", [name for name in INSTALLED if name in {"responses", "anthropic", "bedrock"}])
def test_thoughts_go_back_to_the_model_that_had_them_and_to_no_other(served: Providers, provider: str) -> None:
    """Behind one client there may be servers that refuse each other's signatures, as this one does."""
    writer, other = (client_of(served, provider, f"anthropic.{name}") for name in ("writer", "other"))
    conversation = going_on(noted(answer_of(served, writer, "calls"), "writer"))
    assert refusals(served, "writer", writer, conversation) == []
    assert "They want two dates." in str(served.requests[-1])
    assert refusals(served, "other", other, conversation) == []
    assert "They want two dates." not in str(served.requests[-1])


@pytest.mark.parametrize("author", [name for name in INSTALLED if name != "mistral"])
def test_models_of_mistral_on_other_servers_have_its_rules(
    served: Providers, clients: dict[str, BaseChatModel], author: str
) -> None:
    """Known by their names: ids of nine letters and digits, and no user after a result."""
    model = client_of(served, "mistral", "Ministral-8B", client="openai")
    answer = noted(answer_of(served, clients[author], "calls"), author)
    assert refusals(served, "ministral", model, going_on(answer)) == []


class Of(FakeListChatModel):
    """A model of some provider."""

    provider: str = "anthropic"
    model: str = "m"
    responses: list[str] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return f"{self.provider}-chat"


HERE, THERE = Of(), Of(provider="acme")
THINKING = {"type": "thinking", "thinking": "hm", "signature": "xyz"}
CALL = {"name": "date_in", "args": {"city": "Rome"}, "id": "t1"}


def said(content: Any, author: str | None = None, provider: str | None = "anthropic", **fields: Any) -> AIMessage:
    metadata = {"model_provider": provider} if provider else {}
    answer = AIMessage(content, response_metadata=metadata, **fields)
    return noted(answer, author) if author else answer


@pytest.mark.parametrize(
    ("answer", "is_kept"),
    [
        (said([THINKING]), True),  # by the same provider's model, as far as anybody knows
        (said([THINKING], "m"), True),  # by the model itself
        (said([THINKING], "m", None), True),
        (said("hello", "n"), True),  # by another model of the provider, but with nothing private in it
        (said([THINKING], None, None), True),  # by nobody knows whom
        (said([THINKING, "hello"], "n"), False),
        (said("hello", "n", additional_kwargs={"reasoning_content": "hm"}), False),
        (said([{"type": "text", "text": "hello", "extras": {"signature": "xyz"}}], "n"), False),
        (said("hello", "n", None), False),  # by another model, of no known provider
        (said("hello", "m", "acme"), False),  # by a model that had the name before
        (said("hello", None, "acme"), False),
    ],
)
def test_who_wrote_an_answer_decides(answer: AIMessage, *, is_kept: bool) -> None:
    """The note of a router, or else the provider. What needs no change is passed on, not copied."""
    given = history_for([ASKED, answer], "m", HERE)
    assert given[0] is ASKED
    if is_kept:
        assert given[1] is answer
    else:
        assert given[1] == AIMessage("hello")


def test_a_model_of_unknown_kind_gets_what_others_wrote_as_text() -> None:
    """Such as one with fallbacks behind it; only the note of a router says what is its own."""
    model = HERE.with_fallbacks([THERE])
    own, other = said([THINKING, "hello"], "m"), said([THINKING, "hello"], "n")
    assert history_for([own, other], "m", model) == [own, AIMessage("hello")]


def test_a_router_inside_a_router_gets_the_conversation_as_it_is() -> None:
    """It knows which of its models wrote what, and does the same for them."""

    class Router(Of):
        @property
        def _llm_type(self) -> str:
            return "unirouter"

    answer = said([THINKING], "n", "acme")
    assert history_for([ASKED, answer], "m", Router())[1] is answer


def test_ids_are_replaced_where_the_model_does_not_take_them() -> None:
    """Of a call and of its results alike; the first of two equal ones stays. It is the same each time."""
    calls = [{**CALL, "id": called} for called in ("t1", "t1", "call:1", None)]
    results = [ToolMessage(f"{index}", tool_call_id=called) for index, called in enumerate(["t1", "t1", "call:1"])]
    conversation = [ASKED, said("", provider="acme", tool_calls=calls), *results]
    given: list[Any] = history_for(conversation, "m", HERE)
    ids = [call["id"] for call in given[1].tool_calls]
    assert ids[0] == "t1"
    assert len({*ids}) == 4
    assert [result.tool_call_id for result in given[2:]] == ids[:3]
    assert given[2] is results[0]
    assert given == history_for(conversation, "m", HERE)


def test_calls_that_were_not_understood_have_no_arguments() -> None:
    """If there is a result of them, the model has to see a call; else it must not."""
    broken = [{"name": "date_in", "args": "{", "id": called, "error": "no JSON"} for called in ("t1", "t2")]
    answer = said("hm", provider="acme", invalid_tool_calls=broken)
    given = history_for([ASKED, answer, ToolMessage("no JSON", tool_call_id="t1")], "m", HERE)
    assert given[1] == AIMessage("hm", tool_calls=[{**CALL, "args": {}}])


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (said([{"type": "refusal", "refusal": "no"}], provider="acme"), "no"),
        (said("", provider="acme", additional_kwargs={"refusal": "no"}), "no"),
        (said([THINKING], provider="acme"), None),
    ],
)
def test_refusals_are_text_and_empty_answers_are_left_out(answer: AIMessage, text: str | None) -> None:
    """No provider takes an answer that says nothing."""
    assert history_for([ASKED, answer], "m", HERE) == [ASKED, *([AIMessage(text)] if text else [])]


@pytest.mark.parametrize("of", [SystemMessage, HumanMessage, functools.partial(ToolMessage, tool_call_id="t1")])
def test_marks_for_caches_reach_the_clients_that_take_them(of: Any) -> None:
    """`cache_control` is Anthropic's, `cachePoint` is Bedrock's; others refuse them."""
    block = {"type": "text", "text": "hi"}
    marked = of([{**block, "cache_control": {"type": "ephemeral"}}, "ho", {"cachePoint": {"type": "default"}}])
    assert history_for([marked], "m", HERE)[0].content == marked.content[:2]
    assert history_for([marked], "m", Of(provider="bedrock"))[0].content == [block, "ho", marked.content[2]]
    assert history_for([marked], "m", THERE)[0].content == [block, "ho"]
    plain = of([block])
    assert history_for([plain], "m", THERE)[0] is plain


def test_settings_meant_for_another_provider_are_dropped() -> None:
    """But for those that all models take."""
    settings = {"temperature": 0, "prompt_cache_key": "k"}
    assert settings_for(settings, HERE, Of(model="n")) == settings
    assert settings_for(settings, HERE, THERE) == {"temperature": 0}
