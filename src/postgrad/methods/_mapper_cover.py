"""The cover of one latent coordinate by overlapping intervals, and which of them a value lies in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Ranges = tuple[NDArray[np.int64], NDArray[np.int64]]
"""For each value the first and the last of the intervals that it lies in, which follow each other."""

_CONSTANT = 1e-6


@dataclass(frozen=True)
class Cover:
    """Closed intervals [lower, upper] in ascending order that leave no gap between the training values.

    >>> cover = uniform_cover(values, 10, 0.33)
    >>> first, last = cover.of(values)              # the intervals of each value, all from first to last
    """

    lower: Values
    upper: Values
    overlap: float

    def __len__(self) -> int:
        return len(self.lower)

    def of(self, values: Values) -> Ranges:
        """The intervals that hold each value; a value outside all of them counts as the nearest that is inside."""
        inside = np.clip(values, self.lower[0], self.upper[-1])
        last = np.searchsorted(self.lower, inside, side="right") - 1
        first = np.minimum(np.searchsorted(self.upper, inside, side="left"), last)  # rounding may leave a gap
        return first, last

    def asked(self, values: Values, margin: float) -> Ranges:
        """The intervals in which neighbours of a new value are looked for: its own, and a neighbour's close to it.

        That is where the value is farther from its interval's middle than (1 − margin)(½ − overlap) of the length;
        where the overlap begins, it is (½ − overlap).
        """
        first, last = self.of(values)
        inside = np.clip(values, self.lower[0], self.upper[-1])
        middle, length = (self.lower + self.upper) / 2, self.upper - self.lower
        reach = (1 - margin) * max(0.5 - self.overlap, 0.0) * length
        before = inside - middle[first] < -reach[first]
        after = inside - middle[last] > reach[last]
        return np.maximum(first - before, 0), np.minimum(last + after, len(self) - 1)


def make_cover(
    values: Values, count: int, overlap: float, *, kind: Literal["uniform", "balanced"], width: float
) -> Cover:
    """The cover of training values; of a coordinate that hardly varies beside one of this `width`, one interval."""
    low, high = float(values.min()), float(values.max())
    if high - low <= _CONSTANT * width or count == 1:
        return Cover(np.array([low]), np.array([high]), overlap)
    return (uniform_cover if kind == "uniform" else balanced_cover)(values, count, overlap)


def uniform_cover(values: Values, count: int, overlap: float) -> Cover:
    """`count` intervals of one length from the smallest to the largest value; neighbours share `overlap` of it."""
    lower, upper = _limits(float(values.min()), float(values.max()), count, overlap)
    upper[-1] = values.max()  # which rounding must not leave outside
    return Cover(lower, upper, overlap)


def balanced_cover(values: Values, count: int, overlap: float) -> Cover:
    """The uniform cover of the values' ranks (equal values have one), so that intervals hold about as many values each.

    An interval ends at the outermost values whose ranks lie in it; fewer values than intervals leave some out.
    """
    distinct = np.unique(values)
    lower, upper = _limits(-0.5, len(distinct) - 0.5, count, overlap)
    first, last = np.ceil(lower).astype(np.int64), np.floor(upper).astype(np.int64)
    last[-1] = len(distinct) - 1  # which rounding must not leave outside
    pairs = np.unique(np.stack([first, last], axis=1)[first <= last], axis=0)
    return Cover(distinct[pairs[:, 0]], distinct[pairs[:, 1]], overlap)


def _limits(low: float, high: float, count: int, overlap: float) -> tuple[Values, Values]:
    length = (high - low) / (count - (count - 1) * overlap)
    lower: Values = low + np.arange(count, dtype=np.float64) * length * (1 - overlap)
    return lower, lower + length
