"""`UniRouterQueryEngine`: one retrieval for each query, and an answer by the model chosen for it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.indices.prompt_helper import ChatPromptHelper, PromptHelper
from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.response_synthesizers import BaseSynthesizer, get_response_synthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.settings import Settings
from typing_extensions import override

from unirouter_integrations.checks import check_cost_weight
from unirouter_integrations.decision import RoutingDecision
from unirouter_integrations.errors import NoModelError
from unirouter_integrations.fallback import Cooldowns, next_best
from unirouter_integrations.llamaindex.capabilities import NO_MODELS
from unirouter_integrations.llamaindex.events import announce
from unirouter_integrations.llamaindex.models import check_models, register, unregister
from unirouter_integrations.llamaindex.queries import QueryVectors
from unirouter_integrations.llamaindex.selector import UniRouterSelectorResult
from unirouter_integrations.profiles import LLMProfile
from unirouter_integrations.router import UniRouter


class UniRouterQueryEngine(BaseQueryEngine):
    """A query engine whose answers are written by the model with the least expected error plus weighted cost.

    It retrieves once, judges the question alone, and packs what was retrieved for the chosen model's context. The
    decision is at `response.metadata["selector_result"]`, as of a `RouterQueryEngine`, and as plain JSON at
    `response.metadata["unirouter"]`.

    Args:
        router: The fitted router, with a profile registered for each of the models.
        models: The LLMs by name. The dict is kept, not copied.
        retriever: Any retriever, such as `index.as_retriever()`.
        cost_weight: lambda for these queries; None for the router's.
        embed_model: The embedding model of the index, if the router was fitted with it (`UniRouter.fit(prompts,
            embedder=embed_model)`). Then a query is embedded once, for the decision and for the retrieval.
        node_postprocessors: Applied to what was retrieved, in order.
        callback_manager: None for that of `Settings`.
        fallback: Whether the next best model writes the answer if one fails, see `UniRouterLLM`. An answer that is
            streamed fails only where it is read, when another model can no longer take over; for that, and for checks
            of answers, let the index's own query engine have a `UniRouterLLM`.
        cooldown: For how many seconds a model rests that failed three times in a row, see `UniRouterLLM`.
        synthesis: What `get_response_synthesizer` takes: `response_mode`, `streaming`, `text_qa_template`, ...

    Raises:
        InvalidInputError: If a model has no profile or is no LLM, or the router was fitted with another embedding model
            than `embed_model`.

    Example:
        ```python
        engine = UniRouterQueryEngine(router=router, models=llms, retriever=index.as_retriever(), streaming=True)
        print(engine.query("Who invented it?").metadata["selector_result"].reason)
        ```
    """

    def __init__(
        self,
        *,
        router: UniRouter,
        models: dict[str, LLM],
        retriever: BaseRetriever,
        cost_weight: float | None = None,
        embed_model: BaseEmbedding | None = None,
        node_postprocessors: Sequence[BaseNodePostprocessor] = (),
        callback_manager: CallbackManager | None = None,
        fallback: bool = True,
        cooldown: float = 30.0,
        **synthesis: Any,
    ) -> None:
        check_cost_weight(cost_weight)
        check_models(router, models)
        super().__init__(callback_manager=callback_manager or Settings.callback_manager)
        self.router = router
        self.models = models
        self.cost_weight = cost_weight
        self.fallback = fallback
        self._cooldowns = Cooldowns(cooldown)
        self._vectors = QueryVectors(router, embed_model)
        self._retriever = retriever
        self._postprocessors = list(node_postprocessors)
        for postprocessor in self._postprocessors:
            postprocessor.callback_manager = self.callback_manager
        self._synthesis = synthesis
        self._synthesizers: dict[str, tuple[LLM, BaseSynthesizer]] = {}
        for name, model in models.items():
            self._synthesizer(name, model)  # now, so that an argument that is wrong is told at once

    def register(self, name: str, model: LLM, profile: LLMProfile) -> None:
        """Let a new model take part from now on; or replace one.

        Args:
            name: Its name.
            model: The LLM.
            profile: Its profile under the same name, as `router.profile(...)` makes it.

        Raises:
            InvalidInputError: If the profile is of another name or of other clusters, or the model is not an LLM.
        """
        register(self.router, self.models, name, model, profile)

    def unregister(self, name: str) -> None:
        """Take a model out of every decision from now on.

        Raises:
            UnknownModelError: If no model of that name is registered.
        """
        unregister(self.router, self.models, name)

    @override
    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self._vectors.share(query_bundle)
        nodes = self._retriever.retrieve(query_bundle)
        for postprocessor in self._postprocessors:
            nodes = postprocessor.postprocess_nodes(nodes, query_bundle=query_bundle)
        return nodes

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """`retrieve`, awaited."""
        await self._vectors.ashare(query_bundle)
        nodes = await self._retriever.aretrieve(query_bundle)
        for postprocessor in self._postprocessors:
            nodes = await postprocessor.apostprocess_nodes(nodes, query_bundle=query_bundle)
        return nodes

    @override
    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """An answer from these nodes by the model that the query is routed to."""
        models = dict(self.models)
        decision = self._decided(models, self._vectors.of(query_bundle))
        while True:
            synthesizer = self._begun(decision, models)
            try:
                response = synthesizer.synthesize(query_bundle, nodes, additional_source_nodes)
            except Exception as error:
                following = self._after_failure(error, decision)
                if following is None:
                    raise
                decision = following
            else:
                return self._noted(response, decision, [*models])

    @override
    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """`synthesize`, awaited."""
        models = dict(self.models)
        decision = self._decided(models, await self._vectors.aof(query_bundle))
        while True:
            synthesizer = self._begun(decision, models)
            try:
                response = await synthesizer.asynthesize(query_bundle, nodes, additional_source_nodes)
            except Exception as error:
                following = self._after_failure(error, decision)
                if following is None:
                    raise
                decision = following
            else:
                return self._noted(response, decision, [*models])

    @override
    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        payload: dict[str, Any] = {EventPayload.QUERY_STR: query_bundle.query_str}
        with self.callback_manager.event(CBEventType.QUERY, payload=payload) as event:
            response = self.synthesize(query_bundle, self.retrieve(query_bundle))
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    @override
    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        payload: dict[str, Any] = {EventPayload.QUERY_STR: query_bundle.query_str}
        with self.callback_manager.event(CBEventType.QUERY, payload=payload) as event:
            response = await self.asynthesize(query_bundle, await self.aretrieve(query_bundle))
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    @override
    def _get_prompt_modules(self) -> PromptMixinType:
        """None: templates are given to the constructor, and hold for models that join later."""
        return {}

    def _decided(self, models: dict[str, LLM], vector: Any) -> RoutingDecision:
        pool = self.router.registered(models)
        if not pool.given:
            raise NoModelError(NO_MODELS)
        rested, resting = self._cooldowns.rested(pool.names)
        (decision,) = self.router.route_many(vectors=vector, cost_weight=self.cost_weight, among=pool.among(rested))
        return replace(decision, excluded=resting) if resting else decision

    def _begun(self, decision: RoutingDecision, models: dict[str, LLM]) -> BaseSynthesizer:
        """The synthesizer with the model of a decision, and everybody told that it is about to be called."""
        announce(decision)
        self._cooldowns.begun(decision.model)
        return self._synthesizer(decision.model, models[decision.model])

    def _after_failure(self, error: Exception, decision: RoutingDecision) -> RoutingDecision | None:
        """The decision for the next best model; None if none could do better."""
        return next_best(self.router, decision, error, self._cooldowns, self.fallback)

    def _synthesizer(self, name: str, model: LLM) -> BaseSynthesizer:
        """Made when a model is first chosen, and again if it was replaced."""
        known = self._synthesizers.get(name)
        if known is None or known[0] is not model:
            # Each with the room of its own model, where those of `Settings` would be one for all.
            own = {
                "prompt_helper": PromptHelper.from_llm_metadata(model.metadata),
                "chat_prompt_helper": ChatPromptHelper.from_llm_metadata(model.metadata),
                "callback_manager": self.callback_manager,
            }
            known = (model, get_response_synthesizer(llm=model, **{**own, **self._synthesis}))
            self._synthesizers[name] = known
        return known[1]

    def _noted(self, response: RESPONSE_TYPE, decision: RoutingDecision, names: list[str]) -> RESPONSE_TYPE:
        self._cooldowns.succeeded(decision.model)
        result = UniRouterSelectorResult.of(decision, names)
        response.metadata = {**(response.metadata or {}), "selector_result": result, "unirouter": decision.as_dict()}
        return response
