"""Texts to vectors (the paper's phi).

`as_embedder` makes an `Embedder` of any `EmbedderLike`, such as a LangChain `Embeddings` or a `SentenceTransformer`.
`LocalEmbedder` is the default, and needs nothing else.
"""

from unirouter_integrations.embedding._adapters import EmbedderLike, as_embedder
from unirouter_integrations.embedding._base import Embedder, Vectors
from unirouter_integrations.embedding._local import LocalEmbedder
from unirouter_integrations.embedding._onnx import OnnxEncoder, export_onnx

__all__ = ["Embedder", "EmbedderLike", "LocalEmbedder", "OnnxEncoder", "Vectors", "as_embedder", "export_onnx"]
