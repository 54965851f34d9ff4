"""Phi: prompts to clusters.

K-means on the embeddings of unlabelled prompts (the paper's section 5.1). `Phi(x)` holds the memberships of a prompt in
the clusters: the one-hot vector of the nearest centroid, or soft memberships from a gate, which is set from distances
or learned (section 5.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt

from unirouter_integrations._checks import one_of, whole_number
from unirouter_integrations._concurrency import HangGuard
from unirouter_integrations._storage import SavedState
from unirouter_integrations.core._gate import Floats, SoftmaxGate, softmax
from unirouter_integrations.embedding import Embedder, EmbedderLike, LocalEmbedder, Vectors, as_embedder
from unirouter_integrations.embedding._adapters import aembed_within, embed_within
from unirouter_integrations.embedding._base import check_texts, check_vectors, unit, unit_and_length
from unirouter_integrations.embedding._local import distinct_texts, embedder_from_saved, embedder_to_saved, words
from unirouter_integrations.errors import EmbeddingError, InvalidInputError, StorageError

Assignment = Literal["hard", "soft"]

# Saved routers hold the vector of this text: changing it makes them refuse their own embedder.
_PROBE_TEXT = "Explain in two sentences how the sum of 12 and 30 is found, then write a short function that prints it."
_PROBE_TOLERANCE = 0.05  # distance between unit vectors
# For n_clusters="auto". In the paper's figures of EmbedLLM and RouterBench, the area changes by less than 0.01 between
# 20 and 100 clusters.
_PROMPTS_PER_CLUSTER = 20
_MAX_AUTO_CLUSTERS = 50
_KEYWORDS_PER_CLUSTER = 6
# Familiarity, see `_distance_scales`.
_FAMILIAR_QUANTILE = 0.99  # of the fitting prompts
_MIN_FALLOFF = 0.1  # of the radius
_SMALL_FIT = 100  # prompts; with n fitting prompts the falloff is longer by a factor 1 + 100 / n
# The log odds of the nearest cluster against the second, for a typical prompt. On recorded outcomes 1 to 5 were within
# 0.002 of area where outcomes of known models are given; without any, 1 was above 3 by up to 0.006. Where kinds of
# prompts lie apart, or prompts are few, the softer ones blur specialists.
_SHARPNESS = 4.0
# No fit gives values outside these bounds, and a saved file with such values is refused.
_MIN_SCALE = 1e-3  # squared distance
_MIN_KNOWN_SHARE = 1e-3  # length of a vector
_MAX_SAVED = 1e6  # squared distance, or weight of a gate
_SHARES_TOLERANCE = 1e-3  # how far the sum of the shares may be from 1


class Memberships(NamedTuple):
    """Phi of some prompts.

    Attributes:
        phi: `(n, K)`, how much each prompt belongs to each cluster. Rows sum to 1.
        familiarity: `(n,)`, from 1 (like the prompts of the fit) to 0 (unlike all of them). The less familiar a prompt
            is, the closer its memberships are to the shares of the clusters, so that a model's expected error falls
            back to its mean over all clusters.
    """

    phi: Floats
    familiarity: Floats


@dataclass(frozen=True)
class ClusterDescription:
    """A readable description of a cluster.

    Attributes:
        cluster: The index of the cluster.
        share: The share of the fitting prompts in it.
        keywords: The words most typical of it, most typical first. Each occurs in at least two of the prompts.
    """

    cluster: int
    share: float
    keywords: tuple[str, ...]

    def __str__(self) -> str:
        return f"cluster {self.cluster} ({self.share:.0%} of prompts): {', '.join(self.keywords) or 'no shared words'}"


@dataclass(frozen=True, eq=False)
class PromptClusters:
    """A fitted map from prompts to K clusters. Create one with `PromptClusters.fit`.

    Vectors are scaled to length 1 first, so only their direction counts.

    Attributes:
        centroids: `(K, d)`.
        shares: `(K,)`, the mean membership of the fitting prompts in each cluster.
        keywords: The most typical words of each cluster.
        gate: Computes soft memberships; None for hard assignment.
        familiar_radius: The squared distance from the nearest centroid within which a prompt is fully familiar. It
            covers 99% of the fitting prompts.
        familiar_falloff: The squared distance beyond the radius over which familiarity falls to 1/e.
        min_known_share: The shortest vector of the local embedder (its length is the share of known words) with which a
            prompt is fully familiar. It covers 99% of the fitting prompts. 0 for other embedders.
        embedder: Turns prompts into vectors; None if the clusters were fitted on vectors alone.
        probe: `(d,)`, the unit vector of a fixed text, by which loading recognises the embedder. None without embedder.
    """

    centroids: Vectors
    shares: npt.NDArray[np.float64]
    keywords: tuple[tuple[str, ...], ...]
    gate: SoftmaxGate | None
    familiar_radius: float
    familiar_falloff: float
    min_known_share: float = 0.0
    embedder: Embedder | None = None
    probe: Vectors | None = None

    @classmethod
    def fit(
        cls,
        prompts: Sequence[str],
        embedder: EmbedderLike | None = "local",
        *,
        n_clusters: int | Literal["auto"] = "auto",
        seed: int = 0,
        vectors: npt.ArrayLike | None = None,
        assignment: Assignment = "soft",
    ) -> PromptClusters:
        """Cluster unlabelled prompts.

        Args:
            prompts: The kind of prompts that will be routed. A few hundred are enough.
            embedder: `"local"` fits a `LocalEmbedder` on the prompts; anything else is passed to `as_embedder`.
                None, together with `vectors`, gives clusters that only accept vectors.
            n_clusters: K. `"auto"` is one cluster per 20 prompts, at most 50, and never more than there are distinct
                prompts.
            seed: Seed of K-means and of the local embedder. The same prompts and seed give the same clusters.
            vectors: `(len(prompts), d)`, the embeddings of the prompts by this embedder, if already computed.
            assignment: `"soft"` lets a prompt between clusters belong to several; `"hard"` is the paper's section 5.1.

        Raises:
            InvalidInputError: If there are no prompts, or fewer distinct ones than clusters.
            EmbeddingError: If the vectors do not fit the prompts, or are not finite.
        """
        fit = fit_clusters(prompts, embedder, n_clusters=n_clusters, seed=seed, vectors=vectors, assignment=assignment)
        return fit.with_gate(fit.clusters.gate)

    def __len__(self) -> int:
        return len(self.centroids)

    def __repr__(self) -> str:
        embedder = None if self.embedder is None else self.embedder.name
        return f"PromptClusters(n_clusters={len(self)}, dimension={self.dimension}, embedder={embedder!r})"

    @property
    def dimension(self) -> int:
        """The length d of the vectors."""
        return int(self.centroids.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the centroids and the gate. Profiles counted on other clusters have another fingerprint."""
        import hashlib

        arrays = [self.centroids] if self.gate is None else [self.centroids, self.gate.weights, self.gate.bias]
        return hashlib.sha256(b"".join(np.ascontiguousarray(a, "<f4").tobytes() for a in arrays)).hexdigest()[:16]

    @cached_property
    def _guard(self) -> HangGuard:
        return HangGuard()

    def embed(self, prompts: Sequence[str], *, timeout: float | None = None) -> Vectors:
        """Embed prompts and check the vectors, `(n, d)`.

        Args:
            prompts: The prompts.
            timeout: After how many seconds to give up on the embedder; None for never.

        Raises:
            EmbeddingError: If there is no embedder, or its vectors do not fit the clusters.
            TimeoutError: If the embedder takes longer, or is left out because the last calls did.
        """
        texts = check_texts(prompts)
        vectors = embed_within(self._require_embedder(), texts, timeout, self._guard)
        return check_vectors(vectors, rows=len(texts), dimension=self.dimension)

    async def aembed(self, prompts: Sequence[str], *, timeout: float | None = None) -> Vectors:  # noqa: ASYNC109
        """Async version of `embed`."""
        texts = check_texts(prompts)
        vectors = await aembed_within(self._require_embedder(), texts, timeout, self._guard)
        return check_vectors(vectors, rows=len(texts), dimension=self.dimension)

    def assign(self, prompts: Sequence[str]) -> npt.NDArray[np.intp]:
        """The cluster with the largest membership of each prompt, `(n,)`."""
        return np.asarray(self.memberships(prompts).phi.argmax(axis=1))

    def memberships(self, prompts: Sequence[str] | None = None, *, vectors: npt.ArrayLike | None = None) -> Memberships:
        """Phi of prompts, given either as texts or as vectors `(n, d)`."""
        return self.phi(self.vectors(prompts, vectors))

    def vectors(self, prompts: Sequence[str] | None, vectors: npt.ArrayLike | None) -> Vectors:
        """The checked vectors `(n, d)` of prompts, given either as texts or as vectors."""
        if prompts is not None and vectors is None:
            return self.embed(prompts)
        if vectors is not None and prompts is None:
            return check_vectors(vectors, dimension=self.dimension)
        msg = "Give either prompts or vectors."
        raise InvalidInputError(msg)

    def phi(self, vectors: Vectors) -> Memberships:
        """Phi of prompts, given as vectors `(n, d)` that have been checked."""
        points, lengths = unit_and_length(vectors)
        n, size = len(points), len(self)
        if self.gate is None:
            phi = np.zeros((n, size))
            phi[np.arange(n), _nearest(points, self.centroids, self._half_squares)] = 1
            return Memberships(phi, np.ones(n))
        factors, offsets = self._gate_and_centroids
        products = points @ factors + offsets
        phi, nearness = softmax(products[:, :size]), np.maximum.reduce(products[:, size:], axis=1)
        # On unit vectors |x - c|^2 = 1 - 2 (x.c - |c|^2 / 2).
        familiar_nearness = (1 - self.familiar_radius) / 2
        shortest = self.min_known_share or _MIN_KNOWN_SHARE
        if (
            np.minimum.reduce(nearness, initial=1) >= familiar_nearness
            and np.minimum.reduce(lengths, initial=1) >= shortest
        ):
            return Memberships(phi, np.ones(n))  # all are familiar: the common case, worth a shortcut
        familiarity = np.exp(
            np.minimum(2 * (nearness - familiar_nearness), 0, dtype=np.float64) / self.familiar_falloff
        )
        familiarity *= np.minimum(lengths / self.min_known_share, 1) ** 2 if self.min_known_share > 0 else lengths > 0
        weight = familiarity[:, None]
        return Memberships(weight * phi + (1 - weight) * self.shares, familiarity)

    def describe(self) -> list[ClusterDescription]:
        """A readable description of each cluster, by index."""
        return [
            ClusterDescription(cluster, float(share), keywords)
            for cluster, (share, keywords) in enumerate(zip(self.shares, self.keywords, strict=True))
        ]

    @cached_property
    def _gate_and_centroids(self) -> tuple[Vectors, Vectors]:
        # One matrix product gives both the logits of the gate and the nearness of each centroid.
        gate = cast("SoftmaxGate", self.gate)
        return np.vstack([gate.weights, self.centroids]).T, np.concatenate([gate.bias, -self._half_squares])

    @cached_property
    def _half_squares(self) -> Vectors:
        return _half_squares(self.centroids)

    def _require_embedder(self) -> Embedder:
        if self.embedder is None:
            msg = "This router was fitted on vectors, without an embedder; give it vectors instead of prompts."
            raise EmbeddingError(msg)
        return self.embedder


def clusters_to_saved(clusters: PromptClusters) -> SavedState:
    """The state to save. It holds no prompt and no vector of a prompt."""
    state = SavedState(
        {
            "familiar_radius": clusters.familiar_radius,
            "familiar_falloff": clusters.familiar_falloff,
            "min_known_share": clusters.min_known_share,
            "clusters": [{"keywords": list(keywords)} for keywords in clusters.keywords],
        },
        {"centroids": clusters.centroids, "shares": clusters.shares},
    )
    if clusters.gate is not None:
        state.add_child("gate", SavedState({}, {"weights": clusters.gate.weights, "bias": clusters.gate.bias}))
    if clusters.embedder is not None and clusters.probe is not None:
        state.document["embedder_name"] = clusters.embedder.name
        state.arrays["probe"] = clusters.probe
    if isinstance(clusters.embedder, LocalEmbedder):
        state.add_child("embedder", embedder_to_saved(clusters.embedder))
    return state


def clusters_from_saved(state: SavedState, embedder: EmbedderLike | None = None) -> PromptClusters:
    """Restore clusters from a saved state.

    Args:
        state: What `clusters_to_saved` made.
        embedder: The embedder they were fitted with. Not needed for the local one, which is saved with them.

    Raises:
        StorageError: If the state is damaged.
        EmbeddingError: If the embedder is missing, or gives another vector for the probe text.
    """
    centroids = state.array("centroids", (None, None), low=-1.01, high=1.01).astype(np.float32)
    size, dimension = centroids.shape
    shares = state.array("shares", (size,), low=0, high=1).astype(np.float64)
    keywords = tuple(tuple(cluster.strings("keywords")) for cluster in state.children("clusters"))
    radius, falloff = state.value("familiar_radius", float), state.value("familiar_falloff", float)
    min_known_share = state.value("min_known_share", float)
    plausible = (
        min(centroids.shape) > 0
        and abs(float(shares.sum()) - 1) < _SHARES_TOLERANCE
        and len(keywords) == size
        and all(word.isprintable() for of_cluster in keywords for word in of_cluster)
        and all(_MIN_SCALE <= scale <= _MAX_SAVED for scale in (radius, falloff))
        and (min_known_share == 0 or _MIN_KNOWN_SHARE <= min_known_share <= 1)
    )
    if not plausible:
        msg = (
            f"{state.where}centroids, shares, keywords, familiar_radius, familiar_falloff or min_known_share are "
            "not those of fitted clusters. The file is damaged."
        )
        raise StorageError(msg)
    gate = None
    if "gate" in state.document:
        saved = state.child("gate")
        weights = saved.array("weights", (size, dimension), low=-_MAX_SAVED, high=_MAX_SAVED)
        bias = saved.array("bias", (size,), low=-_MAX_SAVED, high=_MAX_SAVED)
        gate = SoftmaxGate(weights.astype(np.float32), bias.astype(np.float32))
    restored, probe = _restore_embedder(state, embedder, dimension)
    return PromptClusters(centroids, shares, keywords, gate, radius, falloff, min_known_share, restored, probe)


class ClusterFit(NamedTuple):
    """Clusters without keywords, and the data they were fitted on, so that nothing is embedded twice.

    Attributes:
        clusters: The clusters; soft ones have a gate from their centroids.
        texts: The fitting prompts.
        unit_vectors: `(n, d)`, the vectors of the prompts, of length 1.
        labels: `(n,)`, the nearest centroid of each prompt.
    """

    clusters: PromptClusters
    texts: list[str]
    unit_vectors: Vectors
    labels: npt.NDArray[np.intp]

    def with_gate(self, gate: SoftmaxGate | None) -> PromptClusters:
        """The clusters with this gate, and with the shares and keywords of the prompts it assigns to them."""
        labels, shares = self.labels, self.clusters.shares
        if gate is not None:
            phi = gate(self.unit_vectors)
            labels, shares = phi.argmax(axis=1), phi.mean(axis=0)
        keywords = _typical_keywords(self.texts, labels, len(self.clusters))
        return replace(self.clusters, gate=gate, shares=shares, keywords=keywords)


def fit_clusters(
    prompts: Sequence[str],
    embedder: EmbedderLike | None = "local",
    *,
    n_clusters: int | Literal["auto"] = "auto",
    seed: int = 0,
    vectors: npt.ArrayLike | None = None,
    assignment: Assignment = "soft",
) -> ClusterFit:
    """Fit clusters as `PromptClusters.fit` does, up to the final gate and the keywords."""
    texts = check_texts(prompts)
    if not texts:
        msg = "There are no prompts to fit on; give at least one."
        raise InvalidInputError(msg)
    if n_clusters != "auto":
        n_clusters = whole_number(n_clusters, 'n_clusters, if not "auto",', low=1)
    seed = whole_number(seed, "seed", low=0, high=2**32 - 1)  # the range of NumPy's and scikit-learn's seeds
    one_of(assignment, "assignment", get_args(Assignment))
    local = isinstance(embedder, str) and embedder == "local"
    if embedder is None and vectors is None:
        msg = "Without an embedder the vectors of the prompts are needed; give vectors= or embedder=."
        raise InvalidInputError(msg)
    if local and vectors is not None:
        msg = (
            "vectors= cannot be those of the local embedder, which is fitted here. Give the embedder that made them, "
            "or embedder=None for a router that only accepts vectors."
        )
        raise InvalidInputError(msg)
    fitted: Embedder | None = None
    if embedder is not None:
        fitted = LocalEmbedder.fit(texts, seed=seed) if local else as_embedder(embedder)
    embedded, probe = _embed_prompts(fitted, texts, vectors)
    points = unit(embedded)
    min_known_share = 0.0
    if isinstance(fitted, LocalEmbedder):
        known_share = np.quantile(np.linalg.norm(embedded, axis=1), 1 - _FAMILIAR_QUANTILE)
        min_known_share = float(np.clip(known_share, _MIN_KNOWN_SHARE, 1))
    distinct = len(np.unique(points.round(5), axis=0))  # rounded: parallel vectors differ in their last bits
    if n_clusters == "auto":
        size = max(1, min(_MAX_AUTO_CLUSTERS, len(texts) // _PROMPTS_PER_CLUSTER, distinct))
    elif n_clusters <= distinct:
        size = n_clusters
    else:
        msg = (
            f"n_clusters={n_clusters}, but the {len(texts)} prompts have only {distinct} distinct embeddings. "
            "Give more prompts or ask for fewer clusters."
        )
        raise InvalidInputError(msg)
    from sklearn.cluster import KMeans

    kmeans = KMeans(size, n_init=4, random_state=seed).fit(points)
    centroids = np.asarray(kmeans.cluster_centers_, np.float32)
    labels = _nearest(points, centroids)
    shares = np.bincount(labels, minlength=size) / len(labels)
    temperature, radius, falloff = _distance_scales(points, centroids)
    gate = SoftmaxGate.from_centroids(centroids, temperature) if assignment == "soft" else None
    no_keywords: tuple[tuple[str, ...], ...] = ((),) * size
    clusters = PromptClusters(centroids, shares, no_keywords, gate, radius, falloff, min_known_share, fitted, probe)
    return ClusterFit(clusters, texts, points, labels)


def _embed_prompts(
    embedder: Embedder | None, texts: list[str], vectors: npt.ArrayLike | None
) -> tuple[Vectors, Vectors | None]:
    """The vectors of the prompts, and the unit vector of the probe text if there is an embedder."""
    if embedder is None:
        return check_vectors(vectors if vectors is not None else [], rows=len(texts)), None
    if vectors is None:
        embedded = check_vectors(embedder.embed([*texts, _PROBE_TEXT]), rows=len(texts) + 1)
        return embedded[:-1], unit(embedded[-1])
    given = check_vectors(vectors, rows=len(texts))
    first, probe = unit(check_vectors(embedder.embed([texts[0], _PROBE_TEXT]), rows=2, dimension=given.shape[1]))
    if np.linalg.norm(first - unit(given[:1])[0]) > _PROBE_TOLERANCE:
        msg = (
            f"The vectors are not those of the embedder {embedder.name!r}: its vector of the first prompt differs from "
            "the first vector. Give the embedder that made them, or leave vectors= out."
        )
        raise EmbeddingError(msg)
    return given, probe


def _restore_embedder(
    state: SavedState, embedder: EmbedderLike | None, dimension: int
) -> tuple[Embedder | None, Vectors | None]:
    """The embedder of saved clusters and the vector of the probe text, or None for both if they had none."""
    if "embedder_name" not in state.document:
        if embedder is not None:
            msg = "This router was fitted on vectors, without an embedder; load it without embedder=."
            raise EmbeddingError(msg)
        return None, None
    probe = state.array("probe", (dimension,), low=-1.01, high=1.01).astype(np.float32)
    name = state.value("embedder_name", str)
    restored: Embedder
    if "embedder" in state.document:
        restored = embedder_from_saved(state.child("embedder"))
        if embedder not in (None, "local"):
            msg = "This router was fitted with the local embedder, which is saved with it; load it without embedder=."
            raise EmbeddingError(msg)
    elif embedder is None:
        msg = (
            f"This router was fitted with the embedder {name!r}, which is not saved with it (only its name is). "
            "Pass that embedder when loading: UniRouter.load(path, embedder=...)."
        )
        raise EmbeddingError(msg)
    else:
        restored = as_embedder(embedder)
    vector = unit(check_vectors(restored.embed([_PROBE_TEXT]), rows=1, dimension=dimension))[0]
    distance = float(np.linalg.norm(vector - probe))
    if distance > _PROBE_TOLERANCE:
        msg = (
            f"The embedder {restored.name!r} is not the one this router was fitted with: its vector of the probe "
            f"text is off by {distance:.3f} (at most {_PROBE_TOLERANCE} is allowed). Load with the embedder of the "
            "fit, or fit again."
        )
        raise EmbeddingError(msg)
    return restored, probe


def _half_squares(centroids: Vectors) -> Vectors:
    return np.asarray((centroids * centroids).sum(axis=1) / 2, np.float32)


def _nearest(points: Vectors, centroids: Vectors, half_squares: Vectors | None = None) -> npt.NDArray[np.intp]:
    # |x - c|^2 is least where x.c - |c|^2 / 2 is greatest.
    half_squares = _half_squares(centroids) if half_squares is None else half_squares
    return np.asarray((points @ centroids.T - half_squares).argmax(axis=-1))


def _distance_scales(points: Vectors, centroids: Vectors) -> tuple[float, float, float]:
    """The temperature of soft memberships, and the radius and falloff of familiarity. All are squared distances.

    The temperature is a quarter of the median of how much farther the second centroid is than the nearest: a typical
    prompt belongs to the nearest cluster e^4 times as much as to the second, and one on a border to both. It is at most
    the median distance to the nearest centroid, which is small where clusters lie apart.

    Radius and falloff are corrected for unseen prompts. A centroid is the mean of its own m prompts, so these are
    nearer to it than other prompts: their squared distances are smaller by (m - 1) / (m + 1) in expectation. With few
    fitting prompts little is known of what is usual, and familiarity falls more slowly.
    """
    squares = (points * points).sum(axis=1, keepdims=True) + (centroids * centroids).sum(axis=1)
    distances = np.sort(np.maximum(squares - 2 * points.astype(np.float64) @ centroids.T, 0), axis=1)
    n, size = len(points), len(centroids)
    correction = (n + size) / max(n - size, 1)
    typical, far = np.quantile(distances[:, 0], [0.5, _FAMILIAR_QUANTILE])
    gap = np.median(distances[:, 1] - distances[:, 0]) if size > 1 else 1.0
    temperature, radius = min(gap / _SHARPNESS, typical), far * correction
    falloff = max(far - typical, _MIN_FALLOFF * far) * correction * (1 + _SMALL_FIT / n)
    return max(float(temperature), _MIN_SCALE), max(float(radius), _MIN_SCALE), max(float(falloff), _MIN_SCALE)


def _readable_words(text: str) -> list[str]:
    """The words of a text that are meaningful alone: no signs, single Latin letters or English stop words."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    candidates = (word for word in words(text) if word.isalpha() and (len(word) > 1 or not word.isascii()))
    return [word for word in candidates if word not in ENGLISH_STOP_WORDS]


def _typical_keywords(texts: list[str], labels: npt.NDArray[np.intp], n_clusters: int) -> tuple[tuple[str, ...], ...]:
    """The words that are much more frequent in each cluster than in all prompts together.

    Only words that at least two distinct prompts share are considered, so a name or a key that occurs in a single
    prompt is not kept.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    row_of = {text: row for row, text in enumerate(texts)}
    rows = [row_of[text] for text in distinct_texts(texts)]
    counter = CountVectorizer(binary=True, min_df=2, max_features=20_000, analyzer=_readable_words)
    try:
        present = counter.fit_transform([texts[row] for row in rows])
    except ValueError:  # no two prompts share a word
        return ((),) * n_clusters
    vocabulary = counter.get_feature_names_out()
    overall = np.asarray(present.mean(axis=0)).ravel()
    keywords: list[tuple[str, ...]] = []
    for cluster in range(n_clusters):
        members = present[labels[rows] == cluster]
        if members.shape[0] == 0:
            keywords.append(())
            continue
        share = np.asarray(members.mean(axis=0)).ravel()
        weight = share * np.log(np.where(share > 0, share, 1) / overall)
        best = np.argsort(-weight, kind="stable")[:_KEYWORDS_PER_CLUSTER]
        keywords.append(tuple(str(vocabulary[index]) for index in best if weight[index] > 0))
    return tuple(keywords)
