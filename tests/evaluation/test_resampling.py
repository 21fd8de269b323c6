"""The fast bootstrap draws the same resamples as the plain one, and gives the same values for each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.evaluation import metrics
from postgrad.evaluation.resampling import calibration_of, drawn_counts, intervals, metrics_of
from postgrad.evaluation.statistics import bootstrap_interval


def outcomes(seed: int, n: int, classes: int, ties: bool) -> metrics.Outcomes:
    generator = np.random.default_rng(seed)
    p = generator.dirichlet(np.ones(classes), n)
    if ties:
        p = np.round(p, 1) + 1e-9
        p /= p.sum(1, keepdims=True)
    return metrics.outcomes(p, generator.integers(0, classes, n))


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 80), classes=st.integers(2, 8), ties=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_resample_scores_as_its_images_do(seed: int, n: int, classes: int, ties: bool) -> None:
    images = outcomes(seed, n, classes, ties)
    drawn = np.random.default_rng(seed).integers(0, n, (3, n))
    counts = np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(float)
    found = metrics_of(images)(counts)
    for number, row in enumerate(drawn):
        expected = metrics.summarise(images.take(row))
        assert {name: values[number] for name, values in found.items()} == pytest.approx(expected, abs=1e-12)
    calibration = calibration_of(images)(counts)
    assert set(calibration) == {"nll", "brier", "ece", "ece_equal_mass"}
    for name, values in calibration.items():
        np.testing.assert_allclose(values, found[name], atol=1e-12)


def test_intervals_are_those_of_the_plain_bootstrap() -> None:
    images = outcomes(1, 150, 6, ties=True)
    names = list(metrics.summarise(images))
    low, high = bootstrap_interval(lambda drawn: list(metrics.summarise(images.take(drawn)).values()), len(images))
    found = intervals(metrics_of(images), len(images))
    for name, expected in zip(names, zip(low, high, strict=True), strict=True):
        assert found[name] == pytest.approx(expected, abs=1e-12)


def test_counts_come_to_the_same_in_pieces_of_any_size() -> None:
    whole = np.concatenate(list(drawn_counts(30, rows_each=1000)))
    np.testing.assert_array_equal(whole, np.concatenate(list(drawn_counts(30, rows_each=7))))
    assert whole.shape == (1000, 30)
    assert (whole.sum(1) == 30).all()
