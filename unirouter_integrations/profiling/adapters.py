"""Whatever answers prompts, as profiling calls it.

Models are told apart by what they have, not by their class, so no framework is imported before one of its models is
called.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from operator import index
from typing import Any

from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.profiling.records import Answer, Example, Usage

# Neither changes an answer, and a key that is replaced, or a longer timeout, should not pay for all of them again.
_SECRET = re.compile(r"api_?key|secret|password|credential|authorization|headers|(^|_)token$", re.IGNORECASE)
_NOT_OF_THE_ANSWER = frozenset(
    "cache callback_manager callbacks client async_client root_client root_async_client custom_get_token_ids "  # noqa: SIM905
    "default_request_timeout disable_streaming http_client http_async_client async_http_client max_retries metadata "
    "name profile rate_limiter request_timeout stream stream_usage streaming tags timeout verbose".split()
)
# The names under which providers report tokens: those read, written, and read from the prompt cache.
_READ = ("prompt_tokens", "input_tokens", "prompt_token_count", "inputTokens", "prompt_eval_count")
_WRITTEN = ("completion_tokens", "output_tokens", "candidates_token_count", "outputTokens", "eval_count")
_DETAILS = ("prompt_tokens_details", "input_tokens_details")
# Anthropic reports these beside `input_tokens`, not in it.
_BESIDE = ("cache_read_input_tokens", "cache_creation_input_tokens")

# The names of the limit of its output in the clients of providers.
_MOST_OUTPUT = ("max_completion_tokens", "max_tokens", "max_output_tokens", "num_predict", "max_new_tokens")
_ENDPOINTS = ("base_url", "openai_api_base", "api_base", "azure_endpoint", "endpoint_url")

_counted: ContextVar[list[Any] | None] = ContextVar("unirouter_counted", default=None)


@dataclass(frozen=True, eq=False)
class AdaptedModel:
    """Somebody's model, under our protocol: called with an example, it gives the answer when awaited.

    Attributes:
        ask: From a prompt to what the model gives.
        settings: What its answers depend on (plain JSON), without keys; answers in the journal are found by it.
        most_output: How many tokens it may write at most; None if it does not say.
    """

    ask: Callable[[str], Awaitable[Answer]]
    settings: Any
    most_output: int | None = None

    async def __call__(self, example: Example) -> Answer:
        """The answer to an example."""
        return await self.ask(example.prompt)


def as_model(model: object) -> AdaptedModel:
    """Make of what a user has a model that can be profiled.

    Args:
        model: A LangChain chat model or any other Runnable that takes a text (`prompt | llm | parser`); a LlamaIndex
            `LLM` or query engine; or a callable, async or not, from the prompt to a text or an `Answer`. What only
            works synchronously is called in threads. Of a callable and of a query engine no settings are known: give
            them another name when they change.

    Raises:
        InvalidInputError: If it is none of these.
    """
    if isinstance(model, AdaptedModel):
        return model
    x: Any = model
    ask: Callable[[Any, str], Awaitable[Answer]]
    if isinstance(x, type):
        msg = f"{x.__name__} is a class; pass an instance of it as the model."
        raise InvalidInputError(msg)
    if hasattr(x, "ainvoke"):
        ask = _ask_chat_model if hasattr(type(x), "_generate") else _ask_runnable
    elif hasattr(x, "achat") and hasattr(x, "metadata"):
        ask = _ask_llm
    elif hasattr(x, "aquery"):
        ask = _ask_engine
    elif callable(x):
        ask = _ask_function
    else:
        msg = (
            f"{type(x).__name__} is not a model. Pass a LangChain chat model or Runnable, a LlamaIndex LLM or query "
            "engine, or a callable from the prompt to a text or an Answer."
        )
        raise InvalidInputError(msg)
    return AdaptedModel(lambda prompt: ask(x, prompt), plain(x), _most_output(x))


def model_name(model: object) -> str:
    """The provider's name of a model, by which its price can be looked up; of its class, if it has none."""
    return _identifier(model) or type(_bare(model)).__name__


def is_same_model(first: object, second: object) -> bool:
    """Whether two models are one, or two objects for one model of a provider, or one is a chain with the other."""
    return first is second or any(
        one is other or (type(one) is type(other) and _identifier(one) == _identifier(other) is not None)
        for one in _models_in(first)
        for other in _models_in(second)
    )


def _models_in(model: Any) -> list[Any]:
    """The model, or those in a chain; a parser or a prompt is none."""
    bare = _bare(model)
    steps = [found for step in getattr(bare, "steps", ()) for found in _models_in(step)]
    return [step for step in steps if _identifier(step)] if hasattr(bare, "steps") else [bare]


def plain(x: Any) -> Any:
    """The settings of something as plain JSON that is the same in every process, without keys and secrets."""
    if x is None or isinstance(x, bool | int | float | str):
        return x
    if isinstance(x, Mapping):
        named = sorted((str(key), value) for key, value in x.items())
        return {key: plain(value) for key, value in named if value is not None and not _SECRET.search(key)}
    if isinstance(x, list | tuple | set | frozenset):
        items = [plain(item) for item in x]
        return items if isinstance(x, list | tuple) else sorted(items, key=json.dumps)
    if hasattr(x, "get_secret_value"):
        return None
    # Asked of the class, as a binding passes on what its model has.
    fields = getattr(x, "_identifying_params", None) if hasattr(type(x), "_identifying_params") else None
    if not fields:
        fields = {name: getattr(x, name, None) for name in getattr(type(x), "model_fields", ())}
    if fields:
        kept = {name: value for name, value in fields.items() if name not in _NOT_OF_THE_ANSWER}
        # Two servers may have models of the same name.
        kept |= {name: str(getattr(x, name)) for name in _ENDPOINTS if getattr(x, name, None) is not None}
        return [type(x).__qualname__, plain(kept)]
    function = getattr(x, "func", x)
    return [type(x).__qualname__, getattr(function, "__qualname__", None)]


def _bare(model: Any) -> Any:
    while hasattr(model, "bound"):
        model = model.bound
    return model


def _most_output(model: Any) -> int | None:
    """The limit of its output that a model was made or bound with."""
    limit = _first(getattr(model, "kwargs", {}), _MOST_OUTPUT)
    if limit is None:
        limit = _most_output(model.bound) if hasattr(model, "bound") else _first(model, _MOST_OUTPUT)
    return limit if limit is not None and limit > 0 else None


def _identifier(model: Any) -> str | None:
    bare = _bare(model)
    found = (getattr(bare, name, None) for name in ("model_name", "model", "model_id"))
    return next((name for name in found if isinstance(name, str) and name), None)


async def _ask_chat_model(model: Any, prompt: str) -> Answer:
    return answer_of(await model.ainvoke(prompt))


async def _ask_runnable(model: Any, prompt: str) -> Answer:
    """A chain may call several models, and end in a parser: its tokens are those of all runs inside it."""
    from langchain_core.callbacks import UsageMetadataCallbackHandler

    counter = UsageMetadataCallbackHandler()
    answer = answer_of(await model.ainvoke(prompt, {"callbacks": [counter]}))
    used = [usage for each in counter.usage_metadata.values() if (usage := usage_of(each)) is not None]
    return Answer(answer.text, _total(used), answer.tool_calls) if used else answer


async def _ask_llm(model: Any, prompt: str) -> Answer:
    from llama_index.core.llms import ChatMessage

    message = ChatMessage(role="user", content=prompt)
    defined_in = next(base for base in type(model).__mro__ if "achat" in vars(base))
    # CustomLLM.achat calls chat() as it is, which would hold up all other calls.
    chat = in_thread(model.chat) if defined_in.__name__ == "CustomLLM" else model.achat
    response = await chat([message])
    answer = answer_of(response)
    if hasattr(model, "get_tool_calls_from_response") and model.metadata.is_function_calling_model:
        found = model.get_tool_calls_from_response(response, error_on_no_tool_call=False)
        calls = tuple({"name": call.tool_name, "args": dict(call.tool_kwargs)} for call in found)
        answer = replace(answer, tool_calls=calls)
    return answer


async def _ask_engine(engine: Any, prompt: str) -> Answer:
    """A query engine says nothing of tokens, but the LLMs that it calls dispatch an event with their response."""
    _count_responses()
    responses: list[Any] = []
    token = _counted.set(responses)
    try:
        text = str(await engine.aquery(prompt))
    finally:
        _counted.reset(token)
    # A completion model that chats dispatches two events for one response.
    distinct = {id(response.raw): response for response in responses}.values()
    used = [usage for response in distinct if (usage := _usage_of_response(response)) is not None]
    return Answer(text, _total(used) if used else None)


@cache
def _count_responses() -> None:
    """Listen to the events of LlamaIndex, once for the process; only what a query engine of ours does is kept."""
    from llama_index_instrumentation import get_dispatcher
    from llama_index_instrumentation.event_handlers import BaseEventHandler

    class Counter(BaseEventHandler):
        def handle(self, event: Any, **_: Any) -> None:
            responses = _counted.get()
            if responses is not None and event.class_name() in {"LLMChatEndEvent", "LLMCompletionEndEvent"}:
                responses.append(event.response)

    get_dispatcher().add_event_handler(Counter())


async def _ask_function(function: Any, prompt: str) -> Answer:
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        return answer_of(await function(prompt))
    output = await in_thread(function)(prompt)
    return answer_of(await output if inspect.isawaitable(output) else output)


def in_thread(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """The function, awaitable; each call has a thread of its own.

    An event loop has too few for many calls at once, and would wait at its end for one that never returns.
    """
    import asyncio
    import threading
    from contextvars import copy_context

    async def call(*arguments: Any) -> Any:
        loop, context = asyncio.get_running_loop(), copy_context()
        done = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if not done.done():
                done.set_result(result) if error is None else done.set_exception(error)

        def work() -> None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = context.run(function, *arguments)
            except StopIteration as stopped:  # which no future can hold
                error = RuntimeError("It raised StopIteration.")
                error.__cause__ = stopped
            except Exception as raised:  # noqa: BLE001  # it is raised where the call is awaited
                error = raised
            except BaseException as raised:  # noqa: BLE001  # such as SystemExit, which would end the event loop
                error = RuntimeError(f"It raised {type(raised).__name__}.")
                error.__cause__ = raised
            with suppress(RuntimeError):  # nobody waits any more, not even the loop
                loop.call_soon_threadsafe(settle, result, error)

        threading.Thread(target=work, name="unirouter-profiling", daemon=True).start()
        return await done

    return call


def answer_of(output: Any) -> Answer:
    """What a Runnable or a callable gave, as an answer. What a parser has made of the text is JSON."""
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
    if hasattr(output, "raw") and hasattr(output, "delta"):  # a chat or a completion of LlamaIndex
        text = output.message.content if hasattr(output, "message") else output.text
        choices = field_of(output.raw, "choices")
        logprob = _mean_logprob(choices[0]) if isinstance(choices, list) and choices else None
        return Answer(text or "", _usage_of_response(output), logprob=logprob)
    is_form = hasattr(output, "model_dump")
    if is_form or isinstance(output, dict | list | int | float):
        value = output.model_dump(mode="json") if is_form else output
        return Answer(json.dumps(value, ensure_ascii=False, default=str))
    msg = f"A model should answer with a text, a message or an Answer, but this one gave {type(output).__name__}."
    raise InvalidInputError(msg)


def _mean_logprob(metadata: Any) -> float | None:
    """The mean log-probability of the tokens of an answer, as OpenAI and those who follow it report them."""
    tokens = field_of(field_of(metadata, "logprobs"), "content")
    found = [field_of(token, "logprob") for token in tokens] if isinstance(tokens, list) else []
    known = [value for value in found if isinstance(value, int | float)]
    return sum(known) / len(known) if known else None


def _usage_of_response(response: Any) -> Usage | None:
    raw = response.raw
    found = usage_of(field_of(raw, "usage") or field_of(raw, "usage_metadata") or raw)
    return found or usage_of(response.additional_kwargs)


def usage_of(report: Any) -> Usage | None:
    """The tokens in what a provider or a framework reports of a call; None if it reports none."""
    read, written = (_first(report, names) for names in (_READ, _WRITTEN))
    if read is None and written is None:
        return None
    beside = [_count(report, name) or 0 for name in _BESIDE]
    cached = [_count(field_of(report, details), "cached_tokens") or 0 for details in _DETAILS]
    cached += [_count(field_of(report, "input_token_details"), "cache_read") or 0]
    cached += [_count(report, "cached_content_token_count") or 0, beside[0]]
    thought = _count(report, "thoughts_token_count") or 0  # which Google does not count among those of the candidates
    return Usage((read or 0) + sum(beside), (written or 0) + thought, max(cached))


def _total(used: Sequence[Usage]) -> Usage:
    return Usage(*map(sum, zip(*used, strict=True)))


def field_of(x: Any, name: str) -> Any:
    """A field of what a provider reports, which is a mapping with some clients and an object with others."""
    return x.get(name) if isinstance(x, Mapping) else getattr(x, name, None)


def _count(x: Any, name: str) -> int | None:
    value = field_of(x, name)
    return value if isinstance(value, int) else None


def _first(x: Any, names: Sequence[str]) -> int | None:
    return next((number for name in names if (number := _count(x, name)) is not None), None)
