"""Second-stage classifiers whose training images may each have a network of their own, for cross-fitting."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.artifacts import read_tensors, save_tensors
from postgrad.controls.features import hidden_size, last_layer, make_mlp, penultimate
from postgrad.controls.tuning import TUNING_SHARE, Diverged, accuracy_and_nll
from postgrad.data.datasets import Images
from postgrad.data.preprocessing import Augmentation, Preprocessing, augment
from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.gradients.space import GradientSpace
from postgrad.methods.gradnet import GradNetHead, auto_hidden
from postgrad.progress import progress
from postgrad.studies.worth_recipe import StageConfig
from postgrad.training import History, Recipe, Stopwatch, train
from postgrad.units import parse_memory

TUNING_IMAGES = 500
"""Validation images that choose between learning rates; each of them costs as many gradients as there are classes."""

FEATURES_BATCH = 250
ONLY_AT_THE_END = 10**9


class CentredLogits(nn.Module):
    """A network whose logits are all zero and have the gradients of its own logits.

    The softmax of zeros is uniform, so the gradient of cross-entropy under label k is mean_c J_c − J_k, J_c being that
    of logit c: what is left of the plain gradient, Σ_c p_c J_c − J_k, when its mean over all labels is taken away.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return logits - logits.detach()


class OneBlock(nn.Module):
    """A network over rows, as the head of a stage, which is given a list of blocks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:
        """Logits (R, C) of the only block, (R, inputs)."""
        return self.network(blocks[0])


class Offset(nn.Module):
    """A head whose logits are added to given ones: `forward((blocks, offset))`, offset (R, C)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, batch: tuple[Sequence[Tensor], Tensor]) -> Tensor:
        blocks, offset = batch
        return self.body(blocks) + offset


@dataclass(frozen=True)
class Source:
    """A network, and the images that are read through it: of a cross-fit, those that it was trained without."""

    network: nn.Module
    images: Images


@dataclass(frozen=True)
class StageFit:
    """What the fit of a stage was: its process CPU seconds, in words, and its trials."""

    cpu_seconds: float
    description: str
    trials: list[dict[str, Any]]


class Stage:
    """A small network over what a trained network says of an image: its gradients, or its last features.

    >>> stage = Stage(StageConfig(), base, preprocess, augmentation, example=half.images, memory="2GB")
    >>> stage.fit([Source(base, half)], seconds=60, seed=0, directory=path, judge=Source(base, validation))
    >>> stage.log_probabilities(base, images).shape
    (N, C)

    All networks of a cross-fit have one architecture. Their weights take turns in one copy of it, so that selection,
    statistics and head are common to all, and unit i of one network counts as unit i of another.
    """

    def __init__(
        self,
        config: StageConfig,
        network: nn.Module,
        preprocess: Preprocessing,
        augmentation: Augmentation,
        *,
        example: Tensor,
        memory: str,
    ) -> None:
        self.config = config
        self.network = deepcopy(network).eval().requires_grad_(True)
        self.preprocess = preprocess
        self.augmentation = augmentation
        self.device = next(network.parameters()).device
        inputs = self._inputs(example[:3])
        self.space = self._make_space(inputs, memory)
        self.num_classes = self.space.num_classes
        self.layer = last_layer(self.network, inputs)
        self._features = penultimate(self.network, self.layer, inputs).shape[1]
        self.head = self._new_head()
        Recipe(steps=1, lr=config.rates[0], **self._training_options())  # a mistake in them is said now

    @property
    def reads_gradients(self) -> bool:
        return self.config.reads == "gradients"

    @property
    def needs_statistics(self) -> bool:
        """Whether a pass over gradients comes before the training."""
        return self.reads_gradients and self.space.needs_statistics

    @property
    def inference_passes(self) -> int:
        """Gradients read for each image, one for each class; 1 for features."""
        return self.num_classes if self.reads_gradients else 1

    @property
    def num_parameters(self) -> int:
        """Parameters of the head alone."""
        return sum(parameter.numel() for parameter in self.head.parameters())

    def fit(self, sources: Sequence[Source], *, seconds: float, seed: int, directory: Path, judge: Source) -> StageFit:
        """Fit within `seconds` of process CPU time: statistics, then trials of learning rates, then the best one's run.

        `judge` has the network that the stage is for, and the validation images that choose between rates. With what
        `directory` keeps, an interrupted fit goes on.
        """
        read = _Reader(self, sources)
        spent = self._fit_statistics(read, seed, directory)
        left = seconds - spent
        if left <= 0:
            raise UserError(
                f"{directory.parent.name}: {max(seconds, 0):.2g} s are too short, since its statistics alone take "
                f"{spent:.2g} s; give it more time"
            )
        rates = self.config.rates
        trials: list[dict[str, Any]] = []
        if len(rates) > 1:
            for number, rate in enumerate(rates):
                share = left * TUNING_SHARE / len(rates)
                trial, took = self._trial(read, rate, share, seed, directory / f"trial-{number}", judge)
                trials.append(trial)
                spent += took
            left *= 1 - TUNING_SHARE
        rated = trials or [{"lr": rates[0]}]
        for trial in sorted(rated, key=_best_first):
            try:
                self.head, history = self._train(read, trial["lr"], left, seed, directory / "final", None)
            except Diverged as diverged:
                spent += diverged.cpu_seconds
                shutil.rmtree(directory / "final")
                continue
            of = ", ".join(f"{rate:g}" for rate in rates)
            words = f"learning rate {trial['lr']:g} of {of}, {history.steps} steps, {history.epochs:.2f} passes"
            return StageFit(spent + history.cpu_seconds, words, trials)
        raise UserError(f"{directory.parent.name}: the loss became infinite at every learning rate, {list(rates)}")

    def rehearse(self, images: Tensor) -> None:
        """Do everything but training with a few images: what cannot work is said, what is compiled is compiled."""
        if self.needs_statistics:
            labels = torch.arange(len(images)) % self.num_classes
            self.space.fit([(self._inputs(images), labels.to(self.device))])
        self._log_probabilities(images)

    def log_probabilities(self, network: nn.Module, images: Tensor) -> Tensor:
        """Log-probabilities (N, C) of stored images (N, C, H, W), read through a network of the same architecture."""
        self.adopt(network.state_dict())
        return self._log_probabilities(images)

    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Read through these weights from now on."""
        self.network.load_state_dict(weights)

    def read(self, inputs: Tensor, labels: Tensor | str) -> list[Tensor]:
        """The blocks of some inputs; gradients are buffers that the next call overwrites, features have no labels."""
        if self.reads_gradients:
            return self.space(inputs, labels)  # type: ignore[arg-type]
        return [penultimate(self.network, self.layer, inputs)]

    def offset(self, inputs: Tensor) -> Tensor:
        """The log-probabilities (N, C) that are added to the head's logits; zeros without the option."""
        if not self.config.offset:
            return inputs.new_zeros(len(inputs), self.num_classes)
        with torch.no_grad():
            return self.network(inputs).log_softmax(1)

    def augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return augment(images.to(self.device), self.preprocess, self.augmentation, generator)

    def save(self, directory: Path) -> None:
        """Write the head and the statistics; `load` reads them into a stage that was made in the same way."""
        tensors = {f"head.{name}": value for name, value in self.head.state_dict().items()}
        tensors |= {f"statistics.{name}": value for name, value in self.space.statistics().items()}
        save_tensors(tensors, directory / "stage.safetensors")

    def load(self, directory: Path) -> None:
        tensors = read_tensors(directory / "stage.safetensors")
        self.space.load_statistics(_below("statistics.", tensors))
        self.head.load_state_dict(_below("head.", tensors))

    def _inputs(self, images: Tensor) -> Tensor:
        return self.preprocess(images.to(self.device))

    def _make_space(self, inputs: Tensor, memory: str) -> GradientSpace:
        config = self.config
        centred = CentredLogits(self.network) if config.centred else self.network
        prefix = "network." if config.centred else ""
        return GradientSpace(
            centred,
            inputs,
            layers=None if config.layers is None else [prefix + layer for layer in config.layers],
            select=config.select,
            normalise=config.normalise,
            exponent=config.exponent,
            memory=parse_memory(memory),
        )

    def _new_head(self) -> Offset:
        sizes = [block.numel for block in self.space.blocks]
        gradnet = GradNetHead(sizes, self.config.hidden or auto_hidden(len(sizes)), self.num_classes)
        if self.reads_gradients:
            return Offset(gradnet).to(self.device)
        parameters = sum(parameter.numel() for parameter in gradnet.parameters())
        hidden = hidden_size(parameters, self._features, self.num_classes)
        return Offset(OneBlock(make_mlp(self._features, hidden, self.num_classes))).to(self.device)

    def _fit_statistics(self, read: _Reader, seed: int, directory: Path) -> float:
        """One pass over all images under random labels, each through its own network; gives its CPU seconds."""
        if not self.needs_statistics:
            return 0.0
        stored = directory / "statistics.safetensors"
        if not stored.exists():
            with (watch := Stopwatch(self.device)):
                self.space.fit(read.statistics_batches(seed))
            write_atomic(stored.with_suffix(".json"), json.dumps({"cpu_seconds": watch.cpu_seconds}))
            save_tensors(self.space.statistics(), stored)
        self.space.load_statistics(read_tensors(stored))
        return float(json.loads(stored.with_suffix(".json").read_text())["cpu_seconds"])

    def _trial(
        self, read: _Reader, rate: float, seconds: float, seed: int, directory: Path, judge: Source
    ) -> tuple[dict[str, Any], float]:
        try:
            _, history = self._train(read, rate, seconds, seed, directory, judge)
        except Diverged as diverged:
            return {"lr": rate, "diverged": True}, diverged.cpu_seconds
        last = history.rows[-1]
        return {"lr": rate, "steps": history.steps, "accuracy": last["accuracy"], "nll": last["nll"]}, (
            history.cpu_seconds
        )

    def _train(
        self, read: _Reader, rate: float, seconds: float, seed: int, directory: Path, judge: Source | None
    ) -> tuple[Offset, History]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = self._new_head()
        watch = Stopwatch(self.device)

        def loss(network: nn.Module, batch: Any) -> Tensor:
            value = F.cross_entropy(network(batch[0]), batch[1])
            if not value.isfinite():
                raise Diverged(watch.cpu_seconds)
            return value

        def validate(network: nn.Module) -> dict[str, float]:
            return {} if judge is None else self._judged(network, judge)

        recipe = Recipe(
            budget=f"{max(seconds, 0.1):.3f}s", lr=rate, validate_every=ONLY_AT_THE_END, **self._training_options()
        )
        with watch:
            history = train(
                head,
                n=read.count,
                make_batch=read.batch,
                loss=loss,
                recipe=recipe,
                seed=seed,
                validate=validate,
                directory=directory,
                resume=True,
                label=f"{directory.parent.name} at {rate:g}",
            )
        return head, history

    def _training_options(self) -> dict[str, Any]:
        config = self.config
        return {
            "batch_size": config.batch_size,
            "optimizer": config.optimizer,
            "optimizer_options": config.optimizer_options,
            "schedule": config.schedule,
        }

    def _judged(self, head: nn.Module, judge: Source) -> dict[str, float]:
        spread = torch.linspace(0, len(judge.images) - 1, min(TUNING_IMAGES, len(judge.images))).long()
        chosen = judge.images.subset(spread)
        kept, self.head = self.head, head  # type: ignore[assignment]
        try:
            return accuracy_and_nll(self.log_probabilities(judge.network, chosen.images), chosen.labels)
        finally:
            self.head = kept

    def _log_probabilities(self, images: Tensor) -> Tensor:
        self.head.eval()
        chunk = self.space.images_per_chunk("all") if self.reads_gradients else FEATURES_BATCH
        parts = []
        with torch.no_grad(), progress("predicting", len(images), unit="images") as advance:
            for part in images.split(chunk):
                inputs = self._inputs(part)
                logits = self.head.body(self.read(inputs, "all")).view(len(part), -1, self.num_classes).mean(1)
                parts.append((logits + self.offset(inputs)).log_softmax(1).cpu())
                advance(len(part))
        return torch.cat(parts)


class _Reader:
    """The batches of a stage's training: each image through its own network."""

    def __init__(self, stage: Stage, sources: Sequence[Source]) -> None:
        self.stage = stage
        self.images = torch.cat([source.images.images for source in sources])
        self.labels = torch.cat([source.images.labels for source in sources])
        self.owner = torch.cat([torch.full((len(s.images),), number) for number, s in enumerate(sources)])
        self.weights = [deepcopy(source.network.state_dict()) for source in sources]

    @property
    def count(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[tuple[list[Tensor], Tensor], Tensor]:
        """((blocks, offset), true labels) of some images: one row for each, or one for each label of each."""
        owners = self.owner[indices]
        groups = [(int(owner), indices[owners == owner]) for owner in owners.unique()]
        parts = [self._rows(owner, chosen, generator, copy=len(groups) > 1) for owner, chosen in groups]
        if len(parts) == 1:
            return parts[0]
        blocks = [torch.cat(rows) for rows in zip(*(part[0][0] for part in parts), strict=True)]
        return (blocks, torch.cat([part[0][1] for part in parts])), torch.cat([part[1] for part in parts])

    def statistics_batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented images, network by network, under random labels: all, or the first of each network."""
        generator = torch.Generator().manual_seed(seed)
        wanted = self.stage.config.statistics_images or self.count
        share = math.ceil(wanted / len(self.weights)) if wanted < self.count else self.count
        with progress("gradient statistics", min(wanted, self.count), unit="images") as advance:
            for owner, weights in enumerate(self.weights):
                for chosen in (self.owner == owner).nonzero().flatten()[:share].split(100):
                    self.stage.adopt(weights)
                    inputs = self.stage.augmented(self.images[chosen], generator)
                    yield inputs, self._random_labels(len(chosen), generator)
                    advance(len(chosen))

    def _rows(
        self, owner: int, chosen: Tensor, generator: torch.Generator, *, copy: bool
    ) -> tuple[tuple[list[Tensor], Tensor], Tensor]:
        stage = self.stage
        stage.adopt(self.weights[owner])
        inputs = stage.augmented(self.images[chosen], generator)
        truth, offset = self.labels[chosen].to(stage.device), stage.offset(inputs)
        everything = stage.config.labels == "all" and stage.reads_gradients
        blocks = stage.read(inputs, "all" if everything else self._random_labels(len(chosen), generator))
        if copy:
            blocks = [rows.clone() for rows in blocks]
        repeats = stage.num_classes if everything else 1
        return (blocks, offset.repeat_interleave(repeats, 0)), truth.repeat_interleave(repeats)

    def _random_labels(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.stage.num_classes, (count,), generator=generator).to(self.stage.device)


def _best_first(trial: Mapping[str, Any]) -> tuple[float, float]:
    """By accuracy, then by NLL; what diverged in its trial comes last."""
    return -trial.get("accuracy", -1.0), trial.get("nll", 0.0)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
