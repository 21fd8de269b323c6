"""A perceptron with two hidden layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Hidden layers with ReLU on the flattened image.

    >>> network = MLP(in_channels=1, num_classes=10, image_size=8)
    >>> network(torch.zeros(1, 1, 8, 8)).shape
    torch.Size([1, 10])

    `image_size` is the side of the images that the network is given, or (height, width). Its layers are l0, l1, l2.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int | tuple[int, int] = 32,
        hidden: Sequence[int] = (256, 128),
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.input_shape = (in_channels, height, width)
        sizes = (in_channels * height * width, *hidden, num_classes)
        self.layer_names = tuple(f"l{number}" for number in range(len(sizes) - 1))
        for name, (inputs, outputs) in zip(self.layer_names, pairwise(sizes), strict=True):
            self.add_module(name, nn.Linear(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(x, 1)
        for name in self.layer_names[:-1]:
            x = torch.relu(self.get_submodule(name)(x))
        return self.get_submodule(self.layer_names[-1])(x)
