"""Chains against densities that are known, and against steps written out by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.methods._sgld import Langevin, bare, check_first_layer
from postgrad.methods.jem import log_density

MEANS, WEIGHTS, DEVIATION = torch.tensor([[-1.2, 0.0], [1.2, 0.5]]), torch.tensor([0.3, 0.7]), 0.8


def mixture(x: Tensor) -> Tensor:
    """log p of two Gaussians in the plane, up to a constant."""
    return (WEIGHTS.log() - (x[:, None] - MEANS).square().sum(2) / (2 * DEVIATION**2)).logsumexp(1)


def moments_are_right(noise_scale: float) -> bool:
    torch.manual_seed(0)
    alpha = 0.05
    chains = Langevin(steps=300, step_size=alpha / 2, noise=noise_scale * alpha**0.5)
    x = chains(mixture, 2 * torch.randn(4000, 2))
    mean = WEIGHTS @ MEANS
    apart = MEANS - mean
    covariance = (WEIGHTS[:, None] * apart).T @ apart + DEVIATION**2 * torch.eye(2)
    found = torch.cov(x.T)
    return bool((x.mean(0) - mean).abs().max() < 0.1 and (found - covariance).abs().max() < 0.12)


def test_moments_of_a_gaussian_mixture() -> None:
    assert moments_are_right(1.0)


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_another_scale_of_the_noise_has_other_moments(scale: float) -> None:
    assert not moments_are_right(scale)


def network(first: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(1)
    first = first or nn.Conv2d(2, 4, 3, padding=1)
    return nn.Sequential(first, nn.SiLU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(64, 3)).double()


def images(n: int = 5) -> Tensor:
    return torch.rand(n, 2, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1


def test_a_step_is_the_gradient_of_the_log_density() -> None:
    model, x = network(), images()
    end = Langevin(1, step_size=0.3)(log_density(model), x)
    expected = torch.empty_like(x)
    for index in itertools.product(range(2), range(3), range(0, 6, 2)):
        shift = torch.zeros_like(x)
        shift[(slice(None), *index)] = 1e-5
        with torch.no_grad():
            up, down = (model(x + sign * shift).logsumexp(1) for sign in (1, -1))
        expected[(slice(None), *index)] = (up - down) / 2e-5
    torch.testing.assert_close(end[:, :, :3, ::2], (x + 0.3 * expected)[:, :, :3, ::2], rtol=0, atol=1e-8)
    assert not torch.allclose(end[:, :, :3, ::2], x[:, :, :3, ::2], atol=1e-4)


def test_of_a_class_the_logit_is_climbed() -> None:
    model, x, labels = network(), images(), torch.tensor([0, 1, 2, 0, 1])
    end = Langevin(1, step_size=1.0)(log_density(model, labels), x)
    leaf = x.clone().requires_grad_()
    model(leaf)[range(5), labels].sum().backward()
    torch.testing.assert_close(end, x + leaf.grad)
    assert not torch.allclose(end, Langevin(1, step_size=1.0)(log_density(model), x))


def test_proximal_steps_are_clamped_twice() -> None:
    model, x = network(), images()
    scaled = lambda inputs: 300 * model(inputs)  # noqa: E731
    end = Langevin(2, step_size=0.7, proximal=1.0, bounds=(-1, 1))(log_density(scaled), x)
    expected = x
    for _ in range(2):
        leaf = expected.clone().requires_grad_()
        scaled(leaf).logsumexp(1).sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.abs().max() > 1
        expected = (expected + 0.7 * leaf.grad.clamp(-1, 1)).clamp(-1, 1)
    torch.testing.assert_close(end, expected)
    assert not torch.allclose(end, Langevin(2, step_size=0.7, bounds=(-1, 1))(log_density(scaled), x))


def yopo(model: nn.Sequential, x: Tensor, outer: int, inner: int, size: float) -> Tensor:
    """As published: the gradient at the first layer's output stays for all inner steps, which see that layer alone."""
    for _ in range(outer):
        hidden = model[0](x).detach().requires_grad_()
        (slope,) = torch.autograd.grad(model[1:](hidden).logsumexp(1).sum(), hidden)
        for _ in range(inner):
            leaf = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad((model[0](leaf) * slope).sum(), leaf)
            x = (x + size * (30 * gradient).clamp(-1, 1)).clamp(-1, 1)
    return x


def inner_steps_at_once(model: nn.Module, x: Tensor) -> Tensor:
    chains = Langevin(3, step_size=0.1, proximal=1 / 30, bounds=(-1, 1), inner_steps=4)
    # x + 0.1·clamp(30 g) is x + 3·clamp(g to 1/30)
    return Langevin(**{**vars(chains), "step_size": 3.0})(log_density(model), x)


def test_inner_steps_through_a_first_convolution_are_those_of_yopo() -> None:
    model, x = network(), images()
    torch.testing.assert_close(inner_steps_at_once(model, x), yopo(model, x, 3, 4, 0.1))


def test_inner_steps_through_a_first_layer_that_bends_are_not() -> None:
    model, x = network(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh())), images()
    assert not torch.allclose(inner_steps_at_once(model, x), yopo(model, x, 3, 4, 0.1), atol=1e-3)


def test_networks_that_begin_otherwise_are_refused() -> None:
    check_first_layer(network(), images())
    check_first_layer(nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).double(), images())
    with pytest.raises(UserError, match="begins with a convolution"):
        check_first_layer(nn.Sequential(nn.BatchNorm2d(2), network()).double(), images())
    with pytest.raises(UserError, match="as they are"):
        check_first_layer(nn.Sequential(nn.Tanh(), network()), images())


@pytest.mark.parametrize("training", [True, False])
def test_weights_and_statistics_stay_out_of_it(training: bool) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 2))
    model[0].weight.requires_grad_(False)
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    x = images().float()
    with bare(model, training=training):
        assert model[1].training is training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        Langevin(2)(log_density(model), x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert all(parameter.grad is None for parameter in model.parameters())
    model(x)
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert model[1].num_batches_tracked == 1


@pytest.mark.parametrize("shape", [(0, 2, 6, 6), (1, 2, 6, 6)])
def test_few_chains_and_any_layout(shape: tuple[int, ...]) -> None:
    model = network()
    start = torch.zeros(shape, dtype=torch.float64)
    end = Langevin(2)(log_density(model), start.to(memory_format=torch.channels_last))
    assert end.shape == shape
    assert not end.requires_grad
    assert torch.equal(start, torch.zeros(shape, dtype=torch.float64))
    every_second = images(4)[::2]
    plain = Langevin(2)(log_density(model), every_second.contiguous())
    torch.testing.assert_close(Langevin(2)(log_density(model), every_second), plain)
