"""Register a new chat model, safely and cheaply: estimate, profile under a budget, resume, compare, register.

    python examples/register_model.py

needs no key and no download: the models are small local programs (see `local_models.py`). To register a real one
instead, name it with its price in USD per million tokens, input and output, and limit what it may cost:

    pip install langchain langchain-openai
    python examples/register_model.py --model openai:gpt-5-nano=0.05,0.40 --max-cost 0.10
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from local_models import ABOUT, PRICES, local_models
from route_chat_calls import LIVE, examples_of, named_model

from unirouter_integrations import Example, LLMProfile, UniRouter, profile_model
from unirouter_integrations.compare import what_if
from unirouter_integrations.grading import Answer
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.profiling import estimate_cost

NEWCOMER = "scribe"


def is_brief(answer: Answer, example: Example) -> bool:
    """Any function of an answer and its example can be a scorer."""
    return len(answer.text) <= len(example.prompt)


def summary(profile: LLMProfile) -> str:
    """What a run found and what it cost."""
    run = profile.metadata
    stopped = f"; stopped by {run['stopped_by']}" if run["stopped_by"] else ""
    return f"{run['answers']} answers, {1 - profile.mean_error:.1%} right, {run['answers_usd']:.6f} USD{stopped}"


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Profile a chat model and register it.")
    parser.add_argument("--model", type=named_model, metavar="PROVIDER:NAME=IN,OUT", help="a chat model and its price")
    parser.add_argument("--max-cost", type=float, default=0.01, help="USD that the run may spend")
    parser.add_argument("--journal", type=Path, help="where to keep the answers; in a temporary folder by default")
    arguments = parser.parse_args()
    known = local_models()
    local = (NEWCOMER, known.pop(NEWCOMER), PRICES[NEWCOMER])
    name, model, price = arguments.model or local
    print(LIVE if arguments.model else ABOUT)

    fit, validation = examples_of("fit"), examples_of("validation")
    router = UniRouter.fit([example.prompt for example in fit], estimator="laplace")
    for each in known:
        router.register(profile_model(each, known[each], fit, router, scorer="regex", price=PRICES[each]))
    router.cost_weight = 1.0  # a wrong answer is as bad as 1 USD per 1,000 calls, 0.1 cents
    llm = ChatUniRouter(router=router, models=known)

    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"price": price, "journal": arguments.journal or Path(folder) / "profiles.db"}

        print(f"1. What would it take to profile {name} on {len(validation)} examples?")
        print(f"   {estimate_cost(name, model, validation, router, scorer='regex', **settings)}")

        print("\n2. Profile it, but first with a tenth of the money, as if the run had been cut short.")
        budget = arguments.max_cost / 10
        print(
            f"   {summary(profile_model(name, model, validation, router, scorer='regex', max_cost=budget, **settings))}"
        )
        print(f"   {estimate_cost(name, model, validation, router, scorer='regex', **settings)}")

        print("\n3. Continue: answers in the journal are not asked for again.")
        profile = profile_model(
            name, model, validation, router, scorer="regex", max_cost=arguments.max_cost, **settings
        )
        print(f"   {summary(profile)}")

        print("\n4. Grade the same answers with another scorer. It calls no model.")
        brief = profile_model(name, model, validation, router, scorer=is_brief, max_cost=0, **settings)
        print(f"   {1 - brief.mean_error:.1%} are no longer than the question")

    print("\n5. What would change if it were registered?")
    print(f"   {what_if(router, profile)}".replace("\n", "\n   "))

    print("\n6. Register it: every chain that holds the chat model may choose it from now on.")
    llm.register(name, model, profile)
    question = "Write a four-line poem about rivers."
    print(f"   {router.route(question)}")
    print(f"   {llm.invoke(question).text}".replace("\n", " / "))


if __name__ == "__main__":
    main()
