"""What an error of a model's client means: would the same call succeed later, and would another model answer it?

Clients of providers have no exceptions in common. They are recognised by what they say of themselves, by HTTP status,
by the names of their classes and, last, by their text.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

_TRANSIENT_STATUSES = frozenset({408, 409, 425, 429, *range(500, 600)})
_TOO_LONG_STATUSES = frozenset({400, 413, 422})  # with which providers answer a context overflow, among others
_TRANSIENT_NAMES = re.compile(
    "Timeout|Timedout|TimedOut|DeadlineExceeded|Connect|RemoteProtocol|ReadError|WriteError|Disconnected|RateLimit|TooManyRequests|Throttl|"
    "ResourceExhausted|Overloaded|Unavailable|InternalServer|ServerError"
)
_SURVIVABLE_TEXT = re.compile(
    r"context.?(length|window|overflow)|(prompt|input|request).{0,20} too (long|large)|(maximum|too many).{0,30}tokens"
    r"|no generation chunks|^JSONDecode|ResponseValidation"  # LangChain, for a stream without an answer
    r"|validation errors? for (LLM\w+EndEvent|ChatResponse|CompletionResponse)\b",  # LlamaIndex, for no answer
    re.IGNORECASE,
)
# OpenAI's client of LangChain, Azure, and Google's client of LlamaIndex.
_REFUSAL_TEXT = re.compile(
    r"^\w*(Refusal|ContentFilter)\w*Error:|'code': 'content_filter'|Azure OpenAI's content management policy"
    r"|terminated early: .{0,40}SAFETY"
)
_MAX_TEXT = 2000  # characters of a message that are searched; some quote a whole response


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: rate limits, timeouts, lost connections, errors of the server."""
    if getattr(error, "code", None) == "insufficient_quota":  # a 429 that waiting does not help
        return False
    says = getattr(error, "is_retryable", None)
    if isinstance(says, bool):
        return says
    status = _status(error)
    if status is not None:
        return status in _TRANSIENT_STATUSES
    names = (each.__name__ for each in type(error).__mro__)
    if isinstance(error, TimeoutError | ConnectionError) or any(map(_TRANSIENT_NAMES.search, names)):
        return True
    return error.__cause__ is not None and is_transient(error.__cause__)


def is_fault_of_model(error: BaseException) -> bool:
    """Whether an error counts against the health of the model; an input that is too long says nothing about it."""
    return is_transient(error) or _status(error) in _TRANSIENT_STATUSES


def is_survivable(error: BaseException) -> bool:
    """Whether another model could take the call: also after a spent quota, too long an input, or no answer at all."""
    if is_fault_of_model(error):
        return True
    if "OutputParser" in type(error).__name__:  # it quotes what the model answered
        return False
    status = _status(error)
    return (status is None or status in _TOO_LONG_STATUSES) and bool(_SURVIVABLE_TEXT.search(_text(error)))


def is_refusal_error(error: BaseException) -> bool:
    """Whether an error is a provider's refusal, or comes from its filter."""
    name = type(error).__name__
    if "OutputParser" in name or "Validation" in name:  # it quotes what the model answered
        return False
    return getattr(error, "code", None) == "content_filter" or bool(_REFUSAL_TEXT.search(_text(error)))


def retry_after(error: BaseException) -> float | None:
    """How many seconds the provider asks to wait; None if it does not say."""
    headers: Any = getattr(getattr(error, "response", None), "headers", None) or getattr(error, "headers", None)
    if not hasattr(headers, "items"):
        return None
    by_name = {str(name).lower(): value for name, value in headers.items()}
    for name, per_second in (("retry-after-ms", 1000), ("retry-after", 1)):
        with suppress(KeyError, TypeError, ValueError):
            seconds = float(by_name[name]) / per_second
            return max(seconds, 0.0) if math.isfinite(seconds) else None
    with suppress(KeyError, TypeError, ValueError):
        return max((parsedate_to_datetime(by_name["retry-after"]) - datetime.now(UTC)).total_seconds(), 0.0)
    return None


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:_MAX_TEXT]}"


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error, wherever its client keeps it."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # of botocore
        response = response.get("ResponseMetadata") or {}
        found = [response.get("HTTPStatusCode")]
    else:
        found = [getattr(error, "status_code", None), getattr(response, "status_code", None)]
    found += [getattr(error, "status", None), getattr(error, "code", None)]
    return next((status for status in found if type(status) is int and status in range(400, 600)), None)
