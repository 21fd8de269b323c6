"""What all arms of a run share, made from its settings: data, preprocessing, split, own network, directory."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from postgrad._loading import load
from postgrad.data.datasets import Dataset, load_dataset
from postgrad.data.splits import Halves, halves
from postgrad.devices import pick_device
from postgrad.errors import UserError
from postgrad.files import fresh_directory, write_atomic
from postgrad.methods.registry import check_options
from postgrad.models.preprocessing import resolve_preprocessing
from postgrad.models.registry import create_model
from postgrad.models.weights import is_chainer_snapshot, load_weights
from postgrad.studies.arms import rehearse
from postgrad.studies.config import ComparisonConfig, RunConfig
from postgrad.studies.environment import environment
from postgrad.studies.run import Run, write_arrays
from postgrad.studies.seed_run import SeedRun

DEMO_ACCURACY = 0.85
"""Where the base of the embedded data stops: early on purpose, so that something is left to gain."""

EXAMPLES = 2000
"""Test images kept for the report, at most."""


def prepare(config: ComparisonConfig) -> Run:
    """Everything that the arms of a run share; raises `UserError` for settings, data or weights that cannot be used.

    >>> run = prepare(ImproveConfig(data="digits"))
    """
    trainings = config.training_arms().values()
    trained_with = [method for arm in trainings for options in arm.tries() for method in arm.at(options).methods]
    for method in (*config.method_arms(), *trained_with):
        check_options(method.name, method.options)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dataset = load_dataset(
        config.data, data_dir=config.data_dir, limit=config.limit, size=config.size, memory=config.memory
    )
    own = own_network(config, dataset)
    early = config.data == "digits" and config.base_accuracy is None and config.epochs is None
    if own is None and early and not config.training_arms():
        config = config.model_copy(update={"base_accuracy": DEMO_ACCURACY})
    directory = config.resume or config.out
    bare = Run(config, directory, dataset, halves(dataset), {}, dataset.preprocess, dataset.augmentation, own)
    preprocess, augmentation, origin = resolve_preprocessing(
        config.preprocess_flags(), own or SeedRun(bare, 0).fresh(), dataset
    )
    run = Run(
        config=config.model_copy(update={"threads": torch.get_num_threads()}),
        directory=directory,
        dataset=dataset,
        halves=_split(config, dataset),
        steps=dict(config.steps),
        preprocess=preprocess,
        augmentation=augmentation,
        own=own,
        notes=[*dataset.notes, f"preprocessing: {preprocess.describe()} ({origin})"],
    )
    _say_what_fits_what(run)
    return run


def claim_directory(run: Run) -> None:
    """Give a new run a directory of its own, once a rehearsal has shown that all fits together."""
    if run.config.resume is None:
        rehearse(run)
        run.directory = fresh_directory(run.config.out)


def begin(run: Run) -> None:
    """Write down the settings and surroundings of a run; one that goes on must find the data that it began with."""
    resumes, fingerprint = run.config.resume is not None, run.dataset.fingerprint
    if resumes and (began_with := run.fingerprint()) not in (None, fingerprint):
        raise UserError(
            f"{run.config.data} has changed since {run.directory} began (fingerprint {began_with} then, {fingerprint} "
            "now); start a new run"
        )
    run.config.save(run.directory / "config.yaml")
    write_atomic(run.directory / "environment.json", json.dumps(environment(), indent=1))
    write_arrays(run.directory / "examples.npz", images=run.test.images[:EXAMPLES])
    run.event("run resumes" if resumes else "run begins", seeds=list(run.config.seeds), data=fingerprint)


def own_network(config: RunConfig, dataset: Dataset) -> nn.Module | None:
    """The user's trained network; None where only an architecture is named, whose base is then trained."""
    if dataset.train is None or dataset.test is None:
        missing = "training" if dataset.train is None else "test"
        raise UserError(
            f"{config.data}: there are no {missing} images, and a comparison needs both kinds; `postgrad score` may do"
        )
    if Path(config.model).expanduser().is_dir():
        network = load(config.model)
        if not isinstance(network, nn.Module):
            raise UserError(f"{config.model} is itself a second-stage classifier; give the network it stands on")
    elif Path(config.model).suffix in (".pt2", ".onnx"):
        raise UserError(f"{config.model} is an exported program, which has no gradients; give the network it came from")
    elif config.weights is None:
        return None
    else:
        channels, height, width = dataset.shape
        network = create_model(
            config.model, num_classes=dataset.num_classes, in_channels=channels, image_size=(height, width)
        )
    if config.weights is not None:
        load_weights(network, config.weights)
    return network.to(pick_device(config.device), torch.float32).eval()


def _split(config: ComparisonConfig, dataset: Dataset) -> Halves:
    """What fits what; `whole_halves` is as published: the second half also says when the base stops."""
    parts = halves(dataset)
    if not config.whole_halves:
        return parts
    first = torch.cat([parts.base_train, parts.base_validation])
    second = torch.cat([parts.method_train, parts.method_validation])
    return Halves(
        base_train=first, base_validation=second, method_train=second, method_validation=parts.method_validation
    )


def _say_what_fits_what(run: Run) -> None:
    """Say which images fit what; warn where nobody knows what a network has seen."""
    parts = run.halves
    if run.config.training_arms():
        fitted, held_back = (
            len(parts.base_train) + len(parts.method_train),
            len(parts.base_validation) + len(parts.method_validation),
        )
        start = "the same first weights" if run.own is None else "the network as given"
        run.note(
            f"all arms of a seed are trained on the same {fitted} images from {start}; {held_back} others validate "
            "them and choose their learning rates"
        )
        return
    if run.config.whole_halves:
        run.note(
            "whole halves, as published: the images that validate the method and choose between learning rates are "
            "among those that the method is fitted on, which favours it on validation data"
        )
    if run.own is None:
        run.note(
            f"the base is trained on {len(parts.base_train)} images of the first half of the training data and "
            f"validated on {len(parts.base_validation)}; methods are fitted on {len(parts.method_train)} of the second "
            f"half and validated on {len(parts.method_validation)}"
        )
        return
    run.note(
        f"methods are fitted on {len(parts.method_train)} images of the second half of the training data and validated "
        f"on {len(parts.method_validation)}"
    )
    weights = run.config.weights
    if weights is not None and is_chainer_snapshot(weights):
        run.note("the weights are a Chainer snapshot of seed-cnn: the first half counts as what the base has seen")
    else:
        run.warn(
            "nobody knows which images the given weights have seen: methods are fitted on the second half of the "
            "training data, and gain little on images that the network has already fitted; give held-back data"
        )
