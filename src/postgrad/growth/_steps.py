"""How many units a width must grow by at once."""

from __future__ import annotations

from torch import nn

from postgrad.errors import UserError
from postgrad.growth._algebra import axes_of
from postgrad.growth._streams import any_size
from postgrad.growth.axes import AxisGraph, WidthAxis


def step_of(model: nn.Module, graph: AxisGraph, axis: WidthAxis) -> tuple[int, str]:
    """The step, and the reason where it is above 1; what the network's own code wants beyond that is not known here.

    >>> step_of(model, graph, graph.made_by("conv1")[0])
    (1, '')
    """
    if any(axis.axis in axes_of(graph.dims[weight][number]) for weight, number in graph.tied):
        return axis.size, "a weight is both read and summed over along it"
    if axis.even:
        try:
            any_size(model, graph, axis, axis.size + 1)
        except UserError as error:
            return axis.size, f"{axis.even[0]} takes a mean over it: {error}"
    return 1, ""
