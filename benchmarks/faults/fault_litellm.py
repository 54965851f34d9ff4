"""LiteLLM's Router under the same faults. It runs in an environment of its own, and prints the cells as JSON."""

import json
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it asks nobody on the network

import litellm  # type: ignore[import-not-found,unused-ignore]
from fault_cells import FIRST_TOKEN_TIMEOUT, LATENCY, MODELS, TIMEOUT, all_cells, run
from fault_server import Way, fault_server
from fault_traffic import traffic

_FUNCTION = {
    "name": "note",
    "description": "Write something down.",
    "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
}
_TOOLS = [{"type": "function", "function": _FUNCTION}]


def _make(urls: Mapping[str, str], settings: Mapping[str, Any]) -> Any:
    """A router that falls back in the order of the models, from whatever LiteLLM can fall back from."""
    models = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": url, "api_key": "test"}}
        for name, url in urls.items()
    ]
    first, *others = urls
    fallbacks = [{first: others}]
    return litellm.Router(
        model_list=models,
        fallbacks=fallbacks,
        context_window_fallbacks=fallbacks,
        content_policy_fallbacks=fallbacks,
        num_retries=0,
        timeout=settings.get("timeout", TIMEOUT),
        stream_timeout=FIRST_TOKEN_TIMEOUT,
    )


def _asked(question: str) -> dict[str, Any]:
    return {"model": MODELS[0], "messages": [{"role": "user", "content": question}]}


def _text(response: Any) -> str:
    message = response.choices[0].message
    if message.tool_calls:
        return "".join(json.loads(call.function.arguments)["text"] for call in message.tool_calls)
    return message.content or ""


def _delta(chunk: Any) -> str:
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""


def _tool_delta(chunk: Any) -> str:
    calls = (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []
    return "".join(call.function.arguments or "" for call in calls)


async def _acompletion(router: Any, question: str) -> str:
    return _text(await router.acompletion(**_asked(question)))


async def _acompletion_tools(router: Any, question: str) -> str:
    return _text(await router.acompletion(**_asked(question), tools=_TOOLS))


async def _astream(router: Any, question: str) -> str:
    return "".join([_delta(chunk) async for chunk in await router.acompletion(**_asked(question), stream=True)])


def _stream_tools(router: Any, question: str) -> str:
    chunks = router.completion(**_asked(question), tools=_TOOLS, stream=True)
    arguments = "".join(map(_tool_delta, chunks))
    return str(json.loads(arguments)["text"]) if arguments else ""


WAYS = {
    "completion": Way(_make, lambda router, question: _text(router.completion(**_asked(question)))),
    "acompletion": Way(_make, _acompletion),
    "tools, completion": Way(
        _make, lambda router, question: _text(router.completion(**_asked(question), tools=_TOOLS))
    ),
    "tools, acompletion": Way(_make, _acompletion_tools),
    "stream": Way(
        _make,
        lambda router, question: "".join(map(_delta, router.completion(**_asked(question), stream=True))),
        streamed=True,
    ),
    "astream": Way(_make, _astream, streamed=True),
    "tools, stream": Way(_make, _stream_tools, streamed=True),
}
FACES = {"LiteLLM Router": WAYS}


def main() -> None:
    """Print the cells, and what comes of random failures."""
    warnings.simplefilter("ignore")
    litellm.suppress_debug_info = True
    printed, sys.stdout = sys.stdout, sys.stderr

    def make(way: Way, urls: Mapping[str, str], settings: Mapping[str, Any]) -> Any:
        return way.make(urls, settings)

    with fault_server(LATENCY) as server:
        cells = run(all_cells(FACES), FACES, server, make)
        rows = traffic(FACES, server, make)
    found = {"cells": [asdict(cell) for cell in cells], "traffic": [asdict(row) for row in rows]}
    print(json.dumps(found), file=printed)
    printed.flush()
    os._exit(0)  # calls that hang have left threads behind


if __name__ == "__main__":
    main()
