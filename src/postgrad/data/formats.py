"""Readers of the files in which published image data comes: IDX, CIFAR's pickles, one-array npz, MATLAB."""

from __future__ import annotations

import gzip
import io
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postgrad.data.npz import read_array
from postgrad.errors import UserError

Bytes = NDArray[np.uint8]
Whole = NDArray[np.int64]
Arrays = tuple[Bytes, Whole]
"""Images (N, C, H, W) and class indices (N,)."""

_IDX_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> Bytes:
    """Read an IDX file of unsigned bytes, gzipped (`.gz`) or not.

    >>> read_idx(Path("t10k-images-idx3-ubyte.gz")).shape
    (10000, 28, 28)

    Source: the format is described at http://yann.lecun.com/exdb/mnist/.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise damaged(path, f"not a whole gzip file ({error})") from error
    if len(content) < 4 or content[:2] != b"\0\0":
        raise damaged(path, "not an IDX file")
    if content[2] != _IDX_UNSIGNED_BYTE:
        raise UserError(f"{path}: holds IDX data of type {content[2]:#04x}; only unsigned bytes (0x08) are read")
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    expected = start + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise damaged(path, f"its header promises {expected} bytes, it has {len(content)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def read_idx_pair(paths: Sequence[Path]) -> Arrays:
    """Grey images from one IDX file and their labels from another."""
    images, labels = (read_idx(path) for path in paths)
    return _grey(images, labels, paths[0])


def read_npz_pair(paths: Sequence[Path]) -> Arrays:
    """Grey images and their labels, each alone in an .npz file under `arr_0`, as KMNIST is published."""
    images, labels = (_one_array(path) for path in paths)
    return _grey(images, labels, paths[0])


def read_cifar(paths: Sequence[Path]) -> Arrays:
    """Images and (fine) labels from CIFAR's pickled batches; only arrays and plain values can be in them."""
    images, labels = [], []
    for path in paths:
        batch = unpickle(path)
        pixels = batch.get("data") if isinstance(batch, dict) else None
        names = batch.get("fine_labels", batch.get("labels")) if isinstance(batch, dict) else None
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
            raise damaged(path, "no uint8 `data` of 3072 values for each image")
        if not isinstance(names, list) or len(names) != len(pixels) or not all(type(name) is int for name in names):
            raise damaged(path, f"no `labels`, one whole number for each of its {len(pixels)} images")
        images.append(pixels.reshape(-1, 3, 32, 32))
        labels.append(np.array(names, dtype=np.int64))
    return np.concatenate(images), np.concatenate(labels)


def read_svhn(paths: Sequence[Path]) -> Arrays:
    """House numbers from a MATLAB file; its label 10 is the digit 0."""
    from scipy.io import loadmat

    (path,) = paths
    try:
        content = loadmat(path, variable_names=["X", "y"])
    except Exception as error:  # scipy raises whatever it stumbles over
        raise damaged(path, f"not a whole MATLAB file ({error})") from error
    images, labels = content.get("X"), content.get("y")
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3:
        raise damaged(path, "no uint8 `X` of shape (height, width, 3, images)")
    if labels is None or labels.size != images.shape[3]:
        raise damaged(path, f"no `y` with one label for each of its {images.shape[3]} images")
    classes = labels.reshape(-1).astype(np.int64)
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), np.where(classes == 10, 0, classes)


def unpickle(path: Path) -> Any:
    """Read a pickle that holds arrays and plain values; anything else in it is refused, and no code of it runs."""
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise damaged(path, f"not a whole pickle ({error})") from error


class _PlainUnpickler(pickle.Unpickler):
    """Knows how arrays are put together, and nothing else that could be called."""

    _RECONSTRUCT = np.empty(0).__reduce__()[0]
    _ALLOWED = {  # noqa: RUF012 (a constant)
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise UserError(f"the pickle asks for {module}.{name}, which data does not need; not read") from None


def damaged(path: Path, how: str) -> UserError:
    """The error for a file that is not what its name promises."""
    return UserError(f"{path} is damaged: {how}; delete it and fetch it again")


def _one_array(path: Path) -> Bytes:
    array = read_array(path, "arr_0")
    if array.dtype != np.uint8:
        raise damaged(path, f"its array is {array.dtype}, expected uint8")
    return array


def _grey(images: Bytes, labels: Bytes, path: Path) -> Arrays:
    if images.ndim != 3 or labels.shape != (len(images),):
        raise UserError(
            f"{path}: expected images (N, height, width) with N labels, got {images.shape} with {labels.shape}; "
            f"fetch both files again"
        )
    return images[:, None], labels.astype(np.int64)
