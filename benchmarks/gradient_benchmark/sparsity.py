"""The arithmetic that zeros spare: what of δ and of the selected gradients is not zero, and what that leaves to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradient_benchmark.floor import Floor, Layer
from gradient_benchmark.ours import bare_gradients
from gradient_benchmark.setting import SELECT, Batch, Setting
from postgrad.gradients.select import select_


@dataclass(frozen=True)
class Shares:
    """For each layer, what share of δ at its output, and of its gradient after the selection, is not zero."""

    layers: list[Layer]
    delta: list[float]
    selected: list[float]

    def multiply_adds(self, floor: Floor, hidden: Sequence[int], work: str, labels: str) -> float:
        """What is left of `Floor.multiply_adds` if no product with a zero of δ or of a selected gradient is made.

        A layer's weight gradient and its backward pass meet each number of δ equally often, so they shrink with δ's
        share; GradNet's blocks and the gradients of their weights shrink with the share that is selected. The forward
        pass stays as it is.
        """
        forward = floor.forward / floor.classes if labels == "all" else floor.forward
        weight_gradient = sum(layer.forward * share for layer, share in zip(self.layers, self.delta, strict=True))
        backward = weight_gradient - self.layers[0].forward * self.delta[0]
        bare = forward + weight_gradient + backward
        if work == "bare":
            return bare
        output = sum(hidden) * floor.classes
        blocks = output + sum(
            size * layer.numel * share for size, layer, share in zip(hidden, self.layers, self.selected, strict=True)
        )
        return bare + blocks + (blocks + output if work == "random_label_training" else 0)


def measure(setting: Setting, layers: list[Layer], batch: Batch) -> Shares:
    """On a batch, under one random label for each image."""
    delta = non_zero_deltas(setting.model, [layer.name for layer in layers], batch)
    counts = torch.zeros(len(layers), dtype=torch.float64)
    for blocks in bare_gradients(setting.gradnet.space_, batch.inputs, batch.labels):
        counts += torch.tensor([int(select_(rows, SELECT).count_nonzero()) for rows in blocks])
    sizes = torch.tensor([layer.numel * len(batch.inputs) for layer in layers])
    return Shares(layers, delta, (counts / sizes).tolist())


def non_zero_deltas(model: nn.Module, names: Sequence[str], batch: Batch) -> list[float]:
    """The share of numbers other than zero in what reaches each layer's output."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        outputs[name] = output

    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name in names
    ]
    loss = F.cross_entropy(model(batch.inputs), batch.labels, reduction="sum")
    for handle in handles:
        handle.remove()
    deltas = torch.autograd.grad(loss, [outputs[name] for name in names])
    return [float(delta.count_nonzero()) / delta.numel() for delta in deltas]


def describe(shares: Shares, floor: Floor, hidden: Sequence[int]) -> str:
    """The shares and what they leave of the floor, as a short block of text."""
    lines = ["Not zero, in percent (δ at the layer's output; its gradient after the selection):"]
    for layer, delta, selected in zip(shares.layers, shares.delta, shares.selected, strict=True):
        lines.append(f"  {layer.name}: {100 * delta:.1f}; {100 * selected:.1f}")
    lines.append("Multiply-adds for one gradient, in millions:")
    for name, work, labels in (
        ("all labels", "all_labels", "all"),
        ("training", "random_label_training", "one"),
        ("gradients alone, all labels", "bare", "all"),
        ("gradients alone, one label", "bare", "one"),
    ):
        dense, left = floor.multiply_adds(work, labels), shares.multiply_adds(floor, hidden, work, labels)
        lines.append(f"  {name}: dense {dense / 1e6:.1f} M, non-zero {left / 1e6:.1f} M")
    return "\n".join(lines)
