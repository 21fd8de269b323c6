from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.random import default_rng
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F

from postgrad.methods._mapper_encoders import (
    ContractiveAutoencoder,
    VariationalAutoencoder,
    encoded,
    trained_encoder,
)


def _rows(n: int = 40) -> Any:
    """Points of a plane in eight dimensions, in [0, 1]."""
    generator = default_rng(0)
    return (generator.random((n, 2)) @ generator.random((2, 8)) / 2).astype(np.float32)


def test_contraction_is_the_squared_jacobian_of_the_code() -> None:
    torch.manual_seed(0)
    network = ContractiveAutoencoder(8, 3).double()
    x = torch.from_numpy(_rows(5)).double()
    jacobians = torch.stack([torch.autograd.functional.jacobian(network, row[None]) for row in x])
    wanted = F.mse_loss(network.decoder(network(x)), x) + 1e-4 * jacobians.square().sum() / len(x)
    torch.testing.assert_close(network.loss(x, x), wanted)


def test_evidence_lower_bound_is_that_of_torch_distributions() -> None:
    torch.manual_seed(0)
    network = VariationalAutoencoder(8, 3).double()
    x, noise = torch.from_numpy(_rows(5)).double(), torch.randn(5, 3).double()
    hidden = F.relu(network.encoder(x))
    mean, deviation = network.mean(hidden), (network.log_variance(hidden) / 2).exp()
    pixels = network.decoder(mean + noise * deviation).sigmoid()
    code, prior = (Independent(Normal(*each), 1) for each in ((mean, deviation), (0 * mean, 0 * mean + 1)))
    wanted = F.binary_cross_entropy(pixels, x, reduction="sum") / 5 + kl_divergence(code, prior).mean()
    torch.testing.assert_close(network.loss(x, noise), wanted)


def test_training_lowers_the_loss_and_repeats() -> None:
    rows = _rows()
    common: Any = {"seed": 0, "device": torch.device("cpu"), "directory": None}
    x, noise = torch.from_numpy(rows), torch.zeros(len(rows), 2)
    for kind in ("autoencoder", "vae"):
        short, long, again = (trained_encoder(kind, rows, 2, epochs=e, **common) for e in (1, 60, 60))
        assert long.loss(x, noise) < short.loss(x, noise)  # type: ignore[operator]
        np.testing.assert_array_equal(encoded(long, rows), encoded(again, rows))


def test_samples_of_a_code_depend_on_their_seed_alone() -> None:
    torch.manual_seed(0)
    network, rows = VariationalAutoencoder(8, 3), _rows()
    np.testing.assert_array_equal(encoded(network, rows, noise_seed=1), encoded(network, rows, noise_seed=1))
    assert not np.allclose(encoded(network, rows, noise_seed=1), encoded(network, rows, noise_seed=2))
    assert not np.allclose(encoded(network, rows, noise_seed=1), encoded(network, rows))
