"""Another normalisation in place of batch normalisation: group, layer, batch renormalisation, or none.

Idea. What FRN and MimicNorm are compared with: each BatchNorm2d becomes the layer asked for, and all else stays. Group
normalisation takes its statistics over groups of channels of one image, layer normalisation over all of them, both
whatever the batch. Batch renormalisation corrects the statistics of a batch towards the running ones, without a
gradient through the correction, so that training and evaluation see the same.

Use. ``apply_norm(model, kind="group")``; on the command line ``--method norm:kind=group``.

Cost. As batch normalisation, a little more for batch renormalisation; none at all without a normalisation.

When it fails. Group and layer normalisation lose accuracy at large batches. Without any, deep networks want another
start (fixup, MimicNorm) and smaller learning rates.

Paper. Y. Wu, K. He, "Group Normalization", arXiv 1803.08494; J. Ba et al., "Layer Normalization", arXiv 1607.06450;
S. Ioffe, "Batch Renormalization", arXiv 1702.03275. Licence or patent note: Apache-2.0;
patents were not searched.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from postgrad.changes import note_change
from postgrad.errors import UserError, unknown_name
from postgrad.methods._apart import taken_apart
from postgrad.methods._surgery import optimizer_follows, replace_modules
from postgrad.methods.normalisation import remove_normalisation

Kind = Literal["group", "layer", "renorm", "none"]

GROUPS = 32
"""Of group normalisation, as published; fewer where the channels are fewer or cannot be shared out so."""


class BatchRenorm2d(nn.BatchNorm2d):
    """Batch renormalisation of (N, C, H, W): y = γ·((x − μ_B)/σ_B · r + d) + β; r and d bring in running statistics.

    >>> BatchRenorm2d(64)(torch.randn(4, 64, 8, 8)).shape
    torch.Size([4, 64, 8, 8])

    r = σ_B/σ within [1/r_max, r_max] and d = (μ_B − μ)/σ within ±d_max have no gradient. For the first `warm_up`
    batches they are 1 and 0, which is batch normalisation; then the bounds widen to r_max = 3 and d_max = 5 over as
    many again. Published: 5,000 batches and up to 40,000 of 1.2 million images. Source: arXiv 1702.03275, algorithm 1.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1, warm_up: int = 500) -> None:
        super().__init__(channels, eps=eps)
        self.share = momentum
        self.warm_up = warm_up

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        seen = int(self.num_batches_tracked)
        widened = min(1.0, max(0.0, seen / max(self.warm_up, 1) - 1.0))
        r_max, d_max = 1 + 2 * widened, 5 * widened
        mean_before, deviation_before = self.running_mean.clone(), (self.running_var + self.eps).sqrt()
        with torch.no_grad():
            values = x.float().transpose(0, 1).flatten(1)
            mean, deviation = values.mean(1), (values.var(1, unbiased=False) + self.eps).sqrt()
            r = (deviation / deviation_before).clamp(1 / r_max, r_max)
            d = ((mean - mean_before) / deviation_before).clamp(-d_max, d_max)
        normalised = nn.functional.batch_norm(
            x, self.running_mean, self.running_var, None, None, True, self.share, self.eps
        )
        self.num_batches_tracked += 1
        shape = (1, -1, 1, 1)
        scale, shift = self.weight * r, self.weight * d + self.bias
        return normalised * scale.view(shape) + shift.view(shape)


def apply_norm(model: nn.Module, *, kind: Kind, optimizer: Optimizer | None = None) -> int:
    """Put another normalisation in the place of every BatchNorm2d, in place; returns how many.

    >>> apply_norm(create_model("resnet20", num_classes=10), kind="group")
    19

    `kind` is "group" (`GROUPS` groups), "layer" (over channels, height and width), "renorm" (`BatchRenorm2d`) or "none"
    (batch normalisation folded into the layer before it). Scale, shift and ε are carried over, running statistics too
    where there are any; what timm's BatchNormAct2d drops and activates follows the new layer. An `optimizer` made
    already goes along. Warns and returns 0 where there is nothing to replace. An unknown kind and another
    BatchNorm2d of a class of its own are `UserError`s, and leave the network as it was.
    """
    if kind not in get_args(Kind):
        raise unknown_name("kind of normalisation", str(kind), get_args(Kind))
    if kind == "none":
        return remove_normalisation(model, optimizer=optimizer)
    make = _MAKERS[kind]
    with taken_apart(model):
        old = [module for module in model.modules() if type(module) is nn.BatchNorm2d]
        for name, norm in model.named_modules():
            if isinstance(norm, nn.BatchNorm2d) and type(norm) is not nn.BatchNorm2d:
                raise UserError(
                    f"{name} is a {type(norm).__name__}, which does more than a batch normalisation; it stays"
                )
        if not old:
            warnings.warn("the network has no BatchNorm2d: no normalisation was replaced", UserWarning, stacklevel=2)
            return 0
        if any(norm.weight is None for norm in old):
            raise UserError("a batch normalisation without scale and shift has nothing to carry over; leave affine on")
        if kind == "renorm" and any(norm.running_mean is None or norm.momentum is None for norm in old):
            raise UserError(
                "batch renormalisation goes by running statistics and their momentum; give the network both"
            )
        swaps: dict[nn.Module, nn.Module] = {}
        with optimizer_follows(model, optimizer) as heir_of:
            for norm in old:
                new = swaps[norm] = make(norm)
                new.load_state_dict({k: v for k, v in norm.state_dict().items() if k in new.state_dict()})
                heir_of |= {new.weight: norm.weight, new.bias: norm.bias}  # type: ignore[dict-item]
            replace_modules(model, swaps)
        note_change(model, "norm", kind=kind)
        return len(old)


def _group_norm(old: nn.BatchNorm2d) -> nn.GroupNorm:
    channels = old.num_features
    return nn.GroupNorm(math.gcd(min(GROUPS, channels), channels), channels, eps=old.eps)


def _batch_renorm(old: nn.BatchNorm2d) -> BatchRenorm2d:
    assert old.momentum is not None
    return BatchRenorm2d(old.num_features, eps=old.eps, momentum=old.momentum)


_MAKERS: dict[str, Callable[[nn.BatchNorm2d], nn.Module]] = {
    "group": _group_norm,
    "layer": lambda old: nn.GroupNorm(1, old.num_features, eps=old.eps),
    "renorm": _batch_renorm,
}
