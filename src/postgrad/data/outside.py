"""Images from outside the classifier's world: another data set, or made ones, matched to the test images in form."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor

from postgrad.data.containers import Images
from postgrad.data.names import DATASETS
from postgrad.data.pixels import centre, check_images
from postgrad.data.unlabelled import load_images
from postgrad.errors import UserError, unknown_name

_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601, as Pillow turns colour into grey."""


@dataclass(frozen=True)
class Outside:
    """Images (N, C, H, W) uint8 of the form of the test images, and in words how they came to have it."""

    name: str
    images: Tensor
    matching: str


def outside_images(
    name: str,
    *,
    like: Images,
    data_dir: str | os.PathLike[str] | None = None,
    memory: str = "8GB",
    seed: int = 0,
) -> Outside:
    """The outside images of this name, at most as many as the test images `like`.

    >>> outside_images("kmnist", like=load_dataset("cifar10").test).matching
    '1×28×28 to 3×32×32: shorter side scaled to cover (bilinear, antialiased), centre cut out, grey repeated as RGB'

    `name` is a data set as `load_images` takes it (its first test images; any picture below `folder:DIR`; `npz:FILE`),
    or one that is made here, from `seed`:

    noise : every pixel uniform over 0 … 255.
    gaussian-noise : every pixel normal with mean 0.5 and deviation 1, cut off at 0 and 1.
    interpolation : the mean of two test images of different classes.

    Noises as in Liang, Li and Srikant, "Enhancing the reliability of out-of-distribution image detection in neural
    networks", 2018; interpolation as in Grathwohl et al., "Your classifier is secretly an energy based model", 2020.
    """
    if name in MADE:
        return Outside(name, MADE[name](like, np.random.default_rng(seed)), "made in the size of the test images")
    check_outside(name)
    height, width = like.images.shape[2:]
    found = load_images(name, data_dir=data_dir, limit=len(like), size=max(height, width), memory=memory)
    return matched(name, found.images, like.images)


def check_outside(name: str) -> None:
    """Refuse a name that `outside_images` does not know."""
    kind, _, value = name.partition(":")
    if name not in MADE and name not in DATASETS and not (kind in ("folder", "npz") and value):
        raise unknown_name("outside data set", name, [*DATASETS, *MADE])


def matched(name: str, images: Tensor, like: Tensor) -> Outside:
    """Images brought to the channels, height and width of `like`; those that have them stay as they are."""
    check_images(images)
    wanted, given = like.shape[1:], images.shape[1:]
    if given == wanted:
        return Outside(name, images, "none needed")
    resized, cut = _cut_to_size(images, wanted[1], wanted[2])
    recoloured, colour = _recoloured(resized, wanted[0], name)
    sizes = " to ".join("×".join(map(str, shape)) for shape in (given, wanted))
    return Outside(name, recoloured, f"{sizes}: {', '.join([*cut, *colour])}")


def _cut_to_size(images: Tensor, height: int, width: int) -> tuple[Tensor, list[str]]:
    if images.shape[2:] == (height, width):
        return images, []
    scale = max(height / images.shape[2], width / images.shape[3])
    size = (max(height, round(images.shape[2] * scale)), max(width, round(images.shape[3] * scale)))
    pixels = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
    top, left = centre(size[0], height), centre(size[1], width)
    part = pixels[:, :, top : top + height, left : left + width]
    return _stored(part), ["shorter side scaled to cover (bilinear, antialiased)", "centre cut out"]


def _recoloured(images: Tensor, channels: int, name: str) -> tuple[Tensor, list[str]]:
    given = images.shape[1]
    if given == channels:
        return images, []
    if given == 1:
        return images.expand(-1, channels, -1, -1).contiguous(), ["grey repeated as RGB"]
    if given == 3 and channels == 1:
        weights = torch.tensor(_LUMA).view(1, 3, 1, 1)
        return _stored((images.float() * weights).sum(dim=1, keepdim=True)), ["RGB to grey by ITU-R 601 luma"]
    raise UserError(f"{name} has {given} channels, the test images have {channels}; give images of {channels} or 1")


def _noise(like: Images, generator: Generator) -> Tensor:
    return torch.from_numpy(generator.integers(0, 256, tuple(like.images.shape), dtype=np.uint8))


def _gaussian_noise(like: Images, generator: Generator) -> Tensor:
    values = generator.standard_normal(tuple(like.images.shape), dtype=np.float32) + 0.5
    return _stored(torch.from_numpy(values).clamp_(0, 1).mul_(255))


def _interpolation(like: Images, generator: Generator) -> Tensor:
    labels = like.labels.numpy()
    if len(np.unique(labels)) < 2:
        raise UserError("interpolation: the test images are all of one class; give images of two classes or more")
    partner = generator.permutation(len(labels))
    while (same := np.flatnonzero(labels[partner] == labels)).size:
        partner[same] = generator.integers(0, len(labels), same.size)
    return _stored((like.images.float() + like.images[torch.from_numpy(partner)].float()) / 2)


def _stored(pixels: Tensor) -> Tensor:
    return pixels.round().clamp_(0, 255).to(torch.uint8)


MADE: dict[str, Callable[[Images, Generator], Tensor]] = {
    "noise": _noise,
    "gaussian-noise": _gaussian_noise,
    "interpolation": _interpolation,
}
"""Names of made images."""
