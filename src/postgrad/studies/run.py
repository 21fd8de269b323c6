"""A run directory while it is written: its settings, data, step counts, events and finished arms."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from postgrad.data.datasets import Dataset, Images
from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.data.splits import Halves
from postgrad.devices import pick_device
from postgrad.evaluation.score import Extras
from postgrad.files import atomic_path, disk_errors, write_atomic
from postgrad.studies.config import ComparisonConfig

EVENTS = "events.jsonl"


@dataclass
class Run:
    """One call of `improve` or `study`: what all its seeds share.

    `own` is the user's own network, None where the base is trained from new weights; `extras` is what arms are scored
    on beyond the test images.
    """

    config: ComparisonConfig
    directory: Path
    dataset: Dataset
    halves: Halves
    steps: dict[str, int]
    preprocess: Preprocessing
    augmentation: Augmentation
    own: nn.Module | None = None
    extras: Extras = field(default_factory=Extras)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where networks lie and are trained."""
        return pick_device(self.config.device)

    @property
    def train(self) -> Images:
        """All training images; a run is not begun without them."""
        assert self.dataset.train is not None
        return self.dataset.train

    @property
    def test(self) -> Images:
        """The test images; a run is not begun without them."""
        assert self.dataset.test is not None
        return self.dataset.test

    def arm_directory(self, seed: int, arm: str) -> Path:
        """The first seed's arms lie in the run directory itself, those of further seeds in `seed-K`."""
        first = seed == self.config.seeds[0]
        return self.directory / arm if first else self.directory / f"seed-{seed}" / arm

    def event(self, name: str, **content: Any) -> None:
        """Append one line to events.jsonl."""
        write_event(self.directory, name, **content)

    def fingerprint(self) -> str | None:
        """That of the data with which the run began, None where its events do not say."""
        try:
            with open(self.directory / EVENTS, encoding="utf-8") as file:
                first = json.loads(file.readline())
        except (FileNotFoundError, ValueError):
            return None
        return first.get("data")

    def absorb(self, record: ArmRecord) -> None:
        """Take over what a finished arm has to say to the whole run: its step counts and its warnings."""
        self.steps.update(record.steps)
        for warning in record.warnings:
            self.warn(warning)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


@dataclass(frozen=True)
class ArmRecord:
    """What is remembered of one finished arm of one seed, in its arm.json."""

    name: str
    kind: str
    seed: int
    description: str
    cpu_seconds: float
    total_cpu_seconds: float
    seconds: float
    peak_memory_mb: float | None
    validation_accuracy: float
    cost: dict[str, Any]
    steps: dict[str, int] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)
    method: str | None = None
    control_for: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    outside: list[dict[str, Any]] = field(default_factory=list)
    corruptions: list[dict[str, Any]] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    """The arms that a training is compared with; a second-stage method is with the base and its controls."""
    lr: float | None = None
    """Of a training in a study of them: the learning rate, chosen on validation images."""
    tuned: dict[str, Any] = field(default_factory=dict)
    """The same of the options of its method that were in question."""
    on_training: dict[str, Any] | None = None
    """Of such a training: the accuracy on images that it was trained on, and on how many of them."""
    temperature: float | None = None
    """As its validation images have it; None where all of them are right, or none was held back."""
    title: str | None = None
    """A plain name for people, where the arm has one of its own."""
    lineage_multiply_adds: float | None = None
    """In a search: multiply-adds of all the training that the arm stands on, its own included."""
    augmented_accuracy: float | None = None
    """Of a base, on the test images augmented as in training, where the settings ask for it."""

    def write(self, directory: Path) -> None:
        """Write arm.json: from now on the arm is finished, and a resumed run loads it."""
        write_atomic(directory / "arm.json", json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, directory: Path) -> ArmRecord | None:
        """The record of a finished arm, None for one that is not finished."""
        file = directory / "arm.json"
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def write_event(directory: Path, name: str, /, **content: Any) -> None:
    """Append one line to the events.jsonl of a run directory."""
    line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": name, **content}
    path = directory / EVENTS
    with disk_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def resumable(directory: Path, verb: str) -> Iterator[None]:
    """Tell whoever interrupts the block how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        words = f"postgrad {verb} --resume {shlex.quote(str(directory))}"
        print(f"{directory} keeps everything so far; go on with: {words}", file=sys.stderr)
        raise


def write_arrays(path: Path, **arrays: np.ndarray | torch.Tensor) -> None:
    """Write arrays as one compressed .npz, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
