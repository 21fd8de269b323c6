"""What a training step costs: a loop as in a notebook, the same with channels last, postgrad's, and the arithmetic.

    python benchmarks/training_step.py [--repetitions N] [--json FILE]

All do the same steps in turn in one process, on one thread, timed by process CPU time. A step's price is the difference
between a training of 2 K steps and one of K steps, over K; beginning and ending is what a training of one step takes
beyond that. `postgrad` includes everything that a user gets: seeds for each step, the check that the loss is finite,
schedule, progress, learning curve, and the checkpoint at the beginning and the end. The floor is the multiply-adds of
dense layers, forward and to all weights and to all inputs but the images', over the rate of the fastest matrix product
that was seen in the run. Medians over the repetitions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from gradient_benchmark.floor import MachineRate, layers_of
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.files import write_atomic
from postgrad.models.registry import create_model
from postgrad.training import Recipe, train

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "a linear layer, batch 25": (lambda: nn.Linear(64, 10), (64,), 25, 2000),
    "seed-cnn, 24×24, batch 64": (
        partial(create_model, "seed-cnn", num_classes=10, image_size=24),
        (3, 24, 24),
        64,
        20,
    ),
    "ResNet-20, 32×32, batch 64": (partial(create_model, "resnet20", num_classes=10), (3, 32, 32), 64, 10),
}
"""Network, shape of an image, images of a step, steps K."""
IMAGES = 2000


def bare(model: nn.Module, x: Tensor, y: Tensor, batch_size: int, steps: int, layout: torch.memory_format) -> None:
    """What one writes in a notebook, with the finite check that reading the loss gives for nothing."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    step = 0
    while step < steps:
        for indices in torch.randperm(len(x)).split(batch_size):
            images = x[indices].to(memory_format=layout) if x.ndim == 4 else x[indices]
            loss = F.cross_entropy(model(images), y[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            step += 1
            if step == steps:
                break


def ours(model: nn.Module, x: Tensor, y: Tensor, batch_size: int, steps: int) -> None:
    """`postgrad.training.train`, checkpoints and all."""
    with tempfile.TemporaryDirectory() as directory:
        train(
            model,
            n=len(x),
            make_batch=lambda indices, generator: (x[indices], y[indices]),
            loss=lambda network, batch: F.cross_entropy(network(batch[0]), batch[1]),
            recipe=Recipe(
                steps=steps, batch_size=batch_size, lr=0.01, optimizer_options={"momentum": 0.9}, schedule="cosine"
            ),
            seed=0,
            directory=Path(directory),
        )


LOOPS: dict[str, Callable[..., None]] = {
    "bare": partial(bare, layout=torch.contiguous_format),
    "bare, channels last": partial(bare, layout=torch.channels_last),
    "postgrad": ours,
}


def seconds(run: Callable[[int], None], steps: int) -> float:
    began = time.process_time()
    run(steps)
    return time.process_time() - began


def measure(case: str, repetitions: int, rate: MachineRate) -> dict[str, float]:
    """Medians in seconds: a step of each loop, the end of ours; and a step's multiply-adds."""
    make_model, shape, batch_size, steps = CASES[case]
    x, y = torch.randn(IMAGES, *shape), torch.randint(10, (IMAGES,))
    runs: dict[str, Callable[[int], None]] = {
        name: lambda count, loop=loop: loop(make_model(), x, y, batch_size, count) for name, loop in LOOPS.items()
    }
    for run in runs.values():
        run(2)  # imports, first allocations
    taken: dict[str, list[float]] = {name: [] for name in (*runs, "begin and end")}
    for _ in range(repetitions):
        rate.measure()
        for name, run in runs.items():
            taken[name].append((seconds(run, 2 * steps) - seconds(run, steps)) / steps)
        taken["begin and end"].append(seconds(runs["postgrad"], 1) - taken["postgrad"][-1])
    found = {name: statistics.median(values) for name, values in taken.items()}
    first, *others = layers_of(make_model(), x[:1])
    return found | {"multiply_adds": batch_size * (2 * first.forward + 3 * sum(layer.forward for layer in others))}


def table(cases: dict[str, dict[str, float]], rate: float) -> str:
    """Microseconds a step, and what they are of each other."""
    lines = [
        "| case | bare loop, µs | channels last, µs | postgrad, µs | / bare | / channels last | floor, µs | "
        "floor / postgrad | begin and end, ms |",
        "|---|" + "---:|" * 8,
    ]
    for case, figures in cases.items():
        plain, last, with_us = (figures[name] for name in LOOPS)
        floor = figures["multiply_adds"] / rate
        lines.append(
            f"| {case} | {plain * 1e6:.0f} | {last * 1e6:.0f} | {with_us * 1e6:.0f} | {with_us / plain:.2f} | "
            f"{with_us / last:.2f} | {floor * 1e6:.0f} | {floor / with_us:.0%} | {figures['begin and end'] * 1e3:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rate = MachineRate(torch.device("cpu"))
    cases = {case: measure(case, options.repetitions, rate) for case in CASES}
    head = f"torch {torch.__version__}, {platform.machine()}, one thread, process CPU time, median of"
    print(f"{head} {options.repetitions}; {rate.best / 1e9:.1f} G multiply-adds/s ({rate.shape})\n")
    print(table(cases, rate.best))
    if options.json is not None:
        content: dict[str, Any] = {"torch": torch.__version__, "multiply_adds_a_second": rate.best, "seconds": cases}
        write_atomic(options.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
