"""The networks that everybody grows, with statistics and factors of normalisation that are none of a fresh network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from postgrad._compat import prepare_torchvision

BATCH = 8


@dataclass(frozen=True)
class Case:
    """One growth: `layer` becomes `to` wide, or something is put behind `layer` (`to` 0).

    `norm` and `reader` are what the peers want to be told: the normalisation behind the layer, and what reads it;
    `block` is the residual block that they are in, `pixels` how many numbers of a channel reach the reader.
    """

    what: str
    kind: Literal["widen", "deepen", "residual"]
    network: Callable[[], nn.Module]
    shape: tuple[int, ...]
    layer: str
    to: int = 0
    norm: str | None = None
    reader: str = ""
    block: str | None = None
    pixels: int = 1


class Residual(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), `inner` channels wide inside."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


def convolutions(norm: bool = True, bias: bool = True) -> nn.Sequential:
    """Two convolutions and a linear layer; with `norm`, the first is normalised."""
    first = {"conv1": nn.Conv2d(3, 8, 3, padding=1, bias=bias), "bn1": nn.BatchNorm2d(8)}
    if not norm:
        del first["bn1"]
    rest = {"relu1": nn.ReLU(), "conv2": nn.Conv2d(8, 12, 3, padding=1, bias=bias), "relu2": nn.ReLU()}
    last = {"pool": nn.AvgPool2d(4), "flatten": nn.Flatten(), "linear": nn.Linear(12 * 16, 10)}
    return nn.Sequential(OrderedDict(first | rest | last))


def flattened() -> nn.Sequential:
    """A convolution whose pixels a linear layer reads."""
    first = {"conv1": nn.Conv2d(3, 8, 3, padding=1), "relu1": nn.ReLU(), "pool": nn.AvgPool2d(4)}
    return nn.Sequential(OrderedDict(first | {"flatten": nn.Flatten(), "linear": nn.Linear(8 * 16, 10)}))


def perceptron() -> nn.Sequential:
    """Two linear layers."""
    return nn.Sequential(OrderedDict({"linear1": nn.Linear(24, 16), "relu1": nn.ReLU(), "linear2": nn.Linear(16, 10)}))


def residual() -> nn.Sequential:
    """A stem, a residual block that adds to it, and a linear layer."""
    first = {"stem": nn.Conv2d(3, 8, 3, padding=1), "relu1": nn.ReLU(), "block": Residual(8, 8), "relu2": nn.ReLU()}
    last = {"pool": nn.AvgPool2d(4), "flatten": nn.Flatten(), "linear": nn.Linear(8 * 16, 10)}
    return nn.Sequential(OrderedDict(first | last))


def resnet18() -> nn.Module:
    """torchvision's, which knows nothing of growth."""
    prepare_torchvision()
    from torchvision import models

    return models.resnet18(num_classes=10)


IMAGES = (3, 16, 16)
_PAIR = {"layer": "conv1", "reader": "conv2"}
CASES = (
    Case("widen conv–ReLU–conv", "widen", lambda: convolutions(norm=False), IMAGES, to=12, **_PAIR),
    Case("widen conv–BN–ReLU–conv", "widen", convolutions, IMAGES, to=12, norm="bn1", **_PAIR),
    Case(
        "widen conv–BN–ReLU–conv without biases",
        "widen",
        lambda: convolutions(bias=False),
        IMAGES,
        to=12,
        norm="bn1",
        **_PAIR,
    ),
    Case("widen conv–flatten–linear", "widen", flattened, IMAGES, "conv1", 12, reader="linear", pixels=16),
    Case("widen linear–ReLU–linear", "widen", perceptron, (24,), "linear1", 24, reader="linear2"),
    Case(
        "widen inside a residual block",
        "widen",
        residual,
        IMAGES,
        "block.conv1",
        12,
        norm="block.bn1",
        reader="block.conv2",
        block="block",
    ),
    Case("widen what residual blocks add to", "widen", residual, IMAGES, "stem", 12, reader="block.conv1"),
    Case(
        "widen in torchvision's resnet18",
        "widen",
        resnet18,
        (3, 64, 64),
        "layer1.0.conv1",
        96,
        norm="layer1.0.bn1",
        reader="layer1.0.conv2",
    ),
    Case("deepen linear–ReLU", "deepen", perceptron, (24,), "linear1"),
    Case("deepen conv–ReLU", "deepen", lambda: convolutions(norm=False), IMAGES, "conv1"),
    Case("deepen conv–BN–ReLU", "deepen", convolutions, IMAGES, "conv1", norm="bn1"),
    Case("put in a residual block", "residual", convolutions, IMAGES, "relu1"),
)


def prepared(case: Case) -> tuple[nn.Module, Tensor]:
    """The network in float64 and evaluation mode, drawn with a fixed seed, and a batch of noise.

    Factors of normalisation are drawn between ½ and 1½, shifts with a standard deviation of 0.3; the statistics are
    the means of those of ten batches.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = case.network().double()
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
            norm.momentum = None  # a plain mean
        network.train()
        with torch.no_grad():
            for _ in range(10):
                network(torch.randn(BATCH, *case.shape, dtype=torch.float64))
        for norm in norms:
            norm.momentum = 0.1
        return network.eval(), torch.randn(BATCH, *case.shape, dtype=torch.float64)
