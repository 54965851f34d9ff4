"""Providers on loopback: each answers with thoughts and tool calls in its form, and refuses what the real one refuses.

A provider is the first part of a path. Only signatures that the same model wrote are accepted.
"""

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from history_answers import (
    Body,
    anthropic_answer,
    anthropic_streamed,
    bedrock_answer,
    bedrock_streamed,
    chat_answer,
    chat_streamed,
    google_answer,
    google_streamed,
    mistral_answer,
    ollama_answer,
    ollama_streamed,
    responses_answer,
    responses_streamed,
    signed,
)

Problems = Iterator[str]


class Turn(NamedTuple):
    """What a message has of calls."""

    role: str
    calls: Sequence[Any] = ()
    results: Sequence[Any] = ()


class Api(NamedTuple):
    """A provider: what is wrong with a request; and its answers that call tools, think and refuse."""

    problems: Callable[[Body], Problems]
    answer: Callable[[str, str], Any]
    streamed: Callable[[str, str], str | bytes]


def odd(at: str, given: Any, needed: str, allowed: str = "", **values: Any) -> Problems:
    """What is missing in an object, unknown, or has another value or type than it should."""
    if not isinstance(given, dict):
        yield f"{at}: {given!r} is no object"
        return
    yield from (f"{at}.{key} is missing" for key in needed.split() if given.get(key) is None)
    yield from (f"{at}.{key} is not permitted" for key in given if key not in f"{needed} {allowed}".split())
    for key, value in values.items():
        found = given.get(key)
        if not (isinstance(found, value) if isinstance(value, type) else re.fullmatch(value, str(found))):
            yield f"{at}.{key}: {found!r}"


def unpaired(turns: Iterable[Turn], *, unique: bool = False, form: str = ".+") -> Problems:
    """Calls without results right after them, results without calls, and ids that are used twice or of no form."""
    waiting: list[Any] = []
    seen: set[Any] = set()
    for turn in [*turns, Turn("end")]:
        for called in turn.results:
            if called not in waiting:
                yield f"the result of {called!r} follows no call of that id"
            else:
                waiting.remove(called)
        if waiting and not turn.results:
            yield f"the calls {waiting!r} have no results"
        for called in turn.calls:
            if not isinstance(called, str) or not re.fullmatch(form, called):
                yield f"{called!r} is no id of a call"
            if unique and called in seen:
                yield f"the id {called!r} is not unique"
            seen.add(called)
        waiting = [*turn.calls] or (waiting if turn.results else [])


def is_json(text: Any) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (TypeError, ValueError):
        return False


# ---------------------------------------------------------------- OpenAI's Chat Completions, and Groq's


def chat_problems(assistant: str = "refusal audio name", parts: str = "text|refusal") -> Callable[[Body], Problems]:
    def problems(body: Body) -> Problems:
        turns = []
        for index, message in enumerate(body["messages"]):
            at, role, content = f"messages[{index}]", message.get("role"), message.get("content")
            calls = message.get("tool_calls") or []
            allowed = {"assistant": f"content tool_calls {assistant}", "tool": "content tool_call_id"}.get(
                role, "content name"
            )
            yield from odd(at, message, "role", allowed, role="system|developer|user|assistant|tool")
            if content is None and not calls:
                yield f"{at}.content is missing"
            for part in content if isinstance(content, list) else []:
                kinds = parts if role == "assistant" else "text|image_url"
                yield from odd(f"{at}.content", part, "type", "text refusal image_url", type=kinds)
            for call in calls:
                yield from odd(f"{at}.tool_calls", call, "id type function", id=r".{1,40}", type="function")
                yield from odd(f"{at}.tool_calls", call.get("function"), "name arguments", arguments=str)
                if not is_json(call["function"]["arguments"]):
                    yield f"{at}.arguments are no JSON"
            result = [message.get("tool_call_id")] if role == "tool" else []
            turns.append(Turn(role, [call.get("id") for call in calls], result))
        yield from unpaired(turns)

    return problems


# ---------------------------------------------------------------- OpenAI's Responses


def _message_item(at: str, item: Body, _: str) -> Problems:
    role = str(item.get("role"))
    needed = "role content id" if "id" in item else "role content"
    yield from odd(at, item, needed, "type status phase", role="system|developer|user|assistant")
    for part in item["content"] if isinstance(item.get("content"), list) else []:
        kinds = "output_text|refusal" if role == "assistant" else "input_(text|image|file)"
        allowed = "text refusal annotations logprobs image_url detail file_id file_data filename"
        yield from odd(f"{at}.content", part, "type", allowed, type=kinds)


def _call_item(at: str, item: Body, before: str) -> Problems:
    yield from odd(at, item, "type call_id name arguments", "id status", arguments=str, call_id=".{1,64}")
    if item.get("id") and before not in {"reasoning", "message", "function_call", "web_search_call"}:
        yield f"{at}: the call {item['id']!r} was provided without its required reasoning item"


def _reasoning_item(at: str, item: Body, model: str) -> Problems:
    yield from odd(at, item, "type id summary", "content encrypted_content status", id="rs_.+")
    for part in item.get("summary") or []:
        yield from odd(f"{at}.summary", part, "type text", type="summary_text")
    if item.get("encrypted_content") not in {None, signed(model)}:
        yield f"{at}: the encrypted content could not be verified"


def responses_problems(body: Body) -> Problems:
    given, turns, before = body["input"], list[Turn](), ""
    for index, item in enumerate([{"role": "user", "content": given}] if isinstance(given, str) else given):
        at, kind = f"input[{index}]", item.get("type", "message")
        if kind == "message":
            yield from _message_item(at, item, before)
            turns.append(Turn(item["role"]))
        elif kind == "function_call":
            yield from _call_item(at, item, before)
            earlier = turns.pop().calls if before == kind else []
            turns.append(Turn(kind, [*earlier, item.get("call_id")]))
        elif kind == "function_call_output":
            yield from odd(at, item, "type call_id output", "id status")
            turns.append(Turn("tool", (), [item.get("call_id")]))
        elif kind == "reasoning":
            yield from _reasoning_item(at, item, body["model"])
        else:
            yield from odd(at, item, "type id status", "action", type="web_search_call")
        before = kind
    yield from unpaired(turns)


# ---------------------------------------------------------------- Anthropic


_CACHE, _ANTHROPIC_ID = "cache_control", "[a-zA-Z0-9_-]+"
_ANTHROPIC_BLOCKS = {
    "text": ("text", "citations"),
    "image": ("source", ""),
    "thinking": ("thinking signature", ""),
    "redacted_thinking": ("data", ""),
    "tool_use": ("id name input", "caller"),
    "tool_result": ("tool_use_id", "content is_error"),
    "server_tool_use": ("id name input", "caller"),
    "web_search_tool_result": ("tool_use_id content", "caller"),
}


def anthropic_problems(body: Body) -> Problems:
    turns, marks = [], 0
    for index, message in enumerate(body["messages"]):
        at, content = f"messages.{index}", message["content"]
        yield from odd(at, message, "role content", role="user|assistant")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not blocks:
            yield f"{at}: all messages must have non-empty content"
        for block in blocks:
            kind = block.get("type")
            needed, allowed = _ANTHROPIC_BLOCKS.get(str(kind), ("unknown", ""))
            mark = "" if "thinking" in str(kind) else _CACHE
            yield from odd(f"{at}.{kind}", block, f"type {needed}", f"{allowed} {mark}")
            marks += _CACHE in block
            if kind == "text" and not block.get("text", "").strip():
                yield f"{at}: text content blocks must be non-empty"
            if {block.get("signature"), block.get("data")} - {None, signed(body["model"])}:
                yield f"{at}: invalid signature in thinking block"
            if kind == "tool_use":
                yield from odd(at, block, "input", "type id name caller cache_control", input=dict)
        called = [block.get("id") for block in blocks if block.get("type") == "tool_use"]
        results = [block.get("tool_use_id") for block in blocks if block.get("type") == "tool_result"]
        turns.append(Turn(message["role"], called, results))
    if marks > 4:
        yield f"{marks} blocks with cache_control"
    if turns[0].role != "user":
        yield "the first message is not the user's"
    yield from unpaired(turns, unique=True, form=_ANTHROPIC_ID)


# ---------------------------------------------------------------- Google


def google_problems(body: Body) -> Problems:
    kinds = ["text", "inlineData", "functionCall", "functionResponse", "fileData"]
    kinds += ["executableCode", "codeExecutionResult"]
    turns: list[Turn] = []
    for index, content in enumerate(body["contents"]):
        at = f"contents[{index}]"
        yield from odd(at, content, "role parts", role="user|model|function")
        if not content.get("parts"):
            yield f"{at}.parts must not be empty"
        called, results = [], []
        for part in content.get("parts") or []:
            yield from odd(f"{at}.parts", part, "", " ".join([*kinds, "thought", "thoughtSignature"]))
            if sum(kind in part for kind in kinds) != 1:
                yield f"{at}.parts: data must have one initialized field, not {[*part]}"
            if part.get("thoughtSignature") not in {None, signed(body["model"]), "skip_thought_signature_validator"}:
                yield f"{at}: thought signature is not valid"
            if call := part.get("functionCall"):
                yield from odd(f"{at}.functionCall", call, "name args", "id", args=dict)
                called.append(call.get("name", ""))
            if result := part.get("functionResponse"):
                yield from odd(f"{at}.functionResponse", result, "name response", "id parts", response=dict)
                results.append(result.get("name"))
        first = next((part for part in content["parts"] if "functionCall" in part), None)
        if "gemini-3" in body["model"] and first and "thoughtSignature" not in first:
            yield f"{at}: function call is missing a thought_signature in functionCall parts"
        if called and (not turns or turns[-1].role == "model"):
            yield f"{at}: a function call turn comes after a user turn or a function response turn"
        turns.append(Turn(content["role"], called, results))
    yield from unpaired(turns)


# ---------------------------------------------------------------- Mistral


def mistral_problems(body: Body) -> Problems:
    turns: list[Turn] = []
    for index, message in enumerate(body["messages"]):
        at, role, content = f"messages[{index}]", message.get("role"), message.get("content")
        calls = message.get("tool_calls") or []
        allowed = {"assistant": "content tool_calls prefix", "tool": "content tool_call_id name"}.get(role, "content")
        yield from odd(at, message, "role", allowed, role="system|user|assistant|tool")
        if not content and not calls:
            yield f"{at}: an assistant message must have either content or tool_calls"
        for part in content if isinstance(content, list) else []:
            parts = {"text": "text", "thinking": "thinking closed signature", "image_url": "image_url"}
            if role == "assistant":
                parts["reference"] = "reference_ids"
            yield from odd(f"{at}.content", part, "type", parts.get(str(part.get("type")), ""), type="|".join(parts))
            for thought in part.get("thinking") or []:
                yield from odd(f"{at}.content.thinking", thought, "type text")
        for call in calls:
            yield from odd(f"{at}.tool_calls", call, "id function", "type index")
            yield from odd(f"{at}.tool_calls", call.get("function"), "name arguments")
        if turns and (turns[-1].role, role) in {("tool", "user"), ("user", "tool"), ("assistant", "assistant")}:
            yield f"Unexpected role {role!r} after role {turns[-1].role!r}"
        result = [message.get("tool_call_id")] if role == "tool" else []
        turns.append(Turn(role, [call.get("id") for call in calls], result))
    yield from unpaired(turns, form="[a-zA-Z0-9]{9}")


# ---------------------------------------------------------------- Ollama


def ollama_problems(body: Body) -> Problems:
    for index, message in enumerate(body["messages"]):
        at = f"messages[{index}]"
        for key in ("content", "thinking", "tool_name"):
            if not isinstance(message.get(key) or "", str):
                yield f"json: cannot unmarshal {at}.{key} into a string"
        for call in message.get("tool_calls") or []:
            function = call.get("function") or {}
            yield from odd(f"{at}.tool_calls", function, "name arguments", "index", name=".+", arguments=dict)


# ---------------------------------------------------------------- Bedrock's Converse; boto3 checks the fields itself


def bedrock_problems(body: Body) -> Problems:
    turns: list[Turn] = []
    for index, message in enumerate(body["messages"]):
        at, blocks = f"messages.{index}", message.get("content") or []
        if not blocks:
            yield f"{at}: the content field is empty"
        if message["role"] == (turns[-1].role if turns else "assistant"):
            yield f"{at}: roles must alternate, and begin with the user's"
        for block in blocks:
            if "text" in block and not block["text"].strip():
                yield f"{at}: the text field in the ContentBlock object is blank"
            thought = block.get("reasoningContent") or {}
            signature = (thought.get("reasoningText") or {}).get("signature")
            if thought and signature != signed(body["model"]):
                yield f"{at}: invalid signature in reasoning content"
        called = [block["toolUse"].get("toolUseId") for block in blocks if "toolUse" in block]
        results = [block["toolResult"].get("toolUseId") for block in blocks if "toolResult" in block]
        turns.append(Turn(message["role"], called, results))
    if any(turn.calls for turn in turns) and not body.get("toolConfig"):
        yield "the toolConfig field must be defined when using toolUse and toolResult content blocks"
    yield from unpaired(turns, unique=True, form="[a-zA-Z0-9_-]{1,64}")


_OPENAI, _GROQ = chat_answer(thought_in="reasoning_content"), chat_answer(thought_in="reasoning")
APIS = {
    "openai": Api(chat_problems(), _OPENAI, chat_streamed(_OPENAI)),
    "responses": Api(responses_problems, responses_answer, responses_streamed),
    "anthropic": Api(anthropic_problems, anthropic_answer, anthropic_streamed),
    "google": Api(google_problems, google_answer, google_streamed),
    "mistral": Api(mistral_problems, mistral_answer, chat_streamed(mistral_answer)),
    "ollama": Api(ollama_problems, ollama_answer, ollama_streamed),
    "bedrock": Api(bedrock_problems, bedrock_answer, bedrock_streamed),
    "groq": Api(chat_problems("name reasoning", "text"), _GROQ, chat_streamed(_GROQ)),
}


class Providers:
    """What the providers do next, and what they had to refuse."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.scene = "thinks"  # "calls", "refuses"
        self.refused: list[str] = []
        self.requests: list[Body] = []

    def of(self, provider: str) -> str:
        """The URL of a provider."""
        return f"{self.url}/{provider}"

    def answer(self, path: str, body: Body) -> tuple[int, Any]:
        """The answer to a request."""
        provider, _, rest = path.strip("/").partition("/")
        of_path = re.search(r"models?/([^/:]+)", rest)  # where Google and Bedrock have the model
        body["model"] = body.get("model") or (of_path[1] if of_path else "m")
        self.requests.append(body)
        api = APIS[provider]
        problems = [*api.problems(body)]
        self.refused += [f"{provider}: {problem}" for problem in problems]
        if problems:
            return 400, {"error": {"message": "; ".join(problems), "type": "invalid_request_error"}}
        if body.get("stream") or ":stream" in rest or rest.endswith("converse-stream"):
            return 200, api.streamed(self.scene, body["model"])
        return 200, api.answer(self.scene, body["model"])


@contextmanager
def providers() -> Iterator[Providers]:
    """Serve them all."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = self.headers.get("Content-Length")
            content = self.rfile.read(int(length)) if length else b"".join(self._chunks())
            status, answer = serving.answer(self.path, json.loads(content))
            if isinstance(answer, bytes):
                self._send(status, "application/vnd.amazon.eventstream", answer)
            elif isinstance(answer, str):
                self._send(status, "text/event-stream", answer.encode())
            else:
                self._send(status, "application/json", json.dumps(answer).encode())

        def do_GET(self) -> None:
            """Say what is known of a model; some clients ask for that when they are made."""
            about = {"name": "models/m", "inputTokenLimit": 1000, "outputTokenLimit": 100}
            self._send(200, "application/json", json.dumps(about).encode())

        def _send(self, status: int, kind: str, sent: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = Providers(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield serving
    server.shutdown()
    thread.join()
    server.server_close()
