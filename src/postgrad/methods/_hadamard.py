"""Products with Sylvester's Hadamard matrices without the matrices: O(N log N), or small products of their factors.

H of 2^p is a Kronecker product of smaller ones, so that a product with it is one with each factor in turn: a few matrix
products with at most 64 × 64 numbers, which every device, compiler and exporter knows. On a CPU, where these wait for
memory most of the time, many blocks at once go through a compiled transform instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from postgrad.gradients._threads import in_ranges
from postgrad.methods import _hadamard_kernels as kernels

_LARGEST = 6
"""Factors up to 2⁶: larger ones cost more arithmetic, smaller ones more passes over the memory."""


_IN_CACHE = 1 << 18
"""So many numbers at once on a CPU: what is between the factors stays in its cache then."""


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


def shape_of_signs(features: int, classes: int) -> tuple[int, int, int]:
    """(groups, N, lanes): as many blocks of N outputs, a power of two, as C needs; many of them stand side by side."""
    size = power_of_two(features)
    blocks = -(-classes // size)
    lanes = kernels.LANES if blocks >= kernels.LANES else 1
    return -(-blocks // lanes), size, lanes


def sylvester() -> Tensor:
    """The matrix (64, 64) whose upper left corners are the factors of every transform."""
    matrix = torch.ones(1, 1, device="cpu")
    for _ in range(_LARGEST):
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix


def hadamard_transform(x: Tensor, factors: Tensor) -> Tensor:
    """H · x along the last dimension but one, whose size is a power of two.

    >>> hadamard_transform(torch.eye(4), sylvester())            # scipy.linalg.hadamard(4)

    x (…, N, L) of any floating point type on any device; `factors` is `sylvester()` there. H is symmetric, so that the
    gradient is the transform of the gradient; autograd finds that, and keeps nothing of x for it.
    """
    size, lanes = x.shape[-2:]
    exponent = size.bit_length() - 1
    steps = -(-exponent // _LARGEST)
    y, after = x, size
    for step in range(steps):
        side = 1 << (exponent // steps + (step < exponent % steps))
        factor = factors[:side, :side].to(x.dtype)
        after //= side
        # Without lanes the last factor is one large product; several small ones would be products with single columns.
        single = after * lanes == 1
        y = y.reshape(-1, side) @ factor if single else factor @ y.reshape(-1, side, after * lanes)
    return y.reshape(x.shape)


def stacked_product(x: Tensor, signs: Tensor, bias: Tensor, factors: Tensor) -> Tensor:
    """bias + the first C outputs of H · (signs · x), block after block.

    >>> stacked_product(x, signs, bias, sylvester()).shape       # x (B, N), signs (G, N, L) of ±1, bias (C)
    (B, C)

    Output c belongs to row i and block (g, l) where c = (g · N + i) · L + l.
    """
    if _has_kernel(x, signs):
        # In half precision a CPU is faster in float32, which rounds only once, too.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        out: Tensor = _Stacked.apply(wide, signs, bias.to(wide.dtype))
        return out.to(x.dtype)
    return _by_factors(x, signs, bias, factors)


def _by_factors(x: Tensor, signs: Tensor, bias: Tensor, factors: Tensor) -> Tensor:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.device.type != "cpu":
        return _all_by_factors(x, signs, bias, factors)
    parts = x.split(max(1, _IN_CACHE // signs.numel()))
    products = [_all_by_factors(part, signs, bias, factors) for part in parts]
    return torch.cat(products) if len(products) > 1 else products[0]


def _all_by_factors(x: Tensor, signs: Tensor, bias: Tensor, factors: Tensor) -> Tensor:
    groups, size, lanes = signs.shape
    tiles = x[:, None, :, None] * signs.to(x.dtype)
    if groups * lanes == 1 and (needed := power_of_two(len(bias))) < size:
        # The first rows of H repeat with their period: adding up the periods first leaves a small transform.
        tiles = tiles.reshape(-1, 1, size // needed, needed, 1).sum(2)
    return hadamard_transform(tiles, factors).flatten(1)[:, : len(bias)] + bias


def _has_kernel(x: Tensor, signs: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return type(x) is Tensor and x.device.type == "cpu" and signs.shape[-1] == kernels.LANES


class _Stacked(torch.autograd.Function):
    """`stacked_product` by the compiled transform. It is linear in x and bias, so that all derivatives are products."""

    @staticmethod
    def forward(x: Tensor, signs: Tensor, bias: Tensor) -> Tensor:
        out = x.new_empty(len(x), len(bias))
        if out.numel():
            arrays = [_array(each) for each in (x, signs.flatten(1), bias, out)]
            in_ranges(kernels.stacked, len(signs) * len(x), *arrays)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (signs,) = ctx.saved_tensors
        (gradient,) = gradients
        for_x = _Adjoint.apply(gradient, signs) if ctx.needs_input_grad[0] else None
        return for_x, None, gradient.sum(0) if ctx.needs_input_grad[2] else None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        (signs,) = ctx.saved_tensors
        x, _, bias = tangents
        assert x is not None
        assert bias is not None
        return _Stacked.apply(x, signs, bias)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, signs: Tensor, bias: Tensor) -> tuple[Tensor, int]:
        rows = _rows(x, in_dims[0], info.batch_size)
        if in_dims[2] is None:
            return _Stacked.apply(rows.flatten(0, 1), signs, bias).unflatten(0, rows.shape[:2]), 0
        shifts = bias.movedim(in_dims[2], 0)
        out = _Stacked.apply(rows.flatten(0, 1), signs, torch.zeros_like(shifts[0]))
        return out.unflatten(0, rows.shape[:2]) + shifts[:, None], 0


class _Adjoint(torch.autograd.Function):
    """The product with the transposed matrix: what `_Stacked` sends back to x."""

    @staticmethod
    def forward(gradient: Tensor, signs: Tensor) -> Tensor:
        out = gradient.new_empty(len(gradient), signs.shape[1])
        if out.numel():
            in_ranges(kernels.adjoint, len(gradient), *(_array(each) for each in (gradient, signs.flatten(1), out)))
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])
        ctx.classes = inputs[0].shape[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (signs,) = ctx.saved_tensors
        return _Stacked.apply(gradients[0], signs, gradients[0].new_zeros(ctx.classes)), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return _Adjoint.apply(tangents[0], ctx.saved_tensors[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], gradient: Tensor, signs: Tensor) -> tuple[Tensor, int]:
        rows = _rows(gradient, in_dims[0], info.batch_size)
        return _Adjoint.apply(rows.flatten(0, 1), signs).unflatten(0, rows.shape[:2]), 0


def _rows(x: Tensor, batch_dim: int | None, size: int) -> Tensor:
    """x with the dimension that is mapped over in front."""
    return x.expand(size, *x.shape) if batch_dim is None else x.movedim(batch_dim, 0)


def _array(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()
