"""Gradients projected at random, layer by layer, without making them first."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from postgrad.gradients.engine import Block, GradientEngine, Labels
from postgrad.gradients.factors import Factor
from postgrad.gradients.scratch import Scratch


class ProjectedGradients:
    """Rows of about `size` numbers for each layer: P_O G P_Kᵀ in place of the layer's gradient matrix G (O, K).

    >>> engine = GradientEngine(model, images[:3], parameters=weight_names(model))
    >>> projected = ProjectedGradients(engine, size=4096)
    >>> for name, rows in projected.gradients(images, labels):
    ...     print(name, rows.shape)          # (N, about 4096), a buffer that the next call overwrites

    Both projections have entries ±1/√(their rows), drawn from `seed` and the layer's place, so that on average inner
    products of gradients are kept: E⟨P g, P h⟩ = ⟨g, h⟩. Since G is a sum of δ xᵀ over places, P_O is applied to δ and
    P_K to x (as a convolution, once for all labels), and G is never made. A layer of `size` numbers or fewer is left
    alone.

    Raises `UserError` for a layer that is neither linear nor a convolution. Source: the Kronecker-structured sketches
    of TRAK (arXiv:2303.14186) and LoGra (arXiv:2405.13954).
    """

    def __init__(self, engine: GradientEngine, size: int, *, seed: int = 0) -> None:
        engine.refuse_unfactored("project=")
        self.engine = engine
        self._sketches = {
            block.name: _Sketch.of(block, size, seed=(seed << 16) + number, like=engine.like)
            for number, block in enumerate(engine.blocks)
        }
        self.blocks = tuple(self._sketches[block.name].block for block in engine.blocks)
        self._scratch = Scratch()

    @property
    def num_classes(self) -> int:
        return self.engine.num_classes

    def row_numbers(self) -> int:
        """How many numbers the gradient of one image and label has here."""
        return sum(block.numel for block in self.blocks)

    @torch.no_grad()
    def gradients(self, x: Tensor, labels: Labels) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, rows (R, numel)) for each block, as `GradientEngine.gradients` does."""
        count = len(x) * (self.num_classes if isinstance(labels, str) else 1)
        rows = {
            block.name: self._scratch(block.name, (count, block.numel), like=self.engine.like) for block in self.blocks
        }
        done = 0
        for some, part in self.engine.factors(x, labels):
            for name, block in rows.items():
                target = block[done : done + some]
                target.copy_(self._sketches[name].project(part[name])) if part[name] else target.zero_()
            done += some
        return iter(rows.items())

    def project(self, name: str, weight: Tensor) -> Tensor:
        """A tensor of the shape of a block's weight, projected as its gradients are: (1, numel)."""
        return self._sketches[name].of_matrix(weight.detach().flatten(1)).reshape(1, -1)


class _Sketch:
    """The projection of one layer; None stands for the identity."""

    def __init__(self, block: Block, left: Tensor | None, right: Tensor | None) -> None:
        self.block = block
        self._left, self._right = left, right

    @classmethod
    def of(cls, block: Block, size: int, *, seed: int, like: Tensor) -> _Sketch:
        outputs, inputs = block.shape[0], math.prod(block.shape[1:])
        if block.numel <= size:
            return cls(block, None, None)
        rows, columns = sketch_shape(outputs, inputs, size)
        generator = torch.Generator().manual_seed(seed)
        left = None if rows == outputs else _signs(rows, outputs, generator).to(like)
        right = None if columns == inputs else _signs(columns, inputs, generator).to(like)
        return cls(Block(block.name, (rows, columns), rows * columns), left, right)

    def project(self, factors: list[Factor]) -> Tensor:
        """The projected rows (R, numel) of a block's factors, summed over the layer's calls."""
        return torch.stack([self._one(factor) for factor in factors]).sum(0).flatten(0, 1).flatten(1)

    def of_matrix(self, matrix: Tensor) -> Tensor:
        if self._right is not None:
            matrix = matrix @ self._right.T
        return matrix if self._left is None else self._left @ matrix

    def _one(self, factor: Factor) -> Tensor:
        images, labels, groups, outputs, places = factor.delta.shape
        read = self._read(factor)
        if groups == 1 and self._left is not None:
            sent = factor.send(self._left).reshape(images, -1, places)
            return torch.bmm(sent, read.squeeze(1).transpose(1, 2)).unflatten(1, (labels, -1))
        # The channels of a group meet their own inputs only: so the matrix (O, columns) first, and then P_O.
        delta = factor.delta.transpose(1, 2).reshape(images * groups, labels * outputs, places)
        product = torch.bmm(delta, read.reshape(images * groups, -1, places).transpose(1, 2))
        matrix = product.view(images, groups, labels, outputs, -1).transpose(1, 2).flatten(2, 3)
        return matrix if self._left is None else torch.matmul(self._left, matrix)

    def _read(self, factor: Factor) -> Tensor:
        if self._right is not None:
            return factor.read(self._right)
        groups = factor.delta.shape[2]
        columns = torch.arange(math.prod(self.block.shape[1:]), device=factor.input.device)
        every = factor.patches(
            torch.arange(groups, device=columns.device).repeat_interleave(len(columns)), columns.repeat(groups)
        )
        return every.unflatten(1, (groups, -1))


def sketch_shape(outputs: int, inputs: int, size: int) -> tuple[int, int]:
    """Rows and columns of about `size` numbers in all, as square as a layer of these outputs and inputs allows.

    >>> sketch_shape(512, 4608, 4096), sketch_shape(10, 512, 4096)
    ((64, 64), (10, 409))

    The error of a product of two projections is governed by the smaller; a side that is not projected adds none.
    """
    columns = min(inputs, max(1, size // min(outputs, math.isqrt(size))))
    rows = min(outputs, max(1, size // columns))
    return rows, columns


def _signs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return (torch.randint(2, (rows, columns), generator=generator) * 2 - 1) / math.sqrt(rows)
