"""A small classification problem that every test of the loop trains on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.training import History, Recipe, train

Validate = Callable[[nn.Module], dict[str, float]]


class SimulatedCrashError(Exception):
    """Stands for a crash."""


@dataclass
class Problem:
    """70 points in three classes; noise on the inputs, dropout and batch norm, so that everything random takes part."""

    x: Tensor
    y: Tensor

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

    def make_batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.x[indices] + 0.1 * torch.randn(len(indices), 6, generator=generator), self.y[indices]

    @staticmethod
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def validate(self, model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            logits = model(self.x)
        accuracy = (logits.argmax(dim=1) == self.y).double().mean()
        return {"accuracy": float(accuracy), "nll": float(F.cross_entropy(logits, self.y))}

    def train(self, recipe: Recipe, *, model: nn.Module | None = None, **options: Any) -> tuple[nn.Module, History]:
        model = model or self.model()
        settings = {"make_batch": self.make_batch, "loss": self.loss, "validate": self.validate, "seed": 5, **options}
        return model, train(model, n=len(self.x), recipe=recipe, **settings)

    def train_interrupted(self, recipe: Recipe, *, after: int, directory: Path, **options: Any) -> None:
        """Train into `directory` and crash when so many steps are done, those that are only timed apart."""
        done = 0

        def crash(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            nonlocal done
            done += (directory / "checkpoint.pt").exists()  # it is written before the first step
            if done > after:
                raise SimulatedCrashError
            return self.make_batch(indices, generator)

        with pytest.raises(SimulatedCrashError):
            self.train(recipe, directory=directory, make_batch=crash, **options)


@pytest.fixture
def problem() -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 6, generator=generator)
    return Problem(x, (x @ torch.randn(6, 3, generator=generator)).argmax(dim=1))


@pytest.fixture
def save_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("postgrad.training.loop.SAVE_EVERY_SECONDS", -1.0)


@pytest.fixture
def same_bits() -> Callable[[nn.Module, nn.Module], bool]:
    def same(a: nn.Module, b: nn.Module) -> bool:
        ours, theirs = a.state_dict(), b.state_dict()
        return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)

    return same
