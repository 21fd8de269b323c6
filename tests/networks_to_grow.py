"""Small networks with everything that units can flow through, for the tests of growth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

Activation = Callable[[], nn.Module]


def awake(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with drawn weights and statistics where fresh ones would hide mistakes."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            if tensor.ndim > 1:
                fan_in = tensor[0].numel()
                tensor.copy_((drawn - 0.5) * (12 / fan_in) ** 0.5)
            elif name.endswith(("bias", "running_mean")):
                tensor.copy_(drawn - 0.5)
            else:
                tensor.copy_(drawn + 0.5)
    return model.eval()


def mlp(act: Activation = nn.ReLU) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), act(), nn.Linear(5, 4), act(), nn.Linear(4, 3))


def conv_bn(act: Activation = nn.ReLU) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        act(),
        nn.Conv2d(6, 5, 3),
        nn.BatchNorm2d(5),
        act(),
        nn.Flatten(),
        nn.Linear(5 * 8 * 8, 3),
    )


class Residual(nn.Module):
    """A stem, two residual blocks over the same stream, pooling and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a1, self.n1, self.a2, self.n2 = self._block()
        self.b1, self.m1, self.b2, self.m2 = self._block()
        self.head = nn.Linear(6, 3)

    def _block(self) -> tuple[nn.Module, ...]:
        return (
            nn.Conv2d(6, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.n2(self.a2(F.relu(self.n1(self.a1(x))))))
        x = F.relu(x + self.m2(self.b2(F.relu(self.m1(self.b1(x))))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """DenseNet: each layer reads all that was before, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(7)
        self.c = nn.Conv2d(7, 5, 3, padding=1)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.b(a))
        c = self.c(F.relu(self.norm(torch.cat([a, b], 1))))
        return self.head(torch.cat([a, b, c], 1).mean((2, 3)))


class Squeeze(nn.Module):
    """Squeeze and excitation over a depthwise convolution with two channels for each."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 4, 1)
        self.depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(8)
        self.down, self.up = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)
        self.project = nn.Conv2d(8, 5, 1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.depthwise(self.expand(x))))
        x = x * torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(self.project(x).mean((2, 3)))


class Grouped(nn.Module):
    """A convolution in three groups, of two channels in and two out each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.grouped = nn.Conv2d(6, 6, 3, groups=3)
        self.after = nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.after(F.gelu(self.grouped(F.gelu(self.stem(x)))))).mean((2, 3)))


class GroupNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.GroupNorm(3, 6)
        self.after = nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.after(F.silu(self.norm(self.conv(x))))).mean((2, 3)))


class Normed(nn.Module):
    """A stream of tokens with a layer or RMS normalisation before a gated MLP."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.norm = norm(6)
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(4, 6)
        self.last = norm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        gate, value = self.up(self.norm(x)).chunk(2, -1)
        x = x + self.down(F.silu(gate) * value)
        return self.head(self.last(x))


class Gated(nn.Module):
    """A gated MLP whose gate is a layer of its own (SwiGLU)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(5, 4, False), nn.Linear(5, 4, False), nn.Linear(4, 3, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """Tokens (N, T, 5): attention over a joint projection with sdpa, its heads and their size said by attributes."""

    def __init__(self, heads: int = 2, size: int = 3, rope: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.rope = heads, size, rope
        self.embed = nn.Linear(5, 4)
        self.qkv = nn.Linear(4, 3 * heads * size)
        self.proj = nn.Linear(heads * size, 4)
        self.head = nn.Linear(4, 3)
        if rope:
            self.register_buffer("angle", torch.arange(4 * size, dtype=torch.float32).reshape(4, size) / 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.rope:
            q, k = (each * self.angle.cos() + each.flip(-1) * self.angle.sin() for each in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1)
        return self.head(x + self.proj(mixed)).mean(1)


class Handmade(nn.Module):
    """Attention written out: q @ k.T, softmax, @ v; heads of a fixed size, taken from what the layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(5, 6)
        self.proj = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (-1, 3)).transpose(1, 2) for each in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-2, -1) * 3**-0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2)).mean(1)


class GroupedQueries(nn.Module):
    """Four heads of queries, two of keys and values, by sdpa's own grouping."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, 6), nn.Linear(5, 6)
        self.proj = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (-1, 3)).transpose(1, 2) for each in (self.q, self.k, self.v))
        return self.proj(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)).mean(1)


class TorchAttention(nn.Module):
    """torch's own transformer layer, twice: its code ties heads to the stream."""

    def __init__(self, norm_first: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.block = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True, norm_first=norm_first)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x))).mean(1)


class Twice(nn.Module):
    """One convolution that is called twice, and a weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.one, self.other = nn.Linear(4, 5), nn.Linear(4, 5)
        self.other.weight = self.one.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(torch.tanh(self.conv(torch.tanh(self.stem(x))))))
        return self.head(torch.tanh(self.one(x.mean((2, 3))) - self.other(x.amax((2, 3)))))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(5, 4, 4, stride=2, padding=1)
        self.slope = nn.PReLU(4)
        self.out = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.interpolate(self.slope(self.up(F.elu(self.down(x)))), scale_factor=2, mode="bilinear"))


class Sequence1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv1d(3, 4, 3, padding=1), nn.InstanceNorm1d(4, affine=True)
        self.b = nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool1d(F.relu(self.b(F.relu(self.norm(self.a(x))))), 2).mean(-1))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Conv3d(4, 3, 2)
        self.head = nn.Linear(3 * 27, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.norm(self.a(x))))).flatten(1))


class OneChannel(nn.Module):
    """A convolution of one channel, which is not a depthwise one, and one with one channel out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 1), nn.Conv2d(1, 3, 1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))


class Centre(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean(tuple(range(1, weight.ndim)), keepdim=True)


def normed_weights() -> nn.Module:
    first = parametrizations.weight_norm(nn.Conv2d(3, 6, 3))
    second = nn.Conv2d(6, 5, 3)
    parametrize.register_parametrization(second, "weight", Centre())
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 3))


class Auxiliary(nn.Module):
    """A second head, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3)
        self.head, self.auxiliary = nn.Linear(5, 3), nn.Linear(4, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.norm(self.a(x)))
        out = self.head(self.dropout(F.relu(self.b(x)).mean((2, 3))))
        return (out, self.auxiliary(x.mean((2, 3)))) if self.training else out


class Several(nn.Module):
    """Two inputs, and outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(5, 6)
        self.c, self.d = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        both = torch.tanh(self.a(x) * self.b(y))
        return {"c": self.c(both), "more": (self.d(both), [both.mean(-1)])}


class Stages(nn.Module):
    """Permutations, slices of the image, windows, padding and a learned position: what Swin does around its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, 2)
        self.position = nn.Parameter(torch.zeros(1, 16, 4))
        self.merge = nn.Linear(16, 6, bias=False)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.position
        x = x.unflatten(1, (4, 4))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        x = F.gelu(self.merge(F.pad(x, (0, 0, 1, 1))))
        x = x + torch.roll(self.mix(x), 1, 2)
        return self.head(x.mean((1, 2)))


def images(channels: int = 3, size: int = 10) -> Tensor:
    return torch.linspace(-9, 9, 2 * channels * size * size).reshape(2, channels, size, size).sin()


def numbers(*shape: int) -> Tensor:
    return torch.linspace(-9, 9, torch.Size(shape).numel()).reshape(shape).sin()


@dataclass(frozen=True)
class Case:
    """A layer that can be widened: the network, what it takes, the size, and the axes by their factors' numbers."""

    make: Callable[[], nn.Module]
    example: Any
    layer: str
    to: int


CASES = {
    "mlp": Case(mlp, numbers(2, 6), "0", 8),
    "mlp, second": Case(mlp, numbers(2, 6), "2", 13),
    "mlp, tanh": Case(lambda: mlp(nn.Tanh), numbers(2, 6), "0", 6),
    "mlp, one more": Case(lambda: mlp(nn.GELU), numbers(1, 6), "2", 5),
    "batch norm": Case(conv_bn, images(), "0", 9),
    "batch norm by its own name": Case(conv_bn, images(), "1", 12),
    "flattened": Case(conv_bn, images(), "3", 7),
    "mish": Case(lambda: conv_bn(nn.Mish), images(), "0", 20),
    "residual stream": Case(Residual, images(3, 6), "stem", 9),
    "residual stream by a branch": Case(Residual, images(3, 6), "b2", 12),
    "residual branch": Case(Residual, images(3, 6), "a1", 7),
    "concatenated, first": Case(Dense, images(3, 6), "a", 6),
    "concatenated, second": Case(Dense, images(3, 6), "b", 7),
    "concatenated, third": Case(Dense, images(3, 6), "c", 6),
    "depthwise with two channels each": Case(Squeeze, images(3, 6), "expand", 6),
    "the two channels each": Case(Squeeze, images(3, 6), "depthwise#1", 3),
    "squeezed": Case(Squeeze, images(3, 6), "down", 5),
    "projected": Case(Squeeze, images(3, 6), "project", 8),
    "groups": Case(Grouped, images(), "grouped", 8),
    "within groups, out": Case(Grouped, images(), "grouped#1", 3),
    "within groups, in": Case(Grouped, images(), "stem#1", 5),
    "groups normalised": Case(GroupNormed, images(), "conv#0", 5),
    "within normalised groups": Case(GroupNormed, images(), "conv#1", 4),
    "layer norm": Case(Normed, numbers(2, 4, 5), "embed", 12),
    "chunked gate": Case(Normed, numbers(2, 4, 5), "up", 14),
    "RMS norm": Case(lambda: Normed(nn.RMSNorm), numbers(2, 4, 5), "down", 18),
    "gate": Case(Gated, numbers(2, 5), "gate", 6),
    "heads": Case(Attention, numbers(2, 4, 5), "qkv#1", 4),
    "their size": Case(Attention, numbers(2, 4, 5), "qkv#2", 5),
    "stream beside attention": Case(Attention, numbers(2, 4, 5), "embed", 7),
    "handmade heads": Case(Handmade, numbers(2, 4, 5), "q", 9),
    "grouped queries": Case(GroupedQueries, numbers(2, 4, 5), "k", 9),
    "feed forward": Case(TorchAttention, numbers(2, 4, 5), "block.linear1", 9),
    "torch's stream": Case(TorchAttention, numbers(2, 4, 5), "embed", 12),
    "torch's stream, norm last": Case(lambda: TorchAttention(False), numbers(2, 4, 5), "block.linear2", 12),
    "called twice": Case(Twice, images(3, 6), "conv", 6),
    "tied": Case(Twice, images(3, 6), "other", 7),
    "transposed": Case(Decoder, images(3, 8), "up", 6),
    "into a transposed one": Case(Decoder, images(3, 8), "down", 8),
    "conv1d": Case(Sequence1d, numbers(2, 3, 8), "a", 7),
    "conv3d": Case(Volume, numbers(2, 2, 4, 4, 4), "a", 6),
    "flattened volume": Case(Volume, numbers(2, 2, 4, 4, 4), "b", 5),
    "of one channel": Case(OneChannel, images(1), "a", 6),
    "behind one channel": Case(OneChannel, images(1), "c", 4),
    "one channel": Case(OneChannel, images(1), "b", 3),
    "rows of normed weights": Case(normed_weights, images(3, 8), "2", 8),
    "auxiliary head": Case(Auxiliary, images(), "a", 7),
    "several": Case(Several, (numbers(2, 4), numbers(2, 5)), "b", 12),
    "windows": Case(Stages, images(3, 8), "stem", 6),
    "rolled": Case(Stages, images(3, 8), "mix", 8),
}
"""Everything in the table of widths, and more; each must be exact."""
