"""OOD metrics against scikit-learn and counted pairs; scores against their formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from sklearn import metrics as sklearn_metrics
from torch import nn

from postgrad.data.containers import Images
from postgrad.data.datasets import Dataset
from postgrad.data.outside import Outside, outside_images
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.evaluation.ood import (
    SCORES,
    compare_confidences,
    confidence_scores,
    measure_outside,
    missing_scores,
    ood_metrics,
    outside_confidences,
)
from postgrad.models.network import NetworkClassifier


def brute_force(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """Counting pairs and thresholds one by one."""
    wins = [(a > b) + (a == b) / 2 for a in inside for b in outside]
    accepted = [np.mean(outside >= t) for t in np.unique(inside) if np.mean(inside >= t) >= 0.95]
    return {"auroc": float(np.mean(wins)), "fpr95": float(min(accepted))}


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), m=st.integers(1, 40), digits=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_metrics_equal_scikit_learns_and_a_count_of_pairs(seed: int, n: int, m: int, digits: int) -> None:
    generator = np.random.default_rng(seed)
    inside = np.round(generator.normal(0.5, 1, n), digits)  # rounded: with ties
    outside = np.round(generator.normal(0, 1, m), digits)
    found = {name: entry["mean"] for name, entry in ood_metrics(inside, outside).items()}
    score, is_inside = np.concatenate([inside, outside]), np.repeat([1, 0], [n, m])
    assert found["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(is_inside, score), abs=1e-6)
    assert found["aupr_in"] == pytest.approx(sklearn_metrics.average_precision_score(is_inside, score), abs=1e-6)
    assert found["aupr_out"] == pytest.approx(sklearn_metrics.average_precision_score(1 - is_inside, -score), abs=1e-6)
    assert {name: found[name] for name in ("auroc", "fpr95")} == pytest.approx(brute_force(inside, outside))


def test_intervals_hold_the_truth_and_narrow_with_more_images() -> None:
    generator = np.random.default_rng(0)
    widths = []
    for n in (50, 800):
        low, high = ood_metrics(generator.normal(1, 1, n), generator.normal(0, 1, n))["auroc"]["ci95"]
        assert low < special.ndtr(1 / np.sqrt(2)) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_scores_of_a_linear_network_in_closed_form() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 4)
    classifier = NetworkClassifier(
        nn.Sequential(nn.Flatten(), layer), preprocess=Preprocessing(), class_names="abcd", device="cpu"
    )
    images = torch.randint(0, 256, (9, 3, 2, 2), dtype=torch.uint8)
    scores = confidence_scores(classifier, images)
    assert tuple(scores) == SCORES
    z = (images.flatten(1) / 255) @ layer.weight.T + layer.bias
    p = z.softmax(1).detach()
    np.testing.assert_allclose(scores["max_softmax"], p.max(1).values, rtol=1e-5)
    np.testing.assert_allclose(scores["max_logit"], z.max(1).values.detach(), rtol=1e-5)
    np.testing.assert_allclose(scores["energy"], z.logsumexp(1).detach(), rtol=1e-5)
    gradient = p @ layer.weight.detach()  # ∂ logsumexp(Wx + b) / ∂x = Wᵀp
    np.testing.assert_allclose(scores["gradient_norm"], -gradient.norm(dim=1), rtol=1e-5)


def test_scoring_leaves_the_network_and_the_images_alone(classifier: NetworkClassifier, digits: Dataset) -> None:
    assert digits.test is not None
    images = digits.test.images[:20].float() / 255
    before = images.clone()
    confidence_scores(classifier, images)
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert all(p.grad is None for p in classifier.model.parameters())


class Opaque:
    """Gives probabilities and, if wanted, a decision function."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def predict_proba(self, images: torch.Tensor) -> np.ndarray:
        return special.softmax(images.flatten(1).double().numpy()[:, :3] / 50, axis=1)


def test_what_a_classifier_cannot_give_is_absent_and_said() -> None:
    images = torch.randint(0, 256, (20, 1, 2, 2), dtype=torch.uint8)
    assert list(confidence_scores(Opaque(), images)) == ["max_softmax"]
    logits = confidence_scores(Opaque(decision_function=lambda x: x.flatten(1).double().numpy()[:, :3] / 50), images)
    assert list(logits) == ["max_softmax", "max_logit", "energy"]
    margins = Opaque(decision_function=lambda x: x.flatten(1).double().numpy()[:, :3] / 25)
    assert list(confidence_scores(margins, images)) == ["max_softmax"]
    assert missing_scores(logits, "It") == "It gives no gradient_norm: torch has no gradient through it"
    assert "no logits" in str(missing_scores({"max_softmax": 0}, "It"))
    assert missing_scores(dict.fromkeys(SCORES), "It") is None


def test_a_network_knows_noise_from_digits(classifier: NetworkClassifier, digits: Dataset) -> None:
    assert digits.test is not None
    sets = [outside_images(name, like=digits.test) for name in ("noise", "gaussian-noise")]
    found = measure_outside(classifier, digits.test.images, sets)
    assert [(e["data"], e["score"]) for e in found] == [(s.name, score) for s in sets for score in SCORES]
    assert found[2]["metrics"]["auroc"]["mean"] > 0.8
    same = Outside("same", digits.test.images, "")
    for entry in measure_outside(classifier, digits.test.images, [same]):  # nothing to tell: must say so
        assert entry["metrics"]["auroc"]["mean"] == pytest.approx(0.5)


def test_confidences_give_the_same_table(classifier: NetworkClassifier, digits: Dataset) -> None:
    assert digits.test is not None
    images = Images(digits.test.images[:50], digits.test.labels[:50])
    sets = [outside_images("noise", like=images)]
    confidences = outside_confidences(classifier, images.images, sets)
    assert set(confidences) == {f"{name}/{score}" for name in ("inside", "noise") for score in SCORES}
    assert compare_confidences(confidences, sets) == measure_outside(classifier, images.images, sets)


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match="at least one"):
        ood_metrics([], [1.0])
    with pytest.raises(UserError, match="finite"):
        ood_metrics([np.inf], [1.0])
    twice = [Outside("a", torch.zeros(1, 1, 2, 2), "")] * 2
    with pytest.raises(UserError, match="different names"):
        outside_confidences(Opaque(), torch.zeros(1, 1, 2, 2), twice)
