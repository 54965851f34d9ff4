"""Register a new chat model, safely and cheaply: estimate, profile under a budget, resume, look, register.

    python examples/register_model.py

needs no key and no download: the models are small local programs (see `local_models.py`). To register a real one
instead, name it with its price in USD per million tokens, input and output, and say what it may cost:

    pip install langchain langchain-openai
    python examples/register_model.py --model openai:gpt-5-nano=0.05,0.40 --max-cost 0.10
"""

import argparse
import tempfile
from pathlib import Path

from langchain_core.language_models import BaseChatModel
from local_models import local_models
from route_chat_calls import LOCAL, LOCAL_PRICES, Question, ask, read_questions
from route_chat_calls import Price as CallPrice

from unirouter_integrations import LLMProfile, UniRouter
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.profiling import Answer, Example, Price, estimate, profile_model, what_if

NEWCOMER = "scribe"
COST_WEIGHT = 0.5


def example_of(question: Question) -> Example:
    """A question as an example; how it is graded is in its metadata."""
    return Example(question.prompt, question.reference, {"grade": question.grade})


def grade(answer: Answer, example: Example) -> bool:
    """Whether an answer is right: any function of the two can be a scorer."""
    question = Question("", "", example.prompt, example.reference, example.metadata["grade"])
    return question.loss(answer.text) == 0


def known_router(models: dict[str, BaseChatModel]) -> UniRouter:
    """A router over the local models but one, fitted and profiled on their graded answers."""
    fit = read_questions("fit")
    prompts = [question.prompt for question in fit]
    outcomes = {name: ask(model, CallPrice(*LOCAL_PRICES[name]), fit) for name, model in models.items()}
    router = UniRouter.fit(prompts, outcomes={name: outcome.losses for name, outcome in outcomes.items()})
    for name, outcome in outcomes.items():
        router.register(router.profile(name, prompts, outcome.losses, cost=outcome.costs))
    router.cost_weight = COST_WEIGHT
    return router


def chosen_model(named: str | None) -> tuple[str, BaseChatModel, Price]:
    """The newcomer and its price: the one that was named, or the local one."""
    if named is None:
        return NEWCOMER, local_models()[NEWCOMER], Price(*LOCAL_PRICES[NEWCOMER])
    from langchain.chat_models import init_chat_model

    name, _, price = named.rpartition("=")
    try:
        read, written = (float(number) for number in price.split(","))
    except ValueError:
        msg = f"--model {named}: give its price in USD per million tokens, like openai:gpt-5-nano=0.05,0.40"
        raise SystemExit(msg) from None
    return name, init_chat_model(name), Price(read, written)


def facts(profile: LLMProfile) -> str:
    """What a run says of itself."""
    said = profile.metadata
    stopped = f"; stopped by {said['stopped_by']}" if said["stopped_by"] else ""
    return f"{said['answers']} answers, {1 - profile.mean_error:.1%} right, {said['answers_usd']:.6f} USD{stopped}"


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Profile a chat model and register it.")
    parser.add_argument("--model", metavar="PROVIDER:NAME=IN,OUT", help="a real chat model and its price")
    parser.add_argument("--max-cost", type=float, default=0.01, help="USD that the run may spend")
    parser.add_argument("--journal", type=Path, help="where to keep the answers; in a temporary folder by default")
    arguments = parser.parse_args()
    name, model, price = chosen_model(arguments.model)
    print(LOCAL if arguments.model is None else "LIVE: calls of this model go to its provider and cost money.\n")
    known: dict[str, BaseChatModel] = {key: known for key, known in local_models().items() if key != NEWCOMER}
    router = known_router(known)
    llm = ChatUniRouter(router=router, models=known)
    examples = [example_of(question) for question in read_questions("validation")]
    with tempfile.TemporaryDirectory() as folder:
        journal = arguments.journal or Path(folder) / "profiles.db"

        print(f"1. What would it take to profile {name} on {len(examples)} examples?")
        print(f"   {estimate(name, model, examples, router, scorer=grade, price=price, journal=journal)}")

        print("\n2. Profile it, but first with a tenth of the money, as if the run had been cut short.")
        first = profile_model(
            name, model, examples, router, scorer=grade, price=price, journal=journal, max_cost=arguments.max_cost / 10
        )
        print(f"   {facts(first)}")
        print(f"   {estimate(name, model, examples, router, scorer=grade, price=price, journal=journal)}")

        print("\n3. Go on from there: what is in the journal is not asked again.")
        profile = profile_model(
            name, model, examples, router, scorer=grade, price=price, journal=journal, max_cost=arguments.max_cost
        )
        print(f"   {facts(profile)}")

        print("\n4. Grade the same answers by another scorer. It calls nothing.")
        strict = profile_model(name, model, examples, router, scorer="exact", price=price, journal=journal, max_cost=0)
        print(f"   exact: {1 - strict.mean_error:.1%} right")

    print("\n5. What would change if it were registered?")
    print("\n".join(f"   {line}" for line in str(what_if(router, profile)).splitlines()))

    print("\n6. Register it: every chain that holds the chat model may choose it from now on.")
    llm.register(name, model, profile)
    question = "Write a four-line poem about rivers."
    print(f"   {router.route(question)}")
    print(f"   {llm.invoke(question).text}".replace("\n", " / "))


if __name__ == "__main__":
    main()
