"""What an answer is, what it costs and what it is worth.

An answer is graded from 0 (wrong) to 1 (right) by a scorer: one with a name ("exact", "choice", "number", "contains",
"regex", "json", "tool_calls", "confidence", "probability"), one that is made by `similarity`, `judge` or
`from_evaluator`, or any callable. `as_scorer` takes them all.
"""

from unirouter_integrations.grading._judges import from_evaluator, judge, similarity
from unirouter_integrations.grading._models import AdaptedModel, ModelLike, as_model
from unirouter_integrations.grading._prices import Price, price_of
from unirouter_integrations.grading._records import Answer, Example, Score, Scorer, Usage
from unirouter_integrations.grading._scorers import ScorerLike, as_scorer

__all__ = [
    "AdaptedModel",
    "Answer",
    "Example",
    "ModelLike",
    "Price",
    "Score",
    "Scorer",
    "ScorerLike",
    "Usage",
    "as_model",
    "as_scorer",
    "from_evaluator",
    "judge",
    "price_of",
    "similarity",
]
