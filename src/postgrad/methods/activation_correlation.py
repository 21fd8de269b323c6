"""How alike two images become with depth: the correlation of what enters each layer, under BN, MimicNorm or neither."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from postgrad.errors import UserError
from postgrad.methods.normalisation import Layer


def activation_correlation(model: nn.Module, x: Tensor) -> list[tuple[str, float]]:
    """The mean correlation between two images' activations, for the input of each convolution and linear layer.

    >>> activation_correlation(model, x)
    [('conv1', 0.021), ('layer1.0.conv1', 0.316), …]

    `x` is two or more preprocessed images (N, …). A correlation is Pearson's, over the units of one activation; the
    mean is over all pairs of images. Layers come in the order of the forward pass. Normalisations see this batch's
    statistics, as in training, dropout is off; the network is copied, not touched. An activation that is constant for
    some image has no correlation: NaN. arXiv 2010.09278, section 3.
    """
    if len(x) < 2:
        raise UserError(f"a correlation needs two images or more, got {len(x)}")
    probe = copy.deepcopy(model).eval()
    for module in probe.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    found: list[tuple[str, float]] = []

    def watch(name: str) -> Any:
        return lambda layer, inputs: found.append((name, _mean_correlation(inputs[0])))

    for name, module in probe.named_modules():
        if isinstance(module, Layer):
            module.register_forward_pre_hook(watch(name))
    with torch.no_grad():
        probe(x)
    return found


def _mean_correlation(activation: Tensor) -> float:
    """The mean of the correlation matrix (N, N) of the rows off its diagonal."""
    correlation = torch.corrcoef(activation.flatten(1).double())
    pairs = torch.ones_like(correlation, dtype=torch.bool).triu(diagonal=1)
    return float(correlation[pairs].mean())
