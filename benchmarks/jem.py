"""What energy models cost: a step of a chain beside one bare forward and backward pass, and a training's steps.

    python benchmarks/jem.py [--threads N] [--repetitions N] [--json FILE]

A chain's step is timed against one forward and one backward pass to the input alone: no gradients of weights,
channels last, nothing made anew. Trainings take turns, one step each: plain cross-entropy, JEM, JEM++ with 10 and
with 5 outer steps, and SADA-JEM. Beside each stands the arithmetic, in forward passes: a step of a chain is 2, a pass
over images with the gradient of all weights 3. Times are medians over the repetitions, of process CPU time on one
thread and of wall time on more.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.files import write_atomic
from postgrad.methods._sgld import Langevin, bare
from postgrad.methods.jem import JEM, log_density
from postgrad.models.registry import create_model

NETWORKS = {"seed-cnn, 24×24×1": ("seed-cnn", 24, 1), "resnet20, 32×32×3": ("resnet20", 32, 3)}
BATCH = 64
CHAIN = 4
"""Steps of a chain that are timed at once."""

EPOCH = 5000
"""Images of an epoch."""

CHAIN_STEP, PASS = 2, 3
TRAININGS: dict[str, tuple[dict[str, Any] | None, int]] = {
    "plain": (None, PASS),
    "JEM": ({"variant": "jem"}, 20 * CHAIN_STEP + 2 * PASS),
    "JEM++, M = 10": ({"variant": "jem++"}, 10 * CHAIN_STEP + 2 * PASS),
    "JEM++, M = 5": ({"variant": "jem++", "steps": 5}, 5 * CHAIN_STEP + 2 * PASS),
    "SADA-JEM": ({"variant": "sada-jem"}, 5 * CHAIN_STEP + 6 * PASS),
}
"""Options, None for none of it, and forward passes a step."""


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network in channels last, and images from −1 to 1 for it."""
    spec, side, channels = NETWORKS[name]
    torch.manual_seed(0)
    model = create_model(spec, num_classes=10, in_channels=channels, image_size=side)
    images = torch.rand(2 * BATCH, channels, side, side).mul_(2).sub_(1)
    return model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)


def chain_step(name: str, repetitions: int, clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of a chain's step, of the two passes alone, and the ratio: the median of its pairs."""
    model, images = network(name)
    density = log_density(model)
    leaf = images[:BATCH].clone(memory_format=torch.channels_last).requires_grad_()
    chains = {kind: Langevin(CHAIN, **options) for kind, options in KINDS.items()}

    def passes() -> None:
        for _ in range(CHAIN):
            torch.autograd.grad(density(leaf).sum(), leaf)

    taken: dict[str, list[float]] = {"passes": [], **{kind: [] for kind in chains}}
    with bare(model, training=False):
        for repetition in range(repetitions + 1):  # the first warms up
            found = {"passes": seconds(passes, clock) / CHAIN}
            found |= {
                kind: seconds(lambda run=run: run(density, images[:BATCH]), clock) / CHAIN
                for kind, run in chains.items()
            }
            for kind, value in found.items() if repetition else ():
                taken[kind].append(1e3 * value)
    ratios = {
        f"{kind} / passes": statistics.median(a / b for a, b in zip(taken[kind], taken["passes"], strict=True))
        for kind in chains
    }
    return {kind: statistics.median(values) for kind, values in taken.items()} | ratios


KINDS: dict[str, dict[str, Any]] = {
    "SGLD": {"noise": 0.01},
    "proximal": {"step_size": 0.2, "proximal": 1.0, "bounds": (-1.0, 1.0), "inner_steps": 5},
}


def training_steps(name: str, repetitions: int, clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of one step of each training."""
    _, images = network(name)
    labels = torch.arange(len(images)) % 10
    steps = {}
    for kind, (options, _) in TRAININGS.items():
        model = network(name)[0].train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        jem = None if options is None else JEM(model, images, labels, buffer_size=1000, **options)
        steps[kind] = lambda model=model, optimizer=optimizer, jem=jem: step(model, optimizer, jem, images, labels)
    taken: dict[str, list[float]] = {kind: [] for kind in steps}
    for repetition in range(repetitions + 1):
        for kind, run in steps.items():
            value = 1e3 * seconds(run, clock)
            if repetition:
                taken[kind].append(value)
    return {kind: statistics.median(values) for kind, values in taken.items()}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, jem: JEM | None, images: Tensor, labels: Tensor) -> None:
    x, y = images[:BATCH], labels[:BATCH]
    loss = F.cross_entropy(model(x), y) if jem is None else jem.loss(x, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if jem is not None:
        jem.after_step()


def seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    run()
    return clock() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "variant jem was made", UserWarning)  # its time with them is what is asked
    clock = time.process_time if options.threads == 1 else time.perf_counter
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} thread(s), float32, batch {BATCH}, ms")
    content: dict[str, Any] = {"torch": torch.__version__, "threads": options.threads, "batch": BATCH, "networks": {}}
    print("| network | two passes | SGLD step | ratio | proximal step | ratio |\n|---|---:|---:|---:|---:|---:|")
    for name in NETWORKS:
        cell = chain_step(name, options.repetitions, clock)
        print(
            f"| {name} | {cell['passes']:.1f} | {cell['SGLD']:.1f} | {cell['SGLD / passes']:.3f} | "
            f"{cell['proximal']:.1f} | {cell['proximal / passes']:.3f} |",
            flush=True,
        )
        content["networks"][name] = {"chain": cell}
    print(f"\n| network | training | ms a step | s an epoch of {EPOCH} | × plain | counted | JEM / this | counted |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name in NETWORKS:
        times = training_steps(name, options.repetitions, clock)
        for kind, (_, count) in TRAININGS.items():
            epoch = times[kind] / 1e3 * -(-EPOCH // BATCH)
            print(
                f"| {name} | {kind} | {times[kind]:.0f} | {epoch:.1f} | {times[kind] / times['plain']:.1f} | "
                f"{count / PASS:.1f} | {times['JEM'] / times[kind]:.2f} | {TRAININGS['JEM'][1] / count:.2f} |",
                flush=True,
            )
        content["networks"][name]["training_ms"] = times
    content["forward_passes"] = {kind: count for kind, (_, count) in TRAININGS.items()}
    if options.json is not None:
        write_atomic(options.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
