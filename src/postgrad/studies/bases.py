"""Bases that rows share: one training of a network, which rests where a row's base ends and goes on for the next."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from postgrad import progress
from postgrad.artifacts import save_tensors
from postgrad.errors import UserError
from postgrad.files import locked, write_atomic
from postgrad.memory import peak_memory
from postgrad.models.weights import load_weights
from postgrad.training import History, Recipe
from postgrad.training.state import copy_of_weights

WEIGHTS, RECORD = "weights.safetensors", "stop.json"
WAIT_SECONDS = 2.0

Fit = Callable[[Recipe, Path, Callable[[History], bool]], History]
"""Trains the network by a recipe, in a directory where it goes on, calling a function after each look."""


@dataclass(frozen=True)
class Stop:
    """Where a base ended: what a training alone would say of itself, and its peak memory in megabytes."""

    history: History
    peak_memory_mb: float

    def write(self, folder: Path, model: nn.Module) -> None:
        """Keep it and the weights; the record comes last, so that what has one is whole."""
        save_tensors(copy_of_weights(model), folder / WEIGHTS)
        write_atomic(folder / RECORD, json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Stop | None:
        """The stop that is kept in a folder, None where there is none."""
        file = folder / RECORD
        if not file.exists():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        return cls(History(**content["history"]), content["peak_memory_mb"])


@dataclass(frozen=True)
class SharedTraining:
    """One training in `folder` for the bases of many rows.

    >>> shared = SharedTraining(folder_of(bases, settings), model, fit, recipe, n=22_500, targets=(0.49, 0.55))
    >>> shared.reach(0.49).history.steps
    350

    `fit` trains `model` on `n` images by a recipe; `recipe` is that of all rows, without a stop. `targets` are the
    accuracies at which rows stop: the training leaves in `folder` the weights, history and price of the first look that
    reaches each of them, and of its last step.
    """

    folder: Path
    model: nn.Module
    fit: Fit
    recipe: Recipe
    n: int
    targets: Sequence[float]

    def reach(self, accuracy: float | None) -> Stop | None:
        """Bring the model to where a training alone ends that stops at `accuracy`, or at its last step for None.

        What is kept is only loaded; else the training goes on from its checkpoint. An accuracy that is never reached
        ends with the best weights, as alone. While another process trains here this one waits.

        None means that the training went past this accuracy before it was among the targets: its weights are lost.
        """
        with contextlib.ExitStack() as lock:
            self._wait_for_turn(accuracy, lock)
            stop = self._kept(accuracy)
            if stop is None:
                ended = self._go_on(accuracy)
                stop = self._kept(accuracy)
        if stop is None:
            passed = accuracy is not None and _best(ended.history) >= accuracy
            return None if passed else replace(ended, history=replace(ended.history, reached_target=False))
        load_weights(self.model, self._place(accuracy) / WEIGHTS)
        self.model.eval()
        return stop

    def _wait_for_turn(self, accuracy: float | None, lock: contextlib.ExitStack) -> None:
        """Until the stop is kept, or nobody else trains here; then `lock` holds the folder."""
        said = progress.quiet
        while self._kept(accuracy) is None and not _taken(lock, self.folder):
            if not said:
                print(f"another process trains the same base in {self.folder}; waiting for it", file=sys.stderr)
            said = True
            time.sleep(WAIT_SECONDS)

    def _go_on(self, accuracy: float | None) -> Stop:
        """Train until the accuracy is reached, or to the end, and keep every stop on the way."""
        targets = {*self.targets, *([] if accuracy is None else [accuracy])}
        total = self.recipe.fixed_steps(self.n)
        earlier = [Stop.read(file.parent) for file in self.folder.glob(f"*/{RECORD}")]
        peak_before = max((stop.peak_memory_mb for stop in earlier if stop is not None), default=0.0)
        with peak_memory() as peak:

            def keep(history: History, target: float | None) -> None:
                Stop(history, max(peak_before, peak.megabytes)).write(self._place(target), self.model)

            def after_look(history: History) -> bool:
                now = history.rows[-1]["accuracy"]
                best_before = max((row["accuracy"] for row in history.rows[:-1]), default=-math.inf)
                for target in targets:
                    if best_before < target <= now:
                        keep(replace(history, reached_target=True), target)
                if history.steps == total:
                    keep(history, None)
                return accuracy is not None and max(now, best_before) >= accuracy

            history = self.fit(self.recipe, self.folder / "training", after_look)
        return Stop(history, max(peak_before, peak.megabytes))

    def _kept(self, accuracy: float | None) -> Stop | None:
        return Stop.read(self._place(accuracy))

    def _place(self, accuracy: float | None) -> Path:
        return self.folder / ("last-step" if accuracy is None else f"accuracy-{accuracy!r}")


def shared_recipe(recipe: Recipe, n: int) -> Recipe:
    """A recipe without its stop, which looks as often on `n` images as with it, and keeps the best weights as well."""
    looks = {"stop_accuracy": None, "keep": "best", "validate_every": recipe.validation_interval(n)}
    return recipe.model_copy(update=looks)


def folder_of(bases: Path, settings: Mapping[str, Any]) -> Path:
    """The folder of the training with these settings, named by their hash; they are written there to be read."""
    text = json.dumps(settings, indent=1, sort_keys=True)
    folder = bases / hashlib.sha256(text.encode()).hexdigest()[:16]
    write_atomic(folder / "settings.json", text)
    return folder


def _best(history: History) -> float:
    return max(row["accuracy"] for row in history.rows)


def _taken(lock: contextlib.ExitStack, folder: Path) -> bool:
    """Take the lock of a folder for as long as `lock` lasts; False where another process has it."""
    try:
        lock.enter_context(locked(folder))
    except UserError as error:
        if not isinstance(error.__context__, BlockingIOError):  # the folder cannot be written at all
            raise
        return False
    return True
