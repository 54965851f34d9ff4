"""Profile a model: run it over examples, grade and price its answers, and describe it to the router."""

from unirouter_integrations.profiling.prices import Price
from unirouter_integrations.profiling.records import Answer, Example, Usage

__all__ = ["Answer", "Example", "Price", "Usage"]
