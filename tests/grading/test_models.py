"""Models of every kind under one protocol: their answers, their tokens, and the settings that identify them."""

import asyncio
import itertools
import json
import math
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import TOY_PROMPTS
from openai_server import openai_server

from unirouter_integrations import InvalidInputError, UniRouter
from unirouter_integrations.grading import Answer, Example, ModelLike, Price, Usage, as_model
from unirouter_integrations.grading._models import answer_of, is_same_model, model_name, usage_of
from unirouter_integrations.profiling import _run, profile_model

QUESTION = Example("What is 2 times 3?")


def settings(model: ModelLike) -> str:
    return json.dumps(as_model(model).settings)


@pytest.mark.parametrize(
    ("report", "usage"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 3}, Usage(7, 3)),
        (SimpleNamespace(prompt_tokens=7, completion_tokens=3, prompt_tokens_details=None), Usage(7, 3)),
        (
            {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}},
            Usage(7, 3, 5),
        ),
        (
            SimpleNamespace(input_tokens=7, output_tokens=3, input_tokens_details=SimpleNamespace(cached_tokens=5)),
            Usage(7, 3, 5),
        ),
        # Anthropic counts the tokens written to and read from the cache separately.
        (
            SimpleNamespace(
                input_tokens=7, output_tokens=3, cache_read_input_tokens=5, cache_creation_input_tokens=100
            ),
            Usage(112, 3, 5),
        ),
        (
            {"input_tokens": 7, "output_tokens": 3, "input_token_details": {"cache_read": 5, "cache_creation": 1}},
            Usage(7, 3, 5),
        ),
        # Google counts thoughts separately from candidates.
        (
            SimpleNamespace(
                prompt_token_count=7, candidates_token_count=3, thoughts_token_count=9, cached_content_token_count=5
            ),
            Usage(7, 12, 5),
        ),
        ({"prompt_eval_count": 7, "eval_count": 3}, Usage(7, 3)),
        ({"inputTokens": 7, "outputTokens": 3}, Usage(7, 3)),
        ({"total_tokens": 10}, None),
        ({"prompt_tokens": "many"}, None),
        ({}, None),
        (None, None),
        ("text", None),
    ],
)
def test_the_tokens_of_many_providers(report: object, usage: Usage | None) -> None:
    """Tokens read include cached ones, tokens written include thoughts; None if no tokens are reported."""
    assert usage_of(report) == usage


async def test_callables_of_every_kind() -> None:
    """Functions, coroutine functions, objects, partials, and functions that return an awaitable."""

    def now(prompt: str) -> str:
        return f"to {prompt}"

    async def awaited(prompt: str) -> str:
        return f"to {prompt}"

    class Callable_:  # noqa: N801
        async def __call__(self, prompt: str) -> str:
            return f"to {prompt}"

    for model in (now, awaited, Callable_(), partial(now), partial(awaited), lambda prompt: awaited(prompt)):  # noqa: PLW0108
        assert await as_model(model)(QUESTION) == Answer("to What is 2 times 3?")
    answer = Answer("6", Usage(1, 2, 3), ({"name": "multiply", "args": {"a": 2, "b": 3}},), 4.0)
    assert await as_model(lambda prompt: answer)(QUESTION) is answer


async def test_what_a_parser_made_of_the_text_is_json() -> None:
    """A dict, a list, a number, a pydantic model."""
    pydantic = pytest.importorskip("pydantic")

    class Product(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        value: int

    outputs: list[tuple[object, str]] = [
        ({"a": "ü"}, '{"a": "ü"}'),
        ([1], "[1]"),
        (6, "6"),
        (Product(value=6), '{"value": 6}'),
    ]
    for output, text in outputs:
        assert (await as_model(partial(lambda result, prompt: result, output))(QUESTION)).text == text


def test_synchronous_models_are_called_at_the_same_time(router: UniRouter) -> None:
    """They are called in as many threads as max_concurrency: all 64 have to meet."""
    meeting = threading.Barrier(64, timeout=60)

    def model(prompt: str) -> str:
        meeting.wait()
        return "right"

    examples = [Example(f"{TOY_PROMPTS[0]} {number}", "right") for number in range(64)]
    profile = profile_model("m", model, examples, router, price=Price(0, 0), max_concurrency=64)
    assert profile.metadata["answers"] == 64


@pytest.mark.parametrize("model", [None, 7, "openai:gpt-5-mini", dict, {"model": "m"}])
def test_what_is_no_model_is_refused(model: Any) -> None:
    """The message says what to pass."""
    with pytest.raises(InvalidInputError, match=r"is not a model\. Pass|pass an instance"):
        as_model(model)


# --- LangChain ----------------------------------------------------------------------------------------------------


async def test_a_chat_model() -> None:
    """Its text, its tokens and its tool calls."""
    pytest.importorskip("langchain_core")
    from unirouter_integrations import testing as fakes

    assert await as_model(fakes.ChatFake(model="mini"))(QUESTION) == Answer("mini: What is 2 times 3?", Usage(5, 6))

    def multiply(a: int, b: int) -> int:
        """Multiply."""
        return a * b

    bound = fakes.ChatFake(model="mini").bind_tools([multiply])
    answer = await as_model(bound)(QUESTION)
    assert answer.text == ""
    assert answer.tool_calls == ({"name": "multiply", "args": {"a": 2, "b": 3}},)
    assert answer.usage is not None
    assert model_name(bound) == "mini"


async def test_the_tokens_of_a_chain_with_a_parser_are_known() -> None:
    """They are those of all models in the chain, whatever its last step is."""
    pytest.importorskip("langchain_core")
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnableLambda

    from unirouter_integrations import testing as fakes

    prompt = ChatPromptTemplate.from_template("Be brief. {question}")
    chain: Any = prompt | fakes.ChatFake(model="mini") | StrOutputParser()
    assert await as_model(chain)(QUESTION) == Answer("mini: Be brief. What is 2 times 3?", Usage(7, 8))
    both = chain | RunnableLambda(lambda text: f"check {text}") | fakes.ChatFake(model="large")
    answer = await as_model(both)(QUESTION)
    assert answer.text == "large: check mini: Be brief. What is 2 times 3?"
    assert answer.usage == Usage(7 + 9, 8 + 10)


def test_the_settings_of_langchain_models_hold_what_answers_depend_on() -> None:
    """The model, its temperature, bound tools, the prompt template; not keys, timeouts, tags or addresses in memory."""
    openai = pytest.importorskip("langchain_openai")
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnableLambda

    def chat(**given: Any) -> Any:
        return openai.ChatOpenAI(**{"model": "gpt-4o-mini", "api_key": "sk-SECRET", **given})

    def chain(text: str = "Be brief. {question}", **given: Any) -> Any:
        steps = ChatPromptTemplate.from_template(text) | chat(**given) | StrOutputParser()
        return steps | RunnableLambda(lambda text: text)

    makers: tuple[Callable[..., Any], ...] = (chat, lambda **given: chat(**given).bind(stop=["\n"]), chain)
    for make in makers:
        first = settings(make())
        assert settings(make(api_key="sk-OTHER", timeout=3, max_retries=9, tags=["x"], verbose=True)) == first
        assert settings(make(temperature=0.7)) != first
        assert settings(make(model="gpt-4o")) != first
        assert "SECRET" not in first
        assert "0x" not in first
    assert settings(chain("Be long. {question}")) != settings(chain())
    assert settings(chat().bind(stop=["\n"])) != settings(chat())
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    other = {"type": "function", "function": {"name": "multiply", "parameters": {}}}
    assert settings(chat().bind(tools=[tool])) != settings(chat().bind(tools=[other]))
    assert model_name(chat()) == "gpt-4o-mini"


@pytest.mark.parametrize("fault", ["429", "500", "hang", "reset", "cut", "garbage"])
def test_a_real_client_against_a_server_that_fails_every_other_call(
    router: UniRouter, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """What may pass is retried until it has; what is garbage is a failure, and no answer."""
    openai = pytest.importorskip("langchain_openai")
    monkeypatch.setattr(_run, "_FIRST_BACKOFF_SECONDS", 0.0)
    turns = itertools.cycle([fault, None])
    examples = [Example(prompt, f"to {prompt}") for prompt in TOY_PROMPTS[:12]]
    with openai_server(lambda model, messages: f"to {messages[-1]['content']}", lambda model: next(turns)) as url:
        model = openai.ChatOpenAI(model="m", base_url=url, api_key="test", max_retries=0, timeout=0.3)
        profile = profile_model("m", model, examples, router, price=Price(1, 1), on_failure="skip", max_retries=40)
    if fault == "garbage":
        assert profile.metadata["failures"] == 6
    else:
        assert (profile.metadata["answers"], profile.metadata["failures"]) == (12, 0)
    assert profile.mean_error == 0
    tokens = sum(len(example.prompt.split()) for example in examples)
    assert profile.metadata["tokens"]["input_tokens"] == pytest.approx(tokens, abs=tokens if fault == "garbage" else 0)


# --- LlamaIndex ---------------------------------------------------------------------------------------------------


async def test_a_llamaindex_llm() -> None:
    """Its text, and the tokens of its raw response; no key among its settings."""
    pytest.importorskip("llama_index.core")
    from llamaindex_fakes import Fake

    llm = Fake(model_name="mini")
    assert await as_model(llm)(QUESTION) == Answer("mini: What is 2 times 3?", Usage(5, 6))
    assert "SECRET" not in settings(llm)
    assert settings(llm) == settings(Fake(model_name="mini", api_key="sk-OTHER"))
    assert settings(llm) != settings(Fake(model_name="large"))
    assert model_name(llm) == "mini"


def test_a_llamaindex_llm_that_is_only_synchronous_does_not_hold_up_the_others(router: UniRouter) -> None:
    """Its achat() blocks the event loop; called in threads, all four meet."""
    pytest.importorskip("llama_index.core")
    from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata

    meeting = threading.Barrier(4, timeout=60)

    class Slow(CustomLLM):
        @property
        def metadata(self) -> LLMMetadata:
            return LLMMetadata(model_name="slow")

        def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: FBT001, FBT002
            meeting.wait()
            return CompletionResponse(text="right", raw={"usage": {"input_tokens": 7, "output_tokens": 1}})

        def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002
            raise NotImplementedError

    examples = [Example(prompt, "right") for prompt in TOY_PROMPTS[:4]]
    profile = profile_model("slow", Slow(), examples, router, price=Price(1, 1), max_concurrency=4)
    assert profile.metadata["tokens"] == {"input_tokens": 28, "output_tokens": 4, "cached_tokens": 0}


async def test_the_tokens_of_a_query_engine_are_those_of_all_calls_in_it() -> None:
    """Each call once, of this query only, though others run at the same time."""
    pytest.importorskip("llama_index.core")
    from llama_index.core.query_engine import CustomQueryEngine
    from llamaindex_fakes import Fake

    class Twice(CustomQueryEngine):
        llm: Any

        def custom_query(self, query_str: str) -> str:
            raise NotImplementedError

        async def acustom_query(self, query_str: str) -> str:
            first = await self.llm.acomplete(query_str)
            await asyncio.sleep(0)
            return str(await self.llm.acomplete(f"check {first}"))

    engine = as_model(Twice(llm=Fake(model_name="mini")))
    questions = [Example("word " * n) for n in range(1, 9)]
    answers = await asyncio.gather(*map(engine, questions))
    for n, answer in enumerate(answers, start=1):
        assert answer.text.startswith("mini: check mini: word")
        assert answer.usage == Usage(n + (n + 2), (n + 1) + (n + 3))


async def test_a_query_engine_over_an_index() -> None:
    """Retrieval, synthesis and a synchronous LLM, whose chat and completion are one call."""
    pytest.importorskip("llama_index.core")
    from llama_index.core import Document, VectorStoreIndex
    from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
    from llamaindex_fakes import ToyEmbedding

    class Plain(CustomLLM):
        @property
        def metadata(self) -> LLMMetadata:
            return LLMMetadata(model_name="plain", is_chat_model=True)

        def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: FBT001, FBT002
            return CompletionResponse(text="six", raw={"usage": {"prompt_tokens": 50, "completion_tokens": 1}})

        def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002
            raise NotImplementedError

    index = VectorStoreIndex.from_documents([Document(text="the sum of 2 and 3 is 5")], embed_model=ToyEmbedding())
    answer = await as_model(index.as_query_engine(llm=Plain()))(Example("What is the sum?"))
    assert answer == Answer("six", Usage(50, 1))


def test_a_model_that_stops_iterating_fails_like_any_other(router: UniRouter) -> None:
    """A future cannot hold a StopIteration; it comes as the cause of another error."""
    with pytest.raises(RuntimeError, match="It raised StopIteration"):
        profile_model("new", lambda prompt: next(iter(())), [Example("sum", "x")], router, price=Price(0, 0))


def test_tokens_of_another_library_are_whole_numbers(router: UniRouter, tmp_path: Path) -> None:
    """NumPy's go into the journal and the metadata as Python's."""
    usage: Any = Usage(np.int64(3), np.int64(4))  # type: ignore[arg-type]
    given: dict[str, Any] = {"price": Price(1, 1), "journal": tmp_path / "profiles.db"}
    for _ in range(2):
        profile = profile_model("new", lambda prompt: Answer("x", usage), [Example("sum", "x")], router, **given)
        assert profile.metadata["tokens"]["output_tokens"] == 4


def test_two_servers_have_two_models_of_one_name() -> None:
    """Their answers are kept apart, and the same server's are found again."""
    openai = pytest.importorskip("langchain_openai")
    here, there, again = (
        as_model(openai.ChatOpenAI(model="qwen", base_url=f"http://{host}/v1", api_key="x")).settings
        for host in ("here", "there", "here")
    )
    assert here != there
    assert here == again


def test_a_scorer_that_asks_a_model_is_asked_once(router: UniRouter, tmp_path: Path) -> None:
    """An evaluator's grades are kept; and how probable an answer was is kept with it."""
    asked = []

    class Evaluator:
        async def aevaluate(self, **given: Any) -> Any:
            asked.append(given["query"])
            return SimpleNamespace(score=1.0, passing=True, feedback="", invalid_result=False)

    given: dict[str, Any] = {"price": Price(0, 0), "journal": tmp_path / "profiles.db"}
    model = lambda prompt: Answer("x", logprob=-0.5)  # noqa: E731
    for scorer in (Evaluator(), Evaluator(), "probability", "probability"):
        profile = profile_model(
            "new", model, [Example("sum", "x"), Example("poem", "x")], router, scorer=scorer, **given
        )
    assert len(asked) == 2
    assert profile.mean_error == pytest.approx(1 - math.exp(-0.5))


def test_forms_of_one_value_are_answers() -> None:
    """They become JSON."""
    pydantic = pytest.importorskip("pydantic")
    assert answer_of(pydantic.RootModel[str]("x")).text == '"x"'
    assert answer_of(pydantic.RootModel[None](None)).text == "null"


def test_a_chain_with_a_judge_in_it_is_the_judge() -> None:
    """It does not matter which of the two is the chain."""
    parsers = pytest.importorskip("langchain_core.output_parsers")
    from unirouter_integrations.testing import ChatFake

    model = ChatFake(model="m")
    chain = model | parsers.StrOutputParser()
    assert is_same_model(chain, chain)
    assert is_same_model(chain, model)
    assert is_same_model(model, chain)
    assert not is_same_model(ChatFake(model="other"), chain)
