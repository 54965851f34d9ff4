"""Recorded outcomes: what each model's answer to each prompt was worth and cost, read from the files people have.

No file is ever unpickled. Errors and reprs name files, lines and models, and never quote a prompt.
"""

from __future__ import annotations

import ast
import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unirouter_integrations.embedding import check_texts
from unirouter_integrations.errors import InvalidInputError, MissingDependencyError
from unirouter_integrations.profiles import Floats, check_losses

_PER_1000_CALLS = 1000.0
_LARGEST_COST = 1e300
_LONGEST_LITERAL = 1_000_000
_MOST_CELLS = 100_000_000  # 1.6 GB; a short file can name many prompts and many models


@dataclass(frozen=True, eq=False)
class Outcomes:
    """A table of recorded outcomes: what each model's answer to each prompt was worth and cost.

    Attributes:
        prompts: The prompts.
        models: The names of the models.
        losses: `(prompts, models)`: 1 - score, between 0 (right) and 1 (wrong); NaN where not recorded.
        costs: `(prompts, models)`: what each call has cost; NaN where not recorded.
        name: What to call it in tables and titles.

    Raises:
        InvalidInputError: If the parts do not fit each other.
    """

    prompts: tuple[str, ...]
    models: tuple[str, ...]
    losses: Floats
    costs: Floats
    name: str = ""

    def __post_init__(self) -> None:
        prompts, models = check_texts(self.prompts), check_texts(self.models, "models")
        if not prompts or not models or not all(models) or len(set(models)) < len(models):
            msg = (
                "Outcomes need at least one prompt and one model, and each model a name of its own that is not empty, "
                f"but there are {len(prompts)} prompts and {len(models)} models with {len(set(models))} names."
            )
            raise InvalidInputError(msg)
        object.__setattr__(self, "prompts", tuple(prompts))
        object.__setattr__(self, "models", tuple(models))
        for what in ("losses", "costs"):
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
            check_losses(self.losses[:, column], len(prompts), f"the losses of {model!r}")
            if ((self.costs[:, column] < 0) | np.isinf(self.costs[:, column])).any():
                msg = f"The costs of {model!r} should be finite and not negative, or NaN where not recorded."
                raise InvalidInputError(msg)

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]], *, name: str = "") -> Outcomes:
        """Make a table of records, one per prompt and model. The prompts keep their order; the models are sorted.

        Args:
            records: Each has `prompt`, `model` and `score` (0 wrong to 1 right), and may have `cost` and `prompt_id`.
                One whose score is None, NaN or empty counts as not recorded. Prompts are told apart by `prompt_id`
                where there is one, otherwise by their text. Where several ids share a text, the records of the first
                are taken and the others left out: the same prompt in training and in test would be a leak.
            name: See the class.

        Raises:
            InvalidInputError: If a record is not like that, or two disagree on a score; equal repeats are taken once.
        """
        rows = list(records)
        for index, row in enumerate(rows):
            if not isinstance(row, Mapping):
                msg = f"records[{index}] should map prompt, model and score to values, but is {type(row).__name__}."
                raise InvalidInputError(msg)
        table = _of_rows("records", rows, _LONG.__contains__, "records[{}]".format)
        return _outcomes(table.named(_NEEDED, "Each record needs all three."), name)

    def __repr__(self) -> str:
        size = f"{len(self.prompts)} prompts x {len(self.models)} models"
        return f"Outcomes({self.name!r}, {size}, {1 - np.isnan(self.losses).mean():.1%} recorded)"

    @property
    def mean_costs(self) -> Floats:
        """`(models,)`: the mean recorded cost of a call of each model; an `InvalidInputError` if one has none."""
        unknown = np.isnan(self.costs).all(axis=0)
        if unknown.any():
            model = self.models[int(unknown.argmax())]
            msg = f"No cost of {model!r} is recorded. Say what a call costs: with_costs({{{model!r}: ..., ...}})."
            raise InvalidInputError(msg)
        return np.asarray(np.nanmean(self.costs, axis=0))

    def complete(self, coverage: float = 0.95) -> Outcomes:
        """The part of the table without gaps: models that have most prompts, then prompts that all of these have.

        Args:
            coverage: The least share of the prompts that a model must have, above 0 and up to 1.

        Raises:
            InvalidInputError: If nothing is left.
        """
        recorded = ~np.isnan(self.losses)
        shares = recorded.mean(axis=0)
        models = np.flatnonzero(shares >= coverage)
        prompts = np.flatnonzero(recorded[:, models].all(axis=1))
        if not 0 < coverage <= 1 or not len(models) or not len(prompts):
            msg = (
                f"coverage={coverage!r}, which should be above 0 and up to 1, leaves {len(models)} models and "
                f"{len(prompts)} prompts; the model that has most prompts has {shares.max():.1%} of them. With less "
                "coverage more models are left, with more coverage more prompts."
            )
            raise InvalidInputError(msg)
        return Outcomes(
            tuple(self.prompts[row] for row in prompts),
            tuple(self.models[column] for column in models),
            self.losses[np.ix_(prompts, models)],
            self.costs[np.ix_(prompts, models)],
            self.name,
        )

    def with_costs(self, costs: Mapping[str, float]) -> Outcomes:
        """The same outcomes with this cost of a call for each model, in place of what was recorded.

        Args:
            costs: The cost of each model; there may be more models in it.

        Raises:
            InvalidInputError: If a model is missing in it, or a cost is negative or not finite.
        """
        missing = [model for model in self.models if model not in costs]
        if missing:
            msg = f"costs should hold the cost of each of the {len(self.models)} models, but {missing[0]!r} is missing."
            raise InvalidInputError(msg)
        prices = np.array([_number(costs[model]) for model in self.models])
        prices[np.isnan(prices)] = np.inf  # NaN would mean that it was not recorded, but it was meant to be given here
        return replace(self, costs=np.broadcast_to(prices, self.losses.shape))


def read_outcomes(
    path: str | os.PathLike[str],
    *,
    prompt: str = "prompt",
    model: str = "model",
    score: str = "score",
    cost: str = "cost",
) -> Outcomes:
    """Read outcomes in long form, one row per prompt and model; see `Outcomes.from_records`.

    Args:
        path: A `.parquet`, `.csv` or `.jsonl` file. Or a folder with `prompts.parquet` (prompt_id, prompt, and perhaps
            question, which is then the text taken) and `outcomes.parquet` (prompt_id, model, score, cost_usd), whose
            costs, USD per call, become USD per 1,000 calls; the arguments below are for files.
        prompt: The column of the prompt's text. A column `prompt_id`, if there is one, tells prompts apart.
        model: The column of the model's name.
        score: The column of the score, from 0 (wrong) to 1 (right).
        cost: The column of what the call has cost, in any unit; without a column `cost`, no cost is recorded.

    Raises:
        InvalidInputError: If the file is not like that; the message says where.
        MissingDependencyError: If it is a parquet file and pyarrow is not installed.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    needed = {"prompt": prompt, "model": model, "score": score} | ({"cost": cost} if cost != "cost" else {})
    table = _table(path, {*needed.values(), "cost", "prompt_id"}.__contains__)
    return _outcomes(table.named(needed, "Say which columns they are: prompt=, model=, score=, cost=."), path.stem)


def read_routerbench(path: str | os.PathLike[str]) -> Outcomes:
    """Read RouterBench (arXiv 2403.12031, https://huggingface.co/datasets/withmartian/routerbench).

    Its wide table has a column `prompt` and for each model X its score in `X` and USD per call in `X|total_cost`, which
    becomes USD per 1,000 calls. A prompt of several messages is joined by line breaks.

    Args:
        path: The table as a `.parquet` or `.csv` file. It is published as pickles, which are not read, because reading
            one can run any code. Convert it once, in a place you trust: `pandas.read_pickle(...).to_parquet(...)`.

    Raises:
        InvalidInputError: If it is not that table.
        MissingDependencyError: If it is a parquet file and pyarrow is not installed.
    """
    path = Path(path)
    wide = _table(path, lambda name: not name.endswith("|model_response"))
    models = [name for name in wide.columns if f"{name}|total_cost" in wide.columns]
    if not models or "prompt" not in wide.columns:
        msg = f"{path} should have a column 'prompt' and, for each model X, two columns 'X' and 'X|total_cost'."
        raise InvalidInputError(msg)
    prompts = [_message(text) for text in wide.columns["prompt"]]
    long = {
        "prompt": prompts * len(models),
        # Not the sample_id: where two rows hold one prompt, the second is left out as a whole.
        "prompt_id": [*range(len(prompts))] * len(models),
        "model": [model for model in models for _ in prompts],
        "score": [*chain.from_iterable(wide.columns[model] for model in models)],
        "cost": [*chain.from_iterable(wide.columns[f"{model}|total_cost"] for model in models)],
    }
    return _outcomes(_Table(path, [], long, lambda row: wide.at(row % len(prompts))), path.stem, unit=_PER_1000_CALLS)


def read_embedllm(path: str | os.PathLike[str]) -> Outcomes:
    """Read EmbedLLM (arXiv 2410.02223, https://huggingface.co/datasets/RZ412/EmbedLLM).

    It has no costs. The usual stand-in is the number of parameters: `with_costs({"model": billions, ...})`. A model
    that met a prompt in several variants of a task counts as right if it was in one of them, as in the authors' code
    (`algorithm/knn.py` of https://github.com/richardzhuang0412/EmbedLLM).

    Args:
        path: One of its `.csv` files, or a folder with `train.csv`, `val.csv` and `test.csv`, or some of them.

    Raises:
        InvalidInputError: If it is not one of those tables.
    """
    path = Path(path)
    files = [path / f"{split}.csv" for split in ("train", "val", "test")] if path.is_dir() else [path]
    files = [file for file in files if file.exists()] or files[:1]
    needed = {"prompt": "prompt", "prompt_id": "prompt_id", "model": "model_name", "score": "label"}
    hint = "The files of EmbedLLM have all of these."
    parts = [_table(file, set(needed.values()).__contains__).named(needed, hint) for file in files]
    ends = np.cumsum([len(part.columns["score"]) for part in parts])
    joined = {role: [*chain.from_iterable(part.columns[role] for part in parts)] for role in needed}

    def at(row: int) -> str:
        part = int(np.searchsorted(ends, row, side="right"))
        return parts[part].at(row - int(ends[part]) + len(parts[part].columns["score"]))

    return _outcomes(_Table(path, [], joined, at), "embedllm", best=True)


def read_prompts(path: str | os.PathLike[str], *, prompt: str = "prompt") -> list[str]:
    """Read prompts, each once: the lines of a `.txt` file, or a column of a `.parquet`, `.csv` or `.jsonl` file.

    Args:
        path: The file.
        prompt: The column.

    Raises:
        InvalidInputError: If the file is not like that, or there is no prompt in it.
        MissingDependencyError: If it is a parquet file and pyarrow is not installed.
    """
    path = Path(path)
    if path.suffix.lower() == ".txt":
        try:
            texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError:
            msg = f"{path} should be text in UTF-8, one prompt a line."
            raise InvalidInputError(msg) from None
    else:
        table = _table(path, {prompt}.__contains__)
        named = table.named({"prompt": prompt}, "Say which column it is: prompt=.")
        texts = check_texts(named.columns["prompt"], f"The prompts in {path}")
    if not texts:
        msg = f"There is no prompt in {path}."
        raise InvalidInputError(msg)
    return list(dict.fromkeys(texts))


_NEEDED = {"prompt": "prompt", "model": "model", "score": "score"}
_LONG = {*_NEEDED, "cost", "prompt_id"}


class _Table(NamedTuple):
    """What was read: columns by name or by what they hold, and for messages where each row stands."""

    source: object
    names: Sequence[str]
    columns: dict[str, list[Any]]
    at: Callable[[int], str]

    def named(self, needed: Mapping[str, str], hint: str, cost: str = "cost") -> _Table:
        """The columns by what they hold: those that are needed, and cost and prompt_id if there are any."""
        missing = [column for column in needed.values() if column not in self.columns]
        if missing:
            # Names are shown only beside a known one: the first line of a file without a header may be a prompt.
            known = len(missing) < len(needed)
            others = f"only {', '.join(map(repr, self.names))}" if known else "nor any other that is needed"
            msg = f"{self.source} has no {missing[0]!r}, {others}. {hint}"
            raise InvalidInputError(msg)
        roles = {"cost": cost, "prompt_id": "prompt_id", **needed}
        return self._replace(columns={r: self.columns[name] for r, name in roles.items() if name in self.columns})


def _table(path: Path, keep: Callable[[str], bool]) -> _Table:
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_jsonl}
    kind = path.suffix.lower()
    if kind in {".pkl", ".pickle"}:
        msg = (
            f"{path} is a pickle, and reading one can run any code. Convert it once, in a place you trust: "
            f"pandas.read_pickle({path.name!r}).to_parquet({f'{path.stem}.parquet'!r})."
        )
        raise InvalidInputError(msg)
    if kind not in readers:
        msg = f"The name of {path} should end in {', '.join(readers)}."
        raise InvalidInputError(msg)
    try:
        return readers[kind](path, keep)
    except InvalidInputError:
        raise
    except (csv.Error, ValueError) as error:  # text that is not UTF-8, or a damaged file
        msg = f"{path} could not be read as {kind[1:]}: {error}."
        raise InvalidInputError(msg) from None


def _read_parquet(path: Path, keep: Callable[[str], bool]) -> _Table:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        msg = f"{path} is a parquet file, which needs pip install 'unirouter-integrations[parquet]'."
        raise MissingDependencyError(msg) from error
    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            table = file.read(columns=[name for name in names if keep(name)])
        columns = {name: table[name].to_pylist() for name in names if keep(name)}
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # there is no such file, or it may not be read
        msg = f"{path} could not be read as parquet: {error}."  # pyarrow has a dozen kinds of errors for damaged files
        raise InvalidInputError(msg) from None
    return _Table(path, names, columns, lambda row: f"{path}, row {row + 1}")


def _read_csv(path: Path, keep: Callable[[str], bool]) -> _Table:
    lines: list[int] = []
    same: dict[str, str] = {}  # EmbedLLM repeats each prompt for 112 models; in memory it is there once
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        names = next(reader, [])
        columns: dict[str, list[Any]] = {name: [] for name in names if keep(name)}
        fields = [(values, names.index(name)) for name, values in columns.items()]
        for row in filter(None, reader):
            if len(row) != len(names):
                msg = f"{path}, line {reader.line_num}: {len(row)} fields, but the header has {len(names)}."
                raise InvalidInputError(msg)
            lines.append(reader.line_num)
            for values, field in fields:
                values.append(same.setdefault(row[field], row[field]))
    return _Table(path, names, columns, lambda row: f"{path}, line {lines[row]}")


def _read_jsonl(path: Path, keep: Callable[[str], bool]) -> _Table:
    lines, rows = [], []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if not isinstance(row, dict):
                    msg = f"{path}, line {number}: should be a JSON object in UTF-8, with a value for each column."
                    raise InvalidInputError(msg)
                lines.append(number)
                rows.append(row)
    return _of_rows(path, rows, keep, lambda row: f"{path}, line {lines[row]}")


def _of_rows(
    source: object, rows: Sequence[Mapping[str, Any]], keep: Callable[[str], bool], at: Callable[[int], str]
) -> _Table:
    names = [*dict.fromkeys(chain.from_iterable(rows))]
    return _Table(source, names, {name: [row.get(name) for row in rows] for name in names if keep(name)}, at)


def _read_folder(path: Path) -> Outcomes:
    hint = "read_outcomes says what such a folder holds."
    asked = _table(path / "prompts.parquet", {"prompt_id", "prompt", "question"}.__contains__)
    text = "question" if "question" in asked.columns else "prompt"
    asked = asked.named({"prompt_id": "prompt_id", text: text}, hint)
    texts = check_texts(asked.columns[text], f"The texts in {asked.source}")
    text_of = dict(zip(_checked(asked, "prompt_id"), texts, strict=True))
    needed = {"prompt_id": "prompt_id", "model": "model", "score": "score"}
    table = _table(path / "outcomes.parquet", {*needed, "cost_usd"}.__contains__).named(needed, hint, "cost_usd")
    for row, prompt_id in enumerate(_checked(table, "prompt_id")):
        if prompt_id not in text_of:
            msg = f"{table.at(row)}: the prompt_id is not in {asked.source}."
            raise InvalidInputError(msg)
    table.columns["prompt"] = [text_of[prompt_id] for prompt_id in table.columns["prompt_id"]]
    return _outcomes(table, path.resolve().name, unit=_PER_1000_CALLS, prompts=text_of.values())


def _outcomes(
    table: _Table, name: str, *, unit: float = 1.0, best: bool = False, prompts: Iterable[str] = ()
) -> Outcomes:
    """The outcomes in a long form.

    Args:
        table: Its columns by what they hold.
        name: See `Outcomes`.
        unit: What to multiply costs by.
        best: Of several scores of a pair take the best. Otherwise they have to be the same.
        prompts: The order of the prompts; those that are not in it come last.
    """
    texts, models = _checked(table, "prompt", str), _checked(table, "model", str)
    ids = [(text,) if key in (None, "") else key for key, text in zip(_checked(table, "prompt_id"), texts, strict=True)]
    scores = _numbers(table, "score", 1.0, "from 0 (wrong) to 1 (right)")
    costs = _numbers(table, "cost", _LARGEST_COST, "that is finite and not negative") * unit
    text_of: dict[Any, str] = {}
    first: dict[str, Any] = {}
    kept = ~np.isnan(scores)
    for row, (key, text) in enumerate(zip(ids, texts, strict=True)):
        if text_of.setdefault(key, text) != text:
            msg = f"{table.at(row)}: its prompt_id stood for another prompt before. Each prompt needs an id of its own."
            raise InvalidInputError(msg)
        if first.setdefault(text, key) != key:
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
    losses = 1 - scores[kept]
    all_losses, all_costs = np.full((2, len(rows), len(columns)), np.nan)
    # Where a pair repeats, what is written last stays: the best, or the first.
    order = np.argsort(-losses, kind="stable") if best else np.arange(len(losses))[::-1]
    all_losses[tuple(cells[:, order])], all_costs[tuple(cells[:, order])] = losses[order], costs[kept][order]
    differs = all_losses[tuple(cells)] != losses
    if differs.any() and not best:
        row = int(np.flatnonzero(kept)[differs.argmax()])
        msg = f"{table.at(row)}: {models[row]!r} has had another score on this prompt. Leave one of the two out."
        raise InvalidInputError(msg)
    return Outcomes(tuple(rows), tuple(columns), all_losses, all_costs, name)


def _checked(table: _Table, role: str, kinds: Any = str | int | None) -> list[Any]:
    values = table.columns.get(role) or [None] * len(table.columns.get("model", ()))
    for row, value in enumerate(values):
        if not isinstance(value, kinds):
            kind = "missing" if value is None else f"a {type(value).__name__}"
            msg = f"{table.at(row)}: the {role} should be a text, but is {kind}."
            raise InvalidInputError(msg)
    return values


def _numbers(table: _Table, role: str, largest: float, what: str) -> Floats:
    values = table.columns.get(role) or [None] * len(table.columns["model"])
    numbers = np.array([_number(value) for value in values], float)
    outside = (numbers < 0) | (numbers > largest)
    if outside.any():
        row = int(outside.argmax())
        given = f"{numbers[row]:g}" if np.isfinite(numbers[row]) else "something else"
        msg = f"{table.at(row)}: the {role} should be a number {what}, but is {given}."
        raise InvalidInputError(msg)
    return numbers


def _number(value: Any) -> float:
    """The number that is meant: NaN if none is given, infinity if it is something else."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.inf


def _message(text: Any) -> Any:
    """The text of a prompt that RouterBench writes as a list of messages in Python's notation."""
    if isinstance(text, str) and text.startswith("[") and len(text) <= _LONGEST_LITERAL:
        try:
            parts = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return text
        if isinstance(parts, list) and parts and all(isinstance(part, str) for part in parts):
            return "\n".join(parts)
    return text
