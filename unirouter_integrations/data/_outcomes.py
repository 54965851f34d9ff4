"""Recorded outcomes: the score and the cost of each model's answer to each prompt.

Messages and reprs name files, lines and models and never quote a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from unirouter_integrations._checks import check_name, shown
from unirouter_integrations._tables import Table, as_columns
from unirouter_integrations.core._profiles import Floats, check_scores
from unirouter_integrations.embedding._base import check_texts
from unirouter_integrations.errors import InvalidInputError

if TYPE_CHECKING:
    from narwhals.stable.v1.typing import IntoDataFrame

_LARGEST_COST = 1e300
_MOST_CELLS = 100_000_000  # 1.6 GB; a short file can name many prompts and many models


@dataclass(frozen=True, eq=False)
class Outcomes:
    """A table of recorded outcomes: the score and the cost of each model's answer to each prompt.

    Attributes:
        prompts: The prompts.
        models: The names of the models.
        scores: `(prompts, models)`, each from 0 (wrong) to 1 (right); NaN where not recorded.
        costs: `(prompts, models)`, the cost of each call in one unit for all; NaN where not recorded.
        name: What to call it in tables and titles.

    Raises:
        InvalidInputError: If the parts do not fit each other.
    """

    prompts: tuple[str, ...]
    models: tuple[str, ...]
    scores: Floats
    costs: Floats
    name: str = ""

    def __post_init__(self) -> None:
        prompts = check_texts(self.prompts)
        models = [check_name(model, "The name of a model") for model in check_texts(self.models, "models")]
        if not prompts or not models or len(set(models)) < len(models):
            msg = (
                "Outcomes need at least one prompt and one model, and each model a name of its own, but there are "
                f"{len(prompts)} prompts and {len(models)} models with {len(set(models))} names."
            )
            raise InvalidInputError(msg)
        object.__setattr__(self, "prompts", tuple(prompts))
        object.__setattr__(self, "models", tuple(models))
        for what in ("scores", "costs"):
            try:
                table = np.array(getattr(self, what), float)
            except (TypeError, ValueError):
                msg = f"The {what} should be a table of numbers, one row per prompt and one column per model."
                raise InvalidInputError(msg) from None  # the original may quote what was given
            if table.shape != (len(prompts), len(models)):
                msg = f"The {what} should be (prompts, models), {(len(prompts), len(models))}, but are {table.shape}."
                raise InvalidInputError(msg)
            table.setflags(write=False)
            object.__setattr__(self, what, table)
        for column, model in enumerate(models):
            check_scores(self.scores[:, column], len(prompts), f"the scores of {model!r}")
            if ((self.costs[:, column] < 0) | np.isinf(self.costs[:, column])).any():
                msg = f"The costs of {model!r} should be finite and not negative, or NaN where not recorded."
                raise InvalidInputError(msg)

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]], *, name: str = "") -> Outcomes:
        """Make a table from records, one per prompt and model. The prompts keep their order; the models are sorted.

        Args:
            records: Each has `prompt`, `model` and `score` (0 wrong to 1 right), and may have `cost` and `prompt_id`.
                A record whose score is None, NaN or empty counts as not recorded. A `prompt_id` identifies a prompt;
                without one, its text does. Where several ids share a text, only the records of the first id count:
                the same prompt in training and in test would be a leak.
            name: See the class.

        Raises:
            InvalidInputError: If a record is not like that, or two disagree on a score. Equal repeats count once.
        """
        rows = list(records)
        for index, row in enumerate(rows):
            if not isinstance(row, Mapping):
                msg = f"records[{index}] should map prompt, model and score to values, but is {type(row).__name__}."
                raise InvalidInputError(msg)
        names = dict.fromkeys(chain.from_iterable(rows))
        columns = as_columns({key: row[key] for key in _LONG_FORM if key in row} for row in rows)
        table = Table("records", names, columns, "records[{}]".format)
        return from_long_form(table, name, hint="Each record needs all three.")

    @classmethod
    def from_frame(
        cls,
        frame: IntoDataFrame,
        *,
        prompt: str = "prompt",
        model: str = "model",
        score: str = "score",
        cost: str = "cost",
        name: str = "",
    ) -> Outcomes:
        """Make a table from a data frame in long form, one row per prompt and model; see `from_records`.

        Args:
            frame: A pandas or polars data frame, a pyarrow table, or any other data frame that narwhals knows.
            prompt: The column of the prompt's text. A column `prompt_id` is read as well, if there is one.
            model: The column of the model's name.
            score: The column of the score, from 0 (wrong) to 1 (right).
            cost: The column of the cost of the call; without a column `cost`, no cost is recorded.
            name: See the class.

        Raises:
            InvalidInputError: If it is no such data frame; the message says which row is wrong.
        """
        import narwhals.stable.v1 as nw

        try:
            data = nw.from_native(frame, eager_only=True)
        except TypeError:
            msg = f"frame should be a pandas or polars DataFrame or a pyarrow Table, but is {type(frame).__name__}."
            raise InvalidInputError(msg) from None
        except ValueError:
            msg = "The columns of a data frame should have different names, but two of these have the same one."
            raise InvalidInputError(msg) from None
        needed, optional = long_form_columns(prompt, model, score, cost)
        columns: dict[str, list[Any]] = {}
        for column in data.columns:
            if column in needed.values() or column in optional.values():
                series = data[column]
                nulls = series.is_null().to_list()  # pandas has several values for "missing"; here it is None
                columns[column] = [None if null else value for value, null in zip(series.to_list(), nulls, strict=True)]
        table = Table("The data frame", data.columns, columns, lambda row: f"row {row + 1} of the data frame")
        hint = "Outcomes.from_frame takes other names: prompt=, model=, score=, cost=."
        return from_long_form(table, name, needed, optional, hint=hint)

    def __repr__(self) -> str:
        size = f"{len(self.prompts)} prompts x {len(self.models)} models"
        return f"Outcomes({self.name!r}, {size}, {1 - np.isnan(self.scores).mean():.1%} recorded)"

    @property
    def mean_costs(self) -> Floats:
        """`(models,)`: the mean recorded cost of a call of each model; an `InvalidInputError` if one has none."""
        unknown = np.isnan(self.costs).all(axis=0)
        if unknown.any():
            model = self.models[int(unknown.argmax())]
            msg = f"No cost of {model!r} is recorded. Give the cost of a call: with_costs({{{model!r}: ..., ...}})."
            raise InvalidInputError(msg)
        return np.asarray(np.nanmean(self.costs, axis=0))

    def complete(self, coverage: float = 0.95) -> Outcomes:
        """Return the part of the table without gaps: models with enough prompts, then prompts that all of these have.

        Args:
            coverage: The least share of the prompts that a model must have, above 0 and up to 1.

        Raises:
            InvalidInputError: If nothing is left.
        """
        recorded = ~np.isnan(self.scores)
        shares = recorded.mean(axis=0)
        models = np.flatnonzero(shares >= coverage)
        prompts = np.flatnonzero(recorded[:, models].all(axis=1))
        if not 0 < coverage <= 1 or not len(models) or not len(prompts):
            msg = (
                f"coverage={shown(coverage)}, which should be above 0 and up to 1, leaves {len(models)} models and "
                f"{len(prompts)} prompts; the model that has most prompts has {shares.max():.1%} of them. With less "
                "coverage more models are left, with more coverage more prompts."
            )
            raise InvalidInputError(msg)
        return Outcomes(
            tuple(self.prompts[row] for row in prompts),
            tuple(self.models[column] for column in models),
            self.scores[np.ix_(prompts, models)],
            self.costs[np.ix_(prompts, models)],
            self.name,
        )

    def with_costs(self, costs: Mapping[str, float]) -> Outcomes:
        """Return the same outcomes with one cost of a call per model, in place of what was recorded.

        Args:
            costs: The cost of each model. Other models may be in it, too.

        Raises:
            InvalidInputError: If a model is missing, or a cost is negative or not finite.
        """
        missing = [model for model in self.models if model not in costs]
        if missing:
            msg = f"costs should hold the cost of each of the {len(self.models)} models, but {missing[0]!r} is missing."
            raise InvalidInputError(msg)
        prices = np.array([_as_number(costs[model]) for model in self.models])
        prices[np.isnan(prices)] = np.inf  # NaN would mean "not recorded", but here a cost was meant to be given
        return replace(self, costs=np.broadcast_to(prices, self.scores.shape))


def as_outcomes(x: object) -> Outcomes | None:
    """Return the `Outcomes` of a table or of a data frame with its usual column names; None for anything else.

    Raises:
        InvalidInputError: If it is a data frame without these columns, or with wrong values in them.
    """
    if isinstance(x, Outcomes):
        return x
    if not hasattr(type(x), "columns"):  # lists and arrays end here, before anything is imported
        return None
    from narwhals.stable.v1.dependencies import is_into_dataframe

    return Outcomes.from_frame(x) if is_into_dataframe(x) else None


_NEEDED = {"prompt": "prompt", "model": "model", "score": "score"}
_OPTIONAL = {"cost": "cost", "prompt_id": "prompt_id"}
_LONG_FORM = (*_NEEDED, *_OPTIONAL)


def long_form_columns(prompt: str, model: str, score: str, cost: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the columns of a long form that must be there, by what they hold, and those that may be missing.

    A cost under another name than the usual one was asked for, so it must be there.
    """
    needed = {"prompt": prompt, "model": model, "score": score}
    return (needed | {"cost": cost}, _OPTIONAL) if cost != "cost" else (needed, _OPTIONAL)


def from_long_form(
    table: Table,
    name: str,
    needed: Mapping[str, str] = _NEEDED,
    optional: Mapping[str, str] = _OPTIONAL,
    *,
    hint: str = "Say which columns they are: prompt=, model=, score=, cost=.",
    unit: float = 1.0,
    take_best: bool = False,
    prompts: Iterable[str] = (),
) -> Outcomes:
    """Make outcomes of a table in long form, one row per prompt and model.

    Args:
        table: The table.
        name: See `Outcomes`.
        needed: The name of each column that must be there, by what it holds.
        optional: The same of those that may be missing: cost and prompt_id.
        hint: What to do if a column is missing.
        unit: What to multiply costs by.
        take_best: Whether the best of several scores of a pair counts. Otherwise they must be equal.
        prompts: The order of the prompts; prompts that are not in it come last.

    Raises:
        InvalidInputError: If the table is not like that; the message says which row is wrong.
    """
    table = table.select(needed, hint, optional)
    texts, models = check_column(table, "prompt", str), check_column(table, "model", str)
    ids = check_column(table, "prompt_id")
    keys = [(text,) if key in (None, "") else key for key, text in zip(ids, texts, strict=True)]
    scores = _numbers(table, "score", 1.0, "from 0 (wrong) to 1 (right)")
    costs = _numbers(table, "cost", _LARGEST_COST, "that is finite and not negative") * unit
    text_of: dict[Any, str] = {}
    first_key: dict[str, Any] = {}
    kept = ~np.isnan(scores)
    for row, (key, text) in enumerate(zip(keys, texts, strict=True)):
        if text_of.setdefault(key, text) != text:
            msg = f"{table.place(row)}: its prompt_id stood for another prompt before. Each prompt needs its own id."
            raise InvalidInputError(msg)
        if first_key.setdefault(text, key) != key:
            kept[row] = False
    if not kept.any():
        msg = f"{table.source} has no outcomes: there is no row with a score."
        raise InvalidInputError(msg)
    rows = {text: row for row, text in enumerate(dict.fromkeys(chain(prompts, texts)))}
    columns = {model: column for column, model in enumerate(sorted(set(models)))}
    if len(rows) * len(columns) > _MOST_CELLS:
        msg = (
            f"{table.source} has {len(rows):,} prompts and {len(columns):,} models, of whose outcomes only "
            f"{len(texts):,} are recorded; a table can hold {_MOST_CELLS:,}. Read it in parts."
        )
        raise InvalidInputError(msg)
    cells = np.array([[rows[text] for text in texts], [columns[model] for model in models]])[:, kept]
    scores, costs = scores[kept], costs[kept]
    all_scores, all_costs = np.full((2, len(rows), len(columns)), np.nan)
    # Where a pair repeats, the last one written stays: the best, or the first.
    order = np.argsort(scores, kind="stable") if take_best else np.arange(len(scores))[::-1]
    all_scores[tuple(cells[:, order])], all_costs[tuple(cells[:, order])] = scores[order], costs[order]
    differs = all_scores[tuple(cells)] != scores
    if differs.any() and not take_best:
        row = int(np.flatnonzero(kept)[differs.argmax()])
        msg = (
            f"{table.place(row)}: {shown(models[row])} has had another score on this prompt. Leave one of the two out."
        )
        raise InvalidInputError(msg)
    return Outcomes(tuple(rows), tuple(columns), all_scores, all_costs, name)


def check_column(table: Table, role: str, kinds: Any = str | int | None) -> list[Any]:
    """Return a column; None in each row if the table has none of that name.

    Raises:
        InvalidInputError: If a value is of another kind.
    """
    values = table.columns.get(role) or [None] * len(table.columns.get("model", ()))
    for row, value in enumerate(values):
        if not isinstance(value, kinds):
            kind = "missing" if value is None else f"a {type(value).__name__}"
            msg = f"{table.place(row)}: the {role} should be a text, but is {kind}."
            raise InvalidInputError(msg)
    return values


def _numbers(table: Table, role: str, largest: float, what: str) -> Floats:
    values = table.columns.get(role) or [None] * len(table.columns["model"])
    numbers = np.array([_as_number(value) for value in values], float)
    outside = (numbers < 0) | (numbers > largest)
    if outside.any():
        row = int(outside.argmax())
        given = f"{numbers[row]:g}" if np.isfinite(numbers[row]) else "something else"
        msg = f"{table.place(row)}: the {role} should be a number {what}, but is {given}."
        raise InvalidInputError(msg)
    return numbers


def _as_number(value: Any) -> float:
    """Return the number that is meant: NaN if none is given, infinity if it is something else."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.inf
