"""How to train: length, batches, optimizer, schedule, when to stop and which weights to keep."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator
from torch import nn

from postgrad.errors import UserError
from postgrad.training.clock import parse_duration
from postgrad.training.optimizers import (
    LRScheduler,
    check_options,
    make_optimizer,
    make_schedule,
    optimizer_class,
    schedule_class,
)
from postgrad.validation import mistakes, read_yaml, validated

VALIDATE_EVERY_WITH_TARGET = 50


Precision = Literal["32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"]


class Recipe(BaseModel):
    """Every setting of a training, checked.

    >>> Recipe(epochs=10, lr=0.05, optimizer_options={"momentum": 0.9}, schedule="cosine")
    >>> Recipe(budget="10m")                             # as many steps as fit into 10 minutes of CPU time
    >>> Recipe(epochs=100, stop_accuracy=0.72)           # stops at 72 % validation accuracy
    >>> Recipe.from_yaml("recipes/seed-cnn.yaml")

    One of `epochs` (may be a fraction), `steps` and `budget` says how long. `budget` is training time of the process
    (of the device on a GPU), as in 90s, 10m, 1.5h: the first steps are timed, and the number of steps that fit is kept;
    the timing takes a twentieth more.

    `optimizer` is any of `torch.optim` that needs no closure, `schedule` is "constant", "cosine" or any of
    `torch.optim.lr_scheduler` that needs no code; `optimizer_options` and `schedule_options` are theirs, under torch's
    names. The schedule advances with each `schedule_interval`, "step" or "epoch".

    `label_smoothing` is for the loss function that the caller makes. `adaptive_clip` bounds the gradient of each unit
    by that fraction of its weights' norm (Brock et al. 2021; needs timm). `stop_accuracy` (0 to 1) ends the training at
    that validation accuracy. Validation comes every `validate_every` steps: by default each epoch, or every 50 steps
    with `stop_accuracy`. `keep` says which weights stay: the "last", or the "best" by validation accuracy. `precision`
    is Lightning Fabric's, such as "32-true" or "bf16-mixed".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    steps: PositiveInt | None = None
    budget: str | None = None
    batch_size: PositiveInt = 128
    optimizer: str = "sgd"
    optimizer_options: dict[str, Any] = {}
    lr: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    schedule: str = "constant"
    schedule_options: dict[str, Any] = {}
    schedule_interval: Literal["step", "epoch"] = "step"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    adaptive_clip: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    stop_accuracy: float | None = None
    validate_every: PositiveInt | None = None
    keep: Literal["last", "best"] = "last"
    precision: Precision = "32-true"

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise UserError(mistakes(type(self), error)) from error

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a recipe; each mistake in it is named in one `UserError`."""
        return validated(cls, read_yaml(path), source=str(path))

    @model_validator(mode="before")
    @classmethod
    def _plain_numbers(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """numpy's numbers become Python's, since a checkpoint holds nothing else."""
        return {name: _plain(value) for name, value in settings.items()}

    @field_validator("budget")
    @classmethod
    def _duration(cls, text: str | None) -> str | None:
        if text is not None:
            parse_duration(text)
        return text

    @field_validator("stop_accuracy")
    @classmethod
    def _fraction(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"expected a fraction between 0 and 1 (72 % is 0.72), got {value:g}")
        return value

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        optimizer_class(name)
        return name

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, name: str) -> str:
        schedule_class(name)
        return name

    @model_validator(mode="after")
    def _together(self) -> Self:
        lengths = [name for name in ("epochs", "steps", "budget") if getattr(self, name) is not None]
        if len(lengths) != 1:
            raise ValueError(f"give exactly one of epochs, steps and budget, got {' and '.join(lengths) or 'none'}")
        check_options(f"optimizer {self.optimizer}", optimizer_class(self.optimizer), self.optimizer_options)
        if self.adaptive_clip is not None and self.precision == "16-mixed":
            raise ValueError("adaptive_clip: with precision 16-mixed gradients are scaled; take bf16-mixed or 32-true")
        schedule = schedule_class(self.schedule)
        if schedule is not None:
            check_options(f"schedule {self.schedule}", schedule, self.schedule_options)
        elif self.schedule_options:
            raise ValueError("schedule_options: a constant schedule takes none; name a schedule")
        return self

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return make_optimizer(self.optimizer, parameters, lr=self.lr, options=self.optimizer_options)

    def make_schedule(self, optimizer: torch.optim.Optimizer, *, steps: int, n: int) -> LRScheduler | None:
        """The schedule over `steps` steps on `n` images; None where the learning rate stays constant."""
        length = steps if self.schedule_interval == "step" else math.ceil(steps / self.steps_per_epoch(n))
        return make_schedule(self.schedule, optimizer, length=length, options=self.schedule_options)

    def steps_per_epoch(self, n: int) -> int:
        """Steps in which each of `n` images is seen once; the last may be a smaller batch."""
        return math.ceil(n / self.batch_size)

    def fixed_steps(self, n: int) -> int:
        """Steps in all on `n` images, of a recipe that gives steps or epochs."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None, "a time budget does not say how many steps"
        return max(1, round(self.epochs * self.steps_per_epoch(n)))

    def validation_interval(self, n: int) -> int:
        """Steps from one validation to the next."""
        if self.validate_every is not None:
            return self.validate_every
        return self.steps_per_epoch(n) if self.stop_accuracy is None else VALIDATE_EVERY_WITH_TARGET


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value
