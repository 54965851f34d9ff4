"""One way to refuse bad input: numbers, names and packages that are not installed. And one way to show it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from unirouter_integrations.errors import InvalidInputError, MissingDependencyError

_LONGEST_NAME = 200  # characters; the longest names of models on Hugging Face have 193
# What may be shown of a text: a name. It has no spaces, and is in ASCII, because not all scripts have spaces. Keys of
# providers hold long runs of letters and digits, or are UUIDs or 40 characters of base64.
_NAME = re.compile(r"\w[\w.:/@+-]{0,63}", re.ASCII)
_KEY = re.compile(r"(?=[a-z]*\d)[a-z\d]{16}|[a-f\d]{8}(-[a-f\d]{4}){3}|^[a-z\d/+]{40}$", re.IGNORECASE)
_COLLAPSED_URL = re.compile(r"[a-z][a-z\d+.-]+:/", re.IGNORECASE)  # what a `Path` makes of a URL
_SCHEME = re.compile(r"[a-z][a-z\d+.-]{0,19}", re.IGNORECASE)
_HOST = re.compile(r"[\w.-]{1,100}(:\d{1,5})?")
_LARGEST_SHOWN = 10**18  # longer whole numbers are shown as floating-point numbers


def shown(value: object) -> str:
    """Describe a value that a user gave, for a message that refuses it.

    It may be anything, in the wrong place: a prompt, a key, a client whose representation holds a password. So only
    numbers, None, booleans and texts that can be names are shown; of a URL the scheme and the host; of anything else
    the type.
    """
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, Real):
        with suppress(Exception):  # of numbers that are too large, and of types of other people
            whole = int(value) if isinstance(value, Integral) else _LARGEST_SHOWN
            return repr(whole if abs(whole) < _LARGEST_SHOWN else float(value))
    if type(value) is str:
        if not value or (_NAME.fullmatch(value) and "://" not in value and not _KEY.search(value)):
            return repr(value)
        if "://" in value and (redacted := _redacted_url(value)):
            return repr(redacted)
        return f"<text of {len(value):,} characters>"
    return f"<{type(value).__name__}>"


def shown_path(path: str | os.PathLike[str]) -> str:
    """Return a path for messages and log records, in quotes: of a URL only the scheme and the host, see `shown`."""
    text = os.fspath(path)
    is_shown = not (is_url(text) or _COLLAPSED_URL.match(text))
    return repr(text if is_shown else _redacted_url(text) or "a URL")


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL."""
    return "://" in str(os.fspath(path))


def _redacted_url(text: str) -> str:
    """Return the schemes of a URL and the host at its end ("zip://...::s3://bucket/..."); empty if it is no URL."""
    *outer, last = (re.split(":/+", part, maxsplit=1) for part in text.split("::"))
    if len(last) == 1 or not all(_SCHEME.fullmatch(scheme) for scheme, *_ in (*outer, last)):
        return ""
    scheme, rest = last
    authority = re.split(r"[/?#;\\]", rest, maxsplit=1)[0]
    host = authority.rpartition("@")[2]
    # An @ that comes later may end a password with a slash in it.
    is_host = _HOST.fullmatch(host) and "@" not in rest[len(authority) :]
    return "".join(f"{each}://...::" for each, *_ in outer) + f"{scheme}://{f'{host}/' if is_host else ''}..."


def check_name(value: Any, what: str) -> str:
    """Check the name of a model.

    It is printed, logged and saved. So it holds no control characters, by which it could look like something else.

    Raises:
        InvalidInputError: If it is no text, empty, very long, or holds characters that cannot be printed.
    """
    if isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isprintable():
        return str(value)
    msg = f"{what} should be a text of 1 to {_LONGEST_NAME} printable characters, but is {shown(value)}."
    raise InvalidInputError(msg)


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
    msg = f"{what} should be a number {allowed}, but is {shown(value)}."
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
    msg = f"{what} should be a whole number {allowed}, but is {shown(value)}."
    raise InvalidInputError(msg)


def one_of(value: Any, what: str, allowed: Iterable[Any]) -> None:
    """Check that a value is one of a few.

    Raises:
        InvalidInputError: If it is not; the message names the nearest one.
    """
    choices = list(allowed)
    if not isinstance(value, str | bool) or value not in choices:
        names = ", ".join(map(repr, choices))
        msg = f"{what} should be one of {names}, but is {shown(value)}.{did_you_mean(value, choices)}"
        raise InvalidInputError(msg)


def check_known(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Check that every name is a known one, so that a misspelt argument is an error.

    Raises:
        InvalidInputError: If one is not; the message names the nearest known one, or all of them.
    """
    choices = sorted(known)
    for name in names:
        if not isinstance(name, str) or name not in choices:
            hint = did_you_mean(name, choices) or f" Known are {', '.join(choices) or 'none'}."
            msg = f"{what} has no {shown(name)}.{hint}"
            raise InvalidInputError(msg)


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """A sentence that names the nearest known name, with a space before it; empty if none is near."""
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        return ""
    near = get_close_matches(name, [str(each) for each in known], n=1, cutoff=0.6)
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
