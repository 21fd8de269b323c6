"""The rows of the study of what GradNet is worth: what a piece answers, how well, and at what price."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from postgrad.controls import Ensemble
from postgrad.models.network import NetworkClassifier
from postgrad.studies.run import write_arrays
from postgrad.studies.worth_pieces import Made, Piece, Study, make_piece
from postgrad.studies.worth_stage import Stage

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Row:
    """One classifier of a part: how good, at what price. `test` holds log-probabilities; None where none were taken.

    `against` names the rows that it is compared with, on the same test images.
    """

    name: str
    kind: str
    description: str
    cpu_seconds: float
    total_cpu_seconds: float
    passes: int
    validation: Tensor
    test: Tensor | None
    against: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


def answers(study: Study, name: str, part: str, answer: Callable[[Tensor], Tensor]) -> Tensor:
    """Log-probabilities (N, C) of the "validation" or "test" images, taken once and kept beside the piece `name`."""
    file = study.directory / name / f"{part}.npz"
    if not file.exists():
        images = study.test if part == "test" else study.validation
        write_arrays(file, log_probabilities=answer(images.images).float())
    with np.load(file) as arrays:
        return torch.from_numpy(arrays["log_probabilities"])


def network_answers(study: Study, network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Log-probabilities of a network by itself."""
    classifier = NetworkClassifier(
        network, preprocess=study.preprocess, class_names=study.dataset.class_names, device=study.recipe.device
    )
    return lambda images: classifier.logits(images).log_softmax(1)


def classifier_answers(classifier: Any) -> Callable[[Tensor], Tensor]:
    """Log-probabilities of anything with `predict_proba`."""
    return lambda images: torch.from_numpy(classifier.predict_proba(images)).clamp_min(_TINY).log()


def stage_answers(stage: Stage, network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Log-probabilities of a stage that reads through a network."""
    return lambda images: stage.log_probabilities(network, images)


def network_row(study: Study, network: nn.Module, piece: Piece, kind: str, *, name: str | None = None) -> Row:
    """A network by itself, on validation and test images."""
    return row(study, piece, network_answers(study, network), kind, passes=1, name=name)


def row(
    study: Study,
    piece: Piece,
    answer: Callable[[Tensor], Tensor],
    kind: str,
    *,
    passes: int,
    name: str | None = None,
    against: tuple[str, ...] = (),
) -> Row:
    """What answers for a piece, on validation and test images."""
    return Row(
        name or piece.name,
        kind,
        piece.description,
        piece.cpu_seconds,
        piece.total_cpu_seconds,
        passes,
        answers(study, piece.name, "validation", answer),
        answers(study, piece.name, "test", answer),
        against,
    )


def views_row(study: Study, name: str, members: Sequence[nn.Module], pieces: Sequence[Piece], views: int) -> Row:
    """The mean probabilities of some networks over some views of the image each; nothing is trained for it."""
    classifier = Ensemble(
        members,
        views=views,
        augmentation=study.augmentation,
        preprocess=study.preprocess,
        class_names=study.dataset.class_names,
    )
    words = f"{' + '.join(piece.name for piece in pieces)}, {views} view{'s' * (views > 1)} each"
    settings = {"views": views, "members": {each.name: each.cpu_seconds for each in pieces}}
    made = Made(0.0, words, classifier.num_parameters)
    piece = make_piece(study, name, settings, lambda _: made, pieces)
    return row(study, piece, classifier_answers(classifier), "control", passes=classifier.inference_passes)


def accuracy(log_probabilities: Tensor, labels: Tensor) -> float:
    """The share of images whose most probable class is the true one."""
    return float((log_probabilities.argmax(1) == labels).double().mean())
