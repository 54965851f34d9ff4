"""What an error of a model's call means, and which answers are refusals.

Clients of providers have no exceptions in common. `classify` reads what all of them have: names of classes, error
codes, HTTP statuses and, last, text. What no rule knows is "other", and another model gets the call. docs/failures.md
lists what real clients raise, and what becomes of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from unirouter_integrations.grading._models import field_of

Failure = Literal["request", "refused", "unparsed", "too_long", "gone", "transient", "garbled", "other"]
"""The kinds of failures.

- request: The caller's own. Every model would refuse it, so it is raised.
- refused: A provider's refusal, or its filter.
- unparsed: The answer does not fit the form that was asked for. A better model may fill it in; the model is healthy.
- too_long: More than this model takes. Another one may take it; the model is healthy.
- gone: This model cannot be used for now: key, credit, quota, access, retired, not loaded, no tools.
- transient: The same call may succeed later. It counts against the model.
- garbled: What came was no answer. It counts against the model.
- other: Anything else that was raised in a model's call. It counts against the model.
"""

FAULTS_OF_MODEL: frozenset[Failure] = frozenset({"gone", "transient", "garbled", "other"})
"""The kinds that count against the health of the model."""

# The first rule that fits decides. It reads the names of the error's class and bases ("raised"), those of its causes as
# well ("class"), error codes and types of it and of its body ("code"), its HTTP status ("status"), each as a whole, or
# any part of the provider's message ("text"). Codes and texts are read without regard to case.
_RULES: tuple[tuple[str, Failure, str], ...] = (
    # 1. Frameworks say what they mean.
    ("class", "request", r"InvalidInputError|UnknownModelError"),
    ("class", "unparsed", r"OutputParserException|(Multiple)?StructuredOutput\w*"),
    ("class", "request", r"GraphBubbleUp|(Model|Tool)CallLimitExceededError|PIIDetectionError"),  # of LangGraph
    ("class", "request", r"ParamValidationError|UnicodeEncodeError"),  # of what the caller passes
    ("class", "too_long", r"Context(Overflow|WindowExceeded)Error|LengthFinishReasonError"),
    ("class", "refused", r"\w*(Refusal|ContentFilter|ContentPolicy|BlockedPrompt|StopCandidate)\w*"),
    ("class", "gone", r"ImportError|NotImplementedError"),
    ("class", "garbled", r"\w*ResponseValidationError"),
    ("text", "garbled", r"^\d+ validation errors? for (Unmarshaller|\w*(Response|Completion|Chunk|Message|Event))\b"),
    ("raised", "unparsed", r"ValidationError"),  # of the caller's schema; it quotes what a model wrote
    ("text", "unparsed", r"^(Structured output extraction failed|LLM did not return any tool calls)"),  # of LlamaIndex
    # 2. Providers' codes.
    ("text", "too_long", r"^Request too large for"),  # a rate limit, of OpenAI, that one call alone exceeds
    ("code", "refused", r"content_filter(ed)?|\w*content_policy\w*|ResponsibleAIPolicyViolation|refusal"),
    ("code", "refused", r"safety|guardrail_intervened|data_inspection_failed"),
    ("code", "too_long", r"\w*context_(length|window|size)\w*|(max_tokens|token_limit)_exceeded"),
    ("code", "too_long", r"413|(request|payload|input|prompt)_too_(large|long)"),
    ("code", "other", r"unsupported_(parameter|value)"),  # one caller's parameter must not put the model to rest
    ("code", "gone", r"insufficient_(quota|credits?|balance|funds)|billing\w*|payment_required|credit\w*_exhausted"),
    ("code", "gone", r"\w*api_?key\w*|(un)?authenticat\w*|unauthorized"),
    ("code", "gone", r"forbidden|(permission|access)_?(denied|error)\w*"),
    ("code", "gone", r"Expired_?Token\w*|UnrecognizedClient\w*|InvalidClientTokenId|\w+Signature\w*|account_\w+"),
    ("code", "gone", r"(\w+_)?not_found(_error)?|\w*NotFound(Exception)?|invalid_model|unsupported_(model|country)\w*"),
    ("code", "gone", r"model_?(not?_\w+|decommissioned|deprecated|retired|terms_required)|organization_restricted"),
    ("code", "gone", r"OperationNotSupported|unimplemented|failed_precondition"),
    ("code", "transient", r"\w*(rate_?limit|too_many_requests|throttl|overloaded|unavailable|time_?out|capacity)\w*"),
    ("code", "transient", r"(api|server)_error|internal|internal_?(server_?)?(error|exception|failure)"),
    ("code", "transient", r"resource_exhausted|deadline_exceeded|slow_down|aborted|cancelled|ServiceQuotaExceeded\w*"),
    ("code", "transient", r"Model(Error|StreamError|NotReady)Exception"),
    ("code", "garbled", r"tool_use_failed|json_validate_failed|malformed_\w+"),
    # 3. Statuses that leave no doubt; texts where providers give the same status to different things.
    ("status", "gone", r"401|402|407|410|451"),
    ("status", "transient", r"408|409|423|424|425|429|498"),
    ("text", "too_long", r"context.?(length|window|size|limit|overflow)"),
    ("text", "too_long", r"(maximum|too many|less than|exceed).{0,40}tokens"),
    ("text", "too_long", r"(prompt|input|request|messages?\b).{0,60} too (long|large)|reduce the length|prompt length"),
    ("text", "too_long", r"token (limit|count)|payload size|expected maxLength"),
    ("status", "transient", r"5\d\d"),
    ("text", "refused", r"'code': 'content_filter'|content (management polic|filter)|safety (system|filter)"),
    ("text", "refused", r"usage (polic|guideline)|\bflagged\b|content exists risk|blocked (input|output)"),
    ("text", "refused", r"terminated early: .{0,40}(SAFETY|PROHIBITED|BLOCKLIST|RECITATION|SPII)"),
    ("text", "request", r"/errors/(INVALID_PROMPT_INPUT|MESSAGE_COERCION_FAILURE)"),  # links of LangChain
    ("text", "request", r"(?<!__init__\(\)) got an unexpected keyword argument"),
    ("text", "gone", r"credit balance|(insufficient|out of|not enough) (credit|balance|fund|quota)|your current quota"),
    ("text", "gone", r"(usage|spend|spending) limit|payment method"),
    ("text", "gone", r"(invalid|incorrect|missing|expired|no) (api|subscription|access|security|auth\w*).?(key|token)"),
    ("text", "gone", r"api.?key\b.{0,40}(not valid|invalid|expired|not found|be set)"),
    ("text", "gone", r"security token|authentication method"),
    ("text", "gone", r"(locate|find|load|default) credentials|(not|n.t) have (access|permission)|access denied"),
    ("text", "gone", r"(invalid|unknown|no such) model\b|model identifier is invalid|no models? (is |are )?loaded"),
    ("text", "gone", r"(unable to|can.?not|can.t) (access|load|find) (the )?model|on-demand throughput"),
    ("text", "gone", r"\b(model|deployment)s?\b.{0,80}(not|n.t) (exist|found|loaded|deployed)|model is unloaded"),
    ("text", "gone", r"\bmodel\b.{0,80}(was removed|decommissioned|deprecated|retired|no longer|end of (its )?life)"),
    ("text", "gone", r"(not|n.t) support (tool|function)|(tool|function).?(calling|use|s)\b.{0,30}(not |un)supported"),
    ("text", "gone", r"support tool use|tool choice requires"),
    ("text", "other", r"(not|n.t) support|unsupported|supports at most"),  # a parameter, images: as for code "other"
    ("text", "garbled", r"no generation chunks|null value for 'choices'|missing 'choices'"),
    ("text", "garbled", r"no 'output' key|no candidates"),
    # 4. What is left.
    ("status", "gone", r"403|404|405"),
    ("status", "request", r"400|422"),
    ("code", "request", r"\w*invalid_?(request|argument|value|type)\w*|bad_request|ValidationException|out_of_range"),
    ("class", "request", r"\w*(Invalid|Bad)RequestError|UnprocessableEntityError"),
    ("class", "gone", r"\w*(Authenti|PermissionDenied|Unauthori|Forbidden|Credential|(?<!File)NotFound|Refresh)\w*"),
    ("class", "garbled", r"\w*(JSONDecode|UnicodeDecode|Decode|Decoding|ContentType)Error"),
    ("class", "transient", r"\w*(Time(o|dO|do)ut|Deadline|Connect|Incomplete|StatusLine|InvalidChunk|BrokenPipe)\w*"),
    ("class", "transient", r"\w*(RateLimit|TooManyRequests|Throttl|Exhausted|Overloaded|Unavailable|NoResponse)\w*"),
    (
        "class",
        "transient",
        r"\w*(Read|Write|Close|Stream|Server|Streaming|ModelAPI|Retry|Proxy|Network|Transport|URL)Error",
    ),
    ("class", "transient", r"\w*(Protocol|Payload|Encoding|SSL|Resource|Resolution|Request|Response|EOF)Error"),
    ("class", "transient", r"gaierror|herror|EndOfStream"),
    ("code", "transient", r"is_retryable"),
)

_MAX_TEXT = 2000  # characters of a message that are searched; some quote a whole response
_MAX_BODY = 100_000  # characters of a body that is parsed
_MAX_LINKS = 16  # errors of a chain that are looked at
_MAX_NODES = 256  # parts of a report of an answer that are looked at
_CODES = ("status_code", "status", "code", "type", "reason", "error_code", "error_type", "Code", "HTTPStatusCode")
_MESSAGES = ("message", "Message", "msg", "error", "detail")
_BODIES = (
    "response",
    "raw_response",
    "body",
    "error",
    "Error",
    "errors",
    "detail",
    "details",
    "innererror",
    "ResponseMetadata",
)

# Why an answer ended, where that says that it was refused or filtered. A merged stream may repeat the word.
_REFUSAL_REASONS = re.compile(
    r"(refusal|content_filter(ed)?|safety|prohibited_content|blocklist|recitation|spii|image_(safety|prohibited_content"
    r"|recitation)|guardrail_intervened|error_toxic|sensitive)+",
    re.IGNORECASE,
)
_NO_BLOCKS = frozenset({"", "BLOCKED_REASON_UNSPECIFIED", "BLOCK_REASON_UNSPECIFIED"})  # any other reason is one
# Where providers' reports hold it.
_REASONS = ("finish_reason", "finishReason", "stop_reason", "stopReason", "reason")
_BLOCKS = ("block_reason", "blockReason")
_FILTERED = ("prompt_filter_results", "content_filter_results", "content_filter_result")
_CHOICES = ("choices", "candidates")  # the first one is the answer
_PARTS = (
    *("message", "delta", "messageStop", "response", "data", "output", "content"),
    *("incomplete_details", "prompt_feedback", "promptFeedback"),
)


def classify(error: BaseException) -> Failure:
    """Say what an error that was raised in a model's call means. It never raises."""
    if not isinstance(error, Exception):
        return "request"  # somebody wants to stop
    failure = _by_rules(error, _links(error))
    if failure is None:
        failure = _by_rules(error, _links(error, implicit=True))
        if failure == "request":  # an error that the caller was handling is not this one's meaning
            failure = None
    return failure or "other"


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: rate limits, timeouts, lost connections, errors of the server."""
    return classify(error) == "transient"


def is_fault_of_model(error: BaseException) -> bool:
    """Whether an error counts against the health of the model."""
    return classify(error) in FAULTS_OF_MODEL


def retry_after(error: BaseException) -> float | None:
    """How many seconds the provider asks to wait; None if it does not say."""
    for link in _links(error):
        response = _field(link, "response")
        metadata = _field(response, "ResponseMetadata")  # of botocore
        for headers in (_field(response, "headers"), _field(link, "headers"), _field(metadata, "HTTPHeaders")):
            seconds = _seconds_of(headers)
            if seconds is not None:
                return seconds
        asked = re.search(r"retryDelay\W{1,6}(\d{1,9}(\.\d{1,9})?)s", _string(_field(link, "details")))  # of Google
        if asked:
            return float(asked[1])
    return None


def reports_refusal(report: object) -> bool:
    """Whether a provider's report of an answer says that it was refused or filtered.

    Args:
        report: A raw response or a part of a stream, of any provider, or LangChain's `response_metadata`.
    """
    nodes = [report]
    for node in nodes:
        if _says_refused(node):
            return True
        if len(nodes) < _MAX_NODES:
            nodes += _parts(node)
    return False


def _by_rules(error: BaseException, links: list[BaseException]) -> Failure | None:
    found = _evidence(links)
    found["raised"] = _names(error)
    for where, failure, pattern in _RULES:
        match = re.search if where == "text" else re.fullmatch
        flags = re.IGNORECASE if where in {"code", "text"} else 0
        if any(match(pattern, each, flags) for each in found[where]):
            return failure
    return None


def _links(error: BaseException, *, implicit: bool = False) -> list[BaseException]:
    """An error with its causes and the members of groups; with what was being handled, too, if implicit."""
    links = [error]
    for link in links:
        further = [*link.exceptions] if isinstance(link, BaseExceptionGroup) else []
        further.append(_field(link, "__cause__"))
        if implicit and not _field(link, "__suppress_context__"):
            further.append(_field(link, "__context__"))
        links += [each for each in further if each is not None and not any(each is known for known in links)]
        if len(links) >= _MAX_LINKS:
            break
    return links[:_MAX_LINKS]


def _names(error: BaseException) -> list[str]:
    return [each.__name__ for each in type(error).__mro__]


def _evidence(links: list[BaseException]) -> dict[str, list[str]]:
    """What the rules read, by the names they have for it."""
    found: dict[str, list[str]] = {"class": [], "code": [], "status": [], "text": []}
    for link in links:
        found["class"] += _names(link)
        found["code"] += ["is_retryable"] * (_field(link, "is_retryable") is True)
        texts = len(found["text"])
        _read(link, found, depth=5)
        first = _field(link, "args")
        if isinstance(first, tuple) and first and not isinstance(first[0], str | bytes):
            _read(first[0], found, depth=3)  # a body; langchain-openai raises ValueError(body)
        if len(found["text"]) == texts:  # no body says it in one sentence
            found["text"].append(_string(link)[:_MAX_TEXT])
    found["status"] = found["status"][:1]  # the outermost
    return found


def _read(node: object, found: dict[str, list[str]], depth: int) -> None:
    """Collect codes, statuses and messages of an error, of a response or of a body."""
    if isinstance(node, str | bytes):
        text = node.decode(errors="replace") if isinstance(node, bytes) else node
        node = _parsed(text)
        if node is None:
            found["text"].append(text[:_MAX_TEXT])
    if depth == 0 or node is None:
        return
    if isinstance(node, list | tuple):
        for each in node[:8]:
            _read(each, found, depth - 1)
        return
    for name in _CODES:
        value = _field(node, name)
        if name == "code" and callable(value):  # of gRPC
            with suppress(Exception):
                value = value()
        _note_code(_field(value, "name") or value, found)  # the name of an enumeration's member
    if isinstance(node, Mapping):
        messages = (node.get(name) for name in _MESSAGES)
        found["text"] += [message[:_MAX_TEXT] for message in messages if isinstance(message, str)]
    for value in _bodies(node):
        _read(value, found, depth - 1)


def _bodies(node: object) -> list[object]:
    """What a client or a provider wrapped in an error, a response or a body."""
    if isinstance(node, BaseException):
        found = [_field(node, name) for name in _BODIES]
        return [each for each in found if not isinstance(each, BaseException)]
    if _field(node, "is_stream_consumed") is True:  # a response of httpx whose text has arrived
        return [_field(node, "text")]
    return [each for name in _BODIES if isinstance(each := _field(node, name), Mapping | list)]


def _parsed(text: str) -> object:
    if text.lstrip()[:1] in {"{", "["} and len(text) <= _MAX_BODY:
        with suppress(ValueError, RecursionError):
            parsed: object = json.loads(text)
            return parsed
    return None


def _note_code(value: object, found: dict[str, list[str]]) -> None:
    if type(value) is int and value in range(1000):
        value = str(value)
    if isinstance(value, str):
        code = value[:100].rpartition("#")[2].strip().replace(" ", "_").replace("-", "_")
        found["code"].append(code)
        if re.fullmatch("[45][0-9]{2}", code):
            found["status"].append(code)


def _field(node: object, name: str) -> Any:
    """A field of anything; None if there is none, or reading it fails."""
    with suppress(Exception):
        return field_of(node, name)
    return None


def _string(value: object) -> str:
    with suppress(Exception):
        return str(value)
    return ""


def _seconds_of(headers: Any) -> float | None:
    by_name: dict[str, Any] = {}
    with suppress(Exception):
        by_name = {str(name).lower(): value for name, value in headers.items()}
    for name, per_second in (("retry-after-ms", 1000), ("retry-after", 1)):
        with suppress(Exception):
            seconds = float(by_name[name]) / per_second
            return max(seconds, 0.0) if math.isfinite(seconds) else None
    with suppress(Exception):
        return max((parsedate_to_datetime(by_name["retry-after"]) - datetime.now(UTC)).total_seconds(), 0.0)
    return None


def _says_refused(report: object) -> bool:
    """Whether a part of a report itself says it."""
    refusal = _field(report, "refusal")
    return (
        (isinstance(refusal, str) and bool(refusal))
        or _field(report, "type") == "refusal"
        or any(_REFUSAL_REASONS.fullmatch(_reason(_field(report, name))) for name in _REASONS)
        or any(_reason(_field(report, name)) not in _NO_BLOCKS for name in _BLOCKS)
        or any(_is_filtered(_field(report, name)) for name in _FILTERED)
    )


def _parts(report: object) -> list[object]:
    """The parts of a report that may say it."""
    if isinstance(report, list | tuple):
        return [*report[:_MAX_NODES]]
    if report is None or isinstance(report, str | bytes | int | float):
        return []
    choices = [_field(report, name) for name in _CHOICES]
    firsts = [each[0] for each in choices if isinstance(each, list | tuple) and each]
    return [*firsts, *(part for name in _PARTS if (part := _field(report, name)) is not None)]


def _reason(value: object) -> str:
    """A reason as a word, of whatever type a client makes it."""
    name = getattr(value, "name", value)
    return name.rpartition(".")[2] if isinstance(name, str) else ""


def _is_filtered(results: object) -> bool:
    """Whether Azure's filter stopped one of the things that it looks for."""
    if isinstance(results, Mapping):
        return results.get("filtered") is True or any(map(_is_filtered, results.values()))
    return isinstance(results, list) and any(map(_is_filtered, results))
