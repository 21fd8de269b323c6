"""The seven normalisations against their formulas, their streaming statistics, and the fused form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from postgrad.errors import UserError
from postgrad.gradients import KINDS, Normaliser, select_, select_and_normalise_
from postgrad.gradients.normalise import Extremes, Moments, power_, scale_, unit_length_


def gradients(rows: int, numbers: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, numbers, generator=generator) * torch.randn(rows, numbers, generator=generator).exp()


def fitted(kind: str, exponent: float, *batches: Tensor) -> Normaliser:
    normaliser = Normaliser(kind, exponent)
    for batch in batches:
        normaliser.update("block", batch)
    return normaliser.finish()


def by_formula(kind: str, exponent: float, seen: np.ndarray, rows: np.ndarray) -> np.ndarray:
    n = rows.astype(np.float64)
    if kind.startswith("scale"):
        width = seen.max(0) - seen.min(0)
        n = (n - seen.min(0)) / np.where(width > 0, width, 1)
    elif kind.startswith("std"):
        deviation = seen.std(0)
        n = (n - seen.mean(0)) / np.where(deviation > 0, deviation, 1)
    elif kind == "fisher":
        squares = (seen.astype(np.float64) ** 2).mean(0)
        n = n / np.sqrt(squares + 0.01 * squares.mean())
    n = np.where(rows == 0, 0, n)
    if kind == "std+l2":
        length = np.linalg.norm(n, axis=1, keepdims=True)
        n = n / np.where(length > 0, length, 1)
    return np.sign(n) * np.abs(n) ** exponent if kind.endswith("power") else n


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exponent", [0.5, 0.25, 0.125, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_its_formula(kind: str, exponent: float, dtype: torch.dtype) -> None:
    seen = [select_(gradients(5, 40, seed).to(dtype), 0.3) for seed in (0, 1)]
    for batch in seen:
        batch[:, 7] = 0.25  # never varies
    rows = select_(gradients(6, 40, 2).to(dtype), 0.3)
    rows[3] = 0
    found = fitted(kind, exponent, *seen).apply_("block", rows.clone())
    expected = by_formula(kind, exponent, torch.cat(seen).double().numpy(), rows.numpy())
    assert np.allclose(found.numpy(), expected, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-6)
    assert found.dtype == dtype


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_what_selection_zeroed_stays_zero(kind: str) -> None:
    rows = select_(gradients(6, 50, 0), 0.15)
    found = fitted(kind, 0.5, select_(gradients(9, 50, 1), 0.15)).apply_("block", rows.clone())
    assert torch.equal(found == 0, rows == 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exponent", [0.5, 0.25, 0.125, 0.3, 1.0])
@pytest.mark.parametrize("keep", [0.15, None])
@pytest.mark.parametrize("numbers", [1, 33, 20_000])
def test_fused_equals_one_after_the_other(kind: str, exponent: float, keep: float | None, numbers: int) -> None:
    """Bit for bit but for the square roots, each of which torch may round to the other neighbour."""
    seen = select_(gradients(8, numbers, 0), 0.15)
    normaliser = fitted(kind, exponent, seen)
    rows = gradients(5, numbers, 1)
    apart = normaliser.apply_("block", rows.clone() if keep is None else select_(rows.clone(), keep))
    fused = select_and_normalise_(rows.clone(), keep, normaliser, "block")
    assert torch.equal(fused == 0, apart == 0)
    if exponent in (0.3, 1.0) or "power" not in kind:
        assert torch.equal(fused, apart)
    else:
        assert torch.allclose(fused, apart, rtol=2.4e-7, atol=0)


def test_fused_square_roots_are_correctly_rounded() -> None:
    rows = gradients(4, 20_000, 0)
    found = select_and_normalise_(rows.clone(), None, Normaliser("power", 0.5), "block")
    exact = np.sqrt(np.abs(rows.double().numpy())).astype(np.float32) * np.sign(rows.numpy())
    assert np.array_equal(found.numpy(), exact)


def test_statistics_in_batches_are_those_of_all() -> None:
    rows = gradients(30, 20, 0).double() + 1e6
    moments = Moments.empty(20, rows)
    for batch in rows.split([1, 0, 12, 17]):
        moments.update(batch)
    mean, deviation = moments.offset_and_width()
    assert torch.allclose(mean, rows.mean(0), rtol=1e-14)
    assert torch.allclose(deviation, rows.std(0, correction=0), rtol=1e-9)


@pytest.mark.parametrize("numbers", [1, 1023, 5_000])
def test_compiled_statistics_are_the_plain_ones(numbers: int) -> None:
    batches = gradients(40, numbers, 0).split([1, 9, 30])
    compiled, plain = Extremes.empty(numbers, batches[0]), Extremes.empty(numbers, batches[0].double())
    moments, plain_moments = Moments.empty(numbers, batches[0]), Moments.empty(numbers, batches[0])
    for batch in batches:
        untouched = batch.clone()
        compiled.update(batch)
        moments.update(batch)
        assert torch.equal(batch, untouched)
        plain.update(batch.double())
        plain_moments.update(batch.double())
    assert torch.equal(compiled.low.double(), plain.low)
    assert torch.equal(compiled.high.double(), plain.high)
    for found, expected in zip(moments.offset_and_width(), plain_moments.offset_and_width(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_state_travels() -> None:
    seen, rows = gradients(8, 30, 0), gradients(5, 30, 1)
    for kind in KINDS:
        normaliser = fitted(kind, 0.5, seen)
        other = Normaliser(kind, 0.5).load_state_dict(normaliser.state_dict())
        assert torch.equal(other.apply_("block", rows.clone()), normaliser.apply_("block", rows.clone()))
        assert bool(normaliser.state_dict()) == normaliser.needs_statistics


def test_it_can_be_fitted_again() -> None:
    normaliser = fitted("scale", 1.0, gradients(8, 30, 0))
    normaliser.update("block", gradients(8, 30, 1))
    assert torch.equal(
        normaliser.finish().state_dict()["block.width"],
        fitted("scale", 1.0, gradients(8, 30, 1)).state_dict()["block.width"],
    )


def test_no_rows() -> None:
    normaliser = fitted("scale+power", 0.5, gradients(8, 30, 0), torch.zeros(0, 30))
    assert select_and_normalise_(torch.zeros(0, 30), 0.15, normaliser, "block").shape == (0, 30)


def test_parts_by_hand() -> None:
    rows = torch.tensor([[0.0, 3.0], [-1.0, 0.0]])
    scaled = scale_(rows, torch.tensor([-1.0, 1.0]), torch.tensor([2.0, 4.0]))
    assert scaled.tolist() == [[0.0, 0.5], [0.0, 0.0]]
    assert power_(torch.tensor([-4.0, 9.0, 0.0]), 0.5).tolist() == [-2.0, 3.0, 0.0]
    assert power_(torch.tensor([-16.0]), 0.25).tolist() == [-2.0]
    assert unit_length_(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == [
        [0.6000000238418579, 0.800000011920929],
        [0, 0],
    ]


def test_what_makes_no_sense() -> None:
    with pytest.raises(UserError, match=r"unknown normalisation 'scal': did you mean 'scale'\?"):
        Normaliser("scal")
    with pytest.raises(UserError, match="exponent: expected a number above 0 and at most 1"):
        Normaliser("power", 0)
    with pytest.raises(UserError, match="no statistics of 'block'"):
        Normaliser("scale").apply_("block", torch.ones(2, 3))
