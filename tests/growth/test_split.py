"""Weights shared between replicas: the shares sum to the weight exactly, in every precision."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from postgrad.growth import _split
from postgrad.growth._split import shared

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def wide_of(weight: Tensor, dim: int, more: list[int], seed: int, noise: float) -> tuple[Tensor, Tensor]:
    index = torch.cat([torch.arange(weight.shape[dim]), torch.tensor(more, dtype=torch.int64)])
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(len(index), generator=generator, dtype=torch.float64) + 0.1
    share = draws / torch.zeros(weight.shape[dim], dtype=torch.float64).index_add_(0, index, draws)[index]
    return shared(weight, dim, index, share, noise, generator), index


def exact_sums(wide: Tensor, dim: int, index: Tensor, size: int) -> list[list[Fraction]]:
    """By rational arithmetic, which rounds nothing."""
    columns = wide.double().movedim(dim, 0).reshape(len(index), -1).tolist()
    sums = [[Fraction(0)] * len(columns[0]) for _ in range(size)]
    for unit, column in zip(index.tolist(), columns, strict=True):
        sums[unit] = [total + Fraction(value) for total, value in zip(sums[unit], column, strict=True)]
    return sums


@settings(max_examples=80)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    at=st.integers(0, 3),
    more=st.lists(st.integers(0, 3), max_size=6),
    scale=st.integers(-160, 100),
    noise=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 99),
)
def test_shares_sum_to_the_weight_exactly(
    dtype: torch.dtype, shape: list[int], at: int, more: list[int], scale: int, noise: float, seed: int
) -> None:
    dim = at % len(shape)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight = (weight * 2.0 ** (scale if dtype != torch.float16 else scale % 20 - 20)).to(dtype)
    wide, index = wide_of(weight, dim, [unit % shape[dim] for unit in more], seed, noise)
    assert wide.dtype == dtype
    old = [
        [Fraction(value) for value in row] for row in weight.double().movedim(dim, 0).reshape(shape[dim], -1).tolist()
    ]
    assert exact_sums(wide, dim, index, shape[dim]) == old


def test_the_example_of_the_docstring_in_the_weights_own_precision() -> None:
    for dtype in DTYPES:
        weight = torch.randn(50, 2, dtype=torch.float64).to(dtype)
        wide, _ = wide_of(weight, 1, [0], 3, 0.1)
        assert torch.equal(wide[:, 0] + wide[:, 2], weight[:, 0])
        assert torch.equal(wide[:, 1], weight[:, 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_shares_are_near_those_asked_for_and_noisy(dtype: torch.dtype) -> None:
    weight = torch.full((4000, 1), 1.0, dtype=dtype)
    index, share = torch.tensor([0, 0, 0]), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    plain = shared(weight, 1, index, share, 0.0, generator).double()
    assert (plain - share).abs().max() < 2 * max(torch.finfo(dtype).eps, 2**-48)
    noisy = shared(weight, 1, index, share, 0.1, generator).double()
    assert (noisy.mean(0) - share).abs().max() < 0.02
    assert noisy[:, 1:].std(0).tolist() == pytest.approx([0.03, 0.02], rel=0.1)


def test_awkward_weights_have_one_replica() -> None:
    """Zeros stay zeros, and what has no digits to share (the smallest number) stays with the first."""
    tiny = torch.finfo(torch.float32).smallest_normal * 2**-23
    weight = torch.tensor([[0.0], [tiny], [-0.0]])
    wide, index = wide_of(weight, 1, [0, 0], 0, 0.1)
    assert wide[0].tolist() == [0, 0, 0]
    assert exact_sums(wide, 1, index, 1) == [[0, Fraction(tiny), 0]]


def test_a_transposed_weight_and_one_that_wants_gradients() -> None:
    weight = torch.randn(3, 4).t().requires_grad_()
    wide, index = wide_of(weight, 0, [1], 0, 0.1)
    assert not wide.requires_grad
    assert exact_sums(wide, 0, index, 4) == [[Fraction(each) for each in row] for row in weight.tolist()]


def test_negative_control_without_the_grid_sums_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_split, "_spacing", lambda weight, digits: torch.full_like(weight, 2.0**-60))
    weight = torch.randn(50, 2)
    wide, index = wide_of(weight, 1, [0, 1, 0], 0, 0.1)
    old = [[Fraction(each) for each in row] for row in weight.t().tolist()]
    assert exact_sums(wide, 1, index, 2) == old  # it then gives all of it to one
    assert not wide[:, 2:].any()
    monkeypatch.setattr(_split, "_is_rounded", lambda numbers, dtype: torch.zeros_like(numbers, dtype=torch.bool))
    rounded, _ = wide_of(weight, 1, [0, 1, 0], 0, 0.1)
    assert exact_sums(rounded, 1, index, 2) != old
