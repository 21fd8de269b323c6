"""An energy model's training is watched; where it runs away it goes back to a good state and goes on more carefully."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from postgrad.training.loop import DivergedError
from postgrad.training.state import copy_of_weights, load_weights

LIMITS = {"energy_gap": 100.0, "sample_reach": 50.0, "gradient_norm": 1e4}
"""What a figure may be at most, in absolute value. Trainings that go well stay below a fifth of it."""

CALM = 0.25
"""A state is good if no figure has been beyond this share of its limit since the last one was kept."""

KEPT_EVERY = 50
RETRIES = 3
FACTOR = 0.5
"""Learning rate and chains' steps are multiplied by it at each return; a power of two, so that no bit changes."""


class Stability:
    """Watches figures of each step, keeps a good state of network and optimizer, and goes back to it.

    >>> stability = Stability(model, told=print)
    >>> stability.begin(optimizer)
    >>> if (reason := stability.trouble({"energy_gap": 300.0})):
    ...     stability.go_back(reason)

    The policy: weights and optimizer are those of the last good state, the learning rate is halved and so is
    `step_factor`, for the steps of the chains. Batches and random numbers are not drawn again: those that follow are
    others. After three returns `DivergedError`, the network with its best weights by validation accuracy, or else in
    its last good state.
    """

    def __init__(self, model: nn.Module, *, told: Callable[..., None]) -> None:
        self._model, self._told = model, told
        self._optimizer: torch.optim.Optimizer | None = None
        self._good: dict[str, Any] | None = None
        self._best: dict[str, Any] | None = None
        self._calm = True
        self._depth = 0
        self.step = 0
        self.returns = 0

    @property
    def step_factor(self) -> float:
        """What the chains' steps, and the learning rate, are multiplied by."""
        return FACTOR**self.returns

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the state as it is for a good one, and the optimizer for the one to slow down."""
        self._optimizer, self._best = optimizer, None
        self._calm, self.step, self.returns = True, 0, 0
        # Around each step, since schedules read the rate between steps, and some compute it from the first one.
        optimizer.register_step_pre_hook(lambda *_: self._enter())
        optimizer.register_step_post_hook(lambda *_: self._leave())
        self._keep()

    def trouble(self, figures: Mapping[str, float]) -> str | None:
        """What is wrong with these figures, in words; None if nothing is."""
        for name, value in figures.items():
            limit = LIMITS.get(name, math.inf)
            if not math.isfinite(value) or abs(value) > limit:
                self._calm = False
                return f"{name} became {value:.4g}" + (f" (limit {limit:g})" if math.isfinite(value) else "")
            self._calm = self._calm and abs(value) <= CALM * limit
        return None

    def go_back(self, reason: str) -> None:
        """Go back to the last good state, more carefully; `DivergedError` where that was done too often."""
        if self._good is None or self._optimizer is None:
            raise DivergedError(
                f"the energy model diverged: {reason}; lower the learning rate, or call begin(optimizer) before the "
                "first step, so that it can go back to a good state"
            )
        load_weights(self._model, self._good["model"])
        # Rates stay where their schedule has brought them by now.
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": copy.deepcopy(self._good["optimizer"]), "param_groups": groups})
        if self.returns == RETRIES:
            if self._best is not None:
                load_weights(self._model, self._best["model"])
            raise DivergedError(
                f"the energy model diverged at step {self.step + 1}, after {RETRIES} returns to a good state: "
                f"{reason}; lower the learning rate or step_size, or raise energy_l2"
            )
        self.returns += 1
        self._calm = True
        self._told(
            step=self.step + 1,
            reason=reason,
            back_to=self._good["step"],
            retry=self.returns,
            of=RETRIES,
            factor=self.step_factor,
        )

    def after_step(self) -> None:
        """Count a step, and keep the state from time to time if it is a good one."""
        self.step += 1
        if self.step % KEPT_EVERY == 0:
            if self._calm:
                self._keep()
            self._calm = True

    def looked(self, accuracy: float) -> None:
        """Remember the weights as they are if this validation accuracy is the best so far."""
        if self._best is None or accuracy > self._best["accuracy"]:
            self._best = {"model": copy_of_weights(self._model), "accuracy": accuracy}

    def state_dict(self) -> dict[str, Any]:
        return {
            "good": self._good,
            "best": self._best,
            "calm": self._calm,
            "step": self.step,
            "returns": self.returns,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._good, self._best, self._calm = state["good"], state["best"], state["calm"]
        self.step, self.returns = state["step"], state["returns"]

    def _keep(self) -> None:
        if self._optimizer is not None:
            optimizer = copy.deepcopy(self._optimizer.state_dict()["state"])
            self._good = {"model": copy_of_weights(self._model), "optimizer": optimizer, "step": self.step}

    def _enter(self) -> None:
        self._depth += 1  # an optimizer whose step calls its parent's has its hooks called twice
        if self._depth == 1:
            self._scale(self.step_factor)

    def _leave(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._scale(1 / self.step_factor)

    def _scale(self, factor: float) -> None:
        assert self._optimizer is not None
        for group in self._optimizer.param_groups:
            group["lr"] = group["lr"] * factor


def gradient_norm(model: nn.Module) -> float:
    """The norm of the gradient of all weights together, as the last backward pass left it."""
    norms = [p.grad.norm() for p in model.parameters() if isinstance(p.grad, Tensor)]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
