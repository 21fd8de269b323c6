"""Where activations are multiplied with each other: replicas have roots of shares, and what loses these is found."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from following import followed
from networks_to_grow import awake
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.growth import axes, width
from postgrad.growth._algebra import axes_of
from postgrad.growth.axes import analyse
from postgrad.growth.width import widen

Mixing = Callable[["Attention", Tensor, Tensor, Tensor], Tensor]
HEADS, SIZE, TOKENS = 2, 4, 3


class Attention(nn.Module):
    """Queries, keys and values from layers of their own, so that the size of heads is tied to nothing else."""

    def __init__(self, mixing: Mixing) -> None:
        super().__init__()
        self.mixing, self.heads = mixing, HEADS
        self.q, self.k, self.v = (nn.Linear(5, HEADS * SIZE) for _ in range(3))
        self.temperature = nn.Parameter(torch.zeros(HEADS, 1, 1))
        self.positions = nn.Parameter(torch.zeros(2 * TOKENS - 1, HEADS))
        self.proj = nn.Linear(HEADS * SIZE, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (each(x).reshape(n, t, self.heads, -1).transpose(1, 2) for each in (self.q, self.k, self.v))
        return self.proj(self.mixing(self, q, k, v).transpose(1, 2).reshape(n, t, -1))

    def bias(self) -> Tensor:
        """(heads, tokens, tokens): a number for each distance between two tokens."""
        place = torch.arange(TOKENS)
        return self.positions[place[:, None] - place + TOKENS - 1].permute(2, 0, 1)


def root(q: Tensor) -> float:
    return q.shape[-1] ** -0.5


MIXINGS: dict[str, Mixing] = {
    "scaled queries": lambda a, q, k, v: ((q * root(q)) @ k.mT + a.bias()).softmax(-1) @ v,
    "scaled products": lambda a, q, k, v: ((q @ k.mT) / math.sqrt(q.shape[-1])).softmax(-1) @ v,
    "scaled on both sides": lambda a, q, k, v: ((q * root(q) ** 0.5) @ (k * root(q) ** 0.5).mT).softmax(-1) @ v,
    "a scale of its own": lambda a, q, k, v: ((q @ k.mT) * 0.3).softmax(-1) @ v,
    "without a scale": lambda a, q, k, v: (q @ k.mT).softmax(-1) @ v,
    "einsum": lambda a, q, k, v: torch.einsum("nhqs,nhsd->nhqd", torch.einsum("nhqd,nhsd->nhqs", q, k).tanh(), v),
    "cosines": lambda a, q, k, v: (
        (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * a.temperature.exp() + a.bias()).softmax(-1) @ v
    ),
    "rectified": lambda a, q, k, v: (F.relu(q) @ F.relu(k).mT / 9) @ v,
    "relative positions": lambda a, q, k, v: F.scaled_dot_product_attention(q, k, v, a.bias()),
    "a given scale": lambda a, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
    "a scale that is the root": lambda a, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=root(q)),
}
X = torch.randn(2, TOKENS, 5, generator=torch.Generator().manual_seed(1))


def network(mixing: Mixing) -> Attention:
    net = awake(Attention(mixing))
    assert isinstance(net, Attention)
    return net


@pytest.mark.parametrize("name", MIXINGS)
def test_heads_grow_in_size(name: str) -> None:
    assert widen(network(MIXINGS[name]), "q#1", to=7, example=X).max_error < 1e-12


@pytest.mark.parametrize("name", ["cosines", "relative positions"])
def test_heads_grow_in_number_and_size(name: str) -> None:
    net = network(MIXINGS[name])
    before = net(X)
    errors = [widen(net, layer, to=to, example=X).max_error for layer, to in (("q#1", 7), ("v#1", 5), ("q#0", 3))]
    assert max(errors) < 1e-12
    torch.testing.assert_close(net(X), before, rtol=1e-5, atol=1e-6)
    assert (net.heads, net.q.out_features, net.v.out_features) == (3, 3 * 7, 3 * 5)


@pytest.mark.parametrize("name", ["scaled queries", "a scale of its own", "cosines"])
def test_negative_control_replicas_without_gains_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = width.replicated

    def bare(*arguments: Any) -> Any:
        made = real(*arguments)
        return dataclasses.replace(made, gain=torch.ones_like(made.gain))

    monkeypatch.setattr(width, "replicated", bare)
    with pytest.raises(UserError, match="no longer compute the same"):
        widen(network(MIXINGS[name]), "q#1", to=7, example=X)


LOSING: dict[str, tuple[Mixing, str]] = {
    "gelu": (lambda a, q, k, v: F.gelu(q) @ k.mT @ v, "gelu keeps no factor of theirs"),
    "a number added": (lambda a, q, k, v: (q + 1) @ k.mT @ v, "add keeps no factor of theirs"),
    "a square": (lambda a, q, k, v: (q * q) @ k.mT @ v, "matmul keeps no factor of theirs"),
    "a mean": (lambda a, q, k, v: (q - q.mean(-1, keepdim=True)) @ k.mT @ v, "mean keeps no factor of theirs"),
    "under the root and not": (
        lambda a, q, k, v: F.scaled_dot_product_attention(F.normalize(q, dim=-1), k, v),
        "only one under its root",
    ),
}


@pytest.mark.parametrize("name", LOSING)
def test_what_loses_gains_holds_the_size_of_heads(name: str) -> None:
    mixing, reason = LOSING[name]
    heads, size = analyse(network(mixing), X).made_by("q")
    assert heads.fixed == ()
    assert [reason in each for each in size.fixed] == [True]


def test_negative_control_a_lost_gain_is_refused_even_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(axes, "fix_lost_gains", lambda notes: None)
    for name in ("gelu", "a number added", "a square"):
        with pytest.raises(UserError, match="no longer compute the same"):
            widen(network(LOSING[name][0]), "q#1", to=7, example=X)


def test_filters_of_single_channels_have_a_gain_too() -> None:
    """A depthwise convolution would have both the gain of what flows in and that of its filters."""

    def mixed(x: Tensor, w: Tensor) -> Tensor:
        q = F.conv1d(x, w, groups=x.shape[1])
        return q.mT @ q

    found = followed(mixed, (2, 4, 5), (4, 1, 1), activations=1)
    reasons = [list(axis.reasons) for dim in found.inputs[0].dims for axis in axes_of(dim)]
    assert reasons[1] == ["matmul multiplies activations over it, and conv1d keeps no factor of theirs"]
    found.check()


def test_new_units_are_not_drawn_where_products_would_see_them() -> None:
    with pytest.raises(UserError, match="looks at all its units, so new ones cannot be drawn"):
        widen(network(MIXINGS["without a scale"]), "q#1", to=7, example=X, init="fanout_zero")
