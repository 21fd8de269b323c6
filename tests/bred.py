"""What the tests of the search share: a small network to breed from, and individuals that were never trained."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from networks_to_grow import Squeeze, awake
from small_nets import Plain
from torch import nn

from postgrad.search.individual import Architecture, Genes, Individual
from postgrad.search.mutations import Limits, Parent, architecture_of

IMAGES = torch.linspace(-1, 1, 4 * 3 * 16 * 16).reshape(4, 3, 16, 16).mul(40).sin()


def three() -> nn.Module:
    """Two convolutions and a linear layer, no normalisation."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


BASES = {"three": three, "residual": Plain, "squeezed": Squeeze}


def parent_of(model: nn.Module, images: torch.Tensor = IMAGES, **limits: Any) -> Parent:
    """The network as a mutation sees it, with weights that are not those of a fresh one."""
    awake(model)
    return Parent(model, images, architecture_of(model, images), Limits(**limits))


@functools.cache
def parent(base: str) -> Parent:
    """One of the bases as a mutation sees it, analysed once for all tests; they leave it as it is."""
    return parent_of(BASES[base]())


def individual(number: int = 0, accuracy: float = 0.5, **fields: Any) -> Individual:
    """One that was never trained."""
    made = Individual(
        name=f"n{number}",
        number=number,
        parent=None,
        mutation="base",
        operations=(),
        genes=Genes(),
        architecture=Architecture(depth=3, pools=1, side=32),
        accuracy=accuracy,
        nll=1.0,
        parameters=100,
        multiply_adds=1000,
        latency_ms=1.0,
        epochs=1.0,
        training_multiply_adds=3000,
        lineage_multiply_adds=3000,
        cpu_seconds=1.0,
        seconds=1.0,
    )
    return dataclasses.replace(made, **fields)
