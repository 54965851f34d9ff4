"""Models of every kind under one protocol: an example in, an `Answer` out.

Models are recognized by their methods, not by their classes, so that no framework is imported before one of its models
is called.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from operator import index
from typing import Any, Protocol

from unirouter_integrations._concurrency import in_thread
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.grading._records import Answer, Example, Usage

_SECRET = re.compile(r"api_?key|secret|password|credential|authorization|headers|(^|_)token$", re.IGNORECASE)
# Settings that do not change an answer: after a new timeout, the answers in a journal are not paid for again.
_IRRELEVANT_SETTINGS = frozenset(
    "cache callback_manager callbacks client async_client root_client root_async_client custom_get_token_ids "  # noqa: SIM905
    "default_request_timeout disable_streaming http_client http_async_client async_http_client max_retries metadata "
    "name profile rate_limiter request_timeout stream stream_usage streaming tags timeout verbose".split()
)
_ENDPOINTS = ("base_url", "openai_api_base", "api_base", "azure_endpoint", "endpoint_url")
# What providers and their clients call the limit of the output, ...
_OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "num_predict", "max_new_tokens")
# ... the tokens read, the tokens written, ...
_INPUT_TOKENS = ("prompt_tokens", "input_tokens", "prompt_token_count", "inputTokens", "prompt_eval_count")
_OUTPUT_TOKENS = ("completion_tokens", "output_tokens", "candidates_token_count", "outputTokens", "eval_count")
# ... where they report how many tokens came from the prompt cache, ...
_INPUT_DETAILS = ("prompt_tokens_details", "input_tokens_details")
# ... and what Anthropic reports in addition to `input_tokens`: tokens read from the cache, and written to it.
_ADDITIONAL_TOKENS = ("cache_read_input_tokens", "cache_creation_input_tokens")

_responses: ContextVar[list[Any] | None] = ContextVar("unirouter_responses", default=None)


@dataclass(frozen=True, eq=False)
class AdaptedModel:
    """A model of any library, as a function from an example to an answer.

    Attributes:
        ask: Sends a prompt.
        settings: The settings that answers depend on (plain JSON), without keys. The journal finds answers by them.
        max_output_tokens: The limit of its output; None if it has none, or does not state it.
    """

    ask: Callable[[str], Awaitable[Answer]]
    settings: Any
    max_output_tokens: int | None = None

    async def __call__(self, example: Example) -> Answer:
        """Return the answer to an example."""
        return await self.ask(example.prompt)


class Runnable(Protocol):
    """A LangChain chat model, or another Runnable that takes a text, such as `prompt | llm | parser`."""

    async def ainvoke(self, prompt: Any, /) -> Any:
        """Return the answer to a prompt."""


class ChatLLM(Protocol):
    """A LlamaIndex `LLM`."""

    @property
    def metadata(self) -> Any:
        """Describes the model."""

    async def achat(self, messages: Any, /) -> Any:
        """Return the answer to some messages."""


class QueryEngine(Protocol):
    """A LlamaIndex query engine."""

    async def aquery(self, query: Any, /) -> Any:
        """Return the answer to a query."""


ModelLike = AdaptedModel | Runnable | ChatLLM | QueryEngine | Callable[[str], object]
"""What `as_model` takes."""


def as_model(model: ModelLike) -> AdaptedModel:
    """Make a model that can be profiled of a model of another library, or of a function.

    Args:
        model: A LangChain chat model or another Runnable that takes a text (`prompt | llm | parser`); a LlamaIndex
            `LLM` or query engine; or a callable, async or not, from a prompt to a text or an `Answer`. Synchronous
            calls are made in threads. The settings of a callable or of a query engine are not known: give it another
            name when you change it.

    Raises:
        InvalidInputError: If it is none of these.
    """
    if isinstance(model, AdaptedModel):
        return model
    if isinstance(model, type):
        msg = f"{model.__name__} is a class; pass an instance of it as the model."
        raise InvalidInputError(msg)
    x: Any = model
    ask: Callable[[Any, str], Awaitable[Answer]]
    if hasattr(x, "ainvoke"):
        ask = _ask_chat_model if hasattr(type(x), "_generate") else _ask_runnable
    elif hasattr(x, "achat") and hasattr(x, "metadata"):
        ask = _ask_llm
    elif hasattr(x, "aquery"):
        ask = _ask_query_engine
    elif callable(x):
        ask = _ask_function
    else:
        msg = (
            f"{type(x).__name__} is not a model. Pass a LangChain chat model or Runnable, a LlamaIndex LLM or query "
            "engine, or a callable from a prompt to a text or an Answer."
        )
        raise InvalidInputError(msg)
    return AdaptedModel(lambda prompt: ask(x, prompt), settings_json(x), _max_output_tokens(x))


def model_name(model: object) -> str:
    """Return the provider's name of a model, under which its price is listed, or the name of its class."""
    return _provider_name(model) or type(_unbound(model)).__name__


def is_same_model(first: object, second: object) -> bool:
    """Whether two objects call the same model of a provider, directly or in a chain."""
    return first is second or any(
        one is other or (type(one) is type(other) and _provider_name(one) == _provider_name(other) is not None)
        for one in _models_in(first)
        for other in _models_in(second)
    )


def _models_in(model: Any) -> list[Any]:
    """Return the models in a chain, without its prompts and parsers, or the model itself."""
    unbound = _unbound(model)
    steps = [found for step in getattr(unbound, "steps", ()) for found in _models_in(step)]
    return [step for step in steps if _provider_name(step)] if hasattr(unbound, "steps") else [unbound]


def settings_json(x: Any) -> Any:
    """Return the settings of an object as plain JSON that is the same in every process, without keys and secrets."""
    if x is None or isinstance(x, bool | int | float | str):
        return x
    if isinstance(x, Mapping):
        named = sorted((str(key), value) for key, value in x.items())
        return {key: settings_json(value) for key, value in named if value is not None and not _SECRET.search(key)}
    if isinstance(x, list | tuple | set | frozenset):
        items = [settings_json(item) for item in x]
        return items if isinstance(x, list | tuple) else sorted(items, key=json.dumps)
    if hasattr(x, "get_secret_value"):
        return None
    # Looked up on the class: a bound Runnable passes unknown attributes on to its model.
    fields = getattr(x, "_identifying_params", None) if hasattr(type(x), "_identifying_params") else None
    if not fields:
        fields = {name: getattr(x, name, None) for name in getattr(type(x), "model_fields", ())}
    if fields:
        kept = {name: value for name, value in fields.items() if name not in _IRRELEVANT_SETTINGS}
        # Two servers may use the same name for different models.
        kept |= {name: str(getattr(x, name)) for name in _ENDPOINTS if getattr(x, name, None) is not None}
        return [type(x).__qualname__, settings_json(kept)]
    function = getattr(x, "func", x)
    return [type(x).__qualname__, getattr(function, "__qualname__", None)]


def digest(*parts: Any) -> str:
    """Return a short digest of plain JSON."""
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def _unbound(model: Any) -> Any:
    while hasattr(model, "bound"):
        model = model.bound
    return model


def _max_output_tokens(model: Any) -> int | None:
    """Return the limit of the output that a model was made with or bound to."""
    limit = _first_count(getattr(model, "kwargs", {}), _OUTPUT_LIMITS)
    if limit is None:
        limit = _max_output_tokens(model.bound) if hasattr(model, "bound") else _first_count(model, _OUTPUT_LIMITS)
    return limit if limit is not None and limit > 0 else None


def _provider_name(model: Any) -> str | None:
    unbound = _unbound(model)
    names = (getattr(unbound, name, None) for name in ("model_name", "model", "model_id"))
    return next((name for name in names if isinstance(name, str) and name), None)


async def _ask_chat_model(model: Any, prompt: str) -> Answer:
    return answer_of(await model.ainvoke(prompt))


async def _ask_runnable(model: Any, prompt: str) -> Answer:
    """Ask a chain. It may call several models and end in a parser, so the tokens of all runs in it are counted."""
    from langchain_core.callbacks import UsageMetadataCallbackHandler

    counter = UsageMetadataCallbackHandler()
    answer = answer_of(await model.ainvoke(prompt, {"callbacks": [counter]}))
    used = [usage for each in counter.usage_metadata.values() if (usage := usage_of(each)) is not None]
    return Answer(answer.text, total_usage(used), answer.tool_calls) if used else answer


async def _ask_llm(model: Any, prompt: str) -> Answer:
    from llama_index.core.llms import ChatMessage

    message = ChatMessage(role="user", content=prompt)
    defined_in = next(base for base in type(model).__mro__ if "achat" in vars(base))
    # CustomLLM.achat calls the synchronous chat() in the event loop, which would block all other calls.
    chat = in_thread(model.chat) if defined_in.__name__ == "CustomLLM" else model.achat
    response = await chat([message])
    answer = answer_of(response)
    if hasattr(model, "get_tool_calls_from_response") and model.metadata.is_function_calling_model:
        found = model.get_tool_calls_from_response(response, error_on_no_tool_call=False)
        calls = tuple({"name": call.tool_name, "args": dict(call.tool_kwargs)} for call in found)
        answer = replace(answer, tool_calls=calls)
    return answer


async def _ask_query_engine(engine: Any, prompt: str) -> Answer:
    """Ask a query engine. It reports no tokens, but the LLMs that it calls dispatch an event with their response."""
    with collected_responses() as responses:
        text = str(await engine.aquery(prompt))
    # A completion model that chats dispatches two events for one response.
    distinct = {id(response.raw): response for response in responses}.values()
    used = [usage for response in distinct if (usage := usage_of_response(response)) is not None]
    return Answer(text, total_usage(used) if used else None)


@contextmanager
def collected_responses() -> Iterator[list[Any]]:
    """Collect the responses of the LlamaIndex LLMs that are called in the block, also for outer blocks."""
    _collect_responses()
    outer, responses = _responses.get(), list[Any]()
    token = _responses.set(responses)
    try:
        yield responses
    finally:
        _responses.reset(token)
        if outer is not None:
            outer += responses


@cache
def _collect_responses() -> None:
    """Listen to the events of LlamaIndex, once per process. Only responses inside `collected_responses` are kept."""
    from llama_index_instrumentation import get_dispatcher
    from llama_index_instrumentation.event_handlers import BaseEventHandler

    class Collector(BaseEventHandler):
        def handle(self, event: Any, **_: Any) -> None:
            responses = _responses.get()
            if responses is not None and event.class_name() in {"LLMChatEndEvent", "LLMCompletionEndEvent"}:
                responses.append(event.response)

    get_dispatcher().add_event_handler(Collector())


async def _ask_function(function: Any, prompt: str) -> Answer:
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        return answer_of(await function(prompt))
    output = await in_thread(function)(prompt)
    return answer_of(await output if inspect.isawaitable(output) else output)


def answer_of(output: Any) -> Answer:
    """Turn the output of a model into an answer. The output of a parser becomes JSON."""
    if isinstance(output, Answer):
        if output.usage is None or all(type(tokens) is int for tokens in output.usage):
            return output
        return replace(output, usage=Usage(*map(index, output.usage)))
    if isinstance(output, str):
        return Answer(output)
    if hasattr(output, "usage_metadata") and isinstance(getattr(output, "text", None), str):
        calls = tuple({"name": call["name"], "args": call["args"]} for call in output.tool_calls)
        logprob = _mean_logprob(getattr(output, "response_metadata", None))
        return Answer(str(output.text), usage_of(output.usage_metadata), calls, logprob=logprob)
    if hasattr(output, "raw") and hasattr(output, "delta"):  # a chat or completion response of LlamaIndex
        text = output.message.content if hasattr(output, "message") else output.text
        choices = field_of(output.raw, "choices")
        logprob = _mean_logprob(choices[0]) if isinstance(choices, list) and choices else None
        return Answer(text or "", usage_of_response(output), logprob=logprob)
    is_pydantic = hasattr(output, "model_dump")
    if is_pydantic or isinstance(output, dict | list | int | float):
        value = output.model_dump(mode="json") if is_pydantic else output
        return Answer(json.dumps(value, ensure_ascii=False, default=str))
    msg = f"A model should answer with a text, a message or an Answer, but this one returned {type(output).__name__}."
    raise InvalidInputError(msg)


def _mean_logprob(metadata: Any) -> float | None:
    """Return the mean log-probability of the tokens of an answer, as OpenAI and compatible providers report them."""
    tokens = field_of(field_of(metadata, "logprobs"), "content")
    found = [field_of(token, "logprob") for token in tokens] if isinstance(tokens, list) else []
    known = [value for value in found if isinstance(value, int | float)]
    return sum(known) / len(known) if known else None


def usage_of_response(response: Any) -> Usage | None:
    """Read the tokens of a chat or completion response of LlamaIndex; None if it reports none."""
    raw = response.raw
    found = usage_of(field_of(raw, "usage") or field_of(raw, "usage_metadata") or raw)
    return found or usage_of(response.additional_kwargs)


def usage_of(report: Any) -> Usage | None:
    """Read the tokens in a provider's or framework's report of a call; None if it reports none."""
    read, written = (_first_count(report, names) for names in (_INPUT_TOKENS, _OUTPUT_TOKENS))
    if read is None and written is None:
        return None
    additional = [_count(report, name) or 0 for name in _ADDITIONAL_TOKENS]
    cached = [_count(field_of(report, details), "cached_tokens") or 0 for details in _INPUT_DETAILS]
    cached += [_count(field_of(report, "input_token_details"), "cache_read") or 0]
    cached += [_count(report, "cached_content_token_count") or 0, additional[0]]
    thoughts = _count(report, "thoughts_token_count") or 0  # Google reports them in addition to those of the candidates
    return Usage((read or 0) + sum(additional), (written or 0) + thoughts, max(cached))


def total_usage(usages: Sequence[Usage]) -> Usage:
    """Add up the tokens of calls."""
    return Usage(*map(sum, zip(*usages, strict=True))) if usages else Usage()


def field_of(report: Any, name: str) -> Any:
    """Return a field of a provider's report, which is a mapping or an object, depending on the client."""
    return report.get(name) if isinstance(report, Mapping) else getattr(report, name, None)


def _count(report: Any, name: str) -> int | None:
    value = field_of(report, name)
    return value if isinstance(value, int) else None


def _first_count(report: Any, names: Sequence[str]) -> int | None:
    return next((count for name in names if (count := _count(report, name)) is not None), None)
