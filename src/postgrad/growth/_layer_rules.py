"""How dimensions pass layers with weights: sums over what flows in, attention, and normalisations."""

from __future__ import annotations

from collections.abc import Sequence

from postgrad.growth._algebra import Dim, fix, fixed, free, product, size_of
from postgrad.growth._gains import note_product
from postgrad.growth._operation import Rule, Step, Value, Values, are_rows, layer_of, rule, unknown

RULES: dict[str, Rule] = {}


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


@rule(RULES, "conv1d", "conv2d", "conv3d", "convolution", "_convolution")
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
    are_rows(step, [data])
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


@rule(RULES, "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(step: Step) -> Values:
    return _transposed(step, step.read[0], step.read[1], step.at(2), int(step.at(6, 1)))


def _transposed(step: Step, data: Value, weight: Value, bias: Value | None, groups: int) -> Values:
    if groups != 1:
        return unknown(step, "is a transposed convolution in groups, which growth cannot follow")
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


@rule(RULES, "linear")
def _linear(step: Step) -> Values:
    data, weight, bias = step.read[0], step.read[1], step.at(2)
    _sums_over(step, weight, 1, data.dims[-1])
    _per_channel(step, weight.dims[0], bias)
    _gives_rows(step, weight)
    return Value((*data.dims[:-1], weight.dims[0]))


@rule(RULES, "matmul", "mm", "bmm")
def _matmul(step: Step) -> Values:
    first, second = step.read[0], step.read[1]
    if len(first.dims) < 2 or len(second.dims) < 2:
        return unknown(step, "multiplies vectors, which growth does not follow")
    if second.weight is not None and first.weight is None and len(second.dims) == 2:
        _sums_over(step, second, 0, first.dims[-1])
        _gives_rows(step, second, 1)
    elif first.weight is not None and second.weight is None and len(first.dims) == 2:
        _sums_over(step, first, 1, second.dims[-2])
        _gives_rows(step, first, 0)
    else:
        step.unify(first.dims[-1], second.dims[-2])
        note_product(step, first.dims[-1])
        are_rows(step, [first, second])
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


@rule(RULES, "addmm")
def _addmm(step: Step) -> Values:
    bias, data, weight = step.read[:3]
    _sums_over(step, weight, 0, data.dims[-1])
    _gives_rows(step, weight, 1)
    _per_channel(step, weight.dims[1], bias)
    return Value((data.dims[0], weight.dims[1]))


@rule(RULES, "einsum")
def _einsum(step: Step) -> Values:
    """Letters that meet are one dimension; those that vanish are summed over."""
    terms, arrow, result = str(step.read[0]).replace(" ", "").partition("->")
    if "." in terms or not arrow:
        return unknown(step, "has dimensions without a letter, which growth does not follow")
    operands = step.read[1]
    meeting: dict[str, list[Dim]] = {}
    for term, value in zip(terms.split(","), operands, strict=True):
        for letter, dim in zip(term, value.dims, strict=True):
            meeting.setdefault(letter, []).append(dim)
    letters = {letter: _broadcast(step, *([dim] for dim in dims))[0] for letter, dims in meeting.items()}
    for letter, dim in letters.items():
        if letter not in result and sum(letter in term for term in terms.split(",")) == len(meeting[letter]) == 2:
            note_product(step, dim)
        elif letter not in result:
            step.fix(dim, reason="sums over it")
    are_rows(step, operands)
    return Value(tuple(letters[letter] for letter in result))


@rule(RULES, "embedding")
def _embedding(step: Step) -> Values:
    weight, indices = step.read[0], step.read[1]
    step.fix(weight.dims[0], reason="has one row for each word")
    _gives_rows(step, weight, 1)
    return Value((*indices.dims, weight.dims[1]))


@rule(RULES, "scaled_dot_product_attention")
def _attention(step: Step) -> Values:
    """Queries (…, L, d), keys (…, S, d) and values (…, S, dv), all with the same heads, or groups of them."""
    query, key, value, mask = step.read[0], step.read[1], step.read[2], step.at(3)
    causal, scale, in_groups = bool(step.at(5)), step.at(6), bool(step.at(7))
    if not len(query.dims) == len(key.dims) == len(value.dims):
        return unknown(step, "repeats some of its inputs along others")
    are_rows(step, [query, key, value])
    step.unify(query.dims[-1], key.dims[-1])
    if scale is None:
        step.notes.scaled.append((query.dims[-1], step.where))
    else:
        note_product(step, query.dims[-1], scale)
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
        are_rows(step, [mask])
        step.fix(*mask.dims[-2:], reason="has it as a mask")
        _broadcast(step, query.dims[:-2], mask.dims[:-2])
    step.notes.even.append((key.dims[-2], step.where))
    return Value((*query.dims[:-1], value.dims[-1]))


@rule(RULES, "batch_norm", "instance_norm")
def _batch_norm(step: Step) -> Values:
    data = step.read[0]
    are_rows(step, [data])
    parameters = [value for value in step.read[1:5] if isinstance(value, Value)]
    _per_channel(step, data.dims[1], *parameters)
    step.notes.even.extend((dim, step.where) for number, dim in enumerate(data.dims) if number != 1)
    return Value(data.dims)


@rule(RULES, "layer_norm", "rms_norm")
def _layer_norm(step: Step) -> Values:
    data, shape = step.read[0], step.read[1]
    are_rows(step, [data])
    normalised = data.dims[-len(shape) :]
    for parameter in (value for value in step.read[2:4] if isinstance(value, Value)):
        for dim, own in zip(normalised, parameter.dims, strict=True):
            step.unify(dim, own)
        are_rows(step, [parameter])
    step.notes.even.extend((dim, step.where) for dim in normalised)
    step.notes.normalised.append((layer_of(step.node), tuple(normalised)))
    return Value(data.dims)


@rule(RULES, "group_norm")
def _group_norm(step: Step) -> Values:
    data, groups = step.read[0], int(step.read[1])
    are_rows(step, [data])
    each = free(size_of(data.dims[1]) // groups)
    number = free(groups)
    step.notes.grouped.append((layer_of(step.node), number))
    inside = product([number, each])
    assert inside is not None
    step.unify(data.dims[1], inside)
    step.notes.even.extend((dim, step.where) for dim in (each, *data.dims[2:]))
    _per_channel(step, data.dims[1], *(value for value in step.read[2:4] if isinstance(value, Value)))
    return Value(data.dims)


@rule(RULES, "prelu")
def _prelu(step: Step) -> Values:
    data, weight = step.read[0], step.read[1]
    are_rows(step, [data])
    if size_of(weight.dims[0]) > 1:
        _per_channel(step, data.dims[1], weight)
    else:
        step.fix(weight.dims[0], reason="has one slope for all channels")
    return Value(data.dims)


@rule(RULES, "_weight_norm")
def _weight_norm(step: Step) -> Values:
    """Rows (or what else its number says) of a weight, each brought to a length; the other dimensions have a part."""
    direction, length, kept = step.read[0], step.read[1], step.read[2]
    if not length.dims:
        return unknown(step, "brings all of it to one length")
    step.unify(direction.dims[kept], length.dims[kept])
    for dim in range(len(direction.dims)):
        if dim != kept:
            step.fix(direction.dims[dim], length.dims[dim], reason="sums over it")
    are_rows(step, [direction, length])
    return Value(direction.dims)
