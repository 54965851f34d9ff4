"""Files read row by row: examples for profiling, whatever the format and the encoding."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unirouter_integrations import Example, InvalidInputError, MissingDependencyError
from unirouter_integrations._tables import TableFile
from unirouter_integrations.data import read_outcomes, read_prompts
from unirouter_integrations.profiling import read_examples

MARKED = "a text that no message may quote"
BOM = b"\xef\xbb\xbf"
CSV = f"prompt,reference,task,\nadd 1 and 2,3,sum,x\n\n{MARKED},,poem,y\n".encode()
JSONL = b"".join(
    json.dumps(row).encode() + b"\n\n"
    for row in ({"prompt": "add 1 and 2", "reference": "3", "task": "sum"}, {"prompt": MARKED, "task": "poem"})
)


def parquet(path: Path, **columns: list[Any]) -> Path:
    pytest.importorskip("pyarrow.parquet").write_table(pytest.importorskip("pyarrow").table(columns), path)
    return path


@pytest.mark.parametrize("bom", [b"", BOM], ids=["plain", "byte order mark"])
@pytest.mark.parametrize(("name", "content", "reference"), [("mine.csv", CSV, ""), ("mine.JSONL", JSONL, None)])
def test_examples_of_a_text_file(name: str, content: bytes, reference: Any, bom: bytes, tmp_path: Path) -> None:
    """Other columns are metadata; empty lines and columns without a name are skipped, and so is a byte order mark."""
    (tmp_path / name).write_bytes(bom + content)
    assert list(read_examples(tmp_path / name)) == [
        Example("add 1 and 2", "3", {"task": "sum"}),
        Example(MARKED, reference, {"task": "poem"}),
    ]


def test_examples_of_a_parquet_file(tmp_path: Path) -> None:
    """Values keep their types."""
    path = parquet(tmp_path / "mine.parquet", prompt=["p", "q"], reference=[["a", "b"], None], level=[1, 2])
    assert list(read_examples(str(path))) == [Example("p", ["a", "b"], {"level": 1}), Example("q", None, {"level": 2})]


@pytest.mark.parametrize(
    ("name", "damaged", "place"),
    [
        ("mine.csv", CSV + f"{MARKED},3\n".encode(), "mine.csv', line 5: 2 fields, but the header has 4"),
        ("mine.jsonl", JSONL + f'["{MARKED}"]\n'.encode(), "mine.jsonl', line 5: should be a JSON object in UTF-8"),
        ("mine.jsonl", JSONL + f'{{"prompt": "{MARKED} \xe9"}}\n'.encode("latin-1"), "line 5: should be a JSON object"),
        ("mine.jsonl", JSONL + f'{{"task": "{MARKED}"}}\n'.encode(), 'line 5: .* "prompt" that is a text.* missing'),
        ("mine.jsonl", JSONL + f'{{"prompt": ["{MARKED}"]}}\n'.encode(), 'line 5: .* "prompt" .* but it is a list'),
    ],
)
def test_examples_before_a_damaged_line_are_read(name: str, damaged: bytes, place: str, tmp_path: Path) -> None:
    """The file is read as it is asked for; the message names the line and quotes nothing of it."""
    (tmp_path / name).write_bytes(damaged)
    examples = read_examples(tmp_path / name)
    assert len(list(itertools.islice(examples, 2))) == 2
    with pytest.raises(InvalidInputError, match=place) as caught:
        next(examples)
    assert MARKED not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.csv", b"", "There is no example in .*mine.csv"),
        ("mine.csv", b"prompt,reference\n", "There is no example in .*mine.csv"),
        ("mine.csv", f"{MARKED},3\nadd 1 and 1,2\n".encode(), 'line 2: .* "prompt" that is a text, but it is missing'),
        ("mine.csv", b"prompt,task,task\np,a,b\n", "read as csv: the name of a column is there 2 times"),
        ("mine.csv", f"prompt\n{MARKED}\xe9\n".encode("latin-1"), "read as csv: 'utf-8' codec"),
        ("mine.jsonl", b"\n", "There is no example in .*mine.jsonl"),
        ("mine.parquet", MARKED.encode(), "mine.parquet' could not be read as parquet"),
        ("mine.txt", MARKED.encode(), r"mine.txt' should end in \.parquet, \.csv, \.jsonl"),
        ("mine.pickle", MARKED.encode(), "is a pickle, and reading one can run any code"),
    ],
)
def test_files_without_examples_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    """A header that is none is not quoted: it may be a prompt."""
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=message) as caught:
        list(read_examples(tmp_path / name))
    assert MARKED not in str(caught.value)


def test_a_file_that_is_not_there_is_the_usual_error(tmp_path: Path) -> None:
    """And a missing pyarrow is ours."""
    with pytest.raises(FileNotFoundError):
        list(read_examples(tmp_path / "missing.csv"))


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependencyError, match=r"mine.parquet' needs pip install 'unirouter-integrations\[parq"):
        list(read_examples(tmp_path / "mine.parquet"))


def test_a_parquet_file_is_read_in_parts(tmp_path: Path) -> None:
    """Rows are numbered through."""
    path = parquet(tmp_path / "long.parquet", prompt=[str(number) for number in range(3000)])
    rows = list(TableFile(path))
    assert [number for number, _ in rows] == list(range(1, 3001))
    assert rows[-1][1] == {"prompt": "2999"}


@pytest.mark.parametrize("name", ["mine.csv", "mine.jsonl", "mine.txt"])
def test_prompts_and_outcomes_may_begin_with_a_byte_order_mark(name: str, tmp_path: Path) -> None:
    """As Windows programs write it."""
    content = {
        "mine.csv": b"prompt,model,score\np,a,1\n",
        "mine.jsonl": b'{"prompt": "p", "model": "a", "score": 1}\n',
        "mine.txt": b"p\np\n",
    }[name]
    (tmp_path / name).write_bytes(BOM + content)
    assert read_prompts(tmp_path / name) == ["p"]
    if name != "mine.txt":
        assert read_outcomes(tmp_path / name).prompts == ("p",)


def test_a_curve_loads_no_protocol_and_a_list_no_data_frames() -> None:
    """What is heavy is imported when it is used."""
    script = """
import sys
from unirouter_integrations.data import as_outcomes
from unirouter_integrations.evaluation import DeferralCurve
assert as_outcomes(["a prompt"]) is None
heavy = {"joblib", "sklearn", "scipy", "narwhals", "pandas", "matplotlib"}
print(sorted(name for name in sys.modules if name in heavy or name.startswith("unirouter_integrations.evaluation")))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected = ["unirouter_integrations.evaluation", "unirouter_integrations.evaluation._curves"]
    assert result.stdout == f"{expected}\n"
