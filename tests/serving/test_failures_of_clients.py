"""What errors of providers mean, as their real clients raise them: a server on loopback answers, each client asks it.

The tables of docs/failures.md are these. Clients that are not installed are skipped; CI has OpenAI's.
"""

import importlib
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from unirouter_integrations.serving._failures import Failure, classify, retry_after

pytestmark = pytest.mark.filterwarnings("ignore")  # of clients that CI does not have


class Case(NamedTuple):
    """What a provider answers to a call, and what that means."""

    what: str
    status: int
    body: Any
    failure: Failure
    kind: str = "application/json"


def openai_error(message: str, code: str | None = None, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def anthropic_error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def google_error(code: int, status: str, message: str, **details: Any) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message, "status": status}
    return {"error": {**error, "details": [details]} if details else error}


def aws_event(kind: str, message: str) -> bytes:
    """An exception in the middle of an event stream of AWS."""
    headers = b""
    for name, value in ((":message-type", "exception"), (":exception-type", kind), (":content-type", "application/json")):
        headers += bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    payload = json.dumps({"message": message}).encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    framed = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return framed + struct.pack(">I", zlib.crc32(framed))


SSE = "text/event-stream"
ANYWHERE = [  # answers that no provider has planned
    Case("a server error without a body", 500, b"", "transient"),
    Case("a gateway's page", 502, b"<html>Bad gateway</html>", "transient", "text/html"),
]
PROVIDERS: dict[str, list[Case]] = {
    "OpenAI": [
        Case("invalid parameter", 400, openai_error("Invalid value: 'robot'.", "invalid_value"), "request"),
        Case(
            "message order",
            400,
            openai_error("An assistant message with 'tool_calls' must be followed by tool messages."),
            "request",
        ),
        Case(
            "context overflow",
            400,
            openai_error("This model's maximum context length is 8192 tokens.", "context_length_exceeded"),
            "too_long",
        ),
        Case(
            "flagged prompt",
            400,
            openai_error("Invalid prompt: your prompt was flagged as violating our usage policy.", "invalid_prompt"),
            "refused",
        ),
        Case(
            "temperature not supported",
            400,
            openai_error("Unsupported value: 'temperature' does not support 0.3 with this model.", "unsupported_value"),
            "other",
        ),
        Case("wrong key", 401, openai_error("Incorrect API key provided: sk-1.", "invalid_api_key"), "gone"),
        Case(
            "region",
            403,
            openai_error("Country, region, or territory not supported", "unsupported_country_region_territory"),
            "gone",
        ),
        Case("no such model", 404, openai_error("The model `gpt-9` does not exist.", "model_not_found"), "gone"),
        Case(
            "quota",
            429,
            openai_error("You exceeded your current quota.", "insufficient_quota", "insufficient_quota"),
            "gone",
        ),
        Case("rate limit", 429, openai_error("Rate limit reached for gpt-5.", "rate_limit_exceeded", "tokens"), "transient"),
        Case(
            "one call above the rate limit",
            429,
            openai_error("Request too large for gpt-5 on tokens per min (TPM).", "rate_limit_exceeded", "tokens"),
            "too_long",
        ),
        Case("server error", 500, openai_error("The server had an error.", None, "server_error"), "transient"),
        Case("overloaded", 503, openai_error("The engine is overloaded.", None, "server_error"), "transient"),
    ],
    "Azure OpenAI": [
        Case(
            "content filter",
            400,
            {
                "error": {
                    "message": "The response was filtered due to Azure OpenAI's content management policy.",
                    "type": None,
                    "param": "prompt",
                    "code": "content_filter",
                    "status": 400,
                    "innererror": {"code": "ResponsibleAIPolicyViolation"},
                }
            },
            "refused",
        ),
        Case(
            "operation not supported",
            400,
            {"error": {"code": "OperationNotSupported", "message": "It does not work with the specified model."}},
            "gone",
        ),
        Case(
            "wrong key",
            401,
            {"error": {"code": "401", "message": "Access denied due to invalid subscription key."}},
            "gone",
        ),
        Case(
            "no such deployment",
            404,
            {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}},
            "gone",
        ),
        Case("rate limit", 429, {"error": {"code": "429", "message": "Requests have exceeded the limit."}}, "transient"),
    ],
    "Anthropic": [
        Case("invalid parameter", 400, anthropic_error("invalid_request_error", "temperature: range: 0..1"), "request"),
        Case(
            "context overflow",
            400,
            anthropic_error("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
            "too_long",
        ),
        Case(
            "credit",
            400,
            anthropic_error("invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
            "gone",
        ),
        Case(
            "spend limit",
            400,
            anthropic_error("invalid_request_error", "You have reached your specified API usage limits."),
            "gone",
        ),
        Case(
            "output filter",
            400,
            anthropic_error("invalid_request_error", "Output blocked by content filtering policy"),
            "refused",
        ),
        Case("wrong key", 401, anthropic_error("authentication_error", "invalid x-api-key"), "gone"),
        Case("billing", 402, anthropic_error("billing_error", "There is an issue with your billing."), "gone"),
        Case("no permission", 403, anthropic_error("permission_error", "Your API key has no permission."), "gone"),
        Case("no such model", 404, anthropic_error("not_found_error", "model: claude-9"), "gone"),
        Case("request too large", 413, anthropic_error("request_too_large", "Request exceeds the maximum size"), "too_long"),
        Case("rate limit", 429, anthropic_error("rate_limit_error", "This request would exceed your limit."), "transient"),
        Case("internal error", 500, anthropic_error("api_error", "Internal server error"), "transient"),
        Case("overloaded", 529, anthropic_error("overloaded_error", "Overloaded"), "transient"),
    ],
    "Google": [
        Case("invalid parameter", 400, google_error(400, "INVALID_ARGUMENT", "temperature must be in 0..2"), "request"),
        Case(
            "context overflow",
            400,
            google_error(
                400,
                "INVALID_ARGUMENT",
                "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).",
            ),
            "too_long",
        ),
        Case(
            "wrong key",
            400,
            google_error(
                400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", reason="API_KEY_INVALID"
            ),
            "gone",
        ),
        Case("region", 400, google_error(400, "FAILED_PRECONDITION", "User location is not supported."), "gone"),
        Case("no permission", 403, google_error(403, "PERMISSION_DENIED", "Permission denied."), "gone"),
        Case("no such model", 404, google_error(404, "NOT_FOUND", "models/gemini-9 is not found for v1beta."), "gone"),
        Case(
            "rate limit",
            429,
            google_error(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", retryDelay="34s"),
            "transient",
        ),
        Case("internal error", 500, google_error(500, "INTERNAL", "An internal error has occurred."), "transient"),
        Case("overloaded", 503, google_error(503, "UNAVAILABLE", "The model is overloaded."), "transient"),
        Case("deadline", 504, google_error(504, "DEADLINE_EXCEEDED", "Deadline expired."), "transient"),
    ],
    "Bedrock": [
        Case("ValidationException", 400, {"message": "A conversation must start with a user message."}, "request"),
        Case("ValidationException, context overflow", 400, {"message": "Input is too long for requested model."}, "too_long"),
        Case("ValidationException, no such model", 400, {"message": "The provided model identifier is invalid."}, "gone"),
        Case(
            "ValidationException, needs a profile",
            400,
            {"message": "Invocation of model ID m with on-demand throughput isn't supported."},
            "gone",
        ),
        Case("ValidationException, no tools", 400, {"message": "This model doesn't support tool use."}, "gone"),
        Case("AccessDeniedException", 403, {"message": "You don't have access to the model."}, "gone"),
        Case("UnrecognizedClientException", 403, {"message": "The security token is invalid."}, "gone"),
        Case("ExpiredTokenException", 400, {"message": "The security token has expired."}, "gone"),
        Case("ResourceNotFoundException", 404, {"message": "This model version has reached its end of life."}, "gone"),
        Case("ModelTimeoutException", 408, {"message": "The model timed out."}, "transient"),
        Case("ModelErrorException", 424, {"message": "The model had an error."}, "transient"),
        Case("ThrottlingException", 429, {"message": "Too many tokens, please wait before trying again."}, "transient"),
        Case("ModelNotReadyException", 429, {"message": "The model is not ready."}, "transient"),
        Case("ServiceQuotaExceededException", 400, {"message": "The quota is exceeded."}, "transient"),
        Case("InternalServerException", 500, {"message": "Internal server error."}, "transient"),
        Case("ServiceUnavailableException", 503, {"message": "Try again later."}, "transient"),
    ],
    "Mistral": [
        Case(
            "invalid parameter",
            422,
            {"detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required", "input": {}}]},
            "request",
        ),
        Case(
            "message order",
            400,
            {"object": "error", "message": "Expected last role User or Tool", "type": "invalid_request_message_order"},
            "request",
        ),
        Case(
            "context overflow",
            400,
            {"object": "error", "message": "Prompt contains 40000 tokens, too large for model with 32768 maximum context"
             " length", "type": "invalid_request_prompt", "code": "3051"},
            "too_long",
        ),
        Case(
            "no such model",
            400,
            {"object": "error", "message": "Invalid model: mistral-9", "type": "invalid_model", "code": "1500"},
            "gone",
        ),
        Case("wrong key", 401, {"detail": "Unauthorized"}, "gone"),
        Case("rate limit", 429, {"message": "Requests rate limit exceeded"}, "transient"),
        Case(
            "capacity",
            429,
            {"object": "error", "message": "Service tier capacity exceeded for this model.", "code": "3505"},
            "transient",
        ),
        Case("unavailable", 503, {"message": "no healthy upstream"}, "transient"),
    ],
    "Groq": [
        Case("invalid parameter", 400, openai_error("'temperature' : number must be at most 2"), "request"),
        Case(
            "context overflow",
            400,
            openai_error("Please reduce the length of the messages or completion.", "context_length_exceeded"),
            "too_long",
        ),
        Case("retired", 400, openai_error("The model `m` has been decommissioned.", "model_decommissioned"), "gone"),
        Case("terms", 400, openai_error("The model `m` requires terms acceptance.", "model_terms_required"), "gone"),
        Case("no tools", 400, openai_error("`tool calling` is not supported with this model"), "gone"),
        Case(
            "a tool call that cannot be parsed",
            400,
            {"error": {**openai_error("Failed to call a function.", "tool_use_failed")["error"], "failed_generation": "<f"}},
            "garbled",
        ),
        Case("wrong key", 401, openai_error("Invalid API Key", "invalid_api_key"), "gone"),
        Case("no such model", 404, openai_error("The model `m` does not exist.", "model_not_found"), "gone"),
        Case(
            "one call above the rate limit",
            413,
            openai_error("Request too large for model `m` on tokens per minute (TPM).", "rate_limit_exceeded", "tokens"),
            "too_long",
        ),
        Case("rate limit", 429, openai_error("Rate limit reached.", "rate_limit_exceeded", "tokens"), "transient"),
        Case("flex capacity", 498, openai_error("No capacity.", "capacity_exceeded"), "transient"),
        Case("overloaded", 503, openai_error("Service Unavailable", None, "internal_server_error"), "transient"),
    ],
    "Ollama": [
        Case("invalid parameter", 400, {"error": "invalid options: temperatur"}, "request"),
        Case("no tools", 400, {"error": "registry.ollama.ai/library/gemma:2b does not support tools"}, "gone"),
        Case("context overflow", 400, {"error": "the input length exceeds the context length"}, "too_long"),
        Case("no such model", 404, {"error": "model 'm' not found"}, "gone"),
        Case("no memory", 500, {"error": "model requires more system memory (8 GiB) than is available (4 GiB)"}, "transient"),
        Case("busy", 503, {"error": "server busy, please try again. maximum pending requests exceeded"}, "transient"),
    ],
    "Cohere": [
        Case("invalid parameter", 400, {"message": "invalid request: temperature must be between 0 and 1"}, "request"),
        Case(
            "context overflow",
            400,
            {"message": "too many tokens: size limit exceeded by 5 tokens. Try using shorter or fewer inputs."},
            "too_long",
        ),
        Case("blocked", 400, {"message": "blocked output: please try again with a different prompt"}, "refused"),
        Case("wrong key", 401, {"message": "invalid api token"}, "gone"),
        Case("billing", 402, {"message": "Please add or update your payment method to continue"}, "gone"),
        Case("retired", 404, {"message": "model 'command' was removed on September 15, 2025."}, "gone"),
        Case("invalid tools", 422, {"message": "invalid tool schema"}, "request"),
        Case("rate limit", 429, {"message": "You are using a Trial key, which is limited to 10 calls / minute."}, "transient"),
        Case("internal error", 500, {"message": "internal server error, this has been reported"}, "transient"),
        Case("unavailable", 503, {"message": "upstream connect error"}, "transient"),
    ],
    "Fireworks and Together": [
        Case("invalid parameter", 400, openai_error("temperature must be between 0 and 2"), "request"),
        Case("context overflow (Fireworks)", 400, openai_error("The prompt is too long: 9, model maximum context length: 8"),
             "too_long"),
        Case("context overflow (Together)", 403, openai_error("Input token count + max_tokens exceeds the context length"),
             "too_long"),
        Case("no such model (Together)", 400, openai_error("Unable to access model m.", "model_not_available"), "gone"),
        Case("wrong key", 401, openai_error("Invalid API key provided", "invalid_api_key"), "gone"),
        Case("billing", 402, openai_error("You have reached your spending limit.", "credit_limit"), "gone"),
        Case("no such model", 404, openai_error("Model not found, inaccessible, and/or not deployed", "NOT_FOUND"), "gone"),
        Case("rate limit", 429, openai_error("request rate limited", None, "rate_limit"), "transient"),
        Case("overloaded", 503, openai_error("The server is overloaded", None, "service_unavailable"), "transient"),
    ],
    "OpenAI-compatible servers": [
        Case("FastAPI validation (vLLM)", 422, {"detail": [{"type": "missing", "msg": "Field required"}]}, "request"),
        Case(
            "context overflow (vLLM)",
            400,
            {"object": "error", "message": "This model's maximum context length is 8192 tokens. However, you requested"
             " 9000 tokens", "type": "BadRequestError", "code": 400},
            "too_long",
        ),
        Case(
            "no tools (vLLM)",
            400,
            {"object": "error", "message": '"auto" tool choice requires --enable-auto-tool-choice', "code": 400},
            "gone",
        ),
        Case("no such model (vLLM)", 404, {"object": "error", "message": "The model `m` does not exist.", "code": 404}, "gone"),
        Case(
            "context overflow (llama.cpp)",
            400,
            openai_error("the request exceeds the available context size", "400", "exceed_context_size_error"),
            "too_long",
        ),
        Case("loading (llama.cpp)", 503, openai_error("Loading model", "503", "unavailable_error"), "transient"),
        Case("not loaded (LM Studio)", 400, openai_error("No models loaded. Please load a model."), "gone"),
        Case(
            "context overflow (LM Studio)",
            400,
            {"error": "The number of tokens to keep from the initial prompt is greater than the context length."},
            "too_long",
        ),
        Case("flagged (OpenRouter)", 403, {"error": {"code": 403, "message": "Input was flagged", "metadata": {}}}, "refused"),
        Case("no credit (OpenRouter)", 402, {"error": {"code": 402, "message": "Insufficient credits"}}, "gone"),
        Case("no images (OpenRouter)", 404, openai_error("No endpoints found that support image input"), "gone"),
        Case("no balance (DeepSeek)", 402, openai_error("Insufficient Balance", "invalid_request_error"), "gone"),
    ],
}
OPENAI_LIKE = ("OpenAI", "OpenAI-compatible servers")

# ---------------------------------------------------------------- streams that answer 200 and then fail

STREAMS: dict[str, list[Case]] = {
    "OpenAI": [
        Case(
            "server error in a stream",
            200,
            'data: {"error": {"message": "The server had an error.", "type": "server_error", "code": null}}\n\n',
            "transient",
            SSE,
        ),
        Case(
            "rate limit in a stream (OpenRouter)",
            200,
            'data: {"error": {"message": "Rate limited upstream", "code": 429}}\n\n',
            "transient",
            SSE,
        ),
    ],
    "Anthropic": [
        Case(
            "overloaded in a stream",
            200,
            'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}\n\n',
            "transient",
            SSE,
        ),
    ],
    "Google": [
        Case("overloaded in a stream", 200, "data: " + json.dumps(google_error(503, "UNAVAILABLE", "Overloaded")) + "\n\n",
             "transient", SSE),
    ],
    "Ollama": [
        Case("error in a stream", 200, '{"error": "llama runner process has terminated"}\n', "transient", "application/x-ndjson"),
    ],
    "Bedrock": [
        Case("throttled in a stream", 200, aws_event("throttlingException", "Too many tokens"), "transient",
             "application/vnd.amazon.eventstream"),
        Case("model error in a stream", 200, aws_event("modelStreamErrorException", "Model error"), "transient",
             "application/vnd.amazon.eventstream"),
        Case("invalid in a stream", 200, aws_event("validationException", "temperature"), "request",
             "application/vnd.amazon.eventstream"),
    ],
}

# ---------------------------------------------------------------- the clients

HI = [{"role": "user", "content": "hi"}]
Ask = Callable[[str, bool], Any]


def used(answer: Any, *, streamed: bool) -> Any:
    return list(answer) if streamed else answer


def openai_chat(module: str, name: str, **settings: Any) -> Ask:
    """Of all clients that are made as OpenAI's is."""

    def ask(url: str, streamed: bool) -> Any:
        with getattr(importlib.import_module(module), name)(api_key="k", max_retries=0, **settings, **where(url)) as client:
            return used(client.chat.completions.create(model="m", messages=HI, stream=streamed), streamed=streamed)

    def where(url: str) -> dict[str, str]:
        return {"azure_endpoint" if name == "AzureOpenAI" else "base_url": url}

    return ask


def openai_responses(url: str, streamed: bool) -> Any:
    openai = importlib.import_module("openai")
    with openai.OpenAI(api_key="k", base_url=url, max_retries=0) as client:
        return used(client.responses.create(model="m", input="hi", stream=streamed), streamed=streamed)


def anthropic(url: str, streamed: bool) -> Any:
    client = importlib.import_module("anthropic").Anthropic(api_key="k", base_url=url, max_retries=0)
    return used(client.messages.create(model="m", max_tokens=5, messages=HI, stream=streamed), streamed=streamed)


def google(url: str, streamed: bool) -> Any:
    client = importlib.import_module("google.genai").Client(api_key="k", http_options={"base_url": url})
    if streamed:
        return list(client.models.generate_content_stream(model="m", contents="hi"))
    return client.models.generate_content(model="m", contents="hi")


def mistral(url: str, streamed: bool) -> Any:
    client = importlib.import_module("mistralai.client").Mistral(api_key="k", server_url=url)
    return list(client.chat.stream(model="m", messages=HI)) if streamed else client.chat.complete(model="m", messages=HI)


def ollama(url: str, streamed: bool) -> Any:
    client = importlib.import_module("ollama").Client(host=url)
    return used(client.chat(model="m", messages=HI, stream=streamed), streamed=streamed)


def cohere(url: str, streamed: bool) -> Any:
    client = importlib.import_module("cohere").ClientV2(api_key="k", base_url=url)
    call = client.chat_stream if streamed else client.chat
    return used(call(model="m", messages=HI, request_options={"max_retries": 0}), streamed=streamed)


def bedrock(url: str, streamed: bool) -> Any:
    config = importlib.import_module("botocore.config").Config(retries={"total_max_attempts": 1})
    session = importlib.import_module("boto3").Session("k", "s", region_name="us-east-1")
    client = session.client("bedrock-runtime", endpoint_url=url, config=config)
    messages = [{"role": "user", "content": [{"text": "hi"}]}]
    if streamed:
        return list(client.converse_stream(modelId="m", messages=messages)["stream"])
    return client.converse(modelId="m", messages=messages)


def langchain(module: str, name: str, at: str = "base_url", **settings: Any) -> Ask:
    def ask(url: str, streamed: bool) -> Any:
        model = getattr(importlib.import_module(module), name)(**{"model": "m", at: url, **settings})
        return list(model.stream("hi")) if streamed else model.invoke("hi")

    return ask


def llamaindex(module: str, name: str, at: str = "api_base", **settings: Any) -> Ask:
    def ask(url: str, streamed: bool) -> Any:
        model = getattr(importlib.import_module(module), name)(**{"model": "m", at: url, **settings})
        messages = [importlib.import_module("llama_index.core.llms").ChatMessage("hi")]
        return list(model.stream_chat(messages)) if streamed else model.chat(messages)

    return ask


def google_of_llamaindex(url: str, streamed: bool) -> Any:
    options = importlib.import_module("google.genai.types").HttpOptions(base_url=url)
    return llamaindex(
        *("llama_index.llms.google_genai", "GoogleGenAI", "_"),
        api_key="k",
        model="gemini-2.5-flash",
        http_options=options,
        context_window=1000,
        max_retries=0,
    )(url, streamed)


KEY: dict[str, Any] = {"api_key": "k", "max_retries": 0}
AWS = {"region_name": "us-east-1", "aws_access_key_id": "k", "aws_secret_access_key": "s"}
# The package of each client, which providers' answers it is given, and how it asks.
CLIENTS: dict[str, tuple[tuple[str, ...], Ask]] = {
    "openai": (OPENAI_LIKE, openai_chat("openai", "OpenAI")),
    "openai (Responses)": (("OpenAI",), openai_responses),
    "openai (Azure)": (("Azure OpenAI",), openai_chat("openai", "AzureOpenAI", api_version="1")),
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
        (*OPENAI_LIKE, "Fireworks and Together"),
        llamaindex("llama_index.llms.openai_like", "OpenAILike", is_chat_model=True, **KEY),
    ),
    "llama_index.llms.openai": (("OpenAI",), llamaindex("llama_index.llms.openai", "OpenAI", model="gpt-4o", **KEY)),
    "llama_index.llms.azure_openai": (
        ("Azure OpenAI",),
        llamaindex(
            "llama_index.llms.azure_openai", "AzureOpenAI", "azure_endpoint", engine="e", api_version="1",
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
            "langchain_aws", "ChatBedrockConverse", "endpoint_url", provider="amazon", disable_streaming=False,
            max_retries=1, **AWS,
        ),
    ),
    "llama_index.llms.bedrock_converse": (
        ("Bedrock",),
        llamaindex(
            "llama_index.llms.bedrock_converse", "BedrockConverse", "endpoint_url",
            model="anthropic.claude-3-haiku-20240307-v1:0", max_retries=1, **AWS,
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
    "fireworks": (("Fireworks and Together",), openai_chat("fireworks", "Fireworks")),
    "langchain_fireworks": (("Fireworks and Together",), langchain("langchain_fireworks", "ChatFireworks", **KEY)),
    "together": (("Fireworks and Together",), openai_chat("together", "Together")),
    "langchain_together": (("Fireworks and Together",), langchain("langchain_together", "ChatTogether", **KEY)),
    "litellm": (
        OPENAI_LIKE,
        lambda url, streamed: used(
            importlib.import_module("litellm").completion(
                model="openai/m", api_base=url, api_key="k", num_retries=0, max_retries=0, messages=HI, stream=streamed
            ),
            streamed=streamed,
        ),
    ),
}

# ---------------------------------------------------------------- the server


_MODEL = Case("a model", 200, {"name": "models/m", "inputTokenLimit": 1000, "outputTokenLimit": 100}, "other")


class _Handler(BaseHTTPRequestHandler):
    answer: Case

    def do_POST(self) -> None:
        while self.headers.get("Transfer-Encoding") == "chunked" and self.rfile.readline() not in {b"0\r\n", b""}:
            pass
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        _, status, body, _, kind = type(self).answer
        content = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Connection", "close"),
            ("x-amzn-ErrorType", type(self).answer.what.partition(",")[0]),
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


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, type[_Handler]]]:
    """The base URL, and where to put the next answer."""
    handler = type("Handler", (_Handler,), {})
    serving = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}", handler
    serving.shutdown()
    thread.join()
    serving.server_close()


def raised_by(client: str, server: tuple[str, type[_Handler]], case: Case, *, streamed: bool = False) -> Exception:
    """What a real client raises after an answer."""
    pytest.importorskip(client.partition(" ")[0])
    url, handler = server
    handler.answer = case
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever it is
        CLIENTS[client][1](url, streamed)
    return caught.value


def named(client: str, case: Case) -> Any:
    return pytest.param(client, case, id=f"{client}: {case.what}")


@pytest.mark.parametrize(
    ("client", "case"),
    [named(client, case) for client, (of, _) in CLIENTS.items() for name in of for case in [*PROVIDERS[name], *ANYWHERE]],
)
def test_errors_of_real_clients(client: str, case: Case, server: tuple[str, type[_Handler]]) -> None:
    """By each client of a provider alike, raw or of a framework."""
    error = raised_by(client, server, case)
    assert classify(error) == case.failure, repr(error)


@pytest.mark.parametrize(
    ("client", "case"),
    [named(client, case) for client, (of, _) in CLIENTS.items() for name in of for case in STREAMS.get(name, [])],
)
def test_errors_in_streams_of_real_clients(client: str, case: Case, server: tuple[str, type[_Handler]]) -> None:
    """Their status is 200."""
    error = raised_by(client, server, case, streamed=True)
    assert classify(error) == case.failure, repr(error)


GARBAGE = [
    Case("a page instead of an answer", 200, b"<html>proxy</html>", "garbled"),
    Case("bytes that are no UTF-8", 200, b'{"choices": "\xff\xfe"}', "garbled"),
    Case("half of an answer", 200, b'{"choices": [', "garbled"),
]


@pytest.mark.parametrize(("client", "case"), [named(client, case) for client in CLIENTS for case in GARBAGE])
def test_garbage_of_status_200(client: str, case: Case, server: tuple[str, type[_Handler]]) -> None:
    """It is survivable and counts against the model, whatever the client makes of it."""
    pytest.importorskip(client.partition(" ")[0])
    url, handler = server
    handler.answer = case
    try:
        CLIENTS[client][1](url, False)
    except Exception as error:  # noqa: BLE001
        assert classify(error) in {"garbled", "other", "transient"}, repr(error)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_closed_port_is_transient(client: str) -> None:
    """A server that is away."""
    pytest.importorskip(client.partition(" ")[0])
    with pytest.raises(Exception) as caught:  # noqa: PT011
        CLIENTS[client][1]("http://127.0.0.1:9", False)
    assert classify(caught.value) == "transient", repr(caught.value)


@pytest.mark.parametrize("client", CLIENTS)
def test_how_long_to_wait_is_read_from_real_clients(client: str, server: tuple[str, type[_Handler]]) -> None:
    """From the header, in whichever error of the chain it is."""
    case = next(case for case in PROVIDERS[CLIENTS[client][0][0]] if case.status == 429)  # noqa: PLR2004
    assert retry_after(raised_by(client, server, case)) == 7
