"""Route real chat calls among models, end to end: fit, profile, register, answer.

    python examples/route_chat_calls.py

needs no key and no download: the models are small local programs (see `local_models.py`). To use real providers
instead, name at least two models with their prices in USD per million tokens, input and output:

    pip install langchain langchain-openai
    python examples/route_chat_calls.py --model openai:gpt-5-nano=0.05,0.40 --model openai:gpt-5=1.25,10
"""

import argparse
import re
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.prompts import ChatPromptTemplate
from local_models import ABOUT, PRICES, local_models

from unirouter_integrations import Example, LLMProfile, Price, UniRouter, profile_model
from unirouter_integrations.grading import Usage
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.profiling import read_examples

PROMPTS = Path(__file__).parent / "data" / "prompts.jsonl"
TEMPLATE = ChatPromptTemplate.from_messages([("system", "Answer briefly."), ("human", "{question}")])
SHOWN = 8  # answers that are printed
LIVE = "LIVE models: the calls go to real providers and cost money. The prices are those you gave.\n"


def named_model(argument: str) -> tuple[str, BaseChatModel, Price]:
    """The name, chat model and price of a command line argument such as `openai:gpt-5-nano=0.05,0.40`."""
    parts = re.fullmatch(r"(.+)=([\d.]+),([\d.]+)", argument)
    if parts is None:
        msg = f"{argument}: give its price in USD per million tokens, like openai:gpt-5-nano=0.05,0.40"
        raise argparse.ArgumentTypeError(msg)
    from langchain.chat_models import init_chat_model

    return parts[1], init_chat_model(parts[1]), Price(float(parts[2]), float(parts[3]))


def examples_of(split: str) -> list[Example]:
    """The questions of a split: fit, validation or test. A reference is a regular expression for right answers."""
    return [example for example in read_examples(PROMPTS) if example.metadata["split"] == split]


def result_of(profile: LLMProfile) -> tuple[float, float]:
    """The accuracy of a profiled model, and its cost in USD per 1,000 calls."""
    return 1 - profile.mean_error, 1000 * profile.metadata["answers_usd"] / profile.metadata["answers"]


def parsed_arguments() -> argparse.Namespace:
    """The real models, if there are any, and the budget."""
    parser = argparse.ArgumentParser(description="Route chat calls among models by expected error and cost.")
    about = "a real chat model, as init_chat_model names it, and its price in USD per million tokens; repeat it"
    parser.add_argument("--model", action="append", type=named_model, metavar="PROVIDER:NAME=IN,OUT", help=about)
    about = "what calls may cost on average, as a share of the cost of the model with the fewest errors"
    parser.add_argument("--budget", type=float, default=0.36, metavar="SHARE", help=about)
    arguments = parser.parse_args()
    if arguments.model and len(arguments.model) == 1:
        parser.error("Name at least two models: there is nothing to route with one.")
    return arguments


def main() -> None:
    """Run the example."""
    arguments = parsed_arguments()
    named = arguments.model
    models: dict[str, BaseChatModel] = {name: model for name, model, _ in named} if named else {**local_models()}
    prices = {name: price for name, _, price in named} if named else PRICES
    *known, newcomer = models
    fit, validation, test = map(examples_of, ("fit", "validation", "test"))
    prompts = [example.prompt for example in fit]
    print(LIVE if named else ABOUT)

    def profile_of(name: str, examples: list[Example]) -> LLMProfile:
        """Ask a model the examples, and grade and price its answers."""
        return profile_model(name, TEMPLATE | models[name], examples, router, scorer="regex", price=prices[name])

    print(f"1. Fit on {len(fit)} prompts. Finding the kinds of prompts takes no answers and no grades.")
    # The plain estimate: without graded answers of other models at the fit, the default one is more cautious.
    router = UniRouter.fit(prompts, estimator="laplace")
    print(*(f"   {cluster}" for cluster in router.clusters.describe()), sep="\n")

    print(f"\n2. Profile {', '.join(known)}: ask them the same prompts, grade and price the answers.")
    for name in known:
        router.register(profile_of(name, fit))
        print(f"   {router.profiles[name]}")
    best = min(known, key=lambda name: router.profiles[name].mean_error)
    budget = arguments.budget * result_of(router.profiles[best])[1]
    weight = router.calibrate(prompts, budget=budget)
    print(f"   The cost weight for {arguments.budget:.0%} of the cost of {best}, {budget:.3g} USD, is {weight:.3g}.")
    llm = ChatUniRouter(router=router, models={name: models[name] for name in known})
    chain = TEMPLATE | llm

    print(f"\n3. {newcomer} joins the chain in use: profiled on {len(validation)} other prompts, nothing is retrained.")
    question = "Write a birthday greeting for Alice."
    before = chain.invoke({"question": question}).response_metadata["unirouter"]["model"]
    llm.register(newcomer, models[newcomer], profile_of(newcomer, validation))
    print(f"   {question} This was for {before}. Now: {router.route(question)}")

    print(f"\n4. Answer {len(test)} unseen questions through prompt | ChatUniRouter. The first {SHOWN}:")
    chosen, scores, costs = Counter[str](), [], []
    for example, answer in zip(test, chain.batch([{"question": example.prompt} for example in test]), strict=True):
        decision = answer.response_metadata["unirouter"]
        usage: Any = answer.usage_metadata
        chosen[decision["model"]] += 1
        scores.append(re.search(example.reference, answer.text) is not None)
        costs.append(1000 * prices[decision["model"]].cost(Usage(usage["input_tokens"], usage["output_tokens"])))
        if len(scores) <= SHOWN:
            print(f"   {'right' if scores[-1] else 'wrong'}  {example.prompt}")
            print(f"          {answer.text}".replace("\n", " / "))
            print(
                f"          {decision['model']}: expected error {decision['expected_error']:.2f} ± "
                f"{decision['expected_error_std']:.2f} at cost {decision['expected_cost']:.3g}"
            )
    print(f"   All {len(test)}: {', '.join(f'{count} by {name}' for name, count in chosen.most_common())}.")

    print("\n5. The same questions, each sent to every model:")
    alone = {name: result_of(profile_of(name, test)) for name in models}
    cheapest = min(alone, key=lambda name: alone[name][1])
    rows = {
        "routed": (mean(scores), mean(costs)),
        f"always the cheapest ({cheapest})": alone[cheapest],
        f"always the best in profiling ({best})": alone[best],
        "random (mean over all models)": map(mean, zip(*alone.values(), strict=True)),
    }
    print(f"   {'':42}{'accuracy':>10}{'USD per 1,000 calls':>22}")
    for title, (accuracy, cost) in rows.items():
        print(f"   {title:42}{accuracy:>10.1%}{cost:>22.4f}")


if __name__ == "__main__":
    main()
