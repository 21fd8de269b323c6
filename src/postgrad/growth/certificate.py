"""Proof that a network which was grown computes what it did: measured on both, with a control that must fail."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.growth._comparison import Comparison, Expected, contract, difference, floor
from postgrad.growth._probes import (
    BATCH,
    SINGLE,
    TRAIN,
    Arguments,
    answer,
    copy_of,
    observe,
    perturb,
    probes,
    quiet,
    watch,
)
from postgrad.growth.journal import check_rebuildable, entry_of, journal_of
from postgrad.growth.moves import Move

_ROUNDING = "rounding"
_FAR_ABOVE = 1e3
"""By how much the negative control must exceed the tolerance."""


@dataclass(frozen=True)
class Certificate:
    """How far a grown network is from the one it was, as measured.

    >>> certificate = widen(model, "conv1", to=96, example=images)
    >>> certificate.max_error, certificate.mode
    (3.1e-15, 'train')

    Every error is the greatest difference over the standard deviation of the tensor as it was. `max_error` is that of
    the outputs in float64 in evaluation mode; `errors` has each check's by name: "float64 eval, batch 1", "float64
    eval, 48×48", "float32 eval, batch 2", "float64 train", "intermediate tensors", "weights", "gradients", and
    "rounding" where weights that were computed had to be rounded to the network's precision, which the other checks in
    float64 leave out. `exact` is False for operators that are approximate by nature. `mode` is "train" where training
    mode, its dropout off, was proved too. `journal` is all the growth of the network, this call last; `seconds` is what
    the certificate itself took.
    """

    max_error: float
    errors: dict[str, float]
    exact: bool
    mode: Literal["eval", "train"]
    journal: tuple[dict[str, JsonValue], ...]
    seconds: float

    def to_json(self) -> str:
        """All of it as a JSON document."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a JSON file, whole or not at all."""
        write_atomic(path, self.to_json() + "\n")


@dataclass(frozen=True)
class Witness:
    """What a network computes, kept while it is changed.

    >>> witness = Witness.of(model, images)
    >>> with transaction(model):
    ...     change(model)
    ...     certificate = witness.certify(model, entry=entry, train=True, changed=["conv.weight"])
    """

    probes: dict[str, Arguments]
    outputs: dict[str, list[Tensor]]
    intermediates: dict[str, list[list[Tensor]]]
    """Module -> for each of its calls, what it gave."""
    gradients: dict[str, Tensor]
    parameters: dict[int, tuple[str, nn.Parameter]]
    """Identity -> the name of a parameter, and the parameter, so that no other one gets that identity."""
    seconds: float

    @classmethod
    def of(cls, model: nn.Module, example: Tensor | Arguments, *, train: bool = True) -> Witness:
        """Run copies of the network on batches of 1, 2 and 3 made from `example`, and on images of two other sizes.

        `example` is what the network takes: a tensor (N, …), N ≥ 1, or a tuple of arguments. Batches of 1 and 3, image
        sizes and training mode are left out where the network does not run on them; training mode also where chance
        other than dropout has a part in it, and with `train=False`. Neither the network (its statistics) nor the random
        state is touched. Raises `UserError` where the network cannot be copied, does not run on a batch of 2 in float64
        on the CPU, or gives NaN there.
        """
        started = time.perf_counter()
        intermediates: dict[str, list[list[Tensor]]] = {}

        def record(name: str, tensors: list[Tensor]) -> None:
            intermediates.setdefault(name, []).append([each.detach().clone() for each in tensors])

        tried = probes(example)
        with quiet():
            double = copy_of(model, torch.float64)
            try:
                first, gradients = observe(double, tried[BATCH], record)
            except Exception as error:  # whatever a forward pass raises
                raise UserError(
                    f"the network does not run on a batch of 2 made from the example, in float64 on the CPU: {error}"
                ) from error
            if not first or any(each.isnan().any() for each in first):
                raise UserError("the network gives NaN, or no tensor, on a batch of 2 made from the example")
            outputs = {BATCH: first}
            for name, arguments in tried.items():
                if name != BATCH and (train or name != TRAIN):
                    network = copy_of(model, torch.float32) if name == SINGLE else double
                    try:
                        given = answer(name, network, arguments)
                    except Exception:  # a size that it does not take, or training mode by chance
                        continue
                    if not any(each.isnan().any() for each in given):
                        outputs[name] = given
        parameters = {id(each): (name, each) for name, each in model.named_parameters()}
        return cls(tried, outputs, intermediates, gradients, parameters, time.perf_counter() - started)

    def certify(
        self,
        model: nn.Module,
        *,
        entry: Mapping[str, Any],
        train: bool,
        exact: bool = True,
        expected: Expected | None = None,
        moves: Sequence[Move] = (),
        changed: Collection[str],
        unrounded: Mapping[str, Tensor] | None = None,
        tolerance64: float = 1e-9,
        tolerance32: float = 1e-4,
    ) -> Certificate:
        """Compare the network, now changed, with what it computed before; `UserError` where it differs.

        Parameters
        ----------
        model : the same network, changed; copies of it are run.
        entry : of the journal; its operator and place begin the message of a refusal.
        train : whether the same is claimed of training mode.
        exact : False states the errors of the outputs and refuses none.
        expected : gives, for a module's name and a tensor that this gave before, the tensor that it must give now; None
            is not to be compared. By default all are as they were.
        moves : the tensors that were resized. Of replicas that share a weight, or its gradient, the shares sum to what
            the moves say of the old one; others have all of it. A parameter that is the same object keeps its gradient;
            that of any other is not compared.
        changed : names of the tensors that the operator wrote. Changed by 1 % in a copy (all parameters, where there
            are none), they must change the output far beyond the tolerance: a check that cannot fail proves nothing.
        unrounded : by name, in float64, the tensors written that the network's precision cannot hold as they were
            computed (a third of a float32 weight is none). The checks in float64 take these; that the network holds
            them rounded, and nothing else, is checked too, and what this makes of the output is stated as "rounding"
            and held to `tolerance32`.
        """
        started = time.perf_counter()
        call = entry_of(entry)
        check_rebuildable(model, call)
        errors: dict[str, float] = {}
        limits = {SINGLE: tolerance32, _ROUNDING: tolerance32}

        def judge(name: str, error: float, where: str = "") -> None:
            errors[name] = error
            limit = limits.get(name, tolerance64) if exact else sys.float_info.max
            if error > limit:
                raise UserError(
                    f"{call.what}: the network would no longer compute the same ({name}{where}: {error:.2g} of its "
                    f"spread, at most {limit:.0e}); it was left as it was"
                )

        with quiet():
            double = copy_of(model, torch.float64)
            if unrounded:
                with _running(call.what, _ROUNDING):
                    rounded = answer(BATCH, double, self.probes[BATCH])
                judge(_ROUNDING, difference(self.outputs[BATCH], rounded))
                _unround(call.what, model, double, unrounded)
            seen = Comparison(self.intermediates, expected)
            with _running(call.what, BATCH):
                outputs, gradients = observe(double, self.probes[BATCH], seen)
            judge(BATCH, difference(self.outputs[BATCH], outputs))
            if exact:
                judge("weights", *_weights(model, double, moves))
                judge("intermediate tensors", *seen.worst())
                judge("gradients", *self._gradients(model, gradients, moves))
            for name, before in self.outputs.items():
                if name != BATCH and (train or name != TRAIN):
                    network = copy_of(model, torch.float32) if name == SINGLE else double
                    with _running(call.what, name):
                        now = answer(name, network, self.probes[name])
                    judge(name, difference(before, now))
            if exact:
                self._control(call.what, double, changed, expected, _FAR_ABOVE * tolerance64)
        return Certificate(
            max_error=max(error for name, error in errors.items() if name.startswith("float64 eval")),
            errors=errors,
            exact=exact,
            mode="train" if exact and TRAIN in errors else "eval",
            journal=(*journal_of(model), call.to_json()),
            seconds=self.seconds + time.perf_counter() - started,
        )

    def _gradients(self, model: nn.Module, now: Mapping[str, Tensor], moves: Sequence[Move]) -> tuple[float, str]:
        """How far the gradients are from what they must be, and where."""
        move_to = {id(move.new): move for move in moves}
        least = floor(self.gradients.values())
        worst = (0.0, "")
        for name, parameter in model.named_parameters():
            move = move_to.get(id(parameter))
            old_name, _ = self.parameters.get(id(move.old if move else parameter), ("", None))
            if old_name in self.gradients:
                shares = [(each.dim, each.index, each.gradient) for each in move.along] if move else []
                old, new = contract(self.gradients[old_name], now[name], shares)
                worst = max(worst, (difference([old], [new], least), f", {name}"))
        return worst

    def _control(
        self, what: str, double: nn.Module, changed: Collection[str], expected: Expected | None, least: float
    ) -> None:
        """Some check must see the changed tensors; a layer's may, where the output hardly depends on them."""
        tensors = _tensors(double)
        written = [tensors[name] for name in changed] or list(double.parameters())
        perturb(each for each in written if each.is_floating_point())
        seen = Comparison(self.intermediates, expected)
        with torch.no_grad():
            outputs = watch(double, self.probes[BATCH], seen)
        error = max(difference(self.outputs[BATCH], outputs), seen.worst()[0])
        if error < least:
            raise UserError(
                f"{what}: a certificate would prove nothing on this example, since even 1 % of noise on the changed "
                f"weights changes no layer's output by more than {error:.2g} of its spread; give one on which the "
                "network is active"
            )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {name: tensor for each in named for name, tensor in each}


def _unround(what: str, model: nn.Module, double: nn.Module, unrounded: Mapping[str, Tensor]) -> None:
    """Give the copy the tensors as they were computed, where the network holds them rounded."""
    held, copied = _tensors(model), _tensors(double)
    with torch.no_grad():
        for name, value in unrounded.items():
            if not torch.equal(value.to(held[name]), held[name]):
                raise UserError(f"{what}: {name} is not what was computed, rounded; the network was left as it was")
            copied[name].copy_(value)


@contextlib.contextmanager
def _running(what: str, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a forward pass raises
        raise UserError(f"{what}: the network would no longer run ({name}: {error}); it was left as it was") from error


def _weights(model: nn.Module, double: nn.Module, moves: Sequence[Move]) -> tuple[float, str]:
    """How far the resized tensors are from what the moves say; a unit that the example leaves silent shows here."""
    names, copied = {id(tensor): name for name, tensor in _tensors(model).items()}, _tensors(double)
    worst = (0.0, "")
    for move in moves:
        name = names[id(move.new)]
        shares = [(each.dim, each.index, each.value) for each in move.along]
        old, new = contract(move.old.detach().double(), copied[name].detach(), shares)
        worst = max(worst, (difference([old], [new]), f", {name}"))
    return worst
