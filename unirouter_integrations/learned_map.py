"""Phi as a soft gate: a linear softmax over the clusters, set by distance or learned from known models' outcomes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unirouter_integrations.embedding import Vectors

Floats = npt.NDArray[np.float64]

_HELD_OUT = 8
_EPOCHS = 30
_PATIENCE = 3
_BATCH = 64
_RATE = 0.05
_DECAY = 0.9, 0.999
_EDGE = 1e-3
_LEAST_HELD_OUT = 10
_NEGLIGIBLE = 1e-3


def softmax(scores: Vectors) -> Floats:
    """The softmax of each row, `(n, K)`, without what is below a thousandth of the greatest.

    Of 1,000 clusters of real prompts 10 are left in the median and 0.4% of the membership is cut off, so that a
    decision needs to read a hundredth of large tables.
    """
    # The ufuncs' own `reduce` takes half the time of `max` and `sum`, which counts where there is one row.
    powers: Floats = np.exp(scores - np.maximum.reduce(scores, axis=1, keepdims=True), dtype=np.float64)
    powers *= powers > _NEGLIGIBLE
    powers /= np.add.reduce(powers, axis=1, keepdims=True)
    return powers


@dataclass(frozen=True, eq=False)
class LearnedMap:
    """Phi(x) = softmax(weights x + bias): the memberships of a vector in K clusters (the paper's section 5.2).

    Attributes:
        weights: `(K, d)`.
        bias: `(K,)`.
    """

    weights: Vectors
    bias: Vectors

    @classmethod
    def by_distance(cls, centroids: Vectors, temperature: float) -> LearnedMap:
        """Memberships as softmax of minus the squared distance over the temperature; |x|^2 is in all, so cancels."""
        return cls(
            2 * centroids / np.float32(temperature), -(centroids * centroids).sum(axis=1) / np.float32(temperature)
        )

    def __call__(self, vectors: Vectors) -> Floats:
        """The memberships of each vector, `(n, K)`; none is negative, and each row sums to 1."""
        return softmax(vectors @ self.weights.T + self.bias)

    def fit(self, vectors: Vectors, losses: Floats, psi: Floats, *, seed: int = 0) -> LearnedMap:
        """Learn on from here, so that Phi(x) . Psi(h) tells the outcomes of known models.

        Minimises the cross-entropy of the paper's section 5.2 by Adam, with Psi held fixed. An eighth of the prompts is
        held out: learning stops when the loss on them no longer falls, and the best map is returned. If that is not
        better than this one by more than the standard error of the difference, this one is: few outcomes teach nothing.

        Args:
            vectors: `(n, d)`, the embeddings of some prompts.
            losses: `(n, M)`, the losses of the known models on them, NaN where unknown.
            psi: `(M, K)`, the error of each known model in each cluster.
            seed: Seed of what is held out and of the order of learning; the same seed gives the same map.
        """
        rng = np.random.default_rng(seed)
        held_out, learnt = np.split(rng.permutation(len(vectors)), [len(vectors) // _HELD_OUT])
        if len(held_out) < _LEAST_HELD_OUT:
            return self
        known = ~np.isnan(losses)
        actual = np.where(known, losses, 0)
        table = np.clip(psi, _EDGE, 1 - _EDGE).T

        def entropies(at: LearnedMap) -> Floats:
            expected = at(vectors[held_out]) @ table
            loss = -np.where(actual[held_out] > 0, actual[held_out] * np.log(expected), 0)
            loss -= (1 - actual[held_out]) * np.log1p(-expected)
            counted = known[held_out]
            return np.asarray((loss * counted).sum(axis=1) / np.maximum(counted.sum(axis=1), 1))

        first = best = entropies(self)
        found, current, worse = self, self, 0
        adam = _Adam(current)
        for _ in range(_EPOCHS):
            rng.shuffle(learnt)
            for start in range(0, len(learnt), _BATCH):
                rows = learnt[start : start + _BATCH]
                phi = current(vectors[rows])
                expected = phi @ table
                slope = known[rows] * (expected - actual[rows]) / (expected * (1 - expected)) / known[rows].size
                by_cluster = slope @ table.T
                pull = phi * (by_cluster - (phi * by_cluster).sum(axis=1, keepdims=True))
                current = adam.step(pull.T @ vectors[rows], pull.sum(axis=0))
            loss = entropies(current)
            if loss.mean() < best.mean():
                found, best, worse = current, loss, 0
            elif (worse := worse + 1) == _PATIENCE:
                break
        gain = first - best
        return found if gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)) else self


class _Adam:
    """Kingma and Ba's Adam (arXiv 1412.6980) on the weights and the bias, as one array."""

    def __init__(self, start: LearnedMap) -> None:
        self._at = np.column_stack([start.weights, start.bias]).astype(np.float64)
        self._mean, self._square = np.zeros((2, *self._at.shape))
        self._steps = 0

    def step(self, weights: npt.ArrayLike, bias: npt.ArrayLike) -> LearnedMap:
        """Move against this gradient."""
        slope = np.column_stack([weights, bias])
        self._steps += 1
        self._mean += (1 - _DECAY[0]) * (slope - self._mean)
        self._square += (1 - _DECAY[1]) * (slope**2 - self._square)
        mean, square = (
            moment / (1 - decay**self._steps) for moment, decay in zip((self._mean, self._square), _DECAY, strict=True)
        )
        self._at -= _RATE * mean / (np.sqrt(square) + 1e-8)
        return LearnedMap(self._at[:, :-1].astype(np.float32), self._at[:, -1].astype(np.float32))
