"""Networks that are small enough for studies on a processor."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from postgrad.models.resnet20 import BasicBlock
from postgrad.models.seed_cnn import SeedCNN


class SeedCNNWithNorm(SeedCNN):
    """seed-cnn with a batch normalisation after each of its two convolutions."""

    def __init__(self, num_classes: int, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.bn0 = nn.BatchNorm2d(self.c0.out_channels)
        self.bn1 = nn.BatchNorm2d(self.c1.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn0(self.c0(x))), 2, ceil_mode=True)
        x = F.max_pool2d(F.relu(self.bn1(self.c1(x))), 2, ceil_mode=True)
        return self.l1(x.flatten(1))


class ResNet8(nn.Module):
    """resnet20 with one block in each stage instead of three."""

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 32, stride=2), BasicBlock(32, 64, stride=2))
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


class Small3(nn.Module):
    """Three layers with weights: two 3×3 convolutions with pooling behind each, and a linear layer.

    That sees 4×4 pixels of each channel whatever came before, so that pooling can be put in. Weights start as He et al.
    draw them.
    """

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(in_channels, 16, 3, padding=1), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.last_pool = nn.AdaptiveAvgPool2d(4)
        self.fc = nn.Linear(32 * 4 * 4, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv2(self.pool(self.conv1(x))))
        return self.fc(self.last_pool(x).flatten(1))


def small3(num_classes: int, in_channels: int = 3) -> Small3:
    """What a search begins with."""
    return Small3(num_classes, in_channels)


class SmallVGG(nn.Module):
    """VGG without normalisation: three stages of 3×3 convolutions with pooling behind each, and two linear layers.

    `depths` are the convolutions of each stage. With 1, 1, 1 it has five layers with weights, with 2, 2, 2 eight, as
    the VGG8 that is grown, and with 4, 5, 5 sixteen. With
    `pool_early` a stage pools behind its first convolution instead of its last. Weights start as He et al. draw them,
    which lets deep networks without normalisation learn; with `keras` as Glorot and Bengio do, Keras's default.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        depths: Sequence[int] = (1, 1, 1),
        widths: Sequence[int] = (16, 32, 64),
        hidden: int = 64,
        dropout: float = 0.0,
        pool_early: bool = False,
        keras: bool = False,
    ) -> None:
        super().__init__()
        channels = [in_channels, *widths]
        self.stages = nn.Sequential(
            *(_stage(*sizes) for sizes in zip(channels[:-1], channels[1:], depths, strict=True)),
        )
        self.hidden = nn.Sequential(nn.Linear(widths[-1] * (image_size // 8) ** 2, hidden), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.pool_early = pool_early
        self.fc = nn.Linear(hidden, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                (nn.init.xavier_uniform_ if keras else nn.init.kaiming_normal_)(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            for number, layer in enumerate(stage):
                x = layer(x)
                if number == (0 if self.pool_early else len(stage) - 1):
                    x = F.max_pool2d(x, 2)
        return self.fc(self.dropout(self.hidden(x.flatten(1))))


def _stage(into: int, out: int, depth: int) -> nn.Sequential:
    layers = [nn.Sequential(nn.Conv2d(into if n == 0 else out, out, 3, padding=1), nn.ReLU()) for n in range(depth)]
    return nn.Sequential(*layers)


def vgg8(num_classes: int, in_channels: int = 3, image_size: int = 32) -> SmallVGG:
    """Two convolutions in each stage."""
    return SmallVGG(num_classes, in_channels, image_size, depths=(2, 2, 2))


def vgg16(num_classes: int, in_channels: int = 3, image_size: int = 32) -> SmallVGG:
    """Fourteen convolutions, and no normalisation to train them by."""
    return SmallVGG(num_classes, in_channels, image_size, depths=(4, 5, 5))


def vgg8_narrow(num_classes: int, in_channels: int = 3, image_size: int = 32) -> SmallVGG:
    """Two convolutions in each stage, half as wide."""
    return SmallVGG(num_classes, in_channels, image_size, depths=(2, 2, 2), widths=(8, 16, 32))


def vgg11(num_classes: int, in_channels: int = 3, image_size: int = 32) -> SmallVGG:
    """Three convolutions in each stage."""
    return SmallVGG(num_classes, in_channels, image_size, depths=(3, 3, 3))


def keras_vgg5_narrow(num_classes: int, in_channels: int = 3, image_size: int = 32) -> SmallVGG:
    """One convolution in each stage, half as wide; drawn as Keras draws."""
    return SmallVGG(num_classes, in_channels, image_size, widths=(8, 16, 32), keras=True)


def keras_vgg8(num_classes: int, in_channels: int = 3, image_size: int = 32) -> SmallVGG:
    """Two convolutions in each stage; drawn as Keras draws."""
    return SmallVGG(num_classes, in_channels, image_size, depths=(2, 2, 2), keras=True)


def keras_vgg8_dropout(num_classes: int, in_channels: int = 3, image_size: int = 32) -> SmallVGG:
    """The same, with dropout before the last layer."""
    return SmallVGG(num_classes, in_channels, image_size, depths=(2, 2, 2), dropout=0.5, keras=True)


def keras_vgg8_pool_early(num_classes: int, in_channels: int = 3, image_size: int = 32) -> SmallVGG:
    """The same without dropout; the second convolution of a stage works on pooled images."""
    return SmallVGG(num_classes, in_channels, image_size, depths=(2, 2, 2), pool_early=True, keras=True)


def keras_vgg16(num_classes: int, in_channels: int = 3, image_size: int = 32) -> SmallVGG:
    """Fourteen convolutions, and no normalisation to train them by; drawn as Keras draws."""
    return SmallVGG(num_classes, in_channels, image_size, depths=(4, 5, 5), keras=True)
