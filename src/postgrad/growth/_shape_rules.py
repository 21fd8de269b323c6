"""How dimensions pass operations that only arrange elements: views, permutations, pieces and concatenations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from postgrad.growth._algebra import Dim, equal_pieces, fixed, product, size_of, split
from postgrad.growth._operation import Rule, Step, Value, Values, are_rows, rule, unknown

RULES: dict[str, Rule] = {}


@rule(RULES, "view", "reshape", "_unsafe_view", "flatten", "unflatten", "_reshape_alias", "view_as", "reshape_as")
def _view(step: Step) -> Values:
    """Dimensions multiplied and taken apart again, in groups of equal size."""
    data, shape = step.read[0], step.shape
    are_rows(step, [data])
    if 0 in shape:
        return unknown(step, "has no elements")
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


@rule(RULES, "permute")
def _permute(step: Step) -> Values:
    data, order = step.read[0], [dim % len(step.read[0].dims) for dim in step.read[1]]
    return _reordered(data, order)


@rule(RULES, "transpose", "swapaxes", "swapdims", "t", "mT", "numpy_T", "adjoint")
def _transpose(step: Step) -> Values:
    data = step.read[0]
    first, second = (step.read[1], step.read[2]) if len(step.read) > 2 else (-2, -1)
    order = list(range(len(data.dims)))
    if len(order) > 1:
        order[first], order[second] = order[second], order[first]
    return _reordered(data, order)


@rule(RULES, "movedim")
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


@rule(RULES, "unsqueeze")
def _unsqueeze(step: Step) -> Values:
    data, at = step.read[0], step.read[1]
    at %= len(data.dims) + 1
    are_rows(step, [data])
    return Value((*data.dims[:at], fixed(1), *data.dims[at:]))


@rule(RULES, "squeeze")
def _squeeze(step: Step) -> Values:
    data, at = step.read[0], step.at(1)
    count = len(data.dims)
    asked = range(count) if at is None else [at] if isinstance(at, int) else at
    gone = {dim % count for dim in asked if size_of(data.dims[dim]) == 1}
    step.fix(*(data.dims[dim] for dim in gone), reason="leaves it out")
    are_rows(step, [data])
    return Value(tuple(dim for number, dim in enumerate(data.dims) if number not in gone))


@rule(RULES, "expand", "expand_as", "broadcast_to")
def _expand(step: Step) -> Values:
    data, shape = step.read[0], step.shape
    are_rows(step, [data])
    more = len(shape) - len(data.dims)
    wide = step.read[1].dims if step.name == "expand_as" else [fixed(size) for size in shape]
    dims = list(wide[:more])
    for dim, like in zip(data.dims, wide[more:], strict=True):
        if size_of(dim) != size_of(like):
            step.fix(dim, reason="repeats its one unit")
            dims.append(like)
        else:
            if step.name == "expand_as":
                step.unify(dim, like)
            dims.append(dim)
    return Value(tuple(dims))


@rule(RULES, "select")
def _select(step: Step) -> Values:
    data, at = step.read[0], step.read[1] % len(step.read[0].dims)
    step.fix(data.dims[at], reason="takes one of its units by its number")
    are_rows(step, [data])
    return Value((*data.dims[:at], *data.dims[at + 1 :]))


@rule(RULES, "unbind")
def _unbind(step: Step) -> Values:
    data = step.read[0]
    at = step.at(1, 0) % len(data.dims)
    step.fix(data.dims[at], reason="takes its units apart")
    are_rows(step, [data])
    one = Value((*data.dims[:at], *data.dims[at + 1 :]))
    return [one for _ in range(size_of(data.dims[at]))]


@rule(RULES, "slice", "narrow", "index_select", "slice_scatter", "select_scatter")
def _slice(step: Step) -> Values:
    if step.name != "slice":
        return unknown(step, "takes some of its units by their numbers")
    data, at = step.read[0], step.at(1, 0) % len(step.read[0].dims)
    are_rows(step, [data])
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


@rule(RULES, "chunk", "split", "split_with_sizes", "tensor_split")
def _chunk(step: Step) -> Values:
    data = step.read[0]
    at = step.at(2, 0) % len(data.dims)
    made = step.node.meta["val"]
    sizes = [int(each.shape[at]) for each in made]
    are_rows(step, [data])
    pieces = equal_pieces(data.dims[at], len(sizes), f"{step.where} cuts it") if len(set(sizes)) == 1 else None
    if pieces is None:
        step.fix(data.dims[at], reason="cuts it into pieces by their numbers")
        pieces = [fixed(size) for size in sizes]
    return [Value((*data.dims[:at], piece, *data.dims[at + 1 :])) for piece in pieces]


@rule(RULES, "getitem")
def _getitem(step: Step) -> Values:
    values: Values = step.read[0][step.read[1]]
    return values


@rule(RULES, "cat", "concat", "concatenate")
def _cat(step: Step) -> Values:
    values = [value for value in step.read[0] if not _is_empty(value)]
    at = step.at(1, 0) % len(values[0].dims)
    are_rows(step, values)
    dims = list(values[0].dims)
    for other in values[1:]:
        for number, dim in enumerate(other.dims):
            if number == at:
                dims[at] = (*dims[at], *dim)
            else:
                step.unify(dims[number], dim)
    return Value(tuple(dims))


def _is_empty(value: Value) -> bool:
    return len(value.dims) == 1 and size_of(value.dims[0]) == 0


@rule(RULES, "stack")
def _stack(step: Step) -> Values:
    values = step.read[0]
    at = step.at(1, 0) % (len(values[0].dims) + 1)
    are_rows(step, values)
    for other in values[1:]:
        for first, second in zip(values[0].dims, other.dims, strict=True):
            step.unify(first, second)
    return Value((*values[0].dims[:at], fixed(len(values)), *values[0].dims[at:]))


@rule(RULES, "index")
def _index(step: Step) -> Values:
    """Rows taken by fixed numbers along the first dimensions; the others pass."""
    data, indices = step.read[0], step.read[1]
    count = len(indices)
    asked: Any = step.node.args[1]
    if any(index is None or index.meta["val"].dtype in (torch.bool, torch.uint8) for index in asked):
        return unknown(step, "takes some of its units by their numbers")
    step.fix(*data.dims[:count], reason="takes some of its units by their numbers")
    are_rows(step, [data])
    passing = data.dims[count:]
    made = step.shape[: len(step.shape) - len(passing)]
    return Value((*(fixed(size) for size in made), *passing))
