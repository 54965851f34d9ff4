"""The rules of one call, whichever framework makes it.

Which models may take it; which one is next after an error, a refusal or an answer that does not pass the check; what
answers when the prompt cannot be embedded; which models cool down. The rules are generators without I/O: they yield
`Embed`, `Ask` and `Check` steps, and receive the results, or the errors, of these. One driver performs the steps
synchronously, one asynchronously. So each rule is written once, as httpx writes an authentication scheme.
"""

from __future__ import annotations

import logging
import time
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
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np

from unirouter_integrations._checks import number, one_of, shown, whole_number
from unirouter_integrations._concurrency import run_with_timeout
from unirouter_integrations._router import UniRouter
from unirouter_integrations.core import Exclusion, LLMProfile, RoutingDecision, Snapshot
from unirouter_integrations.errors import InvalidInputError, NoModelError, StreamCutError, UnknownModelError
from unirouter_integrations.grading import Price, Scorer, ScorerLike, Usage, as_scorer
from unirouter_integrations.serving._capabilities import incapabilities
from unirouter_integrations.serving._failures import FAULTS_OF_MODEL, classify, retry_after
from unirouter_integrations.serving._health import Health, TrackedCall
from unirouter_integrations.serving._record import RecordedCall, current_records
from unirouter_integrations.serving._registry import (
    ModelRegistry,
    check_price,
    declared_capabilities,
    models_now,
    noted_price,
    price_of_model,
)
from unirouter_integrations.serving._steps import (
    Ask,
    CallRequest,
    Check,
    Embed,
    Framework,
    Hedge,
    Read,
    RoutedCall,
    Rule,
    adrive,
    drive,
)
from unirouter_integrations.serving._streams import OpenStream

T = TypeVar("T")

Fallback = bool | Literal["refusals"] | Callable[[Exception], bool]
OnCut = Literal["raise", "continue", "restart"]

_CAPABILITIES_SECONDS = 30.0  # for which it is known what a model says of itself
_GONE_COOLDOWN_SECONDS = 60.0  # of a model whose key, name or quota is refused
_SCORERS_WITHOUT_REFERENCE = ("confidence", "probability")

_log = logging.getLogger("unirouter_integrations")


@dataclass(frozen=True)
class Serving:
    """Decides and makes calls by the rules. It holds no state of its own: what models remember is in `health`.

    Attributes:
        router: The router.
        models: The models by name, a dict or a `ModelRegistry`.
        framework: What the rules have to know of the framework.
        health: The recent failures of the models.
        cost_weight: lambda; None for the router's.
        fallback: Whether the next model takes over after an error that is not the caller's own; `"refusals"`: after a
            refusal as well; or a function of the error that says so.
        cooldown: How long a failing model cools down at first, in seconds.
        default: The model that answers where the prompt cannot be embedded; None to raise the error.
        embedding_timeout: Seconds after which that is so; None for no limit.
        escalate: Grades answers, see `as_check`; None for no check.
        timeout: Seconds that one model may take to answer, and between two parts of its stream; None for no limit.
        first_token_timeout: Seconds until the first content of a stream; None for no limit.
        deadline: Seconds that the whole call may take; None for no limit.
        max_attempts: How many models may be asked for one call; None for all.
        max_cost: What the whole call may be expected to cost, in the unit of the profiles; None for no limit.
        hedge: Whether a second model is asked as well when an answer takes longer than 95% of its model's answers.
        on_cut: What becomes of a stream that breaks after its first text: its error is raised, or the next model
            continues the text, or starts again.
    """

    router: UniRouter
    models: MutableMapping[str, Any]
    framework: Framework
    health: Health
    cost_weight: float | None = None
    fallback: Fallback = True
    cooldown: float = 5.0
    default: str | None = None
    embedding_timeout: float | None = 10.0
    escalate: Scorer | None = None
    timeout: float | None = 300.0
    first_token_timeout: float | None = 120.0
    deadline: float | None = None
    max_attempts: int | None = None
    max_cost: float | None = None
    hedge: bool = False
    on_cut: OnCut = "raise"

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
        if not callable(self.fallback):
            one_of(self.fallback, "fallback, if it is no function,", (True, False, "refusals"))
        number(self.cooldown, "cooldown, a number of seconds,")
        for name in ("embedding_timeout", "timeout", "first_token_timeout", "deadline"):
            if getattr(self, name) is not None:
                number(getattr(self, name), f"{name}, a number of seconds,", positive=True)
        if self.max_attempts is not None:
            whole_number(self.max_attempts, "max_attempts", low=1)
        if self.max_cost is not None:
            number(self.max_cost, "max_cost", positive=True)
        one_of(self.hedge, "hedge", (True, False))
        one_of(self.on_cut, "on_cut", get_args(OnCut))
        if self.default is not None and self.default not in self.models:
            names = ", ".join(map(repr, self.models))
            msg = f"default should be one of the models, {names}, but is {shown(self.default)}."
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
            msg = f"{shown(name)} needs its own profile (router.profile({shown(name)}, ...) makes it), not {found}."
            raise InvalidInputError(msg)
        if price is not None and not isinstance(self.models, ModelRegistry):
            msg = f"A dict of models has no place for the price of {shown(name)}; give models=ModelRegistry(...)."
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
        return drive(self._decide(requests), None)

    async def adecide(self, requests: Sequence[CallRequest]) -> list[RoutedCall]:
        """Async version of `decide`."""
        return await adrive(self._decide(requests), None)

    def call(self, routed: RoutedCall, ask: Callable[[RoutedCall], T]) -> tuple[RoutedCall, T]:
        """Have the chosen model answer, or the next one if it fails, refuses or does not pass the check.

        Args:
            routed: The call.
            ask: Has the model of a routed call answer.

        Returns:
            The call as it was answered in the end, and the answer.
        """
        routed, answer, _ = drive(self._call(routed), ask)
        return routed, answer

    async def acall(self, routed: RoutedCall, ask: Callable[[RoutedCall], Awaitable[T]]) -> tuple[RoutedCall, T]:
        """Async version of `call`."""
        routed, answer, _ = await adrive(self._call(routed), ask)
        return routed, answer

    def stream(
        self, routed: RoutedCall, open_stream: Callable[[RoutedCall], Iterator[T]]
    ) -> tuple[RoutedCall, Generator[T, None, None]]:
        """Stream the answer of the chosen model, or of the next one if it fails before its first content.

        The first content has arrived when this returns. A stream that breaks later raises its error, with the text so
        far as its `partial_text`, unless `on_cut` has the next model go on. One that ends without saying so breaks
        with a `StreamCutError`.

        Args:
            routed: The call.
            open_stream: Has the model of a routed call answer, after its `text_before` if it has any.

        Returns:
            The call as it began to be answered, and the parts of the answer.
        """
        parts: Any = self._parts(routed, open_stream)
        return next(parts), parts  # from here on the end of the parts is noted, even if nobody reads them

    async def astream(
        self, routed: RoutedCall, open_stream: Callable[[RoutedCall], Awaitable[AsyncGenerator[T, None]]]
    ) -> tuple[RoutedCall, AsyncGenerator[T, None]]:
        """Async version of `stream`. Closed early, the returned generator closes the model's stream at once."""
        parts: Any = self._aparts(routed, open_stream)
        return await anext(parts), parts

    def _parts(
        self, call: RoutedCall | None, open_stream: Callable[[RoutedCall], Iterator[T]]
    ) -> Generator[T | RoutedCall, None, None]:
        """The parts of a stream, after the call as it began to be answered."""

        def opened(routed: RoutedCall) -> OpenStream[T]:
            stream = self._stream(routed).hold(lambda: open_stream(routed))
            return _with_content_or_end(routed, stream)

        has_begun = False
        while call is not None:
            with _keeping(call.partial_text):
                routed, stream, tracked = drive(self._call(call, is_stream=True), opened)
            try:
                if not has_begun:
                    has_begun = True
                    yield routed
                yield from stream.parts
                while True:
                    try:
                        part = run_with_timeout(self._limit_of_part(routed, stream), stream.read)
                    except Exception as error:  # noqa: BLE001  # the rule decides what becomes of it
                        call = self._after_break(routed, stream, tracked, error)
                        break
                    if part is None:
                        call = self._after_end(routed, stream, tracked)
                        break
                    yield part
            finally:
                self.health.abandoned(tracked)  # if it has no verdict yet, because the caller closed the stream
                stream.close()

    async def _aparts(
        self, call: RoutedCall | None, open_stream: Callable[[RoutedCall], Awaitable[AsyncGenerator[T, None]]]
    ) -> AsyncGenerator[T | RoutedCall, None]:
        """Async version of `_parts`."""
        import asyncio

        async def opened(routed: RoutedCall) -> OpenStream[T]:
            stream = await self._stream(routed).ahold(await open_stream(routed))
            return _with_content_or_end(routed, stream)

        has_begun = False
        while call is not None:
            with _keeping(call.partial_text):
                routed, stream, tracked = await adrive(self._call(call, is_stream=True), opened)
            try:
                if not has_begun:
                    has_begun = True
                    yield routed
                for part in stream.parts:
                    yield part
                while True:
                    try:
                        async with asyncio.timeout(self._limit_of_part(routed, stream)):
                            following = await stream.aread()
                    except Exception as error:  # noqa: BLE001  # the rule decides what becomes of it
                        call = self._after_break(routed, stream, tracked, error)
                        break
                    if following is None:
                        call = self._after_end(routed, stream, tracked)
                        break
                    yield following
            finally:
                self.health.abandoned(tracked)
                await stream.aclose()

    def _stream(self, routed: RoutedCall) -> OpenStream[Any]:
        return OpenStream(self.framework.describe, self.framework.usage_of if routed.records else None)

    def _record(self, routed: RoutedCall, tracked: TrackedCall, usage: Usage | None) -> None:
        """Record an answer, if anybody wants to know."""
        price = price_of_model(routed.decision.model, self.models, routed.snapshot.profiles)
        usd = None if usage is None or price is None else price.cost(usage)
        call = RecordedCall(routed.decision, self.health.seconds_since(tracked), usage, usd)
        for each in routed.records:
            each.append(call)

    def _limit_of_part(self, routed: RoutedCall, stream: OpenStream[Any]) -> float | None:
        """How many seconds the next part may take; None for no limit.

        Raises:
            TimeoutError: If the deadline of the call is over, and the answer is not.
        """
        left = None if stream.is_finished else _seconds_left(routed)
        if left == 0:
            msg = f"The deadline of the call, {self.deadline:g} s, is over."
            raise TimeoutError(msg)
        return _least(self.timeout, left)

    def _after_end(self, routed: RoutedCall, stream: OpenStream[Any], tracked: TrackedCall) -> RoutedCall | None:
        """Give the verdict on a stream that has ended. If it was cut, it broke."""
        if stream.is_cut:
            return self._after_break(routed, stream, tracked, StreamCutError(routed.decision.model))
        self.health.succeeded(tracked, stream.seconds_to_content)
        if routed.records:
            self._record(routed, tracked, self.framework.total_usage(stream.usages) if stream.usages else None)
        return None

    def _after_break(
        self, routed: RoutedCall, stream: OpenStream[Any], tracked: TrackedCall, error: Exception
    ) -> RoutedCall:
        """The call as the next model goes on with it after a stream broke.

        Raises:
            Exception: The error, with the text so far as its `partial_text`, if none is to go on, or none can.
        """
        text = routed.text_before + stream.partial_text
        following = self._after_failure(routed, tracked, error, goes_on=self._can_go_on(routed, stream))
        following = self._next(following)
        if following is None:
            with _keeping(text):
                raise error
        return following._replace(partial_text=text, on_cut=self.on_cut)

    def _can_go_on(self, routed: RoutedCall, stream: OpenStream[Any]) -> bool:
        """Whether another model is to go on with a stream, and can: it broke within a text, not in a call of a tool."""
        return (
            self.on_cut != "raise" and routed.request.can_go_on and bool(stream.partial_text) and not stream.calls_tool
        )

    def _decide(self, requests: Sequence[CallRequest]) -> Rule[list[RoutedCall]]:
        records = current_records()
        models, snapshot = self.models_now(), self.router.snapshot()  # one version of both, however long it takes
        stated: dict[str, Any] = {name: self.health.capabilities(name, model) for name, model in models.items()}
        unknown = [name for name, known in stated.items() if known is None]
        if unknown:
            stated |= yield Read(lambda: {name: self._read_capabilities(name, models[name]) for name in unknown})
        terms = [self._terms(request, models, stated, snapshot) for request in requests]
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
            conditions = terms[row].among, terms[row].cost_weight, terms[row].surcharges, requests[row].max_error
            groups.setdefault(conditions, []).append(row)
        for (among, weight, surcharges, max_error), rows in groups.items():
            candidates, known = snapshot.among(among).with_surcharges(dict(surcharges)), [vectors[row] for row in rows]
            found = candidates.route_many(vectors=known, cost_weight=weight, max_error=max_error)
            decisions |= {row: _on(terms[row], decision) for row, decision in zip(rows, found, strict=True)}
        return [
            RoutedCall(
                request,
                decisions[row],
                models,
                snapshot.with_surcharges(request.surcharges),
                (*_above_max_error(decisions[row]), *terms[row].reserve),
                records=records,
            )
            for row, request in enumerate(requests)
        ]

    def _terms(
        self, request: CallRequest, models: Mapping[str, Any], stated: Mapping[str, Any], snapshot: Snapshot
    ) -> _Terms:
        """Which models may take a call, and on what terms.

        Raises:
            NoModelError: If no model may and can take it.
        """
        names = _allowed(request, models, snapshot)
        able = {name: {**stated[name], **declared_capabilities(name, self.models)} for name in names}
        reasons = incapabilities(able, request.needs)
        excluded = [Exclusion(name, "incapable", reason) for name, reason in reasons.items()]
        names = [name for name in names if name not in reasons]
        limit = self._max_cost(request)
        if limit is not None:
            costs = {name: snapshot.profiles[name].cost + request.surcharges.get(name, 0.0) for name in names}
            above = {name: f"its cost, {cost:.3g}, is above max_cost" for name, cost in costs.items() if cost > limit}
            excluded += [Exclusion(name, "too_expensive", reason) for name, reason in above.items()]
            names, reasons = [name for name in names if name not in above], reasons | above
        if not names:
            why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            msg = f"None of the models can take this call. {why}. Register one that can."
            raise NoModelError(msg)
        cooling = self.health.cooling_down(names)
        kept = request.kept if request.kept in names else None
        if kept in cooling and not request.is_in_tool_loop:
            kept = None
        reserve = [name for name in sorted(cooling, key=cooling.__getitem__) if name != kept]
        excluded += [_cooling_down(name, cooling[name]) for name in reserve]
        names = [name for name in names if name not in reserve]
        weight = self.cost_weight if request.cost_weight is None else request.cost_weight
        return _Terms(
            snapshot.cost_weight if weight is None else number(weight, "cost_weight"),
            tuple(names),
            tuple(excluded),
            tuple(request.surcharges.items()),
            kept,
            tuple(reserve),
        )

    def _without_embedding(self, terms: _Terms, error: Exception) -> _Terms:
        """The terms of a call whose prompt could not be embedded: unless a model is kept, the default one answers."""
        if terms.kept is not None or self.default not in terms.among:
            return terms
        reason = f"the prompt could not be embedded ({type(error).__name__})"
        others = (Exclusion(name, "not_embedded", reason) for name in terms.among if name != self.default)
        reserve = tuple(name for name in (*terms.among, *terms.reserve) if name != self.default)
        return terms._replace(among=(self.default,), excluded=(*terms.excluded, *others), reserve=reserve)

    def _call(self, routed: RoutedCall, *, is_stream: bool = False) -> Rule[tuple[RoutedCall, Any, TrackedCall]]:
        standing: tuple[RoutedCall, Any, TrackedCall] | None = None  # a doubted answer, until a better one comes
        limit = self.first_token_timeout if is_stream else self.timeout
        routed = self._fresh(routed)
        if routed.ends_at is None and self.deadline is not None:
            routed = routed._replace(ends_at=time.monotonic() + self.deadline)
        following: RoutedCall | None = routed
        while following is not None:
            routed, tracked, ask = self._begin(following, limit)
            try:
                after = self._hedges_after(routed)
                if after is None:
                    answer = yield ask
                else:
                    routed, tracked, answer = yield from self._hedged(ask, tracked, limit, after)
                    if isinstance(answer, Exception):
                        raise answer  # noqa: TRY301  # as if it had been asked alone
            except GeneratorExit:  # cancelled
                self.health.abandoned(tracked)
                raise
            except Exception as error:
                text = routed.seen()
                following = self._next(self._after_failure(routed, tracked, error, goes_on=not text))
                if following is None and standing is None:
                    with _keeping(text):
                        raise
            else:
                following = self._next((yield from self._after_answer(routed, tracked, answer)))
                standing = routed, answer, tracked
        assert standing is not None  # noqa: S101  # otherwise the last error was raised
        return standing

    def _begin(self, routed: RoutedCall, limit: float | None) -> tuple[RoutedCall, TrackedCall, Ask]:
        """Count an attempt of a call, and make the step that has its model answer."""
        spent = routed.spent + routed.decision.expected_cost
        routed = routed._replace(attempts=routed.attempts + 1, spent=spent)
        name = routed.decision.model
        hanging = self.health._hanging(name)  # noqa: SLF001  # what hangs is no part of its door
        step = Ask(routed, _least(limit, _seconds_left(routed)), hanging)
        return routed, self.health.start(name), step

    def _hedges_after(self, routed: RoutedCall) -> float | None:
        """After how many seconds a second model is asked as well; None if none is."""
        request = routed.request
        may_act = request.is_in_tool_loop or "tool_calling" in request.needs.capabilities
        if not self.hedge or not request.may_repeat or may_act:
            return None
        return self.health.usual_limit(routed.decision.model)

    def _hedged(
        self, ask: Ask, tracked: TrackedCall, limit: float | None, after: float
    ) -> Rule[tuple[RoutedCall, TrackedCall, Any]]:
        """Ask a model, and a second one if it takes long. Returns the call that counts, and its answer or error."""
        begun = [(ask.routed, tracked)]

        def second() -> Ask | None:
            slow = Exclusion(ask.routed.decision.model, "slow", "it took longer than 95% of its answers")
            following = self._next(_rerouted(ask.routed, slow)) if self.health.hedge() else None
            if following is None:
                return None
            routed, tracked, step = self._begin(following, limit)
            begun.append((routed, tracked))
            return step

        try:
            ended = yield Hedge(ask, after, second)
        except GeneratorExit:
            for _, each in begun:
                self.health.abandoned(each)
            raise
        outcomes = dict(ended)
        index = ended[-1][0]
        if len(outcomes) > 1 and isinstance(outcomes[index], Exception):
            index = 1  # both failed: the call goes on from the second, which knows of the first
        for which, (asked, its_call) in enumerate(begun):
            if which not in outcomes:
                self.health.abandoned(its_call)  # it is cancelled
            elif which != index:
                self._after_failure(asked, its_call, outcomes[which], goes_on=False)
        routed, counting = begun[index]
        return routed._replace(spent=begun[-1][0].spent, attempts=begun[-1][0].attempts), counting, outcomes[index]

    def _fresh(self, routed: RoutedCall) -> RoutedCall:
        """The call with the health of now: since it was decided, as one of many, its model may have begun to fail."""
        decision, request = routed.decision, routed.request
        names = (*decision.pool.names, *routed.reserve)
        cooling = self.health.cooling_down(names)
        if decision.model not in cooling or (request.kept == decision.model and request.is_in_tool_loop):
            return routed
        healthy = [name for name in names if name not in cooling]
        if not healthy:
            return routed
        following = _rerouted(routed, _cooling_down(decision.model, cooling[decision.model]), healthy)
        reserve = tuple(sorted(cooling, key=cooling.__getitem__))
        return routed if following is None else following._replace(reserve=reserve)

    def _next(self, following: RoutedCall | None) -> RoutedCall | None:
        """The call as the next model takes it that the limits and the retry budget allow; None if there is none."""
        if following is None or (self.max_attempts is not None and following.attempts >= self.max_attempts):
            return None
        if following.ends_at is not None and time.monotonic() >= following.ends_at:
            return None
        limit = self._max_cost(following.request)
        while following is not None:
            decision = following.decision
            if limit is not None and following.spent + decision.expected_cost > limit:
                skipped = Exclusion(decision.model, "too_expensive", "with the models before it, it is above max_cost")
            elif self.health.retry(decision.model):
                return following
            else:
                skipped = Exclusion(decision.model, "cooling_down", "it is cooling down, and the retry budget is spent")
            following = _rerouted(following, skipped)
        return None

    def _max_cost(self, request: CallRequest) -> float | None:
        return self.max_cost if request.max_cost is None else request.max_cost

    def _after_failure(
        self, routed: RoutedCall, tracked: TrackedCall, error: Exception, *, goes_on: bool = True
    ) -> RoutedCall | None:
        """The call as the next model takes it; None if none is to, none is left, or the error is the caller's own."""
        failure, name = classify(error), routed.decision.model
        if failure == "gone":
            if self.health.failed(tracked, cooldown=self.cooldown, retry_after=_GONE_COOLDOWN_SECONDS):
                _log.warning("%s is not available (%s); it is tried last for a while.", name, type(error).__name__)
        elif failure in FAULTS_OF_MODEL:
            self.health.failed(tracked, cooldown=self.cooldown, retry_after=retry_after(error))
        else:
            self.health.abandoned(tracked)
        if not goes_on:
            return None
        if callable(self.fallback):
            survives = self.fallback(error)
        else:
            survives = failure != "request" and (failure != "refused" or self.fallback == "refusals")
        if not (self.fallback and survives):
            return None
        if failure == "unparsed":
            return self._better(routed, f"its answer did not fit the form ({type(error).__name__})")
        kind: Any = "refused" if failure == "refused" else "failed"
        return _rerouted(routed, Exclusion(name, kind, f"it failed with {type(error).__name__}"))

    def _after_answer(self, routed: RoutedCall, tracked: TrackedCall, answer: object) -> Rule[RoutedCall | None]:
        """The call as the next model takes it after an answer that is empty, refused or rejected by the check."""
        name = routed.decision.model
        if isinstance(answer, OpenStream) and answer.has_content:
            return None  # its verdict comes at its end
        self.health.succeeded(tracked)
        if routed.records:
            self._record(routed, tracked, self.framework.usage_of(answer))
        if self.fallback and not routed.seen():
            is_empty = isinstance(answer, OpenStream) or self.framework.is_empty(answer)
            refused = (is_empty or self.fallback == "refusals") and self._is_refusal(answer)
            following: RoutedCall | None = None
            if refused and self.fallback == "refusals":
                following = _rerouted(routed, Exclusion(name, "refused", "it refused"))
            elif is_empty and not refused:
                following = _rerouted(routed, Exclusion(name, "failed", "its answer was empty"))
            if following is not None:
                return following
        if self.escalate is None or not routed.decision.better:
            return None
        graded = self.framework.text_answer(answer)
        if graded is None or (yield Check(self.escalate, graded, routed, self.framework.checking)):
            return None
        return self._better(routed, "its answer did not pass")

    def _better(self, routed: RoutedCall, reason: str) -> RoutedCall | None:
        """The call as the next model takes it that is expected to err less; None if none is."""
        rejected = Exclusion(routed.decision.model, "rejected", reason)
        return _rerouted(routed._replace(reserve=()), rejected, routed.decision.better)

    def _is_refusal(self, answer: object) -> bool:
        return answer.is_refused if isinstance(answer, OpenStream) else self.framework.is_refusal(answer)

    def _read_capabilities(self, name: str, model: Any) -> Mapping[str, Any]:
        """Note what a model says of itself. If it cannot say it, it is asked last, as if it had failed."""
        stated: Mapping[str, Any] = {}
        seconds = _CAPABILITIES_SECONDS
        try:
            stated = self.framework.capabilities_of(model)
        except Exception as error:  # noqa: BLE001  # it must not take every call with it
            _log.warning("What %s is capable of cannot be read (%s).", name, type(error).__name__)
            seconds = self.cooldown
            self.health.failed(self.health.start(name), cooldown=self.cooldown, retry_after=self.cooldown)
        self.health.note_capabilities(name, model, stated, seconds)
        return stated


SETTINGS = tuple(each.name for each in fields(Serving) if each.default is not MISSING)
"""The names of the settings of calls, which all faces share."""


def settings_of(face: object) -> dict[str, Any]:
    """The settings of calls that a face has as its attributes."""
    return {name: getattr(face, name) for name in SETTINGS if hasattr(face, name)}  # some have no such setting


class _Terms(NamedTuple):
    """On what terms a call is decided."""

    cost_weight: float
    among: tuple[str, ...]
    excluded: tuple[Exclusion, ...]
    surcharges: tuple[tuple[str, float], ...]
    kept: str | None
    reserve: tuple[str, ...]


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
        msg = f"The scorer {shown(escalate)} needs a reference, which a call does not have; escalate by {names}."
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
            f"The router has no profile of {', '.join(map(shown, missing))}; it has {list(router.models)}. "
            "Register one first: router.register(router.profile(name, prompts, scores, cost=...))."
        )
        raise InvalidInputError(msg)


def health_of(models: object) -> Health:
    """The health of the models: a registry's own, which all its users share, or a new one."""
    return models.health if isinstance(models, ModelRegistry) else Health()


def _with_content_or_end(routed: RoutedCall, stream: OpenStream[T]) -> OpenStream[T]:
    """The stream; a `StreamCutError` is raised if it was cut before it said anything."""
    if not stream.has_content and stream.is_cut:
        raise StreamCutError(routed.decision.model)
    return stream


def _allowed(request: CallRequest, models: Mapping[str, Any], snapshot: Snapshot) -> list[str]:
    """The models that may take a call. A model takes part once it has both an object and a profile."""
    if request.among is None:
        names = [name for name in models if name in snapshot.profiles]
    else:
        unknown = [name for name in request.among if name not in models]
        if unknown:
            msg = f"There is no model {shown(unknown[0])}; the models are {', '.join(map(repr, models)) or 'none'}."
            raise UnknownModelError(msg)
        names = list(dict.fromkeys(request.among))
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
    if decision is None:
        return None
    return replace(decision, excluded=terms.excluded).identified(request.noted.get("id"))  # learning counts it once


def _on(terms: _Terms, decision: RoutingDecision) -> RoutingDecision:
    """A decision with what the terms say beyond its candidates."""
    if terms.kept is not None:
        decision = decision.keeping(terms.kept)
    return replace(decision, excluded=(*terms.excluded, *decision.excluded)) if terms.excluded else decision


def _above_max_error(decision: RoutingDecision) -> list[str]:
    """Those that are asked only if all others fail."""
    return [each.model for each in decision.excluded if each.kind == "error_too_high"]


def _rerouted(routed: RoutedCall, exclusion: Exclusion, among: Sequence[str] | None = None) -> RoutedCall | None:
    """The call without a model: as the best of these takes it, or else of the others, or else of the reserve."""
    reserve = routed.reserve
    if among is None:
        among = [name for name in routed.decision.pool.names if name != exclusion.model]
        if not among and reserve:
            among, reserve = reserve[:1], reserve[1:]
    decision = routed.snapshot.reroute(routed.decision, exclusion, among)
    return None if decision is None else routed._replace(decision=decision, reserve=reserve)


def _cooling_down(name: str, seconds: float) -> Exclusion:
    return Exclusion(name, "cooling_down", f"it failed recently and is cooling down for {seconds:.0f} s")


def _seconds_left(routed: RoutedCall) -> float | None:
    """Until the deadline of a call; None if it has none."""
    return None if routed.ends_at is None else max(routed.ends_at - time.monotonic(), 0.0)


@contextmanager
def _keeping(text: str) -> Iterator[None]:
    """Have an error that is raised in the block hold the text that a stream had brought."""
    try:
        yield
    except Exception as error:
        if text:
            with suppress(AttributeError, TypeError):
                error.partial_text = text  # type: ignore[attr-defined]
        raise


def _least(first: float | None, second: float | None) -> float | None:
    """The smaller of two limits; None is no limit."""
    limits = [limit for limit in (first, second) if limit is not None]
    return min(limits, default=None)
