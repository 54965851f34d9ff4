"""A fake chat model, for tests of code that holds a router: no key, no network, the same answer every time."""

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

from unirouter_integrations._checks import requires, shown
from unirouter_integrations.errors import InvalidInputError

with requires("unirouter_integrations.testing", "langchain"):
    import langchain_core  # noqa: F401

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.json_schema import dereference_refs
from pydantic import Field, PrivateAttr
from typing_extensions import override

from unirouter_integrations.langchain._messages import is_human, last_human_text

__all__ = ["ChatFake"]

_counting = threading.Lock()  # not one per model: a model can be copied, a lock cannot


class ChatFake(BaseChatModel):
    """A chat model that answers at once and always in the same way, and otherwise behaves as real ones do.

    It streams word by word, reports its name and its tokens (a word is a token), and stops at `stop`. With tools bound,
    it calls the first one, and answers with text once that has answered. `tool_choice` may name another tool, or be
    `"none"`, or `"any"`: each tool is called once, and the last one again. Required arguments are filled in by type:
    numbers are those of the last human message, in order, and strings are that message; where the schema has `examples`
    or an `enum`, the first of them. So `with_structured_output` and agents work. You may set `profile`.

    Attributes:
        model: Its name.
        replies: Texts to answer with, in order and then again from the first, or a function from the messages to a
            text. None for its name and the last human message: `mini: What is 2 times 3?`. Calls of a batch come in any
            order; use a function for them.
        error: Raised instead of an answer.
        n_errors: How many calls raise it, starting with the first; None for all.
        n_calls: How many calls it has received, including those that raised.

    Example:
        ```python
        models = {"mini": ChatFake(model="mini"), "large": ChatFake(model="large", error=TimeoutError(), n_errors=1)}
        llm = ChatUniRouter(router=router, models=models)
        assert llm.invoke("What is 2 times 3?").text == "mini: What is 2 times 3?"
        assert models["mini"].n_calls == 1
        ```
    """

    model: str = "fake"
    replies: Annotated[list[str], Field(min_length=1)] | Callable[[list[BaseMessage]], str] | None = None
    error: Exception | None = None
    n_errors: int | None = None
    n_calls: int = 0

    _n_replies: int = PrivateAttr(default=0)

    @override
    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], tool_choice=tool_choice, **kwargs)

    @override
    def get_token_ids(self, text: str) -> list[int]:
        return list(range(len(text.split())))

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, **kwargs))

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with _counting:
            self.n_calls += 1
            number = self.n_calls
        if self.error is not None and (self.n_errors is None or number <= self.n_errors):
            raise self.error
        model = kwargs.get("model", self.model)
        function = _function_to_call(messages, kwargs.get("tools", ()), kwargs.get("tool_choice"))
        if function is None:
            written = self._reply(messages, model)
            for end in stop or ():
                written = written.split(end)[0]
            chunks = [AIMessageChunk(content=piece) for piece in _pieces(written)]
        else:
            written = _arguments(function, last_human_text(messages))
            start = tool_call_chunk(name=function["name"], args="", id=f"call_{model}_{number}", index=0)
            parts = [start, *(tool_call_chunk(args=piece, index=0) for piece in _pieces(written))]
            chunks = [AIMessageChunk(content="", tool_call_chunks=[part]) for part in parts]
        read = sum(self.get_num_tokens(message.text) for message in messages)
        n_written = self.get_num_tokens(written)
        last = AIMessageChunk(
            content="",
            usage_metadata={"input_tokens": read, "output_tokens": n_written, "total_tokens": read + n_written},
            response_metadata={"model_name": model},
            chunk_position="last",
        )
        for chunk in [*chunks, last]:
            yield ChatGenerationChunk(message=chunk)

    def _reply(self, messages: list[BaseMessage], model: str) -> str:
        if self.replies is None:
            return f"{model}: {last_human_text(messages)}"
        if callable(self.replies):
            return self.replies(messages)
        with _counting:
            self._n_replies += 1
            return self.replies[(self._n_replies - 1) % len(self.replies)]

    @property
    @override
    def _llm_type(self) -> str:
        return "unirouter-fake"

    @property
    @override
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model}


def _function_to_call(
    messages: list[BaseMessage], tools: Sequence[dict[str, Any]], tool_choice: str | None
) -> dict[str, Any] | None:
    functions: dict[str, dict[str, Any]] = {tool["function"]["name"]: tool["function"] for tool in tools}
    if not functions or tool_choice == "none":
        return None
    if tool_choice in {None, "auto"}:
        return None if messages and isinstance(messages[-1], ToolMessage) else next(iter(functions.values()))
    if tool_choice in {"any", "required"}:
        question = max((place for place, message in enumerate(messages) if is_human(message)), default=0)
        answers = [message for message in messages[question:] if isinstance(message, AIMessage)]
        called = {call["name"] for message in answers for call in message.tool_calls}
        return next((functions[name] for name in functions if name not in called), functions[[*functions][-1]])
    if tool_choice not in functions:
        msg = f'tool_choice should be one of {[*functions]}, "any", "auto" or "none", but is {shown(tool_choice)}.'
        raise InvalidInputError(msg)
    return functions[tool_choice]


def _arguments(function: dict[str, Any], text: str) -> str:
    numbers = (float(number) if "." in number else int(number) for number in re.findall(r"\d+(?:\.\d+)?", text))
    schema = {"type": "object", **dereference_refs(function.get("parameters", {}))}
    return json.dumps(_value(schema, text, numbers), ensure_ascii=False)


def _value(schema: dict[str, Any], text: str, numbers: Iterator[float]) -> Any:
    if given := [schema["const"]] if "const" in schema else schema.get("examples") or schema.get("enum"):
        return given[0]
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return _value(options[0], text, numbers)
    value: Any = text
    match schema.get("type"):
        case "object":
            parts = schema.get("properties", {})
            value = {name: _value(parts[name], text, numbers) for name in schema.get("required", ())}
        case "array":
            value = [_value(schema["items"], text, numbers)] if schema.get("items") else []
        case "integer":
            value = int(next(numbers, 1))
        case "number":
            value = next(numbers, 1)
        case "boolean":
            value = True
    return value


def _pieces(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*|\s+", text)
