"""Accuracy, calibration and selective-prediction metrics of class probabilities, in plain NumPy.

>>> from postgrad.evaluation import metrics
>>> metrics.accuracy([[0.9, 0.1], [0.4, 0.6]], [0, 0])
0.5

Every function takes probabilities (N, C), rows that sum to one, and labels (N,), integers below C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from postgrad.errors import UserError

BINS = 15
"""Confidence bins of the expected calibration errors and the reliability diagram."""

TOP = 5
"""`top5_accuracy` asks whether the true class is among so many; it says nothing where there are no more classes."""

_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Outcomes:
    """What each image contributes to the metrics; all of them are functions of these columns.

    `rank` orders images by confidence, 0 the most confident; equally confident images share a rank. `in_top` is None
    where there are five classes or fewer.
    """

    label: NDArray[np.intp]
    correct: NDArray[np.bool_]
    in_top: NDArray[np.bool_] | None
    confidence: NDArray[np.float64]
    loss: NDArray[np.float64]
    squared_error: NDArray[np.float64]
    rank: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.correct)

    def take(self, indices: NDArray[np.intp]) -> Outcomes:
        """The outcomes of these images, which may repeat."""
        columns: dict[str, Any] = vars(self)
        chosen: dict[str, Any] = {name: None if c is None else c[indices] for name, c in columns.items()}
        return Outcomes(**chosen)


@dataclass(frozen=True)
class Reliability:
    """The reliability curve: per bin the number of images, their mean confidence and accuracy (NaN if empty)."""

    edges: NDArray[np.float64]
    count: NDArray[np.intp]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


class RiskCoverage(NamedTuple):
    """The risk-coverage curve, one point for each number of images kept; unpacks as `coverage, risk`."""

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]


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
        label=y,
        correct=p.argmax(axis=1) == y,
        in_top=_places(p, y) < TOP if p.shape[1] > TOP else None,
        confidence=confidence,
        loss=-np.log(np.maximum(true, _SMALLEST)),
        squared_error=squares - 2 * true + 1,
        rank=np.unique(-confidence, return_inverse=True)[1],
    )


def summarise(images: Outcomes) -> dict[str, float]:
    """Every metric of the scorecard by name; top5_accuracy only where there are more than five classes."""
    top = {} if images.in_top is None else {"top5_accuracy": float(images.in_top.mean())}
    return {
        "accuracy": float(images.correct.mean()),
        **top,
        "balanced_accuracy": float(np.nanmean(_recalls(images.label, images.correct))),
        "nll": float(images.loss.mean()),
        "ece": _ece(images.confidence, images.correct, BINS),
        "ece_equal_mass": _ece_equal_mass(images, BINS),
        "brier": float(images.squared_error.mean()),
        "aurc": float(_risks(images.rank, images.correct).mean()),
    }


def accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The share of images whose most probable class is the true one."""
    return float(outcomes(probabilities, labels).correct.mean())


def top5_accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The share of images whose true class is among the five most probable; of equal ones the first count.

    Raises `UserError` where there are five classes or fewer, since it would say nothing.
    """
    images = outcomes(probabilities, labels)
    if images.in_top is None:
        raise UserError("top5_accuracy: five classes or fewer are always all among the first five; use accuracy")
    return float(images.in_top.mean())


def balanced_accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The mean of the accuracies within each class, over the classes that have images."""
    images = outcomes(probabilities, labels)
    return float(np.nanmean(_recalls(images.label, images.correct)))


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


def ece_equal_mass(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = BINS) -> float:
    """The calibration error over bins that hold equally many images each, sorted by confidence.

    As in Nguyen and O'Connor, "Posterior calibration and exploratory analysis for natural language processing models",
    2015, with the absolute gap of `ece`. An image on the border of two bins counts in both, in parts; equally
    confident images are spread evenly, so that their order does not matter.
    """
    return _ece_equal_mass(outcomes(probabilities, labels), bins)


def aurc(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The area under the risk-coverage curve: the error among the k most confident images, averaged over k = 1 … N.

    Lower is better (Geifman and El-Yaniv, 2017). Equally confident images count as if in random order: a constant
    confidence gives the error rate.
    """
    return float(risk_coverage(probabilities, labels).risk.mean())


def risk_coverage(probabilities: ArrayLike, labels: ArrayLike) -> RiskCoverage:
    """The error (risk) among the most confident images, for each share of the images (coverage) that is kept.

    >>> coverage, risk = risk_coverage(probabilities, labels)         # (N,) each; coverage is 1/N … 1

    Equally confident images share their error; the mean risk is `aurc`.
    """
    images = outcomes(probabilities, labels)
    return RiskCoverage(np.arange(1, len(images) + 1) / len(images), _risks(images.rank, images.correct))


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
    where = bin_of(images.confidence, bins)
    count = np.bincount(where, minlength=bins)
    return Reliability(
        edges=np.linspace(0, 1, bins + 1),
        count=count,
        confidence=_ratio(np.bincount(where, images.confidence, bins), count),
        accuracy=_ratio(np.bincount(where, images.correct, bins), count),
    )


def _ece(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int) -> float:
    gaps = np.bincount(bin_of(confidence, bins), correct - confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _ece_equal_mass(images: Outcomes, bins: int) -> float:
    mass = np.bincount(images.rank)
    gaps = np.bincount(images.rank, images.correct - images.confidence)
    return float(equal_mass_gaps(mass[None], gaps[None], bins)[0] / len(images))


def equal_mass_gaps(mass: NDArray[Any], gaps: NDArray[Any], bins: int) -> NDArray[np.float64]:
    """For each row of `mass` and `gaps` (R, G): the sum over bins of equal mass of the bin's absolute gap, (R,).

    A group on the border of two bins counts in both, in parts: the running sum of the gaps is interpolated there.
    """
    (count, size), rows = mass.shape, np.arange(len(mass))[:, None]
    reached, summed = np.zeros((count, size + 1)), np.zeros((count, size + 1))
    np.cumsum(mass, axis=1, out=reached[:, 1:])
    np.cumsum(gaps, axis=1, out=summed[:, 1:])
    borders = reached[:, -1:] * np.linspace(0, 1, bins + 1)
    # Each row lifted above all before it, they are one sorted list.
    lift = rows * (reached[:, -1].max() + 1)
    reached += lift
    after = np.searchsorted(reached.ravel(), borders + lift, side="right") - rows * (size + 1)
    after = np.minimum(after, size)
    before = after - 1
    start, end = reached[rows, before], reached[rows, after]
    share = np.divide(borders - (start - lift), end - start, out=np.zeros_like(borders), where=end > start)
    running = summed[rows, before] + share * (summed[rows, after] - summed[rows, before])
    return np.abs(np.diff(running, axis=1)).sum(axis=1)


def _risks(rank: NDArray[np.intp], correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    images = np.bincount(rank)
    errors = _ratio(np.bincount(rank, ~correct), images)
    present = images > 0
    in_order = np.repeat(errors[present], images[present])
    return np.cumsum(in_order) / np.arange(1, len(rank) + 1)


def _recalls(label: NDArray[np.intp], correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    return _ratio(np.bincount(label, correct), np.bincount(label))


def _places(p: NDArray[np.floating], y: NDArray[np.intp]) -> NDArray[np.intp]:
    """How many classes come before the true one: the more probable ones, and equal ones of a smaller number."""
    true = np.take_along_axis(p, y[:, None], axis=1)
    earlier = np.arange(p.shape[1]) < y[:, None]
    return ((p > true) | ((p == true) & earlier)).sum(axis=1)


def bin_of(confidence: NDArray[np.float64], bins: int) -> NDArray[np.intp]:
    """The equal-width bin (a, b] of each confidence, 0 to bins - 1."""
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
