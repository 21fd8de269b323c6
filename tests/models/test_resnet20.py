"""The residual network, against the paper's size and its shortcut without parameters."""

from __future__ import annotations

import pytest
import torch

from postgrad.models.resnet20 import BasicBlock, ResNet20


def test_has_the_papers_size() -> None:
    network = ResNet20(in_channels=3, num_classes=10)
    assert sum(p.numel() for p in network.parameters()) == 269_722  # "0.27M" in the paper's table 6
    assert sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in network.modules()) == 20


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 32, 32), (4, 17, 9), (1, 1, 1)])
def test_takes_images_of_any_size(channels: int, height: int, width: int) -> None:
    assert ResNet20(channels, 7).eval()(torch.zeros(2, channels, height, width)).shape == (2, 7)


def test_the_shortcut_subsamples_and_pads_with_zeros() -> None:
    block = BasicBlock(16, 32, stride=2)
    torch.nn.init.zeros_(block.bn2.weight)  # the residual is gone, the shortcut is left
    x = torch.rand(2, 16, 6, 6)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()
