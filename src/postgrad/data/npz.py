"""Arrays in one .npz file, as Keras stores its data sets: `npz:FILE`."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from postgrad.data.cache import key_of, resident_or_mapped
from postgrad.data.containers import Found, Images
from postgrad.errors import UserError

_ENCRYPTED = 1
"""The bit of an entry of an archive that says that a password is needed."""
_PIECE = 1 << 24


def read_npz(path: Path, *, budget: int) -> Found:
    """Read `x_train, y_train` and, if they are there, `x_test, y_test`.

    Images are (N, H, W) or (N, H, W, C) with 1 or 3 channels, uint8; labels (N,) or (N, 1), whole numbers from 0.
    Classes get their numbers as names. Nothing but plain arrays is ever read.
    """
    keys = npz_keys(path)
    images: dict[str, Images] = {}
    for part in ("train", "test"):
        present = {f"x_{part}", f"y_{part}"} & keys
        if len(present) == 1:
            (have,) = present
            raise UserError(f"{path}: has {have} without its other half; needs both x_{part} and y_{part}")
        if present:
            images[part] = _read_part(path, part, budget)
    if not images:
        raise UserError(f"{path}: needs the arrays x_train and y_train, has {', '.join(sorted(keys)) or 'none'}")
    labels = images["train" if "train" in images else "test"].labels
    classes = max(int(labels.max()) + 1, 1) if len(labels) else 1
    if "train" in images and classes > max(len(labels), 1):
        raise UserError(
            f"{path}: labels reach {classes - 1} for {len(labels)} images; number the classes 0, 1, 2, … without gaps"
        )
    return Found(images.get("train"), images.get("test"), tuple(str(number) for number in range(classes)))


def npz_keys(path: Path) -> set[str]:
    """The names of the arrays in the file."""
    with _opened(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def read_array(path: Path, key: str, *, budget: int | None = None) -> NDArray[Any]:
    """One array of an .npz file, which must hold plain numbers; above `budget` bytes (None: never) it is mapped."""
    with _opened(path) as archive:
        try:
            info = archive.getinfo(f"{key}.npy")
        except KeyError:
            names = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
            raise UserError(f"{path}: has no array {key}; it has {names or 'none'}") from None
        with archive.open(info) as file:
            shape, fortran, dtype = _header(file, path, key)
            if dtype.hasobject or dtype.kind not in "buif":
                kind = "Python objects" if dtype.hasobject else str(dtype)
                raise UserError(f"{path}: {key} holds {kind}, which are not read; store plain numbers")
            length = math.prod(shape) * dtype.itemsize
            if min(shape, default=0) < 0 or info.file_size - file.tell() != length:
                raise UserError(f"{path}: {key} is not as long as it says; write the file again with numpy.savez")

            def fill(target: NDArray[np.uint8]) -> dict[int, str]:
                _read_into(file, target, f"{path}: {key}")
                return {}

            room, _ = resident_or_mapped(
                (length,), fill, budget=length if budget is None else budget, key=lambda: key_of([key], [path])
            )
    array = room.view(dtype)
    return array.reshape(shape[::-1]).transpose() if fortran else array.reshape(shape)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; whatever is wrong with it is told with its name."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.flag_bits & _ENCRYPTED for entry in archive.infolist()):
                raise UserError(f"{path} is encrypted; write it again with numpy.savez")
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged or no .npz file ({error}); write it again with numpy.savez") from error


def _header(file: IO[bytes], path: Path, key: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(file)
    except ValueError as error:
        raise UserError(f"{path}: {key} is no array ({error}); write the file again with numpy.savez") from error
    raise UserError(f"{path}: {key} is stored in an unknown form {version}; write the file again with numpy.savez")


def _read_into(file: IO[bytes], target: NDArray[np.uint8], what: str) -> None:
    """Read exactly as many bytes as the array has, piece by piece."""
    done = 0
    while done < len(target):
        piece = file.read(min(_PIECE, len(target) - done))
        if not piece:
            raise UserError(f"{what} ends early: {done} of {len(target)} bytes; write the file again with numpy.savez")
        target[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)


def _read_part(path: Path, part: str, budget: int) -> Images:
    labels = _labels(read_array(path, f"y_{part}"), f"{path}: y_{part}")
    stored = read_array(path, f"x_{part}", budget=budget)
    images = channels_first(stored, f"{path}: x_{part}")
    if len(labels) != len(images):
        raise UserError(f"{path}: x_{part} has {len(images)} images, y_{part} {len(labels)} labels; they must agree")
    return Images(images, labels, isinstance(stored, np.memmap))


def _labels(labels: NDArray[Any], what: str) -> torch.Tensor:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UserError(
            f"{what}: expected one class index for each image, got shape {labels.shape}; use argmax(axis=1)"
        )
    if labels.dtype.kind not in "ui":
        raise UserError(f"{what}: expected whole numbers, got {labels.dtype}; convert them with astype('int64')")
    return torch.from_numpy(labels.astype(np.int64))


def channels_first(pixels: NDArray[Any], what: str) -> torch.Tensor:
    """(N, H, W) or (N, H, W, C) as (N, C, H, W): the same memory where that is mapped, otherwise in order."""
    if pixels.dtype != np.uint8:
        nan = " with NaN among them" if pixels.dtype.kind == "f" and bool(np.isnan(pixels).any()) else ""
        raise UserError(f"{what}: expected uint8 from 0 to 255, got {pixels.dtype}{nan}; repair or scale, then convert")
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[3] not in (1, 3):
        raise UserError(f"{what}: channels come last, got shape {pixels.shape}; use transpose(0, 2, 3, 1)")
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or 0 in pixels.shape[1:]:
        raise UserError(f"{what}: expected (N, height, width) or (N, height, width, 1 or 3), got {pixels.shape}")
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return images if isinstance(pixels, np.memmap) else images.contiguous()
