"""The main job: a base network, second-stage methods on it, their controls, and one honest comparison of them all."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

from postgrad._loading import load
from postgrad.data.datasets import Dataset, load_dataset
from postgrad.data.splits import Halves, halves
from postgrad.devices import pick_device
from postgrad.errors import UserError
from postgrad.files import fresh_directory, locked, write_atomic
from postgrad.methods.registry import check_options
from postgrad.models.preprocessing import resolve_preprocessing
from postgrad.models.registry import create_model
from postgrad.models.weights import is_chainer_snapshot, load_weights
from postgrad.reports.html import render
from postgrad.reports.schema import write_results
from postgrad.studies.arms import SeedRun, rehearse, run_seed
from postgrad.studies.config import ImproveConfig
from postgrad.studies.environment import environment
from postgrad.studies.results import collect
from postgrad.studies.run import Run, resumable, write_arrays

DEMO_ACCURACY = 0.85
"""Where the base of the embedded data stops: early on purpose, so that something is left to gain."""

EXAMPLES = 2000
"""Test images kept for the report, at most."""


def improve(config: ImproveConfig) -> Path:
    """Train or load a base, fit the methods and their controls, score all on the test data; returns the run directory.

    >>> improve(ImproveConfig(data="digits", out="runs/demo"))
    PosixPath('runs/demo')

    With `config.resume` an interrupted run goes on: finished arms are loaded, and the one that was being fitted
    continues from its checkpoint. Raises `UserError` for settings, data or weights that cannot be used.
    """
    began = perf_counter()
    for method in config.methods:
        check_options(method.name, method.options)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dataset = load_dataset(
        config.data, data_dir=config.data_dir, limit=config.limit, size=config.size, memory=config.memory
    )
    own = _own_network(config, dataset)
    run = _settled(config, dataset, own)
    if config.resume is None:
        rehearse(SeedRun(run, config.seeds[0], own))
        run.directory = fresh_directory(config.out)
    with locked(run.directory), resumable(run.directory, "improve"):
        _open(run)
        for seed in config.seeds:
            run_seed(SeedRun(run, seed, own))
        _close(run, perf_counter() - began)
    return run.directory


def _own_network(config: ImproveConfig, dataset: Dataset) -> nn.Module | None:
    """The user's trained network; None where only an architecture is named, whose base is then trained."""
    if dataset.train is None or dataset.test is None:
        missing = "training" if dataset.train is None else "test"
        raise UserError(f"{config.data}: there are no {missing} images, which improve needs; `postgrad score` may do")
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


def _settled(config: ImproveConfig, dataset: Dataset, own: nn.Module | None) -> Run:
    """What the whole run shares. A new run gets its directory when all is known to fit together."""
    directory = config.resume or config.out
    if own is None and config.data == "digits" and config.base_accuracy is None and config.epochs is None:
        config = config.model_copy(update={"base_accuracy": DEMO_ACCURACY})
    preprocess, augmentation, origin = resolve_preprocessing(
        config.preprocess_flags(), own or SeedRun(_bare(config, directory, dataset), 0, None).fresh(), dataset
    )
    run = Run(
        config=config.model_copy(update={"threads": torch.get_num_threads()}),
        directory=directory,
        dataset=dataset,
        halves=_split(config, dataset),
        steps=dict(config.steps),
        preprocess=preprocess,
        augmentation=augmentation,
        notes=[*dataset.notes, f"preprocessing: {preprocess.describe()} ({origin})"],
    )
    _say_what_fits_what(run, own)
    return run


def _open(run: Run) -> None:
    """Write down the settings and surroundings of a run; one that goes on must find the data that it began with."""
    resumes, fingerprint = run.config.resume is not None, run.dataset.fingerprint
    if resumes and (began_with := run.fingerprint()) not in (None, fingerprint):
        raise UserError(
            f"{run.config.data} has changed since {run.directory} began (fingerprint {began_with} then, {fingerprint} "
            "now); start a new run"
        )
    run.config.save(run.directory / "config.yaml")
    write_atomic(run.directory / "environment.json", json.dumps(environment(), indent=1))
    assert run.dataset.test is not None
    write_arrays(run.directory / "examples.npz", images=run.dataset.test.images[:EXAMPLES])
    run.event("run resumes" if resumes else "run begins", seeds=list(run.config.seeds), data=fingerprint)


def _bare(config: ImproveConfig, directory: Path, dataset: Dataset) -> Run:
    """A run before its preprocessing is settled, enough to make the network whose word is asked."""
    return Run(config, directory, dataset, halves(dataset), {}, dataset.preprocess, dataset.augmentation)


def _split(config: ImproveConfig, dataset: Dataset) -> Halves:
    """What fits what; `whole_halves` is as published: the second half also says when the base stops."""
    parts = halves(dataset)
    if not config.whole_halves:
        return parts
    first = torch.cat([parts.base_train, parts.base_validation])
    second = torch.cat([parts.method_train, parts.method_validation])
    return Halves(
        base_train=first, base_validation=second, method_train=second, method_validation=parts.method_validation
    )


def _say_what_fits_what(run: Run, own: nn.Module | None) -> None:
    """Say which images fit what; warn where nobody knows what a network has seen."""
    parts = run.halves
    if run.config.whole_halves:
        run.note(
            "whole halves, as published: the images that validate the method and choose between learning rates are "
            "among those that the method is fitted on, which favours it on validation data"
        )
    if own is None:
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


def _close(run: Run, seconds: float) -> None:
    """Compare all arms, write results.json and the report."""
    results = collect(run, started=datetime.now(UTC), seconds=seconds)
    write_results(results, run.directory / "results.json")
    run.config.model_copy(update={"steps": run.steps, "out": Path("runs") / run.directory.name}).save(
        run.directory / "config.yaml"
    )
    render(run.directory)
    run.event("run ends")
