"""Psi and c of some models as tables over their clusters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from unirouter_integrations._checks import shown
from unirouter_integrations.core._clusters import PromptClusters
from unirouter_integrations.core._profiles import ClusterErrors, Floats, LLMProfile
from unirouter_integrations.errors import UnknownModelError

# Products are rounded to this many decimals, so that models that are equal come out equal in whatever order they are
# summed.
_DECIMALS = 12
_MAX_STD = 0.5  # of a number that lies between 0 and 1
_MAX_CACHED_SUBSETS = 32  # candidates seldom differ from call to call
# Tables with more entries than this are read only in the clusters a prompt belongs to, if these are fewer than a tenth.
_LARGE_TABLE = 100_000
_SPARSE_FACTOR = 10


class Expectations(NamedTuple):
    """The expected error and cost of each model, `(M,)`, or of each model on each prompt, `(n, M)`."""

    error: Floats
    cost: Floats


class Pool:
    """An immutable set of models over their clusters: Psi and c as tables, `(K, M)`, columns sorted by name.

    The order does not depend on that of registration, so neither does the choice between equal models. The tables are
    made when they are first read.

    Args:
        profiles: The profiles by name, in the order of registration.
        estimates: The errors of each model, by name. It may hold more models.
        clusters: The clusters they belong to.
        surcharges: What calls of some models cost beyond their profiles.
    """

    def __init__(
        self,
        profiles: Mapping[str, LLMProfile],
        estimates: Mapping[str, ClusterErrors],
        clusters: PromptClusters,
        surcharges: Mapping[str, float] | None = None,
    ) -> None:
        self.profiles = profiles
        self.estimates = estimates
        self.clusters = clusters
        self._surcharges = surcharges or {}
        self._subsets: dict[frozenset[str], Pool] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What cannot be computed again."""
        kept = ("profiles", "estimates", "clusters", "_surcharges")
        return {**{name: getattr(self, name) for name in kept}, "_subsets": {}}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the models, sorted."""
        return tuple(sorted(self.profiles))

    @cached_property
    def sorted_profiles(self) -> Mapping[str, LLMProfile]:
        """The profiles by name, sorted."""
        return {name: self.profiles[name] for name in self.names}

    @cached_property
    def error(self) -> Floats:
        """Psi, `(K, M)`."""
        return self._table([self.estimates[name].error for name in self.names])

    @cached_property
    def std(self) -> Floats:
        """The standard deviation of Psi, `(K, M)`."""
        return self._table([self.estimates[name].std for name in self.names])

    @cached_property
    def cost(self) -> Floats:
        """c, `(K, M)`."""
        return self._table([self.profiles[name].cost + self._surcharges.get(name, 0.0) for name in self.names])

    def _table(self, columns: Sequence[Any]) -> Floats:
        table = np.empty((len(self.clusters), len(columns)))
        for index, column in enumerate(columns):
            table[:, index] = column
        return table

    @cached_property
    def _cost_unit(self) -> Floats:
        # One per model, so that its numbers do not depend on other models, and a power of two, so that 0.25 stays 0.25.
        return np.asarray(np.exp2(np.frexp(self.cost.max(axis=0, initial=0))[1] - 1))

    @cached_property
    def _tables(self) -> Floats:
        return np.hstack([self.error, self.cost / self._cost_unit])

    def expected(self, phi: Floats) -> Expectations:
        """Phi(x) . Psi(h) and Phi(x) . c(h) of one prompt, `(M,)`, or of many, `(n, M)`."""
        tables = self._tables
        if phi.size == len(tables) and tables.size > _LARGE_TABLE:  # one prompt belongs to few of many clusters
            used = np.flatnonzero(phi)
            if len(used) * _SPARSE_FACTOR < len(tables):
                phi, tables = phi[..., used], tables[used]
        both = (phi @ tables).round(_DECIMALS)
        size = len(self.names)
        return Expectations(both[..., :size], both[..., size:] * self._cost_unit)

    def std_of(self, column: int, phi: Floats, familiarity: float) -> float:
        """The standard deviation of Phi(x) . Psi(h) for one model and one prompt.

        Errors in neighbouring clusters are taken to be over- or underestimated together, which errs on the wide side.
        The cluster of an unfamiliar prompt is unknown as well, so the spread of the errors over clusters is added.
        """
        std = float(phi @ self.std[:, column])
        if familiarity == 1:
            return std
        errors = self.error[:, column]
        return min(math.sqrt(std**2 + (1 - familiarity) * float(phi @ (errors - phi @ errors) ** 2)), _MAX_STD)

    def columns(self, names: Sequence[str]) -> list[int]:
        """The column indices of these models."""
        self.check(names)
        index = {name: column for column, name in enumerate(self.names)}
        return [index[name] for name in names]

    def among(self, names: Iterable[str]) -> Pool:
        """The pool of these models alone.

        Raises:
            UnknownModelError: If one of them is not in it.
        """
        listed = list(names)
        self.check(listed)
        wanted = frozenset(listed)
        if len(wanted) == len(self.profiles):
            return self
        subset = self._subsets.get(wanted)
        if subset is None:
            profiles = {name: self.profiles[name] for name in self.profiles if name in wanted}
            subset = Pool(profiles, self.estimates, self.clusters, self._surcharges)
            if len(self._subsets) < _MAX_CACHED_SUBSETS:
                self._subsets[wanted] = subset
        return subset

    def with_profiles(self, profiles: Mapping[str, LLMProfile], estimates: Mapping[str, ClusterErrors]) -> Pool:
        """The pool with these profiles added, or put in the place of those of the same names."""
        return Pool({**self.profiles, **profiles}, {**self.estimates, **estimates}, self.clusters)

    def without(self, name: str) -> Pool:
        """The pool without a model."""
        self.check([name])
        profiles, estimates = dict(self.profiles), dict(self.estimates)
        del profiles[name], estimates[name]
        return Pool(profiles, estimates, self.clusters)

    def with_surcharges(self, surcharges: Mapping[str, float]) -> Pool:
        """The pool in which calls of some models cost more than their profiles say, whatever the prompt."""
        return Pool(self.profiles, self.estimates, self.clusters, surcharges) if surcharges else self

    def check(self, names: Iterable[str]) -> None:
        """Raise an `UnknownModelError` if one of these models is not in the pool."""
        missing = [name for name in names if not isinstance(name, str) or name not in self.profiles]
        if missing:
            known = ", ".join(map(repr, self.names)) or "none"
            msg = f"Not registered: {', '.join(map(shown, missing))}. Registered models: {known}."
            raise UnknownModelError(msg)
