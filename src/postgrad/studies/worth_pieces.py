"""The pieces of the study of what GradNet is worth: trained networks and stages, each made once and kept on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.controls import Fitted, Setting, control_more_data
from postgrad.controls.finetune import finetune
from postgrad.data.datasets import Dataset, Images, load_dataset
from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.data.splits import Halves, halves
from postgrad.devices import pick_device
from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.models.checkpoints import load, save
from postgrad.models.preprocessing import resolve_preprocessing
from postgrad.models.registry import create_model
from postgrad.studies.worth_recipe import StageConfig, WorthRecipe
from postgrad.studies.worth_stage import Source, Stage
from postgrad.training import Recipe, train

NOTHING = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Piece:
    """What is remembered of one finished piece: what it was asked for, what it cost, how it came to be.

    `below` has the process CPU seconds of every piece that it stands on, and that those stand on, by name.
    """

    name: str
    settings: dict[str, Any]
    description: str
    cpu_seconds: float
    parameters: int
    below: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def total_cpu_seconds(self) -> float:
        return self.cpu_seconds + sum(self.below.values())


@dataclass(frozen=True)
class Study:
    """One seed of the study: the data, how it is divided, and where its pieces are kept.

    `first` and `second` are the halves that may be trained on, `held_out` the images that only choose; indices into the
    training images.
    """

    recipe: WorthRecipe
    dataset: Dataset
    directory: Path
    seed: int
    first: Tensor
    second: Tensor
    held_out: Tensor
    preprocess: Preprocessing
    augmentation: Augmentation

    @property
    def everything(self) -> Tensor:
        """All indices that may be trained on, in an order of their own, so that any slice is a sample."""
        both = torch.cat([self.first, self.second])
        return both[torch.randperm(len(both), generator=torch.Generator().manual_seed(self.seed))]

    @cached_property
    def validation(self) -> Images:
        return self.images(self.held_out)

    @property
    def test(self) -> Images:
        assert self.dataset.test is not None
        return self.dataset.test

    def images(self, indices: Tensor) -> Images:
        assert self.dataset.train is not None
        return self.dataset.train.subset(indices)

    def fresh(self) -> nn.Module:
        """The architecture with new weights, the same ones in all pieces of a seed."""
        channels, height, width = self.dataset.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return create_model(
                self.recipe.model,
                num_classes=self.dataset.num_classes,
                in_channels=channels,
                image_size=(height, width),
            ).to(pick_device(self.recipe.device))

    def stage(self, config: StageConfig, network: nn.Module) -> Stage:
        return Stage(
            config,
            network,
            self.preprocess,
            self.augmentation,
            example=self.validation.images,
            memory=self.recipe.memory,
        )

    def setting(self, directory: Path, *, base: nn.Module, fitted_on: Tensor, **more: Any) -> Setting:
        """What a control is given whose images are `fitted_on`, all of it held to the same validation images."""
        return Setting(
            dataset=self.dataset,
            halves=Halves(more.pop("first", NOTHING), NOTHING, fitted_on, self.held_out),
            base=base,
            preprocess=self.preprocess,
            augmentation=self.augmentation,
            seed=self.seed,
            directory=directory,
            steps={},
            **more,
        )


def open_study(recipe: WorthRecipe, dataset: Dataset, out: Path, seed: int) -> Study:
    """Divide the data. Nothing is trained on the validation parts of either half; together they choose everything."""
    parts = halves(dataset)
    held_out = torch.cat([parts.base_validation, parts.method_validation])
    count = min(recipe.validation_images or len(held_out), len(held_out))
    held_out = held_out[torch.linspace(0, len(held_out) - 1, count).long()]
    study = Study(
        recipe,
        dataset,
        out / f"seed-{seed}",
        seed,
        parts.base_train,
        parts.method_train,
        held_out,
        dataset.preprocess,
        dataset.augmentation,
    )
    preprocess, augmentation, _ = resolve_preprocessing({}, study.fresh(), dataset)
    return replace(study, preprocess=preprocess, augmentation=augmentation)


def load_data(recipe: WorthRecipe, data_dir: Path | None) -> Dataset:
    dataset = load_dataset(recipe.data, data_dir=data_dir, limit=recipe.limit)
    if dataset.train is None or dataset.test is None:
        raise UserError(f"{recipe.data}: this study needs training and test images; name another data set")
    return dataset


# networks


def timed_network(study: Study, name: str, indices: Tensor, seconds: float) -> tuple[nn.Module, Piece]:
    """A network from new weights for some seconds, its learning rate tuned within them, a cosine to their end."""

    def fit(directory: Path) -> Fitted:
        network = study.fresh()
        return control_more_data(
            study.setting(directory, base=network, fitted_on=indices, fresh=study.fresh, method_seconds=seconds)
        )

    return network_piece(study, name, {"images": len(indices), "seconds": seconds}, fit)


def finetuned_network(
    study: Study, name: str, base: nn.Module, indices: Tensor, seconds: float, stands_on: Piece
) -> tuple[nn.Module, Piece]:
    """A network trained on for some seconds, its learning rate tuned within them, a cosine to their end."""

    def fit(directory: Path) -> Fitted:
        return finetune(study.setting(directory, base=base, fitted_on=indices), seconds, "training", study.seed)

    settings = {"images": len(indices), "seconds": seconds, "of": stands_on.name}
    return network_piece(study, name, settings, fit, [stands_on])


def converged_network(study: Study, name: str, indices: Tensor, epochs: float, lr: float) -> tuple[nn.Module, Piece]:
    """A network from new weights for some passes: momentum .9, weight decay 5e-4, batches of 128, a cosine to zero."""

    def fit(directory: Path) -> Fitted:
        network = study.fresh()
        setting = study.setting(directory, base=network, fitted_on=indices)
        images = study.images(indices)
        history = train(
            network,
            n=len(images),
            make_batch=lambda chosen, generator: setting.training_batch(images, chosen, generator),
            loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
            recipe=Recipe(
                epochs=epochs,
                batch_size=min(128, len(images)),
                lr=lr,
                optimizer_options={"momentum": 0.9, "weight_decay": 5e-4},
                schedule="cosine",
            ),
            seed=study.seed,
            directory=directory / "training",
            resume=True,
            label=name,
        )
        return Fitted(network, history.cpu_seconds, f"learning rate {lr:g}, {epochs:g} passes, {history.steps} steps")

    return network_piece(study, name, {"images": len(indices), "epochs": epochs, "lr": lr}, fit)


def network_piece(
    study: Study,
    name: str,
    settings: Mapping[str, Any],
    fit: Callable[[Path], Fitted],
    stands_on: Sequence[Piece] = (),
) -> tuple[nn.Module, Piece]:
    """The network of a piece: made now, or loaded."""

    def make(directory: Path) -> Made:
        fitted = fit(directory)
        save(fitted.model, directory / "network", preprocess=study.preprocess, class_names=study.dataset.class_names)
        return Made(fitted.cpu_seconds, fitted.description, _size(fitted.model), {"trials": fitted.trials})

    piece = make_piece(study, name, settings, make, stands_on)
    network = load(study.directory / name / "network")
    return network.to(pick_device(study.recipe.device)), piece


# stages


def stage_piece(
    study: Study,
    name: str,
    config: StageConfig,
    sources: Sequence[Source],
    seconds: float,
    *,
    judge: nn.Module,
    stands_on: Sequence[Piece],
) -> tuple[Stage, Piece]:
    """A second stage for the network `judge`, fitted within some seconds: made now, or loaded."""
    stage = study.stage(config, judge)

    def make(directory: Path) -> Made:
        fitted = stage.fit(
            sources,
            seconds=seconds,
            seed=study.seed,
            directory=directory / "training",
            judge=Source(judge, study.validation),
        )
        stage.save(directory)
        return Made(fitted.cpu_seconds, fitted.description, stage.num_parameters, {"trials": fitted.trials})

    settings = {"seconds": seconds, "images": [len(source.images) for source in sources], **config.model_dump()}
    piece = make_piece(study, name, settings, make, stands_on)
    stage.load(study.directory / name)
    return stage, piece


# the cache on disk


@dataclass(frozen=True)
class Made:
    """What making a piece came to: its own process CPU seconds, in words, and how many parameters it has."""

    cpu_seconds: float
    description: str
    parameters: int
    details: dict[str, Any] = field(default_factory=dict)


def make_piece(
    study: Study,
    name: str,
    settings: Mapping[str, Any],
    make: Callable[[Path], Made],
    stands_on: Sequence[Piece] = (),
) -> Piece:
    """Make a piece, or take the finished one; one that was asked for with other settings is a `UserError`.

    Its piece.json is written last, so that a piece without one goes on from its checkpoints; those are dropped then.
    """
    directory = study.directory / name
    asked = json.loads(json.dumps({**_common(study), **settings}))
    file = directory / "piece.json"
    if file.exists():
        piece = Piece(**json.loads(file.read_text(encoding="utf-8")))
        _same_settings(directory, piece.settings, asked)
    else:
        directory.mkdir(parents=True, exist_ok=True)
        made = make(directory)
        below = prices(stands_on)
        piece = Piece(name, asked, made.description, made.cpu_seconds, made.parameters, below, made.details)
        write_atomic(file, json.dumps(asdict(piece), indent=1))
        print(f"{name}: {made.description}, {made.cpu_seconds:.0f} CPU s", flush=True)
    for training in directory.glob("training*"):
        shutil.rmtree(training)
    return piece


def prices(pieces: Sequence[Piece]) -> dict[str, float]:
    """The CPU seconds of some pieces and of all that they stand on, by name, so that each counts once."""
    return {
        name: seconds for piece in pieces for name, seconds in {**piece.below, piece.name: piece.cpu_seconds}.items()
    }


def _common(study: Study) -> dict[str, Any]:
    return {
        "data": study.dataset.fingerprint,
        "model": study.recipe.model,
        "seed": study.seed,
        "validation_images": len(study.validation),
    }


def _same_settings(directory: Path, was: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    changed = [
        f"{key} was {was.get(key)!r}, is now {asked.get(key)!r}"
        for key in sorted({*was, *asked})
        if was.get(key) != asked.get(key)
    ]
    if changed:
        raise UserError(
            f"{directory} holds a piece with other settings: {'; '.join(changed)}; delete it or choose another --out"
        )


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
