"""One network trained by one recipe, and kept as a checkpoint: what `postgrad train` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from postgrad.controls.tuning import accuracy_and_nll, batched
from postgrad.data.datasets import Dataset, load_dataset
from postgrad.data.preprocessing import augment
from postgrad.data.splits import halves
from postgrad.devices import pick_device
from postgrad.errors import UserError
from postgrad.files import fresh_directory, locked, write_atomic
from postgrad.models.checkpoints import save
from postgrad.models.preprocessing import resolve_preprocessing
from postgrad.models.registry import create_model
from postgrad.models.weights import load_weights
from postgrad.studies.base_arm import base_recipe
from postgrad.studies.config import TrainConfig
from postgrad.studies.environment import environment
from postgrad.studies.run import resumable
from postgrad.training import History, Recipe, train
from postgrad.validation import validated


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
    directory = config.resume or fresh_directory(config.out)
    with locked(directory), resumable(directory, "train"):
        config.save(directory / "config.yaml")
        write_atomic(directory / "environment.json", json.dumps(environment(), indent=1))
        return directory, _train(config, recipe, dataset, directory)


def settled_recipe(config: TrainConfig) -> Recipe:
    """The base network's recipe with what `config.training` says in its place."""
    chosen = dict(config.training)
    lengths = {"epochs", "steps", "budget"}
    default = base_recipe(config.model, chosen.get("epochs"), chosen.get("stop_accuracy")).model_dump()
    left = {name: value for name, value in default.items() if name not in lengths or not lengths & chosen.keys()}
    for name in ("optimizer", "schedule"):
        if name in chosen:
            left.pop(f"{name}_options", None)  # another optimizer or schedule has other options
    return validated(Recipe, left | chosen, source="training")


def _train(config: TrainConfig, recipe: Recipe, dataset: Dataset, directory: Path) -> History:
    torch.manual_seed(config.seed)
    channels, height, width = dataset.shape
    model = create_model(
        config.model, num_classes=dataset.num_classes, in_channels=channels, image_size=(height, width)
    )
    if config.weights is not None:
        load_weights(model, config.weights)
    model.to(pick_device(config.device))
    preprocess, augmentation, _ = resolve_preprocessing(config.preprocess_flags(), model, dataset)
    parts = halves(dataset)
    assert dataset.train is not None
    images = dataset.train.subset(torch.cat([parts.base_train, parts.method_train]))
    held_back = dataset.train.subset(torch.cat([parts.base_validation, parts.method_validation]))

    def make_batch(indices: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return augment(images.images[indices], preprocess, augmentation, generator), images.labels[indices]

    def loss(network: torch.nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(network(batch[0]), batch[1], label_smoothing=recipe.label_smoothing)

    history = train(
        model,
        n=len(images),
        make_batch=make_batch,
        loss=loss,
        recipe=recipe,
        seed=config.seed,
        validate=lambda network: accuracy_and_nll(batched(network, preprocess, held_back.images), held_back.labels),
        directory=directory / "training",
        resume=config.resume is not None,
        label=f"training {config.model}",
    )
    save(model, directory, preprocess=preprocess, class_names=dataset.class_names)
    return history
