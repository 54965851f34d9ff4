"""What providers answer when they fail, a server on loopback that answers it, and the real clients of these providers.

docs/failures.md shows these tables. Which clients are installed differs; CI has those of OpenAI.
"""

import importlib
import importlib.util
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Case(NamedTuple):
    """What a provider answers to a call, and what that means."""

    what: str
    status: int
    codes: str
    failure: str
    body: Any
    kind: str = "application/json"


def _openai(_: int, codes: list[str], message: str) -> Any:
    return {"error": {"message": message, "type": codes[0], "param": None, "code": codes[1] if codes[1:] else None}}


def _azure(_: int, codes: list[str], message: str) -> Any:
    return {"error": {"code": codes[0], "message": message, "innererror": {"code": codes[-1]}}}


def _anthropic(_: int, codes: list[str], message: str) -> Any:
    return {"type": "error", "error": {"type": codes[0], "message": message}, "request_id": "req_1"}


def _google(status: int, codes: list[str], message: str) -> Any:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason} for reason in codes[1:]]
    return {"error": {"code": status, "status": codes[0], "message": message, "details": details}}


def _flat(status: int, codes: list[str], message: str) -> Any:
    return {"object": "error", "message": message, "type": codes[0], "code": codes[1] if codes[1:] else str(status)}


def _only_error(_: int, __: list[str], message: str) -> Any:
    return {"error": message}


def _only_message(_: int, __: list[str], message: str) -> Any:
    return {"message": message}


# How each provider writes an error; and its errors: what, status, codes, what that means, message.
_ERRORS: dict[str, tuple[Callable[[int, list[str], str], Any], str]] = {
    "OpenAI": (
        _openai,
        """
        invalid parameter | 400 | invalid_request_error invalid_value | request | Invalid value: 'robot'.
        message order | 400 | invalid_request_error | request | An assistant message with 'tool_calls' must be followed.
        context overflow | 400 | invalid_request_error context_length_exceeded | too_long | Maximum context length is 8.
        flagged prompt | 400 | invalid_request_error invalid_prompt | refused | It was flagged by our usage policy.
        unsupported parameter | 400 | invalid_request_error unsupported_value | other | 'temperature' cannot be 0.3.
        wrong key | 401 | invalid_request_error invalid_api_key | gone | Incorrect API key provided: sk-1.
        region | 403 | request_forbidden unsupported_country_region_territory | gone | Country not supported.
        no such model | 404 | invalid_request_error model_not_found | gone | The model `gpt-9` does not exist.
        quota | 429 | insufficient_quota insufficient_quota | gone | You exceeded your current quota.
        rate limit | 429 | tokens rate_limit_exceeded | transient | Rate limit reached for gpt-5.
        one call above the rate limit | 429 | tokens rate_limit_exceeded | too_long | Request too large for gpt-5.
        server error | 500 | server_error | transient | The server had an error.
        overloaded | 503 | server_error | transient | The engine is currently overloaded.
        """,
    ),
    "Azure OpenAI": (
        _azure,
        """
        content filter | 400 | content_filter ResponsibleAIPolicyViolation | refused | The response was filtered.
        operation not supported | 400 | OperationNotSupported | gone | It does not work with the specified model.
        wrong key | 401 | 401 | gone | Access denied due to invalid subscription key.
        no such deployment | 404 | DeploymentNotFound | gone | The API deployment for this resource does not exist.
        rate limit | 429 | 429 | transient | Requests have exceeded the limit.
        """,
    ),
    "Anthropic": (
        _anthropic,
        """
        invalid parameter | 400 | invalid_request_error | request | temperature: range: 0..1
        context overflow | 400 | invalid_request_error | too_long | prompt is too long: 210000 tokens > 200000 maximum
        credit | 400 | invalid_request_error | gone | Your credit balance is too low to access the Anthropic API.
        spend limit | 400 | invalid_request_error | gone | You have reached your specified API usage limits.
        output filter | 400 | invalid_request_error | refused | Output blocked by content filtering policy
        wrong key | 401 | authentication_error | gone | invalid x-api-key
        billing | 402 | billing_error | gone | There is an issue with your billing.
        no permission | 403 | permission_error | gone | Your API key does not have permission to use the resource.
        no such model | 404 | not_found_error | gone | model: claude-9
        request too large | 413 | request_too_large | too_long | Request exceeds the maximum size
        rate limit | 429 | rate_limit_error | transient | This request would exceed your rate limit.
        internal error | 500 | api_error | transient | Internal server error
        overloaded | 529 | overloaded_error | transient | Overloaded
        """,
    ),
    "Google": (
        _google,
        """
        invalid parameter | 400 | INVALID_ARGUMENT | request | temperature must be in the range from 0 to 2.
        context overflow | 400 | INVALID_ARGUMENT | too_long | The input token count (9) exceeds the maximum number (8).
        wrong key | 400 | INVALID_ARGUMENT API_KEY_INVALID | gone | API key not valid. Please pass a valid API key.
        region | 400 | FAILED_PRECONDITION | gone | User location is not supported for the API use.
        no permission | 403 | PERMISSION_DENIED | gone | Permission denied.
        no such model | 404 | NOT_FOUND | gone | models/gemini-9 is not found for API version v1beta.
        rate limit | 429 | RESOURCE_EXHAUSTED | transient | You exceeded your current quota.
        internal error | 500 | INTERNAL | transient | An internal error has occurred.
        overloaded | 503 | UNAVAILABLE | transient | The model is overloaded.
        deadline | 504 | DEADLINE_EXCEEDED | transient | Deadline expired.
        """,
    ),
    "Bedrock": (
        _only_message,
        """
        invalid request | 400 | ValidationException | request | A conversation must start with a user message.
        context overflow | 400 | ValidationException | too_long | Input is too long for requested model.
        no such model | 400 | ValidationException | gone | The provided model identifier is invalid.
        needs a profile | 400 | ValidationException | gone | Model ID m with on-demand throughput isn't supported.
        no tools | 400 | ValidationException | gone | This model doesn't support tool use.
        no access | 403 | AccessDeniedException | gone | You don't have access to the model.
        wrong key | 403 | UnrecognizedClientException | gone | The security token included in the request is invalid.
        expired key | 400 | ExpiredTokenException | gone | The security token included in the request is expired.
        retired | 404 | ResourceNotFoundException | gone | This model version has reached the end of its life.
        model timeout | 408 | ModelTimeoutException | transient | The request took too long to process.
        model error | 424 | ModelErrorException | transient | The model had an error.
        rate limit | 429 | ThrottlingException | transient | Too many tokens, please wait before trying again.
        not ready | 429 | ModelNotReadyException | transient | The model is not ready.
        quota of calls | 400 | ServiceQuotaExceededException | transient | The number of requests exceeds the quota.
        internal error | 500 | InternalServerException | transient | Internal server error.
        unavailable | 503 | ServiceUnavailableException | transient | Try again later.
        """,
    ),
    "Mistral": (
        _flat,
        """
        message order | 400 | invalid_request_message_order 3230 | request | Expected last role User or Tool
        context overflow | 400 | invalid_request_prompt 3051 | too_long | Prompt contains 9 tokens, too large for m.
        no such model | 400 | invalid_model 1500 | gone | Invalid model: mistral-9
        wrong key | 401 | unauthorized | gone | Unauthorized
        invalid parameter | 422 | invalid_request_error | request | Input should be less than or equal to 1.5
        rate limit | 429 | rate_limited 1300 | transient | Rate limit exceeded
        capacity | 429 | service_tier_capacity_exceeded 3505 | transient | Service tier capacity exceeded.
        unavailable | 503 | internal_server_error 3000 | transient | Service unavailable.
        """,
    ),
    "Groq": (
        _openai,
        """
        invalid parameter | 400 | invalid_request_error | request | 'temperature' : number must be at most 2
        context overflow | 400 | invalid_request_error | too_long | Please reduce the length of the messages.
        retired | 400 | invalid_request_error model_decommissioned | gone | The model `m` has been decommissioned.
        terms | 400 | invalid_request_error model_terms_required | gone | The model `m` requires terms acceptance.
        no tools | 400 | invalid_request_error | gone | `tool calling` is not supported with this model
        broken tool call | 400 | invalid_request_error tool_use_failed | garbled | Failed to call a function.
        wrong key | 401 | invalid_request_error invalid_api_key | gone | Invalid API Key
        no such model | 404 | invalid_request_error model_not_found | gone | The model `m` does not exist.
        one call above the rate limit | 413 | tokens rate_limit_exceeded | too_long | Request too large for model `m`.
        rate limit | 429 | tokens rate_limit_exceeded | transient | Rate limit reached for model `m`.
        flex capacity | 498 | flex capacity_exceeded | transient | No capacity.
        overloaded | 503 | internal_server_error | transient | Service Unavailable
        """,
    ),
    "Ollama": (
        _only_error,
        """
        invalid parameter | 400 | | request | invalid options: temperatur
        context overflow | 400 | | too_long | the input length exceeds the context length
        no tools | 400 | | gone | registry.ollama.ai/library/gemma:2b does not support tools
        no such model | 404 | | gone | model 'm' not found
        no memory | 500 | | transient | model requires more system memory (8 GiB) than is available (4 GiB)
        busy | 503 | | transient | server busy, please try again. maximum pending requests exceeded
        """,
    ),
    "Cohere": (
        _only_message,
        """
        invalid parameter | 400 | | request | invalid request: temperature must be between 0 and 1 inclusive.
        context overflow | 400 | | too_long | too many tokens: size limit exceeded by 5 tokens.
        blocked | 400 | | refused | blocked output: please try again with a different prompt
        wrong key | 401 | | gone | invalid api token
        billing | 402 | | gone | Please add or update your payment method to continue
        retired | 404 | | gone | model 'command' was removed on September 15, 2025.
        invalid tools | 422 | | request | invalid tool schema
        rate limit | 429 | | transient | You are using a Trial key, which is limited to 10 API calls / minute.
        internal error | 500 | | transient | internal server error, this has been reported to our developers.
        """,
    ),
    "Fireworks": (
        _openai,
        """
        invalid parameter | 400 | invalid_request_error | request | temperature must be between 0 and 2
        context overflow | 400 | invalid_request_error | too_long | The prompt is too long: 9 tokens
        no tools | 400 | invalid_request_error | gone | This model does not support tools
        wrong key | 401 | invalid_request_error UNAUTHORIZED | gone | The API key you provided is invalid.
        suspended | 412 | invalid_request_error account_suspended | gone | Account is suspended.
        no such model | 404 | invalid_request_error NOT_FOUND | gone | Model not found, inaccessible, or not deployed
        rate limit | 429 | rate_limit | transient | request rate limited
        overloaded | 503 | service_unavailable | transient | The server is overloaded
        """,
    ),
    "Together": (
        _openai,
        """
        invalid parameter | 400 | invalid_request_error | request | temperature must be between 0 and 2
        context overflow | 403 | invalid_request_error | too_long | Input token count + max_tokens is above the limit.
        no such model | 400 | invalid_request_error model_not_available | gone | Unable to access model m.
        wrong key | 401 | invalid_request_error invalid_api_key | gone | Invalid API key provided.
        billing | 402 | credit_limit credit_limit | gone | Credit limit exceeded.
        rate limit | 429 | rate_limit | transient | You have reached the rate limit.
        overloaded | 503 | overloaded | transient | The server is overloaded
        """,
    ),
    "vLLM": (
        _flat,
        """
        invalid parameter | 400 | BadRequestError 400 | request | temperature must be non-negative, got -1.
        context overflow | 400 | BadRequestError 400 | too_long | This model's maximum context length is 8192 tokens.
        no tools | 400 | BadRequestError 400 | gone | "auto" tool choice requires --enable-auto-tool-choice to be set
        no such model | 404 | NotFoundError 404 | gone | The model `m` does not exist.
        """,
    ),
    "Other servers with OpenAI's API": (
        _openai,
        """
        context overflow (llama.cpp) | 400 | exceed_context_size_error | too_long | It exceeds the context size
        loading (llama.cpp) | 503 | unavailable_error | transient | Loading model
        not loaded (LM Studio) | 400 | invalid_request_error | gone | No models loaded. Please load a model.
        context overflow (LM Studio) | 400 | invalid_request_error | too_long | It is greater than the context length.
        flagged (OpenRouter) | 403 | | refused | Your chosen model requires moderation and your input was flagged
        no credit (OpenRouter) | 402 | | gone | Insufficient credits
        no tools (OpenRouter) | 404 | | gone | No endpoints found that support tool use.
        no balance (DeepSeek) | 402 | unknown_error invalid_request_error | gone | Insufficient Balance
        risk (DeepSeek) | 400 | invalid_request_error | refused | Content Exists Risk
        """,
    ),
}


def _cases(write: Callable[[int, list[str], str], Any], table: str) -> Iterator[Case]:
    for line in table.strip().splitlines():
        what, status, codes, failure, message = (cell.strip() for cell in line.split("|"))
        yield Case(what, int(status), codes, failure, write(int(status), codes.split() or [""], message))


PROVIDERS = {name: list(_cases(*errors)) for name, errors in _ERRORS.items()}
ANYWHERE = [  # answers that no provider has planned
    Case("no body", 500, "", "transient", b""),
    Case("a gateway's page", 502, "", "transient", b"<html>Bad gateway</html>", "text/html"),
]
OPENAI_LIKE = ("OpenAI", "vLLM", "Other servers with OpenAI's API")

# ---------------------------------------------------------------- streams that answer 200 and then fail


def sse(*events: Any) -> str:
    """Events as a stream of them; those with a type are named by it."""
    named = ((f"event: {event['type']}\n" if "type" in event else "", json.dumps(event)) for event in events)
    return "".join(f"{name}data: {event}\n\n" for name, event in named)


def aws_events(*events: dict[str, Any]) -> bytes:
    """Events as AWS frames them; their names are the only keys, and those of exceptions end with it."""
    framed = b""
    for event in events:
        ((name, content),) = event.items()
        kind = "exception" if name.endswith("Exception") else "event"
        headers = b""
        for key, value in ((":message-type", kind), (f":{kind}-type", name), (":content-type", "application/json")):
            headers += bytes([len(key)]) + key.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        payload = json.dumps(content).encode()
        prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
        part = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
        framed += part + struct.pack(">I", zlib.crc32(part))
    return framed


def _streamed(what: str, codes: str, failure: str, body: Any, kind: str = "text/event-stream") -> Case:
    return Case(what, 200, codes, failure, body, kind)


_AWS = "application/vnd.amazon.eventstream"
STREAMS = {
    "OpenAI": [
        _streamed("server error", "server_error", "transient", sse(_openai(200, ["server_error"], "It had an error."))),
        _streamed("rate limit (OpenRouter)", "429", "transient", sse({"error": {"message": "Upstream", "code": 429}})),
    ],
    "Anthropic": [
        _streamed(name, name, failure, sse(_anthropic(200, [name], message)))
        for name, failure, message in (
            ("overloaded_error", "transient", "Overloaded"),
            ("api_error", "transient", "Internal server error"),
            ("rate_limit_error", "transient", "Too many"),
        )
    ],
    "Google": [_streamed("overloaded", "UNAVAILABLE", "transient", sse(_google(503, ["UNAVAILABLE"], "Overloaded")))],
    "Ollama": [
        _streamed("crash", "", "transient", '{"error": "llama runner has terminated"}\n', "application/x-ndjson")
    ],
    "Bedrock": [
        _streamed("rate limit", "throttlingException", "transient", aws_events({"throttlingException": {}}), _AWS),
        _streamed(
            "model error", "modelStreamErrorException", "transient", aws_events({"modelStreamErrorException": {}}), _AWS
        ),
        _streamed("invalid request", "validationException", "request", aws_events({"validationException": {}}), _AWS),
    ],
}

# ---------------------------------------------------------------- answers, good ones and refusals


def _chat(reason: str = "stop", **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "hello", **choice.pop("message", {})}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choices = [{"index": 0, "message": message, "finish_reason": reason, **choice}]
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}


def _chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}


def _response(**given: Any) -> dict[str, Any]:
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, **details}
    response = {"id": "r", "object": "response", "created_at": 1, "model": "m", "status": "completed", "usage": usage}
    needed = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "output": []}
    return {**response, **needed, "error": None, "incomplete_details": None, **given}


def _said(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "message", "id": "x", "role": "assistant", "status": "completed", "content": [content]}]


def _message(reason: str | None) -> dict[str, Any]:
    usage = {"input_tokens": 1, "output_tokens": 1}
    content = [{"type": "text", "text": "hello"}]
    message = {"id": "1", "type": "message", "role": "assistant", "model": "m", "content": content, "usage": usage}
    return {**message, "stop_reason": reason, "stop_sequence": None}


def _message_stream(reason: str) -> str:
    return sse(
        {"type": "message_start", "message": {**_message(None), "content": []}},
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": None},
            "usage": {"output_tokens": 1},
        },
        {"type": "message_stop"},
    )


def _candidates(reason: str) -> dict[str, Any]:
    content = {"parts": [{"text": "hello"}], "role": "model"}
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
    candidates = [{"content": content, "finishReason": reason, "index": 0}]
    return {"candidates": candidates, "usageMetadata": usage, "modelVersion": "m"}


def _converse(reason: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": [{"text": "hello"}]}
    usage = {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}
    return {"output": {"message": message}, "stopReason": reason, "usage": usage, "metrics": {"latencyMs": 1}}


def _converse_stream(reason: str) -> bytes:
    return aws_events(
        {"messageStart": {"role": "assistant"}},
        {"contentBlockDelta": {"delta": {"text": "hello"}, "contentBlockIndex": 0}},
        {"contentBlockStop": {"contentBlockIndex": 0}},
        {"messageStop": {"stopReason": reason}},
    )


def _answer(what: str, body: Any, failure: str = "refused", kind: str = "application/json") -> Case:
    return Case(what, 200, "", failure, body, "text/event-stream" if isinstance(body, str) else kind)


_FILTERED: dict[str, Any] = {"content_filter_results": {"hate": {"filtered": True, "severity": "high"}}}
_UNFILTERED: dict[str, Any] = {"content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}
# Answers whose failure is "" are none. Those that are a str or AWS's frames are streams.
ANSWERS: dict[str, list[Case]] = {
    "OpenAI": [
        _answer("stop", _chat(), ""),
        _answer("length", _chat("length"), ""),
        _answer("refusal", _chat(message={"content": None, "refusal": "I must not."})),
        _answer("content_filter", _chat("content_filter")),
        _answer("stop, streamed", sse(_chunk({"content": "hello"}), _chunk({}, "stop")) + "data: [DONE]\n\n", ""),
        _answer(
            "content_filter, streamed",
            sse(_chunk({"role": "assistant"}), _chunk({"content": "he"}), _chunk({}, "content_filter"))
            + "data: [DONE]\n\n",
        ),
    ],
    "OpenAI (Responses)": [
        _answer("completed", _response(output=_said({"type": "output_text", "text": "hello", "annotations": []})), ""),
        _answer("refusal", _response(output=_said({"type": "refusal", "refusal": "I must not."}))),
        _answer("content_filter", _response(status="incomplete", incomplete_details={"reason": "content_filter"})),
        _answer(
            "max_output_tokens", _response(status="incomplete", incomplete_details={"reason": "max_output_tokens"}), ""
        ),
        _answer("failed", _response(status="failed", error={"code": "server_error", "message": "oops"}), "transient"),
    ],
    "Azure OpenAI": [
        _answer(
            "unfiltered", {**_chat(**_UNFILTERED), "prompt_filter_results": [{"prompt_index": 0, **_UNFILTERED}]}, ""
        ),
        _answer("content_filter", _chat("content_filter")),
        _answer("filtered answer", _chat(**_FILTERED)),
        _answer("filtered prompt", {**_chat(), "prompt_filter_results": [{"prompt_index": 0, **_FILTERED}]}),
    ],
    "Anthropic": [
        _answer("end_turn", _message("end_turn"), ""),
        _answer("refusal", _message("refusal")),
        _answer("end_turn, streamed", _message_stream("end_turn"), ""),
        _answer("refusal, streamed", _message_stream("refusal")),
    ],
    "Google": [
        _answer("STOP", _candidates("STOP"), ""),
        *(
            _answer(reason, _candidates(reason))
            for reason in ("SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "RECITATION", "SPII")
        ),
        _answer("STOP, streamed", sse(_candidates("STOP")), ""),
        _answer("SAFETY, streamed", sse(_candidates("SAFETY"), _candidates("SAFETY"))),
        _answer("blocked prompt", {"promptFeedback": {"blockReason": "OTHER"}, "modelVersion": "m"}),
        _answer("blocked prompt, streamed", sse({"promptFeedback": {"blockReason": "SAFETY"}, "modelVersion": "m"})),
    ],
    "Bedrock": [
        _answer("end_turn", _converse("end_turn"), ""),
        _answer("guardrail_intervened", _converse("guardrail_intervened")),
        _answer("content_filtered", _converse("content_filtered")),
        _answer("end_turn, streamed", _converse_stream("end_turn"), "", _AWS),
        _answer("guardrail_intervened, streamed", _converse_stream("guardrail_intervened"), "refused", _AWS),
    ],
    "Mistral": [_answer("stop", _chat(), ""), _answer("content_filter", _chat("content_filter"))],
    "Groq": [_answer("stop", _chat(), ""), _answer("content_filter", _chat("content_filter"))],
    "Cohere": [
        _answer(reason, {"id": "1", "message": {"role": "assistant", "content": []}, "finish_reason": reason}, failure)
        for reason, failure in (("COMPLETE", ""), ("ERROR_TOXIC", "refused"))
    ],
}

# ---------------------------------------------------------------- the clients

HI = [{"role": "user", "content": "hi"}]
Call = Callable[[bool], Any]  # streamed or not
Make = Callable[[str], Call]  # of the server's URL


def used(answer: Any, *, streamed: bool) -> Any:
    return list(answer) if streamed else answer


def openai_chat(module: str, name: str, at: str = "base_url", **settings: Any) -> Make:
    """Of all clients that are made as OpenAI's is."""

    def make(url: str) -> Call:
        client = getattr(importlib.import_module(module), name)(
            **{"api_key": "k", "max_retries": 0, at: url, **settings}
        )
        create = client.chat.completions.create
        return lambda streamed: used(create(model="m", messages=HI, stream=streamed), streamed=streamed)

    return make


def openai_responses(url: str) -> Call:
    create = importlib.import_module("openai").OpenAI(api_key="k", base_url=url, max_retries=0).responses.create
    return lambda streamed: used(create(model="m", input="hi", stream=streamed), streamed=streamed)


def anthropic(url: str) -> Call:
    create = importlib.import_module("anthropic").Anthropic(api_key="k", base_url=url, max_retries=0).messages.create
    return lambda streamed: used(create(model="m", max_tokens=5, messages=HI, stream=streamed), streamed=streamed)


def google(url: str) -> Call:
    client = importlib.import_module("google.genai").Client(api_key="k", http_options={"base_url": url})
    return lambda streamed: (
        list(client.models.generate_content_stream(model="m", contents="hi"))
        if streamed
        else client.models.generate_content(model="m", contents="hi")
    )


def mistral(url: str) -> Call:
    chat = importlib.import_module("mistralai.client").Mistral(api_key="k", server_url=url).chat
    return lambda streamed: (
        list(chat.stream(model="m", messages=HI)) if streamed else chat.complete(model="m", messages=HI)
    )


def ollama(url: str) -> Call:
    client = importlib.import_module("ollama").Client(host=url)
    return lambda streamed: used(client.chat(model="m", messages=HI, stream=streamed), streamed=streamed)


def cohere(url: str) -> Call:
    client = importlib.import_module("cohere").ClientV2(api_key="k", base_url=url)
    options = {"max_retries": 0}
    return lambda streamed: (
        list(client.chat_stream(model="m", messages=HI, request_options=options))
        if streamed
        else client.chat(model="m", messages=HI, request_options=options)
    )


def bedrock(url: str) -> Call:
    config = importlib.import_module("botocore.config").Config(retries={"total_max_attempts": 1})
    session = importlib.import_module("boto3").Session("k", "s", region_name="us-east-1")
    client = session.client("bedrock-runtime", endpoint_url=url, config=config)
    messages = [{"role": "user", "content": [{"text": "hi"}]}]
    return lambda streamed: (
        list(client.converse_stream(modelId="m", messages=messages)["stream"])
        if streamed
        else client.converse(modelId="m", messages=messages)
    )


def litellm(url: str) -> Call:
    completion = importlib.import_module("litellm").completion
    settings = {"model": "openai/m", "api_base": url, "api_key": "k", "num_retries": 0, "max_retries": 0}
    return lambda streamed: used(completion(**settings, messages=HI, stream=streamed), streamed=streamed)


def langchain(module: str, name: str, at: str = "base_url", **settings: Any) -> Make:
    def make(url: str) -> Call:
        model = getattr(importlib.import_module(module), name)(**{"model": "m", at: url, **settings})
        return lambda streamed: list(model.stream("hi")) if streamed else model.invoke("hi")

    return make


def llamaindex(module: str, name: str, at: str = "api_base", **settings: Any) -> Make:
    def make(url: str) -> Call:
        model = getattr(importlib.import_module(module), name)(**{"model": "m", at: url, **settings})
        messages = [importlib.import_module("llama_index.core.llms").ChatMessage("hi")]
        return lambda streamed: list(model.stream_chat(messages)) if streamed else model.chat(messages)

    return make


def google_of_llamaindex(url: str) -> Call:
    options = importlib.import_module("google.genai.types").HttpOptions(base_url=url)
    return llamaindex(
        *("llama_index.llms.google_genai", "GoogleGenAI", "_"),
        api_key="k",
        model="gemini-2.5-flash",
        http_options=options,
        context_window=1000,
        max_retries=0,
    )(url)


KEY: dict[str, Any] = {"api_key": "k", "max_retries": 0}
AWS = {"region_name": "us-east-1", "aws_access_key_id": "k", "aws_secret_access_key": "s"}
# The package of each client, which providers' answers it is given, and how it asks.
CLIENTS: dict[str, tuple[tuple[str, ...], Make]] = {
    "openai": (OPENAI_LIKE, openai_chat("openai", "OpenAI")),
    "openai (Responses)": (("OpenAI",), openai_responses),
    "openai (Azure)": (("Azure OpenAI",), openai_chat("openai", "AzureOpenAI", "azure_endpoint", api_version="1")),
    "langchain_openai": (OPENAI_LIKE, langchain("langchain_openai", "ChatOpenAI", **KEY)),
    "langchain_openai (Responses)": (
        ("OpenAI",),
        langchain("langchain_openai", "ChatOpenAI", use_responses_api=True, **KEY),
    ),
    "langchain_openai (Azure)": (
        ("Azure OpenAI",),
        langchain("langchain_openai", "AzureChatOpenAI", "azure_endpoint", api_version="1", **KEY),
    ),
    "llama_index.llms.openai_like": (
        (*OPENAI_LIKE, "Fireworks", "Together"),
        llamaindex("llama_index.llms.openai_like", "OpenAILike", is_chat_model=True, **KEY),
    ),
    "llama_index.llms.openai": (("OpenAI",), llamaindex("llama_index.llms.openai", "OpenAI", model="gpt-4o", **KEY)),
    "llama_index.llms.azure_openai": (
        ("Azure OpenAI",),
        llamaindex(
            "llama_index.llms.azure_openai",
            "AzureOpenAI",
            "azure_endpoint",
            engine="e",
            api_version="1",
            **{**KEY, "model": "gpt-4o"},
        ),
    ),
    "anthropic": (("Anthropic",), anthropic),
    "langchain_anthropic": (("Anthropic",), langchain("langchain_anthropic", "ChatAnthropic", **KEY)),
    "llama_index.llms.anthropic": (
        ("Anthropic",),
        llamaindex("llama_index.llms.anthropic", "Anthropic", "base_url", model="claude-sonnet-4-5", **KEY),
    ),
    "google.genai": (("Google",), google),
    "langchain_google_genai": (
        ("Google",),
        langchain("langchain_google_genai", "ChatGoogleGenerativeAI", api_key="k", max_retries=1),
    ),
    "llama_index.llms.google_genai": (("Google",), google_of_llamaindex),
    "boto3": (("Bedrock",), bedrock),
    "langchain_aws": (
        ("Bedrock",),
        langchain(
            "langchain_aws",
            "ChatBedrockConverse",
            "endpoint_url",
            provider="amazon",
            disable_streaming=False,
            max_retries=1,
            **AWS,
        ),
    ),
    "llama_index.llms.bedrock_converse": (
        ("Bedrock",),
        llamaindex(
            "llama_index.llms.bedrock_converse",
            "BedrockConverse",
            "endpoint_url",
            model="anthropic.claude-3-haiku-20240307-v1:0",
            max_retries=1,
            **AWS,
        ),
    ),
    "mistralai": (("Mistral",), mistral),
    "langchain_mistralai": (
        ("Mistral",),
        langchain("langchain_mistralai", "ChatMistralAI", "endpoint", api_key="k", max_retries=1),
    ),
    "llama_index.llms.mistralai": (
        ("Mistral",),
        llamaindex("llama_index.llms.mistralai", "MistralAI", "endpoint", model="mistral-small-latest", **KEY),
    ),
    "groq": (("Groq",), openai_chat("groq", "Groq")),
    "langchain_groq": (("Groq",), langchain("langchain_groq", "ChatGroq", **KEY)),
    "llama_index.llms.groq": (("Groq",), llamaindex("llama_index.llms.groq", "Groq", **KEY)),
    "ollama": (("Ollama",), ollama),
    "langchain_ollama": (("Ollama",), langchain("langchain_ollama", "ChatOllama")),
    "llama_index.llms.ollama": (
        ("Ollama",),
        llamaindex("llama_index.llms.ollama", "Ollama", "base_url", context_window=1000),
    ),
    "cohere": (("Cohere",), cohere),
    "langchain_cohere": (("Cohere",), langchain("langchain_cohere", "ChatCohere", cohere_api_key="k")),
    "fireworks": (("Fireworks",), openai_chat("fireworks", "Fireworks")),
    "langchain_fireworks": (("Fireworks",), langchain("langchain_fireworks", "ChatFireworks", **KEY)),
    "together": (("Together",), openai_chat("together", "Together")),
    "langchain_together": (("Together",), langchain("langchain_together", "ChatTogether", **KEY)),
    "litellm": (OPENAI_LIKE, litellm),
}

# ---------------------------------------------------------------- the server


_MODEL = Case("a model", 200, "", "", {"name": "models/m", "inputTokenLimit": 1000, "outputTokenLimit": 100})


class _Handler(BaseHTTPRequestHandler):
    answer: Case

    def do_POST(self) -> None:
        while self.headers.get("Transfer-Encoding") == "chunked" and self.rfile.readline() not in {b"0\r\n", b""}:
            pass
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        _, status, codes, _, body, kind = type(self).answer
        content = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Connection", "close"),
            ("x-amzn-ErrorType", codes),
            ("Retry-After", "7"),
        ):
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(content)

    def do_GET(self) -> None:
        """Say what is known of a model; some clients ask for that when they are made."""
        type(self).answer, kept = _MODEL, type(self).answer
        self.do_POST()
        type(self).answer = kept

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


Server = tuple[str, type[_Handler]]


@contextmanager
def answering_server() -> Iterator[Server]:
    """Yield the base URL, and where to put the next answer: `handler.answer = case`."""
    handler = type("Handler", (_Handler,), {})
    serving = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}", handler
    serving.shutdown()
    thread.join()
    serving.server_close()


def is_installed(client: str) -> bool:
    with suppress(ModuleNotFoundError):  # of a package above it
        return importlib.util.find_spec(client.partition(" ")[0]) is not None
    return False
