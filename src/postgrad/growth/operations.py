"""Calls of growth operators carried out one after the other, for whoever asks for them in words."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from postgrad.errors import UserError, unknown_name
from postgrad.growth._algebra import size_of
from postgrad.growth._steps import step_of
from postgrad.growth.axes import AxisGraph, WidthAxis, analyse
from postgrad.growth.certificate import Certificate
from postgrad.growth.journal import journal_of
from postgrad.growth.transaction import transaction
from postgrad.growth.words import OPERATORS, Operation, is_multiple
from postgrad.progress import progress

Example = Tensor | tuple[Any, ...]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Grown:
    """One operator that was carried out: on which module, what changed there, which layers changed with it."""

    operation: Operation
    place: str
    change: str
    coupled: tuple[str, ...]
    parameters: int
    """How many the network has now."""
    certificate: Certificate
    seconds: float


def grow(
    model: nn.Module,
    operations: Sequence[Operation],
    *,
    example: Example,
    optimizer: Optimizer | None = None,
    seed: int = 0,
    say: Say = lambda message: None,
) -> list[Grown]:
    """Carry out calls of operators, in their order and in place: all of them, or none.

    >>> grow(model, [parse_operation("widen:layer=layer*.conv1,to=1.5x")], example=images)[0].change
    '64 → 96'

    A name with `*`, `?` or `[` stands for all modules that it matches, `*` for dots too: `layer*.conv1` is
    layer1.0.conv1 and layer4.1.conv1. Widened are then those of them that can be, coupled ones once; `say` is told
    which cannot. A multiple of a size is rounded to what the layer's channels allow, which is said. Where an operation
    has no seed, it takes `seed` plus the number of times that the network was grown before.

    Raises `UserError` for a pattern without a match, and whatever the operators raise; model and optimizer are then as
    they were.
    """
    checked = [operation.checked() for operation in operations]
    grown: list[Grown] = []
    with transaction(model, optimizer):
        for operation in checked:
            calls = list(_calls(model, operation, example, say))
            with progress(f"growing ({operation})", len(calls), unit="layers") as advance:
                for call in calls:
                    grown.append(_carry_out(model, call, example, optimizer, seed))
                    advance(note=call.options[OPERATORS[call.name].places[0]])
    return grown


def _carry_out(model: nn.Module, call: Operation, example: Example, optimizer: Optimizer | None, seed: int) -> Grown:
    started = time.perf_counter()
    operator = OPERATORS[call.name].load()
    taken = inspect.signature(operator).parameters
    options = dict(call.options)
    if "seed" in taken:
        options.setdefault("seed", seed + len(journal_of(model)))
    if "optimizer" in taken:
        options["optimizer"] = optimizer
    before = _shapes(model)
    certificate: Certificate = operator(model, **options, example=example)
    places = [str(call.options[place]).partition("#")[0] for place in OPERATORS[call.name].places]
    entry: Any = certificate.journal[-1]
    resized = dict.fromkeys(_layer(name) for name in entry.get("shapes", {}))
    return Grown(
        operation=call,
        place=" → ".join(places),
        change=_change(places[0], before, entry),
        coupled=tuple(name for name in resized if name not in places),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        certificate=certificate,
        seconds=time.perf_counter() - started,
    )


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _layer(weight: str) -> str:
    """The module that a weight belongs to, also where that has it parametrized."""
    return weight.partition(".parametrizations.")[0] if ".parametrizations." in weight else weight.rpartition(".")[0]


def _change(place: str, before: dict[str, list[int]], entry: Any) -> str:
    """From the sizes that its weight had to those that it has, or the block that was put in."""
    blocks = [_block(each["block"], each.get("options", {})) for each in entry.get("insertions", [])]
    if blocks:
        return ", ".join(blocks)
    for name, after in entry.get("shapes", {}).items():
        if _layer(name) == place:
            sizes = [pair for pair in zip(before[name], after, strict=True) if pair[0] != pair[1]]
            return " → ".join("×".join(map(str, each)) for each in zip(*sizes, strict=True))
    return ""


def _block(name: str, options: dict[str, Any]) -> str:
    return f"+ copy of {options['of']}" if name == "copy" else f"+ {name.replace('_', ' ')}"


def _calls(model: nn.Module, operation: Operation, example: Example, say: Say) -> Iterator[Operation]:
    """The operation with the names of modules in place of patterns, and sizes in place of multiples."""
    place = OPERATORS[operation.name].places[0]
    pattern, hash_, factor = str(operation.options[place]).partition("#")
    many = len(OPERATORS[operation.name].places) == 1 and any(sign in pattern for sign in "*?[")
    names = matching(pattern, [name for name, _ in model.named_modules() if name]) if many else [pattern]
    multiple = is_multiple(operation.options.get("to"))
    if operation.name != "widen" or not (many or multiple):
        for name in names:
            yield replace(operation, options={**operation.options, place: f"{name}{hash_}{factor}"})
        return
    graph = analyse(model, example)
    seen: set[Any] = set()
    refused: list[str] = []
    for name in names:
        layer = f"{name}{hash_}{factor}"
        axis, step = _axis(model, graph, name, factor)
        if axis is None or axis.fixed:
            refused.append(f"{layer} ({axis.fixed[0]})" if axis else "")
        elif axis.axis not in seen:
            seen.add(axis.axis)
            to = operation.options["to"]
            if multiple:
                to = _size(layer, axis, step, step_of(model, graph, axis)[0], str(to), say)
            yield replace(operation, options={**operation.options, "layer": layer, "to": to})
    told = [each for each in refused if each]
    if not seen:
        reason = f": {told[0]}" if told else "; name layers that make channels, such as convolutions"
        raise UserError(f"{operation}: none of these can be widened{reason}")
    if told:
        say(f"not widened: {', '.join(told)}")


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that a pattern matches as a whole, `*` standing for dots too; for none, a `UserError` with the nearest.

    >>> matching("layer*.conv1", ["conv1", "layer1.0.conv1", "layer1.0.bn1"])
    ['layer1.0.conv1']
    """
    found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
        raise UserError(f"no layer matches '{pattern}'; the nearest are {', '.join(near)}")
    return found


def _axis(model: nn.Module, graph: AxisGraph, name: str, factor: str) -> tuple[WidthAxis | None, int]:
    """The axis of a layer that is to grow, and of how many channels each of its units is; None where it makes none."""
    if name not in dict(model.named_modules()):
        raise unknown_name("layer", name, [each for each, _ in model.named_modules() if each])
    made = graph.made_by(name)
    if factor:
        if not factor.isdecimal() or int(factor) >= len(made):
            raise UserError(f"{name}#{factor}: {name} makes a product of {len(made)}; count its factors from 0")
        return made[int(factor)], 1
    if not made:
        return None, 1
    axis = next((each for each in made if not each.fixed), made[0])
    return axis, size_of(graph.rows(name)) // axis.size


def _size(layer: str, axis: WidthAxis, step: int, at_once: int, times: str, say: Say) -> int:
    """So many times as many channels, rounded to a number of units that the axis can have."""
    before = axis.size * step
    wanted = before * float(times[:-1])
    by = step * at_once
    to = max(round(wanted / by) * by, before + by)
    if to != wanted:
        steps = f", as they grow in steps of {by}" if by > 1 else ""
        say(f"{layer}: {times} of {before} channels would be {wanted:g}; it gets {to}{steps}")
    return to
