"""Which errors another model could survive, and when a failing model is worth another try."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import toy_router

from unirouter_integrations.fallback import (
    Cooldowns,
    is_refusal,
    is_survivable,
    is_transient,
    next_best,
    retry_after,
    within,
)


def error(name: str = "ApiError", text: str = "", **attributes: Any) -> Exception:
    """An error of some provider's client."""
    made: Exception = type(name, (Exception,), {})(text)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


TRANSIENT = [
    TimeoutError(),
    ConnectionResetError(),
    error("APIConnectionError"),
    error("ReadTimeout"),
    error("ServiceUnavailable"),
    error("ResourceExhausted"),
    error(status_code=429),
    error(status_code=529),
    error(code=503),
    error(response=SimpleNamespace(status_code=500)),
    error("ClientError", response={"ResponseMetadata": {"HTTPStatusCode": 429}}),
]
SURVIVABLE = [
    error("JSONDecodeError", response=SimpleNamespace(status_code=200)),  # a proxy's page in place of an answer
    error("RateLimitError", status_code=429, code="insufficient_quota"),
    error("BadRequestError", "This model's maximum context length is 8192 tokens.", status_code=400),
    error("BadRequestError", "prompt is too long: 210000 tokens > 200000 maximum", status_code=400),
    error("ContextOverflowError", "context window exceeded"),
    error(text="Request too large for gpt-4o", status_code=413),
]
OTHERS = [
    ValueError("a bug"),
    error("AuthenticationError", status_code=401),
    error("PermissionDenied", status_code=403),
    error("BadRequestError", "temperature should be at most 2", status_code=400),
    error("RateLimitError", status_code=404),  # what the server says counts more than the name
    KeyError("context"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("each", TRANSIENT, ids=repr)
def test_transient_errors_are_survivable(each: BaseException) -> None:
    """By status, by the name of the class or of one of its bases."""
    assert is_transient(each)
    assert is_survivable(each)


@pytest.mark.parametrize("each", SURVIVABLE, ids=repr)
def test_some_errors_are_survivable_but_not_transient(each: BaseException) -> None:
    """The same model would fail again, another one may not."""
    assert is_survivable(each)
    assert not is_transient(each)


@pytest.mark.parametrize("each", OTHERS, ids=repr)
def test_other_errors_are_neither(each: BaseException) -> None:
    """Nobody else could do better, or nobody should try."""
    assert not is_survivable(each)
    assert not is_transient(each)


def test_retry_after_is_read_in_both_forms() -> None:
    """Seconds or a date; nonsense is nothing."""
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    for said, seconds in (
        ("7", 7),
        ("0.5", 0.5),
        ("-3", 0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        (None, None),
    ):
        assert retry_after(error(response=SimpleNamespace(headers={"retry-after": said}))) == seconds
    found = retry_after(error(response=SimpleNamespace(headers={"Retry-After": later})))
    assert found is not None
    assert 50 < found <= 60
    assert retry_after(ValueError()) is None
    assert retry_after(error(response={"ResponseMetadata": {}})) is None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that passes when the test says so."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: now.seconds)
    return now


def test_a_model_rests_after_three_failures_in_a_row(clock: SimpleNamespace) -> None:
    """An answer in between makes it begin anew."""
    cooldowns = Cooldowns(30)
    for answered in (False, False, True, False, False):
        assert cooldowns.resting(["mini"]) == {}
        if answered:
            cooldowns.succeeded("mini")
        else:
            cooldowns.failed("mini")
    cooldowns.failed("mini")
    clock.seconds += 18
    assert cooldowns.resting(["large", "mini"]) == {"mini": "it failed lately and rests for 12 s"}
    clock.seconds += 12
    assert cooldowns.resting(["mini"]) == {}


def test_one_call_at_a_time_tries_a_rested_model(clock: SimpleNamespace) -> None:
    """If it fails the model rests again, at once; if it answers all is forgotten; if it hangs, another one tries."""
    cooldowns = Cooldowns(30)
    cooldowns.failed("mini", 5)
    clock.seconds += 5
    cooldowns.begun("mini")
    assert "mini" in cooldowns.resting(["mini"])
    cooldowns.failed("mini")
    clock.seconds += 29
    assert "mini" in cooldowns.resting(["mini"])
    clock.seconds += 1
    cooldowns.begun("mini")
    clock.seconds += 30
    assert cooldowns.resting(["mini"]) == {}
    cooldowns.begun("mini")
    cooldowns.succeeded("mini")
    cooldowns.failed("mini")
    assert cooldowns.resting(["mini"]) == {}


def test_a_call_that_takes_too_long_is_a_timeout() -> None:
    """A fast one returns, a failing one raises as it would without a limit."""
    assert within(None, lambda: 1) == within(60, lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 // 0)
    hang = threading.Event()
    with pytest.raises(TimeoutError, match=r"longer than 0\.01 s"):
        within(0.01, hang.wait)
    hang.set()


def test_a_rest_that_the_provider_asked_for_is_kept(clock: SimpleNamespace) -> None:
    """An older call that still succeeds does not end it; too long an input makes no model rest."""
    cooldowns = Cooldowns(30)
    cooldowns.failed("mini", 60)
    cooldowns.succeeded("mini")
    assert cooldowns.resting(["mini"]) == {"mini": "it failed lately and rests for 60 s"}
    clock.seconds += 60
    cooldowns.begun("mini")
    cooldowns.succeeded("mini")
    assert cooldowns.resting(["mini"]) == {}
    router = toy_router("soft")
    for _ in range(3):
        overflow = error("BadRequestError", "maximum context length is 8 tokens", status_code=400)
        assert next_best(router, router.route("poem"), overflow, cooldowns, fallback=True) is not None
    assert cooldowns.resting(["poet"]) == {}
    quoting = error("OutputParserException", "Invalid json output: the context length of a model")
    assert not is_survivable(quoting)


@pytest.mark.parametrize(
    ("name", "said", "attributes", "refused"),
    [
        ("BadRequestError", "Error code: 400 - {'error': {'code': 'content_filter'}}", {}, True),
        ("BadRequestError", "The response was filtered", {"code": "content_filter"}, True),
        ("OpenAIRefusalError", "I must not.", {}, True),
        ("ContentFilterFinishReasonError", "Could not parse response content", {}, True),
        ("RuntimeError", "Response was terminated early: SAFETY", {}, True),
        ("ValueError", "unknown argument 'content_filter'", {}, False),
        ("OutputParserException", "Azure OpenAI's content management policy is ...", {}, False),
        ("ValidationError", "1 validation error for ChatTopic: {'code': 'content_filter'}", {}, False),
        ("BadRequestError", "Error code: 400 - temperature is too high", {}, False),
    ],
)
def test_refusals_are_told_from_what_quotes_them(
    name: str, said: str, attributes: dict[str, Any], *, refused: bool
) -> None:
    """By the names and the words of providers, not by a text that a model has written."""
    raised = error(name, said, **attributes)
    assert is_refusal(raised) == refused
    router, cooldowns = toy_router("soft"), Cooldowns(30)
    following = next_best(router, router.route("poem"), raised, cooldowns, fallback="refusals")
    assert (following is not None) == refused
    assert next_best(router, router.route("poem"), raised, cooldowns, fallback=True) is None
    assert cooldowns.resting(["poet"]) == {}


def test_models_that_rest_are_called_only_if_all_do() -> None:
    """Otherwise nobody would answer."""
    cooldowns = Cooldowns(30)
    assert cooldowns.rested(["mini", "large"]) == (["mini", "large"], {})
    cooldowns.failed("mini", 60)
    assert cooldowns.rested(["mini", "large"]) == (["large"], cooldowns.resting(["mini"]))
    assert cooldowns.rested(["mini"]) == (["mini"], {})
