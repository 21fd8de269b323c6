"""Sharpness-aware steps against weights that are moved by hand."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from postgrad.methods._sam import sharpness_aware

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(16, 5, generator=GENERATOR), torch.randint(0, 3, (16,), generator=GENERATOR)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def loss(run) -> torch.Tensor:  # type: ignore[no-untyped-def]
    return F.cross_entropy(run(X), Y)


def gradients(model: nn.Module, rho: float | None) -> list[torch.Tensor]:
    value = loss(model)
    if rho is not None:
        value = sharpness_aware(model, loss, value, rho=rho)
    return list(torch.autograd.grad(value, list(model.parameters())))


def by_hand(rho: float) -> list[torch.Tensor]:
    model = network()
    plain = gradients(copy.deepcopy(model), None)
    total = sum(((w.abs() * g).square().sum() for w, g in zip(model.parameters(), plain, strict=True))) ** 0.5
    with torch.no_grad():
        for weight, gradient in zip(model.parameters(), plain, strict=True):
            weight.add_(rho * weight.square() * gradient / total)
    return gradients(model, None)


def test_the_gradient_is_that_at_the_moved_weights() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    for ours, expected, plain in zip(gradients(model, 2.0), by_hand(2.0), gradients(network(), None), strict=True):
        torch.testing.assert_close(ours, expected)
        assert not torch.allclose(ours, plain, rtol=1e-2, atol=1e-6) or plain.abs().max() < 1e-6
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])


def test_without_a_step_it_is_the_plain_gradient() -> None:
    for ours, plain in zip(gradients(network(), 0.0), gradients(network(), None), strict=True):
        torch.testing.assert_close(ours, plain)


def test_statistics_are_those_of_the_first_pass() -> None:
    once, twice = network(), network()
    loss(once)
    gradients(twice, 2.0)
    assert all(torch.equal(a, b) for a, b in zip(once.buffers(), twice.buffers(), strict=True))


def test_weights_that_take_no_gradient_stay() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    value = sharpness_aware(model, loss, loss(model), rho=1.0)
    value.backward()
    assert model[0].weight.grad is None
    assert model[3].weight.grad is not None


class Wrapper(nn.Module):
    """Reaches its network by two names, as Fabric's does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.once, self.twice = network, network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.once(x)


def test_in_a_wrapper_the_weights_stay_what_they_are() -> None:
    model = network()
    before = list(model.parameters())
    for ours, expected in zip(gradients(Wrapper(model), 2.0), gradients(network(), 2.0), strict=True):
        torch.testing.assert_close(ours, expected)
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))


def test_tied_weights_move_together() -> None:
    def tied() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
        model[2].weight = model[0].weight
        return model

    model = tied()
    plain = gradients(model, None)
    total = sum(((w.abs() * g).square().sum() for w, g in zip(model.parameters(), plain, strict=True))) ** 0.5
    ours = gradients(model, 2.0)
    with torch.no_grad():
        for weight, gradient in zip(model.parameters(), plain, strict=True):
            weight.add_(2.0 * weight.square() * gradient / total)
    for found, expected in zip(ours, gradients(model, None), strict=True):
        torch.testing.assert_close(found, expected)
