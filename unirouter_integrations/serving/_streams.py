"""Streams: when one has begun, and whether it ended or was cut."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar, cast

from unirouter_integrations.grading import Usage

T = TypeVar("T")

_END: Any = object()


class StreamPart(NamedTuple):
    """What the rules of a call have to know of one part of a stream.

    Attributes:
        text: Its text; empty if it has none.
        has_content: Whether it says something: text, a tool call, reasoning.
        reports_finish: Whether parts of this kind report the end of the answer, so that its absence means a cut.
        is_finish: Whether it reports the end of the answer.
        is_refusal: Whether it reports that the provider refused or filtered the answer.
        calls_tool: Whether it is a part of a call of a tool.
    """

    text: str = ""
    has_content: bool = True
    reports_finish: bool = False
    is_finish: bool = False
    is_refusal: bool = False
    calls_tool: bool = False


@dataclass
class OpenStream(Generic[T]):
    """A stream whose first content has arrived, or that has ended without any.

    Nothing counts as begun before that: providers send parts without content first, such as one that holds the role.

    Attributes:
        parts: The parts so far.
        rest: The rest of the stream; None if it has ended.
        seconds_to_content: How long the first content took.
        usage_of: Reads the tokens that a part reports; None if nobody wants to know.
        usages: What the parts have reported.
    """

    describe: Callable[[Any], StreamPart]
    usage_of: Callable[[Any], Usage | None] | None = None
    usages: list[Usage] = field(default_factory=list)
    parts: list[T] = field(default_factory=list)
    rest: Any = None
    texts: list[str] = field(default_factory=list)
    has_content: bool = False
    reports_finish: bool = False
    is_finished: bool = False
    is_refused: bool = False
    calls_tool: bool = False
    seconds_to_content: float | None = None
    began: float = field(default_factory=time.monotonic)
    context: Context = field(default_factory=copy_context)  # in which a synchronous stream runs, in whatever thread

    def see(self, part: T) -> None:
        """Take note of a part."""
        seen = self.describe(part)
        if seen.text:
            self.texts.append(seen.text)
        if seen.has_content and not self.has_content:
            self.has_content, self.seconds_to_content = True, time.monotonic() - self.began
        self.reports_finish |= seen.reports_finish
        self.is_finished |= seen.is_finish
        self.is_refused |= seen.is_refusal
        self.calls_tool |= seen.calls_tool
        if self.usage_of is not None and (usage := self.usage_of(part)) is not None:
            self.usages.append(usage)

    @property
    def is_cut(self) -> bool:
        """Whether an ended stream was cut: its parts report the end of the answer, and none did."""
        return self.reports_finish and not self.is_finished

    @property
    def partial_text(self) -> str:
        """The text so far."""
        return "".join(self.texts)

    def hold(self, open_stream: Callable[[], Iterator[T]]) -> OpenStream[T]:
        """Open a stream and read it until its first content."""
        stream = self.context.run(open_stream)
        while not self.has_content:
            part = self.context.run(next, stream, _END)
            if part is _END:
                return self
            self.see(part)
            self.parts.append(part)
        self.rest = stream
        return self

    def read(self) -> T | None:
        """Read the next part; None at the end of the stream."""
        part = _END if self.rest is None else self.context.run(next, self.rest, _END)
        if part is _END:
            return None
        self.see(part)
        return cast("T", part)

    async def aread(self) -> T | None:
        """Async version of `read`."""
        part = _END if self.rest is None else await anext(self.rest, _END)
        if part is _END:
            return None
        self.see(part)
        return cast("T", part)

    async def ahold(self, stream: AsyncGenerator[T, None]) -> OpenStream[T]:
        """Async version of `hold`."""
        try:
            async for part in stream:
                self.see(part)
                self.parts.append(part)
                if self.has_content:
                    self.rest = stream
                    return self
        except BaseException:
            await stream.aclose()
            raise
        return self

    def close(self) -> None:
        """Close the model's stream."""
        if hasattr(self.rest, "close"):
            with suppress(RuntimeError, ValueError):  # a thread that was abandoned still reads it
                self.context.run(self.rest.close)

    async def aclose(self) -> None:
        """Async version of `close`."""
        if self.rest is not None:
            await self.rest.aclose()
