"""Checks of what was read, so that a mistake in the data is told before anything is computed from it."""

from __future__ import annotations

import torch
from torch import Tensor

from postgrad.data.containers import Found, Images
from postgrad.errors import UserError

_SLICE = 256


def check(found: Found, name: str) -> tuple[str, ...]:
    """Refuse data from which nothing can be learnt; returns notes on what is merely odd."""
    parts = {part: images for part in ("train", "test") if (images := getattr(found, part)) is not None}
    notes: list[str] = []
    for part, images in parts.items():
        _check_labels(images.labels, len(found.class_names), f"{name}, {part} part")
        notes += _check_pixels(images, f"{name}, {part} part")
    if len(parts) == 2 and parts["train"].images.shape[1:] != parts["test"].images.shape[1:]:
        shapes = " and ".join(str(tuple(images.images.shape[1:])) for images in parts.values())
        raise UserError(f"{name}: training and test images differ in shape (channels, height, width): {shapes}")
    if found.train is not None:
        notes += _check_classes(found.train.labels, found.class_names, name)
    return tuple(notes)


def _check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    if len(labels) == 0:
        raise UserError(f"{where}: no images; give at least one")
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise UserError(f"{where}: label {low} is negative; number the classes from 0")
    if high >= num_classes:
        raise UserError(
            f"{where}: label {high} is out of range; there are {num_classes} classes, 0 to {num_classes - 1}"
        )


def _check_classes(labels: Tensor, class_names: tuple[str, ...], name: str) -> list[str]:
    counts = torch.bincount(labels, minlength=len(class_names))
    present = int((counts > 0).sum())
    if present < 2:
        only = class_names[int(labels[0])]
        raise UserError(f"{name}: all {len(labels)} training images are of one class ('{only}'); give at least two")
    absent = [class_names[int(index)] for index in (counts == 0).nonzero()]
    return [f"{name}: no training image is of class {', '.join(absent)}."] if absent else []


def _check_pixels(images: Images, where: str) -> list[str]:
    """Refuse images that are all alike; count those of a single colour."""
    first, alike, flat = images.images[:1], True, 0
    for chunk in images.images.split(_SLICE):
        alike = alike and bool((chunk == first).all())
        planes = chunk.flatten(2)
        flat += int((planes.amin(2) == planes.amax(2)).all(1).sum())
    if flat == len(images):
        raise UserError(f"{where}: every image is of a single colour; there is nothing to learn from them")
    if alike and len(images) > 1:
        raise UserError(f"{where}: all {len(images)} images are identical; there is nothing to learn from them")
    return [f"{where}: {flat} images are of a single colour."] if flat else []
