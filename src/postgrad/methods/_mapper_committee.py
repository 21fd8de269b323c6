"""One Mapper for each latent coordinate, over the same points: which nodes each training point is in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from postgrad.errors import UserError
from postgrad.methods._mapper_cover import Cover, make_cover
from postgrad.methods._mapper_graph import MapperGraph, make_graph
from postgrad.methods._mapper_rows import PRODUCT_BYTES, mean_rows
from postgrad.methods._nearest import BLOCK, Points, nearest_of_all
from postgrad.methods._single_linkage import Cut, Edges, clusters, spanning_tree
from postgrad.progress import progress
from postgrad.units import format_memory, parse_memory

LISTED = 32
"""Nearest neighbours listed for each point, from which spanning trees begin."""

Rows = Literal["published", "soft", "hard"]


class Committee:
    """The training points, the cover of each coordinate and the nodes that each point is in.

    Nodes are numbered coordinate by coordinate, interval by interval, cluster by cluster in the order of their first
    members. Those of point p in coordinate c are `nodes[starts[p, c] : starts[p, c + 1]]`, one for each of its
    intervals `first[p, c]` … `last[p, c]`. In the order `order[c]` of a coordinate's values the points of interval i
    are those from `begins[c, i]` to `ends[c, i]`.
    """

    def __init__(self, points: Points, values: NDArray[np.float64], covers: Sequence[Cover]) -> None:
        self.points, self.values, self.covers = points, values, tuple(covers)
        n, count = values.shape
        ranges = [cover.of(of_one) for cover, of_one in zip(covers, values.T, strict=True)]
        self.first, self.last = (np.stack(ends, axis=1).astype(np.int16) for ends in zip(*ranges, strict=True))
        starts = np.concatenate([[0], np.cumsum(self.last - self.first + 1, dtype=np.int64)])
        self.starts = starts[np.arange(n)[:, None] * count + np.arange(count + 1)]
        self.order = np.ascontiguousarray(np.argsort(values, axis=0, kind="stable").T.astype(np.int32))
        width = max(len(cover) for cover in covers)
        self.begins, self.ends = np.full((count, width), n), np.full((count, width), n)
        for c, cover in enumerate(covers):
            numbers, order = np.arange(len(cover)), self.order[c]
            self.begins[c, : len(cover)] = np.searchsorted(self.last[order, c], numbers, side="left")
            self.ends[c, : len(cover)] = np.searchsorted(self.first[order, c], numbers, side="right")
        self.nodes = np.zeros(starts[-1], dtype=np.int32)

    @property
    def n_nodes(self) -> int:
        """Nodes of all coordinates."""
        return int(self.nodes.max()) + 1

    def members(self, coordinate: int, interval: int) -> NDArray[np.int64]:
        """The points of an interval, ascending."""
        begin, end = self.begins[coordinate, interval], self.ends[coordinate, interval]
        return np.sort(self.order[coordinate, begin:end]).astype(np.int64)

    def asked(self, values: NDArray[np.float64], margin: float) -> NDArray[np.int64]:
        """The first and the last interval (2, m, C) in which each new point looks; wider where nobody is in these."""
        found = np.empty((2, *values.shape), dtype=np.int64)
        for c, cover in enumerate(self.covers):
            low, high = cover.asked(values[:, c], margin)
            while (alone := self.begins[c, low] >= self.ends[c, high]).any():
                low = np.maximum(low - alone, 0)
                high = np.minimum(high + alone, len(cover) - 1)
            found[:, :, c] = low, high
        return found

    def cluster(self, cut: Cut) -> None:
        """Find the nodes: the clusters of each interval of each coordinate."""
        neighbours = nearest_of_all(self.points, LISTED)
        edges = Edges.listed(neighbours)
        known = 0
        with progress("clustering", len(self.covers), unit="coordinates") as advance:
            for c, cover in enumerate(self.covers):
                for interval in range(len(cover)):
                    members = self.members(c, interval)
                    if len(members):
                        labels = clusters(spanning_tree(self.points, members, edges, neighbours.radius), cut)
                        place = self.starts[members, c] + interval - self.first[members, c]
                        self.nodes[place] = known + labels
                        known += int(labels.max()) + 1
                advance()
        self.describe_nodes()

    def describe_nodes(self) -> None:
        """Note of each node its coordinate, and its interval there."""
        self.coordinate, self.interval = np.zeros(self.n_nodes, np.int64), np.zeros(self.n_nodes, np.int64)
        n, count = self.first.shape
        lengths = (self.last - self.first + 1).ravel()
        which = np.repeat(np.arange(n * count), lengths)
        within = np.arange(len(self.nodes)) - np.repeat(self.starts[:, :-1].ravel(), lengths)
        self.coordinate[self.nodes] = which % count
        self.interval[self.nodes] = self.first.ravel()[which] + within

    def membership(self) -> sparse.csr_matrix:
        """The nodes of the training points (n, nodes): 1 where a point is in a node."""
        pointers = np.append(self.starts[:, 0], self.starts[-1, -1])
        ones = np.ones(len(self.nodes), dtype=np.float32)
        return sparse.csr_matrix((ones, self.nodes, pointers), shape=(len(self.points), self.n_nodes))

    def rows(
        self, points: NDArray[Any], values: NDArray[np.float64], *, k: int, margin: float, kind: Rows
    ) -> sparse.csr_matrix:
        """The rows of new points (m, d) whose latent coordinates are `values`."""
        return mean_rows(self, self.points.queries(points), values, k=k, margin=margin, hard=kind == "hard", own=False)

    def training_rows(self, *, k: int, margin: float, kind: Rows) -> sparse.csr_matrix:
        """The rows of the training points: their own nodes, or as if each were new and not among the others."""
        if kind != "soft" or len(self.points) == 1:
            return self.membership()
        queries = self.points.queries(self.points.whole())
        return mean_rows(self, queries, self.values, k=k, margin=margin, hard=False, own=True)

    def graph(self, coordinate: int, labels: Sequence[Any] | None) -> MapperGraph:
        """The nodes and edges of one coordinate."""
        if not 0 <= coordinate < len(self.covers):
            raise UserError(f"coordinate: expected 0 … {len(self.covers) - 1}, got {coordinate}")
        cover = self.covers[coordinate]
        limits = list(zip(cover.lower.tolist(), cover.upper.tolist(), strict=True))
        nodes = np.flatnonzero(self.coordinate == coordinate)
        membership = self.membership().tocsc()
        return make_graph(coordinate, membership, nodes, self.interval, limits, self.values[:, coordinate], labels)

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, by name."""
        return {
            "points": torch.from_numpy(self.points.whole()),
            "values": torch.from_numpy(self.values),
            "nodes": torch.from_numpy(self.nodes),
            "lower": torch.from_numpy(np.concatenate([cover.lower for cover in self.covers])),
            "upper": torch.from_numpy(np.concatenate([cover.upper for cover in self.covers])),
            "intervals": torch.tensor([len(cover) for cover in self.covers]),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], points: NDArray[Any], overlap: float) -> Committee:
        """What `tensors` gave, over these points."""
        ends = np.cumsum(tensors["intervals"].numpy())[:-1]
        lower, upper = (np.split(tensors[name].numpy(), ends) for name in ("lower", "upper"))
        covers = [Cover(low, high, overlap) for low, high in zip(lower, upper, strict=True)]
        committee = cls(Points(points), tensors["values"].numpy(), covers)
        committee.nodes = tensors["nodes"].numpy()
        committee.describe_nodes()
        return committee


def fit_committee(
    points: NDArray[Any],
    values: NDArray[np.float64],
    *,
    n_intervals: int,
    overlap: float,
    intervals: Literal["uniform", "balanced"],
    cut: Cut,
    memory: str,
) -> Committee:
    """Cover each coordinate of `values` (n, C), and cluster the `points` (n, d) of each interval."""
    needed, budget = committee_bytes(points, values.shape[1], overlap), parse_memory(memory)
    if needed > budget:
        raise UserError(
            f"Mapper needs about {format_memory(needed)} for {len(points):,} points of {points.shape[1]:,} numbers, "
            f"more than memory={memory!r}: raise memory, or give fewer points or numbers"
        )
    width = float(np.ptp(values, axis=0).max())
    covers = [make_cover(column, n_intervals, overlap, kind=intervals, width=width) for column in values.T]
    committee = Committee(Points(points), values, covers)
    committee.cluster(cut)
    return committee


def committee_bytes(points: NDArray[Any], coordinates: int, overlap: float) -> int:
    """The most memory that fitting and mapping take at once, about.

    The points as given and centred; the lists with what sorting their pairs takes; the nodes; a product of blocks.
    """
    n, d = points.shape
    places = n * coordinates * (1 + 1 / (1 - overlap))
    return int(n * d * (2 * points.itemsize + 4) + n * LISTED * 100 + places * 24 + PRODUCT_BYTES + 4 * BLOCK**2)
