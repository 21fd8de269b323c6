"""What changed from the base to a method: classes, confusions, and test images that changed sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import postgrad.reports.words as words
from postgrad.evaluation import metrics
from postgrad.reports import diagrams
from postgrad.reports.flips import find_flips
from postgrad.reports.rundir import Run
from postgrad.reports.schema import Arm
from postgrad.reports.sentences import methods

_DRAWN = 100
"""Up to so many classes a confusion is drawn."""

_LISTED = 12


def changes(run: Run, *, images: bool, maps: bool) -> list[dict[str, Any]]:
    """One entry for each method whose test predictions and the base's are there."""
    base = next((arm for arm in run.results.arms if arm.kind == "base"), None)
    if base is None:
        return []
    return [_change(run, base, method, images, maps) for method in methods(run.results) if _both(run, base, method)]


def _both(run: Run, base: Arm, method: Arm) -> bool:
    return base.name in run.predictions and method.name in run.predictions


def _change(run: Run, base: Arm, method: Arm, images: bool, maps: bool) -> dict[str, Any]:
    before, after = run.predictions[base.name], run.predictions[method.name]
    classes = before.probabilities.shape[1]
    names = run.results.data.class_names or [str(i) for i in range(classes)]
    shares = [metrics.per_class_accuracy(p.probabilities, p.labels) for p in (before, after)]
    examples = run.examples if images else None
    return {
        "anchor": words.anchor("changed", method.name),
        "label": words.arm_label(method),
        "classes": classes,
        "chart": diagrams.change_chart(names, *shares),
        "flips": find_flips(examples, before, after, names),
        "pixelated": run.examples is not None and max(run.examples.shape[2:]) <= 64,
        "confusion": _confusion(run, base, method, names) if maps else None,
    }


def _confusion(run: Run, base: Arm, method: Arm, names: Sequence[str]) -> dict[str, Any]:
    """The mean over seeds of the method's confusion minus the base's: a map, or a list where classes are many."""
    found = [counts for seed in run.results.seeds if (counts := _counts(run, base, method, seed)) is not None]
    change = np.mean(found, axis=0)
    largest = diagrams.largest_changes(change, _LISTED)
    return {
        "seeds": len(found),
        "chart": diagrams.confusion_change(names, change) if len(names) <= _DRAWN else None,
        "numbered": len(names) <= diagrams.NUMBERED,
        "largest": [(names[r], names[c], f"{change[r, c]:+.4g}".replace("-", "−")) for r, c in largest],
    }


def _counts(run: Run, base: Arm, method: Arm, seed: int) -> NDArray[np.float64] | None:
    pair = [run.predictions_of(arm.name, seed) for arm in (base, method)]
    if any(found is None for found in pair):
        return None
    before, after = (metrics.confusion(found.probabilities, found.labels) for found in pair if found is not None)
    return (after - before).astype(np.float64)
