"""The selector, in a `RouterQueryEngine` and a `RouterRetriever`."""

import asyncio
import json
from typing import Any

import pytest
from conftest import TOY_PROMPTS, toy_scores
from llama_index.core import VectorStoreIndex
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.query_engine import RouterQueryEngine, TransformQueryEngine
from llama_index.core.retrievers import RouterRetriever
from llama_index.core.schema import QueryBundle
from llama_index.core.tools import QueryEngineTool, RetrieverTool, ToolMetadata
from llamaindex_fakes import ToyEmbedding, fakes, toy_index, watched

from unirouter_integrations import InvalidInputError, UniRouter, UnknownModelError
from unirouter_integrations.llamaindex import UniRouterSelector, UniRouterSelectorResult, call_options

QUERIES = {"the sum of Rome": "abacus", "the poem of Oslo": "poet", "the date of Lima": "oracle"}
CHOICES = [ToolMetadata("answers", name) for name in ("poet", "oracle", "abacus")]


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


def engine_over(index: VectorStoreIndex, selector: UniRouterSelector, **kwargs: Any) -> RouterQueryEngine:
    llms = fakes()
    tools = [
        QueryEngineTool.from_defaults(index.as_query_engine(llm=llm, **kwargs), name=name) for name, llm in llms.items()
    ]
    return RouterQueryEngine(selector=selector, query_engine_tools=tools, llm=llms["abacus"])


async def test_it_selects_the_model_for_each_query(router: UniRouter) -> None:
    """Sync and async, of a text or a bundle; the index is the choice's, the reason the decision's sentence."""
    selector = UniRouterSelector(router=router)
    for query, name in QUERIES.items():
        for result in (
            selector.select(CHOICES, query),
            await selector.aselect(CHOICES, query),
            selector.select(CHOICES, QueryBundle(query)),
        ):
            assert CHOICES[result.ind].name == name
            assert result.reason == str(router.route(query))


async def test_a_router_query_engine_answers_by_that_model(router: UniRouter) -> None:
    """And says so in the response, also of a stream."""
    index = toy_index(ToyEmbedding())
    engine = engine_over(index, UniRouterSelector(router=router))
    streaming = engine_over(index, UniRouterSelector(router=router), streaming=True)
    for query, name in QUERIES.items():
        responses: list[Any] = [engine.query(query), await engine.aquery(query)]
        assert all(str(response).startswith(name) for response in responses)
        responses.append(streaming.query(query))
        assert "".join(responses[-1].response_gen).startswith(name)
        responses.append(await streaming.aquery(query))
        assert "".join([text async for text in responses[-1].response_gen]).startswith(name)
        for response in responses:
            decision = response.metadata["selector_result"].decision
            assert (decision.model, decision.cluster) == (name, router.route(query).cluster)


def test_a_router_retriever_takes_it_too(router: UniRouter) -> None:
    """One retriever per model."""
    llms = fakes()
    tools = [
        RetrieverTool.from_defaults(toy_index(ToyEmbedding()).as_retriever(similarity_top_k=k), name=name)
        for k, name in enumerate(llms, start=1)
    ]
    retriever = RouterRetriever(selector=UniRouterSelector(router=router), retriever_tools=tools, llm=llms["abacus"])
    assert [len(retriever.retrieve(query)) for query in QUERIES] == [1, 2, 3]


async def test_a_query_is_embedded_once_for_both(shared: UniRouter, embed_model: ToyEmbedding) -> None:
    """With the index's embedding model given: for the selection and the retrieval, sync and async."""
    index = toy_index(embed_model)
    engine = engine_over(index, UniRouterSelector(router=shared, embed_model=embed_model))
    query, *others = QUERIES
    engine.query(query)
    assert embed_model.queries == [query]
    await asyncio.gather(*map(engine.aquery, others))
    assert sorted(embed_model.queries) == sorted(QUERIES)


async def test_what_is_retrieved_is_the_same(shared: UniRouter, embed_model: ToyEmbedding) -> None:
    """As without a selector."""
    index = toy_index(embed_model)
    engine = engine_over(index, UniRouterSelector(router=shared, embed_model=embed_model), similarity_top_k=4)
    for query in QUERIES:
        expected = [node.node_id for node in index.as_retriever(similarity_top_k=4).retrieve(query)]
        assert [node.node_id for node in engine.query(query).source_nodes] == expected
        assert [node.node_id for node in (await engine.aquery(query)).source_nodes] == expected


async def test_an_embedding_that_is_there_is_used(shared: UniRouter, embed_model: ToyEmbedding) -> None:
    """Of the right space only: else, and for HyDE's made-up answers, the text decides and nothing is touched."""
    selector = UniRouterSelector(router=shared, embed_model=embed_model)

    async def chosen(query: QueryBundle) -> str:
        before = query.embedding
        results = selector.select(CHOICES, query), await selector.aselect(CHOICES, query)
        found = {CHOICES[result.ind].name for result in results}
        assert query.embedding == before or before is None
        (name,) = found
        return str(name)

    poem = embed_model.get_text_embedding("poem")
    assert await chosen(QueryBundle("a sum", embedding=poem)) == "poet"
    assert embed_model.queries == []
    assert await chosen(QueryBundle("a sum", embedding=[1.0, 2.0])) == "abacus"
    assert await chosen(QueryBundle("a sum", custom_embedding_strs=["a poem"], embedding=poem)) == "abacus"
    assert await chosen(QueryBundle("a sum", custom_embedding_strs=["a poem"])) == "abacus"
    mine = UniRouterSelector(router=shared)
    assert CHOICES[mine.select(CHOICES, QueryBundle("a sum", embedding=poem)).ind].name == "abacus"
    plain = QueryBundle("a date")
    mine.select(CHOICES, plain)
    assert plain.embedding is None


def test_hyde_searches_by_its_answer_and_is_judged_by_the_question(
    shared: UniRouter, embed_model: ToyEmbedding
) -> None:
    """What HyDE makes up does not choose the model."""
    llms = fakes(abacus={"reply": lambda _: "a poem of Bonn"})
    engine = engine_over(toy_index(embed_model), UniRouterSelector(router=shared, embed_model=embed_model))
    hyde = TransformQueryEngine(engine, HyDEQueryTransform(llm=llms["abacus"], include_original=False))
    response = hyde.query("the sum of Rome")
    assert str(response).startswith("abacus")
    assert response.source_nodes[0].text.startswith("The poem")


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["abacus", None], InvalidInputError, r"the names are \['abacus', None\]"),
        (["abacus", ""], InvalidInputError, "named after its model"),
        (["query_engine_tool"] * 2, InvalidInputError, r"QueryEngineTool.from_defaults\(engine, name=...\)"),
        (["abacus", "nobody"], UnknownModelError, "Not registered: 'nobody'. Registered models: 'abacus'"),
    ],
)
async def test_choices_that_are_no_models_are_refused(
    router: UniRouter, names: list[str], error: type[Exception], message: str
) -> None:
    """Rather than guessed."""
    selector, choices = UniRouterSelector(router=router), [ToolMetadata("answers", name) for name in names]
    with pytest.raises(error, match=message):
        selector.select(choices, "a sum")
    with pytest.raises(error, match=message):
        await selector.aselect(choices, "a sum")
    with pytest.raises(InvalidInputError, match="named after its model"):
        selector.select(["abacus", "poet"], "a sum")


def test_only_the_routers_own_embedding_model_can_be_shared(router: UniRouter, shared: UniRouter) -> None:
    """The names of both are in the message."""
    with pytest.raises(InvalidInputError, match=r"'callable:toy_embed', so .* 'llamaindex:ToyEmbedding:toy'"):
        UniRouterSelector(router=router, embed_model=ToyEmbedding())
    with pytest.raises(InvalidInputError, match="'llamaindex:ToyEmbedding:other'"):
        UniRouterSelector(router=shared, embed_model=ToyEmbedding(model_name="other"))
    with pytest.raises(InvalidInputError, match="cost_weight should be"):
        UniRouterSelector(router=router, cost_weight=-1)


def test_the_selection_is_plain_for_tracing_tools(router: UniRouter) -> None:
    """As JSON, and as an event in the selector's span; its cost weight is its own."""
    selector = UniRouterSelector(router=router, cost_weight=5)
    with watched() as watch:
        result = selector.select(CHOICES, "a date of SECRET")
    assert CHOICES[result.ind].name == "abacus"
    assert json.loads(result.model_dump_json())["decision"]["cost_weight"] == 5
    (event,) = watch.of("UniRouteDecisionEvent")
    assert event.model == "abacus"
    assert event.span_id.startswith("UniRouterSelector._select")
    assert "SECRET" not in event.model_dump_json() + result.model_dump_json()
    assert selector.get_prompts() == {}


async def test_a_hundred_selections_at_once_do_not_mix(shared: UniRouter, embed_model: ToyEmbedding) -> None:
    """Each answer is of its query's model."""
    engine = engine_over(toy_index(embed_model), UniRouterSelector(router=shared, embed_model=embed_model))
    queries = [(f"{query} <{n}>", name) for n in range(34) for query, name in QUERIES.items()]
    answers = await asyncio.gather(*(engine.aquery(query) for query, _ in queries))
    assert all(str(answer).startswith(name) for answer, (_, name) in zip(answers, queries, strict=True))


async def test_tools_may_be_of_profiles_with_other_names(router: UniRouter) -> None:
    """All tools of the chosen profile are selected: one model over two indexes, or a pipeline."""
    profiles = {"math-docs": "abacus", "math-faq": "abacus", "poems": "poet"}
    selector = UniRouterSelector(router=router, profiles=profiles)
    choices = [ToolMetadata("answers", name) for name in ("poems", "math-docs", "oracle", "math-faq")]
    for question, indices in (("a sum", [1, 3]), ("a poem", [0]), ("a date", [2])):
        for result in (selector.select(choices, question), await selector.aselect(choices, question)):
            assert result.inds == indices
            assert isinstance(result, UniRouterSelectorResult)
            assert {selection.reason for selection in result.selections} == {str(result.decision)}
    with call_options(max_error=0.0):
        assert selector.select(choices, "a sum").inds in ([1, 3], [2])
    with pytest.raises(UnknownModelError, match="bard"):
        UniRouterSelector(router=router, profiles={"poems": "bard"}).select(choices, "a poem")
