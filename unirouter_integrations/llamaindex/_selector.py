"""`UniRouterSelector`: for a `RouterQueryEngine` over one query engine per model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import QueryBundle
from llama_index.core.tools import ToolMetadata
from pydantic import PlainSerializer, PlainValidator
from typing_extensions import override

from unirouter_integrations._checks import number
from unirouter_integrations._router import UniRouter
from unirouter_integrations.core import RoutingDecision, Snapshot
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.llamaindex._events import announce
from unirouter_integrations.llamaindex._options import current_options
from unirouter_integrations.llamaindex._query_vectors import QueryVectors
from unirouter_integrations.serving._serving import check_router


class UniRouterSelectorResult(SelectorResult):
    """A selection with the decision that led to it.

    Attributes:
        decision: The decision; printed, it is the reason of the selection.
    """

    decision: Annotated[RoutingDecision, PlainValidator(lambda it: it), PlainSerializer(RoutingDecision.as_dict)]

    @classmethod
    def of(cls, decision: RoutingDecision, names: Sequence[str]) -> "UniRouterSelectorResult":
        """The selection of the chosen model among these; of all choices that are of this model."""
        chosen = [index for index, name in enumerate(names) if name == decision.model]
        selections = [SingleSelection(index=index, reason=str(decision)) for index in chosen]
        return cls(selections=selections, decision=decision)


class UniRouterSelector(BaseSelector):
    """Selects, for each query, the one tool whose model has the least expected error plus weighted cost.

    For a `RouterQueryEngine` or a `RouterRetriever`: each tool is named after a registered profile, or `profiles` says
    which one it is of. A profile need not be a model's: a whole query engine can be profiled, and a plain LLM beside
    it, for questions that need no retrieval. If several tools are of the chosen profile, such as one model over two
    indexes, all are selected. A query is judged by its text. For options of single queries see `call_options`. The
    result is at
    `response.metadata["selector_result"]`; its reason is a sentence and its `decision` the `RoutingDecision`. A
    `RouterQueryEngine` keeps the tools it was made with; to let models join later, take `UniRouterQueryEngine` or
    `UniRouterLLM`.

    Args:
        router: The fitted router.
        profiles: The names of the profiles by those of the tools; None if they have the same names.
        cost_weight: lambda for these selections; None for the router's.
        embed_model: The embedding model of the index, if the router was fitted with it (`UniRouter.fit(prompts,
            embedder=embed_model)`). Then a query is embedded once, for the selection and for the retrieval.

    Raises:
        InvalidInputError: If the router was fitted with another embedding model than `embed_model`; from a selection,
            if two tools have the same name, or one has none.
        UnknownModelError: From a selection, if a tool is named after no registered model.

    Example:
        ```python
        tools = [QueryEngineTool.from_defaults(index.as_query_engine(llm=llm), name=name) for name, llm in llms.items()]
        engine = RouterQueryEngine(
            selector=UniRouterSelector(router=router), query_engine_tools=tools, llm=llms["mini"]
        )
        ```
    """

    def __init__(
        self,
        *,
        router: UniRouter,
        profiles: Mapping[str, str] | None = None,
        cost_weight: float | None = None,
        embed_model: BaseEmbedding | None = None,
    ) -> None:
        check_router(router)
        self.router = router
        self.profiles = dict(profiles or {})
        self.cost_weight = None if cost_weight is None else number(cost_weight, "cost_weight")
        self._vectors = QueryVectors(router, embed_model)

    @override
    def _select(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> UniRouterSelectorResult:
        names = self._names(choices)
        self._vectors.share(query)
        return _selected(self._snapshot(names).route(**self._asked(query)), names)

    @override
    async def _aselect(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> UniRouterSelectorResult:
        names = self._names(choices)
        await self._vectors.ashare(query)
        return _selected(await self._snapshot(names).aroute(**self._asked(query)), names)

    def _snapshot(self, names: list[str]) -> Snapshot:
        """The router with these candidates, of which the options of the call may leave out some."""
        allowed = current_options().among
        return self.router.snapshot([*dict.fromkeys(name for name in names if allowed is None or name in allowed)])

    def _asked(self, query: QueryBundle) -> dict[str, Any]:
        options, vector = current_options(), self._vectors.of(query)
        asked: dict[str, Any] = {"prompt": query.query_str} if vector is None else {"vector": vector}
        weight = self.cost_weight if options.cost_weight is None else options.cost_weight
        return {**asked, "cost_weight": weight, "max_error": options.max_error}

    def _names(self, choices: Sequence[ToolMetadata]) -> list[str]:
        """The profile of each choice."""
        return [self.profiles.get(name, name) for name in _tool_names(choices)]

    @override
    def _get_prompts(self) -> dict[str, Any]:
        return {}

    @override
    def _update_prompts(self, prompts_dict: dict[str, Any]) -> None:
        """There are none: no model is asked."""


def _selected(decision: RoutingDecision, names: Sequence[str]) -> UniRouterSelectorResult:
    announce(decision)
    return UniRouterSelectorResult.of(decision, names)


def _tool_names(choices: Sequence[ToolMetadata]) -> list[str]:
    names = [choice.name for choice in choices]
    wrong = [name for name, count in Counter(names).items() if count > 1 or not name]
    if wrong:
        msg = (
            f"Each choice should be a tool named after its model, but the names are {names}. "
            "Give each its own: QueryEngineTool.from_defaults(engine, name=...)."
        )
        raise InvalidInputError(msg)
    return [str(name) for name in names]
