"""Sums of products of units, as where queries meet keys: whether replicas may have the roots of their shares there.

A layer that sums over its inputs shares its columns out between replicas. Where activations are multiplied with each
other, there are no columns: each replica has to be its unit times the root of its share, its gain, so that the products
sum to the unit's. Everything on the way to such a product must pass gains on, which is what is followed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from torch.fx import Node
from torch.fx.node import map_arg

from postgrad.growth._algebra import Axis, Dim, axes_of, size_of
from postgrad.growth._operation import Notes, Step, Value, operation_of, values_of

_MOVING = (
    "view reshape _unsafe_view flatten unflatten permute transpose t mT movedim swapaxes unsqueeze squeeze expand "
    "contiguous clone alias to _to_copy dropout feature_dropout slice select unbind chunk split split_with_sizes "
    "getitem detach detach_ neg mean roll avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d upsample_bilinear2d upsample_nearest2d upsample_bicubic2d"
)
_PASSING = "relu leaky_relu abs zero cat stack linalg_vector_norm"
_SUMMING = "linear conv1d conv2d conv3d matmul mm bmm addmm einsum embedding scaled_dot_product_attention"


def moves(step: Step) -> bool:
    """Whether an operation treats all units alike, and each by itself, linearly."""
    if step.name in ("pad", "constant_pad_nd"):
        return not step.named("value")
    return step.name in _MOVING.split()


def looks_only(step: Step) -> bool:
    """Whether an operation reads nothing but the type of what it is given."""
    return step.name.startswith("new_")


def note_product(step: Step, dim: Dim, scale: float | None = None) -> None:
    """Note that activations are multiplied over a dimension, and whether under one over the root of its size.

    Where no `scale` is given, it is what numbers before or behind the operation make of one.
    """
    scale = _scale_around(step.node) if scale is None else scale
    is_root = scale is not None and math.isclose(scale, size_of(dim) ** -0.5, rel_tol=1e-6)
    (step.notes.scaled if is_root else step.notes.multiplied).append((dim, step.where))


def fix_lost_gains(notes: Notes) -> None:
    """Fix axes over which activations are multiplied, where something else does not pass their gains on."""
    scaled = {axis: where for dim, where in notes.scaled for axis in axes_of(dim)}
    multiplied = {axis: where for dim, where in notes.multiplied for axis in axes_of(dim)}
    for axis in scaled.keys() & multiplied.keys():
        axis.reasons.setdefault(f"{scaled[axis]} and {multiplied[axis]} multiply over it, only one under its root")
    wanted = {axis: where for axis, where in (scaled | multiplied).items() if not axis.reasons}
    for axis, step in _losses(notes, wanted):
        axis.reasons.setdefault(
            f"{wanted[axis]} multiplies activations over it, and {step.where} keeps no factor of theirs"
        )


def _scale_around(node: Node) -> float | None:
    """The product of the numbers that what is multiplied, or the product itself, is multiplied by."""
    found: list[float] = []
    operands: list[Node] = []
    map_arg(node.args, operands.append)
    for operand in operands:
        before: Node | None = operand
        while before is not None and before.op == "call_function":
            before = _passed(before, found)
    behind = node
    while len(behind.users) == 1 and _passed(following := next(iter(behind.users)), found) is behind:
        behind = following
    return math.prod(found) if found else None


def _passed(node: Node, found: list[float]) -> Node | None:
    """What an operation that moves units, or multiplies all by one number (which is noted), does that to."""
    name, data = operation_of(node), node.args[0] if node.args else None
    if name in ("mul", "div") and isinstance(number := node.args[1], int | float) and number:
        found.append(number if name == "mul" else 1 / number)
    elif name not in _MOVING.split() or name == "mean":
        return None
    return data if isinstance(data, Node) else None


def _losses(notes: Notes, wanted: Iterable[Axis]) -> Iterator[tuple[Axis, Step]]:
    """The operations behind which it is unknown how great the units of an axis are."""
    inside: dict[int, set[Axis]] = {}
    powers: dict[tuple[int, Axis], int] = {}
    left = set(wanted)

    def axes(value: Value) -> set[Axis]:
        if id(value) not in inside:
            inside[id(value)] = left.intersection(axis for dim in value.dims for axis in axes_of(dim))
        return inside[id(value)]

    def power(value: Value, axis: Axis) -> int | None:
        return powers.get((id(value), axis), 1) if axis in axes(value) else None  # weights are made by no operation

    for step, made in notes.steps:
        reads, results = step.tensors(), list(values_of(made))
        for axis in {axis for value in (*reads, *results) for axis in axes(value)} & left:
            remains = any(axis in axes(each) for each in results)
            after = _power_after(step, [power(value, axis) for value in reads], remains)
            if after is None:
                yield axis, step
                left.discard(axis)
            else:
                powers.update({(id(each), axis): after for each in results})


def _power_after(step: Step, powers: Sequence[int | None], remains: bool) -> int | None:
    """The power of their gain that units are multiplied by after an operation; None where that is no number.

    `powers` are those of what it reads, None for what has not these units.
    """
    if looks_only(step):
        return 0
    has = [power for power in powers if power is not None]
    if step.name.startswith("conv") and remains and powers[0] is not None and powers[1] is not None:
        return None  # each channel by itself: it would have both the gain of what flows in and that of its filter
    if step.name in _SUMMING.split() or (step.name == "linalg_vector_norm" and not remains):
        return 1 if has and set(has) == {1} else None
    if moves(step) or step.name in _PASSING.split():
        return has[0] if len(set(has)) == 1 and (remains or step.name != "mean") else None
    if step.name == "expand_as":
        return powers[0] or 0
    if step.name == "mul":
        return sum(has)
    if step.name == "div":
        return (powers[0] or 0) - sum(power or 0 for power in powers[1:])
    if step.name in ("add", "sub"):
        same = len(powers) == 2 and powers[0] == powers[1]
        return powers[0] if same else None
    return None
