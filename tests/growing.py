"""Small networks for the tests of growth, and one operator written out by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.growth.moves import Along, Move


class ConvNet(nn.Module):
    """Images (N, 3, H, W) → (N, 4), with batch statistics that are not those of a fresh network."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, 5, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(5)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(5, 4, bias=False)
        generator = torch.Generator().manual_seed(1)
        for norm in (self.bn1, self.bn2):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.2, 0.4, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        return self.head(self.dropout(F.dropout(x.mean((2, 3)), 0.3, self.training)))


class Tokens(nn.Module):
    """Tokens (N, T) and a mask (N, T) → (N, T, 3), by a transformer block with dropout wherever it can stand."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True, norm_first=True)
        self.query = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.block(self.embedding(tokens), src_key_padding_mask=mask)
        x = x + F.scaled_dot_product_attention(self.query(x), x, x, None, 0.3 if self.training else 0.0)
        return self.head(x)


class Both(NamedTuple):
    logits: Tensor
    features: Tensor


@dataclass
class Wrapped:
    value: Tensor


class Several(nn.Module):
    """Outputs of every structure, one module that is called twice, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> dict[str, Any]:
        a = self.act(self.a(x))
        b = self.act(self.b(a))
        return {"both": Both(a, b), "list": [b.sum()], "wrapped": Wrapped(torch.complex(a, b)), "classes": b.argmax(1)}


NETWORKS = {
    "images": (ConvNet, (torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8).sin(),)),
    "tokens": (Tokens, (torch.arange(10).reshape(2, 5), torch.arange(10).reshape(2, 5) % 5 == 4)),
    "several": (Several, (torch.linspace(-2, 2, 12).reshape(2, 6),)),
}


class Widened(NamedTuple):
    entry: dict[str, Any]
    moves: list[Move]
    changed: list[str]
    unrounded: dict[str, Tensor]
    index: Tensor

    def options(self) -> dict[str, Any]:
        """For `certify`."""
        rest = {"moves": self.moves, "changed": self.changed, "unrounded": self.unrounded, "expected": self.expected}
        return {"entry": self.entry, "train": True, **rest}

    def expected(self, name: str, old: Tensor) -> Tensor:
        return old.index_select(1, self.index) if name in ("conv1", "bn1", "relu") else old


def widen_first(model: ConvNet, index: Tensor, split: Tensor) -> Widened:
    """Replicate the units of `conv1` by `index`, (new size,), and split the columns of `conv2` by `split`."""
    shared = Along(0, index, torch.ones(len(index), dtype=torch.float64), split)
    divided = Along(1, index, split, torch.ones(len(index), dtype=torch.float64))
    moves, computed = [], []
    for module, name, along in (
        (model.conv1, "weight", shared),
        (model.conv1, "bias", shared),
        (model.bn1, "weight", shared),
        (model.bn1, "bias", shared),
        (model.bn1, "running_mean", shared),
        (model.bn1, "running_var", shared),
        (model.conv2, "weight", divided),
    ):
        old = getattr(module, name)
        value = along.value.reshape([-1 if dim == along.dim else 1 for dim in range(old.dim())])
        computed.append(old.detach().double().index_select(along.dim, index) * value)
        new = computed[-1].to(old.dtype)
        setattr(module, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        moves.append(Move(old, getattr(module, name), (along,)))
    size = len(index)
    model.conv1.out_channels = model.bn1.num_features = model.conv2.in_channels = size
    tensors = model.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in tensors.items()}
    changed = [names[id(move.new)] for move in moves]
    entry = {
        "operator": "widen",
        "arguments": {"layer": "conv1", "to": size},
        "shapes": {name: list(tensors[name].shape) for name in changed},
        "attributes": {
            "conv1": {"out_channels": size},
            "bn1": {"num_features": size},
            "conv2": {"in_channels": size},
        },
    }
    return Widened(entry, moves, changed, dict(zip(changed, computed, strict=True)), index)


def halves(index: Tensor) -> Tensor:
    """Equal shares for the replicas of each unit, float64."""
    return 1 / torch.bincount(index)[index].double()
