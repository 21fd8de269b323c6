"""A start in the manner of Fixup, the control that MimicNorm was published against (H. Zhang et al., arXiv 1901.09321).

Batch normalisation goes; the last layer of each residual branch and the classifier start at zero; the other layers of a
branch start at He's standard deviation times L^(−1/(2m−2)), for L branches of m layers; a learned multiplier of 1 ends
each branch. Where the paper has single numbers as biases, here each convolution has its bias for each channel.

Cost. None; the time and memory of normalisation are saved.

When it fails. Without a regulariser such as mixup it overfits more than a network with normalisation.

Paper. H. Zhang, Y. Dauphin, T. Ma, "Fixup Initialization", arXiv 1901.09321. Licence or patent note: Apache-2.0; none
known.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from postgrad.changes import note_change
from postgrad.errors import UserError
from postgrad.methods._apart import taken_apart
from postgrad.methods._surgery import optimizer_follows, replace_modules
from postgrad.methods.normalisation import (
    Convolution,
    Scale,
    check_own_weights,
    draw_he,
    fold,
    head,
    normalised_layers,
    residual_branches,
    trace,
)


def apply_fixup(model: nn.Module, *, optimizer: Optimizer | None = None, seed: int | None = None) -> int:
    """Take batch normalisation out of a residual network and start it as Fixup does; returns how many were removed.

    >>> apply_fixup(create_model("resnet20", num_classes=10))
    19

    `seed` is that of the draw; None draws from torch's global generator. `UserError`, the network left as it was, for
    one without residual branches, and wherever `apply_mimicnorm` refuses.
    """
    with taken_apart(model):
        traced = trace(model)
        convolutions = [module for module in model.modules() if isinstance(module, Convolution)]
        check_own_weights(traced, convolutions)
        layer_of = normalised_layers(traced)
        branches = residual_branches(traced, layer_of)
        if not branches:
            raise UserError(
                f"{type(model).__name__} has no residual branch, and Fixup is a start for residual networks"
            )
        last, _ = head(traced)
        scales = {branch.end: Scale(1.0) for branch in branches}
        with optimizer_follows(model, optimizer) as heir_of:
            fold(layer_of, heir_of)
            heir_of |= {scale.scale: end.weight for end, scale in scales.items() if end.weight is not None}
            replace_modules(model, {norm: scales.get(norm) or nn.Identity() for norm in layer_of})
            draw_he(convolutions, None if seed is None else torch.Generator().manual_seed(seed))
            with torch.no_grad():
                for branch in branches:
                    *others, final = branch.layers
                    for layer in others:
                        layer.weight.mul_(len(branches) ** (-1 / (2 * len(others))))
                    final.weight.zero_()
                for parameter in last.parameters():
                    parameter.zero_()
        note_change(model, "fixup")
        return len(layer_of)
