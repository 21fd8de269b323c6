"""Metrics against scikit-learn, closed forms, hand-computed cases and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from postgrad.errors import UserError
from postgrad.evaluation import metrics


def random_case(seed: int, n: int = 200, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.dirichlet(np.full(classes, 0.5), n).astype(np.float32), generator.integers(0, classes, n)


def brute_force_aurc(confidence: np.ndarray, correct: np.ndarray) -> float:
    order = sorted(range(len(confidence)), key=lambda i: -confidence[i])
    risks = [sum(not correct[i] for i in order[:k]) / k for k in range(1, len(order) + 1)]
    return sum(risks) / len(risks)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_agrees_with_scikit_learn(seed: int) -> None:
    p, y = random_case(seed)
    classes = np.arange(p.shape[1])
    exact = p.astype(np.float64) / p.sum(axis=1, keepdims=True, dtype=np.float64)
    assert metrics.accuracy(p, y) == sklearn_metrics.accuracy_score(y, p.argmax(1))
    safe = np.where(exact > 1e-30, exact, 1e-30)
    expected_nll = sklearn_metrics.log_loss(y, safe / safe.sum(1, keepdims=True), labels=classes)
    if p[np.arange(len(y)), y].min() > 1e-12:
        assert metrics.nll(p, y) == pytest.approx(expected_nll, rel=1e-4)
    one_hot = np.eye(p.shape[1])[y]
    assert metrics.brier(p, y) == pytest.approx(float(((exact - one_hot) ** 2).sum(1).mean()), rel=1e-5)
    np.testing.assert_array_equal(
        metrics.confusion(p, y), sklearn_metrics.confusion_matrix(y, p.argmax(1), labels=classes)
    )


def test_brier_of_two_classes_is_twice_scikit_learns() -> None:
    p, y = random_case(3, classes=2)
    assert metrics.brier(p, y) == pytest.approx(2 * sklearn_metrics.brier_score_loss(y, p[:, 1]), rel=1e-5)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_aurc_equals_brute_force(seed: int) -> None:
    p, y = random_case(seed, n=60)
    assert metrics.aurc(p, y) == pytest.approx(brute_force_aurc(p.max(1), p.argmax(1) == y), abs=1e-12)


def test_aurc_of_ties_is_the_mean_over_random_orders() -> None:
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.6, 0.4], [0.55, 0.45]])
    y = np.array([0, 1, 0, 0, 1])
    generator = np.random.default_rng(0)
    confidence, correct = p.max(1), p.argmax(1) == y
    sampled = [brute_force_aurc(confidence + 1e-9 * generator.random(5), correct) for _ in range(4000)]
    assert metrics.aurc(p, y) == pytest.approx(np.mean(sampled), abs=0.005)


def test_aurc_of_a_constant_confidence_is_the_error_rate() -> None:
    p = np.tile([[0.7, 0.3]], (10, 1))
    assert metrics.aurc(p, [0] * 7 + [1] * 3) == pytest.approx(0.3)


def test_ece_by_hand() -> None:
    # Confidences .95 (right), .95 (wrong) in the bin (14/15, 1]; .55 (right) in (8/15, 9/15]:
    # |1 - 1.9| / 3 + |1 - .55| / 3
    p = np.array([[0.95, 0.05], [0.05, 0.95], [0.55, 0.45]])
    assert metrics.ece(p, [0, 0, 0]) == pytest.approx((0.9 + 0.45) / 3)


def test_bins_are_open_below_and_closed_above() -> None:
    p = np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    curve = metrics.reliability(p, [0, 0, 0], bins=4)
    np.testing.assert_array_equal(curve.count, [0, 1, 1, 1])
    assert np.isnan(curve.accuracy[0])
    np.testing.assert_allclose(curve.confidence[1:], [0.5, 0.75, 1.0])
    assert metrics.ece(p, [0, 0, 0], bins=4) == pytest.approx((0.5 + 0.25) / 3)


def test_calibrated_probabilities_have_little_calibration_error() -> None:
    generator = np.random.default_rng(1)
    p = generator.dirichlet(np.ones(3), 100_000)
    y = (generator.random(len(p))[:, None] > p.cumsum(1)).sum(1).clip(max=2)
    assert metrics.ece(p, y) < 0.006
    sharpened = p**3 / (p**3).sum(1, keepdims=True)
    assert metrics.ece(sharpened, y) > 0.1


def test_perfect_and_uniform_classifiers() -> None:
    y = np.array([0, 1, 2, 3])
    perfect = metrics.summarise(metrics.outcomes(np.eye(4), y))
    assert perfect == {"accuracy": 1.0, "nll": 0.0, "ece": 0.0, "brier": 0.0, "aurc": 0.0}
    uniform = np.full((4, 4), 0.25)
    assert metrics.nll(uniform, y) == pytest.approx(np.log(4))
    assert metrics.brier(uniform, y) == pytest.approx(0.75)


def test_a_true_class_of_probability_zero_costs_a_finite_loss() -> None:
    assert metrics.nll([[1.0, 0.0]], [1]) == pytest.approx(87.336, abs=1e-3)


def test_per_class_accuracy_says_nan_for_an_absent_class() -> None:
    result = metrics.per_class_accuracy([[0.9, 0.1, 0], [0.2, 0.8, 0]], [0, 0])
    assert result[0] == 0.5
    assert np.isnan(result[1:]).all()


@pytest.mark.parametrize(
    ("probabilities", "labels", "says"),
    [
        ([[2.0, -1.0]], [0], "not logits"),
        ([[np.nan, 1.0]], [0], "finite"),
        ([[0.3, 0.3]], [0], "sum to 1"),
        ([[0.5, 0.5]], [2], "integers 0 to 1"),
        ([[0.5, 0.5]], [0.5], "integers"),
        ([[0.5, 0.5]], [0, 1], r"\(1, 2\) and \(2,\)"),
        (np.empty((0, 2)), np.empty(0, int), "at least 1"),
    ],
)
def test_bad_input_is_named(probabilities: object, labels: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        metrics.outcomes(probabilities, labels)  # type: ignore[arg-type]
