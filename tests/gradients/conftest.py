"""Small float64 networks of many kinds, and two oracles for their per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Case(NamedTuple):
    model: nn.Module
    x: Tensor
    classes: int

    @property
    def labels(self) -> Tensor:
        return torch.arange(len(self.x)) % self.classes


def _case(model: nn.Module, *shape: int, classes: int) -> Case:
    """In float64, with normalisation layers that do something, and images of different size."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 1:
                nn.init.uniform_(parameter, 0.5 if name == "weight" else -0.5, 1.5 if name == "weight" else 0.5)
        if getattr(module, "running_mean", None) is not None:
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return Case(model.double(), torch.randn(shape, dtype=torch.float64), classes)


def _small() -> Case:
    return _case(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)),
        4,
        3,
        8,
        8,
        classes=5,
    )


def _seed_cnn() -> Case:
    layers = [nn.Conv2d(3, 64, 5, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
    layers += [nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
    return _case(nn.Sequential(*layers, nn.Flatten(), nn.Linear(2304, 10)), 5, 3, 24, 24, classes=10)


def _mlp() -> Case:
    return _case(
        nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.GELU(), nn.Linear(9, 7, bias=False)), 6, 3, 4, 4, classes=7
    )


def _grouped() -> Case:
    layers = [
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=8),
        nn.Tanh(),
        nn.Conv2d(8, 6, (2, 3), padding="same", groups=2, padding_mode="circular"),
        nn.Conv2d(6, 12, 3, padding=(1, 2), dilation=(1, 2), groups=3, padding_mode="replicate", bias=False),
        nn.SiLU(),
        nn.Conv2d(12, 5, 1, padding="valid"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    return _case(nn.Sequential(*layers), 4, 4, 9, 10, classes=5)


def _volumes() -> Case:
    volumes = nn.Conv3d(2, 4, (2, 3, 2), stride=(1, 2, 1), padding=1, groups=2)
    return _case(nn.Sequential(volumes, nn.ELU(), nn.Flatten(), nn.Linear(4 * 5 * 3 * 6, 3)), 3, 2, 4, 5, 5, classes=3)


def _signals() -> Case:
    layers = [nn.Conv1d(3, 6, 4, stride=2, padding=3, dilation=2, padding_mode="circular"), nn.BatchNorm1d(6), nn.ELU()]
    return _case(nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 4)), 4, 3, 17, classes=4)


class _Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.batch = nn.BatchNorm2d(6)
        self.group = nn.GroupNorm(3, 6)
        self.instance = nn.InstanceNorm2d(6, affine=True)
        self.running_instance = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
        self.layer = nn.LayerNorm((6, 4))
        self.root = nn.RMSNorm(4)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.group(self.batch(self.conv(x))))
        x = torch.tanh(self.running_instance(self.instance(x))).mean(-1)
        return self.head(self.root(torch.tanh(self.layer(x))).flatten(1))


def _norms() -> Case:
    return _case(_Norms(), 5, 3, 6, 6, classes=3)


def _residual() -> Case:
    """What resnet18 is made of, with 8 and 16 channels in place of 64 to 512."""
    from postgrad._compat import prepare_torchvision

    prepare_torchvision()
    from torchvision.models.resnet import BasicBlock

    shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
    layers = [nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    layers += [nn.MaxPool2d(3, 2, 1), BasicBlock(8, 8), BasicBlock(8, 16, 2, shortcut)]
    return _case(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)), 3, 3, 16, 16, classes=5
    )


def resnet18(size: int = 32, images: int = 2) -> Case:
    from postgrad._compat import prepare_torchvision

    prepare_torchvision()
    from torchvision.models import resnet18

    return _case(resnet18(num_classes=10), images, 3, size, size, classes=10)


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8, padding_idx=0)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 7, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embedding(x)], dim=1) + self.position
        return self.head(self.encoder(x)[:, 0])


def _transformer() -> Case:
    words = torch.randint(0, 11, (5, 6))
    words[:, -1] = 0
    return Case(_case(_Transformer(), 1, classes=4).model, words, 4)


class _Tied(nn.Module):
    """The embedding's weight is the last layer's, as in a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.embedding(x)).mean(1)))


def _tied() -> Case:
    return Case(_case(_Tied(), 1, classes=9).model, torch.randint(0, 9, (4, 5)), 9)


class _TiedFunctionally(_Tied):
    """The same by `F.linear`, where no layer's call shows the second use."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.inner(self.embedding(x)).mean(1)), self.embedding.weight)


def _tied_functionally() -> Case:
    return Case(_case(_TiedFunctionally(), 1, classes=9).model, torch.randint(0, 9, (4, 5)), 9)


class _UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.shared(x)))
        x = torch.tanh(self.norm(self.shared(F.avg_pool2d(x, 2))))
        return self.head(x.mean((2, 3)))


def _used_twice() -> Case:
    return _case(_UsedTwice(), 4, 4, 6, 6, classes=3)


class _InPlace(nn.Module):
    """ReLUs that overwrite the outputs of a convolution and of linear layers, whose outputs are views."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True)
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x)).flatten(2).transpose(1, 2)
        x = self.relu(self.inner(x.contiguous()))
        x = x + 1
        x[:, 0] *= 0.5
        return self.head(x.mean(1))


def _in_place() -> Case:
    return _case(_InPlace(), 4, 2, 5, 5, classes=3)


class _Windows(nn.Module):
    """Quarters of each image folded into the batch, as windowed attention does it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.inner = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        quarters = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 2, 4, 4)
        seen = torch.tanh(self.norm(self.conv(quarters))).mean((2, 3))
        return self.head(torch.tanh(self.inner(seen)).view(len(x), 4, 6).sum(1))


def _windows() -> Case:
    return _case(_Windows(), 4, 2, 8, 8, classes=3)


class _Attention(nn.Module):
    """Multi-head attention with its keys' bias, whose gradient is zero but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        seen = F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        return self.head(seen.mean(1))


def _attention() -> Case:
    return _case(_Attention(), 4, 5, 6, classes=3)


NETWORKS: dict[str, Callable[[], Case]] = {
    "small": _small,
    "seed-cnn": _seed_cnn,
    "mlp": _mlp,
    "grouped": _grouped,
    "volumes": _volumes,
    "signals": _signals,
    "norms": _norms,
    "residual": _residual,
    "resnet18": resnet18,
    "transformer": _transformer,
    "tied": _tied,
    "tied-functionally": _tied_functionally,
    "used-twice": _used_twice,
    "in-place": _in_place,
    "windows": _windows,
    "attention": _attention,
}


@pytest.fixture(scope="session")
def build() -> Callable[..., Case]:
    """A network by name with a batch of images; the same each time."""

    def build(name: str, **options: int) -> Case:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return NETWORKS[name](**options)

    return build


def _loop_gradients(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    training = model.training
    model.eval()
    rows = []
    for i in range(len(x)):
        loss = F.cross_entropy(model(x[i : i + 1]), labels[i : i + 1])
        rows.append(torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True))
    model.train(training)
    return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(parameters)}


def _func_gradients(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    training = model.training
    model.eval()

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, parameters, (image[None],)), label[None])

    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, labels)
    model.train(training)
    return found


def _relative_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest error of an image's gradient by any parameter, relative to that gradient's length.

    A gradient that is zero but for rounding is measured against the image's longest.
    """
    lengths = {name: rows.flatten(1).norm(dim=1) for name, rows in expected.items()}
    longest = torch.stack(list(lengths.values())).amax(0)
    errors = [
        (found[name] - rows).flatten(1).norm(dim=1) / torch.maximum(lengths[name], 1e-6 * longest)
        for name, rows in expected.items()
    ]
    return float(torch.stack(errors).max())


@pytest.fixture(scope="session")
def loop_gradients() -> Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]]:
    """One forward and one backward pass for each image."""
    return _loop_gradients


@pytest.fixture(scope="session")
def func_gradients() -> Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]]:
    """torch.func's vmap of grad."""
    return _func_gradients


@pytest.fixture(scope="session")
def relative_error() -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], float]:
    return _relative_error
