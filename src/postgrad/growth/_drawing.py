"""The SVG of a network's layers in rows, with a legend of the widths that they share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

COLOURS = (
    "#77aadd", "#ee8866", "#eedd88", "#ffaabb", "#44bb99", "#bbcc33", "#c9a0dc", "#99ddff", "#d0b090", "#aaaa00",
)  # fmt: skip
"""Light enough for black letters: Paul Tol's light scheme and two more. Numbers tell apart what shares one."""
_RESERVED, _FEW = 4, 4
"""So many widths of more than so many layers have a colour for themselves."""

_MARGIN, _LABEL, _GAP = 16, 150, 8
_WIDTH, _HEIGHT, _NAME = 136, 42, 18
_IN_A_ROW = 8
_TOTAL = 2 * _MARGIN + _LABEL + _IN_A_ROW * (_WIDTH + _GAP) - _GAP
_LETTER = 6.1
_STYLE = (
    "text { font: 11px system-ui, sans-serif; fill: #1a1a1a } .title { font-size: 16px; font-weight: 600 } "
    ".quiet { fill: #555 } .size { font-size: 10px } .number { font-weight: 700 } "
    ".box { fill: none; stroke: #888; stroke-width: 1 }"
)


@dataclass(frozen=True)
class Cell:
    """One width that a layer reads or makes; `number` is None for a fixed one."""

    number: int | None
    size: int
    hint: str


@dataclass(frozen=True)
class Box:
    """One layer."""

    name: str
    hint: str
    reads: tuple[Cell, ...]
    makes: tuple[Cell, ...]


@dataclass(frozen=True)
class Entry:
    """One line of the legend; `layers` counts those that share the width."""

    number: int | None
    text: str
    remark: str
    layers: int


def draw(boxes: Sequence[Box], entries: Sequence[Entry], *, title: str, remark: str) -> str:
    """The whole picture as SVG text."""
    svg = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
    svg.set("aria-label", f"{title}: {remark}")
    _add(svg, "title", text=title)
    _add(svg, "style", text=_STYLE)
    _hatching(svg)
    _add(svg, "rect", width="100%", height="100%", fill="#ffffff")
    _add(svg, "text", text=title, x=_MARGIN, y=30, class_="title")
    _add(svg, "text", text=f"{remark}. Each box: what the layer reads ▸ what it makes.", x=_MARGIN, y=48,
         class_="quiet")  # fmt: skip
    colours = colours_of(entries)
    y = 64.0
    for prefix, members in rows(boxes):
        y = _row(svg, prefix, members, colours, y)
    height = _legend(svg, entries, colours, y + 12)
    svg.set("viewBox", f"0 0 {_TOTAL} {height:g}")
    svg.set("width", str(_TOTAL))
    svg.set("height", f"{height:g}")
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def colours_of(entries: Sequence[Entry]) -> dict[int, str]:
    """The colour of each numbered width: those of most layers have their own, the others take turns."""
    numbered = [entry for entry in entries if entry.number is not None]
    widest = sorted(numbered, key=lambda entry: -entry.layers)[:_RESERVED]
    own = [entry.number for entry in widest if entry.layers > _FEW]
    turns = itertools.cycle(COLOURS[len(own) :])
    colours = dict(zip(own, COLOURS, strict=False))
    return {number: colours.get(number) or next(turns) for entry in numbered if (number := entry.number) is not None}


def rows(boxes: Sequence[Box]) -> list[tuple[str, list[Box]]]:
    """The boxes in rows, by the largest modules that have at most as many layers as fit into two lines.

    >>> [prefix for prefix, _ in rows(boxes)]
    ['', 'layer1', 'layer2', 'layer3', 'layer4', '']
    """
    return list(_parted("", boxes))


def _parted(prefix: str, boxes: Sequence[Box]) -> Iterator[tuple[str, list[Box]]]:
    if len(boxes) <= 2 * _IN_A_ROW and prefix:
        yield prefix, list(boxes)
        return
    alone: list[Box] = []
    start = f"{prefix}." if prefix else ""

    def part(box: Box) -> str:
        return box.name[len(start) :].partition(".")[0]

    for name, group in itertools.groupby(boxes, part):
        members = list(group)
        if len(members) == 1:
            alone += members
            continue
        if alone:
            yield prefix, alone
            alone = []
        yield from _parted(f"{start}{name}", members)
    if alone:
        yield prefix, alone


def _row(svg: ElementTree.Element, prefix: str, members: Sequence[Box], colours: Mapping[int, str], y: float) -> float:
    _add(svg, "text", text=_short(prefix, _LABEL - _GAP), x=_MARGIN, y=y + 25, hint=prefix)
    for number, box in enumerate(members):
        line, column = divmod(number, _IN_A_ROW)
        left, top = _MARGIN + _LABEL + column * (_WIDTH + _GAP), y + line * (_HEIGHT + _GAP)
        _draw_box(svg, box, box.name.removeprefix(f"{prefix}.") if prefix else box.name, colours, left, top)
    lines = -(-len(members) // _IN_A_ROW)
    return y + lines * (_HEIGHT + _GAP)


def _draw_box(
    svg: ElementTree.Element, box: Box, name: str, colours: Mapping[int, str], left: float, top: float
) -> None:
    group = _add(svg, "g", hint=box.hint)
    _add(group, "text", text=_short(name, _WIDTH - 8), x=left + 5, y=top + 13)
    middle = 12 if box.reads and box.makes else 0
    share = (_WIDTH - middle) / 2 if middle else _WIDTH
    x = left
    for cells in (box.reads, box.makes):
        for cell in cells:
            width = share / len(cells)
            _draw_cell(group, cell, colours, x, top + _NAME, width)
            x += width
        if cells is box.reads and middle:
            _add(group, "text", text="▸", x=x + middle / 2, y=top + _NAME + 16, text_anchor="middle", class_="quiet")
            x += middle
    _add(group, "rect", x=left, y=top, width=_WIDTH, height=_HEIGHT, rx=3, class_="box")


def _draw_cell(
    parent: ElementTree.Element, cell: Cell, colours: Mapping[int, str], x: float, y: float, width: float
) -> None:
    fill = "url(#fixed)" if cell.number is None else colours[cell.number]
    group = _add(parent, "g", hint=cell.hint)
    _add(group, "rect", x=x, y=y, width=width, height=_HEIGHT - _NAME, fill=fill)
    number = "" if cell.number is None else f"{cell.number}:"
    if width < _LETTER * (len(number) + len(str(cell.size))) + 2:
        return
    text = _add(group, "text", x=x + width / 2, y=y + 16, text_anchor="middle", class_="size")
    _add(text, "tspan", text=number, class_="number")
    _add(text, "tspan", text=str(cell.size))


def _legend(svg: ElementTree.Element, entries: Sequence[Entry], colours: Mapping[int, str], y: float) -> float:
    columns = 3
    width = (_TOTAL - 2 * _MARGIN) / columns
    shown = [*entries, Entry(None, "cannot be widened; the pointer over it shows why", "", 0)]
    lines = -(-len(shown) // columns)
    for place, entry in enumerate(shown):
        column, line = divmod(place, lines)
        x, top = _MARGIN + column * width, y + line * 24
        fill = "url(#fixed)" if entry.number is None else colours[entry.number]
        _add(svg, "rect", x=x, y=top, width=30, height=18, fill=fill, stroke="#888")
        if entry.number is not None:
            _add(svg, "text", text=str(entry.number), x=x + 15, y=top + 13, text_anchor="middle", class_="number")
        text = f"{entry.text}{f', {entry.remark}' if entry.remark else ''}"
        _add(svg, "text", text=_short(text, width - 50), x=x + 38, y=top + 13, hint=text)
    return y + lines * 24 + _MARGIN


def _hatching(svg: ElementTree.Element) -> None:
    pattern = _add(_add(svg, "defs"), "pattern", id="fixed", width=6, height=6, patternUnits="userSpaceOnUse",
                   patternTransform="rotate(45)")  # fmt: skip
    _add(pattern, "rect", width=6, height=6, fill="#e8e8e8")
    _add(pattern, "rect", width=2, height=6, fill="#c4c4c4")


def _short(text: str, width: float) -> str:
    """The end of a name that is too long, which tells more than its beginning."""
    letters = int(width / _LETTER)
    return text if len(text) <= letters else f"…{text[len(text) - letters + 1 :]}"


def _add(
    parent: ElementTree.Element, tag: str, *, text: str = "", hint: str = "", **attributes: str | float
) -> ElementTree.Element:
    """One more element, with a tooltip where there is one; `class_` and `text_anchor` become `class`, `text-anchor`."""
    written = {
        key.rstrip("_").replace("_", "-"): f"{value:g}" if isinstance(value, float) else str(value)
        for key, value in attributes.items()
    }
    element = ElementTree.SubElement(parent, tag, written)
    element.text = text
    if hint:
        ElementTree.SubElement(element, "title").text = hint
    return element
