"""The MLP that classifies rows of node memberships."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.training import History, Recipe, train

_AT_ONCE = 1024


def make_mlp(inputs: int, hidden: Sequence[int], classes: int, dropout: float) -> nn.Sequential:
    """Linear, ReLU and dropout for each hidden size, then a Linear to the logits."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), nn.ReLU(), nn.Dropout(dropout)]
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


def fit_mlp(
    mlp: nn.Sequential,
    rows: sparse.csr_matrix,
    targets: NDArray[np.int64],
    *,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    validation: tuple[sparse.csr_matrix, NDArray[np.int64]] | None,
    directory: Path | None,
) -> History:
    """Train the MLP in place by cross-entropy; `validation` only draws the learning curve."""
    labels = torch.from_numpy(targets)

    def batch(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(rows[indices.numpy()].toarray())
        return chosen.to(device), labels[indices].to(device)

    def validate(model: nn.Module) -> dict[str, float]:
        assert validation is not None
        probabilities = mlp_probabilities(mlp, validation[0])
        right = probabilities[np.arange(len(probabilities)), validation[1]]
        accuracy = float((probabilities.argmax(axis=1) == validation[1]).mean())
        return {"accuracy": accuracy, "nll": float(-np.log(np.maximum(right, 1e-300)).mean())}

    return train(
        mlp,
        n=len(targets),
        make_batch=batch,
        loss=lambda model, each: F.cross_entropy(model(each[0]), each[1]),
        recipe=recipe,
        seed=seed,
        validate=None if validation is None else validate,
        directory=directory,
        resume=directory is not None,
        label="mapper's head",
    )


def mlp_probabilities(mlp: nn.Sequential, rows: sparse.csr_matrix) -> NDArray[np.float64]:
    """Probabilities (N, C), in float64, so that they do not depend on which rows are given together."""
    device = next(mlp.parameters()).device
    exact = device.type != "mps"  # which has no float64
    weights = {name: value.double() if exact else value for name, value in mlp.state_dict().items()}
    parts = [torch.empty(0, mlp[-1].out_features, dtype=torch.float64)]  # type: ignore[call-overload]
    with torch.no_grad():
        for start in range(0, rows.shape[0], _AT_ONCE):
            part = torch.from_numpy(rows[start : start + _AT_ONCE].toarray()).to(device)
            logits = torch.func.functional_call(mlp, weights, (part.double() if exact else part,))
            parts.append(logits.softmax(dim=1).double().cpu())
    return torch.cat(parts).numpy()
