"""How good a router is: quality against cost, on prompts whose outcomes are known for every model."""

from unirouter_integrations.evaluation.curves import DeferralCurve, router_arena_score

__all__ = ["DeferralCurve", "router_arena_score"]
