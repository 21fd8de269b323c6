"""One seed of the study of important edges: its base network and fine-tunings, each made once and kept as a file."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.controls.setting import Setting
from postgrad.controls.tuning import Diverged, accuracy_and_nll, batched, network_validator
from postgrad.data.datasets import Dataset
from postgrad.data.splits import halves
from postgrad.files import write_atomic
from postgrad.methods.edges import Masks, edge_importance, top_edges
from postgrad.methods.edges import training_only as training_only_masked
from postgrad.models.checkpoints import load, save
from postgrad.models.preprocessing import resolve_preprocessing
from postgrad.models.registry import create_model
from postgrad.studies.base_arm import base_recipe
from postgrad.studies.run import write_arrays
from postgrad.training import Recipe, Stopwatch, train

Kind = Literal["all", "gradient", "magnitude", "random"]
KINDS: tuple[Kind, ...] = ("gradient", "magnitude", "random")


class EdgeStudy(BaseModel):
    """Every setting of the study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = "digits"
    model: str = "mlp"
    limit: PositiveInt | None = None
    seeds: PositiveInt = 5
    base_accuracy: float = Field(default=0.85, gt=0, le=1)
    """Validation accuracy on the first half at which the base stops."""
    base_epochs: float = Field(default=30, gt=0)
    shares: tuple[float, ...] = (0.05, 0.1, 0.2)
    rates: tuple[float, ...] = (0.0005, 0.002, 0.008, 0.032, 0.128, 0.512)
    """The grid of learning rates, the same for each arm."""
    tuning_seeds: PositiveInt = 1
    """The first seeds, whose validation accuracy chooses an arm's learning rate."""
    epochs: float = Field(default=5, gt=0)
    """Passes over the second half."""
    batch_size: PositiveInt = 128
    ranking_images: PositiveInt = 2000
    """Images over which gradients rank the edges; their time counts as the arm's."""
    evaluations: PositiveInt = 10
    """Points of the learning curve."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"shares: expected shares between 0 and 1, got {self.shares}")
        if not self.rates or not all(rate > 0 for rate in self.rates):
            raise ValueError(f"rates: expected learning rates above 0, got {self.rates}")
        if self.tuning_seeds > self.seeds:
            raise ValueError(f"tuning_seeds: {self.tuning_seeds} of {self.seeds} seeds cannot be")
        return self


@dataclass(frozen=True)
class Arm:
    """Which edges are fine-tuned: all weights and biases, or a share of the weights chosen in one way."""

    kind: Kind
    share: float = 1.0

    @property
    def name(self) -> str:
        return "all" if self.kind == "all" else f"{self.kind}-{100 * self.share:g}"


class Seed:
    """One seed of a study: its base network and the trainings on it, each kept as a file when it is over."""

    def __init__(self, config: EdgeStudy, dataset: Dataset, directory: Path, seed: int) -> None:
        self.config = config
        self.dataset = dataset
        self.directory = directory
        self.seed = seed

    @cached_property
    def base(self) -> nn.Module:
        """The base network, trained up to `base_accuracy` on the first half, or read from its file."""
        if not (self.directory / "base.json").exists():
            self._train_base()
        return load(self.directory / "base")

    @cached_property
    def base_record(self) -> dict[str, Any]:
        """What training the base was: its accuracies, steps and CPU time."""
        assert self.base is not None
        return _read(self.directory / "base.json")

    @cached_property
    def setting(self) -> Setting:
        return self._setting(self.base)

    @cached_property
    def ranked(self) -> tuple[dict[str, Tensor], float]:
        """The mean gradient in each weight over images of the second half, and the CPU time that it took."""
        images = self.setting.tuning_images
        few = images.subset(torch.arange(min(self.config.ranking_images, len(images))))
        with Stopwatch() as watch:
            importance = edge_importance(self.base, few.images, few.labels, preprocess=self.setting.preprocess)
        return importance, watch.cpu_seconds

    def masks(self, arm: Arm) -> tuple[Masks | None, float]:
        """The masks of an arm and the CPU time that they took."""
        if arm.kind == "all":
            return None, 0.0
        importance, seconds = self.ranked
        if arm.kind == "gradient":
            return top_edges(importance, top=arm.share), seconds
        generator = torch.Generator().manual_seed(self.seed)
        scores = {
            name: self.base.get_parameter(name).detach().abs()
            if arm.kind == "magnitude"
            else torch.rand(importance[name].shape, generator=generator)
            for name in importance
        }
        return top_edges(scores, top=arm.share), 0.0

    def fine_tuned(self, arm: Arm, rate: float) -> dict[str, Any]:
        """One training: run it and keep its record and predictions, or read them."""
        file = self._file(arm, rate)
        if file.exists():
            return _read(file)
        model = deepcopy(self.base)
        masks, ranking_seconds = self.masks(arm)
        trained = (
            sum(int(mask.sum()) for mask in masks.values()) if masks else sum(p.numel() for p in model.parameters())
        )
        record: dict[str, Any] = {
            "arm": arm.name,
            "seed": self.seed,
            "rate": rate,
            "trained": trained,
            "ranking_cpu_seconds": ranking_seconds,
        }
        try:
            record |= self._train(model, masks, rate, file.stem)
        except Diverged as diverged:
            record |= {"diverged": True, "cpu_seconds": diverged.cpu_seconds}
        else:
            record |= self._score(model, file.with_suffix(".npz"))
        write_atomic(file, json.dumps(record, indent=1))
        print(f"seed {self.seed}, {arm.name}, rate {rate:g}: {_in_words(record)}", file=sys.stderr, flush=True)
        return record

    def predictions(self, arm: Arm, rate: float) -> np.ndarray:
        """The predicted class of each test image after fine-tuning."""
        return _predicted(self._file(arm, rate).with_suffix(".npz"))

    def base_predictions(self) -> np.ndarray:
        """Those of the base."""
        return _predicted(self.directory / "base.npz")

    def _file(self, arm: Arm, rate: float) -> Path:
        return self.directory / arm.name / f"rate-{rate:g}.json"

    def _setting(self, base: nn.Module) -> Setting:
        preprocess, augmentation, _ = resolve_preprocessing({}, base, self.dataset)
        return Setting(
            dataset=self.dataset,
            halves=halves(self.dataset),
            base=base,
            preprocess=preprocess,
            augmentation=augmentation,
            seed=self.seed,
            directory=self.directory,
            steps={},
        )

    def _train_base(self) -> None:
        config, dataset = self.config, self.dataset
        channels, height, width = dataset.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = create_model(
                config.model, num_classes=dataset.num_classes, in_channels=channels, image_size=(height, width)
            )
        setting = self._setting(model)
        images = setting.train.subset(setting.halves.base_train)
        history = train(
            model,
            n=len(images),
            make_batch=lambda indices, generator: setting.training_batch(images, indices, generator),
            loss=lambda network, batch: F.cross_entropy(network(batch[0]), batch[1]),
            recipe=base_recipe(config.model, config.base_epochs, config.base_accuracy, small=width < 24),
            seed=self.seed,
            validate=network_validator(setting, setting.train.subset(setting.halves.base_validation)),
            label=f"base, seed {self.seed}",
        )
        save(model, self.directory / "base", preprocess=setting.preprocess, class_names=dataset.class_names)
        record = {
            "seed": self.seed,
            "steps": history.steps,
            "cpu_seconds": history.cpu_seconds,
            "reached": history.reached_target,
            "validation": network_validator(setting, setting.validation)(model),
            **self._score(model, self.directory / "base.npz"),
        }
        write_atomic(self.directory / "base.json", json.dumps(record, indent=1))

    def _train(self, model: nn.Module, masks: Masks | None, rate: float, label: str) -> dict[str, Any]:
        config, setting = self.config, self.setting
        images = setting.tuning_images
        steps = max(1, round(config.epochs * math.ceil(len(images) / config.batch_size)))
        recipe = Recipe(
            steps=steps,
            batch_size=config.batch_size,
            lr=rate,
            optimizer_options={"momentum": 0.9, "weight_decay": 5e-4},
            schedule="cosine",
            validate_every=math.ceil(steps / config.evaluations),
        )
        watch = Stopwatch()

        def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            value = F.cross_entropy(network(batch[0]), batch[1])
            if not value.isfinite():
                raise Diverged(watch.cpu_seconds)
            return value

        with watch, training_only(model, masks):
            history = train(
                model,
                n=len(images),
                make_batch=lambda indices, generator: setting.training_batch(images, indices, generator),
                loss=loss,
                recipe=recipe,
                seed=self.seed,
                validate=network_validator(setting, setting.validation),
                label=f"seed {self.seed}, {label}",
            )
        curve = [{name: row[name] for name in ("step", "seconds", "accuracy", "nll", "loss")} for row in history.rows]
        last = history.rows[-1]
        validation = {"accuracy": last["accuracy"], "nll": last["nll"]}
        return {"steps": steps, "cpu_seconds": history.cpu_seconds, "validation": validation, "curve": curve}

    def _score(self, model: nn.Module, file: Path) -> dict[str, Any]:
        test = self.dataset.test
        assert test is not None
        logits = batched(model.eval(), self._setting(model).preprocess, test.images)
        write_arrays(file, predicted=logits.argmax(1).to(torch.uint8))
        return {"test": accuracy_and_nll(logits, test.labels)}


@contextlib.contextmanager
def training_only(model: nn.Module, masks: Masks | None) -> Iterator[None]:
    """Masked training, or ordinary training without masks."""
    if masks is None:
        yield
    else:
        with training_only_masked(model, masks):
            yield


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _predicted(file: Path) -> np.ndarray:
    with np.load(file) as arrays:
        return np.asarray(arrays["predicted"])


def _in_words(record: dict[str, Any]) -> str:
    if "diverged" in record:
        return "the loss became infinite"
    accuracy = record["validation"]["accuracy"]
    return f"validation {accuracy:.4f} after {record['steps']} steps, {record['cpu_seconds']:.1f} s"
