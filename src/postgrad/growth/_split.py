"""Sharing a weight between the replicas of a unit so that the shares sum to it exactly, in its own precision."""

from __future__ import annotations

import torch
from torch import Tensor

_DIGITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}


def shared(weight: Tensor, dim: int, index: Tensor, share: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Columns of a weight for replicated units: those of the replicas of a unit sum to the unit's own.

    >>> wide = shared(weight, 1, torch.tensor([0, 1, 0]), torch.tensor([0.4, 1.0, 0.6]), 0.1, generator)
    >>> torch.equal(wide[:, 0] + wide[:, 2], weight[:, 0])
    True

    `index` (new size,) is the unit that each column comes from, its first `weight.shape[dim]` units being those
    themselves or any; `share` (new size,) sums to 1 over the replicas of a unit. `noise` is the standard deviation of
    what is added to the shares, weight by weight, relative to the weight: what the replicas get sums to zero. All
    shares but the first of a unit's are rounded to the spacing of floating-point numbers at the weight itself, so that
    the first, which is what is left, needs no rounding either.
    """
    old = weight.detach().double()
    grid = _spacing(old, _DIGITS[weight.dtype])
    shape = [1] * old.ndim
    shape[dim] = len(index)
    relative = share.double().reshape(shape).expand(*old.shape[:dim], len(index), *old.shape[dim + 1 :])
    alone = torch.bincount(index, minlength=old.shape[dim])[index] == 1
    if noise and not bool(alone.all()):
        drawn = torch.randn(relative.shape, generator=generator, dtype=torch.float64).to(old.device)
        relative = (relative + noise * drawn.masked_fill(alone.reshape(shape), 0)).clamp(-0.9, 1.9)
    wide_grid = grid.index_select(dim, index)
    pieces = (old.index_select(dim, index) * relative / wide_grid).round() * wide_grid
    first = _first_of_each(index, old.shape[dim])
    pieces.index_copy_(dim, first, torch.zeros_like(old))
    rest = old - torch.zeros_like(old).index_add_(dim, index, pieces)
    pieces.index_copy_(dim, first, rest)
    return _representable(pieces, old, dim, index, first, weight.dtype).to(weight.dtype)


def _spacing(weight: Tensor, digits: int) -> Tensor:
    _, exponent = torch.frexp(weight)
    return torch.ldexp(torch.ones_like(weight), (exponent - digits).clamp(min=-1000))


def _first_of_each(index: Tensor, count: int) -> Tensor:
    """The first new unit that comes from each old one."""
    first = torch.full((count,), len(index), dtype=torch.int64, device=index.device)
    return first.scatter_reduce_(0, index, torch.arange(len(index), device=index.device), "amin")


def _representable(pieces: Tensor, old: Tensor, dim: int, index: Tensor, first: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a share would be rounded after all (next to the smallest numbers), the first replica has the weight."""
    rounded = (pieces.to(dtype).double() != pieces).double()
    bad = torch.zeros_like(old).index_add_(dim, index, rounded) > 0
    if not bool(bad.any()):
        return pieces
    whole = torch.zeros_like(pieces).index_copy_(dim, first, old)
    return torch.where(bad.index_select(dim, index), whole, pieces)
