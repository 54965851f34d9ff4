"""The query engine, over a real vector index."""

import asyncio
from typing import Any

import pytest
from conftest import TOY_PROMPTS, toy_scores
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.indices.query.query_transform.base import BaseQueryTransform
from llama_index.core.llms import LLM
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import SubQuestionQueryEngine, TransformQueryEngine
from llama_index.core.question_gen.types import SubQuestion
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.retrievers import QueryFusionRetriever, VectorIndexRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.tools import QueryEngineTool
from llamaindex_fakes import Fake, ToyEmbedding, counting, fakes, terse, toy_index, watched, word_counter
from pydantic import BaseModel

from unirouter_integrations import InvalidInputError, UniRouter, UnknownModelError
from unirouter_integrations.llamaindex import UniRouterQueryEngine

QUERIES = {"the sum of Rome": "abacus", "the poem of Oslo": "poet", "the date of Lima": "oracle"}
MODES = [mode for mode in ResponseMode if mode not in {ResponseMode.NO_TEXT, ResponseMode.CONTEXT_ONLY}]
STREAMED = [mode for mode in MODES if mode not in {ResponseMode.ACCUMULATE, ResponseMode.COMPACT_ACCUMULATE}]


class Note(BaseModel):
    """Write something down."""

    text: str


@pytest.fixture
def embed_model() -> ToyEmbedding:
    return ToyEmbedding()


@pytest.fixture
def shared(embed_model: ToyEmbedding) -> UniRouter:
    """The toy router, fitted with LlamaIndex's embedding model."""
    router = UniRouter.fit(TOY_PROMPTS, embedder=embed_model, n_clusters=3, estimator="mean")
    for name, wrong, cost in (("abacus", ("poem", "date"), 1), ("poet", ("sum", "date"), 2), ("oracle", (), 10)):
        router.register(router.profile(name, TOY_PROMPTS, toy_scores(*wrong), cost=cost))
    embed_model.queries.clear()
    return router


class Counting(VectorIndexRetriever):
    """Counts retrievals."""

    n_calls = 0

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.n_calls += 1
        return super()._retrieve(query_bundle)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.n_calls += 1
        return await super()._aretrieve(query_bundle)


def engine_of(
    router: UniRouter, embed_model: ToyEmbedding, models: dict[str, LLM] | None = None, **kwargs: Any
) -> UniRouterQueryEngine:
    return UniRouterQueryEngine(
        router=router,
        models=models or terse(),
        retriever=Counting(toy_index(embed_model), similarity_top_k=3),
        embed_model=embed_model,
        **kwargs,
    )


async def answers(engine: UniRouterQueryEngine, query: str) -> list[tuple[str, Any]]:
    """The text and the response, asked and awaited, streamed or not."""
    response: Any = engine.query(query)
    aresponse: Any = await engine.aquery(query)
    if hasattr(response, "response_gen"):
        atext = "".join([text async for text in aresponse.response_gen])
        return [("".join(response.response_gen), response), (atext, aresponse)]
    return [(str(response), response), (str(aresponse), aresponse)]


@pytest.mark.parametrize(
    ("mode", "streaming"), [*((mode, False) for mode in MODES), *((mode, True) for mode in STREAMED)]
)
async def test_one_embedding_one_retrieval_and_the_chosen_model(
    shared: UniRouter, embed_model: ToyEmbedding, mode: ResponseMode, streaming: Any
) -> None:
    """In every response mode, sync and async, streamed or not; the decision and the sources are in the response."""
    engine = engine_of(shared, embed_model, response_mode=mode, streaming=streaming)
    for query, name in QUERIES.items():
        embed_model.queries.clear()
        for n, (text, response) in enumerate(await answers(engine, f"{query} {mode} {streaming}"), start=1):
            assert f"{name}: yes" in text
            assert response.metadata["unirouter"]["model"] == name
            assert response.metadata["selector_result"].reason.startswith(f"{name} for cluster")
            assert len(response.source_nodes) == 3
            assert {node.node_id for node in response.source_nodes} <= set(response.metadata)
            assert len(embed_model.queries) <= n
        assert len(embed_model.queries) == 1
    assert engine._retriever.n_calls == 6  # type: ignore[attr-defined]


async def test_awaited_alone_a_query_is_embedded_once_too(shared: UniRouter, embed_model: ToyEmbedding) -> None:
    """And a hundred at once a hundred times."""
    engine = engine_of(shared, embed_model)
    queries = [f"{query} <{n}>" for n in range(34) for query in QUERIES]
    found = await asyncio.gather(*map(engine.aquery, queries))
    assert sorted(embed_model.queries) == sorted(queries)
    assert [str(response) for response in found] == [f"{name}: yes" for name in QUERIES.values()] * 34


def test_without_a_shared_embedding_model_each_embeds_for_itself(router: UniRouter, embed_model: ToyEmbedding) -> None:
    """The router by its own embedder; the query's vector is the retriever's."""
    engine = UniRouterQueryEngine(router=router, models=terse(), retriever=toy_index(embed_model).as_retriever())
    for query, name in QUERIES.items():
        assert str(engine.query(query)) == f"{name}: yes"
    assert embed_model.queries == [*QUERIES]
    with pytest.raises(InvalidInputError, match="cannot share"):
        engine_of(router, embed_model)


def test_models_registered_later_are_seen(shared: UniRouter, embed_model: ToyEmbedding) -> None:
    """Through the engine, or through the dict and the router; a replaced one answers from the next query on."""
    models = terse()
    engine = engine_of(shared, embed_model, models)
    engine.register(
        "calendar",
        Fake(model_name="calendar", terse=True),
        shared.profile("calendar", TOY_PROMPTS, toy_scores(), cost=0.5),
    )
    assert str(engine.query("the date of Rome")) == "calendar: yes"
    models["calendar"] = Fake(model_name="replaced", terse=True)
    assert str(engine.query("the date of Rome")) == "replaced: yes"
    engine.unregister("calendar")
    assert str(engine.query("the date of Rome")) == "oracle: yes"
    with pytest.raises(UnknownModelError):
        engine.unregister("calendar")


async def test_any_retriever_and_postprocessor_will_do(shared: UniRouter, embed_model: ToyEmbedding) -> None:
    """They see the query; what they leave is what the model gets."""

    class Last(BaseNodePostprocessor):
        def _postprocess_nodes(
            self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
        ) -> list[NodeWithScore]:
            assert query_bundle is not None
            assert query_bundle.query_str in QUERIES
            return nodes[-1:]

    index, models = toy_index(embed_model), fakes()
    fusion = QueryFusionRetriever([index.as_retriever()], llm=models["abacus"], num_queries=1, use_async=False)
    engine = UniRouterQueryEngine(
        router=shared,
        models=models,
        retriever=fusion,
        embed_model=embed_model,
        node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=0.1), Last()],
    )
    for query, name in QUERIES.items():
        for text, response in await answers(engine, query):
            assert text.startswith(name)
            (node,) = response.source_nodes
            assert node.text in text


async def test_nothing_retrieved_is_an_empty_response_with_the_decision(
    shared: UniRouter, embed_model: ToyEmbedding
) -> None:
    """Plain and streamed."""
    for streaming in (False, True):
        cutoff = SimilarityPostprocessor(similarity_cutoff=2)
        engine = engine_of(shared, embed_model, node_postprocessors=[cutoff], streaming=streaming)
        for text, response in await answers(engine, "a poem"):
            assert text == "Empty Response"
            assert response.metadata["unirouter"]["model"] == "poet"


def test_answers_may_have_a_form_and_templates_of_their_own(shared: UniRouter, embed_model: ToyEmbedding) -> None:
    """What `get_response_synthesizer` takes, for every model; what it does not take is refused at once."""
    response: Any = engine_of(shared, embed_model, output_cls=Note, response_mode="tree_summarize").query("a poem")
    assert Note.model_validate_json(str(response)) == Note(text="poet: yes")
    template = PromptTemplate("{context_str} Ask: {query_str}")
    engine = engine_of(shared, embed_model, fakes(), text_qa_template=template)
    assert str(engine.query("a poem")).endswith("Ask: a poem")
    with pytest.raises(InvalidInputError, match=r"no 'respons_mode'\. Did you mean 'response_mode'"):
        engine_of(shared, embed_model, respons_mode="refine")
    with pytest.raises(InvalidInputError, match=r"no 'cost_wieght'\. Did you mean 'cost_weight'"):
        engine_of(shared, embed_model, cost_wieght=1)


def test_it_packs_for_the_context_of_the_chosen_model(shared: UniRouter, embed_model: ToyEmbedding) -> None:
    """A small one is asked more often, a large one once; neither is asked too much."""
    models = fakes(
        **{name: {"terse": True, "window": 1000} for name in ("abacus", "poet")},
        oracle={"terse": True},
    )
    engine = UniRouterQueryEngine(
        router=shared, models=models, retriever=toy_index(embed_model, 20).as_retriever(similarity_top_k=12)
    )
    engine.query("the date of Rome")
    engine.query("the sum of Rome")
    small, large = models["abacus"], models["oracle"]
    assert isinstance(small, Fake)
    assert isinstance(large, Fake)
    assert (len(large.sent), len(small.sent) > 1) == (1, True)


async def test_each_query_is_one_pair_of_events_of_the_chosen_model(
    shared: UniRouter, embed_model: ToyEmbedding
) -> None:
    """The decision before it; counted once; the older callbacks see query, retrieval, synthesis and call."""
    counter, debug = word_counter(), LlamaDebugHandler(print_trace_on_end=False)
    manager: CallbackManager = counting(counter)
    manager.add_handler(debug)
    models = terse()
    engine = engine_of(shared, embed_model, models, callback_manager=manager)
    with watched() as watch:
        engine.query("the poem of Oslo")
        await engine.aquery("the poem of Oslo")
    wanted = ("UniRouteDecisionEvent", "SynthesizeStartEvent", "LLMChatStartEvent", "LLMChatEndEvent")
    assert watch.names(*wanted) == [*wanted] * 2
    assert [event.model_dict["model_name"] for event in watch.of("LLMChatStartEvent")] == ["poet", "poet"]
    poet = models["poet"]
    assert isinstance(poet, Fake)
    assert counter.total_llm_token_count == sum(raw["usage"]["total_tokens"] for raw in (poet.raws[1], poet.raws[3]))
    started = {pair[0].event_type.value for pair in debug.get_event_pairs()}
    assert {"query", "synthesize", "llm"} <= started


def test_engines_around_it_work(shared: UniRouter, embed_model: ToyEmbedding) -> None:
    """Those that transform the query, ask parts of it, or retrieve and synthesise by hand."""

    class Shout(BaseQueryTransform):
        def _get_prompts(self) -> Any:
            return {}

        def _update_prompts(self, prompts: Any) -> None:
            """There are none."""

        def _run(self, query_bundle: QueryBundle, metadata: Any) -> QueryBundle:
            return QueryBundle(f"{query_bundle.query_str}!")

    class Halves:
        def generate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
            return [SubQuestion(sub_question=part, tool_name="docs") for part in query.query_str.split(" and ")]

    engine = engine_of(shared, embed_model, fakes())
    assert "a poem!" in str(TransformQueryEngine(engine, Shout()).query("a poem"))
    nodes = engine.retrieve(QueryBundle("a poem"))
    assert str(engine.synthesize(QueryBundle("a sum"), nodes)).startswith("abacus")
    tools = [QueryEngineTool.from_defaults(engine, name="docs", description="documents")]
    halves: Any = Halves()
    parts = SubQuestionQueryEngine.from_defaults(
        tools, llm=terse()["oracle"], question_gen=halves, verbose=False, use_async=False
    ).query("a sum and a poem")
    asked = "".join(node.text for node in parts.source_nodes)
    assert "abacus: " in asked
    assert "poet: " in asked


def test_its_templates_are_shown_and_can_be_updated(router: UniRouter) -> None:
    """For all models, those that join later included."""
    models: dict[str, Any] = dict(fakes())
    late = models.pop("poet")
    retriever = toy_index(ToyEmbedding()).as_retriever(similarity_top_k=1)
    engine = UniRouterQueryEngine(router=router, models=models, retriever=retriever, response_mode="compact")
    name = "response_synthesizer:text_qa_template"
    assert {"response_synthesizer:refine_template", name} <= engine.get_prompts().keys()
    engine.update_prompts({name: PromptTemplate("In verse: {context_str} {query_str}")})
    assert engine.get_prompts()[name].get_template(llm=None) == "In verse: {context_str} {query_str}"
    assert str(engine.query("a date")).startswith("oracle: In verse: ")
    engine.register("poet", late, router.profiles["poet"])
    assert str(engine.query("a poem")).startswith("poet: In verse: ")
    with pytest.raises(ValueError, match="Module other not found"):
        engine.update_prompts({"other:text_qa_template": PromptTemplate("{query_str}")})
