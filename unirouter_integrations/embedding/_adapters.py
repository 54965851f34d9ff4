"""Embedders of other libraries, under the `Embedder` protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from unirouter_integrations._checks import requires, shown
from unirouter_integrations._concurrency import ForkSafeLock, HangGuard, off_loop
from unirouter_integrations.embedding._base import (
    Embedder,
    Vectors,
    check_model_name,
    check_texts,
    check_vectors,
    encodable,
)
from unirouter_integrations.embedding._cache import Batcher, VectorCache
from unirouter_integrations.embedding._local import LocalEmbedder
from unirouter_integrations.embedding._onnx import OnnxEncoder
from unirouter_integrations.errors import EmbeddingError, InvalidInputError

_CACHED_VECTORS = 1024  # per embedder; 2 MB at 512 dimensions
_MAX_CONCURRENT_QUERIES = 16  # requests that one `aembed` of a LlamaIndex embedding sends at the same time
_MAX_TEXTS_IN_LOOP = 100  # whose vectors an event loop looks up and checks itself, in less than a millisecond


class Encoder(Protocol):
    """A model with `encode`: a `SentenceTransformer`, a model2vec `StaticModel`, an `OnnxEncoder`."""

    def encode(self, texts: list[str], /) -> Any:
        """Return the vectors of some texts, `(n, d)`."""


class DocumentEmbeddings(Protocol):
    """A LangChain `Embeddings`. Its `aembed_documents` is used, too, unless it is LangChain's default."""

    def embed_documents(self, texts: list[str], /) -> npt.ArrayLike:
        """Return the vectors of some texts, `(n, d)`."""


class QueryEmbedding(Protocol):
    """A LlamaIndex `BaseEmbedding`."""

    def get_query_embedding(self, query: str, /) -> Sequence[float]:
        """Return the vector of a query, `(d,)`."""

    async def aget_query_embedding(self, query: str, /) -> Sequence[float]:
        """Async version of `get_query_embedding`."""


EmbedderLike = Embedder | str | Encoder | DocumentEmbeddings | QueryEmbedding | Callable[[list[str]], npt.ArrayLike]
"""What `as_embedder` takes."""


def as_embedder(x: EmbedderLike) -> Embedder:
    """Make an `Embedder` of an embedding model of another library, of its name, or of a function.

    The embedder keeps the vectors of the last 1,024 texts, so that a repeated prompt is not embedded again (it keeps
    digests of the texts, not the texts). Where the model has no async method of its own, async callers that arrive
    while it is busy are served together, in one call.

    Args:
        x: An `Embedder`; a `SentenceTransformer`, an `OnnxEncoder`, a model2vec `StaticModel` (or anything else with
            `encode`); a LangChain `Embeddings` (its `embed_documents`, for prompts in fitting and in routing alike);
            a LlamaIndex `BaseEmbedding` (its *query* embedding, which a RAG pipeline computes for a question anyway);
            a callable from a list of texts to an `(n, d)` array; or a name. A name is that of a SentenceTransformer,
            or "onnx:FOLDER" or "model2vec:NAME".

    Raises:
        InvalidInputError: If it is none of these.
        MissingDependencyError: If a name is given and the package that loads it is not installed.
        StorageError: If there is no exported model in the folder of "onnx:FOLDER".
    """
    if isinstance(x, str):
        return _load_by_name(x)
    if isinstance(x, type):
        msg = f"{x.__name__} is a class; pass an instance of it as the embedder."
        raise InvalidInputError(msg)
    if isinstance(x, Embedder):
        return x
    model: Any = x
    if hasattr(model, "embed_documents"):
        return _AdaptedEmbedder(_name("langchain", model), model.embed_documents, _own_async_method(model))
    if hasattr(model, "get_query_embedding"):
        queries = _Queries(model)
        return _AdaptedEmbedder(_name("llamaindex", model), queries.embed, queries.aembed)
    if hasattr(model, "encode"):
        return _AdaptedEmbedder(_name("encoder", model), _LockedEncoder(model))
    if callable(model):
        _refuse_coroutine_function(model)
        return _AdaptedEmbedder(_name("callable", model), model)
    msg = (
        f"{type(x).__name__} is not an embedder. Pass a callable from a list of texts to an (n, d) array, a "
        "SentenceTransformer or the name of one, a LangChain Embeddings, or a LlamaIndex BaseEmbedding."
    )
    raise InvalidInputError(msg)


class _AdaptedEmbedder:
    """An embedder of another library, with a cache.

    Args:
        name: See `Embedder`.
        function: Texts to vectors.
        afunction: Async version of it; None to run the function in a thread.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[list[str]], npt.ArrayLike],
        afunction: Callable[[list[str]], Awaitable[npt.ArrayLike]] | None = None,
    ) -> None:
        self.name = name
        self._function, self._afunction = function, afunction
        self._cache = VectorCache(_CACHED_VECTORS)
        self._dimension = 0
        self._batcher = Batcher(self._compute)
        self._guard = HangGuard()

    def embed(self, texts: Sequence[str], /, timeout: float | None = None) -> Vectors:
        batch = [*map(encodable, check_texts(texts, "texts"))]
        found, missing = self._look_up(batch)
        if missing:
            found |= self._guard.call(timeout, lambda: self._remember(missing, self._compute(missing)))
        return self._rows(batch, found)

    async def aembed(self, texts: Sequence[str], /, timeout: float | None = None) -> Vectors:  # noqa: ASYNC109
        batch = [*map(encodable, check_texts(texts, "texts"))]
        is_large = len(batch) > _MAX_TEXTS_IN_LOOP
        found, missing = await off_loop(is_large, self._look_up, batch)
        if missing:
            vectors = await self._guard.acall(timeout, lambda: self._acompute(missing))
            found |= await off_loop(is_large, self._remember, missing, vectors)
        return await off_loop(is_large, self._rows, batch, found)

    def __repr__(self) -> str:
        return f"Embedder({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _AdaptedEmbedder, (self.name, self._function, self._afunction)  # a copy has a cache of its own

    def _look_up(self, batch: list[str]) -> tuple[dict[str, Vectors], list[str]]:
        found = self._cache.get(batch)
        return found, [text for text in dict.fromkeys(batch) if text not in found]

    def _remember(self, texts: list[str], vectors: Vectors) -> dict[str, Vectors]:
        found = dict(zip(texts, vectors, strict=True))
        self._dimension = self._dimension or vectors.shape[1]
        if vectors.shape[1] == self._dimension:  # a faulty answer of a service is not kept; the next call asks again
            self._cache.add(found)
        return found

    def _rows(self, batch: list[str], found: dict[str, Vectors]) -> Vectors:
        return self._check([found[text] for text in batch], len(batch))

    def _compute(self, texts: list[str]) -> Vectors:
        return self._check(self._function(texts), len(texts))

    async def _acompute(self, texts: list[str]) -> Vectors:
        if self._afunction is None:
            return await self._batcher(texts)
        vectors = await self._afunction(texts)
        return await off_loop(len(texts) > _MAX_TEXTS_IN_LOOP, self._check, vectors, len(texts))

    def _check(self, vectors: npt.ArrayLike, rows: int) -> Vectors:
        try:
            return check_vectors(vectors, rows=rows)
        except EmbeddingError as error:
            msg = f"The embedder {self.name!r} went wrong. {error}"
            raise EmbeddingError(msg) from error


def embed_within(embedder: Embedder, texts: list[str], timeout: float | None, guard: HangGuard) -> Vectors:
    """Embed texts, or give up after some time.

    Args:
        embedder: The embedder.
        texts: The texts.
        timeout: Seconds; None for no limit. The local embedder needs none: it cannot hang.
        guard: The guard of an embedder that has none of its own.

    Raises:
        TimeoutError: If it takes longer, or if the last calls did: then no further one is made for some time.
        Exception: What the embedder raises.
    """
    if isinstance(embedder, _AdaptedEmbedder):
        return embedder.embed(texts, timeout)  # what it remembers needs no call
    return guard.call(None if isinstance(embedder, LocalEmbedder) else timeout, lambda: embedder.embed(texts))


async def aembed_within(
    embedder: Embedder,
    texts: list[str],
    timeout: float | None,  # noqa: ASYNC109
    guard: HangGuard,
) -> Vectors:
    """Async version of `embed_within`."""
    if isinstance(embedder, _AdaptedEmbedder):
        return await embedder.aembed(texts, timeout)
    return await guard.acall(None if isinstance(embedder, LocalEmbedder) else timeout, lambda: embedder.aembed(texts))


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
    model_name = getattr(model, "model_name", None) or getattr(model, "model", None)
    # The name is saved, and the address of a service may hold a password.
    if not isinstance(model_name, str) or "://" in model_name:
        return f"{family}:{kind}"
    return f"{family}:{kind}:{model_name}"


@dataclass(frozen=True)
class _Queries:
    """The query mode of a LlamaIndex embedding. It has no batches: one call per text, concurrent ones in `aembed`."""

    model: QueryEmbedding

    def embed(self, texts: list[str]) -> npt.ArrayLike:
        return [self.model.get_query_embedding(text) for text in texts]

    async def aembed(self, texts: list[str]) -> npt.ArrayLike:
        import asyncio

        semaphore = asyncio.Semaphore(_MAX_CONCURRENT_QUERIES)

        async def embed_one(text: str) -> Sequence[float]:
            async with semaphore:
                return await self.model.aget_query_embedding(text)

        return await asyncio.gather(*map(embed_one, texts))


def _own_async_method(model: Any) -> Callable[[list[str]], Awaitable[npt.ArrayLike]] | None:
    method = getattr(model, "aembed_documents", None)
    # LangChain's default runs the sync method in a thread, once per caller. Batching the callers is faster.
    return None if getattr(method, "__module__", "").startswith("langchain_core.") else method


class _LockedEncoder:
    """The `encode` of a model, for one thread at a time: tokenizers change their state while they work."""

    def __init__(self, model: Encoder) -> None:
        import inspect

        self._model = model
        # A SentenceTransformer shows a progress bar where logging is verbose. Other encoders may lack the option.
        has_option = "show_progress_bar" in inspect.signature(model.encode).parameters
        self._options = {"show_progress_bar": False} if has_option else {}
        self._lock = ForkSafeLock()

    def __call__(self, texts: list[str]) -> npt.ArrayLike:
        with self._lock:
            vectors: npt.ArrayLike = self._model.encode(texts, **self._options)
            return vectors

    def __reduce__(self) -> tuple[Any, ...]:
        return _LockedEncoder, (self._model,)


def _load_by_name(given: str) -> Embedder:
    if given == "local":
        msg = 'The "local" embedder is fitted on prompts first: LocalEmbedder.fit(prompts).'
        raise InvalidInputError(msg)
    loaders: dict[str, Callable[[str], Encoder]] = {
        "sentence-transformers": _load_sentence_transformer,
        "onnx": OnnxEncoder,
        "model2vec": _load_static_model,
    }
    family, _, name = given.partition(":")
    if family not in loaders:
        family, name = "sentence-transformers", given
    if family != "onnx":
        check_model_name(name, given)
    return _AdaptedEmbedder(f"{family}:{name}", _LockedEncoder(loaders[family](name)))


def _load_sentence_transformer(name: str) -> Encoder:
    what = f'The embedder {shown(name)} is the name of a SentenceTransformer ("local" needs no further package), which'
    with requires(what, "sentence-transformers"):
        from sentence_transformers import SentenceTransformer
    model: Encoder = SentenceTransformer(name)
    return model


def _load_static_model(name: str) -> Encoder:
    with requires(f"The embedder {shown(f'model2vec:{name}')}", "model2vec"):
        from model2vec import StaticModel
    model: Encoder = StaticModel.from_pretrained(name, force_download=False)
    return model
