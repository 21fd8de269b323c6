"""The few pieces of SVG that the charts are made of: tags, scales and ticks. Colours come from the style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_LINE_HEIGHT = 14
_LETTER_WIDTH = 7.0
_DOT = 5


def tag(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """One element; text is escaped, and `class_` and `stroke_width` become `class` and `stroke-width`.

    >>> tag("text", "a < b", x=1.50, class_="tick")
    Markup('<text x="1.5" class="tick">a &lt; b</text>')
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_written(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Sequence[str]) -> Markup:
    """Elements one after the other."""
    return Markup("").join(parts)


def picture(width: float, height: float, description: str, *children: str, class_: str = "chart") -> Markup:
    """A whole drawing that says in words what it shows."""
    return tag("svg", *children, class_=class_, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=description)


def polyline(x: Sequence[float], y: Sequence[float], class_: str) -> Markup:
    """A line through points in pixels."""
    return tag("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)), class_=class_)


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], class_: str) -> Markup:
    """The area between two lines in pixels."""
    corners = [*zip(x, low, strict=True), *zip(reversed(x), reversed(high), strict=True)]
    return tag("polygon", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in corners), class_=class_)


def staircase(edges: Sequence[float], heights: Sequence[float], floor: float, class_: str) -> Markup:
    """The outline of a histogram in pixels: one more edge than heights, from the floor and back to it."""
    parts = [f"M{edges[0]:.1f},{floor:.1f}"]
    parts += [f"V{height:.1f}H{edge:.1f}" for edge, height in zip(edges[1:], heights, strict=True)]
    return tag("path", d="".join(parts) + f"V{floor:.1f}", class_=class_)


@dataclass(frozen=True)
class Scale:
    """From values between `low` and `high` to pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values inside the scale."""
        return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high, wanted)


def scale(values: Sequence[float], start: float, end: float, *, log: bool = False, margin: float = 0.06) -> Scale:
    """A scale that holds all values, with a little room at both ends."""
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** margin, 1.15)
        return Scale(low / room, high * room, start, end, log=True)
    room = margin * (high - low) or max(abs(high) * margin, 1e-6)
    return Scale(low - room, high + room, start, end)


def x_axis(scale: Scale, top: float, bottom: float, label: str, written: Callable[[float], str]) -> Markup:
    """Vertical grid lines, their values below, and what they are."""
    parts = []
    for value in scale.ticks():
        x = scale(value)
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        parts.append(tag("text", written(value), x=x, y=bottom + 16, class_="tick", text_anchor="middle"))
    middle = (scale.start + scale.end) / 2
    return join([*parts, tag("text", label, x=middle, y=bottom + 34, class_="axis", text_anchor="middle")])


def y_axis(scale: Scale, left: float, right: float, written: Callable[[float], str]) -> Markup:
    """Horizontal grid lines with their values on the left."""
    parts = []
    for value in scale.ticks():
        y = scale(value)
        parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", written(value), x=left - 7, y=y + 4, class_="tick", text_anchor="end"))
    return join(parts)


@dataclass(frozen=True)
class Label:
    """Where a name goes: the point that its text starts (or ends, with anchor "end") at, on its middle line."""

    x: float
    y: float
    anchor: str
    width: float

    def overlaps(self, other: Label) -> bool:
        """Whether two names would cover each other."""
        left, other_left = (label.x - label.width * (label.anchor == "end") for label in (self, other))
        apart = left + self.width <= other_left or other_left + other.width <= left
        return not apart and abs(self.y - other.y) < _LINE_HEIGHT

    def inside(self, left: float, right: float, top: float, bottom: float) -> bool:
        """Whether the whole name lies in this rectangle."""
        start = self.x - self.width * (self.anchor == "end")
        return left <= start and start + self.width <= right and top <= self.y <= bottom


def place_labels(
    dots: Sequence[tuple[float, float]], names: Sequence[str], left: float, right: float, top: float, bottom: float
) -> list[Label]:
    """Put each name beside its dot, as near as it can be without covering a dot or another name."""
    taken = [Label(x - _DOT, y, "start", 2 * _DOT) for x, y in dots]
    placed = []
    for (x, y), name in zip(dots, names, strict=True):
        width = _LETTER_WIDTH * len(name)
        candidates = [
            Label(x + 2 * _DOT * (1 if anchor == "start" else -1), y + shift, anchor, width)
            for shift in sorted(range(-8 * _LINE_HEIGHT, 9 * _LINE_HEIGHT, _LINE_HEIGHT // 2), key=abs)
            for anchor in ("start", "end")
        ]
        fitting = [label for label in candidates if label.inside(left, right, top, bottom)]
        free = (label for label in fitting if not any(label.overlaps(other) for other in taken))
        placed.append(next(free, (fitting or candidates)[0]))
        taken.append(placed[-1])
    return placed


def _linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5)):
        ticks = [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
        if len(ticks) >= 3:
            return ticks if len(ticks) <= 6 else ticks[:: math.ceil(len(ticks) / 6)]
    return ticks or _linear_ticks(low, high, 3)


def _written(value: str | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
