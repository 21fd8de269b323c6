"""The checkpoint of a training: written whole or not at all, read without running code from it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from postgrad.errors import UserError
from postgrad.files import atomic_path

FILE = "checkpoint.pt"
FORMAT = 1


def save_checkpoint(directory: Path, settings: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Write `checkpoint.pt`: `content` beside the settings that it belongs to."""
    # Given a path, torch would write by itself, and not say why it could not.
    with atomic_path(directory / FILE) as temporary, open(temporary, "wb") as file:
        torch.save({"format": FORMAT, "settings": dict(settings), **content}, file)


def load_checkpoint(directory: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read `checkpoint.pt`, None if there is none; one made with other `settings` is a `UserError` that names them."""
    path = directory / FILE
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        stored, form = content["settings"], content["format"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} is not a checkpoint that can be read; delete it to start anew ({type(error).__name__})"
        ) from error
    if form != FORMAT:
        raise UserError(f"{path} has format {form}, this version reads {FORMAT}; delete it to start anew")
    changed = [
        f"{key} was {stored.get(key)!r}, is now {value!r}"
        for key, value in settings.items()
        if stored.get(key) != value
    ]
    if changed:
        raise UserError(f"{path} is of a training with other settings: {'; '.join(changed)}; choose another directory")
    return dict(content)
