"""How dimensions pass operations on elements: functions of each, reductions, and what works along some dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from postgrad.growth._algebra import Dim, fixed, size_of
from postgrad.growth._operation import Rule, Step, Value, Values, are_rows, fixed_like, rule, unknown

RULES: dict[str, Rule] = {}

ELEMENTWISE = (
    "abs alias alpha_dropout atan bernoulli bitwise_not celu ceil clamp clamp_max clamp_min clone contiguous cos "
    "detach detach_ dropout elu erf exp expm1 feature_alpha_dropout feature_dropout floor gelu hardshrink hardsigmoid "
    "hardswish hardtanh isnan leaky_relu lift_fresh_copy log log1p log_sigmoid logical_not mish nan_to_num neg relu "
    "relu6 reciprocal round rrelu rsqrt selu sigmoid sign silu sin softplus softshrink softsign sqrt square tanh "
    "tanhshrink threshold to _to_copy type_as zero zeros_like ones_like empty_like rand_like randn_like full_like fill "
    "add sub mul div true_divide floor_divide maximum minimum pow where masked_fill addcmul addcdiv lerp copy rsub "
    "eq ne lt le gt ge logical_and logical_or logical_xor fmod remainder __and__ __or__ bitwise_and bitwise_or"
)
COPIES = ("alias", "clone", "contiguous", "detach", "to", "_to_copy")
"""Of these, what a weight passes as it stands."""


@rule(RULES, *ELEMENTWISE.split())
def _elementwise(step: Step) -> Values:
    """All tensors meet dimension by dimension, from the last one; where one is 1 wide it is repeated."""
    values = step.tensors()
    shape = step.shape
    dims: list[Dim] = [fixed(size) for size in shape]
    for position in range(1, len(shape) + 1):
        meeting = [value.dims[-position] for value in values if position <= len(value.dims)]
        full = [dim for dim in meeting if size_of(dim) == shape[-position]]
        for dim in full[1:]:
            step.unify(full[0], dim)
        repeated = [dim for dim in meeting if size_of(dim) != shape[-position]]
        step.fix(*repeated, reason="repeats its one unit along another's")
        if full:
            dims[-position] = full[0]
    if step.name not in COPIES:
        are_rows(step, values)
    only = len(values) == 1 and step.name in COPIES
    return Value(tuple(dims), *((values[0].weight, values[0].order) if only else ()))


@rule(RULES, "softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "sort", "argsort", "flip", "roll")
def _along(step: Step) -> Values:
    data, along = step.read[0], step.named("dims" if step.name in ("flip", "roll") else "dim")
    are_rows(step, [data])
    dims = list(along) if isinstance(along, list | tuple) else [along]
    if step.name == "roll" and not dims:
        dims = list(range(len(data.dims)))
    for dim in dims if data.dims else ():
        step.fix(data.dims[dim], reason="goes along it")
    return [Value(data.dims), Value(data.dims)] if step.name == "sort" else Value(data.dims)


@rule(
    RULES,
    "mean",
    "amax",
    "amin",
    "sum",
    "var",
    "std",
    "linalg_vector_norm",
    "logsumexp",
    "norm",
    "prod",
    "any",
    "all",
    "max",
    "min",
    "argmax",
)
def _reduce(step: Step) -> Values:
    """Means and extremes stay what they are where all units become equally more, lengths under gains; sums do not."""
    data = step.read[0]
    place = 2 if step.name in ("linalg_vector_norm", "norm") else 1
    along, keep = step.at(place), bool(step.at(place + 1, False))
    if step.name in ("var", "std", "any", "all", "max", "min", "argmax", "prod", "norm") or isinstance(
        along, bool | float
    ):
        return unknown(step, "is not among the operations that growth can follow")
    count = len(data.dims)
    dims = range(count) if along is None or along == [] else [along] if isinstance(along, int) else along
    reduced = {dim % count for dim in dims}
    for dim in reduced:
        if step.name in ("mean", "amax", "amin"):
            step.notes.even.append((data.dims[dim], step.where))
        elif step.name == "linalg_vector_norm" and step.read[1] == 2:
            step.notes.multiplied.append((data.dims[dim], step.where))
        else:
            step.fix(data.dims[dim], reason="sums over it")
    if data.weight is not None:
        step.fix(*(data.dims[dim] for dim in reduced), reason="computes with it from a weight")
        are_rows(step, [data])
    return Value(
        tuple(fixed(1) if n in reduced else dim for n, dim in enumerate(data.dims) if keep or n not in reduced)
    )


SPATIAL = (
    "max_pool avg_pool adaptive_avg_pool adaptive_max_pool upsample_nearest upsample_bilinear upsample_bicubic lp_pool "
    "reflection_pad replication_pad"
)


@rule(
    RULES, *(f"{name}{dims}d{more}" for name in SPATIAL.split() for dims in (1, 2, 3) for more in ("", "_with_indices"))
)
@rule(RULES, "_adaptive_avg_pool2d", "upsample_linear1d", "upsample_trilinear3d")
def _spatial(step: Step) -> Values:
    """The last one, two or three dimensions are worked along, as the name says; the others pass."""
    count = int(step.name.removesuffix("_with_indices")[-2])
    return _worked_along(step, range(len(step.read[0].dims) - count, len(step.read[0].dims)))


@rule(RULES, "pixel_shuffle")
def _pixel_shuffle(step: Step) -> Values:
    return _worked_along(step, range(len(step.read[0].dims) - 3, len(step.read[0].dims)))


@rule(RULES, "pad", "constant_pad_nd")
def _pad(step: Step) -> Values:
    borders, last = step.read[1], len(step.read[0].dims) - 1
    return _worked_along(step, [last - n // 2 for n, border in enumerate(borders) if border])


def _worked_along(step: Step, along: Sequence[int]) -> Values:
    data = step.read[0]
    are_rows(step, [data])
    step.fix(*(data.dims[dim] for dim in along), reason="works along it")
    made = step.node.meta["val"]
    first = made[0] if isinstance(made, list | tuple) else made
    value = Value(tuple(fixed(int(first.shape[n])) if n in along else dim for n, dim in enumerate(data.dims)))
    return [value for _ in made] if isinstance(made, list | tuple) else value


@rule(RULES, "_assert_tensor_metadata")
def _nothing(step: Step) -> Values:
    return None


@rule(
    RULES,
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "arange",
    "zeros",
    "ones",
    "full",
    "scalar_tensor",
    "linspace",
)
def _made(step: Step) -> Values:
    return fixed_like(step.node.meta["val"])
