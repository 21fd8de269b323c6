"""The small convolutional network on which GradNet was published."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.errors import UserError

CROP = 24
_FILTERS = 64


class SeedCNN(nn.Module):
    """Two convolutions with pooling and a linear layer (arXiv 1807.06630).

    >>> network = SeedCNN(in_channels=3, num_classes=10, image_size=32)
    >>> network(torch.zeros(1, 3, 24, 24)).shape
    torch.Size([1, 10])

    `image_size` is the side of the stored images, or (height, width). Images of 24 pixels or more are cropped to 24×24
    by the preprocessing; smaller ones are taken whole. Weights start LeCun-normal (variance 1/fan-in), biases at zero.
    """

    def __init__(self, in_channels: int, num_classes: int, image_size: int | tuple[int, int] = 32) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        cropped = min(height, width) >= CROP
        if cropped:
            height = width = CROP
        elif min(height, width) < 3:
            raise UserError(f"seed-cnn needs images of 3 pixels or more on each side, got {height}×{width}")
        self.input_shape = (in_channels, height, width)
        self.preprocess = Preprocessing(crop=CROP if cropped else None, per_image_standardise=True)
        self.augmentation = _augmentation(cropped=cropped, colour=in_channels == 3)
        self.c0 = nn.Conv2d(in_channels, _FILTERS, 5, padding=1)
        self.c1 = nn.Conv2d(_FILTERS, _FILTERS, 5, padding=2)
        self.l1 = nn.Linear(_FILTERS * _pooled(height) * _pooled(width), num_classes)
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.c0(x)), 2, ceil_mode=True)
        x = F.max_pool2d(F.relu(self.c1(x)), 2, ceil_mode=True)
        return self.l1(torch.flatten(x, 1))


def _pooled(side: int) -> int:
    """The side of the last feature map: the first convolution takes 2 pixels, each pooling halves and rounds up."""
    return math.ceil(math.ceil((side - 2) / 2) / 2)


def _augmentation(*, cropped: bool, colour: bool) -> Augmentation:
    """Random crops; flips and contrast for colour images only: a mirrored digit is another sign."""
    return Augmentation(crop=cropped, flip=colour, contrast=(0.2, 1.8) if colour else None)
