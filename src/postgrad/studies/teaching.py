"""What a training learns from beside its own images and labels: a teacher, and transfer images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from postgrad._loading import load, load_classifier
from postgrad.data.containers import Dataset, Images
from postgrad.data.preprocessing import Augmentation, Preprocessing, augment
from postgrad.data.transfer import NO_LABEL, joined, load_transfer
from postgrad.errors import UserError
from postgrad.methods._lessons import Lessons
from postgrad.methods._teacher import Teacher
from postgrad.methods.at_work import MethodsAtWork
from postgrad.studies.arm_config import MethodConfig
from postgrad.studies.energy import is_energy_model

_FEW = 2


class Settings(Protocol):
    """What is needed of the settings of a training, or of an arm of a study."""

    @property
    def teacher(self) -> tuple[str, ...]: ...
    @property
    def teacher_views(self) -> int | None: ...
    @property
    def methods(self) -> tuple[MethodConfig, ...]: ...
    @property
    def transfer(self) -> str | None: ...


class MakeBatch(Protocol):
    """The batch of the images at some indices; what is random is drawn from the generator."""

    def __call__(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]: ...


def with_transfer(images: Images, settings: Settings, dataset: Dataset, *, size: int | None, memory: str) -> Images:
    """The training images with the transfer images behind them."""
    if settings.transfer is None:
        return images
    more = load_transfer(
        settings.transfer, class_names=dataset.class_names, shape=dataset.shape, size=size, memory=memory
    )
    learns = settings.teacher or is_energy_model(settings.methods)
    if not learns and bool((more.labels == NO_LABEL).any()):
        raise UserError(
            f"{settings.transfer}: images without a label are learnt from by a teacher or by JEM; give --teacher, or "
            "--method jem"
        )
    return joined(images, more)


def in_words(images: Images, count: int) -> str:
    """What there is beside the first `count` images, which are the data set's own."""
    more = len(images) - count
    unlabelled = int((images.labels == NO_LABEL).sum())
    return f"{more} transfer images, {unlabelled} of them without a label, join {count} training images"


def make_batches(
    images: Images,
    at_work: MethodsAtWork,
    settings: Settings,
    dataset: Dataset,
    preprocess: Preprocessing,
    augmentation: Augmentation,
    device: torch.device,
) -> Lessons | MakeBatch:
    """What makes the batches of a training: inputs and labels, and the word of the teacher where it has one."""
    if not settings.teacher:

        def make_batch(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            return augment(images.images[indices], preprocess, augmentation, generator), images.labels[indices]

        return make_batch
    teacher = Teacher(
        open_teachers(settings.teacher, device),
        num_classes=dataset.num_classes,
        preprocess=preprocess,
        class_names=dataset.class_names,
        device=device,
    )
    lessons = Lessons(teacher, images, preprocess, augmentation, teacher_hint=at_work.teacher_hint)
    few = lessons(torch.arange(min(_FEW, len(images))), torch.Generator().manual_seed(0))
    at_work.get_ready(tuple(part.to(device) for part in few))
    return lessons


def open_teachers(specs: Sequence[str], device: torch.device) -> list[object]:
    """Load each: a network as it is, anything else as a classifier on this device."""
    found: list[object] = []
    for spec in specs:
        loaded = load(spec)
        found.append(loaded if isinstance(loaded, torch.nn.Module) else load_classifier(spec, device=str(device)))
    return found


def keep_answers(batches: Lessons | MakeBatch, views: int | None, directory: Path, *, seed: int) -> float:
    """Have the teacher answer beforehand where the settings say so; the CPU seconds that this takes."""
    if views is None or not isinstance(batches, Lessons):
        return 0.0
    batches.keep(views, directory, seed=seed)
    return batches.cpu_seconds
