"""Phi as a soft gate: a linear softmax over the clusters, set from distances or learned from graded known models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unirouter_integrations.embedding import Vectors

Floats = npt.NDArray[np.float64]

_NEGLIGIBLE = 1e-3  # of the largest membership of a prompt
# Training. Optimiser and batch size are the paper's (appendix F.3); early stopping replaces its 5 epochs.
_BATCH_SIZE = 64  # prompts
_LEARNING_RATE = 0.05
_MAX_EPOCHS = 30
_PATIENCE = 3  # epochs without a new best
_PROMPTS_PER_HELD_OUT = 8  # one prompt in eight is held out
_MIN_HELD_OUT = 10  # prompts; fewer do not show whether training helped
_MIN_ERROR = 1e-3  # keeps the logarithms of the cross-entropy finite where a model never or always errs
# Adam's defaults (arXiv 1412.6980, algorithm 1).
_ADAM_DECAYS = 0.9, 0.999
_ADAM_EPSILON = 1e-8


def softmax(logits: Vectors) -> Floats:
    """The softmax of each row, `(n, K)`; entries below a thousandth of the row's largest are set to 0.

    Of 1,000 clusters of real prompts 10 are left in the median and 0.4% of the membership is cut off, so that a
    decision reads a hundredth of large tables.
    """
    # The ufuncs' own `reduce` takes half the time of `max` and `sum`, which matters for a single row.
    powers: Floats = np.exp(logits - np.maximum.reduce(logits, axis=1, keepdims=True), dtype=np.float64)
    powers *= powers > _NEGLIGIBLE
    powers /= np.add.reduce(powers, axis=1, keepdims=True)
    return powers


@dataclass(frozen=True, eq=False)
class SoftmaxGate:
    """Phi(x) = softmax(weights x + bias): the memberships of a vector in K clusters (the paper's section 5.2).

    Attributes:
        weights: `(K, d)`.
        bias: `(K,)`.
    """

    weights: Vectors
    bias: Vectors

    @classmethod
    def from_centroids(cls, centroids: Vectors, temperature: float) -> SoftmaxGate:
        """The gate whose logits are minus the squared distances to the centroids, divided by the temperature.

        The term |x|^2 is the same for all clusters and cancels, so the gate is linear.

        Args:
            centroids: `(K, d)`.
            temperature: A squared distance.
        """
        return cls(
            2 * centroids / np.float32(temperature), -(centroids * centroids).sum(axis=1) / np.float32(temperature)
        )

    def __call__(self, vectors: Vectors) -> Floats:
        """The memberships of each vector, `(n, K)`. None is negative, and each row sums to 1."""
        return softmax(vectors @ self.weights.T + self.bias)

    def fit(self, vectors: Vectors, losses: Floats, psi: Floats, *, seed: int = 0) -> SoftmaxGate:
        """Train this gate further, so that Phi(x) . Psi(h) predicts the losses of known models.

        Minimises the cross-entropy of the paper's section 5.2 by Adam, with Psi held fixed. An eighth of the prompts
        is held out. Training stops when the cross-entropy on them no longer falls.

        Args:
            vectors: `(n, d)`, the embeddings of some prompts.
            losses: `(n, M)`, the losses (1 - score) of the known models on them, NaN where not graded.
            psi: `(M, K)`, the error of each known model in each cluster.
            seed: Seed of the held-out prompts and of the training order. The same seed gives the same gate.

        Returns:
            The gate with the lowest cross-entropy on the held-out prompts. This gate itself, if that one is not better
            by more than the standard error of the difference: few grades teach nothing.
        """
        rng = np.random.default_rng(seed)
        held_out, training = np.split(rng.permutation(len(vectors)), [len(vectors) // _PROMPTS_PER_HELD_OUT])
        if len(held_out) < _MIN_HELD_OUT:
            return self
        graded = ~np.isnan(losses)
        losses = np.where(graded, losses, 0)
        errors = np.clip(psi, _MIN_ERROR, 1 - _MIN_ERROR).T

        def held_out_entropies(gate: SoftmaxGate) -> Floats:
            expected, actual = gate(vectors[held_out]) @ errors, losses[held_out]
            entropies = -np.where(actual > 0, actual * np.log(expected), 0)
            entropies -= (1 - actual) * np.log1p(-expected)
            counted = graded[held_out]
            return np.asarray((entropies * counted).sum(axis=1) / np.maximum(counted.sum(axis=1), 1))

        initial = lowest = held_out_entropies(self)
        gate = best_gate = self
        stale_epochs = 0
        adam = _Adam(self)
        for _ in range(_MAX_EPOCHS):
            rng.shuffle(training)
            for start in range(0, len(training), _BATCH_SIZE):
                rows = training[start : start + _BATCH_SIZE]
                phi = gate(vectors[rows])
                expected = phi @ errors
                # The gradient of the cross-entropy in the expected errors, in the memberships, in the logits.
                by_error = graded[rows] * (expected - losses[rows]) / (expected * (1 - expected)) / graded[rows].size
                by_phi = by_error @ errors.T
                by_logit = phi * (by_phi - (phi * by_phi).sum(axis=1, keepdims=True))
                gate = adam.step(by_logit.T @ vectors[rows], by_logit.sum(axis=0))
            entropies = held_out_entropies(gate)
            if entropies.mean() < lowest.mean():
                best_gate, lowest, stale_epochs = gate, entropies, 0
            elif (stale_epochs := stale_epochs + 1) == _PATIENCE:
                break
        gain = initial - lowest
        return best_gate if gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)) else self


class _Adam:
    """Kingma and Ba's Adam (arXiv 1412.6980) on the weights and the bias, as one array."""

    def __init__(self, gate: SoftmaxGate) -> None:
        self._parameters = np.column_stack([gate.weights, gate.bias]).astype(np.float64)
        self._mean, self._square = np.zeros((2, *self._parameters.shape))
        self._steps = 0

    def step(self, weights: npt.ArrayLike, bias: npt.ArrayLike) -> SoftmaxGate:
        """Take one step against the gradient in the weights, `(K, d)`, and in the bias, `(K,)`."""
        gradient = np.column_stack([weights, bias])
        self._steps += 1
        self._mean += (1 - _ADAM_DECAYS[0]) * (gradient - self._mean)
        self._square += (1 - _ADAM_DECAYS[1]) * (gradient**2 - self._square)
        mean, square = (
            moment / (1 - decay**self._steps)
            for moment, decay in zip((self._mean, self._square), _ADAM_DECAYS, strict=True)
        )
        self._parameters -= _LEARNING_RATE * mean / (np.sqrt(square) + _ADAM_EPSILON)
        return SoftmaxGate(self._parameters[:, :-1].astype(np.float32), self._parameters[:, -1].astype(np.float32))
