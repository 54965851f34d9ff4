"""The vector a query is judged by; the same as the one it is searched by, where both come from one embedding model."""

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import QueryBundle

from unirouter_integrations.embedding import as_embedder
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.router import UniRouter


class QueryVectors:
    """Embeds queries for a router, `(1, d)`, and leaves the vectors where retrievers find them.

    Args:
        router: The fitted router.
        embed_model: The embedding model of the index; None if the router was fitted with another one.

    Raises:
        InvalidInputError: If the router was fitted with another one than this.
    """

    def __init__(self, router: UniRouter, embed_model: BaseEmbedding | None) -> None:
        self._router = router
        self._shared = embed_model is not None
        fitted_with = router.clusters.embedder and router.clusters.embedder.name
        if embed_model is not None and as_embedder(embed_model).name != fitted_with:
            msg = (
                f"The router was fitted with the embedder {fitted_with!r}, so its queries cannot share the vectors of "
                f"{as_embedder(embed_model).name!r}. Leave embed_model out, or fit with embedder=embed_model."
            )
            raise InvalidInputError(msg)

    def share(self, query: QueryBundle) -> None:
        """Embed a query for the retriever, if it is searched by the vector that it is judged by."""
        if self._shared and _is_to_be_embedded(query):
            query.embedding = self._router.embed([query.query_str])[0].tolist()

    async def ashare(self, query: QueryBundle) -> None:
        """`share`, awaited."""
        if self._shared and _is_to_be_embedded(query):
            query.embedding = (await self._router.aembed([query.query_str]))[0].tolist()

    def of(self, query: QueryBundle) -> Any:
        """The vector of a query."""
        self.share(query)
        return self._found(query) or self._router.embed([query.query_str])

    async def aof(self, query: QueryBundle) -> Any:
        """`of`, awaited."""
        await self.ashare(query)
        return self._found(query) or await self._router.aembed([query.query_str])

    def _found(self, query: QueryBundle) -> list[list[float]] | None:
        """What the query brings along, if it is a vector of its own text in the router's space."""
        if not self._shared or query.embedding is None or not _is_plain(query):
            return None
        return [query.embedding] if len(query.embedding) == self._router.clusters.dimension else None


def _is_plain(query: QueryBundle) -> bool:
    """Whether it is searched by its own text, not, as HyDE has it, by an answer made up for it."""
    return query.custom_embedding_strs in (None, [query.query_str])


def _is_to_be_embedded(query: QueryBundle) -> bool:
    return query.embedding is None and _is_plain(query)
