"""Calibration and selective prediction: reliability diagrams and risk–coverage curves, raw and temperature-scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import postgrad.reports.words as words
from postgrad.evaluation import metrics
from postgrad.evaluation.calibration import apply_temperature
from postgrad.reports import charts
from postgrad.reports.diagrams import reliability_chart
from postgrad.reports.groups import Group, shown_alone
from postgrad.reports.rundir import Predictions, Run
from postgrad.reports.schema import Arm

_POINTS = 120


def calibration(run: Run, groups: list[Group]) -> dict[str, Any]:
    """Reliability of a few arms, risk–coverage of all; both of the first seed's test images."""
    shown = shown_alone(run.results.arms, list(run.predictions))
    scaled = {name: found for name in run.predictions if (found := _scaled(run, name)) is not None}
    return {
        "reliability": [_reliability(run, arm, scaled) for arm in shown],
        "left_out": len(run.predictions) - len(shown),
        "scaled": bool(scaled),
        "risk": [(group, charts) for group in groups if (charts := _risk_charts(run, group, scaled))],
    }


def _scaled(run: Run, name: str) -> NDArray[np.float64] | None:
    """The first seed's probabilities at its temperature."""
    temperature = run.results.arm(name).temperature
    return apply_temperature(run.predictions[name].probabilities, temperature[0]) if temperature else None


def _reliability(run: Run, arm: Arm, scaled: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    found = run.predictions[arm.name]
    label = words.arm_label(arm)
    after = scaled.get(arm.name)
    chart = reliability_chart(
        metrics.reliability(found.probabilities, found.labels),
        label=label,
        style=arm.kind,
        scaled=None if after is None else metrics.reliability(after, found.labels),
    )
    ece = words.decimal(metrics.ece(found.probabilities, found.labels))
    if after is not None and arm.temperature:
        ece += f", scaled {words.decimal(metrics.ece(after, found.labels))} (T = {arm.temperature[0]:.2f})"
    return {"anchor": words.anchor("reliability", arm.name), "label": label, "chart": chart, "ece": ece}


def _risk_charts(run: Run, group: Group, scaled: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    raw = {arm.name: run.predictions[arm.name] for arm in group.arms if arm.name in run.predictions}
    after = {name: Predictions(scaled[name], found.labels) for name, found in raw.items() if name in scaled}
    kinds = (("raw", "Raw confidences", raw), ("scaled", "After temperature scaling", after))
    return [
        {"anchor": f"{group.anchor}-risk-{key}", "what": what, "chart": _risk_chart(group, found)}
        for key, what, found in kinds
        if found
    ]


def _risk_chart(group: Group, found: dict[str, Predictions]) -> Any:
    series = [
        charts.Series(words.arm_label(arm), group.styles[arm.name], *_risk_coverage(found[arm.name]))
        for arm in group.arms
        if arm.name in found
    ]
    return charts.line_chart(
        series, what="Error among the answers kept", x_label="share of images answered", written=charts.as_percent
    )


def _risk_coverage(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coverage and error where only the surest answers are kept, at a hundred or so coverages from 5 % on."""
    coverage, risk = metrics.risk_coverage(predictions.probabilities, predictions.labels)
    chosen = np.unique(np.searchsorted(coverage, np.linspace(0.05, 1, _POINTS)).clip(max=len(coverage) - 1))
    return coverage[chosen], risk[chosen]
