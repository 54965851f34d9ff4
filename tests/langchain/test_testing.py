"""The fake chat model does what it says."""

import copy
import json
import subprocess
import sys
from typing import Annotated, Any, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage, trim_messages
from pydantic import BaseModel, Field, ValidationError

from unirouter_integrations import InvalidInputError, UniRouter
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.testing import ChatFake


def add(a: int, b: float) -> float:
    """Add two numbers."""
    return a + b


def look_up(place: str) -> str:
    """Look up a place."""
    return f"{place} is far away"


class Leg(BaseModel):
    """A part of a trip."""

    to: str
    nights: int


class Window(BaseModel):
    seat: Literal["window"]


class Aisle(BaseModel):
    seat: Literal["aisle"]


class Trip(BaseModel):
    """A trip."""

    title: str = Field(examples=["Summer in Rome"])
    by: Literal["train", "ship"]
    kind: Literal["trip"]
    legs: list[Leg]
    price: float | None
    guests: dict[str, str]
    booked: bool
    place: Annotated[Window | Aisle, Field(discriminator="seat")]
    remark: str = "none"


TRIP = Trip(
    title="Summer in Rome",
    by="train",
    kind="trip",
    legs=[Leg(to="2 nights for 99.5", nights=2)],
    price=99.5,
    guests={},
    booked=True,
    place=Window(seat="window"),
)


def total(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    return sum(chunks[1:], chunks[0])


def test_replies_are_a_list_a_function_or_its_name_and_the_question() -> None:
    """Always alike; a list is given in order and over again."""
    listed = ChatFake(replies=["one", "two"])
    assert [listed.invoke("x").text for _ in range(3)] == ["one", "two", "one"]
    shouting = ChatFake(replies=lambda messages: messages[-1].text.upper())
    assert [shouting.invoke("x").text for _ in range(2)] == ["X", "X"]
    assert ChatFake(model="mini").invoke([SystemMessage("Be brief."), HumanMessage("Why?")]).text == "mini: Why?"
    for replies in ([], "one", [1]):
        with pytest.raises(ValidationError):
            ChatFake(replies=replies)  # type: ignore[arg-type]


async def test_name_and_tokens_are_reported_and_streams_come_in_pieces() -> None:
    """Once per answer, called in every way; the pieces make up the answer."""
    fake = ChatFake(model="mini", replies=["one  two\nthree"])
    counter = UsageMetadataCallbackHandler()
    config: Any = {"callbacks": [counter]}
    chunks = list(fake.stream("count to three", config))
    achunks = [chunk async for chunk in fake.astream("count to three", config)]
    assert [chunk.text for chunk in chunks] == [chunk.text for chunk in achunks] == ["one  ", "two\n", "three", ""]
    for answer in (fake.invoke("count to three", config), await fake.ainvoke("count to three", config), total(chunks)):
        assert answer.text == "one  two\nthree"
        assert answer.usage_metadata == {"input_tokens": 3, "output_tokens": 3, "total_tokens": 6}
        assert answer.response_metadata["model_name"] == "mini"
    assert counter.usage_metadata["mini"]["total_tokens"] == 24
    assert fake.n_calls == 4
    assert fake.invoke("x", model="other").response_metadata["model_name"] == "other"


def test_stop_and_token_counters_are_honoured() -> None:
    """The text ends before the first of the stops; a word is a token."""
    fake = ChatFake(replies=["one, two, three"])
    assert fake.invoke("x", stop=[" three", "two"]).text == "one, "
    assert "".join(chunk.text for chunk in fake.stream("x", stop=["two"])) == "one, "
    assert fake.get_num_tokens("a b c") == 3
    assert len(trim_messages([HumanMessage("a b"), HumanMessage("c d")], max_tokens=4, token_counter=fake)) == 1


def test_tools_are_called_with_what_the_question_holds() -> None:
    """Numbers in order, text for text; in pieces when streaming; text again once the tool has answered."""
    bound = ChatFake(model="mini").bind_tools([add, look_up])
    question = HumanMessage("What is 3 + 4.5?")
    call = bound.invoke([question])
    assert call.text == ""
    assert call.tool_calls == [{"name": "add", "args": {"a": 3, "b": 4.5}, "id": "call_mini_1", "type": "tool_call"}]
    chunks: list[Any] = list(bound.stream([question]))
    pieces = [part["args"] for chunk in chunks for part in chunk.tool_call_chunks]
    assert len(pieces) > 3
    assert json.loads("".join(piece or "" for piece in pieces)) == {"a": 3, "b": 4.5}
    assert total(chunks).tool_calls == [{**call.tool_calls[0], "id": "call_mini_2"}]
    answer = bound.invoke([question, call, ToolMessage("7.5", tool_call_id="call_mini_1")])
    assert (answer.text, answer.tool_calls) == ("mini: What is 3 + 4.5?", [])


def test_tool_choice_is_honoured() -> None:
    """A name, any, none; a tool that is not there is an error, as with a provider."""
    fake = ChatFake()

    def called(tool_choice: str, *messages: Any) -> list[str]:
        answer = fake.bind_tools([add, look_up], tool_choice=tool_choice).invoke(["3 and 4", *messages])
        return [call["name"] for call in answer.tool_calls]

    assert called("look_up") == ["look_up"]
    assert called("none") == []
    assert called("auto") == called("any") == ["add"]
    added = AIMessage("", tool_calls=[{"name": "add", "args": {}, "id": "1"}])
    result = ToolMessage("7", tool_call_id="1")
    assert called("any", added, result) == ["look_up"]
    assert called("any", added, result, "5 and 6") == ["add"]
    with pytest.raises(InvalidInputError, match=r"one of \['add', 'look_up'\].*but is 'subtract'"):
        called("subtract")


@pytest.mark.parametrize("schema", [Trip, Trip.model_json_schema()], ids=["class", "JSON schema"])
async def test_structured_output_is_filled_in_by_type(schema: Any) -> None:
    """Nested, and in each way to call; examples, enums and constants first, defaults left alone."""
    structured = ChatFake().with_structured_output(schema)
    outputs: list[Any] = [structured.invoke("2 nights for 99.5"), await structured.ainvoke("2 nights for 99.5")]
    outputs += [*structured.stream("2 nights for 99.5")][-1:]
    for output in outputs:
        assert Trip.model_validate(output) == TRIP


async def test_an_agent_comes_to_its_end() -> None:
    """It calls the tool, then answers, in text or in a form."""
    asked = {"messages": [HumanMessage("Rome")]}
    agent: Any = create_agent(ChatFake(model="mini"), [look_up])
    *_, result, answer = agent.invoke(asked)["messages"]
    assert (result.text, answer.text) == ("Rome is far away", "mini: Rome")
    formed: Any = create_agent(ChatFake(), [look_up], response_format=ToolStrategy(Leg))
    state = await formed.ainvoke(asked)
    assert state["structured_response"] == Leg(to="Rome", nights=1)
    assert next(message.text for message in state["messages"] if message.type == "tool") == "Rome is far away"


async def test_it_fails_the_first_times_or_always() -> None:
    """With the very error, and the failed calls are counted."""
    error = TimeoutError("too slow")
    flaky = ChatFake(error=error, n_errors=2, replies=["one", "two"])
    with pytest.raises(TimeoutError) as raised:
        flaky.invoke("x")
    assert raised.value is error
    with pytest.raises(TimeoutError):
        list(flaky.stream("x"))
    assert [flaky.invoke("x").text, flaky.n_calls] == ["one", 3]
    broken = ChatFake(error=error)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await broken.ainvoke("x")
    assert broken.with_fallbacks([ChatFake(model="spare")]).invoke("x").text == "spare: x"
    assert broken.n_calls == 4


def test_no_call_is_lost_in_a_batch() -> None:
    """Counted and answered once each, in whatever thread."""
    fake = ChatFake(replies=[str(n) for n in range(300)])
    answers = fake.bind(stop=["x"]).batch(["x"] * 300)
    assert sorted(int(answer.text) for answer in answers) == list(range(300))
    assert fake.n_calls == copy.deepcopy(fake).n_calls == 300


def test_the_profile_is_the_users() -> None:
    """As with a real model."""
    assert ChatFake().profile is None
    assert ChatFake(profile={"tool_calling": False}).profile == {"tool_calling": False}


def test_a_router_over_fakes_is_tested_in_three_lines(router: UniRouter) -> None:
    """Who answered, and how often each was called."""
    models = {name: ChatFake(model=name) for name in router.models}
    llm = ChatUniRouter(router=router, models=models)
    assert [llm.invoke(f"a {kind}").text for kind in ("sum", "poem", "poem")] == [
        "abacus: a sum",
        *["poet: a poem"] * 2,
    ]
    assert {name: model.n_calls for name, model in models.items()} == {"abacus": 1, "oracle": 0, "poet": 2}


def test_without_langchain_it_says_what_to_install() -> None:
    """And is still an ImportError."""
    script = """
import sys
sys.modules["langchain_core"] = None
try:
    import unirouter_integrations.testing
except ImportError as error:
    print(type(error).__name__, error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout.startswith("MissingDependencyError unirouter_integrations.testing needs pip install")
