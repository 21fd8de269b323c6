"""Which images a step sees and which random numbers it draws: functions of seed and step alone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class _Stream(IntEnum):
    """Keeps the random numbers of different purposes apart."""

    ORDER = 0
    STEP = 1


class Batches:
    """The batch of every step, without state, so that a training goes on inside an epoch as if never interrupted.

    >>> batches = Batches(n=1000, batch_size=128, seed=0)
    >>> indices, generator, weight = batches(step=5)

    Each epoch sees all `n` images once in an order of its own; its last batch may be shorter. Over several processes
    `rank` of `world` takes its slice of the batch, and `weight` makes the mean over processes of
    (weight × mean loss of the slice) the mean loss of the whole batch.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, *, device: torch.device | None = None, rank: int = 0, world: int = 1
    ) -> None:
        self._n, self._batch_size, self._seed = n, batch_size, seed
        self._device = device or torch.device("cpu")
        self._rank, self._world = rank, world
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)
        self._generator = torch.Generator()
        self.per_epoch = math.ceil(n / batch_size)

    def __call__(self, step: int) -> tuple[Tensor, torch.Generator, float]:
        """Indices (≤ batch_size,), the generator for augmentation, and the weight; seeds torch's own generators too."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = torch.Generator().manual_seed(self._derived(_Stream.ORDER, epoch)[0])
            self._order, self._epoch = torch.randperm(self._n, generator=order), epoch
        indices = self._order[position * self._batch_size : (position + 1) * self._batch_size]
        for_augmentation, for_network = self._derived(_Stream.STEP, step, self._rank)
        self._generator.manual_seed(for_augmentation)
        self._seed_network(for_network)
        mine, weight = self._slice(indices)
        return mine, self._generator, weight

    def _slice(self, indices: Tensor) -> tuple[Tensor, float]:
        """This process's part of a batch; where it has fewer images than processes, one that weighs nothing."""
        if self._world == 1:
            return indices, 1.0
        mine = indices.tensor_split(self._world)[self._rank]
        weight = len(mine) * self._world / len(indices)
        return (mine, weight) if len(mine) else (indices[:1], 0.0)

    def _seed_network(self, seed: int) -> None:
        """Seed what dropout draws from. (`torch.manual_seed` does the same for every backend there is, in 70 µs.)"""
        torch.default_generator.manual_seed(seed)
        if self._device.type != "cpu":
            torch.get_device_module(self._device).manual_seed(seed)

    def _derived(self, *key: int) -> list[int]:
        """Two seeds of 32 bits, as many as torch's generator takes on the processor."""
        return np.random.SeedSequence((self._seed, *key)).generate_state(2).tolist()


@contextlib.contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """Leave the caller's random numbers as if nothing had been drawn in the block."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        yield
