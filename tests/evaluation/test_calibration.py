"""Temperature scaling recovers a known temperature and never changes a prediction."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from postgrad.errors import UserError
from postgrad.evaluation import metrics
from postgrad.evaluation.calibration import apply_temperature, fit_temperature


def overconfident(temperature: float, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose labels were drawn from softmax(z / temperature)."""
    generator = np.random.default_rng(0)
    z = 4 * generator.standard_normal((n, 5))
    p = special.softmax(z / temperature, axis=1)
    return z, (generator.random(n)[:, None] > p.cumsum(1)).sum(1).clip(max=4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_recovers_the_temperature_that_made_the_labels(temperature: float) -> None:
    z, y = overconfident(temperature)
    assert fit_temperature(z, y, logits=True) == pytest.approx(temperature, rel=0.04)


def test_probabilities_and_logits_agree() -> None:
    z, y = overconfident(2.0, 2000)
    p = special.softmax(z, axis=1)
    from_logits = fit_temperature(z, y, logits=True)
    assert fit_temperature(p, y) == pytest.approx(from_logits, rel=1e-4)
    np.testing.assert_allclose(apply_temperature(p, 2.0), apply_temperature(z, 2.0, logits=True), atol=1e-9)


def test_calibrates_and_keeps_predictions() -> None:
    z, y = overconfident(2.5)
    p = special.softmax(z, axis=1)
    calibrated = apply_temperature(p, fit_temperature(p, y))
    assert metrics.ece(calibrated, y) < 0.02 < metrics.ece(p, y)
    assert metrics.nll(calibrated, y) < metrics.nll(p, y)
    np.testing.assert_array_equal(calibrated.argmax(1), p.argmax(1))


def test_fits_the_minimum_of_the_loss() -> None:
    z, y = overconfident(1.7, 500)
    p = special.softmax(z, axis=1)
    best = fit_temperature(p, y)
    losses = [metrics.nll(apply_temperature(p, t), y) for t in (best * 0.98, best, best * 1.02)]
    assert losses[1] == min(losses)


def test_all_right_ends_at_the_sharp_end() -> None:
    assert fit_temperature([[0.7, 0.3], [0.4, 0.6]], [0, 1]) < 0.05


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match="above 0"):
        apply_temperature([[0.5, 0.5]], 0.0)
    with pytest.raises(UserError, match=r"\(N, C\)"):
        fit_temperature([[0.5, 0.5]], [0, 1])
