"""What a conversation costs if it is routed per prompt, stays with one model, or moves only for more than its cache.

    OMP_NUM_THREADS=1 python benchmarks/sticky_conversations.py DATA [--record]

DATA is a folder with `prompts.parquet` (prompt_id, prompt, task), `outcomes.parquet` (prompt_id, model, score,
prompt_tokens, completion_tokens) and `models.json` (models, their prices per million tokens).

RECORDED are scores, tokens and prices. SIMULATED are the conversations (30 questions; the next one is of the same task
with probability 0.8; each goes to a model with all previous messages and a system message) and the prompt caches (that
of a model holds the conversation up to its own last answer, for five turns, and is read at a tenth of the price). Each
seed has its own prompts for fitting, profiling and conversations. The routers know the scores of 3/4 of the models on
1,000 prompts, and all models are profiled on 200. Spread is the standard deviation over the seeds.

A cost weight means different things in the three regimes, because only the third one counts the history. So the second
table compares the accuracy that they reach at the same cost.
"""

import json
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from _record import record
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.ai import UsageMetadata

from unirouter_integrations import UniRouter
from unirouter_integrations.grading import Price, Usage
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.serving import ModelRegistry
from unirouter_integrations.testing import ChatFake

SEEDS, CONVERSATIONS, TURNS = 5, 40, 30
SYSTEM, SAME_TASK, KEPT_FOR, CACHED = 2000, 0.8, 5, 0.1
COST_WEIGHTS = (0, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # error per USD per 1,000 calls
BUDGETS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.09)  # USD per conversation
REGIMES: dict[str, Any] = {"per prompt": "tools", "one model": "thread", "cache-aware": "cache"}


class Call(NamedTuple):
    """The recorded call of one model on one prompt."""

    score: float
    read: int
    written: int


class Data(NamedTuple):
    """Recorded outcomes: per prompt its text and task, and per model and prompt the call."""

    texts: dict[str, str]
    tasks: dict[str, str]
    calls: dict[str, dict[str, Call]]
    prices: dict[str, Price]


def read(folder: Path) -> Data:
    """Read the instruction-tuned models that have nearly all prompts, and the prompts that all of these have."""
    prompts = pq.read_table(folder / "prompts.parquet").to_pylist()
    described = json.loads((folder / "models.json").read_text())["models"]
    calls: dict[str, dict[str, Call]] = defaultdict(dict)
    for row in pq.read_table(folder / "outcomes.parquet").to_pylist():
        found = Call(row["score"], row["prompt_tokens"], row["completion_tokens"])
        calls[row["model"]][row["prompt_id"]] = found
    taken = {
        name: each
        for name, each in calls.items()
        if described[name].get("kind", "instruct") == "instruct" and len(each) > 0.95 * len(prompts)
    }
    common = set.intersection(*(set(each) for each in taken.values()))
    prices = {}
    for name in taken:
        per_input, per_output = (float(described[name][f"price_{way}_per_mtok"]) for way in ("in", "out"))
        prices[name] = Price(per_input, per_output, cached_input=CACHED * per_input)
    return Data(
        {row["prompt_id"]: row["prompt"] for row in prompts if row["prompt_id"] in common},
        {row["prompt_id"]: row["task"] for row in prompts},
        taken,
        prices,
    )


def fitted(data: Data, fit: list[str], profile: list[str], rng: np.random.Generator) -> UniRouter:
    """Fit a router that knows some models' scores, and profile all models."""
    known = rng.permutation(sorted(data.calls))[: len(data.calls) * 3 // 4].tolist()
    scores = {name: [data.calls[name][prompt].score for prompt in fit] for name in known}
    router = UniRouter.fit([data.texts[prompt] for prompt in fit], scores=scores)
    texts = [data.texts[prompt] for prompt in profile]
    for name, calls in data.calls.items():
        graded = [calls[prompt] for prompt in profile]
        costs = [1000 * data.prices[name].cost(Usage(call.read, call.written)) for call in graded]
        router.register(router.profile(name, texts, [call.score for call in graded], cost=costs))
    return router


def conversation(data: Data, prompts: list[str], rng: np.random.Generator) -> list[str]:
    """Draw thirty questions that seldom change the task."""
    by_task: dict[str, list[str]] = defaultdict(list)
    for prompt in prompts:
        by_task[data.tasks[prompt]].append(prompt)
    tasks = sorted(by_task)
    task, asked = tasks[rng.integers(len(tasks))], []
    for _ in range(TURNS):
        if rng.random() > SAME_TASK:
            task = tasks[rng.integers(len(tasks))]
        asked.append(by_task[task][rng.integers(len(by_task[task]))])
    return asked


def held(data: Data, llm: ChatUniRouter, asked: list[str]) -> tuple[float, float, int]:
    """Hold one conversation; return its mean score, its cost in USD and its number of switches."""
    deciding, messages = llm.decide(), list[BaseMessage]([SystemMessage("")])
    kept: dict[str, tuple[int, int]] = {}  # for each model the turn of its last answer, and the tokens up to it
    before, score, spent, chosen = SYSTEM, 0.0, 0.0, []
    for turn, prompt in enumerate(asked):
        messages.append(HumanMessage(data.texts[prompt]))
        name = deciding.invoke(messages).model
        call = data.calls[name][prompt]
        when, tokens = kept.get(name, (-KEPT_FOR - 1, 0))
        cached, whole = tokens if turn - when <= KEPT_FOR else 0, before + call.read
        before = whole + call.written
        spent += data.prices[name].cost(Usage(whole, call.written, cached))
        score += call.score
        kept[name] = turn, before
        usage = UsageMetadata(
            input_tokens=whole,
            output_tokens=call.written,
            total_tokens=before,
            input_token_details={"cache_read": cached},
        )
        messages.append(AIMessage("", usage_metadata=usage, response_metadata={"unirouter": {"model": name}}))
        chosen.append(name)
    return score / len(asked), spent, sum(a != b for a, b in pairwise(chosen))


def main() -> None:
    """Print the table."""
    data = read(Path(sys.argv[1]))
    models: dict[str, Any] = {name: ChatFake(model=name) for name in data.calls}
    found: dict[tuple[float, str], list[Any]] = defaultdict(list)
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        shuffled = rng.permutation(sorted(data.texts)).tolist()
        router = fitted(data, shuffled[:1000], shuffled[1000:1200], rng)
        conversations = [conversation(data, shuffled[1200:], rng) for _ in range(CONVERSATIONS)]
        for weight in COST_WEIGHTS:
            for regime, sticky in REGIMES.items():
                llm = ChatUniRouter(
                    router=router, models=ModelRegistry(models, prices=data.prices), sticky=sticky, cost_weight=weight
                )
                found[weight, regime].append(np.mean([held(data, llm, asked) for asked in conversations], axis=0))
    print(f"{len(models)} models, {SEEDS} seeds of {CONVERSATIONS} conversations of {TURNS} questions")
    print("cost weight   regime        accuracy         USD per conversation   switches")
    figures = {}
    for (weight, regime), rows in found.items():
        (right, usd, moves), spread = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1)
        figures[f"{regime}, cost weight {weight:g}"] = {"accuracy": right, "USD": usd, "switches": moves}
        spent = f"{usd:.4f} ± {spread[1]:.4f}"
        print(f"{weight:<13g} {regime:13} {right:.3f} ± {spread[0]:.3f}    {spent}        {moves:4.1f}")
    print("\nUSD per conversation   accuracy (between the cost weights, by straight lines): " + ", ".join(REGIMES))
    for budget in BUDGETS:
        reached = np.array([[accuracy_at(budget, regime, seed, found) for regime in REGIMES] for seed in range(SEEDS)])
        columns = zip(reached.mean(axis=0), reached.std(axis=0, ddof=1), strict=True)
        print(f"{budget:<22g} " + "   ".join(f"{mean:.3f} ± {spread:.3f}" for mean, spread in columns))
    record(figures)


def accuracy_at(budget: float, regime: str, seed: int, found: dict[tuple[float, str], list[Any]]) -> float:
    """Compute the accuracy of one seed's conversations under a regime at this mean cost."""
    points = sorted((rows[seed][1], rows[seed][0]) for (_, name), rows in found.items() if name == regime)
    spent, right = zip(*points, strict=True)
    return float(np.interp(budget, spent, right))


if __name__ == "__main__":
    main()
