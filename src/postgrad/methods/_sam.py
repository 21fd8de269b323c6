"""Sharpness-aware minimisation (SAM): the loss at the worst weights nearby (arXiv 2010.01412, 2102.11600)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Loss = Callable[[Callable[[Tensor], Any]], Tensor]
"""What gives outputs for inputs -> the loss."""

_TINY = 1e-12


def sharpness_aware(network: nn.Module, loss: Loss, value: Tensor, *, rho: float) -> Tensor:
    """The loss at w + ε, whose gradient with respect to w is the one that SAM descends; no weight is changed.

    >>> value = loss(network)
    >>> sharpness_aware(network, loss, value, rho=2.0).backward()

    `value` is the loss at w, in whose gradient g the step is taken: ε = ρ T²g / ‖T g‖ with T = |w|, in all weights
    together: the adaptive form, which does not depend on how layers are scaled. Where the gradient is zero, so is the
    step. What the second pass does to running statistics is forgotten.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(value, weights, allow_unused=True)
    moved = dict(_moved(weights, gradients, rho))
    # By place: torch restores wrongly what a module reached by two names holds, as that in a wrapper of Fabric.
    tensors: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        tensors |= {prefix + own: moved[weight] for own, weight in module._parameters.items() if weight in moved}
        tensors |= {prefix + own: buffer.clone() for own, buffer in module._buffers.items() if buffer is not None}
    return loss(lambda inputs: functional_call(network, tensors, (inputs,), tie_weights=False))


def _moved(
    weights: Sequence[Tensor], gradients: Sequence[Tensor | None], rho: float
) -> Iterator[tuple[Tensor | None, Tensor]]:
    scaled = [None if g is None else w.detach().abs() * g for w, g in zip(weights, gradients, strict=True)]
    total = torch.linalg.vector_norm(torch.stack([each.norm() for each in scaled if each is not None]))
    for weight, each in zip(weights, scaled, strict=True):
        if each is not None:
            yield weight, weight + weight.detach().abs() * each * (rho / (total + _TINY))
