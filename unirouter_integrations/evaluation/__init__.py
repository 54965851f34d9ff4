"""Evaluate routers: quality against cost, on prompts whose outcomes are known for every model."""

from typing import TYPE_CHECKING, Any

from unirouter_integrations.evaluation._curves import DeferralCurve, router_arena_score

if TYPE_CHECKING:
    from unirouter_integrations.evaluation._baselines import METHODS as METHODS
    from unirouter_integrations.evaluation._baselines import Graded as Graded
    from unirouter_integrations.evaluation._baselines import Trial as Trial
    from unirouter_integrations.evaluation._protocol import Calibration as Calibration
    from unirouter_integrations.evaluation._protocol import Comparison as Comparison
    from unirouter_integrations.evaluation._protocol import Evaluation as Evaluation
    from unirouter_integrations.evaluation._protocol import average as average
    from unirouter_integrations.evaluation._protocol import evaluate as evaluate
    from unirouter_integrations.evaluation._protocol import summary as summary
    from unirouter_integrations.evaluation._report import check_pictures as check_pictures
    from unirouter_integrations.evaluation._report import report as report
    from unirouter_integrations.evaluation._report import write_picture as write_picture
    from unirouter_integrations.evaluation._report import write_report as write_report

__all__ = [
    "METHODS",
    "Calibration",
    "Comparison",
    "DeferralCurve",
    "Evaluation",
    "Graded",
    "Trial",
    "average",
    "check_pictures",
    "evaluate",
    "report",
    "router_arena_score",
    "summary",
    "write_picture",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import the protocol, the baselines and the reports when they are first used; a curve needs none of them."""
    if name in __all__:
        from unirouter_integrations.evaluation import _baselines, _protocol, _report

        return next(getattr(module, name) for module in (_baselines, _protocol, _report) if hasattr(module, name))
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
