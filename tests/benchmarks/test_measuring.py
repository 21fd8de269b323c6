"""Clocks, memory, zeros and growth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gradient_benchmark import growth, memory, sparsity
from gradient_benchmark.floor import Floor, layers_of
from gradient_benchmark.setting import CLASSES, HIDDEN, SELECT, Setting, generated_images
from gradient_benchmark.sparsity import Shares
from gradient_benchmark.timing import Timing, in_turn
from gradient_benchmark.works import IMPLEMENTATIONS, WORKS, Case, Choices
from torch.nn import functional as F

from postgrad.methods.gradnet import GradNet
from postgrad.models.registry import create_model


def test_runs_are_taken_in_turn() -> None:
    order: list[str] = []

    def run(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    timings = in_turn({"a": lambda: run("a", 1.0), "b": lambda: run("b", len(order))}, repeats=3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert timings["a"] == Timing(1.0, 0.0)
    assert timings["b"] == Timing(2, (5 - 1) / 2)  # it says how many ran before it: 1, 2 and 5


def test_dense_shares_leave_the_floor_as_it_is(setting: Setting) -> None:
    layers = layers_of(setting.model, setting.batch(1).inputs)
    floor = Floor.of(layers, HIDDEN, CLASSES)
    dense = Shares(layers, [1.0] * 3, [1.0] * 3)
    half = Shares(layers, [0.5] * 3, [0.5] * 3)
    for work, labels in WORKS:
        expected = floor.multiply_adds(work, labels)
        assert dense.multiply_adds(floor, HIDDEN, work, labels) == pytest.approx(expected)
        assert half.multiply_adds(floor, HIDDEN, work, labels) < expected


def test_zeros_are_counted_where_autograd_has_them(setting: Setting) -> None:
    batch = setting.batch(5)
    layers = layers_of(setting.model, batch.inputs[:1])
    shares = sparsity.measure(setting, layers, batch)
    model = setting.model
    first = model.get_submodule("c0")(batch.inputs)
    second = model.get_submodule("c1")(F.max_pool2d(F.relu(first), 2, ceil_mode=True))
    pooled = F.max_pool2d(F.relu(second), 2, ceil_mode=True)
    loss = F.cross_entropy(model.get_submodule("l1")(pooled.flatten(1)), batch.labels, reduction="sum")
    exact = [float((g != 0).double().mean()) for g in torch.autograd.grad(loss, [first, second])]
    assert shares.delta[:2] == pytest.approx(exact)
    assert max(exact) <= 0.26  # one of four under a pooling window
    assert shares.delta[2] == 1
    assert shares.selected[0] == pytest.approx(SELECT, abs=0.02)


def test_growth_has_a_row_for_each_implementation() -> None:
    points = (
        growth.Point("batch", 2, classes=3, filters=2),
        growth.Point("labels", 1, classes=2, filters=2, labels="all"),
    )
    found = list(growth.measure(points, Choices(True, "topk"), device=torch.device("cpu"), repeats=1))
    assert [[row["implementation"] for row in rows] for rows in found] == [list(IMPLEMENTATIONS)] * 2
    assert [rows[0]["value"] for rows in found] == [2, 2]
    assert all(row["gradients_per_second"] > 0 for rows in found for row in rows)
    assert growth.Point("width", 5, filters=7, labels="all").gradients == 50


def test_memory_is_at_least_that_of_the_gradients(tmp_path: Path) -> None:
    """A fresh process for each; a batch's gradients in float32 are a lower bound, and more images need more."""
    images, truth = generated_images(40)
    gradnet = GradNet(create_model("seed-cnn", num_classes=CLASSES), hidden=(1, 1, 1), steps=1, device="cpu")
    gradnet.fit(images[:4], truth[:4])
    Setting(gradnet, images, truth.flip(0), truth, "generated").save(tmp_path)
    cases = [Case("bare", "one", "loop", size) for size in (4, 40)]
    found = dict(memory.peaks(tmp_path, cases, Choices(False, "topk"), device="cpu", threads=1))
    assert found[cases[1]] >= 40 * 130_240 * 4 / 1e6
    assert found[cases[0]] < found[cases[1]] / 2
