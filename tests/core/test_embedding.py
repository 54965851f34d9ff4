"""Texts to vectors: what is accepted, what is refused, and the default embedder."""

import asyncio
import copy
import functools
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import KINDS, toy_embed
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings

from unirouter_integrations import (
    Embedder,
    EmbeddingError,
    InvalidInputError,
    LocalEmbedder,
    MissingDependencyError,
    StorageError,
    UniRouter,
    as_embedder,
)
from unirouter_integrations.embedding._base import unit

PROMPTS = [f"{verb} the {thing} of {n}" for n in range(5) for verb in ("Add", "Name") for thing in ("sum", "capital")]


@pytest.fixture(scope="module")
def local() -> LocalEmbedder:
    return LocalEmbedder.fit(PROMPTS)


class AsyncOnly(Embeddings):
    """A LangChain embedding whose two paths can be told apart."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[1.0, 0.0] for _ in texts]

    def embed_query(self, text: str) -> list[float]:
        return [0.0, 0.0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[0.0, 1.0] for _ in texts]


class Plain:
    """An encoder that takes texts and nothing else."""

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.ones((len(texts), 3), np.float32)


class Encoder:
    """What a SentenceTransformer looks like from outside, called in a way that must not be used."""

    def encode(self, texts: Sequence[str], *, show_progress_bar: bool | None = None) -> npt.NDArray[np.float32]:
        assert show_progress_bar is False
        return np.ones((len(texts), 3), np.float32)

    def __call__(self, *_: Any) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("given_embedder", "dimension"),
    [
        (lambda texts: np.ones((len(texts), 4)), 4),
        (lambda texts: [[1, 2] for _ in texts], 2),
        (DeterministicFakeEmbedding(size=5), 5),
        (Encoder(), 3),
        (Plain(), 3),
        ("fitted", 6),
    ],
)
async def test_everything_a_user_has_becomes_an_embedder(given_embedder: Any, dimension: int) -> None:
    """A callable, LangChain embeddings, an encoder and our own all give (n, d) float32, sync and async alike."""
    if given_embedder == "fitted":
        given_embedder = LocalEmbedder.fit(PROMPTS, dimension=6)
    embedder = as_embedder(given_embedder)
    assert isinstance(embedder, Embedder)
    vectors = embedder.embed(["Add the sum", "of the capital"])
    assert vectors.shape == (2, dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, await embedder.aembed(["Add the sum", "of the capital"]))
    assert len(embedder.embed([])) == len(await embedder.aembed([])) == 0
    assert as_embedder(embedder) is embedder


async def test_langchain_embeddings_are_awaited_by_their_own_method() -> None:
    """Documents mode in both, and no thread where the embedding has an async method."""
    embedder = as_embedder(AsyncOnly())
    assert embedder.embed(["a"]).tolist() == [[1, 0]]
    assert (await embedder.aembed(["b"])).tolist() == [[0, 1]]


async def test_a_llamaindex_embedding_is_used_in_query_mode() -> None:
    """The query embedding is the one a RAG pipeline computes for the question anyway."""
    pytest.importorskip("llama_index.core")
    from llama_index.core.embeddings import MockEmbedding

    class Queries(MockEmbedding):
        def _get_query_embedding(self, query: str) -> list[float]:
            return [float(len(query)), 1.0]

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_query_embedding(query)

    embedder = as_embedder(Queries(embed_dim=2))
    assert embedder.embed(["a", "bcd"]).tolist() == [[1, 1], [3, 1]]
    assert (await embedder.aembed(["a", "bcd"])).tolist() == [[1, 1], [3, 1]]
    assert embedder.name.startswith("llamaindex:")


@pytest.mark.parametrize("thing", [3, None, {"a": 1}, DeterministicFakeEmbedding, "local"])
def test_anything_else_is_refused_by_name(thing: Any) -> None:
    """The error says what was given and what may be."""
    with pytest.raises(InvalidInputError, match=r"int|NoneType|dict|DeterministicFakeEmbedding|LocalEmbedder.fit"):
        as_embedder(thing)


def test_a_model_name_without_sentence_transformers_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is in the message."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingDependencyError, match=r"unirouter-integrations\[sentence-transformers\]"):
        as_embedder("all-MiniLM-L6-v2")


def test_static_embeddings_are_accepted(tmp_path: Path) -> None:
    """A model2vec model, as an object and by the name of its folder; nothing is fetched."""
    model2vec = pytest.importorskip("model2vec")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "add": 1, "rain": 2}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = Whitespace()
    model = model2vec.StaticModel(np.eye(3, 4, dtype=np.float32), tokenizer)
    model.save_pretrained(tmp_path)
    static, named = as_embedder(model), as_embedder(f"model2vec:{tmp_path}")
    assert named.name == f"model2vec:{tmp_path}"
    assert np.argmax(static.embed(["add add", "rain"]), axis=1).tolist() == [1, 2]
    np.testing.assert_array_equal(static.embed(["add", "rain"]), named.embed(["add", "rain"]))


def test_a_static_model_without_model2vec_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is in the message."""
    monkeypatch.setitem(sys.modules, "model2vec", None)
    with pytest.raises(MissingDependencyError, match=r"unirouter-integrations\[model2vec\]"):
        as_embedder("model2vec:potion")


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 2.0]], "2 texts should give 2 vectors, but there are 1"),
        ([[1.0, np.nan], [1.0, 1.0]], "Vector 0 holds NaN or infinity"),
        ([[1.0, 1.0], [np.inf, 1.0]], "Vector 1 holds NaN or infinity"),
        ([[1.0, 1.0], [1e300, 1.0]], "Vector 1 holds NaN or infinity"),
        ([1.0, 2.0], r"shape \(2,\)"),
        ([[], []], r"shape \(2, 0\)"),
        ([[1.0], [1.0, 2.0]], "could not be read"),
        ([["a"], ["b"]], "could not be read"),
    ],
)
def test_vectors_that_cannot_be_used_are_refused(vectors: Any, message: str) -> None:
    """Wrong number, shape or type, NaN and infinity: the error names the embedder and the fault."""

    def broken(texts: Sequence[str]) -> Any:
        return vectors

    with pytest.raises(EmbeddingError, match=message) as error:
        as_embedder(broken).embed(["a", "b"])
    assert "broken" in str(error.value)


def test_a_coroutine_function_is_refused() -> None:
    """It cannot be called where nothing awaits it; the message says what can."""

    async def embed(texts: Sequence[str]) -> Any:
        raise AssertionError

    class Callable:
        async def __call__(self, texts: Sequence[str]) -> Any:
            raise AssertionError

    functions: list[Any] = [embed, functools.partial(embed), Callable()]
    for function in functions:
        with pytest.raises(InvalidInputError, match=r"is a coroutine function.*LangChain Embeddings"):
            as_embedder(function)


def test_an_error_of_the_embedding_service_passes_through() -> None:
    """What a service raises is not ours to rename."""

    def down(texts: Sequence[str]) -> Any:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        as_embedder(down).embed(["a"])


@pytest.mark.parametrize("texts", ["one text", [1], ["a", None]])
def test_only_lists_of_texts_are_embedded(local: LocalEmbedder, texts: Any) -> None:
    """A single text, the common slip, is not read as a list of letters."""
    with pytest.raises(InvalidInputError, match="texts"):
        local.embed(texts)


def lengths_of(texts: Sequence[str]) -> npt.ArrayLike:
    """Vectors that tell texts of different length apart."""
    return [[len(text), 1] for text in texts]


class Counting:
    """A callable that notes the batches it is given, and may be made to wait in the first one."""

    def __init__(self, function: Callable[[list[str]], Any] = lengths_of) -> None:
        self.function = function
        self.batches: list[list[str]] = []
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def __call__(self, texts: list[str]) -> Any:
        self.batches.append(texts)
        self.entered.set()
        assert self.go_on.wait(10)
        if "broken" in texts:
            raise ConnectionError
        return self.function(texts)


async def begun(counting: Counting, *calls: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Tasks for these calls; the first one's batch is being embedded, and the others wait."""
    counting.go_on.clear()
    first = asyncio.create_task(calls[0])
    await asyncio.to_thread(counting.entered.wait)
    rest = [asyncio.create_task(call) for call in calls[1:]]
    await asyncio.sleep(0)
    return [first, *rest]


async def test_a_text_that_comes_again_is_not_embedded_again() -> None:
    """Sync and async share what they know; a text asked for twice at once is embedded once; results are not shared."""
    counting = Counting()
    embedder = as_embedder(counting)
    embedder.embed(["a", "bb", "a"])[:] = 7
    assert (await embedder.aembed(["bb", "ccc"])).tolist() == [[2, 1], [3, 1]]
    assert embedder.embed(["ccc", "a", "\ud800"]).tolist() == [[3, 1], [1, 1], [1, 1]]
    assert counting.batches == [["a", "bb"], ["ccc"], ["?"]]  # no tokenizer takes half a surrogate pair


def test_the_texts_asked_for_last_are_remembered() -> None:
    """1,024 of them: the one that was not asked for the longest gives way, and a copy starts with none."""
    counting = Counting()
    embedder = as_embedder(counting)
    embedder.embed([str(n) for n in range(1024)])
    embedder.embed(["0"])
    embedder.embed(["new"])
    counting.batches.clear()
    embedder.embed(["0", "1"])
    assert counting.batches == [["1"]]
    copied = copy.copy(embedder)
    copied.embed(["0"])
    assert counting.batches == [["1"], ["0"]]


async def test_prompts_that_wait_are_embedded_together(router: UniRouter) -> None:
    """The first is embedded at once; the forty that come meanwhile in two calls, 32 at most in each."""
    counting = Counting(toy_embed)
    routed = UniRouter(replace(router.clusters, embedder=as_embedder(counting)), estimator="mean")
    for profile in router.profiles.values():
        routed.register(profile)
    prompts = [f"a {KINDS[n % 3]} of {n}" for n in range(41)]
    tasks = await begun(counting, *(routed.aroute(prompt) for prompt in prompts))
    counting.go_on.set()
    decisions = await asyncio.gather(*tasks)
    assert [len(batch) for batch in counting.batches] == [1, 32, 8]
    assert [one.model for one in decisions] == [router.route(prompt).model for prompt in prompts]


async def test_a_cancelled_caller_harms_no_other() -> None:
    """Before its turn, its text is not embedded; in its turn, the others still get their vectors."""
    counting = Counting()
    embedder = as_embedder(counting)
    running, waiting, other = await begun(counting, *(embedder.aembed([text]) for text in ("a", "bb", "ccc")))
    running.cancel()
    waiting.cancel()
    await asyncio.sleep(0)
    counting.go_on.set()
    assert (await other).tolist() == [[3, 1]]
    assert running.cancelled()
    assert waiting.cancelled()
    assert counting.batches == [["a"], ["ccc"]]


async def test_the_error_of_one_caller_is_not_anothers() -> None:
    """Where a call for several fails, each is served alone; what the service raised passes through."""
    counting = Counting()
    embedder = as_embedder(counting)
    tasks = await begun(counting, *(embedder.aembed([text]) for text in ("a", "bb", "ccc", "broken")))
    counting.go_on.set()
    *good, bad = await asyncio.gather(*tasks, return_exceptions=True)
    assert [vectors.tolist() for vectors in good if not isinstance(vectors, BaseException)] == [
        [[1, 1]],
        [[2, 1]],
        [[3, 1]],
    ]
    assert isinstance(bad, ConnectionError)


def test_many_threads_and_event_loops_share_an_embedder() -> None:
    """Four threads, each with an event loop of its own and thirty tasks: each text has its own vector."""
    embedder = as_embedder(Counting())

    async def lengths(thread: int) -> list[float]:
        texts = ["x" * (30 * thread + n) for n in range(30)]
        return [float(one[0, 0]) for one in await asyncio.gather(*(embedder.aembed([text]) for text in texts))]

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda thread: asyncio.run(lengths(thread)), range(4)))
    assert found == [list(range(30 * thread, 30 * thread + 30)) for thread in range(4)]


def test_an_encoder_is_used_by_one_thread_at_a_time() -> None:
    """Tokenizers are changed while they work; two threads in one at once would meet an error."""

    class Encoder:
        inside = threading.Lock()

        def encode(self, texts: Sequence[str]) -> npt.ArrayLike:
            assert self.inside.acquire(blocking=False)
            time.sleep(0.001)
            self.inside.release()
            return lengths_of(texts)

    embedder = as_embedder(Encoder())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: embedder.embed(["x" * n]), range(40)))
    assert [vector[0, 0] for vector in found] == list(range(40))


async def test_langchain_embeddings_without_an_async_method_are_called_together() -> None:
    """The one they inherit calls the sync method in a thread, once per caller."""

    class Sync(Embeddings, Counting):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            vectors: list[list[float]] = self(texts)
            return vectors

        def embed_query(self, text: str) -> list[float]:
            raise AssertionError

    model = Sync()
    embedder = as_embedder(model)
    tasks = await begun(model, *(embedder.aembed([text]) for text in ("a", "bb", "ccc")))
    model.go_on.set()
    await asyncio.gather(*tasks)
    assert model.batches == [["a"], ["bb", "ccc"]]


def test_the_local_embedder_is_tfidf_then_svd() -> None:
    """Gathering the rows of a text's terms gives what scikit-learn's whole pipeline gives."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    from unirouter_integrations.embedding._local import terms

    embedder = LocalEmbedder.fit(PROMPTS, dimension=3, seed=3)
    tfidf = TfidfVectorizer(analyzer=terms, min_df=2, sublinear_tf=True)
    matrix = tfidf.fit_transform(sorted(set(PROMPTS)))
    svd = TruncatedSVD(3, random_state=3).fit(matrix)
    texts = [*PROMPTS, "Add the capital of the sum of 3"]
    ours, theirs = embedder.embed(texts), normalize(svd.transform(tfidf.transform(texts)))
    np.testing.assert_allclose(np.abs((ours * theirs).sum(axis=0)), (theirs**2).sum(axis=0), atol=1e-4)  # up to sign
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-4)


def test_the_local_embedder_saves_and_loads(tmp_path: Path) -> None:
    """The same vectors to the last bit, from JSON and arrays."""
    embedder = LocalEmbedder.fit(PROMPTS)
    embedder.save(tmp_path / "phi")
    assert sorted(file.name for file in (tmp_path / "phi").iterdir()) == ["embedder.json", "embedder.safetensors"]
    np.testing.assert_array_equal(LocalEmbedder.load(tmp_path / "phi").embed(PROMPTS), embedder.embed(PROMPTS))
    with pytest.raises(StorageError, match="no saved embedder"):
        LocalEmbedder.load(tmp_path)


def test_the_local_embedder_is_deterministic() -> None:
    """The order and the repetition of the prompts do not matter, nor does anything else but the seed."""
    again = LocalEmbedder.fit([*reversed(PROMPTS), *PROMPTS])
    np.testing.assert_array_equal(LocalEmbedder.fit(PROMPTS).embed(PROMPTS), again.embed(PROMPTS))


def test_the_local_embedder_keeps_no_word_of_a_single_prompt() -> None:
    """With 20 prompts or more, what one prompt alone holds is not kept; long numbers never are."""
    prompts = [f"what is {n} plus {n}" for n in range(30)]
    secret = ["my password is hunterx and 4111111111111111", "My password is hunterx, and 4111111111111111!"]
    vocabulary = LocalEmbedder.fit([*prompts, *secret, "call 4111111111111111"])
    assert "plus" in vocabulary.vocabulary
    assert not any("hunterx" in term or len(term) > 20 or "4111" in term for term in vocabulary.vocabulary)


def test_a_text_without_known_words_is_the_zero_vector() -> None:
    """Nothing known about it: neither NaN nor an error."""
    vectors = LocalEmbedder.fit(PROMPTS).embed(["", "   ", "qwerty", "Add"])
    assert (vectors[:3] == 0).all()
    assert np.linalg.norm(vectors[3]) == pytest.approx(1)


@pytest.mark.parametrize("prompts", [["hello"], ["hello world"], ["a", "b"], ["???"], ["数学の問題", "詩を書く"]])
def test_the_local_embedder_fits_very_little_text(prompts: list[str]) -> None:
    """One prompt, one word, signs, other scripts: a vector that is not zero for each."""
    vectors = LocalEmbedder.fit(prompts).embed(prompts)
    assert (np.linalg.norm(vectors, axis=1) > 0).all()


def test_signs_are_words() -> None:
    """Sums that differ only in their operator are different prompts, and so are C, C++ and C#."""
    sums = [f"{a} {sign} {b}" for a in range(3, 8) for b in range(3, 8) for sign in "+-*/"]
    embedder = LocalEmbedder.fit(sums)
    assert set("+-*/") <= embedder.vocabulary.keys()
    plus, times, other_plus = embedder.embed(["3 + 4", "3 * 4", "6 + 7"])
    assert plus @ times < 0.9
    assert other_plus @ plus > 0
    code = LocalEmbedder.fit([f"Write {what} code in {name}" for what in "abcdefghij" for name in ("C", "C++", "C#")])
    assert {"+", "#"} <= code.vocabulary.keys()


def test_scripts_without_spaces_are_read_letter_by_letter() -> None:
    """An unseen Chinese prompt shares letters and pairs of letters with the fitted ones."""
    prompts = [f"请计算{n}加{n}等于多少" for n in range(15)] + [
        f"请写一首关于{word}的诗" for word in "花月雪山海风雨星云树"
    ]
    embedder = LocalEmbedder.fit(prompts)
    poem, total, other_poem = embedder.embed(["写一首诗", "计算等于多少", "关于猫的诗"])
    assert poem @ other_poem > 2 * abs(poem @ total)


@pytest.mark.parametrize("prompts", [[], ["", "  "]])
def test_the_local_embedder_needs_text(prompts: list[str]) -> None:
    """No text at all is a clear error."""
    with pytest.raises(InvalidInputError, match="needs text"):
        LocalEmbedder.fit(prompts)


def test_prompts_that_share_no_word_say_so() -> None:
    """Thirty prompts with thirty different words: the error tells what to do."""
    with pytest.raises(InvalidInputError, match="give it more prompts"):
        LocalEmbedder.fit([chr(0x4E00 + n) for n in range(30)])


@given(
    st.lists(st.lists(st.sampled_from([*" ".join(PROMPTS).split(), "qwerty"]), max_size=60).map(" ".join), max_size=5)
)
def test_a_batch_is_bit_equal_to_single_texts(local: LocalEmbedder, texts: list[str]) -> None:
    """So that a decision is the same alone and in a batch."""
    np.testing.assert_array_equal(
        local.embed(texts), np.array([local.embed([text])[0] for text in texts]).reshape(-1, local.projection.shape[1])
    )


@given(st.lists(st.text(), max_size=5))
def test_any_text_gives_a_finite_vector(local: LocalEmbedder, texts: list[str]) -> None:
    """Null bytes, emoji, mixed scripts: at most of length 1, and of length 1 or 0 but for what is not known of it."""
    vectors = local.embed(texts)
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.isfinite(vectors).all()
    assert (lengths < 1 + 1e-5).all()
    scaled = unit(vectors)
    assert ((np.abs(np.linalg.norm(scaled, axis=1) - 1) < 1e-5) | (lengths == 0)).all()


def test_the_length_of_a_local_vector_says_how_much_of_the_text_is_known(local: LocalEmbedder) -> None:
    """The share of its distinct words; what is not known does not change the direction."""
    texts = ["Add", "Add qwerty", "add Add qwerty", "Add qwerty asdf zxcv", "qwerty"]
    vectors = local.embed(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1 / 2, 1 / 2, 1 / 4, 0], atol=1e-5)
    np.testing.assert_allclose(unit(vectors)[1:2], unit(vectors)[:1], atol=1e-5)
    np.testing.assert_allclose(unit(vectors)[3], unit(vectors)[0], atol=1e-5)
