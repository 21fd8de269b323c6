"""Runs so small that all their arms together take seconds: some digits, a little network, a few steps."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disturbed import probabilities_of

from postgrad.studies.config import ImproveConfig
from postgrad.studies.improve import improve

Predictions = dict[str, np.ndarray]

TRAININGS = [
    f"control-{name}"
    for name in (
        "finetune/training",
        "features/training",
        "more-data/training",
        "same-price/training-0",
        "same-price/training-1",
        "same-price/training-2",
    )
]

FEW_STEPS = {
    f"seed{seed}/{training}/{part}": 9 if part == "final" else 3
    for seed in range(6)
    for training in TRAININGS
    for part in ("trial-0", "trial-1", "trial-2", "final")
}


@pytest.fixture(scope="session")
def few_steps() -> dict[str, int]:
    """Step counts of all controls for six seeds, so that no time is spent on them."""
    return dict(FEW_STEPS)


@pytest.fixture(autouse=True)
def _little_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the price of a prediction on few images."""
    monkeypatch.setattr("postgrad.studies.arms.TIMED_IMAGES", 4)


def _tiny(out: Path, **changes: Any) -> ImproveConfig:
    settings: dict[str, Any] = {
        "model": "mlp",
        "data": "digits",
        "limit": 100,
        "methods": ["gradnet:epochs=1,hidden=2+4+3"],
        "epochs": 3,
        "threads": 1,
        "steps": FEW_STEPS,
        "out": out,
    }
    return ImproveConfig.model_validate(settings | changes)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., ImproveConfig]:
    """Settings of a run of a few seconds: `tiny(out, **changes)`."""
    return _tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose controls were given time, as users' runs are."""
    return improve(_tiny(tmp_path_factory.mktemp("runs") / "first", steps={}))


@pytest.fixture(scope="session")
def predictions() -> Callable[[Path], Predictions]:
    """The stored test probabilities of every arm below a run directory, by the arm's path."""

    return probabilities_of


@pytest.fixture
def disk_full_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`disk_full_after(n)`: from then on n files can be put in their place, and for any more the disk is full."""
    real = os.replace

    def fill(after: int) -> None:
        left = iter(range(after))

        def replace(*paths: Any) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(*paths)

        monkeypatch.setattr("os.replace", replace)

    return fill
