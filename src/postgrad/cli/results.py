"""Metrics, costs and verdicts as plain tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from postgrad.cli.console import table

NONE = "–"


def improvement_table(results: Mapping[str, Any]) -> str:
    """The content of results.json for people: one row for each arm, one line for each verdict.

    NLL and ECE are better when smaller. "price" is passes through the network at prediction, "total" all training time.
    """
    headings = ["arm", "accuracy", "95 % interval", "NLL", "ECE", "seconds", "total", "parameters", "price", "ms/image"]
    rows = [_arm_row(arm) for arm in results["arms"]]
    parts = [table(headings, rows), *(_verdict_line(verdict) for verdict in results["verdicts"])]
    if results.get("recommended"):
        parts.append(f"recommended by the validation data: {results['recommended']}")
    return "\n".join([parts[0], "", *parts[1:]])


def score_table(metrics: Mapping[str, Any], cost: Mapping[str, Any]) -> str:
    """A scorecard for people."""
    rows = [[name, f"{metric['mean']:.4f}", interval(metric)] for name, metric in metrics.items()]
    rows += [[name.replace("_", " "), number(value), ""] for name, value in cost.items() if value is not None]
    return table(["", "value", "95 % interval"], rows)


def interval(metric: Mapping[str, Any]) -> str:
    """`0.71 to 0.74`, or a dash where one value allows none."""
    return f"{metric['ci95'][0]:.4f} to {metric['ci95'][1]:.4f}" if metric["ci95"] else NONE


def number(value: float | None) -> str:
    """A count in full, a measurement in three figures, a dash for what was not measured."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if float(value).is_integer() or value >= 1000 else f"{value:.3g}"


def _arm_row(arm: Mapping[str, Any]) -> list[str]:
    metrics, cost = arm["metrics"], arm["cost"]
    return [
        arm["name"],
        f"{metrics['accuracy']['mean']:.4f}",
        interval(metrics["accuracy"]),
        f"{metrics['nll']['mean']:.4f}",
        f"{metrics['ece']['mean']:.4f}",
        _seconds(cost["train_cpu_seconds"]),
        _seconds(cost["total_cpu_seconds"]),
        number(cost["parameters"]),
        number(cost["inference_passes"]),
        number(cost["inference_ms_per_image"]),
    ]


def _seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _verdict_line(verdict: Mapping[str, Any]) -> str:
    p = "" if verdict["p"] is None else f", p = {verdict['p']:.2g}"
    low_high = f" ({verdict['ci95'][0]:+.4f} to {verdict['ci95'][1]:+.4f})" if verdict["ci95"] else ""
    scope = "" if verdict["scope"] == "method" else ", this run alone"
    return (
        f"{verdict['method']} against {verdict['control']}: {verdict['verdict']}, "
        f"{verdict['metric']} {verdict['difference']:+.4f}{low_high}{p}{scope}"
    )
