"""Pick the pipeline of every question: no retrieval, a quick one, or a thorough one.

    python examples/route_pipelines.py

needs no key and no network: real query engines of LlamaIndex over a small text, with small local programs behind them
(see `local_llms.py`). A profile is measured for each pipeline, whatever is in it, and the router picks among them.
"""

import re
from pathlib import Path

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.query_engine import CustomQueryEngine, RouterQueryEngine
from llama_index.core.tools import QueryEngineTool
from local_llms import LocalLLM, WordEmbedding, look_up, multiply, sum_up

from unirouter_integrations import LocalEmbedder, UniRouter
from unirouter_integrations.llamaindex import UniRouterSelector, call_options

TEXT = (Path(__file__).parent / "data" / "railway.txt").read_text()
COSTS = {"alone": 0.1, "quick": 0.5, "thorough": 5.0}  # USD per 1,000 questions
ABOUT = """\
The models are small LOCAL PROGRAMS behind LlamaIndex's LLM interface, no language models, with made-up prices. The
index and the engines are real ones. The pipeline "alone" retrieves nothing, "quick" reads one passage, and "thorough"
reads two with the best model.
"""


class Alone(CustomQueryEngine):
    """Answers from what a model knows by itself: here, how to multiply."""

    def custom_query(self, query_str: str) -> str:
        """Answer a question."""
        asked = re.search(r"(\d+) times (\d+)", query_str)
        return str(int(asked[1]) * int(asked[2])) if asked else "I cannot tell."


def graded(stations: list[str], first: int) -> dict[str, str]:
    """Questions about stations and numbers, each with the pattern of its right answers."""
    return {question: answer for n, name in enumerate(stations, first) for question, answer in _about(name, n).items()}


def _about(station: str, number: int) -> dict[str, str]:
    (opened,), (height,) = (
        re.findall(pattern, TEXT)
        for pattern in (rf"{station} station was opened in (\d+)", rf"{station} station lies at (\d+)")
    )
    return {
        f"How much is {number} times 12?": rf"^{number * 12}$",
        f"What is {number} times 30?": rf"^{number * 30}$",
        f"When was {station} station opened?": rf"\b{opened}\.$",
        f"How high does {station} station lie?": rf"\b{height} metres\.$",
        f"Please sum up what is known about {station}.": rf"{opened}.*{height}",
    }


def main() -> None:
    """Run the example."""
    print(ABOUT)
    stations = re.findall(r"^(\w+) station", TEXT, re.MULTILINE)
    right, unseen = graded(stations[:10], 0), graded(stations[10:], 20)
    questions = list(right)
    sentences = re.findall(r"[A-Z][^.]*\.", TEXT)
    embed_model = WordEmbedding(embedder=LocalEmbedder.fit([*sentences, *questions]))
    passages = [Document(text=passage) for passage in TEXT.split("\n\n")]
    index = VectorStoreIndex.from_documents(passages, embed_model=embed_model)
    reader = LocalLLM(model_name="reader", solvers=(look_up,))
    scholar = LocalLLM(model_name="scholar", solvers=(look_up, multiply, sum_up))
    pipelines: dict[str, BaseQueryEngine] = {
        "alone": Alone(),
        "quick": index.as_query_engine(llm=reader, similarity_top_k=1),
        "thorough": index.as_query_engine(llm=scholar, similarity_top_k=2),
    }

    print(f"1. Ask each pipeline {len(questions)} questions, grade the answers, fit the router.")
    router = UniRouter.fit(questions, embedder=embed_model, n_clusters=5, estimator="laplace")
    for name, engine in pipelines.items():
        scores = [float(bool(re.search(right[question], str(engine.query(question))))) for question in questions]
        router.register(router.profile(name, questions, scores, cost=COSTS[name]))
        print(f"   {name}: {100 * sum(scores) / len(scores):.0f}% right at {COSTS[name]:.2f} USD per 1,000 questions")
    router.cost_weight = 0.02  # a wrong answer is as bad as 50 USD per 1,000 questions

    print("\n2. A RouterQueryEngine asks the pipeline that the router picks. Tools may have other names than profiles.")
    names = {"no-retrieval": "alone", "railway-quick": "quick", "railway-thorough": "thorough"}
    selector = UniRouterSelector(router=router, profiles=names, embed_model=embed_model)
    tools = [QueryEngineTool.from_defaults(pipelines[profile], name=tool) for tool, profile in names.items()]
    routed = RouterQueryEngine(selector=selector, query_engine_tools=tools, llm=scholar)
    chosen = []
    for question, answer in unseen.items():
        response = routed.query(question)
        decision = (response.metadata or {})["selector_result"].decision
        chosen.append(decision.model)
        verdict = "right" if re.search(answer, str(response)) else "wrong"
        if len(chosen) <= len(unseen) // 4:
            print(f"   {decision.model:<9} {verdict}  {question}")
    mean = sum(COSTS[name] for name in chosen) / len(chosen)
    print(f"   {len(unseen)} questions, {mean:.2f} USD per 1,000; all by the thorough one: {COSTS['thorough']:.2f}")

    print("\n3. A question may have candidates of its own.")
    with call_options(among=["alone", "quick"]):
        response = routed.query(f"Please sum up what is known about {stations[-1]}.")
    print(f"   {(response.metadata or {})['selector_result'].reason}")


if __name__ == "__main__":
    main()
