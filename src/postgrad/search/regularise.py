"""What genes do to a training: dropout in front of the last layer, a price for large activations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from postgrad.errors import UserError
from postgrad.models.network import evaluating

ACTIVATIONS = frozenset(
    {
        F.relu, F.relu_, F.relu6, F.leaky_relu, F.prelu, F.rrelu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish,
        F.hardswish, F.hardtanh, F.softplus, F.tanh, F.sigmoid, torch.relu, torch.relu_, torch.tanh, torch.sigmoid,
        Tensor.relu, Tensor.relu_, Tensor.tanh, Tensor.sigmoid,
    }
)  # fmt: skip
"""Functions whose outputs are priced; modules such as nn.ReLU call one of them."""


class OutputPenalty(TorchFunctionMode):
    """Adds up the mean square of each activation's output while it is entered.

    >>> with OutputPenalty() as penalty:
    ...     logits = model(x)
    >>> loss = F.cross_entropy(logits, labels) + 1e-4 * penalty.value
    """

    def __init__(self) -> None:
        super().__init__()
        self.value: Tensor | float = 0.0

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in ACTIVATIONS:
            self.value = self.value + result.square().mean()
        return result


@contextlib.contextmanager
def dropout_before_last(model: nn.Module, p: float, example: Tensor) -> Iterator[None]:
    """Within the block dropout zeroes, in training mode, each number that the last layer is given with probability p.

    The last layer is the linear layer or convolution that runs last on `example` (N, C, H, W).
    """
    if p == 0:
        yield
        return

    def drop(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (F.dropout(inputs[0], p, training=layer.training), *inputs[1:])

    hook = last_layer(model, example).register_forward_pre_hook(drop)
    try:
        yield
    finally:
        hook.remove()


def last_layer(model: nn.Module, example: Tensor) -> nn.Module:
    """The linear layer or convolution that runs last; a network without any is a `UserError`."""
    ran: list[nn.Module] = []
    layers = [each for each in model.modules() if isinstance(each, nn.Linear | nn.modules.conv._ConvNd)]
    hooks = [each.register_forward_hook(lambda layer, *_: ran.append(layer)) for each in layers]
    try:
        with evaluating(model):
            model(example[:1])
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise UserError("the network has no linear layer and no convolution in front of which dropout could be put")
    return ran[-1]
