"""Widening a layer of any network, and all layers coupled with it, without changing what the network computes.

New units are replicas of old ones, and what leads out of a unit is shared between its replicas (Net2Net, Chen,
Goodfellow and Shlens, arXiv:1511.05641), here through whatever stands between two layers: normalisation, residual sums,
concatenations, groups, attention. The shares are drawn, so that replicas do not stay each other's copies in training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from postgrad.changes import note_change
from postgrad.errors import UserError, unknown_name
from postgrad.growth._algebra import Axis, Dim, axes_of, resolve, size_of
from postgrad.growth._split import shared
from postgrad.growth.axes import AxisGraph, WidthAxis, analyse, shares, units
from postgrad.growth.certificate import Certificate, Witness
from postgrad.growth.moves import Along, Move
from postgrad.growth.transaction import transaction
from postgrad.growth.transfer import State, transfer

Init = Literal["replicate", "fanout_zero"]

CONCENTRATION = 10.0
"""Of the Dirichlet distribution that shares are drawn from."""
NOISE = 0.1
"""Standard deviation of what is added to the shares, weight by weight."""


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


def widen(
    model: nn.Module,
    layer: str,
    *,
    to: int,
    example: Tensor | tuple[Any, ...],
    optimizer: Optimizer | None = None,
    init: Init = "replicate",
    seed: int = 0,
    state: State = "split",
) -> Certificate:
    """Widen a layer, and every layer coupled with it, in place.

    >>> certificate = widen(model, "layer2.0.conv1", to=192, example=images, optimizer=optimizer)
    >>> certificate.max_error
    3.1e-15

    `layer` is a module's dotted name, and `to` the number of output channels that it shall have. Where those are a
    product (groups × channels, heads × their size), the outermost factor grows that can; `"layer#2"` names a factor, as
    `analyse(model, example).axes` lists them, and `to` is then that factor's size. `example` is an input as the network
    takes it, (N, C, H, W), or a tuple of its arguments.

    `init="replicate"` makes new units replicas of old ones, each of which is replicated as often as the others or once
    more; what leads out is shared by a draw from a Dirichlet(10) distribution, with noise on each weight that sums to
    zero over the replicas. `init="fanout_zero"` draws what leads into new units and lets nothing lead out of them yet;
    it is refused where the new units would take part in a mean (layer and group normalisation). Parameters are new
    objects; an `optimizer` goes on with them, its state carried over (`postgrad.growth.transfer`).

    Raises `UserError` for a layer that is not there, makes no channels or cannot be widened, with the operation and the
    layer that hold it, and where the network would no longer compute the same; it is then as it was.

    Source: Net2WiderNet (arXiv:1511.05641, section 2.2); uniform replication under layer normalisation is that of
    HyperCloning (arXiv:2409.12903), shares that differ are those of LEMON (arXiv:2310.07999).
    """
    if init not in get_args(Init):
        raise unknown_name("init", init, get_args(Init))
    graph = analyse(model, example)
    axis, size = _chosen(model, graph, layer, to)
    witness = Witness.of(model, example)
    arguments = {"layer": layer, "to": to, "init": init, "seed": seed}
    refused: UserError | None = None
    for plan in _plans(graph, axis, size, init, seed):
        try:
            with transaction(model, optimizer):
                return _carry_out(model, graph, plan, witness, arguments, optimizer, state)
        except UserError as error:
            refused = refused or error
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            refused = refused or UserError(
                f"{layer}: the network's own code does not follow when it is widened ({reason}); it was left as it was"
            )
    assert refused is not None
    raise refused


def _chosen(model: nn.Module, graph: AxisGraph, layer: str, to: int) -> tuple[WidthAxis, int]:
    """The axis to be widened, and the size that it shall have."""
    name, _, factor = layer.partition("#")
    modules = dict(model.named_modules())
    if name not in modules:
        raise unknown_name("layer", name, [each for each in modules if each])
    made = graph.made_by(name)
    if not made:
        raise UserError(
            f"{layer}: it makes no channels of its own, so there is nothing to widen; name the layer before"
        )
    if factor:
        if not factor.isdigit() or not 1 <= int(factor) + 1 <= len(made):
            raise UserError(f"{layer}: {name} makes a product of {len(made)}; its factors are {_named(made)}")
        axis = made[int(factor)]
        _check_free(layer, axis)
        return axis, _checked(layer, axis, to, axis.size, 1)
    free = [axis for axis in made if not axis.fixed]
    if not free:
        _check_free(layer, made[0])
    total = size_of(graph.rows(name))
    for axis in free:
        if to % (total // axis.size) == 0:
            return axis, _checked(layer, axis, to // (total // axis.size), total, total // axis.size)
    steps = [total // axis.size for axis in free]
    raise UserError(f"{layer}: its {total} channels grow in steps of {' or '.join(map(str, steps))}, so not to {to}")


def _named(axes: Sequence[WidthAxis]) -> str:
    return ", ".join(f"#{number} ({axis.size})" for number, axis in enumerate(axes))


def _check_free(layer: str, axis: WidthAxis) -> None:
    if axis.fixed:
        more = f" (and {len(axis.fixed) - 1} more)" if len(axis.fixed) > 1 else ""
        raise UserError(f"{layer}: cannot be widened: {axis.fixed[0]}{more}")


def _checked(layer: str, axis: WidthAxis, size: int, before: int, step: int) -> int:
    if size <= axis.size:
        raise UserError(f"{layer}: it has {before} channels; give a greater number, not {size * step}")
    if axis.even and size % axis.size:
        below, above = size // axis.size * axis.size, (size // axis.size + 1) * axis.size
        choices = [n * step for n in (below, above) if n > axis.size]
        raise UserError(
            f"{layer}: {axis.even[0]} takes a mean over it, so all its units must become equally many: "
            f"to={' or '.join(map(str, choices))}, not {size * step}"
        )
    return size


def _plans(graph: AxisGraph, axis: WidthAxis, size: int, init: Init, seed: int) -> Iterator[list[Widening]]:
    """What may be widened: the axis alone, and where the network's code wants that, heads along with their sum."""
    generator = torch.Generator().manual_seed(seed)
    alone = _widening(axis, size, init, generator)
    yield [alone]
    heads = _heads_of(graph, axis)
    if heads and size % axis.size == 0:
        times = size // axis.size
        yield [alone, *(_widening(each, each.size * times, init, generator) for each in heads)]


def _heads_of(graph: AxisGraph, axis: WidthAxis) -> list[WidthAxis]:
    """Axes that are the outer factor of a product as wide as the axis: heads, in code that divides one by the other."""
    by_axis = {each.axis: each for each in graph.axes}
    found: dict[Axis, None] = {}
    for name, number in sorted(graph.notes.columns):
        dim = resolve(graph.dims[name][number])
        rows = [other for other in range(len(graph.dims[name])) if other != number]
        if (
            len(dim) == 1
            and len(dim[0]) == 2
            and isinstance(dim[0][0], Axis)
            and size_of(dim) == axis.size
            and any(axes_of(graph.dims[name][other]) == [axis.axis] for other in rows)
            and not by_axis[dim[0][0]].fixed
        ):
            found[dim[0][0]] = None
    return [by_axis[each] for each in found]


def _widening(axis: WidthAxis, size: int, init: Init, generator: torch.Generator) -> Widening:
    old = axis.size
    if init == "fanout_zero" and (axis.even or axis.scaled):
        raise UserError(
            f"{axis.name}: {(axis.even or axis.scaled)[0]} looks at all its units, so new ones cannot be drawn; "
            'use init="replicate"'
        )
    if init == "fanout_zero":
        missing = torch.full((size - old,), -1)
        share = torch.cat([torch.ones(old), torch.zeros(size - old)]).double()
        return Widening(axis.axis, torch.cat([torch.arange(old), missing]), share, torch.ones(size).double())
    rounds = [torch.randperm(old, generator=generator) for _ in range(math.ceil(size / old) - 1)]
    index = torch.cat([torch.arange(old), *rounds])[:size]
    draws = _gamma(size, generator)
    total = torch.zeros(old, dtype=torch.float64).index_add_(0, index, draws)
    share = draws / total[index]
    # Where queries meet keys under a scale of one over the root of their size, both have the root of the share, and of
    # what that scale lost.
    gain = (share * math.sqrt(size / old)).sqrt() if axis.scaled else torch.ones_like(share)
    return Widening(axis.axis, index, share, gain)


def _gamma(count: int, generator: torch.Generator) -> Tensor:
    """Draws whose shares of their sums are Dirichlet(10): sums of ten exponential ones."""
    uniform = torch.rand(int(CONCENTRATION), count, generator=generator, dtype=torch.float64)
    return -uniform.clamp(min=1e-300).log().sum(0)


def _carry_out(
    model: nn.Module,
    graph: AxisGraph,
    plan: Sequence[Widening],
    witness: Witness,
    arguments: Mapping[str, Any],
    optimizer: Optimizer | None,
    state: State,
) -> Certificate:
    generator = torch.Generator().manual_seed(int(arguments["seed"]) + 1)
    moves, unrounded = _resize(model, graph, plan, generator)
    shapes = {name: list(move.new.shape) for name, move in moves.items()}
    attributes = _update_attributes(model, graph, plan)
    if optimizer is not None:
        transfer(optimizer, list(moves.values()), state=state)
    entry = {"operator": "widen", "arguments": dict(arguments), "shapes": shapes, "attributes": attributes}
    certificate = witness.certify(
        model,
        entry=entry,
        train=True,
        expected=_expected(graph, plan),
        moves=list(moves.values()),
        unrounded=unrounded,
        changed=[name for name in shapes if _leads_out(graph, name, plan)],
    )
    note_change(model, "growth", **entry)
    return certificate


def _leads_out(graph: AxisGraph, name: str, plan: Sequence[Widening]) -> bool:
    dims = graph.dims[name]
    return any(
        each.axis in axes_of(dim) for each in plan for n, dim in enumerate(dims) if (name, n) in graph.notes.columns
    )


def _resize(
    model: nn.Module, graph: AxisGraph, plan: Sequence[Widening], generator: torch.Generator
) -> tuple[dict[str, Move], dict[str, Tensor]]:
    """Put a new tensor in the place of each that has an axis of the plan; what had to be rounded is given as it was."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    places = _places(model)
    moves: dict[str, Move] = {}
    unrounded: dict[str, Tensor] = {}
    for name, dims in graph.dims.items():
        along = _along(graph, name, dims, plan)
        if not along:
            continue
        old = tensors[name]
        made = _made(old, along, [(name, each.dim) in graph.notes.columns for each in along], generator)
        if made.dtype != old.dtype:
            unrounded[name] = made
        made = made.to(old.dtype)
        new = nn.Parameter(made, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else made
        for module, attribute in places[id(old)]:
            kind: dict[str, Any] = module._parameters if isinstance(old, nn.Parameter) else module._buffers
            kind[attribute] = new
        moves[name] = Move(old, new, tuple(along))
    return moves, unrounded


def _places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Everywhere that a tensor stands, by its identity."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
            places.setdefault(id(tensor), []).append((module, attribute))
    return places


def _along(graph: AxisGraph, name: str, dims: Sequence[Dim], plan: Sequence[Widening]) -> list[Along]:
    """How the dimensions of one tensor become wider; two axes of one dimension are spread one after the other."""
    found: list[Along] = []
    for number, dim in enumerate(dims):
        inside = [each for each in plan if each.axis in axes_of(dim)]
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
        summed = (name, number) in graph.notes.columns
        found.append(Along(number, index, *((out, gain) if summed else (gain, out))))
    return found


def _one_by_one(dim: Dim, plan: Sequence[Widening]) -> Iterator[tuple[Widening, Dim]]:
    """Each widening, with the dimension as the ones before it have left it."""
    for each in plan:
        yield each, dim
        wide = Axis(len(each.index))
        dim = tuple(tuple(wide if factor is each.axis else factor for factor in segment) for segment in resolve(dim))


def _made(old: Tensor, along: Sequence[Along], summed: Sequence[bool], generator: torch.Generator) -> Tensor:
    """The new tensor: rows repeated first, then what is summed over shared out; in float64 where it was computed."""
    tensor = old.detach()
    if any(
        bool((each.gradient if columns else each.value).ne(1).any())
        for each, columns in zip(along, summed, strict=True)
    ):
        return _scaled(tensor.double(), along)
    for each, columns in sorted(zip(along, summed, strict=True), key=lambda pair: pair[1]):
        index = each.index.to(tensor.device)
        if bool((index < 0).any()):
            tensor = _with_new(tensor, each.dim, index, columns, generator)
        elif columns:
            tensor = shared(tensor, each.dim, index, each.value.to(tensor.device), NOISE, generator)
        else:
            tensor = tensor.index_select(each.dim, index)
    return tensor.clone(memory_format=torch.preserve_format)


def _scaled(tensor: Tensor, along: Sequence[Along]) -> Tensor:
    for each in along:
        shape = [1] * tensor.ndim
        shape[each.dim] = -1
        tensor = tensor.index_select(each.dim, each.index.to(tensor.device)) * each.value.to(tensor).reshape(shape)
    return tensor


def _with_new(tensor: Tensor, dim: int, index: Tensor, columns: bool, generator: torch.Generator) -> Tensor:
    """Old units as they are; new ones with nothing that leads out, and drawn like the old ones in what leads in."""
    wide = tensor.index_select(dim, index.clamp(min=0))
    new = (index < 0).nonzero().flatten()
    shape = list(wide.shape)
    shape[dim] = len(new)
    if columns:
        return wide.index_copy(dim, new, wide.new_zeros(shape))
    if tensor.ndim > 1 and tensor.is_floating_point():
        spread = tensor.double().std(correction=0).item()
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64).mul_(spread)
        return wide.index_copy(dim, new, drawn.to(wide))
    picked = torch.randint(tensor.shape[dim], (len(new),), generator=generator).to(index.device)
    return wide.index_copy(dim, new, tensor.index_select(dim, picked))


def _expected(graph: AxisGraph, plan: Sequence[Widening]) -> Callable[[str, Tensor], Tensor | None]:
    """What each module must return now: what it did, its units repeated as the plan says."""

    def of(name: str, before: Tensor) -> Tensor | None:
        value = graph.outputs.get(name)
        if value is None or len(value.dims) != before.ndim:
            return None
        for number, dim in enumerate(value.dims):
            inside = [each for each in plan if each.axis in axes_of(dim)]
            if inside and size_of(dim) != before.shape[number]:
                return None
            for each, wide in _one_by_one(dim, inside):
                index = units(wide, each.axis, each.index)
                if bool((index < 0).any()):
                    return None
                shape = [1] * before.ndim
                shape[number] = -1
                gain = shares(wide, each.axis, each.index, each.gain)
                before = before.index_select(number, index) * gain.to(before).reshape(shape)
        return before

    return of


_WIDTH = re.compile(r"(heads?|dim|dims|channels?|features?|hidden|width|groups?|planes|size|embed|inner|chans)$")


def _update_attributes(
    model: nn.Module, graph: AxisGraph, plan: Sequence[Widening]
) -> dict[str, dict[str, int | list[int]]]:
    """Let layers say the sizes that they have now; returns what was set, by module."""
    sizes = _Sizes(plan)
    found: dict[str, dict[str, int | list[int]]] = {}
    modules = dict(model.named_modules())
    for layer, dim in graph.notes.grouped:
        if sizes.of(dim) != size_of(dim):
            name = "num_groups" if isinstance(modules[layer], nn.GroupNorm) else "groups"
            found.setdefault(layer, {})[name] = sizes.of(dim)
    for layer, dims in graph.notes.normalised:
        now = [sizes.of(dim) for dim in dims]
        if now != [size_of(dim) for dim in dims]:
            found.setdefault(layer, {})["normalized_shape"] = now
    for layer, module in modules.items():
        said = _said_by(layer, module, graph, plan, sizes, found.get(layer, {}))
        if said:
            found.setdefault(layer, {}).update(said)
    for layer, values in found.items():
        for name, value in values.items():
            setattr(modules[layer], name, tuple(value) if isinstance(value, list) else value)
    return found


class _Sizes:
    """The sizes that dimensions have once a plan is carried out."""

    def __init__(self, plan: Sequence[Widening]) -> None:
        self._now = {each.axis: len(each.index) for each in plan}

    def of(self, dim: Dim) -> int:
        return sum(
            math.prod(self._now.get(factor, factor.size) if isinstance(factor, Axis) else factor for factor in segment)
            for segment in resolve(dim)
        )


def _said_by(
    layer: str,
    module: nn.Module,
    graph: AxisGraph,
    plan: Sequence[Widening],
    sizes: _Sizes,
    groups: Mapping[str, Any],
) -> dict[str, int | list[int]]:
    """The attributes of one module that say a size which is now another."""
    prefix = f"{layer}." if layer else ""
    own = {name[len(prefix) :]: dims for name, dims in graph.dims.items() if name.startswith(prefix)}
    if not any(each.axis in axes_of(dim) for dims in own.values() for dim in dims for each in plan):
        return {}
    now = {name: [sizes.of(dim) for dim in dims] for name, dims in own.items()}
    weight = (
        now.get("weight") or now.get("parametrizations.weight.original0") or now.get("parametrizations.weight.original")
    )
    if isinstance(module, nn.modules.conv._ConvNd) and weight:
        count = int(groups.get("groups", module.groups))
        out, into = (weight[1], weight[0]) if module.transposed else (weight[0], weight[1] * count)
        return _other(module, {"out_channels": out, "in_channels": into})
    if isinstance(module, nn.Linear) and weight:
        return _other(module, {"out_features": weight[0], "in_features": weight[1]})
    if isinstance(module, nn.modules.batchnorm._NormBase):
        count = next(sizes for name, sizes in now.items() if name in ("weight", "running_mean"))[0]
        return _other(module, {"num_features": count})
    if isinstance(module, nn.GroupNorm) and weight:
        return _other(module, {"num_channels": weight[0]})
    if isinstance(module, nn.Embedding) and weight:
        return _other(module, {"embedding_dim": weight[1]})
    if isinstance(module, nn.PReLU) and weight:
        return _other(module, {"num_parameters": weight[0]})
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {}
    return _of_its_own(module, own, sizes)


def _other(module: nn.Module, values: Mapping[str, int]) -> dict[str, int | list[int]]:
    return {name: value for name, value in values.items() if getattr(module, name) != value}


def _of_its_own(module: nn.Module, own: Mapping[str, tuple[Dim, ...]], sizes: _Sizes) -> dict[str, int | list[int]]:
    """Whole numbers that are called like a width, where all that has such a size in the module has now one other.

    A module's code may well use them (`num_heads`); what does not fit is refused by what the network then computes.
    """
    then: dict[int, set[int]] = {}
    for dims in own.values():
        for dim in dims:
            parts = [dim, *(((axis,),) for axis in axes_of(dim))]
            parts += [(segment[-2:],) for segment in resolve(dim) if len(segment) > 2]
            for part in parts:
                then.setdefault(size_of(part), set()).add(sizes.of(part))
    found: dict[str, int | list[int]] = {}
    for name, value in vars(module).items():
        if type(value) is int and _WIDTH.search(name) and len(after := then.get(value, set())) == 1:
            (now,) = after
            if now != value:
                found[name] = now
    return found
