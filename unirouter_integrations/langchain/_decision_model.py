"""`UniRouteDecisionModel`: the router as the classifier of LangChain's own `ModelRouterMiddleware`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from langchain_core.messages import BaseMessage
from pydantic import ConfigDict
from typing_extensions import override

from unirouter_integrations._checks import shown
from unirouter_integrations._router import UniRouter
from unirouter_integrations.core import RoutingDecision
from unirouter_integrations.core._decision import best
from unirouter_integrations.errors import InvalidInputError, MissingDependencyError
from unirouter_integrations.langchain._messages import judged_text

try:
    from langchain_core.decisions import (  # type: ignore[import-not-found,unused-ignore]
        BaseDecisionModel,
        Choice,
        ChoiceAnswer,
        ClassifierResponse,
    )
except ImportError as error:
    from langchain_core import __version__ as installed

    msg = (
        f"UniRouteDecisionModel needs langchain-core 1.8 or newer, but {installed} is installed: "
        "pip install -U 'langchain-core>=1.8'."
    )
    raise MissingDependencyError(msg) from error

_DRAWS = 2000  # of the objectives, from which the probabilities are counted


class UniRouteDecisionModel(BaseDecisionModel):  # type: ignore[misc,unused-ignore]  # Any where core is older
    """Answers a `Choice` among models by the least expected error plus weighted cost, without calling a model.

    The labels of the choice are names of registered models. Their descriptions are not read, because the router has
    measured the models. In an agent without `ModelRouterMiddleware`, use `UniRouterMiddleware`: it lets models come and
    go and keeps plain JSON in the state.

    The answer's `probabilities` are those of each model to have the least objective, taking the errors of the estimates
    as normal and independent; `confidence` is the probability of the chosen one.

    Attributes:
        router: The fitted router.
        cost_weight: lambda of these decisions; None for the router's.

    Example:
        ```python
        choices = {name: ModelChoice(model=model, criteria=None) for name, model in models.items()}
        ModelRouterMiddleware(choices=choices, instructions="-", classifier=UniRouteDecisionModel(router=router))
        ```
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: str = "unirouter"
    router: UniRouter
    cost_weight: float | None = None

    @property
    def _provider(self) -> str:
        return "unirouter"

    @override
    def _classify(self, state: Any, questions: dict[str, Any]) -> ClassifierResponse:
        text, labels = _text(state), self._labels(questions)
        return self._response(
            {key: self.router.route(text, cost_weight=self.cost_weight, among=among) for key, among in labels.items()}
        )

    @override
    async def _aclassify(self, state: Any, questions: dict[str, Any]) -> ClassifierResponse:
        text, labels = _text(state), self._labels(questions)
        return self._response(
            {
                key: await self.router.aroute(text, cost_weight=self.cost_weight, among=among)
                for key, among in labels.items()
            }
        )

    def _labels(self, questions: dict[str, Any]) -> dict[str, list[str]]:
        for key, question in questions.items():
            if not isinstance(question, Choice):
                msg = f"The question {shown(key)} is a {type(question).__name__}; a router answers a Choice of models."
                raise InvalidInputError(msg)
        return {key: list(question.criteria) for key, question in questions.items()}

    def _response(self, decisions: dict[str, RoutingDecision]) -> ClassifierResponse:
        return ClassifierResponse(model=self.model, answers={key: _answer(each) for key, each in decisions.items()})


def _answer(decision: RoutingDecision) -> ChoiceAnswer:
    ranking = decision.ranking
    objectives, stds = np.array([(one.objective, one.expected_error_std) for one in ranking]).T
    draws = objectives + stds * np.random.default_rng(0).standard_normal((_DRAWS, len(ranking)))
    shares = np.bincount(best(draws, np.zeros_like(draws), 0.0), minlength=len(ranking)) / _DRAWS
    return ChoiceAnswer(
        type="choice",
        choice=decision.model,
        probabilities={one.model: share for one, share in zip(ranking, shares.tolist(), strict=True)},
        confidence=float(shares[0]),
    )


def _text(state: object) -> str:
    messages = [state] if isinstance(state, BaseMessage) else state
    if isinstance(messages, str):
        return messages
    if isinstance(messages, Sequence) and all(isinstance(message, BaseMessage) for message in messages):
        return judged_text(messages, "recent_human")
    msg = f"The state should be a text, a message or a list of messages, but is {type(state).__name__}."
    raise InvalidInputError(msg)
