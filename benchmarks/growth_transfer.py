"""What carrying an optimizer over a growth is worth: learning curves after widening, by what becomes of its state.

    python benchmarks/growth_transfer.py [--data cifar10] [--seeds N] [--epochs N] [--json FILE] [--quick]

A small network (three convolutions with BatchNorm, 16×16 images, which are the data's averaged over 2×2 pixels) is
trained for some epochs. Then each convolution is widened by half, with replicas, and trained on with the optimizer's
state split, copied or reset; for comparison the network also goes on without having grown at all. Within a seed all of
them begin with the same weights, the replicas have the same shares, and all see the same batches, at a constant rate.
Test images choose nothing, since there is nothing to be chosen. A difference is that to "split" within seeds, with its
95 % interval over seeds (Student's t). Six minutes on one core.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.data.datasets import load_dataset
from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.growth.transfer import State
from postgrad.growth.width import widen
from postgrad.studies.environment import environment

IMAGES = 5000
BATCH = 50
WIDTHS = (16, 32, 32)
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD, momentum 0.9": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=2e-3),
}
WAYS = (*get_args(State), "not grown")
FIRST = 20
"""Steps after the growth over which the first figure is a mean."""

Part = tuple[Tensor, Tensor]
Curve = dict[str, list[float]]


def data(spec: str, limit: int) -> tuple[Part, Part]:
    """Training and test images as float (N, C, H/2, W/2), standardised by the training images, and labels."""
    dataset = load_dataset(spec, limit=limit)
    if dataset.train is None or dataset.test is None:
        raise UserError(f"{spec}: training and test images are both needed; take cifar10")
    halved = [F.avg_pool2d(part.images.float(), 2) for part in (dataset.train, dataset.test)]
    std, mean = torch.std_mean(halved[0], dim=(0, 2, 3), keepdim=True)
    train, test = ((images - mean) / std for images in halved)
    return (train, dataset.train.labels), (test, dataset.test.labels)


def network(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in WIDTHS:
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def epoch(model: nn.Module, optimizer: torch.optim.Optimizer, train: Part, seed: int) -> list[float]:
    """One pass over the training images, mirrored by chance; the loss of each step."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    model.train()
    for indices in torch.randperm(len(train[0]), generator=generator).split(BATCH):
        images = train[0][indices]
        mirrored = torch.rand(len(indices), 1, 1, 1, generator=generator) < 0.5
        optimizer.zero_grad()
        loss = F.cross_entropy(model(torch.where(mirrored, images.flip(3), images)), train[1][indices])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def accuracy(model: nn.Module, test: Part) -> float:
    model.eval()
    answers = torch.cat([model(images).argmax(1) for images in test[0].split(500)])
    return float((answers == test[1]).double().mean())


def grow(model: nn.Sequential, optimizer: torch.optim.Optimizer, example: Tensor, state: State, seed: int) -> None:
    for number, layer in list(model.named_children()):
        if isinstance(layer, nn.Conv2d):
            to = layer.out_channels * 3 // 2
            widen(model, number, to=to, example=example, optimizer=optimizer, state=state, seed=seed)


def curves(make: Callable[[Any], torch.optim.Optimizer], seed: int, epochs: int, parts: tuple[Part, Part]) -> dict:
    """The learning curve after the growth, for each way."""
    train, test = parts
    torch.manual_seed(seed)
    base = network(train[0].shape[1])
    its_optimizer = make(base.parameters())
    for number in range(epochs):
        epoch(base, its_optimizer, train, 1000 * seed + number)
    found: dict[str, Curve] = {}
    for way in WAYS:
        model, optimizer = copy.deepcopy((base, its_optimizer))
        if way != "not grown":
            grow(model, optimizer, train[0][:2], way, seed)
        curve: Curve = {"losses": [], "accuracies": [accuracy(model, test)]}
        for number in range(epochs, 2 * epochs):
            curve["losses"] += epoch(model, optimizer, train, 1000 * seed + number)
            curve["accuracies"].append(accuracy(model, test))
        found[way] = curve
    return found


def figures_of(curve: Curve) -> dict[str, float]:
    steps = len(curve["losses"]) // (len(curve["accuracies"]) - 1)
    return {
        f"loss, first {FIRST} steps": statistics.mean(curve["losses"][:FIRST]),
        "loss, first epoch": statistics.mean(curve["losses"][:steps]),
        "loss, last epoch": statistics.mean(curve["losses"][-steps:]),
        "accuracy after one epoch": curve["accuracies"][1],
        "accuracy at the end": curve["accuracies"][-1],
    }


def rows_of(results: dict[str, list[dict[str, Curve]]]) -> list[dict[str, Any]]:
    rows = []
    for optimizer, seeds in results.items():
        for way in WAYS:
            for figure in figures_of(seeds[0][way]):
                values = [figures_of(found[way])[figure] for found in seeds]
                differences = [
                    value - figures_of(found["split"])[figure] for value, found in zip(values, seeds, strict=True)
                ]
                rows.append(
                    {
                        "optimizer": optimizer,
                        "state": way,
                        "figure": figure,
                        "mean": statistics.mean(values),
                        "values": values,
                        "difference": statistics.mean(differences),
                        "half_interval": half_interval(differences),
                    }
                )
    return rows


def half_interval(values: list[float]) -> float | None:
    """Half of the 95 % interval of a mean."""
    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def show(rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["figure"] for row in rows))
    print(f"| optimizer | state | {' | '.join(names)} |\n|---|---|{'---:|' * len(names)}")
    for optimizer in OPTIMIZERS:
        for way in WAYS:
            cells = []
            for row in rows:
                if (row["optimizer"], row["state"]) == (optimizer, way):
                    spread = "" if row["half_interval"] is None else f" ± {row['half_interval']:.3f}"
                    more = "" if way == "split" else f" ({row['difference']:+.3f}{spread})"
                    cells.append(f"{row['mean']:.3f}{more}")
            print(f"| {optimizer} | {way} | {' | '.join(cells)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="a data set by name (default: cifar10)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="before the growth, and again after it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures and all curves there")
    parser.add_argument("--quick", action="store_true", help="500 images, two seeds and epochs: only that it runs")
    options = parser.parse_args()
    seeds, epochs, limit = (2, 2, 500) if options.quick else (options.seeds, options.epochs, IMAGES)
    if seeds < 1 or epochs < 1:
        parser.error("--seeds and --epochs should be 1 or more")
    torch.set_num_threads(1)
    began = time.process_time()
    try:
        parts = data(options.data, limit)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results: dict[str, list[dict[str, Curve]]] = {name: [] for name in OPTIMIZERS}
    for seed in range(seeds):
        for name, make in OPTIMIZERS.items():
            results[name].append(curves(make, seed, epochs, parts))
            print(f"{name}, seed {seed}: {time.process_time() - began:.0f} s so far", file=sys.stderr, flush=True)
    rows = rows_of(results)
    print(f"{options.data}, {len(parts[0][0])} images; {epochs} epochs before and after; {seeds} seeds\n")
    show(rows)
    if options.json is not None:
        settings = {"data": options.data, "images": len(parts[0][0]), "seeds": seeds, "epochs": epochs, "batch": BATCH}
        document = {"rows": rows, "curves": results, **settings, "environment": environment()}
        write_atomic(options.json, json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
