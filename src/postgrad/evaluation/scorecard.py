"""The scorecard of a classifier: each metric with its 95 % interval, over test images or over seeds.

>>> from postgrad.evaluation.scorecard import scorecard
>>> scorecard(classifier.predict_proba(images), labels)["accuracy"]
{'mean': 0.72, 'ci95': [0.711, 0.729], 'ci_over': 'images', 'n_seeds': 1, 'values': [0.72]}
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from postgrad.evaluation import metrics
from postgrad.evaluation.calibration import apply_temperature
from postgrad.evaluation.resampling import Groups, Statistic, calibration_of, intervals, metrics_of, recalls
from postgrad.evaluation.statistics import t_interval

SCALED = ("nll", "ece", "ece_equal_mass", "brier")
"""Metrics that are also given after temperature scaling, as `nll_scaled` and so on; scaling changes no prediction."""

_BOUNDS = {
    "nll": (0.0, math.inf),
    "nll_scaled": (0.0, math.inf),
    "brier": (0.0, 2.0),
    "brier_scaled": (0.0, 2.0),
    "kept": (0.0, math.inf),
}
"""The possible range of each metric that can leave 0 to 1."""

Card = dict[str, dict[str, Any]]


def scorecard(probabilities: ArrayLike, labels: ArrayLike, *, temperature: float | None = None) -> Card:
    """Every metric of one run, with bootstrap intervals over the test images (1,000 resamples, 95 %).

    Args:
        probabilities: (N, C), rows that sum to one.
        labels: (N,) integers.
        temperature: as `fit_temperature` finds it on *validation* images; adds `nll_scaled`, `ece_scaled`,
            `ece_equal_mass_scaled` and `brier_scaled`.
    """
    images = metrics.outcomes(probabilities, labels)
    values, statistic = metrics.summarise(images), metrics_of(images)
    if temperature is not None:
        scaled = metrics.outcomes(apply_temperature(probabilities, temperature), labels)
        values |= {f"{name}_scaled": value for name, value in metrics.summarise(scaled).items() if name in SCALED}
        statistic = _both(statistic, calibration_of(scaled))
    return with_intervals(values, statistic, len(images))


def with_intervals(values: Mapping[str, float], statistic: Statistic, n: int) -> Card:
    """Metrics of one run with the bootstrap intervals that their statistic has over n images."""
    ends = intervals(statistic, n)
    return {name: metric([value], ends[name], "images") for name, value in values.items()}


def class_scores(
    probabilities: ArrayLike, labels: ArrayLike, class_names: Sequence[str]
) -> dict[str, dict[str, Any] | None]:
    """The accuracy within each class, with bootstrap intervals; None for a class without test images."""
    images = metrics.outcomes(probabilities, labels)
    by_class = Groups(images.label)
    values = metrics.per_class_accuracy(probabilities, labels)

    def statistic(counts: Any) -> dict[str, Any]:
        within = recalls(by_class, counts, images.correct)
        return {class_names[number]: column for number, column in zip(by_class.labels, within.T, strict=True)}

    ends = intervals(statistic, len(images))
    return {
        name: None if np.isnan(value) else metric([float(value)], ends[name], "images")
        for name, value in zip(class_names, values, strict=True)
    }


def across_seeds(scorecards: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """One scorecard of several seeds: means, with Student's interval over the seeds; a single seed's stays as it is."""
    if len(scorecards) == 1:
        return {name: dict(metric) for name, metric in scorecards[0].items()}
    result = {}
    for name in scorecards[0]:
        values = [card[name]["mean"] for card in scorecards]
        interval = t_interval(values)
        assert interval is not None
        low, high = _BOUNDS.get(name, (0.0, 1.0))
        result[name] = metric(values, (max(low, interval[0]), min(high, interval[1])), "seeds")
    return result


def metric(values: Sequence[float], interval: tuple[float, float], over: str) -> dict[str, Any]:
    """One metric as results.json holds it."""
    return {
        "mean": statistics.fmean(values),
        "ci95": list(interval),
        "ci_over": over,
        "n_seeds": len(values),
        "values": list(values),
    }


def _both(first: Statistic, second: Statistic) -> Statistic:
    return lambda counts: {**first(counts), **{f"{name}_scaled": v for name, v in second(counts).items()}}
