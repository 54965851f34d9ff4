"""`stream_events(version="v3")` of a router: the events of whichever model answers, in one stream.

A stream of LangChain belongs to one run of one model. A router's own one is fed with the events of the model that
answers, once it is known which one that is.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from langchain_core.language_models.chat_model_stream import AsyncChatModelStream, ChatModelStream

from unirouter_integrations.grading import Usage
from unirouter_integrations.grading._models import usage_of
from unirouter_integrations.langchain._messages import reports_end
from unirouter_integrations.serving._failures import reports_refusal
from unirouter_integrations.serving._streams import StreamPart

Event = Mapping[str, Any]

_LAST = frozenset({"message-finish", "error"})
_SILENT = frozenset({None, "text", "text-delta", "reasoning", "reasoning-delta", "non_standard"})  # but for their text


def events_stream(events: Iterator[Event]) -> ChatModelStream:
    """Make a stream of the events of a model. They are read as the stream is."""
    stream = ChatModelStream()
    events = _until_the_end(events)

    def read_one() -> bool:
        try:
            event = next(events, None)
        except BaseException as error:  # noqa: BLE001  # the stream raises it, from whatever is being read of it
            stream.fail(error)
            return False
        if event is not None:
            stream.dispatch(event)
        return event is not None

    stream.bind_pump(read_one)
    return stream


def aevents_stream(events: AsyncGenerator[Event, None]) -> AsyncChatModelStream:
    """Async version of `events_stream`. A task reads the events, from when the stream is first read until `aclose`."""
    stream = AsyncChatModelStream()

    async def read_all() -> None:
        last: Event | None = None
        try:
            async with aclosing(events):
                async for event in events:
                    if event["event"] in _LAST:
                        last = event
                    else:
                        stream.dispatch(event)
            if last is not None:
                stream.dispatch(last)
        except Exception as error:  # noqa: BLE001  # the stream raises it
            stream.fail(error)
        except BaseException as error:  # cancelled
            stream.fail(error)
            raise

    async def start() -> None:
        if stream._producer_task is None:  # noqa: SLF001  # what `aclose` cancels
            stream._producer_task = asyncio.create_task(read_all())  # noqa: SLF001

    stream.set_start(start)
    return stream


def _until_the_end(events: Iterator[Event]) -> Iterator[Event]:
    """The events. The last one completes the message: it comes when the stream has ended, and so was not cut."""
    last: Event | None = None
    for event in events:
        if event["event"] in _LAST:
            last = event
        else:
            yield event
    if last is not None:
        yield last


def describe_event(event: Event) -> StreamPart:
    """What one event of a stream says, see `describe`."""
    metadata = event.get("metadata") or {}
    delta = event.get("delta") or {}
    said = delta or event.get("content") or {}
    kind = said.get("type")
    says_something = bool(said.get("text") or said.get("reasoning")) or kind not in _SILENT
    return StreamPart(
        text=delta.get("text") or "",
        has_content=says_something,
        reports_finish="provider" in metadata or "model_provider" in metadata,
        is_finish=reports_end(metadata),
        is_refusal=any(map(reports_refusal, (metadata, event.get("additional_kwargs"), [said]))),
        calls_tool="tool_call" in str(kind).replace("-", "_"),
    )


def usage_in_event(event: Event) -> Usage | None:
    """The tokens that an event reports; None if it reports none."""
    return usage_of(event.get("usage"))


def noted_event(event: Event, note: Mapping[str, Any]) -> Event:
    """The event; with its decision if it is the last one, whose metadata become those of the message."""
    if event["event"] != "message-finish":
        return event
    return {**event, "metadata": {"unirouter": note, **(event.get("metadata") or {})}}
