"""Accuracy, calibration and selective-prediction metrics of class probabilities, in plain NumPy.

>>> from postgrad.evaluation import metrics
>>> metrics.accuracy([[0.9, 0.1], [0.4, 0.6]], [0, 0])
0.5

Every function takes probabilities (N, C), rows that sum to one, and labels (N,), integers below C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from postgrad.errors import UserError

BINS = 15
"""Equal-width confidence bins of the expected calibration error and the reliability diagram."""

_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Outcomes:
    """What each image contributes to the metrics; all of them are functions of these five columns.

    `rank` orders images by confidence, 0 the most confident; equally confident images share a rank.
    """

    correct: NDArray[np.bool_]
    confidence: NDArray[np.float64]
    loss: NDArray[np.float64]
    squared_error: NDArray[np.float64]
    rank: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.correct)

    def take(self, indices: NDArray[np.intp]) -> Outcomes:
        """The outcomes of these images, which may repeat."""
        return Outcomes(
            self.correct[indices],
            self.confidence[indices],
            self.loss[indices],
            self.squared_error[indices],
            self.rank[indices],
        )


@dataclass(frozen=True)
class Reliability:
    """The reliability curve: per bin the number of images, their mean confidence and accuracy (NaN if empty)."""

    edges: NDArray[np.float64]
    count: NDArray[np.intp]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def outcomes(probabilities: ArrayLike, labels: ArrayLike) -> Outcomes:
    """Check probabilities (N, C) and labels (N,) and reduce them to one row of numbers per image.

    A true class of probability zero counts as the smallest float32, 1.2e-38 (a loss of 87.3), so that one image cannot
    make the mean infinite. Of equally probable classes the first is the prediction.
    """
    p, y = _checked(probabilities, labels)
    true = p[np.arange(len(y)), y].astype(np.float64)
    confidence = p.max(axis=1).astype(np.float64)
    squares = np.einsum("nc,nc->n", p, p, dtype=np.float64)
    return Outcomes(
        correct=p.argmax(axis=1) == y,
        confidence=confidence,
        loss=-np.log(np.maximum(true, _SMALLEST)),
        squared_error=squares - 2 * true + 1,
        rank=np.unique(-confidence, return_inverse=True)[1],
    )


def summarise(images: Outcomes) -> dict[str, float]:
    """Every metric of the scorecard by name: accuracy, nll, ece, brier, aurc."""
    return {
        "accuracy": float(images.correct.mean()),
        "nll": float(images.loss.mean()),
        "ece": _ece(images.confidence, images.correct, BINS),
        "brier": float(images.squared_error.mean()),
        "aurc": _aurc(images.rank, images.correct),
    }


def accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The share of images whose most probable class is the true one."""
    return float(outcomes(probabilities, labels).correct.mean())


def nll(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The mean negative log-likelihood of the true class, in nats."""
    return float(outcomes(probabilities, labels).loss.mean())


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The mean squared distance to the one-hot label, summed over classes: 0 is perfect, 2 the worst (Brier, 1950)."""
    return float(outcomes(probabilities, labels).squared_error.mean())


def ece(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = BINS) -> float:
    """The expected calibration error: |accuracy - confidence| over equal-width bins, weighted by their images.

    Bins are (a, b], as in Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    images = outcomes(probabilities, labels)
    return _ece(images.confidence, images.correct, bins)


def aurc(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The area under the risk-coverage curve: the error among the k most confident images, averaged over k = 1 … N.

    Lower is better (Geifman and El-Yaniv, 2017). Equally confident images count as if in random order: a constant
    confidence gives the error rate.
    """
    images = outcomes(probabilities, labels)
    return _aurc(images.rank, images.correct)


def confusion(probabilities: ArrayLike, labels: ArrayLike) -> NDArray[np.intp]:
    """Counts (C, C): rows are true classes, columns predicted ones."""
    p, y = _checked(probabilities, labels)
    classes = p.shape[1]
    return np.bincount(y * classes + p.argmax(axis=1), minlength=classes**2).reshape(classes, classes)


def per_class_accuracy(probabilities: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """The accuracy among the images of each class (C,); NaN for a class without images."""
    counts = confusion(probabilities, labels)
    return _ratio(np.diag(counts), counts.sum(axis=1))


def reliability(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = BINS) -> Reliability:
    """The reliability curve over equal-width confidence bins (a, b]."""
    images = outcomes(probabilities, labels)
    where = _bin_of(images.confidence, bins)
    count = np.bincount(where, minlength=bins)
    return Reliability(
        edges=np.linspace(0, 1, bins + 1),
        count=count,
        confidence=_ratio(np.bincount(where, images.confidence, bins), count),
        accuracy=_ratio(np.bincount(where, images.correct, bins), count),
    )


def _ece(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int) -> float:
    gaps = np.bincount(_bin_of(confidence, bins), correct - confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _aurc(rank: NDArray[np.intp], correct: NDArray[np.bool_]) -> float:
    images = np.bincount(rank)
    errors = _ratio(np.bincount(rank, ~correct), images)
    present = images > 0
    in_order = np.repeat(errors[present], images[present])
    return float((np.cumsum(in_order) / np.arange(1, len(rank) + 1)).mean())


def _bin_of(confidence: NDArray[np.float64], bins: int) -> NDArray[np.intp]:
    return np.clip(np.ceil(confidence * bins).astype(np.intp) - 1, 0, bins - 1)


def _ratio(numerator: NDArray[Any], denominator: NDArray[np.intp]) -> NDArray[np.float64]:
    result = np.full(len(denominator), np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator > 0)


def _checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.intp]]:
    p = np.asarray(probabilities)
    y = np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1] or not len(y):
        raise UserError(f"probabilities, labels: expected (N, C) and (N,), N at least 1, got {p.shape} and {y.shape}")
    if not np.isfinite(p).all() or p.min() < 0 or np.abs(p.sum(axis=1, dtype=np.float64) - 1).max() > 1e-3:
        raise UserError("probabilities: rows must be finite, not negative, and sum to 1; give a softmax, not logits")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= p.shape[1]:
        raise UserError(f"labels: expected integers 0 to {p.shape[1] - 1}, got {y.dtype} from {y.min()} to {y.max()}")
    return p, y.astype(np.intp)
