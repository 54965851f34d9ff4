"""The rules of one call, whichever framework makes it.

Which models may take it; which one is next after an error, a refusal or an answer that does not pass the check; what
answers when the prompt cannot be embedded; which models cool down. The rules are generators without I/O: they yield
`Embed`, `Ask` and `Check` steps, and receive the results, or the errors, of these. One driver performs the steps
synchronously, one asynchronously. So each rule is written once, as httpx writes an authentication scheme.
"""

from __future__ import annotations

import logging
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from unirouter_integrations._checks import number, one_of
from unirouter_integrations._concurrency import run_sync, run_with_timeout
from unirouter_integrations._router import UniRouter
from unirouter_integrations.core import Exclusion, LLMProfile, PromptClusters, RoutingDecision, Snapshot
from unirouter_integrations.embedding import Vectors
from unirouter_integrations.errors import InvalidInputError, NoModelError, UnknownModelError
from unirouter_integrations.grading import Example, Price, Scorer, ScorerLike, as_scorer
from unirouter_integrations.grading._models import answer_of
from unirouter_integrations.serving._capabilities import Needs, incapabilities
from unirouter_integrations.serving._failures import is_fault_of_model, is_refusal_error, is_survivable, retry_after
from unirouter_integrations.serving._health import Health
from unirouter_integrations.serving._registry import (
    ModelRegistry,
    check_price,
    declared_capabilities,
    models_now,
    noted_price,
)

T = TypeVar("T")

Fallback = bool | Literal["refusals"]

_PASSING_SCORE = 0.5
_SCORERS_WITHOUT_REFERENCE = ("confidence", "probability")

_log = logging.getLogger("unirouter_integrations")


class Framework(NamedTuple):
    """What the rules have to know of a framework.

    Attributes:
        as_model: Makes a model of what is in the dict or registry under a name, or raises an `InvalidInputError`.
        capabilities_of: What a model is capable of, in the words of LangChain's `ModelProfile`.
        is_refusal: Whether a provider reports that an answer is a refusal or was filtered.
        text_answer: The part of an answer that a check can grade; None for calls of tools, forms and streams.
        checking: Wraps the calls of a check.
    """

    as_model: Callable[[object, Any], Any]
    capabilities_of: Callable[[Any], Mapping[str, Any]]
    is_refusal: Callable[[Any], bool]
    text_answer: Callable[[Any], Any]
    checking: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class CallRequest:
    """What the rules have to know of one call.

    Attributes:
        question: The text it is judged by.
        needs: What it needs of a model.
        cost_weight: lambda; None for that of the chat model, or else the router's.
        among: The models that may take it; None for all. One model alone is forced: no other takes over.
        kept: The model that already works on the conversation. It goes on if it may and can; others only take over.
        is_in_tool_loop: Whether `kept` is in the middle of a loop of tool calls; then it goes on even if it cools down.
        noted: The decision about the same question as plain JSON, which spares the embedding if its model goes on.
        vector: The embedding of the question, `(d,)`, which spares it as well.
        surcharges: What calls of some models cost beyond their profiles.
    """

    question: str
    needs: Needs = field(default_factory=Needs)
    cost_weight: float | None = None
    among: Sequence[str] | None = None
    kept: str | None = None
    is_in_tool_loop: bool = False
    noted: Mapping[str, Any] | None = None
    vector: npt.ArrayLike | None = None
    surcharges: Mapping[str, float] = field(default_factory=dict)


class RoutedCall(NamedTuple):
    """A call whose model is chosen.

    Attributes:
        request: The call.
        decision: Which model takes it.
        models: All models as they were when it was decided.
        snapshot: The router as it was then.
    """

    request: CallRequest
    decision: RoutingDecision
    models: Mapping[str, Any]
    snapshot: Snapshot

    @property
    def model(self) -> Any:
        """The model that takes the call."""
        return self.models[self.decision.model]


class Embed(NamedTuple):
    """A step: embed these texts."""

    clusters: PromptClusters
    texts: list[str]
    timeout: float | None

    def perform(self, _: object) -> Vectors:
        """Embed them now."""
        return run_with_timeout(self.timeout, lambda: self.clusters.embed(self.texts))

    async def aperform(self, _: object) -> Vectors:
        """Async version of `perform`."""
        import asyncio

        return await asyncio.wait_for(self.clusters.aembed(self.texts), self.timeout)


class Ask(NamedTuple):
    """A step: have the chosen model answer."""

    routed: RoutedCall

    def perform(self, ask: Callable[[RoutedCall], T]) -> T:
        """Ask it now."""
        return ask(self.routed)

    async def aperform(self, ask: Callable[[RoutedCall], Awaitable[T]]) -> T:
        """Async version of `perform`."""
        return await ask(self.routed)


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


Step = Embed | Ask | Check
Rule = Generator[Step, Any, T]


@dataclass(frozen=True)
class Serving:
    """Decides and makes calls by the rules. It holds no state of its own: what models remember is in `health`.

    Attributes:
        router: The router.
        models: The models by name, a dict or a `ModelRegistry`.
        framework: What the rules have to know of the framework.
        health: The recent failures of the models.
        cost_weight: lambda; None for the router's.
        fallback: Whether the next best model takes over after an error that another model could survive;
            `"refusals"`: after a refusal as well.
        cooldown: How long a failing model cools down, in seconds.
        default: The model that answers where the prompt cannot be embedded; None to raise the error.
        embedding_timeout: Seconds after which that is so; None for no limit.
        check: Grades answers, see `as_check`; None for no check.
    """

    router: UniRouter
    models: MutableMapping[str, Any]
    framework: Framework
    health: Health
    cost_weight: float | None = None
    fallback: Fallback = True
    cooldown: float = 30.0
    default: str | None = None
    embedding_timeout: float | None = None
    check: Scorer | None = None

    def validate(self) -> None:
        """Check the settings once, when a face is made.

        Raises:
            InvalidInputError: If one of them is out of range, or a model has no profile.
        """
        check_router(self.router)
        if not isinstance(self.models, dict | ModelRegistry):
            msg = f"models should be a dict from names to models, or a ModelRegistry, not {type(self.models).__name__}."
            raise InvalidInputError(msg)
        self.models_now()
        check_profiles(self.router, self.models)
        if not self.models:
            msg = "models is empty; give at least one model."
            raise InvalidInputError(msg)
        if self.cost_weight is not None:
            number(self.cost_weight, "cost_weight")
        one_of(self.fallback, "fallback", (True, False, "refusals"))
        number(self.cooldown, "cooldown, a number of seconds,")
        if self.embedding_timeout is not None:
            number(self.embedding_timeout, "embedding_timeout, a number of seconds,", positive=True)
        if self.default is not None and self.default not in self.models:
            names = ", ".join(map(repr, self.models))
            msg = f"default should be one of the models, {names}, but is {self.default!r}."
            raise InvalidInputError(msg)

    def models_now(self) -> dict[str, Any]:
        """The models at this moment. One that is only named is made once and kept in the dict or registry."""
        models = models_now(self.models)
        for name, model in models.items():
            made = self.framework.as_model(name, model)
            if made is not model:
                models[name] = self.models[name] = made
        return models

    def register(self, name: str, model: Any, profile: LLMProfile, price: Price | None = None) -> None:
        """Let a new model take part from now on, or replace one. All is checked before anything changes.

        Args:
            name: Its name.
            model: The model, as the framework takes it.
            profile: Its profile under the same name.
            price: Its price, for a `ModelRegistry`; None for the one in the profile's metadata.

        Raises:
            InvalidInputError: If the profile is of another name or of other clusters, or it is no model.
        """
        made = self.framework.as_model(name, model)
        if not isinstance(profile, LLMProfile) or profile.name != name:
            found = repr(profile) if isinstance(profile, LLMProfile) else type(profile).__name__
            msg = f"{name!r} needs its own profile (router.profile({name!r}, ...) makes it), not {found}."
            raise InvalidInputError(msg)
        if price is not None and not isinstance(self.models, ModelRegistry):
            msg = f"A dict of models has no place for the price of {name!r}; give models=ModelRegistry(...)."
            raise InvalidInputError(msg)
        check_price(name, price)
        if price is None and self.models.get(name) is not made:  # the price of the model before it is not its own
            price = noted_price(profile)
        self.router.register(profile)  # first: it takes part only once its model is there as well
        if isinstance(self.models, ModelRegistry):
            self.models.register(name, made, price=price)
        else:
            self.models[name] = made

    def unregister(self, name: str) -> None:
        """Take a model out of every decision from now on. Calls that already chose it are finished by it.

        Raises:
            UnknownModelError: If no model of that name is registered.
        """
        self.router.unregister(name)
        with suppress(KeyError):
            del self.models[name]

    def decide(self, requests: Sequence[CallRequest]) -> list[RoutedCall]:
        """Choose a model for each of some calls, with one call of the embedder.

        Raises:
            NoModelError: If no model may and can take one of them.
        """
        return _drive(self._decide(requests), None)

    async def adecide(self, requests: Sequence[CallRequest]) -> list[RoutedCall]:
        """Async version of `decide`."""
        return await _adrive(self._decide(requests), None)

    def call(self, routed: RoutedCall, ask: Callable[[RoutedCall], T]) -> tuple[RoutedCall, T]:
        """Have the chosen model answer, or the next one if it fails, refuses or does not pass the check.

        Args:
            routed: The call.
            ask: Has the model of a routed call answer.

        Returns:
            The call as it was answered in the end, and the answer.
        """
        return _drive(self._call(routed), ask)

    async def acall(self, routed: RoutedCall, ask: Callable[[RoutedCall], Awaitable[T]]) -> tuple[RoutedCall, T]:
        """Async version of `call`."""
        return await _adrive(self._call(routed), ask)

    def stream(self, routed: RoutedCall, open_stream: Callable[[RoutedCall], Iterator[T]]) -> Generator[T, None, None]:
        """Stream the answer of the chosen model, or of the next one if it fails before its first part.

        The first part has arrived when this returns.
        """

        def opened(routed: RoutedCall) -> tuple[list[T], Iterator[T]]:
            parts = open_stream(routed)
            return list(islice(parts, 1)), parts

        first, rest = self.call(routed, opened)[1]
        return _chained(first, rest)

    async def astream(
        self, routed: RoutedCall, open_stream: Callable[[RoutedCall], Awaitable[AsyncGenerator[T, None]]]
    ) -> AsyncGenerator[T, None]:
        """Async version of `stream`. Closed early, the returned generator closes the model's stream at once."""

        async def opened(routed: RoutedCall) -> tuple[list[T], AsyncGenerator[T, None]]:
            parts = await open_stream(routed)
            try:
                return [await anext(parts)], parts
            except StopAsyncIteration:
                return [], parts
            except BaseException:
                await parts.aclose()
                raise

        first, rest = (await self.acall(routed, opened))[1]
        return _achained(first, rest)

    def _decide(self, requests: Sequence[CallRequest]) -> Rule[list[RoutedCall]]:
        models, snapshot = self.models_now(), self.router.snapshot()  # one version of both, however long it takes
        terms = [self._terms(request, models, snapshot) for request in requests]
        restored = {row: _restored(request, terms[row], snapshot) for row, request in enumerate(requests)}
        decisions = {row: decision for row, decision in restored.items() if decision is not None}
        open_rows = [row for row in range(len(requests)) if row not in decisions]
        vectors: dict[int, Any] = {row: requests[row].vector for row in open_rows}
        to_embed = [row for row in open_rows if vectors[row] is None]
        if to_embed:
            try:
                texts = [requests[row].question for row in to_embed]
                embedded = yield Embed(snapshot.clusters, texts, self.embedding_timeout)
            except Exception as error:
                if self.default is None and any(terms[row].kept is None for row in to_embed):
                    raise
                embedded = np.zeros((len(to_embed), snapshot.clusters.dimension), np.float32)
                for row in to_embed:
                    terms[row] = self._without_embedding(terms[row], error)
            vectors |= dict(zip(to_embed, embedded, strict=True))
        groups: dict[tuple[Any, ...], list[int]] = {}  # calls on the same terms are decided together
        for row in open_rows:
            groups.setdefault((terms[row].among, terms[row].cost_weight, terms[row].surcharges), []).append(row)
        for (among, weight, surcharges), rows in groups.items():
            candidates = snapshot.among(among).with_surcharges(dict(surcharges))
            found = candidates.route_many(vectors=[vectors[row] for row in rows], cost_weight=weight)
            decisions |= {row: _on(terms[row], decision) for row, decision in zip(rows, found, strict=True)}
        return [RoutedCall(request, decisions[row], models, snapshot) for row, request in enumerate(requests)]

    def _terms(self, request: CallRequest, models: Mapping[str, Any], snapshot: Snapshot) -> _Terms:
        """Which models may take a call, and on what terms.

        Raises:
            NoModelError: If no model may and can take it.
        """
        names = _allowed(request, models, snapshot)
        reasons = incapabilities({name: self._capabilities(name, models[name]) for name in names}, request.needs)
        excluded = [Exclusion(name, "incapable", reason) for name, reason in reasons.items()]
        names = [name for name in names if name not in reasons]
        if not names:
            why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            msg = f"None of the models can take this call. {why}. Register one that can."
            raise NoModelError(msg)
        cooling = self.health.cooling_down(names)
        kept = request.kept if request.kept in names else None
        if kept in cooling and not request.is_in_tool_loop:
            kept = None
        healthy = [name for name in names if name not in cooling or name == kept]
        if cooling and healthy:
            excluded += [
                Exclusion(name, "cooling_down", f"it failed recently and is cooling down for {seconds:.0f} s")
                for name, seconds in cooling.items()
                if name != kept
            ]
            names = healthy
        weight = self.cost_weight if request.cost_weight is None else request.cost_weight
        return _Terms(
            snapshot.cost_weight if weight is None else number(weight, "cost_weight"),
            tuple(names),
            tuple(excluded),
            tuple(request.surcharges.items()),
            kept,
        )

    def _without_embedding(self, terms: _Terms, error: Exception) -> _Terms:
        """The terms of a call whose prompt could not be embedded: unless a model is kept, the default one answers."""
        if terms.kept is not None or self.default not in terms.among:
            return terms
        reason = f"the prompt could not be embedded ({type(error).__name__})"
        others = (Exclusion(name, "not_embedded", reason) for name in terms.among if name != self.default)
        return terms._replace(among=(self.default,), excluded=(*terms.excluded, *others))

    def _call(self, routed: RoutedCall) -> Rule[tuple[RoutedCall, Any]]:
        standing: tuple[RoutedCall, Any] | None = None  # an answer that is doubted, in case that no better one comes
        while True:
            name = routed.decision.model
            self.health.start_call(name, self.cooldown)
            following: RoutedCall | None
            try:
                answer = yield Ask(routed)
            except Exception as error:
                following = self._after_failure(routed, error)
                if following is None:
                    if standing is None:
                        raise
                    return standing
            else:
                self.health.succeeded(name)
                following = self._after_refusal(routed, answer)
                if following is None and self.check is not None and routed.decision.better:
                    graded = self.framework.text_answer(answer)
                    if graded is not None and not (yield Check(self.check, graded, routed, self.framework.checking)):
                        following = self._after_rejection(routed)
                if following is None:
                    return routed, answer
                standing = routed, answer
            routed = following

    def _after_failure(self, routed: RoutedCall, error: Exception) -> RoutedCall | None:
        """The call as the next best model takes it; None if none is left, or no model could answer it."""
        is_refused = self.fallback == "refusals" and is_refusal_error(error)
        if not self.fallback or not (is_survivable(error) or is_refused):
            return None
        name = routed.decision.model
        if is_fault_of_model(error):
            self.health.failed(name, self.cooldown, retry_after(error))
        return _rerouted(routed, Exclusion(name, "failed", f"it failed with {type(error).__name__}"))

    def _after_refusal(self, routed: RoutedCall, answer: object) -> RoutedCall | None:
        """The call as the next best model takes it after a refusal, if that is asked for."""
        if self.fallback != "refusals" or not self.framework.is_refusal(answer):
            return None
        return _rerouted(routed, Exclusion(routed.decision.model, "refused", "it refused"))

    def _after_rejection(self, routed: RoutedCall) -> RoutedCall | None:
        """The call as the next model takes it that is expected to err less."""
        exclusion = Exclusion(routed.decision.model, "rejected", "its answer did not pass")
        return _rerouted(routed, exclusion, routed.decision.better)

    def _capabilities(self, name: str, model: Any) -> Mapping[str, Any]:
        return {**self.framework.capabilities_of(model), **declared_capabilities(name, self.models)}


class _Terms(NamedTuple):
    """On what terms a call is decided."""

    cost_weight: float
    among: tuple[str, ...]
    excluded: tuple[Exclusion, ...]
    surcharges: tuple[tuple[str, float], ...]
    kept: str | None


def as_check(escalate: ScorerLike | None) -> Scorer | None:
    """Make the scorer that checks answers; None for none.

    Raises:
        InvalidInputError: If it is no scorer, or one that needs a reference.
    """
    if escalate is None:
        return None
    scorer = as_scorer(escalate)
    if isinstance(escalate, str) and escalate not in _SCORERS_WITHOUT_REFERENCE:
        names = " or ".join(_SCORERS_WITHOUT_REFERENCE)
        msg = f"The scorer {escalate!r} needs a reference, which a call does not have; escalate by {names}."
        raise InvalidInputError(msg)
    return scorer


def check_router(router: object) -> None:
    """Raise an `InvalidInputError` if this is no router."""
    if not isinstance(router, UniRouter):
        msg = f"router should be a UniRouter (UniRouter.load(path) makes one of a folder), not {type(router).__name__}."
        raise InvalidInputError(msg)


def check_profiles(router: UniRouter, names: Iterable[str]) -> None:
    """Raise an `InvalidInputError` if the router has no profile of one of these models."""
    check_router(router)
    missing = [name for name in names if name not in router.profiles]
    if missing:
        msg = (
            f"The router has no profile of {', '.join(map(repr, missing))}; it has {list(router.models)}. "
            "Register one first: router.register(router.profile(name, prompts, scores, cost=...))."
        )
        raise InvalidInputError(msg)


def health_of(models: object) -> Health:
    """The health of the models: a registry's own, which all its users share, or a new one."""
    return models.health if isinstance(models, ModelRegistry) else Health()


def _allowed(request: CallRequest, models: Mapping[str, Any], snapshot: Snapshot) -> list[str]:
    """The models that may take a call. A model takes part once it has both an object and a profile."""
    if request.among is None:
        names = [name for name in models if name in snapshot.profiles]
    else:
        unknown = [name for name in request.among if name not in models]
        if unknown:
            msg = f"There is no model {unknown[0]!r}; the models are {', '.join(map(repr, models)) or 'none'}."
            raise UnknownModelError(msg)
        names = list(request.among)
        snapshot.pool.check(names)
    if not names:
        msg = (
            "There is no model to choose from. Register one: a model takes part once it has both an object and a "
            "profile in the router."
        )
        raise NoModelError(msg)
    return names


def _restored(request: CallRequest, terms: _Terms, snapshot: Snapshot) -> RoutingDecision | None:
    """The decision that was noted about the question, if its model goes on."""
    if request.noted is None or terms.kept is None or terms.kept != request.noted.get("model"):
        return None
    decision = snapshot.among(terms.among).restore(request.noted)
    return None if decision is None else replace(decision, excluded=terms.excluded)


def _on(terms: _Terms, decision: RoutingDecision) -> RoutingDecision:
    """A decision with what the terms say beyond its candidates."""
    if terms.kept is not None:
        decision = decision.keeping(terms.kept)
    return replace(decision, excluded=terms.excluded) if terms.excluded else decision


def _rerouted(routed: RoutedCall, exclusion: Exclusion, among: Sequence[str] | None = None) -> RoutedCall | None:
    decision = routed.snapshot.reroute(routed.decision, exclusion, among)
    return None if decision is None else routed._replace(decision=decision)


def _drive(rule: Rule[T], ask: Any) -> T:
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


async def _adrive(rule: Rule[T], ask: Any) -> T:
    """Async version of `_drive`."""
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


def _chained(first: list[T], rest: Iterator[T]) -> Generator[T, None, None]:
    try:
        yield from first
        yield from rest
    finally:
        close = getattr(rest, "close", None)
        if close is not None:
            close()


async def _achained(first: list[T], rest: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    try:
        for part in first:
            yield part
        async for part in rest:
            yield part
    finally:
        await rest.aclose()
