"""What one call may ask for: its own cost weight, candidates or model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from unirouter_integrations._checks import check_known, number
from unirouter_integrations.errors import InvalidInputError

PREFIX = "unirouter_"


class CallOptions(NamedTuple):
    """The options of one call.

    Attributes:
        cost_weight: lambda; None for that of the face, or else the router's.
        among: The names of the candidates; None for all. One alone is forced: no other model takes over.
    """

    cost_weight: float | None = None
    among: tuple[str, ...] | None = None

    @classmethod
    def of(cls, *, cost_weight: Any = None, among: Any = None, model: Any = None) -> CallOptions:
        """Check the options that a user gave; `model` is the name of a forced model and comes before `among`.

        Raises:
            InvalidInputError: If one of them is out of range.
        """
        weight = None if cost_weight is None else number(cost_weight, "cost_weight")
        if model is not None:
            among = [model]
        if among is None:
            return cls(weight)
        names = tuple(among) if isinstance(among, Iterable) and not isinstance(among, str) else ()
        if not (names and all(isinstance(name, str) for name in names)):
            msg = "among should be a list of one or more names of models, and model one name."
            raise InvalidInputError(msg)
        return cls(weight, names)

    @classmethod
    def from_prefixed(cls, given: Mapping[str, Any]) -> CallOptions:
        """Read the options among other settings, where their names begin with `unirouter_`.

        Raises:
            InvalidInputError: If there is no option of such a name, or one is out of range.
        """
        ours = {str(key): value for key, value in given.items() if str(key).startswith(PREFIX)}
        if not ours:
            return _NONE
        check_known(ours, _NAMES, "A call")
        return cls.of(**{key.removeprefix(PREFIX): value for key, value in ours.items()})


_NONE = CallOptions()
_NAMES = ("unirouter_among", "unirouter_cost_weight", "unirouter_model")
