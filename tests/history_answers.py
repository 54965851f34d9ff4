"""What each provider answers, whole and streamed, where a model thinks, calls a tool twice, or refuses.

The scenes are "thinks", with citations and the provider's own tools; "calls"; "refuses"; and "answers", only text where
the provider allows it.
"""

import base64
import json
from collections.abc import Callable
from typing import Any

from provider_clients import aws_events, sse

Body = dict[str, Any]
TEXT, THOUGHT, REFUSAL = "I will look.", "They want two dates.", "I must not."
CITIES = ("Rome", "Oslo")


def signed(model: str) -> str:
    return base64.b64encode(f"by {model}".encode()).decode()


def chat_answer(thought_in: str) -> Callable[[str, str], Any]:
    """Of OpenAI's Chat Completions and what is like them."""

    def answer(scene: str, model: str) -> Any:
        message: Body = {"role": "assistant", "content": TEXT, thought_in: THOUGHT, "annotations": []}
        if scene == "calls":
            message["tool_calls"] = chat_calls("call_Xw0aY7sP3kLmN2qRtUvB{}zz")
        if scene == "refuses":
            message |= {"content": None, "refusal": REFUSAL}
        reason = "tool_calls" if scene == "calls" else "stop"
        return chat_body(message, model, reason)

    return answer


def chat_calls(form: str) -> list[Body]:
    return [
        {
            "id": form.format(index),
            "type": "function",
            "index": index,
            "function": {"name": "date_in", "arguments": json.dumps({"city": city})},
        }
        for index, city in enumerate(CITIES)
    ]


def chat_body(message: Body, model: str, reason: str) -> Body:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choices = [{"index": 0, "message": message, "finish_reason": reason}]
    return {"id": "1", "object": "chat.completion", "created": 1, "model": model, "choices": choices, "usage": usage}


def chat_streamed(answer: Callable[[str, str], Any]) -> Callable[[str, str], str]:
    def streamed(scene: str, model: str) -> str:
        choice = answer(scene, model)["choices"][0]
        head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": model}
        deltas = [{key: value} for key, value in choice["message"].items() if value is not None and key != "role"]
        chunks = [{"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": None} for delta in deltas]
        chunks.append({"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]})
        return sse(*({**head, "choices": [chunk]} for chunk in chunks)) + "data: [DONE]\n\n"

    return streamed


def responses_answer(scene: str, model: str) -> Any:
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": THOUGHT}]}
    cited = {"type": "url_citation", "url": "http://a.example", "title": "A", "start_index": 0, "end_index": 3}
    said: Body = {"type": "output_text", "text": TEXT, "annotations": [cited] if scene == "thinks" else []}
    if scene == "refuses":
        said = {"type": "refusal", "refusal": REFUSAL}
    output = [
        {**reasoning, "encrypted_content": signed(model), "status": None},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [said]},
    ]
    if scene == "thinks":
        search = {"type": "search", "query": "a", "sources": None}
        output.insert(1, {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": search})
    if scene == "calls":
        for index, call in enumerate(chat_calls("call_Xw0aY7sP3kLmN2qRtUvB{}zz")):
            of_item = {"type": "function_call", "id": f"fc_{index}", "call_id": call["id"], "status": "completed"}
            output.append({**of_item, **call["function"]})
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, **details}
    settings = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None}
    head = {"id": "resp_1", "object": "response", "created_at": 1, "model": model, "status": "completed"}
    return {**head, **settings, "incomplete_details": None, "usage": usage, "output": output}


def responses_streamed(scene: str, model: str) -> str:
    answer = responses_answer(scene, model)
    events: list[Body] = [{"type": "response.created", "response": {**answer, "output": [], "status": "in_progress"}}]
    for index, item in enumerate(answer["output"]):
        at = {"output_index": index, "item_id": item["id"]}
        begun = {
            **item,
            **{key: "" for key in ("arguments",) if key in item},
            **({"content": []} if "content" in item else {}),
        }
        events.append({"type": "response.output_item.added", **at, "item": begun})
        if item["type"] == "function_call":
            events.append({"type": "response.function_call_arguments.delta", **at, "delta": item["arguments"]})
            done = {"arguments": item["arguments"], "name": item["name"]}
            events.append({"type": "response.function_call_arguments.done", **at, **done})
        for part in item.get("content") or []:
            kind = "output_text" if part["type"] == "output_text" else "refusal"
            empty = {**part, "annotations": [], "text": ""} if kind == "output_text" else {**part, "refusal": ""}
            events.append({"type": "response.content_part.added", **at, "content_index": 0, "part": empty})
            said = part.get("text") or part.get("refusal")
            events.append({"type": f"response.{kind}.delta", **at, "content_index": 0, "delta": said, "logprobs": []})
            events.append(
                {"type": f"response.{kind}.done", **at, "content_index": 0, kind.removeprefix("output_"): said}
            )
            events.append({"type": "response.content_part.done", **at, "content_index": 0, "part": part})
        events.append({"type": "response.output_item.done", **at, "item": item})
    events.append({"type": "response.completed", "response": answer})
    return sse(*({**event, "sequence_number": number} for number, event in enumerate(events)))


def anthropic_answer(scene: str, model: str) -> Any:
    said: Body = {"type": "text", "text": TEXT}
    content = [
        {"type": "thinking", "thinking": THOUGHT, "signature": signed(model)},
        {"type": "redacted_thinking", "data": signed(model)},
        said,
    ]
    if scene == "thinks":
        found = {"url": "http://a.example", "title": "A", "encrypted_content": "e", "page_age": None}
        search = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "a"}}
        results = [{"type": "web_search_result", **found}]
        content[2:2] = [search, {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": results}]
        at = {"url": "http://a.example", "title": "A", "encrypted_index": "i", "cited_text": "a"}
        said["citations"] = [{"type": "web_search_result_location", **at}]
    if scene == "calls":
        content += [
            {
                "type": "tool_use",
                "id": f"toolu_01A09q90qw90lq917835lq{index}",
                "name": "date_in",
                "input": {"city": city},
            }
            for index, city in enumerate(CITIES)
        ]
    if scene == "refuses":
        content = []
    reason = {"calls": "tool_use", "refuses": "refusal"}.get(scene, "end_turn")
    usage = {"input_tokens": 1, "output_tokens": 1}
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "usage": usage}
    return {**head, "content": content, "stop_reason": reason, "stop_sequence": None}


def anthropic_streamed(scene: str, model: str) -> str:
    """Each block whole in its start, but for what comes as deltas only."""
    answer = anthropic_answer(scene, model)
    events: list[Body] = [{"type": "message_start", "message": {**answer, "content": [], "stop_reason": None}}]
    for index, block in enumerate(answer["content"]):
        kind = block["type"]
        start = {"text": {**block, "text": ""}, "thinking": {**block, "thinking": "", "signature": ""}}
        start["tool_use"] = {**block, "input": {}}
        deltas: list[Body] = {
            "text": [{"type": "text_delta", "text": block.get("text")}],
            "thinking": [
                {"type": "thinking_delta", "thinking": block.get("thinking")},
                {"type": "signature_delta", "signature": block.get("signature")},
            ],
            "tool_use": [{"type": "input_json_delta", "partial_json": json.dumps(block.get("input"))}],
        }.get(kind, [])
        events.append({"type": "content_block_start", "index": index, "content_block": start.get(kind, block)})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    end = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
    events.append({"type": "message_delta", "delta": end, "usage": {"output_tokens": 1}})
    return sse(*events, {"type": "message_stop"})


def google_answer(scene: str, model: str) -> Any:
    parts: list[Body] = [{"text": THOUGHT, "thought": True}, {"text": TEXT, "thoughtSignature": signed(model)}]
    if scene == "calls":
        parts += [{"functionCall": {"name": "date_in", "args": {"city": city}}} for city in CITIES]
        parts[-2]["thoughtSignature"] = signed(model)
    if scene == "thinks":
        parts += [{"executableCode": {"language": "PYTHON", "code": "print(1)"}}]
        parts += [{"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}}]
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": model}


def google_streamed(scene: str, model: str) -> str:
    return sse(google_answer(scene, model))


def mistral_answer(scene: str, model: str) -> Any:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}], "closed": True}
    message: Body = {"role": "assistant", "content": TEXT}
    if scene == "thinks":
        message["content"] = [thought, {"type": "text", "text": TEXT}, {"type": "reference", "reference_ids": [1]}]
    if scene == "calls":
        message["tool_calls"] = chat_calls("D681PevK{}")
    return chat_body(message, model, "tool_calls" if scene == "calls" else "stop")


def ollama_answer(scene: str, model: str) -> Any:
    message: Body = {"role": "assistant", "content": TEXT, "thinking": THOUGHT}
    if scene == "calls":
        calls = [{"function": {"name": "date_in", "arguments": {"city": city}}} for city in CITIES]
        message["tool_calls"] = calls
    counts = {"total_duration": 1, "prompt_eval_count": 1, "eval_count": 1}
    done = {"done": True, "done_reason": "stop", **counts}
    return {"model": model, "created_at": "2026-01-01T00:00:00Z", "message": message, **done}


def ollama_streamed(scene: str, model: str) -> str:
    return json.dumps(ollama_answer(scene, model)) + "\n"


def bedrock_answer(scene: str, model: str) -> Any:
    thought = {"reasoningText": {"text": THOUGHT, "signature": signed(model)}}
    content: list[Body] = [{"reasoningContent": thought}, {"text": TEXT}]
    if scene == "calls":
        content += [
            {
                "toolUse": {
                    "toolUseId": f"tooluse_kZJMlvQmRJ6eAyJE5GIl7{index}",
                    "name": "date_in",
                    "input": {"city": city},
                }
            }
            for index, city in enumerate(CITIES)
        ]
    message = {"role": "assistant", "content": content}
    usage = {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}
    reason = "tool_use" if scene == "calls" else "end_turn"
    return {"output": {"message": message}, "stopReason": reason, "usage": usage, "metrics": {"latencyMs": 1}}


def bedrock_streamed(scene: str, model: str) -> bytes:
    answer = bedrock_answer(scene, model)
    events: list[Body] = [{"messageStart": {"role": "assistant"}}]
    for index, block in enumerate(answer["output"]["message"]["content"]):
        at = {"contentBlockIndex": index}
        if called := block.get("toolUse"):
            start = {"toolUse": {key: called[key] for key in ("toolUseId", "name")}}
            events.append({"contentBlockStart": {**at, "start": start}})
            deltas = [{"toolUse": {"input": json.dumps(called["input"])}}]
        elif thought := block.get("reasoningContent"):
            deltas = [{"reasoningContent": {key: value}} for key, value in thought["reasoningText"].items()]
        else:
            deltas = [block]
        events += [{"contentBlockDelta": {**at, "delta": delta}} for delta in deltas]
        events.append({"contentBlockStop": at})
    events.append({"messageStop": {"stopReason": answer["stopReason"]}})
    return aws_events(*events, {"metadata": {key: answer[key] for key in ("usage", "metrics")}})
