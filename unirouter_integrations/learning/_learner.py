"""Learning from production: graded calls are added to the profiles of the models that answered.

Observing adds a few numbers per cluster in memory. A background thread sends them to a store and estimates the profiles
anew from what all workers have sent. No call waits for either.
"""

from __future__ import annotations

import logging
import math
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from unirouter_integrations._checks import number, positive_or_infinite, shown
from unirouter_integrations._concurrency import ForkSafeLock, PeriodicThread, renew_after_fork
from unirouter_integrations.core._clusters import PromptClusters
from unirouter_integrations.core._decision import RoutingDecision, noted_memberships
from unirouter_integrations.core._profiles import Floats, LLMProfile
from unirouter_integrations.core._snapshot import Snapshot
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.learning._stores import (
    COUNTS,
    FADED,
    LOSSES,
    MAX_COST,
    PRICED,
    SPENT,
    StatisticsStore,
    Sums,
    as_store,
    capped,
    checked,
    combine,
)

_log = logging.getLogger("unirouter_integrations")

# On two sets of recorded outcomes with a model that gets worse (benchmarks/learning_replay.py), 50 to 200 lost next to
# nothing before the change; the shorter, the sooner it was noticed. Fading only the clusters an observation belongs to
# noticed it half as fast: usually a model changes, not a cluster.
HALF_LIFE = 200.0  # observations
SYNC_SECONDS = 1.0
_MAX_REMEMBERED = 10_000  # ids of decisions that were counted, the most recent ones
_MAX_ID = 64  # characters
_LOST = 0.99  # counts in a store never fall; if they do, by more than rounding, they began anew


class ProfileUpdate(NamedTuple):
    """A registered profile, and the one to register in its place."""

    old: LLMProfile
    new: LLMProfile


class _Origin(NamedTuple):
    """The key under which a store keeps what was observed of a registered profile, and what the profile is made of."""

    key: str
    measured: LLMProfile | None = None  # None: the profile itself was measured
    sums: Sums | None = None  # what the store held when it was read last
    lost: Sums | None = None  # what it held before it lost it


class Learning:
    """Adds what is observed to the profiles of a router. `UniRouter.learn` makes one.

    A store keeps what was observed of a model under the digest of its measured profile. So workers that have loaded the
    same router learn together, a restarted worker goes on where it was, and nothing is counted twice. A profile that is
    registered or saved after learning starts anew: what was learned then counts as measured.

    Args:
        snapshot: Returns the router as it is now.
        update: Registers profiles in place of others, unless these were replaced meanwhile.
        store: See `UniRouter.learn`.
        half_life: See `UniRouter.learn`.
        every: See `UniRouter.learn`.
        key: See `UniRouter.learn`.
        explorer: Where given, the router judges each model by a draw from its error's distribution.

    Attributes:
        explorer: See above.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        update: Callable[[Mapping[str, ProfileUpdate]], None],
        store: StatisticsStore | str | os.PathLike[str] | None = None,
        *,
        half_life: float = HALF_LIFE,
        every: float = SYNC_SECONDS,
        key: bytes | None = None,
        explorer: np.random.Generator | None = None,
    ) -> None:
        self._fading = -math.expm1(-math.log(2) / positive_or_infinite(half_life, "half_life"))
        self._snapshot = snapshot
        self._update = update
        self._store = as_store(store)
        self._key = key
        self.explorer = explorer
        self._observed: dict[str, Sums] = {}
        self._unsent: tuple[Mapping[str, Sums], str] | None = None
        self._origins: weakref.WeakKeyDictionary[LLMProfile, _Origin] = weakref.WeakKeyDictionary()
        self._is_store_failing = False
        self._warned: set[str] = set()  # keys of which the store holds something wrong, or not what it held before
        self._counted: dict[str, None] = {}  # ids of decisions, in the order in which they were observed
        self._lock = ForkSafeLock()  # held for a few additions
        self._sync_lock = ForkSafeLock()  # held during calls of the store
        renew_after_fork(self)  # before the thread, which must not send what the parent observed
        self._background = PeriodicThread(self._try_to_sync, positive_or_infinite(every, "every"), "unirouter-learning")
        weakref.finalize(self, _sync_at_exit, weakref.WeakMethod(self._try_to_sync))

    def start(self) -> None:
        """Exchange observations with the store from now on."""
        self._background.start()

    def observe(self, decision: RoutingDecision | Mapping[str, Any], score: float, cost: float | None = None) -> bool:
        """Count an observation, see `UniRouter.observe`."""
        loss = 1 - number(score, "score (0 wrong, 1 right)", high=1)
        spent = None if cost is None else number(cost, "cost", high=MAX_COST)
        router = self._snapshot()
        name, phi = _observed_of(decision, router.clusters)
        self._check_signature(decision)
        profile = router.profiles.get(name)
        if profile is None or phi is None:
            return False
        sums = np.zeros((5, len(phi)))
        sums[FADED], sums[COUNTS], sums[LOSSES] = self._fading, phi, phi * loss
        if spent is not None:
            sums[PRICED], sums[SPENT] = phi, phi * spent
        with self._lock:
            if not self._is_new(decision):
                return False
            key = self._origin(profile).key
            self._observed[key] = combine(self._observed[key], sums) if key in self._observed else sums
        self.start()
        return True

    def sign(self, decision: RoutingDecision | Mapping[str, Any]) -> dict[str, Any]:
        """Return a decision as plain JSON, signed if there is a key, see `UniRouter.sign`."""
        noted = decision.as_dict() if isinstance(decision, RoutingDecision) else dict(decision)
        return noted if self._key is None else {**noted, "signature": _signature(noted, self._key)}

    def sync(self) -> None:
        """Send what was observed to the store, and learn from what all workers have sent.

        A background thread does this regularly. Call it where that is not soon enough.

        Raises:
            Exception: What the store raises if it cannot be reached. What was observed is kept for the next time.
        """
        with self._sync_lock:
            self._learn()  # before sending, which replaces a damaged value
            if self._send():
                self._learn()

    def close(self) -> None:
        """Stop. What was observed and not sent is sent, if the store can be reached.

        A process does that by itself when it ends, but not if a signal kills it, and a child of `multiprocessing` does
        not: call this at its end.
        """
        self._background.stop()
        self._try_to_sync()

    def after_fork(self) -> None:
        """Forget what was observed and not sent, which the parent sends, and explore differently from it."""
        self._observed, self._unsent = {}, None
        if self.explorer is not None:
            self.explorer = np.random.default_rng()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_signature(self, decision: RoutingDecision | Mapping[str, Any]) -> None:
        if self._key is None or isinstance(decision, RoutingDecision):
            return
        import hmac

        given = str(decision.get("signature")).encode("utf-8", "replace")
        if not hmac.compare_digest(given, _signature(decision, self._key).encode()):
            msg = "The decision is not signed with the key of learn(), or was changed. router.sign(decision) signs one."
            raise InvalidInputError(msg)

    def _is_new(self, decision: RoutingDecision | Mapping[str, Any]) -> bool:
        """Whether a decision was not counted before. The caller holds the lock, and counts it now."""
        given = decision.id if isinstance(decision, RoutingDecision) else decision.get("id")
        if given is None:
            return True
        noted = str(given)[:_MAX_ID]
        if noted in self._counted:
            return False
        self._counted[noted] = None
        if len(self._counted) > _MAX_REMEMBERED:
            del self._counted[next(iter(self._counted))]
        return True

    def _send(self) -> bool:
        """Send what was observed. Returns whether there was anything."""
        if self._unsent is None:
            with self._lock:
                observed, self._observed = self._observed, {}
            self._unsent = (observed, os.urandom(16).hex())
        is_anything = bool(self._unsent[0])
        if is_anything:
            self._store.add(*self._unsent)
        self._unsent = None
        return is_anything

    def _learn(self) -> None:
        profiles = self._snapshot().profiles
        with self._lock:
            origins = {name: self._origin(profile) for name, profile in profiles.items()}
        found = self._store.read({origin.key for origin in origins.values()})
        updates = {}
        for name, origin in origins.items():
            old = profiles[name]
            now = self._now(origin, found.get(origin.key), len(old))
            if now is origin:
                continue
            new = old
            if now.sums is not None:
                measured = origin.measured or old
                new = _updated(measured, now.sums if now.lost is None else combine(now.lost, now.sums))
                now = now._replace(measured=measured)
                updates[name] = ProfileUpdate(old, new)
            with self._lock:
                self._origins[new] = now
        if updates:
            self._update(updates)

    def _now(self, origin: _Origin, found: object, clusters: int) -> _Origin:
        """The origin with what the store holds now; the same object if there is nothing new."""
        sums = checked(found, clusters)
        if sums is not None and self._fading:
            sums = capped(sums, 1 / self._fading)
        known, lost = origin.sums, origin.lost
        is_lost = known is not None and (sums is None or sums[COUNTS].sum() < _LOST * known[COUNTS].sum())
        if (is_lost or (sums is None and found is not None)) and origin.key not in self._warned:
            self._warned.add(origin.key)
            _log.warning(
                "%r holds a wrong value, or no longer what it held, under the key %r; learning goes on from what this "
                "process knows of it.",
                self._store,
                origin.key,
            )
        if known is not None and is_lost:
            lost = known if lost is None else combine(lost, known)
        elif sums is None or (known is not None and np.array_equal(sums, known)):
            return origin
        return origin._replace(sums=sums, lost=lost)

    def _try_to_sync(self) -> None:
        try:
            self.sync()
        except Exception as error:  # noqa: BLE001  # a store may raise anything; only learning has to wait for it
            if not self._is_store_failing:
                self._is_store_failing = True
                why = f": {error}" if type(error).__module__ == "sqlite3" else ""  # others may quote address and user
                _log.warning("Learning waits for %r, which raised %s%s.", self._store, type(error).__name__, why)
        else:
            if self._is_store_failing:
                self._is_store_failing = False
                _log.info("Learning goes on: %r can be reached again.", self._store)

    def _origin(self, profile: LLMProfile) -> _Origin:
        """The origin of a profile. The caller holds the lock."""
        if profile not in self._origins:
            self._origins[profile] = _Origin(_key(profile))
        return self._origins[profile]


def _sync_at_exit(sync: weakref.WeakMethod[Callable[[], None]]) -> None:
    """Send what is left when the process ends; when only the learning ends, `close` has done so."""
    if (call := sync()) is not None:
        call()


def _observed_of(decision: RoutingDecision | Mapping[str, Any], clusters: PromptClusters) -> tuple[str, Floats | None]:
    """The model of a decision, and Phi of its prompt; None if that is over other clusters than these."""
    if isinstance(decision, RoutingDecision):
        return decision.model, decision.memberships if decision.clusters == clusters.fingerprint else None
    noted = decision if isinstance(decision, Mapping) else {}
    name = noted.get("model")
    if isinstance(name, str) and noted.get("clusters", clusters.fingerprint) != clusters.fingerprint:
        return name, None
    memberships = noted_memberships(noted, clusters)
    if not isinstance(name, str) or memberships is None:
        msg = (
            "observe() takes a decision, or one as plain JSON, such as an answer's response_metadata['unirouter']; "
            f"this {type(decision).__name__} names the model {shown(name)} and, of {len(clusters)} clusters, "
            f"{shown(noted.get('cluster'))}."
        )
        raise InvalidInputError(msg)
    return name, memberships.phi[0]


def _updated(measured: LLMProfile, sums: Sums) -> LLMProfile:
    """What was measured, as far as it has not faded, plus what was observed since."""
    kept = measured.counts * (1 - sums[FADED])
    counts = kept + sums[COUNTS]
    losses = measured.losses * (1 - sums[FADED]) + sums[LOSSES]
    cost = measured.cost
    if sums[PRICED].any():
        known = kept + sums[PRICED]
        spent = kept * cost + sums[SPENT]
        cost = np.where(known > 0, spent / np.where(known > 0, known, 1), cost)
    return LLMProfile(measured.name, counts, np.minimum(losses, counts), cost, measured.metadata, measured.clusters)


def _signature(noted: Mapping[str, Any], key: bytes) -> str:
    """What nobody without the key can make, of all that `observe` reads."""
    import hmac
    import json

    familiarity = number(noted.get("familiarity", 1.0), "familiarity", high=1)  # always a float: some write 1.0 as 1
    read = [*(noted.get(name) for name in ("id", "model", "clusters", "cluster")), familiarity]
    return hmac.new(key, json.dumps(read, default=str).encode(), "sha256").hexdigest()


def _key(profile: LLMProfile) -> str:
    import hashlib

    numbers = [profile.counts, profile.losses, np.broadcast_to(profile.cost, len(profile))]
    digest = hashlib.sha256(np.ascontiguousarray(numbers, "<f8").tobytes())
    digest.update(f"{profile.clusters} {profile.name}".encode())
    return f"{profile.name}:{digest.hexdigest()[:16]}"
