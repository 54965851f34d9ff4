"""Hedging: a second model is asked as well when an answer takes long, and the first answer counts."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from conftest import toy_router

from unirouter_integrations import InvalidInputError
from unirouter_integrations.core import RoutingDecision
from unirouter_integrations.serving import Health
from unirouter_integrations.serving._capabilities import Needs
from unirouter_integrations.serving._serving import Serving
from unirouter_integrations.serving._steps import CallRequest, Framework, RoutedCall
from unirouter_integrations.serving._streams import StreamPart

END = "."
FRAMEWORK = Framework(
    as_model=lambda name, model: model,
    capabilities_of=lambda model: {},
    is_refusal=lambda answer: False,
    is_empty=lambda answer: False,
    text_answer=lambda answer: answer,
    describe=lambda part: StreamPart(part, part != END, reports_finish=True, is_finish=part == END),
)
POEM = CallRequest("a poem", cost_weight=0.0, may_repeat=True)
ORDER = ("poet", "oracle", "abacus")


@dataclass
class Models:
    """What models do, in the order in which their calls end: each waits until the one before it has ended.

    Attributes:
        ends: The models in the order in which their calls end, each with an error to raise. One that is missing never
            answers.
        asked: The models that were asked.
        closed: The models whose streams or calls were closed or cancelled.
        answers: The seconds that the models' answers are known to take.
    """

    ends: dict[str, Exception | None]
    asked: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    answers: float = 0.0

    def __post_init__(self) -> None:
        self.health = Health()
        for name in ORDER:
            for _ in range(16):
                self.health.succeeded(self.health.start(name), self.answers)
        self.over = threading.Event()
        self.begun = {name: threading.Event() for name in ORDER}
        self.ended = {name: threading.Event() for name in ORDER}

    def serving(self, **settings: Any) -> Serving:
        return Serving(
            toy_router("soft"),
            dict.fromkeys(ORDER),
            FRAMEWORK,
            self.health,
            **{"hedge": True, "cooldown": 0, **settings},
        )

    def _conditions(self, name: str) -> list[threading.Event]:
        """What has to be before a model ends: the one before it has failed, and a hedge has begun."""
        order = [*self.ends]
        place = order.index(name) if name in order else len(order)
        if place == len(order) or (place and self.ends[order[place - 1]] is None):
            return [self.over]
        before = [self.begun[ORDER[0]], *([self.ended[order[place - 1]]] if place else [])]
        return before + ([self.begun[order[1]]] if name == ORDER[0] and len(order) > 1 else [])

    def _end(self, name: str) -> str:
        self.ended[name].set()
        error = self.ends.get(name)
        if error is not None:
            raise error
        return name

    def ask(self, routed: RoutedCall) -> str:
        name = routed.decision.model
        self.asked.append(name)
        self.begun[name].set()
        for each in self._conditions(name):
            each.wait()
        return self._end(name)

    async def aask(self, routed: RoutedCall) -> str:
        name = routed.decision.model
        self.asked.append(name)
        self.begun[name].set()
        try:
            while not all(each.is_set() for each in self._conditions(name)):  # noqa: ASYNC110  # threads set them, too
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.closed.append(name)
            raise
        return self._end(name)

    def parts(self, routed: RoutedCall) -> Iterator[str]:
        name = self.ask(routed)
        try:
            yield f"{name}: "
            yield "yes"
            yield END
        finally:
            self.closed.append(name)

    async def aparts(self, routed: RoutedCall) -> AsyncGenerator[str, None]:
        name = await self.aask(routed)
        yield f"{name}: "
        yield "yes"
        yield END

    async def opened(self, routed: RoutedCall) -> AsyncGenerator[str, None]:
        return self.aparts(routed)

    async def answer(
        self, way: str, request: CallRequest = POEM, **settings: Any
    ) -> tuple[str, RoutingDecision | None]:
        """Make a call. Returns the model that answered, and the decision of a call that is not streamed."""
        serving = self.serving(**settings)
        try:
            match way:
                case "call":
                    (routed,) = serving.decide([request])
                    routed, answer = await asyncio.to_thread(serving.call, routed, self.ask)
                    return answer, routed.decision
                case "acall":
                    (routed,) = await serving.adecide([request])
                    routed, answer = await serving.acall(routed, self.aask)
                    return answer, routed.decision
                case "stream":
                    (routed,) = serving.decide([request])
                    text = "".join(await asyncio.to_thread(lambda: [*serving.stream(routed, self.parts)[1]]))
                case _:
                    (routed,) = await serving.adecide([request])
                    text = "".join([part async for part in (await serving.astream(routed, self.opened))[1]])
            return text.removesuffix(": yes."), None
        finally:
            self.over.set()


EVERY_WAY = pytest.mark.parametrize("way", ["call", "acall", "stream", "astream"])


@EVERY_WAY
async def test_a_second_model_answers_for_one_that_takes_long(way: str) -> None:
    """The decision names it, and the one that was slow. An asynchronous call of that one is cancelled."""
    models = Models({"oracle": None})
    answer, decision = await models.answer(way)
    assert (answer, sorted(models.asked)) == ("oracle", ["oracle", "poet"])
    if decision is not None:
        assert decision.model == "oracle"
        assert [(each.model, each.kind) for each in decision.excluded] == [("poet", "slow")]
    if way.startswith("a"):
        assert models.closed == ["poet"]


@EVERY_WAY
async def test_the_first_answer_counts(way: str) -> None:
    """Also that of the first model, although it was slow. No third model is asked."""
    models = Models({"poet": None, "oracle": None})
    answer, decision = await models.answer(way)
    assert (answer, sorted(models.asked)) == ("poet", ["oracle", "poet"])
    if decision is not None:
        assert (decision.model, decision.excluded) == ("poet", ())


@EVERY_WAY
@pytest.mark.parametrize(
    ("ends", "answer", "excluded"),
    [
        ({"poet": TimeoutError(), "oracle": None}, "oracle", [("poet", "slow")]),
        ({"oracle": TimeoutError(), "poet": None}, "poet", []),
        (
            {"poet": TimeoutError(), "oracle": OSError(), "abacus": None},
            "abacus",
            [("poet", "slow"), ("oracle", "failed")],
        ),
        (
            {"oracle": OSError(), "poet": TimeoutError(), "abacus": None},
            "abacus",
            [("poet", "slow"), ("oracle", "failed")],
        ),
    ],
)
async def test_one_of_two_that_fails_is_no_answer(
    way: str, ends: dict[str, Exception | None], answer: str, excluded: list[tuple[str, str]]
) -> None:
    """The other one answers; if both fail, the next model. Each failure counts against its model."""
    models = Models(ends)
    found, decision = await models.answer(way)
    assert found == answer
    assert sorted(models.asked) == sorted(ends)
    if decision is not None:
        assert [(each.model, each.kind) for each in decision.excluded] == excluded
    if way.startswith("a"):  # in threads, the other answer may arrive before the failure
        failed = [name for name in ORDER if models.health._records[name].failures]
        assert failed == [name for name in ORDER if ends.get(name) is not None]


@EVERY_WAY
@pytest.mark.parametrize("outcome", [None, TimeoutError()])
async def test_a_model_that_is_as_quick_as_usual_answers_alone(way: str, outcome: Exception | None) -> None:
    """Or fails alone: then the next one is asked, as without hedging."""
    models = Models({"poet": outcome, "oracle": None}, answers=60.0)
    models.begun["oracle"].set()  # poet does not wait for it
    assert (await models.answer(way))[0] == ("poet" if outcome is None else "oracle")
    assert models.asked == (["poet"] if outcome is None else ["poet", "oracle"])


@pytest.mark.parametrize(
    "request_",
    [
        CallRequest("a poem", cost_weight=0.0),
        CallRequest("a poem", cost_weight=0.0, may_repeat=True, needs=Needs(frozenset({"tool_calling"}))),
        CallRequest("a poem", cost_weight=0.0, may_repeat=True, kept="poet", is_in_tool_loop=True),
        CallRequest("a poem", cost_weight=0.0, may_repeat=True, among=["poet"]),
    ],
    ids=["provider's tools", "tools", "tool loop", "forced"],
)
async def test_what_may_act_twice_is_not_hedged(request_: CallRequest) -> None:
    """Nor what no other model may take."""
    models = Models({"poet": None})
    assert (await models.answer("acall", request_))[0] == "poet"
    assert models.asked == ["poet"]


async def test_limits_hold_for_hedges() -> None:
    """Both models count: in attempts and in money."""
    for settings in ({"max_attempts": 1}, {"max_cost": 11}, {"hedge": False}):
        models = Models({"poet": None})
        assert (await models.answer("acall", **settings))[0] == "poet"
        assert models.asked == ["poet"]


async def test_a_model_without_a_usual_time_is_not_hedged() -> None:
    """It takes some answers to know how long a model takes."""
    models = Models({"poet": None})
    models.health = Health()
    assert (await models.answer("acall"))[0] == "poet"
    assert models.asked == ["poet"]


def test_a_tenth_of_the_calls_may_be_hedged() -> None:
    """Ten at once, and one more for each ten answers."""
    health = Health()
    assert [health.hedge() for _ in range(12)] == [True] * 10 + [False] * 2
    for _ in range(25):
        health.succeeded(health.start("poet"), 1.0)
    assert [health.hedge() for _ in range(4)] == [True, True, False, False]


def test_the_usual_limit_is_that_of_95_of_100_answers() -> None:
    """The last hundred count."""
    health = Health()
    assert health.usual_limit("poet") is None
    for seconds in [1000.0] * 50 + [float(n) for n in range(100)]:
        health.succeeded(health.start("poet"), seconds)
    assert health.usual_limit("poet") == 94.0


async def test_cancelling_a_hedged_call_cancels_both() -> None:
    """Neither has a verdict."""
    models = Models({})
    task = asyncio.create_task(models.answer("acall"))
    while len(models.asked) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(models.closed) == ["oracle", "poet"]
    assert {record.in_flight for record in models.health._records.values()} == {0}


async def test_a_stream_that_comes_too_late_is_closed() -> None:
    """It was opened in a thread, which nobody can interrupt."""
    models = Models({"oracle": None, "poet": None})
    assert (await models.answer("stream"))[0] == "oracle"
    while models.closed != ["oracle", "poet"]:  # noqa: ASYNC110  # a thread closes it
        await asyncio.sleep(0.001)


def test_hedge_is_a_yes_or_a_no() -> None:
    """A number of seconds, which others take, is refused."""
    with pytest.raises(InvalidInputError, match="hedge should be one of True, False"):
        Models({}).serving(hedge=2.5).validate()
    with pytest.raises(InvalidInputError, match="on_cut"):
        Models({}).serving(on_cut="retry").validate()
    with pytest.raises(InvalidInputError, match="max_cost"):
        Models({}).serving(max_cost=-1).validate()
