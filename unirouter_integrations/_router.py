"""`UniRouter`: the rule of `core` over a pool of models that may change at any time.

Phi is `clusters`, Psi(h) and c(h) are estimated from the registered profiles, lambda is `cost_weight`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unirouter_integrations._checks import number, whole_number
from unirouter_integrations._concurrency import ForkSafeLock
from unirouter_integrations.core._calibration import goal
from unirouter_integrations.core._clusters import Assignment, PromptClusters, fit_clusters
from unirouter_integrations.core._decision import RoutingDecision
from unirouter_integrations.core._observers import Listener, Observers, RouterStats
from unirouter_integrations.core._pool import Pool
from unirouter_integrations.core._profiles import (
    ErrorPrior,
    Estimator,
    Floats,
    LLMProfile,
    check_estimator,
    errors_of_known,
)
from unirouter_integrations.core._snapshot import RouterState, Snapshot, checked_names
from unirouter_integrations.data import Outcomes, as_outcomes
from unirouter_integrations.embedding import EmbedderLike, Vectors
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.learning._learner import HALF_LIFE, SYNC_SECONDS, Learning, ProfileUpdate
from unirouter_integrations.learning._stores import StatisticsStore


class UniRouter:
    """Routes each prompt to the registered model with the least expected error plus weighted cost.

    Make one with `UniRouter.fit` or `UniRouter.load`. All that a decision depends on stands behind one reference, read
    once per decision and replaced in one step. So models and the whole router may be replaced while others route.

    Args:
        clusters: Phi, the fitted map from prompts to clusters.
        prior: What known models show about a new one's errors; None if none are known.
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
        self._state = RouterState(Pool({}, {}, clusters), prior, estimator, number(cost_weight, "cost_weight"))
        self._lock = ForkSafeLock()  # held while a new state is made of the one in use
        self._observers = Observers()
        self._learning: Learning | None = None

    @classmethod
    def fit(
        cls,
        prompts: Sequence[str] | Outcomes | Any,
        *,
        embedder: EmbedderLike | None = "local",
        n_clusters: int | Literal["auto"] = "auto",
        seed: int = 0,
        scores: Mapping[str, Sequence[float] | Floats] | None = None,
        vectors: npt.ArrayLike | None = None,
        assignment: Assignment = "soft",
        estimator: Estimator = "empirical_bayes",
    ) -> UniRouter:
        """Learn from unlabelled prompts which kinds there are, and from known models how errors vary over them.

        Args:
            prompts: Prompts like those that will be routed; a few hundred are enough. Or recorded outcomes of known
                models, which bring prompts and scores: an `Outcomes` table, or a data frame (pandas, polars, pyarrow)
                with the columns `prompt`, `model`, `score` and perhaps `cost`.
            embedder: See `PromptClusters.fit`.
            n_clusters: See `PromptClusters.fit`.
            seed: The same prompts and seed give the same router.
            scores: For each known model its scores on these prompts, `(len(prompts),)`, 0 (wrong) to 1 (right), NaN
                where not graded. From them soft assignment is learned, and the prior with which new models are profiled
                from few graded prompts. It registers nothing.
            vectors: See `PromptClusters.fit`.
            assignment: See `PromptClusters.fit`.
            estimator: See `LLMProfile.estimate`.

        Raises:
            InvalidInputError: If an argument is out of range or two of them disagree.
            EmbeddingError: If the embedder gives vectors that cannot be used.
        """
        check_estimator(estimator)
        texts: Any = prompts
        if (outcomes := as_outcomes(prompts)) is not None:
            if scores is not None:
                msg = "The outcomes hold the scores of the known models; leave scores= out, or give a list of prompts."
                raise InvalidInputError(msg)
            texts = outcomes.prompts
            scores = {name: outcomes.scores[:, column] for column, name in enumerate(outcomes.models)}
        fitted = fit_clusters(texts, embedder, n_clusters=n_clusters, seed=seed, vectors=vectors, assignment=assignment)
        gate = fitted.clusters.gate
        if scores is None:
            return cls(fitted.with_gate(gate), estimator=estimator)
        psi = errors_of_known(np.eye(len(fitted.clusters))[fitted.labels], scores)
        if gate is not None:
            losses = 1 - np.column_stack([np.asarray(known, float) for known in scores.values()])
            gate = gate.fit(fitted.unit_vectors, losses, psi, seed=seed)
            psi = errors_of_known(gate(fitted.unit_vectors), scores)
        clusters = fitted.with_gate(gate)
        return cls(clusters, prior=ErrorPrior.fit(psi, clusters.shares), estimator=estimator)

    @property
    def clusters(self) -> PromptClusters:
        """Phi."""
        return self._state.pool.clusters

    @property
    def prior(self) -> ErrorPrior | None:
        """What known models show about a new one's errors."""
        return self._state.prior

    @property
    def estimator(self) -> Estimator:
        """How counts become expected errors."""
        return self._state.estimator

    @property
    def cost_weight(self) -> float:
        """lambda: the error that one unit of cost is worth. It may be set at any time."""
        return self._state.cost_weight

    @cost_weight.setter
    def cost_weight(self, value: float) -> None:
        weight = number(value, "cost_weight")
        with self._lock:
            self._state = replace(self._state, cost_weight=weight)

    @property
    def version(self) -> str | None:
        """Identifies the save that this router was loaded from; None if it was not loaded."""
        return self._state.version

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the registered models, sorted."""
        return self._state.pool.names

    @property
    def profiles(self) -> Mapping[str, LLMProfile]:
        """The registered profiles by name, as they are now."""
        return MappingProxyType(self._state.pool.sorted_profiles)

    def __repr__(self) -> str:
        state = self._state
        models, estimator = list(state.pool.names), state.estimator
        return f"UniRouter({state.pool.clusters!r}, {models=}, {estimator=}, cost_weight={state.cost_weight:g})"

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has, and what is sent to worker processes: neither lock nor observers nor learning."""
        return {"_state": self._state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._state = state["_state"]
        self._lock, self._observers, self._learning = ForkSafeLock(), Observers(), None

    def profile(
        self,
        name: str,
        prompts: Sequence[str] | None = None,
        scores: Sequence[float] | Floats = (),
        *,
        cost: float | Sequence[float] | Floats,
        vectors: npt.ArrayLike | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> LLMProfile:
        """Describe a model by answers that are already graded. Calls no model and registers nothing.

        Args:
            name: The name of the model.
            prompts: The prompts it was graded on.
            scores: Its score on each, 0 (wrong) to 1 (right); NaN where it was not graded.
            cost: The cost of a call, one number; or what each of these calls cost, `(n,)`, which gives a cost per
                cluster.
            vectors: The embeddings of the prompts, in place of the prompts.
            metadata: Plain JSON to keep with the profile.

        Raises:
            InvalidInputError: If scores or costs do not fit the prompts.
        """
        clusters = self.clusters
        phi = clusters.memberships(prompts, vectors=vectors).phi
        return LLMProfile.from_scores(name, phi, scores, cost=cost, metadata=metadata, clusters=clusters.fingerprint)

    def choose_validation(
        self, prompts: Sequence[str] | None = None, n: int = 100, *, vectors: npt.ArrayLike | None = None
    ) -> list[int]:
        """Choose on which prompts to grade a new model, so that few grades tell most about its errors.

        Args:
            prompts: Prompts like those that will be routed, whose answers can be graded.
            n: How many to choose.
            vectors: The embeddings of the prompts, in place of the prompts.

        Returns:
            The indices of the chosen prompts, the most informative first. Any first part of them is a good choice too.

        Raises:
            InvalidInputError: If there are fewer prompts than n.
        """
        state = self._state
        phi = state.pool.clusters.memberships(prompts, vectors=vectors).phi
        whole_number(n, "n, the number of prompts to choose,", low=1, high=len(phi))
        return (state.prior or ErrorPrior.uninformed(phi.shape[1])).most_informative(phi, n)

    def register(self, *profiles: LLMProfile) -> None:
        """Let models take part in every decision from now on; a profile of the same name is replaced.

        All given profiles are registered in one step, or none of them.

        Raises:
            InvalidInputError: If it is no profile, or was measured on other clusters than this router's.
        """
        with self._lock:
            self._state = self._state.with_profiles(profiles)

    def unregister(self, name: str) -> LLMProfile:
        """Take a model out of every decision from now on, and return its profile.

        Raises:
            UnknownModelError: If no model of that name is registered.
        """
        with self._lock:
            state = self._state
            pool = state.pool.without(name)
            self._state = replace(state, pool=pool)
        return state.pool.profiles[name]

    def snapshot(self, among: Iterable[str] | None = None) -> Snapshot:
        """The router as it is now, which decides without seeing any later change.

        Args:
            among: The names of the candidates; None for all registered models.

        Raises:
            UnknownModelError: If a candidate is not registered.
        """
        explorer = None if (learning := self._learning) is None else learning.explorer
        snapshot = Snapshot(self._state, self._observers, explorer)
        return snapshot if among is None else snapshot.among(among)

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
        return self.snapshot(among).route(prompt, vector=vector, cost_weight=cost_weight)

    async def aroute(
        self,
        prompt: str | None = None,
        *,
        vector: npt.ArrayLike | None = None,
        cost_weight: float | None = None,
        among: Iterable[str] | None = None,
    ) -> RoutingDecision:
        """Async version of `route`: the embedder is awaited."""
        return await self.snapshot(among).aroute(prompt, vector=vector, cost_weight=cost_weight)

    def route_many(
        self,
        prompts: Sequence[str] | None = None,
        *,
        vectors: npt.ArrayLike | None = None,
        cost_weight: float | None = None,
        among: Iterable[str] | None = None,
    ) -> list[RoutingDecision]:
        """Decide for many prompts, with one call of the embedder.

        Args:
            prompts: The texts; or give `vectors`, their embeddings, `(n, d)`.
            vectors: See `prompts`.
            cost_weight: See `route`.
            among: See `route`.
        """
        return self.snapshot(among).route_many(prompts, vectors=vectors, cost_weight=cost_weight)

    async def aroute_many(
        self,
        prompts: Sequence[str] | None = None,
        *,
        vectors: npt.ArrayLike | None = None,
        cost_weight: float | None = None,
        among: Iterable[str] | None = None,
    ) -> list[RoutingDecision]:
        """Async version of `route_many`: the embedder is awaited."""
        return await self.snapshot(among).aroute_many(prompts, vectors=vectors, cost_weight=cost_weight)

    def expected_errors(
        self,
        prompts: Sequence[str] | None = None,
        *,
        vectors: npt.ArrayLike | None = None,
        among: Iterable[str] | None = None,
    ) -> Floats:
        """The expected error of each model on each prompt, `(n, m)`, in the order of `among` (or of `models`)."""
        names = None if among is None else checked_names(among)
        snapshot = self.snapshot(names)
        errors = snapshot.expected_errors(prompts, vectors=vectors)
        return errors if names is None else errors[:, snapshot.pool.columns(names)]

    def embed(self, prompts: Sequence[str]) -> Vectors:
        """The vectors of some prompts, `(n, d)`, as the router sees them."""
        return self.clusters.embed(prompts)

    async def aembed(self, prompts: Sequence[str]) -> Vectors:
        """Async version of `embed`."""
        return await self.clusters.aembed(prompts)

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
            budget: The mean expected cost per call over the prompts that must not be exceeded: gives the smallest
                weight that keeps to it.
            quality: The share of the best single model's expected quality (1 - error) that must be kept, for instance
                0.97: gives the largest weight that does. There, prompts a little unlike these may go to a cheaper
                model: take other prompts than those of the fit, and rather too high a share.
            among: The names of the candidates; None for all registered models.

        Returns:
            The cost weight, which is now the router's.

        Raises:
            InvalidInputError: If not exactly one of budget and quality is given, there are no prompts, or the goal
                cannot be reached; the message says what can.
            NoModelError: If there is no candidate.
        """
        find_weight = goal(budget, quality)
        names = None if among is None else checked_names(among)
        while True:  # the router may be replaced while the weight is computed: then it is computed anew
            state = self._state
            snapshot = Snapshot(state) if names is None else Snapshot(state).among(names)
            snapshot.check_candidates()
            weight = find_weight(snapshot.pool.expected(snapshot.clusters.memberships(prompts, vectors=vectors).phi))
            with self._lock:
                if self._state.pool.clusters is state.pool.clusters:
                    self._state = replace(self._state, cost_weight=weight)
                    return weight

    def observe(self, decision: RoutingDecision | Mapping[str, Any], score: float, cost: float | None = None) -> bool:
        """Learn from what a call turned out to be worth. It takes microseconds; profiles change a little later.

        Args:
            decision: The decision of the call, or the same as plain JSON, as answers carry it
                (`response_metadata["unirouter"]`). JSON is a little less exact: of the clusters it names only the one
                the prompt belongs to most.
            score: From 0 (wrong) to 1 (right).
            cost: What the call cost, at most 1e9, in the unit of the profiles' costs; None if that is not known.

        Returns:
            Whether it was counted: it is not if the decision was observed before, the model was unregistered, or the
            clusters were replaced meanwhile.

        Raises:
            InvalidInputError: If it is no decision, or lacks the signature that `learn` asks for, or score or cost are
                out of range.
        """
        if self._learning is None:
            with self._lock:
                self._learning = self._learning or Learning(self.snapshot, self._update_profiles)
        return self._learning.observe(decision, score, cost)

    def learn(
        self,
        store: StatisticsStore | str | os.PathLike[str] | None = None,
        *,
        half_life: float = HALF_LIFE,
        every: float = SYNC_SECONDS,
        explore: bool = False,
        seed: int | None = None,
        key: bytes | None = None,
    ) -> Learning:
        """Set how to learn from what is observed. Without it, `observe` learns in this process alone.

        Args:
            store: Where workers add up what they observe: the path of an SQLite file, for the processes of one machine;
                `RedisStatistics(url)`, for several machines; None for this process. While it cannot be reached nothing
                is learned and nothing is lost, and calls go on.
            half_life: After how many observations of a model what was known of it before counts half. The shorter, the
                sooner a change is noticed; the longer, the more exact the estimate. `math.inf` forgets nothing.
            every: How many seconds may pass until what was observed is seen, here and by other workers.
            explore: Whether models are now and then tried that might be better than is known: each is judged by a draw
                from its error's distribution (Thompson sampling). It costs a little quality now, and finds models that
                have become better.
            seed: Seed of these draws.
            key: A secret of all workers, for feedback that passes through clients: `observe` takes only signed JSON.

        Returns:
            The learning. Closing it sends what was observed and not yet sent; it is a context manager.
        """
        explorer = np.random.default_rng(seed) if explore else None
        learning = Learning(
            self.snapshot, self._update_profiles, store, half_life=half_life, every=every, key=key, explorer=explorer
        )
        with self._lock:
            former, self._learning = self._learning, learning
        if former is not None:
            former.close()
        learning.start()
        return learning

    def sign(self, decision: RoutingDecision | Mapping[str, Any]) -> dict[str, Any]:
        """Return a decision as plain JSON; if `learn` was given a key, signed, so that clients cannot make one."""
        if self._learning is not None:
            return self._learning.sign(decision)
        return decision.as_dict() if isinstance(decision, RoutingDecision) else dict(decision)

    def replace_with(self, other: UniRouter) -> None:
        """Become another router in one step: its clusters, profiles, prior, estimator and cost weight.

        Calls in progress are decided as they began. Learning goes on with the new profiles.
        """
        state = other._state
        with self._lock:
            self._state = state

    def stats(self) -> RouterStats:
        """Sum up the recent decisions, whoever asked for them; one that led to no call counts as well."""
        return self._observers.stats()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call a function with every decision, in the thread that makes it. Returns the function that ends this."""
        return self._observers.subscribe(listener)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save as `router.json` and `router.safetensors` in a folder, replacing a router saved there.

        No prompt is saved. The local embedder is saved whole, any other by its name only.
        """
        self._state.save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, embedder: EmbedderLike | None = None) -> UniRouter:
        """Load what `save` wrote. Nothing in the folder is executed or imported.

        Args:
            path: The folder, or the URL of one that fsspec knows (`"s3://bucket/router"`; needs the extra `fsspec`).
            embedder: The embedder the router was fitted with; not needed for the local one. It embeds one probe
                sentence, and is refused if the vector is not the one of the fit.

        Raises:
            StorageError: If the folder is missing, damaged, or written by a newer version.
            EmbeddingError: If the embedder is missing or is not the one of the fit.
        """
        state = RouterState.load(path, embedder)
        router = cls(state.pool.clusters)
        router._state = state
        return router

    def _update_profiles(self, updates: Mapping[str, ProfileUpdate]) -> None:
        """Register what was learned, except for profiles that were replaced since."""
        with self._lock:
            now = self._state.pool.profiles
            updated = [update.new for name, update in updates.items() if now.get(name) is update.old]
            self._state = self._state.with_profiles(updated)
