"""One way to refuse bad input: numbers, names and packages that are not installed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from unirouter_integrations.errors import InvalidInputError, MissingDependencyError


def number(value: Any, what: str, *, low: float = 0.0, high: float = math.inf, positive: bool = False) -> float:
    """Check a number that a user gave.

    Args:
        value: What was given. NumPy numbers and arrays of one number pass; texts and booleans do not.
        what: Its name in the message.
        low: The least allowed value.
        high: The greatest allowed value. Infinity itself is never allowed, see `positive_or_infinite`.
        positive: Whether the value must be above `low`.

    Raises:
        InvalidInputError: If it is no number, not finite, or out of range.
    """
    found = _as_float(value)
    if math.isfinite(found) and low <= found <= high and not (positive and found == low):
        return found
    if positive:
        allowed = f"above {low:g}"
    elif math.isinf(high):
        allowed = f"of at least {low:g}"
    else:
        allowed = f"from {low:g} to {high:g}"
    msg = f"{what} should be a number {allowed}, but is {value!r}."
    raise InvalidInputError(msg)


def positive_or_infinite(value: Any, what: str) -> float:
    """Check a number above 0; infinity passes.

    Raises:
        InvalidInputError: If it is no such number.
    """
    return math.inf if _as_float(value) == math.inf else number(value, what, positive=True)


def whole_number(value: Any, what: str, *, low: int, high: int | None = None) -> int:
    """Check a whole number that a user gave. NumPy integers pass; booleans do not.

    Raises:
        InvalidInputError: If it is no whole number, or out of range.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        found = int(value)
        if low <= found and (high is None or found <= high):
            return found
    allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
    msg = f"{what} should be a whole number {allowed}, but is {value!r}."
    raise InvalidInputError(msg)


def one_of(value: Any, what: str, allowed: Iterable[Any]) -> None:
    """Check that a value is one of a few.

    Raises:
        InvalidInputError: If it is not; the message names the nearest one.
    """
    choices = list(allowed)
    if value not in choices:
        msg = (
            f"{what} should be one of {', '.join(map(repr, choices))}, but is {value!r}.{did_you_mean(value, choices)}"
        )
        raise InvalidInputError(msg)


def check_known(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Check that every name is a known one, so that a misspelt argument is an error.

    Raises:
        InvalidInputError: If one is not; the message names the nearest known one, or all of them.
    """
    choices = sorted(known)
    for name in names:
        if name not in choices:
            hint = did_you_mean(name, choices) or f" Known are {', '.join(choices)}."
            msg = f"{what} has no {name!r}.{hint}"
            raise InvalidInputError(msg)


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """A sentence that names the nearest known name, with a space before it; empty if none is near."""
    near = get_close_matches(str(name), [str(each) for each in known], n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


@contextmanager
def requires(what: str, extra: str) -> Iterator[None]:
    """Turn an `ImportError` inside the block into one that says what to install.

    Args:
        what: What needs the package.
        extra: The extra of this package that brings it.

    Raises:
        MissingDependencyError: If the import fails.
    """
    try:
        yield
    except ImportError as error:
        msg = f"{what} needs pip install 'unirouter-integrations[{extra}]'."
        raise MissingDependencyError(msg) from error


def _as_float(value: Any) -> float:
    if isinstance(value, str | bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan if not isinstance(value, Real) else math.inf
