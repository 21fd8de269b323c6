from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng

from postgrad.methods._mapper_cover import balanced_cover, make_cover, uniform_cover


def test_uniform_intervals_by_their_formula() -> None:
    """10 intervals with overlap .33 on [0, 7.03] have length 1 and begin .67 apart."""
    cover = uniform_cover(np.array([0.0, 7.03]), 10, 0.33)
    np.testing.assert_allclose(cover.lower, np.arange(10) * 0.67, atol=1e-12)
    np.testing.assert_allclose(cover.upper - cover.lower, 1.0)


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40),
    count=st.integers(1, 12),
    overlap=st.floats(0, 0.9),
    kind=st.sampled_from(["uniform", "balanced"]),
)
def test_every_value_lies_in_just_the_intervals_named(values: Any, count: int, overlap: float, kind: Any) -> None:
    array = np.asarray(values)
    cover = make_cover(array, count, overlap, kind=kind, width=float(np.ptp(array)))
    first, last = cover.of(array)
    assert (first >= 0).all()
    assert (first <= last).all()
    assert (last < len(cover)).all()
    inside = (cover.lower <= array[:, None]) & (array[:, None] <= cover.upper)
    named = (first[:, None] <= np.arange(len(cover))) & (np.arange(len(cover)) <= last[:, None])
    assert (named[inside.any(axis=1)] == inside[inside.any(axis=1)]).all()


def test_values_outside_count_as_the_nearest_inside() -> None:
    cover = uniform_cover(np.array([0.0, 1.0]), 4, 0.2)
    first, last = cover.of(np.array([-5.0, 5.0]))
    assert first.tolist() == last.tolist() == [0, 3]


def test_balanced_intervals_hold_about_as_many_values() -> None:
    values = default_rng(0).normal(size=1000) ** 3
    counts = {}
    for kind in ("uniform", "balanced"):
        cover: Any = make_cover(values, 5, 0.2, kind=kind, width=1.0)  # type: ignore[arg-type]
        first, last = cover.of(values)
        counts[kind] = [int(((first <= i) & (i <= last)).sum()) for i in range(5)]
    assert max(counts["balanced"]) - min(counts["balanced"]) <= 2
    assert max(counts["uniform"]) > 20 * min(counts["uniform"])


def test_balanced_intervals_by_their_formula() -> None:
    """Seven distinct values, 3 intervals, overlap .5: length 3.5 of ranks −.5 … 6.5, and 1.75 from one to the next."""
    values = np.array([0.0, 1, 1, 10, 11, 12, 100, 101])
    cover = balanced_cover(values, 3, 0.5)
    np.testing.assert_array_equal(cover.lower, [0, 10, 11])  # ranks −.5 … 3, 1.25 … 4.75, 3 … 6.5
    np.testing.assert_array_equal(cover.upper, [11, 12, 101])


@pytest.mark.parametrize("values", [[3.0, 3.0, 3.0], [3.0, 3.0 + 1e-9]])
def test_a_coordinate_that_hardly_varies_has_one_interval(values: list[float]) -> None:
    assert len(make_cover(np.array(values), 10, 0.33, kind="uniform", width=1.0)) == 1


def test_a_new_value_asks_the_neighbour_from_the_margin_on() -> None:
    """Intervals of length 1, overlap .33: the overlap begins .17 from the middle, a margin of .2 at .136."""
    cover = uniform_cover(np.array([0.0, 7.03]), 10, 0.33)
    middle = (cover.lower[4] + cover.upper[4]) / 2
    for distance, margin, wanted in [
        (0.13, 0.2, (4, 4)),
        (0.14, 0.2, (4, 5)),
        (-0.14, 0.2, (3, 4)),
        (0.14, 0.0, (4, 4)),
        (0.2, 0.0, (4, 5)),
        (0.01, 1.0, (4, 5)),
    ]:
        first, last = cover.asked(np.array([middle + distance]), margin)
        assert (int(first[0]), int(last[0])) == wanted, (distance, margin)


def test_no_neighbour_is_asked_beyond_the_ends() -> None:
    cover = uniform_cover(np.array([0.0, 1.0]), 3, 0.3)
    first, last = cover.asked(np.array([-9.0, 0.0, 1.0, 9.0]), 0.2)
    assert first.tolist() == [0, 0, 2, 2]
    assert last.tolist() == [0, 0, 2, 2]
