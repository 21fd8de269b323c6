"""SWA, EMA and LAWA: evaluate on an average of the weights that a training went through, and leave the training
alone.

Idea. The weights of stochastic gradient descent wander around a minimum; their mean lies nearer to it. SWA is the
mean of the weights at the ends of all epochs after a first one, EMA weighs each step less the longer ago it was, LAWA
is the mean of the last k ends of epochs. None of them touches the training: they are the plain alternatives to, and
the controls of, periodic weight sampling, which replaces the weights.

Use. ``average.update(model)`` after each step, ``with average.averaged as network:`` to evaluate.

Cost. A read and write of the weights at each step (EMA) or at the end of an epoch (SWA, LAWA); one copy of the
weights in memory, k for LAWA; with `batches` a pass over them at each evaluation.

When it fails. A learning rate that has fallen to nothing leaves nothing to average. BatchNorm's statistics are those
of the last weights, not of their mean, unless `batches` are given. An average that begins too early holds weights
that are no good.

Paper. SWA: Izmailov et al., arXiv 1803.05407. LAWA: Kaddour, arXiv 2209.14981. EMA: after Polyak and Juditsky, 1992,
SIAM Journal on Control and Optimization 30(4). Licence or patent note: Apache-2.0; none known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from postgrad.methods._weight_average import WeightAverage, running_mean_, share, whole_number


class StochasticWeightAveraging(WeightAverage):
    """The mean of the weights at the ends of the epochs after `start_epoch`; training goes on from its own weights.

    >>> average = StochasticWeightAveraging(model, steps_per_epoch=len(loader), start_epoch=15)
    >>> for images, labels in loader:
    ...     step(model, images, labels)
    ...     average.update(model)
    >>> with average.averaged as network:
    ...     accuracy = evaluate(network.eval())

    Parameters
    ----------
    model : the network that is trained; its parameters in float32 or better.
    steps_per_epoch : steps, calls of `update`, in an epoch.
    start_epoch : epochs before the first that counts; 0 counts all. Published: three quarters of the training, with a
        learning rate that stays high or goes up and down from there (`torch.optim.swa_utils.SWALR`).
    batches : inputs (N, …), or tuples that begin with them, to make BatchNorm's statistics anew; read at each use of
        `averaged`. None leaves the statistics of the training.

    Wrong settings are `UserError`s. Source: arXiv 1803.05407, algorithm 1.
    """

    def __init__(
        self, model: nn.Module, *, steps_per_epoch: int, start_epoch: int, batches: Iterable[Any] | None = None
    ) -> None:
        super().__init__(
            model,
            batches=batches,
            steps_per_epoch=whole_number("steps_per_epoch", steps_per_epoch, at_least=1),
            start_epoch=whole_number("start_epoch", start_epoch, at_least=0),
        )

    def _after_step(self) -> None:
        epoch, rest = divmod(self._step, self._settings["steps_per_epoch"])
        if rest or epoch <= self._settings["start_epoch"]:
            return
        if self._samples == 0:
            self._keep("mean")
        else:
            running_mean_(self._kept["mean"], self._weights, self._samples)
        self._samples += 1


class ExponentialMovingAverage(WeightAverage):
    """W_mean ← decay · W_mean + (1 − decay) · W after each step; it begins with the weights after the first one.

    >>> average = ExponentialMovingAverage(model, decay=0.999)

    Parameters
    ----------
    model, batches : as for `StochasticWeightAveraging`.
    decay : weight of the past, above 0 and below 1 (default 0.999); it reaches back about 1 / (1 − decay) steps.

    A wrong decay is a `UserError`. Source: `torch.optim.swa_utils.get_ema_multi_avg_fn`.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.999, batches: Iterable[Any] | None = None) -> None:
        super().__init__(model, batches=batches, decay=share("decay", decay, zero=False, one=False))

    def _after_step(self) -> None:
        if self._samples == 0:
            self._keep("mean")
        else:
            get_ema_multi_avg_fn(self._settings["decay"])(self._kept["mean"], self._weights, self._samples)
        self._samples += 1


class LatestWeightAveraging(WeightAverage):
    """The mean of the weights at the ends of the last `k` epochs, or of as many as there were.

    >>> average = LatestWeightAveraging(model, steps_per_epoch=len(loader), k=6)

    Parameters
    ----------
    model, steps_per_epoch, batches : as for `StochasticWeightAveraging`.
    k : ends of epochs that count (default 6); each is a copy of the weights in memory.

    Wrong settings are `UserError`s. Source: arXiv 2209.14981.
    """

    def __init__(
        self, model: nn.Module, *, steps_per_epoch: int, k: int = 6, batches: Iterable[Any] | None = None
    ) -> None:
        super().__init__(
            model,
            batches=batches,
            steps_per_epoch=whole_number("steps_per_epoch", steps_per_epoch, at_least=1),
            k=whole_number("k", k, at_least=1),
        )

    def _after_step(self) -> None:
        if self._step % self._settings["steps_per_epoch"] == 0:
            self._keep(str(self._samples % self._settings["k"]))  # the oldest gives way
            self._samples += 1

    def _write_average(self, weights: list[Tensor]) -> None:
        first, *others = self._kept.values()
        torch._foreach_copy_(weights, first)
        for count, sample in enumerate(others, start=1):
            running_mean_(weights, sample, count)
