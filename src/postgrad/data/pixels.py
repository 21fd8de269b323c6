"""Small steps on batches of images (N, C, H, W) that preprocessing and augmentation share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from postgrad.errors import UserError


def check_images(images: Tensor) -> None:
    """Refuse what is not a batch of images: the wrong number of axes, no pixels, whole numbers other than uint8."""
    if images.ndim != 4:
        raise UserError(
            f"images: expected four axes (N, C, H, W), got shape {tuple(images.shape)}; add what is missing"
        )
    if 0 in images.shape[1:]:
        raise UserError(f"images: expected at least one channel, row and column, got shape {tuple(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise UserError(f"images: expected uint8, or floating point from 0 to 1, got {images.dtype}; convert them")


def check_unit_range(images: Tensor) -> None:
    """Refuse floating point pixels that are plainly not in [0, 1]; noise may lead a little out of it."""
    if images.is_floating_point() and images.numel():
        low, high = (float(value) for value in torch.aminmax(images.detach()))
        if not (low >= -0.5 and high <= 1.5):
            raise UserError(
                f"images: floating point pixels go from {low:g} to {high:g}, expected 0 to 1; give uint8, or scale them"
            )


def to_unit(images: Tensor) -> Tensor:
    """Pixels as float32 in [0, 1]; floating point images are taken to be there already."""
    return images.float() if images.is_floating_point() else images.float().div_(255)


def centre(length: int, part: int) -> int:
    """Where the central `part` of `length` begins, with torchvision's rounding."""
    return round((length - part) / 2)


def cut(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """From each image the pixels at its own rows (N, h) and columns (N, w), in one gather: (N, C, h, w)."""
    count, channels, _, width = images.shape
    index = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).flatten(1).unsqueeze(1)
    pixels = images.flatten(2).gather(2, index.expand(-1, channels, -1))
    return pixels.view(count, channels, rows.shape[1], columns.shape[1])


def standardise_each(images: Tensor) -> Tensor:
    """(x − mean) / max(std, 1/√n) for each image, with the population std over its n pixels."""
    pixels = images.flatten(1)
    root = math.sqrt(pixels.shape[1])
    centred = pixels - pixels.mean(dim=1, keepdim=True)
    std = torch.linalg.vector_norm(centred, dim=1, keepdim=True).div(root).clamp(min=1 / root)
    # In place where nobody asks for a gradient through it: large fresh memory is slow.
    scaled = centred / std if centred.requires_grad else centred.div_(std)
    return scaled.view(images.shape)
