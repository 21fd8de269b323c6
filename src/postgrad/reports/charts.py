"""The report's charts over axes as inline SVG: lines with bands, and a cost against accuracy with its frontier.

Every chart takes plain numbers and gives an `svg` element; colours and dashes are classes of the page's style sheet, so
that they follow light, dark and print.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from postgrad.svg import Scale, band, picture, place_labels, polyline, scale, tag, x_axis, y_axis

WIDTH, HEIGHT = 440, 290
_MAX_POINTS = 240
NAMED = 10
"""More dots than these carry numbers, and only those on the frontier their names."""


@dataclass(frozen=True)
class Series:
    """One line of a chart; `style` is a class of the style sheet, `band` the lower and upper end at each x.

    `marks` are places on the x axis where something happened to the arm, with what that was.
    """

    label: str
    style: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    band: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    marks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Point:
    """One arm in a chart of cost against accuracy (shares); `number` stands for it where many are drawn."""

    label: str
    style: str
    x: float
    y: float
    interval: tuple[float, float] | None
    number: int = 0


def as_percent(value: float) -> str:
    """A share on an axis: 72 %."""
    return f"{100 * value:.4g} %"


def as_number(value: float) -> str:
    """A number on an axis: 1,000 or 0.05, 20M or 3G above a million."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if abs(value) >= size:
            return f"{value / size:,.4g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def line_chart(
    series: Sequence[Series],
    *,
    what: str,
    x_label: str,
    written: Callable[[float], str] = as_number,
    log: bool = False,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    reach: tuple[float, ...] = (),
) -> Markup:
    """Lines over a common axis, such as accuracy or loss against seconds; with `log` the values must be positive.

    The vertical axis holds the values in `reach` too, so that several charts can have the same one.
    """
    width, height = size
    left, right, top, bottom = 50, width - 12, 12, height - 44
    lines = [_thinned(s) for s in series]
    across = [float(v) for s in lines for v in (s.x.min(), s.x.max())]
    x = scale(across, left, right, margin=0.0 if min(across) < max(across) else 0.02)
    ends = [v for s in lines for part in (s.y, *(s.band or ())) for v in (part.min(), part.max())]
    y = scale([*ends, *reach], bottom, top, log=log)
    last = ", ".join(f"{s.label} ends at {written(float(s.y[-1]))}" for s in series)
    in_order = sorted(lines, key=_on_top)
    return picture(
        width,
        height,
        f"{what} against {x_label}: {last}.",
        x_axis(x, top, bottom, x_label, as_number),
        y_axis(y, left, right, written),
        *[_mark(s, what, x(at), top, bottom) for s in series for at, what in s.marks if x.low <= at <= x.high],
        *[_band(s, x, y) for s in in_order],
        *[_line(s, x, y) for s in in_order],
    )


def scatter(points: Sequence[Point], *, x_label: str, wide: bool = False) -> Markup:
    """Accuracy with its interval against a cost on a logarithmic axis, each point named or numbered, and the frontier.

    On the frontier are the arms than which no other is both cheaper and as accurate.
    """
    width, height = (920, 420) if wide else (WIDTH, HEIGHT)
    left, right, top, bottom = 50, width - 12, 12, height - 44
    x = scale([p.x for p in points], left, right, log=True)
    y = scale([v for p in points for v in (p.y, *(p.interval or ()))], bottom, top)
    points = sorted(points, key=_on_top)
    best = frontier([(p.x, p.y) for p in points])
    many = len(points) > NAMED
    names = [f"{p.number} {p.label}" if many and i in best else str(p.number) if many else p.label
             for i, p in enumerate(points)]  # fmt: skip
    dots = [(x(p.x), y(p.y)) for p in points]
    labels = place_labels(dots, names, left, width, top, bottom)
    parts = [_frontier_line(points, best, x, y, right)]
    for point, name, (px, py), at in zip(points, names, dots, labels, strict=True):
        if point.interval:
            low, high = (y(v) for v in point.interval)
            parts.append(tag("line", x1=px, x2=px, y1=low, y2=high, class_=f"whisker {point.style}"))
        if at.y != py:
            parts.append(tag("line", x1=px, y1=py, x2=at.x, y2=at.y, class_="leader"))
        hint = tag("title", f"{point.label}: {as_number(point.x)} {x_label}, {as_percent(point.y)}")
        parts.append(tag("circle", hint, cx=px, cy=py, r=4.5, class_=f"dot {point.style}"))
        parts.append(tag("text", name, x=at.x, y=at.y + 4, class_=f"name {point.style}", text_anchor=at.anchor))
    said = "; ".join(f"{p.label}: {as_number(p.x)}, {as_percent(p.y)}" for p in points)
    on_it = ", ".join(points[i].label for i in best)
    return picture(
        width,
        height,
        f"Accuracy against {x_label}. {said}. On the frontier: {on_it}.",
        x_axis(x, top, bottom, x_label, as_number),
        y_axis(y, left, right, as_percent),
        *parts,
    )


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of those (cost, accuracy) that no other point is at least as cheap and more accurate than, by cost.

    >>> frontier([(1, 0.7), (2, 0.6), (3, 0.8)])
    [0, 2]
    """
    best: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not best or points[i][1] > points[best[-1]][1]:
            best.append(i)
    return best


def swatch(style: str) -> Markup:
    """A short piece of a line, for the legend."""
    return tag(
        "svg", polyline([1, 27], [5, 5], f"line {style}"), class_="swatch", viewBox="0 0 28 10", aria_hidden="true"
    )


def _frontier_line(points: Sequence[Point], best: Sequence[int], x: Scale, y: Scale, right: float) -> Markup:
    """Steps: at each cost the accuracy that can be had for it."""
    corners = [(x(points[best[0]].x), y(points[best[0]].y))]
    for i in best[1:]:
        corners += [(x(points[i].x), corners[-1][1]), (x(points[i].x), y(points[i].y))]
    corners.append((right, corners[-1][1]))
    return polyline([a for a, _ in corners], [b for _, b in corners], "frontier")


def _on_top(drawn: Series | Point) -> bool:
    """Sorts the method last, so that it is drawn over the others."""
    return drawn.style.startswith("method")


def _line(series: Series, x: Scale, y: Scale) -> Markup:
    xs, ys = [x(v) for v in series.x], [y(v) for v in series.y]
    if len(xs) == 1:
        return tag("circle", cx=xs[0], cy=ys[0], r=4, class_=f"dot {series.style}")
    return polyline(xs, ys, f"line {series.style}")


def _mark(series: Series, what: str, x: float, top: float, bottom: float) -> Markup:
    hint = tag("title", f"{series.label}: {what}")
    return tag("line", hint, x1=x, x2=x, y1=top, y2=bottom, class_=f"mark {series.style}")


def _band(series: Series, x: Scale, y: Scale) -> Markup:
    if series.band is None:
        return Markup("")
    low, high = ([y(v) for v in end] for end in series.band)
    xs = [x(v) for v in series.x]
    if len(xs) == 1:
        return tag("line", x1=xs[0], x2=xs[0], y1=low[0], y2=high[0], class_=f"whisker {series.style}")
    return band(xs, low, high, f"band {series.style}")


def _thinned(series: Series) -> Series:
    """At most 240 points: means over runs of neighbours, so that a long noisy curve stays readable and small."""
    band = None if series.band is None else (thinned(series.band[0]), thinned(series.band[1]))
    return replace(series, x=thinned(series.x), y=thinned(series.y), band=band)


def thinned(values: NDArray[np.float64], points: int = _MAX_POINTS) -> NDArray[np.float64]:
    """Means over runs of neighbours, at most this many."""
    if len(values) <= points:
        return values
    starts = np.arange(points) * len(values) // points
    return np.add.reduceat(values, starts) / np.diff(np.append(starts, len(values)))
