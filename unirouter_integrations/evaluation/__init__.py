"""How good a router is: quality against cost, on prompts whose outcomes are known for every model."""

from unirouter_integrations.evaluation.curves import DeferralCurve, router_arena_score
from unirouter_integrations.evaluation.difference import RouterDifference, diff
from unirouter_integrations.evaluation.methods import METHODS, Trial
from unirouter_integrations.evaluation.outcomes import (
    Outcomes,
    read_embedllm,
    read_outcomes,
    read_prompts,
    read_routerbench,
)
from unirouter_integrations.evaluation.protocol import Calibration, Comparison, Evaluation, average, evaluate, summary
from unirouter_integrations.evaluation.report import check_pictures, report, write_picture, write_report

__all__ = [
    "METHODS",
    "Calibration",
    "Comparison",
    "DeferralCurve",
    "Evaluation",
    "Outcomes",
    "RouterDifference",
    "Trial",
    "average",
    "check_pictures",
    "diff",
    "evaluate",
    "read_embedllm",
    "read_outcomes",
    "read_prompts",
    "read_routerbench",
    "report",
    "router_arena_score",
    "summary",
    "write_picture",
    "write_report",
]
