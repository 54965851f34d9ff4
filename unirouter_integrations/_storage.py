"""Reads and writes folders of JSON and arrays. It does not know what is saved in them.

A `SavedState` is saved as two files, `<stem>.json` (which people can read and compare) and `<stem>.safetensors`
(arrays). Reading parses JSON and raw numbers and nothing else, and no more of them than fits in memory. So a folder
from an untrusted source may fail to load, but cannot execute anything.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from unirouter_integrations._checks import is_url, shown_path
from unirouter_integrations.errors import MissingDependencyError, StorageError

T = TypeVar("T")

_READ_ATTEMPTS = 5  # each fails only if a writer is between its two replacements, which takes milliseconds
_DIGEST_KEY = "arrays_sha256"  # in the document: the digest of the arrays that it belongs to
# What is larger is neither saved nor read. Parsed, JSON takes up to 20 times its size.
_MAX_DOCUMENT = 2**24  # bytes; a local embedder of 20,000 terms takes half a megabyte
_MAX_ARRAYS = 2**30  # bytes
_PART = 2**20  # bytes that are read at once
_MAX_HEADER = 2**20  # bytes; a router has about a dozen arrays, and a header of a kilobyte
_LOCK_SECONDS = 10.0  # that a writer waits for another one, which takes milliseconds
_LOCK_POLL_SECONDS = 0.02


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
            msg = f"{thing}.json in {shown_path(path)} is not a saved {thing}."
            raise StorageError(msg)
        if (found := self.value("format_version", int)) != version:
            msg = (
                f"The {thing} in {shown_path(path)} has format version {found}, but this version of "
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
    leaves the new state, with its arrays in `<stem>.safetensors.new`, where `read_folder` finds them. Any number of
    readers may read meanwhile. Writers wait for each other where the system can lock a folder; elsewhere (Windows, some
    network file systems) there may be one at a time.

    Args:
        path: The folder; it is made if it does not exist. Other files in it are left alone.
        stem: The name of the two files.
        state: What to save. Its document must be plain JSON.

    Raises:
        StorageError: If the path is not a folder, it cannot be written to, or the state is too large to be read again.
    """
    from safetensors.numpy import save

    where = shown_path(path)
    if is_url(path):
        msg = f"{where} is a URL; save to a folder of this machine and upload it, {stem}.json last."
        raise StorageError(msg)
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        msg = f"{where} is a file; give the path of a folder to save to."
        raise StorageError(msg)
    arrays = save({key: np.ascontiguousarray(array) for key, array in state.arrays.items()})
    document = {**state.document, _DIGEST_KEY: _digest(arrays)}
    text = json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"
    for size, limit in ((len(text), _MAX_DOCUMENT), (len(arrays), _MAX_ARRAYS)):
        if size > limit:
            msg = f"The {stem} cannot be saved: it has {size:,} bytes, of which at most {limit:,} would be read again."
            raise StorageError(msg)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder) as is_only_writer:
            if is_only_writer:
                _remove_parts(folder, stem)
            pending = folder / f"{stem}.safetensors.new"
            _finish_interrupted(folder, stem, pending)
            replace_file(pending, arrays)
            replace_file(folder / f"{stem}.json", text)
            with contextlib.suppress(OSError):  # readers find it, and the next writer finishes
                pending.replace(folder / f"{stem}.safetensors")
    except OSError as error:
        msg = f"The {stem} could not be saved in {where}: {_reason(error)}. What was saved there before is whole."
        raise StorageError(msg) from error


def read_folder(path: str | os.PathLike[str], stem: str) -> SavedState:
    """Read what `write_folder` wrote.

    Args:
        path: The folder, or its URL in a file system that fsspec supports.
        stem: The name of the two files.

    Raises:
        StorageError: If the files are missing, damaged or too large, or do not belong together.
        MissingDependencyError: If it is a URL, and fsspec or the package it needs for the URL is not installed.
    """
    where, read = shown_path(path), _reader(path)
    for _ in range(_READ_ATTEMPTS):
        text = _read_document(where, read, stem)
        document = _parse(text, f"{stem}.json in {where}")
        for name in (f"{stem}.safetensors", f"{stem}.safetensors.new"):
            with contextlib.suppress(OSError):
                data = read(name, _MAX_ARRAYS)
                if _digest(data) == document.get(_DIGEST_KEY):
                    return SavedState(document, _arrays(data, f"{name} in {where}"), version=_digest(text))
    msg = (
        f"{stem}.safetensors in {where} is missing, damaged or not the one that {stem}.json was saved with "
        "(their digests differ). Restore both files from one save."
    )
    raise StorageError(msg)


def folder_version(path: str | os.PathLike[str], stem: str) -> str:
    """Return the `version` of the state that `read_folder` would read, without reading its arrays."""
    return _digest(_read_document(shown_path(path), _reader(path), stem))


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file to read bytes. A pipe or a device, which may have no end, is refused without waiting for it.

    Raises:
        OSError: If there is no such file, it may not be read, or is something else.
    """
    wait_for_nobody = getattr(os, "O_NONBLOCK", 0)  # to write to a pipe; for a regular file it changes nothing
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | wait_for_nobody))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "It is not a regular file", os.fspath(path))
    return file


def read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a regular file of at most this many bytes.

    Raises:
        OSError: See `open_file`.
        StorageError: If it is larger.
    """
    with open_file(path) as file:
        return _read_within(file, os.fstat(file.fileno()).st_size, limit, shown_path(path))


def _read_within(file: BinaryIO, size: object, limit: int, where: str) -> bytes:
    """Read a file whose size is stated, but need not be true."""
    total, parts = size if isinstance(size, int) else 0, list[bytes]()
    if total <= limit:
        total = 0
        while total <= limit and (part := file.read(_PART)):
            parts.append(part)
            total += len(part)
    if total > limit:
        msg = f"{where} is larger than {limit:,} bytes, which are the most that are read."
        raise StorageError(msg)
    return b"".join(parts)


_Read = Callable[[str, int], bytes]  # the name of a file, and how many bytes it may have


def _reader(path: str | os.PathLike[str]) -> _Read:
    """Return a function that reads a file in a folder. It raises an `OSError` if that cannot be read."""
    if not is_url(path):
        return lambda name, limit: read_file(Path(path, name), limit)
    where = shown_path(path)
    try:
        from fsspec.core import url_to_fs

        files, root = url_to_fs(os.fspath(path))
    except ImportError as error:
        needed = "pip install 'unirouter-integrations[fsspec]', and what fsspec needs for it"
        msg = f"{where} needs {needed}. {error}"
        raise MissingDependencyError(msg) from error
    except Exception as error:  # noqa: BLE001  # it depends on the file system, and may quote the URL
        msg = f"{where} is no URL that fsspec can use ({type(error).__name__})."
        raise StorageError(msg) from None

    def read(name: str, limit: int) -> bytes:
        address = f"{root.rstrip('/')}/{name}"
        try:
            size = files.info(address).get("size")
            with files.open(address, "rb") as file:
                return _read_within(file, size, limit, f"{name} in {where}")
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001  # as above
            raise OSError(errno.EIO, type(error).__name__) from None

    return read


def _read_document(where: str, read: _Read, stem: str) -> bytes:
    try:
        return read(f"{stem}.json", _MAX_DOCUMENT)
    except OSError as error:
        msg = f"There is no saved {stem} in {where}: {stem}.json could not be read ({_reason(error)})."
        raise StorageError(msg) from None


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Wait until no other writer is at work in a folder. Says whether that is certain; the death of a writer frees it.

    Raises:
        StorageError: If another writer goes on for longer than any save takes.
    """
    try:
        import fcntl
    except ImportError:  # on Windows
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    msg = f"Another process has been saving in {shown_path(folder)} for {_LOCK_SECONDS:g} seconds."
                    raise StorageError(msg) from None
                time.sleep(_LOCK_POLL_SECONDS)
            except OSError:  # a file system without locks
                yield False
                return
            else:
                yield True
                return
    finally:
        os.close(descriptor)


def _remove_parts(folder: Path, stem: str) -> None:
    """Remove the unfinished files that killed writers have left. The caller is the only writer."""
    for part in folder.glob(f".{stem}.*.part"):
        with contextlib.suppress(OSError):
            part.unlink()


def _finish_interrupted(folder: Path, stem: str, pending: Path) -> None:
    """Finish a save that was killed before its last step, before its arrays are overwritten."""
    document = folder / f"{stem}.json"
    with contextlib.suppress(OSError, StorageError):  # no save was interrupted
        digest = _parse(read_file(document, _MAX_DOCUMENT), shown_path(document)).get(_DIGEST_KEY)
        if _digest(read_file(pending, _MAX_ARRAYS)) == digest:
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
    # Nobody can foresee the name and lay a link there; if there is one, "x" does not follow it.
    part = target.with_name(f".{target.name}.{os.urandom(8).hex()}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _parse(data: bytes, file: str) -> dict[str, Any]:
    def refuse(name: str) -> float:
        msg = f"{file} holds {name}, which is not JSON. The saved file is damaged."
        raise StorageError(msg)

    try:
        document = json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        if isinstance(error, StorageError):
            raise
        msg = f"{file} is not valid JSON. The saved file is damaged."
        raise StorageError(msg) from None  # the original holds the document
    if type(document) is not dict:
        msg = f"{file} should hold a JSON object, but holds {type(document).__name__}."
        raise StorageError(msg)
    return document


def _arrays(data: bytes, file: str) -> dict[str, npt.NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    header = int.from_bytes(data[:8], "little")
    if header > _MAX_HEADER:
        msg = f"{file} claims a header of {header:,} bytes, of which at most {_MAX_HEADER:,} are read."
        raise StorageError(msg)
    try:
        return dict(load(data))
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        msg = f"{file} could not be read as safetensors: {error}"
        raise StorageError(msg) from error
