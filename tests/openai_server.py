"""A server on loopback that speaks the OpenAI chat protocol, for real clients."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, list[dict[str, Any]]], str]
Fault = Callable[[str], str | None]
FAULTS = ("429", "500", "overflow", "hang", "reset", "garbage", "cut", "slow")
HANG = 0.6  # seconds; the clients of tests wait for less


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # many may call at once


@contextmanager
def openai_server(answer: Answer, fault: Fault = lambda model: None) -> Iterator[str]:
    """Serve `answer(model, messages)` as chat completions, plain and streamed; yields the base URL.

    `fault(model)` names what is to go wrong with a call, one of `FAULTS`, or None: a status, a context overflow, no
    answer or no first token in time (hang and slow), a connection reset before or after the first tokens (reset and
    cut), or something else than JSON.

    With tools offered, the first one is called until it has answered; the text is in each of its required arguments.
    With a form to fill in, the text is in each of its required fields.
    """
    handler = type("Handler", (_Handler,), {"answer": staticmethod(answer), "fault": staticmethod(fault)})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    answer: Answer
    fault: Fault
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if (wrong := type(self).fault(request["model"])) is not None:
            return self._fail(wrong, streamed=bool(request.get("stream")))
        text = type(self).answer(request["model"], request["messages"])
        read = sum(len(str(message["content"]).split()) for message in request["messages"])
        written = len(text.split())
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        common = {"id": "chatcmpl-1", "created": 1, "model": request["model"]}
        message = _message(request, text)
        finish = "tool_calls" if "tool_calls" in message else "stop"
        if not request.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
            body = {**common, "object": "chat.completion", "choices": [choice], "usage": usage}
            return self._send("application/json", json.dumps(body).encode())
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": None}]}
            for delta in _deltas(message)
        ]
        chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}]
        chunks += [{"choices": [], "usage": usage}]
        lines = [json.dumps({**common, "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
        return self._send("text/event-stream", "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode())

    def _fail(self, wrong: str, *, streamed: bool) -> None:
        if wrong.isdigit():
            return self._send("application/json", b'{"error": {"message": "it went wrong"}}', int(wrong))
        if wrong == "overflow":
            said = {"message": "the maximum context length is 8 tokens", "code": "context_length_exceeded"}
            return self._send("application/json", json.dumps({"error": said}).encode(), 400)
        if wrong == "garbage":
            return self._send("application/json", b"<html>here was a proxy</html>")
        if wrong in {"hang", "slow"}:
            if streamed and wrong == "slow":
                self._start("text/event-stream", 10**6)
                self.wfile.flush()
            time.sleep(HANG)
        elif wrong == "cut":
            self._start("text/event-stream" if streamed else "application/json", 10**6)
            part = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "cut"}}]}
            self.wfile.write(f"data: {json.dumps(part)}\n\n".encode() if streamed else b'{"choices": [')
            self.wfile.flush()
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        return None

    def _start(self, kind: str, length: int, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")  # no client is left with an open socket when a test ends
        self.end_headers()

    def _send(self, kind: str, body: bytes, status: int = 200) -> None:
        self._start(kind, len(body), status)
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _message(request: dict[str, Any], text: str) -> dict[str, Any]:
    if form := request.get("response_format"):
        return {"content": _filled(form["json_schema"]["schema"], text)}
    if request.get("tools") and request["messages"][-1]["role"] != "tool":
        function = request["tools"][0]["function"]
        called = {"name": function["name"], "arguments": _filled(function["parameters"], text)}
        return {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": called}]}
    return {"content": text}


def _filled(schema: dict[str, Any], text: str) -> str:
    return json.dumps(dict.fromkeys(schema["required"], text))


def _deltas(message: dict[str, Any]) -> list[dict[str, Any]]:
    if "tool_calls" not in message:
        return [{"content": word} for word in _words(message["content"])]
    (call,) = message["tool_calls"]
    start = {**call, "function": {**call["function"], "arguments": ""}}
    rest = [{"function": {"arguments": word}} for word in _words(call["function"]["arguments"])]
    return [{"tool_calls": [{"index": 0, **part}]} for part in (start, *rest)]


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)
