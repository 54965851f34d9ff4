"""What a call is judged by, the question, never the retrieved text around it; and what came out of it."""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import LLM, ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.core.prompts import BasePromptTemplate

from unirouter_integrations.profiling.adapters import field_of

_CHARACTERS_PER_TOKEN = 4
_ANSWERERS = frozenset({MessageRole.ASSISTANT, MessageRole.MODEL, MessageRole.CHATBOT})
# What ReActAgent says in the user's name: a tool's answer, and complaints about the form of the model's.
_SAID_BY_AGENTS = ("Observation:", "Error while parsing the output:", "FAILURE: Your previous response was empty.")


class Call(NamedTuple):
    """What the router has to know of a call.

    Attributes:
        question: The text it is judged by.
        tokens: How long its input is, at four characters a token.
        with_tools: Whether tools are offered.
        under_way: Whether a model has already worked on the question: then no other one should go on.
    """

    question: str
    tokens: int
    with_tools: bool = False
    under_way: bool = False


def call_of_text(prompt: str) -> Call:
    """A completion is judged by its prompt."""
    return Call(prompt, len(prompt) // _CHARACTERS_PER_TOKEN)


def call_of_messages(messages: Sequence[ChatMessage], *, with_tools: bool = False) -> Call:
    """A chat is judged by the last message of the user that has text, or by all of it if there is none.

    In a loop of tool calls that stays the same, also in a ReAct agent's, which reports what its tools said as the user.
    """
    texts = [message.content or "" for message in messages]
    tokens = sum(map(len, texts)) // _CHARACTERS_PER_TOKEN
    under_way = False
    for message, text in zip(reversed(messages), reversed(texts), strict=True):
        if message.role == MessageRole.USER and text and not text.startswith(_SAID_BY_AGENTS):
            return Call(text, tokens, with_tools, under_way)
        under_way |= message.role in _ANSWERERS
    return Call("\n".join(filter(None, texts)), tokens, with_tools, under_way)


def call_of_template(llm: LLM, prompt: BasePromptTemplate, given: Mapping[str, Any]) -> Call:
    """A template is judged by its `query_str`, as those of response synthesizers have it, or else by what it gives."""
    values = ChainMap(dict(given), prompt.kwargs)
    question = values.get("query_str")
    if not (isinstance(question, str) and question):
        return call_of_messages(prompt.format_messages(llm=llm, **given))
    characters = sum(len(value) for value in values.values() if isinstance(value, str))
    return Call(question, characters // _CHARACTERS_PER_TOKEN)


def is_text(answer: object) -> bool:
    """Whether an answer is a text, not a call of tools and not a form."""
    if isinstance(answer, ChatResponse):
        message = answer.message
        calls = any(isinstance(block, ToolCallBlock) for block in message.blocks)
        return not (calls or message.additional_kwargs.get("tool_calls"))
    return isinstance(answer, str | CompletionResponse)


def is_refusal(answer: object) -> bool:
    """Whether a provider says of a chat or a completion that it is a refusal or was filtered."""
    raw = getattr(answer, "raw", None)
    choices = field_of(raw, "choices") or field_of(raw, "candidates")
    first = choices[0] if isinstance(choices, list) and choices else None
    ended = field_of(first, "finish_reason") or field_of(first, "finishReason")
    return bool(
        field_of(field_of(first, "message"), "refusal")
        or str(getattr(ended, "name", ended)) in {"content_filter", "refusal", "SAFETY"}
        or field_of(raw, "stop_reason") == "refusal"
    )
