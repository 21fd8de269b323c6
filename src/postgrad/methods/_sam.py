"""Sharpness-aware minimisation (SAM): the loss at the worst weights nearby (arXiv 2010.01412, 2102.11600)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    moved = dict(_moved(weights, gradients, rho))
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    return loss(lambda inputs: functional_call(network, {**moved, **statistics}, (inputs,)))


def _moved(
    weights: Mapping[str, Tensor], gradients: tuple[Tensor | None, ...], rho: float
) -> Iterator[tuple[str, Tensor]]:
    scaled = [None if g is None else w.detach().abs() * g for w, g in zip(weights.values(), gradients, strict=True)]
    total = torch.linalg.vector_norm(torch.stack([each.norm() for each in scaled if each is not None]))
    for (name, weight), each in zip(weights.items(), scaled, strict=True):
        if each is not None:
            yield name, weight + weight.detach().abs() * each * (rho / (total + _TINY))
