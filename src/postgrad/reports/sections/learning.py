"""Learning curves over seeds, against time and against steps, and when each accuracy was first reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import postgrad.reports.words as words
from postgrad.reports import charts
from postgrad.reports.groups import Group
from postgrad.reports.rundir import Curve, Run
from postgrad.reports.schema import Arm

Line = tuple[NDArray[np.float64], NDArray[np.float64]]

_POINTS = 100
_SMALLEST_LOSS = 1e-4
"""Losses are drawn on a logarithmic axis, which ends here."""

LEVELS = (0.8, 0.9, 0.95, 0.98)
"""Shares of the best final accuracy that the table of times looks for."""


_TIMED = ("seconds", "accuracy")


@dataclass(frozen=True)
class _Wanted:
    """One chart: a column against another one."""

    what: str
    column: str
    against: str
    x_label: str
    written: Callable[[float], str]


_CHARTS = tuple(
    _Wanted(what, column, against, x_label, written)
    for what, column, written in (
        ("Validation accuracy", "accuracy", charts.as_percent),
        ("Training loss", "loss", charts.as_number),
    )
    for against, x_label in (("seconds", "seconds of own training"), ("step", "steps"))
)


def learning(run: Run, groups: list[Group]) -> dict[str, Any]:
    """The charts of each group of arms, the table of times, and whether bands and stages of growth are drawn."""
    drawn = [(group, list(_charts(run, group))) for group in groups]
    return {
        "groups": [(group, charts) for group, charts in drawn if charts],
        "has_curve": {arm.name for arm in run.results.arms if arm.name in run.curves},
        "grows": any(growths(of_seeds.values(), "step") for of_seeds in run.curves.values()),
        "bands": any(len(of_seeds) > 1 for of_seeds in run.curves.values()),
        "times": _times(run),
    }


def _charts(run: Run, group: Group) -> Iterator[dict[str, Any]]:
    for wanted in _CHARTS:
        series = [s for arm in group.arms if (s := _series(run, arm, wanted, group.styles[arm.name]))]
        if series:
            log = wanted.column == "loss"
            yield {
                "anchor": f"{group.anchor}-{wanted.column}-{wanted.against}",
                "what": f"{wanted.what} against {'time' if wanted.against == 'seconds' else 'steps'}",
                "chart": charts.line_chart(
                    series, what=wanted.what, x_label=wanted.x_label, written=wanted.written, log=log
                ),
            }


def _series(run: Run, arm: Arm, wanted: _Wanted, style: str) -> charts.Series | None:
    lines = [
        line for curve in run.curves.get(arm.name, {}).values() if (line := _line(curve, wanted.against, wanted.column))
    ]
    if not lines:
        return None
    if wanted.column == "loss":
        lines = [(x, np.maximum(y, _SMALLEST_LOSS)) for x, y in lines]
    marks = growths(run.curves[arm.name].values(), wanted.against)
    return replace(mean_line(words.arm_label(arm), style, lines), marks=marks)


def growths(curves: Iterable[Curve], against: str) -> tuple[tuple[float, str], ...]:
    """Where a network has grown, and to what size: the mean over the seeds of the first values of each stage."""
    found: dict[int, list[float]] = {}
    for curve in curves:
        x = _column(curve, against)
        if x is None or not {"growths", "parameters"} <= curve.keys():
            continue
        for row in np.flatnonzero(np.diff(curve["growths"], prepend=0) > 0):
            found.setdefault(int(curve["parameters"][row]), []).append(float(x[row]))
    return tuple((statistics.fmean(at), f"grows to {size:,} parameters") for size, at in found.items())


def mean_line(label: str, style: str, lines: list[Line]) -> charts.Series:
    """The mean over seeds with a band from the lowest to the highest, as far as all seeds have values.

    Between its values a curve is straight; single values (a base that is looked at once) become one dot.
    """
    if len(lines) == 1:
        return charts.Series(label, style, *lines[0])
    start, end = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    if end <= start:
        ends = np.array([y[-1] for _, y in lines])
        at = np.array([np.mean([x[-1] for x, _ in lines])])
        return charts.Series(
            label, style, at, ends.mean(keepdims=True), (ends.min(keepdims=True), ends.max(keepdims=True))
        )
    grid = np.linspace(start, end, _POINTS)
    smooth = [(charts.thinned(x, _POINTS), charts.thinned(y, _POINTS)) for x, y in lines]
    values = np.stack([np.interp(grid, x, y) for x, y in smooth])
    return charts.Series(label, style, grid, values.mean(axis=0), (values.min(axis=0), values.max(axis=0)))


def _line(curve: Curve, against: str, column: str) -> Line | None:
    x, y = _column(curve, against), _column(curve, column)
    if x is None or y is None:
        return None
    known = np.isfinite(x) & np.isfinite(y)
    return (x[known], y[known]) if known.any() else None


def _column(curve: Curve, name: str) -> NDArray[np.float64] | None:
    """The column of this name, or the first whose name ends with it (`validation_accuracy`, `cpu_seconds`)."""
    return curve.get(name, next((values for key, values in curve.items() if key.endswith(name)), None))


def _times(run: Run) -> dict[str, Any] | None:
    """Seconds of own training until a validation accuracy was first reached: the median over the seeds that did."""
    lines = {
        arm.name: [line for curve in run.curves.get(arm.name, {}).values() if (line := _line(curve, *_TIMED))]
        for arm in run.results.arms
    }
    finals = [statistics.fmean(float(y[-1]) for _, y in of_arm) for of_arm in lines.values() if of_arm]
    if not finals:
        return None
    levels = sorted({round(share * max(finals), 2) for share in LEVELS})
    rows = [
        (words.arm_label(arm), [_reached(lines[arm.name], level) for level in levels])
        for arm in run.results.arms
        if lines[arm.name]
    ]
    return {"levels": [charts.as_percent(level) for level in levels], "rows": rows}


def _reached(lines: list[Line], level: float) -> dict[str, Any]:
    """The time, and of how many seeds it speaks where that is not all of them."""
    times = [float(x[np.argmax(y >= level)]) for x, y in lines if (y >= level).any()]
    if not times:
        return {"value": None, "written": "not reached", "seeds": None}
    value = statistics.median(times)
    some = f"{len(times)} of {words.plural(len(lines), 'seed')}" if len(times) < len(lines) else None
    return {"value": value, "written": words.seconds(value), "seeds": some}
