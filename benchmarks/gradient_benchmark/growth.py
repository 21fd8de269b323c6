"""How the price of bare gradients grows with the batch, the number of labels and the width of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from gradient_benchmark.ours import bare_gradients
from gradient_benchmark.peers import Peer, make_peer
from gradient_benchmark.timing import exhaust, in_turn, seconds_of
from gradient_benchmark.works import IMPLEMENTATIONS, Choices
from postgrad.gradients.space import GradientSpace
from postgrad.models.seed_cnn import SeedCNN

SIDE = 24


@dataclass(frozen=True)
class Point:
    """A seed-cnn of so many filters and classes, and a batch under one random label or under all labels."""

    axis: Literal["batch", "labels", "width"]
    batch: int
    classes: int = 10
    filters: int = 64
    labels: Literal["one", "all"] = "one"

    @property
    def value(self) -> int:
        return {"batch": self.batch, "labels": self.classes, "width": self.filters}[self.axis]

    @property
    def gradients(self) -> int:
        return self.batch * (self.classes if self.labels == "all" else 1)


POINTS = (
    *(Point("batch", batch) for batch in (1, 5, 25, 100, 250)),
    *(Point("labels", 5, classes=classes, labels="all") for classes in (2, 10, 25, 50)),
    *(Point("width", 25, filters=filters) for filters in (16, 32, 64, 128)),
)
QUICK_POINTS = (Point("batch", 1), Point("batch", 25), Point("labels", 5, labels="all"), Point("width", 25, filters=16))


class WideSeedCNN(SeedCNN):
    """A seed-cnn with another number of filters."""

    def __init__(self, filters: int, classes: int) -> None:
        super().__init__(3, classes)
        places = self.l1.in_features // self.c0.out_channels
        self.c0 = nn.Conv2d(3, filters, 5, padding=1)
        self.c1 = nn.Conv2d(filters, filters, 5, padding=2)
        self.l1 = nn.Linear(filters * places, classes)


def measure(
    points: Sequence[Point], choices: Choices, *, device: torch.device, repeats: int
) -> Iterator[list[dict[str, Any]]]:
    """For each point a row for each implementation: gradients a second, with fresh weights and random pixels."""
    for point in points:
        yield _rows(point, choices, device, repeats)


def _rows(point: Point, choices: Choices, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WideSeedCNN(point.filters, point.classes).to(device).eval()
        inputs = torch.randn(point.batch, 3, SIDE, SIDE).to(device)
        labels = torch.randint(point.classes, (point.batch,)).to(device)
    space = GradientSpace(model, inputs[:3])

    def ours() -> None:
        exhaust(bare_gradients(space, inputs, "all" if point.labels == "all" else labels))

    def theirs(peer: Peer) -> None:
        if point.labels == "one":
            peer.one_label(inputs, labels)
        else:
            exhaust(peer.all_labels(inputs))

    peers = {
        name: make_peer(name, model, share_forward=choices.vmap_shares_forward)
        for name in IMPLEMENTATIONS
        if name != "postgrad"
    }
    runs = {"postgrad": lambda: seconds_of(ours, device)} | {
        name: lambda peer=peer: seconds_of(lambda: theirs(peer), device) for name, peer in peers.items()
    }
    for run in runs.values():
        run()  # first allocations
    return [
        {
            "axis": point.axis,
            "value": point.value,
            "implementation": name,
            "batch": point.batch,
            "classes": point.classes,
            "filters": point.filters,
            "labels": point.labels,
            "gradients_per_second": point.gradients / timing.seconds,
            "spread": timing.spread,
        }
        for name, timing in in_turn(runs, repeats).items()
    ]
