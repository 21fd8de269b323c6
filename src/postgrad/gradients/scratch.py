"""Working tensors whose memory is kept from one use to the next."""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable, Sequence

from torch import Tensor


class Scratch:
    """Gives tensors for a key in memory that it keeps: filling fresh pages costs more than the work on small tensors.

    Each thread gets tensors of its own.

    >>> scratch = Scratch()
    >>> scratch("patches", (25, 1600, 121), like=images)     # uninitialised; valid until the key is asked for again
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, Tensor] = {}

    def __call__(self, key: Hashable, shape: Sequence[int], *, like: Tensor) -> Tensor:
        numbers = math.prod(shape)
        key = (threading.get_ident(), key)
        kept = self._kept.get(key)
        if kept is None or len(kept) < numbers or kept.dtype != like.dtype or kept.device != like.device:
            kept = self._kept[key] = like.new_empty(numbers)
        return kept[:numbers].view(shape)
