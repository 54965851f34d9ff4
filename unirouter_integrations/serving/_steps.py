"""The steps of a call, and the two drivers that perform them: one synchronous, one asynchronous.

A rule is a generator without I/O: it yields steps, and receives their results, or the errors they raise. So each rule
is written once, as httpx writes an authentication scheme.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy.typing as npt

from unirouter_integrations._concurrency import HangingCalls, race, run_sync, run_with_timeout
from unirouter_integrations.core import PromptClusters, RoutingDecision, Snapshot
from unirouter_integrations.embedding import Vectors
from unirouter_integrations.grading import Example, Scorer, Usage
from unirouter_integrations.grading._models import answer_of, total_usage
from unirouter_integrations.serving._capabilities import Needs
from unirouter_integrations.serving._record import Record
from unirouter_integrations.serving._streams import OpenStream, StreamPart

T = TypeVar("T")

_PASSING_SCORE = 0.5
CONTINUE = (
    "Your last answer was cut off. Continue it exactly where it stops. Do not repeat any of it, and do not mention "
    "that it was cut off."
)
"""What a model is asked that goes on with an answer of another one. No API of a provider guarantees more than this."""

_log = logging.getLogger("unirouter_integrations")


class Framework(NamedTuple):
    """What the rules have to know of a framework.

    Attributes:
        as_model: Makes a model of what is in the dict or registry under a name, or raises an `InvalidInputError`.
        capabilities_of: What a model is capable of, in the words of LangChain's `ModelProfile`.
        is_refusal: Whether a provider reports that an answer is a refusal or was filtered.
        is_empty: Whether an answer says nothing at all.
        text_answer: The part of an answer that a check can grade; None for calls of tools, forms and streams.
        usage_of: The tokens that an answer, or one part of a stream, reports; None if it reports none.
        total_usage: Those of a whole stream, from those that its parts report.
        describe: What one part of a stream says.
        checking: Wraps the calls of a check.
    """

    as_model: Callable[[object, Any], Any]
    capabilities_of: Callable[[Any], Mapping[str, Any]]
    is_refusal: Callable[[Any], bool]
    is_empty: Callable[[Any], bool]
    text_answer: Callable[[Any], Any]
    usage_of: Callable[[Any], Usage | None] = lambda _: None
    total_usage: Callable[[Sequence[Usage]], Usage] = total_usage
    describe: Callable[[Any], StreamPart] = lambda _: StreamPart()
    checking: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class CallRequest:
    """What the rules have to know of one call.

    Attributes:
        question: The text it is judged by.
        needs: What it needs of a model.
        cost_weight: lambda; None for that of the chat model, or else the router's.
        among: The models that may take it; None for all. One model alone is forced: no other takes over.
        max_error: Only models take part that are expected to err at most so much, if there are any; None for all.
        max_cost: What the call may be expected to cost, all models together; None for what the settings say.
        kept: The model that already works on the conversation. It goes on if it may and can; others only take over.
        is_in_tool_loop: Whether `kept` is in the middle of a loop of tool calls; then it goes on even if it cools down.
        noted: The decision about the same question as plain JSON, which spares the embedding if its model goes on.
        vector: The embedding of the question, `(d,)`, which spares it as well.
        surcharges: What calls of some models cost beyond their profiles.
        may_repeat: Whether two models may answer at once: the provider runs no tool, and what they say is not streamed
            before one of them has won.
        can_go_on: Whether another model can be asked to go on with a stream of text that breaks.
    """

    question: str
    needs: Needs = field(default_factory=Needs)
    cost_weight: float | None = None
    among: Sequence[str] | None = None
    max_error: float | None = None
    max_cost: float | None = None
    kept: str | None = None
    is_in_tool_loop: bool = False
    noted: Mapping[str, Any] | None = None
    vector: npt.ArrayLike | None = None
    surcharges: Mapping[str, float] = field(default_factory=dict)
    may_repeat: bool = False
    can_go_on: bool = False


class RoutedCall(NamedTuple):
    """A call whose model is chosen.

    Attributes:
        request: The call.
        decision: Which model takes it.
        models: All models as they were when it was decided.
        snapshot: The router as it was then, with all models that may and can take the call.
        reserve: Those that are tried when all others failed: first those that are expected to err more than the call
            allows, then those that are cooling down, the first to be healthy first.
        attempts: How many models were asked.
        spent: What they were expected to cost, in the unit of the profiles.
        ends_at: The deadline on the monotonic clock; None if there is none.
        partial_text: The text of a stream that broke, with which this model is to go on.
        on_cut: How it is to go on: `"continue"` or `"restart"`.
        records: Where the answers are recorded.
        seen: Returns the text that the caller has seen of the answer. Once there is some, no other model takes over.
    """

    request: CallRequest
    decision: RoutingDecision
    models: Mapping[str, Any]
    snapshot: Snapshot
    reserve: tuple[str, ...] = ()
    attempts: int = 0
    spent: float = 0.0
    ends_at: float | None = None
    partial_text: str = ""
    on_cut: str = ""
    records: tuple[Record, ...] = ()
    seen: Callable[[], str] = str

    @property
    def model(self) -> Any:
        """The model that takes the call."""
        return self.models[self.decision.model]

    @property
    def text_before(self) -> str:
        """The text that this model is to continue; empty if it starts the answer, for the first time or again."""
        return self.partial_text if self.on_cut == "continue" else ""


class Embed(NamedTuple):
    """A step: embed these texts."""

    clusters: PromptClusters
    texts: list[str]
    timeout: float | None

    def perform(self, _: object) -> Vectors:
        """Embed them now."""
        return self.clusters.embed(self.texts, timeout=self.timeout)

    async def aperform(self, _: object) -> Vectors:
        """Async version of `perform`."""
        return await self.clusters.aembed(self.texts, timeout=self.timeout)


class Read(NamedTuple):
    """A step: ask models what they are capable of, for which some have to ask a server."""

    read: Callable[[], Mapping[str, Any]]

    def perform(self, _: object) -> Mapping[str, Any]:
        """Ask them now."""
        return self.read()

    async def aperform(self, _: object) -> Mapping[str, Any]:
        """Async version of `perform`."""
        import asyncio

        return await asyncio.to_thread(self.read)


class Ask(NamedTuple):
    """A step: have the chosen model answer, or open its stream and wait for the first content."""

    routed: RoutedCall
    timeout: float | None
    hanging: HangingCalls

    def perform(self, ask: Callable[[RoutedCall], T]) -> T:
        """Ask it now."""
        context = copy_context()  # of the caller: callbacks and tracers are found through it
        return (
            ask(self.routed)
            if self.timeout is None
            else run_with_timeout(self.timeout, lambda: context.run(ask, self.routed), hanging=self.hanging)
        )

    async def aperform(self, ask: Callable[[RoutedCall], Awaitable[T]]) -> T:
        """Async version of `perform`."""
        import asyncio

        async with asyncio.timeout(self.timeout):
            return await ask(self.routed)


class Hedge(NamedTuple):
    """A step: ask a model, and a second one as well if it takes long. The first answer counts.

    The result is a list of those that ended, 0 the first model and 1 the second, each with its answer or its error. All
    but the last had failed. The other call is cancelled; a synchronous one goes on, and its answer is dropped.

    Attributes:
        first: Asks the model.
        after: After how many seconds the second is asked.
        second: Makes the step that asks it; None if it is not to be asked.
    """

    first: Ask
    after: float
    second: Callable[[], Ask | None]

    def perform(self, ask: Callable[[RoutedCall], Any]) -> list[tuple[int, Any]]:
        """Ask them now."""

        def call(step: Ask) -> Callable[[], Any]:
            return partial(copy_context().run, step.perform, ask)

        def second() -> Callable[[], Any] | None:
            step = self.second()
            return None if step is None else call(step)

        return race(call(self.first), self.after, second, discard=_close)

    async def aperform(self, ask: Callable[[RoutedCall], Awaitable[Any]]) -> list[tuple[int, Any]]:
        """Async version of `perform`."""
        import asyncio

        tasks = [asyncio.ensure_future(self.first.aperform(ask))]
        ended: dict[int, Any] = {}
        has_answer = False
        try:
            await asyncio.wait(tasks, timeout=self.after)
            if not tasks[0].done() and (second := self.second()) is not None:
                tasks.append(asyncio.ensure_future(second.aperform(ask)))
            while not has_answer and len(ended) < len(tasks):
                running = [task for number, task in enumerate(tasks) if number not in ended]
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: task.exception() is None):  # failures count, if there are any
                    if not has_answer:
                        has_answer = task.exception() is None
                        ended[tasks.index(task)] = task.exception() or task.result()
            return [*ended.items()]
        finally:
            for number, task in enumerate(tasks):
                if number not in ended:
                    task.cancel()
                    late = (await asyncio.gather(task, return_exceptions=True))[0]
                    if isinstance(late, OpenStream):
                        await late.aclose()


def _close(outcome: object) -> None:
    if isinstance(outcome, OpenStream):
        outcome.close()


class Check(NamedTuple):
    """A step: grade an answer. The result is whether it passes; an answer that cannot be graded does."""

    scorer: Scorer
    answer: Any
    routed: RoutedCall
    checking: Callable[[], AbstractContextManager[object]]

    def perform(self, _: object) -> bool:
        """Grade it now."""
        return run_sync(self.aperform(None))

    async def aperform(self, _: object) -> bool:
        """Async version of `perform`."""
        try:
            with self.checking():
                score = await self.scorer.grade(answer_of(self.answer), Example(self.routed.request.question))
        except Exception as error:  # noqa: BLE001  # a check that fails must not lose an answer that was paid for
            remedy = "a check should give True, False or a number from 0 to 1"  # the error itself may quote the answer
            name = self.routed.decision.model
            _log.warning("The check of an answer of %s raised %s; %s.", name, type(error).__name__, remedy)
            return True
        return score.value is None or score.value >= _PASSING_SCORE


Step = Read | Embed | Ask | Hedge | Check
Rule = Generator[Step, Any, T]


def drive(rule: Rule[T], ask: Any) -> T:
    """Perform the steps of a rule now."""
    proceed, value = rule.send, None
    try:
        while True:
            try:
                step = proceed(value)
            except StopIteration as stopped:
                result: T = stopped.value
                return result
            try:
                proceed, value = rule.send, step.perform(ask)
            except Exception as error:  # noqa: BLE001  # the rule decides what becomes of it
                proceed, value = rule.throw, error
    finally:
        rule.close()


async def adrive(rule: Rule[T], ask: Any) -> T:
    """Async version of `drive`."""
    proceed, value = rule.send, None
    try:
        while True:
            try:
                step = proceed(value)
            except StopIteration as stopped:
                result: T = stopped.value
                return result
            try:
                proceed, value = rule.send, await step.aperform(ask)
            except Exception as error:  # noqa: BLE001  # the rule decides what becomes of it
                proceed, value = rule.throw, error
    finally:
        rule.close()
