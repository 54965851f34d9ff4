"""LangChain's official tests of a chat model, over the fake and over a router of fakes; none of them is overridden."""

from functools import cache
from typing import Any

import httpx
import pytest
from conftest import toy_router
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from unirouter_integrations import UniRouter
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.testing import ChatFake

pytestmark = pytest.mark.filterwarnings("ignore:.*_achat_model_stream_v3` is in beta")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures, sounds and documents that some tests download are a few bytes here."""
    monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "none")
    monkeypatch.setattr(httpx, "get", lambda *_, **__: httpx.Response(200, content=b"bytes"))


@pytest.fixture
def benchmark(benchmark: Any) -> Any:
    """Nothing is timed in a test: what would be, runs once."""
    benchmark.disabled = True
    return benchmark


@cache
def router() -> UniRouter:
    return toy_router("soft")


class OfTheFake:
    """A fake, tried in all that the tests can try."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatFake

    supports_json_mode = True
    supports_image_inputs = True
    supports_image_urls = True
    supports_image_tool_message = True
    supports_pdf_inputs = True
    supports_pdf_tool_message = True
    supports_audio_inputs = True
    supports_video_inputs = True
    supports_anthropic_inputs = True
    model_override_value = "poet"


class OfTheRouter(OfTheFake):
    """A router over three fakes, tried in the same."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatUniRouter

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"router": router(), "models": {name: ChatFake(model=name) for name in router().models}}


class TestFakeUnit(OfTheFake, ChatModelUnitTests):
    pass


class TestFake(OfTheFake, ChatModelIntegrationTests):
    pass


class TestRouterUnit(OfTheRouter, ChatModelUnitTests):
    pass


class TestRouter(OfTheRouter, ChatModelIntegrationTests):
    pass
