"""Reads and writes folders of JSON and arrays. It does not know what is saved in them.

A `SavedState` is saved as two files, `<stem>.json` (which people can read and compare) and `<stem>.safetensors`
(arrays). Reading parses JSON and raw numbers and nothing else. So a folder from an untrusted source may fail to load,
but cannot execute anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from unirouter_integrations.errors import MissingDependencyError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")

_READ_ATTEMPTS = 5  # each fails only if a writer is between its two replacements, which takes milliseconds
_DIGEST_KEY = "arrays_sha256"  # in the document: the digest of the arrays that it belongs to


@dataclass(frozen=True)
class SavedState:
    """The saved form of an object: a JSON document, arrays, and the states of its parts nested in both.

    The readers (`value`, `strings`, `array`, `child`, `children`) check what they return, and raise `StorageError` if
    it does not fit. So a loader that is built from them never meets a wrong type.

    Attributes:
        document: The JSON document.
        arrays: The arrays by name; a name in a nested state begins with that of the state and a dot.
        where: The names of the states that this one is nested in, each with a dot after it, for error messages.
        version: Differs from that of any other save under the same path; empty if the state was not read from a folder.
    """

    document: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    where: str = ""
    version: str = ""

    def add_child(self, name: str, child: SavedState) -> None:
        """Nest the state of a part under a name."""
        self.document[name] = child.document
        self.arrays.update({f"{name}.{key}": array for key, array in child.arrays.items()})

    def child(self, name: str) -> SavedState:
        """Return the state that is nested under a name."""
        prefix = f"{name}."
        arrays = {key[len(prefix) :]: array for key, array in self.arrays.items() if key.startswith(prefix)}
        return SavedState(self.value(name, dict), arrays, where=f"{self.where}{name}.")

    def value(self, key: str, kind: type[T]) -> T:
        """Return the JSON value under a key, which should be of this type. An int passes for a float.

        Raises:
            StorageError: If it is missing or of another type.
        """
        value = self.document.get(key)
        if kind is float and type(value) is int:
            value = _as_float(value)
        if type(value) is not kind:
            found = type(value).__name__ if key in self.document else "nothing"
            msg = f"{self.where}{key} should be {kind.__name__}, but {found} was found. The saved file is damaged."
            raise StorageError(msg)
        return value

    def check_format(self, name: str, version: int, thing: str, path: str | os.PathLike[str]) -> None:
        """Check the format of the document and its version. `thing` and `path` name it in the message.

        Raises:
            StorageError: If it is another format, or a version that this package does not read.
        """
        if self.document.get("format") != name:
            msg = f"{thing}.json in {redact_url(path)!r} is not a saved {thing}."
            raise StorageError(msg)
        if (found := self.value("format_version", int)) != version:
            msg = (
                f"The {thing} in {redact_url(path)!r} has format version {found}, but this version of "
                f"unirouter-integrations reads {version}. Upgrade unirouter-integrations."
            )
            raise StorageError(msg)

    def strings(self, key: str) -> list[str]:
        """Return the list of strings under a key."""
        return self._list(key, str)

    def children(self, key: str) -> list[SavedState]:
        """Return the list of JSON objects under a key, each as a state without arrays."""
        values = self._list(key, dict)
        return [SavedState(value, where=f"{self.where}{key}[{index}].") for index, value in enumerate(values)]

    def _list(self, key: str, kind: type[T]) -> list[T]:
        values = self.value(key, list)
        for index, value in enumerate(values):
            if type(value) is not kind:
                msg = f"{self.where}{key}[{index}] should be {kind.__name__}. The saved file is damaged."
                raise StorageError(msg)
        return values

    def array(
        self, key: str, shape: tuple[int | None, ...], *, low: float = -np.inf, high: float = np.inf
    ) -> npt.NDArray[Any]:
        """Return the floating-point array under a key, which should have this shape (None: any length) and range.

        Raises:
            StorageError: If it is missing, has another shape or type, or holds a number that is not finite or
                not in [low, high].
        """
        array = self.arrays.get(key)
        if array is None or array.dtype not in (np.float32, np.float64):
            msg = (
                f"The array {self.where}{key} is missing or not of floating-point numbers of 32 or 64 bits. The saved "
                "file is damaged."
            )
            raise StorageError(msg)
        fits = array.ndim == len(shape) and all(
            expected in (None, found) for expected, found in zip(shape, array.shape, strict=True)
        )
        if not fits:
            msg = f"The array {self.where}{key} has shape {array.shape}, expected {shape}. The saved file is damaged."
            raise StorageError(msg)
        if not np.isfinite(array).all() or (array < low).any() or (array > high).any():
            msg = f"The array {self.where}{key} holds numbers that are not finite or not in [{low}, {high}]."
            raise StorageError(msg)
        return array


def write_folder(path: str | os.PathLike[str], stem: str, state: SavedState) -> None:
    """Write a state into a folder, and replace what was saved there under the same stem.

    One step makes the new state the saved one: the atomic replacement of `<stem>.json`, which holds the digest of its
    arrays. A writer that is killed before this step leaves the old state whole. A writer that is killed after it
    leaves the new state, with its arrays in `<stem>.safetensors.new`, where `read_folder` finds them. There may be one
    writer at a time, and any number of readers.

    Args:
        path: The folder; it is made if it does not exist. Other files in it are left alone.
        stem: The name of the two files.
        state: What to save. Its document must be plain JSON.

    Raises:
        StorageError: If the path is not a folder.
    """
    from pathlib import Path

    from safetensors.numpy import save

    if is_url(path):
        msg = f"{redact_url(path)!r} is a URL; save to a folder of this machine and upload it, {stem}.json last."
        raise StorageError(msg)
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        msg = f"{str(folder)!r} is a file; give the path of a folder to save to."
        raise StorageError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = save({key: np.ascontiguousarray(array) for key, array in state.arrays.items()})
    document = {**state.document, _DIGEST_KEY: _digest(arrays)}
    text = json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"
    pending = folder / f"{stem}.safetensors.new"
    _finish_interrupted(folder, stem, pending)
    replace_file(pending, arrays)
    replace_file(folder / f"{stem}.json", text)
    pending.replace(folder / f"{stem}.safetensors")


def read_folder(path: str | os.PathLike[str], stem: str) -> SavedState:
    """Read what `write_folder` wrote.

    Args:
        path: The folder, or its URL in a file system that fsspec supports.
        stem: The name of the two files.

    Raises:
        StorageError: If the files are missing or damaged, or do not belong together.
        MissingDependencyError: If it is a URL, and fsspec or the package it needs for the URL is not installed.
    """
    where, read = _reader(path)
    for _ in range(_READ_ATTEMPTS):
        text = _read_document(where, read, stem)
        document = _parse(text, f"{where}/{stem}.json")
        for name in (f"{stem}.safetensors", f"{stem}.safetensors.new"):
            with contextlib.suppress(OSError):
                data = read(name)
                if _digest(data) == document.get(_DIGEST_KEY):
                    return SavedState(document, _arrays(data, f"{where}/{name}"), version=_digest(text))
    msg = (
        f"{stem}.safetensors in {where!r} is missing, damaged or not the one that {stem}.json was saved with "
        "(their digests differ). Restore both files from one save."
    )
    raise StorageError(msg)


def folder_version(path: str | os.PathLike[str], stem: str) -> str:
    """Return the `version` of the state that `read_folder` would read, without reading its arrays."""
    return _digest(_read_document(*_reader(path), stem))


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL."""
    return "://" in os.fspath(path)


def redact_url(path: str | os.PathLike[str]) -> str:
    """Return a path for messages and logs: a URL without user, password and query, which may be secret."""
    text = os.fspath(path)
    return re.sub(r"(?<=//)[^/]*@|\?.*", "", text) if is_url(text) else text


def _reader(path: str | os.PathLike[str]) -> tuple[str, Callable[[str], bytes]]:
    """Return the name of a folder for messages, and a function that reads a file in it."""
    from pathlib import Path

    if not is_url(path):
        folder = Path(path)
        return str(folder), lambda name: (folder / name).read_bytes()
    url = os.fspath(path)
    try:
        from fsspec.core import url_to_fs

        files, root = url_to_fs(url)
    except ImportError as error:
        needed = "pip install 'unirouter-integrations[fsspec]', and what fsspec needs for it"
        msg = f"{redact_url(url)!r} needs {needed}. {error}"
        raise MissingDependencyError(msg) from error
    except ValueError:
        msg = f"{redact_url(url)!r} is no URL that fsspec knows."
        raise StorageError(msg) from None  # the original may quote the URL
    return redact_url(url), lambda name: bytes(files.cat_file(f"{root.rstrip('/')}/{name}"))


def _read_document(where: str, read: Callable[[str], bytes], stem: str) -> bytes:
    try:
        return read(f"{stem}.json")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        msg = f"There is no saved {stem} in {where!r}: {stem}.json could not be read ({reason})."
        raise StorageError(msg) from None  # the original may hold a URL with a password


def _finish_interrupted(folder: Path, stem: str, pending: Path) -> None:
    """Finish a save that was killed before its last step, before its arrays are overwritten."""
    try:
        document = _parse((folder / f"{stem}.json").read_bytes(), str(folder / f"{stem}.json"))
        arrays = pending.read_bytes()
    except (OSError, StorageError):
        return  # no save was interrupted
    if _digest(arrays) == document.get(_DIGEST_KEY):
        pending.replace(folder / f"{stem}.safetensors")


def _as_float(value: int) -> float | int:
    try:
        return float(value)
    except OverflowError:
        return value


def _digest(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def replace_file(target: Path, data: bytes) -> None:
    """Replace the content of a file in one step, so that a crash leaves either the old content or the new one."""
    part = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _parse(data: bytes, file: str) -> dict[str, Any]:
    def refuse(name: str) -> float:
        msg = f"{file!r} holds {name}, which is not JSON. The saved file is damaged."
        raise StorageError(msg)

    try:
        document = json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        if isinstance(error, StorageError):
            raise
        msg = f"{file!r} is not valid JSON. The saved file is damaged."
        raise StorageError(msg) from error
    if type(document) is not dict:
        msg = f"{file!r} should hold a JSON object, but holds {type(document).__name__}."
        raise StorageError(msg)
    return document


def _arrays(data: bytes, file: str) -> dict[str, npt.NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(data))
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        msg = f"{file!r} could not be read as safetensors: {error}"
        raise StorageError(msg) from error
