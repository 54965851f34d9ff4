r"""Answer extraction: find and read the final answer in the text of a model.

The final answer is the value of the last `"answer": ...` in JSON; otherwise the text after the last mark, which is
`\boxed{...}`, `#### ...`, "the answer is ..." or "Answer: ..."; otherwise the whole text. Text before a closing
`</think>` is ignored. Texts may be of any length and content, so every pattern here runs in linear time.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any, NamedTuple

_JSON_ERRORS = (ValueError, RecursionError)  # the second if JSON is nested too deeply


class AnswerCandidate(NamedTuple):
    """A text that may be the final answer.

    Attributes:
        text: The text.
        marked: Whether a field or a mark announces it as the final answer; False for the whole text.
    """

    text: str
    marked: bool


_FIELD = re.compile(r'"(?:final[ _])?answer"\s{0,9}:\s{0,9}', re.IGNORECASE)
_MARK = re.compile(
    r"\\boxed\s?\{|####"
    r"|(?:\banswer(?:\s(?:to|for)\s[^.:=\n]{1,80})?|\bcorrect (?:option|choice))"
    r"[\s*_]{0,9}(?:\b(?:is|would be|should be)\b:?|[:=])(?:[*_]{1,3}(?=\s))?",
    re.IGNORECASE,
)


def strip_thinking(text: str) -> str:
    """Remove the reasoning before `</think>`."""
    return text.rpartition("</think>")[2]


def answer_candidates(text: str) -> Iterator[AnswerCandidate]:
    """Find the texts that may be the final answer, the clearest first.

    The last one is the whole text, unless it has an answer field or a box.
    """
    text = strip_thinking(text)
    field, mark = _last_match(_FIELD, text), _last_match(_MARK, text)
    if field:
        yield from (AnswerCandidate(value, marked=True) for value in _field_values(text[field.end() :]))
    elif mark and mark[0].endswith("{"):
        yield AnswerCandidate(_until_closing_brace(text[mark.end() :]), marked=True)
    else:
        if mark:
            yield AnswerCandidate(text[mark.end() :].lstrip().partition("\n")[0], marked=True)
        yield AnswerCandidate(text, marked=False)


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for found in pattern.finditer(text):  # noqa: B007
        pass
    return found


def _field_values(text: str) -> Iterator[str]:
    """Read the JSON value at the beginning of a text, or something like it, in up to two ways."""
    quoted = re.match(r'"((?:[^"\\]|\\.)*+)', text, re.DOTALL)
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text)
    except _JSON_ERRORS:
        # LaTeX in a string is not JSON, nor is a string that was cut off, nor a Python literal.
        yield quoted[1] if quoted else text.partition("\n")[0].rstrip(" ,}`")
        return
    # JSON reads "\frac", "\boxed" and "\times" as a control character and "rac", "oxed", "imes".
    yield re.sub("\t(?=imes|ext|frac)", r"\\t", str(value).replace("\f", r"\f").replace("\b", r"\b"))
    yield quoted[1] if quoted else text[:end]


def _until_closing_brace(text: str) -> str:
    """Cut a text at the brace that closes the one before it."""
    depth = 1
    for match in re.finditer("[{}]", text):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[: match.start()]
    return text


_MARKUP = [(mark, mark) for mark in ("```", "***", "**", "*", "`", "$")] + [(r"\(", r"\)"), (r"\text{", "}")]
_QUOTES = [('"', '"'), ("'", "'"), ("\u201c", "\u201d"), ("\u2018", "\u2019")]
_MAX_NESTED_MARKUP = 4  # such as **`$x$`.**


def normalized_forms(text: str) -> set[str]:
    """Return a text as it is, without the white space around it, and without the quotes around that."""
    stripped = text.strip()
    return {text, stripped, _unwrapped(stripped, _QUOTES)}


def normalized_answer_forms(text: str) -> set[str]:
    """Return the normalized forms of an answer, also without a full stop and without Markdown or LaTeX around it."""
    forms = normalized_forms(text)
    text = re.sub(r"\A```\w*\n", "```", text.strip())
    for _ in range(_MAX_NESTED_MARKUP):
        before = text
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
            forms |= normalized_forms(text)
        text = _unwrapped(text, _MARKUP).strip()
        forms |= normalized_forms(text)
        if text == before:
            break
    return forms


def _unwrapped(text: str, wrappers: list[tuple[str, str]]) -> str:
    for left, right in wrappers:
        if text.startswith(left) and text.endswith(right) and len(text) >= len(left) + len(right):
            inside = text[len(left) : len(text) - len(right)]
            if not inside.startswith(left[0]):  # a row of asterisks is no emphasis
                return inside
    return text


def choice_letter(candidate: AnswerCandidate) -> str | None:
    """Return the letter that a text chooses, as a capital; None if there is none."""
    text = re.sub(r"\\[A-Za-z]+|[{}$]", " ", candidate.text).strip()
    first = re.match(r"[\W_]*([A-Z])(?![A-Za-z'\u2019])(?!(?<=I) [a-z])", text) if candidate.marked else None
    if not first:
        first = re.match(r"[\W_]*([A-Za-z])(?:[).:\]*]|[\W_]*$)", text)
    # A text that begins with A and has a line that begins with B lists the choices.
    if first and (candidate.marked or first[1] not in "Aa" or not re.search(r"\n[\W_]{0,9}[Bb][).:\]*]", text)):
        return first[1].upper()
    # A and I before a small letter are words: "A dog", "I think".
    alone = re.findall(r"(?<![A-Za-z'\u2019])(?![AI] [a-z])[A-Z](?![A-Za-z'\u2019])", text)
    return alone[-1] if alone else None


class Number(NamedTuple):
    """A number in a text.

    Attributes:
        value: The number before the percent sign, if there is one.
        percent: Whether there is a percent sign.
    """

    value: Fraction
    percent: bool

    def equals(self, other: Number) -> bool:
        """Whether both are equal. 50% equals both 50 and 0.5."""
        if self.percent == other.percent:
            return _are_equal(self.value, other.value)
        shares = [number.value / 100 if number.percent else number.value for number in (self, other)]
        return _are_equal(self.value, other.value) or _are_equal(*shares)


def _are_equal(a: Fraction, b: Fraction) -> bool:
    are_whole = a.denominator == b.denominator == 1
    return a == b or (not are_whole and abs(a - b) <= _RELATIVE_TOLERANCE * max(abs(a), abs(b)))


_RELATIVE_TOLERANCE = Fraction(1, 10**6)
_MAX_DIGITS = 1000  # longer numbers take too long to compute with, and a text such as 9^999999999 asks for many
_DIGITS = r"(?:\d{1,3}(?:(?:,\d\d){1,9},\d{3}|(?:,\d{3})++)(?!\d)|\d++)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d++)?|(?<!\.)\.\d++)"
_NUMBER = re.compile(
    rf"""
      (?<=[A-Za-z\d)\]}}])[\^_]\{{?[-+]?[A-Za-z\d]*+        # an exponent or an index, which does not count as a number
    | (?P<minus>(?<![A-Za-z\d)\]}}])-)?
      (?<![A-Za-z\d])(?<!\d\.)
      (?:(?P<mixed>\d{{1,9}})[ ](?=\d{{1,9}}/\d))?
      (?P<number>{_DECIMAL})
      (?:(?:e|\s?(?:[\xd7x*\xb7\u22c5]|\\times|\\cdot)\s?10\s?\^\s?\{{?)(?P<tens>[-+]?\d{{1,9}})(?![A-Za-z\d])\}}?)?
      (?:\^\{{?(?P<power>[-+]?\d{{1,9}})(?!\d)\}}?)?
      (?:\s?/\s?(?P<over>{_DECIMAL}))?
      (?P<percent>\s?\\?%|\spercent\b)?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_FRACTION = re.compile(r"(-?)\\[dtc]?frac\s?(?:\{([^{}]{1,400})\}|(\d))\s?(?:\{([^{}]{1,400})\}|(\d))")
_GROUPED = re.compile(r"(?<=\d)(?:\{,\}|\\[,!;: ]|[\u00a0\u2009\u202f'\u2019])(?=\d{3}(?!\d))")
_MINUS = str.maketrans(dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-"))  # minus, en dash, small and wide minus
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def final_number(text: str) -> Number | None:
    """Return the final number of a text; None if it has none."""
    for candidate in answer_candidates(text):
        plain = _in_plain_notation(candidate.text)
        found: re.Match[str] | None = None
        if candidate.marked:
            found = _first_number(plain.rpartition("=")[2]) or _first_number(plain)
        else:
            for match in _NUMBER.finditer(plain):
                found = match if match["number"] else found
        if found:
            return _to_number(found)
    return None


def _first_number(text: str) -> re.Match[str] | None:
    return next((match for match in _NUMBER.finditer(text) if match["number"]), None)


def _in_plain_notation(text: str) -> str:
    """Rewrite the numbers of a text as in a program, such as 1/2 for a fraction of LaTeX and ^2 for a superscript."""
    text = text.translate(_MINUS)
    text = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    text = re.sub(
        "-?[¼-¾⅐-⅞]", lambda match: " " + unicodedata.normalize("NFKC", match[0]).replace("\u2044", "/"), text
    )
    text = _FRACTION.sub(lambda match: f" {match[1]}{match[2] or match[3]}/{match[4] or match[5]}", text)
    text = _GROUPED.sub(",", text)
    return re.sub(r"(-?)\\?[$€£¥]", r" \1", text)


def _to_number(match: re.Match[str]) -> Number | None:
    """Compute the number of a match; None if it divides by zero or is too large to compute with."""
    number, over = (part and part.replace(",", "") for part in (match["number"], match["over"]))
    power, tens = int(match["power"] or 1), int(match["tens"] or 0)
    if max(len(number) * max(1, abs(power)), abs(tens), len(over or "")) > _MAX_DIGITS:
        return None
    try:
        value = Fraction(number) ** power * Fraction(10) ** tens
        value = int(match["mixed"] or 0) + value / Fraction(over or 1)
    except ZeroDivisionError:
        return None
    return Number(-value if match["minus"] else value, bool(match["percent"]))


def extract_json(text: str) -> Any:
    """Read the JSON in an answer: the whole text, its last code block, or from its first to its last bracket.

    Raises:
        ValueError: If there is none.
    """
    text = strip_thinking(text)
    blocks = re.findall(r"```\w*\s(.*?)```", text, re.DOTALL)
    starts = [index for index in (text.find("{"), text.find("[")) if index >= 0]
    outer = text[min(starts, default=0) : max(text.rfind("}"), text.rfind("]")) + 1]
    for candidate in (text, *blocks[-1:], outer):
        with suppress(*_JSON_ERRORS):
            return json.loads(candidate)
    raise ValueError
