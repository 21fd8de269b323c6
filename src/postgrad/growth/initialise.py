"""What new units of a layer start as: replicas, drawn ones, or those whose gradient is greatest.

GradMax (Evci, van Merriënboer, Unterthiner, Vladymyrov and Pedregosa, arXiv:2201.05125) chooses new units such that the
gradient of what leads into or out of them is as great as it can be, so that they learn at once. The paper lets nothing
lead into them and takes what leads out from a singular value decomposition. Here it is the other way round: nothing
leads out, and what leads in is chosen. Both have the same singular values, hence the same gradient, where the layers
between are linear; but the paper's way needs an activation with f(0) = 0 and a slope there (torch gives ReLU the slope
0 at 0, so that nothing would be learned), and no batch normalisation, which is undefined on units that are all zero.
With nothing leading out the growth is exact whatever stands between.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.growth._resize import Dimension, Plan, Widening, leads_out, resize
from postgrad.growth.axes import AxisGraph, WidthAxis, shares

Init = Literal["replicate", "fanout_zero", "gradmax", "random"]
Loss = Callable[[nn.Module], Tensor]

CONCENTRATION = 10.0
"""Of the Dirichlet distribution that shares are drawn from."""

_STEPS = 20
_ENOUGH = 1e-4
"""Relative gain in the squared gradient below which a step was in vain."""
_PATIENCE = 2
"""Steps in vain after which the search goes on."""
_PROBE = 1e-4
"""Size of what leads out of new units while it is tried what should lead in, relative to that of old ones."""


def replicated(axis: WidthAxis, size: int, generator: torch.Generator) -> Widening:
    """New units that are replicas of old ones, each replicated as often as the others or once more."""
    old = axis.size
    rounds = [torch.randperm(old, generator=generator) for _ in range(math.ceil(size / old) - 1)]
    index = torch.cat([torch.arange(old), *rounds])[:size]
    draws = _gamma(size, generator)
    total = torch.zeros(old, dtype=torch.float64).index_add_(0, index, draws)
    share = draws / total[index]
    gain = torch.ones_like(share)
    if axis.scaled or axis.multiplied:
        # What is multiplied with its like has the root of the share; where queries meet keys under a scale of one over
        # the root of their size, also of what that scale lost.
        gain = (share * (math.sqrt(size / old) if axis.scaled else 1)).sqrt()
    return Widening(axis.axis, index, share, gain)


def drawn(axis: WidthAxis, size: int) -> Widening:
    """New units that come from none: what leads into them is drawn, and nothing leads out of them yet."""
    if looks := axis.even or axis.scaled or axis.multiplied:
        raise UserError(
            f'{axis.name}: {looks[0]} looks at all its units, so new ones cannot be drawn; use init="replicate"'
        )
    index = torch.cat([torch.arange(axis.size), torch.full((size - axis.size,), -1)])
    return Widening(axis.axis, index, (index >= 0).double(), torch.ones(size).double())


def greatest_gradient(
    model: nn.Module, graph: AxisGraph, plan: Plan, loss: Loss, generator: torch.Generator
) -> dict[str, Tensor]:
    """The weights that lead into new units, by name, such that the gradient of what leads out of them is greatest.

    >>> rows = greatest_gradient(model, graph, plan, lambda net: F.cross_entropy(net(x), y), generator)

    `plan` has one axis, whose new units are drawn; `loss` is given copies of the network, in its own mode. Maximised is
    Σ ‖∂L/∂uⱼ‖² over the new units j, uⱼ being all that leads out of one (zero); wⱼ, all that leads in, has the length
    of an old unit's on average, and the wⱼ are orthogonal as far as there are as many dimensions (arXiv:2201.05125,
    section 3, for Aᵀ). For a linear path between, ∂L/∂u = A·w, and the maximum c²·Σ σᵢ² is that of the first right
    singular vectors of A; a convolution's are those of its unfolded patches. A itself is never made: with u = ε·v
    in a copy of the network ∂L/∂w is ε·Aᵀ·v, so that orthogonal iteration takes two passes a step, through whatever
    stands between. Under other activations this is a search by their slopes at hand, which keeps the best that it met;
    it begins with what `init="fanout_zero"` draws, and is never worse.

    Raises `UserError` where the loss is none, or does not hang on the network's layers behind the new units.
    """
    network = copy.deepcopy(model)
    resize(network, graph, plan, generator)
    units = _NewUnits(network, graph, plan.widenings[0])
    length = units.length_of_old(units.into)
    probe = _PROBE * (units.length_of_old(units.out) or 1.0)
    best, chosen = -1.0, units.get(units.into)
    greatest, waited = 0.0, 0  # of what has the right length
    for step in range(_STEPS):
        outgoing = units.gradient(units.out, network, loss)
        squared = outgoing.double().square().sum().item()
        if not math.isfinite(squared):
            raise UserError("gradmax: the gradient of the loss is not finite; give a loss that the network has learned")
        if squared > best:
            best, chosen = squared, units.get(units.into)
        if step:
            waited = 0 if squared > greatest * (1 + _ENOUGH) else waited + 1
            greatest = max(greatest, squared)
        if waited > _PATIENCE:
            break
        units.set(units.out, F.normalize(outgoing) * probe)
        units.set(units.into, _orthogonal(units.gradient(units.into, network, loss)) * length)
        units.set(units.out, torch.zeros_like(outgoing))
    if best == 0:
        raise UserError("gradmax: the loss has no gradient at what the new units lead to; give another one")
    units.set(units.into, chosen)
    return {name: units.parameters[name].detach() for name, _ in units.into}


class _NewUnits:
    """What leads into the new units of an axis, and out of them: matrices (new units, weights)."""

    def __init__(self, network: nn.Module, graph: AxisGraph, widening: Widening) -> None:
        self.parameters = dict(network.named_parameters())
        self.into: list[Dimension] = []
        self.out: list[Dimension] = []
        self._old = int((widening.index >= 0).sum())
        self._new = len(widening.index) - self._old
        self._unit: dict[Dimension, Tensor] = {}
        for name, number in graph.dimensions_of(widening.axis):
            if name not in self.parameters or not graph.sums(name):
                continue  # statistics; biases and scales, which have no direction
            dim = graph.dims[name][number]
            (self.out if leads_out(graph, (name, number)) else self.into).append((name, number))
            # Plus 2, since `shares` has 1 where the axis is not.
            numbers = torch.arange(len(widening.index), dtype=torch.float64) + 2
            self._unit[name, number] = (shares(dim, widening.axis, widening.index, numbers) - 2).long()
            self.parameters[name].requires_grad_()
        if not self.into or not self.out:
            raise UserError('its units are not between two layers of weights; use init="fanout_zero"')
        both = {name for name, _ in self.into} & {name for name, _ in self.out}
        if both:
            raise UserError(f'{min(both)} leads both into its units and out of them; use init="fanout_zero"')

    def get(self, dimensions: Sequence[Dimension]) -> Tensor:
        return torch.cat([self._rows(self.parameters[each[0]].detach(), each) for each in dimensions], 1)

    def set(self, dimensions: Sequence[Dimension], matrix: Tensor) -> None:
        for name, number in dimensions:
            parameter = self.parameters[name].detach()
            entries = self._entries((name, number), new=True)
            inside = parameter.movedim(number, 0)[entries]
            values = matrix[:, : inside.numel() // self._new].reshape(inside.shape)
            matrix = matrix[:, inside.numel() // self._new :]
            parameter.movedim(number, 0)[entries] = values

    def gradient(self, dimensions: Sequence[Dimension], network: nn.Module, loss: Loss) -> Tensor:
        """Of the loss, which meets the same random numbers each time."""
        devices = {each.device for each in self.parameters.values() if each.device.type == "cuda"}
        with torch.random.fork_rng(list(devices)), torch.enable_grad():
            value = loss(network)
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                raise UserError("gradmax: loss must give a tensor of one number, computed from the network it is given")
            wanted = [self.parameters[name] for name, _ in dimensions]
            found = torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True)
        return torch.cat([self._rows(tensor, each) for tensor, each in zip(found, dimensions, strict=True)], 1)

    def length_of_old(self, dimensions: Sequence[Dimension]) -> float:
        """The root of the mean square of the old units' lengths."""
        total = 0.0
        for name, number in dimensions:
            entries = self._entries((name, number), new=False)
            total += self.parameters[name].detach().movedim(number, 0)[entries].double().square().sum().item()
        return math.sqrt(total / self._old)

    def _rows(self, tensor: Tensor, dimension: Dimension) -> Tensor:
        return tensor.movedim(dimension[1], 0)[self._entries(dimension, new=True)].reshape(self._new, -1)

    def _entries(self, dimension: Dimension, *, new: bool) -> Tensor:
        """Where the new units are in a dimension, or the old ones: unit by unit."""
        unit = self._unit[dimension]
        order = unit.argsort(stable=True)
        sorted_units = unit[order]
        return order[sorted_units >= self._old] if new else order[(sorted_units >= 0) & (sorted_units < self._old)]


def _orthogonal(rows: Tensor) -> Tensor:
    """The orthonormal rows that are nearest; in blocks, where there are more of them than dimensions."""
    blocks = F.normalize(rows.double()).split(max(1, rows.shape[1]))
    parts = (torch.linalg.svd(block, full_matrices=False) for block in blocks)
    return torch.cat([left @ right for left, _, right in parts]).to(rows)


def _gamma(count: int, generator: torch.Generator) -> Tensor:
    """Draws whose shares of their sums are Dirichlet(10): sums of ten exponential ones."""
    uniform = torch.rand(int(CONCENTRATION), count, generator=generator, dtype=torch.float64)
    return -uniform.clamp(min=1e-300).log().sum(0)
