"""What PowerGrad costs beside cross-entropy: time and memory of forward and backward, and the share of a training step.

    python benchmarks/powergrad.py [--json FILE]

Both losses are called in turn in one process, on one thread, timed by process CPU time; medians over the repetitions,
each of which gives a ratio of its own. Memory is the peak of what torch allocates from the call of the loss to the end
of its backward pass, by torch's profiler, the logits' gradient included. The step is a ResNet-18's with 1,000 classes,
forward, backward and SGD, on 8 images of 64×64: so small a step makes the loss's share large.

Cross-entropy takes more memory and so is slower the more often the allocator gives memory back to the
system. With glibc, MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_ and MALLOC_TOP_PAD_ at 1000000000 it never does,
which is the harder case for PowerGrad.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from postgrad._compat import prepare_torchvision
from postgrad.files import write_atomic
from postgrad.methods.powergrad import PowerGradCrossEntropy, powergrad_cross_entropy

Loss = Callable[[Tensor, Tensor], Tensor]

BATCH = 256
TARGETS = {10: 2.3, 1000: 1.3, 32000: 1.3}
CALLS = {10: 100, 1000: 20, 32000: 1}
"""How often a loss is called between two looks at the clock, for each number of classes."""
STEP_IMAGES, STEP_SIZE, STEP_CLASSES = 8, 64, 1000
STEP_TARGET = 0.01
LOSSES: dict[str, Loss] = {
    "cross-entropy": F.cross_entropy,
    "powergrad": powergrad_cross_entropy,
    "powergrad, schedule": PowerGradCrossEntropy(alpha=(1.0, 0.25), steps=1000),
}


def batch(images: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, classes, generator=generator, requires_grad=True)
    return logits, torch.randint(classes, (images,), generator=generator)


def forward_and_backward(loss: Loss, logits: Tensor, target: Tensor) -> None:
    logits.grad = None
    loss(logits, target).backward()


def seconds(work: Callable[[], None], calls: int) -> float:
    began = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - began) / calls


def times(images: int, classes: int, *, calls: int, repetitions: int) -> dict[str, list[float]]:
    """Seconds of each loss's forward and backward, one number for each repetition."""
    logits, target = batch(images, classes)
    found: dict[str, list[float]] = {name: [] for name in LOSSES}
    for repetition in range(repetitions + 1):
        for name, loss in LOSSES.items():
            taken = seconds(lambda loss=loss: forward_and_backward(loss, logits, target), calls)
            if repetition:  # the first is a warm-up
                found[name].append(taken)
    return found


def peak_bytes(loss: Loss, logits: Tensor, target: Tensor) -> int:
    """The most that torch holds above what it held before, between the call of the loss and the end of its backward."""
    forward_and_backward(loss, logits, target)
    logits.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        forward_and_backward(loss, logits, target)
    changes = [each for each in profiler.profiler.kineto_results.events() if each.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda each: each.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak


def loss_row(classes: int, repetitions: int) -> dict[str, Any]:
    found = times(BATCH, classes, calls=CALLS[classes], repetitions=repetitions)
    plain = found["cross-entropy"]
    logits, target = batch(BATCH, classes)
    return {
        "classes": classes,
        "target_ratio": TARGETS[classes],
        "microseconds": {name: statistics.median(values) * 1e6 for name, values in found.items()},
        "ratio": {
            name: statistics.median(ours / theirs for ours, theirs in zip(values, plain, strict=True))
            for name, values in found.items()
        },
        "peak_memory_mb": {name: peak_bytes(loss, logits, target) / 1e6 for name, loss in LOSSES.items()},
    }


def step_row(repetitions: int) -> dict[str, Any]:
    """What PowerGrad adds to a step, as a share of the step with cross-entropy."""
    prepare_torchvision()
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model: nn.Module = resnet18(num_classes=STEP_CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, (_, target) = torch.randn(STEP_IMAGES, 3, STEP_SIZE, STEP_SIZE), batch(STEP_IMAGES, STEP_CLASSES)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), target).backward()
        optimizer.step()

    step()
    steps, extra = [], []
    for _ in range(repetitions):
        steps.append(seconds(step, 1))
        # The loss alone: of two whole steps, the difference would drown in their noise.
        found = times(STEP_IMAGES, STEP_CLASSES, calls=20, repetitions=1)
        extra.append(found["powergrad"][0] - found["cross-entropy"][0])
    step_seconds, extra_seconds = statistics.median(steps), statistics.median(extra)
    return {
        "step_milliseconds": step_seconds * 1e3,
        "extra_microseconds": extra_seconds * 1e6,
        "share": extra_seconds / step_seconds,
        "target_share": STEP_TARGET,
    }


def table(figures: dict[str, Any]) -> str:
    lines = [
        f"{figures['setting']}",
        "",
        "| classes | loss | forward + backward, µs | ratio | target | peak memory, MB |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for row in figures["losses"]:
        for name in LOSSES:
            target = f"≤ {row['target_ratio']}" if name == "powergrad" else ""
            lines.append(
                f"| {row['classes']:,} | {name} | {row['microseconds'][name]:.0f} | {row['ratio'][name]:.2f} | "
                f"{target} | {row['peak_memory_mb'][name]:.2f} |"
            )
    step = figures["resnet18_step"]
    lines += [
        "",
        f"A ResNet-18 step takes {step['step_milliseconds']:.0f} ms; PowerGrad adds "
        f"{step['extra_microseconds']:.0f} µs, {step['share']:.2%} of it (target ≤ {step['target_share']:.0%}).",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=31)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures = {
        "setting": f"torch {torch.__version__}, {platform.machine()}, one thread, process CPU time, batch {BATCH}, "
        f"medians of {options.repetitions} repetitions",
        "losses": [loss_row(classes, options.repetitions) for classes in TARGETS],
        "resnet18_step": step_row(max(3, options.repetitions // 4)),
    }
    print(table(figures))
    if options.json is not None:
        write_atomic(options.json, json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
