"""Changes that do not keep what a network computes: pooling put in, groups in a dense convolution, a block stacked.

Their certificates state how far the outputs went, and refuse nothing. They are steps of a search, not of a growth: what
they cost is to be repaired by distillation from the network as it was (copy it before), and to be accepted only where
the repaired network does as well on validation data.

Idea. Pooling saves three quarters of the work behind it on images. A grouped convolution has 1/groups of the weights:
the blocks on the diagonal stay, each filter scaled by least squares towards what the dense one gave on the example. A
block that is stacked upon itself, its weights with it, is a deeper network that soon learns what the shallower one
knew.

Paper. None for the first two as steps of growth; S. Xie et al., "ResNeXt", arXiv 1611.05431, is why grouped
convolutions are worth having. Stacking: L. Gong et al., "Efficient Training of BERT by Progressively Stacking", ICML
2019; W. Du et al., "Stacking Your Transformers", arXiv 2405.15319. Licence or patent note: Apache-2.0; none known.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from postgrad.errors import UserError, unknown_name
from postgrad.growth._calls import certified, check_own_weight, join_groups
from postgrad.growth._places import Example, call, place
from postgrad.growth.blocks import insert
from postgrad.growth.certificate import Certificate, Witness
from postgrad.growth.transaction import transaction
from postgrad.growth.transfer import Averages
from postgrad.methods._surgery import optimizer_follows

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def insert_pool(
    model: nn.Module,
    after: str,
    *,
    example: Example,
    kind: Literal["max", "average"] = "max",
    averages: Averages = (),
) -> Certificate:
    """Halve the resolution behind a module, in place: approximate, to be repaired by distillation.

    >>> parent = copy.deepcopy(model)
    >>> insert_pool(model, "layer1", kind="average", example=images).errors["float64 eval, batch 2"]
    0.31

    Distil from `parent` afterwards, and keep the network only where it then passes an acceptance test on validation
    data.

    Parameters
    ----------
    model : the network; its hooks, parameters and training mode survive.
    after : the dotted name of a module that runs once in a forward pass and gives images (N, C, …).
    example : what the network takes, (N, …), or a tuple of its arguments; the error is measured on it.
    kind : "max" or "average" over 2×2 pixels; an odd side is rounded down.
    averages : of the network's weights; they grow with it (`postgrad.growth.transfer_average`).

    `UserError`, the network left as it was: no such module; one that gives no images, or images of one pixel; layers
    behind it that take no smaller image, as a linear layer behind a flattened one does.
    """
    if kind not in ("max", "average"):
        raise unknown_name("kind of pooling", str(kind), ("max", "average"))
    where = place(model, after, example)
    if not where.spatial or min(where.output.shape[2:]) < 2:
        raise UserError(f"'{after}' gives {tuple(where.output.shape)}; pooling takes images of 2 pixels a side or more")
    witness = Witness.of(model, example, train=False)
    with transaction(model):
        options = {"kind": kind, "spatial": where.spatial}
        insert(model, after, "pool", options)
        _check_runs(model, after, example)
        insertion = {"into": after, "block": "pool", "options": options}
        arguments = {"after": after, "kind": kind}
        entry = {"operator": "insert_pool", "arguments": arguments, "insertions": [insertion]}
        return certified(model, witness, entry, train=False, exact=False, changed=[], averages=averages)


def group_layer(
    model: nn.Module,
    layer: str,
    *,
    groups: int,
    example: Example,
    optimizer: Optimizer | None = None,
    averages: Averages = (),
) -> Certificate:
    """Make a dense convolution a grouped one, in place: approximate, to be repaired by distillation.

    >>> parent = copy.deepcopy(model)
    >>> group_layer(model, "layer3.0.conv2", groups=4, example=images).exact
    False

    Each filter keeps its weights on the channels of its own group, times the number that brings it nearest to what it
    gave before on the example, by least squares. Distil from `parent` afterwards, and keep the network only where it
    then passes an acceptance test on validation data.

    Parameters
    ----------
    model : the network; its hooks, the names of its parameters and its training mode survive.
    layer : the dotted name of a convolution (1-D, 2-D, 3-D) that runs once in a forward pass and is not yet grouped.
    groups : 2 or more; divides its channels on both sides.
    example : what the network takes, (N, …), or a tuple of its arguments; scales and error are measured on it.
    optimizer : forgets what it knew of the weight, and goes on with the new one in the same group.
    averages : of the network's weights; they grow with it (`postgrad.growth.transfer_average`).

    `UserError`, network and optimizer left as they were: no such convolution; one that is grouped, runs never or
    several times; a weight that is shared or parametrized; groups that do not divide its channels.
    """
    where = place(model, layer, example)
    module = where.module
    if not isinstance(module, Convolution) or module.groups != 1:
        raise UserError(f"'{layer}' is {module}, not a dense convolution; name one")
    check_own_weight(model, layer, module)
    if groups < 2 or module.in_channels % groups or module.out_channels % groups:
        sides = f"{module.in_channels} to {module.out_channels} channels"
        raise UserError(f"groups: {groups} do not divide '{layer}' of {sides}; give a common divisor of 2 or more")
    witness = Witness.of(model, example, train=False)
    with transaction(model, optimizer), optimizer_follows(model, optimizer) as heir_of:
        old = module.weight
        assert isinstance(old, nn.Parameter)  # it is not parametrized
        module.weight = nn.Parameter(_grouped(module, where.inputs[0], groups), requires_grad=old.requires_grad)
        heir_of[module.weight] = old
        entry: dict[str, Any] = {
            "operator": "group_layer",
            "arguments": {"layer": layer, "groups": groups},
            "shapes": {f"{layer}.weight": list(module.weight.shape)},
            "attributes": {layer: {"groups": groups}},
        }
        return certified(model, witness, entry, train=False, exact=False, changed=[], averages=averages)


def stack(
    model: nn.Module, stage: str, *, example: Example, optimizer: Optimizer | None = None, averages: Averages = ()
) -> Certificate:
    """Put a copy of a stage's last block behind it, weights and all, in place: approximate, to be trained on.

    >>> stack(model, "layer3", example=images).exact
    False

    What exact growth is to be compared with: it starts from another function, and often ends as high.

    Parameters
    ----------
    model : the network; its hooks, the names of its parameters and its training mode survive.
    stage : the dotted name of an `nn.Sequential` whose last block gives the shape that it takes.
    example : what the network takes, (N, …), or a tuple of its arguments; the error is measured on it.
    optimizer : trains the new parameters as well, in the groups of those of the stage.
    averages : of the network's weights; they grow with it (`postgrad.growth.transfer_average`).

    `UserError`, network and optimizer left as they were: no such stage, or one whose last block cannot follow itself.
    """
    where = place(model, stage, example)
    blocks = list(where.module.named_children()) if isinstance(where.module, nn.Sequential) else []
    if not blocks:
        raise UserError(f"'{stage}' is no nn.Sequential of blocks; name a stage of the network")
    last, block = blocks[-1]
    witness = Witness.of(model, example, train=False)
    with transaction(model, optimizer), optimizer_follows(model, optimizer) as heir_of:
        options = {"of": f"{stage}.{last}"}
        new = model.get_submodule(insert(model, stage, "copy", options))
        new.load_state_dict(block.state_dict())
        join_groups(heir_of, new, block)
        _check_follows(model, stage, example)
        insertion = {"into": stage, "block": "copy", "options": options}
        entry = {"operator": "stack", "arguments": {"stage": stage}, "insertions": [insertion]}
        return certified(model, witness, entry, train=False, exact=False, changed=[], averages=averages)


def _check_follows(model: nn.Module, stage: str, example: Example) -> None:
    try:
        with torch.no_grad():
            call(copy.deepcopy(model).eval(), example)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the last block of '{stage}' cannot follow itself: {error}; deepen takes any place") from error


def _check_runs(model: nn.Module, after: str, example: Example) -> None:
    """Whether what comes behind takes the smaller image; decided on a copy, since statistics must stay."""
    try:
        with torch.no_grad():
            call(copy.deepcopy(model).eval(), example)
    except RuntimeError as error:
        raise UserError(
            f"what follows '{after}' takes no smaller image ({error}); pool where an adaptive or global pooling follows"
        ) from error


@torch.no_grad()
def _grouped(layer: Convolution, x: Tensor, groups: int) -> Tensor:
    """Make a layer grouped; returns its weight: the diagonal blocks (out, in/groups, …), scaled by least squares."""
    rows, columns = layer.out_channels // groups, layer.in_channels // groups
    blocks = [
        layer.weight[group * rows : (group + 1) * rows, group * columns : (group + 1) * columns]
        for group in range(groups)
    ]
    weight = torch.cat(blocks)
    # By torch's own way from a weight to an output, which pads as the layer does.
    dense = layer._conv_forward(x, layer.weight, None).double()
    layer.groups = groups
    grouped = layer._conv_forward(x, weight, None).double()
    dims = [each for each in range(x.dim()) if each != 1]
    power = grouped.square().sum(dims)
    scale = torch.where(power > 0, (dense * grouped).sum(dims) / power, 1.0)
    return weight * scale.reshape(-1, *[1] * (weight.dim() - 1)).to(weight)
