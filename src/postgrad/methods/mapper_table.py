"""What a drawing of Mapper graphs shows, as plain data that fit into a page: nodes, edges and images of members."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from postgrad.errors import UserError
from postgrad.methods._mapper_graph import MapperGraph, Node, Training

SHOWN = 24
"""Members of a node whose images are kept."""
SPRITE_BYTES = 1_200_000
"""The most that the picture of all images takes; written in letters, as a page needs it, it takes a third more."""
MOST_INTERVALS = 600
"""Coordinates are drawn while they have no more intervals together."""
_NODES = 3000
_NODES_OF_INTERVAL = (4, 20)
"""All intervals together draw about so many nodes; one interval at least, and at most, so many."""

_SIDE = 32
_COLUMNS = 32
_TRANSPOSED = (0, 2, 3, 1)


@dataclass(frozen=True)
class _Group:
    """One node, or the small ones of an interval together."""

    nodes: tuple[Node, ...]
    shown: NDArray[np.int64]
    """The members whose images are wanted, the most wanted first."""

    @property
    def size(self) -> int:
        return sum(node.size for node in self.nodes)


def graph_table(graphs: Sequence[MapperGraph]) -> dict[str, Any]:
    """Graphs of one Mapper as JSON takes them, with the images of some members of each node.

    >>> table = graph_table([clf.graph(c) for c in range(20)])
    >>> table["coordinates"][0]["nodes"][0]
    {'id': 0, 'interval': 0, 'nodes': 1, 'largest': 812, 'size': 812, 'classes': [(1, 805), (7, 7)], 'shown': [4, …]}

    `classes` has the names; in a node the place of a name among them and how many members have it, most first. `noun`
    is "image" or "point". `shown` are places in `members`, which has their `places` among the training points, `labels`
    (places of class names; empty without labels) and, of images, a `sprite`: one PNG in base64 of images that are
    `width` by `height`, `columns` in a row. Of an interval with many nodes the smallest are one entry, which stands for
    `nodes` nodes, of which the `largest` has so many members.

    Raises `UserError` where the first coordinate has more than 600 intervals.
    """
    drawn = _drawable(graphs)
    training = graphs[0].training
    assert training is not None
    labels = training.labels
    names = sorted(set(labels or ()), key=lambda name: (int(name) if name.isdecimal() else math.inf, name))
    number = {name: i for i, name in enumerate(names)}
    rank = np.random.default_rng(0).permutation(len(training.points))
    limit = int(np.clip(_NODES // sum(_intervals(graph) for graph in drawn), *_NODES_OF_INTERVAL))
    groups = [_groups(graph, limit, rank) for graph in drawn]
    places, sprite = _packed(_wanted([group for of_graph in groups for group in of_graph]), training)
    at = {place: i for i, place in enumerate(places.tolist())}
    of_class = [] if labels is None else [number[labels[place]] for place in places]
    return {
        "classes": names,
        "noun": "point" if training.image_shape is None else "image",
        "members": {"places": places.tolist(), "labels": of_class, "sprite": sprite},
        "coordinates": [
            {
                "coordinate": graph.coordinate,
                "intervals": _intervals(graph),
                "limits": {str(node.interval): node.limits for node in graph.nodes},
                "nodes": [_entry(group, number, at, of_class) for group in of_graph],
                "edges": _edges(graph, of_graph),
            }
            for graph, of_graph in zip(drawn, groups, strict=True)
        ],
        "left_out": len(graphs) - len(drawn),
    }


def _entry(group: _Group, number: Mapping[str, int], at: Mapping[int, int], of_class: Sequence[int]) -> dict[str, Any]:
    """A group as plain data; its images stand in the order of its classes."""
    total: Counter[int] = Counter()
    for node in group.nodes:
        total.update({number[name]: count for name, count in node.classes.items()})
    classes = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    turn = {found: i for i, (found, _) in enumerate(classes)}
    shown = sorted(at[place] for place in group.shown.tolist() if place in at)
    if of_class:
        shown.sort(key=lambda place: turn[of_class[place]])
    first = group.nodes[0]
    return {
        "id": first.id,
        "interval": first.interval,
        "nodes": len(group.nodes),
        "largest": first.size,
        "size": group.size,
        "classes": classes,
        "shown": shown,
    }


def _drawable(graphs: Sequence[MapperGraph]) -> list[MapperGraph]:
    """The first coordinates, as long as their intervals fit."""
    ends = np.cumsum([_intervals(graph) for graph in graphs])
    if ends[0] > MOST_INTERVALS:
        raise UserError(
            f"coordinate {graphs[0].coordinate} has {ends[0]:,} intervals, and a drawing shows {MOST_INTERVALS}; fit "
            "with fewer n_intervals, or use to_json()"
        )
    return list(graphs[: int((ends <= MOST_INTERVALS).sum())])


def _intervals(graph: MapperGraph) -> int:
    return max(node.interval for node in graph.nodes) + 1


def _groups(graph: MapperGraph, limit: int, rank: NDArray[np.int64]) -> list[_Group]:
    """The nodes of each interval, largest first, one by one; those beyond the limit are one group.

    Points are wanted in the order of `rank`, the same for all nodes, so that these show the same ones where they can:
    each node a random sample of its members.
    """
    found = []
    for interval in range(_intervals(graph)):
        nodes = sorted((node for node in graph.nodes if node.interval == interval), key=lambda node: -node.size)
        alone = nodes if len(nodes) <= limit else nodes[: limit - 1]
        for together in [*((node,) for node in alone), tuple(nodes[len(alone) :])]:
            if together:
                members = np.concatenate([np.asarray(node.members, dtype=np.int64) for node in together])
                found.append(_Group(together, members[np.argsort(rank[members])[:SHOWN]]))
    return found


def _edges(graph: MapperGraph, groups: Sequence[_Group]) -> list[tuple[int, int, int]]:
    """Places of two entries, and the members that they share; nodes of one interval share none, so sums count right."""
    entry_of = {node.id: place for place, group in enumerate(groups) for node in group.nodes}
    shared: Counter[tuple[int, int]] = Counter()
    for edge in graph.edges:
        a, b = sorted((entry_of[edge.a], entry_of[edge.b]))
        shared[a, b] += edge.shared
    return sorted((a, b, count) for (a, b), count in shared.items())


def _wanted(groups: Sequence[_Group]) -> NDArray[np.int64]:
    """Each training point once: the first ones of all nodes, large nodes before small, then the second ones, ….

    What a shorter list leaves out is spread over the nodes.
    """
    by_size = sorted(groups, key=lambda group: -group.size)
    in_turn = [int(group.shown[i]) for i in range(SHOWN) for group in by_size if i < len(group.shown)]
    return np.fromiter(dict.fromkeys(in_turn), dtype=np.int64)


def _packed(wanted: NDArray[np.int64], training: Training) -> tuple[NDArray[np.int64], dict[str, Any] | None]:
    """As many of the first of these points as fit, in their order, and their images as one picture."""
    if training.image_shape is None:
        return np.sort(wanted), None
    count = len(wanted)
    while True:
        places = np.sort(wanted[:count])
        thumbnails = _thumbnails(training.images(places))
        png = _sprite(thumbnails)
        if len(png) <= SPRITE_BYTES:
            break
        count = min(count - 1, int(0.95 * count * SPRITE_BYTES / len(png)))
    height, width = thumbnails.shape[1:3]
    written = base64.b64encode(png).decode()
    return places, {"width": width, "height": height, "columns": min(_COLUMNS, len(places)), "png": written}


def _thumbnails(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (N, C, H, W) as pictures (N, h, w, 1 or 3) of 32 pixels at most; of 2 or 4 channels the first shows."""
    pictures = images.transpose(_TRANSPOSED)
    if pictures.shape[-1] != 3:
        pictures = pictures[..., :1]
    if max(pictures.shape[1:3]) <= _SIDE:
        return pictures
    return np.stack([_shrunk(picture) for picture in pictures])


def _shrunk(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
    image.thumbnail((_SIDE, _SIDE))
    return np.asarray(image).reshape(image.height, image.width, -1)


def _sprite(pictures: NDArray[np.uint8]) -> bytes:
    """Pictures (N, h, w, c) side by side, row under row, as a PNG."""
    count, height, width, channels = pictures.shape
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    grid = np.zeros((rows * columns, height, width, channels), dtype=np.uint8)
    grid[:count] = pictures
    sheet = grid.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    buffer = io.BytesIO()
    Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()
