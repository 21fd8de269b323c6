"""Stochastic gradient Langevin dynamics (SGLD): chains that climb a log-density, plain or proximal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from postgrad.errors import UserError

LogDensity = Callable[[Tensor], Tensor]
"""Points (n, …) -> the logarithm of their density (n,), up to a constant."""


@dataclass(frozen=True)
class Langevin:
    """x ← x + step_size · ∇ log p(x) + noise · N(0, I), so many `steps`.

    >>> samples = Langevin(steps=20, step_size=1.0, noise=0.01)(log_density, start)

    With step_size = α/2 and noise = √α this samples from p as α goes to 0. JEM takes a step 20,000 times as long for
    its noise, which samples from p at a low temperature (arXiv 1912.03263, section 4).

    proximal : each entry of the gradient is clamped to ±`proximal`, so that no step leads far (arXiv 2109.09032).
    bounds : samples are clamped to this range after each step.
    inner_steps : steps for each gradient, without noise between them: YOPO's M `steps` and N `inner_steps`, where the
        inner ones look through the first layer alone. They need `bounds`, since they are taken at once: the gradient
        through a convolution or a linear layer is the same wherever x is, so that an entry goes on in one direction,
        or stays at its bound.
    """

    steps: int
    step_size: float = 1.0
    noise: float = 0.0
    proximal: float | None = None
    bounds: tuple[float, float] | None = None
    inner_steps: int = 1

    def __call__(self, log_density: LogDensity, start: Tensor) -> Tensor:
        """The chains' ends (n, …), without gradient; `start` stays as it is. Random numbers are torch's own."""
        x = start
        for x in self.path(log_density, start):  # noqa: B007 (the last one counts)
            pass
        return x.detach()

    def path(self, log_density: LogDensity, start: Tensor) -> Iterator[Tensor]:
        """The chains after each step: always the same tensor, to be copied by who wants to keep it."""
        form = torch.channels_last if start.dim() == 4 else torch.preserve_format
        x = torch.empty_like(start, memory_format=form).copy_(start).requires_grad_()
        noise = torch.empty_like(x, requires_grad=False)
        for _ in range(self.steps):
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(log_density(x).sum(), x)
            self._move(x, gradient, noise)
            yield x

    @torch.no_grad()
    def _move(self, x: Tensor, gradient: Tensor, noise: Tensor) -> None:
        if self.proximal is not None:
            gradient.clamp_(-self.proximal, self.proximal)
        x.add_(gradient, alpha=self.step_size * self.inner_steps)
        if self.inner_steps > 1 and self.bounds is not None:
            x.clamp_(*self.bounds)
        if self.noise:
            x.add_(noise.normal_(), alpha=self.noise)
        if self.bounds is not None:
            x.clamp_(*self.bounds)


@contextlib.contextmanager
def bare(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Let no gradient reach the weights inside the block, and no image the running statistics.

    In training mode normalisation takes the statistics of the chains themselves, otherwise the running ones. Every
    module's mode is as before after it.
    """
    modes = [(module, module.training) for module in model.modules()]
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.train(training)
        for parameter in weights:
            parameter.requires_grad_(False)
        with statistics_stay(model):
            yield
    finally:
        for parameter in weights:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of a network that keep running statistics."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@contextlib.contextmanager
def statistics_stay(model: nn.Module) -> Iterator[None]:
    """Let batch normalisation in training mode use its batch, but not remember it."""
    norms = batch_norms(model)
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
            norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def check_first_layer(model: nn.Module, example: Tensor) -> None:
    """Refuse a network whose first layer with weights is no convolution or linear layer of the input as it is.

    Only through those is YOPO's inner gradient the same at each inner step. `example` is some input (n, …).
    """
    found: list[tuple[nn.Module, bool]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not found:
            found.append((module, inputs[0].data_ptr() == example.data_ptr()))

    layers = [module for module in model.modules() if module._parameters or hasattr(module, "parametrizations")]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with torch.no_grad(), bare(model, training=False):
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    layer, takes_input = found[0]
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) or not takes_input:
        raise UserError(
            f"inner steps need a network that begins with a convolution or a linear layer; {type(layer).__name__} "
            "is not one, or does not take the images as they are; leave them out with inner_steps=1"
        )
