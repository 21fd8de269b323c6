"""What the training loop costs beside a bare torch loop: microseconds a step, and the ratio.

    python benchmarks/training_overhead.py [--out FILE]

Both loops do the same steps in turn in one process, on one thread, timed by process CPU time. A step's price is the
difference between a training of 2 K steps and one of K steps, over K; beginning and ending is what a training of one
step takes beyond that. `postgrad` includes everything that a user gets: seeds for each step, the check that the loss is
finite, schedule,
progress, learning curve, and the checkpoint at the beginning and the end. Medians over the repetitions.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.files import write_atomic
from postgrad.models.seed_cnn import SeedCNN
from postgrad.training import Recipe, train

CASES = {
    "a linear layer, batch 25": (lambda: nn.Linear(64, 10), (64,), 25, 2000),
    "seed-cnn, 24×24, batch 64": (lambda: SeedCNN(3, 10), (3, 24, 24), 64, 20),
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


def seconds(run: Callable[[int], None], steps: int) -> float:
    began = time.process_time()
    run(steps)
    return time.process_time() - began


def seconds_of_a_step(run: Callable[[int], None], steps: int) -> float:
    return (seconds(run, 2 * steps) - seconds(run, steps)) / steps


def measure(case: str, repetitions: int) -> list[float]:
    """Medians: a step of the bare loop, one of ours, their ratio, and beginning and ending ours; in seconds."""
    make_model, shape, batch_size, steps = CASES[case]
    x, y = torch.randn(IMAGES, *shape), torch.randint(10, (IMAGES,))

    def run_bare(steps: int) -> None:
        bare(make_model(), x, y, batch_size, steps)

    def run_ours(steps: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            ours(make_model(), x, y, batch_size, steps, Path(directory))

    run_bare(2), run_ours(2)  # imports, first allocations
    results = []
    for _ in range(repetitions):
        bare_step, our_step = seconds_of_a_step(run_bare, steps), seconds_of_a_step(run_ours, steps)
        results.append((bare_step, our_step, our_step / bare_step, seconds(run_ours, 1) - our_step))
    return [statistics.median(column) for column in zip(*results, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the table there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"torch {torch.__version__}, {platform.machine()}, one thread, process CPU time, "
        f"median of {options.repetitions} repetitions",
        "",
        "| case | bare loop, µs/step | postgrad, µs/step | overhead, µs/step | ratio | begin and end, ms |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for case in CASES:
        without, with_us, ratio, rest = measure(case, options.repetitions)
        lines.append(
            f"| {case} | {without * 1e6:.0f} | {with_us * 1e6:.0f} | {(with_us - without) * 1e6:.0f} | {ratio:.3f} | "
            f"{rest * 1e3:.0f} |"
        )
    print("\n".join(lines))
    if options.out is not None:
        write_atomic(options.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
