"""Run a network once and keep, for each call of the chosen layers, its input and its place in the backward graph."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from postgrad.errors import UserError
from postgrad.gradients import contract

Slots = Mapping[str, str]
"""Which block each of a layer's own parameters belongs to: `{"weight": "conv1.weight", "bias": "conv1.bias"}`."""


@dataclass(frozen=True)
class Call:
    """One call of one layer: `delta`s that reach `edge`, times `input`, give the gradients of the layer's `slots`."""

    layer: nn.Module
    name: str
    slots: Slots
    input: Tensor
    edge: GradientEdge
    output_shape: torch.Size


@contextlib.contextmanager
def evaluation_mode(model: nn.Module, parameters: Collection[nn.Parameter]) -> Iterator[None]:
    """Eval mode and full precision, autograd on for exactly `parameters`; modes and flags are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = {id(parameter) for parameter in parameters}
    device = next((parameter.device.type for parameter, _ in flags), "cpu")
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in wanted)
        with differentiable(device):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def differentiable(device: str) -> Iterator[None]:
    """Autograd on and full precision, in this thread."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
        yield


@contextlib.contextmanager
def recording(
    layers: Mapping[str, tuple[nn.Module, Slots]], *, sparse: Collection[str] = ()
) -> Iterator[Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, list[Call]]]]:
    """Gives a function that runs a network: its answer and the calls of `layers`, in the order in which they were made.

    >>> with recording(layers) as run:
    ...     logits, calls = run(model, x)

    Several threads may call it. The layers named in `sparse` get a backward pass that leaves out zeros, where there is
    one. Inputs are kept without a copy: where something overwrites one later, autograd itself refuses the weight's
    gradient, and so does the trial that precedes all use.
    """
    made: dict[int, list[Call]] = {}

    def recorder(name: str, slots: Slots) -> Callable[[nn.Module, tuple[Tensor, ...], object], Tensor | None]:
        def record(layer: nn.Module, arguments: tuple[Tensor, ...], output: object) -> Tensor | None:
            if not (arguments and isinstance(output, Tensor) and output.requires_grad):
                return None
            x = arguments[0]
            replaced = name in sparse and contract.takes_sparse_backward(layer, x)
            answer = contract.SparseBackward.apply(x, output, layer) if replaced else output
            edge = get_gradient_edge(_node_holder(answer))
            made[threading.get_ident()].append(Call(layer, name, slots, x.detach(), edge, output.shape))
            return answer if replaced else None

        return record

    def run(forward: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, list[Call]]:
        calls = made[threading.get_ident()] = []
        return forward(x), calls

    handles = [layer.register_forward_hook(recorder(name, slots)) for name, (layer, slots) in layers.items()]
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()


def run(
    forward: Callable[[Tensor], Tensor], x: Tensor, layers: Mapping[str, tuple[nn.Module, Slots]]
) -> tuple[Tensor, list[Call]]:
    """The network's answer and the calls of `layers`, by `recording` it once."""
    with recording(layers) as run_once:
        return run_once(forward, x)


def _node_holder(output: Tensor) -> Tensor:
    """The tensor whose backward node is sure to stay in the graph.

    A linear layer returns a view of its matrix product where its input has more than two axes. An in-place operation
    on a view (such as `ReLU(inplace=True)`) takes the view's node out of the graph, never that of the tensor below.
    """
    base = output._base
    if base is not None and base.requires_grad and base.numel() == output.numel() and base.is_contiguous():
        return base if output.is_contiguous() else output
    return output


def deltas(
    logits: Tensor,
    calls: Sequence[Call],
    cotangents: Iterable[Tensor],
    *,
    unused: Sequence[nn.Parameter] = (),
    retain: bool = False,
) -> Iterator[list[Tensor | None]]:
    """For each cotangent (N, C) of the logits: what reaches each call's output; no weight gradient is computed.

    One backward pass for each cotangent. On a CPU this is two to three times faster than one vectorised pass
    (`is_grads_batched`): vmap moves the label axis about and takes oneDNN's convolutions off their fast layouts.
    `unused` parameters must have no part in the logits.
    """
    directions = list(cotangents)
    edges = [call.edge for call in calls]
    sources: list[Any] = [*edges, *unused]
    if not sources:
        return
    for number, direction in enumerate(directions):
        more = retain or number + 1 < len(directions)
        found = torch.autograd.grad(logits, sources, direction, retain_graph=more, allow_unused=True)
        if any(gradient is not None for gradient in found[len(edges) :]):
            raise UserError(
                "a parameter that no image of the example used is used now; give the engine an example of images that "
                "use every parameter"
            )
        yield [
            None if delta is None else delta.reshape(call.output_shape)
            for call, delta in zip(calls, found, strict=False)
        ]
