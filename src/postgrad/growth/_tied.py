"""Weights that are both read and summed over along one dimension, as an embedding that is the classifier too.

Units repeated r times give such a sum r times over. Where a normalisation stands directly before it, and before nothing
else, that one can give 1/r of what it gave.
"""

from __future__ import annotations

from dataclasses import dataclass

from postgrad.growth._operation import Notes, Step, Value, values_of

_SUMS = {"linear": (1, 1), "matmul": (1, 0), "mm": (1, 0), "addmm": (2, 0)}
"""Operation -> which of its arguments is the weight, and which dimension of that it sums over."""
_PASSING = (
    "view reshape _unsafe_view flatten permute transpose unsqueeze squeeze select slice contiguous clone alias detach "
    "to _to_copy dropout mean"
)
"""What treats all units alike, and each by itself."""


@dataclass(frozen=True)
class Tied:
    """The scales and shifts that become smaller, and the values on the way from there to the sums."""

    scales: tuple[str, ...]
    values: tuple[Value, ...]


def norms_before(notes: Notes, weight: str, number: int) -> Tied | str:
    """The normalisations before all sums over a weight's dimension; the reason, where there are none such."""
    sums = [step for step, _ in notes.steps if _sums_over(step, weight, number)]
    maker = {id(value): step for step, made in notes.steps for value in values_of(made)}
    values: dict[int, Value] = {}
    norms: dict[int, Step] = {}
    for step in sums:
        data = _data(step)
        while (before := maker.get(id(data))) is not None and before.name in _PASSING.split():
            values[id(data)] = data
            data = before.read[0]
        if before is None or before.name not in ("layer_norm", "rms_norm"):
            return f"no normalisation stands directly before {step.where}"
        values[id(data)] = data
        norms[id(before)] = before
    found = [value for step in norms.values() for value in step.read[2:4] if isinstance(value, Value)]
    scales = tuple(dict.fromkeys(value.weight for value in found if value.weight is not None))
    if (
        not sums
        or len(found) != len([value for value in found if value.weight])
        or not all(map(_scaled, norms.values()))
    ):
        return "the normalisation before it has no weight of its own"
    for step, made in notes.steps:
        read = [value for value in step.tensors() if id(value) in values]
        goes_on = any(id(value) in values for value in values_of(made))
        if (read and not goes_on and step not in sums) or (
            id(step) not in norms and any(value.weight in scales for value in step.tensors())
        ):
            return f"{step.where} reads what is normalised before it, too"
    return Tied(scales, tuple(values.values()))


def _sums_over(step: Step, weight: str, number: int) -> bool:
    argument, dim = _SUMS.get(step.name, (0, 0))
    value = step.at(argument)
    return step.name in _SUMS and isinstance(value, Value) and value.weight == weight and value.order[dim] == number


def _data(step: Step) -> Value:
    data: Value = step.read[1 if step.name == "addmm" else 0]
    return data


def _scaled(norm: Step) -> bool:
    return isinstance(norm.at(2), Value)
