"""A SentenceTransformer without torch: exported once to ONNX, then run by ONNX Runtime.

`export_onnx` writes a folder with two files in common formats, `model.onnx` and `tokenizer.json`. `OnnxEncoder` only
parses them: it loads no pickle and opens no connection.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unirouter_integrations._checks import requires, shown_path
from unirouter_integrations._storage import read_file, replace_file
from unirouter_integrations.embedding._base import Vectors, check_model_name, encodable
from unirouter_integrations.errors import InvalidInputError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

_MODEL, _TOKENIZER = "model.onnx", "tokenizer.json"
_MAX_BYTES = 2**31  # of each; a protobuf, which a model is, is never larger
_INPUT, _OUTPUT = "input_ids", "sentence_embedding"
# Texts on which an export is compared with its model: short, long, code, other scripts, and one that is cut off.
_SAMPLES = (
    "Hello",
    "What is the capital of France, and how many people live there?",
    "def f(x): return {'a': x ** 2}  # UPPER and lower case",
    "Ein Satz über Straßen. 写一首关于雪的诗。",
    "a text that is cut off " * 200,
)
# Of the exported vectors and the model's own; a faulty export is far below. MiniLM has more than 0.99999 and 0.97.
_MIN_COSINE = {"fp32": 0.999, "int8": 0.9}


class OnnxEncoder:
    """A sentence encoder that runs what `export_onnx` has written.

    `UniRouter.fit(embedder=...)` takes it, or the name "onnx:FOLDER".

    Each text runs by itself on one core; the texts of a batch run in parallel. Without padding this costs no more. And
    a text has the same vector, to the last bit, alone and in a batch, on which the scales of int8 would depend.

    Args:
        folder: The folder that `export_onnx` has written.

    Raises:
        MissingDependencyError: If onnxruntime or tokenizers is not installed.
        StorageError: If the files are missing, damaged, or not written by `export_onnx`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from pathlib import Path

        with requires("OnnxEncoder", "onnx"):
            import onnxruntime
            from tokenizers import Tokenizer
        self._folder = Path(folder)
        try:
            graph = read_file(self._folder / _MODEL, _MAX_BYTES)
            vocabulary = read_file(self._folder / _TOKENIZER, _MAX_BYTES).decode()
        except (OSError, ValueError):
            msg = (
                f"There is no exported model in {shown_path(folder)}: {_MODEL} or {_TOKENIZER} could not be read. "
                "export_onnx(sentence_transformer, folder) writes both."
            )
            raise StorageError(msg) from None  # the original shows the whole of a URL
        try:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1  # one text is too little work to share among cores
            # On a CPU the fused kernel is slower than the three kernels that it replaces.
            self._session: Any = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
            )
            self._tokenizer: Any = Tokenizer.from_str(vocabulary)
        except Exception as error:  # neither library has a narrower class for its errors
            msg = f"{_MODEL} or {_TOKENIZER} in {shown_path(folder)} is damaged. Export the model again."
            raise StorageError(msg) from error
        inputs, outputs = (
            [node.name for node in nodes()] for nodes in (self._session.get_inputs, self._session.get_outputs)
        )
        if (inputs, outputs) != ([_INPUT], [_OUTPUT]):
            msg = (
                f"{_MODEL} in {shown_path(folder)} takes {inputs} and gives {outputs}, but should take {_INPUT} and "
                f"give {_OUTPUT}. Export the model with export_onnx."
            )
            raise StorageError(msg)
        self._prefix = self._session.get_modelmeta().custom_metadata_map.get("prefix", "")

    @property
    def model_name(self) -> str:
        """The name of the folder."""
        return self._folder.resolve().name

    def __repr__(self) -> str:
        return f"OnnxEncoder({str(self._folder)!r})"

    def __reduce__(self) -> tuple[type[OnnxEncoder], tuple[Path]]:
        return OnnxEncoder, (self._folder,)  # a worker process reads the folder again

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return vectors, `(n, d)`, pooled and scaled as by the SentenceTransformer."""
        from concurrent.futures import ThreadPoolExecutor

        if len(texts) == 1:
            return self._vector(texts[0])[None]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.array(list(pool.map(self._vector, texts)), np.float32)

    def _vector(self, text: str) -> Vectors:
        tokens = np.array([self._tokenizer.encode(encodable(self._prefix + text)).ids], np.int64)
        vector: Vectors = self._session.run(None, {_INPUT: tokens})[0][0]
        return vector


def export_onnx(
    sentence_transformer: SentenceTransformer | str, folder: str | os.PathLike[str], *, int8: bool = False
) -> None:
    """Export a SentenceTransformer to a folder for `OnnxEncoder`. Only the export needs torch.

    The exported graph holds all that the model does after tokenization: pooling, normalisation, further layers. Its
    vectors are compared with the model's own before the folder is written.

    Args:
        sentence_transformer: The model or its name.
        folder: The folder; it is made if it does not exist.
        int8: Whether to store and multiply weights as 8-bit integers: a quarter of the size and about twice the speed,
            for vectors that are close to the model's but not equal.

    Raises:
        MissingDependencyError: If a package is not installed.
        InvalidInputError: If a text is no name of a model, the model has no fast tokenizer, or the exported one gives
            other vectors.
    """
    import tempfile
    from pathlib import Path

    with requires("export_onnx (but not OnnxEncoder, which loads what it writes)", "onnx-export"):
        import onnx
        import onnxscript  # noqa: F401  # torch needs it, but its own error would come late and name no extra
        import torch
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from sentence_transformers import SentenceTransformer
        from tokenizers import Tokenizer
    model: Any = sentence_transformer
    if isinstance(model, str):
        check_model_name(model, model)
        # Eager attention gives the smallest graph.
        model = SentenceTransformer(model, device="cpu", model_kwargs={"attn_implementation": "eager"})
    if not hasattr(model.tokenizer, "backend_tokenizer"):
        msg = f"The tokenizer {type(model.tokenizer).__name__} is not a fast one, which is needed for an export."
        raise InvalidInputError(msg)
    tokenizer = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    if model.max_seq_length:
        tokenizer.enable_truncation(model.max_seq_length)

    class FromTokenIds(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any) -> Any:
            features = {_INPUT: input_ids, "attention_mask": torch.ones_like(input_ids)}
            return self.model(features)[_OUTPUT][:, : model.truncate_dim]

    with torch.no_grad():
        program = torch.onnx.export(
            FromTokenIds().train(mode=False),
            (torch.tensor([tokenizer.encode(_SAMPLES[1]).ids], device=model.device),),
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_shapes=({1: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            verbose=False,
        )
    graph = program.model_proto
    onnx.helper.set_model_props(graph, {"prefix": model.prompts.get(model.default_prompt_name) or ""})
    with tempfile.TemporaryDirectory() as draft:
        target = Path(draft, _MODEL)
        if int8:
            # With all 8 bits, sums of products overflow on CPUs without VNNI instructions.
            quantize_dynamic(graph, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
        else:
            target.write_bytes(graph.SerializeToString())
        Path(draft, _TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
        _check_same_vectors(
            OnnxEncoder(draft).encode(_SAMPLES), model.encode(list(_SAMPLES), show_progress_bar=False), int8=int8
        )
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in (_TOKENIZER, _MODEL):
            replace_file(Path(folder, name), Path(draft, name).read_bytes())


def _check_same_vectors(exported: npt.NDArray[Any], original: npt.NDArray[Any], *, int8: bool) -> None:
    lengths = np.linalg.norm(exported, axis=1) * np.linalg.norm(original, axis=1)
    cosine = float(((exported * original).sum(axis=1) / lengths).min())
    required = _MIN_COSINE["int8" if int8 else "fp32"]
    if not cosine >= required:
        msg = (
            f"The exported model gives other vectors than the model itself: their cosine is {cosine:.3f}, but at "
            f"least {required} is required. " + ("Export it without int8." if int8 else "It cannot be exported.")
        )
        raise InvalidInputError(msg)
