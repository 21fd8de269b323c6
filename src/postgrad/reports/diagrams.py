"""The report's diagrams as inline SVG: reliability, change of each class, seeds in pairs, confusions, histograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from postgrad.evaluation.metrics import Reliability
from postgrad.reports.charts import WIDTH, as_percent
from postgrad.svg import Scale, picture, polyline, scale, staircase, tag, x_axis, y_axis

_CLASSES_SHOWN = 24
NUMBERED = 20
"""Up to so many classes a confusion's cells hold their numbers."""


@dataclass(frozen=True)
class Pairs:
    """One column of the diagram of seeds: accuracies (shares) of the other arm and of the method, seed by seed."""

    label: str
    seeds: tuple[int, ...]
    other: tuple[float, ...]
    method: tuple[float, ...]


def reliability_chart(curve: Reliability, *, label: str, style: str, scaled: Reliability | None = None) -> Markup:
    """Accuracy of the images in each confidence bin, the diagonal of honest confidence, and where the images are.

    With `scaled`, the accuracy in the bins after temperature scaling is a line over the bars.
    """
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
    words = f"Reliability of {label}: " + _reliability_in_words(curve)
    if scaled is not None:
        parts.append(_scaled_line(scaled, x, y))
        words += " After temperature scaling: " + _reliability_in_words(scaled)
    return picture(
        300,
        bottom + strip + 54,
        words,
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
            tag("text", shortened(names[i], 16), x=left - 6, y=y + 4, class_="name", text_anchor="end"),
            tag("line", x1=x(before[i]), x2=x(after[i]), y1=y, y2=y, class_=f"change {direction}"),
            tag("circle", cx=x(before[i]), cy=y, r=3.5, class_="dot base"),
            tag("circle", cx=x(after[i]), cy=y, r=4.5, class_="dot method"),
            tag("text", written, x=WIDTH - 6, y=y + 4, class_=f"tick {direction}", text_anchor="end"),
        ]
    said = ", ".join(f"{names[i]} {100 * change[i]:+.1f} points" for i in order)
    return picture(WIDTH, bottom + 42, f"Change of accuracy in each class: {said}.", *parts)


def paired_seeds(columns: Sequence[Pairs], *, method: str) -> Markup:
    """Seed by seed the method beside each arm that it is compared with: a line joins the two accuracies of one seed."""
    left, top, bottom, step = 50, 12, 230, 128
    width = left + step * len(columns) + 8
    y = scale([v for pair in columns for v in (*pair.other, *pair.method)], bottom, top)
    parts = [y_axis(y, left, width - 4, as_percent)]
    for i, pair in enumerate(columns):
        start, end = left + step * i + 30, left + step * i + step - 26
        for seed, a, b in zip(pair.seeds, pair.other, pair.method, strict=True):
            direction = "gain" if b > a else "loss" if b < a else "same"
            hint = tag("title", f"seed {seed}: {pair.label} {as_percent(a)}, {method} {as_percent(b)}")
            parts.append(tag("line", hint, x1=start, y1=y(a), x2=end, y2=y(b), class_=f"pair-line {direction}"))
            parts.append(tag("circle", cx=start, cy=y(a), r=3, class_="dot control"))
            parts.append(tag("circle", cx=end, cy=y(b), r=3, class_="dot method hue-0"))
        for at, values in ((start - 12, pair.other), (end + 12, pair.method)):
            middle = y(float(np.mean(values)))
            parts.append(tag("line", x1=at - 6, x2=at + 6, y1=middle, y2=middle, class_="mean"))
        for line, text in enumerate(_in_two_lines(pair.label)):
            middle = (start + end) / 2
            parts.append(tag("text", text, x=middle, y=bottom + 18 + 14 * line, class_="name", text_anchor="middle"))
    said = "; ".join(
        f"against {p.label} higher in {sum(b > a for a, b in zip(p.other, p.method, strict=True))} of {len(p.seeds)}"
        for p in columns
    )
    drawing = picture(width, bottom + 40, f"Accuracy of {method} seed by seed, {said}.", *parts)
    return tag("div", drawing, class_="natural", style=f"max-width:{width}px")


def confusion_change(names: Sequence[str], change: NDArray[np.float64]) -> Markup:
    """How many more (or fewer) images of each true class (rows) get each answer (columns), as a heat map.

    Up to 20 classes the cells hold their numbers; of more only the cells that changed are drawn.
    """
    classes = len(change)
    numbered = classes <= NUMBERED
    cell = min(34.0, 520 / classes) if numbered else max(4.0, 480 / classes)
    left, top = 84.0, 84.0 if numbered and not _upright(names) else 42.0
    strongest = float(np.abs(change).max()) or 1.0
    parts = []
    for row, column in np.argwhere(np.full_like(change, numbered, bool) | (change != 0)).tolist():
        value = float(change[row, column])
        at = {"x": left + cell * column, "y": top + cell * row}
        strength = min(5, int(np.ceil(5 * abs(value) / strongest)))
        direction = "more" if value > 0 else "fewer"
        hint = tag("title", f"{names[row]}, called {names[column]}: {_signed(value)}")
        parts.append(tag("rect", hint, **at, width=cell, height=cell, class_=f"cell {direction} strength-{strength}"))
        if numbered and value:
            middle = {"x": at["x"] + cell / 2, "y": at["y"] + cell / 2 + 4}
            parts.append(tag("text", _signed(value), **middle, class_="count", text_anchor="middle"))
    side = cell * classes
    frame = tag("rect", x=left, y=top, width=side, height=side, class_="frame")
    diagonal = tag("line", x1=left, y1=top, x2=left + side, y2=top + side, class_="diagonal thin")
    labels = _class_names(names, cell, left, top) if numbered else []
    said = ", ".join(
        f"{names[r]} called {names[c]} {_signed(float(change[r, c]))}" for r, c in _largest(change, 8).tolist()
    )
    drawing = picture(
        left + side + 8,
        top + side + 8,
        f"Change of confusions; the largest: {said or 'none'}.",
        *parts,
        frame,
        *([] if numbered else [diagonal]),
        *labels,
        tag("text", "called", x=left + side / 2, y=12, class_="axis", text_anchor="middle"),
        tag("text", "true class", x=4, y=top - 8, class_="axis"),
    )
    return tag("div", drawing, class_="natural", style=f"max-width:{left + side + 8:.0f}px")


def largest_changes(change: NDArray[np.float64], number: int) -> list[tuple[int, int]]:
    """The cells of a confusion that changed most, away from the diagonal."""
    off = np.where(np.eye(len(change), dtype=bool), 0.0, change)
    return [(int(r), int(c)) for r, c in _largest(off, number)]


def histogram_pair(inside: NDArray[np.floating], outside: NDArray[np.floating], *, label: str, style: str) -> Markup:
    """How a score is distributed over the test images (filled) and over other images (outline)."""
    left, right, top, bottom = 8, 212, 8, 88
    low, high = np.percentile(np.concatenate([inside, outside]), [0.5, 99.5])
    edges = np.linspace(low, high if high > low else low + 1, 33)
    heights = [np.histogram(np.clip(v, low, edges[-1]), edges)[0] / len(v) for v in (inside, outside)]
    x, y = (
        Scale(float(edges[0]), float(edges[-1]), left, right),
        Scale(0, float(max(h.max() for h in heights)), bottom, top),
    )
    at = [x(edge) for edge in edges]
    drawn = [
        staircase(at, [y(h) for h in of], bottom, class_)
        for of, class_ in zip(heights, (f"area {style}", "outline"), strict=True)
    ]
    ends = [
        tag("text", f"{value:.3g}", x=position, y=bottom + 15, class_="tick", text_anchor=anchor)
        for value, position, anchor in ((edges[0], left, "start"), (edges[-1], right, "end"))
    ]
    medians = f"median {np.median(inside):.3g} inside, {np.median(outside):.3g} outside"
    floor = tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="grid")
    return picture(220, 108, f"{label}: {medians}.", *drawn, floor, *ends)


def shortened(text: str, length: int) -> str:
    """A text of at most this many letters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _scaled_line(curve: Reliability, x: Scale, y: Scale) -> Markup:
    filled = curve.count > 0
    middles = (curve.edges[:-1] + curve.edges[1:]) / 2
    return polyline([x(v) for v in middles[filled]], [y(v) for v in curve.accuracy[filled]], "line scaled")


def _class_names(names: Sequence[str], cell: float, left: float, top: float) -> list[Markup]:
    longest = 11
    rows = [
        tag(
            "text", shortened(name, longest), x=left - 6, y=top + cell * (i + 0.5) + 4, class_="tick", text_anchor="end"
        )
        for i, name in enumerate(names)
    ]
    columns = []
    for i, name in enumerate(names):
        x, y = left + cell * (i + 0.5), top - 6
        turn = {"text_anchor": "middle"} if _upright(names) else {"transform": f"rotate(-45 {x:.1f} {y:.1f})"}
        columns.append(tag("text", shortened(name, longest), x=x, y=y, class_="tick", **turn))
    return rows + columns


def _upright(names: Sequence[str]) -> bool:
    """Whether the names fit over their columns without being turned."""
    return all(len(name) <= 4 for name in names)


def _largest(change: NDArray[np.float64], number: int) -> NDArray[np.intp]:
    order = np.argsort(-np.abs(change), axis=None, kind="stable")[:number]
    return np.array(
        [cell for cell in zip(*np.unravel_index(order, change.shape), strict=True) if change[cell]], int
    ).reshape(-1, 2)


def _signed(value: float) -> str:
    """A count, or a mean of counts over seeds with one decimal: +3, −0.4."""
    return f"{value:+.0f}".replace("-", "−") if value == round(value) else f"{value:+.1f}".replace("-", "−")


def _in_two_lines(text: str) -> list[str]:
    """A name of at most two lines of 18 letters, broken at a space."""
    if len(text) <= 18:
        return [text]
    cut = text.rfind(" ", 0, 19)
    cut = cut if cut > 0 else 18
    return [text[:cut], shortened(text[cut:].strip(), 18)]


def _reliability_in_words(curve: Reliability) -> str:
    filled = [i for i in range(len(curve.count)) if curve.count[i]]
    return "; ".join(f"confidence {curve.confidence[i]:.2f}, accuracy {curve.accuracy[i]:.2f}" for i in filled) + "."
