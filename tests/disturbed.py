"""Runs in processes of their own that tests interrupt and kill: when, and what came of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PATIENCE_SECONDS = 240.0


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Look every hundredth of a second; a process that ends before that has failed or was too quick to be disturbed."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None, f"it was over too soon: {process.communicate()[1]}"
        assert time.monotonic() < deadline, "the moment to disturb it never came"
        time.sleep(0.01)


def rows_of(training: Path) -> int:
    """The rows of a learning curve so far, one for each epoch."""
    try:
        return max(0, len((training / "metrics.csv").read_text().splitlines()) - 1)
    except FileNotFoundError:
        return 0


def probabilities_of(run: Path) -> dict[str, np.ndarray]:
    """The stored test probabilities of every arm below a run directory, by the arm's path."""
    found = {}
    for file in sorted(run.rglob("test_predictions.npz")):
        with np.load(file) as arrays:
            found[str(file.parent.relative_to(run))] = arrays["probabilities"]
    return found
