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

    probabilities: NDArray[np.floating]
    labels: NDArray[np.int64]

    @property
    def predicted(self) -> NDArray[np.intp]:
        """The predicted classes (N,)."""
        return self.probabilities.argmax(axis=1)


@dataclass(frozen=True)
class Run:
    """A run directory: its results, and what else was found of predictions, curves, examples and settings.

    `predictions` are those of the first seed, `curves` are per arm and seed, and `outside` holds per arm the confidence
    scores of the test images (`inside/SCORE`) and of other data sets (`SET/SCORE`).
    """

    directory: Path
    results: Results
    predictions: dict[str, Predictions]
    curves: dict[str, dict[int, Curve]]
    outside: dict[str, dict[str, NDArray[np.float32]]]
    examples: NDArray[np.uint8] | None
    blocks: dict[str, Any] | None
    mapper: dict[str, Any] | None
    environment: dict[str, Any] | None
    config: str | None

    def predictions_of(self, arm: str, seed: int) -> Predictions | None:
        """What an arm of one seed said, read when it is asked for: all seeds of all arms may not fit into memory."""
        return _predictions(_arm_directory(self.directory, self.results, seed, arm))


def read_run(directory: Path) -> Run:
    """Read a run directory; only results.json must be there."""
    results = read_results(directory / "results.json")
    names = [arm.name for arm in results.arms]
    examples = _arrays(directory / "examples.npz", "images")
    predictions = {name: _predictions(directory / name) for name in names}
    outside = {name: _archive(directory / name / "outside_scores.npz") for name in names}
    return Run(
        directory=directory,
        results=results,
        predictions={name: found for name, found in predictions.items() if found},
        curves=_curves(directory, results),
        outside={name: scores for name, scores in outside.items() if scores},
        examples=examples[0] if examples else None,
        blocks=_json(directory / "gradnet_blocks.json"),
        mapper=_json(directory / "mapper_graph.json"),
        environment=_json(directory / "environment.json"),
        config=_text(directory / "config.yaml"),
    )


def _arm_directory(directory: Path, results: Results, seed: int, arm: str) -> Path:
    """The first seed's arms lie in the run directory itself, those of further seeds in `seed-K`."""
    return directory / arm if seed == results.seeds[0] else directory / f"seed-{seed}" / arm


def _predictions(directory: Path) -> Predictions | None:
    arrays = _arrays(directory / "test_predictions.npz", "probabilities", "labels")
    return Predictions(*arrays) if arrays else None


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
    archive = _archive(path)
    if archive is None:
        return None
    if missing := [key for key in keys if key not in archive]:
        raise _damaged(path, f"it holds no {', '.join(missing)}")
    return tuple(archive[key] for key in keys)


def _archive(path: Path) -> dict[str, NDArray[Any]] | None:
    """All arrays of an npz file by name."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _curves(directory: Path, results: Results) -> dict[str, dict[int, Curve]]:
    """Learning curves by arm and seed: from the run's metrics.csv, or from those of the arms where there is none."""
    together = directory / "metrics.csv"
    if together.exists():
        return _split(together)
    curves: dict[str, dict[int, Curve]] = {}
    for arm in results.arms:
        for seed in results.seeds:
            path = _arm_directory(directory, results, seed, arm.name) / "metrics.csv"
            if (table := _table(path)) is not None:
                curves.setdefault(arm.name, {})[seed] = _numbers(path, table)
    return curves


def _split(path: Path) -> dict[str, dict[int, Curve]]:
    table = _table(path)
    if table is None:
        return {}
    if not {"seed", "arm"} <= table.keys():
        raise _damaged(path, "it has no columns seed and arm")
    rows: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(table.pop("arm"), table.pop("seed"), strict=True)):
        rows.setdefault(key, []).append(row)
    columns = _numbers(path, table)
    curves: dict[str, dict[int, Curve]] = {}
    for (arm, seed), own in rows.items():
        curve = {name: values[own] for name, values in columns.items()}
        # Columns that only other arms have are empty here.
        known = {name: values for name, values in curve.items() if np.isfinite(values).any()}
        curves.setdefault(arm, {})[int(seed)] = known
    return curves


def _table(path: Path) -> dict[str, list[str]] | None:
    """The columns of a csv file as text; None without a file or without rows."""
    text = _text(path)
    rows = list(csv.reader(text.splitlines())) if text else []
    if len(rows) < 2:
        return None
    try:
        return dict(zip(rows[0], map(list, zip(*rows[1:], strict=True)), strict=True))
    except ValueError as error:
        raise _damaged(path, error) from error


def _numbers(path: Path, table: dict[str, list[str]]) -> Curve:
    """Columns as numbers; empty cells are NaN."""
    try:
        return {name: np.array([float(cell or "nan") for cell in cells]) for name, cells in table.items()}
    except ValueError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path} is damaged ({why}); delete it to make the report without it, or repeat the run")
