"""The base arm of one seed: a network trained on the first half, alone or shared with other runs, or the user's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from postgrad.controls import Fitted, Setting
from postgrad.controls.tuning import accuracy_and_nll, batched, network_validator
from postgrad.data.datasets import Images
from postgrad.data.preprocessing import augment
from postgrad.models.source import source_of
from postgrad.studies.bases import SharedTraining, folder_of, shared_recipe
from postgrad.studies.seed_run import SeedRun
from postgrad.training import History, Recipe, train
from postgrad.training.log import learning_curve
from postgrad.training.state import copy_of_weights
from postgrad.validation import validated

AUGMENTED_IMAGES = 3000
"""A thousand images would leave a stop at .5 uncertain by 3 points, and its row beside the wrong published figure."""

BASE_EPOCHS = 30


@dataclass(frozen=True)
class SharedBase(Fitted):
    """A base whose training other rows share: what it took up to this row's stop, whichever row did it."""

    seconds: float = 0.0
    peak_memory_mb: float = 0.0


def fit_base(seed_run: SeedRun, directory: Path) -> Fitted:
    """Train the base on the first half, up to `base_accuracy` on its validation part; or take the user's own."""
    if seed_run.run.own is not None:
        return Fitted(seed_run.run.own, 0.0, "the network as given")
    if seed_run.run.config.bases is None:
        return _base_alone(seed_run, directory)
    shared = _shared_base(seed_run, seed_run.run.config.bases, directory)
    if shared is not None:
        return shared
    alone = _base_alone(seed_run, directory)
    return replace(alone, description=f"{alone.description}; trained alone, since the shared training was past it")


def _base_alone(seed_run: SeedRun, directory: Path) -> Fitted:
    model = seed_run.fresh()
    history = _train_base(seed_run, model, _recipe_of(seed_run), directory / "training")
    return Fitted(model, history.cpu_seconds, _how_it_ended(seed_run, history))


def _shared_base(seed_run: SeedRun, bases: Path, directory: Path) -> SharedBase | None:
    """The base of a training that other rows share; None where that went past its accuracy and kept no weights."""
    run, model, n = seed_run.run, seed_run.fresh(), len(seed_run.run.halves.base_train)
    recipe = shared_recipe(_recipe_of(seed_run), n)
    stop = SharedTraining(
        folder=folder_of(bases, _same_training(seed_run, model, recipe)),
        model=model,
        fit=lambda recipe, place, after_look: _train_base(seed_run, model, recipe, place, after_look),
        recipe=recipe,
        n=n,
        targets=run.config.base_targets,
    ).reach(run.config.base_accuracy)
    if stop is None:
        return None
    with learning_curve(directory / "training", []) as write_row:
        for row in stop.history.rows:
            write_row(row)
    return SharedBase(
        model,
        stop.history.cpu_seconds,
        f"{_how_it_ended(seed_run, stop.history)}; rows of one base share its training",
        seconds=stop.history.wall_seconds,
        peak_memory_mb=stop.peak_memory_mb,
    )


def _same_training(seed_run: SeedRun, model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """All that the bits of a base's training and its looks hang on; `model` is not trained yet."""
    run, source = seed_run.run, source_of(model)
    images = torch.cat([run.halves.base_train, run.halves.base_validation])
    return {
        "data": run.dataset.fingerprint,
        "images": _digest(images=images),
        "preprocess": run.preprocess.model_dump(mode="json"),
        "augmentation": run.augmentation.model_dump(mode="json"),
        "network": source and source.model_dump(mode="json"),
        "first_weights": _digest(**copy_of_weights(model)),
        "recipe": recipe.model_dump(mode="json"),
        "seed": seed_run.seed,
        "looks_at": run.config.base_accuracy_on,
        "device": str(run.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _digest(**tensors: Tensor) -> str:
    from safetensors.torch import save

    return hashlib.sha256(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})).hexdigest()


def _recipe_of(seed_run: SeedRun) -> Recipe:
    config = seed_run.run.config
    return base_recipe(
        config.model,
        config.epochs,
        config.base_accuracy,
        small=seed_run.run.dataset.shape[-1] < 24,
        validate_every=config.base_validate_every,
    )


def _train_base(
    seed_run: SeedRun,
    model: nn.Module,
    recipe: Recipe,
    directory: Path,
    after_look: Callable[[History], bool] | None = None,
) -> History:
    run, setting = seed_run.run, seed_run.setting(model, directory)
    assert run.dataset.train is not None
    images = run.dataset.train.subset(run.halves.base_train)
    return train(
        model,
        n=len(images),
        make_batch=lambda indices, generator: setting.training_batch(images, indices, generator),
        loss=lambda network, batch: torch.nn.functional.cross_entropy(network(batch[0]), batch[1]),
        recipe=recipe,
        seed=seed_run.seed,
        validate=_base_validator(seed_run, setting, run.dataset.train.subset(run.halves.base_validation)),
        directory=directory,
        resume=True,
        label="base",
        after_look=after_look,
    )


def _how_it_ended(seed_run: SeedRun, history: History) -> str:
    """The history of a base in words; one that never reached its accuracy is also warned of."""
    run, config = seed_run.run, seed_run.run.config
    if config.base_accuracy is None:
        return f"{history.steps} steps"
    assert history.best_metrics is not None
    reached = f"{history.best_metrics['accuracy']:.4f}"
    kind = "augmented validation accuracy" if config.base_accuracy_on == "augmented" else "validation accuracy"
    if history.reached_target:
        return f"stopped at {kind} {reached} after {history.steps} steps"
    run.warn(
        f"seed {seed_run.seed}: the base never reached the {kind} {config.base_accuracy:g}; "
        f"its best, {reached}, is used"
    )
    return f"best {kind} {reached}, at step {history.best_step} of {history.steps}"


def _base_validator(seed_run: SeedRun, setting: Setting, images: Images) -> Callable[[nn.Module], dict[str, float]]:
    """What says when the base stops; augmented images are drawn alike each time, so that no look is luckier."""
    if seed_run.run.config.base_accuracy_on == "plain":
        return network_validator(setting, images)
    spread = torch.linspace(0, len(images) - 1, min(AUGMENTED_IMAGES, len(images))).long()
    chosen = images.subset(spread)
    return lambda network: _augmented_figures(seed_run, network, chosen)


def _augmented_figures(seed_run: SeedRun, network: nn.Module, images: Images) -> dict[str, float]:
    """Accuracy and NLL of a network on images augmented as in training, once and by the seed."""
    run, generator = seed_run.run, torch.Generator().manual_seed(seed_run.seed)

    def augmented(part: Tensor) -> Tensor:
        return augment(part, run.preprocess, run.augmentation, generator)

    return accuracy_and_nll(batched(network, augmented, images.images), images.labels)


def base_recipe(
    model: str,
    epochs: float | None,
    accuracy: float | None,
    *,
    small: bool = False,
    validate_every: int | None = None,
) -> Recipe:
    """How a base network is trained: seed-cnn as published (SGD .05 halved every 25 epochs), others by momentum.

    On `small` images, below the published 24 pixels, seed-cnn gets a lower rate: at .05 it is through with the embedded
    digits before its first validation.
    """
    common: dict[str, Any] = {
        "epochs": epochs or BASE_EPOCHS,
        "stop_accuracy": accuracy,
        "validate_every": validate_every,
    }
    if model == "seed-cnn":
        return Recipe(
            **common,
            batch_size=64,
            lr=0.02 if small else 0.05,
            optimizer_options={"weight_decay": 5e-4},
            schedule="StepLR",
            schedule_options={"step_size": 25, "gamma": 0.5},
            schedule_interval="epoch",
        )
    return Recipe(
        **common,
        batch_size=64,
        lr=0.02,
        optimizer_options={"momentum": 0.9, "weight_decay": 5e-4},
        schedule="constant" if accuracy else "cosine",
    )


def recipe_with(model: str, chosen: Mapping[str, Any]) -> Recipe:
    """The base network's recipe with the `chosen` settings in its place."""
    lengths = {"epochs", "steps", "budget"}
    default = base_recipe(model, chosen.get("epochs"), chosen.get("stop_accuracy")).model_dump()
    left = {name: value for name, value in default.items() if name not in lengths or not lengths & chosen.keys()}
    for name in ("optimizer", "schedule"):
        if name in chosen:
            left.pop(f"{name}_options", None)  # another optimizer or schedule has other options
    return validated(Recipe, left | dict(chosen), source="training")


def augmented_accuracy(seed_run: SeedRun, network: nn.Module) -> float | None:
    if seed_run.run.config.base_accuracy_on == "plain":
        return None
    return _augmented_figures(seed_run, network, seed_run.run.test)["accuracy"]
