"""Read outcomes and prompts from files: plain tables, RouterBench and EmbedLLM. No file is ever unpickled."""

from __future__ import annotations

import ast
import os
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from unirouter_integrations._checks import shown_path
from unirouter_integrations._storage import read_file
from unirouter_integrations._tables import Table, read_table
from unirouter_integrations.data._outcomes import Outcomes, check_column, from_long_form, long_form_columns
from unirouter_integrations.embedding._base import check_texts
from unirouter_integrations.errors import InvalidInputError

_CALLS = 1000.0  # costs in USD per call become USD per 1,000 calls, so that cost weights are readable numbers
_MAX_TEXT = 2**30  # bytes of a .txt file
_LONGEST_LITERAL = 1_000_000  # characters of a list in Python's notation; parsing takes many times that in memory


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
            question, which is then the text) and `outcomes.parquet` (prompt_id, model, score, cost_usd), whose costs,
            USD per call, become USD per 1,000 calls. The arguments below are for files.
        prompt: The column of the prompt's text. A column `prompt_id` is read as well, if there is one.
        model: The column of the model's name.
        score: The column of the score, from 0 (wrong) to 1 (right).
        cost: The column of the cost of the call, in any unit; without a column `cost`, no cost is recorded.

    Raises:
        InvalidInputError: If the file is not like that; the message says where.
        MissingDependencyError: If it is a parquet file and pyarrow is not installed.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    needed, optional = long_form_columns(prompt, model, score, cost)
    table = read_table(path, {*needed.values(), *optional.values()}.__contains__)
    return from_long_form(table, path.stem, needed, optional)


def read_routerbench(path: str | os.PathLike[str]) -> Outcomes:
    """Read RouterBench (arXiv 2403.12031, https://huggingface.co/datasets/withmartian/routerbench).

    Its wide table has a column `prompt` and, for each model X, the score in `X` and USD per call in `X|total_cost`,
    which becomes USD per 1,000 calls. The messages of a prompt are joined by line breaks.

    Args:
        path: The table as a `.parquet` or `.csv` file. It is published as pickles, which are not read, because reading
            one can run any code. Convert it once, in a place you trust: `pandas.read_pickle(...).to_parquet(...)`.

    Raises:
        InvalidInputError: If it is not that table.
        MissingDependencyError: If it is a parquet file and pyarrow is not installed.
    """
    wide = read_table(path, lambda name: not name.endswith("|model_response"))
    models = [name for name in wide.columns if f"{name}|total_cost" in wide.columns]
    if not models or "prompt" not in wide.columns:
        columns = "a column 'prompt' and, for each model X, two columns 'X' and 'X|total_cost'"
        msg = f"{shown_path(path)} should have {columns}."
        raise InvalidInputError(msg)
    prompts = [_joined_messages(text) for text in wide.columns["prompt"]]
    long = {
        "prompt": prompts * len(models),
        # Not the sample_id: where two rows hold one prompt, the second is left out as a whole.
        "prompt_id": [*range(len(prompts))] * len(models),
        "model": [model for model in models for _ in prompts],
        "score": [*chain.from_iterable(wide.columns[model] for model in models)],
        "cost": [*chain.from_iterable(wide.columns[f"{model}|total_cost"] for model in models)],
    }
    table = Table(shown_path(path), long, long, lambda row: wide.place(row % len(prompts)))
    return from_long_form(table, Path(path).stem, unit=_CALLS)


def read_embedllm(path: str | os.PathLike[str]) -> Outcomes:
    """Read EmbedLLM (arXiv 2410.02223, https://huggingface.co/datasets/RZ412/EmbedLLM).

    It has no costs. The usual stand-in is the number of parameters: `with_costs({"model": billions, ...})`. A model
    that met a prompt in several variants of a task counts as right if it was right in one of them, as in the authors'
    code (`algorithm/knn.py` of https://github.com/richardzhuang0412/EmbedLLM).

    Args:
        path: One of its `.csv` files, or a folder with `train.csv`, `val.csv` and `test.csv`, or some of them.

    Raises:
        InvalidInputError: If it is not one of those tables.
    """
    path = Path(path)
    files = [path / f"{split}.csv" for split in ("train", "val", "test")] if path.is_dir() else [path]
    files = [file for file in files if file.exists()] or files[:1]
    columns = {"prompt": "prompt", "prompt_id": "prompt_id", "model": "model_name", "score": "label"}
    hint = "The files of EmbedLLM have all of these."
    parts = [read_table(file, set(columns.values()).__contains__).select(columns, hint) for file in files]
    ends = np.cumsum([len(part.columns["score"]) for part in parts])
    joined = {role: [*chain.from_iterable(part.columns[role] for part in parts)] for role in columns}

    def place(row: int) -> str:
        part = int(np.searchsorted(ends, row, side="right"))
        return parts[part].place(row - int(ends[part]) + len(parts[part].columns["score"]))

    return from_long_form(Table(shown_path(path), joined, joined, place), "embedllm", take_best=True)


def read_prompts(path: str | os.PathLike[str], *, prompt: str = "prompt") -> list[str]:
    """Read prompts, each once: the lines of a `.txt` file, or a column of a `.parquet`, `.csv` or `.jsonl` file.

    Args:
        path: The file, in UTF-8.
        prompt: The column.

    Raises:
        InvalidInputError: If the file is not like that, or there is no prompt in it.
        StorageError: If a `.txt` file has more than 1 GiB.
        MissingDependencyError: If it is a parquet file and pyarrow is not installed.
    """
    path = Path(path)
    if path.suffix.lower() == ".txt":
        try:
            lines = read_file(path, _MAX_TEXT).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            msg = f"{shown_path(path)} should be text in UTF-8, one prompt a line."
            raise InvalidInputError(msg) from None
        texts = [line for line in lines if line.strip()]
    else:
        table = read_table(path, {prompt}.__contains__)
        column = table.select({"prompt": prompt}, "Say which column it is: prompt=.").columns["prompt"]
        texts = check_texts(column, f"The prompts in {shown_path(path)}")
    if not texts:
        msg = f"There is no prompt in {shown_path(path)}."
        raise InvalidInputError(msg)
    return list(dict.fromkeys(texts))


def _read_folder(path: Path) -> Outcomes:
    hint = "The documentation of read_outcomes lists what such a folder holds."
    asked = read_table(path / "prompts.parquet", {"prompt_id", "prompt", "question"}.__contains__)
    text = "question" if "question" in asked.columns else "prompt"
    asked = asked.select({"prompt_id": "prompt_id", text: text}, hint)
    texts = check_texts(asked.columns[text], f"The texts in {asked.source}")
    text_of = dict(zip(check_column(asked, "prompt_id"), texts, strict=True))
    needed = {"prompt_id": "prompt_id", "model": "model", "score": "score"}
    table = read_table(path / "outcomes.parquet", {*needed, "cost_usd"}.__contains__)
    table = table.select(needed, hint, {"cost": "cost_usd"})
    for row, prompt_id in enumerate(check_column(table, "prompt_id")):
        if prompt_id not in text_of:
            msg = f"{table.place(row)}: the prompt_id is not in {asked.source}."
            raise InvalidInputError(msg)
    table.columns["prompt"] = [text_of[prompt_id] for prompt_id in table.columns["prompt_id"]]
    return from_long_form(table, path.resolve().name, unit=_CALLS, prompts=text_of.values())


def _joined_messages(text: Any) -> Any:
    """Return the text of a prompt that RouterBench writes as a list of messages in Python's notation."""
    if isinstance(text, str) and text.startswith("[") and len(text) <= _LONGEST_LITERAL:
        try:
            parts = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return text
        if isinstance(parts, list) and parts and all(isinstance(part, str) for part in parts):
            return "\n".join(parts)
    return text
