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


@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(6, 12))
@settings(max_examples=20, deadline=None)
def test_top5_and_balanced_accuracy_are_scikit_learns(seed: int, classes: int) -> None:
    p, y = random_case(seed, classes=classes)
    expected = sklearn_metrics.top_k_accuracy_score(y, p, k=5, labels=np.arange(classes))
    assert metrics.top5_accuracy(p, y) == pytest.approx(expected, abs=1e-12)
    assert metrics.balanced_accuracy(p, y) == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(y, p.argmax(1)), abs=1e-12
    )


def test_top5_of_equal_probabilities_counts_the_first_five() -> None:
    p = np.full((6, 6), 1 / 6)
    assert metrics.top5_accuracy(p, np.arange(6)) == pytest.approx(5 / 6)
    with pytest.raises(UserError, match="five classes or fewer"):
        metrics.top5_accuracy(np.full((2, 5), 0.2), [0, 1])


@given(seed=st.integers(0, 2**32 - 1), bins=st.integers(1, 30))
@settings(max_examples=15, deadline=None)
def test_ece_is_that_of_torchmetrics(seed: int, bins: int) -> None:
    from postgrad._compat import prepare_torchvision

    prepare_torchvision()
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    p, y = random_case(seed)
    exact = torch.from_numpy(p)
    expected = multiclass_calibration_error(exact, torch.from_numpy(y), num_classes=5, n_bins=bins, norm="l1")
    assert metrics.ece(p, y, bins=bins) == pytest.approx(float(expected), abs=1e-6)


def brute_force_equal_mass(p: np.ndarray, y: np.ndarray, bins: int) -> float:
    """For images whose number the bins divide and whose confidences differ."""
    order = np.argsort(p.max(1))
    gap = ((p.argmax(1) == y) - p.max(1).astype(np.float64))[order]
    return float(np.abs(gap.reshape(bins, -1).sum(1)).sum() / len(y))


@given(seed=st.integers(0, 2**32 - 1), bins=st.sampled_from([1, 3, 15, 60]))
@settings(max_examples=20, deadline=None)
def test_equal_mass_ece_equals_brute_force(seed: int, bins: int) -> None:
    p, y = random_case(seed, n=60)
    assert metrics.ece_equal_mass(p, y, bins=bins) == pytest.approx(brute_force_equal_mass(p, y, bins), abs=1e-12)


def test_equal_mass_ece_does_not_see_the_order_of_ties() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.choice([0.6, 0.7, 0.9], 100)
    p, y = np.column_stack([confidence, 1 - confidence]), generator.integers(0, 2, 100)
    shuffled = generator.permutation(100)
    assert metrics.ece_equal_mass(p, y) == pytest.approx(metrics.ece_equal_mass(p[shuffled], y[shuffled]), abs=1e-12)
    assert brute_force_equal_mass(p[shuffled], y[shuffled], 20) != pytest.approx(brute_force_equal_mass(p, y, 20))


def test_brier_of_two_classes_is_twice_scikit_learns() -> None:
    p, y = random_case(3, classes=2)
    assert metrics.brier(p, y) == pytest.approx(2 * sklearn_metrics.brier_score_loss(y, p[:, 1]), rel=1e-5)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_aurc_equals_brute_force(seed: int) -> None:
    p, y = random_case(seed, n=60)
    assert metrics.aurc(p, y) == pytest.approx(brute_force_aurc(p.max(1), p.argmax(1) == y), abs=1e-12)


def test_risk_coverage_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.6, 0.4]])
    coverage, risk = metrics.risk_coverage(p, [0, 1, 0, 1])
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(risk, [0, 1 / 2, 1.5 / 3, 2 / 4])
    assert metrics.aurc(p, [0, 1, 0, 1]) == pytest.approx(risk.mean())


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
    higher = {"accuracy": 1.0, "balanced_accuracy": 1.0}
    assert perfect == higher | dict.fromkeys(("nll", "ece", "ece_equal_mass", "brier", "aurc"), 0.0)
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
