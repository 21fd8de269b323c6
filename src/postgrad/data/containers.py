"""Images with their labels, and a data set with everything that is known of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from postgrad.data.cache import nameless_file
from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.errors import UserError

_SLICE = 256


@dataclass(frozen=True)
class Images:
    """Images (N, C, H, W), uint8, and the class index of each, (N,) int64.

    >>> images.subset(torch.tensor([0, 5, 7])).images.shape
    torch.Size([3, 3, 32, 32])

    `mapped` says that the images lie in a file, since they are more than memory should hold; so do their subsets.
    """

    images: Tensor
    labels: Tensor
    mapped: bool = False

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise UserError(f"images: expected uint8 (N, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != (len(self.images),):
            raise UserError(
                f"labels: expected {len(self.images)} int64 class indices, "
                f"got {self.labels.dtype} {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor | NDArray[np.int64]) -> Images:
        """The images at these indices, in their order; a run of neighbours shares its memory with the whole."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        first, count = (int(chosen[0]), len(chosen)) if len(chosen) else (0, 0)
        if first >= 0 and torch.equal(chosen, torch.arange(first, first + count)):
            if first + count > len(self):
                raise IndexError(f"index {first + count - 1} is out of range for {len(self)} images")
            return Images(self.images[first : first + count], self.labels[first : first + count], self.mapped)
        images = self._copied_to_file(chosen) if self.mapped else self.images[chosen]
        return Images(images, self.labels[chosen], self.mapped)

    def _copied_to_file(self, chosen: Tensor) -> Tensor:
        target = nameless_file((len(chosen), *self.images.shape[1:]))
        for start in range(0, len(chosen), _SLICE):
            target[start : start + _SLICE] = self.images[chosen[start : start + _SLICE]].numpy()
        return torch.from_numpy(target)


@dataclass(frozen=True)
class Dataset:
    """A data set in memory (or mapped into it), with its defaults.

    >>> dataset = load_dataset("digits")
    >>> dataset.shape, dataset.num_classes, len(dataset.train), len(dataset.test)
    ((1, 8, 8), 10, 1438, 359)

    train, test : None where that part was not found.
    preprocess, augmentation : the data set's defaults, for networks that have no word of their own.
    prescribed_order : True where halves are taken by file order; otherwise they are stratified.
    fingerprint : 16 hexadecimal digits of a SHA-256 over all images and labels.
    notes : what the user should be told, in whole sentences.
    """

    name: str
    train: Images | None
    test: Images | None
    class_names: tuple[str, ...]
    preprocess: Preprocessing
    augmentation: Augmentation
    prescribed_order: bool
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        images = self.test if self.train is None else self.train
        assert images is not None, "a data set has at least one part"
        channels, height, width = images.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Found:
    """What a reader found: unchecked arrays, NCHW uint8 and class indices, and what it has to say."""

    train: Images | None
    test: Images | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
