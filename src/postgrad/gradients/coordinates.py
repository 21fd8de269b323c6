"""Chosen coordinates of gradients, computed alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from postgrad.errors import UserError
from postgrad.gradients.engine import Block, GradientEngine, Labels
from postgrad.gradients.factors import Factor
from postgrad.gradients.scratch import Scratch

_DENSE_SHARE = 1 / 16
"""From this share of a layer's rows × columns on, multiplying them all is faster than gathering the chosen pairs."""
_NUMBERS_AT_ONCE = 1 << 21


class CoordinateGradients:
    """Rows of `count` numbers: of all layers together, the coordinates whose gradients are largest on average.

    >>> engine = GradientEngine(model, images[:3], parameters=weight_names(model))
    >>> coordinates = CoordinateGradients(engine, count=20_000)
    >>> coordinates.locate((images, labels) for images, labels in batches)
    >>> for name, rows in coordinates.gradients(images, labels):
    ...     print(name, rows.shape)          # (N, coordinates in this layer), a buffer that the next call overwrites

    `locate` adds up |g| over whole gradients, as many at a time as the engine's memory allows. After it only the chosen
    entries are computed, each as a sum over places of what came back to its row times what its column read; a layer
    without any is left out. Raises `UserError` for a layer that is neither linear nor a convolution, and for gradients
    before `locate`.
    """

    def __init__(self, engine: GradientEngine, count: int) -> None:
        engine.refuse_unfactored("coordinates=")
        self.engine = engine
        self.count = min(count, sum(block.numel for block in engine.blocks))
        self.blocks: tuple[Block, ...] = ()
        self._chosen: dict[str, _Chosen] = {}
        self._scratch = Scratch()

    @property
    def num_classes(self) -> int:
        return self.engine.num_classes

    def row_numbers(self) -> int:
        """How many numbers the gradient of one image and label has here."""
        return self.count

    def locate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> CoordinateGradients:
        """Find the coordinates of largest mean |g| over (images, labels)."""
        sums = {block.name: self.engine.like.new_zeros(block.numel) for block in self.engine.blocks}
        beside = 2 * self.engine.row_numbers() * self.engine.like.element_size()
        chunk = self.engine.images_per_chunk(torch.empty(0), beside=beside)
        for images, labels in batches:
            for some, under in zip(images.split(chunk), labels.split(chunk), strict=True):
                for name, rows in self.engine.gradients(some, under):
                    sums[name] += rows.abs_().sum(0)
        self.engine.release()
        best = {name: total.topk(min(self.count, len(total))) for name, total in sums.items()}
        least = torch.cat([found.values for found in best.values()]).topk(self.count).values[-1]
        left = self.count - sum(int((found.values > least).sum()) for found in best.values())
        chosen: dict[str, Tensor] = {}
        for name, found in best.items():
            equal = found.indices[found.values == least][:left]
            left -= len(equal)
            chosen[name] = torch.cat([found.indices[found.values > least], equal]).sort().values
        self._choose(chosen)
        return self

    @torch.no_grad()
    def gradients(self, x: Tensor, labels: Labels) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, rows (R, coordinates)) for each block, as `GradientEngine.gradients` does."""
        if not self._chosen:
            raise UserError("the coordinates are not chosen yet; locate them on some images first")
        count = len(x) * (self.num_classes if isinstance(labels, str) else 1)
        rows = {
            block.name: self._scratch(block.name, (count, block.numel), like=self.engine.like) for block in self.blocks
        }
        done = 0
        for some, part in self.engine.factors(x, labels):
            for name, block in rows.items():
                target = block[done : done + some].zero_()
                for factor in part[name]:
                    target += self._chosen[name].entries(factor)
            done += some
        return iter(rows.items())

    def project(self, name: str, weight: Tensor) -> Tensor:
        """The chosen entries of a tensor of the shape of a block's weight: (1, coordinates)."""
        return weight.detach().flatten()[self._chosen[name].places].unsqueeze(0)

    def state_dict(self) -> dict[str, Tensor]:
        """The chosen places in each flat block: `NAME.places`."""
        return {f"{name}.places": chosen.places for name, chosen in self._chosen.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take places that `state_dict` gave."""
        self._choose({key.removesuffix(".places"): places for key, places in state.items() if key.endswith(".places")})

    def _choose(self, places: Mapping[str, Tensor]) -> None:
        own = {block.name: block for block in self.engine.blocks}
        self._chosen = {
            name: _Chosen.of(places[name].to(self.engine.like.device), math.prod(own[name].shape[1:]))
            for name in own
            if name in places and len(places[name])
        }
        self.blocks = tuple(Block(name, (len(c.places),), len(c.places)) for name, c in self._chosen.items())


@dataclass(frozen=True)
class _Chosen:
    """The chosen places of one layer's (O, K) gradient, and the distinct rows and columns that they lie in."""

    places: Tensor
    rows: Tensor
    columns: Tensor
    distinct_rows: Tensor
    distinct_columns: Tensor
    in_submatrix: Tensor

    @classmethod
    def of(cls, places: Tensor, width: int) -> _Chosen:
        rows, columns = places // width, places % width
        distinct_rows, row = rows.unique(return_inverse=True)
        distinct_columns, column = columns.unique(return_inverse=True)
        return cls(places, rows, columns, distinct_rows, distinct_columns, row * len(distinct_columns) + column)

    def entries(self, factor: Factor) -> Tensor:
        """The chosen entries (N·L, entries) of one call's share."""
        images, labels, groups, _, places = factor.delta.shape
        pairs = len(self.distinct_rows) * len(self.distinct_columns)
        if groups == 1 and len(self.places) >= _DENSE_SHARE * pairs:
            return torch.cat([self._of_submatrix(some) for some in factor.split(_NUMBERS_AT_ONCE // (labels * pairs))])
        step = max(1, _NUMBERS_AT_ONCE // (images * labels * places))
        parts = [factor.entries(*some) for some in zip(self.rows.split(step), self.columns.split(step), strict=True)]
        return torch.cat(parts, dim=2).flatten(0, 1)

    def _of_submatrix(self, factor: Factor) -> Tensor:
        whole = factor.submatrix(self.distinct_rows, self.distinct_columns)
        return whole.flatten(0, 1).flatten(1)[:, self.in_submatrix]
