"""Snapshots of the seed's authors: Chainer's archives of arrays, read without pickle."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from postgrad.errors import UserError

_ENTRIES = {
    f"{layer}.{ours}": f"predictor/{layer}/{theirs}"
    for layer in ("c0", "c1", "l1")
    for ours, theirs in (("weight", "W"), ("bias", "b"))
}
"""Parameter name -> end of the entry's name in the archive."""


def is_chainer_snapshot(file: str | os.PathLike[str]) -> bool:
    """Whether a file, whatever its name, is a Chainer archive that holds a classifier's parameters."""
    if not zipfile.is_zipfile(file):
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            return any("predictor/" in name and name.endswith(".npy") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def read_chainer_snapshot(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The parameters of seed-cnn in a snapshot; the optimizer's momentum and the training log in it are left alone.

    >>> sorted(read_chainer_snapshot("snapshot_iter_91016"))
    ['c0.bias', 'c0.weight', 'c1.bias', 'c1.weight', 'l1.bias', 'l1.weight']
    """
    try:
        with np.load(Path(file), allow_pickle=False) as archive:
            names = [name for name in archive.files if "optimizer:" not in name]
            found = {ours: [name for name in names if _ends(name, theirs)] for ours, theirs in _ENTRIES.items()}
            return {ours: torch.from_numpy(archive[entries[0]]) for ours, entries in found.items() if entries}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, TypeError) as error:
        raise UserError(f"{file}: this Chainer snapshot is damaged or cut off ({error}); fetch it again") from error


def _ends(name: str, entry: str) -> bool:
    return name == entry or name.endswith((f"/{entry}", f":main/{entry}"))
