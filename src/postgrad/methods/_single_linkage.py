"""Single linkage in many subsets of one set of points, by exact spanning trees from lists of nearest neighbours.

A subset's minimum spanning tree holds every merge of single linkage. Kruskal's algorithm on the listed pairs alone
gives a tree T. A pair that is not listed is at least as long as both of its points' radii, and of no use where it is
also at least as long as the longest edge of T between its points (the cycle property). So T is minimal if in each merge
of two components at height h, one of them has no point with a radius below h. Where both have some, those of the
smaller side are measured against the whole subset, what is of use is added, and the tree is made again.

On MNIST one pair in a hundred is measured so. Trees are not unique where pairs are equally long; clusters are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from postgrad.gradients._vector import compiled
from postgrad.methods._nearest import Neighbours, Points, _distance

Cut = Literal["histogram", "gap"]

_QUERIES = 256
"""Points measured against a whole subset at a time."""


@dataclass(frozen=True)
class Edges:
    """Pairs of points and their distances, ascending."""

    a: NDArray[np.int32]
    b: NDArray[np.int32]
    length: NDArray[np.float64]

    @classmethod
    def listed(cls, neighbours: Neighbours) -> Edges:
        """Every listed pair once."""
        n, k = neighbours.places.shape
        here = np.repeat(np.arange(n, dtype=np.int32), k)
        a, b = np.minimum(here, neighbours.places.ravel()), np.maximum(here, neighbours.places.ravel())
        _, first = np.unique(a.astype(np.int64) * n + b, return_index=True)
        length = neighbours.distances.ravel()[first]
        return cls(a[first], b[first], length).sorted()

    def sorted(self) -> Edges:
        order = np.argsort(self.length, kind="stable")
        return Edges(self.a[order], self.b[order], self.length[order])

    def within(self, members: NDArray[np.int64], n: int) -> Edges:
        """The pairs of which both are members, as places among these."""
        place = np.full(n, -1, dtype=np.int32)
        place[members] = np.arange(len(members))
        a, b = place[self.a], place[self.b]
        both = (a >= 0) & (b >= 0)
        return Edges(a[both], b[both], self.length[both])

    def with_more(self, more: Edges) -> Edges:
        a, b = np.concatenate([self.a, more.a]), np.concatenate([self.b, more.b])
        return Edges(a, b, np.concatenate([self.length, more.length])).sorted()


@dataclass(frozen=True)
class Tree:
    """A spanning tree's edges, ascending, and its points in an order in which each merge joins two stretches.

    The longest edge between two points is then the largest of the `gaps` between their places in `order`.
    """

    edges: Edges
    order: NDArray[np.int64]
    gaps: NDArray[np.float64]


def spanning_tree(points: Points, members: NDArray[np.int64], listed: Edges, radius: NDArray[np.float64]) -> Tree:
    """The minimum spanning tree of some of the points, by their places among the `members`.

    >>> tree = spanning_tree(points, np.arange(len(points)), Edges.listed(neighbours), neighbours.radius)
    >>> tree.edges.length                # the merge heights of scipy's linkage(points, "single")
    """
    edges, radius = listed.within(members, len(points)), radius[members].copy()
    search = _Search(points, members)
    while True:
        tree, starts = _kruskal(edges, len(members))
        if len(starts) > 1:
            edges = edges.with_more(search.links(tree, starts))
            continue
        doubtful = _uncertified(*_arrays(tree.edges), radius)
        if not len(doubtful):
            return tree
        edges = edges.with_more(search.useful(tree, doubtful))
        radius[doubtful] = np.inf


def clusters(tree: Tree, cut: Cut, bins: int = 10, gap: float = 0.3) -> NDArray[np.int64]:
    """Which cluster each member is in, 0 … c−1 in the order of the clusters' first members.

    "histogram" keeps the merges below the first empty of `bins` equal bins from the lowest to the highest merge; "gap"
    those before the first step from one merge to the next of at least `gap` times the highest (the first step is from
    0). Without an empty bin or such a step there is one cluster; the histogram of equal heights has none.
    """
    heights = tree.edges.length
    kept = _KEPT[cut](heights, bins if cut == "histogram" else gap) if len(heights) else 0
    labels = _components(tree.edges.a[:kept], tree.edges.b[:kept], len(tree.order))
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _before_empty_bin(heights: NDArray[np.float64], bins: float) -> int:
    if heights[0] == heights[-1]:
        return len(heights)
    counts, _ = np.histogram(heights, bins=int(bins))
    empty = np.flatnonzero(counts == 0)
    return int(counts[: empty[0]].sum()) if len(empty) else len(heights)


def _before_gap(heights: NDArray[np.float64], gap: float) -> int:
    steps = np.diff(heights, prepend=0.0)
    wide = np.flatnonzero(steps >= gap * heights[-1])
    return int(wide[0]) if len(wide) and heights[-1] > 0 else len(heights)


_KEPT = {"histogram": _before_empty_bin, "gap": _before_gap}


class _Search:
    """Distances of some members to all of them."""

    def __init__(self, points: Points, members: NDArray[np.int64]) -> None:
        self.points, self.members = points, members
        self.centred = torch.from_numpy(points.centred)[torch.from_numpy(members)]
        self.squares = points.squares[members]
        self.doubt = points.error * (self.squares + self.squares.max(initial=0)).astype(np.float64)

    def useful(self, tree: Tree, queries: NDArray[np.int64]) -> Edges:
        """The pairs of the queries that are shorter than the tree's longest edge between them."""
        place = np.empty(len(tree.order), dtype=np.int64)
        place[tree.order] = np.arange(len(tree.order))
        found = [
            _useful(product, part, self.squares, self.doubt, tree.order, place, tree.gaps, *self._rows())
            for part, product in self._products(queries)
        ]
        return _joined(found)

    def links(self, tree: Tree, starts: NDArray[np.int64]) -> Edges:
        """For each component but the largest one pair that leads out of it: that of its first point and the nearest."""
        ends = np.append(starts[1:], len(tree.order))
        small = np.delete(np.arange(len(starts)), np.argmax(ends - starts))
        component = np.empty(len(tree.order), dtype=np.int64)
        for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
            component[tree.order[start:end]] = number
        queries = tree.order[starts[small]]
        found = [
            _nearest_outside(product, part, self.squares, component, *self._rows())
            for part, product in self._products(queries)
        ]
        return _joined(found)

    def _rows(self) -> tuple[Any, Any]:
        return self.points.rows, self.members

    def _products(self, queries: NDArray[np.int64]) -> Any:
        for start in range(0, len(queries), _QUERIES):
            part = queries[start : start + _QUERIES]
            out = torch.empty(len(part), len(self.members))  # given, so that autocast has no part in it
            yield part, torch.mm(self.centred[torch.from_numpy(part)], self.centred.T, out=out).numpy()


def _joined(found: list[Any]) -> Edges:
    a, b, length = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Edges(a, b, length)


def _arrays(edges: Edges) -> tuple[Any, Any, Any]:
    return edges.a, edges.b, edges.length


def _kruskal(edges: Edges, n: int) -> tuple[Tree, NDArray[np.int64]]:
    """A spanning forest, and where in its order each of its components begins."""
    taken, order, gaps, starts = _forest(*_arrays(edges), n)
    return Tree(Edges(edges.a[taken], edges.b[taken], edges.length[taken]), order, gaps), starts


@compiled()
def _root(parent, at):  # type: ignore[no-untyped-def]
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@compiled()
def _forest(a, b, length, n):  # type: ignore[no-untyped-def]
    """Kruskal's algorithm on ascending edges; components are chains, and the smaller is hung behind the larger."""
    parent, following, tail = np.arange(n), np.full(n, -1), np.arange(n)
    size, after = np.ones(n, dtype=np.int64), np.zeros(n)
    taken = np.empty(max(n - 1, 0), dtype=np.int64)
    count = 0
    for edge in range(len(a)):
        one, other = _root(parent, a[edge]), _root(parent, b[edge])
        if one == other:
            continue
        if size[one] < size[other]:
            one, other = other, one
        parent[other] = one
        size[one] += size[other]
        following[tail[one]] = other
        after[tail[one]] = length[edge]
        tail[one] = tail[other]
        taken[count] = edge
        count += 1
        if count == n - 1:
            break
    order, gaps = np.empty(n, dtype=np.int64), np.full(max(n - 1, 0), np.inf)
    starts = np.empty(n - count, dtype=np.int64)
    at, component = 0, 0
    for root in range(n):
        if parent[root] != root:
            continue
        starts[component] = at
        component += 1
        point = root
        while point >= 0:
            order[at] = point
            if following[point] >= 0:
                gaps[at] = after[point]
            at += 1
            point = following[point]
    return taken[:count], order, gaps, starts


@compiled()
def _components(a, b, n):  # type: ignore[no-untyped-def]
    parent = np.arange(n)
    for edge in range(len(a)):
        parent[_root(parent, a[edge])] = _root(parent, b[edge])
    for point in range(n):
        parent[point] = _root(parent, point)
    return parent


@compiled()
def _within(first, following, radius, height, found):  # type: ignore[no-untyped-def]
    """The points of a chain whose radius is below a height; how many they are."""
    count, point = 0, first
    while point >= 0:
        if radius[point] < height:
            found[count] = point
            count += 1
        point = following[point]
    return count


@compiled()
def _uncertified(a, b, length, radius):  # type: ignore[no-untyped-def]
    """Points to measure against all, so that each merge has a side on which no radius is below its height."""
    n = len(radius)
    parent, following, tail = np.arange(n), np.full(n, -1), np.arange(n)
    size, radius = np.ones(n, dtype=np.int64), radius.copy()
    ours, theirs = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    chosen = np.zeros(n, dtype=np.bool_)
    for edge in range(len(a)):
        one, other = _root(parent, a[edge]), _root(parent, b[edge])
        if size[one] < size[other]:
            one, other = other, one
        small = _within(other, following, radius, length[edge], theirs)
        if small:
            large = _within(one, following, radius, length[edge], ours)
            fewer, count = (ours, large) if large < small else (theirs, small)
            for i in range(count):
                chosen[fewer[i]] = True
                radius[fewer[i]] = np.inf
        parent[other] = one
        size[one] += size[other]
        following[tail[one]] = other
        tail[one] = tail[other]
    return np.flatnonzero(chosen)


@compiled()
def _useful(product, queries, squares, doubt, order, place, gaps, rows, members):  # type: ignore[no-untyped-def]
    """Pairs (query, other) that are shorter than the largest gap between them."""
    a, b, length = [np.int32(0) for _ in range(0)], [np.int32(0) for _ in range(0)], [0.0 for _ in range(0)]
    for i in range(len(queries)):
        query = queries[i]
        for step in (-1, 1):
            at, bridge = place[query] + step, 0.0
            while 0 <= at < len(order):
                bridge = max(bridge, gaps[at] if step < 0 else gaps[at - 1])
                other = order[at]
                at += step
                square = squares[query] + squares[other] - np.float32(2) * product[i, other]
                if square - doubt[query] - doubt[other] < bridge * bridge:
                    exact = _distance(rows[members[query]], rows[members[other]])
                    if exact < bridge:
                        a.append(np.int32(query))
                        b.append(np.int32(other))
                        length.append(exact)
    return np.array(a), np.array(b), np.array(length)


@compiled()
def _nearest_outside(product, queries, squares, component, rows, members):  # type: ignore[no-untyped-def]
    """For each query a pair with (about) the nearest member of another component."""
    n = len(queries)
    a, b, length = np.empty(n, dtype=np.int32), np.empty(n, dtype=np.int32), np.empty(n)
    for i in range(n):
        query = queries[i]
        nearest, least = -1, np.float32(np.inf)
        for other in range(len(squares)):
            square = squares[other] - np.float32(2) * product[i, other]
            if component[other] != component[query] and (nearest < 0 or square < least):
                nearest, least = other, square
        a[i], b[i] = query, nearest
        length[i] = _distance(rows[members[query]], rows[members[nearest]])
    return a, b, length
