"""What an embedder costs and what it is worth: time per prompt beside the area under the deferral curve.

    OMP_NUM_THREADS=1 python benchmarks/embedders.py MODEL DATA... [--record]

MODEL is the name or folder of a SentenceTransformer, DATA are recorded outcomes as `unirouter evaluate` reads them.
Compared are the local embedder, the model with torch, the same exported to ONNX in 32-bit floats and in int8, and a
static model2vec model distilled from it. Times are medians for one prompt cut to 50 words, and each prompt is new. The
embedders take turns of 20 prompts, so that a slow moment of the machine affects all of them; look at the ratios.

`again` is the time of a prompt that was embedded just before. `at once` is the number of prompts per second where each
of 64 tasks awaits one, and `x` is its ratio to that of one prompt after the other. Areas are means over 20 splits and
all DATA, with 100 graded prompts per new model. Beside them is the mean difference to the local embedder on the same
splits, and its standard error.

Needs the extras onnx, onnx-export, model2vec and, for its distillation, `pip install 'model2vec[distill]'`.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _record import record

from unirouter_integrations import Embedder, LocalEmbedder, as_embedder
from unirouter_integrations.data import Outcomes, read_outcomes
from unirouter_integrations.embedding import EmbedderLike, OnnxEncoder, export_onnx
from unirouter_integrations.evaluation import evaluate

WORDS = 50
PROMPTS = 400
TURN = 20
TASKS = 64
ROUNDS = 5
SIZE = 100


@contextmanager
def encoders(name: str) -> Iterator[dict[str, Any]]:
    """Make the model in all its forms."""
    from model2vec.distill import distill_from_model
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(name, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder, "fp32"), Path(folder, "int8")
        export_onnx(name, fp32)
        export_onnx(name, int8, int8=True)
        static = distill_from_model(model[0].auto_model, model.tokenizer)
        yield {"torch": model, "onnx": OnnxEncoder(fp32), "onnx int8": OnnxEncoder(int8), "model2vec": static}


def cut(outcomes: Outcomes, words: int) -> list[str]:
    """Cut prompts to a number of words; shorter ones are left out."""
    return list(dict.fromkeys(" ".join(p.split()[:words]) for p in outcomes.prompts if len(p.split()) >= words))


def seconds(call: Callable[[], object]) -> float:
    """Measure how long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def per_prompt(embedders: dict[str, Embedder], texts: list[str]) -> dict[str, tuple[float, float]]:
    """Measure the median time of one prompt, and of the same prompt again, in milliseconds."""
    times: dict[str, list[list[float]]] = {name: [] for name in embedders}
    for start in range(0, len(texts), TURN):
        for name, embedder in embedders.items():
            calls = [partial(embedder.embed, [text]) for text in texts[start : start + TURN]]
            times[name] += [[1e3 * seconds(call), 1e3 * seconds(call)] for call in calls]
    return {name: tuple(np.median(pairs, axis=0).tolist()) for name, pairs in times.items()}


def at_once(call: Callable[[list[str]], Awaitable[Any]], texts: list[str]) -> float:
    """Measure the prompts per second where a task awaits each; the median of some rounds."""

    async def gathered(part: list[str]) -> float:
        began = time.perf_counter()
        await asyncio.gather(*(call([text]) for text in part))
        return TASKS / (time.perf_counter() - began)

    return statistics.median(asyncio.run(gathered(texts[n * TASKS : (n + 1) * TASKS])) for n in range(ROUNDS))


def areas(tables: list[Outcomes], embedder: EmbedderLike) -> Any:
    """Compute the area of each split of each table."""
    found = [evaluate(table, methods=["unirouter"], sizes=[SIZE], embedder=embedder) for table in tables]
    return np.concatenate([one.areas["unirouter"][:, 0] for one in found])


def main() -> None:
    """Print one row per embedder."""
    parser = argparse.ArgumentParser(description="Time and quality of embedders.")
    parser.add_argument("model")
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    tables = [read_outcomes(path) for path in given.data]
    texts = [text for table in tables for text in cut(table, WORDS)]
    with encoders(given.model) as models:
        local = LocalEmbedder.fit(tables[0].prompts[:2000])
        embedders = {"local": local, **{name: as_embedder(model) for name, model in models.items()}}
        for embedder in embedders.values():
            embedder.embed(["warm up"])
        times = per_prompt(embedders, texts[:PROMPTS])
        rest = texts[PROMPTS:]
        joint = {name: at_once(embedder.aembed, rest) for name, embedder in embedders.items()}
        print(f"{'':10} {'ms':>7} {'torch /':>8} {'again':>7} {'at once':>8} {'x':>5}")
        figures: dict[str, dict[str, float]] = {}
        for name, (first, again) in times.items():
            rate, faster = joint[name], times["torch"][0] / first
            figures[name] = {"ms": first, "torch / ms": faster, "again, ms": again, "at once, per second": rate}
            print(f"{name:10} {first:7.3f} {faster:8.1f} {again:7.4f} {rate:8.0f} {rate * first / 1e3:5.1f}")
        print(f"\n{'':10} {'area':>7}   above local", flush=True)
        base = areas(tables, "local")
        figures["local"]["area"] = float(base.mean())
        print(f"{'local':10} {base.mean():7.4f}", flush=True)
        for name, model in models.items():
            found = areas(tables, model)
            gains = found - base
            error = gains.std(ddof=1) / len(gains) ** 0.5
            figures[name] |= {"area": float(found.mean()), "above local": float(gains.mean()), "± of it": float(error)}
            print(f"{name:10} {found.mean():7.4f}   {gains.mean():+.4f} ± {error:.4f}", flush=True)
    record(figures)


if __name__ == "__main__":
    main()
