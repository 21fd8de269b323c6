"""Rows of new points: in each coordinate the nearest training points of the same interval, and the mean of their nodes.

Each new point's distances to all training points are one row of a matrix product. The nearest of them all are measured
exactly and serve every coordinate in which enough of them are in the interval; in the others the interval, which is
one stretch of the points in the order of that coordinate, is gone through.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from postgrad.gradients._threads import in_ranges
from postgrad.gradients._vector import compiled
from postgrad.methods._nearest import Queries, _distance, _push
from postgrad.progress import progress

_LIST = 160
_SPARE = 12
"""So many more than asked for are measured exactly, since those that float32 puts last may be others."""
PRODUCT_BYTES = 64 * 2**20
_STABILITY = 1e-5
"""A neighbour at distance d weighs 1/(d + 1e-5)."""


def mean_rows(
    committee: Any, queries: Queries, values: NDArray[np.float64], *, k: int, margin: float, hard: bool, own: bool
) -> sparse.csr_matrix:
    """The rows (m, nodes) of new points, float32; `own`: they are the training points, each left out of its own row."""
    points, covers = committee.points, committee.covers
    asked = committee.asked(values, margin)
    inside = np.stack([np.stack(c.of(v)) for c, v in zip(covers, values.T, strict=True)], axis=2)
    centred, training = torch.from_numpy(queries.centred), torch.from_numpy(points.centred)
    size = max(1, min(256, PRODUCT_BYTES // (4 * len(points))))
    widest = int((committee.last - committee.first).max()) + 1
    room = len(covers) * min(k, len(points)) * widest
    parts = [sparse.csr_matrix((0, committee.n_nodes), dtype=np.float32)]
    with progress("mapping to nodes", len(queries.rows), unit="points") as advance:
        for start in range(0, len(queries.rows), size):
            part = slice(start, start + size)
            m = len(queries.rows[part])
            out = torch.empty(m, len(points))  # given, so that autocast has no part in it
            product = torch.mm(centred[part], training.T, out=out).numpy()
            counts, nodes = np.zeros(m, dtype=np.int64), np.empty((m, room), dtype=np.int32)
            weights = np.empty((m, room), dtype=np.float32)
            in_ranges(
                _rows,
                m,
                (product, queries.rows[part], queries.beyond[part]),
                (points.rows, points.squares),
                (np.ascontiguousarray(asked[:, part]), np.ascontiguousarray(inside[:, part])),
                (committee.first, committee.last, committee.order, committee.begins, committee.ends),
                (committee.starts, committee.nodes, committee.interval),
                (k, _LIST, start if own else -1, hard),
                (counts, nodes, weights),
            )
            kept = np.arange(room) < counts[:, None]
            pointers = np.concatenate([[0], np.cumsum(counts)])
            parts.append(sparse.csr_matrix((weights[kept], nodes[kept], pointers), shape=(m, committee.n_nodes)))
            advance(m)
    rows = sparse.vstack(parts, format="csr")
    rows.sort_indices()
    return rows


@compiled()
def _heap(count):  # type: ignore[no-untyped-def]
    return np.full(count, np.inf, dtype=np.float32), np.full(count, -1, dtype=np.int32)


@compiled()
def _measured(row, rows, beyond, places):  # type: ignore[no-untyped-def]
    """A heap's points in order of their exact distances; equally distant ones in their own order."""
    found, distances = np.empty(len(places), dtype=np.int64), np.empty(len(places))
    count = 0
    for place in places:
        if place >= 0:
            exact = _distance(row, rows[place])
            distance = np.sqrt(exact * exact + beyond)
            at = count
            while at > 0 and (
                distances[at - 1] > distance or (distances[at - 1] == distance and found[at - 1] > place)
            ):
                distances[at], found[at] = distances[at - 1], found[at - 1]
                at -= 1
            distances[at], found[at] = distance, place
            count += 1
    return found[:count], distances[:count]


@compiled()
def _rows(data, training, ranges, cover, membership, settings, out, begin, end):  # type: ignore[no-untyped-def]
    product, rows, beyond = data
    points, norms = training
    asked, inside = ranges
    first, last, order, begins, ends = cover
    starts, nodes, interval = membership
    k, listed, shift, hard = settings
    counts, out_nodes, out_weights = out
    n, coordinates = first.shape
    heaviness = np.zeros(len(interval))
    touched = np.empty(len(interval), dtype=np.int64)
    near_places, near_distances = np.empty(k, dtype=np.int64), np.empty(k)
    for i in range(begin, end):
        itself = shift + i if shift >= 0 else -1
        values, places = _heap(min(listed, n))
        for p in range(n):
            square = norms[p] - np.float32(2) * product[i, p]
            if square < values[0] and p != itself:
                _push(values, places, square, p)
        nearest, distances = _measured(rows[i], points, beyond[i], places)
        trusted = len(nearest) - _SPARE if len(nearest) < n - (itself >= 0) else len(nearest)
        for c in range(coordinates):
            low, high = asked[0, i, c], asked[1, i, c]
            found = 0
            for j in range(trusted):
                p = nearest[j]
                if first[p, c] <= high and last[p, c] >= low:
                    near_places[found], near_distances[found] = p, distances[j]
                    found += 1
                    if found == k:
                        break
            if found < k and trusted < n - (itself >= 0):
                values, places = _heap(min(k + _SPARE, ends[c, high] - begins[c, low]))
                for at in range(begins[c, low], ends[c, high]):
                    p = order[c, at]
                    square = norms[p] - np.float32(2) * product[i, p]
                    if square < values[0] and p != itself:
                        _push(values, places, square, p)
                inner, lengths = _measured(rows[i], points, beyond[i], places)
                found = min(k, len(inner))
                near_places[:found], near_distances[:found] = inner[:found], lengths[:found]
            total = 0.0
            for j in range(found):
                total += 1 / (near_distances[j] + _STABILITY)
            many = 0
            for j in range(found):
                p = near_places[j]
                weight = 1 / (near_distances[j] + _STABILITY) / total
                for at in range(starts[p, c], starts[p, c + 1]):
                    node = nodes[at]
                    if heaviness[node] == 0:
                        touched[many] = node
                        many += 1
                    heaviness[node] += weight
            for j in range(many):
                node = touched[j]
                keep = True
                if hard:
                    keep = inside[0, i, c] <= interval[node] <= inside[1, i, c]
                    for other in touched[:many]:
                        rival = interval[other] == interval[node] and (
                            heaviness[other] > heaviness[node] or (heaviness[other] == heaviness[node] and other < node)
                        )
                        keep = keep and not rival
                if keep:
                    out_nodes[i, counts[i]] = node
                    out_weights[i, counts[i]] = 1 if hard else heaviness[node]
                    counts[i] += 1
            for j in range(many):
                heaviness[touched[j]] = 0
