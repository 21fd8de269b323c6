"""Cost: what training and predictions took, and accuracy against it with the frontier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import postgrad.reports.words as words
from postgrad.reports import charts
from postgrad.reports.rundir import Run
from postgrad.reports.schema import Arm, Cost

_PRICES: tuple[tuple[str, str, str, Callable[[Cost], float | None]], ...] = (
    ("training", "what training costs, base included", "seconds of CPU time", lambda cost: cost.total_cpu_seconds),
    ("prediction", "what a prediction costs", "milliseconds per image", lambda cost: cost.inference_ms_per_image),
    ("multiply-adds", "the work of a prediction", "multiply-adds per image", lambda cost: cost.multiply_adds),
)

_COLUMNS: tuple[tuple[str, Callable[[Cost], float | None], Callable[[float | None], str]], ...] = (
    ("Own fitting, CPU", lambda cost: cost.train_cpu_seconds, words.seconds),
    ("With all it stands on", lambda cost: cost.total_cpu_seconds, words.seconds),
    ("Own fitting, clock", lambda cost: cost.train_seconds, words.seconds),
    ("Peak memory", lambda cost: cost.peak_memory_mb, words.megabytes),
    ("Per image", lambda cost: cost.inference_ms_per_image, words.milliseconds),
    ("Passes", lambda cost: cost.inference_passes, words.count),
    ("Multiply-adds", lambda cost: cost.multiply_adds, words.large),
    ("Training, lineage", lambda cost: cost.lineage_multiply_adds, words.large),
    ("One image alone", lambda cost: cost.latency_ms_1, words.milliseconds),
    ("A batch of 256", lambda cost: cost.latency_ms_256, words.milliseconds),
    ("Memory of a batch", lambda cost: cost.inference_memory_mb, words.megabytes),
    ("File", lambda cost: cost.file_bytes and cost.file_bytes / 1e6, words.megabytes),
)
"""The first six are always shown, the others where any arm has them."""

_ALWAYS = 6


def cost(run: Run, styles: dict[str, str]) -> dict[str, Any]:
    """The charts, and the table's columns and rows."""
    arms = run.results.arms
    shown = [c for i, c in enumerate(_COLUMNS) if i < _ALWAYS or any(c[1](arm.cost) is not None for arm in arms)]
    return {
        "charts": _charts(arms, styles),
        "many": len(arms) > charts.NAMED,
        "columns": [name for name, _, _ in shown],
        "rows": [
            (words.arm_label(arm), arm.kind, [(write(read(arm.cost)), read(arm.cost)) for _, read, write in shown])
            for arm in arms
        ],
    }


def _charts(arms: list[Arm], styles: dict[str, str]) -> list[dict[str, Any]]:
    result = []
    for key, what, label, price in _PRICES:
        priced = [(number, arm, value) for number, arm in enumerate(arms, start=1) if (value := price(arm.cost))]
        if len(priced) > 1:
            dots = [_point(number, arm, value, styles[arm.name]) for number, arm, value in priced]
            chart = charts.scatter(dots, x_label=label, wide=len(priced) > charts.NAMED)
            result.append({"anchor": f"accuracy-against-{key}", "what": what, "chart": chart})
    return result


def _point(number: int, arm: Arm, price: float, style: str) -> charts.Point:
    accuracy = arm.metrics["accuracy"]
    return charts.Point(words.arm_label(arm), style, price, accuracy.mean, accuracy.ci95, number)
