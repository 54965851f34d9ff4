"""What LLMs report while LlamaIndex calls them for a template, a form or a query: it hands on only what they wrote.

A text does not say whether it was refused or cut, and the refining synthesizers log some errors and go on. The events
and spans of LlamaIndex's instrumentation do.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # as all of its users import it
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
)
from llama_index.core.instrumentation.span_handlers import NullSpanHandler
from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from typing_extensions import override

from unirouter_integrations.errors import StreamCutError

T = TypeVar("T")

_CALLS = frozenset({"chat", "achat", "complete", "acomplete", "predict", "apredict"})  # whose errors are the model's


@dataclass
class _Reports:
    answers: list[Any] = field(default_factory=list)
    parts: list[Any] = field(default_factory=list)
    errors: list[tuple[object, BaseException]] = field(default_factory=list)  # each with the LLM that raised it


_reports: ContextVar[_Reports | None] = ContextVar("unirouter_reports", default=None)


class Written(NamedTuple, Generic[T]):
    """What LLMs wrote, or one part of it.

    Attributes:
        value: The text, form or response; None for the end of a stream.
        responses: The responses, or the parts of them, that led to it.
    """

    value: T
    responses: list[Any]


def written(model: LLM, write: Callable[[], T]) -> Written[T]:
    """Have an LLM write something.

    Raises:
        Exception: What the model raised, even if LlamaIndex went on.
    """
    with _reported() as reports:
        value = write()
    return _judged(model, value, reports)


async def awritten(model: LLM, write: Callable[[], Awaitable[T]]) -> Written[T]:
    """Async version of `written`."""
    with _reported() as reports:
        value = await write()
    return _judged(model, value, reports)


def written_parts(name: str, stream: Iterator[T]) -> Generator[Written[T | None], None, None]:
    """The parts of a stream that LLMs write.

    Raises:
        StreamCutError: If there is none, and no LLM reported any. `name` is that of the model.
    """
    has_begun = False
    try:
        while True:
            with _reported() as reports:
                value: T | None = next(stream, None)
            has_begun |= value is not None or bool(reports.parts)
            if not has_begun:
                raise StreamCutError(name)
            yield Written(value, reports.parts)
            if value is None:
                return
    finally:
        if isinstance(stream, Generator):
            stream.close()


async def awritten_parts(name: str, stream: AsyncGenerator[T, None]) -> AsyncGenerator[Written[T | None], None]:
    """Async version of `written_parts`."""
    has_begun = False
    try:
        while True:
            with _reported() as reports:
                value: T | None = await anext(stream, None)
            has_begun |= value is not None or bool(reports.parts)
            if not has_begun:
                raise StreamCutError(name)
            yield Written(value, reports.parts)
            if value is None:
                return
    finally:
        await stream.aclose()


def values(parts: Generator[Written[T | None], None, None]) -> Generator[T, None, None]:
    """What was written, part by part."""
    try:
        for part in parts:
            if part.value is not None:
                yield part.value
    finally:
        parts.close()


async def avalues(parts: AsyncGenerator[Written[T | None], None]) -> AsyncGenerator[T, None]:
    """Async version of `values`."""
    try:
        async for part in parts:
            if part.value is not None:
                yield part.value
    finally:
        await parts.aclose()


def _judged(model: LLM, value: T, reports: _Reports) -> Written[T]:
    for raised_by, error in reports.errors:
        if raised_by is model:
            raise error
    return Written(value, reports.answers)


@contextmanager
def _reported() -> Iterator[_Reports]:
    """Collect the reports of the LLMs that are called in the block, except those of blocks inside it."""
    reports = _Reports()
    token = _reports.set(reports)
    try:
        yield reports
    finally:
        _reports.reset(token)


class _Responses(BaseEventHandler):
    @override
    def handle(self, event: BaseEvent, **_: Any) -> None:
        reports = _reports.get()
        if reports is None or (event.span_id or "").startswith(f"{StructuredLLM.__name__}."):
            return  # a structured LLM calls another one, and the raw response that it reports is its form
        if isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent):
            reports.answers.append(event.response)
        elif isinstance(event, LLMChatInProgressEvent | LLMCompletionInProgressEvent):
            reports.parts.append(event.response)


class _Errors(NullSpanHandler):
    @override
    def span_drop(
        self, id_: str, bound_args: Any, instance: Any = None, err: BaseException | None = None, **_: Any
    ) -> None:
        reports = _reports.get()
        called = id_.rpartition(".")[2].partition("-")[0]
        if reports is not None and err is not None and called in _CALLS:
            reports.errors.append((instance, err))


get_dispatcher().add_event_handler(_Responses())
get_dispatcher().add_span_handler(_Errors())
