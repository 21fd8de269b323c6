"""The search for a gradient-space classifier that beats every fair control at equal data, time and inference price."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.controls import Fitted, Setting, control_features, control_finetune, control_more_data, control_same_price
from postgrad.controls.finetune import RATES
from postgrad.controls.setting import without
from postgrad.controls.tuning import Task, network_validator, tuned
from postgrad.data.preprocessing import augment
from postgrad.studies.run import write_arrays
from postgrad.studies.worth_curve import half_network
from postgrad.studies.worth_pieces import Made, Piece, Study, finetuned_network, make_piece, network_piece, stage_piece
from postgrad.studies.worth_recipe import BeyondConfig, DistilConfig, SettingConfig
from postgrad.studies.worth_rows import (
    Row,
    accuracy,
    answers,
    classifier_answers,
    network_answers,
    network_row,
    row,
    stage_answers,
)
from postgrad.studies.worth_stage import Source, Stage
from postgrad.training import Stopwatch

CONTROLS = ("control-finetune", "control-features", "control-more-data", "control-same-price")


@dataclass(frozen=True)
class Below:
    """What a setting stands on: the network that its stage is for, what it is fitted on, and the pieces of both."""

    network: nn.Module
    sources: list[Source]
    pieces: list[Piece]


@dataclass(frozen=True)
class Tried:
    """A setting that was fitted: its piece, how it answers, its passes for each image, the size of its second stage."""

    piece: Piece
    answer: Callable[[Tensor], Tensor]
    passes: int
    stage_parameters: int


def beyond(study: Study) -> Iterator[Row]:
    """Every setting on validation images; then the best of them, and its controls, on the test images.

    The time of each control is that of the chosen setting, as if no other had been tried: what this favours is the
    method.
    """
    base, base_piece = half_network(study, _config(study).base_seconds)
    yield network_row(study, base, base_piece, "base", name="base")
    best, chosen = None, None
    for setting in _config(study).settings:
        tried = _try(study, setting, base, base_piece)
        found = _tried_row(study, setting.name, tried, base_piece)
        yield found
        if best is None or _validation_accuracy(study, found) > _validation_accuracy(study, best):
            best, chosen = found, tried
    assert best is not None
    assert chosen is not None
    yield replace(
        best,
        name="chosen",
        kind="method",
        description=f"{best.name}: {best.description}",
        test=answers(study, chosen.piece.name, "test", chosen.answer),
        against=("base", *CONTROLS),
    )
    yield from _controls(study, base, base_piece, chosen, best)


def _config(study: Study) -> BeyondConfig:
    config = study.recipe.beyond
    assert config is not None
    return config


def _validation_accuracy(study: Study, found: Row) -> float:
    return accuracy(found.validation, study.validation.labels)


def _tried_row(study: Study, name: str, tried: Tried, base_piece: Piece) -> Row:
    total = tried.piece.total_cpu_seconds
    return Row(
        name=name,
        kind="tried",
        description=tried.piece.description,
        cpu_seconds=total - base_piece.cpu_seconds,
        total_cpu_seconds=total,
        passes=tried.passes,
        validation=answers(study, tried.piece.name, "validation", tried.answer),
        test=None,
    )


def _try(study: Study, setting: SettingConfig, base: nn.Module, base_piece: Piece) -> Tried:
    if setting.network == "finetuned":
        below = _finetuned(study, base, base_piece)
    else:
        below = Below(base, [Source(base, study.images(study.second))], [base_piece])
    name = f"tried-{setting.name}"
    seconds = _config(study).seconds - sum(piece.cpu_seconds for piece in below.pieces[1:])
    if setting.distil is not None:
        return _distilled(study, name, setting, setting.distil, below, seconds)
    stage, piece = _stage(study, name, setting, below, seconds)
    return Tried(piece, stage_answers(stage, below.network), stage.inference_passes, piece.parameters)


def _stage(study: Study, name: str, setting: SettingConfig, below: Below, seconds: float) -> tuple[Stage, Piece]:
    return stage_piece(study, name, setting.stage, below.sources, seconds, judge=below.network, stands_on=below.pieces)


def _finetuned(study: Study, base: nn.Module, base_piece: Piece) -> Below:
    """The base fine-tuned on the method's images, and for each half of them a network fine-tuned on the other alone.

    All begin with the base's weights, so that their coordinates correspond.
    """
    seconds, prefix = _config(study).finetune_seconds, f"{base_piece.name}-finetuned"
    network, piece = finetuned_network(study, f"{prefix}-for-{seconds:g}s", base, study.second, seconds, base_piece)
    order = study.second[torch.randperm(len(study.second), generator=torch.Generator().manual_seed(study.seed))]
    below = Below(network, [], [base_piece, piece])
    for number, part in enumerate(order.tensor_split(2)):
        name = f"{prefix}-without-{number}-for-{seconds / 2:g}s"
        other, made = finetuned_network(study, name, base, without(order, part), seconds / 2, base_piece)
        below.sources.append(Source(other, study.images(part)))
        below.pieces.append(made)
    return below


# distillation: GradNet's answers in the targets of the network itself


def _distilled(
    study: Study, name: str, setting: SettingConfig, distil: DistilConfig, below: Below, seconds: float
) -> Tried:
    """The network fine-tuned on the method's images, with targets in which GradNet has a say: one pass an image."""
    teacher, teaching = _stage(study, f"{name}-teacher", setting, below, seconds * distil.teacher_share)
    labelling = _labelled(study, f"{name}-labels", teacher, below, distil.images, teaching)
    left = seconds - teaching.cpu_seconds - labelling.cpu_seconds
    targets = _targets(study, below, distil, study.directory / labelling.name / "labels.npz")
    pixels = torch.cat([source.images.images for source in below.sources])

    def fit(directory: Path) -> Fitted:
        control = study.setting(directory, base=below.network, fitted_on=study.second)

        def make_batch(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            inputs = augment(pixels[indices].to(control.device), study.preprocess, study.augmentation, generator)
            return inputs, targets[indices].to(control.device)

        task = Task(
            make_model=lambda: deepcopy(below.network),
            n=len(pixels),
            make_batch=make_batch,
            validate=network_validator(control, study.validation),
        )
        place = directory / "training"
        return tuned(task, rates=RATES, seconds=left, seed=study.seed, directory=place, steps={}, key=name)

    settings = {"seconds": seconds, "stage": setting.stage.model_dump(), **distil.model_dump()}
    student, piece = network_piece(study, name, settings, fit, [*below.pieces, teaching, labelling])
    return Tried(piece, network_answers(study, student), 1, teaching.parameters)


def _labelled(study: Study, name: str, teacher: Stage, below: Below, count: int, teaching: Piece) -> Piece:
    """GradNet's probabilities for the first images of each source, read through its network, as labels.npz.

    They are among the images that it was fitted on: no others of the method's data are left to label.
    """

    def make(directory: Path) -> Made:
        with (watch := Stopwatch(teacher.device)):
            each = [
                teacher.log_probabilities(source.network, source.images.images[:share]).exp()
                for source, share in zip(below.sources, _shares(below, count), strict=True)
            ]
        write_arrays(directory / "labels.npz", probabilities=torch.cat(each))
        return Made(watch.cpu_seconds, f"{sum(map(len, each))} images labelled", 0)

    return make_piece(study, name, {"images": count, "teacher": teaching.settings}, make, [teaching])


def _shares(below: Below, count: int) -> list[int]:
    """How many images of each source are labelled: equal parts of `count`, as far as there are so many."""
    return [min(count // len(below.sources), len(source.images)) for source in below.sources]


def _targets(study: Study, below: Below, distil: DistilConfig, file: Path) -> Tensor:
    """Soft targets (n, C): the label, and for what GradNet labelled (1 − weight) · label + weight · its answer."""
    with np.load(file) as arrays:
        soft = torch.from_numpy(arrays["probabilities"])
    targets = []
    for source, share in zip(below.sources, _shares(below, distil.images), strict=True):
        own = F.one_hot(source.images.labels, study.dataset.num_classes).float()
        answers_of_gradnet, soft = soft[:share], soft[share:]
        own[:share] = (1 - distil.weight) * own[:share] + distil.weight * answers_of_gradnet
        targets.append(own)
    return torch.cat(targets)


# the controls of what was chosen


def _controls(study: Study, base: nn.Module, base_piece: Piece, chosen: Tried, best: Row) -> Iterator[Row]:
    """The four controls at the chosen setting's data, time, parameters and price at inference."""
    more: dict[str, Any] = {
        "first": study.first,
        "fresh": study.fresh,
        "base_seconds": base_piece.cpu_seconds,
        "method_seconds": best.cpu_seconds,
        "method_parameters": chosen.stage_parameters,
        "passes": chosen.passes,
    }
    settings = {"chosen": chosen.piece.name, "seconds": best.cpu_seconds}

    def setting(directory: Path) -> Setting:
        return study.setting(directory, base=base, fitted_on=study.second, **more)

    def network_control(
        name: str, control: Callable[[Setting], Fitted], below: Sequence[Piece]
    ) -> tuple[nn.Module, Piece]:
        return network_piece(study, name, settings, lambda directory: control(setting(directory)), below)

    finetuned, finetuning = network_control("control-finetune", control_finetune, [base_piece])
    yield network_row(study, finetuned, finetuning, "control")
    more_data, training = network_control("control-more-data", control_more_data, [])
    yield network_row(study, more_data, training, "control")
    yield _classifier_control(
        study, "control-features", settings, lambda directory: control_features(setting(directory)), [base_piece]
    )
    yield _classifier_control(
        study,
        "control-same-price",
        settings,
        lambda directory: control_same_price(setting(directory), finetuned, more_data),
        [base_piece],
        passes=chosen.passes,
    )


def _classifier_control(
    study: Study,
    name: str,
    settings: dict[str, Any],
    fit: Callable[[Path], Fitted],
    below: Sequence[Piece],
    passes: int = 1,
) -> Row:
    """A control that is no network: its answers are kept, and not itself."""

    def make(directory: Path) -> Made:
        fitted = fit(directory)
        answer = classifier_answers(fitted.model)
        for part in ("validation", "test"):
            answers(study, name, part, answer)
        return Made(fitted.cpu_seconds, fitted.description, fitted.model.num_parameters, {"trials": fitted.trials})

    piece = make_piece(study, name, settings, make, below)
    return row(study, piece, _refuse, "control", passes=passes)


def _refuse(images: Tensor) -> Tensor:
    raise AssertionError("the answers of a finished control are on disk")
