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
_SHARE = 0.05
_MOST = 0.2


def planned_steps(
    recipe: Recipe,
    n: int,
    fabric: Fabric,
    training: Training,
    take_step: Callable[[int], object],
    validate: Callable[[], object],
) -> int:
    """The steps of a recipe; for a time budget by taking and undoing the first steps, whose time does not count.

    Undoing them makes a training by budget the same, bit for bit, as one whose recipe gives that number of steps, and
    gives a control all the time that its method had.
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

    After two steps and a validation for warming up, steps are timed for a twentieth of these seconds, ten of them at
    least where a fifth is not exceeded, and one validation. `clock` gives the seconds since some moment.
    """
    began = clock()
    step = 0
    while step < _WARM_UP and clock() - began <= _MOST * seconds:
        take_step(step)
        step += 1
    validate()
    marks = [clock()]
    while len(marks) <= _TIMED or marks[-1] - marks[0] < _SHARE * seconds:
        take_step(step)
        step += 1
        marks.append(clock())
        if marks[-1] - began > _MOST * seconds:
            break
    per_step = (marks[-1] - marks[0]) / (len(marks) - 1)
    validate()
    per_validation = clock() - marks[-1]
    return max(1, int((seconds - per_validation) / max(per_step + per_validation / interval, 1e-9)))


@contextlib.contextmanager
def _undone(training: Training) -> Iterator[None]:
    """Put weights, buffers, optimizer, loss scale and the watch back to what they were before the block."""
    weights = copy_of_weights(training.model)
    optimizer = deepcopy(training.optimizer.state_dict())
    precision = deepcopy(training.precision.state_dict())
    watch = training.watch.state_dict()
    yield
    training.watch.load_state_dict(watch)
    training.model.load_state_dict(weights)
    training.optimizer.load_state_dict(optimizer)
    training.precision.load_state_dict(precision)
