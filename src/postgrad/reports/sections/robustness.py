"""Robustness: accuracy on corrupted images by severity, and under attacks."""

from __future__ import annotations

import statistics
from fractions import Fraction
from typing import Any

import numpy as np

import postgrad.reports.words as words
from postgrad.reports import charts
from postgrad.reports.groups import Group
from postgrad.reports.rundir import Run
from postgrad.reports.schema import Arm, AttackScore

_SMALL = (300, 210)


def corruptions(run: Run, groups: list[Group]) -> dict[str, Any]:
    """A table of mean accuracies, and for each group of arms one chart for each corruption."""
    arms = [arm for arm in run.results.arms if arm.corruptions]
    names = list(dict.fromkeys(score.corruption for arm in arms for score in arm.corruptions))
    return {
        "names": [_plain(name) for name in names],
        "rows": [(words.arm_label(arm), arm.kind, _means(arm, names)) for arm in arms],
        "groups": [(group, panels) for group in groups if (panels := _panels(group, names))],
        "best": [max(_values(arm, name) for arm in arms) for name in [*names, None]] if len(arms) > 1 else [],
    }


def _means(arm: Arm, names: list[str]) -> list[tuple[str, str | None, float]]:
    """Mean accuracy over severities, and the share of the clean accuracy that it keeps; the mean of all at the end."""
    clean = arm.metrics["accuracy"].mean
    values = [_values(arm, name) for name in [*names, None]]
    return [(words.percent(v), f"keeps {100 * v / clean:.0f}\u00a0%" if clean and v >= 0 else None, v) if v >= 0
            else (words.MISSING, None, v) for v in values]  # fmt: skip


def _values(arm: Arm, name: str | None) -> float:
    """The mean accuracy under one corruption (or all), −1 where it was not measured."""
    found = [s.metrics["accuracy"].mean for s in arm.corruptions if name is None or s.corruption == name]
    return statistics.fmean(found) if found else -1.0


def _panels(group: Group, names: list[str]) -> list[dict[str, Any]]:
    """One chart for each corruption, all with the same axis."""
    lines = {name: [s for arm in group.arms if (s := _line(arm, name, group.styles[arm.name]))] for name in names}
    values = [float(v) for series in lines.values() for s in series for v in s.y]
    return [
        {
            "anchor": words.anchor(f"{group.anchor}-corruption", name),
            "what": _plain(name),
            "chart": charts.line_chart(
                series,
                what=f"Accuracy under {_plain(name)}",
                x_label="severity",
                written=charts.as_percent,
                size=_SMALL,
                reach=(min(values), max(values)),
            ),
        }
        for name, series in lines.items()
        if series
    ]


def _line(arm: Arm, name: str, style: str) -> charts.Series | None:
    """Accuracy from clean images (severity 0) to the worst."""
    scores = sorted((s for s in arm.corruptions if s.corruption == name), key=lambda s: s.severity)
    if not scores:
        return None
    metrics = [arm.metrics["accuracy"], *(s.metrics["accuracy"] for s in scores)]
    x = np.array([0.0, *(s.severity for s in scores)])
    return charts.Series(words.arm_label(arm), style, x, np.array([metric.mean for metric in metrics]))


def attacks(run: Run) -> list[dict[str, Any]]:
    """One row for each arm and attack."""
    return [_attack(arm, score) for arm in run.results.arms for score in arm.attacks]


def _attack(arm: Arm, score: AttackScore) -> dict[str, Any]:
    robust = score.metrics["robust_accuracy"]
    return {
        "label": words.arm_label(arm),
        "kind": arm.kind,
        "attack": _plain(score.attack),
        "norm": {"linf": "L∞", "l2": "L2"}[score.norm],
        "epsilon": _epsilon(score.epsilon),
        "n": words.count(score.n),
        "before": words.percent(score.metrics["accuracy"].mean),
        "after": words.percent(robust.mean),
        "interval": words.share_interval(robust.ci95),
        "value": robust.mean,
    }


def _epsilon(value: float) -> str:
    """A change of pixels from 0 to 1: as so many 255ths where it is one, such as 8/255."""
    steps = Fraction(value * 255).limit_denominator(2)
    return f"{steps}/255" if steps.denominator == 1 and abs(float(steps) / 255 - value) < 1e-6 else f"{value:.4g}"


def _plain(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")
