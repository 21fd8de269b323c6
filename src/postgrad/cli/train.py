"""`postgrad train`: a network and data, or a recipe that names them: a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from postgrad.cli.console import prepared, print_json, say
from postgrad.cli.options import (
    Count,
    DataOptions,
    File,
    Folder,
    MachineOptions,
    ModelOptions,
    Name,
    Number,
    PreprocessOptions,
    Repeated,
    Seed,
    Source,
    Time,
    given,
    preprocess_flags,
    resumed_config,
)
from postgrad.growth.words import parse_stage
from postgrad.studies.config import TrainConfig
from postgrad.validation import read_yaml, validated


@dataclass(frozen=True)
class RunOptions:
    """How it is trained, and where the checkpoint goes."""

    recipe: File = None
    """A YAML file with any settings of a training, and these; options given here take their place."""
    method: Annotated[Repeated, tyro.conf.arg(metavar="NAME[:KEY=VALUE,...]", help_behavior_hint="(repeatable)")] = ()
    """A method that is part of the training, such as powergrad:alpha=.25 or frn."""
    teacher: Annotated[Repeated, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(repeatable)")] = ()
    """What --method distillation learns from: RUN | RUN/ARM | FILE.pt2 | FILE.onnx; several are an ensemble."""
    teacher_views: Count = None
    """Ask the teacher beforehand, for N augmented views of each image. Default: at each step, for the view it shows."""
    transfer: Source = None
    """More images to learn from: FILE.npz | folder:DIR; those without a label (or with label -1) need a teacher."""
    grow: Annotated[
        Repeated, tyro.conf.arg(metavar="EPOCH:OPERATION:KEY=VALUE,...", help_behavior_hint="(repeatable)")
    ] = ()
    """What grows when so many epochs are over, such as 3:widen:layer=conv1,to=96 or 5:deepen:after=layer3."""
    epochs: Number = None
    """Passes over the training images. Default: 30."""
    budget: Time = None
    """Instead of epochs, training time such as 90s, 10m or 1h."""
    base_accuracy: Number = None
    """Stop at this validation accuracy, such as 0.72."""
    batch_size: Count = None
    """Images in a step. Default: 64."""
    optimizer: Name = None
    """Any of torch.optim, such as sgd or adamw. Default: sgd."""
    lr: Number = None
    """Learning rate. Default: the recipe's."""
    seed: Seed = None
    """Default: 0."""
    out: Folder = None
    """Where it goes; one that holds something is left alone, and DIR-2, ... is used. Default: runs/train."""
    resume: Folder = None
    """Go on with an interrupted training, with its own settings."""


@dataclass(frozen=True)
class Options:
    """Train a network; a tenth of the training images validates it.

    postgrad train --model resnet20 --data cifar10 --epochs 20 --out runs/resnet20
    """

    run: RunOptions = field(default_factory=RunOptions)
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)


def run(options: Options) -> int:
    """Settle the settings, train, say what came of it."""
    groups = (options.run, options.data, options.model, options.preprocess, options.machine)
    config = resumed_config(TrainConfig, options.run.resume, groups) if options.run.resume else configured(options)
    with prepared(options.machine):
        from postgrad.studies.single import train_network

        directory, history = train_network(config)
    last = next((row for row in reversed(history.rows) if "accuracy" in row), {})
    metrics = history.best_metrics if history.reached_target is False else last
    if history.reached_target is False:
        say("warning: the accuracy asked for was never reached; the best network on the way was kept")
    accuracy = None if not metrics else metrics.get("accuracy")
    if options.machine.json:
        print_json(
            {
                "checkpoint": directory,
                "steps": history.steps,
                "validation_accuracy": accuracy,
                "train_cpu_seconds": history.cpu_seconds,
            }
        )
    else:
        reached = "" if accuracy is None else f", validation accuracy {accuracy:.4f}"
        print(f"{directory}: {history.steps} steps in {history.cpu_seconds:.1f} s{reached}")
    return 0


def configured(options: Options) -> TrainConfig:
    """The settings of a new training: the recipe's, and in their place those given on the command line."""
    flags = given(options.run, options.data, options.model, options.machine) | preprocess_flags(options.preprocess)
    recipe = flags.pop("recipe", None)
    if "method" in flags:
        flags["methods"] = flags.pop("method")
    if "grow" in flags:
        flags["growth"] = _stages(flags.pop("grow"))
    if "base_accuracy" in flags:
        flags["stop_accuracy"] = flags.pop("base_accuracy")
    for name in ("json", "quiet"):
        flags.pop(name, None)
    settings: dict[str, Any] = read_yaml(recipe) if recipe else {}
    training = {**settings.pop("training", {}), **_training_part(settings)}
    if {"epochs", "budget"} & flags.keys():
        training = {name: value for name, value in training.items() if name not in ("epochs", "steps", "budget")}
    training |= _training_part(flags)
    source = f"options and {recipe}" if recipe else "options"
    return validated(TrainConfig, settings | flags | {"training": training}, source=source)


def _stages(words: Sequence[str]) -> dict[int, list[str]]:
    stages: dict[int, list[str]] = {}
    for epoch, operation in map(parse_stage, words):
        stages.setdefault(epoch, []).append(operation)
    return stages


def _training_part(settings: dict[str, Any]) -> dict[str, Any]:
    """Take out of `settings` what is none of the run's own settings, and so a setting of the training."""
    return {name: settings.pop(name) for name in list(settings) if name not in TrainConfig.model_fields}
