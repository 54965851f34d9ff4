"""What the faces check when they are made."""

import math
from collections.abc import Iterable
from numbers import Real

from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.router import UniRouter


def check_router(router: object) -> None:
    """Raise an error if this is no router."""
    if not isinstance(router, UniRouter):
        msg = f"router should be a UniRouter (UniRouter.load(path) makes one of a folder), not {type(router).__name__}."
        raise InvalidInputError(msg)


def check_profiles(router: UniRouter, names: Iterable[str]) -> None:
    """Raise an error if the router has no profile of one of these models."""
    check_router(router)
    missing = [name for name in names if name not in router.profiles]
    if missing:
        msg = (
            f"The router has no profile of {', '.join(map(repr, missing))}; it has {list(router.models)}. "
            "Register one first: router.register(router.profile(name, prompts, losses, cost=...))."
        )
        raise InvalidInputError(msg)


def check_cost_weight(weight: object) -> None:
    """Raise an error if this is neither a lambda nor None."""
    if weight is not None and not (isinstance(weight, Real) and math.isfinite(weight) and float(weight) >= 0):
        msg = f"cost_weight should be a number of at least 0 or None, but is {weight!r}."
        raise InvalidInputError(msg)
