"""What units do on their way through a network: whether new ones can be kept out of every normalisation over them.

Layer normalisation takes a mean over all units, so replicas leave it as it is only where all become equally many. Units
that are the mean of the others do too, once its scale and ε know how many there are (LEMON, arXiv:2310.07999); under
RMS normalisation units that are zero do. Both must then be so wherever the network computes with them before a
normalisation, and that is what is followed here, from operation to operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from postgrad.errors import UserError
from postgrad.growth._algebra import axes_of, resolve
from postgrad.growth._gains import looks_only, moves
from postgrad.growth._operation import Step, Value, Values, layer_of, values_of
from postgrad.growth._resize import Dimension, Plan, Start, Widening, leads_out
from postgrad.growth.axes import AxisGraph, WidthAxis

State = Literal["mean", "zero"]
"""What new units are where they stand: the mean of the old ones, or zero."""

_KEEPING_ZERO = (
    "relu relu6 gelu silu tanh hardswish hardtanh leaky_relu elu celu selu mish sin expm1 erf softsign abs square sign "
    "max_pool2d prelu"
)
_JOINING = frozenset({"add", "sub", "cat", "stack"})
_SUMMING = frozenset({"linear", "conv1d", "conv2d", "conv3d", "matmul", "mm", "addmm", "embedding"})


def any_size(model: nn.Module, graph: AxisGraph, axis: WidthAxis, size: int) -> Plan:
    """Widen an axis that is normalised over to any size, its new units being what the normalisations do not see.

    >>> plan = any_size(model, graph, graph.made_by("conv_proj")[0], 20)

    Raises `UserError` that names the operation which does not let new units be so.
    """
    return _AnySize(model, graph, axis, size).plan()


class _AnySize:
    def __init__(self, model: nn.Module, graph: AxisGraph, axis: WidthAxis, size: int) -> None:
        self.modules = dict(model.named_modules())
        self.graph = graph
        self.axis = axis
        self.size = size
        self.made: State = "mean" if _norms_over(graph, axis, "layer_norm") else "zero"
        self.states: dict[int, State] = {}
        self.starts: dict[Dimension, Start] = {}
        self.factors: dict[Dimension, tuple[float, float]] = {}
        self.settings: dict[str, dict[str, float]] = {}

    def plan(self) -> Plan:
        for weight, number in ((place.weight, place.dim) for place in self.axis.places):
            if resolve(self.graph.dims[weight][number]) != ((self.axis.axis,),):
                raise UserError(f"{weight} has it as a part of a dimension")
            if not leads_out(self.graph, (weight, number)):
                self.starts[weight, number] = self.made
        for step, made in self.graph.notes.steps:
            state = self._after(step, made)
            for value in values_of(made):
                if state is not None and self._has(value):
                    self.states[id(value)] = state
        ones = torch.ones(self.axis.size).double()
        more = self.size - self.axis.size
        index = torch.cat([torch.arange(self.axis.size), torch.full((more,), -1)])
        share = torch.cat([ones, ones.new_zeros(more)])
        widening = Widening(self.axis.axis, index, share, torch.ones(self.size).double(), self.starts)
        return Plan((widening,), self.factors, self.settings)

    def _has(self, value: Value) -> bool:
        return any(self.axis.axis in axes_of(dim) for dim in value.dims)

    def _state(self, value: Value) -> State:
        return self.made if value.weight is not None else self.states[id(value)]

    def _after(self, step: Step, made: Values) -> State | None:
        """What new units are after an operation; None where they are not there."""
        reads = [value for value in step.tensors() if self._has(value)]
        if not reads or looks_only(step):
            return None
        if step.name in ("layer_norm", "rms_norm"):
            return self._normalised(step)
        if step.name in _SUMMING:
            return self._summed(step)
        states = {self._state(value) for value in reads}
        remain = all(self._has(value) for value in values_of(made))
        if remain and len(states) == 1 and (moves(step) or self._joins(step, reads, states)):
            return states.pop()
        if remain and "zero" in states and self._stays_zero(step, reads):
            return "zero"
        if remain and step.name in ("mul", "div") and len(reads) == 1 and reads[0] is step.read[0]:
            return states.pop()
        raise UserError(f"{step.where} works on it")

    def _joins(self, step: Step, reads: Sequence[Value], states: set[State]) -> bool:
        return step.name in _JOINING and (states == {"mean"} or len(reads) == len(step.tensors()))

    def _stays_zero(self, step: Step, reads: Sequence[Value]) -> bool:
        if step.name == "mul":
            return True
        return step.name in _KEEPING_ZERO.split() and self._state(reads[0]) == "zero"

    def _normalised(self, step: Step) -> State:
        data, weight, bias = step.read[0], step.at(2), step.at(3) if step.name == "layer_norm" else None
        layer = layer_of(step.node)
        epsilon = step.at(4 if step.name == "layer_norm" else 3)
        if len(step.read[1]) != 1 or resolve(data.dims[-1]) != ((self.axis.axis,),):
            raise UserError(f"{step.where} takes a mean over more than it")
        if (step.name == "layer_norm") != (self.made == "mean") or self._state(data) != self.made:
            raise UserError(f"{step.where} takes a mean over it after another has")
        if not isinstance(weight, Value) or weight.weight is None:
            raise UserError(f"{step.where} has no weight of its own")
        if epsilon is not None:
            if getattr(self.modules[layer], "eps", None) != epsilon:
                raise UserError(f"{step.where} has an ε that is not the layer's")
            self.settings[layer] = {"eps": epsilon * self.axis.size / self.size}
        root = (self.axis.size / self.size) ** 0.5
        self.starts[weight.weight, 0] = "drawn"
        self.factors[weight.weight, 0] = (root, 1 / root)
        if isinstance(bias, Value):
            self.starts[str(bias.weight), 0] = "zero"
        return "zero"

    def _summed(self, step: Step) -> State | None:
        """A layer: what it sums over, and what it makes; nothing shall lead out of units that are not zero."""
        weight = step.read[2] if step.name == "addmm" else step.read[0 if step.name == "embedding" else 1]
        data = [value for value in step.tensors() if value.weight is None and self._has(value)]
        if not isinstance(weight, Value) or weight.weight is None or any(self._has(value) for value in data[1:]):
            raise UserError(f"{step.where} works on it")
        summed = [
            (weight.weight, number)
            for number, dim in zip(weight.order, weight.dims, strict=True)
            if (weight.weight, number) in self.graph.notes.columns and self.axis.axis in axes_of(dim)
        ]
        if data and not summed:
            raise UserError(f"{step.where} takes each of its units by itself")
        for dimension in summed if data else ():
            free = self._state(data[0]) == "zero" and self.starts.get(dimension, "drawn") == "drawn"
            if leads_out(self.graph, dimension):
                self.starts[dimension] = "drawn" if free else "zero"
            elif self._state(data[0]) != "zero":
                raise UserError(f"{step.where} sums over it with a weight that is read elsewhere")
        return self.made


def _norms_over(graph: AxisGraph, axis: WidthAxis, name: str) -> bool:
    return any(
        step.name == name and any(axis.axis in axes_of(dim) for dim in step.read[0].dims)
        for step, _ in graph.notes.steps
    )
