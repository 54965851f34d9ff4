"""Small programs that answer questions about a text, wrapped as LlamaIndex LLMs, and a local embedding model.

The programs are not language models. Each solves some kinds of questions by plain rules, from what was retrieved, and
fails at the others, always in the same way. Their prices are made up.
"""

import re
from collections.abc import Callable
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import CompletionResponse, CompletionResponseGen, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback
from pydantic import ConfigDict
from typing_extensions import override

from unirouter_integrations import LocalEmbedder

Solver = Callable[[str, list[str]], str | None]


class LocalLLM(CustomLLM):
    """An LLM whose answers come from solvers, tried in order.

    Attributes:
        model_name: Its name.
        solvers: Functions from a question and the sentences retrieved for it to an answer, or to None where they see
            nothing they can do.
    """

    model_name: str
    solvers: tuple[Solver, ...]

    @property
    @override
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model_name, context_window=8000)

    @override
    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        _, context, asked = prompt.split("-" * 21, 2)  # as LlamaIndex's own template has it
        question = asked.partition("Query: ")[2].removesuffix("Answer: ").strip()
        sentences = re.findall(r"[A-Z][^.]*\.", context)
        answers = (solve(question, sentences) for solve in self.solvers)
        return CompletionResponse(text=next((answer for answer in answers if answer), "I cannot tell."))

    @override
    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        text = ""
        for word in re.findall(r"\S+\s*", self.complete(prompt).text):
            text += word
            yield CompletionResponse(text=text, delta=word)


class WordEmbedding(BaseEmbedding):
    """TF-IDF and SVD, fitted on some texts, as a LlamaIndex embedding model.

    Attributes:
        embedder: The fitted embedder.
        n_queries: The number of queries it has embedded.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    embedder: LocalEmbedder
    n_queries: int = 0

    @override
    def _get_query_embedding(self, query: str) -> list[float]:
        self.n_queries += 1
        return self._get_text_embedding(query)

    @override
    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    @override
    def _get_text_embedding(self, text: str) -> list[float]:
        vector: list[float] = self.embedder.embed([text])[0].tolist()
        return vector


def look_up(question: str, sentences: list[str]) -> str | None:
    """Answer with the first sentence on the place that has the verb or the unit of the question."""
    if not question.startswith(("When", "How high")):
        return None
    wanted = "opened" if question.startswith("When") else "metres"
    return next((sentence for sentence in about(question, sentences) if wanted in sentence), None)


def multiply(question: str, sentences: list[str]) -> str | None:
    """Calculate the price of several tickets."""
    count = re.search(r"\d+", question)
    prices = [re.search(r"(\d+) francs", sentence) for sentence in about(question, sentences)]
    price = next(filter(None, prices), None)
    return f"{int(count[0]) * int(price[1])} francs" if count and price else None


def sum_up(question: str, sentences: list[str]) -> str | None:
    """Answer with every sentence on the place."""
    return " ".join(about(question, sentences)) or None


def about(question: str, sentences: list[str]) -> list[str]:
    """The sentences on the place that a question names."""
    places = set(re.findall(r"[A-Z]\w+", question)[1:])
    return [sentence for sentence in sentences if places & set(re.findall(r"\w+", sentence))]
