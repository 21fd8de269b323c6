"""Sharing a weight between the replicas of a unit so that the shares sum to it exactly, in its own precision."""

from __future__ import annotations

import torch
from torch import Tensor

_DIGITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}
_AT_ONCE = 2**18
"""Weights made at once, so that what is needed beside them, in float64, stays small."""


def shared(weight: Tensor, dim: int, index: Tensor, share: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Columns of a weight for replicated units: those of the replicas of a unit sum to the unit's own.

    >>> wide = shared(weight, 1, torch.tensor([0, 1, 0]), torch.tensor([0.4, 1.0, 0.6]), 0.1, generator)
    >>> torch.equal(wide[:, 0] + wide[:, 2], weight[:, 0])
    True

    `index` (new size,) is the unit that each column comes from, each unit at least once; `share` (new size,) sums to 1
    over the replicas of a unit. `noise` is the standard deviation of what is added to a share, weight by weight, as a
    part of that share; what the replicas of a unit get sums to zero. All shares but the first of a unit's lie between 0
    and 1 and are rounded to the spacing of floating-point numbers at the weight itself, so that the first, which is
    what is left, needs no rounding either.
    """
    first = _first_of_each(index, weight.shape[dim])
    more = torch.ones_like(index, dtype=torch.bool).index_fill_(0, first, False).nonzero().flatten()
    wide = weight.new_empty([*weight.shape[:dim], len(index), *weight.shape[dim + 1 :]])
    old, new = weight.detach().movedim(dim, 0), wide.movedim(dim, 0)
    step = max(1, _AT_ONCE * old.shape[1] // max(1, wide.numel())) if old.ndim > 1 else 1
    for start in range(0, old.shape[1] if old.ndim > 1 else 1, step):
        part = (slice(None), slice(start, start + step))[: old.ndim]
        rest, pieces = _shares_of(old[part], index[more], share[more], noise, generator)
        made = new[part]
        made.index_copy_(0, first, rest.to(wide.dtype).view(-1, *made.shape[1:]))
        made.index_copy_(0, more, pieces.to(wide.dtype).view(-1, *made.shape[1:]))
    return wide


def _shares_of(
    old: Tensor, unit: Tensor, share: Tensor, noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What is left of each unit (of the first dimension), and the pieces of it that further replicas get."""
    exact = old.double().reshape(len(old), -1)
    source = exact[unit]
    grid = _spacing(source, _DIGITS[old.dtype])
    drawn = torch.randn(source.shape, generator=generator, dtype=torch.float32).to(old.device)
    relative = share.double()[:, None] * drawn.double().mul_(noise).add_(1)
    pieces = relative.clamp_(0, 1).mul_(source).div_(grid).round_().mul_(grid)
    rest = exact.index_add(0, unit, pieces, alpha=-1)
    # A share next to the smallest numbers may be rounded after all, and so may a rest greater than the weight, of many
    # replicas: the first replica then has all of the weight.
    bad = _is_rounded(rest, old.dtype) | (rest.abs() > exact.abs())
    bad |= torch.zeros_like(bad, dtype=torch.int32).index_add_(0, unit, _is_rounded(pieces, old.dtype).int()) > 0
    if bool(bad.any()):
        pieces.masked_fill_(bad[unit], 0)
        rest = torch.where(bad, exact, rest)
    return rest, pieces


def _spacing(weight: Tensor, digits: int) -> Tensor:
    _, exponent = torch.frexp(weight)
    return torch.ldexp(torch.ones_like(weight), (exponent - digits).clamp_(min=-1000))


def _first_of_each(index: Tensor, count: int) -> Tensor:
    """The first new unit that comes from each old one."""
    first = torch.full((count,), len(index), dtype=torch.int64, device=index.device)
    return first.scatter_reduce_(0, index, torch.arange(len(index), device=index.device), "amin")


def _is_rounded(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    return numbers.to(dtype).double() != numbers
