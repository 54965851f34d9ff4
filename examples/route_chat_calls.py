"""Route real chat calls among models, end to end: fit, profile, register, answer.

    python examples/route_chat_calls.py

needs no key and no download: the models are small local programs (see `local_models.py`). To use real providers
instead, name at least two of them with their prices in USD per million tokens, input and output:

    pip install langchain langchain-openai
    python examples/route_chat_calls.py --model openai:gpt-5-nano=0.05,0.40 --model openai:gpt-5=1.25,10
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from local_models import local_models

from unirouter_integrations import UniRouter
from unirouter_integrations.langchain import ChatUniRouter

PROMPTS = Path(__file__).parent / "data" / "prompts.jsonl"
TEMPLATE = ChatPromptTemplate.from_messages([("system", "Answer briefly."), ("human", "{question}")])
LOCAL_PRICES = {
    "abacus": (0.5, 2.0),
    "almanac": (0.5, 1.5),
    "metric": (0.5, 1.5),
    "pocket": (2.0, 6.0),
    "scholar": (15.0, 60.0),
    "scribe": (1.0, 3.0),
}
LOCAL = """\
The models here are small LOCAL PROGRAMS behind LangChain's chat model interface: a calculator, a look-up over a bundled
text, a unit and date converter, a template writer, and two that combine several of these. They are no language models.
They really solve a question or really fail; nothing is drawn at random. Their prices are made up; tokens are words.
"""
LIVE = """\
LIVE models: the calls go to real providers and cost money. The prices are those you gave.
"""


class Price(NamedTuple):
    """USD per million tokens."""

    read: float
    written: float

    def of(self, answer: AIMessage) -> float:
        """What 1,000 calls like this one cost, in USD."""
        usage = answer.usage_metadata
        if usage is None:
            msg = "The model did not report its token usage, so the call cannot be priced."
            raise ValueError(msg)
        return (usage["input_tokens"] * self.read + usage["output_tokens"] * self.written) / 1000


@dataclass(frozen=True)
class Question:
    """One line of the data file."""

    split: str
    kind: str
    prompt: str
    reference: str
    grade: str

    def loss(self, answer: str) -> float:
        """0 if the answer is right, 1 if it is wrong."""
        said, wanted = " ".join(answer.split()), self.reference
        if self.grade == "number":
            numbers = re.findall(r"-?\d+(?:\.\d+)?", said.replace(",", ""))
            right = bool(numbers) and abs(float(numbers[-1]) - float(wanted)) <= 0.01 * abs(float(wanted))
        elif self.grade == "lines":
            count, word = wanted.split()
            right = len(answer.strip().splitlines()) == int(count) and word in answer
        elif self.grade == "words":
            right = all(word.lower() in said.lower() for word in wanted.split())
        else:
            flags = 0 if self.grade == "exact" else re.IGNORECASE
            right = re.search(rf"\b{re.escape(wanted)}\b", said, flags) is not None
        return float(not right)


class Outcomes(NamedTuple):
    """What a model did on some questions: its loss and the price of 1,000 such calls, for each."""

    losses: list[float]
    costs: list[float]


class Trace(BaseCallbackHandler):
    """Remembers what the trace of a call says: the decision and, from the tokens, what the call cost."""

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self.prices = prices
        self.decision: dict[str, Any] = {}
        self.cost = 0.0

    def on_chat_model_start(self, *_: Any, metadata: dict[str, Any] | None = None, **__: Any) -> None:
        """A model run starts: its metadata carries the decision."""
        self.decision = {key.removeprefix("unirouter_"): value for key, value in (metadata or {}).items()}

    def on_llm_end(self, response: Any, **_: Any) -> None:
        """A model run has ended: its message carries the tokens."""
        self.cost = self.prices[self.decision["model"]].of(response.generations[0][0].message)


def ask(model: BaseChatModel, price: Price, questions: Sequence[Question]) -> Outcomes:
    """Let a model answer questions, grade the answers and price the calls."""
    answers = (TEMPLATE | model).batch([{"question": q.prompt} for q in questions], {"max_concurrency": 8})
    losses = [question.loss(answer.text) for question, answer in zip(questions, answers, strict=True)]
    return Outcomes(losses, [price.of(answer) for answer in answers])


def read_questions(split: str) -> list[Question]:
    """The questions of one of the three splits: fit, validation or test."""
    questions = [Question(**json.loads(line)) for line in PROMPTS.read_text().splitlines()]
    return [question for question in questions if question.split == split]


def chosen_models(named: Sequence[str]) -> tuple[dict[str, BaseChatModel], dict[str, Price]]:
    """The chat models and their prices: those that were named, or the local ones."""
    if not named:
        return dict(local_models()), {name: Price(*price) for name, price in LOCAL_PRICES.items()}
    from langchain.chat_models import init_chat_model

    models, prices = {}, {}
    for argument in named:
        name, _, price = argument.rpartition("=")
        try:
            read, written = (float(number) for number in price.split(","))
        except ValueError:
            msg = f"--model {argument}: give its price in USD per million tokens, like openai:gpt-5-nano=0.05,0.40"
            raise SystemExit(msg) from None
        models[name], prices[name] = init_chat_model(name), Price(read, written)
    if len(models) < 2:  # noqa: PLR2004
        msg = "Name at least two models: there is nothing to route with one."
        raise SystemExit(msg)
    return models, prices


def answer(chain: Runnable[Any, str], router: UniRouter, prices: Mapping[str, Price], test: list[Question]) -> Outcomes:
    """Answer questions through the chain, and say for each which model was chosen and why."""
    routed, trace = Outcomes([], []), Trace(prices)
    for question in test:
        text = chain.invoke({"question": question.prompt}, {"callbacks": [trace]})
        loss = question.loss(text)
        routed.losses.append(loss)
        routed.costs.append(trace.cost)
        print(f"   {'wrong' if loss else 'right'}  {question.prompt}")
        print(f"          {' / '.join(text.splitlines())}")
        why = trace.decision
        terms = ", ".join(router.clusters.terms[why["cluster"]][:3])
        print(
            f"          {why['model']} for cluster {why['cluster']} ({terms}): expected error "
            f"{why['expected_error']:.2f} ± {why['expected_error_std']:.2f} at cost {why['expected_cost']:.3g}, "
            f"score {why['score']:.3f}"
        )
    return routed


def compare(routed: Outcomes, every: Mapping[str, Outcomes], best: str) -> None:
    """Print the routed accuracy and cost beside what needs no router."""
    cheapest = min(every, key=lambda name: float(np.mean(every[name].costs)))
    everybody = Outcomes(
        [loss for outcome in every.values() for loss in outcome.losses],
        [cost for outcome in every.values() for cost in outcome.costs],
    )
    rows = {
        "routed": routed,
        f"always the cheapest ({cheapest})": every[cheapest],
        f"always the best in profiling ({best})": every[best],
        "random (mean over all models)": everybody,
    }
    print(f"   {'':42}{'accuracy':>10}{'USD per 1,000 calls':>22}")
    for title, result in rows.items():
        print(f"   {title:42}{1 - np.mean(result.losses):>10.1%}{np.mean(result.costs):>22.4f}")


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Route chat calls among models by expected error and cost.")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="PROVIDER:NAME=IN,OUT",
        help="a real chat model (as init_chat_model names it) and its price in USD per million tokens; repeat it",
    )
    parser.add_argument("--quality", type=float, default=1.0, help="share of the best model's quality to keep")
    arguments = parser.parse_args()
    models, prices = chosen_models(arguments.model)
    fit, validation, test = (read_questions(split) for split in ("fit", "validation", "test"))
    prompts = [question.prompt for question in fit]
    *known, newcomer = models
    print(LIVE if arguments.model else LOCAL)

    print(f"1. Fit on {len(fit)} prompts, with the graded answers of {', '.join(known)} to them.")
    outcomes = {name: ask(models[name], prices[name], fit) for name in known}
    router = UniRouter.fit(prompts, outcomes={name: outcome.losses for name, outcome in outcomes.items()})
    for cluster in router.clusters.describe():
        print(f"   {cluster}")

    print("\n2. Profile these models from the same answers and register them.")
    for name, outcome in outcomes.items():
        router.register(router.profile(name, prompts, outcome.losses, cost=outcome.costs))
        print(f"   {router.profiles[name]}")
    llm = ChatUniRouter(router=router, models={name: models[name] for name in known})
    chain = TEMPLATE | llm | StrOutputParser()

    print(f"\n3. {newcomer} joins the chain as it is: profiled on {len(validation)} other prompts, nothing retrained.")
    outcome = ask(models[newcomer], prices[newcomer], validation)
    profile = router.profile(newcomer, [q.prompt for q in validation], outcome.losses, cost=outcome.costs)
    llm.register(newcomer, models[newcomer], profile)
    print(f"   {profile}")
    weight = router.calibrate(prompts, quality=arguments.quality)
    print(f"   Cost weight that keeps {arguments.quality:.0%} of the best model's expected quality: {weight:.3g}")

    print(f"\n4. Answer {len(test)} unseen questions through prompt | ChatUniRouter | StrOutputParser().")
    routed = answer(chain, router, prices, test)

    print("\n5. The same questions, each sent to every model:")
    best = min(router.profiles, key=lambda name: router.profiles[name].mean_error)
    compare(routed, {name: ask(model, prices[name], test) for name, model in models.items()}, best)


if __name__ == "__main__":
    main()
