"""What one decision depends on, as one immutable value, and the decisions made from it."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from unirouter_integrations._checks import number, shown, shown_path
from unirouter_integrations._concurrency import off_loop
from unirouter_integrations._storage import SavedState, read_folder, write_folder
from unirouter_integrations.core._clusters import Memberships, PromptClusters, clusters_from_saved, clusters_to_saved
from unirouter_integrations.core._decision import Exclusion, RoutingDecision, decide, noted_memberships
from unirouter_integrations.core._observers import Observers
from unirouter_integrations.core._pool import Pool
from unirouter_integrations.core._profiles import (
    ErrorPrior,
    Estimator,
    Floats,
    LLMProfile,
    check_estimator,
    profile_from_record,
    profile_to_record,
)
from unirouter_integrations.embedding import EmbedderLike, Vectors
from unirouter_integrations.errors import InvalidInputError, NoModelError, StorageError

_FORMAT = "unirouter"  # of a saved router
_FORMAT_VERSION = 1
_MAX_WORK = 2e11  # multiplications on loading, K^3 for the prior and for each model; about 20 seconds
_MAX_ROWS_IN_LOOP = 100  # that an event loop decides itself, in a few milliseconds
_ROWS_PER_PART = 1000  # prompts decided at once, so that what lies between vectors and decisions stays small


@dataclass(frozen=True, eq=False)
class RouterState:
    """All that a router's decisions depend on. A router holds one reference to it and replaces it in one step.

    Attributes:
        pool: Psi and c of the registered models, over Phi.
        prior: What known models show about a new one's errors; None if none are known.
        estimator: How counts become expected errors.
        cost_weight: lambda.
        version: Which save the router was loaded from; None if it was not loaded.
    """

    pool: Pool
    prior: ErrorPrior | None
    estimator: Estimator
    cost_weight: float
    version: str | None = None

    def __post_init__(self) -> None:
        check_estimator(self.estimator)
        clusters = self.pool.clusters
        if self.prior is not None and len(self.prior.mean) != len(clusters):
            msg = f"The prior is over {len(self.prior.mean)} clusters, but there are {len(clusters)}."
            raise InvalidInputError(msg)

    def to_saved(self) -> SavedState:
        """What is saved of it."""
        profiles = list(self.pool.sorted_profiles.values())
        shape = (len(profiles), len(self.pool.clusters))
        saved = SavedState(
            {
                "format": _FORMAT,
                "format_version": _FORMAT_VERSION,
                "estimator": self.estimator,
                "cost_weight": self.cost_weight,
                "profiles": [profile_to_record(profile) for profile in profiles],
            },
            {
                "counts": np.array([profile.counts for profile in profiles]).reshape(shape),
                "losses": np.array([profile.losses for profile in profiles]).reshape(shape),
                "costs": np.array([np.broadcast_to(each.cost, shape[1]) for each in profiles]).reshape(shape),
            },
        )
        saved.add_child("clusters", clusters_to_saved(self.pool.clusters))
        if self.prior is not None:
            saved.add_child("prior", SavedState({}, {"mean": self.prior.mean, "covariance": self.prior.covariance}))
        return saved

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save it, see `UniRouter.save`."""
        write_folder(path, "router", self.to_saved())

    @classmethod
    def load(cls, path: str | os.PathLike[str], embedder: EmbedderLike | None = None) -> RouterState:
        """Load what `save` wrote, see `UniRouter.load`."""
        try:
            return cls.from_saved(read_folder(path, "router"), path, embedder)
        except InvalidInputError as error:
            msg = f"The router in {shown_path(path)} is damaged. {error}"
            raise StorageError(msg) from error

    @classmethod
    def from_saved(
        cls, saved: SavedState, path: str | os.PathLike[str], embedder: EmbedderLike | None = None
    ) -> RouterState:
        """The state that was saved.

        Args:
            saved: What `to_saved` gave, read from this path.
            path: Where it was read from, for messages.
            embedder: See `UniRouter.load`.

        Raises:
            StorageError: If it is damaged, or written by a newer version.
            InvalidInputError: If its parts do not fit each other.
            EmbeddingError: If the embedder is missing or is not the one of the fit.
        """
        saved.check_format(_FORMAT, _FORMAT_VERSION, "router", path)
        clusters = clusters_from_saved(saved.child("clusters"), embedder)
        size = len(clusters)
        records = saved.children("profiles")
        shape = (len(records), size)
        counts, losses, costs = (saved.array(name, shape, low=0) for name in ("counts", "losses", "costs"))
        prior = None
        if "prior" in saved.document:
            if (1 + len(records)) * size**3 > _MAX_WORK:
                msg = f"A prior over {size:,} clusters for {len(records):,} models would take too long to compute with."
                raise StorageError(msg)
            part = saved.child("prior")
            prior = ErrorPrior(part.array("mean", (size,), low=0, high=1), part.array("covariance", (size, size)))
        estimator: Any = saved.value("estimator", str)  # checked by the constructor
        weight = number(saved.value("cost_weight", float), "cost_weight")
        profiles = [profile_from_record(*row) for row in zip(records, counts, losses, costs, strict=True)]
        for name, count in Counter(profile.name for profile in profiles).items():
            if count > 1:
                msg = f"{name!r} is saved twice."
                raise InvalidInputError(msg)
        return cls(Pool({}, {}, clusters), prior, estimator, weight, saved.version).with_profiles(profiles)

    def with_profiles(self, profiles: Iterable[LLMProfile]) -> RouterState:
        """The state with these profiles added or replaced. Only these are estimated.

        Raises:
            InvalidInputError: If one of them is no profile, or was measured on other clusters.
        """
        clusters, added = self.pool.clusters, {}
        for profile in profiles:
            if not isinstance(profile, LLMProfile):
                msg = f"register() takes an LLMProfile (router.profile(...) makes one), not {type(profile).__name__}."
                raise InvalidInputError(msg)
            added[profile.name] = profile
            if len(profile) != len(clusters) or profile.clusters not in (None, clusters.fingerprint):
                msg = (
                    f"The profile of {profile.name!r} was measured on {len(profile)} clusters ({profile.clusters}), "
                    f"but this router has {len(clusters)} ({clusters.fingerprint}). Profile the model again with this "
                    "router."
                )
                raise InvalidInputError(msg)
        estimates = {name: profile.estimate(self.estimator, self.prior) for name, profile in added.items()}
        return replace(self, pool=self.pool.with_profiles(added, estimates))


class Snapshot:
    """A router as it was at one moment: it decides without ever seeing a later change. `UniRouter.snapshot` makes one.

    Args:
        state: What its decisions depend on.
        observers: Are given its decisions.
        explorer: Where given, each model is judged by a draw from its error's distribution.
    """

    __slots__ = ("_explorer", "_observers", "_state")

    def __init__(
        self, state: RouterState, observers: Observers | None = None, explorer: np.random.Generator | None = None
    ) -> None:
        self._state = state
        self._observers = observers or Observers()
        self._explorer = explorer

    def __repr__(self) -> str:
        return f"Snapshot({self.clusters!r}, models={list(self.models)}, cost_weight={self.cost_weight:g})"

    @property
    def pool(self) -> Pool:
        """The candidates, with the tables of Psi and c."""
        return self._state.pool

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the candidates, sorted."""
        return self._state.pool.names

    @property
    def profiles(self) -> Mapping[str, LLMProfile]:
        """The profiles of the candidates by name."""
        return self._state.pool.profiles

    @property
    def clusters(self) -> PromptClusters:
        """Phi."""
        return self._state.pool.clusters

    @property
    def cost_weight(self) -> float:
        """The trade-off lambda."""
        return self._state.cost_weight

    @property
    def version(self) -> str | None:
        """Which save the router was loaded from; None if it was not loaded."""
        return self._state.version

    def among(self, names: Iterable[str]) -> Snapshot:
        """The snapshot with these candidates alone.

        Raises:
            UnknownModelError: If one of them is not registered.
        """
        return self._with(self.pool.among(checked_names(names)))

    def with_surcharges(self, surcharges: Mapping[str, float]) -> Snapshot:
        """The snapshot in which calls of some models cost more than their profiles say, whatever the prompt."""
        return self._with(self.pool.with_surcharges(surcharges))

    def with_profiles(self, profiles: Iterable[LLMProfile]) -> Snapshot:
        """The snapshot with these profiles added or replaced, as `UniRouter.register` would.

        Raises:
            InvalidInputError: If one of them was measured on other clusters.
        """
        return Snapshot(self._state.with_profiles(profiles), self._observers, self._explorer)

    def _with(self, pool: Pool) -> Snapshot:
        if pool is self.pool:
            return self
        return Snapshot(replace(self._state, pool=pool), self._observers, self._explorer)

    def route(
        self,
        prompt: str | None = None,
        *,
        vector: npt.ArrayLike | None = None,
        cost_weight: float | None = None,
        max_error: float | None = None,
    ) -> RoutingDecision:
        """Decide which model a prompt goes to, see `UniRouter.route`.

        Args:
            prompt: See `UniRouter.route`.
            vector: See `UniRouter.route`.
            cost_weight: See `UniRouter.route`.
            max_error: Only candidates are considered that are expected to err at most so much on this prompt, from 0 to
                1; all if none of them is.
        """
        prompts, vectors = _as_batch(prompt, vector)
        return self.route_many(prompts, vectors=vectors, cost_weight=cost_weight, max_error=max_error)[0]

    async def aroute(
        self,
        prompt: str | None = None,
        *,
        vector: npt.ArrayLike | None = None,
        cost_weight: float | None = None,
        max_error: float | None = None,
    ) -> RoutingDecision:
        """Async version of `route`: the embedder is awaited."""
        prompts, vectors = _as_batch(prompt, vector)
        return (await self.aroute_many(prompts, vectors=vectors, cost_weight=cost_weight, max_error=max_error))[0]

    def route_many(
        self,
        prompts: Sequence[str] | None = None,
        *,
        vectors: npt.ArrayLike | None = None,
        cost_weight: float | None = None,
        max_error: float | None = None,
    ) -> list[RoutingDecision]:
        """Decide for many prompts with one call of the embedder, see `UniRouter.route_many` and `route`."""
        weight, began = self._weight(cost_weight), time.perf_counter()
        return self._decide(self.clusters.vectors(prompts, vectors), weight, max_error, began)

    async def aroute_many(
        self,
        prompts: Sequence[str] | None = None,
        *,
        vectors: npt.ArrayLike | None = None,
        cost_weight: float | None = None,
        max_error: float | None = None,
    ) -> list[RoutingDecision]:
        """Async version of `route_many`: the embedder is awaited."""
        weight, began = self._weight(cost_weight), time.perf_counter()
        if vectors is None and prompts is not None:
            vectors, prompts = await self.clusters.aembed(prompts), None
        found = self.clusters.vectors(prompts, vectors)
        return await off_loop(len(found) > _MAX_ROWS_IN_LOOP, self._decide, found, weight, max_error, began)

    def expected_errors(self, prompts: Sequence[str] | None = None, *, vectors: npt.ArrayLike | None = None) -> Floats:
        """The expected error of each candidate on each prompt, `(n, m)`, in the order of `models`."""
        return self.pool.expected(self.clusters.memberships(prompts, vectors=vectors).phi).error

    def reroute(
        self, decision: RoutingDecision, exclusion: Exclusion, among: Iterable[str] | None = None
    ) -> RoutingDecision | None:
        """The decision without a model of it that is excluded; None if no other candidate is left.

        Args:
            decision: A decision of this snapshot, perhaps among fewer candidates.
            exclusion: The model, and why it is excluded.
            among: The candidates to take its place; None for the decision's own.
        """
        began = time.perf_counter()
        following = decision.without(exclusion, among, self.pool)
        if following is not None:
            self._observers.note([following], began, exclusion.model)
        return following

    def restore(self, noted: Mapping[str, Any]) -> RoutingDecision | None:
        """The decision that was noted as plain JSON, by what is known of its model now. It is not reported again.

        Plain JSON does not hold Phi(x), so it is approximate, see `noted_memberships`.

        Returns:
            The decision; None if its model is no candidate, its clusters are others than these, or it is malformed.
        """
        try:
            memberships = noted_memberships(noted, self.clusters)
        except InvalidInputError:  # anybody may have written it
            return None
        model, weight = noted.get("model"), noted.get("cost_weight")
        if (
            memberships is None
            or not isinstance(model, str)
            or model not in self.profiles
            or not isinstance(weight, int | float)
            or not 0 <= weight < math.inf
        ):
            return None
        (decision,) = decide(self.pool, memberships, float(weight))
        return decision.keeping(model)

    def check_candidates(self) -> None:
        """Raise a `NoModelError` if there is no candidate."""
        if not self.profiles:
            msg = (
                "There is no model to choose from: none is registered, or among is empty. Register a profiled model: "
                "router.register(router.profile(name, prompts, scores, cost=...))."
            )
            raise NoModelError(msg)

    def _weight(self, cost_weight: float | None) -> float:
        self.check_candidates()
        return self.cost_weight if cost_weight is None else number(cost_weight, "cost_weight")

    def _decide(self, vectors: Vectors, weight: float, max_error: float | None, began: float) -> list[RoutingDecision]:
        decisions: list[RoutingDecision] = []
        for start in range(0, len(vectors), _ROWS_PER_PART):
            memberships: Memberships = self.clusters.phi(vectors[start : start + _ROWS_PER_PART])
            found = decide(self.pool, memberships, weight, self._explorer)
            decisions += found if max_error is None else [decision.within(max_error) for decision in found]
        self._observers.note(decisions, began)
        return decisions


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


def checked_names(among: Iterable[str]) -> list[str]:
    """The names of candidates that a user gave, as a list.

    Raises:
        InvalidInputError: If they are no list of names.
    """
    names: list[Any] | None = None
    if hasattr(among, "__iter__") and not isinstance(among, str):
        names = list(among)
    if names is None or not all(isinstance(name, str) for name in names):
        found = f"is {shown(among)}" if names is None else "holds something else"
        msg = f"among should be a list of model names, but {found}."
        raise InvalidInputError(msg)
    return names
