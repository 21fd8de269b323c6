"""How a tensor of a grown network was made from the one whose place it took."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Along:
    """How one dimension of a tensor was made.

    `index` (new size,) int64 is the old unit that each new unit comes from, -1 where it comes from none. `value` (new
    size,) float64 is the share of the old unit's weight that the new one has, `gradient` that of its gradient: what
    leads into the replicas of a unit keeps its value and shares the gradient; what leads out of them, the reverse.
    """

    dim: int
    index: Tensor
    value: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Move:
    """A parameter or buffer that took another's place; dimensions that `along` does not name are as they were."""

    old: Tensor
    new: Tensor
    along: tuple[Along, ...]


def memory_format_of(weight: Tensor) -> torch.memory_format:
    """The layout that what takes a weight's place shall have: channels last where it has that."""
    if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format
