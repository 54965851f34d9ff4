"""`stream_events(version="v3")`: the events of the model that answers, by the rules of every stream."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler, Callbacks
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import RunnableConfig
from langchain_fakes import Saying, part
from pydantic import BaseModel

from unirouter_integrations import UniRouter
from unirouter_integrations.errors import StreamCutError
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.testing import ChatFake

pytestmark = pytest.mark.filterwarnings("ignore:.*is in beta")


def chat(router: UniRouter, **poet: Any) -> ChatUniRouter:
    models: dict[str, Any] = {"abacus": ChatFake(model="abacus"), "poet": Saying(model="poet", **poet)}
    return ChatUniRouter(router=router, models=models | {"oracle": Saying(model="oracle", said="oracle sings")})


class Runs(BaseCallbackHandler):
    """Counts the runs that begin and those that end, well or not."""

    run_inline = True

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_chat_model_start(self, *_: Any, **__: Any) -> None:
        self.seen.append("start")

    def on_llm_end(self, *_: Any, **__: Any) -> None:
        self.seen.append("end")

    def on_llm_error(self, *_: Any, **__: Any) -> None:
        self.seen.append("error")


async def message_of(llm: ChatUniRouter, *, sync: bool, callbacks: Callbacks = None) -> AIMessage:
    config = RunnableConfig(callbacks=callbacks)
    if sync:
        message: AIMessage = llm.stream_events("poem", config, version="v3").output
    else:
        message = await (await llm.astream_events("poem", config, version="v3"))
    return message


both = pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])


@both
async def test_a_model_that_fails_before_its_first_content_is_replaced(router: UniRouter, *, sync: bool) -> None:
    """The message says which model gave it, and which one failed; each run begins and ends once."""
    llm, runs = chat(router, end=ConnectionError()), Runs()
    message = await message_of(llm, sync=sync, callbacks=[runs])
    assert message.text == "oracle sings "
    noted = message.response_metadata["unirouter"]
    assert (noted["model"], [each["model"] for each in noted["excluded"]]) == ("oracle", ["poet"])
    assert runs.seen == ["start", "error", "start", "end"]


@both
async def test_nothing_is_asked_before_the_stream_is_read(router: UniRouter, *, sync: bool) -> None:
    """As with a chat model; however it is read, and by how many."""
    llm = chat(router, said="the poet sings")
    poet = llm.models["poet"]
    if sync:
        stream = llm.stream_events("poem", version="v3")
        assert poet.n_calls == 0
        assert ("".join(stream.text), str(stream.text), stream.output.text) == ("the poet sings ",) * 3
        assert [event["event"] for event in stream][-1] == "message-finish"
    else:
        streamed = await llm.astream_events("poem", version="v3")
        assert poet.n_calls == 0
        texts = await asyncio.gather(streamed.text, streamed.text, streamed.output)
        assert [getattr(each, "text", each) for each in texts] == ["the poet sings "] * 3
        assert [event["event"] async for event in streamed][-1] == "message-finish"
    assert poet.n_calls == 1


@both
@pytest.mark.parametrize("end", [None, ConnectionError()], ids=["cut", "broken"])
async def test_a_stream_that_is_cut_raises_and_has_no_message(router: UniRouter, end: Any, *, sync: bool) -> None:
    """With the text so far. Its model failed, and no other one is asked."""
    llm = chat(router, said="the poet sings", end=end)
    for _ in range(5):
        with pytest.raises(StreamCutError if end is None else ConnectionError) as caught:
            await message_of(llm, sync=sync)
        assert caught.value.partial_text == "the poet sings "  # type: ignore[attr-defined]
    assert llm.models["oracle"].n_calls == 0
    assert (await message_of(llm, sync=sync)).text == "oracle sings "  # the other one rests


async def test_a_stream_that_is_closed_closes_that_of_its_model(router: UniRouter) -> None:
    """At once; and it says nothing of the model's health."""

    class Endless(ChatFake):
        closed: int = 0

        async def _astream(self, *_: Any, **__: Any) -> Any:
            try:
                while True:
                    yield part("on ")
                    await asyncio.sleep(0)
            finally:
                self.closed += 1

    llm = chat(router)
    llm.models["poet"] = endless = Endless(model="poet")
    for _ in range(5):
        async with await llm.astream_events("poem", version="v3") as stream:
            assert await anext(aiter(stream.text)) == "on "
    assert endless.closed == 5
    async with await llm.astream_events("poem", version="v3") as stream:
        assert await anext(aiter(stream.text)) == "on "
    async with await llm.astream_events("poem", version="v3"):
        pass  # it is closed before it is read
    assert endless.closed == 6


def test_events_of_calls_of_tools_are_content(router: UniRouter) -> None:
    """A model that breaks within one is not replaced."""

    class Calling(ChatFake):
        def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
            call = {"name": "look", "args": '{"at": ', "id": "1", "index": 0, "type": "tool_call_chunk"}
            yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[call]))  # type: ignore[list-item]
            raise ConnectionError

    llm = chat(router)
    llm.models["poet"] = Calling(model="poet")
    with pytest.raises(ConnectionError):
        _ = llm.stream_events("poem", version="v3").output
    assert llm.models["oracle"].n_calls == 0


@both
async def test_a_refused_stream_is_a_refusal(router: UniRouter, *, sync: bool) -> None:
    """If that is asked for, the next model answers."""
    llm = chat(router, end="content_filter")
    assert (await message_of(llm, sync=sync)).response_metadata["finish_reason"] == "content_filter"
    llm = llm.model_copy(update={"fallback": "refusals"})
    message = await message_of(llm, sync=sync)
    assert message.text == "oracle sings "
    assert [each["kind"] for each in message.response_metadata["unirouter"]["excluded"]] == ["refused"]


async def test_forms_have_no_such_stream(router: UniRouter) -> None:
    """Which is not taken as a fault of the models."""

    class Form(BaseModel):
        text: str

    llm = chat(router)
    filled: Any = llm.with_structured_output(Form)
    with pytest.raises(NotImplementedError, match="a form is none"):
        filled.stream_events("poem", version="v3")
    with pytest.raises(NotImplementedError, match="a form is none"):
        await filled.astream_events("poem", version="v3")
    assert llm.models["poet"].n_calls == 0
