"""Phi: prompts to clusters.

K-means on the embeddings of unlabelled prompts (the paper's section 5.1). `Phi(x)` holds the memberships of a prompt in
the clusters: the one-hot vector of the nearest centroid, or soft ones by distance, or by a learned gate (section 5.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt

from unirouter_integrations.embedding import (
    Embedder,
    LocalEmbedder,
    Vectors,
    as_embedder,
    check_texts,
    check_vectors,
    distinct_texts,
    unit,
    unit_and_length,
    words,
)
from unirouter_integrations.errors import EmbeddingError, InvalidInputError, StorageError
from unirouter_integrations.learned_map import Floats, LearnedMap, softmax
from unirouter_integrations.storage import State

Assignment = Literal["hard", "soft"]

_PROBE = "Explain in two sentences how the sum of 12 and 30 is found, then write a short function that prints it."
_PROBE_TOLERANCE = 0.05
_PROMPTS_PER_CLUSTER = 20
_MOST_CLUSTERS = 50
_TERMS = 6
_FAMILIAR_QUANTILE = 0.99
_LEAST_SCALE = 1e-3
_LEAST_FALL = 0.1
_FEW_PROMPTS = 100
# On recorded outcomes 1 to 5 were within 0.002 of area where outcomes of known models are given; without any, 1 was
# above 3 by up to 0.006. Where kinds of prompts lie apart, or prompts are few, the softer ones blur specialists.
_SHARPNESS = 4.0
_LARGEST_WEIGHT = 1e6


class Memberships(NamedTuple):
    """Phi of some prompts.

    Attributes:
        phi: `(n, K)`, how much each prompt belongs to each cluster; rows sum to 1.
        familiarity: `(n,)`, from 1, a prompt like those of the fit, to 0, one unlike all of them. The less familiar a
            prompt, the more its memberships are the shares of the clusters, so that a model's expected error falls
            back to its mean over all clusters.
    """

    phi: Floats
    familiarity: Floats


@dataclass(frozen=True)
class ClusterDescription:
    """What a person can read about a cluster.

    Attributes:
        cluster: Its index.
        share: The share of the fitting prompts in it.
        terms: The words most typical of it, most typical first; only words that several of the prompts share.
    """

    cluster: int
    share: float
    terms: tuple[str, ...]

    def __str__(self) -> str:
        return f"cluster {self.cluster} ({self.share:.0%} of prompts): {', '.join(self.terms) or 'no shared words'}"


@dataclass(frozen=True, eq=False)
class PromptClusters:
    """A fitted map from prompts to K clusters. Make one with `PromptClusters.fit`.

    Vectors are scaled to length 1 before anything else, so only their direction counts.

    Attributes:
        centroids: `(K, d)`.
        shares: `(K,)`, the mean membership of the fitting prompts in each cluster.
        terms: The most typical words of each cluster.
        gate: Gives soft memberships, by distance or learned; None for hard assignment.
        reach: The squared distance from the nearest centroid within which a prompt is familiar (99% of those of the
            fit are), and over which familiarity then falls to 1/e.
        least_known: The least length of a vector of the local embedder (the share of its words that are known) with
            which a prompt is familiar (99% of those of the fit are); 0 for other embedders.
        embedder: Turns prompts into vectors; None if the clusters only ever see vectors.
        probe: The vector of a fixed sentence; tells whether another embedder is the same. None without embedder.
    """

    centroids: Vectors
    shares: npt.NDArray[np.float64]
    terms: tuple[tuple[str, ...], ...]
    gate: LearnedMap | None
    reach: tuple[float, float]
    least_known: float = 0.0
    embedder: Embedder | None = None
    probe: Vectors | None = None

    @classmethod
    def fit(
        cls,
        prompts: Sequence[str],
        embedder: object = "local",
        *,
        n_clusters: int | Literal["auto"] = "auto",
        seed: int = 0,
        vectors: npt.ArrayLike | None = None,
        assignment: Assignment = "soft",
    ) -> PromptClusters:
        """Cluster some unlabelled prompts.

        Args:
            prompts: The kind of prompts that will be routed; a few hundred are enough.
            embedder: `"local"` fits a `LocalEmbedder` on the prompts; anything else goes through `as_embedder`.
                None, with `vectors`, gives clusters that only ever see vectors.
            n_clusters: K. `"auto"` is one cluster for every 20 prompts, at most 50, and never more than there are
                distinct prompts.
            seed: Seed of K-means and of the local embedder; the same prompts and seed give the same clusters.
            vectors: The embeddings of the prompts by this embedder, if they are at hand, `(len(prompts), d)`.
            assignment: `"soft"` lets a prompt between clusters belong to several; `"hard"` is the paper's section 5.1.

        Raises:
            InvalidInputError: If there are no prompts, or fewer distinct ones than clusters.
            EmbeddingError: If the vectors do not fit the prompts, or are not finite.
        """
        fitted = fit_clusters(
            prompts, embedder, n_clusters=n_clusters, seed=seed, vectors=vectors, assignment=assignment
        )
        return fitted.described(fitted.bare.gate)

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
        """Tells clusters apart: profiles measured on other clusters, or through another gate, have another one."""
        import hashlib

        arrays = [self.centroids] if self.gate is None else [self.centroids, self.gate.weights, self.gate.bias]
        return hashlib.sha256(b"".join(np.ascontiguousarray(a, "<f4").tobytes() for a in arrays)).hexdigest()[:16]

    def embed(self, prompts: Sequence[str]) -> Vectors:
        """The vectors of some prompts, `(n, d)`, checked.

        Raises:
            EmbeddingError: If there is no embedder, or its vectors do not fit the clusters.
        """
        texts = check_texts(prompts)
        return check_vectors(self._phi().embed(texts), rows=len(texts), dimension=self.dimension)

    async def aembed(self, prompts: Sequence[str]) -> Vectors:
        """`embed`, awaited."""
        texts = check_texts(prompts)
        return check_vectors(await self._phi().aembed(texts), rows=len(texts), dimension=self.dimension)

    def assign(self, prompts: Sequence[str]) -> npt.NDArray[np.intp]:
        """The cluster each prompt belongs to most, `(n,)`."""
        return np.asarray(self.memberships(prompts).phi.argmax(axis=1))

    def memberships(self, prompts: Sequence[str] | None = None, *, vectors: npt.ArrayLike | None = None) -> Memberships:
        """Phi of some prompts, given as texts or as their vectors, `(n, d)`."""
        return self.phi(self.vectors(prompts, vectors))

    def vectors(self, prompts: Sequence[str] | None, vectors: npt.ArrayLike | None) -> Vectors:
        """The vectors of some prompts, given as texts or as vectors that are checked, `(n, d)`."""
        if prompts is not None and vectors is None:
            return self.embed(prompts)
        if vectors is not None and prompts is None:
            return check_vectors(vectors, dimension=self.dimension)
        msg = "Give either prompts or vectors."
        raise InvalidInputError(msg)

    def phi(self, vectors: Vectors) -> Memberships:
        """Phi of some prompts, given as vectors that have been checked."""
        points, known = unit_and_length(vectors)
        if self.gate is None:
            phi = np.zeros((len(points), len(self)))
            phi[np.arange(len(points)), _nearest(points, self.centroids, self._offsets)] = 1
            return Memberships(phi, np.ones(len(points)))
        factors, offsets = self._gate_and_centroids
        both = points @ factors + offsets
        size, (within, over) = len(self), self.reach
        phi, nearest = softmax(both[:, :size]), np.maximum.reduce(both[:, size:], axis=1)
        beyond = (1 - within) / 2  # on unit vectors |x - c|^2 = 1 - 2 (x.c - |c|^2 / 2)
        least_known = self.least_known or _LEAST_SCALE
        if np.minimum.reduce(nearest, initial=1) >= beyond and np.minimum.reduce(known, initial=1) >= least_known:
            return Memberships(phi, np.ones(len(points)))
        familiarity = np.exp(np.minimum(2 * (nearest - beyond), 0, dtype=np.float64) / over)
        familiarity *= np.minimum(known / self.least_known, 1) ** 2 if self.least_known > 0 else known > 0
        familiar = familiarity[:, None]
        return Memberships(familiar * phi + (1 - familiar) * self.shares, familiarity)

    def describe(self) -> list[ClusterDescription]:
        """Something to read about each cluster."""
        return [
            ClusterDescription(cluster, float(share), terms)
            for cluster, (share, terms) in enumerate(zip(self.shares, self.terms, strict=True))
        ]

    def to_state(self) -> State:
        """What is saved: no prompt, no vector of a prompt."""
        state = State(
            {
                "reach": list(self.reach),
                "least_known": self.least_known,
                "clusters": [{"terms": list(terms)} for terms in self.terms],
            },
            {"centroids": self.centroids, "shares": self.shares},
        )
        if self.gate is not None:
            state.nest("gate", State({}, {"weights": self.gate.weights, "bias": self.gate.bias}))
        if self.embedder is not None and self.probe is not None:
            state.document["embedder_name"] = self.embedder.name
            state.arrays["probe"] = self.probe
        if isinstance(self.embedder, LocalEmbedder):
            state.nest("embedder", self.embedder.to_state())
        return state

    @classmethod
    def from_state(cls, state: State, embedder: object = None) -> PromptClusters:
        """The clusters that were saved as this state.

        Args:
            state: What `to_state` gave.
            embedder: The embedder they were fitted with; not needed for the local one, which is saved with them.

        Raises:
            StorageError: If the state is damaged.
            EmbeddingError: If the embedder is missing, or gives another vector for the probe sentence.
        """
        centroids = state.numbers("centroids", (None, None), low=-1.01, high=1.01).astype(np.float32)
        size, dimension = centroids.shape
        shares = state.numbers("shares", (size,), low=0, high=1).astype(np.float64)
        reach = state.value("reach", list)
        terms = tuple(tuple(cluster.texts("terms")) for cluster in state.parts("clusters"))
        least_known = state.value("least_known", float)
        sane = abs(float(shares.sum()) - 1) < _LEAST_SCALE and (least_known == 0 or _LEAST_SCALE <= least_known <= 1)
        within = [isinstance(scale, float) and _LEAST_SCALE <= scale <= _LARGEST_WEIGHT for scale in reach]
        sane &= within == [True, True]
        if not (min(centroids.shape) > 0 and sane and len(terms) == size):
            msg = (
                f"{state.where}centroids, shares, reach, least_known or terms are not those of fitted clusters. "
                "The file is damaged."
            )
            raise StorageError(msg)
        gate = None
        if "gate" in state.document:
            part = state.part("gate")
            weights, bias = (
                part.numbers(name, shape, low=-_LARGEST_WEIGHT, high=_LARGEST_WEIGHT)
                for name, shape in (("weights", (size, dimension)), ("bias", (size,)))
            )
            gate = LearnedMap(weights.astype(np.float32), bias.astype(np.float32))
        fitted = partial(cls, centroids, shares, terms, gate, (reach[0], reach[1]), least_known)
        if "embedder_name" not in state.document:
            if embedder is not None:
                msg = "This router was fitted on vectors, without an embedder; load it without embedder=."
                raise EmbeddingError(msg)
            return fitted()
        probe = state.numbers("probe", (dimension,), low=-1.01, high=1.01).astype(np.float32)
        if "embedder" in state.document:
            phi: Embedder = LocalEmbedder.from_state(state.part("embedder"))
            if embedder not in (None, "local"):
                msg = (
                    "This router was fitted with the local embedder, which is saved with it; load it without embedder=."
                )
                raise EmbeddingError(msg)
        else:
            phi = _named_embedder(embedder, state.value("embedder_name", str))
        _check_probe(phi, probe)
        return fitted(phi, probe)

    @cached_property
    def _gate_and_centroids(self) -> tuple[Vectors, Vectors]:
        # One product gives the scores of the gate and tells how near each centroid is.
        gate = cast("LearnedMap", self.gate)
        return np.vstack([gate.weights, self.centroids]).T, np.concatenate([gate.bias, -self._offsets])

    @cached_property
    def _offsets(self) -> Vectors:
        return _half_square(self.centroids)

    def _phi(self) -> Embedder:
        if self.embedder is None:
            msg = "This router was fitted on vectors, without an embedder; give it vectors instead of prompts."
            raise EmbeddingError(msg)
        return self.embedder


def _is_whole(number: object) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def _embedder(embedder: object, texts: list[str], seed: int) -> Embedder | None:
    if embedder is None:
        return None
    if isinstance(embedder, str) and embedder == "local":
        return LocalEmbedder.fit(texts, seed=seed)
    return as_embedder(embedder)


def _named_embedder(embedder: object, name: str) -> Embedder:
    if embedder is None:
        msg = (
            f"This router was fitted with the embedder {name!r}, which is not saved with it (only its name is). "
            "Pass that embedder when loading: UniRouter.load(path, embedder=...)."
        )
        raise EmbeddingError(msg)
    return as_embedder(embedder)


def _check_probe(embedder: Embedder, probe: Vectors) -> None:
    """Refuse an embedder whose vector of the probe sentence has moved (by 5% of its length, in any direction)."""
    vector = unit(check_vectors(embedder.embed([_PROBE]), rows=1, dimension=len(probe)))[0]
    moved = float(np.linalg.norm(vector - probe))
    if moved > _PROBE_TOLERANCE:
        msg = (
            f"The embedder {embedder.name!r} is not the one this router was fitted with: its vector of the probe "
            f"sentence is off by {moved:.3f} (at most {_PROBE_TOLERANCE} is allowed). Load with the "
            "embedder of the fit, or fit again."
        )
        raise EmbeddingError(msg)


def _half_square(centroids: Vectors) -> Vectors:
    return np.asarray((centroids * centroids).sum(axis=1) / 2, np.float32)


def _nearest(points: Vectors, centroids: Vectors, half_square: Vectors | None = None) -> npt.NDArray[np.intp]:
    # |x - c|^2 is least where x.c - |c|^2 / 2 is greatest.
    half_square = _half_square(centroids) if half_square is None else half_square
    return np.asarray((points @ centroids.T - half_square).argmax(axis=-1))


def _scales(points: Vectors, centroids: Vectors) -> tuple[float, tuple[float, float]]:
    """The temperature of soft memberships and the reach, from the squared distances of the fitting prompts.

    The temperature is a quarter of the median of how much farther the second centroid is than the nearest: a typical
    prompt belongs to the nearest cluster e^4 times as much as to the second, and one on a border to both. It is not
    more than the median distance to the nearest, which is small where clusters lie apart. The reach is for unseen
    prompts: a centroid is the mean of its own m prompts, so that, squared, these are nearer to it than others, by
    (m - 1) / (m + 1) in expectation. With few prompts little is known of what is usual, and familiarity falls slower.
    """
    squares = (points * points).sum(axis=1, keepdims=True) + (centroids * centroids).sum(axis=1)
    distances = np.sort(np.maximum(squares - 2 * points.astype(np.float64) @ centroids.T, 0), axis=1)
    n, size = len(points), len(centroids)
    unseen = (n + size) / max(n - size, 1)
    typical, far = np.quantile(distances[:, 0], [0.5, _FAMILIAR_QUANTILE])
    gap = np.median(distances[:, 1] - distances[:, 0]) if size > 1 else 1.0
    within, over = far * unseen, max(far - typical, _LEAST_FALL * far) * unseen * (1 + _FEW_PROMPTS / n)
    return max(float(min(gap / _SHARPNESS, typical)), _LEAST_SCALE), (
        max(float(within), _LEAST_SCALE),
        max(float(over), _LEAST_SCALE),
    )


def _readable_words(text: str) -> list[str]:
    """The words of a text that say something by themselves: no signs, single Latin letters or English stop words."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    found = (word for word in words(text) if word.isalpha() and (len(word) > 1 or not word.isascii()))
    return [word for word in found if word not in ENGLISH_STOP_WORDS]


def _typical_terms(texts: list[str], labels: npt.NDArray[np.intp], n_clusters: int) -> tuple[tuple[str, ...], ...]:
    """The words that are much more frequent in a cluster than in all prompts together.

    Only words of letters that at least two distinct prompts share are looked at: a name or a key that one prompt
    alone holds is not kept.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    at = {text: row for row, text in enumerate(texts)}
    rows = [at[text] for text in distinct_texts(texts)]
    counter = CountVectorizer(binary=True, min_df=2, max_features=20_000, analyzer=_readable_words)
    try:
        present = counter.fit_transform([texts[row] for row in rows])
    except ValueError:  # no two prompts share a word
        return ((),) * n_clusters
    names = counter.get_feature_names_out()
    overall = np.asarray(present.mean(axis=0)).ravel()
    found: list[tuple[str, ...]] = []
    for cluster in range(n_clusters):
        members = present[labels[rows] == cluster]
        if members.shape[0] == 0:
            found.append(())
            continue
        share = np.asarray(members.mean(axis=0)).ravel()
        weight = share * np.log(np.where(share > 0, share, 1) / overall)
        best = np.argsort(-weight, kind="stable")[:_TERMS]
        found.append(tuple(str(names[index]) for index in best if weight[index] > 0))
    return tuple(found)


class FittedClusters(NamedTuple):
    """Clusters that nobody has described yet, and what they were fitted on, so that nothing is embedded twice.

    Attributes:
        bare: The clusters, by distance if they are soft, without terms.
        texts: The prompts.
        points: Their unit vectors, `(n, d)`.
        labels: The nearest centroid of each, `(n,)`.
    """

    bare: PromptClusters
    texts: list[str]
    points: Vectors
    labels: npt.NDArray[np.intp]

    def described(self, gate: LearnedMap | None) -> PromptClusters:
        """The clusters with this gate, and with shares and terms of the prompts that it puts into them."""
        labels, shares = self.labels, self.bare.shares
        if gate is not None:
            phi = gate(self.points)
            labels, shares = phi.argmax(axis=1), phi.mean(axis=0)
        return replace(self.bare, gate=gate, shares=shares, terms=_typical_terms(self.texts, labels, len(self.bare)))


def fit_clusters(
    prompts: Sequence[str],
    embedder: object = "local",
    *,
    n_clusters: int | Literal["auto"] = "auto",
    seed: int = 0,
    vectors: npt.ArrayLike | None = None,
    assignment: Assignment = "soft",
) -> FittedClusters:
    """The work of `PromptClusters.fit`, up to the description."""
    texts = check_texts(prompts)
    if not texts:
        msg = "There are no prompts to fit on; give at least one."
        raise InvalidInputError(msg)
    if n_clusters != "auto" and not (_is_whole(n_clusters) and n_clusters >= 1):
        msg = f'n_clusters should be a whole number of at least 1 or "auto", but is {n_clusters!r}.'
        raise InvalidInputError(msg)
    if not (_is_whole(seed) and 0 <= seed < 2**32):
        msg = f"seed should be a whole number from 0 to 2**32 - 1, but is {seed!r}."
        raise InvalidInputError(msg)
    if embedder is None and vectors is None:
        msg = "Without an embedder the vectors of the prompts are needed; give vectors= or embedder=."
        raise InvalidInputError(msg)
    if vectors is not None and isinstance(embedder, str) and embedder == "local":
        msg = (
            "vectors= cannot be those of the local embedder, which is fitted here. Give the embedder that made them, "
            "or embedder=None for a router that only ever sees vectors."
        )
        raise InvalidInputError(msg)
    if assignment not in get_args(Assignment):
        msg = f"There is no assignment {assignment!r}; choose one of {', '.join(get_args(Assignment))}."
        raise InvalidInputError(msg)
    phi = _embedder(embedder, texts, seed)
    raw, probe = _vectors(phi, texts, vectors)
    points = unit(raw)
    least_known = 0.0
    if isinstance(phi, LocalEmbedder):
        known = np.quantile(np.linalg.norm(raw, axis=1), 1 - _FAMILIAR_QUANTILE)
        least_known = float(np.clip(known, _LEAST_SCALE, 1))
    distinct = len(np.unique(points.round(5), axis=0))  # rounded: parallel vectors differ in their last bits
    wanted = len(texts) // _PROMPTS_PER_CLUSTER if n_clusters == "auto" else n_clusters
    size = max(1, min(_MOST_CLUSTERS, wanted, distinct)) if n_clusters == "auto" else wanted
    if size > distinct:
        msg = (
            f"n_clusters={size}, but the {len(texts)} prompts have only {distinct} distinct embeddings. "
            "Give more prompts or ask for fewer clusters."
        )
        raise InvalidInputError(msg)
    from sklearn.cluster import KMeans

    kmeans = KMeans(size, n_init=4, random_state=seed).fit(points)
    centroids = np.asarray(kmeans.cluster_centers_, np.float32)
    labels = _nearest(points, centroids)
    shares = np.bincount(labels, minlength=size) / len(labels)
    temperature, reach = _scales(points, centroids)
    gate = LearnedMap.by_distance(centroids, temperature) if assignment == "soft" else None
    bare = PromptClusters(centroids, shares, ((),) * size, gate, reach, least_known, phi, probe)
    return FittedClusters(bare, texts, points, labels)


def _vectors(phi: Embedder | None, texts: list[str], vectors: npt.ArrayLike | None) -> tuple[Vectors, Vectors | None]:
    """The vectors of the prompts, and the unit vector of the probe sentence if there is an embedder."""
    if phi is None:
        return check_vectors(vectors if vectors is not None else [], rows=len(texts)), None
    if vectors is None:
        embedded = check_vectors(phi.embed([*texts, _PROBE]), rows=len(texts) + 1)
        return embedded[:-1], unit(embedded[-1])
    points = check_vectors(vectors, rows=len(texts))
    first, probe = unit(check_vectors(phi.embed([texts[0], _PROBE]), rows=2, dimension=points.shape[1]))
    if np.linalg.norm(first - unit(points[:1])[0]) > _PROBE_TOLERANCE:
        msg = f"The vectors given are not those of the embedder {phi.name!r}: that of the first prompt differs."
        raise EmbeddingError(msg)
    return points, probe
