"""The sizes that a network's modules say of themselves (`out_channels`, `num_heads`), once some of them are others."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from postgrad.growth._algebra import Axis, Dim, axes_of, resolve, size_of
from postgrad.growth._resize import Plan
from postgrad.growth.axes import AxisGraph

Said = dict[str, dict[str, int | float | list[int]]]
"""Module -> attribute -> what it says."""

_WIDTH = re.compile(r"(heads?|dim|dims|channels?|features?|hidden|width|groups?|planes|size|embed|inner|chans)$")


def attributes_of(model: nn.Module, graph: AxisGraph, plan: Plan, *, eager: bool = False) -> Said:
    """What modules must say once a plan is carried out, where that is not what they say now.

    >>> attributes_of(model, graph, plan)
    {'conv1': {'out_channels': 96}, 'bn1': {'num_features': 96}}

    Torch's own layers are known. Of others, whole numbers that are called like a width follow where all that has such a
    size in the module has now one other; where some has and some has not, only if `eager`. What is wrong then is found
    by what the network computes.
    """
    sizes = _Sizes(plan)
    found: Said = {layer: dict(values) for layer, values in plan.settings.items()}
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
        said = _said_by(layer, module, graph, sizes, found.get(layer, {}), eager)
        if said:
            found.setdefault(layer, {}).update(said)
    return found


def set_attributes(model: nn.Module, said: Said) -> None:
    """Let modules say so."""
    modules = dict(model.named_modules())
    for layer, values in said.items():
        for name, value in values.items():
            setattr(modules[layer], name, tuple(value) if isinstance(value, list) else value)


class _Sizes:
    """The sizes that dimensions have once a plan is carried out."""

    def __init__(self, plan: Plan) -> None:
        self._now = {each.axis: len(each.index) for each in plan.widenings}

    def of(self, dim: Dim) -> int:
        return sum(
            math.prod(self._now.get(factor, factor.size) if isinstance(factor, Axis) else factor for factor in segment)
            for segment in resolve(dim)
        )

    def change(self, dim: Dim) -> bool:
        return any(axis in self._now for axis in axes_of(dim))


def _said_by(
    layer: str, module: nn.Module, graph: AxisGraph, sizes: _Sizes, groups: Mapping[str, Any], eager: bool
) -> Mapping[str, int | float]:
    """The attributes of one module that say a size which is now another."""
    prefix = f"{layer}." if layer else ""
    own = {name[len(prefix) :]: dims for name, dims in graph.dims.items() if name.startswith(prefix)}
    if not any(sizes.change(dim) for dims in own.values() for dim in dims):
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
    return _of_its_own(module, own, sizes, eager)


def _other(module: nn.Module, values: Mapping[str, int]) -> dict[str, int]:
    return {name: value for name, value in values.items() if getattr(module, name) != value}


def _of_its_own(
    module: nn.Module, own: Mapping[str, tuple[Dim, ...]], sizes: _Sizes, eager: bool
) -> dict[str, int | float]:
    """Attributes of a class that is not torch's: whole numbers called like a width, and one over the root of one."""
    near = _sizes_after((dims for name, dims in own.items() if name.count(".") < 2), sizes)
    then = {**_sizes_after(own.values(), sizes), **near}  # what its own layers say counts before what is deeper
    found: dict[str, int | float] = {}
    for name, value in vars(module).items():
        if type(value) is int and _WIDTH.search(name):
            after = then.get(value, {value})
            if eager and value in near:
                after = after - {value}
            if len(after) == 1 and after != {value}:
                (found[name],) = after
        elif type(value) is float and name.endswith("scale"):
            # Attention's scale, which its code may use itself or leave to torch.
            roots = {number for size, after in near.items() if size**-0.5 == value for number in after}
            if len(roots) == 1 and (now := roots.pop() ** -0.5) != value:
                found[name] = now
    return found


def _sizes_after(tensors: Iterable[tuple[Dim, ...]], sizes: _Sizes) -> dict[int, set[int]]:
    """What the sizes in some tensors' dimensions are then."""
    then: dict[int, set[int]] = {}
    for dim in (dim for dims in tensors for dim in dims):
        parts = [dim, *(((axis,),) for axis in axes_of(dim))]
        parts += [(segment[-2:],) for segment in resolve(dim) if len(segment) > 2]
        for part in parts:
            then.setdefault(size_of(part), set()).add(sizes.of(part))
    return then
