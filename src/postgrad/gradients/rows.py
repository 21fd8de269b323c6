"""Selected gradients as short rows: the kept values and their places, and their product with a matrix."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from postgrad.gradients._threads import in_ranges
from postgrad.gradients._vector import compiled, sum_of_rows

_RANGE = 2048
"""Coordinates whose share of a product one thread adds up; fixed, so that the sums do not depend on the threads."""
_TILE = 512
"""Coordinates whose weights stay in a core's cache while all rows read them."""


class SelectedRows:
    """A block of R gradients of `numel` numbers, of which only those kept are stored, in ascending places.

    `values` and `places` are (R, K), of which row r uses the first `counts[r]`. The arrays are buffers of whoever made
    them and are valid until the next rows are asked for.
    """

    def __init__(self, values: Tensor, places: Tensor, counts: Tensor, numel: int) -> None:
        self.values, self.places, self.counts, self.numel = values, places, counts, numel

    def __len__(self) -> int:
        return len(self.counts)

    def dense(self) -> Tensor:
        """The rows (R, numel) with their zeros."""
        kept = torch.arange(self.values.shape[1]) < self.counts[:, None]
        rows = self.values.new_zeros(len(self), self.numel + 1)
        where = torch.where(kept, self.places.long(), self.numel)
        return rows.scatter_(1, where, torch.where(kept, self.values, 0))[:, : self.numel]


class Factors:
    """A matrix's gradient Σᵣ rowᵣ ⊗ deltaᵣ, left as its factors."""

    def __init__(self, rows: SelectedRows, delta: Tensor) -> None:
        self.rows, self.delta = rows, delta

    @torch.no_grad()
    def add_to_(self, weight: Tensor, scale: float) -> None:
        """weight (H, numel) += scale · gradient; the weight's transpose must be contiguous."""
        by_place = weight.detach().t()
        assert by_place.is_contiguous()
        in_ranges(
            _add_products,
            _ranges(self.rows.numel),
            *_arrays(self.rows),
            (scale * self.delta).contiguous().numpy(),
            by_place.numpy().reshape(-1),
        )


def rows_linear(rows: SelectedRows, weight: Tensor, bias: Tensor | None, *, factored: bool = False) -> Tensor:
    """`F.linear` of selected rows: (R, H) from a weight (H, numel) whose transpose is contiguous.

    >>> rows_linear(rows, weight, bias)                 # F.linear(rows.dense(), weight, bias)

    With `factored` the backward pass leaves the weight's gradient in `weight.factors`, a `Factors`, instead of making
    it whole.
    """
    product = cast(Tensor, _RowsLinear.apply(weight, rows, factored))
    return product if bias is None else product + bias


class _RowsLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: SelectedRows, factored: bool) -> Tensor:
        ctx.weight, ctx.rows, ctx.factored = weight, rows, factored
        by_place = weight.detach().t().contiguous()
        partial = np.zeros((_ranges(rows.numel), len(rows), len(weight)), np.float32)
        in_ranges(_products, len(partial), *_arrays(rows), by_place.numpy().reshape(-1), partial)
        return torch.from_numpy(partial.sum(0))  # by numpy, which leaves no idle thread spinning

    @staticmethod
    def backward(ctx: Any, *deltas: Any) -> tuple[Tensor | None, None, None]:
        factors = Factors(ctx.rows, deltas[0])
        if ctx.factored:
            ctx.weight.factors = factors
            return None, None, None
        gradient = torch.zeros(ctx.rows.numel, len(ctx.weight)).t()
        factors.add_to_(gradient, 1.0)
        return gradient, None, None


def _ranges(numel: int) -> int:
    return -(-numel // _RANGE)


def _arrays(rows: SelectedRows) -> tuple[Any, ...]:
    return rows.values.numpy(), rows.places.numpy(), rows.counts.numpy(), rows.numel


@compiled()
def _first_from(places, count, place):  # type: ignore[no-untyped-def]
    """How many of the first `count` ascending places are below `place`."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if places[middle] < place:
            low = middle + 1
        else:
            high = middle
    return low


@compiled()
def _products(values, places, counts, numel, weight, partial, first, last):  # type: ignore[no-untyped-def]
    """For ranges `first` to `last` of coordinates: `partial[range]` (R, H) = rows × weight (numel, H) within it."""
    _, rows, hidden = partial.shape
    position = np.empty(rows, np.int64)
    product = np.empty(hidden, np.float32)
    for number in range(first, last):
        start, stop = number * _RANGE, min((number + 1) * _RANGE, numel)
        sums = partial[number]
        for row in range(rows):
            position[row] = _first_from(places[row], counts[row], start)
        for tile in range(start, stop, _TILE):
            end = min(tile + _TILE, stop)
            for row in range(rows):
                begin = position[row]
                over = begin
                while over < counts[row] and places[row, over] < end:
                    over += 1
                position[row] = over
                sum_of_rows(product, 0, hidden, weight, 0, hidden, places[row], values[row], begin, over)
                for i in range(hidden):
                    sums[row, i] += product[i]


@compiled()
def _add_products(values, places, counts, numel, delta, weight, first, last):  # type: ignore[no-untyped-def]
    """For ranges of coordinates: weight (numel, H) += Σ over rows of value × delta (R, H).

    The entries of a tile are brought into the order of their places first (a counting sort), so that each line of the
    weight is read and written once.
    """
    rows, hidden = delta.shape
    flat = delta.reshape(-1)
    position = np.empty(rows, np.int64)
    starts = np.empty(_TILE + 1, np.int64)
    sorted_values = np.empty(rows * _TILE, np.float32)
    sorted_rows = np.empty(rows * _TILE, np.int32)
    product = np.empty(hidden, np.float32)
    for number in range(first, last):
        start, stop = number * _RANGE, min((number + 1) * _RANGE, numel)
        for row in range(rows):
            position[row] = _first_from(places[row], counts[row], start)
        for tile in range(start, stop, _TILE):
            end = min(tile + _TILE, stop)
            starts[:] = 0
            for row in range(rows):
                i = position[row]
                while i < counts[row] and places[row, i] < end:
                    starts[places[row, i] - tile + 1] += 1
                    i += 1
            for i in range(_TILE):
                starts[i + 1] += starts[i]
            for row in range(rows):
                i = position[row]
                while i < counts[row] and places[row, i] < end:
                    at = starts[places[row, i] - tile]
                    starts[places[row, i] - tile] = at + 1
                    sorted_values[at] = values[row, i]
                    sorted_rows[at] = row
                    i += 1
                position[row] = i
            begin = np.int64(0)
            for place in range(tile, end):
                over = starts[place - tile]  # by now the start of the next place's entries
                if over > begin:
                    sum_of_rows(product, 0, hidden, flat, 0, hidden, sorted_rows, sorted_values, begin, over)
                    line = weight[place * hidden : (place + 1) * hidden]
                    for i in range(hidden):
                        line[i] += product[i]
                begin = over
