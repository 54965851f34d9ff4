"""Which errors another model could survive, and when a failing model may be called again."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import toy_router

from unirouter_integrations._concurrency import run_with_timeout
from unirouter_integrations.serving import Health
from unirouter_integrations.serving._failures import (
    is_fault_of_model,
    is_refusal_error,
    is_survivable,
    is_transient,
    retry_after,
)
from unirouter_integrations.serving._serving import Fallback, Serving
from unirouter_integrations.serving._steps import CallRequest, Framework

ASKING = Framework(
    as_model=lambda name, model: model,
    capabilities_of=lambda model: {},
    is_refusal=lambda answer: False,
    text_answer=lambda answer: None,
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


def test_a_model_cools_down_after_three_failures_in_a_row(clock: SimpleNamespace) -> None:
    """An answer in between clears its record."""
    health = Health()
    for answered in (False, False, True, False, False):
        assert health.cooling_down(["mini"]) == {}
        if answered:
            health.succeeded("mini")
        else:
            health.failed("mini", 30)
    health.failed("mini", 30)
    clock.seconds += 18
    assert health.cooling_down(["large", "mini"]) == {"mini": 12}
    clock.seconds += 12
    assert health.cooling_down(["mini"]) == {}


def test_one_call_at_a_time_probes_a_model_that_has_cooled_down(clock: SimpleNamespace) -> None:
    """If it fails the model cools down again, at once; if it answers its record is cleared; if it hangs, another does.

    An older call that still succeeds ends no cooldown that the provider asked for.
    """
    health = Health()
    health.failed("mini", 30, 5)
    clock.seconds += 5
    health.start_call("mini", 30)
    assert "mini" in health.cooling_down(["mini"])
    health.failed("mini", 30)
    clock.seconds += 29
    assert "mini" in health.cooling_down(["mini"])
    clock.seconds += 1
    health.start_call("mini", 30)
    clock.seconds += 30
    assert health.cooling_down(["mini"]) == {}
    health.start_call("mini", 30)
    health.succeeded("mini")
    health.failed("mini", 30)
    assert health.cooling_down(["mini"]) == {}


def test_a_call_that_takes_too_long_is_a_timeout() -> None:
    """A fast one returns, a failing one raises as it would without a limit."""
    assert run_with_timeout(None, lambda: 1) == run_with_timeout(60, lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        run_with_timeout(60, lambda: 1 // 0)
    hang = threading.Event()
    with pytest.raises(TimeoutError, match=r"longer than 0\.01 s"):
        run_with_timeout(0.01, hang.wait)
    hang.set()


def test_a_cooldown_that_the_provider_asked_for_is_kept(clock: SimpleNamespace) -> None:
    """An older call that still succeeds does not end it."""
    health = Health()
    health.failed("mini", 30, 60)
    health.succeeded("mini")
    assert health.cooling_down(["mini"]) == {"mini": 60}
    clock.seconds += 60
    health.start_call("mini", 30)
    health.succeeded("mini")
    assert health.cooling_down(["mini"]) == {}


def outcome(raised: Exception, health: Health, fallback: Fallback) -> str:
    """The model that answers a poem where the poet fails like this; the failure is the caller's if there is none."""
    router = toy_router("soft")
    serving = Serving(router, dict.fromkeys(router.models), ASKING, health, fallback=fallback)

    def ask(routed: Any) -> str:
        if routed.decision.model == "poet":
            raise raised
        return str(routed.decision.model)

    (routed,) = serving.decide([CallRequest("poem")])
    return serving.call(routed, ask)[1]


def test_too_long_an_input_does_not_count_against_the_model() -> None:
    """Another one answers, and the model does not cool down; what a parser quotes is no such error."""
    health = Health()
    overflow = error("BadRequestError", "maximum context length is 8 tokens", status_code=400)
    assert not is_fault_of_model(overflow)
    for _ in range(3):
        assert outcome(overflow, health, fallback=True) == "oracle"
    assert health.cooling_down(["poet"]) == {}
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
    raised, health = error(name, said, **attributes), Health()
    assert is_refusal_error(raised) == refused
    for fallback, survives in (("refusals", refused), (True, False)):
        if survives:
            assert outcome(raised, health, fallback) == "oracle"  # type: ignore[arg-type]  # both are a Fallback
            continue
        with pytest.raises(type(raised)) as caught:
            outcome(raised, health, fallback)  # type: ignore[arg-type]
        assert caught.value is raised
    assert health.cooling_down(["poet"]) == {}


def test_models_that_cool_down_are_called_only_if_all_do() -> None:
    """Otherwise nobody would answer."""
    router, health = toy_router("soft"), Health()
    serving = Serving(router, dict.fromkeys(router.models), ASKING, health)

    def decided(*among: str) -> tuple[str, list[tuple[str, str]]]:
        (routed,) = serving.decide([CallRequest("poem", among=among)])
        return routed.decision.model, [(each.model, each.kind) for each in routed.decision.excluded]

    assert decided("poet", "oracle") == ("poet", [])
    health.failed("poet", 30, 60)
    assert decided("poet", "oracle") == ("oracle", [("poet", "cooling_down")])
    assert decided("poet") == ("poet", [])
