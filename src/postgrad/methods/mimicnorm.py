"""MimicNorm: centred filters and one normalisation of the logits, in place of every batch normalisation.

Idea. Batch normalisation decorrelates what two images become with depth, and tunes the learning rate. Subtracting from
each filter its mean does the first without a look at the batch; one `BatchNorm1d` without parameters on the logits does
the second.

How it trains. Every batch normalisation goes and convolutions gain a bias. The weight of each convolution with a fan-in
above 50 is W − mean(W) over (in, kh, kw), by a parametrization: nothing is to be called after a step. It starts at
He's standard deviation times √(1/(1 − 1/π)) ≈ 1.21 (Theorem 3). A learned scalar ends each residual branch.

Cost. A copy of the convolutions' weights a step; less memory for activations, since no normalisation keeps its input.

When it fails. Networks whose normalisation stands before the convolution (pre-activation, DenseNet) are refused. A
batch of one image cannot be trained on, as with any batch normalisation of logits.

Paper. W. Fei, W. Dai, C. Li, J. Zou, H. Xiong, "MimicNorm", arXiv 2010.09278. Licence or patent note: Apache-2.0;
none known.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from postgrad.changes import note_change
from postgrad.errors import unknown_name
from postgrad.methods._apart import taken_apart
from postgrad.methods._surgery import optimizer_follows, replace_modules
from postgrad.methods.normalisation import (
    Branch,
    Convolution,
    Scale,
    check_own_weights,
    draw_he,
    fold,
    head,
    is_depthwise,
    normalised_layers,
    residual_branches,
    trace,
)

_SMALL_FAN_IN = 50
_GAIN = math.sqrt(1 / (1 - 1 / math.pi))
"""What a ReLU layer loses in standard deviation by centring (Theorem 3), given back at the start."""


class Centred(nn.Module):
    """The parametrization: a weight (out, …) less the mean of each of its filters.

    >>> Centred()(torch.tensor([[[[1.0, 3.0]]]]))
    tensor([[[[-1.,  1.]]]])

    What is assigned to a weight under it is centred as well.
    """

    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean(dim=tuple(range(1, weight.dim())), keepdim=True)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return self(weight)


def apply_mimicnorm(
    model: nn.Module,
    *,
    optimizer: Optimizer | None = None,
    residual: Literal["code", "paper"] = "code",
    seed: int | None = None,
) -> int:
    """Put MimicNorm in place of batch normalisation, in place; returns how many layers were changed.

    >>> model = create_model("resnet20", num_classes=10)
    >>> apply_mimicnorm(model)  # 19 normalisations removed, 18 convolutions centred, the logits normalised
    38

    It is for a network that is yet to be trained: all convolutions are drawn anew, N(0, 2/fan-in), times 1.21² in
    variance where they are centred (fan-in above 50, not depthwise) and the branch's scalar does not make up for it.
    Linear layers are left alone, but for the last, which becomes `Sequential(layer, norm)`. Networks without batch
    normalisation are centred all the same. Of timm's BatchNormAct2d the normalisation goes, the activation stays.

    Parameters
    ----------
    model : an `nn.Module` giving logits (N, C). Of two summands in it, the one with more layers is the residual branch.
    optimizer : where it is made already, it is kept in step: biases and scalars join the groups of the normalisations'
        shift and scale, and what it kept for weights that were drawn anew is forgotten.
    residual : the scalar at the end of the l-th residual branch of the whole network starts at 1.2ᵏ/l ("code", the
        authors' program; k is 2 in a basic block, 3 in a bottleneck: its normalised convolutions that are not
        depthwise) or 1/√l ("paper", section 4).
    seed : of the draw; None draws from torch's global generator.

    `UserWarning` and 0 where no convolution is to be centred. `UserError`, the network left as it was: torch.fx cannot
    follow its forward pass; a normalisation follows no layer of its own, or is missing at the end of a residual branch;
    the weight of a convolution is shared or parametrized; the logits come neither from a linear layer nor from a global
    pooling, before or after a convolution. Source: arXiv 2010.09278, section 4.
    """
    if residual not in ("code", "paper"):
        raise unknown_name("residual scalar", str(residual), ("code", "paper"))
    convolutions = [module for module in model.modules() if isinstance(module, Convolution)]
    centred = [each for each in convolutions if _is_to_be_centred(each)]
    if not centred:
        reason = f"the network has no convolution of more than {_SMALL_FAN_IN} weights a filter that is not yet centred"
        warnings.warn(f"{reason}: MimicNorm changed nothing", UserWarning, stacklevel=2)
        return 0
    with taken_apart(model):
        traced = trace(model)
        check_own_weights(traced, convolutions)
        layer_of = normalised_layers(traced)
        branches = residual_branches(traced, layer_of)
        last, classes = head(traced)
        scales = {
            branch.end: Scale(_start(branch, number, residual)) for number, branch in enumerate(branches, start=1)
        }

        with optimizer_follows(model, optimizer) as heir_of:
            fold(layer_of, heir_of)
            heir_of |= {scale.scale: end.weight for end, scale in scales.items() if end.weight is not None}
            replace_modules(model, {norm: scales.get(norm) or nn.Identity() for norm in layer_of})
            replace_modules(model, {last: _normalised(last, classes, like=centred[0].weight)})
            draw_he(convolutions, None if seed is None else torch.Generator().manual_seed(seed))
            # The code's scalar already has the gain of its branch's convolutions in it.
            plain = {layer for branch in branches for layer in branch.layers} if residual == "code" else set()
            for layer in centred:
                with torch.no_grad():
                    layer.weight.mul_(1.0 if layer in plain else _GAIN)
                parametrize.register_parametrization(layer, "weight", Centred())
        if optimizer is not None:
            for layer in convolutions:
                for parameter in layer.parameters():
                    optimizer.state.pop(parameter, None)
        note_change(model, "mimicnorm", residual=residual)
        return len(layer_of) + len(centred) + 1


def bake_mimicnorm(model: nn.Module) -> int:
    """Store the centred weights as plain weights, in place, for export and fast prediction; returns how many.

    >>> bake_mimicnorm(copy.deepcopy(model))
    18

    The outputs stay as they are and the keys of the `state_dict` become plain (`conv1.weight`), but weights that are
    trained on afterwards are centred no more. `UserWarning` and 0 where no weight is centred.
    """
    layers = [module for module in model.modules() if _is_centred(module)]
    if not layers:
        warnings.warn("the network has no centred weight: nothing was changed", UserWarning, stacklevel=2)
        return 0
    for layer in layers:
        # torch gives each parametrized layer a class, which its deep copies share and removing would strip for all.
        shared = type(layer)
        layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    note_change(model, "mimicnorm_baked")
    return len(layers)


def _is_to_be_centred(layer: Convolution) -> bool:
    return layer.weight[0].numel() > _SMALL_FAN_IN and not is_depthwise(layer) and not _is_centred(layer)


def _is_centred(layer: nn.Module) -> bool:
    return parametrize.is_parametrized(layer, "weight") and any(
        isinstance(each, Centred) for each in layer.get_submodule("parametrizations.weight").children()
    )


def _start(branch: Branch, number: int, residual: str) -> float:
    if residual == "paper":
        return 1 / math.sqrt(number)
    dense = [each for each in branch.layers if isinstance(each, Convolution) and not is_depthwise(each)]
    return 1.2 ** len(dense) / number


def _normalised(last: nn.Module, classes: int, like: Tensor) -> nn.Sequential:
    """The layer of the logits and its normalisation; logits (N, C, 1, 1) become (N, C)."""
    norm = nn.BatchNorm1d(classes, affine=False, device=like.device, dtype=like.dtype)
    flat = {} if isinstance(last, nn.Linear) else {"flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict({"layer": last, **flat, "norm": norm}))
