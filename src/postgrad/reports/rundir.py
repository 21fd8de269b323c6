"""What lies in a run directory, read and checked for the report; files that a run did not write are None or absent."""

from __future__ import annotations

import csv
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postgrad.errors import UserError
from postgrad.reports.schema import Results, read_results

Curve = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Predictions:
    """One arm's probabilities (N, C) on the test images of the first seed, and the true labels (N,)."""

    probabilities: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def predicted(self) -> NDArray[np.intp]:
        """The predicted classes (N,)."""
        return self.probabilities.argmax(axis=1)


@dataclass(frozen=True)
class Run:
    """A run directory: its results, and what else was found of predictions, curves, examples and settings."""

    results: Results
    predictions: dict[str, Predictions]
    curves: dict[str, Curve]
    examples: NDArray[np.uint8] | None
    blocks: dict[str, Any] | None
    environment: dict[str, Any] | None
    config: str | None


def read_run(directory: Path) -> Run:
    """Read a run directory; only results.json must be there."""
    results = read_results(directory / "results.json")
    names = [arm.name for arm in results.arms]
    examples = _arrays(directory / "examples.npz", "images")
    found = {name: _arrays(directory / name / "test_predictions.npz", "probabilities", "labels") for name in names}
    curves = {name: _curve(directory / name / "metrics.csv") for name in names}
    return Run(
        results=results,
        predictions={name: Predictions(*arrays) for name, arrays in found.items() if arrays},
        curves={name: curve for name, curve in curves.items() if curve},
        examples=examples[0] if examples else None,
        blocks=_json(directory / "gradnet_blocks.json"),
        environment=_json(directory / "environment.json"),
        config=_text(directory / "config.yaml"),
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8") if path.exists() else None
    except UnicodeDecodeError as error:
        raise _damaged(path, error) from error


def _json(path: Path) -> dict[str, Any] | None:
    text = _text(path)
    try:
        content = None if text is None else json.loads(text)
    except json.JSONDecodeError as error:
        raise _damaged(path, error) from error
    if content is not None and not isinstance(content, dict):
        raise _damaged(path, "it is not a JSON object")
    return content


def _arrays(path: Path, *keys: str) -> tuple[NDArray[Any], ...] | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return tuple(archive[key] for key in keys)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _curve(path: Path) -> Curve | None:
    """The columns of a metrics.csv; empty cells are NaN."""
    text = _text(path)
    rows = list(csv.DictReader(text.splitlines())) if text else []
    if not rows:
        return None
    try:
        return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}
    except (TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path} is damaged ({why}); delete it to make the report without it, or repeat the run")
