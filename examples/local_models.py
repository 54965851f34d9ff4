"""Small programs that answer questions, wrapped as LangChain chat models.

They are not language models. Each solves some kinds of questions by plain rules and fails at the others, always in the
same way: nothing is drawn at random and no answer is looked up by its question. Their prices are made up.
"""

import ast
import datetime as dt
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from typing_extensions import override

from unirouter_integrations import Price

Solver = Callable[[str], str | None]

ABOUT = """\
The models here are small LOCAL PROGRAMS behind LangChain's chat model interface: a calculator, a look-up over a bundled
text, a unit and date converter, a template writer, and two that combine several of these. They are no language models.
They really solve a question or really fail; nothing is drawn at random. Their prices are made up; tokens are words.
"""
PRICES = {
    "abacus": Price(0.5, 2.0),
    "almanac": Price(0.5, 1.5),
    "metric": Price(0.5, 1.5),
    "pocket": Price(2.0, 6.0),
    "scholar": Price(15.0, 60.0),
    "scribe": Price(1.0, 3.0),
}
ALMANAC = (Path(__file__).parent / "data" / "almanac.txt").read_text().splitlines()

_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_SPOKEN = {"plus": "+", "minus": "-", "times": "*", "multiplied by": "*", "divided by": "/"}
_UNITS: dict[str, dict[str, float]] = {
    "length": {"kilometre": 1000, "metre": 1, "centimetre": 0.01, "mile": 1609.344, "foot": 0.3048, "inch": 0.0254},
    "mass": {"kilogram": 1000, "gram": 1, "pound": 453.59237, "ounce": 28.349523125},
    "volume": {"litre": 1, "millilitre": 0.001, "gallon": 3.785411784},
    "time": {"week": 604800, "day": 86400, "hour": 3600, "minute": 60, "second": 1},
}
_METRIC = {"kilometre", "metre", "centimetre", "kilogram", "gram", "litre", "millilitre"}
_STOP_WORDS = frozenset("a an and by does for from have in into is its of on the to what where which who name".split())  # noqa: SIM905
_LINES = (
    "Softly {0} returns at the end of the day,",
    "a quiet thought that will not go away.",
    "We look at {0} and we slow our pace,",
    "and find a little wonder in its place.",
    "Tomorrow {0} will still be there to see.",
)
_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}


class LocalChatModel(BaseChatModel):
    """A chat model whose answers come from solvers, tried in order.

    Attributes:
        model_name: Its name.
        solvers: Functions from a question to an answer, or to None where they see nothing they can do.
    """

    model_name: str
    solvers: tuple[Solver, ...]

    @property
    @override
    def _llm_type(self) -> str:
        return "local-solver"

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        question = messages[-1].text
        answers = (solve(question) for solve in self.solvers)
        answer = next((answer for answer in answers if answer is not None), "I do not know how to answer that.")
        read, written = sum(len(message.text.split()) for message in messages), len(answer.split())
        message = AIMessage(
            answer,
            usage_metadata={"input_tokens": read, "output_tokens": written, "total_tokens": read + written},
            response_metadata={"model_name": self.model_name},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])


def local_models() -> dict[str, LocalChatModel]:
    """The models by name: four specialists, a small generalist and a large one. The last one joins later."""
    solvers: dict[str, tuple[Solver, ...]] = {
        "abacus": (arithmetic,),
        "almanac": (look_up,),
        "metric": (convert, calculate_date),
        "pocket": (two_numbers, look_up_capital, convert_metric, write_couplet),
        "scholar": (count_and_shape, write, convert, word_problem, arithmetic, look_up),
        "scribe": (count_and_shape, write),
    }
    return {name: LocalChatModel(model_name=name, solvers=them) for name, them in solvers.items()}


def arithmetic(question: str) -> str | None:
    """Evaluate the longest expression of numbers and signs in a question."""
    text = question.lower()
    for word, sign in _SPOKEN.items():
        text = text.replace(word, sign)
    found = [part.strip() for part in re.findall(r"[\d(][\d\s.+*/()-]*[\d)]", text)]
    expressions = [part for part in found if re.search(r"\d\s*[-+*/]\s*[\d(]|\)\s*[-+*/]", part)]
    if not expressions:
        return None
    try:
        return f"{_evaluate(ast.parse(max(expressions, key=len), mode='eval').body):g}"
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _evaluate(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    msg = "not an expression of numbers"
    raise ValueError(msg)


def two_numbers(question: str) -> str | None:
    """Evaluate sums of two numbers, and no more than that."""
    return arithmetic(question) if len(re.findall(r"\d+", question)) == 2 else None


def word_problem(question: str) -> str | None:
    """Solve a story about two amounts by the words that show which operation is meant."""
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    if len(numbers) != 2 or "how many" not in question.lower():
        return None
    left, right = numbers
    signs = {
        "shares|equally|split": left / right,
        "each|times as many": left * right,
        "gave away|fall out|are left|remain|lost": left - right,
        "buys|found|in total|more": left + right,
    }
    for words, result in signs.items():
        if re.search(words, question):
            return f"The answer is {result:g}."
    return None


def look_up(question: str) -> str | None:
    """Answer with the line of the almanac that shares the rarest words with the question."""
    asked = _words(question)
    lines = [(line, _words(line)) for line in ALMANAC]

    def rarity(word: str) -> float:
        return 1 / (1 + sum(word in words for _, words in lines))

    line, words = max(lines, key=lambda entry: sum(rarity(word) for word in asked & entry[1]))
    shared = asked & words
    return line if len(shared) > 1 and any(rarity(word) > 1 / 4 for word in shared) else None


def look_up_capital(question: str) -> str | None:
    """Look up capitals, and nothing else."""
    return look_up(question) if "capital of" in question else None


def _words(text: str) -> set[str]:
    return set(re.findall(r"[\w-]+", text.lower())) - _STOP_WORDS


def convert(question: str) -> str | None:
    """Convert an amount from one unit to another of the same kind."""
    amount = re.search(r"(\d+(?:\.\d+)?) (\w+)", question)
    if amount is None:
        return None
    source = _singular(amount[2])
    others = [_singular(word) for word in re.findall(r"[a-z]+", question.lower().replace(amount[0].lower(), ""))]
    for factors in _UNITS.values():
        targets = [word for word in others if word in factors]
        if source in factors and targets:
            return f"{float(amount[1]) * factors[source] / factors[targets[-1]]:.6g} {targets[-1]}s"
    return None


def convert_metric(question: str) -> str | None:
    """Convert between metric units, and no others."""
    named = {_singular(word) for word in re.findall(r"[a-z]+", question.lower())}
    units = {unit for factors in _UNITS.values() for unit in factors}
    return convert(question) if named & units <= _METRIC else None


def _singular(word: str) -> str:
    return {"feet": "foot", "inches": "inch"}.get(word, word.removesuffix("s"))


def calculate_date(question: str) -> str | None:
    """Name the weekday of a date, count the days between two dates, or count days from a date."""
    dates = [_date(found) for found in re.findall(r"\d{4}-\d{2}-\d{2}|\d{1,2} [A-Z][a-z]+ \d{4}", question)]
    days = re.search(r"(\d+) days (after|before)", question)
    if len(dates) > 1:
        return f"{abs((dates[1] - dates[0]).days)} days"
    if dates and days:
        moved = dates[0] + dt.timedelta(int(days[1]) * (1 if days[2] == "after" else -1))
        return f"{moved.day} {moved:%B %Y}"
    if dates and "day" in question:
        return f"It is a {dates[0]:%A}."
    return None


def _date(text: str) -> dt.date:
    form = "%Y-%m-%d" if "-" in text else "%d %B %Y"
    return dt.datetime.strptime(text, form).replace(tzinfo=dt.UTC).date()


def count_and_shape(question: str) -> str | None:
    """Reverse, count, capitalise and sort words."""
    quoted, lower = re.findall(r"'(\w+)'", question), question.lower()
    if lower.startswith("sort"):
        return ", ".join(sorted(re.findall(r"\w+", question.partition(":")[2])))
    if not quoted:
        return None
    if "occur" in lower:
        return str(quoted[1].count(quoted[0]))
    if "reverse" in lower or "backwards" in lower:
        return str(quoted[0][::-1])
    if "upper" in lower or "capital letters" in lower:
        return str(quoted[0].upper())
    return str(len(quoted[0])) if "letters" in lower else None


def write(question: str) -> str | None:
    """Write a poem of so many lines, or a note to a person, from a template."""
    text = question.rstrip(".")
    poem = re.search(r"(two|three|four|five)[- ]lines?\b.* about (.+)", text)
    if poem:
        return "\n".join(line.format(poem[2]) for line in _LINES[: _NUMBERS[poem[1]]])
    name = re.search(r"\b(?:to|for) ([A-Z]\w+)", text)
    if name is None:
        return None
    greetings = {
        "thank": "Dear {0},\nthank you so much for your kindness.",
        "birthday": "Dear {0},\nhappy birthday, and many more!",
        "dinner": "Dear {0},\nwould you join us for dinner on Friday?",
        "apology": "Dear {0},\nI am sorry for being late.",
    }
    return next((note.format(name[1]) for word, note in greetings.items() if word in text), None)


def write_couplet(question: str) -> str | None:
    """Write two lines of verse, whatever length was asked for."""
    about = re.search(r" about (.+)\.", question)
    return "\n".join(line.format(about[1]) for line in _LINES[:2]) if about else None
