"""The nearest of many points to each of them, or to each of some others, with a radius within which none is missed.

Squared distances are first made in float32 by matrix products, block by block, so that no n×n matrix is ever stored.
What seems nearest is measured again in float64. A float32 product of d terms is wrong by at most d·2⁻²⁴ of the
factors' lengths, so points may only be missed beyond a radius that is a little below the largest distance kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from postgrad.gradients._threads import in_ranges
from postgrad.gradients._vector import compiled
from postgrad.progress import progress

Floats = NDArray[np.float32]

BLOCK = 2048
"""Points in a block; two blocks make a product of 16 MB."""
_EPSILON = 2.0**-24
_ALL = slice(None)


@dataclass(frozen=True)
class Neighbours:
    """For each of n points k others in order of distance; beyond `radius` others may lie that are not listed."""

    places: NDArray[np.int32]
    """(n, k) whose distances these are; −1 where there are fewer than k."""
    distances: NDArray[np.float64]
    """(n, k) Euclidean distances, ascending; infinite where there is none."""
    radius: NDArray[np.float64]
    """(n,) all points nearer than this are listed; infinite where all points are."""


@dataclass(frozen=True)
class Queries:
    """New points, prepared as the points are that they are measured against."""

    rows: NDArray[Any]
    centred: Floats
    beyond: NDArray[np.float64]
    """What the columns in which the points do not differ add to every squared distance."""


class Points:
    """Points (n, d) of float32 or float64, prepared to be measured: constant columns dropped, centred, with norms."""

    def __init__(self, rows: NDArray[Any]) -> None:
        same = rows.min(axis=0) == rows.max(axis=0)
        self.varying, self.constant = np.flatnonzero(~same), np.flatnonzero(same)
        self.constants = rows[0, self.constant].astype(np.float64)
        self.rows = np.ascontiguousarray(rows[:, self.varying])
        """The rows as they were given, without the columns that do not differ."""
        self.centre = self.rows.mean(axis=0, dtype=np.float64)
        self.centred = self._centred(self.rows)
        self.squares = _squares(self.centred)
        self.error = (self.rows.shape[1] + 32) * _EPSILON
        """An approximate squared distance is wrong by at most this, times the sum of both points' squared norms."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_columns(self) -> int:
        """The numbers of a point, constant ones among them."""
        return len(self.varying) + len(self.constant)

    def whole(self, places: slice | NDArray[np.int64] = _ALL) -> NDArray[Any]:
        """The points (n, d) as they were given, or those at some places."""
        varying = self.rows[places]
        rows = np.empty((len(varying), self.n_columns), dtype=self.rows.dtype)
        rows[:, self.varying] = varying
        rows[:, self.constant] = self.constants
        return rows

    def queries(self, rows: NDArray[Any]) -> Queries:
        """New points (m, d), prepared."""
        varying = np.ascontiguousarray(rows[:, self.varying])
        beyond = ((rows[:, self.constant] - self.constants) ** 2).sum(axis=1)
        return Queries(varying, self._centred(varying), beyond.astype(np.float64))

    def _centred(self, rows: NDArray[Any]) -> Floats:
        centred = np.empty(rows.shape, dtype=np.float32)
        for start in range(0, len(rows), BLOCK):
            centred[start : start + BLOCK] = rows[start : start + BLOCK] - self.centre
        return centred


def _squares(rows: Floats) -> Floats:
    return np.einsum("ij,ij->i", rows, rows)


def nearest_of_all(points: Points, k: int) -> Neighbours:
    """The k nearest others of each point; each pair of blocks is multiplied once, for both of its sides.

    n(n + 1)/2 distances of d dimensions: for 60,000 points in 717 dimensions 2.6·10¹² multiplications and additions.
    """
    n = len(points)
    k = min(k, n - 1)
    values = np.full((n, k), np.inf, dtype=np.float32)
    places = np.full((n, k), -1, dtype=np.int32)
    if k < 1:
        return Neighbours(places, values.astype(np.float64), np.full(n, np.inf))
    centred = torch.from_numpy(points.centred)
    product = torch.empty(BLOCK * BLOCK)
    blocks = range(0, n, BLOCK)
    with progress("nearest neighbours", len(blocks), unit="blocks") as advance:
        for row in blocks:
            for column in range(row, n, BLOCK):
                a, b = centred[row : row + BLOCK], centred[column : column + BLOCK]
                out = product[: len(a) * len(b)].view(len(a), len(b))
                torch.mm(a, b.T, out=out)
                block = out.numpy()
                arguments = (block, points.squares, row, column, values, places)
                in_ranges(_keep_rows, len(a), *arguments)
                if column > row:
                    in_ranges(_keep_columns, len(b), *arguments)
            advance()
    return _measured(points, values, places)


def _measured(points: Points, values: Floats, places: NDArray[np.int32]) -> Neighbours:
    """The neighbours kept, with exact distances in order, and the radius that their approximate ones vouch for."""
    n, k = values.shape
    largest = values.max(axis=1).astype(np.float64)
    doubt = points.error * (points.squares.astype(np.float64) + float(points.squares.max(initial=0)))
    radius = np.sqrt(np.maximum(largest - 2 * doubt, 0)) if k < n - 1 else np.full(n, np.inf)
    distances = np.empty((n, k))
    in_ranges(_measure_lists, n, points.rows, points.rows, places, distances)
    order = np.argsort(distances, axis=1, kind="stable")
    return Neighbours(np.take_along_axis(places, order, axis=1), np.take_along_axis(distances, order, axis=1), radius)


@compiled()
def _push(values, places, value, place):  # type: ignore[no-untyped-def]
    """Replace the largest of a heap by a smaller value."""
    k = len(values)
    at = 0
    while True:
        child = 2 * at + 1
        if child >= k:
            break
        if child + 1 < k and values[child + 1] > values[child]:
            child += 1
        if values[child] <= value:
            break
        values[at] = values[child]
        places[at] = places[child]
        at = child
    values[at] = value
    places[at] = place


@compiled()
def _keep_rows(block, squares, row, column, values, places, first, last):  # type: ignore[no-untyped-def]
    """Keep the k smallest |a|² + |b|² − 2ab in each row of a block of products, but for each point with itself."""
    for i in range(first, last):
        a = row + i
        own = squares[a]
        largest = values[a, 0] - own
        for j in range(block.shape[1]):
            value = squares[column + j] - np.float32(2) * block[i, j]
            if value < largest and column + j != a:
                _push(values[a], places[a], value + own, column + j)
                largest = values[a, 0] - own


@compiled()
def _keep_columns(block, squares, row, column, values, places, first, last):  # type: ignore[no-untyped-def]
    """The same for the columns of a block that no row of which is also a column."""
    bound = np.empty(last - first, dtype=np.float32)
    for j in range(first, last):
        bound[j - first] = values[column + j, 0] - squares[column + j]
    for i in range(block.shape[0]):
        own = squares[row + i]
        for j in range(first, last):
            value = own - np.float32(2) * block[i, j]
            if value < bound[j - first]:
                b = column + j
                _push(values[b], places[b], value + squares[b], row + i)
                bound[j - first] = values[b, 0] - squares[b]


@compiled()
def _distance(a, b):  # type: ignore[no-untyped-def]
    """The Euclidean distance of two rows, summed in float64 in eight parts, which the compiler makes one of."""
    d = len(a)
    parts = np.zeros(8)
    whole = d - d % 8
    for start in range(0, whole, 8):
        for lane in range(8):
            difference = np.float64(a[start + lane]) - np.float64(b[start + lane])
            parts[lane] += difference * difference
    for column in range(whole, d):
        difference = np.float64(a[column]) - np.float64(b[column])
        parts[0] += difference * difference
    return np.sqrt(parts.sum())


@compiled()
def _measure_lists(queries, rows, places, distances, first, last):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        for position in range(places.shape[1]):
            place = places[i, position]
            distances[i, position] = np.inf if place < 0 else _distance(queries[i], rows[place])
