"""Mapper graphs as a part of a page, and as a page of their own: a drawing for each coordinate, images of members."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from postgrad.methods._mapper_layout import Sizes
from postgrad.methods.mapper_drawing import Look, counted, draw, in_words
from postgrad.methods.mapper_table import SHOWN
from postgrad.svg import tag

_THUMBNAIL = 56
_STYLE_SHEET, _SCRIPT = (Path(__file__).with_name(f"mapper_graph.{kind}") for kind in ("css", "js"))

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'; img-src data:">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body class="mapper-page">
<main>
<h1>{title}</h1>
{part}
</main>
<script>{script}</script>
</body>
</html>
"""


def page(table: Mapping[str, Any], title: str) -> str:
    """A whole page of the graphs of `graph_table`, which needs no network."""
    parts = {"style": style(table), "part": part(table), "script": script()}
    return str(Markup(_PAGE).format(title=title, **parts))


def part(table: Mapping[str, Any]) -> Markup:
    """The graphs of `graph_table` as a part of a page; it needs `style` and `script`.

    Without a script all drawings are there, one below the other.
    """
    look, coordinates = Look.of(table), table["coordinates"]
    options = [tag("option", f"Coordinate {c['coordinate']}: {_nodes(c)}", value=c["coordinate"]) for c in coordinates]
    drawings = [
        tag(
            "div",
            tag("p", in_words(coordinate, look), class_="quiet"),
            tag("div", draw(coordinate, look), class_="wide"),
            class_="coordinate",
            data_coordinate=coordinate["coordinate"],
        )
        for coordinate in coordinates
    ]
    choice = tag("label", "Coordinate ", tag("select", *options)) if len(coordinates) > 1 else Markup("")
    heading = tag("p", "Choose a node, and see its members here.", class_="quiet")
    return tag(
        "div",
        tag("p", how_to_read(table), class_="quiet"),
        tag("p", choice, class_="choice"),
        _legend(look),
        *drawings,
        tag("div", heading, class_="members", role="region", aria_live="polite", aria_label="Members of a node"),
        tag("script", _data(table, look), type="application/json"),
        class_="mapper",
    )


def how_to_read(table: Mapping[str, Any]) -> str:
    """What the drawings show, in words."""
    look = Look.of(table)
    noun, area = look.noun, "number" if look.sizes.proportional else "square root of their number"
    colours = ", its colours are their classes" if look.names else ""
    gathered = [node["nodes"] for coordinate in table["coordinates"] for node in coordinate["nodes"]]
    rest = f", and +{max(gathered)} stands for {max(gathered)} more" if max(gathered) > 1 else ""
    left_out = f" Left out are {counted(table['left_out'], 'more coordinate')}." if table["left_out"] else ""
    return (
        f"Each circle is a node: {noun}s of one interval that are alike. Its area grows with the {area}{colours}; "
        f"lines join nodes that share {noun}s. Small nodes lie below{rest}. Point at a node for its numbers; click it, "
        f"or go there with the arrow keys and press Enter, to see up to {SHOWN} of its {noun}s.{left_out}"
    )


def style(table: Mapping[str, Any]) -> Markup:
    """The style sheet, with the images."""
    sheet = _STYLE_SHEET.read_text(encoding="utf-8")
    sprite = table["members"]["sprite"]
    if sprite is None:
        return Markup(sheet)
    scale = _THUMBNAIL / max(sprite["width"], sprite["height"])
    width, height = scale * sprite["width"], scale * sprite["height"]
    png = base64.b64encode(base64.b64decode(sprite["png"])).decode()  # a file may hold anything, a page may not
    image = f'background: url("data:image/png;base64,{png}") 0 0 / {width * sprite["columns"]:g}px auto'
    return Markup(f"{sheet}.mapper .thumbnail {{ width: {width:g}px; height: {height:g}px; {image}; }}\n")


def script() -> Markup:
    """What lets a coordinate and a node be chosen."""
    return Markup(_SCRIPT.read_text(encoding="utf-8"))


def _nodes(coordinate: Mapping[str, Any]) -> str:
    return counted(sum(node["nodes"] for node in coordinate["nodes"]), "node")


def _legend(look: Look) -> Markup:
    """What the colours stand for, and circles of some sizes."""
    coloured = [(style, look.names[i]) for i, style in enumerate(look.styles) if style != "class-other"]
    others = [("class-other", "other classes")] if len(coloured) < len(look.names) else []
    colours = [tag("li", tag("i", class_=style), name) for style, name in coloured + others]
    sizes = [tag("li", _sample(look.sizes, size), counted(size, look.noun)) for size in _samples(look.sizes.largest)]
    return tag(
        "div",
        tag("ul", *colours, aria_label="Colours of classes") if colours else "",
        tag("ul", *sizes, aria_label="Sizes of nodes"),
        class_="keys",
    )


def _samples(largest: int) -> Iterator[int]:
    size = 1
    while size <= largest:
        yield size
        size *= 10


def _sample(sizes: Sizes, size: int) -> Markup:
    radius = sizes.radius(size)
    circle = tag("circle", cx=radius + 1, cy=radius + 1, r=radius, class_="sample")
    side = f"{2 * radius + 2:.1f}"
    return tag("svg", circle, width=side, height=side, aria_hidden="true")


def _data(table: Mapping[str, Any], look: Look) -> Markup:
    """What the script knows of the members."""
    members, sprite = table["members"], table["members"]["sprite"]
    known = {
        "names": look.names,
        "styles": look.styles,
        "noun": look.noun,
        "places": members["places"],
        "labels": members["labels"],
        "columns": sprite and sprite["columns"],
    }
    return Markup(json.dumps(known, separators=(",", ":")).replace("<", "\\u003c"))
