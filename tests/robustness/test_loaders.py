"""Files from anywhere: they load whole, or one of our errors says what is wrong; nothing in them is executed.

`READERS` and `seed_files` are also what `fuzz_loaders.py` runs, for as long as it is allowed to.
"""

import contextlib
import csv
import io
import json
import os
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from safetensors.numpy import load, save

from unirouter_integrations import (
    InvalidInputError,
    LLMProfile,
    LocalEmbedder,
    StorageError,
    UniRouter,
    UniRouterError,
    _storage,
    _tables,
)
from unirouter_integrations._storage import SavedState
from unirouter_integrations.core import _snapshot
from unirouter_integrations.data import read_embedllm, read_outcomes, read_prompts, read_routerbench
from unirouter_integrations.embedding._local import embedder_from_saved
from unirouter_integrations.profiling import read_examples

PROMPTS = [
    f"{kind} {n}" for n in range(12) for kind in ("add up the numbers from one to", "write a poem on spring, number")
]
SCORES = [float("poem" not in prompt) for prompt in PROMPTS]
RECORDS = [
    {"prompt": prompt, "model": model, "score": score, "cost": 0.5, "prompt_id": prompt[-2:] + model}
    for prompt, score in (("add 1 and 2, then 3", 1.0), ("write a poem", 0.25), ('say "no"', None))
    for model in ("mini", "large")
]
WIDE = [("prompt", "mini", "mini|total_cost"), ('["You add.", "1 and 2?"]', "1.0", "0.001"), ("[1, 2", "0.5", "")]
EMBEDLLM = [("prompt", "prompt_id", "model_name", "label"), ("add 1 and 2", "7", "mini", "1")]


@cache
def room() -> Path:
    """A folder for the files that are read."""
    return Path(_room().name)


@cache
def _room() -> TemporaryDirectory[str]:
    return TemporaryDirectory(ignore_cleanup_errors=True)


@cache
def seed_files() -> dict[str, bytes]:
    """One undamaged file of each kind."""
    router = UniRouter.fit(PROMPTS, n_clusters=2, scores={"mini": SCORES, "large": [1.0] * len(PROMPTS)})
    router.register(router.profile("mini", PROMPTS, SCORES, cost=1, metadata={"run": "first"}))
    router.register(router.profile("large", PROMPTS, [1.0] * len(PROMPTS), cost=[float(len(p)) for p in PROMPTS]))
    router.save(room())
    seeds = {name: (room() / name).read_bytes() for name in ("router.json", "router.safetensors")}
    seeds["outcomes.csv"] = _csv([tuple(RECORDS[0]), *(tuple(record.values()) for record in RECORDS)])
    seeds["outcomes.jsonl"] = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    seeds["routerbench.csv"], seeds["embedllm.csv"] = _csv(WIDE), _csv(EMBEDLLM)
    seeds["prompts.txt"] = "\n".join(PROMPTS).encode()
    seeds["examples.csv"], seeds["examples.jsonl"] = seeds["outcomes.csv"], seeds["outcomes.jsonl"]
    with contextlib.suppress(ImportError):
        seeds["outcomes.parquet"] = _parquet()
    return seeds


def _csv(rows: list[tuple[Any, ...]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _parquet(**metadata: bytes) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pylist(RECORDS)
    if metadata:
        marked = {f"ARROW:extension:{key}".encode(): value for key, value in metadata.items()}
        table = table.set_column(0, pa.field("prompt", pa.string(), metadata=marked), table["prompt"])
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def read_json(data: bytes) -> None:
    """A router with this `router.json`."""
    _use_router(data, seed_files()["router.safetensors"])


def read_arrays(data: bytes) -> None:
    """A router with these arrays, which its document says are the ones it was saved with."""
    document = json.loads(seed_files()["router.json"])
    _use_router(json.dumps({**document, "arrays_sha256": sha256(data).hexdigest()}).encode(), data)


def _use_router(document: bytes, arrays: bytes) -> None:
    """Load a router; if that works, it must be a whole one: it decides, and can be saved and loaded again."""
    (room() / "router.json").write_bytes(document)
    (room() / "router.safetensors").write_bytes(arrays)
    (room() / "router.safetensors.new").unlink(missing_ok=True)
    try:
        router = UniRouter.load(room())
    except UniRouterError:
        return
    _check_router(router)
    router.save(room() / "again")
    again = UniRouter.load(room() / "again")
    assert (again.models, again.cost_weight, repr(again)) == (router.models, router.cost_weight, repr(router))


def _check_router(router: UniRouter) -> None:
    prompts = [PROMPTS[0], "", "\0 \U0001f600 qwerty"]
    without = router.clusters.embedder is None
    vectors = np.eye(3, router.clusters.dimension) if without else router.embed(prompts)
    phi, familiarity = router.clusters.memberships(vectors=vectors)
    np.testing.assert_allclose(phi.sum(axis=1), 1, atol=1e-3)
    assert ((familiarity >= 0) & (familiarity <= 1)).all()
    assert len(router.clusters.describe()) == len(router.clusters)
    if not router.models:
        return
    for decision in router.route_many(vectors=vectors):
        assert -1e-3 <= decision.expected_error <= 1 + 1e-3
        assert 0 <= decision.expected_cost < np.inf
        assert decision.ranking[0].model == decision.model
        assert decision.model in str(decision)


def _reader(name: str, read: Callable[[Path], Any]) -> Callable[[bytes], None]:
    def use(data: bytes) -> None:
        (room() / name).write_bytes(data)
        with contextlib.suppress(UniRouterError):
            assert len(repr(read(room() / name))) > 0

    return use


READERS: dict[str, Callable[[bytes], None]] = {
    "router.json": read_json,
    "router.safetensors": read_arrays,
    "outcomes.csv": _reader("outcomes.csv", read_outcomes),
    "outcomes.jsonl": _reader("outcomes.jsonl", read_outcomes),
    "outcomes.parquet": _reader("outcomes.parquet", read_outcomes),
    "routerbench.csv": _reader("routerbench.csv", read_routerbench),
    "embedllm.csv": _reader("embedllm.csv", read_embedllm),
    "prompts.txt": _reader("prompts.txt", read_prompts),
    "examples.csv": _reader("examples.csv", lambda path: list(read_examples(path))),
    "examples.jsonl": _reader("examples.jsonl", lambda path: list(read_examples(path))),
}

Edit = tuple[str, float, float, bytes]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["write", "insert", "cut", "repeat", "end"]),
        st.floats(0, 1, exclude_max=True),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8) | st.sampled_from([b"9" * 30, b"[" * 3000, b'"', b"-", b"1e999", b"null"]),
    ),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, edits: list[Edit]) -> bytes:
    """The file with bytes overwritten, inserted, cut out, repeated or cut off at the end."""
    for kind, first, second, noise in edits:
        start, stop = sorted((int(first * len(data)), int(second * len(data))))
        data = {
            "write": data[:start] + noise + data[start + len(noise) :],
            "insert": data[:start] + noise + data[start:],
            "cut": data[:start] + data[stop:],
            "repeat": data[:stop] + data[start:],
            "end": data[:stop],
        }[kind]
    return data


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60)
@given(EDITS)
def test_a_damaged_file_is_read_whole_or_refused(name: str, edits: list[Edit]) -> None:
    """Whatever has happened to its bytes; what was read can be used."""
    if name not in seed_files():
        pytest.skip("needs pyarrow")
    READERS[name](edited(seed_files()[name], edits))


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=30)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_whole_or_refused(name: str, data: bytes) -> None:
    """A file of another kind altogether."""
    if name not in seed_files():
        pytest.skip("needs pyarrow")
    READERS[name](data)


ANY_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from([10**400, -0.0, 5e-324, 1e308, 2**63, "", "laplace", "\ud800", "local"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in a JSON value, however deep."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from places(inner)


@settings(max_examples=300)
@given(st.data())
def test_a_document_with_anything_anywhere_is_read_whole_or_refused(data: st.DataObject) -> None:
    """Any value in it replaced by any other, or left out."""
    document = json.loads(seed_files()["router.json"])
    for _ in range(data.draw(st.integers(1, 2))):
        container, key = data.draw(st.sampled_from(list(places(document))))
        if data.draw(st.booleans()):
            container[key] = data.draw(ANY_JSON)
        else:
            del container[key]
    read_json(json.dumps(document).replace("Infinity", "1e999").encode())


@settings(max_examples=300)
@given(st.data())
def test_any_array_anywhere_is_read_whole_or_refused(data: st.DataObject) -> None:
    """Of any type, shape and content, in the place of any other or beside them."""
    arrays = load(seed_files()["router.safetensors"])
    name = data.draw(st.sampled_from([*sorted(arrays), "prior", "clusters.gate.", "other"]))
    old = arrays.get(name, np.zeros(2))
    shape = st.just(old.shape) | st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    kind = np.dtype(data.draw(st.sampled_from([old.dtype.str, "<f2", "<f4", "<f8", "<i8", "u1", "?"])))
    entries = st.floats(0, 1, width=16) if kind.kind == "f" and data.draw(st.booleans()) else None
    arrays[name] = data.draw(st_numpy.arrays(kind, shape, elements=entries))
    read_arrays(save(arrays))


@settings(max_examples=300)
@given(st.data())
def test_a_lying_header_is_refused(data: st.DataObject) -> None:
    """Any value in the header of the arrays replaced by any other: types, shapes and offsets."""
    arrays = seed_files()["router.safetensors"]
    (size,) = struct.unpack("<Q", arrays[:8])
    header = json.loads(arrays[8 : 8 + size])
    container, key = data.draw(st.sampled_from(list(places(header))))
    container[key] = data.draw(
        ANY_JSON | st.integers(0, 2**64) | st.sampled_from(["BF16", "F16", "F8_E4M3", "I64", "BOOL", "F4", "C64"])
    )
    read_arrays(packed(header, arrays[8 + size :]))


def packed(header: Any, body: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_the_first_format_loads(tmp_path: Path) -> None:
    """A router as version 1 of the format writes it, spelt out here so that no later change can move it along."""
    arrays = {
        "counts": np.array([[3.0, 1.0]]),
        "losses": np.array([[0.0, 1.0]]),
        "costs": np.array([[0.5, 0.5]]),
        "clusters.centroids": np.array([[1, 0], [0, 1]], np.float32),
        "clusters.shares": np.array([0.75, 0.25]),
        "clusters.gate.weights": np.array([[8, 0], [0, 8]], np.float32),
        "clusters.gate.bias": np.array([-4, -4], np.float32),
        "clusters.probe": np.array([1, 0], np.float32),
        "clusters.embedder.projection": np.array([[1, 0], [0, 1]], np.float32),
        "prior.mean": np.array([0.5, 0.5]),
        "prior.covariance": np.array([[0.05, 0.04], [0.04, 0.05]]),
    }
    document = {
        "format": "unirouter",
        "format_version": 1,
        "estimator": "mean",
        "cost_weight": 0.02,
        "profiles": [{"name": "mini", "cost": 0.5, "clusters": "dbbdc61d3643c650", "metadata": {"run": 7}}],
        "clusters": {
            "familiar_radius": 0.1,
            "familiar_falloff": 0.2,
            "min_known_share": 0.5,
            "clusters": [{"keywords": ["sum"]}, {"keywords": ["poem"]}],
            "gate": {},
            "embedder_name": "local",
            "embedder": {"terms": ["sum", "poem"]},
        },
        "prior": {},
        "arrays_sha256": sha256(save(arrays)).hexdigest(),
    }
    (tmp_path / "router.json").write_text(json.dumps(document))
    (tmp_path / "router.safetensors").write_bytes(save(arrays))
    router = UniRouter.load(tmp_path)
    assert router.profiles["mini"].metadata == {"run": 7}
    assert router.route("sum").expected_error == pytest.approx(0, abs=1e-3)
    assert router.route("poem").expected_error == pytest.approx(1, abs=1e-3)
    assert (router.cost_weight, router.route("poem").keywords) == (0.02, ("poem",))


def test_a_load_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither in the folder, nor in what was loaded from it before."""
    for name in ("router.json", "router.safetensors"):
        (tmp_path / name).write_bytes(seed_files()[name])
    router = UniRouter.load(tmp_path)
    before = router.route("a poem"), repr(router)
    document = json.loads(seed_files()["router.json"])
    document["profiles"][1]["metadata"] = None  # the last thing that is read
    (tmp_path / "router.json").write_text(json.dumps(document))
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(StorageError, match=r"profiles\[1\].metadata should be dict"):
        UniRouter.load(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files
    assert (router.route("a poem"), repr(router)) == before


ALONE = """
    import sys
    sys.path.insert(0, {here!r})
    from test_loaders import *
    from test_loaders import _parquet
    {body}
    print("done")
"""


def alone(body: str) -> str:
    """What this prints, run in a process of its own with what this file defines."""
    script = textwrap.dedent(ALONE).format(here=str(Path(__file__).parent), body=textwrap.dedent(body))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("rounds", [40, pytest.param(300, marks=pytest.mark.slow)])
def test_nothing_in_a_file_is_executed(rounds: int) -> None:
    """Thousands of damaged files: nothing is compiled, imported, started, unpickled, connected to or written elsewhere.

    Nor by a parquet file in which a pickle lies where pyarrow once looked for one.
    """
    pytest.importorskip("pyarrow")
    events = alone(
        """
    import os, pickle, random
    class Payload:
        def __reduce__(self):
            return os.system, ("touch " + str(room() / "executed"),)
    trap = _parquet(name=b"arrow.py_extension_type", metadata=pickle.dumps(Payload()))
    import base64
    from pyarrow.parquet import read_metadata
    assert b"arrow.py_extension_type" in base64.b64decode(read_metadata(io.BytesIO(trap)).metadata[b"ARROW:schema"])
    for name, data in seed_files().items():  # what is imported late is imported now
        for each in (data, data[:-9], b"", b"[[["):
            READERS[name](each)
    READERS["outcomes.parquet"](trap)
    seen, watching = [], True
    forbidden = ("exec", "compile", "import", "code.", "function.", "pickle.", "marshal.", "os.system", "os.exec",
                 "os.spawn", "os.posix_spawn", "os.fork", "subprocess.", "socket.", "ctypes.dlopen", "urllib.",
                 "sqlite3.enable_load_extension", "sqlite3.load_extension")
    def watch(event, arguments):
        if not watching:
            return
        if event == "open":
            path, mode = str(arguments[0]), arguments[1] or "r"
            if mode not in ("r", "rb") and not path.startswith(str(room())):
                seen.append((event, path))
        elif event.startswith(forbidden) and (event, arguments[1:]) != ("compile", ("<unknown>",)):
            seen.append((event, str(arguments)[:200]))  # <unknown> is what ast.literal_eval parses
    sys.addaudithook(watch)
    READERS["outcomes.parquet"](trap)
    dice = random.Random(0)
    for name, data in seed_files().items():
        for _ in range(ROUNDS):
            damaged = bytearray(data)
            for _ in range(dice.choice([1, 1, 4])):
                damaged[dice.randrange(len(data))] = dice.randrange(256)
            READERS[name](bytes(damaged))
    watching = False
    assert not (room() / "executed").exists()
    print(seen)
    """.replace("ROUNDS", str(rounds))
    )
    assert events == "[]\ndone\n"


def test_memory_stays_bounded() -> None:
    """With 256 MB to spare, small files that claim terabytes are refused, each by one of our errors."""
    pytest.importorskip("resource")
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs to know how much memory the process has")
    output = alone("""
    import resource
    from test_loaders import CLAIMS
    for name, data in seed_files().items():
        READERS[name](data)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, size + 2**28))
    for claim in CLAIMS:
        claim()
    """)
    assert output == "done\n"


def claim_in_header(claim: dict[str, Any], size: int | None = None) -> Callable[[], None]:
    """A safetensors header that claims an array, or to be very long itself."""

    def use() -> None:
        data = packed({"counts": claim})
        read_arrays(data if size is None else struct.pack("<Q", size) + data[8:])

    return use


def claim_in_array(name: str, shape: tuple[int, ...]) -> Callable[[], None]:
    """An array without entries whose other sides are long, in the place of one that was saved."""

    def use() -> None:
        arrays: dict[str, npt.NDArray[Any]] = load(seed_files()["router.safetensors"])
        arrays[name] = np.empty(shape, np.float32)
        document = json.loads(seed_files()["router.json"])
        document["clusters"]["embedder"]["terms"] = []
        data = save(arrays)
        document["arrays_sha256"] = sha256(data).hexdigest()
        _use_router(json.dumps(document).encode(), data)

    return use


def claim_in_outcomes() -> None:
    """As many prompts as models as records: the table of them is their square."""
    READERS["outcomes.jsonl"](
        "".join(json.dumps({"prompt": str(n), "model": str(n), "score": 1}) + "\n" for n in range(40_000)).encode()
    )


def claim_in_parquet() -> None:
    """Two thousand prompts of a megabyte in two kilobytes: they are all the same."""
    import pyarrow as pa
    from pyarrow import parquet

    same = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * 2**20]))
    options = {"compression": "zstd", "dictionary_pagesize_limit": 2**30, "store_schema": False}
    parquet.write_table(pa.table({"prompt": same}), room() / "same.parquet", **options)
    assert (room() / "same.parquet").stat().st_size < 2000
    assert len(read_prompts(room() / "same.parquet")) == 1


CLAIMS = [
    claim_in_header({"dtype": "F64", "shape": [2**20, 2**20], "data_offsets": [0, 2**43]}),
    claim_in_header({"dtype": "F64", "shape": [2**33], "data_offsets": [0, 0]}),
    claim_in_header({"dtype": "F64", "shape": [2**63, 2**63], "data_offsets": [0, 2**64 - 1]}),
    claim_in_header({"dtype": "F64", "shape": [0, 2**62], "data_offsets": [0, 0]}),
    claim_in_header({"dtype": "F64", "shape": [0], "data_offsets": [0, 0]}, size=2**62),
    claim_in_header({"dtype": "F64", "shape": [0], "data_offsets": [0, 0]}, size=99_000_000),
    claim_in_array("clusters.embedder.projection", (0, 2**40)),
    claim_in_array("clusters.centroids", (0, 2**40)),
    claim_in_array("clusters.gate.weights", (2**40, 0)),
    claim_in_array("counts", (2**40, 0)),
    claim_in_outcomes,
    claim_in_parquet,
    lambda: READERS["routerbench.csv"](_csv([*WIDE, ("[" + "-" * 100_000 + "1]", "1", "1")])),
    lambda: READERS["router.json"](b'{"format": ' + b"9" * 10**6 + b"}"),
    lambda: READERS["router.json"](b'{"a":' * 10**6),
]


@pytest.mark.parametrize("terms", [[], ["sum", "sum"]])
def test_a_vocabulary_without_words_or_with_one_twice_is_refused(terms: list[str]) -> None:
    """The one could ask for any amount of memory at the first prompt, the other could not be saved again."""
    projection = np.ones((len(terms), 2**40 if not terms else 2), np.float32)
    with pytest.raises(StorageError, match="terms should be at least one, and each only once"):
        embedder_from_saved(SavedState({"terms": terms}, {"projection": projection}))


def test_more_cells_than_a_table_can_hold_are_refused(tmp_path: Path) -> None:
    """The message says how many prompts and models there are."""
    file = tmp_path / "sparse.jsonl"
    file.write_text("".join(f'{{"prompt": "{n}", "model": "{n}", "score": 1}}\n' for n in range(10_001)))
    with pytest.raises(InvalidInputError, match=r"10,001 prompts and 10,001 models.*only 10,001 are recorded"):
        read_outcomes(file)


@pytest.mark.parametrize("text", ["[{[]: 1}]", "[" + "(" * 5000, "['a', 2]", "[\0]", "['\ud800"])
def test_a_prompt_that_only_looks_like_a_list_stays_as_it_is(text: str, tmp_path: Path) -> None:
    """RouterBench writes some prompts as lists in Python's notation; others begin with a bracket."""
    rows = [("prompt", "mini", "mini|total_cost"), (text, 1, 0)]
    (tmp_path / "bench.csv").write_bytes(_csv_with_surrogates(rows))
    with contextlib.suppress(UniRouterError):
        assert read_routerbench(tmp_path / "bench.csv").prompts == (text,)


READ_AS: dict[str, Callable[[Path], Any]] = {
    "router.json": lambda path: UniRouter.load(path.parent),
    "router.safetensors": lambda path: UniRouter.load(path.parent),
    "profile.json": lambda path: LLMProfile.load(path.parent),
    "embedder.json": lambda path: LocalEmbedder.load(path.parent),
    "outcomes.csv": read_outcomes,
    "outcomes.jsonl": read_outcomes,
    "outcomes.parquet": read_outcomes,
    "routerbench.csv": read_routerbench,
    "embedllm.csv": read_embedllm,
    "prompts.txt": read_prompts,
    "examples.jsonl": lambda path: list(read_examples(path)),
}


@pytest.mark.parametrize("name", READ_AS)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_regular_files_are_read(name: str, kind: str, tmp_path: Path) -> None:
    """A pipe that nobody writes to would be waited for without end, and a device be read without end."""
    if kind == "pipe" and not hasattr(os, "mkfifo"):
        pytest.skip("there are no named pipes")
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if name == "router.safetensors":
        (tmp_path / "router.json").write_bytes(seed_files()["router.json"])
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises((StorageError, InvalidInputError, OSError)):
        READ_AS[name](path)


@pytest.mark.parametrize("name", ["router.json", "router.safetensors", "prompts.txt"])
def test_a_file_that_is_too_large_is_refused_before_it_is_read(name: str, tmp_path: Path) -> None:
    """Here files of a terabyte with nothing in them, which take no room on the disk."""
    for each in ("router.json", "router.safetensors"):
        (tmp_path / each).write_bytes(seed_files()[each])
    with (tmp_path / name).open("ab") as file:
        file.truncate(2**40)
    with pytest.raises(StorageError, match=rf"{name}' is larger than [\d,]+ bytes, which are the most that are read"):
        READ_AS[name](tmp_path / name)


def test_a_header_that_takes_long_to_parse_is_refused(tmp_path: Path) -> None:
    """A router has about a dozen arrays, not a million."""
    header = {str(n): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(20_000)}
    document = json.loads(seed_files()["router.json"])
    data = packed(header)
    (tmp_path / "router.safetensors").write_bytes(data)
    (tmp_path / "router.json").write_text(json.dumps({**document, "arrays_sha256": sha256(data).hexdigest()}))
    with pytest.raises(
        StorageError, match=r"router.safetensors in .* claims a header of [\d,]+ bytes, of which at most"
    ):
        UniRouter.load(tmp_path)


def _zipped(tmp_path: Path, *, claimed: int | None = None) -> str:
    """The URL of a folder in a zip file, in which the arrays are a gigabyte of zeros, and the size that is claimed."""
    path = tmp_path / "router.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("router.json", seed_files()["router.json"])
        with archive.open("router.safetensors", "w", force_zip64=True) as file:
            for _ in range(64):
                file.write(bytes(2**20))
    if claimed is not None:
        data = path.read_bytes()
        path.write_bytes(data.replace(struct.pack("<I", 2**26), struct.pack("<I", claimed)))
    return f"zip://::{path}"


@pytest.mark.parametrize("claimed", [None, 1000])
def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claimed: int | None) -> None:
    """Whether it is honest about its size or not: no more than the limit is ever inflated."""
    pytest.importorskip("fsspec")
    monkeypatch.setattr(_storage, "_MAX_ARRAYS", 2**22)
    tracemalloc.start()
    with pytest.raises(StorageError, match=r"is larger than 4,194,304 bytes|is missing, damaged or not the one"):
        UniRouter.load(_zipped(tmp_path, claimed=claimed))
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


class Unknown(io.BytesIO):
    """A stream without an end, of a server that does not say how long it is."""

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size > 0
        return bytes(size)


def test_a_stream_without_an_end_is_read_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server that states no size, or a wrong one."""
    fsspec = pytest.importorskip("fsspec")

    class Endless(fsspec.AbstractFileSystem):  # type: ignore[misc, name-defined]
        protocol = "endless"
        size: int | None = None

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            return {"name": path, "type": "file", "size": self.size}

        def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
            return Unknown()

    fsspec.register_implementation("endless", Endless, clobber=True)
    for size in (None, 10):
        monkeypatch.setattr(Endless, "size", size)
        with pytest.raises(StorageError, match=r"router.json in 'endless://host/...' is larger than 16,777,216 bytes"):
            UniRouter.load("endless://host/router")


def test_a_prior_that_takes_long_to_compute_with_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is computed with it."""
    router = UniRouter.fit(PROMPTS, n_clusters=2, scores={"mini": SCORES})
    router.register(router.profile("mini", PROMPTS, SCORES, cost=1))
    router.save(tmp_path)
    monkeypatch.setattr(_snapshot, "_MAX_WORK", 15)
    with pytest.raises(StorageError, match="A prior over 2 clusters for 1 models would take too long"):
        UniRouter.load(tmp_path)
    monkeypatch.setattr(_snapshot, "_MAX_WORK", 16)
    monkeypatch.setattr(np.linalg, "eigvalsh", None)  # which takes seven times as long as what is used
    assert UniRouter.load(tmp_path).models == ("mini",)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_line_without_an_end_is_refused(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read to its end."""
    monkeypatch.setattr(_tables, "_MAX_LINE", 1000)
    path = tmp_path / f"outcomes.{suffix}"
    start = b"prompt,model,score\n" if suffix == "csv" else seed_files()["outcomes.jsonl"]
    path.write_bytes(start + b"[" * 1000)
    with pytest.raises(
        InvalidInputError, match=rf"could not be read as {suffix}: a line has more than 1,000 characters"
    ):
        read_outcomes(path)


def test_a_table_with_more_rows_than_fit_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred bytes of a parquet file can claim any number of equal ones."""
    monkeypatch.setattr(_tables, "_MAX_ROWS", 5)
    path = tmp_path / "outcomes.jsonl"
    path.write_bytes(seed_files()["outcomes.jsonl"])
    with pytest.raises(InvalidInputError, match="more than 5 rows, the most that are read into memory"):
        read_outcomes(path)


def test_a_parquet_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it says of itself, before anything of it is inflated."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr(_tables, "_MAX_GROUP", 2**20)
    rows = {"prompt": [str(n) + "x" * 1000 for n in range(2000)], "model": ["m"] * 2000, "score": [1.0] * 2000}
    parquet.write_table(pa.table(rows), tmp_path / "bomb.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "bomb.parquet").stat().st_size < 2**17
    with pytest.raises(
        InvalidInputError, match=r"a row group has 2,\d+,\d+ bytes, of which at most 1,048,576 are read"
    ):
        read_outcomes(tmp_path / "bomb.parquet")


@pytest.mark.parametrize("sign", ["\n", "\x1b", "\x9b", "\u2028", "\u202e"])
@pytest.mark.parametrize("place", ["name", "keyword"])
def test_names_that_cannot_be_printed_do_not_load(sign: str, place: str, tmp_path: Path) -> None:
    """They would be lines of a log of their own, or orders to a terminal."""
    document = json.loads(seed_files()["router.json"])
    if place == "name":
        document["profiles"][0]["name"] += sign
    else:
        document["clusters"]["clusters"][0]["keywords"] = ["sum", f"poem{sign}"]
    (tmp_path / "router.json").write_text(json.dumps(document))
    (tmp_path / "router.safetensors").write_bytes(seed_files()["router.safetensors"])
    with pytest.raises(StorageError) as caught:
        UniRouter.load(tmp_path)
    assert str(caught.value).isprintable()


def _csv_with_surrogates(rows: list[tuple[Any, ...]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def test_prompt_ids_of_any_kind_are_read_or_refused(tmp_path: Path) -> None:
    """A list cannot be an id; a column that comes twice, or a file without rows, is refused as well."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def tables(prompts: dict[str, Any], outcomes: dict[str, Any]) -> None:
        parquet.write_table(pa.table(prompts), tmp_path / "prompts.parquet")
        parquet.write_table(pa.table(outcomes), tmp_path / "outcomes.parquet")

    one = {"prompt_id": [1], "model": ["m"], "score": [1.0]}
    for prompts, outcomes, message in (
        ({"prompt_id": [["x"]], "prompt": ["p"]}, one, "prompts.parquet', row 1: the prompt_id should be a text"),
        ({"prompt_id": [1], "prompt": ["p"]}, {**one, "prompt_id": [[1]]}, "row 1: the prompt_id should be a text"),
        ({"prompt_id": [], "prompt": []}, one, "row 1: the prompt_id is not in"),
    ):
        tables(prompts, outcomes)
        with pytest.raises(UniRouterError, match=message):
            read_outcomes(tmp_path)
    twice = pa.Table.from_arrays([pa.array(["p"]), pa.array(["q"])], names=["prompt", "prompt"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(UniRouterError, match=r"twice.parquet' could not be read as parquet: .*2 times"):
        read_prompts(tmp_path / "twice.parquet")
    with pytest.raises(FileNotFoundError):
        read_prompts(tmp_path / "missing.parquet")
