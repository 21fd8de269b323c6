"""Everything that changes while a model trains, and that a checkpoint must hold to go on with the same bits."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.training.clock import Stopwatch
from postgrad.training.log import Row
from postgrad.training.optimizers import LRScheduler, names_in_order, put_in_order
from postgrad.training.recipe import Recipe

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from lightning.fabric.plugins import Precision


@dataclass(frozen=True)
class History:
    """What a training was: its length, its price, its learning curve.

    `cpu_seconds` is process CPU time (time of the device on a GPU), of all processes together and over interruptions.
    `rows` have step, epoch, loss (mean since the last row), lr, what `validate` gave, and seconds (CPU, one process).
    `reached_target` is None without a `stop_accuracy`; False means that the best weights were kept instead.
    """

    steps: int
    epochs: float
    cpu_seconds: float
    wall_seconds: float
    rows: list[Row]
    reached_target: bool | None
    best_step: int | None
    best_metrics: dict[str, float] | None


@dataclass
class Position:
    """How far a training is."""

    total: int = 0
    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    reached_target: bool = False
    rows: list[Row] = field(default_factory=list)
    best_step: int | None = None
    best_metrics: dict[str, float] | None = None


@dataclass
class Training:
    """A model, what trains it, and how far it is."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    watch: Stopwatch
    recipe: Recipe
    n: int
    beside: Sequence[nn.Parameter] = ()
    schedule: LRScheduler | None = None
    position: Position = field(default_factory=Position)
    best_weights: dict[str, Tensor] | None = None

    def start(self, total: int) -> None:
        """Begin at step 0 of `total`."""
        self.position.total = total
        self.schedule = self.recipe.make_schedule(self.optimizer, steps=total, n=self.n)

    def advance(self, loss: float) -> None:
        """Count a step that was taken, and let the schedule set the next learning rate."""
        now = self.position
        now.step += 1
        now.loss_sum += loss
        now.loss_count += 1
        interval = 1 if self.recipe.schedule_interval == "step" else self.recipe.steps_per_epoch(self.n)
        if self.schedule is not None and now.step % interval == 0:
            self.schedule.step()

    def add_row(self, metrics: dict[str, float], lr: float) -> Row:
        """A new point of the learning curve; looks whether it is the best, and whether it reaches the target."""
        now, recipe = self.position, self.recipe
        row = {
            "step": now.step,
            "epoch": now.step / recipe.steps_per_epoch(self.n),
            "loss": now.loss_sum / now.loss_count,
            "lr": lr,
            **metrics,
            "seconds": self.watch.cpu_seconds,
        }
        now.rows.append(row)
        now.loss_sum, now.loss_count = 0.0, 0
        if "accuracy" in metrics:
            self._note_accuracy(metrics)
        return row

    def finish(self, fabric: Fabric) -> History:
        """Load the best weights where they are wanted, and sum up."""
        if self.best_weights is not None and not self.position.reached_target:
            load_weights(self.model, self.best_weights)
        return self.history(fabric)

    def history(self, fabric: Fabric) -> History:
        """What the training was so far."""
        now, recipe = self.position, self.recipe
        cpu_seconds = self.watch.cpu_seconds
        if fabric.world_size > 1:
            of_each = fabric.all_gather(torch.tensor(cpu_seconds, dtype=torch.float64, device=fabric.device))
            cpu_seconds = float(torch.as_tensor(of_each).sum())
        return History(
            steps=now.step,
            epochs=now.step / recipe.steps_per_epoch(self.n),
            cpu_seconds=cpu_seconds,
            wall_seconds=self.watch.wall_seconds,
            rows=list(now.rows),
            reached_target=None if recipe.stop_accuracy is None else now.reached_target,
            best_step=now.best_step,
            best_metrics=now.best_metrics,
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": names_in_order(self.optimizer, self.model, self.beside),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "precision": self.precision.state_dict(),
            "watch": self.watch.state_dict(),
            "position": asdict(self.position),
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.start(state["position"]["total"])  # before the optimizer's state, since a new schedule sets the first rate
        load_weights(self.model, state["model"])
        if "order" in state:  # checkpoints of earlier versions have none
            put_in_order(self.optimizer, self.model, state["order"], self.beside)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.precision.load_state_dict(state["precision"])
        self.watch.load_state_dict(state["watch"])
        self.position = Position(**state["position"])
        self.best_weights = state["best_weights"]

    def _note_accuracy(self, metrics: dict[str, float]) -> None:
        now, recipe = self.position, self.recipe
        if now.best_metrics is None or metrics["accuracy"] > now.best_metrics["accuracy"]:
            now.best_step, now.best_metrics = now.step, metrics
            if recipe.keep == "best" or recipe.stop_accuracy is not None:
                self.best_weights = copy_of_weights(self.model)
        now.reached_target = recipe.stop_accuracy is not None and metrics["accuracy"] >= recipe.stop_accuracy


def copy_of_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model in memory of its own, with the versions of its layers, which some ask for when they load."""
    state = model.state_dict()
    for name, tensor in state.items():
        state[name] = tensor.detach().clone()
    return state


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"the checkpoint is of another network: {textwrap.shorten(str(error), 300)}") from error
