"""Pixels larger than the memory budget: decoded once into a file in the cache folder, and mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from postgrad.errors import UserError
from postgrad.files import disk_errors
from postgrad.units import format_memory

_VERSION = 1
"""Part of every key; raise it when the same files would be decoded to other pixels."""

Fill = Callable[[NDArray[np.uint8]], dict[int, str]]
"""Writes pixels to the first rows of an array; returns which of its inputs failed, and why: index -> reason."""


def cache_folder() -> Path:
    """The user's cache folder for this program."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "postgrad"


def key_of(parts: Sequence[object], files: Sequence[Path]) -> str:
    """A name that changes with any of the parts, and with the path, size or time of any of the files."""
    digest = hashlib.sha256(repr((_VERSION, *parts)).encode())
    for file in files:
        status = file.stat()
        digest.update(repr((str(file.resolve()), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()[:32]


def resident_or_mapped(
    shape: tuple[int, ...], fill: Fill, *, budget: int, key: Callable[[], str]
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Have `fill` write an array of this shape: in memory if it fits the budget (bytes), else in a file that is kept.

    Returns the rows that were filled, and the failures. A second call with the same key maps the file again, unfilled.
    Nobody else sees changes made to the array.
    """
    if np.prod(shape, dtype=object) <= budget:
        array = np.empty(shape, np.uint8)
        failures = fill(array)
        return array[: len(array) - len(failures)], failures
    folder = cache_folder() / "decoded" / key()
    if not folder.is_dir():
        _write(folder, shape, fill)
    failures = {int(index): reason for index, reason in json.loads((folder / "failures.json").read_text()).items()}
    array = np.load(folder / "pixels.npy", mmap_mode="c")
    return array[: len(array) - len(failures)], failures


def nameless_file(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array in a file of the cache folder that disappears with the array."""
    folder = cache_folder() / "decoded"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(folder, int(np.prod(shape, dtype=object)))
        with tempfile.TemporaryFile(dir=folder) as file:
            return np.memmap(file, np.uint8, mode="w+", shape=shape)


def _write(folder: Path, shape: tuple[int, ...], fill: Fill) -> None:
    """Fill a file under another name; it gets its own when it is whole."""
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_space(folder.parent, int(np.prod(shape, dtype=object)))
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
        try:
            array = np.lib.format.open_memmap(temporary / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
            failures = fill(array)
            array.flush()
            (temporary / "failures.json").write_text(json.dumps(failures))
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # another process may have been first
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_space(folder: Path, needed: int) -> None:
    """A mapped file that outgrows the disk would end the process without a word, so ask first."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: {format_memory(needed)} of decoded images do not fit, {format_memory(free)} are free; "
            f"free some space, set XDG_CACHE_HOME to another disk, or give --size or --limit"
        )
