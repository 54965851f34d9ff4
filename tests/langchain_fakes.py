"""Chat models of LangChain that stream as the clients of OpenAI do, and break as their providers do."""

from collections.abc import Iterator
from typing import Any

from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk
from pydantic import Field

from unirouter_integrations.testing import ChatFake


class Saying(ChatFake):
    """Streams a part without text, then its words; and ends with a finish reason, without one, or with an error.

    Attributes:
        said: Its words.
        end: The finish reason, or the error.
        given: The messages of the last call.
    """

    said: str = ""
    end: str | Exception | None = "stop"
    given: list[BaseMessage] = Field(default_factory=list)

    def _stream(self, messages: list[BaseMessage], *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        self.n_calls += 1
        self.given = messages
        yield part()
        for word in self.said.split():
            yield part(f"{word} ")
        if isinstance(self.end, Exception):
            raise self.end
        yield part(**({"finish_reason": self.end} if self.end else {}))


def part(text: str = "", **reported: str) -> ChatGenerationChunk:
    """A part of a stream."""
    metadata = {"model_provider": "openai", **reported}
    return ChatGenerationChunk(message=AIMessageChunk(content=text, response_metadata=metadata))
