"""Operators of growth by name, and calls of them in one word: `widen:layer=conv1,to=96`. Imports no torch."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from postgrad.errors import UserError, unknown_name
from postgrad.methods.registry import checked_options, parse_settings

SETTLED = frozenset({"model", "example", "optimizer", "loss", "averages"})
"""Parameters of operators that whatever calls them settles, so that they are no options."""


@dataclass(frozen=True)
class Operator:
    """Where an operator is (`module:function`), and which of its parameters name modules."""

    target: str
    places: tuple[str, ...]

    def load(self) -> Any:
        """Import the function."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


OPERATORS = {
    "widen": Operator("postgrad.growth.width:widen", ("layer",)),
    "deepen": Operator("postgrad.growth.depth:deepen", ("after",)),
    "grow_kernel": Operator("postgrad.growth.kernels:grow_kernel", ("layer",)),
    "branch": Operator("postgrad.growth.topology:branch", ("layer",)),
    "add_skip": Operator("postgrad.growth.topology:add_skip", ("source", "target")),
    "insert_group": Operator("postgrad.growth.topology:insert_group", ("after",)),
    "insert_dropout": Operator("postgrad.growth.topology:insert_dropout", ("after",)),
    "insert_pool": Operator("postgrad.growth.approximate:insert_pool", ("after",)),
    "stack": Operator("postgrad.growth.approximate:stack", ("stage",)),
    "group_layer": Operator("postgrad.growth.approximate:group_layer", ("layer",)),
}
"""Name, in a journal too -> the operator. A fixed table: a journal cannot name code."""


@dataclass(frozen=True)
class Operation:
    """One call of an operator: its name and its options."""

    name: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        """The word that `parse_operation` reads."""
        return f"{self.name}:{','.join(f'{key}={_written(value)}' for key, value in self.options.items())}"

    def checked(self) -> Operation:
        """The same with options as the operator takes them (this imports it); `UserError` for a wrong one.

        The size that a layer is widened to may be a multiple of the old one: "1.5x".
        """
        options, operator = dict(self.options), OPERATORS[self.name].load()
        times = options.pop("to") if self.name == "widen" and is_multiple(options.get("to")) else None
        checked = checked_options(self.name, operator, options, settled=SETTLED)
        if times is not None:
            checked = {key: checked.get(key, times) for key in self.options}
        parameters = inspect.signature(operator).parameters.values()
        needed = [each.name for each in parameters if each.default is each.empty and each.name not in SETTLED]
        if missing := [name for name in needed if name not in checked]:
            form = ",".join(f"{name}=…" for name in needed)
            raise UserError(f"{self.name}: {' and '.join(missing)} is missing; write {self.name}:{form}")
        return Operation(self.name, checked)


def parse_operation(word: str) -> Operation:
    """Read one word; an unknown operator is a `UserError` with the nearest name.

    >>> parse_operation("widen:layer=layer*.conv1,to=1.5x")
    Operation(name='widen', options={'layer': 'layer*.conv1', 'to': '1.5x'})
    """
    name, _, settings = word.partition(":")
    if name.strip() not in OPERATORS:
        raise unknown_name("growth operator", name.strip(), OPERATORS)
    places = OPERATORS[name.strip()].places  # 1.10 is a layer, and so is *.conv1, which YAML would take for an alias
    return Operation(name.strip(), parse_settings(settings, source=f"growth '{word}'", as_written=places))


def parse_stages(stages: Mapping[Any, str | Sequence[str]]) -> dict[int, tuple[Operation, ...]]:
    """Read what is grown after which epoch, in their order.

    >>> parse_stages({3: ["widen:layer=conv1,to=96"], 5: "deepen:after=layer3"})

    Raises `UserError` for an epoch that is no whole number of 1 or more, and for what `parse_operation` refuses.
    """
    read: dict[int, tuple[Operation, ...]] = {}
    for epoch, words in stages.items():
        if isinstance(epoch, bool) or not str(epoch).isdecimal() or int(epoch) < 1:
            raise UserError(f"growth: expected a number of epochs, 1 or more, after which it grows, got '{epoch}'")
        each = (words,) if isinstance(words, str) else tuple(words)
        if not each:
            raise UserError(f"growth: nothing grows after epoch {epoch}; leave it out")
        read[int(epoch)] = tuple(map(parse_operation, each))
    return dict(sorted(read.items()))


def parse_stage(word: str) -> tuple[int, str]:
    """Read `3:widen:layer=conv1,to=96`, as the command line has it: the epoch, and the word of the operation."""
    epoch, _, operation = word.partition(":")
    if not epoch.strip().isdecimal():
        raise UserError(f"growth '{word}': begin with the epoch after which it grows, as in 3:widen:layer=conv1,to=96")
    return int(epoch), str(parse_operation(operation))


def is_multiple(size: Any) -> bool:
    """Whether a size is a multiple of the old one, such as 1.5x; one that is no number above 1 is a `UserError`."""
    if not isinstance(size, str) or not size.endswith(("x", "×")):
        return False
    try:
        above = float(size[:-1]) > 1
    except ValueError:
        above = False
    if not above:
        raise UserError(f"widen: expected a size such as 192, or a multiple above 1 such as 1.5x, got '{size}'")
    return True


def _written(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
