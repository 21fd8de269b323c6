"""A drawing of GradNet: its hidden blocks beside the layers of the base network whose gradients they read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from postgrad.svg import join, picture, tag

_ROW, _HEIGHT, _TOP = 64, 44, 44
_LAYER_X, _LAYER_W = 4, 138
_HIDDEN_X, _HIDDEN_W = 236, 84
_OUT_X, _OUT_W = 376, 60
_SHOWN = 14


def draw_blocks(table: Mapping[str, Any]) -> Markup:
    """Layers in the left column, the hidden block of each in the middle, the logits on the right.

    Args:
        table: `{"blocks": [{"name", "shape", "inputs", "hidden"}], "groups": [{"reads", "hidden"}], "outputs"}`;
            without `groups` each block is read by a hidden block of its own. Of more than 14 the middle ones are left
            out.
    """
    blocks = table["blocks"]
    groups = table.get("groups") or [{"reads": [i], "hidden": b["hidden"]} for i, b in enumerate(blocks)]
    rows = _rows(len(blocks))
    bottom = _TOP + _ROW * len(rows)
    layer_y = {block: _TOP + _ROW * row + _HEIGHT / 2 for row, block in enumerate(rows) if block is not None}
    middle = (_TOP + bottom - (_ROW - _HEIGHT)) / 2
    parts: list[str] = [_heading(_LAYER_X, "base layer"), _heading(_HIDDEN_X, "hidden"), _heading(_OUT_X, "logits")]
    for row, block in enumerate(rows):
        y = _TOP + _ROW * row + _HEIGHT / 2
        parts.append(_layer(blocks[block], y) if block is not None else _omitted(len(blocks) - len(rows) + 1, y))
    for group in groups:
        if all(block in layer_y for block in group["reads"]):
            parts.append(_hidden(group, [layer_y[block] for block in group["reads"]], middle))
    parts.append(_box(_OUT_X, _OUT_W, middle, f"{table['outputs']:,}", None, "block outputs"))
    said = "; ".join(f"{b['name']} gives {b['inputs']:,} gradients" for b in blocks)
    hidden = ", ".join(f"{g['hidden']:,}" for g in groups)
    description = (
        f"GradNet reads the base's layers: {said}. Hidden blocks of {hidden} units, {table['outputs']} logits."
    )
    return picture(440, bottom, description, *parts, class_="chart drawing")


def _rows(blocks: int) -> list[int | None]:
    if blocks <= _SHOWN:
        return list(range(blocks))
    half = (_SHOWN - 1) // 2
    return [*range(half), None, *range(blocks - half, blocks)]


def _layer(block: Mapping[str, Any], y: float) -> Markup:
    shape = " × ".join(str(side) for side in block["shape"])
    gradients = tag("text", f"{block['inputs']:,}", x=_LAYER_X + _LAYER_W + 8, y=y - 6, class_="tick")
    return join([_box(_LAYER_X, _LAYER_W, y, _name(block["name"]), shape, "block"), gradients])


def _hidden(group: Mapping[str, Any], layers: list[float], out_y: float) -> Markup:
    y = sum(layers) / len(layers)
    arrows = [_curve(_LAYER_X + _LAYER_W, layer, _HIDDEN_X, y) for layer in layers]
    box = _box(_HIDDEN_X, _HIDDEN_W, y, f"{group['hidden']:,}", None, "block accent", height=34)
    return join([*arrows, _curve(_HIDDEN_X + _HIDDEN_W, y, _OUT_X, out_y), box])


def _box(
    x: float, width: float, y: float, name: str, below: str | None, class_: str, height: float = _HEIGHT
) -> Markup:
    middle = x + width / 2
    parts = [
        tag("rect", x=x, y=y - height / 2, width=width, height=height, rx=6, class_=class_),
        tag("text", name, x=middle, y=y - 2 if below else y + 4, class_="name", text_anchor="middle"),
    ]
    if below:
        parts.append(tag("text", below, x=middle, y=y + 14, class_="tick", text_anchor="middle"))
    return join(parts)


def _curve(x1: float, y1: float, x2: float, y2: float) -> Markup:
    half = (x1 + x2) / 2
    return tag(
        "path", d=f"M{x1:.1f},{y1:.1f} C{half:.1f},{y1:.1f} {half:.1f},{y2:.1f} {x2:.1f},{y2:.1f}", class_="wire"
    )


def _heading(x: float, text: str) -> Markup:
    return tag("text", text, x=x, y=18, class_="axis")


def _omitted(number: int, y: float) -> Markup:
    return tag("text", f"… {number} more layers …", x=_LAYER_X + 8, y=y + 4, class_="axis")


def _name(name: str) -> str:
    """The layer's name without `.weight`, which all of them have; the end of a long one tells more."""
    short = name.removesuffix(".weight")
    return short if len(short) <= 18 else "…" + short[-17:]
