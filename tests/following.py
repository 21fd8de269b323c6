"""What the tests of the rules of axis analysis share: an operation followed, and tried with more units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from postgrad.growth._algebra import Axis, axes_of, size_of
from postgrad.growth._gains import fix_lost_gains
from postgrad.growth._operation import Notes, Step, Value, Values, fixed_like, free_weight
from postgrad.growth._propagate import follow
from postgrad.growth.axes import _arguments, _constraints, shares, units

Function = Callable[..., Any]


class Program(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


class Followed:
    """A function's graph with every dimension of its inputs free; those after the first `activations` are weights."""

    def __init__(self, function: Function, inputs: list[Tensor], activations: int) -> None:
        self.function, self.tensors = function, inputs
        self.inputs = [free_weight(f"w{n}", each) for n, each in enumerate(inputs)]
        self.inputs[:activations] = [Value(each.dims) for each in self.inputs[:activations]]
        self.notes = Notes()
        program = torch.export.export(Program(function), tuple(inputs), strict=False)
        values: dict[Any, Values] = {}
        given = dict(zip(program.graph_signature.user_inputs, self.inputs, strict=True))
        for node in program.graph.nodes:
            if node.name in given:
                values[node] = given[node.name]
            elif node.op == "call_function":
                values[node] = follow(Step(node, _arguments(node, values), self.notes))
            elif node.op == "output":
                self.outputs: list[Value] = [values[each] for each in node.args[0]]  # type: ignore[misc]
            else:
                values[node] = fixed_like(node.meta.get("val"))
        fix_lost_gains(self.notes)

    @property
    def free(self) -> list[Axis]:
        axes = dict.fromkeys(axis for value in self.inputs for dim in value.dims for axis in axes_of(dim))
        return [axis for axis in axes if not axis.reasons]

    def wide(self, axis: Axis, index: Tensor) -> list[Tensor]:
        """The inputs with more units on an axis; what is summed over is shared, queries and keys by their roots."""
        return [
            self.spread(value, tensor, axis, index) for value, tensor in zip(self.inputs, self.tensors, strict=True)
        ]

    def spread(self, value: Value, tensor: Tensor, axis: Axis, index: Tensor) -> Tensor:
        count = torch.bincount(index)[index].double()
        gain = torch.ones_like(count)
        if axis in _constraints(self.notes.scaled):
            gain = ((len(index) / axis.size) ** 0.5 / count).sqrt()
        elif axis in _constraints(self.notes.multiplied):
            gain = (1 / count).sqrt()
        for number, dim in enumerate(value.dims):
            summed = (value.weight, number) in self.notes.columns
            share = shares(dim, axis, index, 1 / count if summed else gain)
            column = [-1 if n == number else 1 for n in range(tensor.ndim)]
            tensor = tensor.index_select(number, units(dim, axis, index)) * share.reshape(column).to(tensor.dtype)
        return tensor

    def check(self) -> None:
        """Oracle: the function of the wider inputs is its result with its own units repeated."""
        before = results(self.function(*self.tensors))
        assert [tuple(map(size_of, value.dims)) for value in self.outputs] == [tuple(each.shape) for each in before]
        for axis in self.free:
            even = axis in _constraints(self.notes.even)
            more = torch.arange(axis.size).flip(0) if even else torch.tensor([axis.size - 1, 0, 0])
            index = torch.cat([torch.arange(axis.size), more])
            after = results(self.function(*self.wide(axis, index)))
            for value, old, new in zip(self.outputs, before, after, strict=True):
                torch.testing.assert_close(new, self.spread(value, old, axis, index), rtol=1e-9, atol=1e-9)


def results(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [each for one in output for each in results(one)]


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1 for shape in shapes]


def followed(function: Function, *shapes: tuple[int, ...], activations: int = 9) -> Followed:
    return Followed(function, drawn(*shapes), activations)


def check(function: Function, free: int, shapes: tuple[tuple[int, ...], ...], activations: int = 9) -> None:
    """A function of inputs of these shapes, of which so many axes remain free, with more units on each of those."""
    found = followed(function, *shapes, activations=activations)
    assert len(found.free) == free, [dict(axis.reasons) for v in found.inputs for d in v.dims for axis in axes_of(d)]
    found.check()


Case = tuple[Function, int, tuple[tuple[int, ...], ...]]
"""The function, how many axes of its inputs remain free, the inputs' shapes."""
NCHW, NTC = (2, 4, 6, 6), (2, 3, 4)
