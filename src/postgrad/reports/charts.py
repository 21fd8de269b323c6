"""The report's charts as inline SVG: learning curves, cost against accuracy, reliability, change for each class.

Every chart takes plain numbers and gives an `svg` element; colours and dashes are classes of the page's style sheet, so
that they follow light, dark and print.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from postgrad.evaluation.metrics import Reliability
from postgrad.reports.svg import Scale, picture, place_labels, polyline, scale, tag, x_axis, y_axis

WIDTH, HEIGHT = 440, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 428, 12, 246
_MAX_POINTS = 240
_CLASSES_SHOWN = 24


@dataclass(frozen=True)
class Series:
    """One line of a chart; `style` is a class of the style sheet."""

    label: str
    style: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One arm in a chart of cost against accuracy (shares)."""

    label: str
    style: str
    x: float
    y: float
    interval: tuple[float, float] | None


def as_percent(value: float) -> str:
    """A share on an axis: 72 %."""
    return f"{100 * value:.4g} %"


def as_number(value: float) -> str:
    """A number on an axis: 1,000 or 0.05."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def line_chart(
    series: Sequence[Series],
    *,
    what: str,
    x_label: str,
    written: Callable[[float], str] = as_number,
    log: bool = False,
) -> Markup:
    """Lines over a common axis, such as accuracy or loss against seconds; with `log` the values must be positive."""
    lines = [_thinned(s) for s in series]
    x = scale([v for s in lines for v in (s.x.min(), s.x.max())], _LEFT, _RIGHT, margin=0.02)
    y = scale([v for s in lines for v in (s.y.min(), s.y.max())], _BOTTOM, _TOP, log=log)
    last = ", ".join(f"{s.label} ends at {written(float(s.y[-1]))}" for s in series)
    drawn = [_line(s, x, y) for s in sorted(lines, key=_on_top)]
    return picture(
        WIDTH,
        HEIGHT,
        f"{what} against {x_label}: {last}.",
        x_axis(x, _TOP, _BOTTOM, x_label, as_number),
        y_axis(y, _LEFT, _RIGHT, written),
        *drawn,
    )


def scatter(points: Sequence[Point], *, x_label: str) -> Markup:
    """Accuracy with its interval against a cost on a logarithmic axis, each point with its name."""
    x = scale([p.x for p in points], _LEFT, _RIGHT, log=True)
    ends = [v for p in points for v in (p.y, *(p.interval or ()))]
    y = scale(ends, _BOTTOM, _TOP)
    points = sorted(points, key=_on_top)
    dots = [(x(p.x), y(p.y)) for p in points]
    labels = place_labels(dots, [p.label for p in points], _LEFT, WIDTH, _TOP, _BOTTOM)
    parts = []
    for point, (px, py), at in zip(points, dots, labels, strict=True):
        if point.interval:
            low, high = (y(v) for v in point.interval)
            parts.append(tag("line", x1=px, x2=px, y1=low, y2=high, class_=f"whisker {point.style}"))
        if at.y != py:
            parts.append(tag("line", x1=px, y1=py, x2=at.x, y2=at.y, class_="leader"))
        parts.append(tag("circle", cx=px, cy=py, r=4.5, class_=f"dot {point.style}"))
        parts.append(tag("text", point.label, x=at.x, y=at.y + 4, class_=f"name {point.style}", text_anchor=at.anchor))
    said = "; ".join(f"{p.label}: {as_number(p.x)}, {as_percent(p.y)}" for p in points)
    return picture(
        WIDTH,
        HEIGHT,
        f"Accuracy against {x_label}. {said}.",
        x_axis(x, _TOP, _BOTTOM, x_label, as_number),
        y_axis(y, _LEFT, _RIGHT, as_percent),
        *parts,
    )


def reliability_chart(curve: Reliability, *, label: str, style: str) -> Markup:
    """Accuracy of the images in each confidence bin, the diagonal of honest confidence, and where the images are."""
    left, right, top, bottom, strip = 44, 288, 10, 232, 34
    x, y = Scale(0, 1, left, right), Scale(0, 1, bottom, top)
    parts = []
    for low, high, count, accuracy in zip(curve.edges, curve.edges[1:], curve.count, curve.accuracy, strict=False):
        if count == 0:
            continue
        box = {"x": x(low) + 1, "width": x(high) - x(low) - 2}
        share = strip * count / curve.count.max()
        parts.append(tag("rect", **box, y=y(accuracy), height=bottom - y(accuracy), class_=f"bar {style}"))
        parts.append(tag("rect", **box, y=bottom + 30 + strip - share, height=share, class_="bar histogram"))
    ticks = [
        tag("text", f"{v:g}", x=x(v), y=bottom + 16, class_="tick", text_anchor="middle")
        for v in (0, 0.25, 0.5, 0.75, 1)
    ]
    return picture(
        300,
        bottom + strip + 54,
        f"Reliability of {label}: " + _reliability_in_words(curve),
        y_axis(y, left, right, lambda v: f"{v:g}"),
        *ticks,
        *parts,
        tag("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="diagonal"),
        tag("text", "confidence", x=(left + right) / 2, y=bottom + strip + 48, class_="axis", text_anchor="middle"),
    )


def change_chart(names: Sequence[str], before: NDArray[np.float64], after: NDArray[np.float64]) -> Markup:
    """For each class an arrow from one accuracy to another; the largest gain on top, at most 24 classes."""
    change = after - before
    order = [int(i) for i in np.argsort(-change, kind="stable") if np.isfinite(change[i])]
    if len(order) > _CLASSES_SHOWN:
        order = order[: _CLASSES_SHOWN // 2] + order[-_CLASSES_SHOWN // 2 :]
    left, right, top, row = 112, 380, 10, 22
    bottom = top + row * len(order)
    values = [float(v) for i in order for v in (before[i], after[i])]
    x = scale(values, left + 8, right - 8)
    parts = [x_axis(x, top, bottom, "accuracy within the class", as_percent)]
    for line, i in enumerate(order):
        y = top + row * (line + 0.5)
        direction = "gain" if change[i] > 0 else "loss" if change[i] < 0 else "same"
        written = "0.0" if direction == "same" else f"{100 * change[i]:+.1f}".replace("-", "−")
        parts += [
            tag("text", _shortened(names[i], 16), x=left - 6, y=y + 4, class_="name", text_anchor="end"),
            tag("line", x1=x(before[i]), x2=x(after[i]), y1=y, y2=y, class_=f"change {direction}"),
            tag("circle", cx=x(before[i]), cy=y, r=3.5, class_="dot base"),
            tag("circle", cx=x(after[i]), cy=y, r=4.5, class_="dot method"),
            tag("text", written, x=WIDTH - 6, y=y + 4, class_=f"tick {direction}", text_anchor="end"),
        ]
    said = ", ".join(f"{names[i]} {100 * change[i]:+.1f} points" for i in order)
    return picture(WIDTH, bottom + 42, f"Change of accuracy in each class: {said}.", *parts)


def swatch(style: str) -> Markup:
    """A short piece of a line, for the legend."""
    return tag(
        "svg", polyline([1, 27], [5, 5], f"line {style}"), class_="swatch", viewBox="0 0 28 10", aria_hidden="true"
    )


def _on_top(drawn: Series | Point) -> bool:
    """Sorts the method last, so that it is drawn over the others."""
    return drawn.style.startswith("method")


def _line(series: Series, x: Scale, y: Scale) -> Markup:
    xs, ys = [x(v) for v in series.x], [y(v) for v in series.y]
    if len(xs) == 1:
        return tag("circle", cx=xs[0], cy=ys[0], r=4, class_=f"dot {series.style}")
    return polyline(xs, ys, f"line {series.style}")


def _thinned(series: Series) -> Series:
    """At most 240 points: means over runs of neighbours, so that a long noisy curve stays readable and small."""
    if len(series.x) <= _MAX_POINTS:
        return series
    parts = [np.array([part.mean() for part in np.array_split(v, _MAX_POINTS)]) for v in (series.x, series.y)]
    return Series(series.label, series.style, *parts)


def _reliability_in_words(curve: Reliability) -> str:
    filled = [i for i in range(len(curve.count)) if curve.count[i]]
    return "; ".join(f"confidence {curve.confidence[i]:.2f}, accuracy {curve.accuracy[i]:.2f}" for i in filled) + "."


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
