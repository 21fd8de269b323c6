"""One operation of an exported graph, with the dimensions that it reads; what all rules work on, and note in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from postgrad.growth._algebra import Dim, fix, fixed, free, unify


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
    multiplied: list[tuple[Dim, str]] = field(default_factory=list)
    """A dimension over which activations are multiplied without such a scale; and where."""
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


def rule(rules: dict[str, Rule], *names: str) -> Callable[[Rule], Rule]:
    """Enter a rule for operations of these names."""

    def enter(function: Rule) -> Rule:
        rules.update(dict.fromkeys(names, function))
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


def unknown(step: Step, reason: str) -> Values:
    """Fix everything that an operation reads, and what it makes."""
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


def values_of(made: Values) -> Iterator[Value]:
    """All tensors that an operation makes."""
    if isinstance(made, Value):
        yield made
    for each in made if isinstance(made, list) else ():
        yield from values_of(each)


def are_rows(step: Step, values: Sequence[Value]) -> None:
    """Note weights as used otherwise than by summing over what flows in."""
    for value in values:
        if value.weight is not None:
            step.notes.rows.update((value.weight, dim) for dim in value.order)


def free_weight(name: str, tensor: torch.Tensor) -> Value:
    """A weight, every dimension of which could be widened as far as is known yet."""
    return Value(tuple(free(size) for size in tensor.shape), name, tuple(range(tensor.ndim)))
