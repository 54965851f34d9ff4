"""A router is replaced in one step: a call that is in progress at that moment sees the old router or the new one."""

import asyncio
import copy
import math
import pickle
import threading
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from conftest import TOY_PROMPTS, toy_embed, toy_scores

from unirouter_integrations import InvalidInputError, LLMProfile, RoutingDecision, UniRouter
from unirouter_integrations.compare import what_if

QUESTIONS = ["a poem", "a sum", "a date", "a poem about a sum"]


@cache
def version(n_clusters: int) -> UniRouter:
    """A router with clusters, a prior, models and a cost weight of its own; each version has a poet."""
    known = {"first": toy_scores("sum"), "second": toy_scores("poem"), "third": toy_scores("sum", "date")}
    router = UniRouter.fit(TOY_PROMPTS, embedder=toy_embed, n_clusters=n_clusters, scores=known)
    router.register(
        router.profile("poet", TOY_PROMPTS, toy_scores("sum", "date"), cost=2),
        router.profile(f"of {n_clusters}", TOY_PROMPTS, toy_scores("poem"), cost=n_clusters),
    )
    router.cost_weight = 0.01 * n_clusters
    return router


OLD, NEW = 3, 2


class Interleaved(UniRouter):
    """The old router, which becomes the new one just before the nth read of one of its attributes."""

    def __init__(self, n: int) -> None:
        self.__setstate__(version(OLD).__getstate__())
        self._lock: Any = threading.Lock()  # whichever kind it is otherwise, this one shows whether it is held
        self.left: float = n

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        if own.get("left", math.inf) <= 0 and not own["_lock"].locked():  # while it is held, another thread would wait
            own["left"] = math.inf
            self.replace_with(version(NEW))
        own["left"] = own.get("left", math.inf) - 1
        return object.__getattribute__(self, name)


def whole(decision: RoutingDecision) -> object:
    """All of a decision that can be compared."""
    return decision, decision.clusters, decision.ranking


def facts(router: UniRouter) -> object:
    """All that the decisions of a router depend on."""
    assert router.prior is not None
    errors = router.expected_errors(QUESTIONS).tolist()
    prior = [router.prior.mean.tolist(), router.prior.covariance.tolist()]
    return router.clusters.fingerprint, router.models, router.cost_weight, router.estimator, errors, prior


def save_and_load(router: UniRouter, folder: Path) -> object:
    router.save(folder)
    return facts(UniRouter.load(folder, embedder=toy_embed))


def profile(router: UniRouter) -> object:
    made = router.profile("m", QUESTIONS, [0, 1, 1, 0], cost=1)
    return made.clusters, made.counts.tolist(), made.losses.tolist()


@cache
def newcomer() -> LLMProfile:
    return version(OLD).profile("newcomer", TOY_PROMPTS, toy_scores(), cost=1)


def suppose(router: UniRouter) -> object:
    """What a profile over the old clusters would change; the new router refuses it."""
    try:
        found = what_if(router, newcomer())
    except InvalidInputError:
        return "refused"
    return str(found), found.shares, found.difference


def copied(router: UniRouter) -> object:
    """A copy, made as `copy` and `pickle` make it, of the plain class."""
    twin = UniRouter.__new__(UniRouter)
    twin.__setstate__(router.__getstate__())
    return facts(twin)


CALLS: dict[str, Callable[[UniRouter, Path], object]] = {
    "route": lambda router, _: whole(router.route("a poem")),
    "route among some": lambda router, _: whole(router.route("a poem", among=["poet"])),
    "route a vector": lambda router, _: whole(router.route(vector=toy_embed(["a poem"])[0])),
    "aroute": lambda router, _: whole(asyncio.run(router.aroute("a poem"))),
    "route_many": lambda router, _: list(map(whole, router.route_many(QUESTIONS))),
    "expected_errors": lambda router, _: router.expected_errors(QUESTIONS).tolist(),
    "expected_errors among some": lambda router, _: router.expected_errors(QUESTIONS, among=["poet"] * 2).tolist(),
    "choose_validation": lambda router, _: router.choose_validation(TOY_PROMPTS, 12),
    "profile": lambda router, _: profile(router),
    "repr": lambda router, _: repr(router),
    "copy": lambda router, _: copied(router),
    "save": save_and_load,
    "calibrate": lambda router, _: router.calibrate(TOY_PROMPTS, quality=0.8),
    "what_if": lambda router, _: suppose(router),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_sees_one_router(call: Callable[[UniRouter, Path], object], tmp_path: Path) -> None:
    """The old one or the new one, never a mix, at whichever of its reads the router is replaced."""
    old, new = (call(copy.copy(version(size)), tmp_path / str(size)) for size in (OLD, NEW))
    assert old != new
    seen = []
    for n in count():
        router = Interleaved(n)
        seen.append(call(router, tmp_path / f"replaced at {n}"))
        assert seen[-1] in (old, new), f"replaced at read {n}"
        if router.left < math.inf:  # it has no more reads than that
            break
    assert (seen[0], seen[-1]) == (new, old)


def test_a_calibrated_weight_belongs_to_the_clusters_it_was_computed_for() -> None:
    """Replaced before it is set, the weight is computed anew; replaced after that, it goes with the old router."""
    weights = {}
    for size in (OLD, NEW):
        calibrated = copy.copy(version(size))
        weights[calibrated.clusters.fingerprint] = calibrated.calibrate(TOY_PROMPTS, quality=0.8)
    replaced_later = (version(NEW).clusters.fingerprint, version(NEW).cost_weight)
    for n in count():
        router = Interleaved(n)
        router.calibrate(TOY_PROMPTS, quality=0.8)
        if router.left < math.inf:
            break
        router.left = math.inf
        assert (router.clusters.fingerprint, router.cost_weight) in [*weights.items(), replaced_later]


COPIES: dict[str, Callable[[UniRouter], UniRouter]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda router: pickle.loads(pickle.dumps(router)),  # noqa: S301
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_copy_shares_nothing_with_the_original(router: UniRouter, make: Callable[[UniRouter], UniRouter]) -> None:
    """It decides alike; its models, its weight, its statistics, its listeners and its learning are its own."""
    heard: list[RoutingDecision] = []
    router.subscribe(lambda decision, seconds, replaced: heard.append(decision))
    router.route_many(QUESTIONS)
    twin = make(router)
    assert twin.stats().decisions == 0
    assert twin.route_many(QUESTIONS) == heard
    twin.route("a sum")
    assert (router.stats().decisions, len(heard), twin.stats().decisions) == (4, 4, 5)
    twin.unregister("poet")
    twin.cost_weight = 5
    with twin.learn(every=1e6) as learning:
        twin.observe(twin.route("a sum", among=["abacus"]), 0)
        learning.sync()
    assert (router.models, router.cost_weight) == (("abacus", "oracle", "poet"), 0)
    assert router.route_many(QUESTIONS) == heard[:4]
    router.replace_with(version(OLD))
    assert (twin.models, twin.cost_weight) == (("abacus", "oracle"), 5)


def learn(router: UniRouter) -> None:
    with router.learn(every=1e6, half_life=1) as learning:
        for _ in range(10):
            router.observe(router.route("a poem"), 0, cost=100)
        learning.sync()


CHANGES: dict[str, Callable[[UniRouter], object]] = {
    "register": lambda router: router.register(router.profile("better", TOY_PROMPTS, toy_scores(), cost=0)),
    "unregister": lambda router: router.unregister("poet"),
    "cost weight": lambda router: setattr(router, "cost_weight", 5),
    "calibrate": lambda router: router.calibrate(TOY_PROMPTS, budget=1),
    "learn": learn,
    "replace": lambda router: router.replace_with(version(NEW)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_snapshot_does_not_see_later_changes(router: UniRouter, change: Callable[[UniRouter], object]) -> None:
    """It decides as the router did when it was taken; the router counts what it decides."""
    snapshot, some = router.snapshot(), router.snapshot(among=["poet", "oracle"])
    expected, errors = router.route_many(QUESTIONS), router.expected_errors(QUESTIONS)
    among = router.route_many(QUESTIONS, among=["poet", "oracle"])
    change(router)
    assert router.route_many(QUESTIONS) != expected
    before = router.stats().decisions
    assert snapshot.route_many(QUESTIONS) == await snapshot.aroute_many(QUESTIONS) == expected
    assert [snapshot.route(text) for text in QUESTIONS] == [await snapshot.aroute(text) for text in QUESTIONS]
    assert snapshot.route("a poem") == expected[0]
    assert snapshot.expected_errors(QUESTIONS).tolist() == errors.tolist()
    assert some.route_many(QUESTIONS) == snapshot.among(["oracle", "poet"]).route_many(QUESTIONS) == among
    assert (snapshot.models, some.models) == (("abacus", "oracle", "poet"), ("oracle", "poet"))
    assert (snapshot.cost_weight, len(snapshot.clusters), [*some.profiles]) == (0, 3, ["poet", "oracle"])
    assert router.stats().decisions == before + 25
