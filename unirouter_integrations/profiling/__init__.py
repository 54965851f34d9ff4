"""Profile a model: run it over examples, grade and price its answers, and describe it to the router."""

from unirouter_integrations.profiling.adapters import as_model
from unirouter_integrations.profiling.estimates import Estimate, estimate
from unirouter_integrations.profiling.examples import read_examples
from unirouter_integrations.profiling.prices import Price, price_of
from unirouter_integrations.profiling.records import Answer, Example, Usage
from unirouter_integrations.profiling.runner import aprofile_model, profile_model
from unirouter_integrations.profiling.scorers import Score, Scorer, as_scorer, from_evaluator, judge, similarity
from unirouter_integrations.profiling.whatif import WhatIf, what_if

__all__ = [
    "Answer",
    "Estimate",
    "Example",
    "Price",
    "Score",
    "Scorer",
    "Usage",
    "WhatIf",
    "aprofile_model",
    "as_model",
    "as_scorer",
    "estimate",
    "from_evaluator",
    "judge",
    "price_of",
    "profile_model",
    "read_examples",
    "similarity",
    "what_if",
]
