"""How stored images become what a network sees: resizing, cropping and standardisation."""

from __future__ import annotations

from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor

from postgrad.data.augmentation import Augmentation, augment, views
from postgrad.data.pixels import centre, check_images, check_unit_range, standardise_each, to_unit
from postgrad.errors import UserError

__all__ = ["Augmentation", "Preprocessing", "augment", "views"]

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Preprocessing(BaseModel):
    """How stored uint8 pixels become what the network sees.

    >>> preprocess = Preprocessing(crop=24, per_image_standardise=True)
    >>> preprocess(torch.zeros(5, 3, 32, 32, dtype=torch.uint8)).shape
    torch.Size([5, 3, 24, 24])

    The steps, in this order; what is None or False is left out:

    size : the shorter side in pixels; bilinear with antialiasing, the longer side in proportion (rounded down).
    crop : the side in pixels of the square cut from the centre.
    mean, std : per channel (or one number for all), on pixels in [0, 1].
    per_image_standardise : (x − mean) / max(std, 1/√n) over the n pixels of all channels of one image.

    With nothing set, pixels come out in [0, 1].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: PositiveInt | None = None
    crop: PositiveInt | None = None
    mean: tuple[_Finite, ...] | None = None
    std: tuple[_Positive, ...] | None = None
    per_image_standardise: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; give both or neither")
        if self.mean is not None and self.std is not None:
            if not self.mean or len(self.mean) != len(self.std):
                raise ValueError(
                    f"mean has {len(self.mean)} numbers and std {len(self.std)}; give one for each channel to both"
                )
            if self.per_image_standardise:
                raise ValueError("mean and std exclude per_image_standardise; give one of the two")
        if self.size and self.crop and self.crop > self.size:
            raise ValueError(f"a crop of {self.crop} pixels does not fit a shorter side of {self.size}; lower the crop")
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """Prepare images (N, C, H, W), uint8 or floating point in [0, 1]; returns float32 (N, C, h, w)."""
        return self.standardise(self.centre_crop(self.resize(images)))

    def resize(self, images: Tensor) -> Tensor:
        """The first step alone: images whose shorter side is `size`; floating point if anything had to be done."""
        check_images(images)
        height, width = images.shape[2:]
        if self.size is None or self.size == min(height, width):
            return images
        short, long = self.size, int(self.size * max(height, width) / min(height, width))
        shape = (short, long) if height <= width else (long, short)
        if len(images) == 0:
            return torch.empty(0, images.shape[1], *shape, device=images.device)
        return F.interpolate(to_unit(images), size=shape, mode="bilinear", antialias=True, align_corners=False)

    def centre_crop(self, images: Tensor) -> Tensor:
        """The second step alone: the square of side `crop` from the centre, a view."""
        height, width = self.output_size(images)
        top, left = centre(images.shape[2], height), centre(images.shape[3], width)
        return images[:, :, top : top + height, left : left + width]

    def output_size(self, images: Tensor) -> tuple[int, int]:
        """Height and width that images which have their size already get by cropping; they must be large enough."""
        height, width = images.shape[2:]
        if self.crop is None:
            return height, width
        if self.crop > min(height, width):
            raise UserError(
                f"images of {height}×{width} pixels cannot be cropped to {self.crop}×{self.crop}; "
                f"lower the crop, or set a size of at least {self.crop}"
            )
        return self.crop, self.crop

    def standardise(self, images: Tensor) -> Tensor:
        """The last step alone: float32 pixels in [0, 1], then standardised."""
        if self.per_image_standardise:
            return standardise_each(to_unit(images))
        if self.mean is None or self.std is None:
            return to_unit(images)
        channels = images.shape[1]
        if len(self.mean) not in (1, channels):
            raise UserError(
                f"the images have {channels} channels, mean and std are given for {len(self.mean)}; "
                f"give {channels} numbers each"
            )
        check_unit_range(images)
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return (to_unit(images) - mean).div_(std)

    def describe(self) -> str:
        """One plain line.

        >>> Preprocessing(crop=24, per_image_standardise=True).describe()
        'centre crop to 24×24, each image standardised by its own mean and deviation'
        """
        parts = []
        if self.size:
            parts.append(f"shorter side resized to {self.size}")
        if self.crop:
            parts.append(f"centre crop to {self.crop}×{self.crop}")
        if self.per_image_standardise:
            parts.append("each image standardised by its own mean and deviation")
        elif self.mean is not None and self.std is not None:
            parts.append(f"standardised with mean {_numbers(self.mean)} and deviation {_numbers(self.std)}")
        else:
            parts.append("pixels from 0 to 1")
        return ", ".join(parts)


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
