"""What the training loop costs beside a bare torch loop: microseconds a step, and the ratio.

    python benchmarks/training_overhead.py [--out benchmarks/training_overhead.md]

Both loops do the same steps on the same batches, in turn in one process, on one thread; the figure is the median of the
repetitions. `postgrad` includes everything that a user gets: seeds for each step, the check that the loss is finite,
schedule, progress, learning curve and the checkpoint at the beginning and the end.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad import progress
from postgrad.files import write_atomic
from postgrad.models.seed_cnn import SeedCNN
from postgrad.training import Recipe, train

CASES = {
    "a linear layer, batch 25": (lambda: nn.Linear(64, 10), (64,), 25, 2000),
    "seed-cnn, 24×24, batch 64": (lambda: SeedCNN(3, 10), (3, 24, 24), 64, 25),
}
IMAGES = 2000


def bare(model: nn.Module, x: Tensor, y: Tensor, batch_size: int, steps: int) -> None:
    """What one writes in a notebook, with the finite check that reading the loss gives for nothing."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    step = 0
    while step < steps:
        for indices in torch.randperm(len(x)).split(batch_size):
            loss = F.cross_entropy(model(x[indices]), y[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            step += 1
            if step == steps:
                break


def ours(model: nn.Module, x: Tensor, y: Tensor, batch_size: int, steps: int, directory: Path | None) -> None:
    train(
        model,
        n=len(x),
        make_batch=lambda indices, generator: (x[indices], y[indices]),
        loss=lambda network, batch: F.cross_entropy(network(batch[0]), batch[1]),
        recipe=Recipe(
            steps=steps, batch_size=batch_size, lr=0.01, optimizer_options={"momentum": 0.9}, schedule="cosine"
        ),
        seed=0,
        directory=directory,
    )


def microseconds(run, steps: int) -> float:
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) / steps * 1e6


def measure(case: str, repetitions: int) -> tuple[float, float, float]:
    """Microseconds a step of the bare loop, of ours, and the median of their ratios, each pair run back to back."""
    make_model, shape, batch_size, steps = CASES[case]
    x, y = torch.randn(IMAGES, *shape), torch.randint(10, (IMAGES,))
    pairs = []
    for repetition in range(repetitions + 1):
        with tempfile.TemporaryDirectory() as directory:
            without = microseconds(lambda: bare(make_model(), x, y, batch_size, steps), steps)
            with_us = microseconds(lambda: ours(make_model(), x, y, batch_size, steps, Path(directory)), steps)
        if repetition:  # the first warms up
            pairs.append((without, with_us))
    ratio = statistics.median(b / a for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the table there")
    options = parser.parse_args()
    progress.quiet = False
    torch.set_num_threads(1)
    lines = [
        f"torch {torch.__version__}, {platform.machine()}, one thread, median of {options.repetitions}",
        "",
        "| case | bare loop, µs/step | postgrad, µs/step | overhead, µs | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for case in CASES:
        without, with_us, ratio = measure(case, options.repetitions)
        lines.append(f"| {case} | {without:.0f} | {with_us:.0f} | {with_us - without:.0f} | {ratio:.3f} |")
    print("\n".join(lines))
    if options.out is not None:
        write_atomic(options.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
