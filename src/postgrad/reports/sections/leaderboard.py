"""The comparison: one row for each arm with its scores, its price and what the methods did against it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from markupsafe import Markup

import postgrad.reports.words as words
from postgrad.reports import charts, sentences
from postgrad.reports.rundir import Run
from postgrad.reports.schema import Arm, Metric, Results

MAIN = ("accuracy", "nll", "ece", "brier")
SPELT_OUT = 3
"""Of more methods than these, a row says only how many did better or worse."""

WORDS = {
    "better": "▲ better",
    "worse": "▼ worse",
    "no difference": "≈ no different",
    "too few seeds": "○ too few seeds",
}


def leaderboard(run: Run, styles: dict[str, str]) -> dict[str, Any]:
    """The rows, and the names of all metrics that any arm has."""
    arms = run.results.arms
    metrics = list(dict.fromkeys([*MAIN, "aurc", *(name for arm in arms for name in arm.metrics)]))
    metrics = [name for name in metrics if name in MAIN or any(name in arm.metrics for arm in arms)]
    best = {name: _best(arms, name) for name in metrics}
    rows = [_row(run, number, arm, styles[arm.name], metrics, best) for number, arm in enumerate(arms, start=1)]
    return {"rows": rows, "metrics": {name: words.metric_name(name) for name in metrics}, "main": MAIN}


def _row(
    run: Run, number: int, arm: Arm, style: str, metrics: list[str], best: dict[str, float | None]
) -> dict[str, Any]:
    results = run.results
    return {
        "arm": arm,
        "number": number,
        "anchor": words.anchor("arm", arm.name),
        "label": words.arm_label(arm),
        "swatch": charts.swatch(style),
        "metrics": {name: written(arm.metrics.get(name), name) for name in metrics},
        "values": {name: arm.metrics[name].mean for name in metrics if name in arm.metrics},
        "best": {name for name in metrics if name in arm.metrics and arm.metrics[name].mean == best[name]},
        "seeds": _fewer_seeds(results, arm),
        "against": _against(results, arm),
        "notes": [note for note in arm.notes if note],
    }


def written(metric: Metric | None, name: str) -> tuple[str, str]:
    """A metric and its interval as text."""
    if metric is None:
        return words.MISSING, words.MISSING
    if words.is_share(name):
        return words.percent(metric.mean), words.share_interval(metric.ci95)
    return words.decimal(metric.mean), words.interval(metric.ci95, decimals=3)


def _best(arms: list[Arm], name: str) -> float | None:
    """The best mean of a metric, where there is something to be better than."""
    values = [arm.metrics[name].mean for arm in arms if name in arm.metrics]
    if len(values) < 2:
        return None
    return max(values) if words.is_share(name) else min(values)


def _fewer_seeds(results: Results, arm: Arm) -> str | None:
    """Said only of an arm that lacks seeds."""
    had = arm.metrics["accuracy"].n_seeds
    return None if had >= len(results.seeds) else f"{had} of {words.plural(len(results.seeds), 'seed')}"


def _against(results: Results, arm: Arm) -> list[tuple[str | None, Markup | str, str, list[str]]]:
    """Per method its name (where there are several), the verdict's word, its class, and its numbers line by line."""
    found = sentences.against(results, arm)
    if len(found) > SPELT_OUT:
        counts = Counter(verdict for _, verdict, _ in found)
        return [(None, f"{n} × {WORDS[v]}", v.split()[0], []) for v, n in counts.most_common()]
    several = len(sentences.methods(results)) > 1
    return [(name if several else None, WORDS[v], v.split()[0], lines) for name, v, lines in found]
