"""Clocks: waiting for the device, and runs of several implementations in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """The median of several runs in seconds, and (slowest − fastest) / median."""

    seconds: float
    spread: float

    @classmethod
    def of(cls, samples: list[float]) -> Timing:
        middle = statistics.median(samples)
        return cls(middle, (max(samples) - min(samples)) / middle)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given; a processor has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one run."""
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def exhaust(parts: Iterable[object]) -> None:
    """Take what a generator makes and let go of it at once."""
    for _ in parts:
        pass


def in_turn(runs: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Timing]:
    """Time each run `repeats` times, in turn, each round beginning with another, so that all share the machine's moods.

    A run gives its own seconds.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(runs[name]())
    return {name: Timing.of(values) for name, values in samples.items()}
