"""Shared fixtures: a toy embedder whose clusters are known, and a router over them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

from unirouter_integrations import UniRouter

settings.register_profile("untimed", deadline=None)  # nothing is timed in a test
settings.load_profile("untimed")

KINDS = ("sum", "poem", "date")


def toy_embed(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """One axis per kind of prompt, and a little of the length, so that prompts of a kind differ but stay together."""
    return np.array([[10.0 * (kind in text) for kind in KINDS] + [len(text) % 7] for text in texts])


TOY_PROMPTS = [f"{kind} number {'i' * i}" for i in range(20) for kind in KINDS]


def toy_losses(*wrong: str) -> list[float]:
    """1 on the prompts of these kinds, 0 on the others."""
    return [float(any(kind in prompt for kind in wrong)) for prompt in TOY_PROMPTS]


@pytest.fixture
def router() -> UniRouter:
    """Three clusters (sum, poem, date), two specialists and a dear generalist, under the paper's estimator."""
    router = UniRouter.fit(TOY_PROMPTS, embedder=toy_embed, n_clusters=3, estimator="mean")
    router.register(router.profile("abacus", TOY_PROMPTS, toy_losses("poem", "date"), cost=1))
    router.register(router.profile("poet", TOY_PROMPTS, toy_losses("sum", "date"), cost=2))
    router.register(router.profile("oracle", TOY_PROMPTS, toy_losses(), cost=10))
    return router
