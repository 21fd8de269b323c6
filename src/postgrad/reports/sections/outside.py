"""Other data: how well each score of confidence tells the test images from those of other data sets."""

from __future__ import annotations

from typing import Any

import numpy as np

import postgrad.reports.words as words
from postgrad.reports import charts
from postgrad.reports.diagrams import histogram_pair
from postgrad.reports.groups import shown_alone
from postgrad.reports.rundir import Run
from postgrad.reports.schema import Arm, OutsideScore

SCORES = {
    "max_softmax": "largest probability",
    "max_logit": "largest logit",
    "energy": "energy",
    "gradient_norm": "gradient norm",
}


def outside(run: Run, *, histograms: bool) -> list[dict[str, Any]]:
    """For each other data set a table of arms × scores, and histograms of a few arms where their scores were kept."""
    arms = [arm for arm in run.results.arms if arm.outside]
    sets = list(dict.fromkeys(score.data for arm in arms for score in arm.outside))
    return [_one_set(run, arms, name, histograms) for name in sets]


def _one_set(run: Run, arms: list[Arm], name: str, histograms: bool) -> dict[str, Any]:
    found = {arm.name: {score.score: score for score in arm.outside if score.data == name} for arm in arms}
    present = {key for by_score in found.values() for key in by_score}
    scores = [key for key in SCORES if key in present]
    first = next(score for by_score in found.values() for score in by_score.values())
    return {
        "anchor": words.anchor("outside", name),
        "name": name,
        "n": first.n,
        "matching": first.matching,
        "scores": [SCORES[key] for key in scores],
        "rows": [
            (words.arm_label(arm), arm.kind, [_cell(found[arm.name].get(key)) for key in scores])
            for arm in arms
            if found[arm.name]
        ],
        "histograms": _histograms(run, name) if histograms else [],
    }


def _cell(score: OutsideScore | None) -> dict[str, Any] | None:
    if score is None:
        return None
    metrics = score.metrics
    areas = " / ".join(words.decimal(metrics[k].mean) for k in ("aupr_in", "aupr_out") if k in metrics)
    return {
        "auroc": words.decimal(metrics["auroc"].mean),
        "interval": words.interval(metrics["auroc"].ci95, decimals=3),
        "fpr95": charts.as_percent(round(metrics["fpr95"].mean, 3)),
        "aupr": areas or words.MISSING,
        "value": metrics["auroc"].mean,
    }


def _histograms(run: Run, name: str) -> list[dict[str, Any]]:
    result = []
    for arm in shown_alone(run.results.arms, list(run.outside), methods=2):
        panels = [panel for key in SCORES if (panel := _panel(run, arm, name, key))]
        if panels:
            result.append({"label": words.arm_label(arm), "panels": panels})
    return result


def _panel(run: Run, arm: Arm, name: str, score: str) -> dict[str, Any] | None:
    """One histogram; None where this score was not kept. Infinite values of a score have no place on its axis."""
    scores = run.outside[arm.name]
    kept = [scores.get(f"{of}/{score}") for of in ("inside", name)]
    sides = [values[np.isfinite(values)] for values in kept if values is not None]
    if len(sides) < 2 or not all(len(values) for values in sides):
        return None
    return {
        "anchor": words.anchor("histogram", f"{name}-{arm.name}-{score}"),
        "score": SCORES[score],
        "chart": histogram_pair(*sides, label=f"{words.arm_label(arm)}, {SCORES[score]}", style=arm.kind),
    }
