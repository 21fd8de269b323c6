"""What can be widened in a network, and what not and why: as a table and as a picture of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from postgrad.growth._algebra import Axis, axes_of, size_of
from postgrad.growth._drawing import Box, Cell, Entry, draw
from postgrad.growth._steps import step_of
from postgrad.growth.axes import AxisGraph, WidthAxis

HEADINGS = ("axis", "size", "layers", "grows in steps of, or why not")


@dataclass(frozen=True)
class CoupledWidth:
    """Units that can only be widened together; `number` stands for them in a picture, None where they are fixed.

    `name` is what `widen` takes; `step` how many units come at once; `reasons` say why they are fixed.
    """

    number: int | None
    name: str
    size: int
    layers: tuple[str, ...]
    step: int
    reasons: tuple[str, ...]

    def row(self) -> tuple[str, str, str, str]:
        """One row of a table under `HEADINGS`."""
        others = f" (+{len(self.layers) - 2} more)" if len(self.layers) > 2 else ""
        layers = f"{', '.join(self.layers[:2])}{others}"
        return self.name, str(self.size), layers, self.remark()

    def remark(self) -> str:
        """In which steps it grows, with the reason for steps above 1; or why it does not."""
        reason = "; ".join(self.reasons[:1])
        return f"fixed: {reason}" if self.number is None else f"{self.step}{f' ({reason})' if reason else ''}"


def coupled_widths(model: nn.Module, graph: AxisGraph) -> list[CoupledWidth]:
    """The coupled widths of a network in its order; kernels and single units are not among them.

    >>> [(each.name, each.size) for each in coupled_widths(model, analyse(model, images)) if each.number]
    [('conv1', 64), ('layer1.0.conv1', 64), …]
    """
    found: list[CoupledWidth] = []
    numbered = 0
    for axis in _of_channels(graph):
        numbered += not axis.fixed
        step, reason = (1, "") if axis.fixed else step_of(model, graph, axis)
        found.append(
            CoupledWidth(
                number=None if axis.fixed else numbered,
                name=_name(graph, axis),
                size=axis.size,
                layers=tuple(dict.fromkeys(_layer(place.weight) or place.weight for place in axis.places)),
                step=step,
                reasons=axis.fixed or ((reason,) if reason else ()),
            )
        )
    return found


def picture(model: nn.Module, graph: AxisGraph, title: str) -> str:
    """An SVG of the network's layers in its order: what they read and what they make, coupled widths in one colour.

    >>> Path("network.svg").write_text(picture(model, analyse(model, images), "resnet18"))

    Fixed widths are hatched, with the reason as a tooltip. Layers stand in rows by the module that they belong to.
    """
    axes = _of_channels(graph)
    widths = coupled_widths(model, graph)
    of_axis = {axis.axis: width for axis, width in zip(axes, widths, strict=True)}
    boxes = [_box(graph, layer, weights, of_axis) for layer, weights in _in_order(graph)]
    entries = [
        Entry(
            width.number,
            f"{width.name}: {width.size} in {_counted(len(width.layers), 'layer')}",
            f"in steps of {width.step}" if width.step > 1 else "",
            len(width.layers),
        )
        for width in widths
        if width.number is not None
    ]
    fixed = len(widths) - len(entries)
    remark = f"{_counted(len(boxes), 'layer')}, {_counted(len(entries), 'width')} that can grow, {fixed} fixed"
    return draw(boxes, entries, title=title, remark=remark)


def _of_channels(graph: AxisGraph) -> list[WidthAxis]:
    """The axes that some layer makes or sums over; a kernel's size is none, nor is a single unit that is fixed."""
    return [
        axis
        for axis in graph.axes
        if not (axis.fixed and axis.size == 1)
        and any(_reads(graph, place.weight, place.dim) is not None for place in axis.places)
    ]


def _reads(graph: AxisGraph, weight: str, dim: int) -> bool | None:
    """Whether a layer reads along a dimension of its weight, makes it (False), or neither (None), as a kernel's."""
    if ".parametrizations." in weight and len(graph.dims[weight]) > 1:  # what is computed from it says more
        return (False, True)[dim] if dim < 2 else None
    if (weight, dim) in graph.notes.columns:
        return True
    return False if (weight, dim) in graph.notes.rows else None


def _name(graph: AxisGraph, axis: WidthAxis) -> str:
    name = axis.name.replace(".parametrizations.weight", "")
    made = any(_reads(graph, place.weight, place.dim) is False for place in axis.places)
    return name if made else f"input of {name}"


def _layer(weight: str) -> str:
    return weight.partition(".parametrizations.")[0] if ".parametrizations." in weight else weight.rpartition(".")[0]


def _in_order(graph: AxisGraph) -> list[tuple[str, list[str]]]:
    """Each layer with the names of its weights, as they run; one of which that is not known follows the one before."""
    weights: dict[str, list[str]] = {}
    for name in graph.dims:
        weights.setdefault(_layer(name), []).append(name)
    weights.pop("", None)  # parameters of the network itself are no layer
    runs = {name: number for number, name in enumerate(graph.outputs)}
    at = 0
    order: dict[str, int] = {}
    for layer in weights:
        inner = any(other.startswith(f"{layer}.") for other in weights)  # parameters beside layers: where it began
        at = order[layer] = at if inner else runs.get(layer, at)
    return sorted(weights.items(), key=lambda item: order[item[0]])


def _box(graph: AxisGraph, layer: str, weights: Sequence[str], of_axis: Mapping[Axis, CoupledWidth]) -> Box:
    """What a layer reads and what it makes; a normalisation or a scale makes what it reads."""
    reads: dict[Axis, Cell] = {}
    makes: dict[Axis, Cell] = {}
    for name in weights:
        for number, dim in enumerate(graph.dims[name]):
            reading = _reads(graph, name, number)
            if reading is not None:
                (reads if reading else makes).update(_cells(axes_of(dim), of_axis))
    sizes = " → ".join("×".join(str(size_of(axis)) for axis in cells) for cells in (reads, makes) if cells)
    return Box(layer, f"{layer}: {sizes}", tuple(reads.values()), tuple(makes.values()))


def _cells(axes: Sequence[Axis], of_axis: Mapping[Axis, CoupledWidth]) -> dict[Axis, Cell]:
    return {
        axis: Cell(width.number, width.size, f"{width.name}: {width.size}; {width.remark()}")
        for axis in axes
        if (width := of_axis.get(axis)) is not None
    }


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
