"""Hadamard products without the matrix, against scipy's matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from postgrad.methods import _hadamard
from postgrad.methods._hadamard import hadamard_transform, shape_of_signs, stacked_product, sylvester

CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def matrix(size: int) -> Tensor:
    return torch.from_numpy(hadamard(size).astype(np.float64))


def random_signs(shape: tuple[int, int, int]) -> Tensor:
    return torch.randint(2, shape, dtype=torch.int8) * 2 - 1


def dense(x: Tensor, signs: Tensor, bias: Tensor) -> Tensor:
    """The product by the definition, in float64."""
    groups, size, lanes = signs.shape
    tiles = [matrix(size) @ (x.double()[:, :, None] * signs[group]) for group in range(groups)]
    return torch.cat([tile.reshape(len(x), size * lanes) for tile in tiles], 1)[:, : len(bias)] + bias.double()


@given(
    exponent=st.integers(0, 9),
    lanes=st.sampled_from([1, 3, 16]),
    rows=st.integers(0, 3),
    kind=st.sampled_from([*CLOSE]),
)
def test_the_transform_is_scipys_matrix(exponent: int, lanes: int, rows: int, kind: torch.dtype) -> None:
    size = 1 << exponent
    x = torch.randn(rows, size, lanes, dtype=torch.float64).to(kind)
    expected = matrix(size) @ x.double()
    found = hadamard_transform(x, sylvester())
    assert found.dtype == kind
    assert found.shape == x.shape
    assert torch.allclose(found.double() / size**0.5, expected / size**0.5, atol=10 * CLOSE[kind], rtol=0)


def test_long_rows_take_several_factors() -> None:
    size, places = 8192, [0, 1, 4097, 8191]
    found = hadamard_transform(torch.eye(size)[:, places], sylvester())  # columns of H
    expected = [[(-1.0) ** (row & place).bit_count() for place in places] for row in range(size)]
    assert torch.equal(found, torch.tensor(expected))


def test_another_order_of_rows_would_be_noticed() -> None:
    x = torch.randn(1, 64, 1)
    by_frequency = torch.tensor(
        sorted(range(64), key=lambda row: int((hadamard(64)[row][1:] != hadamard(64)[row][:-1]).sum()))
    )
    assert not torch.allclose(hadamard_transform(x, sylvester())[:, by_frequency].double(), matrix(64) @ x.double())


@given(
    features=st.integers(1, 200),
    classes=st.integers(1, 3000),
    batch=st.integers(0, 4),
    kind=st.sampled_from([*CLOSE]),
)
def test_the_stacked_product_is_that_of_its_matrix(features: int, classes: int, batch: int, kind: torch.dtype) -> None:
    signs = random_signs(shape_of_signs(features, classes))
    x = torch.randn(batch, signs.shape[1]).to(kind)
    bias = torch.randn(classes).to(kind)
    found = stacked_product(x, signs, bias, sylvester())
    assert (found.shape, found.dtype) == ((batch, classes), kind)
    scale = signs.shape[1] ** 0.5
    assert torch.allclose(
        found.double() / scale, dense(x, signs, bias) / scale, atol=10 * CLOSE[kind], rtol=CLOSE[kind]
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own use of it
@pytest.mark.parametrize("classes", [5, 8, 20, 128, 200])  # fewer than N, N, blocks in turn, and side by side
def test_derivatives_of_any_order(classes: int) -> None:
    signs = random_signs(shape_of_signs(8, classes))
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(classes, dtype=torch.float64, requires_grad=True)

    def product(x: Tensor, bias: Tensor) -> Tensor:
        return stacked_product(x, signs, bias, sylvester().double())

    assert gradcheck(product, (x, bias), check_forward_ad=True)
    assert gradgradcheck(lambda x, bias: product(x, bias).square(), (x, bias))


def test_a_wrong_adjoint_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets_the_signs(gradient: Tensor, signs: Tensor) -> Tensor:
        return _Adjoint.apply(gradient, torch.ones_like(signs))

    _Adjoint = _hadamard._Adjoint
    monkeypatch.setattr(_hadamard, "_Adjoint", type("Wrong", (), {"apply": staticmethod(forgets_the_signs)}))
    signs = random_signs(shape_of_signs(8, 200))
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        gradcheck(lambda x: stacked_product(x, signs, torch.zeros(200).double(), sylvester().double()), (x,))


@pytest.mark.parametrize("classes", [20, 200])
def test_it_can_be_mapped_over(classes: int) -> None:
    signs = random_signs(shape_of_signs(8, classes))
    x, biases = torch.randn(4, 3, 8), torch.randn(4, classes)

    def product(x: Tensor, bias: Tensor) -> Tensor:
        return stacked_product(x, signs, bias, sylvester())

    one_by_one = torch.stack([product(each, bias) for each, bias in zip(x, biases, strict=True)])
    assert torch.allclose(torch.vmap(product)(x, biases), one_by_one, atol=1e-5)
    same = torch.stack([product(each, biases[0]) for each in x])
    assert torch.allclose(torch.vmap(product, in_dims=(2, None))(x.permute(1, 2, 0), biases[0]), same, atol=1e-5)
    assert torch.allclose(torch.vmap(product, in_dims=(None, 0))(x[0], biases)[1], product(x[0], biases[1]), atol=1e-5)
    jacobians = torch.vmap(torch.func.jacrev(lambda row: product(row[None], biases[0])[0]))(x[:, 0])
    expected = dense(torch.eye(8), signs, torch.zeros(classes)).T.float()
    assert torch.allclose(jacobians, expected.expand(4, classes, 8), atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    signs, x = random_signs((3, 64, 16)), torch.randn(5, 64, requires_grad=True)
    bias = torch.randn(3000)
    expected = stacked_product(x, signs, bias, sylvester())
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        again = stacked_product(x, signs, bias, sylvester())
        assert torch.equal(again, expected)
        assert torch.equal(torch.autograd.grad(again.square().sum(), x)[0], gradient)
    finally:
        torch.set_num_threads(before)


def test_rows_that_do_not_lie_side_by_side() -> None:
    signs, bias = random_signs((2, 16, 16)), torch.randn(1000)[::2]
    x = torch.randn(16, 6).T[::2]
    assert not x.is_contiguous()
    assert torch.allclose(stacked_product(x, signs, bias, sylvester()).double(), dense(x, signs, bias), atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")
@pytest.mark.parametrize("classes", [20, 100, 3000])
@pytest.mark.parametrize("kind", [*CLOSE])
def test_a_gpu_gives_the_same(classes: int, kind: torch.dtype) -> None:
    signs = random_signs(shape_of_signs(64, classes))
    x, bias = torch.randn(5, 64).to(kind), torch.randn(classes).to(kind)
    found = stacked_product(x.cuda(), signs.cuda(), bias.cuda(), sylvester().cuda())
    assert torch.allclose(found.cpu().double(), dense(x, signs, bias), atol=80 * CLOSE[kind], rtol=CLOSE[kind])
