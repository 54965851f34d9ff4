"""What a call is judged by, the question, never the retrieved text around it; and what kind of answer came back."""

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from llama_index.core.base.llms.types import TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.llms import LLM, ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.core.prompts import BasePromptTemplate

from unirouter_integrations.grading import Usage
from unirouter_integrations.grading._models import field_of, total_usage, usage_of_response
from unirouter_integrations.llamaindex._reports import Written
from unirouter_integrations.serving._capabilities import CHARACTERS_PER_TOKEN, Needs
from unirouter_integrations.serving._failures import reports_refusal
from unirouter_integrations.serving._question import Turn, WaysToJudge, question_of
from unirouter_integrations.serving._streams import StreamPart

_CAPABILITY_OF_BLOCK = {
    "audio": "audio_inputs",
    "document": "pdf_inputs",
    "image": "image_inputs",
    "video": "video_inputs",
}
_TOKENS_PER_IMAGE = 1000  # of providers with about a megapixel; the length of an input is only estimated
_ANSWERERS = frozenset({MessageRole.ASSISTANT, MessageRole.MODEL, MessageRole.CHATBOT})
_DEVELOPERS = frozenset({MessageRole.SYSTEM, MessageRole.DEVELOPER})
# What ReActAgent writes in the user's name: a tool's answer, and complaints about the form of the model's answer. And
# what CodeActAgent does.
_AGENT_PREFIXES = (
    "Observation:",
    "Error while parsing the output:",
    "FAILURE: Your previous response was empty.",
    "Result of executing the code given:",
)

JudgedBy = WaysToJudge | Callable[[Sequence[ChatMessage]], str]


class Call(NamedTuple):
    """What a call is judged by.

    Attributes:
        asked: The question, or the messages that it is taken from.
        needs: What it needs of a model.
        is_in_tool_loop: Whether a model has already worked on the question: then the same one should go on.
    """

    asked: str | Sequence[ChatMessage]
    needs: Needs
    is_in_tool_loop: bool = False

    def question(self, judged_by: JudgedBy) -> str:
        """The text that it is judged by."""
        return self.asked if isinstance(self.asked, str) else question_of(self.asked, judged_by, _turn)

    @property
    def author(self) -> str | None:
        """The model that gave the last answer of the conversation; None if that does not name it."""
        said = () if isinstance(self.asked, str) else self.asked
        answers = (message for message in reversed(said) if message.role in _ANSWERERS)
        noted = next((answer.additional_kwargs.get("unirouter") for answer in answers), None)
        return str(noted["model"]) if isinstance(noted, dict) and "model" in noted else None


def call_of_text(prompt: str) -> Call:
    """Describe a completion: it is judged by its prompt."""
    return Call(prompt, Needs(tokens=len(prompt) // CHARACTERS_PER_TOKEN))


def call_of_messages(messages: Sequence[ChatMessage], asked_for: Iterable[str] = ()) -> Call:
    """Describe a chat.

    In a loop of tool calls its question stays the same, also for agents that report their tools' answers as the user.

    Args:
        messages: The messages.
        asked_for: The capabilities that are asked for beside them, such as `tool_calling`.
    """
    blocks = {getattr(block, "block_type", None) for message in messages for block in message.blocks}
    inputs = {capability for block, capability in _CAPABILITY_OF_BLOCK.items() if block in blocks}
    needs = Needs(frozenset(asked_for) | inputs, _tokens_in(messages))
    later = takewhile(lambda message: not (_turn(message).text and _turn(message).by == "human"), reversed(messages))
    return Call(messages, needs, any(message.role in _ANSWERERS for message in later))


def call_of_template(llm: LLM, prompt: BasePromptTemplate, given: Mapping[str, Any]) -> Call:
    """Describe a template: it is judged by its `query_str`, as response synthesizers have it, or else by its text."""
    values = ChainMap(dict(given), prompt.kwargs)
    question = values.get("query_str")
    if not (isinstance(question, str) and question):
        return call_of_messages(prompt.format_messages(llm=llm, **given))
    return Call(question, Needs(tokens=sum(map(_tokens_in, values.values()))))


def _turn(message: ChatMessage) -> Turn:
    text = message.content or ""
    if message.role == MessageRole.USER and not text.startswith(_AGENT_PREFIXES):
        return Turn(text, "human")
    return Turn(text, "system" if message.role in _DEVELOPERS else "other")


def _tokens_in(value: object) -> int:
    """About how many tokens something takes that goes into a prompt: a text, messages, or a list of them."""
    if isinstance(value, str):
        return len(value) // CHARACTERS_PER_TOKEN
    if isinstance(value, ChatMessage):
        other = sum(not isinstance(block, TextBlock) for block in value.blocks)
        return len(value.content or "") // CHARACTERS_PER_TOKEN + other * _TOKENS_PER_IMAGE
    return sum(map(_tokens_in, value)) if isinstance(value, list | tuple) else 0


def describe(part: object) -> StreamPart:
    """What one part of a stream says. A text or form is judged by the parts of responses that led to it, if any."""
    if isinstance(part, Written):
        said = [_describe_response(response) for response in part.responses]
        text = part.value if isinstance(part.value, str) else ""
        is_form = not (said or part.value is None or isinstance(part.value, str))
        return StreamPart(
            text=text,
            has_content=bool(text) or is_form or any(each.has_content for each in said),
            reports_finish=any(each.reports_finish for each in said),
            is_finish=any(each.is_finish for each in said),
            is_refusal=any(each.is_refusal for each in said),
            calls_tool=any(each.calls_tool for each in said),
        )
    return _describe_response(part) if isinstance(part, ChatResponse | CompletionResponse) else StreamPart()


def is_text(answer: object) -> bool:
    """Whether an answer is a text, not a tool call, a form or a stream."""
    if isinstance(answer, ChatResponse):
        message = answer.message
        calls = any(isinstance(block, ToolCallBlock) for block in message.blocks)
        return not (calls or message.additional_kwargs.get("tool_calls"))
    return isinstance(answer, str | CompletionResponse)


def is_refusal(answer: object) -> bool:
    """Whether a response, or one of those that led to what was written, is a refusal or was filtered."""
    return any(map(_reports_refusal, _responses_of(answer)))


def is_empty(answer: object) -> bool:
    """Whether a response, or one of those that led to what was written, says nothing."""
    return not all(map(_has_content, _responses_of(answer)))


def usage_of(answer: object) -> Usage | None:
    """The tokens that a response, or those that led to what was written, report; None if they report none."""
    found = [usage for response in _responses_of(answer) if (usage := usage_of_response(response)) is not None]
    return total_usage(found) if found else None


def highest_usage(usages: Sequence[Usage]) -> Usage:
    """The tokens of a stream: its parts report those so far."""
    return Usage(*map(max, zip(*usages, strict=True)))


def _responses_of(answer: object) -> list[ChatResponse | CompletionResponse]:
    responses = answer.responses if isinstance(answer, Written) else [answer]
    return [response for response in responses if isinstance(response, ChatResponse | CompletionResponse)]


def _describe_response(response: ChatResponse | CompletionResponse) -> StreamPart:
    text = response.delta or ""
    choices = field_of(response.raw, "choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return StreamPart(
        text=text,
        has_content=bool(text) or _has_content(response) or _has_thoughts(response),
        reports_finish=isinstance(choices, list),
        is_finish=bool(field_of(first, "finish_reason")),
        is_refusal=not text and _reports_refusal(response),
        calls_tool=not is_text(response),
    )


def _reports_refusal(response: ChatResponse | CompletionResponse) -> bool:
    noted = response.message.additional_kwargs if isinstance(response, ChatResponse) else response.additional_kwargs
    return reports_refusal(response.raw) or reports_refusal(noted)


def _has_content(response: ChatResponse | CompletionResponse) -> bool:
    """Whether a response holds an answer: text, a tool call, an image."""
    if isinstance(response, CompletionResponse):
        return bool(response.text)
    blocks = [block for block in response.message.blocks if not isinstance(block, ThinkingBlock)]
    return not is_text(response) or any(not isinstance(block, TextBlock) or block.text for block in blocks)


def _has_thoughts(response: ChatResponse | CompletionResponse) -> bool:
    blocks = response.message.blocks if isinstance(response, ChatResponse) else []
    return any(isinstance(block, ThinkingBlock) and block.content for block in blocks)
