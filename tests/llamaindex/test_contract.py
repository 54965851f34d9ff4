"""The same checks on a bare LLM and on the router around it: whoever holds one may hold the other."""

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.tools import FunctionTool
from llamaindex_fakes import BadRequestError, Fake, Watch, fakes, watched, word_counter
from pydantic import BaseModel

from unirouter_integrations import UniRouter
from unirouter_integrations.llamaindex import UniRouterLLM

MESSAGES = [ChatMessage("Be brief.", role="system"), ChatMessage("a poem")]
ANSWER = "poet: a poem"
CHAT, COMPLETION = ("LLMChatStartEvent", "LLMChatEndEvent"), ("LLMCompletionStartEvent", "LLMCompletionEndEvent")
TEMPLATE = PromptTemplate("Context: {context_str}\nQuestion: {query_str}")


class Note(BaseModel):
    """Write something down."""

    text: str


def note(text: str) -> str:
    """Write something down."""
    return text


TOOLS = [FunctionTool.from_defaults(note)]


@pytest.fixture(params=["alone", "routed"])
def llm(request: pytest.FixtureRequest, router: UniRouter) -> FunctionCallingLLM:
    """The poet, or the router around it and two others; every question here is one for the poet."""
    return Fake(model_name="poet") if request.param == "alone" else UniRouterLLM(router=router, models=fakes())


@pytest.fixture
def poet(llm: FunctionCallingLLM) -> Fake:
    """The one who answers either way."""
    found = llm.models["poet"] if isinstance(llm, UniRouterLLM) else llm
    assert isinstance(found, Fake)
    return found


@pytest.fixture
def watch() -> Iterator[Watch]:
    with watched() as found:
        yield found


async def collected(stream: Any) -> list[Any]:
    return [part async for part in await stream] if inspect.iscoroutine(stream) else list(stream)


def pairs(watch: Watch) -> list[str]:
    """The model of each event that starts or ends a call."""
    return [event.model_dict["model_name"] if "Start" in event.class_name() else "" for event in calls(watch)]


def calls(watch: Watch) -> list[Any]:
    return [event for event in watch.events if event.class_name() in {*CHAT, *COMPLETION}]


async def test_answers_are_the_models(llm: FunctionCallingLLM, poet: Fake) -> None:
    """Plain and awaited, chat and completion: its text, its raw response, its own additions."""
    answers: list[Any] = [llm.chat(MESSAGES), await llm.achat(MESSAGES)]
    assert [answer.message.content for answer in answers] == [ANSWER] * 2
    completions: list[Any] = [
        llm.complete("a poem"),
        await llm.acomplete("a poem"),
        llm.complete("a poem", formatted=True),
    ]
    assert [answer.text for answer in completions] == [ANSWER] * 3
    for answer in (*answers, *completions):
        assert any(answer.raw is raw for raw in poet.raws)
        assert answer.additional_kwargs["own"] == "poet"


async def test_streams_come_in_the_models_parts(llm: FunctionCallingLLM, poet: Fake) -> None:
    """Generators, the async ones awaited once; the parts and the raw responses are the model's."""
    assert inspect.isgenerator(llm.stream_chat(MESSAGES))
    assert inspect.isasyncgen(await llm.astream_chat(MESSAGES))
    assert inspect.isgenerator(llm.stream_complete("a poem"))
    assert inspect.isasyncgen(await llm.astream_complete("a poem"))
    for stream in (
        llm.stream_chat(MESSAGES),
        llm.astream_chat(MESSAGES),
        llm.stream_complete("a poem"),
        llm.astream_complete("a poem"),
    ):
        parts = await collected(stream)
        assert [part.delta for part in parts] == ["poet: ", "a ", "poem"]
        assert all(any(part.raw is raw for raw in poet.raws) for part in parts)
    last = parts[-1]
    assert last.text == ANSWER


@pytest.mark.parametrize("kind", ["chat", "complete"])
@pytest.mark.parametrize("form", ["", "a", "stream_", "astream_"])
async def test_each_call_is_one_pair_of_events(llm: FunctionCallingLLM, watch: Watch, kind: str, form: str) -> None:
    """Under the real model's name, however it is called; and one of the older callbacks."""
    counter = word_counter()
    llm.callback_manager = CallbackManager([counter])
    given: Any = MESSAGES if kind == "chat" else "a poem"
    found = getattr(llm, f"{form}{kind}")(given)
    if "stream" in form:
        await collected(found)
    elif form:
        await found
    assert watch.names(*CHAT, *COMPLETION) == list(CHAT if kind == "chat" else COMPLETION)
    assert pairs(watch) == ["poet", ""]
    (event,) = counter.llm_token_counts
    assert (event.prompt_token_count, event.completion_token_count) == (4 if kind == "chat" else 2, 3)


async def test_templates_are_filled_in_as_the_model_has_it(llm: FunctionCallingLLM, poet: Fake) -> None:
    """Predicted and streamed, with the model's own system prompt; one pair of events each."""
    poet.system_prompt = "You are a poet."
    sentence = "poet: Context: a long text\nQuestion: a poem"
    given = {"context_str": "a long text", "query_str": "a poem"}
    assert llm.predict(TEMPLATE, **given) == await llm.apredict(TEMPLATE, **given) == sentence
    assert "".join(llm.stream(TEMPLATE, **given)) == sentence
    assert "".join([token async for token in await llm.astream(TEMPLATE, **given)]) == sentence
    assert all(messages[0].content == "You are a poet." for messages in poet.sent)
    partial = TEMPLATE.partial_format(query_str="a poem")
    assert llm.predict(partial, context_str="a long text") == sentence
    chat = ChatPromptTemplate.from_messages([("system", "{context_str}"), ("user", "{query_str}")])
    assert llm.predict(chat, **given) == ANSWER
    assert llm.predict(PromptTemplate("a {what}"), what="poem") == ANSWER


async def test_templates_too_are_one_pair_of_events(llm: FunctionCallingLLM, watch: Watch) -> None:
    """Start and end of the prediction included."""
    llm.predict(TEMPLATE, context_str="text", query_str="a poem")
    await llm.apredict(TEMPLATE, context_str="text", query_str="a poem")
    assert pairs(watch) == ["poet", ""] * 2
    assert (
        watch.names("LLMPredictStartEvent", "LLMPredictEndEvent")
        == [
            "LLMPredictStartEvent",
            "LLMPredictEndEvent",
        ]
        * 2
    )


async def test_tools_are_called_as_the_model_calls_them(llm: FunctionCallingLLM) -> None:
    """In all four forms; the history that was given stays as it was."""
    history = [ChatMessage("Be brief.", role="system")]
    answers = [
        llm.chat_with_tools(TOOLS, "a poem", history),
        await llm.achat_with_tools(TOOLS, user_msg=ChatMessage("a poem"), chat_history=history),
        (await collected(llm.stream_chat_with_tools(TOOLS, "a poem", chat_history=list(history))))[-1],
        (await collected(llm.astream_chat_with_tools(TOOLS, "a poem", chat_history=list(history))))[-1],
        llm.chat_with_tools(TOOLS, chat_history=list(MESSAGES), tool_required=True),
    ]
    for answer in answers:
        (call,) = llm.get_tool_calls_from_response(answer)
        assert (call.tool_name, call.tool_kwargs) == ("note", {"text": ANSWER})
    called = llm.predict_and_call(TOOLS, "a poem")
    acalled = await llm.apredict_and_call(TOOLS, "a poem")
    assert called.response == acalled.response == ANSWER


@pytest.mark.filterwarnings("ignore:The `json` method is deprecated")  # LlamaIndex's StructuredLLM calls it
async def test_forms_are_filled_in_as_the_model_does(llm: FunctionCallingLLM) -> None:
    """structured_predict in all forms, and as_structured_llm."""
    filled = Note(text="poet: Context: text\nQuestion: a poem")
    given = {"context_str": "text", "query_str": "a poem"}
    assert llm.structured_predict(Note, TEMPLATE, **given) == filled
    assert await llm.astructured_predict(Note, TEMPLATE, **given) == filled
    assert (await collected(llm.stream_structured_predict(Note, TEMPLATE, **given)))[-1] == filled
    assert (await collected(llm.astream_structured_predict(Note, TEMPLATE, **given)))[-1] == filled
    structured = llm.as_structured_llm(Note)
    assert structured.chat(MESSAGES).raw == (await structured.achat(MESSAGES)).raw == Note(text=ANSWER)
    assert structured.complete("a poem").raw == Note(text=ANSWER)
    assert [*structured.stream_chat(MESSAGES)][-1].raw == Note(text=ANSWER)
    assert Note.model_validate_json(structured.predict(TEMPLATE, **given)) == filled
    assert Note.model_validate_json(await structured.apredict(TEMPLATE, **given)) == filled


async def test_errors_pass_through(llm: FunctionCallingLLM, poet: Fake) -> None:
    """As they came, from every form, where no other model could do better."""
    poet.error = BadRequestError("temperature: 7")
    for call in (llm.chat, llm.stream_chat):
        with pytest.raises(BadRequestError, match="temperature: 7"):
            list(call(MESSAGES))
    with pytest.raises(BadRequestError):
        await llm.achat(MESSAGES)
    with pytest.raises(BadRequestError):
        await collected(llm.astream_chat(MESSAGES))
    with pytest.raises(BadRequestError):
        llm.complete("a poem")
    with pytest.raises(BadRequestError):
        llm.predict(TEMPLATE, context_str="", query_str="a poem")
    with pytest.raises(BadRequestError):
        llm.structured_predict(Note, TEMPLATE, context_str="", query_str="a poem")


async def test_a_stream_closed_early_closes_the_models(llm: FunctionCallingLLM, poet: Fake) -> None:
    """At once, sync and async."""
    stream = llm.stream_chat(MESSAGES)
    next(stream)
    stream.close()
    assert poet.closed == ["poet"]
    astream: Any = await llm.astream_chat(MESSAGES)
    await anext(astream)
    await astream.aclose()
    await asyncio.sleep(0.01)  # LlamaIndex's own wrapper around the model's stream leaves that to the event loop
    assert poet.closed == ["poet", "poet"]


def test_it_is_an_llm_that_calls_functions(llm: FunctionCallingLLM) -> None:
    """And its metadata report that."""
    assert isinstance(llm, LLM)
    metadata = llm.metadata
    assert (metadata.is_chat_model, metadata.is_function_calling_model) == (True, True)
    assert (metadata.context_window, metadata.num_output) == (4000, 100)
