"""What every average of weights has: samples after each step, evaluation on the mean, a state for exact resumption.

The arithmetic (running and exponential mean, statistics of BatchNorm) is `torch.optim.swa_utils`'s. Its
`AveragedModel` is not: that keeps a second network with its buffers, where a list of tensors is enough.
"""

from __future__ import annotations

import contextlib
import itertools
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_swa_multi_avg_fn, update_bn

from postgrad.errors import UserError

running_mean_ = get_swa_multi_avg_fn()
"""(mean of n samples, a new one, n): the mean becomes that of n + 1, in place."""


class WeightAverage(ABC):
    """Keeps copies of a network's parameters, and puts an average of them in for evaluation.

    A subclass says in `_after_step` when to sample, and in `_write_average` what the average is.
    """

    replaces = False
    """Whether the training goes on from the average; other averages then follow what it makes of the weights."""

    def __init__(self, model: nn.Module, *, batches: Iterable[Any] | None, **settings: Any) -> None:
        self.model = model
        self.batches = batches
        self._settings = settings
        self._parameters = dict(model.named_parameters())
        self._kept: dict[str, list[Tensor]] = {}
        self._step = 0
        self._samples = 0
        self._is_averaged = False
        if not self._parameters:
            raise UserError(f"{self._name}: the network has no parameters to average")
        if isinstance(batches, Iterator):
            raise UserError(
                f"{self._name}: batches is an iterator, which can be read only once; give a list or a DataLoader"
            )
        self._check_precision()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take note of the weights that a step has just made; call it after each `optimizer.step()`.

        `model` is the network given at the start, or one that wraps it (`torch.compile`, DistributedDataParallel). One
        whose parameters were replaced since is a `UserError`, and so is a step inside `averaged`.
        """
        self._check(model)
        if self._is_averaged:
            raise UserError(f"{self._name}: a step was taken on the averaged weights; leave the `averaged` block first")
        self._step += 1
        self._after_step()

    @property
    def averaged(self) -> AbstractContextManager[nn.Module]:
        """A context in which the network has the averaged weights; at its end it has those from before, to the bit.

        >>> with average.averaged as network:
        ...     accuracy = evaluate(network.eval())

        Without a sample to average the weights are left as they are. Buffers stay those of the training, except that
        `batches` renew BatchNorm's statistics for the averaged weights; they too come back at the end. While it lasts
        it takes one more copy of the weights.
        """
        return self._averaged()

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on with the same bits, as plain values and tensors; the tensors are the live ones."""
        kept = {key: dict(zip(self._parameters, tensors, strict=True)) for key, tensors in self._kept.items()}
        return {"settings": dict(self._settings), "step": self._step, "samples": self._samples, "kept": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; one of other settings or of another network is a `UserError`."""
        if state.get("settings") != self._settings:
            was = state.get("settings")
            raise UserError(f"{self._name}: the state is of other settings: {was}, not {self._settings}")
        shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        for tensors in state["kept"].values():
            if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
                raise UserError(f"{self._name}: the state is of another network; its parameters differ")
        self._kept = {
            key: [tensors[name].to(parameter, copy=True) for name, parameter in self._parameters.items()]
            for key, tensors in state["kept"].items()
        }
        self._step, self._samples = state["step"], state["samples"]

    def follow_growth(self, grown: Callable[[Tensor | None, nn.Parameter], Tensor]) -> None:
        """Go on with a network that has grown in place: `grown(copy, parameter)` is what a kept copy becomes.

        The copy is None for a parameter that is wholly new. For users there is `postgrad.growth.transfer_average`.
        """
        if self._is_averaged:
            raise UserError(f"{self._name}: the network has grown on its averaged weights; leave the `averaged` block")
        parameters = dict(self.model.named_parameters())
        kept = {}
        for key, tensors in self._kept.items():
            copies = dict(zip(self._parameters, tensors, strict=True))
            kept[key] = [grown(copies.get(name), parameter) for name, parameter in parameters.items()]
        self._parameters, self._kept = parameters, kept

    @abstractmethod
    def _after_step(self) -> None:
        """Sample, or not, at step number `self._step` (the first is 1)."""

    def _write_average(self, weights: list[Tensor]) -> None:
        """Put the average into `weights`; there is a sample."""
        torch._foreach_copy_(weights, self._kept["mean"])

    def _keep(self, key: str) -> None:
        """Copy the weights as they are now to where that key says."""
        if key in self._kept:
            torch._foreach_copy_(self._kept[key], self._weights)
        else:
            self._check_precision()
            self._kept[key] = [weight.detach().clone() for weight in self._weights]

    def _put_average_in(self) -> None:
        with torch.no_grad():
            self._write_average(self._weights)
        if self.batches is not None:
            recalibrate(self.model, self.batches)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[nn.Module]:
        self._check(self.model)
        if self._samples == 0 or self._is_averaged:
            yield self.model
            return
        with tensors_put_back(self.model):
            self._is_averaged = True
            try:
                self._put_average_in()
                yield self.model
            finally:
                self._is_averaged = False

    @property
    def _weights(self) -> list[Tensor]:
        return list(self._parameters.values())  # what is done with them is done under no_grad

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _check(self, model: nn.Module) -> None:
        now = list(model.parameters())
        same = len(now) == len(self._parameters) and all(map(_is, now, self._parameters.values()))
        if not same or any(_form(kept) != _form(now) for kept in itertools.islice(self._kept.values(), 1)):
            raise UserError(
                f"{self._name}: the network's parameters are not those that it was made for (layers were replaced, it "
                "was moved or converted, or it is another network); change and move the network first, then make the "
                f"{self._name}"
            )

    def _check_precision(self) -> None:
        for name, parameter in self._parameters.items():
            if not (parameter.is_complex() or (parameter.is_floating_point() and parameter.element_size() >= 4)):
                raise UserError(
                    f"{self._name}: '{name}' is {str(parameter.dtype).removeprefix('torch.')}, in which a mean of many "
                    "samples is lost to rounding; keep the weights in float32 and train under torch.autocast"
                )


def recalibrate(model: nn.Module, batches: Iterable[Any]) -> None:
    """Make the statistics of all BatchNorm layers anew, as means over the batches; `torch.optim.swa_utils.update_bn`.

    >>> recalibrate(model, [images, more_images])

    A batch is a tensor of inputs, or a tuple that begins with one. Modes and momenta are left as they are, and the
    global random numbers too (dropout draws some). No batch at all is a `UserError`.
    """
    modes = {module: module.training for module in model.modules()}
    momenta = {module: module.momentum for module in modes if isinstance(module, _BatchNorm)}
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            update_bn(_not_none(batches), model, device=device)
    finally:
        for module, training in modes.items():
            module.training = training  # update_bn would switch frozen layers to the mode of the whole
        for layer, momentum in momenta.items():
            layer.momentum = momentum


@contextlib.contextmanager
def tensors_put_back(model: nn.Module, *, only_after_errors: bool = False) -> Iterator[None]:
    """At the end of the block the parameters and buffers have the values from before it, in the same memory."""
    before = {name: tensor.detach().clone() for name, tensor in _tensors(model)}
    finished = False
    try:
        yield
        finished = True
    finally:
        if not (finished and only_after_errors):
            with torch.no_grad():
                for name, tensor in _tensors(model):
                    tensor.copy_(before[name])


def whole_number(name: str, value: object, *, at_least: int) -> int:
    """`value` as an int; anything but a whole number of that size is a `UserError`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise UserError(f"{name}: should be a whole number of {at_least} or more, got {value!r}")
    return int(value)


def share(name: str, value: object, *, zero: bool, one: bool) -> float:
    """`value` as a float between 0 and 1, these two only where allowed; anything else is a `UserError`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not _between(float(value), zero, one):
        bounds = f"between 0 ({'allowed' if zero else 'excluded'}) and 1 ({'allowed' if one else 'excluded'})"
        raise UserError(f"{name}: should be a number {bounds}, got {value!r}")
    return float(value)


def _between(value: float, zero: bool, one: bool) -> bool:
    return 0 < value < 1 or (zero and value == 0) or (one and value == 1)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(model.named_parameters(), model.named_buffers())


def _form(tensors: Iterable[Tensor]) -> list[Any]:
    return [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]


def _is(one: object, other: object) -> bool:
    return one is other


def _not_none(batches: Iterable[Any]) -> Iterator[Any]:
    batch = None
    for batch in batches:
        yield batch
    if batch is None:
        raise UserError("batches: there is none to make BatchNorm's statistics from; give a list or a DataLoader")
