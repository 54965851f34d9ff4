"""One profiling run: the calls, their grades, retries and failures.

Examples are read, embedded and counted in blocks and in their order, while a window of calls moves over them. So a
profile does not depend on which call comes back first, and memory does not grow with the number of examples.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from time import perf_counter
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from unirouter_integrations._checks import number, one_of, positive_or_infinite, whole_number
from unirouter_integrations._router import UniRouter
from unirouter_integrations.compare import what_if
from unirouter_integrations.core import LLMProfile
from unirouter_integrations.core._profiles import Floats
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.grading import AdaptedModel, Answer, Example
from unirouter_integrations.grading._records import as_example
from unirouter_integrations.profiling._budget import Budget, BudgetClosedError, CallCost
from unirouter_integrations.profiling._journal import Entry, Grade, Journal, Keys
from unirouter_integrations.profiling._target import ProfilingTarget
from unirouter_integrations.profiling._totals import NOT_ASKED, Outcome, Totals
from unirouter_integrations.serving._failures import is_transient, retry_after

T = TypeVar("T")
OnFailure = Literal["raise", "skip", "wrong"]
StopWhen = float | Callable[[LLMProfile], bool]

_log = logging.getLogger("unirouter_integrations")

_BLOCK_SIZE = 64  # examples that are embedded in one call, and between two questions whether the run should stop
# Examples that are read ahead, so that one slow answer does not hold up the others.
_MIN_WINDOW = 256
_WINDOW_PER_CALL = 32
_POLL_SECONDS = 0.1  # how often to look for an answer that another run is asking for
_FIRST_BACKOFF_SECONDS = 0.5  # doubled with each attempt, ...
_MAX_BACKOFF_SECONDS = 60.0  # ... up to this
_MAX_WAIT_SECONDS = 600.0  # a provider that asks to wait longer has a quota for the day: that is a failure


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run makes its calls; see `profile_model`.

    Raises:
        InvalidInputError: If a setting is out of range.
    """

    max_concurrency: int
    requests_per_minute: float | None
    timeout: float
    max_retries: int
    on_failure: OnFailure
    max_cost: float | None
    stop_when: StopWhen | None

    def __post_init__(self) -> None:
        one_of(self.on_failure, "on_failure", get_args(OnFailure))
        whole_number(self.max_concurrency, "max_concurrency", low=1)
        whole_number(self.max_retries, "max_retries", low=0)
        positive_or_infinite(self.timeout, "timeout, in seconds,")
        if self.requests_per_minute is not None:
            positive_or_infinite(self.requests_per_minute, "requests_per_minute")
        if self.max_cost is not None and self.max_cost != math.inf:
            number(self.max_cost, "max_cost, in USD,")
        if self.stop_when is not None and not callable(self.stop_when):
            number(self.stop_when, "stop_when, unless it is a function of the profile,", high=1)


class _Block(NamedTuple):
    """Consecutive examples: their memberships `(n, K)`, and the work on each."""

    phi: Floats
    tasks: list[asyncio.Task[Outcome]]


class ProfilingRun:
    """One run over some examples.

    Args:
        target: The model, its scorer and its price.
        router: The router that the profile is for.
        journal: An open journal.
        settings: How to make the calls.
        bar: A progress bar of tqdm.
    """

    def __init__(
        self, target: ProfilingTarget, router: UniRouter, journal: Journal, settings: RunSettings, bar: Any
    ) -> None:
        self._target = target
        self._router = router
        self._journal = journal
        self._settings = settings
        self._bar = bar
        self._budget = Budget(settings.max_cost, settings.requests_per_minute)
        self._calls = asyncio.Semaphore(settings.max_concurrency)
        # Twice as many examples are in progress as are being called, so that no call waits for the disk.
        self._in_progress = asyncio.Semaphore(2 * settings.max_concurrency)
        # With stop_when, no example of the next block begins before it is known that the block is needed.
        window = max(_MIN_WINDOW, _WINDOW_PER_CALL * settings.max_concurrency)
        self._window = window if settings.stop_when is None else 0
        self._totals = Totals(target.name, router.clusters)
        self._n_graded, self._score = 0, 0.0
        self._last_failure: Exception | None = None

    async def profile(self, examples: Iterator[Example | Mapping[str, Any]]) -> LLMProfile:
        """Return the profile, once all examples are done or the run was stopped."""
        blocks: deque[_Block] = deque()
        try:
            while not self._budget.closed_by and (block := await self._begin_block(examples)):
                blocks.append(block)
                await self._count(blocks, down_to=self._window)
            await self._count(blocks, down_to=0)
        except BaseException as error:
            self._budget.close("an error")
            await asyncio.gather(*(task for block in blocks for task in block.tasks), return_exceptions=True)
            if isinstance(error, Exception) and self._journal.path is not None:
                error.add_note("The answers so far are in the journal: the same call again goes on from there.")
            raise
        return self._finished_profile()

    async def _begin_block(self, examples: Iterator[Example | Mapping[str, Any]]) -> _Block | None:
        """Start the work on the next examples; None if there are none."""

        def read() -> tuple[list[Example], Floats]:
            block = list(map(as_example, islice(examples, _BLOCK_SIZE)))
            return block, self._router.clusters.memberships([example.prompt for example in block]).phi

        block, phi = await asyncio.to_thread(read)
        if not block:
            return None
        keys = [self._target.keys(example) for example in block]
        entries = await self._journal.find(keys)
        work = (self._work(example, key, entries.get(key)) for example, key in zip(block, keys, strict=True))
        return _Block(phi, list(map(asyncio.create_task, work)))

    async def _count(self, blocks: deque[_Block], *, down_to: int) -> None:
        """Wait for the first blocks and count them, until at most `down_to` examples are left."""
        while blocks and sum(len(block.tasks) for block in blocks) > down_to:
            block = blocks[0]
            await asyncio.wait(block.tasks)
            self._totals.add(block.phi, [task.result() for task in block.tasks])
            blocks.popleft()
            if not self._budget.closed_by and self._is_enough():
                self._budget.close(f"stop_when, after {self._totals.answers} answers")

    def _is_enough(self) -> bool:
        stop_when = self._settings.stop_when
        profile = None if stop_when is None else self._totals.profile()
        if stop_when is None or profile is None:
            return False
        return stop_when(profile) if callable(stop_when) else what_if(self._router, profile).undecided <= stop_when

    async def _work(self, example: Example, keys: Keys, entry: Entry | None) -> Outcome:
        """Get the outcome of an example. After an error no other call begins."""
        try:
            outcome = await self._outcome(example, keys, entry)
        except BudgetClosedError:
            return NOT_ASKED
        except Exception:
            self._budget.close("an error")
            raise
        if outcome is not NOT_ASKED:
            if not math.isnan(outcome.score):
                self._n_graded += 1
                self._score += outcome.score
            accuracy = f"accuracy {self._score / self._n_graded:.1%}, " if self._n_graded else ""
            self._bar.set_postfix_str(f"{accuracy}{self._budget.spent:.4f} USD", refresh=False)
            self._bar.update()
        return outcome

    async def _outcome(self, example: Example, keys: Keys, entry: Entry | None) -> Outcome:
        while entry is None:
            async with self._in_progress:
                if self._budget.closed_by:
                    return NOT_ASKED
                if await self._journal.claim(keys.answer):
                    return await self._ask(example, keys)
            # Another run is asking the same prompt, or this run is, for an earlier example.
            await asyncio.sleep(_POLL_SECONDS)
            entry = (await self._journal.find([keys])).get(keys)
        async with self._in_progress:
            return await self._look_up(example, keys, entry)

    async def _ask(self, example: Example, keys: Keys) -> Outcome:
        """Get an answer that this run has claimed, and grade it."""
        await self._target.scorer.check(example)
        low, high = self._target.cost_bounds(example)
        async with self._budget.call(high if self._budget.can_reserve(high) else low) as cost:
            if cost is None:
                await self._journal.release(keys.answer)
                return NOT_ASKED
            try:
                answer = await self._with_retries(lambda: _timed(self._target.model, example))
            except BudgetClosedError:
                raise
            except Exception as error:
                await self._journal.release(keys.answer)
                if self._settings.on_failure == "raise":
                    raise
                self._last_failure = error
                return Outcome(failed=True, score=0.0 if self._settings.on_failure == "wrong" else math.nan)
            if self._journal.store_answers:
                await self._journal.store(keys, answer)
            cost.usd, cost.is_answered = self._target.cost(answer), True
            return await self._grade(example, keys, answer, cost, is_stored=self._journal.store_answers)

    async def _look_up(self, example: Example, keys: Keys, entry: Entry) -> Outcome:
        """Grade an answer from the journal, unless the journal has a grade that was paid for."""
        scorer = self._target.scorer
        if entry.grade is not None and (scorer.calls_model or not entry.has_text):
            return self._graded(entry.answer, entry.grade)
        if not entry.has_text:
            msg = (
                f"The journal has answers of {self._target.name!r}, but not their texts (store_answers was off), so "
                f"{scorer.name!r} cannot grade them. Use the scorer that graded them, or another journal."
            )
            raise InvalidInputError(msg)
        if not scorer.calls_model:
            return await self._grade(example, keys, entry.answer, CallCost(), is_stored=True)
        async with self._budget.call(0) as cost:
            if cost is None:
                return NOT_ASKED
            return await self._grade(example, keys, entry.answer, cost, is_stored=True)

    async def _grade(self, example: Example, keys: Keys, answer: Answer, cost: CallCost, *, is_stored: bool) -> Outcome:
        scorer = self._target.scorer
        if not scorer.calls_model:
            score = await scorer.grade(answer, example)
        else:
            try:
                score = await self._with_retries(lambda: scorer.grade(answer, example))
            except BudgetClosedError:
                raise
            except Exception as error:
                if not is_stored:
                    await self._journal.release(keys.answer)
                if self._settings.on_failure == "raise" or isinstance(error, InvalidInputError):
                    raise
                self._last_failure = error
                return self._graded(answer, Grade(None, 0.0))
        grade = Grade(score.value, score.cost)
        cost.usd += grade.cost
        if not is_stored:
            await self._journal.store(keys, answer, grade)
        elif scorer.calls_model:
            await self._journal.store(keys, grade=grade)
        return self._graded(answer, grade)

    def _graded(self, answer: Answer, grade: Grade) -> Outcome:
        score = math.nan if grade.value is None else grade.value
        return Outcome(answer, score=score, cost=self._target.cost(answer), judge_cost=grade.cost)

    async def _with_retries(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the result of a call, which is made again after errors that may pass."""
        for attempt in count():
            try:
                async with self._calls:
                    await self._budget.wait_for_turn()
                    async with asyncio.timeout(self._settings.timeout):
                        return await call()
            except BudgetClosedError:
                raise
            except Exception as error:
                requested = retry_after(error)
                wait = _backoff(attempt) if requested is None else requested
                if attempt >= self._settings.max_retries or wait > _MAX_WAIT_SECONDS or not is_transient(error):
                    raise
                await self._budget.pause(wait, for_all=requested is not None)
                if self._budget.closed_by:
                    raise
        raise AssertionError  # count() has no end

    def _finished_profile(self) -> LLMProfile:
        """Return the profile, with the facts of the run as its metadata."""
        totals, target, stopped_by = self._totals, self._target, self._budget.closed_by
        profile = totals.profile()
        if profile is None:
            reason = f" The run was stopped by {stopped_by}." if stopped_by else ""
            msg = (
                f"{target.name!r} cannot be profiled: {totals.failures} of its calls failed, {totals.ungraded} of its "
                f"answers could not be graded, and there are no others.{reason}"
            )
            if not (totals.failures or totals.ungraded or stopped_by):
                msg = f"{target.name!r} cannot be profiled: there are no examples."
            raise InvalidInputError(msg) from self._last_failure
        if stopped_by:
            _log.info("The run of %s was stopped by %s, after %s answers.", target.name, stopped_by, totals.answers)
        return replace(
            profile,
            metadata={
                "answers": totals.answers,
                "failures": totals.failures,
                "on_failure": self._settings.on_failure,
                "ungraded": totals.ungraded,
                "scorer": target.scorer.name,
                "price": asdict(target.price),
                "tokens": totals.tokens._asdict(),
                "answers_usd": totals.cost,
                "judge_usd": totals.judge_cost,
                "seconds": totals.seconds_per_answer,
                "seconds_per_cluster": totals.seconds_per_cluster,
                "stopped_by": stopped_by or None,
            },
        )


def _backoff(attempt: int) -> float:
    """Return the seconds to wait after an attempt, with jitter, so that calls that failed together are spread out."""
    longest: float = min(_FIRST_BACKOFF_SECONDS * 2**attempt, _MAX_BACKOFF_SECONDS)
    return longest * random.uniform(0.5, 1)  # noqa: S311


async def _timed(model: AdaptedModel, example: Example) -> Answer:
    start = perf_counter()
    answer = await model(example)
    return answer if answer.seconds else replace(answer, seconds=perf_counter() - start)
