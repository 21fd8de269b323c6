"""Bootstrap intervals of many metrics at once: how often each image was drawn takes the place of drawing it.

A resample is a vector of counts, one for each image, so that means over hundreds of resamples are one matrix product.
The resamples are those of `postgrad.evaluation.statistics.bootstrap_interval` for the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from postgrad.evaluation.metrics import BINS, Outcomes, bin_of, equal_mass_gaps

RESAMPLES = 1000
_CHUNK = 500_000
"""Counts that are held at a time; more of them leave the processor's cache."""

Array = NDArray[np.float64]
Statistic = Callable[[Array], Mapping[str, Array]]
"""From counts (resamples, N) to one value for each resample, by name."""


def rows_at_a_time(*numbers: int) -> int:
    """How many resamples of so many images (of several sets together) are worked on at a time."""
    return max(1, min(RESAMPLES, _CHUNK // sum(numbers)))


def drawn_counts(n: int, *, rows_each: int, seed: int = 0) -> Iterator[Array]:
    """How often each of n images is drawn in each of 1,000 resamples, (rows_each, n) at a time."""
    generator = np.random.default_rng(seed)
    for start in range(0, RESAMPLES, rows_each):
        rows = range(start, min(start + rows_each, RESAMPLES))
        yield np.stack([np.bincount(generator.integers(0, n, n), minlength=n) for _ in rows]).astype(np.float64)


def intervals(statistic: Statistic, n: int, *, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The 95 % percentile bootstrap interval of each value of a statistic over n images.

    >>> intervals(lambda counts: {"accuracy": counts @ correct / counts.sum(1)}, len(correct))
    {'accuracy': (0.711, 0.729)}

    A resample in which a value means nothing (NaN) has no say in it.
    """
    drawn = [statistic(counts) for counts in drawn_counts(n, rows_each=rows_at_a_time(n), seed=seed)]
    return percentiles({name: np.concatenate([part[name] for part in drawn]) for name in drawn[0]})


def percentiles(values: Mapping[str, Array]) -> dict[str, tuple[float, float]]:
    """The middle 95 % of the resamples' values."""
    ends = {name: np.nanpercentile(column, [2.5, 97.5]) for name, column in values.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def metrics_of(images: Outcomes) -> Statistic:
    """The metrics of `postgrad.evaluation.metrics.summarise`, for counts of these images."""
    order = np.argsort(images.rank, kind="stable")
    images = images.take(order)
    means = {"accuracy": images.correct} | ({} if images.in_top is None else {"top5_accuracy": images.in_top})
    columns = np.column_stack(list(means.values())).astype(np.float64)
    calibration, same_rank, by_class = _calibration(images), group_starts(images.rank), Groups(images.label)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, len(images) + 1))])

    def statistic(counts: Array) -> Mapping[str, Array]:
        counts, total = counts[:, order], counts.sum(axis=1)
        errors = group_sums(counts * ~images.correct, same_rank)
        return {
            **dict(zip(means, (counts @ columns).T / total, strict=True)),
            **calibration(counts),
            "balanced_accuracy": np.nanmean(recalls(by_class, counts, images.correct), axis=1),
            "aurc": _aurc(group_sums(counts, same_rank), errors, harmonic) / total,
        }

    return statistic


def calibration_of(images: Outcomes) -> Statistic:
    """Those of `metrics_of` that temperature scaling changes: nll, brier, ece, ece_equal_mass."""
    order = np.argsort(images.rank, kind="stable")
    calibration = _calibration(images.take(order))
    return lambda counts: calibration(counts[:, order])


def _calibration(images: Outcomes) -> Statistic:
    """For images, and counts of them, in the order of their rank."""
    losses = np.column_stack([images.loss, images.squared_error])
    gap = images.correct - images.confidence
    in_bins = np.eye(BINS)[bin_of(images.confidence, BINS)] * gap[:, None]
    same_rank = group_starts(images.rank)

    def statistic(counts: Array) -> Mapping[str, Array]:
        total = counts.sum(axis=1)
        nll, brier = (counts @ losses).T / total
        mass, gaps = group_sums(counts, same_rank), group_sums(counts * gap, same_rank)
        return {
            "nll": nll,
            "brier": brier,
            "ece": np.abs(counts @ in_bins).sum(axis=1) / total,
            "ece_equal_mass": equal_mass_gaps(mass, gaps, BINS) / total,
        }

    return statistic


def group_starts(sorted_numbers: NDArray[np.generic]) -> NDArray[np.intp]:
    """Where each run of equal numbers begins."""
    return np.flatnonzero(np.concatenate([[True], sorted_numbers[1:] != sorted_numbers[:-1]]))


def group_sums(columns: Array, starts: NDArray[np.intp]) -> Array:
    """The sum over each run of columns, (resamples, runs)."""
    return columns if len(starts) == columns.shape[1] else np.add.reduceat(columns, starts, axis=1)


class Groups:
    """The images of each class together."""

    def __init__(self, label: NDArray[np.intp]) -> None:
        self.order = np.argsort(label, kind="stable")
        self.starts = group_starts(label[self.order])
        self.labels = label[self.order][self.starts]


def recalls(by_class: Groups, counts: Array, correct: NDArray[np.bool_]) -> Array:
    """The accuracy within each class that has images, (resamples, classes); NaN where none of a class was drawn."""
    drawn = counts[:, by_class.order]
    images = group_sums(drawn, by_class.starts)
    right = group_sums(drawn * correct[by_class.order], by_class.starts)
    return np.divide(right, images, out=np.full_like(right, np.nan), where=images > 0)


def _aurc(mass: Array, errors: Array, harmonic: Array) -> Array:
    """The sum over k of the error among the k most confident, in closed form within groups of equal confidence.

    A group of m images with error rate e, after M images with E errors, adds Σ (E + e·j) / (M + j) over j = 1 … m,
    which is e·m + (E − e·M) · (H(M + m) − H(M)) with the harmonic numbers H.
    """
    rate = np.divide(errors, mass, out=np.zeros_like(errors), where=mass > 0)
    after = np.cumsum(mass, axis=1)
    before, missed = after - mass, np.cumsum(errors, axis=1) - errors
    steps = harmonic[after.astype(np.intp)] - harmonic[before.astype(np.intp)]
    return errors.sum(axis=1) + ((missed - rate * before) * steps).sum(axis=1)
