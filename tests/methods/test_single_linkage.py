from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng
from scipy.cluster.hierarchy import fcluster, linkage

from postgrad.methods import _single_linkage
from postgrad.methods._nearest import Points, nearest_of_all
from postgrad.methods._single_linkage import Edges, clusters, spanning_tree


def _tree(rows: Any, members: Any, k: int) -> Any:
    points = Points(rows)
    neighbours = nearest_of_all(points, k)
    return spanning_tree(points, members, Edges.listed(neighbours), neighbours.radius)


def _clouds(seed: int, n: int = 240) -> Any:
    """Two dense clouds beside a thin one: the dense ones' lists of neighbours never lead out of them."""
    generator = default_rng(seed)
    parts = [generator.normal(size=(n // 3, 4)) * width + shift for width, shift in ((0.05, 0), (0.05, 1), (1.5, 0))]
    return generator.permutation(np.concatenate(parts))


@pytest.mark.parametrize("k", [1, 2, 5, 300])
@pytest.mark.parametrize("seed", [0, 1])
def test_heights_are_those_of_scipy(seed: int, k: int) -> None:
    rows = _clouds(seed)
    members = np.flatnonzero(rows[:, 0] > -0.5)
    np.testing.assert_allclose(
        _tree(rows, members, k).edges.length, np.sort(linkage(rows[members], "single")[:, 2]), rtol=1e-9
    )


def test_listed_pairs_alone_are_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: without the search the tree would be wrong."""
    monkeypatch.setattr(_single_linkage, "_uncertified", lambda *_: np.empty(0, dtype=np.int64))
    rows = _clouds(0)
    heights = _tree(rows, np.arange(len(rows)), 3).edges.length
    wanted = np.sort(linkage(rows, "single")[:, 2])
    assert heights.sum() > wanted.sum() + 1e-3


@given(n=st.integers(2, 60), k=st.integers(1, 6), seed=st.integers(0, 99), grid=st.booleans())
def test_clusters_at_any_height_are_those_of_scipy(n: int, k: int, seed: int, grid: bool) -> None:
    generator = default_rng(seed)
    rows = generator.integers(0, 4, size=(n, 2)).astype(float) if grid else generator.random((n, 3))
    tree = _tree(rows, np.arange(n), k)
    merges = linkage(rows, "single")
    for height in np.quantile(merges[:, 2], [0.2, 0.5, 0.9]) + 1e-9:
        kept = int((tree.edges.length <= height).sum())
        ours = _single_linkage._components(tree.edges.a[:kept], tree.edges.b[:kept], n)
        theirs = fcluster(merges, height, "distance")
        np.testing.assert_array_equal(ours[:, None] == ours, theirs[:, None] == theirs)


def _cut(rows: Any, cut: Any = "histogram") -> Any:
    return clusters(_tree(np.asarray(rows, dtype=float)[:, None], np.arange(len(rows)), 4), cut)


def test_histogram_is_cut_at_its_first_empty_bin() -> None:
    rows = [0, 1, 2.1, 3, 50, 51, 52]
    merges = linkage(np.asarray(rows)[:, None], "single")[:, 2]
    counts, edges = np.histogram(merges, bins=10)
    wanted = fcluster(linkage(np.asarray(rows)[:, None], "single"), edges[np.argmin(counts > 0)], "distance")
    ours = _cut(rows)
    np.testing.assert_array_equal(ours, [0, 0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(ours[:, None] == ours, wanted[:, None] == wanted)


def test_gap_is_that_of_giotto() -> None:
    """Heights 1, 1, 1, 2, 10: the first step of at least 3 is the last merge; 4, 4, 10 begins with such a step."""
    np.testing.assert_array_equal(_cut([0, 1, 2, 3, 5, 15], "gap"), [0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(_cut([0, 4, 8, 18], "gap"), [0, 1, 2, 3])
    np.testing.assert_array_equal(_cut([0, 4], "gap"), [0, 1])
    np.testing.assert_array_equal(_cut([4, 4, 4], "gap"), [0, 0, 0])


@pytest.mark.parametrize("rows", [[3], [3, 8], [0, 1, 2, 3], [5, 5, 5, 5], np.cumsum(np.linspace(1, 2, 30))])
def test_without_a_gap_there_is_one_cluster(rows: Any) -> None:
    assert set(_cut(rows)) == {0}


def test_clusters_are_numbered_by_their_first_members() -> None:
    np.testing.assert_array_equal(_cut([50, 0, 51, 1.1, 2, 52]), [0, 1, 0, 1, 1, 0])
