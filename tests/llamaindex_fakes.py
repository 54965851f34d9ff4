"""Stand-ins for LlamaIndex: an LLM and an embedding model that behave like real ones, and watchers of what happens."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from conftest import toy_embed
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms import LLM, ChatMessage, ChatResponse, CompletionResponse, LLMMetadata, MessageRole
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from pydantic import Field, PrivateAttr
from typing_extensions import override

from unirouter_integrations import UniRouter

Reply = Callable[[Sequence[ChatMessage]], str]


class BadRequestError(Exception):
    """What every provider would refuse, as clients raise it."""

    status_code = 400


class Fake(FunctionCallingLLM):
    """Answers with its name and the last message, word by word when streaming; a word is a token.

    With tools it calls the first one until a tool has answered, and like OpenAI's client it appends to the history that
    it is given. It keeps what it was sent, holds a key, and may fail. A terse one repeats nothing of its input. Its
    provider adds `report` to the raw responses.
    """

    model_name: str
    api_key: str = "sk-SECRET"
    window: int = 4000
    num_output: int = 100
    calls_functions: bool = True
    system_role: MessageRole = MessageRole.SYSTEM
    error: Exception | None = None
    reply: Reply | None = None
    terse: bool = False
    report: dict[str, Any] = Field(default_factory=dict)
    _sent: list[list[ChatMessage]] = PrivateAttr(default_factory=list)
    _raws: list[Any] = PrivateAttr(default_factory=list)
    _closed: list[str] = PrivateAttr(default_factory=list)

    @property
    @override
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            model_name=self.model_name,
            is_chat_model=True,
            is_function_calling_model=self.calls_functions,
            context_window=self.window,
            num_output=self.num_output,
            system_role=self.system_role,
        )

    @property
    def sent(self) -> list[list[ChatMessage]]:
        """The messages of every call."""
        return self._sent

    @property
    def raws(self) -> list[Any]:
        """The raw response of every answer or part of one."""
        return self._raws

    @property
    def closed(self) -> list[str]:
        """How its streams ended."""
        return self._closed

    def _parts(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> list[ChatResponse]:
        self._sent.append(list(messages))
        if self.error is not None:
            raise self.error
        question = max((n for n, message in enumerate(messages) if message.role == MessageRole.USER), default=0)
        answered = any(message.role == MessageRole.TOOL for message in messages[question:])
        read = sum(len((message.content or "").split()) for message in messages)
        if kwargs.get("tools") and not answered:
            (tool, *_) = kwargs["tools"]
            schema = tool.metadata.get_parameters_dict()
            arguments = dict.fromkeys(schema.get("required", ()), self._text(messages))
            block = ToolCallBlock(tool_call_id="call_1", tool_name=tool.metadata.name, tool_kwargs=arguments)
            noted = {"tool_calls": [block.tool_call_id]}  # where LlamaIndex's streamed programs look
            return [self._response(ChatMessage(role="assistant", blocks=[block], additional_kwargs=noted), "", read, 1)]
        words = re.findall(r"\S+\s*", self._text(messages))
        return [
            self._response(ChatMessage("".join(words[: n + 1]), role="assistant"), word, read, n + 1)
            for n, word in enumerate(words)
        ]

    def _text(self, messages: Sequence[ChatMessage]) -> str:
        if self.reply is not None:
            return self.reply(messages)
        return f"{self.model_name}: {'yes' if self.terse else messages[-1].content}"

    def _response(self, message: ChatMessage, delta: str, read: int, written: int) -> ChatResponse:
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        self._raws.append({"model": self.model_name, "usage": usage, **self.report})
        return ChatResponse(
            message=message, delta=delta, raw=self._raws[-1], additional_kwargs={"own": self.model_name}
        )

    @override
    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._parts(messages, kwargs)[-1]

    @override
    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        await asyncio.sleep(0)
        return self._parts(messages, kwargs)[-1]

    @override
    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        parts = self._parts(messages, kwargs)

        def gen() -> Iterator[ChatResponse]:
            try:
                yield from parts
            finally:
                self._closed.append(self.model_name)

        return gen()

    @override
    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        parts = self._parts(messages, kwargs)

        async def gen() -> Any:
            try:
                for part in parts:
                    await asyncio.sleep(0)
                    yield part
            finally:
                self._closed.append(self.model_name)

        return gen()

    def _completions(self, prompt: str) -> list[CompletionResponse]:
        return [
            CompletionResponse(
                text=part.message.content or "",
                delta=part.delta,
                raw=part.raw,
                additional_kwargs=part.additional_kwargs,
            )
            for part in self._parts([ChatMessage(prompt)], {})
        ]

    @override
    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return self._completions(prompt)[-1]

    @override
    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return self._completions(prompt)[-1]

    @override
    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        parts = self._completions(prompt)

        def gen() -> Iterator[CompletionResponse]:
            yield from parts

        return gen()

    @override
    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        parts = self._completions(prompt)

        async def gen() -> Any:
            for part in parts:
                yield part

        return gen()

    @override
    def _prepare_chat_with_tools(
        self, tools: Any, user_msg: Any = None, chat_history: Any = None, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        messages = chat_history if chat_history is not None else []
        if user_msg is not None:
            messages.append(ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg)
        return {"messages": messages, "tools": tools}

    @override
    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        blocks = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        assert response.additional_kwargs.get("own", self.model_name) == self.model_name, "another model's answer"
        assert blocks or not error_on_no_tool_call
        return [
            ToolSelection(
                tool_id=block.tool_call_id or "",
                tool_name=block.tool_name,
                tool_kwargs=cast("dict[str, Any]", block.tool_kwargs),
            )
            for block in blocks
        ]


class ToyEmbedding(BaseEmbedding):
    """The toy embedder as a LlamaIndex embedding model; counts queries and texts."""

    model_name: str = "toy"
    _queries: list[str] = PrivateAttr(default_factory=list)

    @property
    def queries(self) -> list[str]:
        """The queries it has embedded."""
        return self._queries

    @override
    def _get_query_embedding(self, query: str) -> list[float]:
        self._queries.append(query)
        return self._get_text_embedding(query)

    @override
    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    @override
    def _get_text_embedding(self, text: str) -> list[float]:
        embedding: list[float] = toy_embed([text])[0].tolist()
        return embedding


class Watch(BaseEventHandler):
    """Keeps the events of LlamaIndex's instrumentation."""

    events: list[BaseEvent] = Field(default_factory=list)

    @override
    def handle(self, event: BaseEvent, **_: Any) -> None:
        self.events.append(event)

    def names(self, *wanted: str) -> list[str]:
        """The class names of the events, of those that are wanted."""
        found = [event.class_name() for event in self.events]
        return [name for name in found if name in wanted] if wanted else found

    def of(self, kind: str) -> list[Any]:
        """The events of a kind."""
        return [event for event in self.events if event.class_name() == kind]


@contextmanager
def watched() -> Iterator[Watch]:
    """All events while this lasts."""
    watch, root = Watch(), get_dispatcher()
    root.add_event_handler(watch)
    try:
        yield watch
    finally:
        root.event_handlers.remove(watch)


def terse() -> dict[str, LLM]:
    """The same, answering in two words."""
    return fakes(**{name: {"terse": True} for name in ("abacus", "poet", "oracle")})


def fakes(**settings: dict[str, Any]) -> dict[str, LLM]:
    """One for each model of the toy router."""
    return {name: Fake(model_name=name, **settings.get(name, {})) for name in ("abacus", "poet", "oracle")}


def doubtful(router: UniRouter) -> UniRouter:
    """The router with models that are better the more they cost, whatever the question; abacus is the cheapest."""
    for name, score, cost in (("abacus", 0.7, 0.1), ("poet", 0.8, 2), ("oracle", 0.9, 5)):
        router.register(router.profile(name, ["sum", "poem", "date"], [score] * 3, cost=cost))
    router.cost_weight = 0.5
    return router


def excluded(kind: str, reason: str, *names: str) -> list[dict[str, str]]:
    """These models, excluded for one reason, as the JSON of a decision has them."""
    return [{"model": name, "kind": kind, "reason": reason} for name in names]


def without_id(decision: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a decision that can be compared with that of another one."""
    return {key: value for key, value in decision.items() if key != "id"}


class Clock:
    """Health is measured on it; it stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Service:
    """An embedding service that works like the toy embedder, until it fails or `answers` is cleared."""

    name = "service"

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()

    def embed(self, texts: Sequence[str]) -> Any:
        """Embed texts, once it answers."""
        self.answers.wait()
        if self.error is not None:
            raise self.error
        return toy_embed(texts)

    async def aembed(self, texts: Sequence[str]) -> Any:
        """Embed texts, or never answer."""
        if not self.answers.is_set():
            await asyncio.Event().wait()
        return self.embed(texts)


def word_counter() -> TokenCountingHandler:
    """Counts a word as a token where the model reports none."""
    return TokenCountingHandler(tokenizer=str.split)


def counting(counter: TokenCountingHandler) -> CallbackManager:
    """A callback manager for it."""
    return CallbackManager([counter])


CORPUS = [f"The {kind} of {place}." for kind in ("sum", "poem", "date") for place in ("Rome", "Oslo", "Lima", "Bonn")]


def toy_index(embed_model: ToyEmbedding, times: int = 1) -> VectorStoreIndex:
    """A real vector index over a dozen sentences, each repeated so many times."""
    return VectorStoreIndex.from_documents([Document(text=text * times) for text in CORPUS], embed_model=embed_model)
