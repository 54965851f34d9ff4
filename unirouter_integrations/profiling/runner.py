"""Profile a model: ask it, grade and price its answers, count them per cluster.

Examples are read, embedded and counted in blocks and in their order, while a window of calls moves over them. So a
profile does not depend on which call came back first, and no more is held than the window.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import count, islice
from time import monotonic, perf_counter
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np

from unirouter_integrations.checks import check_router
from unirouter_integrations.clusters import PromptClusters
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.fallback import is_transient, retry_after
from unirouter_integrations.profiles import Floats, LLMProfile
from unirouter_integrations.profiling.adapters import AdaptedModel, as_model, is_same_model, model_name
from unirouter_integrations.profiling.journal import Entry, Grade, Journal, Keys, keys_of
from unirouter_integrations.profiling.prices import Price, price_of
from unirouter_integrations.profiling.records import Answer, Example, Usage, as_example
from unirouter_integrations.profiling.scorers import Scorer, as_scorer
from unirouter_integrations.profiling.whatif import what_if
from unirouter_integrations.router import UniRouter

T = TypeVar("T")
OnFailure = Literal["raise", "skip", "wrong"]
StopWhen = float | Callable[[LLMProfile], bool]

_log = logging.getLogger("unirouter_integrations")

_MOST_THREADS = 256
_MOST_UNSPENT = 0.1
_BLOCK = 64
_LEAST_WINDOW = 256
_WINDOW_PER_CALL = 32
_POLL = 0.1
_PER_CALLS = 1000
_LONGEST_WAIT = 600.0
_FIRST_WAIT = 0.5
_LONGEST_BACKOFF = 60.0
_MINUTE = 60.0
CHARACTERS_PER_TOKEN = 4


def profile_model(
    name: str,
    model: object,
    examples: Iterable[Example | Mapping[str, Any]],
    router: UniRouter,
    *,
    scorer: object = "exact",
    price: Price | None = None,
    journal: str | os.PathLike[str] | None = None,
    store_answers: bool = True,
    n: int | None = None,
    max_concurrency: int = 8,
    requests_per_minute: float | None = None,
    timeout: float = 300.0,
    max_retries: int = 6,
    on_failure: OnFailure = "raise",
    max_cost: float | None = None,
    stop_when: StopWhen | None = None,
    progress: bool = True,
) -> LLMProfile:
    """Ask a model some examples, grade and price its answers, and describe it to a router. Registers nothing.

    The calls are made in a thread with an event loop of its own, so it works in scripts and notebooks alike. Ctrl-C
    makes no new call and waits for those under way, which are paid for; a second one leaves at once.

    Args:
        name: The name under which the model will be registered.
        model: See `as_model`.
        examples: Any iterable, read as it is needed; of `Example`, or of mappings with "prompt" and, where the scorer
            needs one, "reference".
        router: The router that the profile is for.
        scorer: See `as_scorer`.
        price: Of the model's tokens; None to look it up under the name the model's provider gives it.
            `Price(0, 0)` if it is free.
        journal: A file that keeps every answer, made if there is none: what is in it is not asked again. None to
            keep nothing. For what it stores see `journal`; the same prompt is asked once.
        store_answers: Whether the journal keeps what the model said. If not, no other scorer can grade it later.
        n: How many of the examples to take: those that tell most, see `UniRouter.choose_validation`.
        max_concurrency: How many examples are worked on at once.
        requests_per_minute: How many calls may begin in a minute; None for any number.
        timeout: How many seconds a call may take.
        max_retries: How often a call is made again after an error that may pass, waiting ever longer or as long as
            the provider says.
        on_failure: What to do with an example whose call failed for good: "raise" the error, "skip" the example, or
            count it as "wrong". The profile's metadata says which.
        max_cost: How many USD this run may spend, the judge included. Calls under way count as much as the dearest so
            far; the first one is made alone. It may be exceeded, by what the calls under way cost more than the dearest
            before them. Where the model has a limit of its output, such as `max_tokens`, and so long an answer costs at
            most a tenth of the budget, they count as that, and its answers do not exceed it.
        stop_when: When to stop early, asked after every 64 examples: a function of the profile so far, or the share
            of the prompts whose routing the intervals may leave open (see `WhatIf.undecided`).
        progress: Whether to show a progress bar where standard error is a terminal or a notebook.

    Returns:
        A profile whose cost is in USD per 1,000 calls, per cluster. Its metadata says how many answers and failures
        there were, what they cost, how long they took, and whether and why the run stopped early.

    Raises:
        InvalidInputError: If an argument is out of range, the scorer cannot read a reference, the model judges itself,
            the price is unknown, or there is no answer.
        StorageError: If the journal cannot be used.

    What the model raises passes through as it came.
    """
    return run_in_background(
        aprofile_model(
            name,
            model,
            examples,
            router,
            scorer=scorer,
            price=price,
            journal=journal,
            store_answers=store_answers,
            n=n,
            max_concurrency=max_concurrency,
            requests_per_minute=requests_per_minute,
            timeout=timeout,
            max_retries=max_retries,
            on_failure=on_failure,
            max_cost=max_cost,
            stop_when=stop_when,
            progress=progress,
        )
    )


async def aprofile_model(
    name: str,
    model: object,
    examples: Iterable[Example | Mapping[str, Any]],
    router: UniRouter,
    *,
    scorer: object = "exact",
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
    """`profile_model`, awaited: the calls are made in the running event loop.

    Cancelled, it makes no new call and waits for those under way, which are paid for; cancelled again it leaves at
    once.
    """
    if on_failure not in get_args(OnFailure):
        msg = f"on_failure should be one of {', '.join(map(repr, get_args(OnFailure)))}, but is {on_failure!r}."
        raise InvalidInputError(msg)
    for what, value, least in (
        ("n", n, 1),
        ("max_concurrency", max_concurrency, 1),
        ("max_retries", max_retries, 0),
    ):
        if value is not None and not (isinstance(value, int) and value >= least):
            msg = f"{what} should be a whole number of at least {least}, but is {value!r}."
            raise InvalidInputError(msg)
    for what, number in (("requests_per_minute", requests_per_minute), ("timeout", timeout)):
        if number is not None and not number > 0:
            msg = f"{what} should be more than 0, but is {number!r}."
            raise InvalidInputError(msg)
    if max_cost is not None and not max_cost >= 0:
        msg = f"max_cost should be USD of at least 0, but is {max_cost!r}."
        raise InvalidInputError(msg)
    if not (stop_when is None or callable(stop_when) or 0 <= stop_when <= 1):
        msg = f"stop_when should be a function of the profile, or a share from 0 to 1, but is {stop_when!r}."
        raise InvalidInputError(msg)
    check_router(router)
    subject = Subject.of(name, model, scorer, price)
    if n is not None:
        examples = await asyncio.to_thread(most_telling, list(map(as_example, examples)), n, router)
    gate = _Gate(max_cost, requests_per_minute)
    total = len(examples) if isinstance(examples, Sized) else None
    with _bar(name, total, shown=progress) as bar:
        async with Journal(journal, store_answers=store_answers) as opened:
            run = _Run(
                subject,
                router,
                opened,
                gate,
                bar,
                on_failure=on_failure,
                max_concurrency=max_concurrency,
                timeout=timeout,
                max_retries=max_retries,
                stop_when=stop_when,
            )
            return await run.profile(iter(examples))


@dataclass(frozen=True)
class Subject:
    """What is profiled, and by what measure."""

    name: str
    model: AdaptedModel
    scorer: Scorer
    price: Price

    @classmethod
    def of(cls, name: str, model: object, scorer: object, price: Price | None) -> Subject:
        """Of what a user has."""
        if not (isinstance(name, str) and name):
            msg = f"A model is profiled under a name, a text that is not empty; it is {name!r}."
            raise InvalidInputError(msg)
        if price is not None and not isinstance(price, Price):
            msg = f"price should be Price(input, output), in USD per million tokens, but is {price!r}."
            raise InvalidInputError(msg)
        grader = as_scorer(scorer)
        if grader.model is not None and is_same_model(grader.model, model):
            msg = f"{name!r} cannot be its own judge: it would judge itself too well. Let another model judge."
            raise InvalidInputError(msg)
        return cls(name, as_model(model), grader, price_of(model_name(model)) if price is None else price)

    def keys(self, example: Example) -> Keys:
        """Under what the journal has its answer to an example."""
        return keys_of(self.name, self.model.settings, self.scorer.name, example)

    def cost(self, answer: Answer) -> float:
        """What an answer has cost, in USD."""
        if answer.usage is not None:
            return self.price.cost(answer.usage)
        if self.price == Price(0, 0):
            return 0.0
        msg = (
            f"The model {self.name!r} does not say how many tokens it used, so its answers cannot be priced. Return an "
            "Answer with its usage from a callable, or, if it is free, give price=Price(0, 0)."
        )
        raise InvalidInputError(msg)


class _Outcome(NamedTuple):
    """What has come of one example. A loss of NaN: it was not graded."""

    answer: Answer | None = None
    failed: bool = False
    loss: float = math.nan
    cost: float = 0.0
    judge_cost: float = 0.0


_NOT_ASKED = _Outcome()


class _Block(NamedTuple):
    """Some examples that follow each other: their memberships, and the work on each."""

    phi: Floats
    tasks: list[asyncio.Task[_Outcome]]


class _Run:
    """One run over some examples."""

    def __init__(
        self,
        subject: Subject,
        router: UniRouter,
        journal: Journal,
        gate: _Gate,
        bar: Any,
        *,
        on_failure: OnFailure,
        max_concurrency: int,
        timeout: float,
        max_retries: int,
        stop_when: StopWhen | None,
    ) -> None:
        self._subject = subject
        self._router = router
        self._journal = journal
        self._gate = gate
        self._bar = bar
        self._on_failure = on_failure
        self._timeout = timeout
        self._max_retries = max_retries
        self._stop_when = stop_when
        self._slots = asyncio.Semaphore(max_concurrency)
        # As many again are about to be called or being stored, so that no call waits for the disk.
        self._at_hand = asyncio.Semaphore(2 * max_concurrency)
        # With stop_when no example is begun before it is known whether it is wanted.
        self._window = 0 if stop_when is not None else max(_LEAST_WINDOW, _WINDOW_PER_CALL * max_concurrency)
        self._tally = _Tally(subject.name, router.clusters)
        self._n_graded, self._score = 0, 0.0
        self._last_failure: Exception | None = None

    async def profile(self, examples: Iterator[Example | Mapping[str, Any]]) -> LLMProfile:
        """The profile, once all examples are done or the run has stopped."""
        blocks: deque[_Block] = deque()
        try:
            while not self._gate.closed_by and (block := await self._begin(examples)):
                blocks.append(block)
                await self._count(blocks, down_to=self._window)
            await self._count(blocks, down_to=0)
        except BaseException as error:
            self._gate.close("an error")
            await asyncio.gather(*(task for block in blocks for task in block.tasks), return_exceptions=True)
            if isinstance(error, Exception) and self._journal.path is not None:
                error.add_note("The answers so far are in the journal: the same call again goes on from there.")
            raise
        return self._described()

    async def _begin(self, examples: Iterator[Example | Mapping[str, Any]]) -> _Block | None:
        """Start the work on the next block, if there is one."""

        def read() -> tuple[list[Example], Floats]:
            some = list(map(as_example, islice(examples, _BLOCK)))
            return some, self._router.clusters.memberships([example.prompt for example in some]).phi

        some, phi = await asyncio.to_thread(read)
        if not some:
            return None
        keys = [self._subject.keys(example) for example in some]
        found = await self._journal.find(keys)
        work = (self._work(example, key, found.get(key)) for example, key in zip(some, keys, strict=True))
        return _Block(phi, list(map(asyncio.create_task, work)))

    async def _count(self, blocks: deque[_Block], *, down_to: int) -> None:
        """Count the first blocks as they get done, until no more than so many examples are left."""
        while blocks and sum(len(block.tasks) for block in blocks) > down_to:
            block = blocks[0]
            await asyncio.wait(block.tasks)
            self._tally.add(block.phi, [task.result() for task in block.tasks])
            blocks.popleft()
            if not self._gate.closed_by and self._is_enough():
                self._gate.close(f"stop_when, after {self._tally.answers} answers")

    def _is_enough(self) -> bool:
        profile = None if self._stop_when is None else self._tally.profile()
        if self._stop_when is None or profile is None:
            return False
        if callable(self._stop_when):
            return self._stop_when(profile)
        return what_if(self._router, profile).undecided <= self._stop_when

    async def _work(self, example: Example, keys: Keys, entry: Entry | None) -> _Outcome:
        """What comes of one example. An error lets no other call begin."""
        try:
            outcome = await self._outcome(example, keys, entry)
        except _ClosedError:
            return _NOT_ASKED
        except Exception:
            self._gate.close("an error")
            raise
        if outcome is not _NOT_ASKED:
            if not math.isnan(outcome.loss):
                self._n_graded += 1
                self._score += 1 - outcome.loss
            accuracy = f"accuracy {self._score / self._n_graded:.1%}, " if self._n_graded else ""
            self._bar.set_postfix_str(f"{accuracy}{self._gate.spent:.4f} USD", refresh=False)
            self._bar.update()
        return outcome

    async def _outcome(self, example: Example, keys: Keys, entry: Entry | None) -> _Outcome:
        while entry is None:
            async with self._at_hand:
                if self._gate.closed_by:
                    return _NOT_ASKED
                if await self._journal.claim(keys.answer):
                    return await self._ask(example, keys)
            # It is being asked, by another run or by this one for the same prompt.
            await asyncio.sleep(_POLL)
            entry = (await self._journal.find([keys])).get(keys)
        async with self._at_hand:
            return await self._look_up(example, keys, entry)

    async def _ask(self, example: Example, keys: Keys) -> _Outcome:
        """Get an answer that this run has claimed, and grade it."""
        await self._subject.scorer.check(example)
        read, most = len(example.prompt) // CHARACTERS_PER_TOKEN, self._subject.model.most_output or 0
        least, limit = (self._subject.price.cost(Usage(read, written)) for written in (0, most))
        async with self._gate.call(limit if self._gate.can_wait_for(limit) else least) as bill:
            if bill is None:
                await self._journal.release(keys.answer)
                return _NOT_ASKED
            try:
                answer = await self._retrying(lambda: _timed(self._subject.model, example))
            except _ClosedError:
                raise
            except Exception as error:
                await self._journal.release(keys.answer)
                if self._on_failure == "raise":
                    raise
                self._last_failure = error
                return _Outcome(failed=True, loss=1.0 if self._on_failure == "wrong" else math.nan)
            if self._journal.store_answers:
                await self._journal.store(keys, answer)
            bill.spent, bill.answered = self._subject.cost(answer), True
            return await self._grade(example, keys, answer, bill, is_stored=self._journal.store_answers)

    async def _look_up(self, example: Example, keys: Keys, entry: Entry) -> _Outcome:
        """Grade an answer that is in the journal, unless that is there too and was paid for."""
        scorer = self._subject.scorer
        if entry.grade is not None and (scorer.asks or not entry.has_text):
            return self._graded(entry.answer, entry.grade)
        if not entry.has_text:
            msg = (
                f"The journal has answers of {self._subject.name!r}, but not their texts (store_answers was off), so "
                f"{scorer.name!r} cannot grade them. Use the scorer they were graded with, or another journal."
            )
            raise InvalidInputError(msg)
        if not scorer.asks:
            return await self._grade(example, keys, entry.answer, _Bill(), is_stored=True)
        async with self._gate.call(0) as bill:
            if bill is None:
                return _NOT_ASKED
            return await self._grade(example, keys, entry.answer, bill, is_stored=True)

    async def _grade(self, example: Example, keys: Keys, answer: Answer, bill: _Bill, *, is_stored: bool) -> _Outcome:
        scorer = self._subject.scorer
        if not scorer.asks:
            score = await scorer.grade(answer, example)
        else:
            try:
                score = await self._retrying(lambda: scorer.grade(answer, example))
            except _ClosedError:
                raise
            except Exception as error:
                if not is_stored:
                    await self._journal.release(keys.answer)
                if self._on_failure == "raise" or isinstance(error, InvalidInputError):
                    raise
                self._last_failure = error
                return self._graded(answer, Grade(None, 0.0))
        grade = Grade(score.value, score.cost)
        bill.spent += grade.cost
        if not is_stored:
            await self._journal.store(keys, answer, grade)
        elif scorer.asks:
            await self._journal.store(keys, grade=grade)
        return self._graded(answer, grade)

    def _graded(self, answer: Answer, grade: Grade) -> _Outcome:
        loss = math.nan if grade.value is None else 1 - grade.value
        return _Outcome(answer, loss=loss, cost=self._subject.cost(answer), judge_cost=grade.cost)

    async def _retrying(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a call, made again after errors that may pass."""
        for attempt in count():
            try:
                async with self._slots:
                    await self._gate.wait()
                    async with asyncio.timeout(self._timeout):
                        return await call()
            except _ClosedError:
                raise
            except Exception as error:
                wait = _wait_before(error, attempt)
                if attempt >= self._max_retries or wait > _LONGEST_WAIT or not is_transient(error):
                    raise
                await self._gate.pause(wait, everybody=retry_after(error) is not None)
                if self._gate.closed_by:
                    raise
        raise AssertionError  # count() has no end

    def _described(self) -> LLMProfile:
        """The profile, with the facts of the run."""
        tally, subject = self._tally, self._subject
        profile = tally.profile()
        if profile is None:
            why = f" The run was stopped by {self._gate.closed_by}." if self._gate.closed_by else ""
            msg = (
                f"{subject.name!r} cannot be profiled: of its calls {tally.failures} failed, and {tally.ungraded} "
                f"answers could not be graded; there is no other.{why}"
            )
            if not (tally.failures or tally.ungraded or why):
                msg = f"{subject.name!r} cannot be profiled: there are no examples."
            raise InvalidInputError(msg) from self._last_failure
        if self._gate.closed_by:
            _log.info(
                "The run of %s was stopped by %s, after %s answers.", subject.name, self._gate.closed_by, tally.answers
            )
        return replace(
            profile,
            metadata={
                "answers": tally.answers,
                "failures": tally.failures,
                "on_failure": self._on_failure,
                "ungraded": tally.ungraded,
                "scorer": subject.scorer.name,
                "price": asdict(subject.price),
                "tokens": tally.tokens._asdict(),
                "answers_usd": tally.cost,
                "judge_usd": tally.judge_cost,
                "seconds": tally.seconds_per_answer,
                "seconds_per_cluster": tally.seconds_per_cluster,
                "stopped_by": self._gate.closed_by or None,
            },
        )


class _Tally:
    """What the counted examples have told."""

    def __init__(self, name: str, clusters: PromptClusters) -> None:
        self._name = name
        self._clusters = clusters.fingerprint
        self._graded: LLMProfile | None = None
        self._wrong = np.zeros(len(clusters))
        self._answered, self._seconds = np.zeros((2, len(clusters)))
        self.answers = self.failures = self.ungraded = 0
        self.cost = self.judge_cost = 0.0
        self.tokens = Usage()

    def add(self, phi: Floats, outcomes: Sequence[_Outcome]) -> None:
        """Count a block, in the order of its examples."""
        answered = np.array([outcome.answer is not None for outcome in outcomes])
        failed = np.array([outcome.failed for outcome in outcomes])
        losses = np.array([outcome.loss for outcome in outcomes])
        graded = answered & ~np.isnan(losses)
        if graded.any():
            costs = np.array([outcome.cost for outcome in outcomes]) * _PER_CALLS
            block = LLMProfile.from_outcomes(
                self._name, phi[graded], losses[graded], cost=costs[graded], clusters=self._clusters
            )
            self._graded = block if self._graded is None else self._graded + block
        self._wrong += phi[failed & (losses == 1)].sum(axis=0)
        self._answered += phi[answered].sum(axis=0)
        self.answers += int(answered.sum())
        self.failures += int(failed.sum())
        self.ungraded += int((answered & ~graded).sum())
        for outcome, memberships in zip(outcomes, phi, strict=True):
            if outcome.answer is not None:
                self._seconds += outcome.answer.seconds * memberships
                self.cost += outcome.cost
                self.judge_cost += outcome.judge_cost
                self.tokens = Usage(*map(sum, zip(self.tokens, outcome.answer.usage or Usage(), strict=True)))

    def profile(self) -> LLMProfile | None:
        """The profile so far; None if nothing is graded."""
        if self._graded is None or not self._wrong.any():
            return self._graded
        # A call that failed says nothing of what a call costs.
        return self._graded + replace(self._graded, counts=self._wrong, losses=self._wrong)

    @property
    def seconds_per_answer(self) -> float:
        """How long an answer took, in the mean."""
        return float(self._seconds.sum() / self._answered.sum())

    @property
    def seconds_per_cluster(self) -> list[float | None]:
        """How long an answer took, in the mean of each cluster; None where there is none."""
        both = zip(self._seconds.tolist(), self._answered.tolist(), strict=True)
        return [seconds / answers if answers else None for seconds, answers in both]


@dataclass
class _Bill:
    """What a call has cost, in USD, and whether it was answered at all."""

    spent: float = 0.0
    answered: bool = False


class _ClosedError(Exception):
    """A call did not begin because the gate was closed."""


class _Gate:
    """Lets calls begin: so many in a minute, none that could be too dear, and none at all once it is closed.

    Attributes:
        spent: What the calls have cost so far, in USD.
        closed_by: Why it is closed; empty while it is open.
    """

    def __init__(self, max_cost: float | None, requests_per_minute: float | None) -> None:
        self.spent = 0.0
        self.closed_by = ""
        self._max_cost = max_cost
        self._interval = 0.0 if requests_per_minute is None else _MINUTE / requests_per_minute
        self._next = 0.0
        self._under_way: list[float] = []
        self._dearest: float | None = None
        self._closed = asyncio.Event()
        self._changed = asyncio.Condition()

    def close(self, by: str) -> None:
        """Let no call begin from now on."""
        if not self.closed_by:
            self.closed_by = by
            self._closed.set()

    @asynccontextmanager
    async def call(self, least: float) -> AsyncIterator[_Bill | None]:
        """A call that costs at least so much, to be noted on the bill; None if it must not be made."""
        if not await self._affords(least):
            yield None
            return
        bill = _Bill()
        try:
            yield bill
        finally:
            async with self._changed:
                self._under_way.remove(least)
                self.spent += bill.spent
                if bill.answered:
                    self._dearest = max(self._dearest or 0.0, bill.spent)
                self._changed.notify_all()

    def can_wait_for(self, cost: float) -> bool:
        """Whether the budget leaves room for calls that might cost so much, or would end with much of it unspent."""
        return self._max_cost is not None and cost <= self._max_cost * _MOST_UNSPENT

    async def wait(self) -> None:
        """Wait for one's turn.

        Raises:
            _ClosedError: If it is closed by then.
        """
        now = monotonic()
        begin = max(self._next, now)
        self._next = begin + self._interval
        await self._sleep(begin - now)
        if self.closed_by:
            raise _ClosedError

    async def pause(self, seconds: float, *, everybody: bool) -> None:
        """Wait for this long, or until it is closed; with `everybody`, no other call begins in that time either."""
        if everybody:
            self._next = max(self._next, monotonic() + seconds)
        await self._sleep(seconds)

    async def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._closed.wait()

    async def _affords(self, least: float) -> bool:
        """Whether a call may begin, as soon as the calls under way leave room for it."""
        async with self._changed:
            while not self.closed_by:
                dear = sum(max(self._dearest or 0.0, each) for each in (*self._under_way, least))
                fits = self._max_cost is None or self.spent + dear <= self._max_cost
                alone = not self._under_way
                if fits and (alone or self._max_cost is None or self._dearest is not None):
                    self._under_way.append(least)
                    return True
                if alone:
                    self.close(f"max_cost, {self._max_cost} USD, of which this run has spent {self.spent:.6g}")
                    break
                await self._changed.wait()
            self._changed.notify_all()
            return False


def _wait_before(error: Exception, attempt: int) -> float:
    """How many seconds to wait after this error: what the server asks for, else ever longer, and not all at once."""
    asked = retry_after(error)
    backoff = min(_FIRST_WAIT * 2**attempt, _LONGEST_BACKOFF) * random.uniform(0.5, 1)  # noqa: S311
    return backoff if asked is None else asked


async def _timed(model: AdaptedModel, example: Example) -> Answer:
    began = perf_counter()
    answer = await model(example)
    return answer if answer.seconds else replace(answer, seconds=perf_counter() - began)


def most_telling(examples: list[Example], n: int, router: UniRouter) -> list[Example]:
    """The n examples that tell most about a new model, most telling first."""
    return [examples[index] for index in router.choose_validation([example.prompt for example in examples], n)]


def _bar(name: str, total: int | None, *, shown: bool) -> Any:
    from tqdm import tqdm

    is_watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(total=total, desc=name, unit="answer", disable=not (shown and is_watched))


@cache
def _background_loop(pid: int) -> asyncio.AbstractEventLoop:  # noqa: ARG001
    """An event loop that runs in a thread for as long as the process.

    One for all runs: clients keep connections open, and these are of no use in another loop. A forked process has none
    of its parent's threads and gets a loop of its own.
    """
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(_MOST_THREADS, "unirouter-profiling"))
    threading.Thread(target=loop.run_forever, name="unirouter-profiling", daemon=True).start()
    return loop


def run_in_background(work: Coroutine[Any, Any, T]) -> T:
    """The result of some asynchronous work, done in another thread. Ctrl-C cancels it there and waits for its end."""
    loop = _background_loop(os.getpid())
    with suppress(RuntimeError):
        if asyncio.get_running_loop() is loop:
            msg = (
                "This was called synchronously from asynchronous work that itself was called synchronously, and would "
                "wait for itself. Await it there: ainvoke in place of invoke, aprofile_model in place of profile_model."
            )
            work.close()
            raise InvalidInputError(msg)
    begun: list[asyncio.Task[T]] = []

    async def settled() -> asyncio.Task[T]:
        begun.append(asyncio.ensure_future(work))
        await asyncio.wait(begun)
        return begun[0]

    done = asyncio.run_coroutine_threadsafe(settled(), loop)
    interrupted = False
    while not done.done():
        try:
            wait([done], _POLL)  # not for longer: where a lock is waited for, Ctrl-C may not be seen
        except KeyboardInterrupt:
            interrupted = True
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in begun])
    if interrupted:
        raise KeyboardInterrupt
    return done.result().result()
