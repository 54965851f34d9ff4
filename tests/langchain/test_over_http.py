"""Real OpenAI clients of LangChain against a server on loopback that speaks their protocol."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import HumanMessage, ToolMessage
from openai_server import openai_server
from pydantic import BaseModel

from unirouter_integrations import UniRouter
from unirouter_integrations.langchain import ChatUniRouter

QUESTIONS = ["a sum", "a poem", "a date"]
ANSWERS = ["abacus says a sum", "poet says a poem", "oracle says a date"]
RECORDED = Path(__file__).parents[3] / "shared" / "data" / "zeroeval"


class Note(BaseModel):
    """Write something down."""

    text: str


def note(text: str) -> str:
    """Write something down."""
    return text


def answer(model: str, messages: list[dict[str, Any]]) -> str:
    return f"{model} says {messages[-1]['content']}"


def clients(names: Iterable[str], url: str) -> dict[str, Any]:
    openai = pytest.importorskip("langchain_openai")
    return {
        name: openai.ChatOpenAI(model=name, base_url=url, api_key="test", max_retries=0, stream_usage=True)
        for name in names
    }


def total(chunks: list[Any]) -> Any:
    return sum(chunks[1:], chunks[0])


async def test_real_clients_are_routed_in_every_form(router: UniRouter) -> None:
    """Plain and streamed, sync and async, in batches: the text of the chosen model, and its tokens counted once."""
    with openai_server(answer) as url:
        llm = ChatUniRouter(router=router, models=clients(router.models, url))
        counter = UsageMetadataCallbackHandler()
        config: Any = {"callbacks": [counter]}
        assert [llm.invoke(question, config).text for question in QUESTIONS] == ANSWERS
        assert [(await llm.ainvoke(question, config)).text for question in QUESTIONS] == ANSWERS
        assert [message.text for message in llm.batch([*QUESTIONS], config)] == ANSWERS
        assert [message.text for message in await llm.abatch([*QUESTIONS], config)] == ANSWERS
        streamed = [[chunk.text for chunk in llm.stream(question, config)] for question in QUESTIONS]
        assert all(len(chunks) > 3 for chunks in streamed)
        assert ["".join(chunks) for chunks in streamed] == ANSWERS
        astreamed = [[chunk.text async for chunk in llm.astream(question, config)] for question in QUESTIONS]
        assert astreamed == streamed
    used = {name: (usage["input_tokens"], usage["output_tokens"]) for name, usage in counter.usage_metadata.items()}
    assert used == {"abacus": (12, 24), "poet": (12, 24), "oracle": (12, 24)}


async def test_real_clients_call_tools(router: UniRouter) -> None:
    """The chosen one does, plain and streamed, and goes on when the tool has answered; its tokens are counted once."""
    with openai_server(answer) as url:
        bound = ChatUniRouter(router=router, models=clients(router.models, url)).bind_tools([note])
        counter = UsageMetadataCallbackHandler()
        config: Any = {"callbacks": [counter]}
        called = [
            bound.invoke("a poem", config),
            await bound.ainvoke("a poem", config),
            *bound.batch(["a poem"], config),
            total(list(bound.stream("a poem", config))),
            total([chunk async for chunk in bound.astream("a poem", config)]),
        ]
        for message in called:
            (call,) = message.tool_calls
            assert (call["name"], call["args"]) == ("note", {"text": "poet says a poem"})
            assert message.response_metadata["unirouter"]["model"] == "poet"
        answered = bound.invoke(
            [HumanMessage("a poem"), called[0], ToolMessage("noted", tool_call_id="call_1")], config
        )
    assert answered.text == "poet says noted"
    assert [(name, usage["output_tokens"]) for name, usage in counter.usage_metadata.items()] == [("poet", 23)]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of langchain-openai, when it streams a form
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_real_clients_fill_in_forms(router: UniRouter, method: str) -> None:
    """Each in its provider's own way, as the chosen client chooses."""
    with openai_server(answer) as url:
        llm = ChatUniRouter(router=router, models=clients(router.models, url))
        structured = llm.with_structured_output(Note, method=method)
        notes = [structured.invoke(question) for question in QUESTIONS]
        anotes = [await structured.ainvoke(question) for question in QUESTIONS]
        assert notes == anotes == [Note(text=text) for text in ANSWERS]
        assert list(structured.stream("a sum"))[-1] == notes[0]
        assert structured.batch([*QUESTIONS]) == notes


def test_recorded_answers_of_real_models_are_replayed() -> None:
    """Each prompt gets, word for word, what the model that the router chose for it once answered."""
    if not RECORDED.is_dir():
        pytest.skip("needs the recorded answers in ../shared/data")
    parquet = pytest.importorskip("pyarrow.parquet")
    names = ["gemini-1.5-flash", "gpt-4o-mini-2024-07-18", "claude-3-5-sonnet-20241022", "o1-mini-2024-09-12"]
    rows = [("model", "in", names)]
    texts = {row["prompt_id"]: row["prompt"] for row in parquet.read_table(RECORDED / "prompts.parquet").to_pylist()}
    outcomes = parquet.read_table(RECORDED / "outcomes.parquet", filters=rows).to_pylist()
    score = {(row["prompt_id"], row["model"]): row["score"] for row in outcomes}
    recorded = {
        (row["model"], texts[row["prompt_id"]]): row["response"]
        for row in parquet.read_table(RECORDED / "responses.parquet", filters=rows).to_pylist()
    }
    known, asked = list(texts)[::24], [texts[key] for key in list(texts)[5::120]]
    prompts = [texts[key] for key in known]
    router = UniRouter.fit(prompts)
    for name in names:
        costs = [row["cost_usd"] for row in outcomes if row["model"] == name]
        router.register(
            router.profile(name, prompts, [score[key, name] for key in known], cost=1000 * sum(costs) / len(costs))
        )
    router.calibrate(prompts, quality=0.97)
    with openai_server(lambda model, messages: recorded[model, messages[-1]["content"]]) as url:
        llm = ChatUniRouter(router=router, models=clients(names, url))
        answers = [*llm.batch([*asked]), *(total(list(llm.stream(prompt))) for prompt in asked)]
    chosen = [decision.model for decision in router.route_many(asked)] * 2
    assert [message.text for message in answers] == [
        recorded[model, prompt] for model, prompt in zip(chosen, asked * 2, strict=True)
    ]
    assert [message.response_metadata["model_name"] for message in answers] == chosen
    assert len(set(chosen)) > 1
