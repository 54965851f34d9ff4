"""One reader for the tables people have: `.csv`, `.jsonl` and `.parquet` files, row by row or as columns.

Nothing in a file is executed, and a pickle is refused by its name. Only regular files are read, and no line that would
not fit in memory. Messages name files, lines and columns and never quote a cell, because a cell may hold a prompt.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any, AnyStr, NamedTuple

from unirouter_integrations._checks import requires, shown, shown_path
from unirouter_integrations._storage import open_file
from unirouter_integrations.errors import InvalidInputError, UniRouterError

_BATCH_ROWS = 1024  # rows of a parquet file that are held as Python objects at once
_TEXTS = ("string", "large_string", "string_view")  # types of columns in a parquet file
_MAX_LINE = 2**24  # characters; parsed, JSON takes up to 20 times its size
_MAX_ROWS = 20_000_000  # of a table in memory; a few bytes of a parquet file can claim any number
_MAX_GROUP = 2**32  # bytes of a row group of a parquet file once it is no longer compressed

Keep = Callable[[str], bool]


class TableFile:
    """A table in a file, read row by row, so that it may be larger than memory.

    Args:
        path: A `.parquet`, `.csv` or `.jsonl` file in UTF-8, with or without a byte order mark.
        keep: Which columns to read, by name; None for all that have a name.

    Attributes:
        path: The file.
        names: The names of all columns, also of those not kept, in their order. Complete when all rows are read.

    Raises:
        InvalidInputError: If the name of the file ends in something else.
    """

    def __init__(self, path: str | os.PathLike[str], keep: Keep | None = None) -> None:
        self.path, self.names = Path(path), dict[str, None]()
        self._keep = bool if keep is None else keep
        self._kind = self.path.suffix.lower().removeprefix(".")
        readers = {"parquet": self._parquet, "csv": self._csv, "jsonl": self._json_lines}
        if self._kind in {"pkl", "pickle"}:
            msg = (
                f"{shown_path(path)} is a pickle, and reading one can run any code. Convert it once, in a place you "
                f"trust: pandas.read_pickle({self.path.name!r}).to_parquet({f'{self.path.stem}.parquet'!r})."
            )
            raise InvalidInputError(msg)
        if self._kind not in readers:
            msg = f"The name of {shown_path(path)} should end in {', '.join(f'.{kind}' for kind in readers)}."
            raise InvalidInputError(msg)
        self._rows = readers[self._kind]

    def place(self, number: int) -> str:
        """Describe where the row with this number stands, for messages."""
        return f"{shown_path(self.path)}, {'row' if self._kind == 'parquet' else 'line'} {number}"

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number of each row, as `place` takes it, and its values by column.

        Raises:
            InvalidInputError: If the file is damaged; the message says where, as far as that is known.
            MissingDependencyError: If it is a parquet file and pyarrow is not installed.
        """
        try:
            yield from self._rows()
        except Exception as error:  # pyarrow alone has a dozen kinds of errors for damaged files
            if isinstance(error, UniRouterError) or (isinstance(error, OSError) and error.errno is not None):
                raise  # the latter: there is no such file, or it may not be read
            msg = f"{shown_path(self.path)} could not be read as {self._kind}: {error}."
            raise InvalidInputError(msg) from None

    def _kept(self, names: Iterable[str]) -> list[str]:
        self.names.update(dict.fromkeys(names))
        kept = [name for name in names if name and self._keep(name)]
        if repeats := len(kept) - len(set(kept)):
            msg = f"the name of a column is there {repeats + 1} times"
            raise ValueError(msg)
        return kept

    def _parquet(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with requires(f"Reading {shown_path(self.path)}", "parquet"):
            from pyarrow.parquet import ParquetFile
        with open_file(self.path) as opened:
            file = ParquetFile(opened)
            groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
            if (largest := max((group.total_byte_size for group in groups), default=0)) > _MAX_GROUP:
                msg = f"a row group has {largest:,} bytes, of which at most {_MAX_GROUP:,} are read"
                raise ValueError(msg)
            names, schema = self._kept(file.schema_arrow.names), file.schema_arrow
            # A text that is stored once, for a million rows, is in memory once.
            texts = [name for name in names if str(schema.field(name).type) in _TEXTS]
            batches = ParquetFile(opened, read_dictionary=texts).iter_batches(_BATCH_ROWS, columns=names)
            yield from enumerate(chain.from_iterable(map(_rows, batches)), start=1)

    def _csv(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with io.TextIOWrapper(open_file(self.path), encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_lines(file), strict=True)
            header = next(reader, [])
            columns = [(name, header.index(name)) for name in self._kept(header)]
            for row in filter(None, reader):
                if len(row) != len(header):
                    msg = f"{self.place(reader.line_num)}: {len(row)} fields, but the header has {len(header)}."
                    raise InvalidInputError(msg)
                yield reader.line_num, {name: row[index] for name, index in columns}

    def _json_lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with open_file(self.path) as file:
            for number, line in enumerate(_lines(file), start=1):
                if not line.strip():
                    continue
                try:
                    values = json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError):
                    values = None
                if not isinstance(values, dict):
                    msg = f"{self.place(number)}: should be a JSON object in UTF-8, with a value for each column."
                    raise InvalidInputError(msg)
                yield number, {name: values[name] for name in self._kept(values)}


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch of a parquet file."""
    columns = []
    for column in batch.columns:
        if hasattr(column, "dictionary"):
            texts = column.dictionary.to_pylist()
            columns.append([None if index is None else texts[index] for index in column.indices.to_pylist()])
        else:
            columns.append(column.to_pylist())
    for values in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


def _lines(file: IO[AnyStr]) -> Iterator[AnyStr]:
    """Yield the lines of a file.

    Raises:
        ValueError: If one is too long; it is not read to its end.
    """
    while line := file.readline(_MAX_LINE):
        if len(line) == _MAX_LINE:
            msg = f"a line has more than {_MAX_LINE:,} characters"
            raise ValueError(msg)
        yield line


class Table(NamedTuple):
    """A table as columns.

    Attributes:
        source: Where it comes from, for messages.
        names: The names of all columns that were there, also of those that were not read.
        columns: The values of each column that was read.
        place: Describes where the row with this index stands, for messages.
    """

    source: object
    names: Collection[str]
    columns: dict[str, list[Any]]
    place: Callable[[int], str]

    def select(self, needed: Mapping[str, str], hint: str, optional: Mapping[str, str] | None = None) -> Table:
        """Rename columns by what they hold and drop all others.

        Args:
            needed: The name of each column that must be there, by what it holds.
            hint: What to do if one is missing.
            optional: The names of columns that may be missing.

        Raises:
            InvalidInputError: If a needed column is missing.
        """
        missing = [name for name in needed.values() if name not in self.columns]
        if missing:
            # Names are shown only beside a known one: the first line of a file without a header may be a prompt.
            known = len(missing) < len(needed)
            others = f"only {', '.join(map(shown, self.names))}" if known else "nor any other that is needed"
            msg = f"{self.source} has no {shown(missing[0])}, {others}. {hint}"
            raise InvalidInputError(msg)
        roles = {**(optional or {}), **needed}
        return self._replace(columns={role: self.columns[name] for role, name in roles.items() if name in self.columns})


def read_table(path: str | os.PathLike[str], keep: Keep) -> Table:
    """Read some columns of a file; see `TableFile`, whose errors it raises."""
    file, numbers = TableFile(path, keep), list[int]()

    def rows() -> Iterator[dict[str, Any]]:
        for number, values in file:
            numbers.append(number)
            yield values

    columns = as_columns(rows())
    empty: dict[str, list[Any]] = {name: [] for name in file.names if name and keep(name)}
    return Table(
        shown_path(path), file.names, empty | columns, lambda row: file.place(numbers[row] if numbers else row + 1)
    )


def as_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Turn rows into columns, with None where a row has no value of that name."""
    columns: dict[str, list[Any]] = {}
    same: dict[str, str] = {}  # EmbedLLM repeats each prompt for 112 models; in memory it is there once
    size = 0
    for size, row in enumerate(rows, start=1):
        if size > _MAX_ROWS:
            msg = f"There are more than {_MAX_ROWS:,} rows, the most that are read into memory. Read them in parts."
            raise InvalidInputError(msg)
        for name, value in row.items():
            column = columns.setdefault(name, [])
            if len(column) < size - 1:
                column.extend([None] * (size - 1 - len(column)))
            column.append(same.setdefault(value, value) if type(value) is str else value)
    for column in columns.values():
        column.extend([None] * (size - len(column)))
    return columns
