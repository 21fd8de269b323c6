"""What every control of one method in one run is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from postgrad.data.datasets import Dataset, Images
from postgrad.data.preprocessing import Augmentation, Preprocessing, augment
from postgrad.data.splits import Halves


@dataclass(frozen=True)
class Setting:
    """The data, the base network and the time of one method, for the controls that it must beat.

    `fresh` makes the base's architecture with new weights, and is None for a user's own weights, where a new start
    would not be the same thing; `steps` holds step counts that earlier time budgets became, by key.
    """

    dataset: Dataset
    halves: Halves
    base: nn.Module
    preprocess: Preprocessing
    augmentation: Augmentation
    seed: int
    directory: Path
    steps: dict[str, int]
    fresh: Callable[[], nn.Module] | None = None
    base_seconds: float = 0.0
    method_seconds: float = 0.0
    method_parameters: int = 0
    passes: int = 1

    @property
    def device(self) -> torch.device:
        """Where the base lies, and with it everything that is trained here."""
        return next(self.base.parameters()).device

    @property
    def train(self) -> Images:
        """All training images; `load_dataset` was asked for them before."""
        assert self.dataset.train is not None
        return self.dataset.train

    @property
    def validation(self) -> Images:
        """The images that chose between learning rates, and that no arm was fitted on."""
        return self.train.subset(self.halves.method_validation)

    @property
    def tuning_images(self) -> Images:
        """The images that a control is fitted on: the method's, without any that chooses its learning rate."""
        return self.train.subset(without(self.halves.method_train, self.halves.method_validation))

    def key(self, training: str) -> str:
        """The name under which the step counts of a training are kept."""
        return f"seed{self.seed}/{self.directory.name}/{training}"

    def training_batch(self, images: Images, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augmented inputs and labels of some images, on the device."""
        chosen = images.images[indices].to(self.device)
        inputs = augment(chosen, self.preprocess, self.augmentation, generator)
        return inputs, images.labels[indices].to(self.device)


def without(indices: Tensor, others: Tensor) -> Tensor:
    """The indices that are not among the others, in their order."""
    return indices[~torch.isin(indices, others)]
