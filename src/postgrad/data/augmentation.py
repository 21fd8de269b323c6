"""What training adds to preprocessing: random crops, flips and contrast on batches; and fixed views for testing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator
from torch import Tensor

from postgrad.data.pixels import centre, cut, to_unit
from postgrad.errors import UserError

if TYPE_CHECKING:
    from postgrad.data.preprocessing import Preprocessing

_Factor = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Augmentation(BaseModel):
    """What training adds to the preprocessing of images.

    >>> Augmentation(pad=4, crop=True, flip=True)

    pad : pixels of zeros added on every side before the random crop.
    crop : cut at random, not from the centre: the crop of the preprocessing, or else the image's own size.
    flip : mirror left and right with probability 1/2.
    contrast : the range of one random factor f for each image: (x − mean)·f + mean in each channel, where the mean is
        that of the channel; after the crop and before the standardisation. With `per_image_standardise` nothing is cut
        off; otherwise pixels stay from 0 to 1, as they are when the network is used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pad: NonNegativeInt = 0
    crop: bool = False
    flip: bool = False
    contrast: tuple[_Factor, _Factor] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.pad and not self.crop:
            raise ValueError("pad adds room for a random crop; set crop too")
        if self.contrast and self.contrast[0] > self.contrast[1]:
            raise ValueError(f"contrast: the range {self.contrast} ends before it begins; swap the two")
        return self


def augment(
    images: Tensor, preprocessing: Preprocessing, augmentation: Augmentation, generator: torch.Generator
) -> Tensor:
    """Prepare a batch of training images, each with its own random crop, flip and contrast.

    >>> augment(images, Preprocessing(crop=24), Augmentation(crop=True), torch.Generator().manual_seed(0)).shape
    torch.Size([128, 3, 24, 24])

    `images` are as `Preprocessing` takes them; float32 (N, C, h, w) comes out, on the same device. All randomness is
    drawn from `generator`, which lives on the CPU, so that results do not depend on the device.
    """
    images = preprocessing.resize(images)
    draws = draw(images, preprocessing, augmentation, generator)
    if augmentation.crop or augmentation.flip:
        images = _cut(_padded(images, augmentation), draws, *preprocessing.output_size(images))
    else:
        images = preprocessing.centre_crop(images)
    if draws.contrast is not None:
        images = to_unit(images)
        images = _with_contrast(images, images, draws.contrast, preprocessing)
    return preprocessing.standardise(images)


class Draws(NamedTuple):
    """What augmentation draws for each of some images: (count,) each; `contrast` is None where there is none.

    top, left : where the crop begins, in the padded image.
    """

    top: Tensor
    left: Tensor
    mirrored: Tensor
    contrast: Tensor | None

    def of(self, indices: Any) -> Draws:
        """Those of the images at these indices."""
        contrast = None if self.contrast is None else self.contrast[indices]
        return Draws(self.top[indices], self.left[indices], self.mirrored[indices], contrast)


def draw(images: Tensor, preprocessing: Preprocessing, augmentation: Augmentation, generator: torch.Generator) -> Draws:
    """Draw a crop, a flip and a contrast for each of some images, which have their size already.

    In this order: all tops, all lefts, all flips, all contrasts.
    """
    count = len(images)
    height, width = (side + 2 * augmentation.pad for side in images.shape[2:])
    inner_height, inner_width = preprocessing.output_size(images)
    top = torch.full((count,), centre(height, inner_height))
    left = torch.full((count,), centre(width, inner_width))
    if augmentation.crop:
        top = torch.randint(height - inner_height + 1, (count,), generator=generator)
        left = torch.randint(width - inner_width + 1, (count,), generator=generator)
    mirrored = torch.zeros(count, dtype=torch.bool)
    if augmentation.flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
    contrast = None
    if augmentation.contrast is not None:
        low, high = augmentation.contrast
        contrast = low + (high - low) * torch.rand(count, generator=generator)
    return Draws(top, left, mirrored, contrast)


def augmented_pictures(
    images: Tensor, preprocessing: Preprocessing, augmentation: Augmentation, draws: Draws
) -> Tensor:
    """Whole augmented pictures, from which each network takes its own: (N, C, H, W) as images have their size already.

    >>> images = preprocess.resize(images)
    >>> draws = draw(images, preprocess, augmentation, generator)
    >>> pictures = augmented_pictures(images, preprocess, augmentation, draws)
    >>> inputs = preprocess.standardise(preprocess.centre_crop(pictures))

    The centre that `preprocessing` cuts out of a picture is, bit for bit, what `augment` cuts at random: the image is
    shifted and mirrored, and its contrast is changed by as much. What is shifted in from beyond the image is the zeros
    of the padding, and beyond those the pixels of the edge. uint8 stays so without contrast.
    """
    height, width = images.shape[2:]
    inner_height, inner_width = preprocessing.output_size(images)
    above, before = centre(height, inner_height), centre(width, inner_width)
    after = width - inner_width - before  # where the centre of a mirrored picture begins, seen from the image
    left = draws.left - torch.where(draws.mirrored, after, before)
    around = Draws(draws.top - above, left, draws.mirrored, None)
    pictures = _cut(_padded(images, augmentation), around, height, width)
    if draws.contrast is None:
        return pictures
    pictures = to_unit(pictures)
    return _with_contrast(pictures, preprocessing.centre_crop(pictures).contiguous(), draws.contrast, preprocessing)


def _padded(images: Tensor, augmentation: Augmentation) -> Tensor:
    return F.pad(images, [augmentation.pad] * 4) if augmentation.pad else images


def _cut(images: Tensor, draws: Draws, height: int, width: int) -> Tensor:
    """Crop and flip in one gather; a row or column beyond the edge repeats the edge."""
    rows = draws.top[:, None] + torch.arange(height)
    columns = torch.arange(width)
    columns = draws.left[:, None] + torch.where(draws.mirrored[:, None], columns.flip(0), columns)
    rows, columns = rows.clamp(0, images.shape[2] - 1), columns.clamp(0, images.shape[3] - 1)
    return cut(images, rows.to(images.device), columns.to(images.device))


def _with_contrast(images: Tensor, seen: Tensor, factor: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(x − mean)·f + mean, where the mean of each channel is that of the part that is seen."""
    mean = seen.mean(dim=(2, 3), keepdim=True)
    changed = (images - mean).mul_(factor.to(images.device).view(-1, 1, 1, 1)).add_(mean)
    return changed if preprocessing.per_image_standardise else changed.clamp_(0, 1)


def views(images: Tensor, preprocessing: Preprocessing, count: int, *, augmentation: Augmentation) -> Iterator[Tensor]:
    """The same images seen `count` times, as training might show them, always in the same order: the centre first.

    >>> ten = views(images, preprocess, 10, augmentation=augmentation)
    >>> probabilities = sum(network(view).softmax(1) for view in ten) / 10

    Each view is float32 (N, C, h, w). They differ by where the crop lies; with `augmentation.flip` a mirror image
    follows each. Crops spread evenly over the room there is. Where there is none, images are shifted, by one pixel
    first, and filled up with zeros if training padded with zeros, otherwise with the pixels of the edge.
    """
    if count < 1:
        raise UserError(f"views: expected at least one, got {count}")
    images = preprocessing.resize(images)
    height, width = preprocessing.output_size(images)
    images = _padded(images, augmentation)
    mirrors = (False, True) if augmentation.flip else (False,)
    shifts = _shifts(images.shape[2] - height, images.shape[3] - width, math.ceil(count / len(mirrors)))
    for (down, right), mirrored in itertools.islice(itertools.product(shifts, mirrors), count):
        rows = torch.arange(height) + centre(images.shape[2], height) + down
        columns = torch.arange(width) + centre(images.shape[3], width) + right
        if mirrored:
            columns = columns.flip(0)
        # A row or column beyond the edge repeats the edge.
        rows = rows.clamp(0, images.shape[2] - 1).to(images.device)
        columns = columns.clamp(0, images.shape[3] - 1).to(images.device)
        yield preprocessing.standardise(images[:, :, rows][:, :, :, columns])


def _shifts(spare_rows: int, spare_columns: int, count: int) -> list[tuple[int, int]]:
    """`count` different shifts (down, right): none first, then those nearest to half the room on each side.

    Where the room has too few positions, shifts go beyond it.
    """
    down, right = (spare_rows // 2, spare_columns // 2)
    while (2 * down + 1) * (2 * right + 1) < count:
        down, right = down + 1, right + 1
    typical = min(spare_rows // 2, spare_columns // 2) / 2
    grid = itertools.product(range(-down, down + 1), range(-right, right + 1))

    def order(shift: tuple[int, int]) -> tuple[bool, float]:
        return shift != (0, 0), abs(math.hypot(*shift) - typical)

    return sorted(grid, key=order)[:count]
