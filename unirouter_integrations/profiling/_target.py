"""What is profiled: a model, its price, and the scorer of its answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from unirouter_integrations._checks import check_name, shown
from unirouter_integrations._router import UniRouter
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.grading import (
    AdaptedModel,
    Answer,
    Example,
    ModelLike,
    Price,
    Scorer,
    ScorerLike,
    Usage,
    as_model,
    as_scorer,
    price_of,
)
from unirouter_integrations.grading._models import is_same_model, model_name
from unirouter_integrations.grading._records import as_example
from unirouter_integrations.profiling._journal import Keys, keys_of
from unirouter_integrations.serving._capabilities import CHARACTERS_PER_TOKEN


@dataclass(frozen=True)
class ProfilingTarget:
    """A model with its name in the router, the scorer of its answers, and the price of its tokens."""

    name: str
    model: AdaptedModel
    scorer: Scorer
    price: Price

    @classmethod
    def from_arguments(cls, name: str, model: ModelLike, scorer: ScorerLike, price: Price | None) -> ProfilingTarget:
        """Build a target from the arguments of `profile_model`."""
        check_name(name, "The name of a model")
        if price is not None and not isinstance(price, Price):
            msg = f"price should be Price(input, output), in USD per million tokens, but is {shown(price)}."
            raise InvalidInputError(msg)
        grader = as_scorer(scorer)
        if grader.model is not None and is_same_model(grader.model, model):
            msg = f"{name!r} cannot be its own judge, because it would judge itself too well. Use another model."
            raise InvalidInputError(msg)
        return cls(name, as_model(model), grader, price_of(model_name(model)) if price is None else price)

    def keys(self, example: Example) -> Keys:
        """Return the keys of its answer to an example in the journal."""
        return keys_of(self.name, self.model.settings, self.scorer.name, example)

    def cost(self, answer: Answer) -> float:
        """Return the cost of an answer, in USD.

        Raises:
            InvalidInputError: If the model does not report its tokens and is not free.
        """
        if answer.usage is not None:
            return self.price.cost(answer.usage)
        if self.price == Price(0, 0):
            return 0.0
        msg = (
            f"The model {self.name!r} does not report how many tokens it used, so its answers cannot be priced. Return "
            "an Answer with its usage from a callable, or, if it is free, give price=Price(0, 0)."
        )
        raise InvalidInputError(msg)

    def cost_bounds(self, example: Example) -> tuple[float, float]:
        """Return about the lowest cost of a call, and the highest one that the model's output limit allows, in USD.

        Without an output limit both are the lowest cost, that of the prompt.
        """
        read = len(example.prompt) // CHARACTERS_PER_TOKEN
        low, high = (self.price.cost(Usage(read, written)) for written in (0, self.model.max_output_tokens or 0))
        return low, high


def most_informative_examples(
    examples: Iterable[Example | Mapping[str, Any]], n: int, router: UniRouter
) -> list[Example]:
    """Return the n examples that say most about a new model, see `UniRouter.choose_validation`."""
    candidates = list(map(as_example, examples))
    return [candidates[index] for index in router.choose_validation([each.prompt for each in candidates], n)]
