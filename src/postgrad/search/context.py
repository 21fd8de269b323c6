"""What all jobs of a search share in one process: settings, images, and how a network is trained and measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad._loading import load
from postgrad.controls.tuning import accuracy_and_nll, batched
from postgrad.data.datasets import Images, load_dataset
from postgrad.data.preprocessing import Augmentation, Preprocessing, augment
from postgrad.data.splits import halves
from postgrad.devices import pick_device
from postgrad.evaluation.cost import latency_ms, multiply_adds
from postgrad.models.network import NetworkClassifier
from postgrad.models.preprocessing import resolve_preprocessing
from postgrad.models.registry import create_model
from postgrad.search.config import SearchConfig
from postgrad.search.individual import Genes, Individual
from postgrad.search.regularise import OutputPenalty, dropout_before_last
from postgrad.studies.prepare import own_network
from postgrad.training import History, Recipe, train
from postgrad.validation import validated

POPULATION = "population"
"""The folder of a run in which its individuals lie, each under its name."""

EXAMPLES = 64
"""Images on which operators look at a network; normalisations that are put in take their statistics."""

TRAINING = {
    "batch_size": 64,
    "optimizer": "sgd",
    "optimizer_options": {"momentum": 0.9},
    "lr": 0.01,
    "schedule": "cosine",
}
"""How every network of a search is trained, as far as the settings do not say otherwise.

The rate is low because units that were replicated by widening learn together: their sum moves as many times as far.
"""

PASSES = 3
"""Multiply-adds of a training step over those of a prediction: forward, and backward to weights and to inputs."""


@dataclass(frozen=True)
class Trained:
    """What came of a training: validation accuracy and NLL, its length, and what it took."""

    accuracy: float
    nll: float
    loss: float
    steps: int
    epochs: float
    multiply_adds: int
    cpu_seconds: float
    seconds: float


@dataclass(frozen=True)
class Measured:
    """What a prediction with a network costs: multiply-adds of one image, wall time of one call with one image."""

    parameters: int
    multiply_adds: int
    latency_ms: float


@dataclass(frozen=True)
class Context:
    """Made once in each process of a search; test images are not in it, so that nothing can be chosen by them.

    >>> context = Context.of(SearchConfig(data="digits", model="mlp"), Path("runs/search"))
    >>> context.train(model, genes=Genes(), seed=0, epochs=1, label="child 3").accuracy

    `images` are trained on, `held_back` validate. `example` (n, C, H, W) is what networks see of some training images,
    without augmentation. `own` is the user's own network, None where the base is trained from new weights.
    """

    config: SearchConfig
    directory: Path
    images: Images
    held_back: Images
    preprocess: Preprocessing
    augmentation: Augmentation
    example: Tensor
    class_names: tuple[str, ...]
    own: nn.Module | None
    fingerprint: str
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, config: SearchConfig, directory: Path) -> Context:
        """Load the data and the user's network; `UserError` for whatever cannot be used."""
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        dataset = load_dataset(
            config.data, data_dir=config.data_dir, limit=config.limit, size=config.size, memory=config.memory
        )
        own = own_network(config, dataset)
        channels, height, width = dataset.shape
        ancestor = own or create_model(
            config.model, num_classes=dataset.num_classes, in_channels=channels, image_size=(height, width)
        )
        preprocess, augmentation, origin = resolve_preprocessing(config.preprocess_flags(), ancestor, dataset)
        parts = halves(dataset)
        assert dataset.train is not None  # own_network has refused data without
        images = dataset.train.subset(torch.cat([parts.base_train, parts.method_train]))
        return cls(
            config=config,
            directory=directory,
            images=images,
            held_back=dataset.train.subset(torch.cat([parts.base_validation, parts.method_validation])),
            preprocess=preprocess,
            augmentation=augmentation,
            example=preprocess(images.images[:EXAMPLES].to(pick_device(config.device))),
            class_names=tuple(dataset.class_names),
            own=own,
            fingerprint=dataset.fingerprint,
            notes=[*dataset.notes, f"preprocessing: {preprocess.describe()} ({origin})"],
        )

    @property
    def device(self) -> torch.device:
        """Where networks lie and are trained."""
        return self.example.device

    def folder(self, name: str) -> Path:
        """Where an individual lies."""
        return self.directory / POPULATION / name

    def individual(self, name: str) -> Individual:
        """What is remembered of a finished individual."""
        found = Individual.read(self.folder(name))
        assert found is not None, f"{name} is not finished"
        return found

    def network(self, name: str) -> nn.Module:
        """The network of a finished individual, in evaluation mode."""
        return self.loaded(self.folder(name))

    def loaded(self, directory: Path) -> nn.Module:
        """A network that this search saved, in evaluation mode.

        The settings say which file of the user's own makes it: the network itself may only name one that lies here.
        """
        own_file = self.config.model if ".py:" in self.config.model else None
        network: nn.Module = load(directory, factory=own_file)
        return network.to(self.device)

    def fresh(self, seed: int) -> nn.Module:
        """The base's architecture with new weights."""
        channels, height, width = self.images.images.shape[1:]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return create_model(
                self.config.model, num_classes=len(self.class_names), in_channels=channels, image_size=(height, width)
            ).to(self.device)

    def classifier(self, model: nn.Module) -> NetworkClassifier:
        """A network as it takes stored images."""
        return NetworkClassifier(
            model, preprocess=self.preprocess, class_names=self.class_names, device=str(self.device)
        )

    def first_genes(self) -> Genes:
        """The base's: the weight decay of the settings, and nothing else."""
        options = self.config.training.get("optimizer_options") or {}
        return Genes(weight_decay=options["weight_decay"]) if "weight_decay" in options else Genes()

    def recipe(self, genes: Genes, *, epochs: float | None = None, steps: int | None = None) -> Recipe:
        """How a network with these genes is trained: as long as the settings say, or for these epochs or steps."""
        settings = {**TRAINING, "epochs": 1.0, **self.config.training}
        for name in ("optimizer", "schedule"):
            if name in self.config.training and f"{name}_options" not in self.config.training:
                settings[f"{name}_options"] = {}  # another optimizer or schedule has other options
        if "steps" in self.config.training:
            settings["epochs"] = self.config.training.get("epochs")
        if epochs is not None or steps is not None:
            settings |= {"epochs": epochs, "steps": steps}
        settings["optimizer_options"] = {**settings["optimizer_options"], "weight_decay": genes.weight_decay}
        return validated(Recipe, settings, source="training")

    def train(
        self,
        model: nn.Module,
        *,
        genes: Genes,
        seed: int,
        epochs: float | None = None,
        steps: int | None = None,
        directory: Path | None = None,
        label: str,
    ) -> Trained:
        """Train a network in place with a new optimizer; where its `directory` holds a checkpoint it goes on from that.

        The same seed trains to the same bits, interrupted or not. Without `epochs` or `steps` the length is that of a
        child. Raises `DivergedError` where the loss becomes infinite.
        """
        recipe, n = self.recipe(genes, epochs=epochs, steps=steps), len(self.images)
        measured = self.multiply_adds(model)

        def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            if genes.output_penalty == 0:
                return F.cross_entropy(network(batch[0]), batch[1], label_smoothing=recipe.label_smoothing)
            with OutputPenalty() as penalty:
                logits = network(batch[0])
            value = F.cross_entropy(logits, batch[1], label_smoothing=recipe.label_smoothing)
            return value + genes.output_penalty * penalty.value

        with dropout_before_last(model, genes.dropout, self.example):
            history = train(
                model,
                n=n,
                make_batch=self._batch,
                loss=loss,
                recipe=recipe,
                seed=seed,
                validate=self.validate,
                directory=directory,
                resume=directory is not None,
                label=label,
            )
        return _trained(history, recipe, PASSES * measured * images_seen(history.steps, n, recipe.batch_size))

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy and NLL on all validation images."""
        return accuracy_and_nll(batched(model, self.preprocess, self.held_back.images), self.held_back.labels)

    def multiply_adds(self, model: nn.Module) -> int:
        """Those of a prediction for one image."""
        return round(multiply_adds(self.classifier(model), self.images.images[:2]) or 0)

    def steps_for(self, model: nn.Module, multiply_adds: float, genes: Genes) -> int:
        """How many steps a network is trained in so many multiply-adds, to the nearest step; at least one."""
        n, batch = len(self.images), self.recipe(genes).batch_size
        epochs, rest = divmod(multiply_adds / (PASSES * self.multiply_adds(model)), n)
        return max(1, int(epochs) * -(-n // batch) + round(rest / batch))

    def measure(self, model: nn.Module) -> Measured:
        """What a prediction costs."""
        classifier = self.classifier(model)
        return Measured(
            parameters=classifier.num_parameters,
            multiply_adds=self.multiply_adds(model),
            latency_ms=latency_ms(classifier, self.held_back.images[:1]),
        )

    def _batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images = augment(self.images.images[indices], self.preprocess, self.augmentation, generator)
        return images, self.images.labels[indices]


def images_seen(steps: int, n: int, batch_size: int) -> int:
    """By so many steps on `n` images, of which an epoch's last batch may have fewer."""
    epochs, further = divmod(steps, -(-n // batch_size))
    return epochs * n + further * batch_size


def _trained(history: History, recipe: Recipe, multiply_adds: int) -> Trained:
    figures: Any = history.rows[-1] if recipe.keep == "last" else history.best_metrics
    return Trained(
        accuracy=figures["accuracy"],
        nll=figures["nll"],
        loss=history.rows[-1]["loss"],
        steps=history.steps,
        epochs=history.epochs,
        multiply_adds=multiply_adds,
        cpu_seconds=history.cpu_seconds,
        seconds=history.wall_seconds,
    )
