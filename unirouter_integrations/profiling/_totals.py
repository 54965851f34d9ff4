"""The sums over the examples of a run, from which its profile is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from unirouter_integrations.core import LLMProfile, PromptClusters
from unirouter_integrations.core._profiles import Floats
from unirouter_integrations.grading import Answer, Usage
from unirouter_integrations.grading._models import total_usage

_CALLS_PER_COST = 1000  # the cost of a profile is in USD per 1,000 calls


class Outcome(NamedTuple):
    """The result of one example.

    Attributes:
        answer: The answer of the model; None if there is none.
        failed: Whether the call failed for good.
        score: From 0 (wrong) to 1 (right); NaN if there is no grade.
        cost: The cost of the answer, in USD.
        judge_cost: The cost of grading it, in USD.
    """

    answer: Answer | None = None
    failed: bool = False
    score: float = math.nan
    cost: float = 0.0
    judge_cost: float = 0.0


NOT_ASKED = Outcome()
"""The outcome of an example whose call was not made, because the run was stopped."""


class Totals:
    """The sums over the examples that are done.

    Args:
        name: The name of the model.
        clusters: The clusters of the router.
    """

    def __init__(self, name: str, clusters: PromptClusters) -> None:
        self._name = name
        self._clusters = clusters.fingerprint
        self._graded: LLMProfile | None = None
        self._failed_as_wrong, self._answered, self._seconds = np.zeros((3, len(clusters)))
        self.answers = self.failures = self.ungraded = 0
        self.cost = self.judge_cost = 0.0
        self.tokens = Usage()

    def add(self, phi: Floats, outcomes: Sequence[Outcome]) -> None:
        """Add the outcomes of a block of n examples whose memberships are `phi`, `(n, K)`."""
        answered = np.array([outcome.answer is not None for outcome in outcomes])
        failed = np.array([outcome.failed for outcome in outcomes])
        scores = np.array([outcome.score for outcome in outcomes])
        graded = answered & ~np.isnan(scores)
        if graded.any():
            costs = np.array([outcome.cost for outcome in outcomes]) * _CALLS_PER_COST
            block = LLMProfile.from_scores(
                self._name, phi[graded], scores[graded], cost=costs[graded], clusters=self._clusters
            )
            self._graded = block if self._graded is None else self._graded + block
        self._failed_as_wrong += phi[failed & (scores == 0)].sum(axis=0)
        self._answered += phi[answered].sum(axis=0)
        self.answers += int(answered.sum())
        self.failures += int(failed.sum())
        self.ungraded += int((answered & ~graded).sum())
        for outcome, memberships in zip(outcomes, phi, strict=True):
            if outcome.answer is not None:
                self._seconds += outcome.answer.seconds * memberships
                self.cost += outcome.cost
                self.judge_cost += outcome.judge_cost
                self.tokens = total_usage([self.tokens, outcome.answer.usage or Usage()])

    def profile(self) -> LLMProfile | None:
        """Return the profile so far; None if no answer is graded."""
        if self._graded is None or not self._failed_as_wrong.any():
            return self._graded
        # They are added here, with the cost of the answers, because a failed call does not show what a call costs.
        return self._graded + replace(self._graded, counts=self._failed_as_wrong, losses=self._failed_as_wrong)

    @property
    def seconds_per_answer(self) -> float:
        """The mean time of an answer, in seconds."""
        return float(self._seconds.sum() / self._answered.sum())

    @property
    def seconds_per_cluster(self) -> list[float | None]:
        """The mean time of an answer in each cluster, in seconds; None for a cluster without answers."""
        pairs = zip(self._seconds.tolist(), self._answered.tolist(), strict=True)
        return [seconds / answers if answers else None for seconds, answers in pairs]
