"""Calls that never return and work that takes long: neither stops other calls or the event loop."""

import asyncio
import copy
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import KINDS, TOY_PROMPTS, toy_embed

from unirouter_integrations import LocalEmbedder, UniRouter, as_embedder
from unirouter_integrations._concurrency import HangGuard, HangingCalls, run_with_timeout
from unirouter_integrations.grading import Answer, Example, as_scorer


class Hanging:
    """An embedding function that does not return as long as some calls hang."""

    def __init__(self) -> None:
        self.hangs: Callable[[list[str]], bool] = lambda texts: "hang" in texts
        self.entered, self.let_go = threading.Semaphore(0), threading.Event()
        self.batches: list[list[str]] = []

    def __call__(self, texts: list[str]) -> npt.ArrayLike:
        self.batches.append(texts)
        self.entered.release()
        if self.hangs(texts):
            self.let_go.wait()
        return toy_embed(texts)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    function = Hanging()
    yield function
    function.let_go.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unirouter_integrations.embedding._cache._PATIENCE_SECONDS", 0.01)


@pytest.mark.usefixtures("impatient")
async def test_one_embedding_that_never_returns_costs_no_other_call(hanging: Hanging) -> None:
    """Neither those that wait already nor those that come later, whose threads have nothing to do with it."""
    embedder = as_embedder(hanging)
    stuck = asyncio.create_task(embedder.aembed(["hang"]))
    await asyncio.to_thread(hanging.entered.acquire)
    waiting = [asyncio.create_task(embedder.aembed([f"a sum {n}"])) for n in range(20)]
    assert [len(vectors) for vectors in await asyncio.gather(*waiting)] == [1] * 20
    for n in range(20):
        assert len(await embedder.aembed([f"a poem {n}"])) == 1
    assert not stuck.done()
    hanging.let_go.set()
    assert len(await stuck) == 1


@pytest.mark.usefixtures("impatient")
async def test_if_all_embeddings_hang_few_are_tried(hanging: Hanging) -> None:
    """No thread is made for each caller; once the embedder works again, those that wait are served."""
    hanging.hangs = lambda texts: True
    embedder, before = as_embedder(hanging), threading.active_count()
    waiting = [asyncio.create_task(embedder.aembed([str(n)])) for n in range(1000)]
    await asyncio.sleep(0.5)
    assert threading.active_count() - before <= 8
    hanging.let_go.set()
    assert [len(vectors) for vectors in await asyncio.gather(*waiting)] == [1] * 1000


def test_an_embedder_that_hangs_is_left_out_after_three_timeouts(hanging: Hanging) -> None:
    """Calls of any number leave three threads; what is known of a text needs no call, and is still found."""
    router = UniRouter.fit(TOY_PROMPTS, embedder=hanging, n_clusters=3)
    known = router.clusters.embed(["a known sum"])
    hanging.hangs = lambda texts: True
    before = threading.active_count()
    for _ in range(300):
        with pytest.raises(TimeoutError, match=r"longer than 0\.001 s|next one is made in 30 s"):
            router.clusters.embed(["hang"], timeout=0.001)
    assert threading.active_count() - before <= 3
    np.testing.assert_array_equal(router.clusters.embed(["a known sum"], timeout=0.001), known)


async def test_an_embedder_that_hangs_is_left_out_in_async_calls_as_well(hanging: Hanging) -> None:
    """Also one that is no function of another library, but follows the protocol."""

    class Own:
        name = "own"

        def embed(self, texts: Any, /) -> Any:
            return toy_embed(texts).astype(np.float32)

        async def aembed(self, texts: Any, /) -> Any:
            await asyncio.Event().wait()

    for embedder in (hanging, Own(), Own()):  # what one of them does says nothing of another
        router = UniRouter.fit(TOY_PROMPTS, embedder=embedder, n_clusters=3)
        for message in ["^$"] * 3 + ["next one is made in 30 s"] * 20:
            with pytest.raises(TimeoutError, match=message):
                await router.clusters.aembed(["hang"], timeout=0.001)
    assert len(copy.deepcopy(router.clusters)) == 3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(seconds=1000.0)
    clock.monotonic = lambda: clock.seconds
    monkeypatch.setattr("unirouter_integrations._concurrency.time", clock)
    return clock


async def took_too_long() -> None:
    raise TimeoutError


async def in_time() -> str:
    return "in time"


async def is_let_through(guard: HangGuard, call: Callable[[], Awaitable[Any]]) -> bool:
    """Whether a call is made at all."""
    made = []

    async def noted() -> None:
        made.append(True)
        await call()

    await asyncio.gather(guard.acall(10, noted), return_exceptions=True)
    return bool(made)


async def test_a_pause_doubles_and_ends_with_the_first_call_in_time(clock: SimpleNamespace) -> None:
    """Up to an hour; a timeout that follows a success is the first again."""
    guard = HangGuard()
    assert [await is_let_through(guard, took_too_long) for _ in range(5)] == [True] * 3 + [False] * 2
    for pause in (30, 60, 120, 240, 480, 960, 1920, 3600, 3600):
        clock.seconds += pause - 1
        assert not await is_let_through(guard, in_time)
        clock.seconds += 1
        assert await is_let_through(guard, took_too_long)
        assert not await is_let_through(guard, in_time)
    clock.seconds += 3600
    assert await guard.acall(10, in_time) == "in time"
    assert [await is_let_through(guard, took_too_long) for _ in range(4)] == [True] * 3 + [False]
    clock.seconds += 30
    assert await is_let_through(guard, in_time)


async def test_one_call_alone_ends_a_pause(clock: SimpleNamespace) -> None:
    """The others do not wait for it. If it is cancelled, the next one takes its place; stragglers prolong nothing."""
    guard, go_on = HangGuard(), asyncio.Event()

    async def late() -> None:
        await go_on.wait()
        raise TimeoutError

    stragglers = [asyncio.create_task(is_let_through(guard, late)) for _ in range(100)]
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*stragglers)
    go_on.clear()
    clock.seconds += 30
    probe = asyncio.create_task(guard.acall(10, late))
    await asyncio.sleep(0)
    assert not await is_let_through(guard, in_time)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    assert not await is_let_through(guard, in_time)
    clock.seconds += 10
    assert await is_let_through(guard, in_time)
    assert await is_let_through(guard, in_time)


def test_other_errors_are_no_timeouts() -> None:
    """A service that is down says so at once, and is asked again."""
    guard = HangGuard()
    for _ in range(10):
        with pytest.raises(ZeroDivisionError):
            guard.call(60, lambda: 1 // 0)
    assert guard.call(60, lambda: 1) == guard.call(None, lambda: 1) == 1


def test_no_more_threads_than_are_allowed() -> None:
    """A call that gets none in time is not made, and costs its timeout like any other."""
    threads, let_go, made = threading.Semaphore(2), threading.Event(), []

    def call() -> None:
        made.append(True)
        let_go.wait()

    for _ in range(5):
        with pytest.raises(TimeoutError):
            run_with_timeout(0.01, call, threads)
    assert len(made) == 2
    let_go.set()
    assert run_with_timeout(60, lambda: 1, threads) == 1


async def ticks(call: Awaitable[Any]) -> int:
    """How often the event loop came round during a call: never, if the call does its work there."""
    count = 0

    async def tick() -> None:
        nonlocal count
        while True:
            await asyncio.sleep(0)
            count += 1

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    await call
    ticker.cancel()
    return count


@pytest.fixture(scope="module")
def local() -> UniRouter:
    """A router with the default embedder."""
    router = UniRouter.fit(TOY_PROMPTS, n_clusters=3)
    for name in KINDS:
        scores = [float(name in prompt) for prompt in TOY_PROMPTS]
        router.register(router.profile(name, TOY_PROMPTS, scores, cost=1))
    return router


@pytest.mark.parametrize("prompt", ["a sum of words " * 700_000, ".?!" * 3_000_000, "数" * 3_000_000])
async def test_a_prompt_of_megabytes_does_not_stop_the_event_loop(local: UniRouter, prompt: str) -> None:
    """Nor does it take long."""
    assert await ticks(local.aroute(prompt)) > 0


async def test_many_prompts_do_not_stop_the_event_loop(local: UniRouter) -> None:
    """Neither embedding them nor deciding about them; the decisions are those of the sync method."""
    prompts = [f"a {KINDS[n % 3]} of {n}" for n in range(5000)]
    assert await ticks(local.aroute_many(prompts)) > 0
    vectors = local.clusters.embed(prompts)
    assert await ticks(local.aroute_many(vectors=vectors)) > 0
    found = await local.aroute_many(prompts)
    assert [each.model for each in found] == [each.model for each in local.route_many(prompts)]


async def test_many_vectors_of_a_service_do_not_stop_the_event_loop() -> None:
    """Reading lists of numbers takes long."""

    class Service:
        def embed_documents(self, texts: list[str]) -> Any:
            return toy_embed(texts).tolist()

        async def aembed_documents(self, texts: list[str]) -> Any:
            return [[float(len(text))] * 1000 for text in texts]

    assert await ticks(as_embedder(Service()).aembed([str(n) for n in range(3000)])) > 0


@pytest.mark.parametrize("scorer", ["exact", "choice", "number", "confidence"])
async def test_grading_a_long_answer_does_not_stop_the_event_loop(scorer: str) -> None:
    """As a check does before an answer is given."""
    answer = Answer("So 3 * 4 is 12, or (B), perhaps. " * 1000)
    assert (
        await ticks(as_scorer(scorer).grade(answer, Example("What is 3 times 4?", "B" if scorer == "choice" else "12")))
        > 0
    )


def test_of_a_long_prompt_head_and_tail_are_read() -> None:
    """Whatever is between them; shorter prompts are read whole."""
    embedder = LocalEmbedder.fit(TOY_PROMPTS)
    head, tail = "a sum " * 1600, " a poem" * 1400
    middle = " a date" * 100
    np.testing.assert_array_equal(*embedder.embed([head + middle * 10 + tail, head + middle * 20 + tail]))
    short = embedder.embed([head + tail[:400] + middle, head + tail[:400]])
    assert (short[0] != short[1]).any()
    assert (embedder.embed(["a date " + "x " * 50_000 + "a poem"]) != embedder.embed(["x " * 50_000])).any()


def test_calls_that_never_return_do_not_pile_up_threads(clock: SimpleNamespace) -> None:
    """After a hundred no further one of their kind is made, but for one a minute; when they end, all are."""
    let_go, hanging, made = threading.Event(), HangingCalls(), []

    def hang() -> None:
        made.append(True)
        let_go.wait()

    for _ in range(110):
        with pytest.raises(TimeoutError, match=r"longer than 0 s|100 calls that took too long"):
            run_with_timeout(0.0, hang, hanging=hanging)
    assert len(hanging) == 100
    assert run_with_timeout(60.0, lambda: 1, hanging=HangingCalls()) == 1  # of another kind
    clock.seconds += 60
    for _ in range(2):
        with pytest.raises(TimeoutError):
            run_with_timeout(0.0, hang, hanging=hanging)
    let_go.set()
    while hanging:
        threading.Event().wait(0.001)
    assert len(made) == 101
    assert run_with_timeout(60.0, lambda: 1, hanging=hanging) == 1
