"""Escalation, for both faces: an answer that does not pass a check goes on to a model that is expected to do better."""

import logging
from typing import Any

from unirouter_integrations.decision import RoutingDecision
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.profiling.adapters import answer_of
from unirouter_integrations.profiling.records import Example
from unirouter_integrations.profiling.scorers import Scorer, as_scorer
from unirouter_integrations.router import UniRouter

REFUSED = "it refused"
REJECTED = "its answer did not pass"
_PASSED = 0.5
_CHECKS = ("confidence", "probability")
_log = logging.getLogger("unirouter_integrations")


def as_check(escalate: object) -> Scorer | None:
    """The scorer that checks answers; None for none.

    Raises:
        InvalidInputError: If it is no scorer, or one that needs a reference.
    """
    scorer = None if escalate is None else as_scorer(escalate)
    if isinstance(escalate, str) and escalate not in _CHECKS:
        msg = f"The scorer {escalate!r} needs a reference, which a call has not; escalate by {' or '.join(_CHECKS)}."
        raise InvalidInputError(msg)
    return scorer


async def passes(check: Scorer, answer: Any, prompt: str, decision: RoutingDecision) -> bool:
    """Whether an answer passes; one that cannot be graded does."""
    try:
        score = await check.grade(answer_of(answer), Example(prompt))
    except Exception as error:  # noqa: BLE001  # a check that fails must not cost an answer that is paid for
        # What it says may quote the answer.
        remedy = "a check should give True, False or a number from 0 to 1"
        _log.warning("The check of an answer of %s raised %s; %s.", decision.model, type(error).__name__, remedy)
        return True
    return score.value is None or score.value >= _PASSED


def after_check(router: UniRouter, decision: RoutingDecision) -> RoutingDecision | None:
    """The decision for the next better model after an answer that has not passed; None if there is none."""
    return router.reroute(decision, REJECTED, decision.better)


def after_refusal(router: UniRouter, decision: RoutingDecision) -> RoutingDecision | None:
    """The decision for the next best model after a refusal; None if there is none."""
    return router.reroute(decision, REFUSED)
