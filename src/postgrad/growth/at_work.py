"""Growth in the middle of a training: a companion that grows the network when so many epochs are over."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.growth.operations import Grown, grow
from postgrad.growth.words import Operation, parse_stages
from postgrad.training.recipe import Recipe


class GrowthAtWork:
    """A training's companion that grows its network, with the optimizer's state carried over.

    >>> growth = GrowthAtWork(model, {3: ["widen:layer=c0,to=96"]}, recipe=recipe, n=len(images), example=inputs)
    >>> train(model, recipe=recipe, n=len(images), companions=[growth], …)

    Args:
        stages: how many epochs are over (1 or more) -> what grows then, in the words of `parse_operation`.
        recipe: of the training, by epochs or steps.
        n: the number of images in an epoch.
        example: inputs (n, C, H, W) as the network sees them, always the same, so that a training that goes on grows as
            it would have done.
        seed: of what the operators draw.
        told: is called after each operator that was carried out, with the number of steps taken and what was done.

    The training notes in its checkpoints what was done to the network, and does it again where it goes on. Raises
    `UserError` for words that cannot be read; for a stage at or after the end of the training; for recipes with a time
    budget, which becomes a number of steps by timing the network before it has grown; for those that may keep earlier
    weights, which do not fit the grown network; for a training over several processes; and whatever the operators
    refuse.
    """

    def __init__(
        self,
        model: nn.Module,
        stages: Mapping[Any, str | Sequence[str]],
        *,
        recipe: Recipe,
        n: int,
        example: Tensor,
        seed: int = 0,
        told: Callable[[int, Grown], None] = lambda step, grown: None,
    ) -> None:
        read = parse_stages(stages)
        _check(recipe, n, last=max(read, default=0))
        self._model = model
        self._words = {str(epoch): [str(each) for each in calls] for epoch, calls in read.items()}
        self._stages = {
            epoch * recipe.steps_per_epoch(n): [each.checked() for each in calls] for epoch, calls in read.items()
        }
        self._example = example
        self._seed = seed
        self._told = told
        self._optimizer: torch.optim.Optimizer | None = None
        self._step = 0

    def rehearse(self) -> None:
        """Grow a copy of the network as it is now, all stages at once, so that what does not fit is said early."""
        model = copy.deepcopy(self._model)
        for calls in self._stages.values():
            self._grow(model, calls, None)

    def begin(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        check_alone()
        self._optimizer = optimizer
        self._step = 0

    def after_step(self) -> None:
        self._step += 1
        if self._step in self._stages:
            for grown in self._grow(self._model, self._stages[self._step], self._optimizer):
                self._told(self._step, grown)

    def finish(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "stages": self._words}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["stages"] != self._words:
            raise UserError(
                f"the checkpoint is of a training with other growth ({state['stages']}, now {self._words}); "
                "choose another directory"
            )
        self._step = state["step"]

    def _grow(
        self, model: nn.Module, calls: Sequence[Operation], optimizer: torch.optim.Optimizer | None
    ) -> list[Grown]:
        like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
        example = self._example.to(like.device, like.dtype)  # those of the training, which may have moved the network
        return grow(model, calls, example=example, optimizer=optimizer, seed=self._seed)


def check_alone() -> None:
    """Refuse to grow a network of which other processes have copies; `UserError`."""
    parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
    if parallel and torch.distributed.get_world_size() > 1:
        raise UserError("growth: a network grows in a training of one process; grow it between two trainings")


def _check(recipe: Recipe, n: int, *, last: int) -> None:
    if recipe.budget is not None:
        raise UserError(
            "growth: with a time budget the number of steps would be that of the network before it has grown; give "
            "epochs or steps"
        )
    if recipe.keep == "best" or recipe.stop_accuracy is not None:
        raise UserError(
            "growth: the best weights may be those of the network before it has grown; leave out stop_accuracy "
            "(--base-accuracy) and keep: best"
        )
    epochs = recipe.fixed_steps(n) / recipe.steps_per_epoch(n)
    if last >= epochs:
        raise UserError(f"growth: after epoch {last} the training is over, as it takes {epochs:g}; grow earlier")
