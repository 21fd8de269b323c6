"""Widening a layer of any network, and all layers coupled with it, without changing what the network computes.

New units are replicas of old ones, and what leads out of a unit is shared between its replicas (Net2Net, Chen,
Goodfellow and Shlens, arXiv:1511.05641), here through whatever stands between two layers: normalisation, residual sums,
concatenations, groups, attention. The shares are drawn, so that replicas do not stay each other's copies in training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from postgrad.changes import note_change
from postgrad.errors import UserError, unknown_name
from postgrad.growth._algebra import Axis, axes_of, resolve, size_of
from postgrad.growth._attributes import Said, attributes_of, set_attributes
from postgrad.growth._resize import Dimension, Plan, Start, Widening, expected, resize
from postgrad.growth._streams import any_size
from postgrad.growth.axes import AxisGraph, WidthAxis, analyse
from postgrad.growth.certificate import Certificate, Witness
from postgrad.growth.initialise import Init, Loss, drawn, greatest_gradient, replicated
from postgrad.growth.transaction import transaction
from postgrad.growth.transfer import Averages, State, transfer, transfer_averages


def widen(
    model: nn.Module,
    layer: str,
    *,
    to: int,
    example: Tensor | tuple[Any, ...],
    optimizer: Optimizer | None = None,
    averages: Averages = (),
    init: Init = "replicate",
    loss: Loss | None = None,
    seed: int = 0,
    state: State = "split",
) -> Certificate:
    """Widen a layer, and every layer coupled with it, in place.

    >>> certificate = widen(model, "layer2.0.conv1", to=192, example=images, optimizer=optimizer)
    >>> certificate.max_error
    3.1e-15

    `layer` is a module's dotted name, and `to` the number of output channels that it shall have. Where those are a
    product (groups × channels, heads × their size), the outermost factor grows that can; `"layer#2"` names a factor, as
    `analyse(model, example).axes` lists them, and `to` is then that factor's size: for a convolution in groups, or one
    before a group normalisation, #0 is the number of groups and #1 the channels within each; for a joint projection to
    queries, keys and values #0 is these three (or #1, where heads stand outside), #1 the heads, #2 their size; for the
    joint projection of a gated MLP #0 is the two halves, #1 the hidden units.

    Parameters
    ----------
    example : an input as the network takes it, (N, C, H, W), or a tuple of its arguments.
    optimizer : goes on with the new parameters, its state carried over as `state` says (`postgrad.growth.transfer`).
    averages : of the network's weights; they grow with it (`postgrad.growth.transfer_average`).
    init : "replicate" (default) makes new units replicas of old ones, each of which is replicated as often as the
        others or once more; what leads out is shared by a draw from a Dirichlet(10) distribution, with noise on each
        weight that sums to zero over the replicas. "fanout_zero" draws what leads into new units and lets nothing lead
        out of them yet. "gradmax" likewise, but what leads in is chosen such that the gradient of what leads out is
        greatest (`postgrad.growth.initialise`). "random" draws what leads out of them as well, so that the network
        computes something else, and its certificate states how far: what exact growth is to be compared with.
    loss : for "gradmax" alone: a function of the network that gives a loss, `lambda net: F.cross_entropy(net(x), y)`.
        It is called up to forty times, on a copy in the mode that the network is in.
    seed : of all draws.

    Where layer normalisation takes a mean over the units, "replicate" takes a multiple of their number. For any other
    number, and for "fanout_zero", new units are instead the mean of the old ones, or zero under RMS normalisation; that
    can be where only layers and sums make the units, and all that works with them stands behind such a normalisation.
    A weight that is both embedding and classifier grows by multiples too, where a normalisation stands directly before
    the classifier.

    Raises `UserError` for a layer that is not there, makes no channels or cannot be widened, with the operation and the
    layer that hold it, and where the network would no longer compute the same; it is then as it was.

    Source: Net2WiderNet (arXiv:1511.05641, section 2.2); uniform replication under layer normalisation is that of
    HyperCloning (arXiv:2409.12903), shares that differ and means under layer normalisation are those of LEMON
    (arXiv:2310.07999), "gradmax" is arXiv:2201.05125.
    """
    if init not in get_args(Init):
        raise unknown_name("init", init, get_args(Init))
    if (init == "gradmax") != (loss is not None):
        raise UserError(
            'init="gradmax" chooses new units by a loss: give loss=, a function of the network, with it alone'
        )
    graph = analyse(model, example)
    chosen = _chosen(model, graph, layer, to)
    call = _Call(
        model, graph, layer, {"layer": layer, "to": to, "init": init, "seed": seed}, optimizer, averages, state
    )
    plans = list(_plans(model, graph, chosen, init, seed))
    rows = {} if loss is None else greatest_gradient(model, graph, plans[0], loss, call.generator())
    witness = Witness.of(model, example)
    refused: UserError | None = None
    for plan in plans:
        for said in _sayings(model, graph, plan):
            try:
                with transaction(model, optimizer):
                    return call.carry_out(plan, said, rows, witness)
            except UserError as error:
                refused = refused or error
            except (RuntimeError, AssertionError, ValueError, IndexError) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                refused = refused or UserError(
                    f"{layer}: the network's own code does not follow when it is widened ({reason}); it was left as it "
                    "was"
                )
    assert refused is not None
    raise _instead(graph, chosen) or refused


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """The axis to be widened, the size that it shall have, and how many channels each of its units stands for."""

    layer: str
    axis: WidthAxis
    size: int
    step: int


def _chosen(model: nn.Module, graph: AxisGraph, layer: str, to: int) -> _Chosen:
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
        if not factor.isdigit() or int(factor) >= len(made):
            named = ", ".join(f"#{number} ({axis.size})" for number, axis in enumerate(made))
            raise UserError(f"{layer}: {name} makes a product of {len(made)}; its factors are {named}")
        axis = made[int(factor)]
        _check_free(layer, axis)
        if to <= axis.size:
            raise UserError(f"{layer}: there are {axis.size} of it; give a greater number, not {to}")
        return _Chosen(layer, axis, to, 1)
    free = [axis for axis in made if not axis.fixed]
    if not free:
        _check_free(layer, made[0])
    total = size_of(graph.rows(name))
    if to <= total:
        raise UserError(f"{layer}: it has {total} channels; give a greater number, not {to}")
    for axis in free:
        if to % (total // axis.size) == 0:
            return _Chosen(layer, axis, to // (total // axis.size), total // axis.size)
    steps = sorted({total // axis.size for axis in free})
    near = sorted({each for step in steps for each in (to // step * step, to // step * step + step) if each > total})
    raise UserError(f"{layer}: its {total} channels grow in steps of {_or(steps)}: to={_or(near)}, not {to}")


def _or(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def _check_free(layer: str, axis: WidthAxis) -> None:
    if axis.fixed:
        more = f" (and {len(axis.fixed) - 1} more)" if len(axis.fixed) > 1 else ""
        raise UserError(f"{layer}: cannot be widened: {axis.fixed[0]}{more}")


def _plans(model: nn.Module, graph: AxisGraph, chosen: _Chosen, init: Init, seed: int) -> Iterator[Plan]:
    """What may be done: widen the axis alone, or, where the network's code wants that, heads along with their sum."""
    axis, size = chosen.axis, chosen.size
    generator = torch.Generator().manual_seed(seed)
    if init == "random":
        alone = Plan((_drawn_throughout(graph, drawn(axis, size)),))
    elif init == "gradmax" or (init == "fanout_zero" and not axis.even):
        alone = Plan((drawn(axis, size),))
    elif init == "fanout_zero" or (axis.even and size % axis.size):
        alone = _between_norms(model, graph, chosen)
    else:
        alone = _repeated(graph, axis, size, generator)
    yield alone
    if init in ("gradmax", "random"):
        return
    for factors in _factors_of(graph, axis):
        if factors and all((size * each.size) % axis.size == 0 for each in factors):
            more = (replicated(each, size * each.size // axis.size, generator) for each in factors)
            yield dataclasses.replace(alone, widenings=(*alone.widenings, *more))


def _drawn_throughout(graph: AxisGraph, widening: Widening) -> Widening:
    starts: dict[Dimension, Start] = dict.fromkeys(graph.notes.columns, "drawn")
    return dataclasses.replace(widening, starts=starts)


def _between_norms(model: nn.Module, graph: AxisGraph, chosen: _Chosen) -> Plan:
    axis, size = chosen.axis, chosen.size
    why = ""
    if all(each.startswith(("layer_norm ", "rms_norm ")) for each in axis.even):
        try:
            return any_size(model, graph, axis, size)
        except UserError as error:
            why = f", and {error}"
    near = [each for each in (size // axis.size * axis.size, (size // axis.size + 1) * axis.size) if each > axis.size]
    to = f"to={_or([each * chosen.step for each in near])}, not {size * chosen.step}"
    instead = to if size % axis.size else 'use init="replicate"'
    raise UserError(
        f"{chosen.layer}: {axis.even[0]} takes a mean over it{why}, so all its units must become equally "
        f"many: {instead}"
    )


def _repeated(graph: AxisGraph, axis: WidthAxis, size: int, generator: torch.Generator) -> Plan:
    """Replicas; where a weight is both read and summed over, the normalisation before it makes up for that."""
    times = size // axis.size
    tied = [tied for (name, n), tied in graph.tied.items() if axis.axis in axes_of(graph.dims[name][n])]
    if tied and size % axis.size:
        raise UserError(f"{axis.name}: a weight is both read and summed over along it, so it grows by whole multiples")
    return Plan(
        (replicated(axis, size, generator),),
        factors={(name, 0): (1 / times, 1.0) for each in tied for name in each.scales},
        outputs={
            name: 1 / times
            for name, value in graph.outputs.items()
            if any(value is passed for each in tied for passed in each.values)
        },
    )


def _factors_of(graph: AxisGraph, axis: WidthAxis) -> tuple[list[WidthAxis], list[WidthAxis]]:
    """Heads, and their sizes, in code that divides the axis by the one to have the other."""
    by_axis = {each.axis: each for each in graph.axes}
    pairs = [pair for pair, stream in _products(graph) if stream is axis.axis]
    outer, inner = (list(dict.fromkeys(pair[n] for pair in pairs)) for n in (0, 1))
    return [by_axis[each] for each in outer if not each.reasons], [by_axis[each] for each in inner if not each.reasons]


def _products(graph: AxisGraph) -> Iterator[tuple[tuple[Axis, Axis], Axis]]:
    """Weights that lead from heads × their size to as many units."""
    for name, number in sorted(graph.notes.columns):
        dims = graph.dims[name]
        dim = resolve(dims[number])
        if len(dim) == 1 and len(dim[0]) == 2 and isinstance(dim[0][0], Axis) and isinstance(dim[0][1], Axis):
            for other in (axes_of(each) for each in dims if each is not dims[number]):
                if len(other) == 1 and other[0].size == size_of(dim):
                    yield (dim[0][0], dim[0][1]), other[0]


def _instead(graph: AxisGraph, chosen: _Chosen) -> UserError | None:
    """What to do where the network's code ties heads × their size to as many units."""
    layer, axis, size = chosen.layer, chosen.axis, chosen.size
    streams = [stream for pair, stream in _products(graph) if axis.axis in pair and not stream.reasons]
    if streams:
        stream = next(each for each in graph.axes if each.axis is streams[0])
        return UserError(
            f"{layer}: in the network's own code its heads times their size are the {stream.size} channels of "
            f"{stream.name}; widen that layer, to={2 * stream.size}, and they follow"
        )
    steps = [
        math.lcm(*(axis.size // math.gcd(axis.size, each.size) for each in factors))
        for factors in _factors_of(graph, axis)
        if factors
    ]
    if not steps or any(size % step == 0 for step in steps):
        return None
    near = sorted({each for step in steps for each in (size // step * step, size // step * step + step)})
    return UserError(
        f"{layer}: the network's own code divides its channels into heads: "
        f"to={_or([each for each in near if each > axis.size])}, not {size}"
    )


def _sayings(model: nn.Module, graph: AxisGraph, plan: Plan) -> Iterator[Said]:
    """What modules may say of their sizes then; a number that could mean two things means either."""
    said = attributes_of(model, graph, plan)
    yield said
    more = attributes_of(model, graph, plan, eager=True)
    if more != said:
        yield more


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call of `widen`, with what follows the network."""

    model: nn.Module
    graph: AxisGraph
    layer: str
    arguments: Mapping[str, Any]
    optimizer: Optimizer | None
    averages: Averages
    state: State

    def generator(self) -> torch.Generator:
        """What new weights are drawn from."""
        return torch.Generator().manual_seed(int(self.arguments["seed"]) + 1)

    def carry_out(self, plan: Plan, said: Said, rows: Mapping[str, Tensor], witness: Witness) -> Certificate:
        moves, unrounded = resize(self.model, self.graph, plan, self.generator())
        with torch.no_grad():
            for name, weight in rows.items():
                moves[name].new.copy_(weight)
        set_attributes(self.model, said)
        if self.optimizer is not None:
            transfer(self.optimizer, list(moves.values()), state=self.state)
        shapes = {name: list(move.new.shape) for name, move in moves.items()}
        entry = {"operator": "widen", "arguments": dict(self.arguments), "shapes": shapes, "attributes": dict(said)}
        exact = self.arguments["init"] != "random"
        # The gradient of a unit goes in part to the mean of all, which is no share of its own.
        means = {name for each in plan.widenings for (name, _), start in each.starts.items() if start == "mean"}
        certificate = witness.certify(
            self.model,
            entry=entry,
            train=exact,
            exact=exact,
            expected=expected(self.graph, plan),
            moves=[move for name, move in moves.items() if name not in means],
            unrounded=unrounded,
            changed=[name for name in shapes if self._leads_out(name, plan)] if exact else [],
        )
        transfer_averages(self.averages, self.model, list(moves.values()))
        note_change(self.model, "growth", **entry)
        return certificate

    def _leads_out(self, name: str, plan: Plan) -> bool:
        dims = self.graph.dims[name]
        return any(plan.inside(dim) and (name, n) in self.graph.notes.columns for n, dim in enumerate(dims))
