"""What comes in through the front door of `UniRouter` and `ChatUniRouter`: anything that people and services send."""

import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import TOY_PROMPTS, toy_embed, toy_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from unirouter_integrations import EmbeddingError, InvalidInputError, UniRouter, UniRouterError, as_embedder
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.testing import ChatFake

MARKED = "a word of a reply"
NAMES = ("abacus", "poet")


def fakes() -> dict[str, Any]:
    """Chat models that say which one they are, and how much they were given."""
    return {name: ChatFake(model=name, replies=partial(reply_of, name)) for name in NAMES}


def reply_of(name: str, given_input: Any) -> str:
    """What one of them answers to it."""
    messages = given_input if isinstance(given_input, list) else [HumanMessage(given_input)]
    return f"{name} of {size(messages)}"


def size(messages: Sequence[BaseMessage]) -> tuple[int, int]:
    return len(messages), sum(len(str(message.content)) for message in messages)


def registered(router: UniRouter) -> UniRouter:
    """One specialist in sums, and one in all the rest, which is better in the mean and more expensive."""
    router.register(router.profile("abacus", TOY_PROMPTS, toy_scores("poem", "date"), cost=1))
    router.register(router.profile("poet", TOY_PROMPTS, toy_scores("sum"), cost=2))
    return router


LOCAL = registered(UniRouter.fit(TOY_PROMPTS, n_clusters=3))

IMAGE = HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}])
UNKNOWN = {  # nothing in these tells a sum from a poem
    "empty": "",
    "white space": " \t\r\n\u00a0\u2028\u200b ",
    "null bytes": "\0" * 100,
    "lone surrogates": "\ud800 \udfff\udc00",
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f4\U000e0067\U000e007f",
    "other scripts": "сложи два числа 二つの数を足す اجمع العددين",
    "an image": [IMAGE],
    "no messages": [],
    "a message without parts": [HumanMessage([])],
    "parts of no known kind": [HumanMessage([{"text": 1}, {"type": "text"}, {"type": "text", "text": None}, {}])],
    "a system message": [SystemMessage("Be brief.")],
    "an answer": [AIMessage("Very well.")],
    "a tool's answer": [HumanMessage(""), ToolMessage("42", tool_call_id="1")],
}
KNOWN = {  # a sum can be seen in these
    "a megabyte": "sum number " + "i" * 2**20,
    "fifty thousand words": "sum number " * 25_000,
    "null bytes": "\0sum\0number\0",
    "surrogates": "sum number i ii iii \ud800",
    "an emoji": "sum number \U0001f600",
    "a mixture of scripts": "SUM number",
    "an image with a caption": [HumanMessage([{"type": "text", "text": "sum number"}, *IMAGE.content])],
    "the caption before the image": [HumanMessage("sum number"), IMAGE],
    "no human message": [SystemMessage("sum number"), AIMessage("sum number")],
    "another role": [ChatMessage(role="user", content="sum number")],
    "thousands of messages": [
        *(kind("poem number") for _ in range(3000) for kind in (HumanMessage, AIMessage)),
        HumanMessage(f"sum number {'i' * 60}"),  # too long to be a follow-up
    ],
}


async def answers(llm: ChatUniRouter, given_input: Any) -> list[BaseMessage]:
    """Of every way to call it."""
    chunks = list(llm.stream(given_input))
    achunks = [chunk async for chunk in llm.astream(given_input)]
    return [
        llm.invoke(given_input),
        await llm.ainvoke(given_input),
        *llm.batch([given_input, given_input]),
        *await llm.abatch([given_input]),
        sum(chunks[1:], chunks[0]),
        sum(achunks[1:], achunks[0]),
    ]


@pytest.mark.parametrize("given_input", UNKNOWN.values(), ids=UNKNOWN)
async def test_a_prompt_that_says_nothing_goes_to_the_best_model_in_the_mean(given_input: Any) -> None:
    """In every way to call it; the decision says that it knows nothing of the prompt, and the model gets it whole."""
    llm = ChatUniRouter(router=LOCAL, models=fakes())
    for answer in await answers(llm, given_input):
        decision = answer.response_metadata["unirouter"]
        assert (decision["model"], decision["familiarity"]) == ("poet", 0)
        assert answer.text == reply_of("poet", given_input)


@pytest.mark.parametrize("given_input", KNOWN.values(), ids=KNOWN)
async def test_a_strange_prompt_is_judged_by_what_can_be_read_of_it(given_input: Any) -> None:
    """However long or odd, and wherever the text stands; the model gets it whole."""
    llm = ChatUniRouter(router=LOCAL, models=fakes())
    for answer in await answers(llm, given_input):
        assert answer.response_metadata["unirouter"]["model"] == "abacus"
        assert answer.text == reply_of("abacus", given_input)


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=50)  # surrogates as well


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from([HumanMessage, AIMessage, SystemMessage]), ANY_TEXT), max_size=6))
def test_any_conversation_has_an_answer(turns: list[tuple[Any, str]]) -> None:
    """From the model that its decision names; and it can be printed."""
    answer = ChatUniRouter(router=LOCAL, models=fakes()).invoke([kind(text) for kind, text in turns])
    assert answer.text.startswith(answer.response_metadata["unirouter"]["model"])


@given(st.lists(ANY_TEXT, max_size=5))
def test_any_texts_have_decisions(texts: list[str]) -> None:
    """Each one, alone and among others, now and awaited; and each decision can be read."""
    together = LOCAL.route_many(texts)
    assert [decision.model for decision in together] == [LOCAL.route(text).model for text in texts]
    assert asyncio.run(LOCAL.aroute_many(texts)) == together
    assert all(decision.model in str(decision) for decision in together)


class Strict:
    """An embedding model of every kind, which refuses half of a surrogate pair, as tokenizers and services do."""

    def encode(self, texts: list[str]) -> Any:
        return toy_embed([text.encode().decode() for text in texts])

    embed_documents = encode

    async def aembed_documents(self, texts: list[str]) -> Any:
        return self.encode(texts)

    def get_query_embedding(self, query: str) -> Any:
        return self.encode([query])[0]

    async def aget_query_embedding(self, query: str) -> Any:
        return self.encode([query])[0]


INTERFACES = {
    "encoder": ("encode",),
    "LangChain, sync": ("embed_documents",),
    "LangChain": ("embed_documents", "aembed_documents"),
    "LlamaIndex": ("get_query_embedding", "aget_query_embedding"),
    "callable": (),
}


@pytest.mark.parametrize("methods", INTERFACES.values(), ids=INTERFACES)
async def test_any_text_is_routed_through_any_embedder(methods: tuple[str, ...]) -> None:
    """Lone surrogates as well: the embedder sees a question mark in their place."""
    strict = Strict()
    embedder: Any = SimpleNamespace(**{name: getattr(strict, name) for name in methods}) if methods else strict.encode
    router = registered(UniRouter.fit(TOY_PROMPTS, embedder=embedder, n_clusters=3))
    for text in ("sum \ud800", "\udfff sum", "\ud83d\ude00 sum"):
        assert router.route(text).model == (await router.aroute(text)).model == "abacus"
    assert [each.model for each in router.route_many(["\ud800", "sum"])][1] == "abacus"


NO_NAMES = [
    "",
    "tell nobody that I am Ann",
    "https://user:key@host/model",
    "a/b/c",
    "x" * 200,
    "x" * 10**6,
    "\ud800",
    "\0",
]


@pytest.mark.parametrize("family", ["", "sentence-transformers:", "model2vec:"])
@pytest.mark.parametrize("text", NO_NAMES)
def test_a_text_that_cannot_be_the_name_of_an_embedder_is_not_looked_up(
    family: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a prompt in the wrong place; libraries log what they look up, and send it to the hub."""
    asked: list[str] = []
    fake = SimpleNamespace(from_pretrained=lambda name, **_: asked.append(name))
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=asked.append))
    monkeypatch.setitem(sys.modules, "model2vec", SimpleNamespace(StaticModel=fake))
    with pytest.raises(InvalidInputError, match="a name such as all-MiniLM-L6-v2, or a folder") as caught:
        as_embedder(family + text)
    assert asked == []
    assert "Ann" not in str(caught.value)


class Service(Embeddings):
    """An embedding service that can be told what to reply."""

    model = "service"

    def __init__(self) -> None:
        self.reply: Any = None

    def embed_documents(self, texts: list[str]) -> Any:
        if isinstance(self.reply, Exception):
            raise self.reply
        return toy_embed(texts) if self.reply is None else self.reply[0]

    def embed_query(self, text: str) -> Any:
        raise NotImplementedError


class AsyncService(Service):
    """One that can be awaited as well."""

    async def aembed_documents(self, texts: list[str]) -> Any:
        return self.embed_documents(texts)


REPLIES: dict[str, Any] = {
    "nothing": None,
    "nothing for each": [None],
    "numbers that are not there": [[None] * 4],
    "a text": MARKED,
    "texts": [MARKED],
    "texts for numbers": [[MARKED] * 4],
    "an error document": {"error": MARKED},
    "bytes": [b"\0\0\x80?" * 4],
    "no rows": [],
    "too many rows": np.ones((7, 4)),
    "a row alone": np.ones(4),
    "one dimension too many": np.ones((1, 4, 1)),
    "too short": np.ones((1, 3)),
    "too long": np.ones((1, 5)),
    "rows without numbers": [[]],
    "rows that differ": [[1.0, 2.0], [1.0]],
    "NaN": [[float("nan")] * 4],
    "infinity": [[0, 0, 0, float("inf")]],
    "too large for 32 bits": [[1e39, 0, 0, 0]],
    "too large for a float": [[10**400, 0, 0, 0]],
    "a number": 3.0,
    "a set": {1.0, 2.0},
    "objects": [[object()] * 4],
}


@pytest.mark.parametrize("kind", [Service, AsyncService])
@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
async def test_a_service_that_replies_something_else_is_named(reply: Any, kind: type[Service]) -> None:
    """No model is called, nothing of the reply is quoted, and once the service is well all goes on."""
    service = kind()
    models = fakes()
    router = registered(UniRouter.fit(TOY_PROMPTS, embedder=service, n_clusters=3))
    llm = ChatUniRouter(router=router, models=models)
    service.reply = (reply,)
    calls: list[Any] = [llm.invoke, llm.ainvoke, lambda text: llm.batch([text]), lambda text: list(llm.stream(text))]
    for call in [*calls, router.route, router.aroute]:
        with pytest.raises(EmbeddingError, match=r"vector|Vector") as caught:
            await awaited(call("a sum of numbers"))
        assert MARKED not in str(caught.value)
    assert sum(model.n_calls for model in models.values()) == 0
    service.reply = None
    assert llm.invoke("a sum of numbers").response_metadata["unirouter"]["model"] == "abacus"
    assert (await llm.ainvoke("a sum of numbers")).response_metadata["unirouter"]["model"] == "abacus"


async def awaited(result: Any) -> Any:
    return await result if asyncio.iscoroutine(result) else result


@pytest.mark.parametrize("kind", [Service, AsyncService])
@pytest.mark.parametrize("error", [ConnectionError(MARKED), KeyError(MARKED), RuntimeError(MARKED)])
async def test_what_a_service_raises_comes_out_as_it_was(error: Exception, kind: type[Service]) -> None:
    """The very same exception, sync and async; and once the service is well all goes on."""
    service = kind()
    llm = ChatUniRouter(router=registered(UniRouter.fit(TOY_PROMPTS, embedder=service, n_clusters=3)), models=fakes())
    service.reply = error
    for call in (llm.invoke, llm.ainvoke):
        with pytest.raises(type(error)) as caught:
            await awaited(call("a sum"))
        assert caught.value is error
    service.reply = None
    assert (await llm.ainvoke("a sum")).response_metadata["unirouter"]["model"] == "abacus"


@pytest.mark.parametrize(
    "vector", [[[1, 2, 3, 4]], [1, 2], [float("nan")] * 4, ["a"] * 4, None, MARKED, [None] * 4, {}]
)
def test_a_vector_that_is_none_is_refused(vector: Any) -> None:
    """One of our errors, which does not quote it."""
    router = registered(UniRouter.fit(TOY_PROMPTS, embedder=toy_embed, n_clusters=3))
    with pytest.raises(UniRouterError) as caught:
        router.route(vector=vector)
    assert MARKED not in str(caught.value)
