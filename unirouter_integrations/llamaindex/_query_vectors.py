"""The vector a query is judged by: the one it is searched by, where both come from one embedding model."""

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import QueryBundle

from unirouter_integrations._router import UniRouter
from unirouter_integrations.embedding import as_embedder
from unirouter_integrations.errors import InvalidInputError


class QueryVectors:
    """Shares the vectors of queries between a router and retrievers.

    Args:
        router: The fitted router.
        embed_model: The embedding model of the index; None if the router was fitted with another one.

    Raises:
        InvalidInputError: If the router was fitted with another embedding model than this.
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
        """Embed a query for the retriever, if it is searched by the same vector that it is judged by."""
        if self._shared and _needs_embedding(query):
            query.embedding = self._router.embed([query.query_str])[0].tolist()

    async def ashare(self, query: QueryBundle) -> None:
        """Async version of `share`."""
        if self._shared and _needs_embedding(query):
            query.embedding = (await self._router.aembed([query.query_str]))[0].tolist()

    def of(self, query: QueryBundle) -> list[float] | None:
        """The query's own vector, if it is that of its text in the router's space; None if it has to be embedded."""
        if not self._shared or query.embedding is None or not _is_plain(query):
            return None
        return query.embedding if len(query.embedding) == self._router.clusters.dimension else None


def _is_plain(query: QueryBundle) -> bool:
    """Whether a query is searched by its own text; HyDE searches by a made-up answer."""
    return query.custom_embedding_strs in (None, [query.query_str])


def _needs_embedding(query: QueryBundle) -> bool:
    return query.embedding is None and _is_plain(query)
