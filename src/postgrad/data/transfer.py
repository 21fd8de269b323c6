"""Transfer images: more images to learn from, with a label or with none (−1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from postgrad.data.cache import nameless_file
from postgrad.data.containers import Images
from postgrad.data.npz import channels_first, npz_keys, read_array
from postgrad.data.unlabelled import load_images
from postgrad.errors import UserError
from postgrad.units import parse_memory

NO_LABEL = -1
_SLICE = 256


def load_transfer(
    spec: str, *, class_names: Sequence[str], shape: tuple[int, int, int], size: int | None = None, memory: str = "8GB"
) -> Images:
    """Images that join the training images of a data set whose images have this `shape` (C, H, W).

    >>> load_transfer("unlabelled.npz", class_names=dataset.class_names, shape=dataset.shape).labels
    tensor([-1, -1, -1])

    `npz:FILE`, or a path that ends in .npz: `x_train` and, where it is there, `y_train`, whose labels may be −1.
    `folder:DIR`: every picture anywhere below DIR; those below a folder that is called like a class have that label,
    others have none. `size` and `memory` are those of `load_dataset`. Raises `UserError` for what cannot be read, for
    other shapes, and for labels out of range.
    """
    kind, _, value = spec.partition(":")
    if kind == "folder" and value:
        found = load_images(spec, size=size, channels=shape[0], memory=memory)
        known = {name: number for number, name in enumerate(class_names)}
        labels = [known.get(name.partition("/")[0], NO_LABEL) for name in found.names]
        images = Images(found.images, torch.tensor(labels, dtype=torch.int64))
    elif (kind == "npz" and value) or spec.endswith(".npz"):
        images = _read(Path(value if kind == "npz" else spec).expanduser(), len(class_names), parse_memory(memory))
    else:
        raise UserError(f"transfer: expected FILE.npz, npz:FILE or folder:DIR, got '{spec}'")
    if images.images.shape[1:] != shape:
        theirs, ours = ("×".join(map(str, each)) for each in (images.images.shape[1:], shape))
        raise UserError(f"{spec}: its images are {theirs} (channels×height×width), those of the data {ours}")
    return images


def joined(images: Images, more: Images) -> Images:
    """All of the first, then all of the second; in a file where one of them lies in one."""
    labels = torch.cat([images.labels, more.labels])
    if not (images.mapped or more.mapped):
        return Images(torch.cat([images.images, more.images]), labels)
    target, start = nameless_file((len(labels), *images.images.shape[1:])), 0
    for part in (images.images, more.images):
        for chunk in part.split(_SLICE):
            target[start : start + len(chunk)] = chunk.numpy()
            start += len(chunk)
    return Images(torch.from_numpy(target), labels, mapped=True)


def _read(path: Path, classes: int, budget: int) -> Images:
    keys = npz_keys(path)
    if "x_train" not in keys:
        raise UserError(f"{path}: needs the array x_train, has {', '.join(sorted(keys)) or 'none'}")
    stored = read_array(path, "x_train", budget=budget)
    images = channels_first(stored, f"{path}: x_train")
    labels = np.full(len(images), NO_LABEL)
    if "y_train" in keys:
        labels = read_array(path, "y_train").reshape(-1)
    if len(labels) != len(images) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{path}: y_train needs one whole number for each of the {len(images)} images, −1 where there is no label"
        )
    if len(labels) and not (labels.min() >= NO_LABEL and labels.max() < classes):
        bad = int(labels.min() if labels.min() < NO_LABEL else labels.max())
        raise UserError(f"{path}: label {bad} is none of the {classes} classes; −1 is an image without a label")
    return Images(images, torch.from_numpy(labels.astype(np.int64)), isinstance(stored, np.memmap))
