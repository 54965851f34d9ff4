"""Which answers are refusals: as real clients of both frameworks report them, plain, streamed and structured."""

from collections.abc import Iterator
from functools import reduce
from operator import add
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from llama_index.core.llms import ChatMessage, ChatResponse, CompletionResponse
from provider_clients import ANSWERS, CLIENTS, Server, answering_server, is_installed

from unirouter_integrations.langchain._messages import is_refusal as is_refusal_of_langchain
from unirouter_integrations.llamaindex._calls import is_refusal as is_refusal_of_llamaindex
from unirouter_integrations.serving._failures import classify, reports_refusal

pytestmark = pytest.mark.filterwarnings("ignore")  # of clients that CI does not have


# What clients do not tell: the answer is then taken for what they make of it.
HIDDEN = {
    ("llama_index.llms.google_genai", "blocked prompt"): "garbled",
    ("llama_index.llms.google_genai", "blocked prompt, streamed"): "other",
    ("llama_index.llms.bedrock_converse", "guardrail_intervened, streamed"): "",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with answering_server() as serving:
        yield serving


def meaning(answer: Any) -> str:
    """What an answer of either framework is: refused, or nothing."""
    if isinstance(answer, AIMessage):
        return "refused" if is_refusal_of_langchain(answer) else ""
    return "refused" if is_refusal_of_llamaindex(answer) else ""


@pytest.mark.parametrize(
    "client", [name for name in CLIENTS if name.startswith(("langchain", "llama_index")) and is_installed(name)]
)
def test_refusals_of_real_clients(client: str, server: Server) -> None:
    """By the reason for which an answer ended, or the error that a client makes of it."""
    (provider, *_), make = CLIENTS[client]
    call = make(server[0])
    wrong = []
    for case in ANSWERS.get(f"{provider} (Responses)" if "Responses" in client else provider, []):
        server[1].answer = case
        is_stream = "streamed" in case.what
        try:
            answer = call(is_stream)
            if is_stream:
                answer = reduce(add, answer) if isinstance(answer[0], AIMessageChunk) else answer[-1]
            found = meaning(answer)
        except Exception as error:  # noqa: BLE001
            answer, found = error, classify(error)
        if found != HIDDEN.get((client, case.what), case.failure):
            wrong.append((case.what, found, answer))
    assert wrong == []


# ---------------------------------------------------------------- what has no client here

REPORTS: list[tuple[Any, bool]] = [
    # As LangChain's `response_metadata`.
    ({"finish_reason": "stop"}, False),
    ({"finish_reason": "length", "stop_reason": None}, False),
    ({"finish_reason": "content_filter"}, True),
    ({"finish_reason": "content_filtercontent_filter"}, True),  # merged chunks
    ({"finish_reason": "SAFETY"}, True),
    ({"finish_reason": "STOPSTOP"}, False),
    ({"finish_reason": "FinishReason.SAFETY"}, True),
    ({"finish_reason": SimpleNamespace(name="PROHIBITED_CONTENT")}, True),
    ({"finish_reason": "MALFORMED_FUNCTION_CALL"}, False),
    ({"finish_reason": "ERROR_TOXIC"}, True),
    ({"finish_reason": "ERROR"}, False),
    ({"finish_reason": "sensitive"}, True),
    ({"stop_reason": "refusal"}, True),
    ({"stop_reason": "end_turn"}, False),
    ({"stopReason": "guardrail_intervened"}, True),
    ({"stopReason": "content_filtered"}, True),
    ({"stopReason": "end_turn"}, False),
    ({"incomplete_details": {"reason": "content_filter"}}, True),
    ({"incomplete_details": {"reason": "max_output_tokens"}}, False),
    ({"prompt_feedback": {"block_reason": 0, "safety_ratings": []}}, False),
    ({"prompt_feedback": {"block_reason": "OTHER"}}, True),
    ({"prompt_feedback": {"block_reason": "BLOCKED_REASON_UNSPECIFIED"}}, False),
    ({"prompt_filter_results": [{"content_filter_results": {"jailbreak": {"filtered": True}}}]}, True),
    ({"prompt_filter_results": [{"content_filter_results": {"jailbreak": {"filtered": False}}}]}, False),
    # As raw responses and parts of streams.
    ({"choices": [{"finish_reason": "content_filter"}]}, True),
    ({"choices": [{"message": {"refusal": "I must not."}}]}, True),
    ({"choices": [{"message": {"refusal": None, "content": "hello"}, "finish_reason": "stop"}]}, False),
    ({"choices": [{"delta": {"refusal": "I "}}]}, True),
    ({"choices": [{"finish_reason": "stop"}, {"finish_reason": "content_filter"}]}, False),  # the first is the answer
    ({"choices": []}, False),
    ({"candidates": [{"finishReason": "SPII"}]}, True),
    ({"promptFeedback": {"blockReason": "SAFETY"}}, True),
    ({"delta": SimpleNamespace(stop_reason="refusal")}, True),
    ({"messageStop": {"stopReason": "guardrail_intervened"}}, True),
    ({"output": [{"content": [{"type": "output_text", "text": "no"}, {"type": "refusal", "refusal": "no"}]}]}, True),
    ({"response": {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}}, True),
    (SimpleNamespace(data=SimpleNamespace(choices=[SimpleNamespace(finish_reason="content_filter")])), True),
    # What a model writes is no report.
    ({"choices": [{"message": {"content": "refusal", "tool_calls": [{"args": {"finish_reason": "SAFETY"}}]}}]}, False),
    ({"content": [{"type": "tool_use", "input": {"refusal": "I must not.", "type": "refusal"}}]}, False),
    ("refusal", False),
    (None, False),
    (7, False),
]


@pytest.mark.parametrize(("report", "refused"), REPORTS, ids=repr)
def test_reports_of_providers(report: Any, *, refused: bool) -> None:
    """As mappings and as objects, whole or in parts, by both frameworks."""
    assert reports_refusal(report) == refused
    assert reports_refusal([report]) == refused
    if isinstance(report, dict):
        assert is_refusal_of_langchain(AIMessage("hello", response_metadata=report)) == refused
    response = ChatResponse(message=ChatMessage("hello", role="assistant"), raw=report)
    assert is_refusal_of_llamaindex(response) == refused
    assert is_refusal_of_llamaindex(CompletionResponse(text="hello", raw=report)) == refused


class Loop:
    """A report that holds itself."""

    def __getattr__(self, name: str) -> Any:
        return self


def test_reports_without_end() -> None:
    """They are read to a limit."""
    nested: Any = {"refusal": "I must not."}
    for _ in range(1000):
        nested = {"response": nested}
    assert not reports_refusal(nested)
    assert not reports_refusal(Loop())


def test_messages_of_langchain() -> None:
    """By the standard block, OpenAI's field, the parts of a stream, and in what `include_raw` makes of a message."""
    refusal = AIMessage([{"type": "refusal", "refusal": "I must not."}])
    assert is_refusal_of_langchain(refusal)
    assert is_refusal_of_langchain(AIMessage("", additional_kwargs={"refusal": "I must not."}))
    assert not is_refusal_of_langchain(AIMessage("hello", additional_kwargs={"refusal": None}))
    assert not is_refusal_of_langchain(AIMessage(["hello", {"type": "text", "text": "refusal"}]))
    chunks = [
        AIMessageChunk(content=[{"type": "refusal", "refusal": part, "index": 0}]) for part in ("I must ", "not.")
    ]
    assert is_refusal_of_langchain(reduce(add, chunks))
    assert is_refusal_of_langchain({"raw": refusal, "parsed": None, "parsing_error": None})
    error = type("ModelRefusalError", (ValueError,), {})("I must not.")
    assert is_refusal_of_langchain({"raw": AIMessage(""), "parsed": None, "parsing_error": error})
    assert not is_refusal_of_langchain({"raw": AIMessage("{}"), "parsed": {}, "parsing_error": None})
    assert not is_refusal_of_langchain({"raw": "refusal"})
    assert not is_refusal_of_langchain(HumanMessage("refusal"))
    assert not is_refusal_of_langchain(None)
