"""Periodic weight sampling: train on from the mean of the weights of the last steps, every epoch or every few.

Idea. The weights of stochastic gradient descent wander around where they go; their mean over the last steps of an
epoch is a better place to start the next one from. SWA, EMA and LAWA (weight_averages.py) only evaluate such a mean;
here it replaces the weights.

How it works. In the last `fraction` of each epoch's steps the weights are sampled, each time with `probability`, into
a running mean M. After K epochs (`period`) the weights W are replaced, and the next mean begins:

- PSWA (K = 1) and PWALKS (K > 1, the samples of all K epochs): W ← M.
- PSWM: W ← β · M_before + (1 − β) · M, with the mean of the period before; the first period has none: W ← M.

Use. ``sampling.update(model)`` after each step, ``with sampling.averaged as network:`` to evaluate inside an epoch.

Cost. A read and write of the weights at each sampled step, and one at the end of a period. Memory: one copy of the
weights (PSWA, PWALKS: a running mean is exact, so K copies are not needed), two for PSWM.

When it fails. A small learning rate leaves nothing to average; while the weights still travel far, the mean lags
behind them. Momentum points on from the last weights, not from their mean. BatchNorm's statistics are those of the
last weights, unless `batches` are given. The control to beat is an average that is only evaluated: SWA, EMA, LAWA.

Paper. S. Tripathi et al., "Improving Model Training by Periodic Sampling over Weight Distributions", arXiv
1905.05774. Licence or patent note: Apache-2.0; US patent 11,922,316 (LG Electronics) claims training by such
sampling. SWA, EMA and LAWA are alternatives without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from postgrad.errors import UserError, unknown_name
from postgrad.methods._weight_average import WeightAverage, running_mean_, share, tensors_put_back, whole_number

Variant = Literal["pswa", "pwalks", "pswm"]

BETA = 0.5
_MOMENTA = ("momentum_buffer", "exp_avg")
"""What torch's optimizers call their running mean of gradients."""


class PeriodicWeightSampling(WeightAverage):
    """Replaces the weights by the mean of those of the last steps, at the end of every epoch or of every few.

    >>> sampling = PeriodicWeightSampling(model, steps_per_epoch=len(loader))
    >>> for images, labels in loader:
    ...     step(model, images, labels)
    ...     sampling.update(model)

    Parameters
    ----------
    model : the network that is trained; its parameters in float32 or better.
    steps_per_epoch : steps, calls of `update`, in an epoch.
    variant : "pswa" (default), "pwalks" or "pswm"; see the top of this file.
    fraction : q, the last part of an epoch's steps in which the weights are sampled, above 0 and at most 1 (default
        0.25); rounded to whole steps, at least one.
    probability : p, with which each of these steps is sampled, above 0 and at most 1 (default 1). Where chance samples
        none in a whole period the weights stay as they are.
    period : K, epochs between replacements: 1 for PSWA, 2 or more for PWALKS, 1 or more for PSWM (default 1).
    beta : weight of the mean before in PSWM, from 0 to below 1 (0.5 unless given; the published value is not known).
    reset_momentum : set the optimizer's running mean of gradients (`momentum_buffer`, `exp_avg`) to zero at each
        replacement; needs `optimizer`. Its other state, as Adam's second moments, stays.
    optimizer : whose momentum that is; read for nothing else.
    batches : inputs (N, …), or tuples that begin with them, to make BatchNorm's statistics anew at each replacement and
        in `averaged`. None leaves the statistics of the training.
    seed : of the samples' chance. A step's draw hangs on the seed and the number of the step alone, so that resumption
        is exact, and all processes of a distributed training draw alike.

    `averaged` has the weights that a replacement now would make; between a replacement and the next sample those are
    the weights as they are. Wrong settings are `UserError`s; settings that can change nothing give a `UserWarning`.
    Source: arXiv 1905.05774, as the formulas at the top of this file read it.
    """

    replaces = True

    def __init__(
        self,
        model: nn.Module,
        *,
        steps_per_epoch: int,
        variant: Variant = "pswa",
        fraction: float = 0.25,
        probability: float = 1.0,
        period: int = 1,
        beta: float | None = None,
        reset_momentum: bool = False,
        optimizer: Optimizer | None = None,
        batches: Iterable[Any] | None = None,
        seed: int = 0,
    ) -> None:
        _check_variant(variant, period, beta)
        super().__init__(
            model,
            batches=batches,
            steps_per_epoch=whole_number("steps_per_epoch", steps_per_epoch, at_least=1),
            variant=variant,
            fraction=share("fraction", fraction, zero=False, one=True),
            probability=share("probability", probability, zero=False, one=True),
            period=whole_number("period", period, at_least=1),
            beta=share("beta", BETA if beta is None else beta, zero=True, one=False),
            reset_momentum=reset_momentum,
            seed=whole_number("seed", seed, at_least=0),
        )
        self.optimizer = optimizer
        self._window = max(1, round(fraction * steps_per_epoch))
        if reset_momentum:
            _check_optimizer(optimizer, model)
        if variant == "pswa" and self._window == 1:
            warnings.warn(
                f"{self._name}: fraction {fraction} of {steps_per_epoch} steps is a single one, and the mean of one "
                "sample is that sample, so nothing will change; raise fraction",
                stacklevel=2,
            )

    def _after_step(self) -> None:
        settings = self._settings
        epoch, step = divmod(self._step - 1, settings["steps_per_epoch"])  # both from 0
        if step >= settings["steps_per_epoch"] - self._window and self._draw():
            if self._samples == 0:
                self._keep("mean")
            else:
                running_mean_(self._kept["mean"], self._weights, self._samples)
            self._samples += 1
        over = step == settings["steps_per_epoch"] - 1 and (epoch + 1) % settings["period"] == 0
        if over and self._samples:
            self._replace()

    def _draw(self) -> bool:
        chance = self._settings["probability"]
        return chance == 1 or np.random.default_rng([self._settings["seed"], self._step]).random() < chance

    def _write_average(self, weights: list[Tensor]) -> None:
        if "before" in self._kept:
            torch._foreach_copy_(weights, self._kept["before"])
            torch._foreach_lerp_(weights, self._kept["mean"], 1 - self._settings["beta"])
        else:
            super()._write_average(weights)

    def _replace(self) -> None:
        if self.batches is None:
            self._put_average_in()
        else:
            with tensors_put_back(self.model, only_after_errors=True):
                self._put_average_in()
        self._samples = 0
        if self._settings["variant"] == "pswm":
            self._remember_mean()
        if self._settings["reset_momentum"]:
            self._reset_momentum()

    def _remember_mean(self) -> None:
        """The mean is the one before from now on; its memory is used again for the next."""
        free = self._kept.pop("before", None)
        self._kept["before"] = self._kept.pop("mean")
        if free is not None:
            self._kept["mean"] = free

    def _reset_momentum(self) -> None:
        assert self.optimizer is not None
        for parameter in self._parameters.values():
            state = self.optimizer.state.get(parameter, {})
            for key in _MOMENTA:
                if isinstance(state.get(key), Tensor):
                    state[key].zero_()


def _check_variant(variant: str, period: int, beta: float | None) -> None:
    if variant not in get_args(Variant):
        raise unknown_name("variant of weight sampling", variant, get_args(Variant))
    if variant == "pswa" and period != 1:
        raise UserError(f"period: PSWA replaces the weights after every epoch, got {period}; use variant='pwalks'")
    if variant == "pwalks" and period == 1:
        raise UserError("period: PWALKS averages over 2 epochs or more, got 1; give a period, or use variant='pswa'")
    if variant != "pswm" and beta is not None:
        raise UserError(f"beta: only variant='pswm' has one, got {beta} for '{variant}'")


def _check_optimizer(optimizer: Optimizer | None, model: nn.Module) -> None:
    if optimizer is None:
        raise UserError("reset_momentum: whose momentum? give the optimizer too")
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if trained.isdisjoint(model.parameters()):
        raise UserError(
            "reset_momentum: the optimizer trains none of this network's parameters; give the one that does"
        )
