"""`profile_model`, and `aprofile_model` for async code."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sized
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from unirouter_integrations._concurrency import run_sync
from unirouter_integrations._router import UniRouter
from unirouter_integrations.core import LLMProfile
from unirouter_integrations.grading import Example, ModelLike, Price, ScorerLike
from unirouter_integrations.profiling._journal import Journal
from unirouter_integrations.profiling._run import OnFailure, ProfilingRun, RunSettings, StopWhen
from unirouter_integrations.profiling._target import ProfilingTarget, most_informative_examples
from unirouter_integrations.serving._serving import check_router

P = ParamSpec("P")
T = TypeVar("T")


def _sync_version(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make the synchronous version of an async function, with the same signature and documentation."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_sync(function(*args, **kwargs))

    call.__name__ = call.__qualname__ = function.__name__.removeprefix("a")
    return call


async def aprofile_model(
    name: str,
    model: ModelLike,
    examples: Iterable[Example | Mapping[str, Any]],
    router: UniRouter,
    *,
    scorer: ScorerLike = "exact",
    price: Price | None = None,
    journal: str | os.PathLike[str] | None = None,
    store_answers: bool = True,
    n: int | None = None,
    max_concurrency: int = 8,
    requests_per_minute: float | None = None,
    timeout: float = 300.0,  # noqa: ASYNC109  # of each call, not of this function
    max_retries: int = 6,
    on_failure: OnFailure = "raise",
    max_cost: float | None = None,
    stop_when: StopWhen | None = None,
    progress: bool = True,
) -> LLMProfile:
    """Profile a model: let it answer examples, grade and price the answers, and count them per cluster of a router.

    Nothing is registered. `aprofile_model` makes the calls in the running event loop. `profile_model` has the same
    arguments and makes them in the event loop of a background thread, so it works in scripts and in notebooks.

    Ctrl-C, or cancelling the task of `aprofile_model`, begins no new call and waits for those in progress, which are
    paid for. A second one leaves at once.

    Args:
        name: The name under which the model will be registered.
        model: See `as_model`.
        examples: Any iterable of `Example`, or of mappings with "prompt" and, if the scorer needs one, "reference". It
            is read as the run proceeds.
        router: The router that the profile is for.
        scorer: See `as_scorer`.
        price: The price of the model's tokens; None to look it up under the provider's name of the model.
            `Price(0, 0)` if it is free.
        journal: A file that keeps every answer, so that no answer is paid for twice. It is created if it does not
            exist. None to keep nothing. The same prompt is asked once; to ask it again, number the repetitions:
            `Example(prompt, reference, {"repetition": 1})`.
        store_answers: Whether the journal stores texts and tool calls. Without them, no other scorer can grade the
            answers later.
        n: How many of the examples to use: the most informative ones, see `UniRouter.choose_validation`.
        max_concurrency: How many calls to make at the same time.
        requests_per_minute: How many calls may begin in a minute; None for no limit.
        timeout: How many seconds a call may take.
        max_retries: How often to repeat a call after an error that may pass. The wait before it grows, or is as long as
            the provider requests.
        on_failure: What to do with an example whose call failed for good: "raise" the error, "skip" the example, or
            count it as "wrong". The profile's metadata says which.
        max_cost: How many USD this run may spend, including the judge. A call in progress counts as much as the most
            expensive one so far, and the first call is made alone. The limit may be exceeded by what the calls in
            progress cost more than that. If the model has an output limit, such as `max_tokens`, and an answer of that
            length costs at most a tenth of the limit, each call counts as such an answer, and its answers do not exceed
            it.
        stop_when: When to stop early, checked after every 64 examples: a function of the profile so far, or the share
            of the prompts whose routing may remain undecided (see `WhatIf.undecided`).
        progress: Whether to show a progress bar, if standard error is a terminal or a notebook.

    Returns:
        A profile whose cost is in USD per 1,000 calls, per cluster. Its metadata has the number of answers and
        failures, their cost, the time they took, and whether and why the run stopped early.

    Raises:
        InvalidInputError: If an argument is out of range, the scorer cannot read a reference, the model judges itself,
            the price is unknown, or there is no answer.
        StorageError: If the journal cannot be used.
        Exception: What the model raises.
    """
    settings = RunSettings(
        max_concurrency=max_concurrency,
        requests_per_minute=requests_per_minute,
        timeout=timeout,
        max_retries=max_retries,
        on_failure=on_failure,
        max_cost=max_cost,
        stop_when=stop_when,
    )
    check_router(router)
    target = ProfilingTarget.from_arguments(name, model, scorer, price)
    if n is not None:
        examples = await asyncio.to_thread(most_informative_examples, examples, n, router)
    total = len(examples) if isinstance(examples, Sized) else None
    with _progress_bar(name, total, shown=progress) as bar:
        async with Journal(journal, store_answers=store_answers) as opened:
            return await ProfilingRun(target, router, opened, settings, bar).profile(iter(examples))


profile_model = _sync_version(aprofile_model)
"""Synchronous version of `aprofile_model`."""


def _progress_bar(name: str, total: int | None, *, shown: bool) -> Any:
    from tqdm import tqdm

    is_watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(total=total, desc=name, unit="answer", disable=not (shown and is_watched))
