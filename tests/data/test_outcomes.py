"""Recorded outcomes: the table, and the files and data frames it is read from."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import made_up_outcomes
from hypothesis import given
from hypothesis import strategies as st

from unirouter_integrations import InvalidInputError, MissingDependencyError, UniRouter
from unirouter_integrations.data import Outcomes, as_outcomes, read_embedllm, read_outcomes, read_routerbench

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

RECORDED = Path(__file__).parents[3] / "shared" / "data"
MARKED = "a text that no message may quote"
Rows = list[dict[str, Any]]

RECORDS: Rows = [
    {"prompt": "one", "model": "b", "score": 1, "cost": 2.0},
    {"prompt": "one", "model": "a", "score": 0.25, "cost": 1.0},
    {"prompt": "two, or\n“three”", "model": "a", "score": 0.0, "cost": None},
]
SCORES = [[0.25, 1], [0, np.nan]]
COSTS = [[1, 2], [np.nan, np.nan]]


def write(path: Path, rows: Rows) -> Path:
    """Write rows as the suffix says; a value that is missing or None is a null, or an empty field."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    return path


def cells(outcomes: Outcomes) -> dict[tuple[str, str], tuple[float, float]]:
    """Score and cost of each recorded pair."""
    return {
        (prompt, model): (
            float(outcomes.scores[row, column]),
            float(np.nan_to_num(outcomes.costs[row, column], nan=-1)),
        )
        for row, prompt in enumerate(outcomes.prompts)
        for column, model in enumerate(outcomes.models)
        if not np.isnan(outcomes.scores[row, column])
    }


def assert_equal(outcomes: Outcomes, scores: Any, costs: Any) -> None:
    np.testing.assert_allclose(outcomes.scores, scores)
    np.testing.assert_allclose(outcomes.costs, costs)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_in_long_form_is_read(suffix: str, tmp_path: Path) -> None:
    """Whatever the format; prompts in their order, models sorted, what is not there is NaN."""
    outcomes = read_outcomes(write(tmp_path / f"mine{suffix}", RECORDS))
    assert (outcomes.prompts, outcomes.models, outcomes.name) == (("one", "two, or\n“three”"), ("a", "b"), "mine")
    assert_equal(outcomes, SCORES, COSTS)
    assert repr(outcomes) == "Outcomes('mine', 2 prompts x 2 models, 75.0% recorded)"
    with pytest.raises(ValueError, match="read-only"):
        outcomes.scores[0, 0] = 1


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_columns_may_have_other_names(suffix: str, tmp_path: Path) -> None:
    """And a column that is not asked for may hold anything."""
    rows: Rows = [{"text": "one", "llm": "a", "right": 1, "usd": 3, "note": "x" * 9}]
    path = write(tmp_path / f"mine{suffix}", rows)
    outcomes = read_outcomes(path, prompt="text", model="llm", score="right", cost="usd")
    assert_equal(outcomes, [[1]], [[3]])
    with pytest.raises(InvalidInputError, match=r"mine.* has no 'price', only 'text', 'llm'.*: prompt=, model=.*cost="):
        read_outcomes(path, prompt="text", model="llm", score="right", cost="price")


@given(
    st.dictionaries(
        st.tuples(st.text(max_size=3), st.sampled_from("abc")),
        st.tuples(st.sampled_from([0.0, 0.25, 1.0]), st.none() | st.floats(0, 9)),
        min_size=1,
    ),
    st.randoms(use_true_random=False),
)
def test_records_come_back_whatever_their_order(pairs: dict[tuple[str, str], tuple[float, Any]], rng: Any) -> None:
    """Each pair keeps its score and cost, once, and nothing else is recorded."""
    rows = [{"prompt": p, "model": m, "score": s, "cost": c} for (p, m), (s, c) in pairs.items()]
    rows += rows[: rng.randint(0, len(rows))]
    rng.shuffle(rows)
    outcomes = Outcomes.from_records(row for row in rows)
    assert cells(outcomes) == {pair: (s, -1 if c is None else c) for pair, (s, c) in pairs.items()}
    assert outcomes.prompts == tuple(dict.fromkeys(row["prompt"] for row in rows))
    assert outcomes.models == tuple(sorted({model for _, model in pairs}))


def test_what_has_no_score_is_not_recorded() -> None:
    """None, NaN and nothing."""
    rows = [
        {"prompt": "p", "model": str(i), "score": score, "cost": 1} for i, score in enumerate((1, None, "", np.nan))
    ]
    assert_equal(Outcomes.from_records(rows), [[1, np.nan, np.nan, np.nan]], [[1, np.nan, np.nan, np.nan]])


def test_a_prompt_that_occurs_under_two_ids_is_one_prompt() -> None:
    """The first id's records are taken, also where only the other has any."""
    rows = [
        {"prompt_id": 1, "prompt": "same", "model": "a", "score": 1},
        {"prompt_id": 2, "prompt": "same", "model": "a", "score": 0},
        {"prompt_id": 2, "prompt": "same", "model": "b", "score": 0},
        {"prompt_id": "3", "prompt": "other", "model": "b", "score": 0.5},
        {"prompt": "none", "model": "b", "score": 0},
    ]
    outcomes = Outcomes.from_records(rows, name="ids")
    assert (outcomes.prompts, outcomes.name) == (("same", "other", "none"), "ids")
    np.testing.assert_array_equal(outcomes.scores, [[1, np.nan], [np.nan, 0.5], [np.nan, 0]])


def test_the_complete_part() -> None:
    """Models with enough prompts, then the prompts that all of them have."""
    nan = np.nan
    scores = np.array([[0, 1, nan], [1, 0, nan], [0, nan, 1], [0.5, 0, nan]])
    outcomes = Outcomes(("p", "q", "r", "s"), ("a", "b", "c"), scores, 2 * scores, "gaps")
    whole = outcomes.complete(0.75)
    assert (whole.prompts, whole.models, whole.name) == (("p", "q", "s"), ("a", "b"), "gaps")
    assert_equal(whole, [[0, 1], [1, 0], [0.5, 0]], [[0, 2], [2, 0], [1, 0]])
    assert outcomes.complete().models == ("a",)
    for coverage in (0, 1.1, np.nan):
        with pytest.raises(InvalidInputError, match="above 0 and up to 1"):
            outcomes.complete(coverage)
    part = Outcomes(("p", "q"), ("a", "b"), np.array([[0, nan], [nan, 0]]), np.ones((2, 2)))
    with pytest.raises(InvalidInputError, match=r"0 models and 2 prompts.*has 50\.0% of them.*less coverage"):
        part.complete()
    with pytest.raises(InvalidInputError, match="2 models and 0 prompts"):
        part.complete(0.5)


def test_costs() -> None:
    """The mean of those recorded; or given, for all calls of a model."""
    outcomes = Outcomes.from_records(RECORDS)
    np.testing.assert_array_equal(outcomes.mean_costs, [1, 2])
    priced = outcomes.with_costs({"a": 7, "b": 70, "c": 700})
    np.testing.assert_array_equal(priced.mean_costs, [7, 70])
    np.testing.assert_array_equal(priced.scores, outcomes.scores)
    with pytest.raises(InvalidInputError, match=r"No cost of 'a' is recorded.*with_costs\(\{'a': \.\.\., \.\.\.\}\)"):
        Outcomes(("p",), ("a",), np.zeros((1, 1)), np.full((1, 1), np.nan)).mean_costs  # noqa: B018
    with pytest.raises(InvalidInputError, match="each of the 2 models, but 'b' is missing"):
        outcomes.with_costs({"a": 7})
    wrong: tuple[Any, ...] = (-1, np.inf, np.nan, None, "dear")
    for cost in wrong:
        with pytest.raises(InvalidInputError, match="costs of 'b' should be finite and not negative"):
            outcomes.with_costs({"a": 7, "b": cost})


ONE = np.ones((1, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), ("a",), ONE, ONE), "at least one prompt and one model"),
        ((("p",), (), ONE, ONE), "at least one prompt and one model"),
        ((("p",), ("a", "a"), ONE, ONE), "2 models with 1 names"),
        ((("p",), ("",), ONE, ONE), "should be a text of 1 to 200 printable characters, but is ''"),
        ((("p",), ("a\nb",), ONE, ONE), "1 to 200 printable characters, but is <text of 3 characters>"),
        (("p", ("a",), ONE, ONE), "should be a list of texts"),
        (((1,), ("a",), ONE, ONE), r"prompts\[0\] should be a str"),
        ((("p",), (1,), ONE, ONE), r"models\[0\] should be a str"),
        ((("p",), ("a",), np.ones(1), ONE), r"scores should be \(prompts, models\), \(1, 1\), but are \(1,\)"),
        ((("p",), ("a",), ONE, np.ones((1, 2))), r"costs should be .* but are \(1, 2\)"),
        ((("p",), ("a",), 2 * ONE, ONE), "scores of 'a' to lie between 0"),
        ((("p",), ("a",), ONE, -ONE), "costs of 'a' should be finite and not negative"),
        ((("p",), ("a",), ONE, np.inf * ONE), "costs of 'a' should be finite"),
        ((("p",), ("a",), [[MARKED]], ONE), "scores should be a table of numbers"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(arguments: Any, message: str) -> None:
    """The parts and their shapes are named."""
    with pytest.raises(InvalidInputError, match=message) as caught:
        Outcomes(*arguments)
    assert MARKED not in str(caught.value)


GOOD = {"prompt": MARKED, "model": "a", "score": 1}
WRONG: dict[str, tuple[Rows, str]] = {
    "score above 1": ([GOOD, GOOD | {"score": 7}], "{}: the score should be a number from 0 .* but is 7"),
    "score below 0": ([GOOD, GOOD | {"score": -1}], "{}: the score should be .* but is -1"),
    "two scores": ([GOOD, GOOD | {"score": 0}], "{}: 'a' has had another score on this prompt"),
    "negative cost": ([GOOD | {"cost": 1}, GOOD | {"cost": -1}], "{}: the cost should be a number that is finite"),
    "id of two": (
        [GOOD | {"prompt_id": "x"}, GOOD | {"prompt": "q", "prompt_id": "x"}],
        "{}: its prompt_id stood for another prompt",
    ),
    "no score": ([GOOD | {"score": None}], "has no outcomes"),
    "no model column": ([{"prompt": MARKED, "score": 1}], "has no 'model', only 'prompt', 'score'"),
}
TEXT_ONLY: dict[str, tuple[Rows, str]] = {
    "no number": ([GOOD, GOOD | {"score": MARKED}], "{}: the score should be .* but is something else"),
    "cost no number": ([GOOD | {"cost": 1}, GOOD | {"cost": MARKED}], "{}: the cost should .* but is something else"),
}
JSON_ONLY: dict[str, tuple[Rows, str]] = {
    "prompt a list": ([GOOD, GOOD | {"prompt": [MARKED]}], "{}: the prompt should be a text, but is a list"),
    "model missing": ([GOOD, {"prompt": MARKED, "score": 1}], "{}: the model should be a text, but is missing"),
    "id a list": ([GOOD, GOOD | {"prompt_id": [MARKED]}], "{}: the prompt_id should be a text, but is a list"),
    "endless": ([GOOD, GOOD | {"score": float("inf")}], "{}: the score should be .* but is something else"),
    "prompts as names": ([{MARKED: 1}], "has no 'prompt', nor any other that is needed"),
}


@pytest.mark.parametrize(
    ("rows", "message", "place"),
    [
        pytest.param(*case, place, id=f"{name} {place}")
        for place, cases in {
            "records": WRONG | TEXT_ONLY | JSON_ONLY,
            ".jsonl": WRONG | TEXT_ONLY | JSON_ONLY,
            ".csv": WRONG | TEXT_ONLY,
            ".parquet": WRONG,
        }.items()
        for name, case in cases.items()
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_no_prompt(
    rows: Rows, message: str, place: str, tmp_path: Path
) -> None:
    """The second record is at fault, which stands in line 3 under a header."""
    where = {"records": r"records\[1\]", ".jsonl": "line 2", ".csv": "line 3", ".parquet": "row 2"}[place]
    with pytest.raises(InvalidInputError, match=message.format(where)) as caught:
        Outcomes.from_records(rows) if place == "records" else read_outcomes(write(tmp_path / f"mine{place}", rows))
    assert MARKED not in str(caught.value)
    assert place == "records" or f"mine{place}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.csv", b"", "mine.csv' has no 'prompt', nor any other"),
        ("mine.csv", b"prompt,model,score\n", "mine.csv' has no outcomes"),
        ("mine.csv", f"{MARKED},a,1\n".encode(), "has no 'prompt', nor any other"),
        ("mine.csv", f"prompt,model,score\n\n{MARKED},a\n".encode(), "line 3: 2 fields, but the header has 3"),
        (
            "mine.csv",
            f'prompt,model,score\n"{MARKED},a,1\n'.encode(),
            "mine.csv' could not be read as csv: unexpected end",
        ),
        ("mine.csv", f"prompt,model,score\n{MARKED} \xe9,a,1\n".encode("latin-1"), "read as csv: 'utf-8' codec"),
        ("mine.jsonl", b"", "mine.jsonl' has no 'prompt'"),
        ("mine.jsonl", f'\n["{MARKED}"]\n'.encode(), "line 2: should be a JSON object"),
        ("mine.jsonl", f'{{"prompt": "{MARKED}"\n'.encode(), "line 1: should be a JSON object"),
        ("mine.jsonl", f'{{"prompt": "{MARKED} \xe9"}}\n'.encode("latin-1"), "line 1: should be a JSON object"),
        ("mine.jsonl", b"[" * 100_000, "line 1: should be a JSON object"),
        ("mine.parquet", MARKED.encode(), "mine.parquet' could not be read as parquet"),
        ("mine.txt", MARKED.encode(), r"mine.txt' should end in \.parquet, \.csv, \.jsonl"),
        ("mine.pkl", MARKED.encode(), r"any code.*pandas.read_pickle\('mine.pkl'\).to_parquet\('mine.parquet'\)"),
    ],
)
def test_files_that_are_damaged_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    """With the line where there is one, and nothing of what stands in it. A pickle is not even opened."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=message) as caught:
        read_outcomes(tmp_path / name)
    assert MARKED not in str(caught.value)


def test_records_are_mappings_and_files_exist(tmp_path: Path) -> None:
    """A file that is not there is the usual error."""
    rows: Any = [GOOD, [MARKED]]
    with pytest.raises(
        InvalidInputError, match=r"records\[1\] should map prompt, model and score to values, but is list"
    ):
        Outcomes.from_records(rows)
    for read in (read_outcomes, read_routerbench, read_embedllm):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "missing.csv")
    with pytest.raises(FileNotFoundError):
        read_outcomes(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_embedllm(tmp_path)


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install; csv needs nothing."""
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'unirouter-integrations\[parquet\]'"):
        read_outcomes(tmp_path / "mine.parquet")
    assert len(read_outcomes(write(tmp_path / "mine.csv", RECORDS)).prompts) == 2


FRAMES: dict[str, Callable[[Any, Rows], Any]] = {
    "pandas": lambda pandas, rows: pandas.DataFrame(rows),
    "pandas, nullable": lambda pandas, rows: pandas.DataFrame(rows).convert_dtypes(),
    "polars": lambda polars, rows: polars.DataFrame(rows),
    "pyarrow": lambda pyarrow, rows: pyarrow.Table.from_pylist(rows),
}


def frame(kind: str, rows: Rows) -> Any:
    return FRAMES[kind](pytest.importorskip(kind.partition(",")[0]), rows)


@pytest.mark.parametrize("kind", FRAMES)
def test_a_data_frame_in_long_form(kind: str) -> None:
    """Of any library; missing costs and scores are not recorded, and other columns may hold anything."""
    rows: Rows = [
        *({**record, "note": 9} for record in RECORDS),
        RECORDS[0] | {"prompt": "two, or\n“three”", "score": None},
    ]
    outcomes = Outcomes.from_frame(frame(kind, rows), name="mine")
    assert (outcomes.prompts, outcomes.models, outcomes.name) == (("one", "two, or\n“three”"), ("a", "b"), "mine")
    assert_equal(outcomes, SCORES, COSTS)
    assert_equal(as_outcomes(frame(kind, rows)) or outcomes, SCORES, COSTS)
    renamed: Rows = [{"text": "one", "llm": "a", "right": 1, "usd": 3}]
    outcomes = Outcomes.from_frame(frame(kind, renamed), prompt="text", model="llm", score="right", cost="usd")
    assert_equal(outcomes, [[1]], [[3]])


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, GOOD | {"score": 7}], "row 2 of the data frame: the score should be .* but is 7"),
        ([GOOD, GOOD | {"score": 0}], "row 2 of the data frame: 'a' has had another score on this prompt"),
        (
            [{"prompt": MARKED, "score": 1}],
            "has no 'model', only 'prompt', 'score'.*from_frame takes other names: prompt=",
        ),
        ([{MARKED: 1}], "The data frame has no 'prompt', nor any other that is needed"),
    ],
)
def test_what_is_wrong_in_a_data_frame_is_said_with_its_row(kind: str, rows: Rows, message: str) -> None:
    """And no prompt."""
    with pytest.raises(InvalidInputError, match=message) as caught:
        Outcomes.from_frame(frame(kind, rows))
    assert MARKED not in str(caught.value)


def test_what_is_no_data_frame_is_none() -> None:
    """Outcomes are themselves; lists, arrays and others are something else."""
    outcomes = Outcomes.from_records(RECORDS)
    assert as_outcomes(outcomes) is outcomes
    others: tuple[Any, ...] = (
        ["one"],
        ("one",),
        np.ones(3),
        {"columns": 1},
        None,
        iter(["one"]),
        type("X", (), {"columns": []})(),
    )
    for other in others:
        assert as_outcomes(other) is None
        with pytest.raises(InvalidInputError, match="should be a pandas or polars DataFrame or a pyarrow Table"):
            Outcomes.from_frame(other)


def test_a_router_learns_from_a_table_or_a_data_frame() -> None:
    """As from the prompts and the scores in it."""
    made_up = made_up_outcomes(60)
    rows = [
        {"prompt": prompt, "model": model, "score": float(made_up.scores[i, j])}
        for i, prompt in enumerate(made_up.prompts)
        for j, model in enumerate(made_up.models)
    ]
    scores = {model: made_up.scores[:, j] for j, model in enumerate(made_up.models)}
    expected = UniRouter.fit(made_up.prompts, scores=scores)
    for outcomes in (made_up, frame("pyarrow", rows)):
        router = UniRouter.fit(outcomes)
        assert router.prior is not None
        assert expected.prior is not None
        assert router.clusters.fingerprint == expected.clusters.fingerprint
        np.testing.assert_array_equal(router.prior.mean, expected.prior.mean)


def test_a_folder_of_two_tables(tmp_path: Path) -> None:
    """The question is the text where there is one; the prompts keep their order; USD per call become per 1,000."""
    folder = tmp_path / "folder"
    folder.mkdir()
    rows = [{"prompt_id": i, "prompt": "How? " + MARKED, "question": f"q{i}"} for i in range(3)]
    write(folder / "prompts.parquet", rows)
    graded = [
        {"prompt_id": i, "model": m, "score": i / 2, "cost_usd": 0.001 * (m == "a")} for m in "ba" for i in (2, 0)
    ]
    write(folder / "outcomes.parquet", graded)
    outcomes = read_outcomes(folder)
    assert (outcomes.prompts, outcomes.models, outcomes.name) == (("q0", "q1", "q2"), ("a", "b"), "folder")
    assert_equal(outcomes, [[0, 0], [np.nan, np.nan], [1, 1]], [[1, 0], [np.nan, np.nan], [1, 0]])

    write(folder / "outcomes.parquet", [*graded, graded[0] | {"prompt_id": 9}])
    with pytest.raises(InvalidInputError, match=r"outcomes.parquet', row 5: the prompt_id is not in .*prompts.parquet"):
        read_outcomes(folder)
    write(folder / "prompts.parquet", [{"prompt_id": 0, "question": None}])
    with pytest.raises(InvalidInputError, match=r"The texts in .*prompts.parquet'\[0\] should be a str"):
        read_outcomes(folder)


ROUTERBENCH: Rows = [
    {
        "sample_id": f"mmlu.{i}",
        "prompt": prompt,
        "eval_name": "mmlu",
        "org/small-1.5": score,
        "gpt-4": 1.0,
        "org/small-1.5|model_response": "['A']",
        "gpt-4|model_response": "['B']",
        "org/small-1.5|total_cost": 0.001,
        "gpt-4|total_cost": 0.02,
        "oracle_model_to_route_to": "gpt-4",
    }
    for i, (prompt, score) in enumerate(
        [("['It\\'s \"one\"\\n']", 0.25), ("['be brief', 'two']", 0.0), ("[plain", 0.5), ("[1]", 1.0), ("[plain", 0.0)]
    )
]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_routerbench(suffix: str, tmp_path: Path) -> None:
    """Prompts are taken out of their lists, a prompt that comes twice is taken once, costs are per 1,000 calls."""
    outcomes = read_routerbench(write(tmp_path / f"routerbench_0shot{suffix}", ROUTERBENCH))
    assert outcomes.prompts == ('It\'s "one"\n', "be brief\ntwo", "[plain", "[1]")
    assert (outcomes.models, outcomes.name) == (("gpt-4", "org/small-1.5"), "routerbench_0shot")
    assert_equal(outcomes, [[1, 0.25], [1, 0], [1, 0.5], [1, 1]], [[20, 1]] * 4)


def test_routerbench_as_something_else(tmp_path: Path) -> None:
    """The pickles it is published as, another table, a score that is none."""
    with pytest.raises(InvalidInputError, match=r"a pickle.*read_pickle\('routerbench_0shot.pkl'\).to_parquet"):
        read_routerbench(tmp_path / "routerbench_0shot.pkl")
    with pytest.raises(InvalidInputError, match=r"columns 'X' and 'X\|total_cost'"):
        read_routerbench(write(tmp_path / "mine.csv", RECORDS))
    with pytest.raises(InvalidInputError, match=r"row 2: the score should be .* but is 3"):
        read_routerbench(write(tmp_path / "mine.parquet", [ROUTERBENCH[0], ROUTERBENCH[1] | {"gpt-4": 3.0}]))


def embedllm(prompt: int, model: str, label: object) -> dict[str, Any]:
    names = {"prompt": f"question {prompt}", "model_id": 1, "category": "gpqa", "label": label, "prompt_id": prompt}
    return names | {"model_name": model, "category_id": 2}


def test_embedllm(tmp_path: Path) -> None:
    """Its files are joined; of several variants of a task the best counts; costs are given."""
    train = write(
        tmp_path / "train.csv", [embedllm(7, "org__b", 0), embedllm(7, "org__a", 1), embedllm(7, "org__b", 1)]
    )
    outcomes = read_embedllm(train)
    np.testing.assert_array_equal(outcomes.scores, [[1, 1]])
    write(tmp_path / "test.csv", [embedllm(3, "org__b", 0), embedllm(3, "org__a", 1), embedllm(3, "org__a", 0)])
    outcomes = read_embedllm(tmp_path)
    assert (outcomes.prompts, outcomes.models) == (("question 7", "question 3"), ("org__a", "org__b"))
    assert_equal(outcomes, [[1, 1], [1, 0]], np.full((2, 2), np.nan))
    assert outcomes.with_costs({"org__a": 70, "org__b": 7}).mean_costs.tolist() == [70, 7]
    write(tmp_path / "test.csv", [embedllm(3, "org__b", 0), embedllm(3, "org__a", 2)])
    with pytest.raises(InvalidInputError, match=r"test.csv', line 3: the score should be .* but is 2"):
        read_embedllm(tmp_path)
    write(train, [{"prompt": "p", "model_name": "a"}])
    with pytest.raises(InvalidInputError, match=r"train.csv' has no 'prompt_id', only 'prompt', 'model_name'"):
        read_embedllm(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "best"),
    [("mmlu_pro", (11795, 28), 0.703), ("zeroeval", (2825, 30), 0.938), ("llmrouter9", (5541, 9), 0.650)],
)
@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded outcomes are not here")
def test_the_recorded_sets(name: str, shape: tuple[int, int], best: float) -> None:
    """The best single model is as good as their README says; MMLU-Pro loses 159 prompts that come twice."""
    outcomes = read_outcomes(RECORDED / name).complete()
    assert outcomes.scores.shape == shape
    assert len(set(outcomes.prompts)) == len(outcomes.prompts)
    assert outcomes.scores.mean(axis=0).max() == pytest.approx(best, abs=6e-4)
    assert ((outcomes.mean_costs > 0.001) & (outcomes.mean_costs < 100)).all()
