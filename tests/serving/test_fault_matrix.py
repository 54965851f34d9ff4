"""Every fault of a model, in every way to call every face, in the default settings: another model answers.

Here models are fakes whose streams begin with a part that holds no text, as those of OpenAI do. The same with real
clients, and more faults and ways: `bash benchmarks/faults.sh`.
"""

import asyncio
import inspect
import json
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import pytest

pytest.importorskip("langchain.agents")
pytest.importorskip("llama_index.core")

from fault_faces import FACES
from fault_server import Outcome, Way, answer_of
from langchain_core.language_models.chat_models import agenerate_from_stream
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from llama_index.core.llms import ChatMessage, ChatResponse
from llama_index.core.llms.callbacks import llm_chat_callback
from llamaindex_fakes import Fake
from pydantic import Field

from unirouter_integrations.serving import Health, ModelRegistry
from unirouter_integrations.testing import ChatFake

NAMES = ("best", "second", "third")
QUESTION = "poem number 7"


class StatusError(Exception):
    """An error of a client, with a status and perhaps a code."""

    def __init__(self, status: int, code: str | None = None, **headers: str) -> None:
        super().__init__(f"Error code: {status}")
        self.status_code, self.code, self.headers = status, code, headers


class APIError(Exception):
    """An error event in a stream, as the client of OpenAI raises it."""


End = Exception | Literal["stop", "content_filter", "cut", "hang"]


class Fault(NamedTuple):
    """How a model fails.

    Attributes:
        said: The text before it fails; None if not even a first part comes.
        end: The error that is raised, a finish reason, an end without one, or none.
        outcome: What the caller should see, as of `fault_server.Fault`.
        blames: Whether the model is unwell.
        settings: The settings of the face.
    """

    said: str | None
    end: End
    outcome: Outcome = "answered"
    blames: bool = True
    settings: dict[str, Any] = {}  # noqa: RUF012


CALLS = 150
PATIENCE = 5.0  # seconds that a hang lasts; the timeouts end it long before
TIMEOUTS = {"timeout": 0.05, "first_token_timeout": 0.05}
ON_REFUSALS: dict[str, Any] = {"blames": False, "settings": {"fallback": "refusals"}}
CUT = ConnectionError("peer closed connection without sending complete message body (incomplete chunked read)")

BEFORE: dict[str, Fault] = {
    "400": Fault(None, StatusError(400), "raised", blames=False),
    "422": Fault(None, StatusError(422), "raised", blames=False),
    "400 context overflow": Fault(None, StatusError(400, "context_length_exceeded"), blames=False),
    **{str(status): Fault(None, StatusError(status)) for status in (401, 402, 403, 404, 408, 409, 429, 500, 503, 529)},
    "429 quota spent": Fault(None, StatusError(429, "insufficient_quota")),
    "429 for a year": Fault(None, StatusError(429, **{"retry-after": "31536000"})),
    "refused": Fault(None, ConnectionRefusedError()),
    "timeout": Fault(None, TimeoutError()),
    "null choices": Fault(None, TypeError("Received response with null value for 'choices'.")),
    "empty choices": Fault(None, IndexError("list index out of range")),
    "null message": Fault(None, AttributeError("'NoneType' object has no attribute 'get'")),
    "html": Fault(None, ValueError("Unexpected response type. Expected a dict, got str: '<html>...'")),
    "bad UTF-8": Fault(None, UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")),
    "half JSON": Fault(None, json.JSONDecodeError("Unterminated string starting at", '{"', 1)),
    "hang": Fault(None, "hang", settings=TIMEOUTS),
}
PLAIN: dict[str, Fault] = {
    **BEFORE,
    "empty": Fault("", "stop", blames=False),
    "content filter": Fault("", "content_filter", **ON_REFUSALS),
}
STREAMED: dict[str, Fault] = {
    **BEFORE,
    "error event": Fault(None, APIError("The server had an error.")),
    "role, cut": Fault("", CUT),
    "role, error event": Fault("", APIError("The server had an error.")),
    "role, half JSON": Fault("", json.JSONDecodeError("Unterminated string starting at", '{"', 1)),
    "role, hang": Fault("", "hang", settings=TIMEOUTS),
    "role, end": Fault("", "stop", blames=False),
    "role, no finish": Fault("", "cut"),
    "text, cut": Fault("best answers", CUT, "cut"),
    "text, error event": Fault("best answers", APIError("The server had an error."), "cut"),
    "text, hang": Fault("best answers", "hang", "cut", settings=TIMEOUTS),
    "text, no finish": Fault("best answers", "cut", "cut"),
    "content filter": Fault("", "content_filter", **ON_REFUSALS),
}

Part = tuple[str, str | None] | Literal["hang"]
"""A part of a stream: its text and the finish reason; or no further part."""


class Script:
    """What a model says when it is called.

    Attributes:
        fault: What is wrong with each model, by its name.
        calls: How often each was called.
        released: Set when the test ends, which ends what hangs.
        waited: Whether somebody waited for a model that hangs as if there were no timeout.
    """

    def __init__(self, fault: Callable[[str], Fault | None] = lambda name: None) -> None:
        self.fault = fault
        self.calls: Counter[str] = Counter()
        self.released = threading.Event()
        self.waited = False

    def hang(self) -> None:
        """Say no more until the test ends."""
        self.released.wait(PATIENCE)
        self.waited = not self.released.is_set()
        raise ConnectionError

    async def ahang(self) -> None:
        """Async version of `hang`."""
        await asyncio.sleep(PATIENCE)
        self.waited = True
        raise ConnectionError

    def parts(self, name: str) -> Iterator[Part]:
        self.calls[name] += 1
        fault = self.fault(name) or Fault(answer_of(name, QUESTION), "stop")
        if fault.said is not None:
            yield "", None
            yield from ((f"{word} ", None) for word in fault.said.split())
        if isinstance(fault.end, Exception):
            raise fault.end
        if fault.end in {"stop", "content_filter"}:
            yield "", str(fault.end)
        elif fault.end == "hang":
            yield "hang"


class Chat(ChatFake):
    """Speaks as a script says, in the form of OpenAI's client."""

    script: Any = Field(exclude=True)

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        for part in self.script.parts(self.model):
            if part == "hang":
                self.script.hang()
            yield _chunk(*part)

    async def _astream(self, *_: Any, **__: Any) -> AsyncIterator[ChatGenerationChunk]:
        for part in self.script.parts(self.model):
            if part == "hang":
                await self.script.ahang()
            yield _chunk(*part)

    async def _agenerate(self, *_: Any, **__: Any) -> ChatResult:
        return await agenerate_from_stream(self._astream())


def _chunk(text: str, finish: str | None) -> ChatGenerationChunk:
    reported = {"model_provider": "openai"} | ({"finish_reason": finish} if finish else {})
    return ChatGenerationChunk(message=AIMessageChunk(content=text, response_metadata=reported))


class Llm(Fake):
    """Speaks as a script says, in the form of OpenAI's client."""

    script: Any = Field(exclude=True)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        return [*self._responses()][-1]

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        return [response async for response in self._aresponses()][-1]

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **_: Any) -> Any:
        return self._responses()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **_: Any) -> Any:
        return self._aresponses()

    def _responses(self) -> Iterator[ChatResponse]:
        said = ""
        for part in self.script.parts(self.model_name):
            if part == "hang":
                self.script.hang()
            said += part[0]
            yield _response(said, *part)

    async def _aresponses(self) -> AsyncIterator[ChatResponse]:
        said = ""
        for part in self.script.parts(self.model_name):
            if part == "hang":
                await self.script.ahang()
            said += part[0]
            yield _response(said, *part)


def _response(said: str, delta: str, finish: str | None) -> ChatResponse:
    raw = {"choices": [{"delta": {"content": delta}, "finish_reason": finish}]}
    return ChatResponse(message=ChatMessage(said, role="assistant"), delta=delta, raw=raw)


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    yield script
    script.released.set()


def registry_of(way: Way, script: Script, clock: Callable[[], float] = lambda: 0.0) -> ModelRegistry:
    """The models, healthy so far, on a clock that stands still."""
    if way.framework == "langchain":
        models: dict[str, Any] = {name: Chat(model=name, script=script) for name in NAMES}
    else:
        models = {name: Llm(model_name=name, script=script) for name in NAMES}
    registry = ModelRegistry(models)
    registry.health = Health(clock)
    return registry


async def outcome(way: Way, face: Any) -> str:
    """What comes of a call: the model whose whole answer the caller gets, or "wrong", or "raised"."""
    try:
        found = way.ask(face, QUESTION)
        if inspect.isawaitable(found):
            found = await found
    except Exception:  # noqa: BLE001  # which one is not the point here
        return "raised"
    texts = {text.strip() for text in (found if isinstance(found, list) else [found])}
    return next((name for name in NAMES if texts == {answer_of(name, QUESTION)}), "wrong")


LEFT_OUT = ("tools", "form", "complete", "acomplete", "stream_complete", "astream_complete")
WAYS = {
    f"{name}.{how}": way for name, ways in FACES.items() for how, way in ways.items() if not how.startswith(LEFT_OUT)
}
TWO_WAYS = {
    name: way
    for name, way in WAYS.items()
    if name.split(".")[1] in {"invoke", "stream", "chat", "stream_chat", "query", "query, streaming"}
}


QUICK = {"400", "503", "429 quota spent", "hang", "empty", "role, cut", "role, end", "text, cut", "text, no finish"}


def cells(ways: dict[str, Way], quick_ways: Collection[str] = ()) -> list[Any]:
    """The ways with all their faults. Those that the others stand for are slow tests."""
    return [
        pytest.param(
            way,
            fault,
            id=f"{how}: {kind}",
            marks=[] if kind in QUICK or how in quick_ways else pytest.mark.slow,
        )
        for how, way in ways.items()
        for kind, fault in (STREAMED if way.streamed else PLAIN).items()
    ]


@pytest.mark.parametrize(("way", "fault"), cells(WAYS, TWO_WAYS))
@pytest.mark.filterwarnings("ignore:.*is in beta")
async def test_another_model_answers(way: Way, fault: Fault, script: Script) -> None:
    """Unless it is the caller's own error. A stream that breaks after some text is an error, never an answer."""
    script.fault = lambda name: fault if name == "best" else None
    face = way.make(registry_of(way, script), fault.settings)
    found = await outcome(way, face)
    allowed = {"answered": {"second"}, "raised": {"raised"}, "cut": {"second", "raised"}}
    assert found in allowed[fault.outcome]
    assert script.calls["third"] == 0
    assert not script.waited


@pytest.mark.parametrize(("way", "fault"), cells(TWO_WAYS))
async def test_a_model_that_always_fails_is_put_last(way: Way, fault: Fault, script: Script) -> None:
    """Also if it fails in the middle of its streams; not if it is well and the call was too long, wrong or refused."""
    script.fault = lambda name: fault if name == "best" else None
    registry = registry_of(way, script)
    face = way.make(registry, fault.settings)
    for _ in range(8):
        await outcome(way, face)
    cooling = registry.health.cooling_down(NAMES)
    if fault.blames:
        assert script.calls["best"] < 8
        assert cooling.keys() == {"best"}
        assert 0 < cooling["best"] <= 300
    else:
        assert script.calls["best"] == 8
        assert cooling == {}


@pytest.mark.parametrize("way", TWO_WAYS.values(), ids=TWO_WAYS)
async def test_where_no_model_answers_the_error_is_raised(way: Way, script: Script) -> None:
    """After each was asked once."""
    script.fault = lambda name: Fault(None, StatusError(503))
    face = way.make(registry_of(way, script), {})
    assert await outcome(way, face) == "raised"
    assert script.calls == dict.fromkeys(NAMES, 1)


@pytest.mark.parametrize(
    ("way", "speed"),
    [*((way, 200) for way in TWO_WAYS.values()), *((WAYS["UniRouterLLM.chat"], speed) for speed in (2, 20))],
    ids=[*(f"{name}, 200 calls a second" for name in TWO_WAYS), *(f"{speed} calls a second" for speed in (2, 20))],
)
async def test_random_failures_cost_no_answer_and_little_traffic(way: Way, speed: int, script: Script) -> None:
    """Each model fails a fifth of its calls: whatever the traffic, a call fails only if all three models do."""
    chance, now, fails = random.Random(0), [0.0], dict.fromkeys(NAMES, False)  # noqa: S311
    script.fault = lambda name: Fault(None, StatusError(503)) if fails[name] else None
    face = way.make(registry_of(way, script, lambda: now[0]), {})
    found = Counter[str]()
    for number in range(CALLS):
        now[0] = number / speed
        fails.update({name: chance.random() < 0.2 for name in NAMES})
        answered = await outcome(way, face)
        assert (answered == "raised") == all(fails.values())
        found[answered] += 1
    assert found["wrong"] == 0
    assert found["best"] > 0.75 * CALLS
