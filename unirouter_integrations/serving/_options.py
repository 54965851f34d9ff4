"""What one call may ask for: its own cost weight, candidates or model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from unirouter_integrations._checks import check_known, number
from unirouter_integrations.errors import InvalidInputError, NoModelError

PREFIX = "unirouter_"


class CallOptions(NamedTuple):
    """The options of one call.

    Attributes:
        cost_weight: lambda; None for that of the face, or else the router's.
        among: The names of the candidates; None for all. One alone is forced: no other model takes over.
        max_error: Only candidates take part that are expected to err at most so much, if there are any; None for all.
        max_cost: What the call may be expected to cost; None for what its face says.
    """

    cost_weight: float | None = None
    among: tuple[str, ...] | None = None
    max_error: float | None = None
    max_cost: float | None = None

    @classmethod
    def of(
        cls,
        *,
        cost_weight: Any = None,
        among: Any = None,
        model: Any = None,
        max_error: Any = None,
        max_cost: Any = None,
    ) -> CallOptions:
        """Check the options that a user gave; `model` is the name of a forced model and comes before `among`.

        Raises:
            InvalidInputError: If one of them is out of range.
        """
        weight = None if cost_weight is None else number(cost_weight, "cost_weight")
        error = None if max_error is None else number(max_error, "max_error", high=1)
        cost = None if max_cost is None else number(max_cost, "max_cost", positive=True)
        if model is not None:
            among = [model]
        if among is None:
            return cls(weight, None, error, cost)
        names = tuple(among) if isinstance(among, Iterable) and not isinstance(among, str) else ()
        if not (names and all(isinstance(name, str) for name in names)):
            msg = "among should be a list of one or more names of models, and model one name."
            raise InvalidInputError(msg)
        return cls(weight, names, error, cost)

    @classmethod
    def from_prefixed(cls, given: Mapping[str, Any], *, allowed: bool = True) -> CallOptions:
        """Read the options among other settings, where their names begin with `unirouter_`.

        Raises:
            InvalidInputError: If there is no option of such a name, one is out of range, or none is allowed.
        """
        ours = {str(key): value for key, value in given.items() if str(key).startswith(PREFIX)}
        if not ours:
            return _NONE
        check_known(ours, _NAMES, "A call")
        if not allowed:
            msg = f"With allow_overrides=False a call has no options of its own, but this one has {', '.join(ours)}."
            raise InvalidInputError(msg)
        return cls.of(**{key.removeprefix(PREFIX): value for key, value in ours.items()})

    def within(self, names: Iterable[str] | None) -> CallOptions:
        """The options of a call that only these models may take, whatever it asks for; None for any.

        Raises:
            InvalidInputError: If they are no list of names.
            NoModelError: If the call asks for others.
        """
        if names is None:
            return self
        allowed = CallOptions.of(among=names).among or ()
        among = tuple(name for name in self.among or allowed if name in allowed)
        if not among:
            msg = f"The call asks for {', '.join(self.among or ())}, and candidates allows only {', '.join(allowed)}."
            raise NoModelError(msg)
        return self._replace(among=among)


_NONE = CallOptions()
_NAMES = tuple(f"{PREFIX}{name}" for name in ("among", "cost_weight", "max_cost", "max_error", "model"))
