"""The scorecard of a classifier: each metric with its 95 % interval, and what a prediction costs.

>>> from postgrad.evaluation.scorecard import scorecard
>>> scorecard(classifier.predict_proba(images), labels)["accuracy"]
{'mean': 0.72, 'ci95': [0.711, 0.729], 'ci_over': 'images', 'n_seeds': 1, 'values': [0.72]}
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import ArrayLike

from postgrad.evaluation import metrics
from postgrad.evaluation.statistics import bootstrap_interval, t_interval

_BOUNDS = {"accuracy": (0.0, 1.0), "nll": (0.0, math.inf), "ece": (0.0, 1.0), "brier": (0.0, 2.0), "aurc": (0.0, 1.0)}
_TIMED_CALLS = 5


class Classifier(Protocol):
    """What is timed: anything that predicts, and says how large it is and how often it runs its network per image."""

    @property
    def inference_passes(self) -> int: ...

    @property
    def num_parameters(self) -> int: ...

    def predict_proba(self, images: Any) -> Any: ...


def scorecard(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, dict[str, Any]]:
    """Accuracy, NLL, ECE, Brier score and AURC of one run, with bootstrap intervals over the test images.

    Args:
        probabilities: (N, C), rows that sum to one.
        labels: (N,) integers.
    """
    images = metrics.outcomes(probabilities, labels)
    values = metrics.summarise(images)
    low, high = bootstrap_interval(lambda chosen: list(metrics.summarise(images.take(chosen)).values()), len(images))
    return {
        name: _metric([value], (float(a), float(b)), "images")
        for (name, value), a, b in zip(values.items(), low, high, strict=True)
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
        low, high = _BOUNDS[name]
        result[name] = _metric(values, (max(low, interval[0]), min(high, interval[1])), "seeds")
    return result


def measure_cost(classifier: Classifier, images: Any) -> dict[str, Any]:
    """Milliseconds per image (wall time, the median of five calls after a warm one), passes per image and parameters.

    Give as many images as fit one batch, so that the time is that of a busy classifier and not of one call's overhead.
    """
    classifier.predict_proba(images)
    seconds = []
    for _ in range(_TIMED_CALLS):
        began = time.perf_counter()
        classifier.predict_proba(images)
        seconds.append(time.perf_counter() - began)
    return {
        "inference_ms_per_image": 1000 * statistics.median(seconds) / len(images),
        "inference_passes": classifier.inference_passes,
        "parameters": classifier.num_parameters,
    }


def _metric(values: Sequence[float], interval: tuple[float, float], over: str) -> dict[str, Any]:
    return {
        "mean": statistics.fmean(values),
        "ci95": list(interval),
        "ci_over": over,
        "n_seeds": len(values),
        "values": list(values),
    }
