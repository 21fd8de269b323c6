"""How far tensors are from what they must be, measured by the spread of what they were."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

Expected = Callable[[str, Tensor], Tensor | None]
"""What a module of that name must give now for a tensor that it gave before; None is not to be compared."""

_FLOOR = 1e-3
"""Of the usual spread: gradients that are zero but for rounding, as that of a bias before a normalisation is, can come
to 1e-12 of what the others are."""


class Comparison:
    """Compares what modules give, as it comes, with what they gave before.

    >>> seen = Comparison(witness.intermediates, expected=None)
    >>> observe(model, arguments, seen)
    >>> seen.worst()
    (3.1e-15, ', layer1.0.conv1')
    """

    def __init__(self, before: Mapping[str, list[list[Tensor]]], expected: Expected | None) -> None:
        self.before = before
        self.expected = expected or (lambda _name, old: old)
        self.floor = floor(tensor for calls in before.values() for call in calls for tensor in call)
        self.errors: dict[str, list[float]] = {}

    def __call__(self, name: str, now: list[Tensor]) -> None:
        before, errors = self.before.get(name, []), self.errors.setdefault(name, [])
        if len(errors) < len(before):
            errors.append(self._error(name, before[len(errors)], now))

    def worst(self) -> tuple[float, str]:
        """The greatest error, and where; that of a call which is made no more is without bound."""
        for name, calls in self.before.items():
            for _ in calls:
                self(name, [])
        return max(((max(errors), f", {name}") for name, errors in self.errors.items() if errors), default=(0.0, ""))

    def _error(self, name: str, before: list[Tensor], now: list[Tensor]) -> float:
        wanted = [self.expected(name, each) for each in before]
        if len(wanted) != len(now):
            return math.inf if any(each is not None for each in wanted) else 0.0
        pairs = [(old, new) for old, new in zip(wanted, now, strict=True) if old is not None]
        return difference([old for old, _ in pairs], [new for _, new in pairs], self.floor)


def contract(old: Tensor, new: Tensor, shares: Sequence[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What a weight or a gradient must be, and what it is: summed over the replicas where these share it.

    `shares` has for each dimension that was resized, in the words of `postgrad.growth.moves`, the index and the share
    of the old unit that each new one has. New units that come from none are left out.
    """
    old = old.cpu()
    if not old.dim():  # one number for all, as a branch's share of a scalar's gradient
        old, new = old.reshape(1), new.reshape(1)
    for dim, index, share in shares:
        kept = (index >= 0).nonzero().flatten().cpu()
        index, share = index.cpu()[kept], share.cpu()[kept].double()
        new = new.index_select(dim, kept)
        if torch.equal(share, torch.ones_like(share)):
            old = old.index_select(dim, index)
            continue
        size = [*new.shape[:dim], old.shape[dim], *new.shape[dim + 1 :]]
        new = new.new_zeros(size).index_add(dim, index, new)
        whole = new.new_zeros(old.shape[dim]).index_add(0, index, share)
        old = old * whole.reshape(-1, *[1] * (old.dim() - 1 - dim))
    return old, new


def difference(before: Sequence[Tensor], now: Sequence[Tensor], floor: float = 0.0) -> float:
    """The greatest difference over the spread of the tensor before; without bound where shapes or numbers differ.

    The spread is the standard deviation, so that an output may not hide behind its mean. With a `floor`, which layers'
    outputs and gradients have, it is the root of the mean square: many of these are nearly one number.
    """
    if [each.shape for each in before] != [each.shape for each in now]:
        return math.inf
    pairs = zip(before, now, strict=True)
    return max((_error(old.double(), new.detach().double(), floor) for old, new in pairs), default=0.0)


def _error(old: Tensor, new: Tensor, floor: float) -> float:
    same = (old == new) | (old.isnan() & new.isnan())  # infinities too, as masks have them
    error = torch.where(same, 0.0, (old - new).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    return error.max().item() / max(_spread(old, about_zero=floor > 0), floor) if error.numel() else 0.0


def _spread(tensor: Tensor, about_zero: bool = False) -> float:
    """The standard deviation, or the root mean square; the greatest magnitude where that is 0, else 1."""
    numbers = tensor.double()
    if numbers.numel() and not math.isfinite(numbers.sum()):  # a mask, or what it has made
        numbers = numbers[numbers.isfinite()]
    if not numbers.numel():
        return 1.0
    spread = numbers.square().mean().sqrt() if about_zero else numbers.std(correction=0)
    return spread.item() or numbers.abs().max().item() or 1.0


def floor(tensors: Iterable[Tensor]) -> float:
    """The least spread to measure by: what is zero but for rounding is not measured by its own."""
    spreads = [_spread(each) for each in tensors]
    return _FLOOR * statistics.median(spreads) if spreads else 0.0
