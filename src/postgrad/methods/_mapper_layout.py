"""Where the nodes of a Mapper graph are drawn: one column for each interval, and nothing over anything else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 920.0
MARGIN, TOP = 14.0, 12.0
_COLUMN = 36.0
"""The least width of a column; more of them than fit make the drawing wider."""

_LARGEST, _OF_COLUMN = 38.0, 0.43
_SMALL = 0.25
"""Nodes with a radius below this share of the largest lie in rows below the others."""
_GAP, _BAND = 8.0, 22.0
_PILL = 16.0
_PROPORTIONAL = 256
"""Up to this many members in the largest node areas are proportional to members, else to their square root: so a node
of one is small, and seen."""


@dataclass(frozen=True)
class Sizes:
    """What nodes of a Mapper measure, in all its coordinates alike."""

    largest: int
    """Members of the largest node."""
    room: float
    """Its radius."""

    @classmethod
    def of(cls, coordinates: Sequence[Mapping[str, Any]]) -> Sizes:
        """Sizes at which the largest node fits into its column in every coordinate."""
        narrowest = min(column_width(coordinate["intervals"]) for coordinate in coordinates)
        largest = max(node["size"] for coordinate in coordinates for node in coordinate["nodes"] if node["nodes"] == 1)
        return cls(largest, min(_LARGEST, _OF_COLUMN * narrowest))

    @property
    def proportional(self) -> bool:
        return self.largest <= _PROPORTIONAL

    def radius(self, members: int) -> float:
        """The radius of a node."""
        return self.room * (members / self.largest) ** (0.5 if self.proportional else 0.25)

    def is_small(self, members: int) -> bool:
        """Whether a node lies among the small ones."""
        return self.radius(members) < _SMALL * self.room


@dataclass(frozen=True)
class Place:
    """The middle of a node and how far it reaches: a circle, or for gathered nodes a box."""

    x: float
    y: float
    half_width: float
    half_height: float


@dataclass(frozen=True)
class Layout:
    """The places of a coordinate's nodes, in their order, and the size of the drawing."""

    places: tuple[Place, ...]
    columns: tuple[float, ...]
    """The middle of each interval's column."""
    step: float
    width: float
    bottom: float
    """Where the nodes end, and the axis begins."""


def total_width(intervals: int) -> float:
    return max(WIDTH, 2 * MARGIN + _COLUMN * intervals)


def column_width(intervals: int) -> float:
    return (total_width(intervals) - 2 * MARGIN) / intervals


def lay_out(coordinate: Mapping[str, Any], sizes: Sizes) -> Layout:
    """Large nodes about a line in the middle, each near those that it shares members with; small ones in rows below."""
    nodes, step = coordinate["nodes"], column_width(coordinate["intervals"])
    columns = tuple(MARGIN + step * (i + 0.5) for i in range(coordinate["intervals"]))
    large: list[list[int]] = [[] for _ in columns]
    small: list[list[int]] = [[] for _ in columns]
    gathered: dict[int, int] = {}
    for place, node in enumerate(nodes):
        if node["nodes"] > 1:
            gathered[node["interval"]] = place
        else:
            (small if sizes.is_small(node["size"]) else large)[node["interval"]].append(place)
    radii = [sizes.radius(node["size"]) for node in nodes]
    heights = [sum(2 * radii[place] for place in column) + _GAP * (len(column) - 1) for column in large]
    tallest = max(0.0, *heights)
    found = _large(large, radii, heights, columns, TOP + tallest / 2, _neighbours(coordinate["edges"]))
    bottom = begin = TOP + tallest + _BAND * (tallest > 0)
    pitch = 2 * max((radii[place] for column in small for place in column), default=0.0) + 3
    in_row = max(1, int(0.86 * step / pitch))
    for interval, column in enumerate(small):
        y = begin
        for row in range(0, len(column), in_row):
            along = column[row : row + in_row]
            for i, place in enumerate(along):
                x = columns[interval] + pitch * (i - (len(along) - 1) / 2)
                found[place] = Place(x, y + pitch / 2, radii[place], radii[place])
            y += pitch
        if (rest := gathered.get(interval)) is not None:
            half = min(6 + 3.4 * len(f"+{nodes[rest]['nodes']}"), step / 2)
            found[rest] = Place(columns[interval], y + 2 + _PILL / 2, half, _PILL / 2)
            y += 2 + _PILL
        bottom = max(bottom, y)
    places = tuple(found[place] for place in range(len(nodes)))
    return Layout(places, columns, step, total_width(coordinate["intervals"]), math.ceil(bottom) + 4)


def _neighbours(edges: Sequence[tuple[int, int, int]]) -> dict[int, list[tuple[int, int]]]:
    """For each node those that it shares members with, and how many."""
    found: dict[int, list[tuple[int, int]]] = {}
    for a, b, shared in edges:
        found.setdefault(a, []).append((b, shared))
        found.setdefault(b, []).append((a, shared))
    return found


def _large(
    columns: Sequence[Sequence[int]],
    radii: Sequence[float],
    heights: Sequence[float],
    x: Sequence[float],
    middle: float,
    neighbours: Mapping[int, Sequence[tuple[int, int]]],
) -> dict[int, Place]:
    """A stack for each column, in the order of its nodes' neighbours to the left; those without come last."""
    found: dict[int, Place] = {}
    for column, at, height in zip(columns, x, heights, strict=True):
        y = middle - height / 2
        for place in sorted(column, key=lambda place: _pull(neighbours.get(place, ()), found)):
            radius = radii[place]
            found[place] = Place(at, y + radius, radius, radius)
            y += 2 * radius + _GAP
    return found


def _pull(neighbours: Sequence[tuple[int, int]], found: Mapping[int, Place]) -> float:
    """The mean height of the neighbours that have their places, by the members shared."""
    placed = [(found[place].y, shared) for place, shared in neighbours if place in found]
    return sum(y * shared for y, shared in placed) / sum(shared for _, shared in placed) if placed else math.inf
