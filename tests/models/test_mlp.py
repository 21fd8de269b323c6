"""The perceptron, against numpy."""

from __future__ import annotations

import numpy as np
import torch

from postgrad.models.mlp import MLP


def test_forward_equals_numpy() -> None:
    network = MLP(in_channels=2, num_classes=3, image_size=(4, 5)).double()
    x = torch.randn(6, 2, 4, 5, dtype=torch.float64)
    hidden = x.numpy().reshape(6, 40)
    w = {name: p.detach().numpy() for name, p in network.named_parameters()}
    for layer in ("l0", "l1"):
        hidden = np.maximum(hidden @ w[f"{layer}.weight"].T + w[f"{layer}.bias"], 0)
    np.testing.assert_allclose(network(x).detach(), hidden @ w["l2.weight"].T + w["l2.bias"], atol=1e-12)


def test_two_hidden_layers_of_256_and_128() -> None:
    shapes = [tuple(p.shape) for p in MLP(1, 10, 8).parameters() if p.ndim == 2]
    assert shapes == [(256, 64), (128, 256), (10, 128)]


def test_other_hidden_sizes() -> None:
    assert [tuple(p.shape) for p in MLP(1, 10, 8, hidden=[7]).parameters() if p.ndim == 2] == [(7, 64), (10, 7)]
