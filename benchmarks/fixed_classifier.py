"""How fast a fixed last layer is beside `nn.Linear`, and how much memory its weights take: many classes, few to many.

    python benchmarks/fixed_classifier.py [--json FILE] [--quick] [--threads N] [--training]

Both layers do the same work in turn in one process: logits (B, C) of features (B, N), or with `--training` logits and
all gradients. Every call makes its result anew, as a network does. Times are process CPU time, medians over the
repetitions; one thread unless `--threads` says otherwise (then wall time).

The arithmetic. `nn.Linear` needs N multiply-adds for each logit and reads all its weights, 4 N C bytes, for each batch;
with few images that reading is what it waits for. The transform needs log₂N additions for each logit, reads one byte of
signs and four of bias for each class, and writes each logit once. Writing 4 B C bytes is what no last layer can avoid:
the floor, measured by filling a tensor of that size with a constant. Where B C is large, most of the floor is the
operating system making fresh memory.
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

from postgrad.files import write_atomic
from postgrad.methods.fixed_classifier import FixedClassifier
from postgrad.studies.environment import environment

FEATURES = (512, 1024, 2048, 4096)
CLASSES = (1000, 16_384, 65_536, 1_000_000)
BATCHES = (1, 32, 256)
QUICK_CLASSES = (1000, 16_384, 65_536)
LARGEST_WEIGHT = 2_200_000_000
LARGEST_OUTPUT = 140_000_000
"""Bytes; larger cases are left out, so that 8 GB of memory are enough."""


def cases(classes: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(N, C, B) that fit into memory."""
    return [
        (n, c, b)
        for n in FEATURES
        for c in classes
        for b in BATCHES
        if 4 * n * c <= LARGEST_WEIGHT and 4 * b * c <= LARGEST_OUTPUT
    ]


def forward(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    @torch.inference_mode()
    def work() -> None:
        layer(x)

    return work


def training(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """Logits and the gradients of everything learned, and of the features; the loss is the sum of the logits."""
    x = x.clone().requires_grad_()

    def work() -> None:
        torch.autograd.grad(layer(x).sum(), [x, *layer.parameters()])

    return work


def seconds(work: Callable[[], None], clock: Callable[[], float], at_least: float = 0.01) -> float:
    """Time of one call, from as many as take that long together."""
    calls, began = 0, clock()
    while (taken := clock() - began) < at_least or calls == 0:
        work()
        calls += 1
    return taken / calls


def measure(n: int, c: int, b: int, *, train: bool, repetitions: int, clock: Callable[[], float]) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(b, n)
    linear, fixed = nn.Linear(n, c), FixedClassifier(n, c)
    prepare = training if train else forward
    works = {
        "linear": prepare(linear, x),
        "fixed": prepare(fixed, x),
        "floor": lambda: torch.empty(b, c).fill_(1.0),
    }
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            times[name].append(seconds(work, clock))
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {
        "features": n,
        "classes": c,
        "batch": b,
        **{f"{name}_ms": 1e3 * value for name, value in medians.items()},
        "speedup": medians["linear"] / medians["fixed"],
        "times_floor": medians["fixed"] / medians["floor"],
        "linear_weights_mb": _bytes(linear) / 1e6,
        "fixed_weights_mb": _bytes(fixed) / 1e6,
    }


def _bytes(layer: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*layer.parameters(), *layer.buffers()])


HEADER = """\
| features | classes | batch | nn.Linear, ms | fixed, ms | faster | floor, ms | over floor | nn.Linear, MB | fixed, MB |
|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""


def row(found: dict[str, Any]) -> str:
    cells = (
        *(f"{found[key]:,}" for key in ("features", "classes", "batch")),
        f"{found['linear_ms']:.3f}",
        f"{found['fixed_ms']:.3f}",
        f"{found['speedup']:.1f}×",
        f"{found['floor_ms']:.3f}",
        f"{found['times_floor']:.1f}",
        f"{found['linear_weights_mb']:.1f}",
        f"{found['fixed_weights_mb']:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--quick", action="store_true", help="at most 65,536 classes, and fewer repetitions")
    parser.add_argument("--training", action="store_true", help="time the backward pass, too")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    repetitions = 3 if options.quick else 5
    print(f"{'forward and backward' if options.training else 'forward'}, {options.threads} thread(s)\n\n{HEADER}")
    rows = []
    for n, c, b in cases(QUICK_CLASSES if options.quick else CLASSES):
        rows.append(measure(n, c, b, train=options.training, repetitions=repetitions, clock=clock))
        print(row(rows[-1]), flush=True)
    if options.json is not None:
        figures = {"training": options.training, "threads": options.threads, "rows": rows, "environment": environment()}
        write_atomic(options.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
