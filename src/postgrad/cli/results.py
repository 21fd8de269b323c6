"""Metrics, costs and verdicts as plain tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from postgrad.cli.console import table

NONE = "–"
_READABLE_CLASSES = 20


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


def score_table(document: Mapping[str, Any]) -> str:
    """A scorecard for people: the metrics and costs, then a table for each thing that was asked for."""
    rows = [[name, f"{metric['mean']:.4f}", interval(metric)] for name, metric in document["metrics"].items()]
    rows += [["temperature", f"{value:.4f}", ""] for value in document.get("temperature", [])]
    rows += [[name.replace("_", " "), number(v), ""] for name, v in document["cost"].items() if v is not None]
    parts = [table(["", "value", "95 % interval"], rows)]
    parts += [_classes_table(document["per_class_accuracy"])]
    parts += [_outside_table(document["outside"])] if "outside" in document else []
    parts += [_corruptions_table(document)] if "corruptions" in document else []
    parts += [_attack_line(attack) for attack in document.get("attacks", [])]
    return "\n\n".join(part for part in parts if part)


def _classes_table(classes: Mapping[str, Any]) -> str:
    """The accuracy within each class, where there are few enough to read."""
    if len(classes) > _READABLE_CLASSES:
        return ""
    rows = [[name, f"{m['mean']:.4f}", interval(m)] if m else [name, NONE, NONE] for name, m in classes.items()]
    return table(["class", "accuracy", "95 % interval"], rows)


def _outside_table(entries: Sequence[Mapping[str, Any]]) -> str:
    names = ("auroc", "aupr_in", "aupr_out", "fpr95")
    rows = [
        [e["data"], e["score"], str(e["n"]), *(f"{e['metrics'][name]['mean']:.4f}" for name in names)] for e in entries
    ]
    return table(["outside data", "score", "images", "AUROC", "AUPR in", "AUPR out", "FPR95"], rows)


def _corruptions_table(document: Mapping[str, Any]) -> str:
    """One row for each corruption: the accuracy at each severity, and the mean share kept."""
    entries, means = document["corruptions"], document["corruption_means"]
    most = max(entry["severity"] for entry in entries)
    rows = []
    for name in dict.fromkeys(entry["corruption"] for entry in entries):
        accuracies = [f"{e['metrics']['accuracy']['mean']:.4f}" for e in entries if e["corruption"] == name]
        rows.append([name, *accuracies, *[""] * (most - len(accuracies)), *_mean_cells(means[name])])
    rows.append(["all", *[""] * most, *_mean_cells(means["all"])])
    severities = [f"accuracy at {severity}" if severity == 1 else str(severity) for severity in range(1, most + 1)]
    return table(["corruption", *severities, "mean", "kept"], rows)


def _mean_cells(means: Mapping[str, float]) -> list[str]:
    return [f"{means['accuracy']:.4f}", f"{means['kept']:.4f}" if "kept" in means else NONE]


def _attack_line(attack: Mapping[str, Any]) -> str:
    before, after = attack["metrics"]["accuracy"], attack["metrics"]["robust_accuracy"]
    return (
        f"{attack['attack']}, each pixel changed by at most {attack['epsilon']:.4g}, on {attack['n']} images: accuracy "
        f"{before['mean']:.4f} before, {after['mean']:.4f} ({interval(after)}) after"
    )


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
