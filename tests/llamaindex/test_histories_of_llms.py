"""Conversations that move from one provider's LLM to another's: each gets what it takes."""

import importlib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import pytest
from history_server import Providers, providers
from llama_index.core.base.llms.types import (
    CacheControl,
    CachePoint,
    CitationBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms import ChatMessage, MessageRole, MockLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.tools import FunctionTool
from provider_clients import AWS, is_installed

from unirouter_integrations.llamaindex._history import history_for

KEY: dict[str, Any] = {"api_key": "k", "max_retries": 0}
# The package below llama_index.llms and class of each client, the name of its URL, its model, and its settings.
CLIENTS: dict[str, tuple[str, str, str, str, dict[str, Any]]] = {
    "openai": ("openai", "OpenAI", "api_base", "gpt-4o", KEY),
    "responses": ("openai", "OpenAIResponses", "api_base", "gpt-5", KEY),
    "anthropic": ("anthropic", "Anthropic", "base_url", "claude-sonnet-4-5", KEY),
    "google": ("google_genai", "GoogleGenAI", "", "gemini-2.5-flash", {**KEY, "context_window": 1000}),
    "mistral": ("mistralai", "MistralAI", "endpoint", "mistral-small-latest", KEY),
    "ollama": ("ollama", "Ollama", "base_url", "m", {"context_window": 1000}),
    "bedrock": ("bedrock_converse", "BedrockConverse", "endpoint_url", "anthropic.claude-sonnet-4-20250514-v1:0", AWS),
    "groq": ("groq", "Groq", "api_base", "openai/gpt-oss-20b", KEY),
}


def works(client: str) -> bool:
    if not is_installed(f"llama_index.llms.{CLIENTS[client][0]}"):
        return False
    if client != "anthropic":
        return True
    version: str = importlib.import_module("anthropic").__version__
    return version.startswith("0.")  # LlamaIndex's client breaks with later ones


WORKING = [name for name in CLIENTS if works(name)]
ASKED = ChatMessage("Which date is it in Rome and Oslo?")

pytestmark = pytest.mark.filterwarnings("ignore")  # of clients that CI does not have


def date_in(city: str) -> str:
    """The date in a city."""
    return f"today in {city}"


TOOLS = [FunctionTool.from_defaults(date_in)]


@pytest.fixture(scope="module")
def served() -> Iterator[Providers]:
    with providers() as serving:
        yield serving


@pytest.fixture(scope="module")
def clients(served: Providers) -> dict[str, FunctionCallingLLM]:
    """One model of each provider whose client works."""
    return {name: client_of(served, name) for name in WORKING}


def client_of(served: Providers, provider: str, model: str = "", client: str | None = None) -> FunctionCallingLLM:
    package, name, at, named, settings = CLIENTS[client or provider]
    url: dict[str, Any] = {at: served.of(provider)}
    if provider == "google":
        url = {"http_options": importlib.import_module("google.genai.types").HttpOptions(base_url=url[at])}
    made = getattr(importlib.import_module(f"llama_index.llms.{package}"), name)
    answer: FunctionCallingLLM = made(**{"model": model or named, **url, **settings})
    return answer


def conversation_with(
    served: Providers, author: str, model: FunctionCallingLLM, scene: str, *, streamed: bool = False
) -> list[ChatMessage]:
    """An answer, as a router hands it on, with the results of its tool calls as LlamaIndex's agents write them."""
    served.scene = scene
    if streamed:
        response = [*model.stream_chat_with_tools(TOOLS, "hi", allow_parallel_tool_calls=True)][-1]
    else:
        response = model.chat_with_tools(TOOLS, "hi", allow_parallel_tool_calls=True)
    calls = model.get_tool_calls_from_response(response, error_on_no_tool_call=False)
    assert bool(calls) == (scene == "calls")
    kwargs = {**response.message.additional_kwargs, "unirouter": {"model": author}}
    answer = response.message.model_copy(update={"additional_kwargs": kwargs})
    return [ASKED, answer, *(result_of(call.tool_id) for call in calls)]


def result_of(called: str) -> ChatMessage:
    return ChatMessage("today", role=MessageRole.TOOL, additional_kwargs={"tool_call_id": called})


def refusals(served: Providers, name: str, model: FunctionCallingLLM, conversation: Sequence[ChatMessage]) -> list[str]:
    """Why a model cannot go on with a conversation: the error of its client, or what its provider refuses."""
    served.refused.clear()
    served.scene = "answers"
    try:
        model.chat_with_tools(TOOLS, chat_history=history_for(conversation, name, model))
    except Exception as error:  # noqa: BLE001  # whatever it is
        return [*served.refused] or [repr(error)]
    return [*served.refused]


def test_the_clients_of_all_providers() -> None:
    """All of them, if possible: what one does not take may be missed where it is not installed."""
    missing = [name for name in CLIENTS if name not in WORKING]
    if missing:
        pytest.skip(f"not installed, so not tried: {', '.join(missing)}")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("scene", ["calls", "thinks", "refuses"])
@pytest.mark.parametrize("author", WORKING)
def test_every_model_goes_on_after_every_other(
    served: Providers, clients: dict[str, FunctionCallingLLM], author: str, scene: str, *, streamed: bool
) -> None:
    """After tool calls, thoughts, citations and refusals; in the loop, and when the user asks again."""
    if (author, scene, streamed) == ("mistral", "thinks", False):
        pytest.skip("LlamaIndex's client of Mistral reads no thoughts but in streams")
    in_loop = conversation_with(served, author, clients[author], scene, streamed=streamed)
    asked_again = [*in_loop, ChatMessage("And in words?")]
    for conversation in (in_loop, asked_again) if scene == "calls" else (asked_again,):
        before = deepcopy(conversation)
        found = {name: refusals(served, name, model, conversation) for name, model in clients.items()}
        assert found == {name: [] for name in clients}
        assert conversation == before


@pytest.mark.parametrize("provider", [name for name in WORKING if name in {"anthropic", "bedrock"}])
def test_thoughts_go_back_to_the_model_that_had_them_and_to_no_other(served: Providers, provider: str) -> None:
    """Providers refuse a signature that is not their model's."""
    model = client_of(served, provider)
    conversation = conversation_with(served, "writer", model, "calls")
    for name in ("writer", "other"):
        assert refusals(served, name, model, conversation) == []
        assert ("They want two dates." in str(served.requests[-1])) == (name == "writer")


@pytest.mark.parametrize("author", [name for name in WORKING if name != "mistral"])
def test_models_of_mistral_on_other_servers_have_its_rules(
    served: Providers, clients: dict[str, FunctionCallingLLM], author: str
) -> None:
    """Known by their names: ids of nine letters and digits, and no user after a result."""
    like = importlib.import_module("llama_index.llms.openai_like").OpenAILike
    model = like(
        model="Ministral-8B",
        api_base=served.of("mistral"),
        is_chat_model=True,
        is_function_calling_model=True,
        **KEY,
    )
    conversation = [*conversation_with(served, author, clients[author], "calls"), ChatMessage("And in words?")]
    assert refusals(served, "ministral", model, conversation) == []


@pytest.mark.parametrize("author", WORKING if "google" in WORKING else [])
def test_calls_that_gemini_3_did_not_write_go_to_it_unsigned(
    served: Providers, clients: dict[str, FunctionCallingLLM], author: str
) -> None:
    """It refuses calls without a signature, and signatures that are not its own."""
    conversation = conversation_with(served, author, clients[author], "calls")
    assert refusals(served, "gemini", client_of(served, "google", "gemini-3-pro-preview"), conversation) == []


class Anthropic(MockLLM):
    """A model that looks like one of Anthropic's."""


class Bedrock(MockLLM):
    """A model that looks like one of Bedrock's."""


class Google(MockLLM):
    """A model that looks like one of Google's."""


class Router(MockLLM):
    """A model that looks like a router inside the router."""

    __module__ = "unirouter_integrations.llamaindex._llm"


for looks in (Anthropic, Bedrock, Google):
    looks.__module__ = f"llama_index.llms.{looks.__name__.lower()}.base"
HERE = MockLLM()
TEXT, THOUGHT = TextBlock(text="hello"), ThinkingBlock(content="hm", additional_information={"signature": "xyz"})
CALL = ToolCallBlock(tool_call_id="t1", tool_name="date_in", tool_kwargs={"city": "Rome"})


def said(*blocks: Any, author: str | None = "other", **kwargs: Any) -> ChatMessage:
    noted = {"unirouter": {"model": author}} if author else {}
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[*blocks], additional_kwargs={**noted, **kwargs})


def given(*messages: ChatMessage, model: Any = HERE) -> list[ChatMessage]:
    return history_for([ASKED, *messages], "m", model)[1:]


def test_what_a_model_wrote_itself_and_what_anybody_takes_is_passed_on() -> None:
    """As the same objects, not copied."""
    own = said(THOUGHT, CALL, author="m", tool_calls=["as its client writes them"])
    for message in (own, said(TEXT, CALL), said(TEXT, author=None), ChatMessage("hi"), result_of("t1")):
        assert given(message)[0] is message


@pytest.mark.parametrize("author", ["other", None])
def test_what_others_wrote_becomes_text_and_calls(author: str | None) -> None:
    """Also if nobody noted who wrote it: LlamaIndex's answers do not name their provider."""
    cited = CitationBlock(cited_content=TextBlock(text="a"), source="a", title="a", additional_location_info={})
    image = ImageBlock(image=b"a", image_mimetype="image/png")
    answer = said(THOUGHT, TEXT, cited, image, CALL, author=author, tool_calls=["more"], cache_control={})
    (taken,) = given(answer)
    assert (taken.blocks, taken.additional_kwargs) == ([TEXT, CALL], {})


def test_a_router_inside_a_router_gets_the_conversation_as_it_is() -> None:
    """It knows which of its models wrote what, and does the same for them."""
    answer = said(THOUGHT, TEXT)
    assert given(answer, model=Router(max_tokens=None))[0] is answer


def test_signed_thoughts_stay_where_they_are_valid() -> None:
    """If nobody noted who wrote them: some providers want them back in a loop of tool calls."""
    answer = said(THOUGHT, CALL, author=None)
    assert given(answer, model=Anthropic(max_tokens=None))[0] is answer
    assert given(answer, model=Google(max_tokens=None))[0].blocks == [CALL]
    of_google = said(ThinkingBlock(content="hm"), CALL, author=None, thought_signatures=[None, b"xyz"])
    assert given(of_google, model=Google(max_tokens=None)) == [of_google]
    assert given(of_google)[0].blocks == [CALL]


@pytest.mark.parametrize("arguments", ['{"city": "Rome"}', {"city": "Rome"}])
@pytest.mark.parametrize(
    "form",
    [
        lambda arguments: {"id": "t1", "function": {"name": "date_in", "arguments": arguments}},
        lambda arguments: {"id": "t1", "name": "date_in", "input": arguments},
        lambda arguments: {"toolUseId": "t1", "name": "date_in", "input": arguments},
        lambda arguments: {"id": "t1", "name": "date_in", "args": arguments},
    ],
)
def test_calls_that_are_no_blocks_become_some(form: Any, arguments: Any) -> None:
    """As older clients of all providers write them."""
    assert given(said(tool_calls=[form(arguments)]))[0].blocks == [CALL]


@pytest.mark.parametrize("arguments", ["{", "[1]", ""])
def test_arguments_that_are_no_object_are_left_out(arguments: str) -> None:
    """The call stays, for there is a result of it."""
    broken = CALL.model_copy(update={"tool_kwargs": arguments})
    assert given(said(broken))[0].blocks == [CALL.model_copy(update={"tool_kwargs": {}})]


def test_ids_are_made_where_calls_have_none_or_the_same() -> None:
    """Their results have the names of the tools, in the order of the calls."""
    nameless = CALL.model_copy(update={"tool_call_id": None})
    twice = [said(nameless, nameless), result_of("date_in"), result_of("date_in")]
    taken: list[Any] = given(*twice, *twice)
    ids = [block.tool_call_id for message in taken for block in message.blocks if isinstance(block, ToolCallBlock)]
    assert ids[0] == "date_in"
    assert len({*ids}) == 4
    results = [message for message in taken if message.role == MessageRole.TOOL]
    assert [result.additional_kwargs["tool_call_id"] for result in results] == ids
    assert taken == given(*twice, *twice)


def test_answers_that_say_nothing_are_left_out() -> None:
    """No provider takes them."""
    assert given(said(THOUGHT), said(TextBlock(text="")), said(author="m"), said(author=None)) == []


@pytest.mark.parametrize(
    ("model", "kept"), [(HERE, None), (Anthropic(max_tokens=None), "ephemeral"), (Bedrock(max_tokens=None), "default")]
)
@pytest.mark.parametrize("marked_for", ["ephemeral", "default"])
def test_cache_points_are_as_the_client_takes_them(model: MockLLM, kept: str | None, marked_for: str) -> None:
    """Only two take any, each its own; Bedrock's would change the user's."""
    message = ChatMessage([TEXT, CachePoint(cache_control=CacheControl(type=marked_for))])
    (taken,) = given(message, model=model)
    assert [block.cache_control.type for block in taken.blocks if isinstance(block, CachePoint)] == [kept] * bool(kept)
    assert (taken is message) == (kept == marked_for)


def test_the_lists_of_messages_are_not_googles_to_change() -> None:
    """Its client joins neighbours of one role in the first one's."""
    message = ChatMessage("hi")
    (taken,) = given(message, model=Google(max_tokens=None))
    assert taken == message
    assert taken.blocks is not message.blocks
