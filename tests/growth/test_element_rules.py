"""The rules of operations on elements, each against the operation itself with more units."""

from __future__ import annotations

import pytest
import torch
from following import NCHW, NTC, Case, check
from torch.nn import functional as F

CASES: dict[str, Case] = {
    "relu": (F.relu, 3, (NTC,)),
    "gelu, exp, clamp": (lambda x: F.gelu(x).exp().clamp(0.1, 2), 3, (NTC,)),
    "in place": (lambda x: F.relu_(x.clone()).mul_(2).add_(x), 3, (NTC,)),
    "scalars": (lambda x: 1 - 2 / (x * 3 + 1) ** 2, 3, (NTC,)),
    "two": (lambda x, y: torch.maximum(x, y) * (x > y), 3, (NTC, NTC)),
    "repeated": (lambda x, y: x * y + y, 3, (NTC, (4,))),
    "repeated unit": (lambda x, y: x - y, 3, (NTC, (2, 1, 4))),
    "where": (lambda x, y: torch.where(x > 0.5, y, 0.0), 3, (NTC, NTC)),
    "another type": (lambda x: x.float().double().to(torch.float64).type_as(x), 3, (NTC,)),
    "mean": (lambda x: x.mean(1), 3, (NTC,)),
    "mean of all": (lambda x: x.mean() + x, 3, (NTC,)),
    "kept mean": (lambda x: x - x.mean((1, -1), keepdim=True), 3, (NTC,)),
    "extremes": (lambda x: x.amax(-1) - x.amin(-1), 3, (NTC,)),
    "sum": (lambda x: x.sum(-1), 2, (NTC,)),
    "length": (lambda x: x / torch.linalg.vector_norm(x, 2, -1, keepdim=True), 3, (NTC,)),
    "norm": (lambda x: x.norm(dim=-1, keepdim=True), 3, (NTC,)),
    "another norm": (lambda x: torch.linalg.vector_norm(x, 1, -1), 2, (NTC,)),
    "normalize": (lambda x: F.normalize(x, dim=-1), 3, (NTC,)),
    "logsumexp": (lambda x: x.logsumexp(-1), 2, (NTC,)),
    "softmax": (lambda x: x.softmax(-1), 2, (NTC,)),
    "log_softmax": (lambda x: F.log_softmax(x, 1), 2, (NTC,)),
    "cumsum": (lambda x: x.cumsum(1), 2, (NTC,)),
    "flip": (lambda x: x.flip(-1), 2, (NTC,)),
    "roll": (lambda x: x.roll((1, 1), (0, 2)), 1, (NTC,)),
    "roll of all": (lambda x: x.roll(1), 0, (NTC,)),
    "sort": (lambda x: torch.sort(x), 2, (NTC,)),
    "stable sort": (lambda x: torch.sort(x, stable=True, dim=1), 2, (NTC,)),
    "argsort": (lambda x: x.argsort(1), 2, (NTC,)),
    "constants": (lambda x: x + torch.ones_like(x) + x.new_zeros(4) + torch.arange(4), 2, (NTC,)),
    "max_pool": (lambda x: F.max_pool2d(x, 2), 2, (NCHW,)),
    "max_pool with indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], 2, (NCHW,)),
    "pool that keeps the size": (lambda x: F.avg_pool2d(x, 3, 1, 1), 2, (NCHW,)),
    "pool without a batch": (lambda x: F.max_pool2d(x, 3, 1, 1), 1, ((4, 6, 6),)),
    "pool of sequences without a batch": (lambda x: F.max_pool1d(x, 3, 1, 1), 1, ((4, 6),)),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, 1), 2, (NCHW,)),
    "adaptive to the same": (lambda x: F.adaptive_max_pool2d(x, 6), 2, (NCHW,)),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 2, (NCHW,)),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), 2, (NCHW,)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), 1, (NCHW,)),
    "pad": (lambda x: F.pad(x, (1, 1, 0, 2)), 2, (NCHW,)),
    "pad channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), 3, (NCHW,)),
    "shift by padding": (lambda x: F.pad(x, (1, -1)), 2, (NTC,)),
    "reflect": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 2, (NCHW,)),
    "replicate": (lambda x: F.pad(x, (1, 1), mode="replicate"), 2, (NTC,)),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_on_elements(name: str) -> None:
    check(*CASES[name])
