"""The `Embedder` protocol, and the checks of texts and vectors that everything above relies on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from unirouter_integrations._checks import shown
from unirouter_integrations.errors import EmbeddingError, InvalidInputError

Vectors = npt.NDArray[np.float32]
"""An `(n, d)` array, one row per text."""

_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)  # of a model on the Hugging Face Hub
# Squared lengths that float32 computes without overflow or harmful underflow. Other vectors are scaled first.
_SAFE_SQUARES = (1e-20, 1e20)


@runtime_checkable
class Embedder(Protocol):
    """What the router needs of an embedder: a name to save it under, and vectors, sync and async."""

    @property
    def name(self) -> str:
        """Identifies the embedder. It is saved with a router, so that loading can ask for the same one."""

    def embed(self, texts: Sequence[str], /) -> Vectors:
        """Return the vectors of some texts, `(n, d)`, finite. No texts give an array of no rows."""

    async def aembed(self, texts: Sequence[str], /) -> Vectors:
        """Async version of `embed`. It does not block the event loop."""


def check_texts(texts: Sequence[str], what: str = "prompts") -> list[str]:
    """Return the texts as a list.

    Raises:
        InvalidInputError: If they are not a list of texts; the message names the item that is not.
    """
    if isinstance(texts, str | bytes | set | frozenset | Mapping) or not isinstance(texts, Iterable):
        msg = f"{what} should be a list of texts, but {type(texts).__name__} was given."
        raise InvalidInputError(msg)
    checked = list(texts)
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            msg = f"{what}[{index}] should be a str, but is {type(text).__name__}."
            raise InvalidInputError(msg)
    return checked


def check_model_name(name: str, given: str) -> None:
    """Check the name or the folder of a model before it is looked up: libraries log it, and ask the hub for it.

    Raises:
        InvalidInputError: If it is neither, such as a prompt in the wrong place.
    """
    if not (_NAME.fullmatch(name) or os.path.exists(name)):  # noqa: PTH110  # a Path raises for some texts
        msg = f"The embedder {shown(given)} should be a name such as all-MiniLM-L6-v2, or a folder that exists."
        raise InvalidInputError(msg)


def encodable(text: str) -> str:
    """Replace lone surrogates, which no tokenizer and no provider accepts, by question marks."""
    return text.encode("utf-8", "replace").decode()


def check_vectors(vectors: npt.ArrayLike, *, rows: int | None = None, dimension: int | None = None) -> Vectors:
    """Return the vectors as an `(n, d)` array of finite float32.

    Zero vectors are allowed: an embedder gives them to texts of which it knows nothing.

    Args:
        vectors: Anything NumPy can read as a two-dimensional array of numbers.
        rows: The expected number of vectors; None for any number.
        dimension: The expected length of each; None for any length above 0.

    Raises:
        EmbeddingError: If they are something else; the message says what.
    """
    try:
        if isinstance(vectors, np.ndarray) and vectors.dtype == np.float32:
            array = vectors
        else:
            with np.errstate(over="ignore"):
                array = np.asarray(vectors, np.float32)
    except (TypeError, RuntimeError) as error:  # the message of a tensor on another device says what to do
        msg = f"The vectors could not be read as an (n, d) array of numbers. {error}"
        raise EmbeddingError(msg) from error
    except (ValueError, OverflowError):
        msg = f"The vectors, a {type(vectors).__name__}, could not be read as an (n, d) array of numbers."
        raise EmbeddingError(msg) from None  # the original may quote the input
    if rows == 0 and array.size == 0:
        return np.empty((0, dimension or 0), np.float32)
    if array.ndim != 2 or array.shape[1] == 0:  # noqa: PLR2004
        msg = f"The vectors should be an (n, d) array, one row per text, but have shape {array.shape}."
        raise EmbeddingError(msg)
    if rows is not None and len(array) != rows:
        msg = f"{rows} texts should give {rows} vectors, but there are {len(array)}."
        raise EmbeddingError(msg)
    if dimension is not None and array.shape[1] != dimension:
        msg = (
            f"The vectors have dimension {array.shape[1]}, but the router was fitted on dimension {dimension}. "
            "Use the embedder it was fitted with."
        )
        raise EmbeddingError(msg)
    if not np.logical_and.reduce(np.isfinite(array), axis=None):
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        msg = f"Vector {row} holds NaN or infinity."
        raise EmbeddingError(msg)
    return array


def unit(vectors: Vectors) -> Vectors:
    """Scale vectors to length 1. Zero vectors stay zero."""
    return unit_and_length(vectors)[0]


def unit_and_length(vectors: Vectors) -> tuple[Vectors, Vectors]:
    """Scale vectors to length 1 and return their former lengths, too. Zero vectors stay zero."""
    low, high = _SAFE_SQUARES
    squares = np.einsum("...i,...i->...", vectors, vectors)
    if (
        np.minimum.reduce(squares, axis=None, initial=1) > low
        and np.maximum.reduce(squares, axis=None, initial=1) < high
    ):
        lengths = np.sqrt(squares)
        return vectors / lengths[..., None], lengths
    # Squares of very large or very small entries are not finite. Divide by the largest entry of the vector first.
    safe = (squares > low) & (squares < high)
    scale = np.where(safe, 1, np.abs(vectors).max(axis=-1, initial=0)).astype(np.float32)
    vectors = np.asarray(vectors / np.where(scale > 0, scale, 1)[..., None], np.float32)
    lengths = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))
    with np.errstate(over="ignore"):
        return np.asarray(vectors / np.where(lengths > 0, lengths, 1)[..., None], np.float32), lengths * scale
