"""Selected rows and their products with a matrix, against dense arithmetic."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from postgrad.gradients import rows as rows_module
from postgrad.gradients.normalise import Normaliser, kept_numbers, select_and_normalise_, select_and_normalise_into
from postgrad.gradients.rows import Factors, SelectedRows, rows_linear
from postgrad.gradients.space import GradientSpace


def random_rows(count: int, numel: int, most: int) -> SelectedRows:
    counts = torch.randint(0, min(most, numel) + 1, (count,))
    places = torch.zeros(count, min(most, numel) + 1, dtype=torch.int32)
    values = torch.randn(count, min(most, numel) + 1)
    for row, kept in enumerate(counts.tolist()):
        places[row, :kept] = torch.randperm(numel)[:kept].sort().values.int()
    return SelectedRows(values, places, counts, numel)


def by_place(hidden: int, numel: int) -> Tensor:
    return torch.randn(numel, hidden).t()


shapes = st.tuples(
    st.integers(1, 5), st.sampled_from([1, 63, 64, 700, 9000, 20_000]), st.integers(0, 600), st.integers(1, 130)
)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 100))
def test_linear_and_its_gradient_are_the_dense_ones(shape: tuple[int, int, int, int], seed: int) -> None:
    torch.manual_seed(seed)
    count, numel, most, hidden = shape
    rows = random_rows(count, numel, most)
    weight, bias = by_place(hidden, numel).requires_grad_(), torch.randn(hidden, requires_grad=True)
    direction = torch.randn(count, hidden)
    found = rows_linear(rows, weight, bias)
    exact_weight, exact_bias = (t.detach().double().requires_grad_() for t in (weight, bias))
    expected = F.linear(rows.dense().double(), exact_weight, exact_bias)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-3)
    gradients = torch.autograd.grad(found, (weight, bias), direction)
    for one, other in zip(
        gradients, torch.autograd.grad(expected, (exact_weight, exact_bias), direction.double()), strict=True
    ):
        assert torch.allclose(one.double(), other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_bits(threads: int) -> None:
    torch.manual_seed(0)
    rows, weight, direction = random_rows(7, 50_000, 4000), by_place(33, 50_000), torch.randn(7, 33)
    updated = weight.clone()
    expected = rows_linear(rows, weight, None)
    Factors(rows, direction).add_to_(updated, 0.5)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        again = weight.clone()
        Factors(rows, direction).add_to_(again, 0.5)
        assert torch.equal(rows_linear(rows, weight, None), expected)
        assert torch.equal(again, updated)
    finally:
        torch.set_num_threads(before)


def test_factored_leaves_the_gradient_as_factors() -> None:
    torch.manual_seed(0)
    rows, weight = random_rows(4, 300, 50), nn.Parameter(by_place(6, 300))
    whole = copy.deepcopy(weight)
    assert whole.t().is_contiguous()
    rows_linear(rows, whole, None).square().sum().backward()
    rows_linear(rows, weight, None, factored=True).square().sum().backward()
    assert weight.grad is None
    expected = weight.detach() - 0.1 * whole.grad
    weight.factors.add_to_(weight, -0.1)
    assert torch.allclose(weight, expected, atol=1e-6)


def test_a_place_that_is_off_by_one_is_seen() -> None:
    torch.manual_seed(0)
    rows, weight = random_rows(4, 300, 50), by_place(6, 300)
    wrong = SelectedRows(rows.values, (rows.places + 1).clamp(max=299), rows.counts, 300)
    assert not torch.allclose(rows_linear(wrong, weight, None), F.linear(rows.dense(), weight), atol=1e-2)


@pytest.mark.parametrize("numel", [1, 2, 63, 64, 65, 1000, 20_000])
@pytest.mark.parametrize("keep", [0.15, 0.999, 1.0])
@pytest.mark.parametrize("kind", ["none", "power", "scale", "scale+power", "std"])
def test_selected_rows_are_the_dense_blocks(numel: int, keep: float, kind: str) -> None:
    torch.manual_seed(numel)
    raw = torch.randn(6, numel) * torch.rand(numel)
    raw[2] = 0
    raw[3, : numel // 2] = 1.0
    normaliser = Normaliser(kind)
    normaliser.update("w", raw)
    normaliser.finish()
    size = kept_numbers(numel, keep)
    found = SelectedRows(
        torch.empty(6, size), torch.empty(6, size, dtype=torch.int32), torch.empty(6, dtype=torch.int64), numel
    )
    select_and_normalise_into(raw, keep, normaliser, "w", found.values, found.places, found.counts)
    assert torch.equal(found.dense(), select_and_normalise_(raw.clone(), keep, normaliser, "w"))


def test_what_is_not_a_number_is_not_kept() -> None:
    raw = torch.full((1, 200), torch.nan)
    raw[0, ::2] = torch.arange(100.0)
    raw[0, 7] = torch.inf
    size = kept_numbers(200, 0.9)
    values, places = torch.empty(1, size), torch.empty(1, size, dtype=torch.int32)
    counts = torch.empty(1, dtype=torch.int64)
    select_and_normalise_into(raw, 0.9, Normaliser("none"), "w", values, places, counts)
    kept = values[0, : counts[0]]
    assert not bool(kept.isnan().any())
    assert bool(kept.isinf().any())


def test_a_space_gives_the_same_blocks_both_ways() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 3)
    )
    x, labels = torch.randn(7, 1, 8, 8), torch.arange(7) % 3
    space = GradientSpace(model, x, weight_decay=5e-4).fit([(x, labels)])
    assert space.selects_rows
    for given_labels in (labels, "all"):
        dense = [block.clone() for block in space(x, given_labels)]
        for block, short in zip(dense, space.selected(x, given_labels), strict=True):
            assert torch.equal(short.dense(), block)
    assert [len(block) for block in space.selected(x[:0], "all")] == [0, 0, 0]


def test_masks_are_ones() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 3))
    x = torch.randn(4, 1, 6, 6)
    space = GradientSpace(model, x, normalise="mask")
    for block, short in zip([b.float().clone() for b in space(x, "all")], space.selected(x, "all"), strict=True):
        assert torch.equal(short.dense(), block)


def test_ranges_and_tiles_cover_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows_module._ranges(1) == 1
    assert rows_module._ranges(rows_module._RANGE) == 1
    assert rows_module._ranges(rows_module._RANGE + 1) == 2
