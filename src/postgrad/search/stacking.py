"""Growth without a search: as deep as wanted by stacking in turn, then as wide as the parameters allow."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.growth.operations import Grown, grow
from postgrad.growth.words import Operation
from postgrad.search.feasible import check_feasible
from postgrad.search.parent import Infeasible, Limits, Parent, architecture_of

_WIDEST = 16.0
"""Times as wide at most."""
_HALVINGS = 16
_NO_LIMITS = Limits(depth=2**20, width=2**20)


def grow_evenly(model: nn.Module, example: Tensor, *, depth: int, parameters: int, seed: int) -> list[Grown]:
    """Grow a network in place to about that depth and that many parameters; what was done.

    >>> [str(each.operation) for each in grow_evenly(model, images, depth=4, parameters=60_000, seed=0)]
    ['deepen:after=conv1,kind=identity', 'widen:layer=conv1,to=41', 'widen:layer=conv2,to=82']

    In turn each stage (`nn.Sequential`) gets its last block once more, weights and all, until there are `depth`
    convolutions and linear layers; in a network without such stages each place gets an identity layer. Then all widths
    grow by one factor, the largest with which there are no more than `parameters`.

    Source of stacking: W. Du et al., "Stacking Your Transformers", arXiv 2405.15319.
    """
    wanted = (example, depth, parameters, seed)
    deeper = _in_turn(model, [Operation("stack", {"stage": name}) for name in _stages(model)], *wanted)
    if not deeper:
        places = [
            Operation("deepen", {"after": site.name, "kind": "identity"}) for site in _parent(model, example).sites
        ]
        deeper = _in_turn(model, places, *wanted)
    wider = _wider(_parent(model, example), parameters)
    return deeper + (grow(model, wider, example=example, seed=seed) if wider else [])


def _stages(model: nn.Module) -> list[str]:
    """Sequences whose last block has weights."""
    return [
        name
        for name, module in model.named_modules()
        if name
        and isinstance(module, nn.Sequential)
        and len(module)
        and next(module[-1].parameters(), None) is not None
    ]


def _in_turn(
    model: nn.Module, operations: Sequence[Operation], example: Tensor, depth: int, parameters: int, seed: int
) -> list[Grown]:
    """One after the other and again, as long as more is wanted; what cannot be done or is too much is left out."""
    done: list[Grown] = []
    waiting = list(operations)
    while waiting and architecture_of(model, example).depth < depth:
        operation = waiting.pop(0)
        if not _fits(_parent(model, example), [operation], parameters):
            continue
        try:
            done += grow(model, [operation], example=example, seed=seed)
        except UserError:
            continue
        waiting.append(operation)
    return done


def _wider(parent: Parent, parameters: int) -> list[Operation]:
    """All widths by the largest factor that the parameters allow, found on the axis graph; none where none fits."""
    low, high, best = 1.0, _WIDEST, []
    for _ in range(_HALVINGS):
        factor = (low + high) / 2
        operations = _by_factor(parent, factor)
        if _fits(parent, operations, parameters):
            low, best = factor, operations
        else:
            high = factor
    return best


def _by_factor(parent: Parent, factor: float) -> list[Operation]:
    return [
        Operation("widen", {"layer": width.layer, "to": to})
        for width in parent.widths
        if (to := round(width.channels * factor / width.step) * width.step) > width.channels
    ]


def _fits(parent: Parent, operations: Sequence[Operation], parameters: int) -> bool:
    try:
        return check_feasible(parent, operations).parameters() <= parameters
    except Infeasible:
        return False


def _parent(model: nn.Module, example: Tensor) -> Parent:
    return Parent(model.eval(), example, architecture_of(model, example), _NO_LIMITS)
