"""The autoencoders whose code Mapper covers: a contractive and a variational one, as the Mapper paper's authors'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.training import Recipe, train

_CONTRACTION = 1e-4
_HIDDEN = 512
_LR = 1e-3
_BATCH = {"autoencoder": 100, "vae": 128}
_ENCODED_AT_ONCE = 4096


class ContractiveAutoencoder(nn.Module):
    """d → C by a sigmoid layer → d by a linear one.

    The loss is the mean square error plus 1e-4·Σⱼ (hⱼ(1 − hⱼ))²·Σᵢ Wⱼᵢ², the squared Jacobian of the code h.
    """

    def __init__(self, inputs: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(inputs, code)
        self.decoder = nn.Linear(code, inputs)

    def forward(self, rows: Tensor, noise: Tensor | None = None) -> Tensor:
        """The code (N, C) of rows (N, d)."""
        return self.encoder(rows).sigmoid()

    def loss(self, rows: Tensor, noise: Tensor) -> Tensor:
        code = self(rows)
        slopes = (code * (1 - code)).square() @ self.encoder.weight.square().sum(dim=1)
        return F.mse_loss(self.decoder(code), rows) + _CONTRACTION * slopes.mean()


class VariationalAutoencoder(nn.Module):
    """d → 512 → mean and log variance (C each); a sample of these → 512 → d pixels as probabilities.

    The loss is the negative evidence lower bound: cross-entropy of the pixels plus the divergence from N(0, 1).
    """

    def __init__(self, inputs: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(inputs, _HIDDEN)
        self.mean = nn.Linear(_HIDDEN, code)
        self.log_variance = nn.Linear(_HIDDEN, code)
        self.decoder = nn.Sequential(nn.Linear(code, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, inputs))

    def forward(self, rows: Tensor, noise: Tensor | None = None) -> Tensor:
        """The mean of the code (N, C) of rows (N, d); with noise of N(0, 1) a sample of it."""
        hidden = F.relu(self.encoder(rows))
        mean = self.mean(hidden)
        return mean if noise is None else mean + noise * (self.log_variance(hidden) / 2).exp()

    def loss(self, rows: Tensor, noise: Tensor) -> Tensor:
        hidden = F.relu(self.encoder(rows))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        pixels = self.decoder(mean + noise * (log_variance / 2).exp())
        wrong = F.binary_cross_entropy_with_logits(pixels, rows, reduction="sum")
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return (wrong + divergence) / len(rows)


ENCODERS = {"autoencoder": ContractiveAutoencoder, "vae": VariationalAutoencoder}


def trained_encoder(
    kind: str,
    rows: NDArray[Any],
    code: int,
    *,
    epochs: float,
    seed: int,
    device: torch.device,
    directory: Path | None,
) -> nn.Module:
    """An autoencoder trained on rows (n, d) by Adam at 0.001, in batches of 100 (variational: 128)."""
    if kind == "vae" and not (rows.min() >= 0 and rows.max() <= 1):
        raise UserError(f"latent='vae': takes numbers from 0 to 1, got {rows.min():g} to {rows.max():g}; scale them")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = ENCODERS[kind](rows.shape[1], code).to(device)

    def batch(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(len(indices), code, generator=generator)
        return _tensor(rows[indices.numpy()]).to(device), noise.to(device)

    train(
        network,
        n=len(rows),
        make_batch=batch,
        loss=lambda _, each: network.loss(*each),
        recipe=Recipe(epochs=epochs, batch_size=_BATCH[kind], optimizer="adam", lr=_LR),
        seed=seed,
        directory=directory,
        resume=directory is not None,
        label=kind,
    )
    return network


def encoded(network: nn.Module, rows: NDArray[Any], *, noise_seed: int | None = None) -> NDArray[np.float64]:
    """The codes (n, C) of rows: the means of a variational one, or samples drawn from a seed."""
    parameter = next(network.parameters())
    generator = None if noise_seed is None else torch.Generator().manual_seed(noise_seed)
    parts = [np.empty((0, _code(network)))]
    with torch.no_grad():
        for start in range(0, len(rows), _ENCODED_AT_ONCE):
            part = _tensor(rows[start : start + _ENCODED_AT_ONCE]).to(parameter.device)
            noise = None
            if generator is not None:
                noise = torch.randn(len(part), _code(network), generator=generator).to(parameter.device)
            parts.append(network(part, noise).double().cpu().numpy())
    return np.concatenate(parts)


def _code(network: Any) -> int:
    return (network.mean if isinstance(network, VariationalAutoencoder) else network.encoder).out_features


def _tensor(rows: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
