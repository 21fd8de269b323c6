"""Out-of-distribution detection: scores of confidence, and how well they tell test images from others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import special

from postgrad.data.inputs import image_tensor
from postgrad.data.outside import Outside
from postgrad.errors import UserError
from postgrad.evaluation.resampling import Array, drawn_counts, group_starts, group_sums, percentiles, rows_at_a_time
from postgrad.evaluation.scorecard import Card, metric
from postgrad.models.network import NetworkClassifier, evaluating

SCORES = ("max_softmax", "max_logit", "energy", "gradient_norm")
ACCEPTED = 0.95
"""The share of test images that `fpr95` accepts."""

_CHECKED_IMAGES = 8


def confidence_scores(classifier: Any, images: Any) -> dict[str, NDArray[np.float64]]:
    """Scores (N,) of how familiar each image looks, higher for images like those of the training.

    >>> list(confidence_scores(classifier, images))
    ['max_softmax', 'max_logit', 'energy', 'gradient_norm']

    max_softmax : the largest probability (Hendrycks and Gimpel, 2017).
    max_logit : the largest logit z (Hendrycks et al., 2022).
    energy : logsumexp(z), which is log p(x) up to a constant (Liu et al., 2020; Grathwohl et al., 2020).
    gradient_norm : −‖∂ logsumexp(z) / ∂x‖₂ over the preprocessed image x (Grathwohl et al., 2020).

    What a classifier cannot give is absent: logits come from its method `logits`, or from a `decision_function` whose
    softmax is `predict_proba`; gradients from networks that torch runs.
    """
    logits = _logits(classifier, images)
    if logits is None:
        return {"max_softmax": np.asarray(classifier.predict_proba(images), np.float64).max(axis=1)}
    scores = {
        "max_softmax": special.softmax(logits, axis=1).max(axis=1),
        "max_logit": logits.max(axis=1),
        "energy": special.logsumexp(logits, axis=1),
    }
    norms = _gradient_norms(classifier, images) if isinstance(classifier, NetworkClassifier) else None
    return scores if norms is None else scores | {"gradient_norm": -norms}


def missing_scores(scores: Collection[str], name: str) -> str | None:
    """One line on the scores that a classifier could not give; None if it gave all."""
    absent = [score for score in SCORES if score not in scores]
    reason = "it has no logits" if "max_logit" in absent else "torch has no gradient through it"
    return f"{name} gives no {', '.join(absent)}: {reason}" if absent else None


def outside_confidences(classifier: Any, inside: Any, sets: Sequence[Outside]) -> dict[str, NDArray[np.float64]]:
    """The scores of all images, by `inside/SCORE` and `NAME/SCORE`."""
    if "inside" in (names := [each.name for each in sets]) or len(set(names)) < len(names):
        raise UserError(f"outside data sets need different names, and none may be 'inside'; got {', '.join(names)}")
    images = {"inside": inside} | {each.name: each.images for each in sets}
    return {
        f"{name}/{score}": values
        for name, of_set in images.items()
        for score, values in confidence_scores(classifier, of_set).items()
    }


def compare_confidences(confidences: Mapping[str, ArrayLike], sets: Sequence[Outside]) -> list[dict[str, Any]]:
    """The `outside` entries of results.json, from what `outside_confidences` found."""
    return [
        {
            "data": each.name,
            "score": score,
            "matching": each.matching,
            "n": len(each.images),
            "metrics": ood_metrics(confidences[f"inside/{score}"], confidences[f"{each.name}/{score}"]),
        }
        for each in sets
        for score in SCORES
        if f"inside/{score}" in confidences
    ]


def measure_outside(classifier: Any, inside: Any, sets: Sequence[Outside]) -> list[dict[str, Any]]:
    """How well each score tells the test images from each outside set, as the `outside` entries of results.json.

    >>> measure_outside(classifier, test.images, [outside_images("noise", like=test)])[0]["metrics"]["auroc"]["mean"]
    0.97
    """
    return compare_confidences(outside_confidences(classifier, inside, sets), sets)


def ood_metrics(inside: ArrayLike, outside: ArrayLike) -> Card:
    """AUROC, AUPR and FPR95 of a score that is higher for test images, with bootstrap intervals over both sets.

    >>> ood_metrics([0.9, 0.8, 0.4], [0.5, 0.1])["auroc"]["mean"]
    0.8333333333333334

    auroc : the share of pairs in which the test image has the higher score, ties counting half.
    aupr_in, aupr_out : average precision, with the test images or the others as what is to be found.
    fpr95 : the share of outside images accepted where at least 95 % of the test images are.

    Values equal those of scikit-learn's `roc_auc_score`, `average_precision_score` and `roc_curve`.
    """
    a, b = np.asarray(inside, np.float64), np.asarray(outside, np.float64)
    if a.ndim != 1 or b.ndim != 1 or not len(a) or not len(b):
        raise UserError(f"inside, outside: expected scores (N,), at least one each, got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("inside, outside: scores must be finite; check the classifier's logits")
    ranking = _Ranking(a, b)
    values = ranking.metrics(np.ones((1, len(a))), np.ones((1, len(b))))
    rows = rows_at_a_time(len(a), len(b))
    resamples = zip(drawn_counts(len(a), rows_each=rows), drawn_counts(len(b), rows_each=rows, seed=1), strict=True)
    drawn = [ranking.metrics(of_a, of_b) for of_a, of_b in resamples]
    ends = percentiles({name: np.concatenate([part[name] for part in drawn]) for name in values})
    return {name: metric([float(value[0])], ends[name], "images") for name, value in values.items()}


class _Ranking:
    """Inside and outside images in decreasing order of score, for counts of each."""

    def __init__(self, inside: Array, outside: Array) -> None:
        scores = np.concatenate([inside, outside])
        self.order = np.argsort(-scores, kind="stable")
        self.starts = group_starts(scores[self.order])
        self.inside = self.order < len(inside)

    def metrics(self, inside: Array, outside: Array) -> dict[str, Array]:
        """One value for each row of counts (resamples, N) and (resamples, M)."""
        counts = np.concatenate([inside, outside], axis=1)[:, self.order]
        found, wrong = (group_sums(counts * each, self.starts) for each in (self.inside, ~self.inside))
        n, m = inside.sum(axis=1), outside.sum(axis=1)
        found_so_far, wrong_so_far = np.cumsum(found, axis=1), np.cumsum(wrong, axis=1)
        wins = (wrong * (found_so_far - found / 2)).sum(axis=1)
        enough = np.argmax(found_so_far >= ACCEPTED * n[:, None] - 1e-9, axis=1)
        left, others_left = n[:, None] - found_so_far + found, m[:, None] - wrong_so_far + wrong
        return {
            "auroc": wins / (n * m),
            "aupr_in": (found * _share(found_so_far, wrong_so_far)).sum(axis=1) / n,
            "aupr_out": (wrong * _share(others_left, left)).sum(axis=1) / m,
            "fpr95": np.take_along_axis(wrong_so_far, enough[:, None], axis=1)[:, 0] / m,
        }


def _share(part: Array, rest: Array) -> Array:
    whole = part + rest
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _logits(classifier: Any, images: Any) -> NDArray[np.float64] | None:
    if hasattr(classifier, "logits"):
        return np.asarray(classifier.logits(images), np.float64)
    if not hasattr(classifier, "decision_function"):
        return None
    first = images[:_CHECKED_IMAGES]
    decision = np.asarray(classifier.decision_function(first), np.float64)
    probabilities = classifier.predict_proba(first)
    if decision.shape != probabilities.shape or np.abs(special.softmax(decision, axis=1) - probabilities).max() > 1e-3:
        return None
    return np.asarray(classifier.decision_function(images), np.float64)


def _gradient_norms(classifier: NetworkClassifier, images: Any) -> NDArray[np.float64] | None:
    """‖∂ logsumexp(z) / ∂x‖₂ of each image; None where torch does not see into the network."""
    norms = []
    with evaluating(classifier.model), torch.enable_grad():
        for batch in image_tensor(images).split(classifier.batch_size):
            x = classifier.inputs(batch).detach().requires_grad_()
            logits = classifier.model(x)
            if not logits.requires_grad:
                return None
            (gradient,) = torch.autograd.grad(logits.logsumexp(dim=1).sum(), x)
            norms.append(gradient.flatten(1).double().norm(dim=1).cpu())
    return torch.cat(norms).numpy()
