"""Recorded outcomes and prompts, read from the files and data frames people have."""

from unirouter_integrations.data._outcomes import Outcomes, as_outcomes
from unirouter_integrations.data._readers import read_embedllm, read_outcomes, read_prompts, read_routerbench

__all__ = [
    "Outcomes",
    "as_outcomes",
    "read_embedllm",
    "read_outcomes",
    "read_prompts",
    "read_routerbench",
]
