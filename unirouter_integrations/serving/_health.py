"""Which models fail at present, and how much traffic each may have: a circuit breaker for each model.

Health is a preference, never an exclusion: it puts healthy models first and failing ones last, and a call may try them
all. The rules follow Envoy's outlier detection (failure rate, panic mode, growing ejection time with jitter, slow
start), resilience4j's half-open state, and gRPC's retry budget.
"""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from unirouter_integrations._concurrency import ForkSafeLock, HangingCalls, renew_after_fork

if TYPE_CHECKING:
    from unirouter_integrations.learning import StatisticsStore
    from unirouter_integrations.serving._shared_health import SharedHealth

# With these numbers 99.94% of calls were answered where five models fail 20% of the time, and the best model kept its
# share at 2, 20 and 200 calls a second, on a virtual clock; trips by failures in a row lost it two thirds of its share.
_HALF_LIFE_SECONDS = 30.0  # after which a call counts half
_MIN_CALLS = 4.5  # recent calls from which on a failure rate counts: five, of which the older ones count a little less
_MAX_FAILURE_RATE = 0.5
_MAX_FAILURES_IN_A_ROW = 10  # an outage after many good calls; one in ten million where calls fail 20% of the time
_COOLDOWN_GROWTH = 2.0  # each time that a model fails again right after it cooled down
_MAX_COOLDOWN_SECONDS = 60.0
_HEARD_COOLDOWN_SECONDS = 5.0  # of a model that fails elsewhere
_JITTER = 0.2  # of a cooldown, so that workers do not probe a model at the same moment
_MAX_RETRY_AFTER_SECONDS = 120.0  # a longer wait that a provider asks for is cut to this
_RECOVERED_SLOTS = 16  # calls at once from which on a recovering model counts as recovered
_SLOW_COOLDOWN_SECONDS = 5.0
_SLOW_FACTOR = 10.0  # an answer that takes this many times as long as usual counts as a failure, ...
_MIN_SLOW_SECONDS = 1.0  # ... unless it takes less than this: behind a cache or on a busy machine, factors mean little
_USUAL_CALLS = 16  # answers from which on a model has a usual time
_USUAL_HALF_LIFE_SECONDS = 600.0  # so that a lasting change becomes usual, but not before a slow model cools down
_MAX_LATENCY_WEIGHT = 0.02  # of the newest answer in the usual time, where answers are rare
# The retry budget, as gRPC has it: an outage of all models must not multiply the calls to them.
_MAX_RETRY_TOKENS = 100.0
_TOKENS_PER_ANSWER = 4.0
_TOKENS_PER_SECOND = 1.0
# A tenth of the calls may be hedged, so that a change of all latencies does not double all calls.
_MAX_HEDGE_TOKENS = 10.0
_HEDGES_PER_ANSWER = 0.1
_REMEMBERED_ANSWERS = 100  # of a model, whose durations are kept
_USUAL_SHARE = 0.95


@dataclass
class TrackedCall:
    """A call in progress, as `Health.start` returns it. The first method that ends it counts.

    Attributes:
        model: The model that is called.
        cooldown: How many times the model had cooled down when the call began: a call from before says nothing of now.
        began: When it began.
        has_ended: Whether it has a verdict, or none is to come.
    """

    model: str
    cooldown: int
    began: float
    has_ended: bool = False


@dataclass
class _Record:
    calls: float = 0.0
    failures: float = 0.0
    in_a_row: int = 0  # failures since the last success
    updated: float = 0.0
    elapsed: float = 0.0  # between the last two updates
    cooldowns: int = 0
    seconds: float = 0.0  # the last cooldown
    until: float | None = None  # None: closed or recovering
    slots: int | None = None  # calls at once of a model that is probed or recovers; None: any number
    in_flight: int = 0
    answers: int = 0
    usual_seconds: float = 0.0
    recent_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_ANSWERS))
    hanging: HangingCalls = field(default_factory=HangingCalls)

    def decay(self, now: float) -> None:
        """Let older calls count less."""
        self.elapsed, self.updated = now - self.updated, now
        kept = 0.5 ** (self.elapsed / _HALF_LIFE_SECONDS)
        self.calls, self.failures = self.calls * kept, self.failures * kept

    @property
    def has_high_failure_rate(self) -> bool:
        """Whether enough recent calls failed."""
        return self.calls >= _MIN_CALLS and self.failures > _MAX_FAILURE_RATE * self.calls


class Health:
    """The recent outcomes of the calls of some models. Any number of threads may use it.

    A model cools down when more than half of at least five recent calls failed, or ten in a row, or when its provider
    asks to wait. Then one call probes it. If it answers, the model gets twice as many calls at once with each further
    answer, until it has recovered; if not, it cools down again, for twice as long.

    Each process has its own. With `share`, calls that fail in one of them count in all.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: dict[str, _Record] = {}
        self._retry_tokens, self._refilled = _MAX_RETRY_TOKENS, clock()
        self._hedge_tokens = _MAX_HEDGE_TOKENS
        self._capabilities: dict[str, tuple[object, float, Mapping[str, Any]]] = {}
        self._unreported: dict[str, tuple[int, int]] = {}  # calls and failures
        self._shared: SharedHealth | None = None
        self._lock = ForkSafeLock()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """See `renew_after_fork`. The calls in progress are the parent's, and do not end here."""
        for record in self._records.values():
            record.in_flight, record.hanging = 0, HangingCalls()
        self._unreported = {}

    def __getstate__(self) -> dict[str, Any]:
        """A copy knows what the original knew, and has no calls in progress."""
        with self._lock:
            records = {
                model: replace(record, in_flight=0, recent_seconds=record.recent_seconds.copy(), hanging=HangingCalls())
                for model, record in self._records.items()
            }
        return {
            "_clock": self._clock,
            "_records": records,
            "_retry_tokens": self._retry_tokens,
            "_refilled": self._refilled,
            "_hedge_tokens": self._hedge_tokens,
            "_capabilities": {},
            "_unreported": {},
            "_shared": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = ForkSafeLock()
        renew_after_fork(self)

    def capabilities(self, name: str, model: object) -> Mapping[str, Any] | None:
        """What a model said of itself a short time ago; None if it has to be asked."""
        found = self._capabilities.get(name)
        return found[2] if found is not None and found[0] is model and found[1] > self._clock() else None

    def note_capabilities(self, name: str, model: object, capabilities: Mapping[str, Any], seconds: float) -> None:
        """Note what a model says of itself, for some seconds: it may ask a server for it."""
        self._capabilities[name] = model, self._clock() + seconds, capabilities

    def start(self, model: str) -> TrackedCall:
        """Note that a call of a model begins."""
        with self._lock:
            record = self._record(model)
            record.in_flight += 1
            return TrackedCall(model, record.cooldowns, self._clock())

    def _hanging(self, model: str) -> HangingCalls:
        """The synchronous calls of a model that took too long and still run."""
        with self._lock:
            return self._record(model).hanging

    def seconds_since(self, call: TrackedCall) -> float:
        """How long ago a call began."""
        return self._clock() - call.began

    def retry(self, model: str) -> bool:
        """Whether a call may go on to this model now, after another one failed.

        A healthy model may always be tried. One that cools down takes a retry out of the budget, if one is left.
        """
        with self._lock:
            now = self._clock()
            if self._wait(model, now) is None:
                return True
            refill = (now - self._refilled) * _TOKENS_PER_SECOND
            self._retry_tokens, self._refilled = min(self._retry_tokens + refill, _MAX_RETRY_TOKENS), now
            if self._retry_tokens < 1:
                return False
            self._retry_tokens -= 1
            return True

    def hedge(self) -> bool:
        """Whether a second model may be asked for a call now. It takes one hedge out of the budget."""
        with self._lock:
            if self._hedge_tokens < 1:
                return False
            self._hedge_tokens -= 1
            return True

    def usual_limit(self, model: str) -> float | None:
        """How many seconds 95% of a model's recent answers took at most; None if there are too few to know."""
        with self._lock:
            record = self._records.get(model)
            if record is None or len(record.recent_seconds) < _USUAL_CALLS:
                return None
            return sorted(record.recent_seconds)[math.ceil(_USUAL_SHARE * len(record.recent_seconds)) - 1]

    def succeeded(self, call: TrackedCall, seconds: float | None = None) -> None:
        """Note that a model answered.

        Args:
            call: The call.
            seconds: How long the answer took, of a stream until its first content; None for the time since it began.
        """
        with self._lock:
            self._retry_tokens = min(self._retry_tokens + _TOKENS_PER_ANSWER, _MAX_RETRY_TOKENS)
            self._hedge_tokens = min(self._hedge_tokens + _HEDGES_PER_ANSWER, _MAX_HEDGE_TOKENS)
            seconds = self._clock() - call.began if seconds is None else seconds
            record = self._ended(call)
            if record is None:
                return
            record.calls += 1
            self._count(call.model, failed=False)
            record.recent_seconds.append(seconds)
            if self._is_slow(record, seconds):
                record.failures += 1
                if record.slots is not None or record.has_high_failure_rate:
                    self._cool_down(record, _SLOW_COOLDOWN_SECONDS)
                return
            record.in_a_row = 0
            if record.until is not None and record.until > self._clock():
                return  # another call failed meanwhile, or the provider asked to wait
            record.until = None
            if record.slots is not None:
                record.slots *= 2
                if record.slots >= _RECOVERED_SLOTS:
                    record.slots = None

    def failed(self, call: TrackedCall, *, cooldown: float, retry_after: float | None = None) -> bool:
        """Note that a call failed by a fault of the model. Returns whether it begins to cool down.

        Args:
            call: The call.
            cooldown: The first cooldown of a model that has not cooled down recently, in seconds.
            retry_after: How long its provider asks to wait, in seconds; None if it does not say.
        """
        with self._lock:
            record = self._ended(call)
            if record is None:
                return False
            was_cooling = record.until is not None and record.until > self._clock()
            record.calls += 1
            record.failures += 1
            record.in_a_row += 1
            self._count(call.model, failed=True)
            is_probe = record.slots is not None
            is_rate_high = record.has_high_failure_rate or record.in_a_row >= _MAX_FAILURES_IN_A_ROW
            if retry_after is not None:
                self._cool_down(record, min(retry_after, _MAX_RETRY_AFTER_SECONDS))
            elif is_probe or is_rate_high:
                longer = record.seconds * _COOLDOWN_GROWTH if is_probe else 0.0
                seconds = min(max(cooldown, longer), max(_MAX_COOLDOWN_SECONDS, cooldown))
                record.seconds = seconds
                self._cool_down(record, seconds * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311
            else:
                return False
            return not was_cooling

    def abandoned(self, call: TrackedCall) -> None:
        """Note that a call ended without a verdict: it was cancelled, or the request itself was wrong."""
        with self._lock:
            self._ended(call)

    def models(self) -> list[str]:
        """The models that were called."""
        return list(self._records)

    def cooling_down(self, models: Iterable[str]) -> dict[str, float]:
        """Those of some models that should get no further call now, and for how many seconds more.

        A model that is probed or recovers is among them while it has as many calls as it may, with 0 seconds. If no
        model is left, health is ignored (Envoy's panic mode), for the fault may be on our side. That is so only at the
        last one: with a lower threshold, calls would wait for models that hang while another could answer.
        """
        if not self._records:
            return {}
        now, found = self._clock(), {}
        with self._lock:
            listed = list(models)
            for model in listed:
                seconds = self._wait(model, now)
                if seconds is not None:
                    found[model] = seconds
        return {} if len(found) == len(listed) else found

    def _wait(self, model: str, now: float) -> float | None:
        """For how many seconds a model should get no further call; None if it may get one now."""
        record = self._records.get(model)
        if record is None:
            return None
        if record.until is not None and record.until > now:
            return record.until - now
        return 0.0 if record.slots is not None and record.in_flight >= record.slots else None

    def share(self, store: StatisticsStore | None, *, every: float = 1.0) -> None:
        """Exchange the outcomes of calls with other workers from now on.

        A model that fails in other workers then cools down here as well, a moment later. Each worker probes it for
        itself. What a provider asked one worker to wait holds for that worker alone.

        Args:
            store: Where all workers report, such as `SQLiteStatistics` or `RedisStatistics`; None to end it.
            every: How many seconds to wait between two exchanges.

        Raises:
            InvalidInputError: If `every` is not above 0.
        """
        from unirouter_integrations.serving._shared_health import SharedHealth

        shared = None if store is None else SharedHealth(self, store, every)
        if self._shared is not None:
            self._shared.close()
        self._shared = shared

    def unreported(self) -> dict[str, tuple[int, int]]:
        """How many calls of each model ended here, and how many failed, since this was last read."""
        with self._lock:
            found, self._unreported = self._unreported, {}
        return found

    def heard(self, model: str, calls: float, failures: float) -> None:
        """Note how many calls of a model ended elsewhere, and how many of them failed."""
        with self._lock:
            record = self._record(model)
            record.decay(self._clock())
            if record.slots is None:  # otherwise it was found out here, and a probe will find out more
                record.calls, record.failures = record.calls + calls, record.failures + failures
                if record.has_high_failure_rate:
                    self._cool_down(record, _HEARD_COOLDOWN_SECONDS * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311

    def _count(self, model: str, *, failed: bool) -> None:
        calls, failures = self._unreported.get(model, (0, 0))
        self._unreported[model] = calls + 1, failures + failed

    def _is_slow(self, record: _Record, seconds: float) -> bool:
        if record.answers < _USUAL_CALLS:
            record.answers += 1
            record.usual_seconds += (seconds - record.usual_seconds) / record.answers
            return False
        limit = max(_SLOW_FACTOR * record.usual_seconds, _MIN_SLOW_SECONDS)
        weight = min(1 - 0.5 ** (record.elapsed / _USUAL_HALF_LIFE_SECONDS), _MAX_LATENCY_WEIGHT)
        record.usual_seconds += weight * (min(seconds, limit) - record.usual_seconds)
        return seconds > limit

    def _record(self, model: str) -> _Record:
        record = self._records.get(model)
        if record is None:
            record = self._records[model] = _Record(updated=self._clock())
        return record

    def _ended(self, call: TrackedCall) -> _Record | None:
        """The record of a call that ends now; None if its outcome says nothing, or it had ended before."""
        if call.has_ended:
            return None
        call.has_ended = True
        record = self._record(call.model)
        record.in_flight = max(record.in_flight - 1, 0)
        record.decay(self._clock())
        return record if call.cooldown == record.cooldowns else None

    def _cool_down(self, record: _Record, seconds: float) -> None:
        record.calls = record.failures = 0.0
        record.in_a_row = 0
        record.cooldowns += 1
        until = self._clock() + seconds
        record.until = until if record.until is None else max(record.until, until)  # a provider may have asked for more
        record.slots = 1
