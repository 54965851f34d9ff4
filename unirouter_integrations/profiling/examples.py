"""Examples from files."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unirouter_integrations.errors import InvalidInputError, MissingDependencyError
from unirouter_integrations.profiling.records import Example, as_example

_END = object()


def read_examples(path: str | os.PathLike[str]) -> Iterator[Example]:
    """Read examples one by one, as they are asked for, from a file with `prompt` and, for most scorers, `reference`.

    Whatever else is in a line or column becomes the example's metadata. In a `.csv` file everything is text.

    Args:
        path: A `.jsonl`, `.csv` or `.parquet` file.

    Raises:
        InvalidInputError: If the file is not like that; the message names the line.
        MissingDependencyError: If it is a parquet file and pyarrow is not installed.
    """
    file = Path(path)
    readers = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        msg = f"{file.name} should be one of {', '.join(f'*{suffix}' for suffix in readers)}."
        raise InvalidInputError(msg)
    return _examples(file, reader(file))


def _examples(file: Path, rows: Iterator[Any]) -> Iterator[Example]:
    for number in itertools.count(1):
        try:
            row = next(rows, _END)
            if row is not _END:
                yield as_example(row)
                continue
        except (InvalidInputError, UnicodeDecodeError, csv.Error, OSError) as error:
            why = str(error) if isinstance(error, InvalidInputError) else f"it cannot be read ({type(error).__name__})"
            msg = f"Example {number} of {file.name}: {why}"
            raise InvalidInputError(msg) from None  # the original may quote what was read
        if number == 1:
            msg = f"There is no example in {file.name}."
            raise InvalidInputError(msg)
        return


def _json_lines(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    msg = "the line is not JSON."
                    raise InvalidInputError(msg) from None


def _csv(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(lines)


def _parquet(file: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        msg = "Reading parquet needs pip install 'unirouter-integrations[parquet]'."
        raise MissingDependencyError(msg) from error
    try:
        with ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except ArrowException as error:
        msg = f"it is no parquet file that pyarrow can read ({type(error).__name__})."
        raise InvalidInputError(msg) from None
