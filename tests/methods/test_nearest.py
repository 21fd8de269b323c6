from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng
from scipy.spatial.distance import cdist

from postgrad.methods import _nearest
from postgrad.methods._nearest import Points, nearest_of_all


def _oracle(rows: Any, k: int) -> tuple[Any, Any]:
    distances = cdist(rows, rows)
    np.fill_diagonal(distances, np.inf)
    return np.sort(distances, axis=1)[:, :k], distances


@given(n=st.integers(2, 40), d=st.integers(1, 20), k=st.integers(1, 50), seed=st.integers(0, 99))
def test_distances_are_those_of_scipy(n: int, d: int, k: int, seed: int) -> None:
    rows = default_rng(seed).normal(size=(n, d)) * 3 + 100
    found = nearest_of_all(Points(rows), k)
    wanted, distances = _oracle(rows, min(k, n - 1))
    np.testing.assert_allclose(found.distances, wanted, rtol=1e-9)
    np.testing.assert_allclose(np.take_along_axis(distances, found.places.astype(int), axis=1), wanted, rtol=1e-9)


def test_many_blocks_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = default_rng(0).random((150, 9)).astype(np.float32)
    whole = nearest_of_all(Points(rows), 12)
    monkeypatch.setattr(_nearest, "BLOCK", 32)
    parts = nearest_of_all(Points(rows), 12)
    np.testing.assert_allclose(parts.distances, whole.distances, rtol=1e-12)


def test_nobody_is_missed_within_the_radius() -> None:
    rows = default_rng(1).random((300, 30)).astype(np.float32) + 5  # far from 0, where float32 products are coarse
    found = nearest_of_all(Points(rows), 8)
    _, distances = _oracle(rows.astype(float), 8)
    assert (found.radius > 0).all()
    within = (distances < found.radius[:, None]).sum(axis=1)
    listed = (found.distances < found.radius[:, None]).sum(axis=1)
    np.testing.assert_array_equal(listed, within)


def test_radius_is_unbounded_where_all_are_listed() -> None:
    assert np.isinf(nearest_of_all(Points(np.eye(4)), 3).radius).all()


def test_duplicates_and_constant_columns() -> None:
    rows = np.repeat(np.array([[1.0, 7.0, 2.0], [4.0, 7.0, 6.0]]), 3, axis=0)
    points = Points(rows)
    assert points.rows.shape == (6, 2)
    np.testing.assert_array_equal(points.whole(), rows)
    np.testing.assert_array_equal(nearest_of_all(points, 5).distances[0], [0, 0, 5, 5, 5])


def test_new_points_keep_what_constant_columns_add() -> None:
    points = Points(np.array([[0.0, 7.0], [1.0, 7.0]]))
    np.testing.assert_array_equal(points.queries(np.array([[0.0, 9.0]])).beyond, [4.0])


def test_one_point_has_no_neighbour() -> None:
    assert nearest_of_all(Points(np.ones((1, 3))), 5).places.shape == (1, 0)
