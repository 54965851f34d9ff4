"""When a model fails: whether another one could do better, and when the failing one is worth another try."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple, TypeVar

from unirouter_integrations.decision import RoutingDecision
from unirouter_integrations.router import UniRouter

T = TypeVar("T")

FAILED = "it failed with "
_STATUSES = frozenset({408, 409, 425, 429, *range(500, 600)})
_TOO_LONG = frozenset({400, 413, 422})
_NAMES = re.compile(
    "Timeout|Timedout|TimedOut|DeadlineExceeded|Connect|RemoteProtocol|ReadError|WriteError|Disconnected|RateLimit|TooManyRequests|Throttl|"
    "ResourceExhausted|Overloaded|Unavailable|InternalServer|ServerError"
)
_SAID = re.compile(
    r"context.?(length|window|overflow)|(prompt|input|request).{0,20} too (long|large)|(maximum|too many).{0,30}tokens"
    r"|no generation chunks|^JSONDecode|ResponseValidation"  # LangChain's word for a stream without an answer
    r"|validation errors? for (LLM\w+EndEvent|ChatResponse|CompletionResponse)\b",  # LlamaIndex's for no answer
    re.IGNORECASE,
)
# OpenAI's client of LangChain, Azure, and Google's of LlamaIndex.
_REFUSED = re.compile(
    r"^\w*(Refusal|ContentFilter)\w*Error:|'code': 'content_filter'|Azure OpenAI's content management policy"
    r"|terminated early: .{0,40}SAFETY"
)
_MOST_READ = 2000
_IN_A_ROW = 3


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: rate limits, timeouts, lost connections, errors of the server.

    Clients of providers have no errors in common, so they are told by what they say of themselves, by HTTP status, and
    by the names of their classes.
    """
    if getattr(error, "code", None) == "insufficient_quota":  # a 429 that waiting does not help
        return False
    says = getattr(error, "is_retryable", None)
    if isinstance(says, bool):
        return says
    status = _status(error)
    if status is not None:
        return status in _STATUSES
    if isinstance(error, TimeoutError | ConnectionError) or any(_NAMES.search(c.__name__) for c in type(error).__mro__):
        return True
    return error.__cause__ is not None and is_transient(error.__cause__)


def is_survivable(error: BaseException) -> bool:
    """Whether another model could take the call: also after a spent quota, too long an input, garbage, no answer."""
    if is_transient(error) or _status(error) in _STATUSES:
        return True
    if "OutputParser" in type(error).__name__:  # it quotes what the model has said
        return False
    status = _status(error)
    return (status is None or status in _TOO_LONG) and bool(
        _SAID.search(f"{type(error).__name__}: {str(error)[:_MOST_READ]}")
    )


def is_refusal(error: BaseException) -> bool:
    """Whether an error is a provider's refusal, or the work of its filter."""
    name = type(error).__name__
    if "OutputParser" in name or "Validation" in name:  # it quotes what the model has said
        return False
    by_code = getattr(error, "code", None) == "content_filter"
    return by_code or bool(_REFUSED.search(f"{name}: {str(error)[:_MOST_READ]}"))


def retry_after(error: BaseException) -> float | None:
    """How many seconds the provider asks to wait; None if it does not say."""
    headers: Any = getattr(getattr(error, "response", None), "headers", None) or getattr(error, "headers", None)
    if not hasattr(headers, "items"):
        return None
    said = {str(name).lower(): value for name, value in headers.items()}
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        with suppress(KeyError, TypeError, ValueError):
            seconds = float(said[name]) / unit
            return max(seconds, 0.0) if math.isfinite(seconds) else None
    with suppress(KeyError, TypeError, ValueError):
        return max((parsedate_to_datetime(said["retry-after"]) - datetime.now(UTC)).total_seconds(), 0.0)
    return None


class _State(NamedTuple):
    failures: int
    until: float | None
    asked: bool = False  # whether the provider has asked to wait until then


class Cooldowns:
    """Which models fail at present, and when each may be tried again.

    A model that fails three times in a row, or whose provider asks to wait, rests. After that one call tries it: if it
    answers, all is forgotten; if not, it rests again. Any number of threads may use it: nothing is ever changed in
    place, and a failure that is lost between two of them is one more call.

    Args:
        seconds: How long a model rests, unless its provider says.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._states: dict[str, _State] = {}

    def failed(self, model: str, wait: float | None = None) -> None:
        """Note that a call failed; `wait` is what the provider asks for, in seconds."""
        failures, rested, _ = self._states.get(model, _State(0, None))
        rests = wait is not None or rested is not None or failures + 1 >= _IN_A_ROW
        until = time.monotonic() + (self.seconds if wait is None else wait) if rests else None
        self._states[model] = _State(failures + 1, until, wait is not None)

    def begun(self, model: str) -> None:
        """Note that a call begins; if it is the one after a rest, no other one is made until it has ended."""
        state = self._states.get(model)
        if state is not None and state.until is not None and state.until <= time.monotonic():
            self._states[model] = state._replace(until=time.monotonic() + self.seconds, asked=False)

    def succeeded(self, model: str) -> None:
        """Note that a model has answered; a provider that asked to wait longer is not asked before."""
        state = self._states.get(model)
        if state is not None and not (state.asked and state.until and state.until > time.monotonic()):
            self._states.pop(model, None)

    def resting(self, models: Iterable[str]) -> dict[str, str]:
        """Those of some models that rest, with the reason."""
        if not self._states:
            return {}
        now = time.monotonic()
        states = {model: self._states.get(model) for model in models}
        return {
            model: f"it failed lately and rests for {state.until - now:.0f} s"
            for model, state in states.items()
            if state is not None and state.until is not None and state.until > now
        }

    def rested(self, models: Sequence[str]) -> tuple[Sequence[str], dict[str, str]]:
        """Those of some models that may be called, and why the others may not; all of them if all rest."""
        resting = self.resting(models)
        if not resting or len(resting) == len(models):
            return models, {}
        return [model for model in models if model not in resting], resting


def next_best(
    router: UniRouter,
    decision: RoutingDecision,
    error: Exception,
    cooldowns: Cooldowns,
    fallback: bool | Literal["refusals"],  # noqa: FBT001
) -> RoutingDecision | None:
    """The decision for the next best model after this one failed; None if none is left, or none could do better."""
    if not fallback or not (is_survivable(error) or (fallback == "refusals" and is_refusal(error))):
        return None
    if is_transient(error) or _status(error) in _STATUSES:  # too long an input says nothing of the model
        cooldowns.failed(decision.model, retry_after(error))
    return router.reroute(decision, f"{FAILED}{type(error).__name__}")


def without_embedding(default: str | None, names: Sequence[str], error: Exception) -> tuple[list[str], dict[str, str]]:
    """Who may answer a prompt that could not be embedded, the default alone if it may, and why the others may not."""
    if default is None or default not in names:
        return list(names), {}
    reason = f"the prompt could not be embedded ({type(error).__name__})"
    return [default], {name: reason for name in names if name != default}


def within(seconds: float | None, call: Callable[[], T]) -> T:
    """What a call returns, or a TimeoutError if that takes longer; the call itself goes on in its thread."""
    if seconds is None:
        return call()
    found: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:  # noqa: BLE001  # raised below, in the thread that waits
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        msg = f"It took longer than {seconds:g} s."
        raise TimeoutError(msg)
    return found[0]


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
