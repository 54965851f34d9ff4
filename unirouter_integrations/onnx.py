"""A SentenceTransformer without torch: exported once to ONNX, then run by ONNX Runtime.

The folder that `export_onnx` writes holds two files in common formats, `model.onnx` and `tokenizer.json`. Reading them
parses them and nothing else: no pickle, no network.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unirouter_integrations.errors import InvalidInputError, MissingDependencyError, StorageError
from unirouter_integrations.storage import replace_file

_MODEL, _TOKENIZER = "model.onnx", "tokenizer.json"
_INPUT, _OUTPUT = "input_ids", "sentence_embedding"
_SAMPLES = (
    "Hello",
    "What is the capital of France, and how many people live there?",
    "def f(x): return {'a': x ** 2}  # UPPER and lower case",
    "Ein Satz über Straßen. 写一首关于雪的诗。",
    "a text that is cut off " * 200,
)
_LEAST_COSINE = {"fp32": 0.999, "int8": 0.9}


class OnnxEncoder:
    """What `export_onnx` has written, loaded; `UniRouter.fit(embedder=...)` takes it, and "onnx:FOLDER" for short.

    Each text is run by itself, on one core, and several at once in a batch. Without padding that costs no more, and a
    text has the same vector, to the last bit, alone and among others, on which the scales of int8 would depend.

    Args:
        folder: The folder.

    Raises:
        MissingDependencyError: If onnxruntime or tokenizers is not installed.
        StorageError: If the files are missing, damaged, or not written by `export_onnx`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            msg = "OnnxEncoder needs pip install 'unirouter-integrations[onnx]'."
            raise MissingDependencyError(msg) from error
        self._folder = Path(folder)
        try:
            graph = (self._folder / _MODEL).read_bytes()
            vocabulary = (self._folder / _TOKENIZER).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            msg = (
                f"There is no exported model in {str(folder)!r}: {_MODEL} or {_TOKENIZER} could not be read. "
                "export_onnx(sentence_transformer, folder) writes both."
            )
            raise StorageError(msg) from error
        try:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1  # one text is too little work to share, and the server has other work
            # On a CPU the fused kernel is slower than the three that it replaces.
            self._session: Any = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
            )
            self._tokenizer: Any = Tokenizer.from_str(vocabulary)
        except Exception as error:  # both raise what derives from nothing narrower
            msg = f"{_MODEL} or {_TOKENIZER} in {str(folder)!r} is damaged. Export the model again."
            raise StorageError(msg) from error
        inputs, outputs = (
            [node.name for node in nodes()] for nodes in (self._session.get_inputs, self._session.get_outputs)
        )
        if (inputs, outputs) != ([_INPUT], [_OUTPUT]):
            msg = (
                f"{_MODEL} in {str(folder)!r} takes {inputs} and gives {outputs}, but should take {_INPUT} and give "
                f"{_OUTPUT}. Export the model with export_onnx."
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
        return OnnxEncoder, (self._folder,)  # a worker process reads the folder itself

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The vectors, `(n, d)`, pooled and scaled as the SentenceTransformer does it."""
        from concurrent.futures import ThreadPoolExecutor

        if len(texts) == 1:
            return self._vector(texts[0])[None]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.array(list(pool.map(self._vector, texts)), np.float32)

    def _vector(self, text: str) -> npt.NDArray[np.float32]:
        whole = (self._prefix + text).encode("utf-8", "replace").decode()  # half a surrogate pair is no character
        tokens = np.array([self._tokenizer.encode(whole).ids], np.int64)
        vector: npt.NDArray[np.float32] = self._session.run(None, {_INPUT: tokens})[0][0]
        return vector


def export_onnx(sentence_transformer: Any, folder: str | os.PathLike[str], *, int8: bool = False) -> None:
    """Write a SentenceTransformer as a folder for `OnnxEncoder`. Only this needs torch.

    All that the model does after the tokens is in the exported graph: pooling, normalisation, further layers. Before
    anything is written, its vectors are compared with the model's own.

    Args:
        sentence_transformer: The model or its name.
        folder: The folder; it is made if need be.
        int8: Whether to store and multiply weights as 8-bit integers: a quarter of the size and about twice the speed,
            for vectors that are close to the model's and not equal to them.

    Raises:
        MissingDependencyError: If a package is not installed.
        InvalidInputError: If the model has no fast tokenizer, or the exported one gives other vectors.
    """
    import tempfile

    try:
        import onnx
        import onnxscript  # noqa: F401  # torch asks for it late and in other words
        import torch
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from sentence_transformers import SentenceTransformer
        from tokenizers import Tokenizer
    except ImportError as error:
        msg = "export_onnx needs pip install 'unirouter-integrations[onnx-export]'; loading what it writes does not."
        raise MissingDependencyError(msg) from error
    model = sentence_transformer
    if isinstance(model, str):
        # The graph of this attention is the smallest.
        model = SentenceTransformer(model, device="cpu", model_kwargs={"attn_implementation": "eager"})
    if not hasattr(model.tokenizer, "backend_tokenizer"):
        msg = f"The tokenizer {type(model.tokenizer).__name__} is not a fast one, which is needed for an export."
        raise InvalidInputError(msg)
    tokenizer = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    if model.max_seq_length:
        tokenizer.enable_truncation(model.max_seq_length)

    class Whole(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any) -> Any:
            features = {_INPUT: input_ids, "attention_mask": torch.ones_like(input_ids)}
            return self.model(features)[_OUTPUT][:, : model.truncate_dim]

    with torch.no_grad():
        program = torch.onnx.export(
            Whole().train(mode=False),
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
            # With all 8 bits, sums of products overflow on CPUs without instructions for them (VNNI).
            quantize_dynamic(graph, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
        else:
            target.write_bytes(graph.SerializeToString())
        Path(draft, _TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
        _check(OnnxEncoder(draft).encode(_SAMPLES), model.encode(list(_SAMPLES), show_progress_bar=False), int8=int8)
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in (_TOKENIZER, _MODEL):
            replace_file(Path(folder, name), Path(draft, name).read_bytes())


def _check(exported: npt.NDArray[Any], original: npt.NDArray[Any], *, int8: bool) -> None:
    lengths = np.linalg.norm(exported, axis=1) * np.linalg.norm(original, axis=1)
    cosine = float(((exported * original).sum(axis=1) / lengths).min())
    least = _LEAST_COSINE["int8" if int8 else "fp32"]
    if not cosine >= least:
        msg = (
            f"The exported model gives other vectors than the model itself: their cosine is {cosine:.3f}, at least "
            f"{least} is wanted. " + ("Export it without int8." if int8 else "It cannot be exported.")
        )
        raise InvalidInputError(msg)
