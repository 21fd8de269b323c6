"""How a tensor of a grown network was made from the one whose place it took."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Along:
    """How one dimension of a tensor was made.

    `index` (new size,) int64 is the old unit that each new unit comes from, -1 where it comes from none; `gradient`
    (new size,) float64 is the share of that old unit's gradient that reaches the new one: the split of a unit between
    its replicas for what leads into them, 1 for what leads out of them.
    """

    dim: int
    index: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Move:
    """A parameter or buffer that took another's place; dimensions that `along` does not name are as they were."""

    old: Tensor
    new: Tensor
    along: tuple[Along, ...]
