"""The graph of one coordinate of Mapper as inline SVG: its nodes with their classes, along the intervals.

Colours come from the style sheet beside this file, so that they follow light, dark and print.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from postgrad.methods._mapper_layout import Layout, Place, Sizes, lay_out
from postgrad.svg import join, picture, tag

COLOURS = 10
"""Classes with a colour of their own; the others share one."""

_WIDEST, _THINNEST = 14.0, 0.8
_RING, _HOLE = 16.0, 0.62
"""Nodes from this radius on are rings, which have their class inside; this share of them is the hole."""
_PERCENT_FROM = 30.0
_LETTER, _TICK = 6.4, 6.0
_CLASSES_SAID = 6

Node = Mapping[str, Any]


@dataclass(frozen=True)
class Look:
    """What is alike in the drawings of all coordinates: sizes, colours, and what things are called."""

    sizes: Sizes
    names: Sequence[str]
    styles: Sequence[str]
    """The style of each class."""
    noun: str

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Look:
        """Colours go to the classes that are most often the largest of a node."""
        names, coordinates = table["classes"], table["coordinates"]
        wins = Counter(node["classes"][0][0] for c in coordinates for node in c["nodes"] if node["classes"])
        by_wins = sorted(range(len(names)), key=lambda number: (-wins[number], number))
        coloured = {number: i for i, number in enumerate(sorted(by_wins[:COLOURS]))}
        styles = [f"class-{coloured[number]}" if number in coloured else "class-other" for number in range(len(names))]
        return cls(Sizes.of(coordinates), names, styles, table["noun"])

    def style(self, node: Node) -> str:
        """The style of a node's largest class."""
        return self.styles[node["classes"][0][0]] if node["classes"] else "class-none"


def draw(coordinate: Mapping[str, Any], look: Look) -> Markup:
    """Columns, edges below nodes, and the intervals; `coordinate` is an entry of `graph_table`."""
    layout = lay_out(coordinate, look.sizes)
    nodes = coordinate["nodes"]
    in_order = sorted(range(len(nodes)), key=lambda i: (nodes[i]["interval"], layout.places[i].y, layout.places[i].x))
    column = 0.92 * layout.step
    columns = [
        tag("rect", x=x - column / 2, y=2, width=column, height=layout.bottom - 2, rx=5, class_="column")
        for x in layout.columns
    ]
    return picture(
        layout.width,
        layout.bottom + 40,
        in_words(coordinate, look),
        *columns,
        *_edges(coordinate["edges"], layout, look.noun),
        *[_node(nodes[i], layout.places[i], hint(nodes[i], coordinate, look), look) for i in in_order],
        _axis(coordinate, layout),
        class_="graph",
    )


def in_words(coordinate: Mapping[str, Any], look: Look) -> str:
    """The graph as a sentence, for those who do not see it."""
    nodes = coordinate["nodes"]
    total, alone = sum(node["nodes"] for node in nodes), sum(_singles(node) for node in nodes)
    largest = max(node["largest"] for node in nodes)
    said = f"{counted(total, 'node')} in {counted(coordinate['intervals'], 'interval')}"
    edges = counted(len(coordinate["edges"]), "edge")
    ones = f"; {counted(alone, 'node')} of one {look.noun}" if alone else ""
    return (
        f"Coordinate {coordinate['coordinate']}: {said}, {edges}; the largest of {counted(largest, look.noun)}{ones}."
    )


def hint(node: Node, coordinate: Mapping[str, Any], look: Look) -> str:
    """What is known of a node, in lines: its members and its interval, then its classes."""
    low, high = _ends(coordinate["limits"][str(node["interval"])])
    members = counted(node["size"], look.noun)
    if node["nodes"] > 1:
        of = f"one {look.noun}" if node["largest"] == 1 else f"at most {counted(node['largest'], look.noun)}"
        members = f"{node['nodes']:,} nodes of {of}, {members} together"
    lines = [f"{members} in interval {node['interval'] + 1} of {coordinate['intervals']}, from {low} to {high}"]
    for number, count in node["classes"][:_CLASSES_SAID]:
        how_many = f": {count:,} ({_percent(count / node['size'])})" if node["size"] > 1 else ""
        lines.append(f"class {look.names[number]}{how_many}")
    if more := node["classes"][_CLASSES_SAID:]:
        lines.append(f"other classes: {sum(count for _, count in more):,}")
    return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """A number and its noun: 1 node, 1,204 nodes."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _singles(node: Node) -> int:
    return node["nodes"] if node["largest"] == 1 else 0


def _edges(edges: Sequence[tuple[int, int, int]], layout: Layout, noun: str) -> Iterator[Markup]:
    widest = max((shared for *_, shared in edges), default=1)
    for a, b, shared in edges:
        one, other = layout.places[a], layout.places[b]
        yield tag(
            "line",
            tag("title", f"{counted(shared, noun)} in both"),
            x1=one.x,
            y1=one.y,
            x2=other.x,
            y2=other.y,
            stroke_width=max(_WIDEST * shared / widest, _THINNEST),
            class_="shared",
        )


def _node(node: Node, place: Place, said: str, look: Look) -> Markup:
    shown = " ".join(map(str, node["shown"]))
    drawn = _pill(node, place) if node["nodes"] > 1 else _circle(node, place, look)
    return tag("g", tag("title", said), drawn, class_="node", data_node=node["id"], data_shown=shown)


def _pill(node: Node, place: Place) -> Markup:
    """Nodes that were gathered, as their number."""
    width, height = 2 * place.half_width, 2 * place.half_height
    x, y = place.x - place.half_width, place.y - place.half_height
    box = tag("rect", x=x, y=y, width=width, height=height, rx=height / 2, class_="rim pill")
    return join([box, tag("text", f"+{node['nodes']}", x=place.x, y=place.y + 4, text_anchor="middle", class_="more")])


def _circle(node: Node, place: Place, look: Look) -> Markup:
    """The classes of a node as slices, the most frequent first from the top; large ones have a hole with its name."""
    x, y, radius = place.x, place.y, place.half_width
    shares = _shares(node, look)
    rim = {"cx": x, "cy": y, "r": radius}
    if len(shares) < 2:
        parts = [tag("circle", **rim, class_=f"rim slice {look.style(node)}")]
    else:
        parts = [*_slices(shares, x, y, radius), tag("circle", **rim, class_="rim")]
    if radius >= _RING:
        parts.append(tag("circle", cx=x, cy=y, r=_HOLE * radius, class_="hole"))
        parts += _inside(node, place, look)
    return join(parts)


def _shares(node: Node, look: Look) -> list[tuple[str, float]]:
    """The share of each colour, the largest first, what has none at the end."""
    of_style: Counter[str] = Counter()
    for number, count in node["classes"]:
        of_style[look.styles[number]] += count
    in_order = sorted(of_style.items(), key=lambda item: (item[0] == "class-other", -item[1]))
    return [(style, count / node["size"]) for style, count in in_order]


def _slices(shares: Sequence[tuple[str, float]], x: float, y: float, radius: float) -> Iterator[Markup]:
    begin = 0.0
    for style, share in shares:
        ends = [2 * math.pi * at for at in (begin, begin + share)]
        (x1, y1), (x2, y2) = ((x + radius * math.sin(a), y - radius * math.cos(a)) for a in ends)
        far = int(share > 0.5)
        arc = f"M{x:.1f},{y:.1f}L{x1:.2f},{y1:.2f}A{radius:.2f},{radius:.2f} 0 {far} 1 {x2:.2f},{y2:.2f}Z"
        yield tag("path", d=arc, class_=f"slice {style}")
        begin += share


def _inside(node: Node, place: Place, look: Look) -> list[Markup]:
    """The most frequent class of a large node, and how many of its members have it."""
    if not node["classes"]:
        return [tag("text", f"{node['size']:,}", x=place.x, y=place.y + 4, text_anchor="middle")]
    number, count = node["classes"][0]
    room = 2 * _HOLE * place.half_width
    name = _fitting(look.names[number], room)
    if place.half_width < _PERCENT_FROM:
        return [tag("text", name, x=place.x, y=place.y + 4, text_anchor="middle", class_="name")]
    share = tag("text", _percent(count / node["size"]), x=place.x, y=place.y + 11, text_anchor="middle", class_="share")
    return [tag("text", name, x=place.x, y=place.y - 1, text_anchor="middle", class_="name"), share]


def _fitting(name: str, room: float) -> str:
    letters = max(int(room / _LETTER), 2)
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _axis(coordinate: Mapping[str, Any], layout: Layout) -> Markup:
    """The ends of the intervals, of as many as there is room for, and what they are of."""
    said = {int(number): " to ".join(_ends(limits)) for number, limits in coordinate["limits"].items()}
    longest = max(map(len, said.values()))
    every = math.ceil((_TICK * longest + 6) / layout.step)
    ticks = [
        tag("text", text, x=layout.columns[number], y=layout.bottom + 14, text_anchor="middle")
        for number, text in said.items()
        if number % every == 0
    ]
    label = f"intervals of coordinate {coordinate['coordinate']}"
    return join([*ticks, tag("text", label, x=layout.width / 2, y=layout.bottom + 34, text_anchor="middle")])


def _ends(limits: Sequence[float]) -> tuple[str, str]:
    """Both ends of an interval, with as many decimals as tell them apart well."""
    low, high = limits
    length = high - low
    decimals = min(max(math.ceil(math.log10(5 / length)), 0), 6) if length > 0 else 3
    first, second = (f"{round(end, decimals) + 0.0:.{decimals}f}".replace("-", "−") for end in (low, high))
    return first, second


def _percent(share: float) -> str:
    """A share in whole per cent, which is 100 only where it is all, and 0 only where it is nothing."""
    whole = round(100 * share)
    if whole in (0, 100) and 0 < share < 1:
        return "> 99 %" if whole else "< 1 %"
    return f"{whole} %"
