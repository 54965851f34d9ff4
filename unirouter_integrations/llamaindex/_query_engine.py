"""`UniRouterQueryEngine`: one retrieval for each query, and an answer by the model chosen for it."""

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from inspect import signature
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.indices.prompt_helper import ChatPromptHelper, PromptHelper
from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.prompts.mixin import PromptMixin, PromptMixinType
from llama_index.core.response_synthesizers import BaseSynthesizer, get_response_synthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.settings import Settings
from typing_extensions import override

from unirouter_integrations._checks import check_known
from unirouter_integrations._router import UniRouter
from unirouter_integrations.core import LLMProfile
from unirouter_integrations.grading import Price, ScorerLike
from unirouter_integrations.llamaindex._calls import describe, highest_usage, is_empty, is_refusal, usage_of
from unirouter_integrations.llamaindex._capabilities import as_llm, capabilities_of, may_repeat
from unirouter_integrations.llamaindex._events import announce
from unirouter_integrations.llamaindex._options import options_of_call
from unirouter_integrations.llamaindex._query_vectors import QueryVectors
from unirouter_integrations.llamaindex._reports import (
    Written,
    avalues,
    awritten,
    awritten_parts,
    values,
    written,
    written_parts,
)
from unirouter_integrations.llamaindex._selector import UniRouterSelectorResult
from unirouter_integrations.serving._capabilities import CHARACTERS_PER_TOKEN, Needs
from unirouter_integrations.serving._options import CallOptions
from unirouter_integrations.serving._serving import Fallback, Serving, as_check, health_of, settings_of
from unirouter_integrations.serving._steps import CallRequest, Framework, RoutedCall


def _text_answer(answer: object) -> str | None:
    response = answer.value if isinstance(answer, Written) else None
    # Where nothing was retrieved, LlamaIndex gives a fixed text and asks no model.
    return response.response if isinstance(response, Response) and response.source_nodes else None


_ENGINES = Framework(as_llm, capabilities_of, is_refusal, is_empty, _text_answer, usage_of, highest_usage, describe)


class UniRouterQueryEngine(BaseQueryEngine):
    """A query engine whose answers are written by the model with the least expected error plus weighted cost.

    It retrieves once, judges the question alone, and packs what was retrieved for the chosen model's context. The
    decision is at `response.metadata["selector_result"]`, as of a `RouterQueryEngine`, and as plain JSON at
    `response.metadata["unirouter"]`. For options of single queries see `call_options`.

    Args:
        router: The fitted router, with a profile registered for each of the models.
        models: The LLMs by name, a dict or a `ModelRegistry`. It is kept, not copied.
        retriever: Any retriever, such as `index.as_retriever()`.
        cost_weight: lambda for these queries; None for the router's.
        embed_model: The embedding model of the index, if the router was fitted with it (`UniRouter.fit(prompts,
            embedder=embed_model)`). Then a query is embedded once, for the decision and for the retrieval.
        node_postprocessors: Applied to what was retrieved, in order.
        callback_manager: None for that of `Settings`.
        fallback: Whether the next best model writes the answer if one of the LLM calls for it fails, also where
            LlamaIndex would go on without it; see `UniRouterLLM`. With `"refusals"` also if one was refused.
        cooldown: See `UniRouterLLM`.
        default: See `UniRouterLLM`. With `embed_model`, a query that cannot be embedded cannot be retrieved either.
        embedding_timeout: See `UniRouterLLM`.
        timeout: See `UniRouterLLM`; of one model's whole answer, with all the LLM calls for it.
        first_token_timeout: See `UniRouterLLM`.
        deadline: See `UniRouterLLM`.
        max_attempts: See `UniRouterLLM`.
        max_cost: See `UniRouterLLM`.
        hedge: See `UniRouterLLM`.
        candidates: See `UniRouterLLM`; it is given the question.
        escalate: See `UniRouterLLM`. Streamed answers are not checked.
        synthesis: What `get_response_synthesizer` takes: `response_mode`, `streaming`, `text_qa_template`, ...

    Raises:
        InvalidInputError: If a model has no profile or is no LLM, an argument is unknown or out of range, or the router
            was fitted with another embedding model than `embed_model`.

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
        models: MutableMapping[str, LLM],
        retriever: BaseRetriever,
        cost_weight: float | None = None,
        embed_model: BaseEmbedding | None = None,
        node_postprocessors: Sequence[BaseNodePostprocessor] = (),
        callback_manager: CallbackManager | None = None,
        fallback: Fallback = True,
        cooldown: float = 5.0,
        default: str | None = None,
        embedding_timeout: float | None = 10.0,
        timeout: float | None = 300.0,
        first_token_timeout: float | None = 120.0,
        deadline: float | None = None,
        max_attempts: int | None = None,
        max_cost: float | None = None,
        hedge: bool = False,
        candidates: Callable[[str], Iterable[str] | None] | None = None,
        escalate: ScorerLike | None = None,
        **synthesis: Any,
    ) -> None:
        arguments = {**signature(get_response_synthesizer).parameters, **signature(UniRouterQueryEngine).parameters}
        check_known(synthesis, arguments.keys() - {"llm", "synthesis"}, "UniRouterQueryEngine")
        self.router = router
        self.models = models
        self.cost_weight = cost_weight
        self.fallback = fallback
        self.cooldown = cooldown
        self.default = default
        self.embedding_timeout = embedding_timeout
        self.timeout = timeout
        self.first_token_timeout = first_token_timeout
        self.deadline = deadline
        self.max_attempts = max_attempts
        self.max_cost = max_cost
        self.hedge = hedge
        self.candidates = candidates
        self.escalate = as_check(escalate)
        self._health = health_of(models)
        self._serving.validate()
        super().__init__(callback_manager=callback_manager or Settings.callback_manager)
        self._vectors = QueryVectors(router, embed_model)
        self._retriever = retriever
        self._postprocessors = list(node_postprocessors)
        for postprocessor in self._postprocessors:
            postprocessor.callback_manager = self.callback_manager
        self._synthesis = synthesis
        self._synthesizers: dict[str, tuple[LLM, BaseSynthesizer]] = {}
        self._prompts: dict[str, BasePromptTemplate] = {}  # that were updated, for models that join later
        for name, model in self._serving.models_now().items():
            self._synthesizer(name, model)  # now, so that a wrong argument is refused at once

    @property
    def _serving(self) -> Serving:
        """The rules of its calls, with its settings as they are now."""
        return Serving(self.router, self.models, _ENGINES, self._health, **settings_of(self))

    def register(self, name: str, model: LLM, profile: LLMProfile, *, price: Price | None = None) -> None:
        """Let a new model take part from now on; or replace one.

        Args:
            name: Its name.
            model: The LLM.
            profile: Its profile under the same name, as `router.profile(...)` makes it.
            price: Its price, for a `ModelRegistry`; None for the one in the profile's metadata.

        Raises:
            InvalidInputError: If the profile is of another name or of other clusters, or the model is not an LLM.
        """
        self._serving.register(name, model, profile, price)

    def unregister(self, name: str) -> None:
        """Take a model out of every decision from now on.

        Raises:
            UnknownModelError: If no model of that name is registered.
        """
        self._serving.unregister(name)

    @override
    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self._vectors.share(query_bundle)
        nodes = self._retriever.retrieve(query_bundle)
        for postprocessor in self._postprocessors:
            nodes = postprocessor.postprocess_nodes(nodes, query_bundle=query_bundle)
        return nodes

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Async version of `retrieve`."""
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
        """Have the model that the query is routed to write an answer from these nodes."""

        def ask(routed: RoutedCall) -> Written[RESPONSE_TYPE]:
            synthesizer = self._begin(routed)
            return written(routed.model, lambda: synthesizer.synthesize(query_bundle, nodes, additional_source_nodes))

        serving, opened = self._serving, dict[str, RESPONSE_TYPE]()

        def open_stream(routed: RoutedCall) -> Iterator[Written[str | None]]:
            response = ask(routed).value
            opened[routed.decision.model] = response
            tokens = response.response_gen if isinstance(response, StreamingResponse) else iter([str(response)])
            return written_parts(routed.decision.model, tokens)

        with options_of_call() as options:
            (routed,) = serving.decide([self._request(query_bundle, nodes, options)])
            if not self._synthesis.get("streaming"):
                routed, answer = serving.call(routed, ask)
                return self._noted(routed, answer.value)
            routed, parts = serving.stream(routed, open_stream)
        response, tokens = opened[routed.decision.model], values(parts)
        if isinstance(response, StreamingResponse):
            response.response_gen = tokens
        else:
            deque(tokens)  # there is nothing to stream: it ends here
        return self._noted(routed, response)

    @override
    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """Async version of `synthesize`."""

        async def ask(routed: RoutedCall) -> Written[RESPONSE_TYPE]:
            synthesizer = self._begin(routed)
            return await awritten(
                routed.model, lambda: synthesizer.asynthesize(query_bundle, nodes, additional_source_nodes)
            )

        serving, opened = self._serving, dict[str, RESPONSE_TYPE]()

        async def open_stream(routed: RoutedCall) -> AsyncGenerator[Written[str | None], None]:
            response = (await ask(routed)).value
            opened[routed.decision.model] = response
            tokens = response.response_gen if isinstance(response, AsyncStreamingResponse) else _one(str(response))
            return awritten_parts(routed.decision.model, tokens)

        with options_of_call() as options:
            (routed,) = await serving.adecide([self._request(query_bundle, nodes, options)])
            if not self._synthesis.get("streaming"):
                routed, answer = await serving.acall(routed, ask)
                return self._noted(routed, answer.value)
            routed, parts = await serving.astream(routed, open_stream)
        response, tokens = opened[routed.decision.model], avalues(parts)
        if isinstance(response, AsyncStreamingResponse):
            response.response_gen = tokens
        else:
            async for _ in tokens:
                pass
        return self._noted(routed, response)

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
        return {"response_synthesizer": _PromptsOfAll(self._synthesizers, self._prompts)}

    def _request(self, query: QueryBundle, nodes: Sequence[NodeWithScore], options: CallOptions) -> CallRequest:
        # Nodes are packed for the chosen model's context, each by itself if need be; so the longest one has to fit.
        options = options if self.candidates is None else options.within(self.candidates(query.query_str))
        longest = max((len(node.get_content()) for node in nodes if isinstance(node.node, TextNode)), default=0)
        return CallRequest(
            question=query.query_str,
            needs=Needs(tokens=(len(query.query_str) + longest) // CHARACTERS_PER_TOKEN),
            cost_weight=options.cost_weight,
            among=options.among,
            max_error=options.max_error,
            max_cost=options.max_cost,
            vector=self._vectors.of(query),
            may_repeat=self.hedge and may_repeat(self.models),
        )

    def _begin(self, routed: RoutedCall) -> BaseSynthesizer:
        """The synthesizer with the model of a decision, after reporting that it is about to be called."""
        announce(routed.decision)
        return self._synthesizer(routed.decision.model, routed.model)

    def _synthesizer(self, name: str, model: LLM) -> BaseSynthesizer:
        """The synthesizer of a model, made when it is first chosen, and again if the model was replaced."""
        known = self._synthesizers.get(name)
        if known is None or known[0] is not model:
            # Each packs for its own model's context; the helpers of `Settings` would be the same for all models.
            own = {
                "prompt_helper": PromptHelper.from_llm_metadata(model.metadata),
                "chat_prompt_helper": ChatPromptHelper.from_llm_metadata(model.metadata),
                "callback_manager": self.callback_manager,
            }
            known = (model, get_response_synthesizer(llm=model, **{**own, **self._synthesis}))
            known[1].update_prompts(self._prompts)
            self._synthesizers[name] = known
        return known[1]

    @staticmethod
    def _noted(routed: RoutedCall, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        decision = routed.decision
        result = UniRouterSelectorResult.of(decision, [*routed.models])
        response.metadata = {**(response.metadata or {}), "selector_result": result, "unirouter": decision.as_dict()}
        return response


class _PromptsOfAll(PromptMixin):
    """The templates of all synthesizers of an engine, which are the same."""

    def __init__(
        self, synthesizers: Mapping[str, tuple[LLM, BaseSynthesizer]], updated: dict[str, BasePromptTemplate]
    ) -> None:
        self._synthesizers, self._updated = synthesizers, updated

    @override
    def _get_prompts(self) -> dict[str, BasePromptTemplate]:
        return next((synthesizer.get_prompts() for _, synthesizer in self._synthesizers.values()), {})

    @override
    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    @override
    def _update_prompts(self, prompts_dict: dict[str, BasePromptTemplate]) -> None:
        self._updated.update(prompts_dict)
        for _, synthesizer in self._synthesizers.values():
            synthesizer.update_prompts(prompts_dict)


async def _one(text: str) -> AsyncGenerator[str, None]:
    yield text
