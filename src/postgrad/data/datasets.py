"""Data sets by name: read, checked, limited, and described by a fingerprint."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from postgrad.data.cache import cache_folder
from postgrad.data.checks import check
from postgrad.data.containers import Dataset, Found, Images
from postgrad.data.folder import read_folder
from postgrad.data.names import DATASETS
from postgrad.data.npz import read_npz
from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.data.sources import SOURCES, read_source
from postgrad.data.splits import limited, stratified_split
from postgrad.errors import UserError, unknown_name
from postgrad.units import parse_memory

__all__ = ["DATASETS", "Dataset", "Images", "load_dataset"]

_TEST_FRACTION = 0.2
_SAMPLE = 10_000
_SLICE = 256


def load_dataset(
    spec: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    size: int | None = None,
    memory: str = "8GB",
) -> Dataset:
    """Load a data set by name, as resident uint8 tensors.

    >>> dataset = load_dataset("cifar10", data_dir="~/data", limit=5000)
    >>> dataset.train.images.shape
    torch.Size([5000, 3, 32, 32])

    Parameters
    ----------
    spec : one of `postgrad.data.names.DATASETS`, such as `mnist`, `folder:pictures` or `npz:arrays.npz`.
    data_dir : where published data sets lie; default `$POSTGRAD_DATA`, else a cache folder. What is not there is
        fetched where there is a network.
    limit : at most so many training and so many test images, each class in proportion, first in file order.
    size : for `folder:`, the shorter side in pixels to which pictures are reduced as they are read.
    memory : data that would take more is decoded once into a file and mapped into memory.

    Where a set of one's own, or digits, has no test part, a fifth of it, stratified, becomes one. Raises `UserError`
    for whatever cannot be found or used.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit: expected at least 1, got {limit}")
    kind, _, value = spec.partition(":")
    budget = parse_memory(memory)
    found = _read(spec, kind, value, data_dir, size, budget)
    notes = [*found.notes, *check(found, spec)]
    train, test = found.train, found.test
    if train is not None and test is None and kind not in SOURCES:
        train, test = _with_test_part(train)
        notes.append(f"{spec}: no test part; {len(test)} images (a fifth, stratified) are set aside as one.")
    if limit is not None:
        train, test = (None if part is None else limited(part, limit) for part in (train, test))
    fingerprint, duplicates = _digest(train, test)
    if duplicates:
        assert test is not None
        notes.append(f"{spec}: {duplicates} of the {len(test)} test images are exact copies of training images.")
    source = SOURCES.get(kind)
    return Dataset(
        name=spec,
        train=train,
        test=test,
        class_names=found.class_names,
        preprocess=source.preprocess if source else _measured(test if train is None else train),
        augmentation=source.augmentation if source else Augmentation(),
        prescribed_order=source is not None,
        fingerprint=fingerprint,
        notes=tuple(notes),
    )


def data_folder(data_dir: str | os.PathLike[str] | None) -> Path:
    """Where published data sets lie: what was given, `$POSTGRAD_DATA`, or the cache folder."""
    named = data_dir or os.environ.get("POSTGRAD_DATA")
    return Path(named).expanduser() if named else cache_folder() / "data"


def _read(
    spec: str, kind: str, value: str, data_dir: str | os.PathLike[str] | None, size: int | None, budget: int
) -> Found:
    try:
        if spec == "digits":
            return _digits()
        if spec in SOURCES:
            return read_source(spec, data_folder(data_dir))
        if kind == "folder" and value:
            return read_folder(Path(value).expanduser(), size=size, budget=budget)
        if kind == "npz" and value:
            return read_npz(Path(value).expanduser(), budget=budget)
    except OSError as error:
        raise UserError(f"{spec}: cannot read {error.filename or 'it'}: {error.strerror or error}") from error
    raise unknown_name("data set", spec, DATASETS)


def _digits() -> Found:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    whole = Images(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))
    return Found(whole, None, tuple("0123456789"))


def _with_test_part(images: Images) -> tuple[Images, Images]:
    """Set a fifth aside, stratified; both parts stay in file order."""
    test, train = stratified_split(images.labels, _TEST_FRACTION)
    return images.subset(train.sort().values), images.subset(test.sort().values)


def _digest(train: Images | None, test: Images | None) -> tuple[str, int]:
    """The fingerprint, and how many test images are also training images, in one pass over the pixels."""
    whole = hashlib.sha256()
    digests: list[list[bytes]] = []
    for part in (train, test):
        if part is None:
            digests.append([])
            continue
        whole.update(repr(tuple(part.images.shape)).encode())
        whole.update(np.ascontiguousarray(part.labels.numpy()).tobytes())
        rows = (row for chunk in part.images.split(_SLICE) for row in np.ascontiguousarray(chunk.numpy()))
        digests.append([hashlib.sha256(row).digest() for row in rows])
        whole.update(b"".join(digests[-1]))
    known = set(digests[0])
    return whole.hexdigest()[:16], sum(digest in known for digest in digests[1])


def _measured(images: Images | None) -> Preprocessing:
    """Standardisation by the mean and deviation of each channel, over a sample of the images.

    The sample is random, since files may have a period: every sixth image of MNIST is darker than the rest.
    """
    assert images is not None
    sample = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:_SAMPLE].sort().values
    counts = torch.zeros(images.images.shape[1], 256, dtype=torch.float64)
    for chunk in sample.split(_SLICE):
        channels = images.images[chunk].unbind(1)
        counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in channels])
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = counts @ values / counts.sum(1)
    std = (counts @ values.square() / counts.sum(1) - mean.square()).clamp(min=0).sqrt()
    rounded = [tuple(round(float(value), 4) for value in each) for each in (mean, std)]
    return Preprocessing(mean=rounded[0], std=tuple(value or 1.0 for value in rounded[1]))
