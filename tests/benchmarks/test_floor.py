"""The floor's multiply-adds against torch's own counter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gradient_benchmark import floor as floor_module
from gradient_benchmark.floor import Floor, MachineRate, layers_of
from gradient_benchmark.growth import WideSeedCNN
from gradient_benchmark.setting import HIDDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from postgrad.methods.gradnet import GradNetHead
from postgrad.models.seed_cnn import SeedCNN


def counted(work: object) -> float:
    """Multiply-adds by torch's counter, which counts two operations for each."""
    assert callable(work)
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def floor_of(model: nn.Module, hidden: tuple[int, ...] = HIDDEN, classes: int = 10) -> Floor:
    return Floor.of(layers_of(model, torch.zeros(1, 3, 24, 24)), hidden, classes)


@settings(max_examples=10)
@given(filters=st.integers(1, 9), classes=st.integers(2, 12))
def test_counts_are_those_of_torch(filters: int, classes: int) -> None:
    model, image = WideSeedCNN(filters, classes), torch.zeros(1, 3, 24, 24)
    floor = floor_of(model, classes=classes)
    weights = [parameter for parameter in model.parameters() if parameter.dim() >= 2]

    def gradient() -> None:
        torch.autograd.grad(F.cross_entropy(model(image), torch.tensor([0])), weights)

    assert counted(lambda: model(image)) == floor.forward
    assert counted(gradient) == floor.multiply_adds("bare", "one")


@settings(max_examples=10)
@given(
    inputs=st.tuples(*[st.integers(1, 40)] * 3), hidden=st.tuples(*[st.integers(1, 9)] * 3), classes=st.integers(2, 9)
)
def test_blocks_are_those_of_torch(inputs: tuple[int, int, int], hidden: tuple[int, int, int], classes: int) -> None:
    head = GradNetHead(inputs, hidden, classes)
    layers = [floor_module.Layer("", 0, numel) for numel in inputs]
    floor = Floor.of(layers, hidden, classes)
    blocks = [nn.Parameter(torch.ones(1, numel)).detach() for numel in inputs]
    dense = nn.ModuleList(nn.Linear(numel, size) for numel, size in zip(inputs, hidden, strict=True))

    def forward() -> torch.Tensor:
        return head.output(torch.cat([F.relu(layer(rows)) for layer, rows in zip(dense, blocks, strict=True)], dim=1))

    assert counted(forward) == floor.blocks
    assert counted(lambda: forward().sum().backward()) == floor.blocks + floor.blocks_gradient


def test_the_published_shapes_give_the_figures_that_are_quoted() -> None:
    floor = floor_of(SeedCNN(3, 10))
    assert floor.multiply_adds("all_labels", "all") == pytest.approx(39.5e6, abs=0.1e6)
    assert floor.multiply_adds("bare", "one") + floor.blocks == pytest.approx(52.7e6, abs=0.1e6)
    assert floor.multiply_adds("random_label_training", "one") == pytest.approx(63.5e6, abs=0.1e6)
    text = floor.derivation()
    assert all(number in text for number in ("39.5", "52.7", "63.6"))


def test_a_forgotten_part_shows() -> None:
    """Without the first layer left out of the backward pass, the count would not be torch's."""
    model, image = WideSeedCNN(4, 10), torch.zeros(1, 3, 24, 24)
    floor = floor_of(model)
    wrong = dataclasses.replace(floor, backward=floor.forward)
    weights = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    right = counted(lambda: torch.autograd.grad(F.cross_entropy(model(image), torch.tensor([0])), weights))
    assert wrong.multiply_adds("bare", "one") > right


def test_the_rate_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor_module, "MATRIX_PRODUCTS", {"small": (1, 8, 8, 8), "large": (1, 256, 256, 256)})
    monkeypatch.setattr(floor_module, "_SECONDS_EACH", 0.01)
    rate = MachineRate(torch.device("cpu"))
    rate.measure()
    first = rate.best
    assert first > 0
    assert rate.shape == "large"
    rate.measure()
    assert rate.best >= first
