"""The dense floor: the multiply-adds that the work needs without any structure, and how fast the machine does them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradient_benchmark.timing import synchronise

_SECONDS_EACH = 0.25

MATRIX_PRODUCTS: dict[str, tuple[int, int, int, int]] = {
    "one product of 2048³": (1, 2048, 2048, 2048),
    "25 products 640×121×1600 (the second convolution's gradients under ten labels)": (25, 640, 121, 1600),
    "25 products 64×1600×121 (its forward)": (25, 64, 1600, 121),
    "one product 320×102400×100 (GradNet's largest block)": (1, 320, 102400, 100),
}
"""Tried for the machine's rate, as (how many, rows, inner, columns)."""


@dataclass(frozen=True)
class Layer:
    """A layer of the base network: the multiply-adds of its forward pass for one image, and its weight's numbers."""

    name: str
    forward: int
    numel: int


def layers_of(model: nn.Module, image: Tensor) -> list[Layer]:
    """The layers with weights, in the order in which they run on one image (1, …).

    Each number of a layer's output is a product of one row of its weight with as many inputs, so the forward pass
    takes (numbers of the output) × (numbers of the weight's row) multiply-adds, padding counted.
    """
    found: list[Layer] = []

    def record(name: str, layer: nn.Conv2d | nn.Linear, output: Tensor) -> None:
        found.append(Layer(name, output.numel() * layer.weight[0].numel(), layer.weight.numel()))

    handles = [
        layer.register_forward_hook(lambda layer, _, output, name=name: record(name, layer, output))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    return found


@dataclass(frozen=True)
class Floor:
    """Multiply-adds of dense arithmetic for one gradient, part by part."""

    forward: int
    backward: int
    weight_gradient: int
    blocks: int
    blocks_gradient: int
    classes: int

    @classmethod
    def of(cls, layers: Sequence[Layer], hidden: Sequence[int], classes: int) -> Floor:
        """From the shapes of the base network's layers and of GradNet's blocks.

        forward: every layer's own. weight_gradient: δ aᵀ multiplies the same pairs of numbers once, so as much again.
        backward: δ goes through every layer but the first, whose input needs none, and again meets each pair once.
        blocks: GradNet's forward, hidden × weights for each block and hidden × C for its output layer.
        blocks_gradient: the gradients of these weights, as much again, and δ back through the output layer.
        """
        forward = sum(layer.forward for layer in layers)
        output = sum(hidden) * classes
        blocks = sum(size * layer.numel for size, layer in zip(hidden, layers, strict=True)) + output
        return cls(forward, forward - layers[0].forward, forward, blocks, blocks + output, classes)

    def multiply_adds(self, work: str, labels: str) -> float:
        """For one gradient of a kind of work; under all labels the forward pass is shared."""
        forward = self.forward / self.classes if labels == "all" else self.forward
        bare = forward + self.backward + self.weight_gradient
        if work == "bare":
            return bare
        return bare + self.blocks + (self.blocks_gradient if work == "random_label_training" else 0)

    def derivation(self) -> str:
        """The sums, in millions, as a short block of text."""
        inference, one = self.multiply_adds("all_labels", "all"), self.multiply_adds("bare", "one") + self.blocks
        training = self.multiply_adds("random_label_training", "one")

        def m(number: float) -> str:
            return f"{number / 1e6:.1f}"

        parts = f"backward {m(self.backward)} + weight gradients {m(self.weight_gradient)} + GradNet {m(self.blocks)}"
        return "\n".join(
            [
                "Multiply-adds of dense arithmetic for one gradient, in millions:",
                f"  all labels: forward {m(self.forward)} / {self.classes} + {parts} = {m(inference)}",
                f"  one label:  forward {m(self.forward)} + {parts} = {m(one)}",
                f"  training:   {m(one)} + GradNet's own gradient {m(self.blocks_gradient)} = {m(training)}",
            ]
        )


class MachineRate:
    """The fastest matrix product that was seen in this run, in multiply-adds a second, in float32."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.best = 0.0
        self.shape = ""

    def measure(self) -> None:
        """Try each shape again; only a better rate than before counts."""
        for name, (count, rows, inner, columns) in MATRIX_PRODUCTS.items():
            rate = count * rows * inner * columns / self._seconds(count, rows, inner, columns)
            if rate > self.best:
                self.best, self.shape = rate, name

    def _seconds(self, count: int, rows: int, inner: int, columns: int) -> float:
        left = torch.randn(count, rows, inner, device=self.device)
        right = torch.randn(count, inner, columns, device=self.device)
        out = torch.empty(count, rows, columns, device=self.device)
        best, until = float("inf"), time.perf_counter() + _SECONDS_EACH
        while time.perf_counter() < until or best == float("inf"):
            synchronise(self.device)
            began = time.perf_counter()
            torch.bmm(left, right, out=out)
            synchronise(self.device)
            best = min(best, time.perf_counter() - began)
        return best
