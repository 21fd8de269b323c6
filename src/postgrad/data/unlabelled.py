"""Images without labels, for prediction: each with a name under which its answer is reported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from postgrad.data.datasets import load_dataset
from postgrad.data.folder import check_folder, folder_notes, skipped_list
from postgrad.data.npz import channels_first, npz_keys, read_array
from postgrad.data.pictures import common_form, decode, look_at, pictures_below
from postgrad.errors import UserError
from postgrad.units import parse_memory


@dataclass(frozen=True)
class Unlabelled:
    """Images (N, C, H, W) uint8, a name for each, and what the user should be told."""

    images: Tensor
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def load_images(
    spec: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    size: int | None = None,
    square: bool = False,
    channels: int | None = None,
    memory: str = "8GB",
) -> Unlabelled:
    """Load the images that a classifier is to judge.

    >>> load_images("folder:new_pictures", size=224, channels=3).names[0]
    'holiday/0001.jpg'

    `folder:DIR` is every picture anywhere below DIR, by path; `npz:FILE` its `x_test` (or else `x_train`) and a
    published data set its test part, both by number from 0. `limit` takes the first so many. `channels` (1 or 3)
    makes pictures grey or coloured; default: what they are. `square` cuts them to squares of `size`, as pictures that
    differ in size are anyway. The other parameters are those of `load_dataset`.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit: expected at least 1, got {limit}")
    kind, _, value = spec.partition(":")
    path = Path(value).expanduser()
    if kind == "folder" and value:
        return _pictures(path, limit, size, square, channels, parse_memory(memory))
    if kind == "npz" and value:
        key = "x_test" if "x_test" in npz_keys(path) else "x_train"
        images = channels_first(read_array(path, key, budget=parse_memory(memory)), f"{path}: {key}")[:limit]
        return _numbered(images, ())
    dataset = load_dataset(spec, data_dir=data_dir, memory=memory)
    if dataset.test is None:
        raise UserError(f"{spec} has no test images here; name another data set")
    return _numbered(dataset.test.images[:limit], dataset.notes)


def _numbered(images: Tensor, notes: tuple[str, ...]) -> Unlabelled:
    if len(images) == 0:
        raise UserError("no images to judge; give at least one")
    return Unlabelled(images, tuple(str(number) for number in range(len(images))), notes)


def _pictures(
    root: Path, limit: int | None, size: int | None, square: bool, channels: int | None, budget: int
) -> Unlabelled:
    check_folder(root)
    files, others = pictures_below(root)
    skipped = dict.fromkeys(others, "not a picture")
    looks, unreadable = look_at(files[:limit])
    skipped |= unreadable
    if not looks:
        raise UserError(f"{root}: no pictures{skipped_list(skipped, root, '; skipped ')}; check the path")
    form = common_form(looks.values(), size=size, square=square, channels=channels, where=str(root))
    pixels, failures = decode(list(looks), form, budget=budget)
    skipped |= failures
    names = tuple(file.relative_to(root).as_posix() for file in looks if file not in failures)
    if not names:
        raise UserError(f"{root}: no pictures{skipped_list(skipped, root, '; skipped ')}; check the path")
    return Unlabelled(torch.from_numpy(pixels), names, folder_notes(root, form, skipped))
