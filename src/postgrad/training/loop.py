"""The training loop: one page, resumable at any step with the same bits."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from postgrad.changes import Change, apply_changes, changes_of
from postgrad.errors import UserError
from postgrad.progress import progress
from postgrad.training.batches import Batches, own_random_numbers
from postgrad.training.checkpoint import load_checkpoint, save_checkpoint
from postgrad.training.clipping import adaptive_clip_grad, clip_adaptively
from postgrad.training.clock import Stopwatch
from postgrad.training.companion import Companion
from postgrad.training.fabric import make_fabric
from postgrad.training.interrupt import deferred_interrupt
from postgrad.training.log import learning_curve
from postgrad.training.plan import check_length, planned_steps
from postgrad.training.recipe import Recipe
from postgrad.training.state import History, Training, load_weights

if TYPE_CHECKING:
    from lightning.fabric import Fabric

SAVE_EVERY_SECONDS = 30.0


class DivergedError(UserError):
    """The loss became infinite, or not a number."""


def train(
    model: nn.Module,
    *,
    n: int,
    make_batch: Callable[[Tensor, torch.Generator], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    recipe: Recipe,
    seed: int,
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    directory: Path | None = None,
    resume: bool = False,
    fabric: Fabric | None = None,
    label: str = "training",
    companions: Sequence[Companion] = (),
    beside: Sequence[nn.Parameter] = (),
    after_look: Callable[[History], bool] | None = None,
) -> History:
    """Train `model` in place.

    >>> history = train(
    ...     model,
    ...     n=len(images),
    ...     make_batch=lambda indices, generator: (augmented(images[indices], generator), labels[indices]),
    ...     loss=lambda network, batch: F.cross_entropy(network(batch[0]), batch[1]),
    ...     recipe=Recipe(epochs=10),
    ...     seed=0,
    ... )

    `make_batch` gets the indices (≤ batch_size,) of a step, in [0, n), and draws what is random from the generator (of
    the processor); `loss` is a mean over the batch. `validate` gets the model in evaluation mode and returns figures,
    "accuracy" among them where the recipe stops at an accuracy or keeps the best. Its time counts as training time.

    With a `directory` the learning curve and a checkpoint (every half minute, at the end, and on Ctrl-C) are kept
    there; `resume` goes on from that checkpoint, to the same bits as without the interruption, and returns at once if
    the training was over. `fabric` defaults to one process on the device that the model is on. `companions` are told
    of each step and kept in checkpoints. `beside` are parameters of the loss, which the optimizer trains beside the
    model's; a companion keeps them. `after_look` is called after each validation, with the history up to it and
    the model as it is then; where it says True (in every process) the training rests there, and `resume` goes on. The
    model is left in evaluation mode.

    A loss that is not finite (`DivergedError`), settings that are not those of the checkpoint, and a full disk are
    `UserError`s.
    """
    _check(n, seed, recipe, validate, fabric)
    settings = {"n": int(n), "seed": int(seed), **recipe.model_dump(exclude={"epochs", "steps", "budget"})}
    saved = load_checkpoint(directory, settings) if resume and directory is not None else None
    untouched = _done_again(model, saved.get("changes", []) if saved is not None else [])
    if saved is not None:
        check_length(recipe, n, total=saved["total"], budget=saved["budget"])
        if saved["history"] is not None:
            load_weights(model.eval(), saved["model"])
            return History(**saved["history"])
    budget = recipe.budget if saved is None else saved["budget"]
    if beside and fabric is not None and fabric.world_size > 1:
        raise UserError("training: a loss that has parameters of its own is trained in one process")
    if recipe.adaptive_clip is not None:
        adaptive_clip_grad()  # what is missing is said before anything is done

    fabric = fabric or make_fabric(_device_of(model), precision=recipe.precision)
    batches = Batches(
        n, recipe.batch_size, seed, device=fabric.device, rank=fabric.global_rank, world=fabric.world_size
    )
    optimizer = recipe.make_optimizer([*model.parameters(), *beside])
    network, stepper = fabric.setup(model.train(), optimizer)
    every = recipe.validation_interval(n)
    training = Training(model, optimizer, fabric.strategy.precision, Stopwatch(fabric.device), recipe, n, beside)

    def draw(step: int) -> tuple[Any, float]:
        indices, generator, weight = batches(step)
        return _laid_out(fabric.to_device(make_batch(indices, generator)), fabric.device), weight

    def update(batch: Any, weight: float) -> Tensor:
        value = loss(network, batch)
        if weight != 1:
            value = value * weight
        optimizer.zero_grad()
        fabric.backward(value)
        if recipe.adaptive_clip is not None:
            clip_adaptively(model, recipe.adaptive_clip)
        stepper.step()
        return value.detach()

    def measure() -> dict[str, float]:
        network.eval()
        figures = dict(validate(model)) if validate is not None and fabric.is_global_zero else {}
        network.train()
        return {name: float(value) for name, value in fabric.broadcast(figures).items()}

    def save(history: History | None = None) -> None:
        if directory is not None and fabric.is_global_zero:
            state = training.state_dict() if history is None else {"model": model.state_dict()}
            plan = {"total": training.position.total, "budget": budget}
            plan["changes"] = [each.model_dump(mode="json") for each in changes_of(model)[untouched:]]
            plan["companions"] = [companion.state_dict() for companion in companions if history is None]
            save_checkpoint(directory, settings, {**plan, **state, "history": history and asdict(history)})

    main = fabric.is_global_zero
    with (
        learning_curve(directory if main else None, saved["position"]["rows"] if saved else []) as write_row,
        deferred_interrupt(wanted=directory is not None) as interrupted,
        own_random_numbers(fabric.device),
        training.watch,
    ):
        if saved is not None:
            training.load_state_dict(saved)
        else:
            training.start(planned_steps(recipe, n, fabric, training, lambda step: update(*draw(step)), measure))
        for companion in companions:
            companion.begin(optimizer, training.position.total)
        if saved is not None:
            for companion, state in zip(companions, saved.get("companions", []), strict=True):
                companion.load_state_dict(state)
        else:
            save()
        now = training.position
        rests = False
        save_due = time.monotonic() + SAVE_EVERY_SECONDS
        with progress(label, now.total, start=now.step) if main else contextlib.nullcontext(_say_nothing) as advance:
            while now.step < now.total and not now.reached_target and not rests:
                lr = float(optimizer.param_groups[0]["lr"])
                try:
                    batch = draw(now.step)
                except KeyboardInterrupt:  # no weight has changed since the last step was over
                    save()
                    raise
                value, stop = _agreed(fabric, float(update(*batch)), interrupted())
                if not math.isfinite(value):
                    raise _diverged(label, value, now.step + 1, lr)
                training.advance(value)
                for companion in companions:
                    companion.after_step()
                if now.step % every == 0 or now.step == now.total:
                    write_row(training.add_row(measure(), lr))
                    rests = after_look is not None and after_look(training.history(fabric))
                advance(note=f"loss {value:.3g}")
                if stop or time.monotonic() > save_due:
                    save()
                    save_due = time.monotonic() + SAVE_EVERY_SECONDS
                if stop:
                    raise KeyboardInterrupt
        over = now.step == now.total or now.reached_target
        for companion in companions if over else ():
            companion.finish()
        history = training.finish(fabric) if over else training.history(fabric)
        save(history if over else None)
    fabric.barrier()
    model.eval()
    return history


def _done_again(model: nn.Module, stored: Sequence[Mapping[str, Any]]) -> int:
    """Change the network as it was changed on the way, where it is not yet; how many changes it came with."""
    changes = tuple(Change(**each) for each in stored)
    there = changes_of(model)
    if there[len(there) - len(changes) :] != changes:  # a training that rests has them already
        apply_changes(model, changes)
    return len(changes_of(model)) - len(changes)


def _agreed(fabric: Fabric, loss: float, interrupted: bool) -> tuple[float, bool]:
    """The mean loss over all processes, and whether any of them was interrupted."""
    if fabric.world_size == 1:
        return loss, interrupted
    both = fabric.all_reduce(torch.tensor([loss, float(interrupted)], device=fabric.device), reduce_op="mean")
    return float(both[0]), bool(both[1] > 0)


def _diverged(label: str, value: float, step: int, lr: float) -> DivergedError:
    return DivergedError(
        f"{label}: the loss became {value} at step {step} with learning rate {lr:g}; "
        "try a lower learning rate, and check that the inputs are finite and scaled"
    )


def _check(n: int, seed: int, recipe: Recipe, validate: object, fabric: Fabric | None) -> None:
    if n < 1:
        raise UserError("training: there are no images to train on")
    if seed < 0:
        raise UserError(f"training: the seed must be 0 or more, got {seed}")
    if validate is None and (recipe.stop_accuracy is not None or recipe.keep == "best"):
        raise UserError("training: stop_accuracy and keep='best' need validation data; give some, or leave them out")
    given = recipe.precision if fabric is None else fabric.strategy.precision.precision
    if given != recipe.precision:
        raise UserError(f"training: the recipe's precision is {recipe.precision}, that of its fabric is {given}")


def _laid_out(batch: Any, device: torch.device) -> Any:
    """Images with their channels last in memory, on a processor: its convolutions are faster so."""
    if device.type != "cpu":
        return batch
    return apply_to_collection(batch, Tensor, lambda part: _channels_last(part) if part.dim() == 4 else part)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _say_nothing(count: int = 1, *, note: str = "") -> None:
    pass
