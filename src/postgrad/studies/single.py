"""One network trained by one recipe, and kept as a checkpoint: what `postgrad train` does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from postgrad.controls.tuning import accuracy_and_nll, batched
from postgrad.data.datasets import Dataset, load_dataset
from postgrad.data.splits import halves
from postgrad.devices import pick_device
from postgrad.errors import UserError
from postgrad.files import fresh_directory, locked, write_atomic
from postgrad.growth.at_work import GrowthAtWork
from postgrad.methods.at_work import InputBatches, MethodsAtWork, TrainingSet
from postgrad.models.checkpoints import save
from postgrad.models.preprocessing import resolve_preprocessing
from postgrad.models.registry import create_model
from postgrad.models.weights import load_weights
from postgrad.studies.base_arm import recipe_with
from postgrad.studies.config import TrainConfig
from postgrad.studies.energy import check_range, keep_chains, range_flags, say, training_of, watching
from postgrad.studies.environment import environment
from postgrad.studies.growing import growth_at_work, with_size
from postgrad.studies.run import resumable, write_event
from postgrad.studies.teaching import in_words, keep_answers, make_batches, with_transfer
from postgrad.training import DivergedError, History, Recipe, train


def train_network(config: TrainConfig) -> tuple[Path, History]:
    """Train a network on all training images but a tenth, which validates it; returns its directory and its training.

    >>> directory, history = train_network(TrainConfig(data="digits", training={"epochs": 5}))
    >>> postgrad.load(directory)

    Where `config.training` says nothing, the base network's recipe stands. `config.resume` goes on with an interrupted
    run. Raises `UserError` for settings, data or weights that cannot be used.
    """
    recipe = settled_recipe(config)
    dataset = load_dataset(
        config.data, data_dir=config.data_dir, limit=config.limit, size=config.size, memory=config.memory
    )
    if dataset.train is None:
        raise UserError(f"{config.data} has no training images; name another data set")
    training = _prepared(config, recipe, dataset)
    directory = config.resume or fresh_directory(config.out)
    with locked(directory), resumable(directory, "train"):
        config.save(directory / "config.yaml")
        write_atomic(directory / "environment.json", json.dumps(environment(), indent=1))
        return directory, training(directory)


def settled_recipe(config: TrainConfig) -> Recipe:
    """The base network's recipe with what `config.training` says in its place."""
    return recipe_with(config.model, training_of(config.methods, config.training))


def _prepared(config: TrainConfig, recipe: Recipe, dataset: Dataset) -> Callable[[Path], History]:
    """The training, for which a directory is still to be given; whatever does not fit together has been refused."""
    torch.manual_seed(config.seed)
    channels, height, width = dataset.shape
    model = create_model(
        config.model, num_classes=dataset.num_classes, in_channels=channels, image_size=(height, width)
    )
    if config.weights is not None:
        load_weights(model, config.weights)
    device = pick_device(config.device)
    model.to(device)
    preprocess, augmentation, _ = resolve_preprocessing(
        range_flags(config.methods, config.preprocess_flags()), model, dataset
    )
    check_range(config.methods, preprocess)
    parts = halves(dataset)
    assert dataset.train is not None
    own = dataset.train.subset(torch.cat([parts.base_train, parts.method_train]))
    images = with_transfer(own, config, dataset, size=config.size, memory=config.memory)
    held_back = dataset.train.subset(torch.cat([parts.base_validation, parts.method_validation]))

    at_work = MethodsAtWork(
        model,
        [(method.name, method.options) for method in config.methods],
        steps_per_epoch=recipe.steps_per_epoch(len(images)),
        label_smoothing=recipe.label_smoothing,
        batches=InputBatches(images.images, preprocess, augmentation, recipe.batch_size, config.seed, device),
        training_set=TrainingSet(images.images, images.labels, preprocess, augmentation),
    )

    make_batch = make_batches(images, at_work, config, dataset, preprocess, augmentation, device)

    def growth(event: Callable[..., None]) -> list[GrowthAtWork]:
        return growth_at_work(
            model,
            config.growth,
            at_work,
            recipe=recipe,
            images=images.images,
            inputs=lambda few: preprocess(few.to(device)),
            seed=config.seed,
            event=event,
        )

    for each in growth(lambda *_, **__: None) if config.resume is None else ():
        each.rehearse()

    def validate(network: nn.Module) -> dict[str, float]:
        return accuracy_and_nll(batched(network, preprocess, held_back.images), held_back.labels)

    def training(directory: Path) -> History:
        if config.transfer is not None:
            print(in_words(images, len(own)), file=sys.stderr)
        at_work.told = partial(_went_back, directory)
        asking = keep_answers(make_batch, config.teacher_views, directory / "teacher", seed=config.seed)
        try:
            history = train(
                model,
                n=len(images),
                make_batch=make_batch,
                loss=at_work.loss,
                recipe=recipe,
                seed=config.seed,
                validate=watching(with_size(validate, model, grows=bool(config.growth)), at_work),
                directory=directory / "training",
                resume=config.resume is not None,
                label=f"training {config.model}",
                companions=[at_work, *growth(partial(write_event, directory))],
                beside=at_work.parameters,
            )
        except DivergedError as error:
            if at_work.energy_model is None:
                raise
            save(model.eval(), directory, preprocess=preprocess, class_names=dataset.class_names)
            write_event(directory, "gave up", reason=str(error))
            raise DivergedError(f"{error}; the best network on the way is in {directory}") from error
        keep_chains(at_work, directory)
        save(model, directory, preprocess=preprocess, class_names=dataset.class_names)
        return replace(history, cpu_seconds=history.cpu_seconds + asking)

    return training


def _went_back(directory: Path, **what: Any) -> None:
    """Log that a training went back to an earlier state."""
    write_event(directory, "diverged", **what)
    say(what)
