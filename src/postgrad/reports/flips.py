"""Test images on which the method and the base disagree, as small pictures for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from postgrad.reports.rundir import Predictions

SHOWN = 12
_LARGEST_SIDE = 96


@dataclass(frozen=True)
class Example:
    """One test image with its true class and what both arms said."""

    picture: str
    true: str
    before: str
    after: str


@dataclass(frozen=True)
class Flips:
    """How many test images became right or wrong, and the first of each in file order."""

    gained: int
    lost: int
    total: int
    right: list[Example]
    wrong: list[Example]


def find_flips(
    images: NDArray[np.uint8] | None, before: Predictions, after: Predictions, names: Sequence[str]
) -> Flips:
    """Compare two arms image by image. Without images, or where they are not among the first ones, only the counts."""
    was_right, is_right = before.predicted == before.labels, after.predicted == after.labels
    gained, lost = np.flatnonzero(~was_right & is_right), np.flatnonzero(was_right & ~is_right)

    def examples(indices: NDArray[np.intp]) -> list[Example]:
        shown = [i for i in indices if images is not None and i < len(images)][:SHOWN]
        return [
            Example(
                picture=png_uri(images[i]),  # type: ignore[index]
                true=names[before.labels[i]],
                before=names[before.predicted[i]],
                after=names[after.predicted[i]],
            )
            for i in shown
        ]

    return Flips(len(gained), len(lost), len(was_right), examples(gained), examples(lost))


def png_uri(image: NDArray[np.uint8]) -> str:
    """An image (C, H, W) as a PNG data URI, at most 96 pixels on a side; of 2 or 4 channels only the first shows."""
    channels_last = np.moveaxis(image, 0, -1)
    picture = Image.fromarray(channels_last if channels_last.shape[-1] == 3 else channels_last[..., 0])
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
