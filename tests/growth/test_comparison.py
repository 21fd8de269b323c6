"""How far tensors are from what they must be: by formula, and for every odd case."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from postgrad.growth._comparison import Comparison, contract, difference, floor

INF, NAN = math.inf, math.nan


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20), st.integers(0, 19), st.floats(1e-3, 1e3))
def test_errors_are_measured_by_numpys_standard_deviation(values: list[float], place: int, by: float) -> None:
    old = torch.tensor(values, dtype=torch.float64)
    new = old.clone()
    new[place % len(values)] += by
    spread = float(np.std(values)) or max(abs(value) for value in values) or 1.0
    expected = float((new - old).abs().max()) / spread
    assert difference([old], [new]) == pytest.approx(expected, rel=1e-6)
    assert difference([old], [old.clone()]) == 0


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ([1.0, -INF, 3.0], [1.0, -INF, 4.0], 1.0),
        ([1.0, INF], [1.0, -INF], INF),
        ([1.0, INF], [1.0, 2.0], INF),
        ([1.0, NAN], [1.0, NAN], 0.0),
        ([1.0, 2.0], [1.0, NAN], INF),
        ([1.0, 2.0], [1.0, 2.0, 3.0], INF),
        ([-INF, -INF], [-INF, -INF], 0.0),
        ([5.0], [6.0], 0.2),
        ([0.0, 0.0], [0.0, 3.0], 3.0),
        ([], [], 0.0),
    ],
)
def test_odd_numbers(old: list[float], new: list[float], error: float) -> None:
    assert difference([torch.tensor(old)], [torch.tensor(new)]) == pytest.approx(error)


def test_whole_numbers_and_another_number_of_tensors() -> None:
    assert difference([torch.tensor([True, False])], [torch.tensor([True, True])]) == 2
    assert difference([torch.tensor([1, 2])], []) == INF
    assert difference([], []) == 0


def test_what_is_zero_but_for_rounding_is_measured_by_the_others() -> None:
    usual, rounding = torch.tensor([1.0, -1.0]).double(), torch.tensor([1e-17, -1e-17]).double()
    least = floor([usual, usual, rounding])
    assert least == pytest.approx(1e-3)
    assert difference([rounding], [-rounding], least) < 1e-10
    assert difference([rounding], [-rounding]) == 2
    assert floor([]) == 0


@settings(max_examples=40)
@given(st.lists(st.integers(-1, 3), max_size=6), st.booleans(), st.integers(0, 2), st.integers(0, 99))
def test_shares_are_summed_and_copies_compared_one_by_one(more: list[int], shared: bool, dim: int, seed: int) -> None:
    """Oracle: a loop over the units, in words of Python."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.tensor([0, 1, 2, 3, *more])
    old = torch.rand((4, 4, 4), generator=generator, dtype=torch.float64)
    share = torch.rand(len(index), generator=generator, dtype=torch.float64) + 0.1 if shared else torch.ones(len(index))
    new = torch.rand([len(index) if each == dim else 4 for each in range(3)], generator=generator, dtype=torch.float64)
    wanted, found = contract(old, new, [(dim, index, share)])
    if not shared:
        kept = [number for number, unit in enumerate(index.tolist()) if unit >= 0]
        assert torch.equal(found, torch.stack([new.select(dim, number) for number in kept], dim))
        assert torch.equal(wanted, torch.stack([old.select(dim, int(index[number])) for number in kept], dim))
        return
    for unit in range(4):
        numbers = [number for number, each in enumerate(index.tolist()) if each == unit]
        total = sum(share[number].item() for number in numbers)
        torch.testing.assert_close(wanted.select(dim, unit), total * old.select(dim, unit))
        parts: list[Tensor] = [new.select(dim, number) for number in numbers]
        torch.testing.assert_close(found.select(dim, unit), torch.stack(parts).sum(0))


def test_two_dimensions_at_once() -> None:
    """The weight between two widened layers: rows copied, columns shared."""
    old = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    rows, columns = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
    share = torch.tensor([0.25, 1.0, 0.75], dtype=torch.float64)
    new = old[rows][:, columns] * share
    shares = [(0, rows, torch.ones(3)), (1, columns, share)]
    wanted, found = contract(old, new, shares)
    assert torch.equal(wanted, found)
    wanted, found = contract(old, new * torch.tensor([1.0, 1.0, 1.1]), shares)
    assert not torch.allclose(wanted, found)


def test_calls_are_compared_in_their_order_and_missed_when_they_are_not_made() -> None:
    x = torch.tensor([1.0, -1.0])
    before = {"a": [[x], [2 * x]], "b": [[x, 3 * x]], "silent": [[]]}
    seen = Comparison(before, None)
    for name, tensors in (("a", [x]), ("new", [9 * x]), ("a", [2 * x]), ("b", [x, 3 * x]), ("a", [7 * x])):
        seen(name, tensors)
    assert seen.worst()[0] == 0
    seen = Comparison(before, None)
    seen("a", [x])
    seen("a", [2.5 * x])
    seen("b", [x, 3 * x])
    assert seen.worst() == (pytest.approx(0.25), ", a")
    seen = Comparison(before, lambda name, old: None if name == "a" else 2 * old)
    seen("b", [2 * x, 6 * x])
    assert seen.worst()[0] == 0
    assert Comparison(before, None).worst()[0] == INF
