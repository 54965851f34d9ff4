"""Examples from files."""

from __future__ import annotations

import os
from collections.abc import Iterator

from unirouter_integrations._tables import TableFile
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.grading._records import Example, as_example


def read_examples(path: str | os.PathLike[str]) -> Iterator[Example]:
    """Read examples one by one from a file with the columns `prompt` and, for most scorers, `reference`.

    All other columns become the metadata of the example. In a `.csv` file everything is text.

    Args:
        path: A `.jsonl`, `.csv` or `.parquet` file in UTF-8.

    Returns:
        An iterator. The file is read as the examples are asked for, so errors may come late.

    Raises:
        InvalidInputError: If the file does not hold examples; the message names the line.
        MissingDependencyError: If it is a parquet file and pyarrow is not installed.
    """
    return _examples(TableFile(path))


def _examples(file: TableFile) -> Iterator[Example]:
    number = 0
    for number, values in file:
        if not isinstance(values.get("prompt"), str):
            found = f"a {type(values['prompt']).__name__}" if "prompt" in values else "missing"
            msg = f'{file.place(number)}: an example needs a "prompt" that is a text, but it is {found}.'
            raise InvalidInputError(msg)
        yield as_example(values)
    if not number:
        msg = f"There is no example in {file.path}."
        raise InvalidInputError(msg)
