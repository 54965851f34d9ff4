"""The router: the rule of `decision` over a pool of models that may change at any time.

Phi is `clusters`, Psi(h) and c(h) are estimated from the registered profiles, lambda is `cost_weight`.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from unirouter_integrations.clusters import Assignment, PromptClusters, fit_clusters
from unirouter_integrations.decision import Pool, RoutingDecision, weight_for_budget, weight_for_quality
from unirouter_integrations.embedding import Vectors
from unirouter_integrations.errors import InvalidInputError, NoModelError, StorageError
from unirouter_integrations.learning import EVERY, HALF_LIFE, Learning, Learnt
from unirouter_integrations.profiles import (
    ErrorPrior,
    Estimator,
    Floats,
    LLMProfile,
    check_estimator,
    errors_of_known,
)
from unirouter_integrations.statistics_store import StatisticsStore
from unirouter_integrations.storage import State, read_folder, shown, write_folder

_FORMAT = "unirouter"
_FORMAT_VERSION = 1
_COUNTED = 10_000
_AT_ONCE = 1000

_log = logging.getLogger("unirouter_integrations")

Listener = Callable[[RoutingDecision, float, str | None], None]
"""Told of each decision, of how many seconds it took, and of the failed model if it replaces one."""


class RouterStats(NamedTuple):
    """What a router has decided lately.

    Attributes:
        decisions: How many decisions these figures are of, the last ones, at most 10,000.
        shares: The share of each model.
        expected_error: The mean expected error.
        expected_cost: The mean expected cost.
        fallbacks: How many of the decisions replaced a model that had failed, refused, or not passed a check.
    """

    decisions: int
    shares: dict[str, float]
    expected_error: float
    expected_cost: float
    fallbacks: int


class UniRouter:
    """Routes each prompt to the registered model with the least expected error plus weighted cost.

    Make one with `UniRouter.fit` or `UniRouter.load`. Routing reads one immutable snapshot of the pool and takes no
    lock, so models may be registered, replaced and removed while other threads and tasks route.

    Args:
        clusters: Phi, the fitted map from prompts to clusters.
        prior: What known models tell about a new one's errors; None if none are known.
        estimator: How counts become expected errors, see `LLMProfile.estimate`.
        cost_weight: lambda, the error that one unit of cost is worth. 0 ignores cost.
    """

    def __init__(
        self,
        clusters: PromptClusters,
        *,
        prior: ErrorPrior | None = None,
        estimator: Estimator = "empirical_bayes",
        cost_weight: float = 0.0,
    ) -> None:
        check_estimator(estimator)
        if prior is not None and len(prior.mean) != len(clusters):
            msg = f"The prior is over {len(prior.mean)} clusters, but there are {len(clusters)}."
            raise InvalidInputError(msg)
        self._prior = prior
        self._estimator: Estimator = estimator
        self._cost_weight = _checked_number(cost_weight, "cost_weight")
        self._pool = Pool({}, {}, clusters)
        self._lock = threading.Lock()
        self._lately: deque[tuple[str, float, float, str | None]] = deque(maxlen=_COUNTED)
        self._listeners: tuple[Listener, ...] = ()
        self._learning: Learning | None = None
        self._explorer: np.random.Generator | None = None
        self._version: str | None = None
        self._former: frozenset[str] = frozenset()

    @classmethod
    def fit(
        cls,
        prompts: Sequence[str],
        *,
        embedder: object = "local",
        n_clusters: int | Literal["auto"] = "auto",
        seed: int = 0,
        outcomes: Mapping[str, Sequence[float] | Floats] | None = None,
        vectors: npt.ArrayLike | None = None,
        assignment: Assignment = "soft",
        estimator: Estimator = "empirical_bayes",
    ) -> UniRouter:
        """Learn from unlabelled prompts which kinds there are, and from known models how errors vary over them.

        Args:
            prompts: The kind of prompts that will be routed; a few hundred are enough.
            embedder: See `PromptClusters.fit`.
            n_clusters: See `PromptClusters.fit`.
            seed: The same prompts and seed give the same router.
            outcomes: For each known model its losses on these prompts, `(len(prompts),)`, 0 right to 1 wrong, NaN where
                unknown. From them soft assignment is learned (`LearnedMap`), and the prior with which new models are
                profiled from few labels. It registers nothing.
            vectors: See `PromptClusters.fit`.
            assignment: See `PromptClusters.fit`.
            estimator: See `LLMProfile.estimate`.

        Raises:
            InvalidInputError: If an argument is out of range or two of them disagree.
            EmbeddingError: If the embedder gives vectors that cannot be used.
        """
        check_estimator(estimator)
        fitted = fit_clusters(
            prompts, embedder, n_clusters=n_clusters, seed=seed, vectors=vectors, assignment=assignment
        )
        gate = fitted.bare.gate
        if outcomes is None:
            return cls(fitted.described(gate), estimator=estimator)
        psi = errors_of_known(np.eye(len(fitted.bare))[fitted.labels], outcomes)
        if gate is not None:
            losses = np.column_stack([np.asarray(known, float) for known in outcomes.values()])
            gate = gate.fit(fitted.points, losses, psi, seed=seed)
            psi = errors_of_known(gate(fitted.points), outcomes)
        clusters = fitted.described(gate)
        return cls(clusters, prior=ErrorPrior.fit(psi, clusters.shares), estimator=estimator)

    @property
    def clusters(self) -> PromptClusters:
        """Phi."""
        return self._pool.clusters

    @property
    def prior(self) -> ErrorPrior | None:
        """What known models tell about a new one's errors."""
        return self._prior

    @property
    def estimator(self) -> Estimator:
        """How counts become expected errors."""
        return self._estimator

    @property
    def cost_weight(self) -> float:
        """lambda: the error that one unit of cost is worth. May be set at any time."""
        return self._cost_weight

    @cost_weight.setter
    def cost_weight(self, value: float) -> None:
        self._cost_weight = _checked_number(value, "cost_weight")

    @property
    def version(self) -> str | None:
        """Tells the save that this router was loaded from apart from others; None if it was not loaded."""
        return self._version

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the registered models, sorted."""
        return self._pool.names

    @property
    def profiles(self) -> Mapping[str, LLMProfile]:
        """The registered profiles by name, as they are now."""
        return MappingProxyType(self._pool.profiles)

    def __repr__(self) -> str:
        return (
            f"UniRouter({self.clusters!r}, models={list(self.models)}, estimator={self._estimator!r}, "
            f"cost_weight={self._cost_weight:g})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock, who listens and how it learns, so that a router can be sent to worker processes."""
        own = {"_lock", "_listeners", "_learning", "_explorer"}
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock, self._listeners, self._learning, self._explorer = threading.Lock(), (), None, None

    def profile(
        self,
        name: str,
        prompts: Sequence[str] | None = None,
        losses: Sequence[float] | Floats = (),
        *,
        cost: float | Sequence[float] | Floats,
        vectors: npt.ArrayLike | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> LLMProfile:
        """Describe a model by outcomes that are already graded. Calls no model and registers nothing.

        Args:
            name: The name of the model.
            prompts: The prompts it was graded on.
            losses: Its loss on each, 0 right to 1 wrong; NaN where it was not graded.
            cost: The cost of a call, one number; or what each of these calls has cost, `(n,)`, which gives a cost per
                cluster.
            vectors: The embeddings of the prompts, in their place.
            metadata: Whatever else is worth keeping with the profile (plain JSON).

        Raises:
            InvalidInputError: If losses or costs do not fit the prompts.
        """
        return LLMProfile.from_outcomes(
            name,
            self.clusters.memberships(prompts, vectors=vectors).phi,
            losses,
            cost=cost,
            metadata=metadata,
            clusters=self.clusters.fingerprint,
        )

    def choose_validation(
        self, prompts: Sequence[str] | None = None, n: int = 100, *, vectors: npt.ArrayLike | None = None
    ) -> list[int]:
        """Choose which of some prompts to grade a new model on, so that few grades tell most about its errors.

        Args:
            prompts: Prompts like those that will be routed, for which a grade can be had.
            n: How many to choose.
            vectors: The embeddings of the prompts, in their place.

        Returns:
            The indices of the chosen prompts, the most telling first: any first part of them is a good choice too.

        Raises:
            InvalidInputError: If there are fewer prompts than n.
        """
        phi = self.clusters.memberships(prompts, vectors=vectors).phi
        if not (isinstance(n, int) and 1 <= n <= len(phi)):
            msg = f"n should be a whole number from 1 to the number of prompts, {len(phi)}, but is {n!r}."
            raise InvalidInputError(msg)
        return (self._prior or ErrorPrior.uninformed(len(self.clusters))).most_informative(phi, n)

    def register(self, profile: LLMProfile) -> None:
        """Let a model take part in every decision from now on; a profile of the same name is replaced.

        Raises:
            InvalidInputError: If the profile was measured on other clusters than this router's.
        """
        if not isinstance(profile, LLMProfile):
            msg = f"register() takes an LLMProfile (router.profile(...) makes one), not {type(profile).__name__}."
            raise InvalidInputError(msg)
        with self._lock:
            clusters = self.clusters
            if len(profile) != len(clusters) or profile.clusters not in (None, clusters.fingerprint):
                msg = (
                    f"The profile of {profile.name!r} was measured on {len(profile)} clusters ({profile.clusters}), "
                    f"but this router has {len(clusters)} ({clusters.fingerprint}). Profile the model again with this "
                    "router."
                )
                raise InvalidInputError(msg)
            self._pool = self._with([profile])

    def unregister(self, name: str) -> LLMProfile:
        """Take a model out of every decision from now on, and return its profile.

        Raises:
            UnknownModelError: If no model of that name is registered.
        """
        with self._lock:
            pool = self._pool
            if name not in pool.given:
                raise pool.unknown([name])
            profiles, estimates = dict(pool.given), dict(pool.estimates)
            profile = profiles.pop(name)
            del estimates[name]
            self._pool = Pool(profiles, estimates, pool.clusters)
        return profile

    def route(
        self,
        prompt: str | None = None,
        *,
        vector: npt.ArrayLike | None = None,
        cost_weight: float | None = None,
        among: Iterable[str] | None = None,
    ) -> RoutingDecision:
        """Decide which model a prompt goes to.

        Args:
            prompt: The text.
            vector: Its embedding, `(d,)`, in place of the text.
            cost_weight: lambda of this decision; None for the router's.
            among: The names of the candidates; None for all registered models.

        Raises:
            InvalidInputError: If there is neither prompt nor vector, or both, or the weight is negative or not finite.
            NoModelError: If there is no candidate.
            UnknownModelError: If a candidate is not registered.
            EmbeddingError: If the embedding cannot be used.
        """
        prompts, vectors = _as_batch(prompt, vector)
        return self.route_many(prompts, vectors=vectors, cost_weight=cost_weight, among=among)[0]

    async def aroute(
        self,
        prompt: str | None = None,
        *,
        vector: npt.ArrayLike | None = None,
        cost_weight: float | None = None,
        among: Iterable[str] | None = None,
    ) -> RoutingDecision:
        """`route`, awaiting the embedder."""
        prompts, vectors = _as_batch(prompt, vector)
        return (await self.aroute_many(prompts, vectors=vectors, cost_weight=cost_weight, among=among))[0]

    def route_many(
        self,
        prompts: Sequence[str] | None = None,
        *,
        vectors: npt.ArrayLike | None = None,
        cost_weight: float | None = None,
        among: Iterable[str] | None = None,
    ) -> list[RoutingDecision]:
        """`route` for many prompts, with one call of the embedder.

        Args:
            prompts: The texts.
            vectors: Their embeddings, `(n, d)`, in place of the texts.
            cost_weight: See `route`.
            among: See `route`.
        """
        pool, weight = self._conditions(cost_weight, among)
        began = time.perf_counter()
        decisions = self._decided(pool, pool.clusters.vectors(prompts, vectors), weight)
        self._note(decisions, began)
        return decisions

    async def aroute_many(
        self,
        prompts: Sequence[str] | None = None,
        *,
        vectors: npt.ArrayLike | None = None,
        cost_weight: float | None = None,
        among: Iterable[str] | None = None,
    ) -> list[RoutingDecision]:
        """`route_many`, awaiting the embedder."""
        pool, weight = self._conditions(cost_weight, among)
        began = time.perf_counter()
        if vectors is None and prompts is not None:
            vectors = await pool.clusters.aembed(prompts)
            prompts = None
        decisions = self._decided(pool, pool.clusters.vectors(prompts, vectors), weight)
        self._note(decisions, began)
        return decisions

    def reroute(
        self, decision: RoutingDecision, reason: str, among: Iterable[str] | None = None
    ) -> RoutingDecision | None:
        """The decision without its model, which has failed for this reason, and among these, if they are given.

        Returns:
            The decision; None if no other candidate is left.
        """
        began = time.perf_counter()
        following = decision.without(decision.model, reason, among)
        if following is not None:
            self._note([following], began, decision.model)
        return following

    def observe(self, decision: RoutingDecision | Mapping[str, Any], score: float, cost: float | None = None) -> bool:
        """Learn what a call turned out to be worth; takes microseconds, and shows in the profiles a little later.

        Args:
            decision: That of the call; or as plain JSON, as answers carry it (`response_metadata["unirouter"]`). That
                is a little less exact: of the clusters it names only the one the prompt belongs to most.
            score: From 0, wrong, to 1, right.
            cost: What the call has cost, in the unit of the profiles' costs; None if that is not known.

        Returns:
            Whether it was counted: it is not if the model was unregistered or the clusters were replaced meanwhile.

        Raises:
            InvalidInputError: If it is no decision, or score or cost are out of range.
        """
        learning = self._learning
        if learning is None:
            with self._lock:
                learning = self._learning = self._learning or Learning(self._snapshot, self._put_learnt)
        return learning.observe(decision, score, cost)

    def learn(
        self,
        store: StatisticsStore | str | os.PathLike[str] | None = None,
        *,
        half_life: float = HALF_LIFE,
        every: float = EVERY,
        explore: bool = False,
        seed: int | None = None,
    ) -> Learning:
        """Say how to learn from what is observed. Without it, `observe` learns in this process alone.

        Args:
            store: Where workers add up what they observe: the path of an SQLite file, for the processes of one machine;
                `RedisStatistics(url)`, for several machines; None for this process. While it is away nothing is learnt
                and nothing is lost, and calls go on.
            half_life: After how many observations of a model what was known of it before counts half. The shorter, the
                sooner a change is noticed; the longer, the finer what is learnt. `math.inf` forgets nothing.
            every: How many seconds may pass until what was observed is seen, here and by other workers.
            explore: Whether models are now and then tried that might be better than is known: each is judged by a draw
                from what is believed of it (Thompson sampling). It costs a little quality now, and finds out models
                that have become better.
            seed: Seed of these draws.

        Returns:
            What learns. Closing it sends what was observed and not yet sent; it is a context manager.
        """
        learning = Learning(self._snapshot, self._put_learnt, store, half_life, every)
        with self._lock:
            former, self._learning = self._learning, learning
        if former is not None:
            former.close()
        self._explorer = np.random.default_rng(seed) if explore else None
        learning.start()
        return learning

    def swap_in(self, other: UniRouter) -> None:
        """Become another router, in one step: its clusters, profiles, prior, estimator and cost weight.

        Calls that are under way are decided as they began. Learning goes on with the new profiles.
        """
        with self._lock:
            self._former, self._version = self._former | {self.clusters.fingerprint}, other._version
            self._prior, self._estimator = other._prior, other._estimator
            self._pool, self._cost_weight = other._pool, other._cost_weight

    def stats(self) -> RouterStats:
        """What was decided lately, by whoever asked; a decision that led to no call counts as well."""
        lately = list(self._lately)
        if not lately:
            return RouterStats(0, {}, math.nan, math.nan, 0)
        models, errors, costs, replaced = zip(*lately, strict=True)
        n = len(lately)
        return RouterStats(
            n,
            {name: count / n for name, count in Counter(models).most_common()},
            math.fsum(errors) / n,
            math.fsum(costs) / n,
            sum(name is not None for name in replaced),
        )

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have a function told of every decision, in the thread that makes it; returns what ends that."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = tuple(each for each in self._listeners if each is not listener)

        return unsubscribe

    def registered(self, names: Iterable[str]) -> Pool:
        """A snapshot of those of these models that are registered now, to be given as `among`.

        Unlike a list of names it cannot go out of date between looking which models there are and routing.
        """
        return self._pool.registered(names)

    def embed(self, prompts: Sequence[str]) -> Vectors:
        """The vectors of some prompts, `(n, d)`, as the router sees them."""
        return self.clusters.embed(prompts)

    async def aembed(self, prompts: Sequence[str]) -> Vectors:
        """`embed`, awaited."""
        return await self.clusters.aembed(prompts)

    def expected_errors(
        self,
        prompts: Sequence[str] | None = None,
        *,
        vectors: npt.ArrayLike | None = None,
        among: Iterable[str] | None = None,
    ) -> Floats:
        """The expected error of each model on each prompt, `(n, m)`, in the order of `among` (or of `models`)."""
        if among is None or isinstance(among, Pool):
            pool = self._snapshot(among)
            columns = pool.columns(pool.names)
        else:
            pool = self._pool
            columns = pool.columns(_names(among))
        return pool.expected(pool.clusters.memberships(prompts, vectors=vectors).phi).error[:, columns]

    def calibrate(
        self,
        prompts: Sequence[str] | None = None,
        *,
        vectors: npt.ArrayLike | None = None,
        budget: float | None = None,
        quality: float | None = None,
        among: Iterable[str] | None = None,
    ) -> float:
        """Find the cost weight for a budget or for a quality, from unlabelled prompts, and set it.

        Args:
            prompts: Prompts like those that will be routed.
            vectors: Their embeddings, in place of the texts.
            budget: The expected cost per call, in the mean over the prompts, that must not be exceeded: gives the
                smallest weight that keeps to it.
            quality: The share of the best single model's expected quality (1 - error) that must be kept, for instance
                0.97: gives the largest weight that does. There many prompts may be about to go to a cheaper model, and
                prompts a little unlike these do: take others than those of the fit, and rather too high a share.
            among: The names of the candidates; None for all registered models.

        Returns:
            The cost weight, which is now the router's.

        Raises:
            InvalidInputError: If not exactly one of budget and quality is given, there are no prompts, or the goal
                cannot be reached; the message says what can.
            NoModelError: If there is no candidate.
        """
        if (budget is None) == (quality is None):
            msg = "Give either budget= or quality= to calibrate."
            raise InvalidInputError(msg)
        pool = self._candidates(among)
        expected = pool.expected(pool.clusters.memberships(prompts, vectors=vectors).phi)
        if not len(expected.error):
            msg = "There are no prompts to calibrate on; give at least one."
            raise InvalidInputError(msg)
        if budget is not None:
            self.cost_weight = weight_for_budget(expected, _checked_number(budget, "budget"))
        elif quality is not None:
            self.cost_weight = weight_for_quality(expected, _checked_number(quality, "quality"))
        return self.cost_weight

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save as `router.json` and `router.safetensors` in a folder, replacing a router saved there.

        No prompt is saved. The local embedder is saved whole, any other by its name only.
        """
        pool = self._pool
        profiles = list(pool.profiles.values())
        state = State(
            {
                "format": _FORMAT,
                "format_version": _FORMAT_VERSION,
                "estimator": self._estimator,
                "cost_weight": self._cost_weight,
                "profiles": [profile.as_record() for profile in profiles],
            }
        )
        shape = (len(profiles), len(pool.clusters))
        state.arrays["counts"] = np.array([profile.counts for profile in profiles]).reshape(shape)
        state.arrays["losses"] = np.array([profile.losses for profile in profiles]).reshape(shape)
        state.arrays["costs"] = np.array([np.broadcast_to(p.cost, shape[1]) for p in profiles]).reshape(shape)
        state.nest("clusters", pool.clusters.to_state())
        if self._prior is not None:
            state.nest("prior", State({}, {"mean": self._prior.mean, "covariance": self._prior.covariance}))
        write_folder(path, "router", state)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, embedder: object = None) -> UniRouter:
        """Load what `save` wrote. Nothing in the folder is executed or imported.

        Args:
            path: The folder, or the URL of one that fsspec knows (`"s3://bucket/router"`; needs the extra `fsspec`).
            embedder: The embedder the router was fitted with; not needed for the local one. It embeds one probe
                sentence, and is refused if the vector is not the one of the fit.

        Raises:
            StorageError: If the folder is missing, damaged, or written by a newer version.
            EmbeddingError: If the embedder is missing or is not the one of the fit.
        """
        state = read_folder(path, "router")
        state.check_format(_FORMAT, _FORMAT_VERSION, "router", path)
        clusters = PromptClusters.from_state(state.part("clusters"), embedder)
        size = len(clusters)
        records = state.parts("profiles")
        shape = (len(records), size)
        counts, losses, costs = (state.numbers(name, shape, low=0) for name in ("counts", "losses", "costs"))
        try:
            prior = None
            if "prior" in state.document:
                part = state.part("prior")
                prior = ErrorPrior(
                    part.numbers("mean", (size,), low=0, high=1), part.numbers("covariance", (size, size))
                )
            router = cls(
                clusters,
                prior=prior,
                estimator=state.value("estimator", str),  # type: ignore[arg-type]  # checked by the constructor
                cost_weight=state.value("cost_weight", float),
            )
            seen: set[str] = set()
            for row, record in enumerate(records):
                profile = LLMProfile.from_record(record, counts[row], losses[row], costs[row])
                if profile.name in seen:
                    msg = f"{profile.name!r} is saved twice."
                    raise InvalidInputError(msg)  # noqa: TRY301
                seen.add(profile.name)
                router.register(profile)
        except InvalidInputError as error:
            msg = f"The router in {shown(path)!r} is damaged. {error}"
            raise StorageError(msg) from error
        router._version = state.version
        return router

    def _snapshot(self, among: Iterable[str] | None = None) -> Pool:
        if among is None:
            return self._pool
        if not isinstance(among, Pool):
            return self._pool.among(_names(among))
        now = self.clusters
        if among.clusters is not now and among.clusters.fingerprint not in self._former | {now.fingerprint}:
            msg = "among is a snapshot of another router's models, over other clusters; take it from this router."
            raise InvalidInputError(msg)
        return among

    def _candidates(self, among: Iterable[str] | None) -> Pool:
        pool = self._snapshot(among)
        if not pool.names:
            msg = (
                "There is no model to choose from: "
                + ("among is empty." if among is not None else "none is registered.")
                + " Register a profiled model: router.register(router.profile(name, prompts, losses, cost=...))."
            )
            raise NoModelError(msg)
        return pool

    def _conditions(self, cost_weight: float | None, among: Iterable[str] | None) -> tuple[Pool, float]:
        weight = self._cost_weight if cost_weight is None else _checked_number(cost_weight, "cost_weight")
        return self._candidates(among), weight

    def _decided(self, pool: Pool, vectors: Vectors, weight: float) -> list[RoutingDecision]:
        clusters = pool.clusters
        decisions: list[RoutingDecision] = []
        for start in range(0, len(vectors), _AT_ONCE):  # what lies between vectors and decisions stays small
            memberships = clusters.phi(vectors[start : start + _AT_ONCE])
            decisions += pool.decide(memberships, clusters.terms, weight, self._explorer)
        return decisions

    def _note(self, decisions: Sequence[RoutingDecision], began: float, failed: str | None = None) -> None:
        self._lately.extend((one.model, one.expected_error, one.expected_cost, failed) for one in decisions)
        if _log.isEnabledFor(logging.INFO):
            level = logging.DEBUG if failed is None else logging.INFO
            for one in decisions:
                _log.log(level, "%s", one)
        for listener in self._listeners:
            for one in decisions:
                try:
                    listener(one, (time.perf_counter() - began) / len(decisions), failed)
                except Exception as error:  # noqa: BLE001  # who watches a call must not be what fails it
                    _log.warning("A listener raised %s.", type(error).__name__)

    def _put_learnt(self, learnt: Mapping[str, Learnt]) -> None:
        """Put learnt profiles in the place of those they were learnt from, unless these have been replaced since."""
        with self._lock:
            now = self._pool.given
            self._pool = self._with(each.now for name, each in learnt.items() if now.get(name) is each.before)

    def _with(self, profiles: Iterable[LLMProfile]) -> Pool:
        """The snapshot with these profiles added or replaced. Only they are estimated; the caller holds the lock."""
        pool, new = self._pool, {profile.name: profile for profile in profiles}
        estimates = {name: profile.estimate(self._estimator, self._prior) for name, profile in new.items()}
        return Pool(new, estimates, pool.clusters, before=pool)


def _as_batch(
    prompt: str | None, vector: npt.ArrayLike | None
) -> tuple[list[str] | None, Vectors | npt.ArrayLike | None]:
    if prompt is not None and not isinstance(prompt, str):
        msg = f"route() takes one prompt, a str, not {type(prompt).__name__}; for many there is route_many()."
        raise InvalidInputError(msg)
    if vector is None:
        return None if prompt is None else [prompt], None
    try:
        array = np.asarray(vector)
    except ValueError:
        array = np.empty(())
    if array.ndim != 1:
        msg = "route() takes one vector, a list of d numbers; for many there is route_many()."
        raise InvalidInputError(msg)
    return None if prompt is None else [prompt], array[None, :]


def _names(among: Iterable[str]) -> list[str]:
    names: list[Any] | None = None
    if hasattr(among, "__iter__") and not isinstance(among, str):
        names = list(among)
    if names is None or not all(isinstance(name, str) for name in names):
        found = f"is {among!r}" if names is None else "holds something else"  # a model shows its address in its repr
        msg = f"among should be a list of model names, but {found}."
        raise InvalidInputError(msg)
    return names


def _checked_number(value: float, what: str) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        msg = f"{what} should be a number of at least 0, but is {value!r}."
        raise InvalidInputError(msg)
    return number
