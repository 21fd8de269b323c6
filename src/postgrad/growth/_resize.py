"""Putting wider tensors in the places of a network's own, as a plan of widened axes says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from postgrad.growth._algebra import Axis, Dim, axes_of, resolve, size_of
from postgrad.growth._split import shared
from postgrad.growth.axes import AxisGraph, shares, units
from postgrad.growth.moves import Along, Move, memory_format_of

NOISE = 0.2
"""Standard deviation of what is added to the shares, weight by weight, as a part of them."""

Start = Literal["drawn", "mean", "zero"]
Dimension = tuple[str, int]
"""A weight's name, and the number of one of its dimensions."""


@dataclass(frozen=True)
class Widening:
    """What becomes of the units of one axis."""

    axis: Axis
    index: Tensor
    """(new size,): the old unit that each new one is a replica of, -1 where it is of none."""
    share: Tensor
    """(new size,): the share of what leads out of a unit that each of its replicas has."""
    gain: Tensor
    """(new size,): by how much each replica is greater than its unit; what leads out of it is divided by that."""
    starts: Mapping[Dimension, Start] = field(default_factory=dict)
    """What units that come from none start with: drawn like the old ones, their mean, or zero. By default what leads
    into them is drawn, and nothing leads out."""


@dataclass(frozen=True)
class Plan:
    """All that is done to a network at once."""

    widenings: tuple[Widening, ...]
    factors: Mapping[Dimension, tuple[float, float]] = field(default_factory=dict)
    """What stands in the place of the shares of a weight's value, and of its gradient, along a dimension."""
    settings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What modules must say, besides their sizes."""
    outputs: Mapping[str, float] = field(default_factory=dict)
    """By what modules' outputs are greater than they were."""

    def inside(self, dim: Dim) -> list[Widening]:
        """The widenings of the axes that a dimension has."""
        return [each for each in self.widenings if each.axis in axes_of(dim)]


def resize(
    model: nn.Module, graph: AxisGraph, plan: Plan, generator: torch.Generator
) -> tuple[dict[str, Move], dict[str, Tensor]]:
    """Put a new tensor in the place of each that has an axis of the plan; what had to be rounded is given as it was."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    places = _places(model)
    moves: dict[str, Move] = {}
    unrounded: dict[str, Tensor] = {}
    for name in graph.dims:
        along = _along(graph, name, plan)
        if not along:
            continue
        old = tensors[name]
        made = _made(old, [_Part.of(graph, name, each, plan) for each in along], generator)
        if made.dtype != old.dtype:
            unrounded[name] = made
        made = made.to(old.dtype)
        new = nn.Parameter(made, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else made
        for module, attribute in places[id(old)]:
            kind: dict[str, Any] = module._parameters if isinstance(old, nn.Parameter) else module._buffers
            kind[attribute] = new
        moves[name] = Move(old, new, tuple(along))
    return moves, unrounded


def expected(graph: AxisGraph, plan: Plan) -> Callable[[str, Tensor], Tensor | None]:
    """What each module must return now: what it did, its units repeated as the plan says."""

    def of(name: str, before: Tensor) -> Tensor | None:
        value = graph.outputs.get(name)
        if value is None or len(value.dims) != before.ndim:
            return None
        for number, dim in enumerate(value.dims):
            inside = plan.inside(dim)
            if inside and size_of(dim) != before.shape[number]:
                return None
            for each, wide in _one_by_one(dim, inside):
                index = units(wide, each.axis, each.index)
                if bool((index < 0).any()):
                    return None
                gain = shares(wide, each.axis, each.index, each.gain)
                before = before.index_select(number, index) * _column(gain, before, number)
        return before * plan.outputs.get(name, 1.0)

    return of


def leads_out(graph: AxisGraph, dimension: Dimension) -> bool:
    """Whether a layer sums over a dimension of its weight, so that replicas share what it was."""
    return dimension in graph.notes.columns and dimension not in graph.notes.rows


def _places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Everywhere that a tensor stands, by its identity."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
            places.setdefault(id(tensor), []).append((module, attribute))
    return places


def _along(graph: AxisGraph, name: str, plan: Plan) -> list[Along]:
    """How the dimensions of one tensor become wider; two axes of one dimension are spread one after the other."""
    found: list[Along] = []
    for number, dim in enumerate(graph.dims[name]):
        inside = plan.inside(dim)
        if not inside:
            continue
        index = torch.arange(size_of(dim))
        out = gain = torch.ones(size_of(dim), dtype=torch.float64)
        for each, wide in _one_by_one(dim, inside):
            next_index = units(wide, each.axis, each.index)
            known = next_index.clamp(min=0)
            index = torch.where(next_index < 0, -1, index[known])
            out = out[known] * shares(wide, each.axis, each.index, each.share / each.gain)
            gain = gain[known] * shares(wide, each.axis, each.index, each.gain)
        value, gradient = (out, gain) if leads_out(graph, (name, number)) else (gain, out)
        if (name, number) in plan.factors:
            value, gradient = (torch.full_like(gain, factor) for factor in plan.factors[name, number])
        found.append(Along(number, index, value, gradient))
    return found


def _one_by_one(dim: Dim, widenings: Sequence[Widening]) -> Iterator[tuple[Widening, Dim]]:
    """Each widening, with the dimension as the ones before it have left it."""
    for each in widenings:
        yield each, dim
        wide = Axis(len(each.index))
        dim = tuple(tuple(wide if factor is each.axis else factor for factor in segment) for segment in resolve(dim))


@dataclass(frozen=True)
class _Part:
    """One dimension of a tensor that becomes wider."""

    along: Along
    summed: bool
    start: Start

    @classmethod
    def of(cls, graph: AxisGraph, name: str, along: Along, plan: Plan) -> _Part:
        dimension = (name, along.dim)
        summed = leads_out(graph, dimension)
        starts = {key: start for each in plan.widenings for key, start in each.starts.items()}
        return cls(along, summed, starts.get(dimension, "zero" if summed else "drawn"))

    @property
    def new(self) -> bool:
        """Whether some of its units come from none."""
        return bool((self.along.index < 0).any())

    @property
    def computed(self) -> bool:
        """Whether its values are products, or a mean, which have to be rounded."""
        if self.new and self.start == "mean":
            return True
        return bool((self.along.gradient if self.summed else self.along.value).ne(1).any())


def _made(old: Tensor, parts: Sequence[_Part], generator: torch.Generator) -> Tensor:
    """The new tensor: rows repeated first, then what is summed over shared out; in float64 where it was computed."""
    tensor = old.detach()
    if any(part.computed for part in parts):
        tensor = tensor.double()
    for part in sorted(parts, key=lambda part: part.summed):
        dim, index = part.along.dim, part.along.index.to(tensor.device)
        if part.new:
            tensor = _with_new(tensor, dim, index, part.start, generator)
            if part.computed:
                factor = part.along.value.masked_fill(part.along.index < 0, 1)
                tensor = tensor * _column(factor, tensor, dim)
        elif part.summed and not part.computed:
            tensor = shared(tensor, dim, index, part.along.value.to(tensor.device), NOISE, generator)
        else:
            tensor = tensor.index_select(dim, index)
            if part.computed:
                tensor = tensor * _column(part.along.value, tensor, dim)
    return tensor.contiguous(memory_format=memory_format_of(old))


def _column(vector: Tensor, like: Tensor, dim: int) -> Tensor:
    """A vector along one dimension of a tensor."""
    return vector.to(like).reshape(-1, *[1] * (like.ndim - 1 - dim))


def _with_new(tensor: Tensor, dim: int, index: Tensor, start: Start, generator: torch.Generator) -> Tensor:
    """Old units as they are, and new ones."""
    wide = tensor.index_select(dim, index.clamp(min=0))
    new = (index < 0).nonzero().flatten()
    shape = list(wide.shape)
    shape[dim] = len(new)
    if start == "zero":
        return wide.index_copy(dim, new, wide.new_zeros(shape))
    if start == "mean":
        return wide.index_copy(dim, new, tensor.mean(dim, keepdim=True).expand(shape))
    if tensor.ndim > 1 and tensor.is_floating_point():
        spread = tensor.double().std(correction=0).item()
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64).mul_(spread)
        return wide.index_copy(dim, new, drawn.to(wide))
    picked = torch.randint(tensor.shape[dim], (len(new),), generator=generator).to(index.device)
    return wide.index_copy(dim, new, tensor.index_select(dim, picked))
