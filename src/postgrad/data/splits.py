"""How images are divided: halves for base and method, validation parts, stratified parts, limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from postgrad.data.containers import Dataset, Images
from postgrad.errors import UserError

_SEED = 0
"""Splits belong to the data and are the same in all runs."""

_Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Halves:
    """Indices (int64) into the training images; the four parts never overlap."""

    base_train: Tensor
    base_validation: Tensor
    method_train: Tensor
    method_validation: Tensor


def halves(dataset: Dataset, *, validation: float = 0.1) -> Halves:
    """Divide the training images: the first half trains the base network, the second the method.

    >>> parts = halves(load_dataset("cifar10"))
    >>> len(parts.base_train), len(parts.base_validation), len(parts.method_train), len(parts.method_validation)
    (22500, 2500, 22500, 2500)

    Halves follow the file order where the data set prescribes it, otherwise they are stratified by class. The last
    `validation` part of each half validates what that half trains; 0 leaves it empty.
    """
    if dataset.train is None:
        raise UserError(f"{dataset.name} has no training images here; give a data set that has some")
    if not 0 <= validation < 1:
        raise UserError(f"validation: expected a fraction from 0 to below 1, got {validation:g}")
    labels, count = dataset.train.labels, len(dataset.train)
    if count < 4:
        raise UserError(f"{dataset.name} has {count} training images; two halves with validation need at least 4")
    if dataset.prescribed_order:
        parts = [_last_part(half, validation) for half in torch.arange(count).split([count // 2, count - count // 2])]
    else:
        parts = [_stratified_last_part(half, labels, validation) for half in stratified_split(labels, 0.5, seed=_SEED)]
    return Halves(*parts[0], *parts[1])


def stratified_split(labels: Tensor, fraction: float, seed: int = _SEED) -> tuple[Tensor, Tensor]:
    """Divide indices into a `fraction` and the rest, each class in proportion, both in random order.

    >>> test, train = stratified_split(labels, 0.2, seed=0)

    Both parts get at least one image of each class that has two, as far as their sizes allow.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels.numpy()[order]
    counts = np.bincount(shuffled)
    low = (counts > 1).astype(np.int64)
    taken = _allocate(counts, round(fraction * len(labels)), low, counts - low)
    chosen = _rank_in_class(shuffled) < taken[shuffled]
    return torch.from_numpy(order[chosen]), torch.from_numpy(order[~chosen])


def limited(images: Images, count: int) -> Images:
    """`count` of the images, each class in proportion, the first of each class in file order."""
    if count >= len(images):
        return images
    labels = images.labels.numpy()
    counts = np.bincount(labels)
    taken = _allocate(counts, count, np.minimum(counts, 1), counts)
    return images.subset(torch.from_numpy(np.flatnonzero(_rank_in_class(labels) < taken[labels])))


def _last_part(indices: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    first = len(indices) - _part_size(len(indices), fraction)
    return indices[:first], indices[first:]


def _stratified_last_part(indices: Tensor, labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    size = _part_size(len(indices), fraction)
    second, first = stratified_split(labels[indices], size / len(indices), seed=_SEED + 1)
    return indices[first], indices[second]


def _part_size(count: int, fraction: float) -> int:
    """At least one image on each side, unless nothing was asked for."""
    return min(max(round(count * fraction), 1), count - 1) if fraction else 0


def _rank_in_class(labels: _Whole) -> _Whole:
    """For each position, how many of the same class come before it."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


def _allocate(counts: _Whole, total: int, low: _Whole, high: _Whole) -> _Whole:
    """Share `total` over classes in proportion to `counts` and within bounds, by largest remainders."""
    if not low.sum() <= total <= high.sum():
        low, high = np.zeros_like(counts), counts
    share = counts * (total / max(counts.sum(), 1))
    taken = np.clip(np.floor(share).astype(np.int64), low, high)
    while (missing := total - int(taken.sum())) != 0:
        if missing > 0:
            taken[np.argmax(np.where(taken < high, share - taken, -np.inf))] += 1
        else:
            taken[np.argmax(np.where(taken > low, taken - share, -np.inf))] -= 1
    return taken
