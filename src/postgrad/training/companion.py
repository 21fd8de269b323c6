"""What may go along with a training: a loss that changes on the way, a running mean of the weights."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Companion(Protocol):
    """Told of a training's beginning, of each step and of its end, and kept in its checkpoints.

    What it keeps must be what `torch.save` takes without pickling code: tensors, numbers, words, and lists and
    dictionaries of them.
    """

    def begin(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """The training is about to take its first step of `steps`, or to go on with `load_state_dict`."""

    def after_step(self) -> None:
        """A step has changed the weights."""

    def finish(self) -> None:
        """The last step is over; what is done to the weights now stays."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
