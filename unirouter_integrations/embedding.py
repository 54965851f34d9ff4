"""phi: texts to vectors.

`as_embedder` makes an `Embedder` of whatever a user has; `LocalEmbedder` is the one that needs nothing.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from unirouter_integrations.errors import EmbeddingError, InvalidInputError, MissingDependencyError, StorageError
from unirouter_integrations.sharing import RecentVectors, Together
from unirouter_integrations.storage import State, read_folder, write_folder

Vectors = npt.NDArray[np.float32]
"""An `(n, d)` array, one row per text."""

# Scripts written without spaces between words (Thai and Lao, Burmese, Khmer, kana, Chinese characters).
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_TERM = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W\d_])+|\d|[^\w\s]")
_PUNCTUATION = frozenset(".,;:!?…\"'")
_RARE_TERMS_FROM = 20
_LARGEST = 1e6
_AT_ONCE = 16
_REMEMBERED = 1024
_SQUARES_FROM, _SQUARES_TO = 1e-20, 1e20


@runtime_checkable
class Embedder(Protocol):
    """What the router needs of an embedder: a name to save it under, and vectors, now or awaited."""

    @property
    def name(self) -> str:
        """Says which embedder this is; saved with a router, so that loading can ask for the same one."""

    def embed(self, texts: Sequence[str], /) -> Vectors:
        """The vectors of some texts, `(n, d)`, finite. No texts give an array of no rows."""

    async def aembed(self, texts: Sequence[str], /) -> Vectors:
        """The same, without blocking the event loop."""


def as_embedder(x: object) -> Embedder:
    """Make an `Embedder` of what a user has.

    What it makes remembers the vectors of the last 1,024 texts, so that a prompt that comes again is not embedded again
    (it keeps digests of the texts, not the texts). Where there is no async method of its own, those who await vectors
    while it is busy are served together, in one call.

    Args:
        x: An `Embedder`; a `SentenceTransformer`, an `OnnxEncoder`, a model2vec `StaticModel` (or anything else with
            `encode`) or the name of one; a LangChain `Embeddings` (its `embed_documents`, for prompts in fitting and in
            routing alike); a LlamaIndex `BaseEmbedding` (its *query* embedding, the one a RAG pipeline computes for a
            question anyway); or a callable from a list of texts to an `(n, d)` array. A name is that of a
            SentenceTransformer, or "onnx:FOLDER" or "model2vec:NAME".

    Raises:
        InvalidInputError: If it is none of these.
        MissingDependencyError: If a name is given and the package that loads it is not installed.
        StorageError: If there is no exported model in the folder named.
    """
    if isinstance(x, str):
        return _from_name(x)
    if isinstance(x, type):
        msg = f"{x.__name__} is a class; pass an instance of it as the embedder."
        raise InvalidInputError(msg)
    if isinstance(x, Embedder):
        return x
    model: Any = x
    if hasattr(model, "embed_documents"):
        return _Adapted(_name("langchain", model), model.embed_documents, _own_async(model))
    if hasattr(model, "get_query_embedding"):
        queries = _LlamaIndexQueries(model)
        return _Adapted(_name("llamaindex", model), queries.embed, queries.aembed)
    if hasattr(model, "encode"):
        return _Adapted(_name("encoder", model), _Encoder(model))
    if callable(model):
        _refuse_coroutine_function(model)
        return _Adapted(_name("callable", model), model)
    msg = (
        f"{type(x).__name__} is not an embedder. Pass a callable from a list of texts to an (n, d) array, a "
        "SentenceTransformer or the name of one, a LangChain Embeddings, or a LlamaIndex BaseEmbedding."
    )
    raise InvalidInputError(msg)


def check_texts(texts: Sequence[str], what: str = "prompts") -> list[str]:
    """The texts as a list, or an `InvalidInputError` that says which one is not a text."""
    if isinstance(texts, str | bytes | set | frozenset | Mapping) or not isinstance(texts, Iterable):
        msg = f"{what} should be a list of texts, but {type(texts).__name__} was given."
        raise InvalidInputError(msg)
    checked = list(texts)
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            msg = f"{what}[{index}] should be a str, but is {type(text).__name__}."
            raise InvalidInputError(msg)
    return checked


def check_vectors(vectors: npt.ArrayLike, *, rows: int | None = None, dimension: int | None = None) -> Vectors:
    """The vectors as an `(n, d)` array of finite float32, or an `EmbeddingError` that says what is wrong.

    Zero vectors are allowed: they are how an embedder says that it knows nothing about a text.

    Args:
        vectors: Anything NumPy can read as a two-dimensional array of numbers.
        rows: How many vectors there should be; None for any number.
        dimension: How long each should be; None for any length above 0.
    """
    try:
        if isinstance(vectors, np.ndarray) and vectors.dtype == np.float32:
            array = vectors
        else:
            with np.errstate(over="ignore"):
                array = np.asarray(vectors, np.float32)
    except (TypeError, RuntimeError) as error:  # a tensor on another device says here what to do
        msg = f"The vectors could not be read as an (n, d) array of numbers. {error}"
        raise EmbeddingError(msg) from error
    except (ValueError, OverflowError):
        msg = f"The vectors, a {type(vectors).__name__}, could not be read as an (n, d) array of numbers."
        raise EmbeddingError(msg) from None  # the original may quote what was given
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
    """The vectors scaled to length 1; zero vectors stay zero."""
    return unit_and_length(vectors)[0]


def unit_and_length(vectors: Vectors) -> tuple[Vectors, Vectors]:
    """The vectors scaled to length 1, and their lengths; zero vectors stay zero."""
    squares = np.einsum("...i,...i->...", vectors, vectors)
    if (
        np.minimum.reduce(squares, axis=None, initial=1) > _SQUARES_FROM
        and np.maximum.reduce(squares, axis=None, initial=1) < _SQUARES_TO
    ):
        lengths = np.sqrt(squares)
        return vectors / lengths[..., None], lengths
    # The squares of very large and very small entries are not finite; dividing by the largest one first keeps them so.
    ordinary = (squares > _SQUARES_FROM) & (squares < _SQUARES_TO)
    scale = np.where(ordinary, 1, np.abs(vectors).max(axis=-1, initial=0)).astype(np.float32)
    vectors = np.asarray(vectors / np.where(scale > 0, scale, 1)[..., None], np.float32)
    lengths = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))
    with np.errstate(over="ignore"):
        return np.asarray(vectors / np.where(lengths > 0, lengths, 1)[..., None], np.float32), lengths * scale


@dataclass(frozen=True, eq=False)
class LocalEmbedder:
    """The default embedder: TF-IDF, then truncated SVD, fitted on the user's own prompts.

    No download, no torch, no key. What it keeps of the prompts is its vocabulary: single words and pairs of
    neighbours (digits and signs count as words of one character, and so do letters of scripts without spaces).
    From 20 distinct prompts on, only what at least two of them share is kept, so that what one prompt alone holds is
    not; with fewer prompts everything is.

    Attributes:
        vocabulary: The index of each term.
        projection: `(terms, d)`: the right singular vectors, each row times the term's inverse document
            frequency, so that embedding a text is a weighted sum of the rows of its terms.
    """

    vocabulary: dict[str, int]
    projection: Vectors

    @classmethod
    def fit(
        cls, prompts: Sequence[str], *, dimension: int = 256, max_terms: int = 20_000, seed: int = 0
    ) -> LocalEmbedder:
        """Fit on some prompts.

        Args:
            prompts: The texts; a few hundred are enough.
            dimension: The most dimensions the vectors may have; with few prompts they have fewer.
            max_terms: The most terms to keep, the most frequent ones.
            seed: Seed of the randomised SVD.

        Raises:
            InvalidInputError: If there is no text in the prompts.
        """
        texts = distinct_texts(check_texts(prompts))
        if not any(words(text) for text in texts):
            msg = "The local embedder needs text to be fitted on, but there is none in the prompts given."
            raise InvalidInputError(msg)
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd

        min_df = 2 if len(texts) >= _RARE_TERMS_FROM else 1
        tfidf = TfidfVectorizer(analyzer=_terms, min_df=min_df, max_features=max_terms, sublinear_tf=True)
        try:
            matrix = tfidf.fit_transform(texts)
        except ValueError as error:
            msg = f"The local embedder found no word that two of the {len(texts)} prompts share; give it more prompts."
            raise InvalidInputError(msg) from error
        vocabulary = {str(term): int(index) for term, index in tfidf.vocabulary_.items()}
        components = randomized_svd(matrix, min(dimension, *matrix.shape), random_state=seed)[2]
        projection = np.asarray(components.T * tfidf.idf_[:, None], np.float32)
        return cls(vocabulary, projection)

    @property
    def name(self) -> str:
        """Always `"local"`: it is saved whole, not by name."""
        return "local"

    def embed(self, texts: Sequence[str], /) -> Vectors:
        """Vectors, `(n, d)`, whose length is the share of the text's distinct words that are known: 1 all, 0 none."""
        batch = check_texts(texts, "texts")
        vectors = np.zeros((len(batch), self.projection.shape[1]), np.float32)
        known = np.zeros((len(batch), 1), np.float32)
        for row, text in enumerate(batch):
            terms = _terms(text)
            counts = Counter(index for term in terms if (index := self.vocabulary.get(term)) is not None)
            if counts:
                weights = np.array([1 + math.log(count) for count in counts.values()], np.float32)
                vectors[row] = weights @ self.projection[list(counts)]
                singles = set(terms[: len(terms) // 2 + 1])
                known[row] = len(singles & self.vocabulary.keys()) / len(singles)
        return unit(vectors) * known

    async def aembed(self, texts: Sequence[str], /) -> Vectors:
        """The same; it is computed here and now, which is quicker than handing it to a thread."""
        return self.embed(texts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save as `embedder.json` and `embedder.safetensors` in a folder."""
        write_folder(path, "embedder", self.to_state())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LocalEmbedder:
        """Load what `save` wrote.

        Raises:
            StorageError: If the files are missing or damaged.
        """
        return cls.from_state(read_folder(path, "embedder"))

    def to_state(self) -> State:
        """What is saved: the terms in the order of the rows of the projection, and the projection."""
        return State(
            {"terms": sorted(self.vocabulary, key=self.vocabulary.__getitem__)},
            {"projection": self.projection},
        )

    @classmethod
    def from_state(cls, state: State) -> LocalEmbedder:
        """The embedder that was saved as this state."""
        terms = state.texts("terms")
        projection = state.numbers("projection", (len(terms), None), low=-_LARGEST, high=_LARGEST)
        if not projection.size or len(set(terms)) < len(terms):  # nothing bounds the width of an array without rows
            msg = f"{state.where}terms should be at least one, and each only once. The saved file is damaged."
            raise StorageError(msg)
        return cls({term: index for index, term in enumerate(terms)}, projection.astype(np.float32))


def words(text: str) -> list[str]:
    """The words of a text in lower case; digits, signs and letters of scripts without spaces one by one."""
    return _TERM.findall(text.lower())


def distinct_texts(texts: Sequence[str]) -> list[str]:
    """The texts, sorted, without those that differ from another only in punctuation, spaces or case."""
    by_words = {tuple(word for word in words(text) if word not in _PUNCTUATION): text for text in sorted(texts)}
    return sorted(by_words.values())


def _terms(text: str) -> list[str]:
    singles = words(text)
    return singles + [f"{first} {second}" for first, second in pairwise(singles)]


class _Adapted:
    """Somebody else's embedder, under our protocol.

    Args:
        name: See `Embedder`.
        function: From texts to vectors.
        afunction: The same, awaited; None for the function in a thread.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[list[str]], npt.ArrayLike],
        afunction: Callable[[list[str]], Awaitable[npt.ArrayLike]] | None = None,
    ) -> None:
        self.name = name
        self._function, self._afunction = function, afunction
        self._recent = RecentVectors(_REMEMBERED)
        self._dimension = 0
        self._together = Together(self._computed)

    def embed(self, texts: Sequence[str], /) -> Vectors:
        batch = check_texts(texts, "texts")
        found, missing = self._known(batch)
        if missing:
            found |= self._remembered(missing, self._computed(missing))
        return self._checked([found[text] for text in batch], len(batch))

    async def aembed(self, texts: Sequence[str], /) -> Vectors:
        batch = check_texts(texts, "texts")
        found, missing = self._known(batch)
        if missing:
            found |= self._remembered(missing, await self._awaited(missing))
        return self._checked([found[text] for text in batch], len(batch))

    def __repr__(self) -> str:
        return f"Embedder({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _Adapted, (self.name, self._function, self._afunction)  # a copy remembers for itself

    def _known(self, batch: list[str]) -> tuple[dict[str, Vectors], list[str]]:
        found = self._recent.of(batch)
        return found, [text for text in dict.fromkeys(batch) if text not in found]

    def _remembered(self, texts: list[str], vectors: Vectors) -> dict[str, Vectors]:
        found = dict(zip(texts, vectors, strict=True))
        self._dimension = self._dimension or vectors.shape[1]
        if vectors.shape[1] == self._dimension:  # a service that has a bad moment is asked again
            self._recent.add(found)
        return found

    def _computed(self, texts: list[str]) -> Vectors:
        return self._checked(self._function(texts), len(texts))

    async def _awaited(self, texts: list[str]) -> Vectors:
        if self._afunction is None:
            return await self._together(texts)
        return self._checked(await self._afunction(texts), len(texts))

    def _checked(self, vectors: npt.ArrayLike, rows: int) -> Vectors:
        try:
            return check_vectors(vectors, rows=rows)
        except EmbeddingError as error:
            msg = f"The embedder {self.name!r} went wrong. {error}"
            raise EmbeddingError(msg) from error


def _refuse_coroutine_function(function: Callable[..., object]) -> None:
    import inspect

    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        msg = (
            f"{_name('callable', function)} is a coroutine function, which only aroute could call. Pass a LangChain "
            "Embeddings, which has both embed_documents and aembed_documents."
        )
        raise InvalidInputError(msg)


def _name(family: str, model: object) -> str:
    kind = getattr(model, "__qualname__", type(model).__qualname__)
    of = getattr(model, "model_name", None) or getattr(model, "model", None)
    if not isinstance(of, str) or "://" in of:  # the address of a service may hold a password, and the name is saved
        return f"{family}:{kind}"
    return f"{family}:{kind}:{of}"


@dataclass(frozen=True)
class _LlamaIndexQueries:
    """A LlamaIndex embedding in query mode, which has no batches: one call per text, some at once where awaited."""

    model: Any

    def embed(self, texts: list[str]) -> npt.ArrayLike:
        return [self.model.get_query_embedding(text) for text in texts]

    async def aembed(self, texts: list[str]) -> npt.ArrayLike:
        import asyncio

        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(text: str) -> list[float]:
            async with gate:
                vector: list[float] = await self.model.aget_query_embedding(text)
                return vector

        return await asyncio.gather(*map(one, texts))


def _own_async(model: Any) -> Callable[[list[str]], Awaitable[npt.ArrayLike]] | None:
    method = getattr(model, "aembed_documents", None)
    # LangChain's own one calls the sync method in a thread, which for several callers is better done together.
    return None if getattr(method, "__module__", "").startswith("langchain_core.") else method


class _Encoder:
    """The `encode` of a model, for one thread at a time: tokenizers are not made for several."""

    def __init__(self, model: Any) -> None:
        import inspect

        self._model = model
        # SentenceTransformer shows a bar where logging is verbose; other encoders may not know the word.
        known = "show_progress_bar" in inspect.signature(model.encode).parameters
        self._quiet = {"show_progress_bar": False} if known else {}
        self._lock = threading.Lock()

    def __call__(self, texts: list[str]) -> npt.ArrayLike:
        with self._lock:
            vectors: npt.ArrayLike = self._model.encode(texts, **self._quiet)
            return vectors

    def __reduce__(self) -> tuple[Any, ...]:
        return _Encoder, (self._model,)


def _from_name(given: str) -> Embedder:
    if given == "local":
        msg = 'The "local" embedder is fitted on prompts first: LocalEmbedder.fit(prompts).'
        raise InvalidInputError(msg)
    loaders = {"sentence-transformers": _sentence_transformer, "onnx": _onnx_encoder, "model2vec": _static_model}
    family, _, name = given.partition(":")
    if family not in loaders:
        family, name = "sentence-transformers", given
    return _Adapted(f"{family}:{name}", _Encoder(loaders[family](name)))


def _onnx_encoder(folder: str) -> object:
    from unirouter_integrations.onnx import OnnxEncoder

    return OnnxEncoder(folder)


def _sentence_transformer(name: str) -> object:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        msg = (
            f"The embedder {name!r} is the name of a SentenceTransformer, which needs "
            "pip install 'unirouter-integrations[sentence-transformers]'. "
            'embedder="local" needs no further package.'
        )
        raise MissingDependencyError(msg) from error
    model: object = SentenceTransformer(name)
    return model


def _static_model(name: str) -> object:
    try:
        from model2vec import StaticModel
    except ImportError as error:
        msg = f"The embedder 'model2vec:{name}' needs pip install 'unirouter-integrations[model2vec]'."
        raise MissingDependencyError(msg) from error
    model: object = StaticModel.from_pretrained(name, force_download=False)
    return model
