"""Pick the model of every query in a RAG pipeline, end to end: index, profile, ask.

    python examples/rag_query_engine.py

needs no key and no network: a real vector index over a small text, asked by small local programs (see `local_llms.py`).
Real LLMs and embedding models of LlamaIndex can take their place without other changes.
"""

import re
from pathlib import Path

from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.llms import LLM
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.tools import QueryEngineTool
from local_llms import LocalLLM, WordEmbedding, look_up, multiply, sum_up

from unirouter_integrations import LocalEmbedder, UniRouter
from unirouter_integrations.llamaindex import UniRouterLLM, UniRouterQueryEngine, UniRouterSelector

TEXT = (Path(__file__).parent / "data" / "railway.txt").read_text()
COSTS = {"reader": 0.1, "clerk": 0.3, "scholar": 5.0}  # USD per 1,000 questions
ABOUT = """\
The models are small LOCAL PROGRAMS behind LlamaIndex's LLM interface, no language models, with made-up prices: a reader
that finds a sentence, a clerk that calculates, and a scholar that does both and sums up. The index is a real one.
"""


def graded(station: str) -> dict[str, str]:
    """Questions about a station, each with the pattern of its right answers."""
    (opened,), (height,), (price,) = (
        re.findall(pattern, TEXT)
        for pattern in (
            rf"{station} station was opened in (\d+)",
            rf"{station} station lies at (\d+)",
            rf"to {station} costs (\d+)",
        )
    )
    return {
        f"When was {station} station opened?": rf"^[^.]*\b{opened}\.$",
        f"How high does {station} station lie?": rf"^[^.]*\b{height} metres\.$",
        **{f"What do {n} tickets to {station} cost?": rf"\b{n * int(price)}\b" for n in (3, 5, 8)},
        f"Please sum up what is known about {station}.": rf"{opened}.*{height}.*\b{price}\b",
    }


def show(query: str, response: RESPONSE_TYPE) -> None:
    """Print the answer, the model with the reason, and the sources."""
    why = (response.metadata or {})["selector_result"].reason
    print(f"\n{query}\n   {response}\n   why: {why}")
    for node in response.source_nodes:
        print(f"   source: {node.text[:60]}... ({node.score:.2f})")


def main() -> None:
    """Run the example."""
    print(ABOUT)
    stations = re.findall(r"^(\w+) station", TEXT, re.MULTILINE)
    known, unseen = stations[:10], stations[10:]
    right = {question: answer for station in known for question, answer in graded(station).items()}
    questions = list(right)
    sentences = re.findall(r"[A-Z][^.]*\.", TEXT)
    embed_model = WordEmbedding(embedder=LocalEmbedder.fit([*sentences, *questions]))
    index = VectorStoreIndex.from_documents(
        [Document(text=text) for text in TEXT.split("\n\n")], embed_model=embed_model
    )

    print(
        f"1. Ask two models {len(questions)} questions about {len(known)} stations, grade the answers, fit the router."
    )
    models: dict[str, LLM] = {
        "reader": LocalLLM(model_name="reader", solvers=(look_up,)),
        "clerk": LocalLLM(model_name="clerk", solvers=(multiply,)),
        "scholar": LocalLLM(model_name="scholar", solvers=(look_up, multiply, sum_up)),
    }

    def scores_of(name: str) -> list[float]:
        """The scores of a model alone: 1 right, 0 wrong."""
        alone = index.as_query_engine(llm=models[name], similarity_top_k=2)
        return [float(bool(re.search(right[question], str(alone.query(question))))) for question in questions]

    # With the index's own embedding model, a query is embedded once, for the router and for the retrieval.
    # The plain estimate, because two known models do not show how errors vary from model to model.
    router = UniRouter.fit(questions, embedder=embed_model, n_clusters=5, estimator="laplace")
    for name in ("reader", "scholar"):
        router.register(router.profile(name, questions, scores_of(name), cost=COSTS[name]))
        print(f"   {router.profiles[name]}")
    router.cost_weight = 0.02  # a wrong answer is as bad as 50 USD per 1,000 questions

    print("\n2. UniRouterQueryEngine: one retrieval, and the chosen model answers.")
    llms = {name: models[name] for name in ("reader", "scholar")}
    engine = UniRouterQueryEngine(
        router=router,
        models=llms,
        retriever=index.as_retriever(similarity_top_k=2),
        embed_model=embed_model,
    )
    before = embed_model.n_queries
    height, _, tickets, _, summary = list(graded(unseen[0]))[1:]
    for question in (height, tickets, summary):
        show(question, engine.query(question))
    print(f"\n   3 queries, {embed_model.n_queries - before} embeddings")

    print("\n3. The clerk joins the engine in use; nothing is retrained.")
    profile = router.profile("clerk", questions, scores_of("clerk"), cost=COSTS["clerk"])
    engine.register("clerk", models["clerk"], profile)
    show(tickets, engine.query(tickets))

    print("\n4. The same choice in a RouterQueryEngine, with UniRouterSelector.")
    tools = [
        QueryEngineTool.from_defaults(index.as_query_engine(llm=model, similarity_top_k=1), name=name)
        for name, model in models.items()
    ]
    selector = UniRouterSelector(router=router, embed_model=embed_model)
    routed = RouterQueryEngine(selector=selector, query_engine_tools=tools, llm=models["scholar"])
    (question, *_) = graded(unseen[1])
    show(question, routed.query(question))

    print("\n5. The same choice wherever LlamaIndex uses an LLM: Settings.llm = UniRouterLLM(...).")
    Settings.llm = UniRouterLLM(router=router, models=models)
    everywhere = index.as_query_engine(similarity_top_k=2)
    asked = {question: answer for station in unseen for question, answer in graded(station).items()}
    wrong = sum(not re.search(answer, str(everywhere.query(question))) for question, answer in asked.items())
    chosen = [decision.model for decision in router.route_many(list(asked))]
    print(f"   {len(asked)} questions about {len(unseen)} other stations: {len(asked) - wrong} right,")
    print(f"   {', '.join(f'{chosen.count(name)} by the {name}' for name in models)}.")
    print(
        f"   {sum(COSTS[name] for name in chosen) / len(chosen):.2f} USD per 1,000 questions; "
        f"the scholar alone costs {COSTS['scholar']:.2f}."
    )


if __name__ == "__main__":
    main()
