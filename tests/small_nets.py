"""Small networks of many kinds, for what works on any network, and the plainest check that two compute the same."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad._compat import prepare_torchvision

_library = prepare_torchvision()


class Plain(nn.Module):
    """Convolutions with normalisation, functional and modular activations, a residual sum, dropout."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.c0 = nn.Conv2d(3, 8, 3, padding=1, bias=not norm)
        self.n0 = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.c1 = nn.Conv2d(8, 8, 3, padding=1, bias=not norm)
        self.n1 = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(8, 6)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.n0(self.c0(x)))
        x = F.max_pool2d(self.act(self.n1(self.c1(x)) + x), 2)
        return self.last(torch.tanh(self.fc(self.drop(x.mean((2, 3))))))


class Tokens(nn.Module):
    """An embedding of patches, two transformer layers, the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(2)]
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Line(nn.Module):
    """Convolutions over 1 or 3 dimensions, of images."""

    def __init__(self, spatial: int) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 3: nn.Conv3d}[spatial]
        norm = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[spatial]
        self.spatial = spatial
        self.conv = conv(3, 6, 3, padding=1)
        self.norm = norm(6)
        self.act = nn.ReLU()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2) if self.spatial == 1 else x.unflatten(3, (2, -1))
        return self.fc(self.act(self.norm(self.conv(x))).flatten(2).mean(2))


def resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 2, 1, 1], num_classes=4, width_per_group=64)


def blocks() -> nn.Module:
    from torchvision.models.resnet import BasicBlock

    half = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
    parts = {
        "stem": nn.Conv2d(3, 8, 3, padding=1),
        "stage1": nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8)),
        "stage2": nn.Sequential(BasicBlock(8, 12, 2, half), BasicBlock(12, 12)),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "fc": nn.Linear(12, 4),
    }
    return nn.Sequential(OrderedDict(parts))


def bottlenecks() -> nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 2, 1, 1], num_classes=4, groups=2, width_per_group=8)


def vgg() -> nn.Module:
    from torchvision.models.vgg import make_layers

    pool = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(True), nn.Dropout(), nn.Linear(12, 4)]
    return nn.Sequential(make_layers([8, "M", 16, 16, "M"], batch_norm=True), *pool)


def densenet() -> nn.Module:
    from torchvision.models.densenet import DenseNet

    return DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, bn_size=2, num_classes=4)


def mobilenet() -> nn.Module:
    from torchvision.models import MobileNetV2

    setting = [[1, 8, 1, 1], [2, 8, 2, 2], [2, 16, 1, 2]]
    return MobileNetV2(num_classes=4, width_mult=1.0, inverted_residual_setting=setting)


def vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 4, 2, 2, 8, 16, num_classes=4)


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "without normalisation": lambda: Plain(norm=False),
    "tokens": Tokens,
    "1-D": lambda: Line(1),
    "3-D": lambda: Line(3),
    "blocks": blocks,
    "resnet": resnet,
    "bottlenecks": bottlenecks,
    "vgg": vgg,
    "densenet": densenet,
    "mobilenet": mobilenet,
    "vit": vit,
}


def net(name: str = "plain", seed: int = 0) -> nn.Module:
    """A network with statistics, scales and shifts as if it had been trained, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = NETS[name]()
        for module in made.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
                nn.init.normal_(module.weight, 1, 0.2)
                nn.init.normal_(module.bias, 0, 0.2)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
        if name == "vit":
            nn.init.normal_(made.heads.head.weight)  # torchvision starts it at zero
    return made.eval()


def images(n: int = 2, size: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.MultiheadAttention):
            setattr(module, "p" if isinstance(module, nn.Dropout) else "dropout", 0.0)
    return model


def difference(before: nn.Module, after: nn.Module, x: Tensor | None = None, *, train: bool = False) -> float:
    """The greatest difference of the outputs over their standard deviation, in float64."""
    x = images(3, seed=5) if x is None else x
    with torch.no_grad():
        old, new = (without_dropout(copy.deepcopy(each)).double().train(train)(x.double()) for each in (before, after))
    return ((old - new).abs().max() / old.std(correction=0)).item()
