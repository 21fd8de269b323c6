"""The Mapper graph of one coordinate as plain data: nodes with their members, edges between nodes that share some."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from postgrad.files import write_atomic
from postgrad.methods._nearest import Points


@dataclass(frozen=True)
class Node:
    """One cluster of one interval."""

    id: int
    """Its column in the rows of `MapperTransformer`."""
    interval: int
    limits: tuple[float, float]
    """The ends of its interval, in the coordinate's values."""
    members: tuple[int, ...]
    """Places of its training points, ascending."""
    mean: float
    """The mean of the coordinate over its members."""
    classes: dict[str, int]
    """How many members each class has; classes that have none are left out. Empty without labels."""

    @property
    def size(self) -> int:
        return len(self.members)


@dataclass(frozen=True)
class Edge:
    """Two nodes that have members in common."""

    a: int
    b: int
    shared: int


@dataclass(frozen=True)
class Training:
    """The training points behind a graph, for whoever wants to see its members."""

    points: Points
    image_shape: tuple[int, ...] | None
    """(C, H, W) where they are images."""
    labels: tuple[str, ...] | None

    def images(self, places: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Those at some places (n, C, H, W)."""
        assert self.image_shape is not None
        pixels = (self.points.whole(places).clip(0, 1) * 255).round().astype(np.uint8)
        return pixels.reshape(-1, *self.image_shape)


@dataclass(frozen=True)
class MapperGraph:
    """Nodes and edges of one coordinate's Mapper.

    >>> graph = clf.graph(0)
    >>> graph.nodes[0].size, graph.nodes[0].classes
    (812, {'1': 805, '7': 7})
    >>> graph.draw("graph.html")
    PosixPath('graph.html')
    """

    coordinate: int
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    training: Training | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> str:
        """The graph as one JSON object: coordinate, nodes (with their sizes), edges."""
        nodes = [{**asdict(node), "size": node.size} for node in self.nodes]
        edges = [asdict(edge) for edge in self.edges]
        return json.dumps({"coordinate": self.coordinate, "nodes": nodes, "edges": edges})

    def draw(self, path: str | os.PathLike[str]) -> Path:
        """Write the graph as one page that needs no network, and return its path; a node shows its members when chosen.

        >>> clf.graph(0).draw("graph.html")
        PosixPath('graph.html')

        It is the part "Mapper graph" of a report, for one coordinate: at most 3 MB, the images shown at 32 pixels or
        less. Without labels the nodes have no colours; of rows that are no images the places are listed. Raises
        `UserError` where the coordinate has more than 600 intervals.
        """
        from postgrad.methods.mapper_page import page  # drawings need the graph, which needs them here alone
        from postgrad.methods.mapper_table import graph_table

        target = Path(path).expanduser()
        write_atomic(target, page(graph_table([self]), f"Mapper graph of coordinate {self.coordinate}"))
        return target


def make_graph(
    coordinate: int,
    membership: sparse.csc_matrix,
    nodes: NDArray[np.int64],
    intervals: NDArray[np.int64],
    limits: Sequence[tuple[float, float]],
    values: NDArray[np.float64],
    labels: Sequence[Any] | None,
) -> MapperGraph:
    """The graph of the columns `nodes` of a binary membership matrix (n, all nodes)."""
    names = None if labels is None else np.asarray([str(label) for label in labels])
    found = []
    for node in nodes.tolist():
        members = np.sort(membership.indices[membership.indptr[node] : membership.indptr[node + 1]])
        classes = {} if names is None else dict(zip(*np.unique(names[members], return_counts=True), strict=True))
        found.append(
            Node(
                id=node,
                interval=int(intervals[node]),
                limits=limits[int(intervals[node])],
                members=tuple(members.tolist()),
                mean=float(values[members].mean()),
                classes={str(name): int(count) for name, count in classes.items()},
            )
        )
    ours = membership[:, nodes].astype(np.int64)
    shared = sparse.triu(ours.T @ ours, k=1).tocoo()
    pairs = sorted(zip(shared.row.tolist(), shared.col.tolist(), shared.data.tolist(), strict=True))
    edges = tuple(Edge(int(nodes[a]), int(nodes[b]), int(count)) for a, b, count in pairs)
    return MapperGraph(coordinate, tuple(found), edges)
