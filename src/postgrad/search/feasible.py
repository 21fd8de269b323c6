"""Whether a mutation can be, decided before anything is grown or trained."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from postgrad.errors import UserError
from postgrad.growth._algebra import Axis, Dim, axes_of, resolve, size_of
from postgrad.growth._places import Place
from postgrad.growth._steps import step_of
from postgrad.growth.blocks import BLOCKS
from postgrad.growth.operations import matching
from postgrad.growth.words import Operation, is_multiple
from postgrad.search.parent import LAYERS, Infeasible, Parent, halvings, most_poolings


@dataclass
class Plan:
    """What a network would be after the operations so far: nothing is grown.

    `sizes` are those of widened axes, `held` those that are tied by what is put in, with the operation; `more` counts
    the parameters of what is put in, given the sizes in the end; `kernels` are the grown ones; `pooled` the modules
    that are followed by pooling.
    """

    parent: Parent
    sizes: dict[Axis, int] = field(default_factory=dict)
    held: dict[Axis, str] = field(default_factory=dict)
    more: list[Callable[[], int]] = field(default_factory=list)
    kernels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    pooled: list[str] = field(default_factory=list)
    depth: int = 0

    def size(self, dim: Dim) -> int:
        """How many units a dimension would have."""
        return sum(
            math.prod(self.sizes.get(factor, factor.size) if isinstance(factor, Axis) else factor for factor in segment)
            for segment in resolve(dim)
        )

    def hold(self, operation: Operation, *dims: Dim) -> None:
        """Let nothing widen some dimensions any more: an operation has made more of them than the axis graph says."""
        self.held |= dict.fromkeys((axis for dim in dims for axis in axes_of(dim)), str(operation))

    def parameters(self, within: str = "") -> int:
        """How many parameters there would be in all, or before what is put in, in one module."""
        prefix = f"{within}." if within else ""
        own = sum(self.count(name) for name, _ in self.parent.model.named_parameters() if name.startswith(prefix))
        return own if within else own + sum(count() for count in self.more)

    def count(self, name: str) -> int:
        """How many elements a parameter would have."""
        dims = self.parent.graph.dims[name]
        layer = name.rpartition(".")[0]
        if layer in self.kernels and len(dims) > 2:
            return self.size(dims[0]) * self.size(dims[1]) * math.prod(self.kernels[layer])
        return math.prod(self.size(dim) for dim in dims)


def check_feasible(parent: Parent, operations: Sequence[Operation]) -> Plan:
    """What would become of a network by operations, one after the other; `Infeasible` says why it cannot be.

    >>> check_feasible(parent, [parse_operation("widen:layer=conv1,to=96")]).parameters()
    139114
    >>> check_feasible(parent, [parse_operation("widen:layer=fc,to=96")])
    Infeasible: fc: cannot be widened: it is what the network returns

    Decided on the axis graph and on how one image passes the network: nothing is grown or trained. What it lets pass
    may still be refused by the operator, which proves what it does. Names of modules are those that the parent has.
    Parameters are exact, but for a gate or two that may not be needed, and for layers that are widened after something
    was put behind them: there they are the most that it can be.
    """
    plan = Plan(parent, depth=parent.architecture.depth)
    for operation in operations:
        try:
            _RULES[operation.name](plan, operation.checked())
        except UserError as error:
            raise Infeasible(str(error)) from error
    _check_limits(plan)
    return plan


def _check_limits(plan: Plan) -> None:
    limits, total = plan.parent.limits, plan.parameters()
    if limits.parameters is not None and total > limits.parameters:
        raise Infeasible(f"it would have {total} parameters; the limit is {limits.parameters}")
    if plan.depth > max(limits.depth, plan.parent.architecture.depth):
        raise Infeasible(f"it would be {plan.depth} layers deep; the limit is {limits.depth}")


def _names(plan: Plan, pattern: str) -> list[str]:
    """The modules that a name stands for; one that is not there is refused."""
    known = [name for name, _ in plan.parent.model.named_modules() if name]
    return matching(pattern, known) if any(sign in pattern for sign in "*?[") else [_known(plan, pattern)]


def _known(plan: Plan, name: str) -> str:
    if name not in dict(plan.parent.model.named_modules()):
        raise Infeasible(f"{name}: the parent has no layer of that name")
    return name


def _widen(plan: Plan, operation: Operation) -> None:
    pattern, hash_, factor = str(operation.options["layer"]).partition("#")
    names = _names(plan, pattern)
    refused: list[Infeasible] = []
    seen: set[Axis] = set()
    for name in names:
        try:
            axis, unit = _axis(plan, name, f"{hash_}{factor}")
        except Infeasible as error:
            refused.append(error)
            continue
        if axis not in seen:
            seen.add(axis)
            _widen_axis(plan, f"{name}{hash_}{factor}", axis, unit, operation.options["to"])
    if refused and (not seen or len(names) == 1):
        raise refused[0]


def _axis(plan: Plan, name: str, factor: str) -> tuple[Axis, int]:
    """What would be widened, and of how many channels each of its units is."""
    graph = plan.parent.graph
    made = graph.made_by(name)
    if factor:
        if not factor[1:].isdecimal() or int(factor[1:]) >= len(made):
            raise Infeasible(f"{name}{factor}: it makes a product of {len(made)}")
        made = [made[int(factor[1:])]]
    if not made:
        raise Infeasible(f"{name}: it makes no channels of its own, so there is nothing to widen")
    axis = next((each for each in made if not each.fixed), None)
    if axis is None:
        raise Infeasible(f"{name}{factor}: cannot be widened: {made[0].fixed[0]}")
    return axis.axis, 1 if factor else size_of(graph.rows(name)) // axis.size


def _widen_axis(plan: Plan, layer: str, axis: Axis, unit: int, to: Any) -> None:
    before = plan.sizes.get(axis, axis.size)
    whole = next(each for each in plan.parent.graph.axes if each.axis is axis)
    several, reason = step_of(plan.parent.model, plan.parent.graph, whole)
    step = before if several > 1 else 1
    if axis in plan.held:
        raise Infeasible(f"{layer}: {plan.held[axis]} comes before and ties its channels; widen first")
    if is_multiple(to):
        wanted = before * float(to[:-1])
        after = max(round(wanted / step) * step, before + step)
    elif to % unit:
        raise Infeasible(f"{layer}: its channels grow in steps of {unit}, not to {to}")
    else:
        after = to // unit
    if after <= before:
        raise Infeasible(f"{layer}: it has {before * unit} channels, which is not less than {after * unit}")
    if (after - before) % step:
        raise Infeasible(f"{layer}: {reason}, so it grows by whole multiples of {before * unit}")
    if after * unit > plan.parent.limits.width:
        raise Infeasible(f"{layer}: it would have {after * unit} channels; the limit is {plan.parent.limits.width}")
    plan.sizes[axis] = after


def _place(plan: Plan, name: str) -> Place:
    """Where something is put: a module has to run once and give one tensor."""
    return plan.parent.place(_known(plan, name))


def _features(plan: Plan, where: Place) -> Dim:
    """The channels of what a module gives, as the axis graph knows them."""
    value = plan.parent.graph.outputs.get(where.name)
    if value is None or len(value.dims) != where.output.dim():
        return ((where.features,),)
    return value.dims[1 if where.spatial else -1]


def _put(plan: Plan, block: str, dim: Dim, options: Mapping[str, Any], layers: int) -> None:
    plan.more.append(lambda: _weights(block, features=plan.size(dim), **options))
    plan.depth += layers


@functools.cache
def _weights(block: str, **options: Any) -> int:
    with torch.device("meta"):
        return _total(BLOCKS[block](**options))


def _total(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _deepen(plan: Plan, operation: Operation) -> None:
    for name in _names(plan, str(operation.options["after"])):
        where = _place(plan, name)
        features = _features(plan, where)
        block = _last_block(where.module)
        if operation.options.get("kind", "residual") == "identity":
            form = {"spatial": where.spatial, "norm": where.norm, "form": "gated"}  # at most; no gate behind a ReLU
            _put(plan, "layer", features, form, 1)
        elif block is not None:
            _put_copy(plan, f"{name}.{block[0]}", block[1])
        elif where.spatial:
            _put(plan, "residual", features, {"spatial": where.spatial, "norm": where.norm}, 2)
        else:
            _put(plan, "residual_tokens" if where.output.dim() > 2 else "residual_features", features, {}, 2)


def _last_block(module: nn.Module) -> tuple[str, nn.Module] | None:
    """The last of a stage of blocks of one class, a copy of which would be put behind it."""
    blocks = list(module.named_children()) if isinstance(module, nn.Sequential) else []
    alike = len({type(each) for _, each in blocks}) == 1
    return blocks[-1] if alike and list(blocks[-1][1].children()) else None


def _put_copy(plan: Plan, name: str, block: nn.Module) -> None:
    plan.more.append(lambda: plan.parameters(name))
    plan.depth += sum(isinstance(each, LAYERS) for each in block.modules())


def _stack(plan: Plan, operation: Operation) -> None:
    for name in _names(plan, str(operation.options["stage"])):
        module = plan.parent.model.get_submodule(name)
        if not isinstance(module, nn.Sequential) or not len(module):
            raise Infeasible(f"{name}: it is no nn.Sequential of blocks, so there is none to stack")
        last, block = list(module.named_children())[-1]
        _put_copy(plan, f"{name}.{last}", block)


def _grow_kernel(plan: Plan, operation: Operation) -> None:
    for name in _names(plan, str(operation.options["layer"])):
        layer = plan.parent.model.get_submodule(name)
        if not isinstance(layer, LAYERS[:3]):
            raise Infeasible(f"{name}: only convolutions have a kernel")
        before = plan.kernels.get(name, layer.kernel_size)
        to = operation.options["to"]
        after = (to,) * len(before) if isinstance(to, int) else tuple(to)
        if len(after) != len(before) or after == before or min(b - a for a, b in zip(before, after, strict=True)) < 0:
            raise Infeasible(f"{name}: its kernel of {before} cannot grow to {after}")
        if any((b - a) % 2 for a, b in zip(before, after, strict=True)):
            raise Infeasible(f"{name}: its kernel of {before} grows by an even number of taps, not to {after}")
        plan.kernels[name] = after


def _branch(plan: Plan, operation: Operation) -> None:
    ways = operation.options.get("ways", 2)
    for name in _names(plan, str(operation.options["layer"])):
        where = _place(plan, name)
        layers = sum(isinstance(each, LAYERS) for each in where.module.modules())
        plan.depth += (ways - 1) * layers
        if operation.options.get("kind", "add") == "concat":
            plan.hold(operation, _features(plan, where))
        else:
            plan.more.append(lambda name=name: (ways - 1) * plan.parameters(name) + ways)  # type: ignore[misc]


def _add_skip(plan: Plan, operation: Operation) -> None:
    begin, end = (_place(plan, str(operation.options[key])) for key in ("source", "target"))
    if begin.at >= end.at:
        raise Infeasible(f"{end.name}: it is done before {begin.name}, so nothing can lead there from it")
    images = begin.spatial and (begin.spatial == end.spatial or end.output.dim() == 2)
    alike = not begin.spatial and not end.spatial and begin.output.shape[1:-1] == end.output.shape[1:-1]
    if not images and not alike:
        raise Infeasible(f"{end.name}: what it gives cannot be made from what {begin.name} gives")
    before, after = _features(plan, begin), _features(plan, end)

    def projection() -> int:
        inputs, outputs = plan.size(before), plan.size(after)
        return 1 + (inputs * outputs if inputs != outputs else 0)

    plan.more.append(projection)
    if plan.size(before) == plan.size(after):
        plan.hold(operation, before, after)
    else:
        plan.depth += 1


def _insert_group(plan: Plan, operation: Operation) -> None:
    groups = operation.options["groups"]
    for name in _names(plan, str(operation.options["after"])):
        where = _place(plan, name)
        if not where.spatial:
            raise Infeasible(f"{name}: it gives no images, which a grouped convolution takes")
        dim = _features(plan, where)
        if groups < 1 or plan.size(dim) % groups:
            raise Infeasible(f"{name}: {groups} groups do not divide its {plan.size(dim)} channels")
        plan.hold(operation, dim)
        gate = "gated" if operation.options.get("init", "identity") != "random" else "residual"
        _put(plan, "layer", dim, {"spatial": where.spatial, "groups": groups, "norm": where.norm, "form": gate}, 1)


def _insert_pool(plan: Plan, operation: Operation) -> None:
    for name in _names(plan, str(operation.options["after"])):
        where = _place(plan, name)
        if not where.spatial:
            raise Infeasible(f"{name}: it gives no images, which pooling takes")
        plan.pooled.append(name)
        try:
            pools = halvings(plan.parent.model, plan.parent.example, plan.pooled)
        except (RuntimeError, ValueError) as error:
            raise Infeasible(f"{name}: what follows takes no smaller image than it gets: {error}") from error
        most = most_poolings(plan.parent.architecture)
        if pools > most:
            side = plan.parent.architecture.side
            raise Infeasible(f"{name}: images of {side} pixels a side are halved at most {most} times, not {pools}")


def _group_layer(plan: Plan, operation: Operation) -> None:
    groups = operation.options["groups"]
    for name in _names(plan, str(operation.options["layer"])):
        layer = plan.parent.model.get_submodule(name)
        if not isinstance(layer, LAYERS[:3]) or layer.groups != 1:
            raise Infeasible(f"{name}: it is no dense convolution")
        sides = [plan.size(dim) for dim in plan.parent.graph.dims[f"{name}.weight"][:2]]
        if groups < 2 or any(each % groups for each in sides):
            raise Infeasible(f"{name}: {groups} groups do not divide {sides[1]} to {sides[0]} channels")
        weight = f"{name}.weight"
        plan.more.append(lambda weight=weight: plan.count(weight) // groups - plan.count(weight))  # type: ignore[misc]
        plan.hold(operation, *plan.parent.graph.dims[weight][:2])


def _insert_dropout(plan: Plan, operation: Operation) -> None:
    for name in _names(plan, str(operation.options["after"])):
        _place(plan, name)
    if not 0 <= operation.options["p"] < 1:
        raise Infeasible(f"dropout of {operation.options['p']}: it takes a probability of at least 0 and below 1")


_RULES: dict[str, Callable[[Plan, Operation], None]] = {
    "widen": _widen,
    "deepen": _deepen,
    "grow_kernel": _grow_kernel,
    "branch": _branch,
    "add_skip": _add_skip,
    "insert_group": _insert_group,
    "insert_dropout": _insert_dropout,
    "insert_pool": _insert_pool,
    "stack": _stack,
    "group_layer": _group_layer,
}
"""One for each operator (a test compares it with `OPERATORS`)."""
