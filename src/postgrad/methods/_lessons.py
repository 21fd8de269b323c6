"""The batches of a training with a teacher: each image augmented once, for both; answers kept on disk."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from postgrad.data.augmentation import Draws, augmented_pictures, draw
from postgrad.data.containers import Images
from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.errors import UserError
from postgrad.files import atomic_path, write_atomic
from postgrad.methods._teacher import Teacher
from postgrad.progress import progress
from postgrad.training.clock import Stopwatch

_BATCH = 256
_STREAM = 7
"""Keeps the draws of kept views apart from a training's other random numbers."""


class _Kept(NamedTuple):
    """What was drawn for each view of each image, (views, images) each, and of each view the answers (images, C)."""

    draws: Draws
    answers: list[np.ndarray]


class Lessons:
    """Makes the batches of a student's training: inputs, labels, and the teacher's word on the same pictures.

    >>> lessons = Lessons(teacher, images, preprocess, augmentation)
    >>> train(student, n=len(images), make_batch=lessons, loss=at_work.loss, …)

    Crop, flip and contrast are drawn once for each image; the student's preprocessing takes its centre of that picture,
    and the teacher's what it takes of any image (`augmented_pictures`).

    Parameters
    ----------
    images : with labels, −1 where there is none.
    preprocess, augmentation : the student's.
    teacher_hint : the teacher's layer, where its feature and not its logits are its word.
    """

    def __init__(
        self,
        teacher: Teacher,
        images: Images,
        preprocess: Preprocessing,
        augmentation: Augmentation,
        *,
        teacher_hint: str | None = None,
    ) -> None:
        teacher.check_pictures(preprocess)
        self.teacher = teacher
        self.images = images
        self.preprocess = preprocess
        self.augmentation = augmentation
        self.teacher_hint = teacher_hint
        self.cpu_seconds = 0.0
        self._kept: _Kept | None = None

    def __call__(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (n, …), labels (n,) and logits (n, C), or features, of the images at these indices."""
        labels = self.images.labels[indices]
        if self._kept is None:
            resized = self.preprocess.resize(self.images.images[indices])
            pictures = self._pictures(resized, draw(resized, self.preprocess, self.augmentation, generator))
            return self._inputs(pictures), labels, self._word(pictures)
        view = torch.randint(len(self._kept.answers), (len(indices),), generator=generator)
        resized = self.preprocess.resize(self.images.images[indices])
        pictures = self._pictures(resized, self._kept.draws.of((view, indices)))
        rows = np.stack([answers[indices.numpy()] for answers in self._kept.answers])
        return self._inputs(pictures), labels, torch.from_numpy(rows)[view, torch.arange(len(view))]

    def keep(self, views: int, directory: Path, *, seed: int) -> None:
        """Ask the teacher once, for `views` fixed augmented views of each image, and keep its logits in a directory.

        From then on each image of a batch shows one of its views, drawn from the batch's generator, so that a training
        that goes on sees what it would have seen. The rows lie in a file for each view, float32, so that they are what
        the teacher said, mapped into memory. They are kept for this teacher, these images, this preprocessing,
        augmentation and seed; others are made anew, which is said. `cpu_seconds` is what the asking took, whoever did
        it. Raises `UserError` for a teacher whose word is a feature.
        """
        if self.teacher_hint is not None:
            raise UserError("teacher_views: a teacher's logits are kept, not its features; leave them out")
        key = self._key(seed)
        file = directory / "answers.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"key": key, "cpu_seconds": {}}
        if known["key"] != key:
            changed = ", ".join(name for name in key if known["key"].get(name) != key[name])
            print(f"{directory}: the teacher is asked anew, since another {changed} was kept there", file=sys.stderr)
            known = {"key": key, "cpu_seconds": {}}
            write_atomic(file, json.dumps(known, indent=1))
        draws = [self._draws_of_view(view, seed) for view in range(views)]
        left = [view for view in range(views) if str(view) not in known["cpu_seconds"]]
        with progress("the teacher's answers", len(left) * len(self.images), unit="images") as advance:
            for view in left:
                with (watch := Stopwatch()):
                    self._ask(draws[view], directory / f"answers-{view}.npy", advance)
                known["cpu_seconds"][str(view)] = watch.cpu_seconds
                write_atomic(file, json.dumps(known, indent=1))
        self.cpu_seconds = sum(known["cpu_seconds"][str(view)] for view in range(views))
        of_all: Any = (None if each[0] is None else torch.stack(each) for each in zip(*draws, strict=True))
        rows = [np.load(directory / f"answers-{view}.npy", mmap_mode="r") for view in range(views)]
        self._kept = _Kept(Draws(*of_all), rows)

    def _key(self, seed: int) -> dict[str, Any]:
        digest = hashlib.sha256()
        for chunk in self.images.images.split(_BATCH):
            digest.update(np.ascontiguousarray(chunk.numpy()).tobytes())
        return {
            "teacher": self.teacher.fingerprint(self.preprocess.resize(self.images.images[:_BATCH])),
            "images": digest.hexdigest()[:16],
            "preprocessing": self.preprocess.model_dump(mode="json"),
            "augmentation": self.augmentation.model_dump(mode="json"),
            "seed": seed,
        }

    def _draws_of_view(self, view: int, seed: int) -> Draws:
        (number,) = np.random.SeedSequence((seed, _STREAM, view)).generate_state(1).tolist()
        shape = self.preprocess.resize(self.images.images[:1]).shape
        generator = torch.Generator().manual_seed(number)
        # Shapes alone decide what is drawn.
        of_size = torch.empty(1).expand(len(self.images), *shape[1:])
        return draw(of_size, self.preprocess, self.augmentation, generator)

    def _ask(self, draws: Draws, path: Path, advance: Any) -> None:
        with atomic_path(path) as temporary:
            shape = (len(self.images), self.teacher.num_classes)
            kept = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            for part in torch.arange(len(self.images)).split(_BATCH):
                pictures = self._pictures(self.preprocess.resize(self.images.images[part]), draws.of(part))
                kept[part.numpy()] = self.teacher.logits(pictures).float().cpu().numpy()
                advance(len(part))
            kept.flush()

    def _pictures(self, resized: Tensor, draws: Draws) -> Tensor:
        return augmented_pictures(resized, self.preprocess, self.augmentation, draws)

    def _inputs(self, pictures: Tensor) -> Tensor:
        return self.preprocess.standardise(self.preprocess.centre_crop(pictures))

    def _word(self, pictures: Tensor) -> Tensor:
        if self.teacher_hint is None:
            return self.teacher.logits(pictures)
        return self.teacher.feature(pictures, self.teacher_hint)
