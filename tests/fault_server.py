"""A server on loopback that speaks the OpenAI chat protocol and misbehaves in every way that providers do.

Streams begin with a chunk that holds a role and no text, as those of OpenAI, Azure, vLLM and SGLang do.
"""

import asyncio
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple

from openai_server import _deltas, _message

HEALTHY = "healthy"
DRIP = 0.1  # seconds for each byte of a slow answer
_QUESTION = re.compile(r"\w+ number \d+")
_STREAM = "text/event-stream"

Outcome = Literal["answered", "raised", "cut"]


class Fault(NamedTuple):
    """What a provider sends in place of a good answer, and what a caller should see of it.

    Attributes:
        status: The HTTP status; 0 if no response begins.
        body: What is sent; None for the good answer.
        end: How it ends: as announced, too early, with a reset, or never.
        pace: Seconds between two bytes of the body.
        kind: The content type.
        headers: Further headers.
        outcome: What the caller should see while other models are healthy: their answer, the error, or (of a stream
            that breaks after some of its text) the error or a whole answer, but no cut answer as if it were whole.
        blames: Whether it says that the model is unwell, so that it should not be asked time and again.
        settings: The settings of a face under which this is so, beyond the default ones.
    """

    status: int = 200
    body: bytes | None = b""
    end: Literal["whole", "cut", "reset", "hang"] = "whole"
    pace: float = 0
    kind: str = "application/json"
    headers: Mapping[str, str] = {}
    outcome: Outcome = "answered"
    blames: bool = True
    settings: Mapping[str, Any] = {}


def _error(status: int, message: str, code: str | None = None, **rest: Any) -> Fault:
    error = {"message": message, "type": "invalid_request_error" if status < 429 else "server_error", "code": code}
    return Fault(status, json.dumps({"error": error}).encode(), **rest)


def _completion(finish: str = "stop", choices: Any = ..., **message: Any) -> Fault:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    common = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
    return Fault(body=json.dumps({**common, "choices": [choice] if choices is ... else choices}).encode())


def _event(delta: dict[str, Any] | None = None, finish: str | None = None, **chunk: Any) -> bytes:
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choices = [{"index": 0, "delta": delta or {}, "finish_reason": finish}]
    return f"data: {json.dumps({**common, 'choices': choices, **chunk})}\n\n".encode()


def _stream(*parts: bytes, **rest: Any) -> Fault:
    return Fault(body=b"".join(parts), kind=_STREAM, **rest)


_DONE = b"data: [DONE]\n\n"
_ROLE = _event({"role": "assistant", "content": ""})
_SOME = _ROLE + _event({"content": "best answers"})
_SAID_ERROR = json.dumps({"error": {"message": "The server had an error.", "type": "server_error", "code": None}})
_ERROR_EVENT = f"data: {_SAID_ERROR}\n\n".encode()
_OVERFLOW = "This model's maximum context length is 8 tokens. However, your messages resulted in 9 tokens."
_ON_REFUSALS: dict[str, Any] = {"blames": False, "settings": {"fallback": "refusals"}}

_BEFORE_THE_ANSWER: dict[str, Fault] = {
    "400 invalid request": _error(400, "Invalid value for 'temperature'.", outcome="raised", blames=False),
    "400 context overflow": _error(400, _OVERFLOW, "context_length_exceeded", blames=False),
    "401 key revoked": _error(401, "Incorrect API key provided.", "invalid_api_key"),
    "402 no credit": _error(402, "Insufficient credits.", "insufficient_credits"),
    "403 forbidden": _error(403, "Your account has no access to this model.", "access_denied"),
    "404 model retired": _error(404, "The model does not exist.", "model_not_found"),
    "408": _error(408, "Request timeout."),
    "409": _error(409, "Conflict."),
    "413 too large": _error(413, "Request too large.", blames=False),
    "422 invalid request": _error(422, "Unprocessable entity.", outcome="raised", blames=False),
    "429": _error(429, "Rate limit reached.", "rate_limit_exceeded"),
    "429 quota spent": _error(429, "You exceeded your current quota.", "insufficient_quota"),
    "429 for 20 s": _error(429, "Rate limit reached.", "rate_limit_exceeded", headers={"retry-after": "20"}),
    "429 for a year": _error(429, "Rate limit reached.", "rate_limit_exceeded", headers={"retry-after": "31536000"}),
    "500": _error(500, "The server had an error."),
    "502 html": Fault(502, b"<html><h1>502 Bad Gateway</h1></html>", kind="text/html"),
    "503": _error(503, "Service unavailable."),
    "529 overloaded": _error(529, "Overloaded.", "overloaded_error"),
    "refused": Fault(),  # see `FaultServer.url`
    "reset": Fault(0, end="reset"),
    "hang": Fault(0, end="hang"),
    "drip": Fault(body=None, pace=DRIP),
    "200 error": Fault(body=_SAID_ERROR.encode()),
    "200 html": Fault(body=b"<html>here was a proxy</html>", kind="text/html"),
    "200 empty body": Fault(),
    "200 half JSON": Fault(body=_completion(content="best answers").body[:-30]),  # type: ignore[index]
    "200 bad UTF-8": Fault(body=_completion(content="best answers \0").body.replace(b"\\u0000", b"\xff\xfe")),  # type: ignore[union-attr]
}

PLAIN: dict[str, Fault] = {
    **_BEFORE_THE_ANSWER,
    "cut": Fault(body=b'{"id": "chatcmpl-1", "choi', end="cut"),
    "null choices": _completion(choices=None),
    "empty choices": _completion(choices=[]),
    "null message": _completion(choices=[{"index": 0, "message": None, "finish_reason": "stop"}]),
    "empty content": _completion(content="")._replace(blames=False),
    "null content": _completion(content=None)._replace(blames=False),
    "refusal": _completion(content=None, refusal="I cannot help with that.")._replace(**_ON_REFUSALS),
    "content filter": _completion("content_filter", content="")._replace(**_ON_REFUSALS),
}
"""What goes wrong with a call that is not streamed."""

STREAMED: dict[str, Fault] = {
    **_BEFORE_THE_ANSWER,
    "200 bad UTF-8": _stream(b'data: {"id": "\xff\xfe"}\n\n', _DONE),
    "null choices": _stream(_event(choices=None), _DONE),
    "empty choices": _stream(_event(choices=[]), _DONE),
    "empty stream": _stream(_DONE),
    "no event": _stream(),
    "error event": _stream(_ERROR_EVENT),
    "headers, hang": _stream(end="hang"),
    "headers, cut": _stream(end="cut"),
    "role, cut": _stream(_ROLE, end="cut"),
    "role, reset": _stream(_ROLE, end="reset"),
    "role, error event": _stream(_ROLE, _ERROR_EVENT),
    "role, half JSON": _stream(_ROLE, b'data: {"id": "chatcmpl-1", "choi\n\n'),
    "role, hang": _stream(_ROLE, end="hang"),
    "role, end": _stream(_ROLE, _event(finish="stop"), _DONE, blames=False),
    "role, no finish": _stream(_ROLE),
    "text, cut": _stream(_SOME, end="cut", outcome="cut"),
    "text, reset": _stream(_SOME, end="reset", outcome="cut"),
    "text, error event": _stream(_SOME, _ERROR_EVENT, outcome="cut"),
    "text, half JSON": _stream(_SOME, b'data: {"id": "chatcmpl-1", "choi\n\n', outcome="cut"),
    "text, hang": _stream(_SOME, end="hang", outcome="cut"),
    "text, no finish": _stream(_SOME, outcome="cut"),
    "text, done without finish": _stream(_SOME, _DONE, outcome="cut"),
    "refusal": _stream(_ROLE, _event({"refusal": "I cannot."}), _event(finish="stop"), _DONE, **_ON_REFUSALS),
    "content filter": _stream(_ROLE, _event(finish="content_filter"), _DONE, **_ON_REFUSALS),
}
"""What goes wrong with a call that is streamed."""

ENDLESS = frozenset({"hang", "drip", "headers, hang", "role, hang", "text, hang"})
"""The faults that only a timeout ends."""


class Way(NamedTuple):
    """A way to call a face.

    Attributes:
        make: Makes the face of some models and settings.
        ask: Has it answer a question; the text that the caller gets, of a batch those of all its inputs. Sync or async.
        streamed: Whether the caller gets the text in parts.
        framework: Whose models it takes.
    """

    make: Callable[[Any, Mapping[str, Any]], Any]
    ask: Callable[[Any, str], Any]
    streamed: bool = False
    framework: str = "langchain"


def answer_of(model: str, question: str) -> str:
    """The good answer of a model to a question, of the form `poem number 7`."""
    return f"{model} answers {question}. That is all."


class FaultServer:
    """The server; it runs in a thread while it is entered as a context.

    Attributes:
        latency: How many seconds a good answer takes.
        rules: Further names of faults: functions that name one of the others for each call.
        asked: How often each model was asked each question; `(question, model)`.
    """

    def __init__(self, latency: float = 0) -> None:
        self.latency = latency
        self.rules: dict[str, Callable[[], str]] = {}
        self.asked: Counter[tuple[str, str]] = Counter()
        self._port = 0
        self._closed_port = _free_port()
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()

    def url(self, fault: str = HEALTHY) -> str:
        """The base URL of a provider that has this fault."""
        if fault == "refused":
            return f"http://127.0.0.1:{self._closed_port}/v1"
        return f"http://127.0.0.1:{self._port}/{fault.replace(' ', '_')}/v1"

    async def serve(self, ready: Callable[[], object]) -> None:
        """Serve until the loop is stopped."""
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, backlog=1024)
        self._port = server.sockets[0].getsockname()[1]
        ready()
        async with server:
            await server.serve_forever()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                name, request = await _read(reader)
                await self._answer(name, request, reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(
        self, name: str, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        model, question, streamed = request["model"], _question(request), bool(request.get("stream"))
        self.asked[question, model] += 1
        if name in self.rules:
            name = self.rules[name]()
        fault = Fault(body=None) if name == HEALTHY else (STREAMED if streamed else PLAIN)[name]
        if fault.body is None:
            await asyncio.sleep(self.latency)
            pieces, kind = _good(request, answer_of(model, question), streamed=streamed)
        else:
            pieces, kind = [fault.body], fault.kind
        if fault.status:
            await self._send(pieces, fault._replace(kind=kind), writer)
        if fault.end == "hang":
            await reader.read()  # until the caller hangs up
        elif fault.end == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    async def _send(self, pieces: list[bytes], fault: Fault, writer: asyncio.StreamWriter) -> None:
        headers = {"content-type": fault.kind, "connection": "close", "transfer-encoding": "chunked", **fault.headers}
        lines = [f"HTTP/1.1 {fault.status} Status", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        for piece in pieces:
            for part in [bytes([byte]) for byte in piece] if fault.pace else [piece]:
                if part:
                    writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                await writer.drain()
                await asyncio.sleep(fault.pace)
        if fault.end == "whole":
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    def stop(self) -> None:
        """Close every connection."""
        for task in asyncio.all_tasks(self._loop):
            task.cancel()


@contextmanager
def fault_server(latency: float = 0) -> Iterator[FaultServer]:
    """Run a server in a thread.

    `server.url(fault)` is the base URL of a provider that always has this fault, one of `PLAIN`, or of `STREAMED` where
    the call is streamed; without a fault it is healthy. The question is the last `<word> number <n>` of the user, and
    the good answer is `answer_of(model, question)`. Tools and forms are answered as `openai_server` does.

    Args:
        latency: How many seconds a good answer takes.
    """
    server, ready = FaultServer(latency), threading.Event()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: server._loop) as runner, suppress(asyncio.CancelledError):
            runner.run(server.serve(ready.set))

    thread = threading.Thread(target=run, name="fault server", daemon=True)
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        server._loop.call_soon_threadsafe(server.stop)
        thread.join()


async def _read(reader: asyncio.StreamReader) -> tuple[str, dict[str, Any]]:
    """The fault that the path names, and the request."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
    body = await reader.readexactly(int(length[1]) if length else 0)
    path = head.split(" ", 2)[1]
    return path.split("/")[1].replace("%2C", ",").replace("_", " "), json.loads(body)


def _question(request: dict[str, Any]) -> str:
    said = " ".join(str(message["content"]) for message in request["messages"] if message["role"] == "user")
    found = _QUESTION.findall(said)
    return found[-1] if found else ""


def _good(request: dict[str, Any], text: str, *, streamed: bool) -> tuple[list[bytes], str]:
    """The pieces of a good answer, and its content type."""
    message = _message(request, text)
    finish = "tool_calls" if "tool_calls" in message else "stop"
    n_words = len(text.split())
    usage = {"prompt_tokens": n_words, "completion_tokens": n_words, "total_tokens": 2 * n_words}
    if not streamed:
        body = json.loads(_completion(finish, **message).body or b"")
        return [json.dumps({**body, "model": request["model"], "usage": usage}).encode()], "application/json"
    events = [_event({"role": "assistant", "content": ""}, model=request["model"])]
    events += [_event(delta, model=request["model"]) for delta in _deltas(message)]
    events += [_event(finish=finish, model=request["model"])]
    if (request.get("stream_options") or {}).get("include_usage"):
        events += [_event(choices=[], usage=usage, model=request["model"])]
    return [*events, _DONE], _STREAM


def _free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
