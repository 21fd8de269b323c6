"""Selection keeps what numpy's percentile keeps, row by row, in every number type."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from postgrad.errors import UserError
from postgrad.gradients import _kernels, percentile_threshold, select_, select_global_


def kept_by_numpy(rows: Tensor, keep: float) -> Tensor:
    """What is strictly above the percentile; interpolated in float64, so that it never rounds up to the next entry."""
    magnitudes = rows.double().abs().numpy()
    return torch.from_numpy(magnitudes > np.percentile(magnitudes, 100 * (1 - keep), axis=1, keepdims=True))


def gradients(rows: int, numbers: int, seed: int = 0) -> Tensor:
    """Numbers of very different size, a third of them zero, as gradients are."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (
        torch.randn(rows, numbers, generator=generator) * torch.randn(rows, numbers, generator=generator).mul(4).exp()
    )
    drawn[:, ::3] = 0
    return drawn


@pytest.mark.parametrize("numbers", [1, 2, 3, 7, 20, 21, 101, 4_800, 16_384, 23_041, 102_400])
@pytest.mark.parametrize("keep", [0.15, 0.5, 0.9, 1.0, 0.001])
def test_equals_numpy(numbers: int, keep: float) -> None:
    rows = gradients(5, numbers)
    expected = rows * kept_by_numpy(rows, keep)
    assert torch.equal(select_(rows.clone(), keep), expected)
    assert torch.equal(select_(rows.double(), keep), expected.double())
    assert torch.equal(rows.abs() > percentile_threshold(rows, keep), kept_by_numpy(rows, keep))


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 3), st.integers(1, 60)), elements=st.floats(width=32, allow_nan=False)
    ),
    st.sampled_from([0.15, 0.3, 0.5, 0.75, 1.0]),
)
def test_the_compiled_threshold_is_an_order_statistic(numbers: np.ndarray, keep: float) -> None:
    """With ties, denormal numbers and infinities too."""
    rows = torch.from_numpy(numbers)
    sorted_magnitudes = np.sort(np.abs(numbers), axis=1)
    place = int(np.floor((numbers.shape[1] - 1) * (100 * (1 - keep) / 100)))
    assert np.array_equal(percentile_threshold(rows, keep).numpy()[:, 0], sorted_magnitudes[:, place])
    assert torch.equal(percentile_threshold(rows.double(), keep).float(), percentile_threshold(rows, keep))


@pytest.mark.parametrize(
    "row",
    [
        torch.zeros(20_000),
        torch.ones(20_000),
        torch.arange(20_000.0),
        torch.arange(20_000.0).flip(0),
        torch.cat([torch.zeros(18_000), torch.rand(2_000)]),
        torch.cat([torch.rand(17_000), torch.full((3_000,), 0.5)]),
        torch.arange(20_000).remainder(9).float(),
        torch.cat([torch.full((10_000,), 1e-40), torch.rand(10_000)]),
    ],
    ids=["zeros", "ones", "rising", "falling", "mostly-zero", "tied", "periodic", "denormal"],
)
def test_long_rows_whose_sample_misleads(row: Tensor) -> None:
    """Long rows are bracketed by a sample; a wrong bracket must not show."""
    rows = torch.stack([row, row.flip(0)])
    for keep in (0.15, 0.5, 0.999):
        assert torch.equal(rows.abs() > percentile_threshold(rows, keep), kept_by_numpy(rows, keep))


def test_a_wrong_bracket_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled selection in plain Python, with a bracket that holds nothing."""
    bits = gradients(1, 20_000).numpy().view(np.uint32)[0]
    work, histogram = _kernels._workspace.py_func(len(bits))
    monkeypatch.setattr(_kernels, "_bracket", lambda *_: (np.uint32(5), np.uint32(6)))
    with np.errstate(over="ignore"):
        found = _kernels._nth_magnitude.py_func(bits, 17_000, work, histogram)
    expected = np.sort(bits & 0x7FFFFFFF)[17_000]
    assert found == expected


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads: int) -> None:
    rows = gradients(7, 5_000)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(select_(rows.clone(), 0.15), rows * kept_by_numpy(rows, 0.15))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_number_types(dtype: torch.dtype) -> None:
    rows = gradients(4, 500).clamp(-100, 100).to(dtype)
    assert torch.equal(select_(rows.clone(), 0.15), rows * kept_by_numpy(rows, 0.15))


def test_rows_that_are_not_contiguous() -> None:
    wide = gradients(4, 600)
    rows = wide[:, 100:400]
    expected = rows * kept_by_numpy(rows, 0.15)
    untouched = wide[:, :100].clone()
    assert torch.equal(select_(rows, 0.15), expected)
    assert torch.equal(wide[:, :100], untouched)


def test_the_share_that_is_kept() -> None:
    rows = torch.randn(3, 10_000, generator=torch.Generator().manual_seed(0))
    assert (select_(rows, 0.15) != 0).sum(1).tolist() == [1_500] * 3


def test_no_rows() -> None:
    assert select_(torch.zeros(0, 10), 0.15).shape == (0, 10)
    assert select_global_([], 0.15) == []


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, float("nan")])
def test_a_share_that_makes_no_sense(keep: float) -> None:
    with pytest.raises(UserError, match="select: expected a share above 0 and at most 1"):
        select_(torch.ones(2, 3), keep)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_global_selection_is_one_over_all_blocks(dtype: torch.dtype) -> None:
    blocks = [gradients(3, numbers, seed=numbers).to(dtype) for numbers in (10, 300, 45)]
    kept = kept_by_numpy(torch.cat(blocks, dim=1), 0.15).split([10, 300, 45], dim=1)
    expected = [block * mask for block, mask in zip(blocks, kept, strict=True)]
    select_global_(blocks, 0.15)
    assert all(torch.equal(block, wanted) for block, wanted in zip(blocks, expected, strict=True))
