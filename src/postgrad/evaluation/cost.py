"""What a prediction costs: time, passes, multiply-adds, memory, parameters and the size of the saved file."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

from sklearn.base import BaseEstimator

from postgrad.memory import peak_memory, return_freed_memory
from postgrad.models.network import NetworkClassifier

TIMED_IMAGES = 256
_TIMED_CALLS = 5
_COUNTED_IMAGES = 2
_MEMORY_SECONDS = 0.002
"""A prediction may be over in a few milliseconds, so memory is looked at this often."""


class Classifier(Protocol):
    """What is timed: anything that predicts.

    Its attributes `num_parameters` and `inference_passes` (how often it runs its network per image) are taken as the
    numbers that they are; None where it has none.
    """

    def predict_proba(self, images: Any) -> Any: ...


def measure_cost(classifier: Classifier, images: Any) -> dict[str, Any]:
    """Milliseconds per image (wall time, the median of five calls after a warm one), passes per image and parameters.

    Give as many images as fit one batch, so that the time is that of a busy classifier and not of one call's overhead.
    """
    return _size(classifier, latency_ms(classifier, images) / len(images))


def inference_cost(classifier: Classifier, images: Any) -> dict[str, Any]:
    """What the field `cost` of results.json holds of a prediction; None for what cannot be measured.

    >>> inference_cost(classifier, images)["latency_ms_1"]
    0.4

    Args:
        images: (N, C, H, W). The first 256 of them are used; fewer are repeated up to that number.

    The keys of `measure_cost`, and `multiply_adds` per image, `latency_ms_1` and `latency_ms_256` (one call, wall time,
    median of five after a warm one), `inference_memory_mb` (resident memory of the process that predicting 256 images
    adds) and `file_bytes` (of all that `save` writes).
    """
    batch = images[[index % len(images) for index in range(TIMED_IMAGES)]]
    latency = latency_ms(classifier, batch)
    return {
        **_size(classifier, latency / len(batch)),
        "multiply_adds": multiply_adds(classifier, batch[:_COUNTED_IMAGES]),
        "latency_ms_1": latency_ms(classifier, batch[:1]),
        "latency_ms_256": latency,
        "inference_memory_mb": _memory_mb(classifier, batch),
        "file_bytes": file_bytes(classifier),
    }


def latency_ms(classifier: Classifier, images: Any) -> float:
    """Milliseconds of one call with these images: wall time, the median of five calls after a warm one."""
    classifier.predict_proba(images)
    seconds = []
    for _ in range(_TIMED_CALLS):
        began = time.perf_counter()
        classifier.predict_proba(images)
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def multiply_adds(classifier: Classifier, images: Any) -> float | None:
    """Multiply-adds of a prediction, per image: half of what torch's counter calls floating point operations.

    Products of matrices and convolutions are counted. None where torch sees none of them: ONNX graphs, classifiers
    that are no networks, and scikit-learn estimators such as GradNet, which do a part of their work outside torch.
    """
    from torch.utils.flop_counter import FlopCounterMode

    if isinstance(classifier, BaseEstimator):
        return None
    with FlopCounterMode(display=False) as counter:
        classifier.predict_proba(images)
    return counter.get_total_flops() / 2 / len(images) or None


def file_bytes(classifier: Any) -> int | None:
    """The size of all files that `save` writes; None for a classifier that cannot be saved, as an ONNX graph cannot."""
    if not hasattr(classifier, "save"):
        return None
    if isinstance(classifier, NetworkClassifier) and next(classifier.model.parameters(), None) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        classifier.save(Path(folder) / "classifier")
        return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _size(classifier: Classifier, ms_per_image: float) -> dict[str, Any]:
    return {
        "inference_ms_per_image": ms_per_image,
        "inference_passes": getattr(classifier, "inference_passes", None),
        "parameters": getattr(classifier, "num_parameters", None),
    }


def _memory_mb(classifier: Classifier, images: Any) -> float:
    return_freed_memory()
    with peak_memory(every=_MEMORY_SECONDS) as peak:
        classifier.predict_proba(images)
    return round(peak.megabytes, 1)
