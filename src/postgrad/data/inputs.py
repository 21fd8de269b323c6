"""Checks of the arrays that a user hands to an estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from postgrad.errors import UserError


def image_tensor(x: Any, *, allow_empty: bool = False) -> Tensor:
    """Images (N, C, H, W) as a tensor: uint8 as it is, any float as it is, NaN and other shapes refused.

    >>> image_tensor(np.zeros((2, 1, 8, 8), dtype=np.uint8)).shape
    torch.Size([2, 1, 8, 8])
    """
    images = x if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x))
    if images.ndim != 4:
        raise UserError(
            f"images: expected four axes (N, C, H, W), got shape {tuple(images.shape)}; add the axes that are missing"
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise UserError(f"images: expected uint8 or floating point pixels, got {images.dtype}; convert them first")
    if len(images) == 0 and not allow_empty:
        raise UserError("images: got none; give at least one")
    if images.is_floating_point() and not bool(torch.isfinite(images).all()):
        bad = int((~torch.isfinite(images).flatten(1).all(dim=1)).nonzero()[0])
        raise UserError(f"images: image {bad} holds NaN or infinite pixels; remove or repair it")
    return images


def label_tensor(y: Any, count: int, num_classes: int | None = None) -> Tensor:
    """Class indices (N,) as an int64 tensor, one for each of `count` images, within 0 … num_classes − 1."""
    values = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if values.ndim != 1 or len(values) != count:
        raise UserError(f"labels: expected {count} class indices, one for each image, got shape {values.shape}")
    if not (np.issubdtype(values.dtype, np.integer) or np.all(values == np.floor(values))):
        raise UserError(f"labels: expected class indices (whole numbers), got {values.dtype}; encode the names first")
    labels = torch.from_numpy(values.astype(np.int64))
    if count and int(labels.min()) < 0:
        raise UserError(f"labels: {int(labels.min())} is negative; class indices start at 0")
    if count and num_classes is not None and int(labels.max()) >= num_classes:
        raise UserError(
            f"labels: {int(labels.max())} is out of range; there are {num_classes} classes, 0 … {num_classes - 1}"
        )
    return labels
