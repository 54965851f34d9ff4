"""Scorers by name, and `as_scorer`, which makes a scorer of a name, a callable or an evaluator.

A model may explain its answer: "exact", "choice" and "number" look for its final answer, see `_extraction`.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from unirouter_integrations._checks import one_of
from unirouter_integrations._concurrency import in_thread, off_loop
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.grading._extraction import (
    AnswerCandidate,
    answer_candidates,
    choice_letter,
    extract_json,
    final_number,
    normalized_answer_forms,
    normalized_forms,
    strip_thinking,
)
from unirouter_integrations.grading._judges import Evaluator, from_evaluator
from unirouter_integrations.grading._models import digest, settings_json
from unirouter_integrations.grading._records import Answer, Example, Score, Scorer, reference_texts, refuse_reference

_MAX_TEXT_IN_LOOP = 2**14  # characters; grading longer texts can take tens of milliseconds
_OPENEVALS_ARGUMENTS = ("inputs", "outputs", "reference_outputs")


ScorerLike = str | Scorer | Evaluator | Callable[..., object]
"""What `as_scorer` takes. No type describes a callable of the openevals shape, which may take any of its arguments."""


def as_scorer(scorer: ScorerLike) -> Scorer:
    """Make a `Scorer` of a name, a callable or an evaluator.

    Args:
        scorer: One of

            - a name: "exact", "choice", "number", "contains", "regex", "json", "tool_calls", or, for escalation, where
              there is no reference, "confidence" or "probability";
            - a `Scorer`, such as `similarity(...)`, `judge(...)` and `from_evaluator(...)` return;
            - a LlamaIndex evaluator whose scores lie between 0 and 1, or that only decides whether an answer passes;
            - a callable `(answer, example)`, or one of the openevals shape, with any of the keyword arguments `inputs`
              (the prompt), `outputs` (the text of the answer) and `reference_outputs` (the reference). It returns a
              bool, a number from 0 to 1, None if it could not grade, a `Score`, `{"score": ..., "comment": ...}`, or
              a list of these, which counts as their mean. A callable that is not async is called in threads. Only a
              `Score` can report a cost.

    Raises:
        InvalidInputError: If it is none of these.
    """
    if isinstance(scorer, Scorer):
        return scorer
    if isinstance(scorer, str):
        one_of(scorer, "The name of a scorer", _NAMED)
        return Scorer(scorer, _as_async(_NAMED[scorer]), local=True)
    if isinstance(scorer, type):
        msg = f"{scorer.__name__} is a class; pass an instance of it as the scorer."
        raise InvalidInputError(msg)
    x: Any = scorer
    if hasattr(x, "aevaluate"):
        return from_evaluator(x)
    if callable(x):
        parameters = _parameters(x)
        if parameters is not None and not _accepts_answers(parameters):
            msg = f"The scorer {_callable_name(x).partition(':')[0]!r} should be callable as f(answer, example)."
            raise InvalidInputError(msg)
        return Scorer(_callable_name(x), _as_grading_function(x))
    remedy = "; to let a chat model judge: judge(model, rubric=...)" if hasattr(x, "ainvoke") else ""
    msg = f"{type(x).__name__} is not a scorer. Pass the name of one, or a callable (answer, example){remedy}."
    raise InvalidInputError(msg)


# --- scorers by name ----------------------------------------------------------------------------------------------


def exact(answer: Answer, example: Example) -> bool:
    """Right if the answer, or its final answer, equals the reference, or one of a list of references.

    White space and quotes around either are ignored, and so are code marks, emphasis, dollar signs and a full stop
    around the answer. Case matters. A value in JSON may be written as in Python or as in JSON.
    """
    references = {form for text in reference_texts("exact", example) for form in normalized_forms(text)}
    texts = [strip_thinking(answer.text), *(candidate.text for candidate in answer_candidates(answer.text))]
    return any(not references.isdisjoint(normalized_answer_forms(text)) for text in texts)


def choice(answer: Answer, example: Example) -> Score:
    """Right if the answer chooses the letter that is the reference, or one of a list of references.

    Recognized are "C", "(C)", "c)", "**C**", "C. Paris", "The answer is (C) because ...". If nothing marks the final
    answer and the text does not begin with the choice, it is the last capital letter that stands alone. The text of
    the choice without its letter is wrong.
    """
    references = {choice_letter(AnswerCandidate(text, marked=True)) for text in reference_texts("choice", example)}
    if None in references:
        refuse_reference("choice", "a letter, such as 'C', or a list of letters", example)
    chosen = next(filter(None, map(choice_letter, answer_candidates(answer.text))), None)
    return Score(float(chosen in references), comment="" if chosen else "The answer names no letter.")


def number(answer: Answer, example: Example) -> Score:
    r"""Right if the final number of the answer equals the reference, or one of a list of references.

    Whole numbers must be equal, others agree up to a relative difference of 1e-6. Recognized are 1,234.5, -3/4, 1 1/2,
    ½, 1.5e3, 1.5 * 10^3, 2^10, \frac{3}{4}, and any of them with a currency or a unit. 50% equals both 50 and 0.5. In
    a marked final answer it is the first number after the last equals sign, elsewhere the last number. Numbers in
    words, decimal commas, roots and multiples of π are not recognized.
    """
    references = [final_number(text) for text in reference_texts("number", example)]
    if None in references:
        refuse_reference("number", "a number, a text with one, or a list of these", example)
    value = final_number(answer.text)
    if value is None:
        return Score(0.0, comment="The answer holds no number.")
    return Score(float(any(value.equals(reference) for reference in references if reference)))


def contains(answer: Answer, example: Example) -> bool:
    """Right if the answer contains the reference, or one of a list of references. Case is ignored.

    It may be part of a longer word or number; if that is wrong, use "regex".
    """
    text = strip_thinking(answer.text).casefold()
    references = reference_texts("contains", example)
    if not all(references):
        refuse_reference("contains", "a text that is not empty, or a list of such", example)
    return any(reference.casefold() in text for reference in references)


def regex(answer: Answer, example: Example) -> bool:
    r"""Right if the reference, or one of a list of references, is a regular expression that matches in the answer.

    It is searched for, as by `re.search`: begin with `(?i)` to ignore case, with `\A` and end with `\Z` to match the
    whole answer. A pattern with catastrophic backtracking does not end here either.
    """
    try:
        patterns = [re.compile(text) for text in reference_texts("regex", example)]
    except re.error as error:
        refuse_reference("regex", f"a regular expression ({error.msg})", example)
    return any(pattern.search(strip_thinking(answer.text)) for pattern in patterns)


def json_equality(answer: Answer, example: Example) -> Score:
    """Right if the answer is JSON and equals the reference, which is a JSON value or the text of one.

    The JSON is the whole answer, or its last code block, or the text from its first to its last brace or bracket.
    The order of keys, white space and 1 against 1.0 make no difference; the order of lists does.
    """
    reference = example.reference
    if isinstance(reference, str):
        try:
            reference = json.loads(reference)
        except (ValueError, RecursionError):
            refuse_reference("json", "a JSON value, or a text that is JSON", example)
    try:
        value = extract_json(answer.text)
    except ValueError:
        return Score(0.0, comment="The answer is not JSON.")
    return Score(float(_is_same_json(value, reference)))


def tool_call_equality(answer: Answer, example: Example) -> bool:
    """Right if the answer calls the tools of the reference, as often, with equal arguments, in any order.

    The reference is a list of `{"name": ..., "args": {...}}`, empty if no tool should be called. Arguments are equal
    as in "json"; other keys of a call, and the text of the answer, are ignored.
    """
    reference = example.reference
    if not isinstance(reference, list | tuple) or not all(
        isinstance(call, Mapping) and "name" in call for call in reference
    ):
        refuse_reference("tool_calls", "a list of {'name': ..., 'args': {...}}", example)
    missing = [_name_and_arguments(call) for call in reference]
    for made in map(_name_and_arguments, answer.tool_calls):
        match = next((index for index, call in enumerate(missing) if _is_same_json(made, call)), None)
        if match is None:
            return False
        del missing[match]
    return not missing


_CONFIDENCE = re.compile(
    r"\bconfidence\W{0,9}(?:is\W{0,3})?(\d{1,3}(?:\.\d{1,9})?)\s{0,3}(%|/\s{0,3}100\b|/\s{0,3}10\b)?", re.IGNORECASE
)


def confidence(answer: Answer, example: Example) -> Score:  # noqa: ARG001
    """Read the confidence that the answer states: the last "Confidence: 85%", also as 0.85, 85/100 or 8.5/10.

    An answer that states none is not graded. Ask for it in the prompt.
    """
    stated = _CONFIDENCE.findall(strip_thinking(answer.text))
    if not stated:
        return Score(None, comment="The answer does not state a confidence.")
    figure, unit = stated[-1]
    scale = 10 if unit.replace(" ", "") == "/10" else 100 if unit or float(figure) > 1 else 1
    return Score(min(float(figure) / scale, 1.0))


def probability(answer: Answer, example: Example) -> Score:  # noqa: ARG001
    """Return the geometric mean of the probabilities that the model gave to the tokens of its answer.

    An answer is not graded if the provider does not report them (OpenAI: `ChatOpenAI(..., logprobs=True)`).
    """
    if answer.logprob is None:
        return Score(None, comment="The model does not report the probabilities of its tokens.")
    return Score(min(math.exp(answer.logprob), 1.0))


_NAMED: dict[str, Callable[[Answer, Example], object]] = {
    "exact": exact,
    "choice": choice,
    "number": number,
    "contains": contains,
    "regex": regex,
    "json": json_equality,
    "tool_calls": tool_call_equality,
    "confidence": confidence,
    "probability": probability,
}


def _name_and_arguments(call: Mapping[str, Any]) -> list[Any]:
    return [call["name"], call.get("args") or {}]


def _is_same_json(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_is_same_json(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_is_same_json, a, b))
    return bool(a == b)


def _as_async(function: Callable[[Answer, Example], object]) -> Callable[[Answer, Example], Awaitable[object]]:
    async def grade(answer: Answer, example: Example) -> object:
        return await off_loop(len(answer.text) > _MAX_TEXT_IN_LOOP, function, answer, example)

    return grade


# --- callables ----------------------------------------------------------------------------------------------------


def _as_grading_function(function: Callable[..., object]) -> Callable[[Answer, Example], Awaitable[object]]:
    """Make an async function of a callable. If it is not async, it is called in a thread: it may wait for a model."""
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    parameters = _parameters(function) or {}

    async def grade(answer: Answer, example: Example) -> object:
        call = partial(function, answer, example)
        if "outputs" in parameters:
            values = (example.prompt, answer.text, example.reference)
            named = dict(zip(_OPENEVALS_ARGUMENTS, values, strict=True))
            call = partial(function, **{name: value for name, value in named.items() if name in parameters})
        result = call() if is_async else await in_thread(call)()
        return await result if inspect.isawaitable(result) else result

    return grade


def _parameters(function: Callable[..., object]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return None


def _accepts_answers(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a callable with these parameters accepts an answer and an example, or the arguments of openevals."""
    named = {name: None for name in _OPENEVALS_ARGUMENTS if name in parameters} if "outputs" in parameters else {}
    try:
        inspect.Signature([*parameters.values()]).bind(*(() if named else (None, None)), **named)
    except TypeError:
        return False
    return True


def _callable_name(function: Any) -> str:
    """Return the name of a callable, with a digest of its source, its settings and the variables it closes over."""
    written = getattr(function, "func", function)  # a partial has no source
    named = written if hasattr(written, "__qualname__") else type(written)
    parts: list[Any] = []
    with suppress(OSError, TypeError):  # there is no source in a console or in C
        parts.append(inspect.getsource(named))
    if code := getattr(written, "__code__", None):  # two lambdas in one line have the same source
        parts += [code.co_code.hex(), code.co_names, code.co_consts]
    parts += [getattr(function, name, None) for name in ("args", "keywords", "__dict__", "__defaults__")]
    parts.append(getattr(getattr(function, "__self__", None), "__dict__", None))
    with suppress(ValueError):  # an unbound variable
        parts += [cell.cell_contents for cell in getattr(written, "__closure__", None) or ()]
    return f"{named.__module__}.{named.__qualname__}:{digest(settings_json(parts))}"
