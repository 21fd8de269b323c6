"""Temperature scaling: one number, fitted on validation data, that makes confidences honest.

>>> temperature = fit_temperature(validation_probabilities, validation_labels)
>>> calibrated = apply_temperature(test_probabilities, temperature)

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", 2017.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from postgrad.errors import UserError

_LOG_RANGE = (np.log(0.01), np.log(100.0))
_SMALLEST = float(np.finfo(np.float32).tiny)


def fit_temperature(scores: ArrayLike, labels: ArrayLike, *, logits: bool = False) -> float:
    """The temperature T in [0.01, 100] that minimises the NLL of softmax(z / T) on these images.

    Args:
        scores: (N, C), of images that the classifier was not fitted on: probabilities, or with `logits=True` logits z.
        labels: (N,) integers.

    Predictions stay as they are. T above 1 softens an overconfident classifier. The NLL is convex in 1/T, so the
    minimum found is the only one; where every image is right it lies at the lower end of the range.
    """
    z = _logits(scores, logits)
    y = np.asarray(labels)
    if z.ndim != 2 or y.shape != z.shape[:1] or not len(y):
        raise UserError(f"scores and labels: expected (N, C) and (N,) with N at least 1, got {z.shape} and {y.shape}")
    true = z[np.arange(len(y)), y]

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return float(np.mean(special.logsumexp(z * inverse, axis=1) - true * inverse))

    found = optimize.minimize_scalar(loss, bounds=_LOG_RANGE, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def found_temperature(probabilities: ArrayLike, labels: ArrayLike) -> float | None:
    """`fit_temperature`, or None where every prediction is right: then the NLL falls with T, and has no minimum.

    >>> scorecard(probabilities, labels, temperature=found_temperature(validation_probabilities, validation_labels))
    """
    if (np.asarray(probabilities).argmax(axis=1) == np.asarray(labels)).all():
        return None
    return fit_temperature(probabilities, labels)


def apply_temperature(scores: ArrayLike, temperature: float, *, logits: bool = False) -> NDArray[np.float64]:
    """The probabilities softmax(z / T), shape (N, C), from probabilities or, with `logits=True`, from logits z."""
    if not temperature > 0:
        raise UserError(f"temperature: expected a number above 0, got {temperature}")
    return special.softmax(_logits(scores, logits) / temperature, axis=1)


def _logits(scores: ArrayLike, logits: bool) -> NDArray[np.float64]:
    array = np.asarray(scores, np.float64)
    return array if logits else np.log(np.maximum(array, _SMALLEST))
