"""Learning from production: what calls turned out to be worth is added to the profiles of the models that answered.

Observing adds a few numbers per cluster in memory. What has been observed is put into a store, and the profiles of the
models are estimated anew from what all workers have put there, in a thread of its own: no call waits for either.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from unirouter_integrations.clusters import PromptClusters
from unirouter_integrations.decision import Pool, RoutingDecision
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.profiles import Floats, LLMProfile
from unirouter_integrations.repeating import Repeating
from unirouter_integrations.statistics_store import (
    COUNTS,
    FADED,
    LOSSES,
    PRICED,
    SPENT,
    StatisticsStore,
    Sums,
    as_store,
    later,
)

_log = logging.getLogger("unirouter_integrations")

# On two sets of recorded outcomes with a model that gets worse (tests/benchmarks/learning_replay.py), 50 to 200 lost
# next to nothing before the change; the shorter, the sooner it was noticed. Fading only the clusters an observation
# belongs to noticed it half as fast: it is a model that changes, seldom a cluster.
HALF_LIFE = 200.0
EVERY = 1.0


class Learnt(NamedTuple):
    """A profile and the one to put in its place."""

    before: LLMProfile
    now: LLMProfile


class _Origin(NamedTuple):
    """Under which key a store keeps what was observed of a registered profile, and what the profile was learnt from."""

    key: str
    measured: LLMProfile | None = None  # None: it is the measured one
    sums: Sums | None = None


class Learning:
    """Adds what is observed to the profiles of a router. `UniRouter.learn` makes one.

    A store keeps what was observed of a model under the digest of its measured profile. So workers that have loaded the
    same router learn together, a worker that starts again goes on where it was, and nothing is counted twice: a profile
    that is registered or saved after learning begins anew, with what was learnt as what was measured.

    Args:
        pool: Gives the snapshot of the router.
        put: Takes profiles to put in the place of others, if these are still registered.
        store: See `UniRouter.learn`.
        half_life: See `UniRouter.learn`.
        every: See `UniRouter.learn`.
    """

    def __init__(
        self,
        pool: Callable[[], Pool],
        put: Callable[[Mapping[str, Learnt]], None],
        store: StatisticsStore | str | os.PathLike[str] | None = None,
        half_life: float = HALF_LIFE,
        every: float = EVERY,
    ) -> None:
        for what, value in (("half_life", half_life), ("every", every)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                msg = f"{what} should be a number above 0, but is {value!r}."
                raise InvalidInputError(msg)
        self._pool = pool
        self._put = put
        self._store = as_store(store)
        self._fading = -math.expm1(-math.log(2) / half_life)
        self._observed: dict[str, Sums] = {}
        self._unsent: tuple[Mapping[str, Sums], str] | None = None
        self._origins: weakref.WeakKeyDictionary[LLMProfile, _Origin] = weakref.WeakKeyDictionary()
        self._away = False
        self._lock = threading.Lock()  # held for a few additions
        self._syncing = threading.Lock()  # held while the store is asked
        self._background = Repeating(self._try_to_sync, every, "unirouter-learning")
        weakref.finalize(self, _at_exit, weakref.WeakMethod(self._try_to_sync))

    def start(self) -> None:
        """Keep in step with the store from now on."""
        self._background.start()

    def observe(self, decision: RoutingDecision | Mapping[str, Any], score: float, cost: float | None = None) -> bool:
        """See `UniRouter.observe`."""
        loss = 1 - _checked(score, "score (0 wrong, 1 right)", 1)
        pool = self._pool()
        name, phi = _what_was_decided(decision, pool.clusters)
        profile = pool.profiles.get(name)
        if profile is None or phi is None:
            return False
        sums = np.zeros((5, len(phi)))
        sums[FADED], sums[COUNTS], sums[LOSSES] = self._fading, phi, phi * loss
        if cost is not None:
            sums[PRICED], sums[SPENT] = phi, phi * _checked(cost, "cost")
        with self._lock:
            key = self._origin(profile).key
            self._observed[key] = later(self._observed[key], sums) if key in self._observed else sums
        self.start()
        return True

    def sync(self) -> None:
        """Put what was observed into the store, and learn from what all workers have put there.

        It is done in the background again and again. Call it where that is not soon enough.

        Raises:
            Exception: Whatever the store raises if it is away. What was observed is kept for the next time.
        """
        with self._syncing:
            self._send()
            self._learn()

    def close(self) -> None:
        """Keep in step no longer. What was observed and not sent is sent, if the store is there."""
        self._background.stop()
        self._try_to_sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self) -> None:
        if self._unsent is None:
            with self._lock:
                observed, self._observed = self._observed, {}
            self._unsent = (observed, os.urandom(16).hex())
        if self._unsent[0]:
            self._store.add(*self._unsent)
        self._unsent = None

    def _learn(self) -> None:
        profiles = self._pool().profiles
        with self._lock:
            origins = {name: self._origin(profile) for name, profile in profiles.items()}
        sums = self._store.read({origin.key for origin in origins.values()})
        learnt = {}
        for name, (key, measured, known) in origins.items():
            if key in sums and not (known is not None and np.array_equal(sums[key], known)):
                before = profiles[name]
                now = _learnt(measured or before, sums[key])
                with self._lock:
                    self._origins[now] = _Origin(key, measured or before, sums[key])
                learnt[name] = Learnt(before, now)
        if learnt:
            self._put(learnt)

    def _try_to_sync(self) -> None:
        try:
            self.sync()
        except Exception as error:  # noqa: BLE001  # a store may raise anything; learning waits, and nothing else does
            if not self._away:
                self._away = True
                why = f": {error}" if type(error).__module__ == "sqlite3" else ""  # others may say where, and as whom
                _log.warning("Learning waits for %r, which raised %s%s.", self._store, type(error).__name__, why)
        else:
            if self._away:
                self._away = False
                _log.info("Learning goes on: %r is there again.", self._store)

    def _origin(self, profile: LLMProfile) -> _Origin:
        """Where a profile comes from; the caller holds the lock."""
        if profile not in self._origins:
            self._origins[profile] = _Origin(_key(profile))
        return self._origins[profile]


def _at_exit(sync: weakref.WeakMethod[Callable[[], None]]) -> None:
    """Send what is left, if the process ends and not only the learning."""
    if (call := sync()) is not None:
        call()


def _checked(value: Any, what: str, most: float = math.inf) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= most or math.isinf(number):
        msg = f"{what} should be a number from 0 to {most:g}, but is {value!r}."
        raise InvalidInputError(msg)
    return number


def _what_was_decided(
    decision: RoutingDecision | Mapping[str, Any], clusters: PromptClusters
) -> tuple[str, Floats | None]:
    """The model, and Phi of the prompt; None if that is over other clusters than these.

    A decision in plain JSON does not hold Phi. What comes nearest is the one cluster that it names and, as far as the
    prompt was unfamiliar, the shares of the clusters.
    """
    if isinstance(decision, RoutingDecision):
        same = decision._pool.clusters.fingerprint == clusters.fingerprint  # noqa: SLF001
        return decision.model, decision._phi if same else None  # noqa: SLF001
    plain = decision if isinstance(decision, Mapping) else {}
    name, cluster, familiarity = (plain.get(what) for what in ("model", "cluster", "familiarity"))
    if isinstance(name, str) and plain.get("clusters", clusters.fingerprint) != clusters.fingerprint:
        return name, None
    if not (isinstance(name, str) and isinstance(cluster, int) and 0 <= cluster < len(clusters)):
        msg = (
            "observe() takes a decision, or one as plain JSON, such as an answer's response_metadata['unirouter']; "
            f"this {type(decision).__name__} names the model {name!r} and the cluster {cluster!r} of {len(clusters)}."
        )
        raise InvalidInputError(msg)
    phi = _checked(1.0 if familiarity is None else familiarity, "familiarity", 1) * (
        np.arange(len(clusters)) == cluster
    )
    return name, phi + (1 - phi.sum()) * clusters.shares


def _learnt(measured: LLMProfile, sums: Sums) -> LLMProfile:
    """What was measured, as far as it has not faded, and what was observed since."""
    kept = measured.counts * (1 - sums[FADED])
    counts = kept + sums[COUNTS]
    losses = measured.losses * (1 - sums[FADED]) + sums[LOSSES]
    cost = measured.cost
    if sums[PRICED].any():
        known = kept + sums[PRICED]
        spent = kept * cost + sums[SPENT]
        cost = np.where(known > 0, spent / np.where(known > 0, known, 1), cost)
    return LLMProfile(measured.name, counts, np.minimum(losses, counts), cost, measured.metadata, measured.clusters)


def _key(profile: LLMProfile) -> str:
    import hashlib

    numbers = [profile.counts, profile.losses, np.broadcast_to(profile.cost, len(profile))]
    digest = hashlib.sha256(np.ascontiguousarray(numbers, "<f8").tobytes())
    digest.update(f"{profile.clusters} {profile.name}".encode())
    return f"{profile.name}:{digest.hexdigest()[:16]}"
