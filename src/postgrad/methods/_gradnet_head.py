"""The small networks that GradNet trains: on gradients, or on their factors by functionals of low rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.gradients.factors import Factor, Part
from postgrad.gradients.low_rank import summed
from postgrad.gradients.rows import SelectedRows, rows_linear


class GradNetHead(nn.Module):
    """The small network over gradient blocks: one Linear + ReLU for each group of blocks, then a Linear to the logits.

    >>> head = GradNetHead(inputs=(4800, 102400, 23040), hidden=(5, 100, 25), num_classes=10)
    >>> head([g_c0, g_c1, g_l1]).shape          # each g is (R, inputs)
    torch.Size([R, 10])

    With `neighbours` a hidden block reads two neighbouring layers, so there is one hidden size fewer than blocks.
    Weights start as N(0, 0.02²), biases as 0 (METHODS: GradNet, "Network").
    """

    def __init__(
        self,
        inputs: Sequence[int],
        hidden: Sequence[int],
        num_classes: int,
        *,
        neighbours: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.groups = hidden_groups(len(inputs), neighbours)
        self.sizes = checked_sizes(hidden, self.groups, len(inputs))
        self.hidden = nn.ModuleList(
            nn.ModuleList(
                nn.Linear(inputs[block], size, bias=position == 0, device="meta")
                for position, block in enumerate(group)
            )
            for group, size in zip(self.groups, hidden, strict=True)
        )
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(sum(hidden), num_classes)
        self.factored = False
        for layers in self.hidden:
            for layer in layers.children():
                # The weights of one coordinate lie together, as products with selected rows want them.
                assert isinstance(layer, nn.Linear)
                layer.weight = nn.Parameter(torch.empty(layer.in_features, layer.out_features).t())
                layer.bias = None if layer.bias is None else nn.Parameter(torch.empty(layer.out_features))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                _start(layer)

    def forward(self, gradients: Sequence[Tensor | SelectedRows]) -> Tensor:
        """Logits (R, C) of gradient blocks [(R, inputs), …]."""
        activations = []
        for group, layers in zip(self.groups, self.hidden.children(), strict=True):
            sums = [self._sum(layer, gradients[block]) for block, layer in zip(group, layers.children(), strict=True)]
            activations.append(F.relu(sum(sums[1:], start=sums[0])))
        return self.output(self.dropout(torch.cat(activations, dim=1)))

    def _sum(self, layer: nn.Module, block: Tensor | SelectedRows) -> Tensor:
        if isinstance(block, SelectedRows):
            assert isinstance(layer, nn.Linear)
            return rows_linear(block, layer.weight, layer.bias, factored=self.factored)
        return layer(block)


class LowRankHead(nn.Module):
    """The same network where a hidden unit reads a layer's gradient matrix G (O, K) by Σ_r a_rᵀ G b_r, r = 1 … rank.

    >>> head = LowRankHead(sides=((64, 75), (64, 1600), (10, 2304)), hidden=(5, 100, 25), num_classes=10, rank=2)
    >>> head(space(images, labels)).shape        # of a `FactorSpace`
    torch.Size([R, 10])

    `scales` holds the typical length of each layer's gradient. Values are divided by it, and a and b start as
    N(0, 1/√rank), so that what enters the ReLU starts around 1. The other weights start as `GradNetHead`'s.
    """

    scales: Tensor

    def __init__(
        self,
        sides: Sequence[tuple[int, int]],
        hidden: Sequence[int],
        num_classes: int,
        *,
        rank: int,
        scales: Sequence[Tensor],
        neighbours: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.groups = hidden_groups(len(sides), neighbours)
        self.sizes = checked_sizes(hidden, self.groups, len(sides))
        pairs = [(block, size) for group, size in zip(self.groups, hidden, strict=True) for block in group]
        deviation = rank**-0.25
        self.a, self.b = (
            nn.ParameterList(torch.randn(size, rank, sides[block][side]) * deviation for block, size in pairs)
            for side in (0, 1)
        )
        self.bias = nn.ParameterList(torch.zeros(size) for size in hidden)
        self.factored = False
        self.register_buffer("scales", torch.stack(list(scales)))
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(sum(hidden), num_classes)
        _start(self.output)

    def functionals(self, names: Sequence[str]) -> dict[str, int]:
        """How many pairs (a, b) read each of the blocks of these names."""
        count = dict.fromkeys(names, 0)
        read = (names[block] for group in self.groups for block in group)
        for name, a in zip(read, self.a, strict=True):
            count[name] += a.shape[0] * a.shape[1]
        return count

    def forward(self, parts: Sequence[tuple[int, Part]]) -> Tensor:
        """Logits (R, C) of the factors [(rows, {name: factors}), …] that a `FactorSpace` gives."""
        return torch.cat([self._logits(rows, list(part.values())) for rows, part in parts])

    def _logits(self, rows: int, blocks: Sequence[Sequence[Factor]]) -> Tensor:
        activations, number = [], 0
        for group, bias in zip(self.groups, self.bias, strict=True):
            total = bias
            for block in group:
                value = summed(blocks[block], self.a[number], self.b[number], rows=rows)
                total = total + value / self.scales[block]
                number += 1
            activations.append(F.relu(total))
        return self.output(self.dropout(torch.cat(activations, dim=1)))


def _start(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight.t(), std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def checked_sizes(hidden: Sequence[int], groups: Sequence[Sequence[int]], layers: int) -> tuple[int, ...]:
    """The hidden sizes, or a `UserError` where there is not one of at least 1 for each group of layers."""
    if len(hidden) != len(groups):
        pairs = ", read in neighbouring pairs" if len(groups[0]) > 1 else ""
        raise UserError(
            f"hidden: {len(hidden)} sizes given, but this network has {len(groups)} hidden blocks "
            f"({layers} layers{pairs}); give one size for each"
        )
    if min(hidden) < 1:
        raise UserError(f"hidden: expected sizes of 1 or more, got {tuple(hidden)}")
    return tuple(hidden)


def hidden_groups(blocks: int, neighbours: bool) -> tuple[tuple[int, ...], ...]:
    """Which gradient blocks each hidden block reads: itself, or itself and the next one."""
    if neighbours and blocks > 1:
        return tuple((i, i + 1) for i in range(blocks - 1))
    return tuple((i,) for i in range(blocks))


def auto_hidden(blocks: int) -> tuple[int, ...]:
    """Hidden sizes for a network of any depth: 5 for the first layer, 25 for the last, 100 shared by those between.

    >>> auto_hidden(3)
    (5, 100, 25)

    The published sizes for the seed's three layers, continued: 100 units in equal parts, at least one each.
    """
    if blocks == 1:
        return (25,)
    between = blocks - 2
    return (5, *[max(1, 100 // between)] * between, 25) if between else (100, 25)
