"""Drawings of a mutation search as inline SVG: the tree of its networks, and their accuracy as time went by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

import postgrad.reports.words as words
from postgrad.reports.charts import HEIGHT, as_number, as_percent
from postgrad.reports.schema import LineageNode
from postgrad.svg import picture, polyline, scale, tag, x_axis, y_axis

LEVELS = 6
"""Colours of accuracy, each for as many networks."""

DRAWN = 300
"""Of more networks than these, those without children are left out."""

_WIDTH = 920
_LEFT, _RIGHT, _TOP = 14, 108, 26
_GENERATION = 120
_ROWS = ((36, 18.0), (72, 14.0), (DRAWN, 7.0))
"""Up to so many rows, so much room for each; below the height of a letter they carry no names."""
_NAMED_ROW, _NAMED_STEP = 14.0, 48.0
_SMALLEST = 2.6


@dataclass(frozen=True)
class Place:
    """Where a network is drawn: its generation, and the row that it is on."""

    generation: int
    row: float


def winning(nodes: Sequence[LineageNode]) -> list[LineageNode]:
    """The winner and its ancestors, the base first; empty where no winner is marked."""
    of_name = {node.name: node for node in nodes}
    found: list[LineageNode] = []
    at = next((node for node in nodes if node.winner), None)
    while at is not None:
        found.append(at)
        at = of_name.get(at.parent or "")
    return found[::-1]


def drawn(nodes: Sequence[LineageNode]) -> list[LineageNode]:
    """All networks, or those with children and the winner where they are too many for one drawing."""
    if len(nodes) <= DRAWN:
        return list(nodes)
    parents = {node.parent for node in nodes}
    return [node for node in nodes if node.name in parents or node.winner]


def places(nodes: Sequence[LineageNode]) -> dict[str, Place]:
    """A row for each network without children, from the top; parents stand in the middle of their children.

    `nodes` name parents before their children.
    """
    children: dict[str | None, list[LineageNode]] = {}
    generations: dict[str | None, int] = {None: -1}
    for node in nodes:
        children.setdefault(node.parent, []).append(node)
        generations[node.name] = generations[node.parent] + 1
    rows: dict[str, float] = {}
    stack = list(reversed(children.get(None, [])))
    while stack:
        node = stack.pop()
        if own := children.get(node.name):
            stack += reversed(own)
        else:
            rows[node.name] = float(len(rows))
    for node in reversed(nodes):
        if own := children.get(node.name):
            rows[node.name] = (rows[own[0].name] + rows[own[-1].name]) / 2
    return {node.name: Place(generations[node.name], rows[node.name]) for node in nodes}


def bounds(nodes: Sequence[LineageNode]) -> list[float]:
    """The accuracies from which on the colour is another: each colour has as many networks, as far as they differ."""
    accuracies = [node.accuracy for node in nodes]
    ends = np.unique(np.quantile(accuracies, np.arange(1, LEVELS) / LEVELS))
    return [float(end) for end in ends if end > min(accuracies)]


def level(accuracy: float, ends: Sequence[float]) -> int:
    """The colour of an accuracy, 0 for the palest; fewer colours than there are lie as far apart as they can."""
    return int(np.searchsorted(ends, accuracy, side="right")) * (LEVELS - 1) // max(len(ends), 1)


def tree(nodes: Sequence[LineageNode]) -> Markup:
    """The tree from left to right: area says how many parameters, colour how accurate; the winner's path is thick."""
    shown = drawn(nodes)
    at, path, ends = places(shown), {node.name for node in winning(nodes)}, bounds(nodes)
    leaves = len({node.name for node in shown} - {node.parent for node in shown})
    row = next((room for most, room in _ROWS if leaves <= most), _ROWS[-1][1])
    generations = max(place.generation for place in at.values())
    step = min(_GENERATION, (_WIDTH - _LEFT - _RIGHT) / max(generations, 1))
    x = {name: _LEFT + step * place.generation for name, place in at.items()}
    y = {name: _TOP + row * (place.row + 0.5) for name, place in at.items()}
    largest = max(node.parameters for node in nodes)
    widest = max(min(0.55 * row, 0.3 * step), 1.5 * _SMALLEST)
    wires = [
        _wire(x[node.parent], y[node.parent], x[node.name], y[node.name], {node.name, node.parent} <= path)
        for node in sorted(shown, key=lambda node: node.name in path)
        if node.parent is not None
    ]
    parents = {node.parent for node in shown}
    dots, names = [], []
    for node in shown:
        radius = max(widest * math.sqrt(node.parameters / largest), _SMALLEST)
        style = f"network level-{level(node.accuracy, ends)}{' won' if node.name in path else ''}"
        dots.append(tag("circle", tag("title", hint(node)), cx=x[node.name], cy=y[node.name], r=radius, class_=style))
        if node.name in parents and (node.winner or (node.name in path and step >= _NAMED_STEP)):
            names.append(_above(node, x[node.name], y[node.name] - radius))
        elif node.name not in parents and (node.name in path or row >= _NAMED_ROW):
            names.append(_beside(node, x[node.name] + radius, y[node.name]))
    return picture(_WIDTH, _TOP + row * leaves + 6, in_words(nodes), *wires, *dots, *names)


def in_words(nodes: Sequence[LineageNode]) -> str:
    """The tree as a sentence, for those who do not see it."""
    path, generations = winning(nodes), max(place.generation for place in places(nodes).values())
    said = f"Tree of {words.plural(len(nodes), 'network')} over {words.plural(generations, 'generation')}."
    if not path:
        return said
    steps = ", then ".join(f"{node.mutation} ({as_percent(node.accuracy)})" for node in path[1:]) or "nothing"
    return f"{said} From the base ({as_percent(path[0].accuracy)}) to the winner by {steps}."


def hint(node: LineageNode) -> str:
    """What is known of a network, for who points at it."""
    lines = [
        f"{node.mutation}, number {node.number}: {words.percent(node.accuracy)}, {node.parameters:,} parameters",
        *node.operations,
        certificate(node),
    ]
    return "\n".join(line for line in lines if line)


def certificate(node: LineageNode) -> str:
    """How far its growth went from what the parent computes."""
    if node.max_error is None:
        return ""
    return f"{'exact, error' if node.exact else 'approximate, error'} {node.max_error:.1e}"


def progress(nodes: Sequence[LineageNode]) -> Markup:
    """Each network when it was finished, the best so far as steps, and the mean of the population as a line."""
    in_time = sorted(nodes, key=lambda node: node.seconds)
    left, right, top, bottom = 50, 440 - 12, 12, HEIGHT - 44
    x = scale([node.seconds for node in in_time], left, right, margin=0.02)
    y = scale([v for node in in_time for v in (node.accuracy, node.population_accuracy)], bottom, top)
    path = {node.name for node in winning(nodes)}
    best = np.maximum.accumulate([node.accuracy for node in in_time])
    xs = [x(node.seconds) for node in in_time]
    corners_x, corners_y = [xs[0]], [y(float(best[0]))]
    for at, before, now in zip(xs[1:], best, best[1:], strict=False):
        corners_x += [at, at]
        corners_y += [y(float(before)), y(float(now))]
    corners_x.append(right)
    corners_y.append(corners_y[-1])
    dots = [
        tag(
            "circle",
            tag("title", hint(node)),
            cx=x(node.seconds),
            cy=y(node.accuracy),
            r=3.5 if node.name in path else 2.6,
            class_=f"dot {'method' if node.name in path else 'control'}",
        )
        for node in sorted(in_time, key=lambda node: node.name in path)
    ]
    return picture(
        440,
        HEIGHT,
        f"Validation accuracy against seconds of the search: the first network {as_percent(in_time[0].accuracy)}, "
        f"the best {as_percent(float(best[-1]))}, the mean of the population at the end "
        f"{as_percent(in_time[-1].population_accuracy)}.",
        x_axis(x, top, bottom, "seconds of the search", as_number),
        y_axis(y, left, right, as_percent),
        polyline(corners_x, corners_y, "frontier"),
        polyline(xs, [y(node.population_accuracy) for node in in_time], "line base"),
        *dots,
    )


def _wire(x1: float, y1: float, x2: float, y2: float, on_path: bool) -> Markup:
    half = (x1 + x2) / 2
    path = f"M{x1:.1f},{y1:.1f} C{half:.1f},{y1:.1f} {half:.1f},{y2:.1f} {x2:.1f},{y2:.1f}"
    return tag("path", d=path, class_=f"wire{' won' if on_path else ''}")


def _above(node: LineageNode, x: float, y: float) -> Markup:
    """The mutation of the winner's ancestors; the base stands at the edge, so its name begins there."""
    anchor, shift = ("start", -8) if node.parent is None else ("middle", 0)
    said = _said(node) if node.winner else node.mutation
    return tag("text", said, x=x + shift, y=y - 5, class_="name method", text_anchor=anchor)


def _beside(node: LineageNode, x: float, y: float) -> Markup:
    """What a network without children is: right of it its row is free."""
    return tag("text", _said(node), x=x + 5, y=y + 4, class_="name method" if node.winner else "tick")


def _said(node: LineageNode) -> str:
    return f"{node.mutation} {as_percent(node.accuracy)}"
