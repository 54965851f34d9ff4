r"""Find and read the final answer in what a model wrote.

The final answer is the last `"answer": ...` of JSON; else what stands after the last mark: `\boxed{...}`, `#### ...`,
"the answer is ..." or "Answer: ..."; else the whole text. What stands before a closing `</think>` is not part of the
answer. Texts may be of any length and hold anything: every pattern here takes time in proportion to the text.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any, NamedTuple

_UNREADABLE = (ValueError, RecursionError)  # what reading JSON raises, the second if it is nested too deep


class Final(NamedTuple):
    """What may be the final answer.

    Attributes:
        text: Its text.
        marked: Whether it is marked as the final answer, rather than the whole text for want of a mark.
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


def said(text: str) -> str:
    """The answer without the thinking before it."""
    return text.rpartition("</think>")[2]


def finals(text: str) -> Iterator[Final]:
    """What may be the final answer, the clearest first; the whole text too, unless it has a field or a box."""
    text = said(text)
    field, mark = _last(_FIELD, text), _last(_MARK, text)
    if field:
        yield from (Final(value, marked=True) for value in _field_value(text[field.end() :]))
    elif mark and mark[0].endswith("{"):
        yield Final(_braced(text[mark.end() :]), marked=True)
    else:
        if mark:
            yield Final(text[mark.end() :].lstrip().partition("\n")[0], marked=True)
        yield Final(text, marked=False)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for found in pattern.finditer(text):  # noqa: B007
        pass
    return found


def _field_value(text: str) -> Iterator[str]:
    """The readings of the JSON value at the beginning of a text, or of what looks like one."""
    inside = re.match(r'"((?:[^"\\]|\\.)*+)', text, re.DOTALL)
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text)
    except _UNREADABLE:
        # LaTeX in a string is not JSON, nor is a string that was cut off, nor what Python writes.
        yield inside[1] if inside else text.partition("\n")[0].rstrip(" ,}`")
        return
    # "\frac", "\boxed" and "\times" are JSON for a control character and "rac", "oxed", "imes".
    yield re.sub("\t(?=imes|ext|frac)", r"\\t", str(value).replace("\f", r"\f").replace("\b", r"\b"))
    yield inside[1] if inside else text[:end]


def _braced(text: str) -> str:
    """The text up to the brace that closes the one before it."""
    depth = 1
    for match in re.finditer("[{}]", text):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[: match.start()]
    return text


_MARKUP = [(mark, mark) for mark in ("```", "***", "**", "*", "`", "$")] + [(r"\(", r"\)"), (r"\text{", "}")]
_QUOTES = [('"', '"'), ("'", "'"), ("\u201c", "\u201d"), ("\u2018", "\u2019")]
_MARKUP_AT_MOST = 4


def bare(text: str) -> set[str]:
    """A text as it stands, and without the white space and the quotes around it."""
    stripped = text.strip()
    return {text, stripped, _unwrapped(stripped, _QUOTES)}


def bare_answer(text: str) -> set[str]:
    """The same of an answer, also without a full stop and the marks that chats set their answers off with."""
    readings = bare(text)
    text = re.sub(r"\A```\w*\n", "```", text.strip())
    for _ in range(_MARKUP_AT_MOST):
        before = text
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
            readings |= bare(text)
        text = _unwrapped(text, _MARKUP).strip()
        readings |= bare(text)
        if text == before:
            break
    return readings


def _unwrapped(text: str, wrappers: list[tuple[str, str]]) -> str:
    for left, right in wrappers:
        if text.startswith(left) and text.endswith(right) and len(text) >= len(left) + len(right):
            inside = text[len(left) : len(text) - len(right)]
            if not inside.startswith(left[0]):  # a row of stars is no emphasis
                return inside
    return text


def letter(final: Final) -> str | None:
    """The letter that a text chooses; None if there is none."""
    text = re.sub(r"\\[A-Za-z]+|[{}$]", " ", final.text).strip()
    begun = re.match(r"[\W_]*([A-Z])(?![A-Za-z'\u2019])(?!(?<=I) [a-z])", text) if final.marked else None
    if not begun:
        begun = re.match(r"[\W_]*([A-Za-z])(?:[).:\]*]|[\W_]*$)", text)
    # A text that begins with A and goes on with B goes through the choices.
    if begun and (final.marked or begun[1] not in "Aa" or not re.search(r"\n[\W_]{0,9}[Bb][).:\]*]", text)):
        return begun[1].upper()
    alone = re.findall(
        r"(?<![A-Za-z'\u2019])(?![AI] [a-z])[A-Z](?![A-Za-z'\u2019])", text
    )  # "A dog" and "I think" are words
    return alone[-1] if alone else None


class Number(NamedTuple):
    """A number as it was written.

    Attributes:
        value: What it is, without its percent sign.
        percent: Whether it has one.
    """

    value: Fraction
    percent: bool

    def equals(self, other: Number) -> bool:
        """Whether both are the same; 50% is both 50 and 0.5."""
        if self.percent == other.percent:
            return _same(self.value, other.value)
        shares = [number.value / 100 if number.percent else number.value for number in (self, other)]
        return _same(self.value, other.value) or _same(*shares)


def _same(a: Fraction, b: Fraction) -> bool:
    whole = a.denominator == b.denominator == 1
    return a == b or (not whole and abs(a - b) <= _TOLERANCE * max(abs(a), abs(b)))


_TOLERANCE = Fraction(1, 10**6)
_DIGITS_AT_MOST = 1000
_DIGITS = r"(?:\d{1,3}(?:(?:,\d\d){1,9},\d{3}|(?:,\d{3})++)(?!\d)|\d++)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d++)?|(?<!\.)\.\d++)"
_NUMBER = re.compile(
    rf"""
      (?<=[A-Za-z\d)\]}}])[\^_]\{{?[-+]?[A-Za-z\d]*+        # an exponent or an index is no number of its own
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
_MINUS = str.maketrans(dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-"))  # the minus sign, the en dash, and wide ones
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def final_number(text: str) -> Number | None:
    """The number that a text gives as its final one; None if it holds none."""
    for final in finals(text):
        plain = _plain(final.text)
        found: re.Match[str] | None = None
        if final.marked:
            found = _first(plain.rpartition("=")[2]) or _first(plain)
        else:
            for match in _NUMBER.finditer(plain):
                found = match if match["number"] else found
        if found:
            return _number(found)
    return None


def _first(text: str) -> re.Match[str] | None:
    return next((match for match in _NUMBER.finditer(text) if match["number"]), None)


def _plain(text: str) -> str:
    """A text with its numbers written as programs write them."""
    text = text.translate(_MINUS)
    text = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda match: "^" + match[0].translate(_RAISED), text)
    text = re.sub(
        "-?[¼-¾⅐-⅞]", lambda match: " " + unicodedata.normalize("NFKC", match[0]).replace("\u2044", "/"), text
    )
    text = _FRACTION.sub(lambda match: f" {match[1]}{match[2] or match[3]}/{match[4] or match[5]}", text)
    text = _GROUPED.sub(",", text)
    return re.sub(r"(-?)\\?[$€£¥]", r" \1", text)


def _number(match: re.Match[str]) -> Number | None:
    """The number that was matched; None if it is none, or too large to reckon with."""
    number, over = (part and part.replace(",", "") for part in (match["number"], match["over"]))
    power, tens = int(match["power"] or 1), int(match["tens"] or 0)
    if max(len(number) * max(1, abs(power)), abs(tens), len(over or "")) > _DIGITS_AT_MOST:
        return None
    try:
        value = Fraction(number) ** power * Fraction(10) ** tens
        value = int(match["mixed"] or 0) + value / Fraction(over or 1)
    except ZeroDivisionError:
        return None
    return Number(-value if match["minus"] else value, bool(match["percent"]))


def parsed_json(text: str) -> Any:
    """The JSON that an answer is or holds: the whole, its last code block, or from its first to its last bracket.

    Raises:
        ValueError: If there is none.
    """
    text = said(text)
    blocks = re.findall(r"```\w*\s(.*?)```", text, re.DOTALL)
    starts = [index for index in (text.find("{"), text.find("[")) if index >= 0]
    outer = text[min(starts, default=0) : max(text.rfind("}"), text.rfind("]")) + 1]
    for candidate in (text, *blocks[-1:], outer):
        with suppress(*_UNREADABLE):
            return json.loads(candidate)
    raise ValueError
