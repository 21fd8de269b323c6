"""What sampling and averaging weights costs beside a training step: microseconds a step, and the share of the step.

    python benchmarks/weight_sampling.py [--steps N] [--repetitions N] [--json FILE]

Each average watches a real training of its own (SGD with momentum) for one epoch of N steps, on one thread. Updates and
steps are timed apart, by process CPU time, so that the caches are as a step leaves them. The averages take turns, each
round beginning with another; the figures are medians over the repetitions. Samples and replacements come at the end of
an epoch: with a small N they weigh more here than in a training of hundreds of steps an epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.files import write_atomic
from postgrad.methods.weight_averages import ExponentialMovingAverage, LatestWeightAveraging, StochasticWeightAveraging
from postgrad.methods.weight_sampling import PeriodicWeightSampling
from postgrad.models.resnet20 import ResNet20
from postgrad.models.seed_cnn import SeedCNN
from postgrad.studies.environment import environment

LIMIT = 0.02
"""The share of a training step that an update may take."""

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-20, 32×32, batch 128": (lambda: ResNet20(3, 10), (128, 3, 32, 32)),
    "seed-cnn, 24×24, batch 128": (lambda: SeedCNN(3, 10), (128, 3, 24, 24)),
}

Make = Callable[[nn.Module, int, torch.optim.Optimizer], Any]

AVERAGES: dict[str, Make] = {
    "PSWA": lambda model, steps, _: PeriodicWeightSampling(model, steps_per_epoch=steps),
    "PSWA, every step": lambda model, steps, _: PeriodicWeightSampling(model, steps_per_epoch=steps, fraction=1),
    "PSWA, p = ½, momentum reset": lambda model, steps, optimizer: PeriodicWeightSampling(
        model, steps_per_epoch=steps, probability=0.5, reset_momentum=True, optimizer=optimizer
    ),
    "PWALKS, 2 epochs": lambda model, steps, _: PeriodicWeightSampling(
        model, steps_per_epoch=steps // 2, variant="pwalks", period=2
    ),
    "PSWM": lambda model, steps, _: PeriodicWeightSampling(model, steps_per_epoch=steps, variant="pswm"),
    "SWA": lambda model, steps, _: StochasticWeightAveraging(model, steps_per_epoch=steps, start_epoch=0),
    "EMA": lambda model, steps, _: ExponentialMovingAverage(model),
    "LAWA, k = 6": lambda model, steps, _: LatestWeightAveraging(model, steps_per_epoch=steps, k=6),
}


class Trained:
    """A network with what trains it, and the average that watches."""

    def __init__(self, make_model: Callable[[], nn.Module], make: Make, steps: int) -> None:
        self.model = make_model().train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.average = make(self.model, steps, self.optimizer)

    def epoch(self, x: Tensor, y: Tensor, steps: int) -> tuple[float, float]:
        """Seconds of a step, and of an update, as means over the epoch."""
        in_steps = in_updates = 0.0
        for _ in range(steps):
            began = time.process_time()
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
            stepped = time.process_time()
            self.average.update(self.model)
            in_steps += stepped - began
            in_updates += time.process_time() - stepped
        return in_steps / steps, in_updates / steps


def measure(case: str, steps: int, repetitions: int) -> list[dict[str, Any]]:
    make_model, shape = CASES[case]
    x, y = torch.randn(shape), torch.randint(10, shape[:1])
    names, results = list(AVERAGES), {name: [] for name in AVERAGES}
    for repetition in range(repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            trained = Trained(make_model, AVERAGES[name], steps)
            results[name].append(trained.epoch(x, y, steps))
    rows = []
    for name, pairs in results.items():
        step, update = (statistics.median(column) for column in zip(*pairs, strict=True))
        share = statistics.median(update / step for step, update in pairs)
        rows.append({"case": case, "average": name, "step_us": step * 1e6, "update_us": update * 1e6, "share": share})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help="steps of an epoch; an even number of 8 or more")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    if options.steps < 8 or options.steps % 2:
        parser.error(f"--steps: should be an even number of 8 or more, got {options.steps}")
    torch.set_num_threads(1)
    rows = [row for case in CASES for row in measure(case, options.steps, options.repetitions)]
    print(f"process CPU time, one thread, epochs of {options.steps} steps, medians of {options.repetitions}\n")
    print("| network | average | step, µs | update, µs a step | share of the step |\n|---|---|---:|---:|---:|")
    for row in rows:
        figures = f"{row['step_us']:.0f} | {row['update_us']:.0f} | {row['share']:.2%}"
        print(f"| {row['case']} | {row['average']} | {figures} |")
    print(f"\nlargest share: {max(row['share'] for row in rows):.2%} (the target is {LIMIT:.0%} at most)")
    if options.json is not None:
        settings = {"steps": options.steps, "repetitions": options.repetitions, "environment": environment()}
        write_atomic(options.json, json.dumps({"rows": rows, "limit": LIMIT, **settings}, indent=1) + "\n")


if __name__ == "__main__":
    main()
