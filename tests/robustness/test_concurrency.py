"""Many callers at once, while the models and what is known of them change all the time."""

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
from conftest import TOY_PROMPTS, toy_embed
from langchain_core.messages import AIMessage

from unirouter_integrations import LLMProfile, UniRouter
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.serving import ModelRegistry
from unirouter_integrations.testing import ChatFake

CALLS = 8
VERSIONS = 100


def version(router: UniRouter, name: str, number: int) -> LLMProfile:
    """A profile whose cost tells its error: an error and a cost that do not belong together are of two versions."""
    return router.profile(name, TOY_PROMPTS, [1 - number / VERSIONS] * len(TOY_PROMPTS), cost=number)


def fake(name: str) -> ChatFake:
    """A model that says its name."""
    return ChatFake(model=name, replies=[name])


@contextmanager
def going_on(*changes: Callable[[int], object]) -> Iterator[list[BaseException]]:
    """Each change again and again, in a thread of its own, with threads taking turns as often as they can."""
    stop, failed = threading.Event(), []

    def again(change: Callable[[int], object]) -> None:
        try:
            for number in count(1):
                if stop.is_set():
                    return
                change(number % (VERSIONS - 2) + 1)
        except BaseException as error:  # noqa: BLE001  # a thread's errors would be lost
            failed.append(error)

    threads = [threading.Thread(target=again, args=(change,)) for change in changes]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    for thread in threads:
        thread.start()
    try:
        yield failed
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)


def in_threads(n: int, call: Callable[[], Any]) -> list[Any]:
    """The results of n threads that make some calls each, all at once; their errors among them."""
    gate, found = threading.Barrier(n), []

    def work() -> None:
        gate.wait()
        for _ in range(CALLS):
            try:
                found.append(call())
            except BaseException as error:  # noqa: BLE001
                found.append(error)

    threads = [threading.Thread(target=work) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def check(answers: list[AIMessage | BaseException]) -> set[str]:
    """The models that answered, if each is the one its decision names, with an error and a cost of one version."""
    chosen = set()
    for answer in answers:
        assert isinstance(answer, AIMessage), repr(answer)
        decision = answer.response_metadata["unirouter"]
        assert answer.text == decision["model"]
        if decision["model"].startswith("changing"):
            assert decision["expected_error"] * VERSIONS == pytest.approx(decision["expected_cost"])
        chosen.add(decision["model"])
    return chosen


@pytest.mark.parametrize(
    ("n_threads", "n_tasks"), [(8, 100), pytest.param(64, 1000, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("registry", [dict, ModelRegistry])
async def test_threads_and_tasks_call_while_everything_changes(registry: Any, n_threads: int, n_tasks: int) -> None:
    """Threads and tasks, while models are registered, replaced and removed and profiles are updated.

    No exception, no decision made of two versions of a profile, and every answer is of the model its decision names.
    """
    router = UniRouter.fit(TOY_PROMPTS, embedder=toy_embed, n_clusters=3, estimator="mean")
    router.register(router.profile("steady", TOY_PROMPTS, [0.0] * len(TOY_PROMPTS), cost=1))
    llm = ChatUniRouter(router=router, models=registry({"steady": fake("steady")}))
    versions = {
        (name, number): version(router, name, number)
        for name in ("changing", "changing too", "changing alone")
        for number in range(1, VERSIONS)
    }
    llm.register("changing alone", fake("changing alone"), versions["changing alone", 1])

    def come_and_go(name: str) -> Callable[[int], None]:
        def change(number: int) -> None:
            llm.register(name, fake(name), versions[name, number])
            llm.register(name, fake(name), versions[name, number + 1])
            llm.unregister(name)

        return change

    def update(number: int) -> None:
        router.register(versions["changing alone", number])
        router.cost_weight = 1e-9 * number

    with going_on(come_and_go("changing"), come_and_go("changing too"), update) as failed:
        answers = in_threads(n_threads, lambda: llm.invoke("a sum"))
        tasks = await asyncio.gather(*(llm.ainvoke("a sum") for _ in range(n_tasks)), return_exceptions=True)
        batches = in_threads(n_threads, lambda: llm.batch(["a sum", "a poem"]))
        decided = in_threads(n_threads, lambda: router.route("a sum"))
    assert failed == []
    assert not [found for found in batches + decided if isinstance(found, BaseException)]
    check([answer for batch in batches for answer in batch])
    assert len(answers) == n_threads * CALLS
    assert len(check([*answers, *tasks])) > 1
    for decision in decided:
        assert decision.ranking[0].model == decision.model
        for candidate in decision.ranking:
            if candidate.model.startswith("changing"):
                assert candidate.expected_error * VERSIONS == pytest.approx(candidate.expected_cost)
