"""The Fréchet distance against its closed forms and against scipy's matrix root."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from postgrad.errors import UserError
from postgrad.evaluation.frechet import frechet_distance


def drawn(seed: int, n: int, d: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, d)) @ draw.normal(size=(d, d)) + draw.normal(size=d)


@given(st.integers(0, 1000), st.integers(1, 6))
def test_it_is_the_formula_with_scipys_root(seed: int, d: int) -> None:
    a, b = drawn(seed, 40, d), drawn(seed + 1, 30, d)
    cov_a, cov_b = np.cov(a.T).reshape(d, d), np.cov(b.T).reshape(d, d)
    root = sqrtm(cov_a @ cov_b)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * np.real(root))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9, abs=1e-9)


def test_closed_forms() -> None:
    a = drawn(0, 50, 5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(5 * 4)
    assert frechet_distance(a, 3 * a - 2 * a.mean(0)) == pytest.approx(
        4 * np.trace(np.cov(a.T))
    )  # (3 − 1)² of the spread
    turned = a @ np.linalg.qr(drawn(1, 5, 5))[0]
    assert frechet_distance(turned, turned + 1) == pytest.approx(5)
    assert frechet_distance(a, turned - turned.mean(0) + a.mean(0)) > 0.1  # the same spread in other directions


def test_fewer_images_than_features() -> None:
    a = drawn(0, 6, 20)
    assert frechet_distance(a, a + 1) == pytest.approx(20, rel=1e-6)
    assert frechet_distance(a.astype(np.float32), a) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "at least 2"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "got shapes"),
        (np.zeros(4), np.zeros((4, 2)), "expected features"),
        (np.full((4, 2), np.nan), np.zeros((4, 2)), "not finite"),
    ],
)
def test_mistakes(a: np.ndarray, b: np.ndarray, said: str) -> None:
    with pytest.raises(UserError, match=said):
        frechet_distance(a, b)
