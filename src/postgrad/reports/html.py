"""One self-contained web page from a run directory.

>>> render("runs/demo")
PosixPath('runs/demo/report.html')

The page needs no network and no script to be read. A section whose file is absent says so in a sentence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import postgrad.reports.words as words
from postgrad.evaluation import metrics
from postgrad.files import write_atomic
from postgrad.reports import charts, drawing, flips, sentences
from postgrad.reports.rundir import Curve, Run, read_run
from postgrad.reports.schema import Arm, Cost, Metric

_HERE = Path(__file__).parent
_METRICS = {"accuracy": "Accuracy", "nll": "NLL", "ece": "ECE", "brier": "Brier", "aurc": "AURC"}

_SMALLEST_LOSS = 1e-4
"""Losses are drawn on a logarithmic axis, which ends here."""


def render(directory: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a run directory and return its path.

    Raises `UserError` when results.json is missing or not of this version, or another file of the run is damaged.
    """
    folder = Path(directory).expanduser()
    page = _environment().get_template("report.html.j2").render(_context(read_run(folder)))
    write_atomic(folder / "report.html", page)
    return folder / "report.html"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {
        "style_sheet": Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        "script": Markup((_HERE / "report.js").read_text(encoding="utf-8")),
        "words": words,
    }
    return environment


def _context(run: Run) -> dict[str, Any]:
    results = run.results
    methods = sentences.methods(results)
    styles = _styles(results.arms)
    return {
        "results": results,
        "started": results.started.replace("T", " ")[:16] if results.started else None,
        "headlines": [sentences.headline(results, method) for method in methods],
        "reach": sentences.reach(results) if methods else None,
        "recommendation": sentences.recommendation(results),
        "rows": [_row(run, arm, styles[arm.name]) for arm in results.arms],
        "metric_names": _METRICS,
        "method_names": " and ".join(words.arm_name(method) for method in methods),
        "curves": _learning_curves(run, styles),
        "has_curve": set(run.curves),
        "reliability": _reliability(run, styles),
        "changes": [change for method in methods if (change := _change(run, method))],
        "blocks": drawing.draw_blocks(run.blocks) if run.blocks else None,
        "scatters": _scatters(run, styles),
        "environment": {name: _setting(value) for name, value in (run.environment or {}).items()},
        "config": run.config,
        "repeat": f"postgrad {results.command.removeprefix('postgrad ').split()[0]} --recipe config.yaml",
        "notes": list(dict.fromkeys(results.data.notes + results.notes)),
    }


def _styles(arms: list[Arm]) -> dict[str, str]:
    """One style-sheet class for each arm: base, method, method-1 …, control-0 … control-3 (which then repeat)."""
    of_kind = {kind: [arm.name for arm in arms if arm.kind == kind] for kind in ("method", "control")}
    result = {arm.name: "base" for arm in arms}
    result |= {name: "method" if i == 0 else "method method-1" for i, name in enumerate(of_kind["method"])}
    return result | {name: f"control control-{i % 4}" for i, name in enumerate(of_kind["control"])}


def _row(run: Run, arm: Arm, style: str) -> dict[str, Any]:
    return {
        "arm": arm,
        "label": words.arm_label(arm),
        "swatch": charts.swatch(style),
        "metrics": {name: _written(arm.metrics.get(name), name) for name in _METRICS},
        "best": {name for name in _METRICS if _is_best(run, arm, name)},
        "seeds": [words.percent(value) for value in arm.metrics["accuracy"].values],
        "against": sentences.against(run.results, arm),
    }


def _written(metric: Metric | None, name: str) -> tuple[str, str]:
    """A metric and its interval as text."""
    if metric is None:
        return words.MISSING, words.MISSING
    if name == "accuracy":
        return words.percent(metric.mean), words.interval(metric.ci95, scale=100)
    return words.decimal(metric.mean), words.interval(metric.ci95, decimals=3)


def _is_best(run: Run, arm: Arm, name: str) -> bool:
    values = [a.metrics[name].mean for a in run.results.arms if name in a.metrics]
    best = max(values) if name == "accuracy" else min(values)
    return name in arm.metrics and arm.metrics[name].mean == best and len(values) > 1


def _learning_curves(run: Run, styles: Mapping[str, str]) -> list[tuple[str, Markup]]:
    """Validation accuracy and training loss of each arm over its training time."""
    wanted = (("Validation accuracy", "accuracy", charts.as_percent), ("Training loss", "loss", charts.as_number))
    result = []
    for what, column, written in wanted:
        lines = [line for arm in run.results.arms if (line := _series(run, arm, column, styles[arm.name]))]
        if lines:
            x_label = "seconds of training" if _in_seconds(run) else "steps"
            chart = charts.line_chart(lines, what=what, x_label=x_label, written=written, log=column == "loss")
            result.append((what, chart))
    return result


def _series(run: Run, arm: Arm, column: str, style: str) -> charts.Series | None:
    curve = run.curves.get(arm.name, {})
    y = _column(curve, column)
    x = _column(curve, "seconds" if _in_seconds(run) else "step")
    if x is None or y is None:
        return None
    known = np.isfinite(x) & np.isfinite(y)
    if column == "loss":
        y = np.maximum(y, _SMALLEST_LOSS)
    return charts.Series(words.arm_label(arm), style, x[known], y[known]) if known.any() else None


def _in_seconds(run: Run) -> bool:
    return all(_column(curve, "seconds") is not None for curve in run.curves.values())


def _column(curve: Curve, name: str) -> Any:
    """The column of this name, or the first whose name ends with it (`validation_accuracy`, `cpu_seconds`)."""
    return curve.get(name, next((values for key, values in curve.items() if key.endswith(name)), None))


def _reliability(run: Run, styles: Mapping[str, str]) -> list[dict[str, Any]]:
    """The base, the methods and the best control."""
    control = sentences.best_control(run.results, list(run.predictions))
    shown = [arm for arm in run.results.arms if arm.kind != "control" or arm == control]
    result = []
    for arm in shown:
        if predictions := run.predictions.get(arm.name):
            curve = metrics.reliability(predictions.probabilities, predictions.labels)
            label = words.arm_label(arm)
            chart = charts.reliability_chart(curve, label=label, style=styles[arm.name].split()[0])
            ece = metrics.ece(predictions.probabilities, predictions.labels)
            result.append({"label": label, "chart": chart, "ece": words.decimal(ece)})
    return result


def _change(run: Run, method: Arm) -> dict[str, Any] | None:
    """What changed from the base to a method: accuracy of each class, and images that flipped."""
    base = next((arm for arm in run.results.arms if arm.kind == "base"), None)
    if base is None or base.name not in run.predictions or method.name not in run.predictions:
        return None
    before, after = run.predictions[base.name], run.predictions[method.name]
    classes = before.probabilities.shape[1]
    names = run.results.data.class_names or [str(i) for i in range(classes)]
    shares = [metrics.per_class_accuracy(p.probabilities, p.labels) for p in (before, after)]
    return {
        "label": words.arm_label(method),
        "classes": classes,
        "chart": charts.change_chart(names, *shares),
        "flips": flips.find_flips(run.examples, before, after, names),
        "pixelated": run.examples is not None and max(run.examples.shape[2:]) <= 64,
    }


def _scatters(run: Run, styles: Mapping[str, str]) -> list[tuple[str, Markup]]:
    """Accuracy against the price of training and of prediction."""
    prices: tuple[tuple[str, str, Callable[[Cost], float | None]], ...] = (
        (
            "what training costs, base included",
            "seconds of CPU time",
            lambda cost: cost.total_cpu_seconds,
        ),
        ("what a prediction costs", "milliseconds per image", lambda cost: cost.inference_ms_per_image),
    )
    result = []
    for what, label, price in prices:
        priced = [(arm, value) for arm in run.results.arms if (value := price(arm.cost))]
        if len(priced) > 1:
            dots = [_point(arm, value, styles[arm.name]) for arm, value in priced]
            result.append((what, charts.scatter(dots, x_label=label)))
    return result


def _point(arm: Arm, price: float, style: str) -> charts.Point:
    accuracy = arm.metrics["accuracy"]
    return charts.Point(words.arm_label(arm), style, price, accuracy.mean, accuracy.ci95)


def _setting(value: Any) -> str:
    """One value of environment.json as text; nested ones as a list of names and values."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_setting(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return words.MISSING if value is None else str(value)
