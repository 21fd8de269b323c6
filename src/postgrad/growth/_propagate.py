"""How the dimensions of an operation's result follow from those of what it is given, for the operations torch exports.

Each rule takes the values that an operation reads and gives those that it makes; on the way it makes dimensions equal
that must be, notes which dimensions of which weights are summed over, and fixes what cannot be widened. An operation
without a rule fixes everything that it touches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from postgrad.growth._algebra import Dim, equal_pieces, fix, fixed, free, product, size_of, split, unify


@dataclass(frozen=True)
class Value:
    """A tensor: its dimensions, and where it is a weight as it stands, that weight's name and the order of its dims."""

    dims: tuple[Dim, ...]
    weight: str | None = None
    order: tuple[int, ...] = ()


Values = Value | list["Values"] | None


@dataclass
class Notes:
    """What the rules found out besides dimensions."""

    columns: set[tuple[str, int]] = field(default_factory=set)
    """(weight, dimension) that is summed over with what flows in."""
    rows: set[tuple[str, int]] = field(default_factory=set)
    """(weight, dimension) that is used in any other way."""
    even: list[tuple[Dim, str]] = field(default_factory=list)
    """A dimension over which a mean is taken: all its units must become equally more; and what takes it."""
    scaled: list[tuple[Dim, str]] = field(default_factory=list)
    """A dimension over which queries meet keys, under a scale of one over its root; and where."""
    grouped: list[tuple[str, Dim]] = field(default_factory=list)
    """A layer, and its groups."""
    normalised: list[tuple[str, tuple[Dim, ...]]] = field(default_factory=list)
    """A layer, and the dimensions that it normalises over."""
    steps: list[tuple[Step, Values]] = field(default_factory=list)
    """All operations with what they made, in their order."""


@dataclass(frozen=True)
class Step:
    """One operation of the exported graph, with what it reads."""

    node: Node
    read: tuple[Any, ...]
    """Its arguments, values in place of nodes, keyword arguments put in their places."""
    notes: Notes

    @property
    def name(self) -> str:
        """The operation's name: aten.conv2d.default is conv2d, aten.relu_.default relu."""
        return operation_of(self.node)

    @property
    def where(self) -> str:
        """The operation and the layer that it is of, for messages."""
        layer = layer_of(self.node)
        return f"{self.name} in {layer}" if layer else self.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its result."""
        return tuple(int(size) for size in self.node.meta["val"].shape)

    def at(self, position: int, default: Any = None) -> Any:
        """An argument, or its default where it was not given."""
        return self.read[position] if position < len(self.read) else default

    def named(self, name: str) -> Any:
        """An argument by its name, where overloads have it in different places."""
        target: Any = self.node.target
        return self.read[[argument.name for argument in target._schema.arguments].index(name)]

    def tensors(self) -> list[Value]:
        """All tensors that it reads."""
        found: list[Value] = []
        for argument in self.read:
            for each in argument if isinstance(argument, list | tuple) else [argument]:
                if isinstance(each, Value):
                    found.append(each)
        return found

    def unify(self, first: Dim, second: Dim) -> None:
        """Make two dimensions the same, on account of this operation."""
        unify(first, second, f"{self.where} holds it to what is fixed")

    def fix(self, *dims: Dim, reason: str) -> None:
        """Fix dimensions, on account of this operation."""
        fix(dims, f"{self.where} {reason}")


Rule = Callable[[Step], Values]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule for operations of these names."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def operation_of(node: Node) -> str:
    """The name of a node's operation, without its library, overload and the underscore of working in place."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = target.overloadpacket.__name__
        return name[:-1] if name.endswith("_") and not name.endswith("__") else name
    return getattr(target, "__name__", str(target))


def layer_of(node: Node) -> str:
    """The dotted name of the innermost module that a node was traced in."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def follow(step: Step) -> Values:
    """What an operation makes, by its rule; without one everything it reads is fixed, and its result is too."""
    known = RULES.get(step.name)
    made = known(step) if known else _unknown(step, "is not among the operations that growth can follow")
    step.notes.steps.append((step, made))
    return made


def _unknown(step: Step, reason: str) -> Values:
    for value in step.tensors():
        step.fix(*value.dims, reason=reason)
    return fixed_like(step.node.meta.get("val"))


def fixed_like(example: Any) -> Values:
    """Fixed dimensions for a tensor, or for each of several."""
    if isinstance(example, list | tuple):
        return [fixed_like(each) for each in example]
    if not isinstance(example, torch.Tensor):
        return None
    return Value(tuple(fixed(int(size)) for size in example.shape))


ELEMENTWISE = (
    "abs alias alpha_dropout atan bernoulli bitwise_not celu ceil clamp clamp_max clamp_min clone contiguous cos "
    "detach detach_ dropout elu erf exp expm1 feature_alpha_dropout feature_dropout floor gelu hardshrink hardsigmoid "
    "hardswish hardtanh isnan leaky_relu lift_fresh_copy log log1p log_sigmoid logical_not mish nan_to_num neg relu "
    "relu6 reciprocal round rrelu rsqrt selu sigmoid sign silu sin softplus softshrink softsign sqrt square tanh "
    "tanhshrink threshold to _to_copy type_as zero zeros_like ones_like empty_like rand_like randn_like full_like fill "
    "add sub mul div true_divide floor_divide maximum minimum pow where masked_fill addcmul addcdiv lerp copy rsub "
    "eq ne lt le gt ge logical_and logical_or logical_xor fmod remainder __and__ __or__ bitwise_and bitwise_or"
)


@rule(*ELEMENTWISE.split())
def _elementwise(step: Step) -> Values:
    """All tensors meet dimension by dimension, from the last one; where one is 1 wide it is repeated."""
    values = step.tensors()
    shape = step.shape
    dims: list[Dim] = [fixed(size) for size in shape]
    for position in range(1, len(shape) + 1):
        meeting = [value.dims[-position] for value in values if position <= len(value.dims)]
        full = [dim for dim in meeting if size_of(dim) == shape[-position]]
        for dim in full[1:]:
            step.unify(full[0], dim)
        repeated = [dim for dim in meeting if size_of(dim) != shape[-position]]
        step.fix(*repeated, reason="repeats its one unit along another's")
        if full:
            dims[-position] = full[0]
    _are_rows(step, values)
    only = len(values) == 1 and step.name in ("alias", "clone", "contiguous", "detach", "to", "_to_copy")
    return Value(tuple(dims), *((values[0].weight, values[0].order) if only else ()))


def _are_rows(step: Step, values: Sequence[Value]) -> None:
    for value in values:
        if value.weight is not None and step.name not in ("alias", "clone", "contiguous", "detach", "to", "_to_copy"):
            step.notes.rows.update((value.weight, dim) for dim in value.order)


def _sums_over(step: Step, weight: Value, dim: int, activation: Dim) -> None:
    """A weight's dimension is summed over together with an activation's."""
    step.unify(activation, weight.dims[dim])
    if weight.weight is None:
        step.fix(weight.dims[dim], reason="sums over it with a weight that is computed, not stored")
    else:
        step.notes.columns.add((weight.weight, weight.order[dim]))


def _gives_rows(step: Step, weight: Value | None, dim: int = 0) -> None:
    if weight is not None and weight.weight is not None:
        step.notes.rows.add((weight.weight, weight.order[dim]))


def _per_channel(step: Step, channels: Dim, *parameters: Value | None) -> None:
    for parameter in parameters:
        if isinstance(parameter, Value):
            step.unify(channels, parameter.dims[0])
            _gives_rows(step, parameter)


@rule("conv1d", "conv2d", "conv3d", "convolution", "_convolution")
def _convolution(step: Step) -> Values:
    data, weight, bias = step.read[0], step.read[1], step.at(2)
    plain = step.name.startswith("conv") and step.name != "convolution"
    groups = int(step.at(6, 1) if plain else step.at(8, 1))
    if not plain and step.at(6):
        return _transposed(step, data, weight, bias, groups)
    batched = len(data.dims) == len(weight.dims)
    channels = data.dims[1 if batched else 0]
    _slides(step, data, weight)
    out = _grouped(step, channels, weight, groups)
    _per_channel(step, out, bias)
    _gives_rows(step, weight)
    spatial = [fixed(size) for size in step.shape[-len(weight.dims[2:]) :]]
    return Value((*data.dims[: 1 if batched else 0], out, *spatial))


def _slides(step: Step, data: Value, weight: Value) -> None:
    _are_rows(step, [data])
    step.fix(*weight.dims[2:], reason="has it as the size of its kernel")
    step.fix(*data.dims[2 - len(weight.dims) :], reason="works along it")


def _grouped(step: Step, channels: Dim, weight: Value, groups: int) -> Dim:
    """What a convolution's weight makes of its input channels, group by group."""
    if groups == 1:
        _sums_over(step, weight, 1, channels)
        return weight.dims[0]
    out, into = weight.dims[0], weight.dims[1]
    group = free(groups)
    step.notes.grouped.append((layer_of(step.node), group))
    if size_of(into) == 1:
        fix([into], f"{step.where} takes each channel by itself")
        step.unify(channels, group)
    else:
        inside = product([group, into])
        if inside is None:
            step.fix(channels, into, out, reason="is in groups across a concatenation")
            return out
        step.unify(channels, inside)
        if weight.weight is None:
            step.fix(into, reason="sums over it with a weight that is computed, not stored")
        else:
            step.notes.columns.add((weight.weight, weight.order[1]))
    each = size_of(out) // groups
    outside = product([group, free(each) if each > 1 else fixed(1)])
    if outside is None:
        step.fix(channels, into, out, reason="is in groups across a concatenation")
    else:
        step.unify(out, outside)
    return out


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(step: Step) -> Values:
    return _transposed(step, step.read[0], step.read[1], step.at(2), int(step.at(6, 1)))


def _transposed(step: Step, data: Value, weight: Value, bias: Value | None, groups: int) -> Values:
    if groups != 1:
        return _unknown(step, "is a transposed convolution in groups, which growth cannot follow")
    _slides(step, data, weight)
    batched = len(data.dims) == len(weight.dims)
    _sums_over(step, weight, 0, data.dims[1 if batched else 0])
    _per_channel(step, weight.dims[1], bias)
    _gives_rows(step, weight, 1)
    return Value(
        (
            *data.dims[: 1 if batched else 0],
            weight.dims[1],
            *(fixed(size) for size in step.shape[2 - len(weight.dims) :]),
        )
    )


@rule("linear")
def _linear(step: Step) -> Values:
    data, weight, bias = step.read[0], step.read[1], step.at(2)
    _sums_over(step, weight, 1, data.dims[-1])
    _per_channel(step, weight.dims[0], bias)
    _gives_rows(step, weight)
    return Value((*data.dims[:-1], weight.dims[0]))


@rule("matmul", "mm", "bmm")
def _matmul(step: Step) -> Values:
    first, second = step.read[0], step.read[1]
    if len(first.dims) < 2 or len(second.dims) < 2:
        return _unknown(step, "multiplies vectors, which growth does not follow")
    if second.weight is not None and first.weight is None and len(second.dims) == 2:
        _sums_over(step, second, 0, first.dims[-1])
        _gives_rows(step, second, 1)
    elif first.weight is not None and second.weight is None and len(first.dims) == 2:
        _sums_over(step, first, 1, second.dims[-2])
        _gives_rows(step, first, 0)
    else:
        step.unify(first.dims[-1], second.dims[-2])
        step.fix(first.dims[-1], reason="multiplies activations over it")
        _are_rows(step, [first, second])
    return Value((*_broadcast(step, first.dims[:-2], second.dims[:-2]), first.dims[-2], second.dims[-1]))


def _broadcast(step: Step, *operands: Sequence[Dim]) -> list[Dim]:
    dims: list[Dim] = []
    for position in range(1, max(map(len, operands)) + 1):
        meeting = [each[-position] for each in operands if position <= len(each)]
        widest = max(meeting, key=size_of)
        for dim in meeting:
            if size_of(dim) == size_of(widest):
                step.unify(widest, dim)
            else:
                step.fix(dim, reason="repeats its one unit along another's")
        dims.insert(0, widest)
    return dims


@rule("addmm")
def _addmm(step: Step) -> Values:
    bias, data, weight = step.read[:3]
    _sums_over(step, weight, 0, data.dims[-1])
    _gives_rows(step, weight, 1)
    _per_channel(step, weight.dims[1], bias)
    return Value((data.dims[0], weight.dims[1]))


@rule("einsum")
def _einsum(step: Step) -> Values:
    """Letters that meet are one dimension; those that vanish are summed over."""
    terms, arrow, result = str(step.read[0]).replace(" ", "").partition("->")
    if "." in terms or not arrow:
        return _unknown(step, "has dimensions without a letter, which growth does not follow")
    operands = step.read[1]
    meeting: dict[str, list[Dim]] = {}
    for term, value in zip(terms.split(","), operands, strict=True):
        for letter, dim in zip(term, value.dims, strict=True):
            meeting.setdefault(letter, []).append(dim)
    letters = {letter: _broadcast(step, *([dim] for dim in dims))[0] for letter, dims in meeting.items()}
    for letter, dim in letters.items():
        if letter not in result:
            step.fix(dim, reason="sums over it")
    _are_rows(step, operands)
    return Value(tuple(letters[letter] for letter in result))


@rule("embedding")
def _embedding(step: Step) -> Values:
    weight, indices = step.read[0], step.read[1]
    step.fix(weight.dims[0], reason="has one row for each word")
    _gives_rows(step, weight, 1)
    return Value((*indices.dims, weight.dims[1]))


@rule("scaled_dot_product_attention")
def _attention(step: Step) -> Values:
    """Queries (…, L, d), keys (…, S, d) and values (…, S, dv), all with the same heads, or groups of them."""
    query, key, value, mask = step.read[0], step.read[1], step.read[2], step.at(3)
    causal, scale, in_groups = bool(step.at(5)), step.at(6), bool(step.at(7))
    if not len(query.dims) == len(key.dims) == len(value.dims):
        return _unknown(step, "repeats some of its inputs along others")
    _are_rows(step, [query, key, value])
    step.unify(query.dims[-1], key.dims[-1])
    if scale is None:
        step.notes.scaled.append((query.dims[-1], step.where))
    else:
        step.fix(query.dims[-1], reason="multiplies queries and keys over it under a scale of its own")
    step.unify(key.dims[-2], value.dims[-2])
    for position in range(2, len(query.dims)):
        heads, groups = query.dims[-position - 1], key.dims[-position - 1]
        step.unify(groups, value.dims[-position - 1])
        if in_groups and size_of(heads) != size_of(groups):
            inside = product([groups, fixed(size_of(heads) // size_of(groups))])
            if inside is None:
                step.fix(heads, groups, reason="is in groups across a concatenation")
            else:
                step.unify(heads, inside)
        else:
            step.unify(heads, groups)
    if isinstance(mask, Value) or causal:
        step.fix(query.dims[-2], key.dims[-2], reason="has a mask along it")
    if isinstance(mask, Value):
        step.fix(*mask.dims, reason="has it as a mask")
    step.notes.even.append((key.dims[-2], step.where))
    return Value((*query.dims[:-1], value.dims[-1]))


@rule("batch_norm", "instance_norm")
def _batch_norm(step: Step) -> Values:
    data = step.read[0]
    _are_rows(step, [data])
    parameters = [value for value in step.read[1:5] if isinstance(value, Value)]
    _per_channel(step, data.dims[1], *parameters)
    step.notes.even.extend((dim, step.where) for number, dim in enumerate(data.dims) if number != 1)
    return Value(data.dims)


@rule("layer_norm", "rms_norm")
def _layer_norm(step: Step) -> Values:
    data, shape = step.read[0], step.read[1]
    _are_rows(step, [data])
    normalised = data.dims[-len(shape) :]
    for parameter in (value for value in step.read[2:4] if isinstance(value, Value)):
        for dim, own in zip(normalised, parameter.dims, strict=True):
            step.unify(dim, own)
        _are_rows(step, [parameter])
    step.notes.even.extend((dim, step.where) for dim in normalised)
    step.notes.normalised.append((layer_of(step.node), tuple(normalised)))
    return Value(data.dims)


@rule("group_norm")
def _group_norm(step: Step) -> Values:
    data, groups = step.read[0], int(step.read[1])
    _are_rows(step, [data])
    each = free(size_of(data.dims[1]) // groups)
    number = free(groups)
    step.notes.grouped.append((layer_of(step.node), number))
    inside = product([number, each])
    assert inside is not None
    step.unify(data.dims[1], inside)
    step.notes.even.extend((dim, step.where) for dim in (each, *data.dims[2:]))
    _per_channel(step, data.dims[1], *(value for value in step.read[2:4] if isinstance(value, Value)))
    return Value(data.dims)


@rule("prelu")
def _prelu(step: Step) -> Values:
    data, weight = step.read[0], step.read[1]
    _are_rows(step, [data])
    if size_of(weight.dims[0]) > 1:
        _per_channel(step, data.dims[1], weight)
    else:
        step.fix(weight.dims[0], reason="has one slope for all channels")
    return Value(data.dims)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "sort", "argsort", "flip", "roll")
def _along(step: Step) -> Values:
    data, along = step.read[0], step.named("dims" if step.name in ("flip", "roll") else "dim")
    _are_rows(step, [data])
    dims = list(along) if isinstance(along, list | tuple) else [along]
    if step.name == "roll" and not dims:
        dims = list(range(len(data.dims)))
    for dim in dims if data.dims else ():
        step.fix(data.dims[dim], reason="goes along it")
    return [Value(data.dims), Value(data.dims)] if step.name == "sort" else Value(data.dims)


@rule(
    "mean",
    "amax",
    "amin",
    "sum",
    "var",
    "std",
    "linalg_vector_norm",
    "logsumexp",
    "norm",
    "prod",
    "any",
    "all",
    "max",
    "min",
    "argmax",
)
def _reduce(step: Step) -> Values:
    """Means and extremes stay what they are where all units become equally more; sums do not."""
    data = step.read[0]
    place = 2 if step.name in ("linalg_vector_norm", "norm") else 1
    along, keep = step.at(place), bool(step.at(place + 1, False))
    if step.name in ("var", "std", "any", "all", "max", "min", "argmax", "prod", "norm") or isinstance(
        along, bool | float
    ):
        return _unknown(step, "is not among the operations that growth can follow")
    count = len(data.dims)
    dims = range(count) if along is None or along == [] else [along] if isinstance(along, int) else along
    reduced = {dim % count for dim in dims}
    for dim in reduced:
        if step.name in ("mean", "amax", "amin"):
            step.notes.even.append((data.dims[dim], step.where))
        else:
            step.fix(data.dims[dim], reason="sums over it")
    if data.weight is not None:
        step.fix(*(data.dims[dim] for dim in reduced), reason="computes with it from a weight")
        _are_rows(step, [data])
    return Value(
        tuple(fixed(1) if n in reduced else dim for n, dim in enumerate(data.dims) if keep or n not in reduced)
    )


SPATIAL = (
    "max_pool avg_pool adaptive_avg_pool adaptive_max_pool upsample_nearest upsample_bilinear upsample_bicubic lp_pool "
    "reflection_pad replication_pad"
)


@rule(*(f"{name}{dims}d{more}" for name in SPATIAL.split() for dims in (1, 2, 3) for more in ("", "_with_indices")))
@rule("_adaptive_avg_pool2d", "upsample_linear1d", "upsample_trilinear3d")
def _spatial(step: Step) -> Values:
    """The last one, two or three dimensions are worked along, as the name says; the others pass."""
    count = int(step.name.removesuffix("_with_indices")[-2])
    return _worked_along(step, range(len(step.read[0].dims) - count, len(step.read[0].dims)))


@rule("pixel_shuffle")
def _pixel_shuffle(step: Step) -> Values:
    return _worked_along(step, range(len(step.read[0].dims) - 3, len(step.read[0].dims)))


@rule("pad", "constant_pad_nd")
def _pad(step: Step) -> Values:
    borders, last = step.read[1], len(step.read[0].dims) - 1
    return _worked_along(step, [last - n // 2 for n, border in enumerate(borders) if border])


def _worked_along(step: Step, along: Sequence[int]) -> Values:
    data = step.read[0]
    _are_rows(step, [data])
    step.fix(*(data.dims[dim] for dim in along), reason="works along it")
    made = step.node.meta["val"]
    first = made[0] if isinstance(made, list | tuple) else made
    value = Value(tuple(fixed(int(first.shape[n])) if n in along else dim for n, dim in enumerate(data.dims)))
    return [value for _ in made] if isinstance(made, list | tuple) else value


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "_reshape_alias", "view_as", "reshape_as")
def _view(step: Step) -> Values:
    """Dimensions multiplied and taken apart again, in groups of equal size."""
    data, shape = step.read[0], step.shape
    _are_rows(step, [data])
    if 0 in shape:
        return _unknown(step, "has no elements")
    dims: list[Dim] = []
    olds, news = list(data.dims), list(shape)
    while olds or news:
        old, new = [olds.pop(0)] if olds else [], [news.pop(0)] if news else []
        while math.prod(map(size_of, old)) != math.prod(new):
            if math.prod(map(size_of, old)) < math.prod(new):
                old.append(olds.pop(0))
            else:
                new.append(news.pop(0))
        if not new:  # dimensions of 1 at the end
            step.fix(*old, reason="leaves it out")
        elif len(old) == len(new) == 1:
            dims.append(old[0])
        else:
            dims.extend(_regroup(step, old, new))
    return Value(tuple(dims))


def _regroup(step: Step, old: list[Dim], new: list[int]) -> list[Dim]:
    for dim in old:
        if size_of(dim) == 1:
            step.fix(dim, reason="leaves it out")
    whole = product([dim for dim in old if size_of(dim) != 1]) if old else fixed(1)
    found = None if whole is None else split(whole, new)
    if found is None:
        step.fix(*old, reason="takes it apart in another way than it is made")
        return [fixed(size) for size in new]
    return found


@rule("permute")
def _permute(step: Step) -> Values:
    data, order = step.read[0], [dim % len(step.read[0].dims) for dim in step.read[1]]
    return _reordered(data, order)


@rule("transpose", "swapaxes", "swapdims", "t", "mT", "numpy_T", "adjoint")
def _transpose(step: Step) -> Values:
    data = step.read[0]
    first, second = (step.read[1], step.read[2]) if len(step.read) > 2 else (-2, -1)
    order = list(range(len(data.dims)))
    if len(order) > 1:
        order[first], order[second] = order[second], order[first]
    return _reordered(data, order)


@rule("movedim")
def _movedim(step: Step) -> Values:
    count = len(step.read[0].dims)
    sources, targets = ([at] if isinstance(at, int) else list(at) for at in step.read[1:3])
    order: list[int | None] = [None] * count
    for source, target in zip(sources, targets, strict=True):
        order[target % count] = source % count
    others = iter(dim for dim in range(count) if dim not in order)
    return _reordered(step.read[0], [next(others) if dim is None else dim for dim in order])


def _reordered(data: Value, order: Sequence[int]) -> Value:
    names = tuple(data.order[dim] for dim in order) if data.weight is not None else ()
    return Value(tuple(data.dims[dim] for dim in order), data.weight, names)


@rule("unsqueeze")
def _unsqueeze(step: Step) -> Values:
    data, at = step.read[0], step.read[1]
    at %= len(data.dims) + 1
    _are_rows(step, [data])
    return Value((*data.dims[:at], fixed(1), *data.dims[at:]))


@rule("squeeze")
def _squeeze(step: Step) -> Values:
    data, at = step.read[0], step.at(1)
    count = len(data.dims)
    asked = range(count) if at is None else [at] if isinstance(at, int) else at
    gone = {dim % count for dim in asked if size_of(data.dims[dim]) == 1}
    step.fix(*(data.dims[dim] for dim in gone), reason="leaves it out")
    _are_rows(step, [data])
    return Value(tuple(dim for number, dim in enumerate(data.dims) if number not in gone))


@rule("expand", "expand_as", "broadcast_to")
def _expand(step: Step) -> Values:
    data, shape = step.read[0], step.shape
    _are_rows(step, [data])
    more = len(shape) - len(data.dims)
    dims = [fixed(size) for size in shape[:more]]
    for dim, size in zip(data.dims, shape[more:], strict=True):
        if size_of(dim) == size:
            dims.append(dim)
        else:
            step.fix(dim, reason="repeats its one unit")
            dims.append(fixed(size))
    return Value(tuple(dims))


@rule("select")
def _select(step: Step) -> Values:
    data, at = step.read[0], step.read[1] % len(step.read[0].dims)
    step.fix(data.dims[at], reason="takes one of its units by its number")
    _are_rows(step, [data])
    return Value((*data.dims[:at], *data.dims[at + 1 :]))


@rule("unbind")
def _unbind(step: Step) -> Values:
    data = step.read[0]
    at = step.at(1, 0) % len(data.dims)
    step.fix(data.dims[at], reason="takes its units apart")
    _are_rows(step, [data])
    one = Value((*data.dims[:at], *data.dims[at + 1 :]))
    return [one for _ in range(size_of(data.dims[at]))]


@rule("slice", "narrow", "index_select", "slice_scatter", "select_scatter")
def _slice(step: Step) -> Values:
    if step.name != "slice":
        return _unknown(step, "takes some of its units by their numbers")
    data, at = step.read[0], step.at(1, 0) % len(step.read[0].dims)
    _are_rows(step, [data])
    size = step.shape[at]
    if size == size_of(data.dims[at]):
        return Value(data.dims)
    piece = _one_of_equal_pieces(step, data.dims[at], size)
    if piece is None:
        step.fix(data.dims[at], reason="takes some of its units by their numbers")
    return Value((*data.dims[:at], piece or fixed(size), *data.dims[at + 1 :]))


def _one_of_equal_pieces(step: Step, dim: Dim, size: int) -> Dim | None:
    """A half, a third or a quarter, as a chunk would give it; what code counts out so is mostly asked of the size."""
    whole, start = size_of(dim), int(step.named("start") or 0)
    start += whole if start < 0 else 0
    if step.named("step") != 1 or not size or whole % size or whole // size > 4 or start % size:
        return None
    pieces = equal_pieces(dim, whole // size, f"{step.where} cuts it")
    return None if pieces is None else pieces[start // size]


@rule("chunk", "split", "split_with_sizes", "tensor_split")
def _chunk(step: Step) -> Values:
    data = step.read[0]
    at = step.at(2, 0) % len(data.dims)
    made = step.node.meta["val"]
    sizes = [int(each.shape[at]) for each in made]
    _are_rows(step, [data])
    pieces = equal_pieces(data.dims[at], len(sizes), f"{step.where} cuts it") if len(set(sizes)) == 1 else None
    if pieces is None:
        step.fix(data.dims[at], reason="cuts it into pieces by their numbers")
        pieces = [fixed(size) for size in sizes]
    return [Value((*data.dims[:at], piece, *data.dims[at + 1 :])) for piece in pieces]


@rule("getitem")
def _getitem(step: Step) -> Values:
    values: Values = step.read[0][step.read[1]]
    return values


@rule("cat", "concat", "concatenate")
def _cat(step: Step) -> Values:
    values = [value for value in step.read[0] if not _is_empty(value)]
    at = step.at(1, 0) % len(values[0].dims)
    _are_rows(step, values)
    dims = list(values[0].dims)
    for other in values[1:]:
        for number, dim in enumerate(other.dims):
            if number == at:
                dims[at] = (*dims[at], *dim)
            else:
                step.unify(dims[number], dim)
    return Value(tuple(dims))


@rule("_assert_tensor_metadata")
def _nothing(step: Step) -> Values:
    return None


@rule("_weight_norm")
def _weight_norm(step: Step) -> Values:
    """Rows (or what else its number says) of a weight, each brought to a length; the other dimensions have a part."""
    direction, length, kept = step.read[0], step.read[1], step.read[2]
    if not length.dims:
        return _unknown(step, "brings all of it to one length")
    step.unify(direction.dims[kept], length.dims[kept])
    for dim in range(len(direction.dims)):
        if dim != kept:
            step.fix(direction.dims[dim], length.dims[dim], reason="sums over it")
    _are_rows(step, [direction, length])
    return Value(direction.dims)


@rule("new_zeros", "new_ones", "new_full", "new_empty", "arange", "zeros", "ones", "full", "scalar_tensor", "linspace")
def _made(step: Step) -> Values:
    return fixed_like(step.node.meta["val"])


def _is_empty(value: Value) -> bool:
    return len(value.dims) == 1 and size_of(value.dims[0]) == 0


@rule("stack")
def _stack(step: Step) -> Values:
    values = step.read[0]
    at = step.at(1, 0) % (len(values[0].dims) + 1)
    _are_rows(step, values)
    for other in values[1:]:
        for first, second in zip(values[0].dims, other.dims, strict=True):
            step.unify(first, second)
    return Value((*values[0].dims[:at], fixed(len(values)), *values[0].dims[at:]))


@rule("index")
def _index(step: Step) -> Values:
    """Rows taken by fixed numbers along the first dimensions; the others pass."""
    data, indices = step.read[0], step.read[1]
    count = len(indices)
    asked: Any = step.node.args[1]
    if any(index is None or index.meta["val"].dtype in (torch.bool, torch.uint8) for index in asked):
        return _unknown(step, "takes some of its units by their numbers")
    step.fix(*data.dims[:count], reason="takes some of its units by their numbers")
    _are_rows(step, [data])
    passing = data.dims[count:]
    made = step.shape[: len(step.shape) - len(passing)]
    return Value((*(fixed(size) for size in made), *passing))


def free_weight(name: str, tensor: torch.Tensor) -> Value:
    """A weight, every dimension of which could be widened as far as is known yet."""
    return Value(tuple(free(size) for size in tensor.shape), name, tuple(range(tensor.ndim)))
