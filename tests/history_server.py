"""Providers on loopback: each answers with thoughts and tool calls in its form, and refuses what the real one refuses.

A provider is the first part of a path. Only signatures that the same model wrote are accepted.
"""

import base64
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from provider_clients import sse

Body = dict[str, Any]
Problems = Iterator[str]
TEXT, THOUGHT, REFUSAL = "I will look.", "They want two dates.", "I must not."
CITIES = ("Rome", "Oslo")


class Turn(NamedTuple):
    """What a message has of calls."""

    role: str
    calls: Sequence[Any] = ()
    results: Sequence[Any] = ()


class Api(NamedTuple):
    """A provider: what is wrong with a request; and its answers that call tools, think and refuse."""

    problems: Callable[[Body], Problems]
    answer: Callable[[str, str], Any]
    streamed: Callable[[str, str], str] | None = None


def signed(model: str) -> str:
    return base64.b64encode(f"by {model}".encode()).decode()


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


def chat_answer(**thoughts: Any) -> Callable[[str, str], Any]:
    def answer(scene: str, model: str) -> Any:
        message: Body = {"role": "assistant", "content": TEXT, **thoughts}
        if scene == "calls":
            message["tool_calls"] = chat_calls("call_Xw0aY7sP3kLmN2qRtUvB{}zz")
        if scene == "refuses":
            message |= {"content": None, "refusal": REFUSAL}
        reason = "tool_calls" if scene == "calls" else "stop"
        return chat_body(message, model, reason)

    return answer


def chat_calls(form: str, arguments: Callable[[Body], Any] = json.dumps) -> list[Body]:
    return [
        {
            "id": form.format(index),
            "type": "function",
            "index": index,
            "function": {"name": "date_in", "arguments": arguments({"city": city})},
        }
        for index, city in enumerate(CITIES)
    ]


def chat_body(message: Body, model: str, reason: str) -> Body:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choices = [{"index": 0, "message": message, "finish_reason": reason}]
    return {"id": "1", "object": "chat.completion", "created": 1, "model": model, "choices": choices, "usage": usage}


def chat_streamed(answer: Callable[[str, str], Any]) -> Callable[[str, str], str]:
    def streamed(scene: str, model: str) -> str:
        choice = answer(scene, model)["choices"][0]
        head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": model}
        deltas = [{key: value} for key, value in choice["message"].items() if value is not None and key != "role"]
        chunks = [{"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": None} for delta in deltas]
        chunks.append({"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]})
        return sse(*({**head, "choices": [chunk]} for chunk in chunks)) + "data: [DONE]\n\n"

    return streamed


# ---------------------------------------------------------------- OpenAI's Responses


def responses_problems(body: Body) -> Problems:
    given, turns = body["input"], []
    needs_next = False  # what a reasoning item belongs to
    for index, item in enumerate([{"role": "user", "content": given}] if isinstance(given, str) else given):
        at, kind = f"input[{index}]", item.get("type", "message")
        if kind == "message":
            role = item.get("role")
            yield from odd(at, item, "role content", "type id status phase", role="system|developer|user|assistant")
            if "id" in item:
                yield from odd(at, item, "id", "role content type status phase", id="msg_.+")
            for part in item["content"] if isinstance(item.get("content"), list) else []:
                kinds = "output_text|refusal" if role == "assistant" else "input_(text|image|file)"
                allowed = "text refusal annotations logprobs image_url detail file_id file_data filename"
                yield from odd(f"{at}.content", part, "type", allowed, type=kinds)
            turns.append(Turn(role))
        elif kind == "function_call":
            yield from odd(at, item, "type call_id name arguments", "id status", arguments=str, call_id=".{1,64}")
            if not re.fullmatch("fc_.+", item.get("id") or "fc_1"):
                yield f"{at}.id: {item['id']!r}"
            if item.get("id") and not needs_next and not any("_call" in turn.role for turn in turns[-1:]):
                yield f"{at}: the call {item['id']!r} was provided without its required reasoning item"
            earlier = turns.pop().calls if turns and turns[-1].role == "function_call" else []
            turns.append(Turn("function_call", [*earlier, item.get("call_id")]))
        elif kind == "function_call_output":
            yield from odd(at, item, "type call_id output", "id status")
            turns.append(Turn("tool", (), [item.get("call_id")]))
        elif kind == "reasoning":
            yield from odd(at, item, "type id summary", "content encrypted_content status", id="rs_.+")
            for part in item.get("summary") or []:
                yield from odd(f"{at}.summary", part, "type text", type="summary_text")
            if item.get("encrypted_content") not in {None, signed(body["model"])}:
                yield f"{at}: the encrypted content could not be verified"
        elif kind == "web_search_call":
            yield from odd(at, item, "type id status", "action", id="ws_.+")
        else:
            yield f"{at}.type: {kind!r}"
        needs_next = kind == "reasoning" or (needs_next and kind in {"message", "web_search_call"})
    yield from unpaired(turns)


def responses_answer(scene: str, model: str) -> Any:
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": THOUGHT}]}
    cited = {"type": "url_citation", "url": "http://a.example", "title": "A", "start_index": 0, "end_index": 3}
    said: Body = {"type": "output_text", "text": TEXT, "annotations": [cited] if scene == "thinks" else []}
    if scene == "refuses":
        said = {"type": "refusal", "refusal": REFUSAL}
    output = [
        {**reasoning, "encrypted_content": signed(model), "status": None},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [said]},
    ]
    if scene == "thinks":
        search = {"type": "search", "query": "a", "sources": None}
        output.insert(1, {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": search})
    if scene == "calls":
        for index, call in enumerate(chat_calls("call_Xw0aY7sP3kLmN2qRtUvB{}zz")):
            of_item = {"type": "function_call", "id": f"fc_{index}", "call_id": call["id"], "status": "completed"}
            output.append({**of_item, **call["function"]})
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, **details}
    settings = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None}
    head = {"id": "resp_1", "object": "response", "created_at": 1, "model": model, "status": "completed"}
    return {**head, **settings, "incomplete_details": None, "usage": usage, "output": output}


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
            needed, allowed = _ANTHROPIC_BLOCKS.get(kind, ("unknown", ""))
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


def anthropic_answer(scene: str, model: str) -> Any:
    said: Body = {"type": "text", "text": TEXT}
    content = [
        {"type": "thinking", "thinking": THOUGHT, "signature": signed(model)},
        {"type": "redacted_thinking", "data": signed(model)},
        said,
    ]
    if scene == "thinks":
        found = {"url": "http://a.example", "title": "A", "encrypted_content": "e", "page_age": None}
        search = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "a"}}
        results = [{"type": "web_search_result", **found}]
        content[2:2] = [search, {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": results}]
        at = {"url": "http://a.example", "title": "A", "encrypted_index": "i", "cited_text": "a"}
        said["citations"] = [{"type": "web_search_result_location", **at}]
    if scene == "calls":
        content += [
            {"type": "tool_use", "id": f"toolu_01A09q90qw90lq917835lq{index}", "name": "date_in", "input": {"city": city}}
            for index, city in enumerate(CITIES)
        ]
    if scene == "refuses":
        content = []
    reason = {"calls": "tool_use", "refuses": "refusal"}.get(scene, "end_turn")
    usage = {"input_tokens": 1, "output_tokens": 1}
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "usage": usage}
    return {**head, "content": content, "stop_reason": reason, "stop_sequence": None}


# ---------------------------------------------------------------- Google


def google_problems(body: Body) -> Problems:
    kinds = "text inlineData functionCall functionResponse fileData executableCode codeExecutionResult".split()
    turns = []
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
            if part.get("thoughtSignature") not in {None, signed(body["model"])}:
                yield f"{at}: thought signature is not valid"
            if call := part.get("functionCall"):
                yield from odd(f"{at}.functionCall", call, "name args", "id", args=dict)
                called.append(call.get("name", ""))
            if result := part.get("functionResponse"):
                yield from odd(f"{at}.functionResponse", result, "name response", "id parts", response=dict)
                results.append(result.get("name"))
        if called and (not turns or turns[-1].role == "model"):
            yield f"{at}: a function call turn comes after a user turn or a function response turn"
        turns.append(Turn(content["role"], called, results))
    yield from unpaired(turns)


def google_answer(scene: str, model: str) -> Any:
    parts: list[Body] = [{"text": THOUGHT, "thought": True}, {"text": TEXT, "thoughtSignature": signed(model)}]
    if scene == "calls":
        parts += [{"functionCall": {"name": "date_in", "args": {"city": city}}} for city in CITIES]
        parts[-2]["thoughtSignature"] = signed(model)
    if scene == "thinks":
        parts += [{"executableCode": {"language": "PYTHON", "code": "print(1)"}}]
        parts += [{"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}}]
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": model}


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
            allowed = {"text": "text", "thinking": "thinking closed signature", "image_url": "image_url"}
            if role == "assistant":
                allowed["reference"] = "reference_ids"
            yield from odd(f"{at}.content", part, "type", allowed.get(str(part.get("type")), ""), type="|".join(allowed))
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


def mistral_answer(scene: str, model: str) -> Any:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}], "closed": True}
    message: Body = {"role": "assistant", "content": [thought, {"type": "text", "text": TEXT}]}
    if scene == "thinks":
        message["content"].append({"type": "reference", "reference_ids": [1]})
    if scene == "calls":
        message["tool_calls"] = chat_calls("D681PevK{}")
    return chat_body(message, model, "tool_calls" if scene == "calls" else "stop")


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


def ollama_answer(scene: str, model: str) -> Any:
    message: Body = {"role": "assistant", "content": TEXT, "thinking": THOUGHT}
    if scene == "calls":
        calls = [{"function": {"name": "date_in", "arguments": {"city": city}}} for city in CITIES]
        message["tool_calls"] = calls
    counts = {"total_duration": 1, "prompt_eval_count": 1, "eval_count": 1}
    done = {"done": True, "done_reason": "stop", **counts}
    return {"model": model, "created_at": "2026-01-01T00:00:00Z", "message": message, **done}


def ollama_streamed(scene: str, model: str) -> str:
    return json.dumps(ollama_answer(scene, model)) + "\n"


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


def bedrock_answer(scene: str, model: str) -> Any:
    thought = {"reasoningText": {"text": THOUGHT, "signature": signed(model)}}
    content: list[Body] = [{"reasoningContent": thought}, {"text": TEXT}]
    if scene == "calls":
        content += [
            {"toolUse": {"toolUseId": f"tooluse_kZJMlvQmRJ6eAyJE5GIl7{index}", "name": "date_in", "input": {"city": city}}}
            for index, city in enumerate(CITIES)
        ]
    message = {"role": "assistant", "content": content}
    usage = {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}
    reason = "tool_use" if scene == "calls" else "end_turn"
    return {"output": {"message": message}, "stopReason": reason, "usage": usage, "metrics": {"latencyMs": 1}}


_OPENAI, _GROQ = chat_answer(reasoning_content=THOUGHT, annotations=[]), chat_answer(reasoning=THOUGHT)
APIS = {
    "openai": Api(chat_problems(), _OPENAI, chat_streamed(_OPENAI)),
    "responses": Api(responses_problems, responses_answer),
    "anthropic": Api(anthropic_problems, anthropic_answer),
    "google": Api(google_problems, google_answer, lambda scene, model: sse(google_answer(scene, model))),
    "mistral": Api(mistral_problems, mistral_answer, chat_streamed(mistral_answer)),
    "ollama": Api(ollama_problems, ollama_answer, ollama_streamed),
    "bedrock": Api(bedrock_problems, bedrock_answer),
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
        if api.streamed and (body.get("stream") or ":stream" in rest):
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
            sent = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/event-stream" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def do_GET(self) -> None:
            """Say what is known of a model; some clients ask for that when they are made."""
            sent = json.dumps({"name": "models/m", "inputTokenLimit": 1000, "outputTokenLimit": 100}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
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
