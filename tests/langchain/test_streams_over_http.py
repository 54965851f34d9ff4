"""The client of OpenAI against a server whose streams break: in a chat, in events and in agents."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("langchain.agents")
pytest.importorskip("langchain_openai")
pytest.importorskip("llama_index.core")

from fault_faces import FACES, client
from fault_server import STREAMED, FaultServer, Way, answer_of, fault_server

NAMES = ("best", "second", "third")
QUESTION = "poem number 7"
BEFORE_CONTENT = (
    *("null choices", "empty choices", "empty stream", "error event", "role, cut", "role, half JSON", "role, end"),
    *("role, no finish", "refusal", "content filter"),
)
AFTER_CONTENT = ("text, cut", "text, error event", "text, half JSON", "text, no finish", "text, done without finish")
WAYS = {f"{face}.{how}": way for face in ("ChatUniRouter", "UniRouterMiddleware") for how, way in FACES[face].items()}
streams = pytest.mark.parametrize(
    "way",
    [way for name, way in WAYS.items() if way.streamed and "tools" not in name],
    ids=[name for name, way in WAYS.items() if way.streamed and "tools" not in name],
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is in beta"),
    pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning"),  # of the client, whose connection broke
]


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with fault_server() as server:
        yield server


async def ask(way: Way, server: FaultServer, fault: str) -> str:
    models: dict[str, Any] = {
        name: client("langchain", name, server.url(fault if name == "best" else "healthy")) for name in NAMES
    }
    found = way.ask(way.make(models, STREAMED[fault].settings), QUESTION)
    return str(await found if inspect.isawaitable(found) else found)


@streams
@pytest.mark.parametrize("fault", BEFORE_CONTENT)
async def test_the_next_model_answers(way: Way, server: FaultServer, fault: str) -> None:
    """Nobody sees the stream that broke before its first content."""
    assert await ask(way, server, fault) == answer_of("second", QUESTION)


@streams
@pytest.mark.parametrize("fault", AFTER_CONTENT)
async def test_a_stream_that_breaks_is_no_answer(way: Way, server: FaultServer, fault: str) -> None:
    """The error has its text, and no other model says it again."""
    asked = server.asked["second", QUESTION]
    with pytest.raises(Exception, match=r".") as caught:
        await ask(way, server, fault)
    assert caught.value.partial_text == "best answers"  # type: ignore[attr-defined]
    assert server.asked["second", QUESTION] == asked
