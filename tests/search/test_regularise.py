"""Dropout in front of the last layer, and the price of activations, against sums made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.search.regularise import OutputPenalty, dropout_before_last, last_layer


class Net(nn.Module):
    """The last layer is defined first; one activation is a module, the other a function."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3)
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 6)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.second(self.relu(self.first(x)))))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def test_the_penalty_is_the_sum_of_mean_squares_with_its_gradient(net: Net) -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    with OutputPenalty() as penalty:
        logits = net(x)
    hidden = F.relu(net.first(x))
    expected = hidden.square().mean() + F.gelu(net.second(hidden)).square().mean()
    assert isinstance(penalty.value, Tensor)
    torch.testing.assert_close(penalty.value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(logits, net(x), rtol=0, atol=0)
    given = torch.autograd.grad(penalty.value, net.first.weight)[0]
    torch.testing.assert_close(given, torch.autograd.grad(expected, net.first.weight)[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.PReLU(), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.Hardswish(),
     F.relu, torch.relu, torch.tanh, Tensor.relu, torch.sigmoid, F.elu],
)  # fmt: skip
def test_every_kind_of_activation_counts_once(activation: nn.Module) -> None:
    x = torch.randn(3, 4)
    with OutputPenalty() as penalty:
        given = activation(x.clone())
    torch.testing.assert_close(penalty.value, given.square().mean())


def test_what_is_no_activation_costs_nothing() -> None:
    with OutputPenalty() as penalty:
        F.max_pool2d(nn.Conv2d(1, 2, 3)(torch.randn(1, 1, 8, 8)), 2)
    assert penalty.value == 0.0


def test_dropout_is_in_front_of_the_layer_that_runs_last(net: Net) -> None:
    assert last_layer(net, torch.zeros(1, 4, dtype=torch.float64)) is net.out
    x = torch.randn(64, 4, dtype=torch.float64)
    seen: list[Tensor] = []
    plain = net.eval()(x)
    with dropout_before_last(net, 0.5, x):
        watch = net.out.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
        torch.testing.assert_close(net(x), plain, rtol=0, atol=0)
        net.train()(x)
        watch.remove()
    inside, dropped = seen
    kept = dropped != 0
    assert 0.3 < kept.double().mean() < 0.7
    torch.testing.assert_close(dropped[kept], 2 * inside[kept])
    torch.testing.assert_close(net.train()(x), plain, rtol=0, atol=0)


def test_without_a_probability_nothing_is_looked_for() -> None:
    with dropout_before_last(nn.ReLU(), 0.0, torch.zeros(1, 1)):
        pass
    with (
        pytest.raises(UserError, match="no linear layer and no convolution"),
        dropout_before_last(nn.ReLU(), 0.1, torch.zeros(1, 1)),
    ):
        pass
