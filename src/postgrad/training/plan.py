"""How many steps a training takes: as its recipe says, or as many as fit into its time budget."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import TYPE_CHECKING

from postgrad.errors import UserError
from postgrad.training.clock import parse_duration
from postgrad.training.recipe import Recipe
from postgrad.training.state import Training, copy_of_weights

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_WARM_UP = 2
_TIMED = 10
_TIMING_SHARE = 0.2


def planned_steps(
    recipe: Recipe,
    n: int,
    fabric: Fabric,
    training: Training,
    take_step: Callable[[int], object],
    validate: Callable[[], object],
) -> int:
    """The steps of a recipe; for a time budget by taking and undoing the first steps.

    Undoing them makes a training by budget the same, bit for bit, as one whose recipe gives that number of steps.
    """
    if recipe.budget is None:
        return recipe.fixed_steps(n)
    with _undone(training):
        return steps_within(
            parse_duration(recipe.budget),
            clock=lambda: float(fabric.broadcast(training.watch.cpu_seconds)),  # all processes decide by one clock
            take_step=take_step,
            validate=validate,
            interval=recipe.validation_interval(n),
        )


def check_length(recipe: Recipe, n: int, *, total: int, budget: str | None) -> None:
    """Refuse to go on with a training that was planned for another length; `total` and `budget` are the checkpoint's.

    A number of steps may take the place of the budget that it came from.
    """
    if recipe.budget is None and (wanted := recipe.fixed_steps(n)) != total:
        raise UserError(f"the checkpoint is of a training of {total} steps, not {wanted}; choose another directory")
    if recipe.budget is not None and recipe.budget != budget:
        raise UserError(
            f"the checkpoint is of a training with budget {budget}, not {recipe.budget}; choose another directory"
        )


def steps_within(
    seconds: float,
    *,
    clock: Callable[[], float],
    take_step: Callable[[int], object],
    validate: Callable[[], object],
    interval: int,
) -> int:
    """Steps that fit into `seconds`, with a validation every `interval` steps and one at the end; at least 1.

    Ten steps after two for warming up are timed, fewer where they would take a fifth of the budget, and one validation.
    `clock` gives the seconds since the training began, so that this timing is part of the budget.
    """
    marks = [clock()]
    for step in range(_WARM_UP + _TIMED):
        take_step(step)
        marks.append(clock())
        if marks[-1] > _TIMING_SHARE * seconds:
            break
    timed = marks[_WARM_UP:] if len(marks) > _WARM_UP + 1 else marks
    per_step = (timed[-1] - timed[0]) / (len(timed) - 1)
    validate()
    now = clock()
    per_validation = now - marks[-1]
    return max(1, int((seconds - now - per_validation) / max(per_step + per_validation / interval, 1e-9)))


@contextlib.contextmanager
def _undone(training: Training) -> Iterator[None]:
    """Put weights, buffers, optimizer and loss scale back to what they were before the block."""
    weights = copy_of_weights(training.model)
    optimizer = deepcopy(training.optimizer.state_dict())
    precision = deepcopy(training.precision.state_dict())
    yield
    training.model.load_state_dict(weights)
    training.optimizer.load_state_dict(optimizer)
    training.precision.load_state_dict(precision)
