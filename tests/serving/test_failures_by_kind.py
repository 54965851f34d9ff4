"""Which errors are the caller's own, which another model survives, and which count against the model."""

import builtins
import importlib
import math
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unirouter_integrations.errors import InvalidInputError, MissingDependencyError, NoModelError, UnknownModelError
from unirouter_integrations.serving._failures import (
    Failure,
    classify,
    is_fault_of_model,
    is_transient,
    retry_after,
)

KINDS = get_args(Failure)


def error(name: str = "ApiError", text: str = "", **attributes: Any) -> Exception:
    """An error of some provider's client."""
    made: Exception = type(name, (Exception,), {})(text)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def caused(outer: Exception, inner: BaseException) -> Exception:
    outer.__cause__ = inner
    return outer


# ---------------------------------------------------------------- classes of libraries

# By module, with what they mean. Modules that are not installed are skipped.
CLASSES: dict[str, dict[str, str]] = {
    "builtins": {
        "transient": "ConnectionError ConnectionResetError ConnectionRefusedError BrokenPipeError TimeoutError "
        "EOFError",
        "garbled": "UnicodeDecodeError",
        "gone": "ImportError ModuleNotFoundError NotImplementedError",
        "other": "OSError TypeError ValueError KeyError IndexError AttributeError AssertionError RuntimeError "
        "MemoryError",
        "request": "UnicodeEncodeError KeyboardInterrupt SystemExit GeneratorExit",
    },
    "asyncio": {"transient": "TimeoutError IncompleteReadError", "request": "CancelledError"},
    "socket": {"transient": "gaierror herror timeout"},
    "ssl": {"transient": "SSLError SSLCertVerificationError SSLEOFError SSLZeroReturnError"},
    "http.client": {"transient": "IncompleteRead RemoteDisconnected BadStatusLine"},
    "urllib.error": {"transient": "URLError"},
    "json": {"garbled": "JSONDecodeError"},
    "httpx": {
        "transient": "ConnectError ConnectTimeout ReadError ReadTimeout WriteError WriteTimeout PoolTimeout CloseError "
        "RemoteProtocolError ProxyError",
        "garbled": "DecodingError",
    },
    "requests.exceptions": {
        "transient": "ConnectionError ChunkedEncodingError SSLError ProxyError ReadTimeout ConnectTimeout RetryError",
        "garbled": "JSONDecodeError ContentDecodingError",
    },
    "urllib3.exceptions": {
        "transient": "ProtocolError MaxRetryError NewConnectionError NameResolutionError ReadTimeoutError SSLError "
        "IncompleteRead InvalidChunkLength ProxyError",
        "garbled": "DecodeError",
    },
    "aiohttp": {
        "transient": "ClientConnectorError ClientOSError ClientPayloadError ServerDisconnectedError ServerTimeoutError "
        "ClientConnectionError SocketTimeoutError",
        "garbled": "ContentTypeError",
    },
    "anyio": {"transient": "BrokenResourceError ClosedResourceError EndOfStream"},
    "botocore.exceptions": {
        "transient": "EndpointConnectionError ConnectTimeoutError ReadTimeoutError ConnectionClosedError SSLError "
        "ProxyConnectionError ResponseStreamingError IncompleteReadError EventStreamError",
        "gone": "NoCredentialsError PartialCredentialsError CredentialRetrievalError",
        "request": "ParamValidationError",
    },
    "google.auth.exceptions": {"gone": "DefaultCredentialsError RefreshError", "transient": "TransportError"},
    "openai": {
        "transient": "APIConnectionError APITimeoutError",
        "refused": "ContentFilterFinishReasonError",
        "too_long": "LengthFinishReasonError",
    },
    "langchain_core.exceptions": {
        "request": "ModelInvalidRequestError",
        "unparsed": "OutputParserException",
        "gone": "ModelAuthenticationError ModelPermissionDeniedError ModelNotFoundError",
        "transient": "ModelRateLimitError ModelAPIError ModelConnectionError ModelTimeoutError",
        "too_long": "ContextOverflowError",
        "refused": "ModelRefusalError",
    },
    "langgraph.errors": {"request": "GraphBubbleUp GraphInterrupt"},
    "langchain.agents.structured_output": {
        "unparsed": "StructuredOutputValidationError MultipleStructuredOutputsError"
    },
    "llama_index.core.output_parsers.base": {"unparsed": "OutputParserException"},
    "pydantic_core": {"unparsed": "ValidationError"},
    "unirouter_integrations.errors": {
        "request": "InvalidInputError UnknownModelError",
        "gone": "MissingDependencyError",
        "transient": "StreamCutError",
        "other": "NoModelError EmbeddingError StorageError",
    },
}


def bare(kind: type[BaseException]) -> BaseException:
    """One that says nothing of itself but its class."""
    made = kind.__new__(kind)
    return made if isinstance(made, kind) else pytest.skip(f"{kind} makes something else")


@pytest.mark.parametrize("module", CLASSES)
def test_classes_of_libraries(module: str) -> None:
    """By their names; what the caller did wrong is raised, and so is what stops a program."""
    found = importlib.import_module(module) if module in sys.stdlib_module_names else pytest.importorskip(module)
    for failure, names in CLASSES[module].items():
        for name in names.split():
            kind = getattr(found, name, None)
            if kind is None and module.startswith("langchain_core"):
                continue  # of a later version
            assert kind is not None, name
            if name == "ValidationError":  # cannot be made bare
                raised: BaseException = kind.from_exception_data("Schema", [])
            else:
                raised = bare(kind)
            assert classify(raised) == failure, name


def test_at_least_the_errors_of_the_review() -> None:
    """51 that another model survives."""
    survivable = [
        name
        for kinds in CLASSES.values()
        for failure, names in kinds.items()
        if failure not in {"request", "refused"}
        for name in names.split()
    ]
    assert len(survivable) >= 51


# ---------------------------------------------------------------- what errors say of themselves


@pytest.mark.parametrize(
    ("raised", "failure"),
    [
        # Statuses, wherever a client keeps them.
        (error(status_code=429), "transient"),
        (error(status_code=529), "transient"),
        (error(code=503), "transient"),
        (error(status=502), "transient"),
        (error(response=SimpleNamespace(status_code=500)), "transient"),
        (error("ClientError", response={"ResponseMetadata": {"HTTPStatusCode": 429}}), "transient"),
        (error(status_code=401), "gone"),
        (error(status_code=403), "gone"),
        (error(status_code=404), "gone"),
        (error(status_code=410), "gone"),
        (error(status_code=402), "gone"),
        (error(status_code=413), "too_long"),
        (error(status_code=400), "request"),
        (error(status_code=422), "request"),
        (error(status_code=418), "other"),
        (error(status_code=True), "other"),
        # What the server says counts more than the name, and its code more than its status.
        (error("RateLimitError", status_code=404), "gone"),
        (error("RateLimitError", status_code=429, code="insufficient_quota"), "gone"),
        (error("BadRequestError", status_code=400, code="content_filter"), "refused"),
        (error("BadRequestError", status_code=400, body={"code": "context_length_exceeded"}), "too_long"),
        (error("APIStatusError", status_code=200, body={"error": {"type": "overloaded_error"}}), "transient"),
        (error("APIStatusError", status_code=200, body={"error": {"type": "invalid_request_error"}}), "request"),
        (error("ClientError", response={"Error": {"Code": "ThrottlingException"}}), "transient"),
        (error("ClientError", response={"Error": {"Code": "com.amazon.coral#AccessDeniedException"}}), "gone"),
        (error("SDKError", status_code=400, body='{"message": "Invalid model: m", "type": "invalid_model"}'), "gone"),
        (error("SDKError", status_code=400, body=b'[{"error": {"status": "RESOURCE_EXHAUSTED"}}]'), "transient"),
        (ValueError({"message": "upstream is down", "code": 502}), "transient"),
        (ValueError({"message": "no", "code": "model_not_found"}), "gone"),
        (error("RpcError", code=lambda: SimpleNamespace(name="UNAVAILABLE")), "transient"),
        (error("RpcError", code=lambda: SimpleNamespace(name="UNAUTHENTICATED")), "gone"),
        (error("RpcError", code=lambda: SimpleNamespace(name="INVALID_ARGUMENT")), "request"),
        (error("ModelError", is_retryable=True), "transient"),
        (error("ModelError", is_retryable=False), "other"),
        (error("RateLimitError", is_retryable=True, code="insufficient_quota"), "gone"),
        # Texts, where nothing else is said.
        (error("BadRequestError", "This model's maximum context length is 8192 tokens.", status_code=400), "too_long"),
        (error("BadRequestError", "prompt is too long: 210000 tokens > 200000 maximum", status_code=400), "too_long"),
        (error("BadRequestError", "temperature should be at most 2", status_code=400), "request"),
        (
            error("BadRequestError", "max_tokens is too large: this model supports at most 4096", status_code=400),
            "other",
        ),
        (error("BadRequestError", "m does not support image input", status_code=400), "other"),
        (error("BadRequestError", "m does not support tools", status_code=400), "gone"),
        (error(text="Request too large for gpt-4o", status_code=413), "too_long"),
        (error("InternalServerError", "the request exceeds the available context size", status_code=500), "too_long"),
        (ValueError("No generation chunks were returned"), "garbled"),
        (TypeError("Received response with null value for 'choices'."), "garbled"),
        (ValueError("1 validation error for LLMChatEndEvent\nresponse"), "garbled"),
        (TypeError("Completions.create() got an unexpected keyword argument 'temperatur'"), "request"),
        (TypeError("Client.__init__() got an unexpected keyword argument 'proxies'"), "other"),
        (TypeError('"Could not resolve authentication method. Expected either api_key or auth_token"'), "gone"),
        (error("OpenAIError", "The api_key client option must be set by passing api_key to the client"), "gone"),
        (ValueError("a bug"), "other"),
        (KeyError("context"), "other"),
        # Refusals, which are told from what quotes them.
        (error("BadRequestError", "Error code: 400 - {'error': {'code': 'content_filter'}}"), "refused"),
        (error("OpenAIRefusalError", "I must not."), "refused"),
        (error("ContentFilterFinishReasonError", "Could not parse response content"), "refused"),
        (RuntimeError("Response was terminated early: PROHIBITED_CONTENT"), "refused"),
        (ValueError("Azure has not provided the response due to a content filter being triggered"), "refused"),
        (ValueError("unknown argument 'content_filter'"), "other"),
        (error("OutputParserException", "Azure OpenAI's content management policy is ..."), "unparsed"),
        (error("ValidationError", "1 validation error for ChatTopic: {'code': 'content_filter'}"), "unparsed"),
        # Our own.
        (InvalidInputError("cost_weight should be a number"), "request"),
        (UnknownModelError("There is no model 'm'"), "request"),
        (NoModelError("of a router that is itself a model"), "other"),
        (MissingDependencyError("langchain-openai"), "gone"),
    ],
    ids=repr,
)
def test_what_errors_say_of_themselves(raised: Exception, failure: str) -> None:
    """By code, status, name and text, in this order where they disagree."""
    assert classify(raised) == failure
    assert is_transient(raised) == (failure == "transient")
    assert is_fault_of_model(raised) == (failure in {"transient", "gone", "garbled", "other"})


@pytest.mark.parametrize("quoted", ["insufficient_quota", "content_filter", "context_length_exceeded"])
def test_codes_that_a_caller_writes_are_not_read(quoted: str) -> None:
    """A provider that quotes the prompt cannot be made to say that the model is gone."""
    detail = [{"type": "missing", "msg": "Field required", "input": {"code": quoted, "error": {"type": quoted}}}]
    assert classify(error("UnprocessableEntityError", status_code=422, body={"detail": detail})) == "request"
    assert classify(
        error("BadRequestError", status_code=400, body={"message": "bad", "messages": [{"code": quoted}]})
    ) == ("request")


# ---------------------------------------------------------------- causes, contexts, groups


def raised_in(handling: BaseException, raised: Exception) -> Exception:
    """What is raised while something else is handled."""
    try:
        try:
            raise handling
        except type(handling):
            raise raised  # noqa: B904  # that is the point
    except Exception as error:  # noqa: BLE001
        return error


def test_causes_are_read() -> None:
    """Where the error itself says nothing, or less than its cause."""
    assert classify(caused(RuntimeError("it failed"), error(status_code=429))) == "transient"
    assert classify(caused(RuntimeError("it failed"), caused(ValueError(), InvalidInputError("n")))) == "request"
    wrapped = error("ModelInvalidRequestError", "Error calling model 'm'")
    assert (
        classify(caused(wrapped, error(code=400, details={"error": {"details": [{"reason": "API_KEY_INVALID"}]}})))
        == "gone"
    )
    assert classify(caused(error(status_code=503), error(status_code=400))) == "transient"


def test_what_was_being_handled_is_read_last() -> None:
    """It may be the caller's, who tries again: it does not make the error the caller's."""
    assert classify(raised_in(error("ReadTimeout"), RuntimeError("it failed"))) == "transient"
    assert classify(raised_in(error("ReadTimeout"), error(status_code=401))) == "gone"
    assert classify(raised_in(InvalidInputError("n"), RuntimeError("it failed"))) == "other"
    assert classify(raised_in(error(status_code=400), RuntimeError("it failed"))) == "other"
    hidden = raised_in(error("ReadTimeout"), RuntimeError("it failed"))
    hidden.__suppress_context__ = True
    assert classify(hidden) == "other"


def test_groups_are_read() -> None:
    """As what their members say, with the caller's own first."""
    group = ExceptionGroup("both", [ValueError("a bug"), ExceptionGroup("inner", [error("ReadTimeout")])])
    assert classify(group) == "transient"
    assert classify(caused(RuntimeError(), group)) == "transient"
    assert classify(ExceptionGroup("both", [error("ReadTimeout"), InvalidInputError("n")])) == "request"
    assert classify(ExceptionGroup("one", [ValueError("a bug")])) == "other"
    assert classify(BaseExceptionGroup("stop", [KeyboardInterrupt(), error("ReadTimeout")])) == "request"


# ---------------------------------------------------------------- it never raises


class Hostile(Exception):  # noqa: N818
    """Every look at it fails."""

    def __getattribute__(self, name: str) -> Any:
        if name in {"__cause__", "__context__", "__suppress_context__", "__class__"}:
            return super().__getattribute__(name)
        raise ZeroDivisionError

    def __str__(self) -> str:
        raise ZeroDivisionError

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    __hash__ = None  # type: ignore[assignment]


NAMES = st.sampled_from(
    [
        *(
            "status_code",
            "status",
            "code",
            "type",
            "reason",
            "body",
            "error",
            "errors",
            "details",
            "response",
            "message",
        ),
        *("raw_response", "headers", "is_retryable", "exceptions", "text", "is_stream_consumed", "args"),
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.just(object())
    | st.just(math.floor),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(name=st.text(min_size=1).filter(str.isidentifier), attributes=st.dictionaries(NAMES, VALUES), text=st.text())
def test_whatever_is_raised_has_a_kind(name: str, attributes: dict[str, Any], text: str) -> None:
    """Any class, with any attributes, alone, as a cause, and as a context."""
    raised = type(name, (Exception,), {key: value for key, value in attributes.items() if key != "args"})(
        text, attributes
    )
    for each in (
        raised,
        caused(RuntimeError(), raised),
        raised_in(raised, ValueError()),
        ExceptionGroup("one", [raised]),
    ):
        assert classify(each) in KINDS
        assert retry_after(each) is None or retry_after(each) >= 0  # type: ignore[operator]


@pytest.mark.parametrize(
    "kind", [each for each in vars(builtins).values() if isinstance(each, type) and issubclass(each, BaseException)]
)
def test_the_exceptions_of_python_have_a_kind(kind: type[BaseException]) -> None:
    """Bare ones; what is no `Exception` is never survived."""
    made = kind("both", [ValueError()]) if issubclass(kind, BaseExceptionGroup) else bare(kind)
    assert classify(made) in KINDS
    assert isinstance(made, Exception) or classify(made) == "request"


def test_hostile_errors_have_a_kind() -> None:
    """With attributes that raise, cycles, long chains, and bodies that are deep, long or no JSON."""
    assert classify(Hostile()) == "other"
    assert retry_after(Hostile()) is None
    assert classify(error(code=10**5000, status_code=-1)) == "other"
    assert retry_after(error(headers={"Retry-After": 10**5000})) is None
    assert retry_after(error(response=Hostile(), headers=Hostile(), details=Hostile())) is None
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert classify(first) == "other"
    chain: Exception = error(status_code=401)
    for _ in range(10_000):
        chain = caused(RuntimeError(), chain)
    assert classify(chain) == "other"  # only the first of a chain are read
    assert classify(error(body="[" * 50_000)) == "other"
    assert classify(error(body='{"code": ' * 5_000)) == "other"
    deep: Any = {"code": "insufficient_quota"}
    for _ in range(1000):
        deep = {"error": deep}
    assert classify(error(body=deep)) == "other"
    assert classify(error(text="prompt input request message " * 100_000, body="context " * 100_000)) == "other"


# ---------------------------------------------------------------- how long to wait


def test_retry_after_is_read_in_all_forms() -> None:
    """Seconds, milliseconds or a date, in a header or, with Google, in the body; nonsense is nothing; it has no cap."""
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    for said, seconds in (
        ("7", 7),
        ("0.5", 0.5),
        ("-3", 0),
        ("31536000", 31536000),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        (None, None),
    ):
        assert retry_after(error(response=SimpleNamespace(headers={"retry-after": said}))) == seconds
        assert retry_after(error(headers={"Retry-After": said})) == seconds
    found = retry_after(error(response=SimpleNamespace(headers={"Retry-After": later})))
    assert found is not None
    assert 50 < found <= 60
    assert retry_after(error(headers={"retry-after-ms": "1500", "retry-after": "9"})) == 1.5
    assert retry_after(error(response={"ResponseMetadata": {"HTTPHeaders": {"retry-after": "3"}}})) == 3
    retry_info = {"error": {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}]}}
    assert retry_after(caused(error("GoogleRateLimitError"), error(details=retry_info))) == 34.5
    assert retry_after(ValueError()) is None
    assert retry_after(error(response={"ResponseMetadata": {}})) is None
