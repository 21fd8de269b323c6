"""Which dimensions of a network's weights belong together: found in its exported graph, for any network that exports.

Every tensor dimension in the graph is written as concatenations of products of axes (`_algebra`), each operation has a
rule that says how dimensions pass it (`_propagate`), and what is left in the end are classes of coupled dimensions: to
widen one is to widen all. What an operation without a rule touches is fixed, as are inputs and outputs.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from postgrad.errors import UserError
from postgrad.growth._algebra import Axis, Dim, axes_of, fix, resolve, size_of
from postgrad.growth._gains import fix_lost_gains
from postgrad.growth._operation import Notes, Step, Value, Values, fixed_like, free_weight
from postgrad.growth._propagate import follow
from postgrad.growth._tied import Tied, norms_before


@dataclass(frozen=True)
class Place:
    """One dimension of one weight; `summed` where the layer sums over it, so that replicas share their old value."""

    weight: str
    dim: int
    summed: bool


@dataclass(frozen=True)
class WidthAxis:
    """Units that can only be widened together, as one axis of a network.

    `name` is that of a layer that makes it, with #1, #2 … where the layer makes products of several; `even` says that
    all units must become equally many more; `scaled` that queries meet keys over it, under one over its root;
    `multiplied` that activations are multiplied over it otherwise; `fixed` why it cannot be widened.
    """

    name: str
    axis: Axis
    places: tuple[Place, ...]
    even: tuple[str, ...]
    scaled: tuple[str, ...]
    multiplied: tuple[str, ...]
    fixed: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many units it has."""
        return self.axis.size

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose weights it is a dimension of, in the network's order."""
        return tuple(dict.fromkeys(place.weight.rpartition(".")[0] for place in self.places))


@dataclass(frozen=True)
class AxisGraph:
    """The coupled dimensions of a network: `axes` lists them, `dims` has those of each weight and buffer by name."""

    dims: Mapping[str, tuple[Dim, ...]]
    outputs: Mapping[str, Value]
    """What each module returns, where it is called once and returns a tensor."""
    notes: Notes
    tied: dict[tuple[str, int], Tied] = field(default_factory=dict)
    """Dimensions of weights that are both read and summed over, with the normalisations that stand before the sums."""

    @cached_property
    def axes(self) -> tuple[WidthAxis, ...]:
        """All axes that weights have, in the order of the network."""
        places: dict[Axis, list[Place]] = {}
        for weight, dims in self.dims.items():
            for number, dim in enumerate(dims):
                for axis in axes_of(dim):
                    place = Place(weight, number, (weight, number) in self.notes.columns)
                    places.setdefault(axis, []).append(place)
        even = _constraints(self.notes.even)
        scaled = _constraints(self.notes.scaled)
        multiplied = _constraints(self.notes.multiplied)
        return tuple(
            WidthAxis(
                self._name(axis, found),
                axis,
                tuple(found),
                even.get(axis, ()),
                scaled.get(axis, ()),
                multiplied.get(axis, ()),
                tuple(axis.reasons),
            )
            for axis, found in places.items()
        )

    @cached_property
    def hidden(self) -> tuple[WidthAxis, ...]:
        """The axes of hidden units: some layer makes them, and some layer sums over them."""
        rows = self.notes.rows
        return tuple(
            axis
            for axis in self.axes
            if any(place.summed for place in axis.places)
            and any((place.weight, place.dim) in rows for place in axis.places)
        )

    def made_by(self, layer: str) -> list[WidthAxis]:
        """The axes whose product a layer's output channels are, the outer ones first."""
        found = axes_of(self.rows(layer))
        by_axis = {each.axis: each for each in self.axes}
        return [by_axis[axis] for axis in found]

    def rows(self, layer: str) -> Dim:
        """The dimension of a layer's weight that its output channels are; empty where it makes none."""
        prefix = f"{layer}." if layer else ""
        names = [name for name in self.dims if name.startswith(prefix) and "." not in name[len(prefix) :]]
        if not names:
            names = [name for name in self.dims if name.startswith(f"{prefix}parametrizations.weight.original")]
        for name in sorted(names, key=lambda name: not name.endswith(("weight", "in_proj_weight", "original"))):
            found = [
                dim for number, dim in enumerate(self.dims[name]) if (name, number) in self.notes.rows and axes_of(dim)
            ]
            if found:
                # An embedding that is the classifier too has its words among them, which are fixed.
                return next((dim for dim in found if not all(axis.reasons for axis in axes_of(dim))), found[-1])
        return ()

    def dimensions_of(self, axis: Axis) -> Iterator[tuple[str, int]]:
        """The weights that have an axis, and in which of their dimensions."""
        for weight, dims in self.dims.items():
            yield from ((weight, number) for number, dim in enumerate(dims) if axis in axes_of(dim))

    def sums(self, weight: str) -> bool:
        """Whether it is the weight of a layer that sums over its inputs, such as a convolution's."""
        return any((weight, number) in self.notes.columns for number in range(len(self.dims[weight])))

    def _name(self, axis: Axis, places: Sequence[Place]) -> str:
        makers = [place for place in places if not place.summed]
        place = max(makers or places, key=lambda place: self.sums(place.weight))  # the first of those
        layer = place.weight.rpartition(".")[0]
        product = axes_of(self.dims[place.weight][place.dim])
        return layer if len(product) == 1 else f"{layer}#{product.index(axis)}"


def analyse(model: nn.Module, example: Tensor | tuple[Any, ...]) -> AxisGraph:
    """Find the coupled dimensions of a network; the network is not changed.

    >>> graph = analyse(model, torch.randn(2, 3, 32, 32))
    >>> [(axis.name, axis.size) for axis in graph.axes if not axis.fixed]
    [('conv1', 64), ('layer1.0.conv1', 64), …]

    `example` is an input as the network takes it, (N, C, H, W), or a tuple of its arguments. A network with weights
    that it uses in training only (auxiliary classifiers) is read in both modes. Raises `UserError` where `torch.export`
    cannot trace it.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    tensors = _tensors(model)
    weights = {name: free_weight(name, tensor) for name, tensor in tensors.items()}
    notes = Notes()
    outputs: dict[str, Value] = {}
    used = _read(model, inputs, training=False, weights=weights, notes=notes, outputs=outputs)
    if any(name not in used for name, _ in model.named_parameters()):
        _read(model, inputs, training=True, weights=weights, notes=notes, outputs={})
    dims = {name: tuple(resolve(dim) for dim in value.dims) for name, value in weights.items()}
    graph = AxisGraph(dims, outputs, notes)
    _fix_what_conflicts(graph)
    return graph


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _read(
    model: nn.Module,
    inputs: tuple[Any, ...],
    *,
    training: bool,
    weights: Mapping[str, Value],
    notes: Notes,
    outputs: dict[str, Value],
) -> set[str]:
    """Follow one exported graph, and say which weights it uses."""
    program = _exported(model, inputs, training)
    names = _names_of_inputs(model, program)
    values: dict[Node, Values] = {}
    called: dict[str, set[str]] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            name = names.get(node.name, "")
            values[node] = weights[name] if name in weights else fixed_like(node.meta.get("val"))
        elif node.op == "call_function":
            values[node] = follow(Step(node, _arguments(node, values), notes))
            _note_outputs(node, values[node], outputs, called)
        elif node.op == "output":
            _fix_outputs(node, values)
        else:
            values[node] = fixed_like(node.meta.get("val"))
    for name, calls in called.items():
        if len(calls) > 1:
            outputs.pop(name, None)
    return {names[node.name] for node in program.graph.nodes if node.users and node.name in names}


def _exported(model: nn.Module, inputs: tuple[Any, ...], training: bool) -> torch.export.ExportedProgram:
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        with warnings.catch_warnings(), torch.enable_grad(), _no_fast_path():
            warnings.simplefilter("ignore")
            return torch.export.export(model, inputs, strict=False)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{type(model).__name__}: torch.export cannot trace it with an input of {_shapes(inputs)}: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """Attention's fast path in evaluation is one operation of its own, which says nothing of what it is made of."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _shapes(inputs: tuple[Any, ...]) -> str:
    return ", ".join(str(tuple(each.shape)) for each in inputs if isinstance(each, Tensor))


def _names_of_inputs(model: nn.Module, program: torch.export.ExportedProgram) -> dict[str, str]:
    """The weight that each of the graph's inputs is, by the first of its names."""
    signature = program.graph_signature
    first: dict[int, str] = {id(tensor): name for name, tensor in _tensors(model).items()}
    every = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    found = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return {name: first[id(every[target])] for name, target in found.items() if target in every}


def _arguments(node: Node, values: Mapping[Node, Values]) -> tuple[Any, ...]:
    """Arguments in the order of the operation's schema, with values in place of nodes."""
    given: list[Any] = list(node.args)
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        for argument in schema.arguments[len(given) :]:
            given.append(node.kwargs.get(argument.name, argument.default_value))
    return tuple(_replaced(given, values))


def _replaced(argument: Any, values: Mapping[Node, Values]) -> Any:
    if isinstance(argument, Node):
        return values[argument]
    if isinstance(argument, list | tuple):
        return [_replaced(each, values) for each in argument]
    return argument


def _note_outputs(node: Node, value: Values, outputs: dict[str, Value], called: dict[str, set[str]]) -> None:
    stack = node.meta.get("nn_module_stack") or {}
    for key, (path, _) in stack.items():
        called.setdefault(path, set()).add(key)
        if isinstance(value, Value):
            outputs[path] = value
        else:
            outputs.pop(path, None)


def _fix_outputs(node: Node, values: Mapping[Node, Values]) -> None:
    def fix_value(each: Node) -> Node:
        value = values[each]
        if isinstance(value, Value):
            fix(value.dims, "it is what the network returns")
        return each

    torch.fx.node.map_arg(node.args, fix_value)


def _constraints(found: Sequence[tuple[Dim, str]]) -> dict[Axis, tuple[str, ...]]:
    result: dict[Axis, dict[str, None]] = {}
    for dim, where in found:
        for axis in axes_of(dim):
            result.setdefault(axis, {})[where] = None
    return {axis: tuple(where) for axis, where in result.items()}


def _fix_what_conflicts(graph: AxisGraph) -> None:
    """Fix axes that no rule of widening fits."""
    notes = graph.notes
    for weight, number in notes.columns & notes.rows:
        tied = norms_before(notes, weight, number)
        if isinstance(tied, str):
            reason = f"{weight} is both read along it and summed over along it, and {tied}"
            fix([graph.dims[weight][number]], reason)
        else:
            graph.tied[weight, number] = tied
    for dims in graph.dims.values():
        for dim in dims:
            _fix_repeated(dim)
    fix_lost_gains(notes)
    for dim, where in notes.even:
        _fix_uneven(resolve(dim), where)


def _fix_repeated(dim: Dim) -> None:
    for segment in resolve(dim):
        for factor in segment:
            if isinstance(factor, Axis) and segment.count(factor) > 1:
                factor.reasons["it is multiplied with itself"] = None


def _fix_uneven(dim: Dim, where: str) -> None:
    """A mean over a concatenation stays what it is only if all pieces grow alike."""
    for axis in axes_of(dim):
        if not all(axis in segment for segment in dim):
            axis.reasons[f"{where} takes a mean across a concatenation"] = None


def units(dim: Dim, axis: Axis, index: Tensor) -> Tensor:
    """The old units of a dimension that its new ones come from, where those of one axis come from `index`.

    >>> units(((A, 2),), A, torch.tensor([0, 1, 0]))  # A of 2 units, each with 2 inside
    tensor([0, 1, 2, 3, 0, 1])
    """
    return _spread(dim, axis, index, torch.zeros_like(index))[0]


def shares(dim: Dim, axis: Axis, index: Tensor, share: Tensor) -> Tensor:
    """The share that each new unit of a dimension has, where those of one axis have `share`; elsewhere 1."""
    return _spread(dim, axis, index, share)[1]


def _spread(dim: Dim, axis: Axis, index: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    pieces: list[tuple[Tensor, Tensor]] = []
    offset = 0
    for segment in resolve(dim):
        sizes = [size_of(factor) for factor in segment]
        old = torch.arange(math.prod(sizes)).reshape(sizes) + offset
        shared = torch.ones(sizes, dtype=share.dtype)
        if axis in segment:
            at = segment.index(axis)
            shape = [1] * len(sizes)
            shape[at] = len(index)
            missing = (index < 0).reshape(shape)
            old = old.index_select(at, index.clamp(min=0)).masked_fill(missing, -1)
            shared = share.reshape(shape).expand(old.shape)
        pieces.append((old.flatten(), shared.flatten()))
        offset += math.prod(sizes)
    return torch.cat([old for old, _ in pieces]), torch.cat([shared for _, shared in pieces])
