"""`candidates=`: a function of the developer says which models may take a call, in every face."""

import inspect
from typing import Any

import pytest

pytest.importorskip("langchain.agents")
pytest.importorskip("llama_index.core")

from fault_faces import FACES
from fault_server import Way, answer_of
from langchain_core.messages import HumanMessage, SystemMessage
from llamaindex_fakes import Fake

from unirouter_integrations import InvalidInputError, NoModelError, UnknownModelError
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.llamaindex import call_options
from unirouter_integrations.serving import record
from unirouter_integrations.testing import ChatFake

NAMES = ("best", "second", "third")
WAYS = {
    f"{face}.{how}": way
    for face, ways in FACES.items()
    for how, way in ways.items()
    if not how.startswith(("tools", "form"))
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def models_for(way: Way, *failing: str) -> dict[str, Any]:
    errors = {name: ConnectionError() if name in failing else None for name in NAMES}
    if way.framework == "langchain":
        return {name: ChatFake(model=name, error=error) for name, error in errors.items()}
    return {name: Fake(model_name=name, error=error) for name, error in errors.items()}


async def asked(way: Way, models: dict[str, Any], question: str, candidates: Any) -> str:
    """The model that answers."""
    face = way.make(models, {"candidates": candidates})
    with record() as calls:
        found = way.ask(face, question)
        if inspect.isawaitable(found):
            await found
    return calls[-1].model


def private(said: Any, *_: Any) -> list[str] | None:
    """Only the third model may see what is secret."""
    texts = [said] if isinstance(said, str) else [getattr(message, "content", "") for message in said]
    return ["third"] if any("secret" in str(text) for text in texts) else None


@EVERY_WAY
@pytest.mark.filterwarnings("ignore:.*is in beta")
async def test_only_the_candidates_take_a_call(way: Way) -> None:
    """Whatever the router would choose. Where the function says nothing, all may."""
    assert answer_of("best", "x")
    assert await asked(way, models_for(way), "poem number 7", private) == "best"
    assert await asked(way, models_for(way), "poem number 7, which is secret", private) == "third"


@EVERY_WAY
@pytest.mark.filterwarnings("ignore:.*is in beta")
async def test_no_fallback_gets_past_them(way: Way) -> None:
    """The error of the last one is raised."""
    with pytest.raises(ConnectionError):
        await asked(way, models_for(way, "third"), "a secret poem, number 7", private)
    assert await asked(way, models_for(way, "best"), "a secret poem, number 7", lambda *_: ["best", "third"]) == "third"


def test_no_option_of_a_call_gets_past_them() -> None:
    """Of those that it asks for, the allowed ones take part."""
    chat: Any = next(way for name, way in WAYS.items() if name == "ChatUniRouter.invoke")
    llm: ChatUniRouter = chat.make(models_for(chat), {"candidates": private})
    messages = [SystemMessage("Keep it secret."), HumanMessage("poem number 7")]
    options: Any = {"configurable": {"unirouter_among": ["second", "third"]}}
    assert llm.invoke(messages, options).response_metadata["unirouter"]["model"] == "third"
    for call in (
        lambda: llm.invoke(messages, {"configurable": {"unirouter_model": "best"}}),
        lambda: llm.invoke(messages, model="best"),
        lambda: llm.decide().invoke(messages, {"configurable": {"unirouter_among": ["best", "second"]}}),
    ):
        with pytest.raises(NoModelError, match="and candidates allows only third"):
            call()
    query: Any = next(way for name, way in WAYS.items() if name == "UniRouterLLM.complete")
    other = query.make(models_for(query), {"candidates": private})
    with call_options(model="best"), pytest.raises(NoModelError, match="The call asks for best"):
        other.complete("a secret poem")


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ("third", InvalidInputError, "among should be a list"),
        ([], InvalidInputError, "among should be a list"),
        ([7], InvalidInputError, "among should be a list"),
        (["fourth"], UnknownModelError, "no model 'fourth'"),
    ],
)
def test_a_function_that_names_no_models_is_refused(names: Any, error: type[Exception], message: str) -> None:
    """Nobody else takes the call instead."""
    chat: Any = next(way for name, way in WAYS.items() if name == "ChatUniRouter.invoke")
    llm = chat.make(models_for(chat), {"candidates": lambda *_: names})
    with pytest.raises(error, match=message):
        llm.invoke("poem number 7")
