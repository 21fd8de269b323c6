"""Networks with batch normalisation that are small enough for studies on a processor."""

from __future__ import annotations

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
