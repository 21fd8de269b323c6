"""What gradient space adds to a network trained to convergence on all the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from postgrad.controls.setting import without
from postgrad.data.preprocessing import augment
from postgrad.gradients.api import per_sample_gradients
from postgrad.gradients.names import weight_names
from postgrad.studies.worth_pieces import Piece, Study, converged_network, finetuned_network, stage_piece
from postgrad.studies.worth_recipe import ConvergedConfig, StageConfig
from postgrad.studies.worth_rows import (
    Row,
    accuracy,
    answers,
    network_answers,
    network_row,
    row,
    stage_answers,
    views_row,
)
from postgrad.studies.worth_stage import Source, Stage

COMPARED_IMAGES = 200
"""Validation images whose gradients under two networks are compared."""

SEEN_IMAGES = 2000
"""Training images on which the base is scored beside the validation images, which it has not seen."""

FEATURES = StageConfig(
    reads="features",
    batch_size=250,
    optimizer_options={"momentum": 0.9, "weight_decay": 5e-4},
    schedule="cosine",
    rates=(0.005, 0.02, 0.08),
)
"""The control of each stage on gradients: an MLP on last features, trained as `control-features` is."""


def converged(study: Study) -> Iterator[Row]:
    """Second stages fitted by cross-fitting, on a held-back part and on augmented images, each alone and added.

    Each stands beside its controls: the same stage on last features, and ordinary networks of equal data and time,
    under as many views as the stage reads gradients.
    """
    base, piece = _network(study, "converged", study.everything)
    own = network_row(study, base, piece, "base", name="base")
    yield replace(own, details={"seen": _seen(study, base, own)})
    yield views_row(study, "base-views", [base], [piece], study.dataset.num_classes)
    yield from _trained_on(study, "base", base, piece, study.everything)
    yield from _cross_fitted(study, base, piece, own)
    yield from _held_back(study)
    yield from _augmented(study, base, piece, own)


def _cross_fitted(study: Study, base: nn.Module, base_piece: Piece, own: Row) -> Iterator[Row]:
    """Stages on gradients of networks trained without the image in question, applied to the gradients of the base.

    Their coordinates correspond only as far as networks that began with the same weights keep them: `likeness` says how
    far. Read through the networks that it was fitted on, the stage shows what this mismatch costs.
    """
    folds = study.everything.tensor_split(_config(study).folds)
    made = [
        _network(study, f"without-fold-{number}", without(study.everything, fold)) for number, fold in enumerate(folds)
    ]
    networks, pieces = [network for network, _ in made], [piece for _, piece in made]
    members, below = [base, *networks], [base_piece, *pieces]
    sources = [Source(network, study.images(fold)) for network, fold in zip(networks, folds, strict=True)]
    views = max(1, study.dataset.num_classes // len(members))
    ensemble = views_row(study, "fold-ensemble", members, below, 1)
    yield ensemble
    yield views_row(study, "fold-ensemble-views", members, below, views)
    yield from _control_stage(study, "crossfit", sources, base, below, own)
    stage, piece = _stage(study, "crossfit", _config(study).stage, sources, base, below)
    controls = ("base", "base-views", "fold-ensemble", "fold-ensemble-views", "crossfit-features-added")
    alone = _stage_row(study, stage, piece, base, "crossfit", "method", controls)
    likeness = [_likeness(study, base, network) for network in networks]
    yield replace(alone, details={"likeness_of_gradients": likeness})
    yield _sum(study, alone, own)
    through = _through_folds(study, stage, piece, networks)
    yield through
    yield _sum(study, through, ensemble)


def _through_folds(study: Study, stage: Stage, piece: Piece, networks: Sequence[nn.Module]) -> Row:
    """The cross-fitted stage read through the networks that it was fitted on, its log-probabilities averaged."""

    def read(part: str) -> Tensor:
        each = [
            answers(study, f"{piece.name}/through-{number}", part, stage_answers(stage, network))
            for number, network in enumerate(networks)
        ]
        return torch.stack(each).mean(0).log_softmax(1)

    return Row(
        name="crossfit-through-folds",
        kind="method",
        description=f"{piece.description}; read through the networks that it was fitted on",
        cpu_seconds=piece.cpu_seconds,
        total_cpu_seconds=piece.total_cpu_seconds,
        passes=stage.inference_passes * len(networks),
        validation=read("validation"),
        test=read("test"),
        against=("base", "fold-ensemble", "fold-ensemble-views", "crossfit"),
    )


def _held_back(study: Study) -> Iterator[Row]:
    """The network trained on what is left of the data, the stages fitted on the part that was held back."""
    count = max(1, round(_config(study).held_back * len(study.everything)))
    rest, back = study.everything[:-count], study.everything[-count:]
    network, piece = _network(study, "rest", rest)
    own = network_row(study, network, piece, "control")
    yield own
    yield from _trained_on(study, "rest", network, piece, back)
    sources = [Source(network, study.images(back))]
    yield from _control_stage(study, "held-back", sources, network, [piece], own)
    stage, fitted = _stage(study, "held-back", _config(study).stage, sources, network, [piece])
    controls = ("base", "base-views", "rest", "rest-trained-on", "rest-trained-on-views", "held-back-features-added")
    alone = _stage_row(study, stage, fitted, network, "held-back", "method", controls)
    yield alone
    yield _sum(study, alone, own)


def _augmented(study: Study, base: nn.Module, base_piece: Piece, own: Row) -> Iterator[Row]:
    """The stages fitted on augmented images of the data that the base has seen."""
    sources = [Source(base, study.images(study.everything))]
    yield from _control_stage(study, "augmented", sources, base, [base_piece], own)
    stage, piece = _stage(study, "augmented", _config(study).stage, sources, base, [base_piece])
    controls = ("base", "base-views", "base-trained-on", "base-trained-on-views", "augmented-features-added")
    alone = _stage_row(study, stage, piece, base, "augmented", "method", controls)
    yield alone
    yield _sum(study, alone, own)


def _config(study: Study) -> ConvergedConfig:
    config = study.recipe.converged
    assert config is not None
    return config


def _network(study: Study, name: str, indices: Tensor) -> tuple[nn.Module, Piece]:
    return converged_network(study, name, indices, _config(study).epochs, _config(study).lr)


def _stage(
    study: Study,
    name: str,
    config: StageConfig,
    sources: Sequence[Source],
    judge: nn.Module,
    below: Sequence[Piece],
) -> tuple[Stage, Piece]:
    return stage_piece(study, name, config, sources, _config(study).seconds, judge=judge, stands_on=below)


def _stage_row(
    study: Study, stage: Stage, piece: Piece, network: nn.Module, name: str, kind: str, against: tuple[str, ...] = ()
) -> Row:
    answer = stage_answers(stage, network)
    return row(study, piece, answer, kind, passes=stage.inference_passes, name=name, against=against)


def _control_stage(
    study: Study,
    name: str,
    sources: Sequence[Source],
    network: nn.Module,
    below: Sequence[Piece],
    own: Row,
) -> Iterator[Row]:
    """The same on last features: equal data, time and number of parameters; alone and added."""
    size = {"hidden": _config(study).stage.hidden, "layers": _config(study).stage.layers}
    stage, piece = _stage(study, f"{name}-features", FEATURES.model_copy(update=size), sources, network, below)
    alone = _stage_row(study, stage, piece, network, f"{name}-features", "control")
    yield alone
    yield _sum(study, alone, own)


def _sum(study: Study, stage: Row, network: Row) -> Row:
    """log p of the network + w · log p of the stage; w is the best on validation images, the smallest of equals."""
    labels = study.validation.labels
    scores = {w: accuracy(network.validation + w * stage.validation, labels) for w in sorted(_config(study).weights)}
    weight = max(scores, key=lambda w: scores[w])
    assert network.test is not None
    assert stage.test is not None
    return replace(
        stage,
        name=f"{stage.name}-added",
        description=f"log p of {network.name} + {weight:g} · log p of {stage.name}",
        passes=stage.passes + network.passes,
        validation=(network.validation + weight * stage.validation).log_softmax(1),
        test=(network.test + weight * stage.test).log_softmax(1),
        details={"weight": weight, "validation_accuracy_by_weight": {f"{w:g}": score for w, score in scores.items()}},
    )


def _trained_on(study: Study, name: str, network: nn.Module, piece: Piece, indices: Tensor) -> Iterator[Row]:
    """The network trained on, on a stage's images for a stage's time; by itself and under views."""
    longer = f"{name}-trained-on"
    tuned, after = finetuned_network(study, longer, network, indices, _config(study).seconds, piece)
    yield network_row(study, tuned, after, "control")
    yield views_row(study, f"{longer}-views", [tuned], [after], study.dataset.num_classes)


def _seen(study: Study, network: nn.Module, own: Row) -> dict[str, float]:
    """The accuracy of a network on images that it was trained on, as they are and augmented, and on others."""
    few = study.images(study.everything[:SEEN_IMAGES])
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(study.seed)
    inputs = augment(few.images.to(device), study.preprocess, study.augmentation, generator)
    with torch.no_grad():
        augmented = torch.cat([network(part).cpu() for part in inputs.split(250)])
    return {
        "training": accuracy(network_answers(study, network)(few.images), few.labels),
        "training_augmented": accuracy(augmented, few.labels),
        "validation": accuracy(own.validation, study.validation.labels),
    }


def _likeness(study: Study, one: nn.Module, other: nn.Module) -> dict[str, float]:
    """The mean cosine, over some validation images, between the gradients of two networks under the true labels."""
    few = study.validation.subset(torch.arange(min(COMPARED_IMAGES, len(study.validation))))
    device = next(one.parameters()).device
    inputs, labels = study.preprocess(few.images.to(device)), few.labels.to(device)
    first, second = (per_sample_gradients(network, inputs, labels) for network in (one, other))
    return {
        name: float(torch.cosine_similarity(first[name].flatten(1), second[name].flatten(1)).mean())
        for name in weight_names(one)
    }
