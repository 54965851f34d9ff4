"""The default embedder, fitted on the user's own prompts."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from unirouter_integrations._checks import whole_number
from unirouter_integrations._concurrency import off_loop
from unirouter_integrations._storage import SavedState, read_folder, write_folder
from unirouter_integrations.embedding._base import Vectors, check_texts, unit
from unirouter_integrations.errors import InvalidInputError, StorageError

# Scripts written without spaces between words (Thai and Lao, Burmese, Khmer, kana, Chinese characters).
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W\d_])+|\d|[^\w\s]")
_PUNCTUATION = frozenset(".,;:!?…\"'")
_DROP_RARE_TERMS_FROM = 20  # distinct prompts; with fewer, most terms would be dropped
_MAX_CHARACTERS = 20_000  # of a text that are read; all of 10 MB took 7 s
_MAX_CHARACTERS_IN_LOOP = 5_000
_MAX_WEIGHT = 1e6  # of a saved projection; fitted ones are far below (an idf is at most 1 + ln of the prompts)


@dataclass(frozen=True, eq=False)
class LocalEmbedder:
    """The default embedder: TF-IDF, then truncated SVD, fitted on the user's own prompts.

    It needs no download, no torch and no key. Of the prompts it keeps the vocabulary: single words and pairs of
    neighbouring words (each digit and sign counts as a word, and so does each letter of a script without spaces).
    From 20 distinct prompts on, it keeps only terms that at least two of them share, and so nothing that a single
    prompt holds; with fewer prompts it keeps every term.

    Attributes:
        vocabulary: The index of each term.
        projection: `(terms, d)`: the right singular vectors, each row times the term's inverse document
            frequency, so that embedding a text is a weighted sum of the rows of its terms.
    """

    vocabulary: dict[str, int]
    projection: Vectors

    @classmethod
    def fit(
        cls, prompts: Sequence[str], *, dimension: int = 256, max_terms: int = 20_000, seed: int = 0
    ) -> LocalEmbedder:
        """Fit an embedder on some prompts.

        Args:
            prompts: The texts; a few hundred are enough.
            dimension: The maximum length of the vectors; with few prompts they are shorter.
            max_terms: The maximum number of terms to keep, the most frequent ones.
            seed: Seed of the randomised SVD.

        Raises:
            InvalidInputError: If there is no text in the prompts.
        """
        texts = distinct_texts(check_texts(prompts))
        dimension, max_terms = whole_number(dimension, "dimension", low=1), whole_number(max_terms, "max_terms", low=1)
        seed = whole_number(seed, "seed", low=0, high=2**32 - 1)  # the range of NumPy's and scikit-learn's seeds
        if not any(words(text) for text in texts):
            msg = "The local embedder needs text to be fitted on, but there is none in the prompts given."
            raise InvalidInputError(msg)
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd

        min_df = 2 if len(texts) >= _DROP_RARE_TERMS_FROM else 1
        tfidf = TfidfVectorizer(analyzer=terms, min_df=min_df, max_features=max_terms, sublinear_tf=True)
        try:
            matrix = tfidf.fit_transform(texts)
        except ValueError as error:
            msg = f"The local embedder found no word that two of the {len(texts)} prompts share; give it more prompts."
            raise InvalidInputError(msg) from error
        vocabulary = {str(term): int(index) for term, index in tfidf.vocabulary_.items()}
        components = randomized_svd(matrix, min(dimension, *matrix.shape), random_state=seed)[2]
        projection = np.asarray(components.T * tfidf.idf_[:, None], np.float32)
        return cls(vocabulary, projection)

    @property
    def name(self) -> str:
        """Always `"local"`: this embedder is saved whole, not by name."""
        return "local"

    def embed(self, texts: Sequence[str], /) -> Vectors:
        """Return vectors, `(n, d)`.

        The length of a vector is the share of the text's distinct words that are known: 1 for all, 0 for none. Of a
        text of more than 20,000 characters the first and the last 10,000 are read.
        """
        batch = check_texts(texts, "texts")
        vectors = np.zeros((len(batch), self.projection.shape[1]), np.float32)
        known_share = np.zeros((len(batch), 1), np.float32)
        for row, text in enumerate(batch):
            found = terms(_excerpt(text))
            counts = Counter(index for term in found if (index := self.vocabulary.get(term)) is not None)
            if counts:
                weights = np.array([1 + math.log(count) for count in counts.values()], np.float32)
                vectors[row] = weights @ self.projection[list(counts)]
                single_words = set(found[: len(found) // 2 + 1])  # n words come before their n - 1 pairs
                known_share[row] = len(single_words & self.vocabulary.keys()) / len(single_words)
        return unit(vectors) * known_share

    async def aembed(self, texts: Sequence[str], /) -> Vectors:
        """Async version of `embed`. It uses a thread only for more text than takes some 3 milliseconds."""
        batch = check_texts(texts, "texts")
        is_long = sum(min(len(text), _MAX_CHARACTERS) for text in batch) > _MAX_CHARACTERS_IN_LOOP
        return await off_loop(is_long, self.embed, batch)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save as `embedder.json` and `embedder.safetensors` in a folder."""
        write_folder(path, "embedder", embedder_to_saved(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LocalEmbedder:
        """Load what `save` wrote.

        Raises:
            StorageError: If the files are missing or damaged.
        """
        return embedder_from_saved(read_folder(path, "embedder"))


def embedder_to_saved(embedder: LocalEmbedder) -> SavedState:
    """Return what is saved: the terms in the order of the rows of the projection, and the projection."""
    return SavedState(
        {"terms": sorted(embedder.vocabulary, key=embedder.vocabulary.__getitem__)},
        {"projection": embedder.projection},
    )


def embedder_from_saved(state: SavedState) -> LocalEmbedder:
    """Restore an embedder that `embedder_to_saved` saved.

    Raises:
        StorageError: If the state is damaged.
    """
    saved = state.strings("terms")
    projection = state.array("projection", (len(saved), None), low=-_MAX_WEIGHT, high=_MAX_WEIGHT)
    if not projection.size or len(set(saved)) < len(saved):  # nothing bounds the width of an array without rows
        msg = f"{state.where}terms should be at least one, and each only once. The saved file is damaged."
        raise StorageError(msg)
    return LocalEmbedder({term: index for index, term in enumerate(saved)}, projection.astype(np.float32))


def words(text: str) -> list[str]:
    """Split a text into lower-case words. A digit, a sign and a letter of a script without spaces is a word each."""
    return _WORD.findall(text.lower())


def terms(text: str) -> list[str]:
    """Return the words of a text, and after them the pairs of neighbouring words."""
    found = words(text)
    return found + [f"{first} {second}" for first, second in pairwise(found)]


def _excerpt(text: str) -> str:
    """Return the head and the tail of a long text, where what is asked for is written."""
    if len(text) <= _MAX_CHARACTERS:
        return text
    half = _MAX_CHARACTERS // 2
    head, tail = text[:half], text[-half:]
    return f"{head.rpartition(' ')[0] or head}\n{tail}"  # a word that is cut counts once


def distinct_texts(texts: Sequence[str]) -> list[str]:
    """Return the texts, sorted, without those that differ from another only in punctuation, spaces or case."""
    by_words = {tuple(word for word in words(text) if word not in _PUNCTUATION): text for text in sorted(texts)}
    return sorted(by_words.values())
