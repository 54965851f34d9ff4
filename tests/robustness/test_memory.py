"""A router that serves for weeks needs no more memory than one that serves for a minute."""

import gc
import tracemalloc

import pytest
from conftest import toy_router

from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.testing import ChatFake

NEVER = 1e6  # seconds: only sync() learns
MOST = 64 * 1024  # bytes; a decision that was kept would take some hundred


@pytest.mark.parametrize("n", [2000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_decisions(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of different prompts, with answers of chat models, feedback, and profiles that are learned."""
    for kept in (
        "core._observers._MAX_COUNTED",
        "learning._learner._MAX_REMEMBERED",
        "embedding._adapters._CACHED_VECTORS",
    ):
        monkeypatch.setattr(f"unirouter_integrations.{kept}", 50)
    router = toy_router("hard")
    llm = ChatUniRouter(router=router, models={name: ChatFake() for name in router.models})

    def serve(calls: int) -> None:
        for number in range(calls):
            prompt = f"a sum of {number}"
            assert router.observe(router.route(prompt), 1, 1)
            if number % 20 == 0:
                assert router.observe(llm.invoke(prompt).response_metadata["unirouter"], 1)
                learning.sync()

    with router.learn(every=NEVER) as learning:
        serve(300)
        tracemalloc.start()
        try:
            serve(300)
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            serve(n)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert after - before < MOST
