"""What a conversation should be judged by, so that follow-ups keep their subject and new questions lose little.

    OMP_NUM_THREADS=1 python benchmarks/conversations.py DATA... [--record]

DATA are folders with `prompts.parquet` (with a `task`) and `outcomes.parquet`, as `read_outcomes` reads them.

RECORDED are the questions, all scores and costs. MADE are the conversations. In the first kind, a question is followed
by one to four follow-ups without a subject of their own (FOLLOW_UPS). A follow-up is "kept" if it goes to the model of
its question. In the others, a question comes after what was asked before: see SITUATIONS; short questions have fewer
than 64 characters. "Moved" are the questions that go to another model than when they are judged alone. "Score" is the
mean score of questions at the same cost, minus that of judging them alone, in percentage points, as the mean of five
budgets. ASSUMED is the score of follow-ups, which nobody recorded: it is that of a model on their question. A question
that begins a conversation is the same text in all forms.

A form turns the texts of the human turns into the text to judge by, or into several with weights, whose vectors are
added. The form of the package, `recent_human`, was chosen on LLMRouter, the only set with many short questions: it
keeps about 95% of the follow-ups, at the least loss for questions. Each seed has its own prompts for fitting (with the
scores of 3/4 of the models), for profiling (of all models) and for questions. The cost weight spends half of what the
best single model costs. Spread is the standard deviation over the seeds.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from _record import record

from unirouter_integrations import UniRouter
from unirouter_integrations.core._profiles import Floats
from unirouter_integrations.data import Outcomes, read_outcomes
from unirouter_integrations.embedding import Vectors
from unirouter_integrations.embedding._base import unit
from unirouter_integrations.serving._question import recent

SEEDS, FITTED, PROFILED, QUESTIONS, FOLLOWED = 5, 1000, 300, 1000, 300
BUDGET, BUDGETS = 0.5, (0.2, 0.35, 0.5, 0.65, 0.8)  # shares of the best single model's cost
WEIGHTS = (0.0, *np.geomspace(1e-3, 1e3, 120))  # errors that a call of the best single model may be worth
FOLLOW_UPS = (
    "continue",
    "and in words?",
    "why?",
    "Are you sure?",
    "now the same for 2019",
    "Please explain the second step.",
    "shorter, please",
    "Can you give me an example?",
    "and the other one?",
    "Thanks! And what if it were twice as much?",
    "go on",
    "That is not what I meant, try again.",
    "in German, please",
    "ok, and the next one?",
    "Could you put that into a table for me?",
    "hmm",
    "What would change if it were the other way round?",
    "explain it to me like I'm five",
    "yes",
    "Which of them is the best, and why do you think so?",
    "no, the first one",
    "Write it again, but leave out everything that is not needed.",
    "what else?",
    "Can you check that again?",
    "Und warum ist das so?",
    "Bitte noch einmal, aber kürzer.",
    "Pourquoi ?",
    "Peux-tu l'expliquer plus simplement ?",
    "¿Y si fuera al revés?",
    "もう少し詳しく説明してください",
)
SITUATIONS = ("another", "another, 2 follow-ups", "3 others", "the same", "4 others, all short")
SHORT, FEWEST = 64, 50  # characters of a short question; questions that a situation needs

Form = Callable[[Sequence[str]], list[tuple[str, float]]]
"""From the human turns, oldest first, to the texts to judge by, with weights."""


class Asked(NamedTuple):
    """Conversations, and the rows of the questions whose scores count."""

    turns: list[list[str]]
    rows: npt.NDArray[np.intp]


def last(count: int) -> Form:
    """The last turns."""
    return lambda turns: [("\n".join(turns[-count:]), 1)]


def back(
    each: float, together: float = np.inf, *, share: float = 0.0, alone: bool = False, size: Callable[[str], int] = len
) -> Form:
    """The turns from the last one on until one of them, or all together, have some size.

    Args:
        each: The size of one.
        together: The size of all.
        share: Turns smaller than this share of the first one (or of `each`, if that is less) are left out.
        alone: Whether all but the first one are left out.
        size: Of a text.
    """

    def form(turns: Sequence[str]) -> list[tuple[str, float]]:
        first = len(turns) - 1
        while first and size(turns[first]) < each and sum(map(size, turns[first:])) < together:
            first -= 1
        enough = share and share * min(size(turns[first]), each)
        taken = turns[first : first + 1] if alone else [text for text in turns[first:] if size(text) >= enough]
        return [("\n".join(taken), 1)]

    return form


def weighted(decay: float) -> Form:
    """Every turn by itself, each weighing less than the one after it."""
    return lambda turns: [(text, decay**age) for age, text in enumerate(reversed(turns))]


def words(text: str) -> int:
    """How many words a text has."""
    return len(text.split())


FORMS: dict[str, Form] = {
    "last turn": last(1),
    "last 2 turns": last(2),
    "last 3 turns": last(3),
    "all turns": last(10**9),
    "weighted, 1/2": weighted(1 / 2),
    **{f"until {size} characters": back(np.inf, size) for size in (50, 100, 150)},
    "until 20 words": back(np.inf, 20, size=words),
    **{f"back to {size} characters": back(size) for size in (40, 50, 64, 100)},
    "back to 12 words": back(12, size=words),
    "back to 64, at most 192": back(64, 192),
    "the same, without 1/2": back(64, 192, share=1 / 2),
    "recent_human": lambda turns: [(recent(reversed(turns)), 1)],
    "the same, from 56 on": back(56, 192, share=3 / 4),
    "the same, from 80 on": back(80, 240, share=3 / 4),
    "the same, at most 128": back(64, 128, share=3 / 4),
    "only that of 50 characters": back(50, alone=True),
    "only that of 64 characters": back(64, alone=True),
}


class Scene(NamedTuple):
    """What one seed works with: rows of the outcomes, their tasks, the costs of models, the router, known vectors."""

    outcomes: Outcomes
    tasks: list[str]
    rows: npt.NDArray[np.intp]
    costs: Floats
    top: float
    weight: float
    router: UniRouter
    known: dict[str, Vectors]

    def errors(self, form: Form, asked: Asked) -> Floats:
        """The expected errors of the models at the last turn of each conversation."""
        judged = [form(turns) for turns in asked.turns]
        new = list(dict.fromkeys(text for parts in judged for text, _ in parts if text not in self.known))
        if new:
            self.known.update(zip(new, self.router.embed(new), strict=True))
        sums = [sum(weight * self.known[text] for text, weight in parts) for parts in judged]
        return self.router.expected_errors(vectors=unit(np.array(sums, np.float32)), among=self.outcomes.models)

    def chosen(self, errors: Floats, weight: float | None = None) -> npt.NDArray[np.intp]:
        """The models that have the least objective."""
        return np.asarray((errors + (self.weight if weight is None else weight) * self.costs).argmin(axis=1))

    def score(self, errors: Floats, asked: Asked) -> float:
        """The mean score of the questions over the budgets."""
        points = []
        for worth in WEIGHTS:
            chosen = self.chosen(errors, worth / self.top)
            points.append((self.costs[chosen].mean(), self.outcomes.scores[asked.rows, chosen].mean()))
        costs, scores = np.array(sorted(points)).T
        return 100 * float(np.mean([np.interp(share * self.top, costs, scores) for share in BUDGETS]))


def prepared(outcomes: Outcomes, tasks: list[str], seed: int) -> Scene:
    """Select prompts, and fit and profile a router."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(outcomes.prompts))
    fitted, profiled, rows = np.split(order, np.cumsum([FITTED, PROFILED, QUESTIONS]))[:3]
    known = rng.permutation(len(outcomes.models))[: len(outcomes.models) * 3 // 4]
    scores = {outcomes.models[column]: outcomes.scores[fitted, column] for column in known}
    router = UniRouter.fit([outcomes.prompts[row] for row in fitted], scores=scores, seed=seed)
    vectors = router.embed([outcomes.prompts[row] for row in profiled])
    costs = outcomes.costs[profiled].mean(axis=0)
    for name, column, cost in zip(outcomes.models, outcomes.scores[profiled].T, costs.tolist(), strict=True):
        router.register(router.profile(name, vectors=vectors, scores=column, cost=cost))
    top = float(costs[outcomes.scores[profiled].mean(axis=0).argmax()])
    errors = router.expected_errors(vectors=vectors, among=outcomes.models)
    weight = next(
        worth / top for worth in WEIGHTS if costs[(errors + worth / top * costs).argmin(axis=1)].mean() <= BUDGET * top
    )
    return Scene(outcomes, tasks, rows, costs, top, float(weight), router, {})


def made(scene: Scene, seed: int) -> tuple[Asked, dict[str, Asked]]:
    """Make the conversations of one to four follow-ups, and those of questions after others."""
    rng = np.random.default_rng(seed)
    texts = [scene.outcomes.prompts[row] for row in scene.rows]
    tasks = np.array([scene.tasks[row] for row in scene.rows])
    short = np.array([len(text) < SHORT for text in texts])

    def drawn(among: npt.NDArray[np.bool_], count: int) -> list[str]:
        found = np.flatnonzero(among)
        return [texts[at] for at in rng.choice(found, min(count, len(found)), replace=False)]

    def follow_ups(count: int) -> list[str]:
        return [FOLLOW_UPS[at] for at in rng.choice(len(FOLLOW_UPS), count, replace=False)]

    followed = [
        [text, *added[:count]] for text in texts[:FOLLOWED] for added in [follow_ups(4)] for count in (1, 2, 3, 4)
    ]
    changed: dict[str, list[tuple[list[str], int]]] = {situation: [] for situation in SITUATIONS}
    for at, (text, row) in enumerate(zip(texts, scene.rows.tolist(), strict=True)):
        another = tasks != tasks[at]
        others = drawn(another, 3)
        same = drawn(~another & (np.arange(len(texts)) != at), 1)
        all_short = drawn(another & short, 4) if short[at] else []
        before = (others[:1], [*others[:1], *follow_ups(2)], others, same, all_short)
        for situation, turns in zip(SITUATIONS, before, strict=True):
            if turns:
                changed[situation].append(([*turns, text], row))
    return Asked(followed, np.repeat(scene.rows[:FOLLOWED], 4)), {
        situation: Asked([turns for turns, _ in found], np.array([row for _, row in found]))
        for situation, found in changed.items()
        if len(found) >= FEWEST
    }


def figures(scene: Scene, form: Form, followed: Asked, changed: dict[str, Asked]) -> dict[str, float]:
    """What a form does to follow-ups and to questions."""
    questions = scene.errors(last(1), Asked([turns[:1] for turns in followed.turns], followed.rows))
    errors = scene.errors(form, followed)
    kept = 100 * (scene.chosen(errors) == scene.chosen(questions))
    gone = scene.score(errors, followed) - scene.score(questions, followed)
    found = {"kept": kept.mean(), "fourth kept": kept[3::4].mean(), "score of follow-ups (assumed)": gone}
    for situation, asked in changed.items():
        alone, joined = scene.errors(last(1), asked), scene.errors(form, asked)
        found[f"moved after {situation}"] = 100 * (scene.chosen(joined) != scene.chosen(alone)).mean()
        found[f"score after {situation}"] = scene.score(joined, asked) - scene.score(alone, asked)
    return found


def measured(path: str) -> dict[str, Any]:
    """Print the table of one set of outcomes, and return its figures."""
    table = read_outcomes(path).complete()
    filled = np.where(np.isnan(table.costs), np.nanmean(table.costs, axis=0), table.costs)
    outcomes = Outcomes(table.prompts, table.models, table.scores, filled, table.name)
    read = pq.read_table(Path(path) / "prompts.parquet").to_pylist()
    task_of = {row.get("question") or row["prompt"]: row["task"] for row in read}
    tasks = [task_of[prompt] for prompt in outcomes.prompts]
    found = defaultdict(list)
    for seed in range(SEEDS):
        scene = prepared(outcomes, tasks, seed)
        followed, changed = made(scene, seed)
        for name, form in FORMS.items():
            found[name].append(figures(scene, form, followed, changed))
    print(f"{outcomes.name}: {len(outcomes.models)} models, {len(outcomes.prompts)} prompts, {SEEDS} seeds")
    print(f"{'':28}follow-ups: kept, %, fourth, score     questions: moved, %, and score, after {'; '.join(changed)}")
    recorded: dict[str, dict[str, str]] = {}
    for name, rows in found.items():
        parts, recorded[name] = [], {}
        for key in rows[0]:
            mean, spread = np.mean([row[key] for row in rows]), np.std([row[key] for row in rows], ddof=1)
            with_spread = f"{mean:+6.2f} ± {spread:4.2f}" if "score" in key else f"{mean:5.1f} ± {spread:4.1f}"
            recorded[name][key] = " ".join(with_spread.split())
            parts.append(f"{mean:5.1f}" if "moved" in key else with_spread)
        print(f"{name:28}" + "  ".join(parts))
    return recorded


def main() -> None:
    """Measure each set of outcomes."""
    paths = [argument for argument in sys.argv[1:] if argument != "--record"]
    record({Path(path).resolve().name: measured(path) for path in paths})


if __name__ == "__main__":
    main()
