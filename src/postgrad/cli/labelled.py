"""The data set that `--data` means, and its labels as a classifier counts its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from postgrad.cli.console import say
from postgrad.cli.options import DataOptions
from postgrad.data.datasets import load_dataset
from postgrad.errors import UserError


def loaded(options: DataOptions, *, size: int | None) -> Any:
    """The data set, with its notes said."""
    dataset = load_dataset(
        str(options.data), data_dir=options.data_dir, limit=options.limit, size=size, memory=options.memory or "8GB"
    )
    for note in dataset.notes:
        say(f"note: {note}")
    return dataset


def class_numbers(dataset: Any, class_names: Sequence[str], *, otherwise: str = "") -> Any:
    """The number (C,) that a classifier gives each class of a data set; `class_numbers(…)[labels]` are its labels.

    Classes of the same names are matched by name, others by number, which is said. `otherwise` is what else the user
    can do where the two do not have as many classes.
    """
    import torch

    theirs, ours = list(class_names), list(dataset.class_names)
    if len(theirs) != len(ours):
        raise UserError(
            f"the classifier knows {len(theirs)} classes, {dataset.name} has {len(ours)}; they must agree{otherwise}"
        )
    if sorted(theirs) == sorted(ours):
        return torch.tensor([theirs.index(name) for name in ours])
    say(f"note: the classifier calls its classes {_few(theirs)}, {dataset.name} {_few(ours)}; matched by number")
    return torch.arange(len(ours))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
