"""Anything that postgrad saved, loaded by its manifest: networks, second-stage classifiers, controls, whole runs."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from postgrad.artifacts import read_manifest
from postgrad.errors import UserError, unknown_name

_LOADERS = {
    "network": "postgrad.models.checkpoints:load",
    "gradnet": "postgrad.methods.gradnet:GradNet.load",
    "mapper": "postgrad.methods.mapper:MapperClassifier.load",
    "mapper-transformer": "postgrad.methods.mapper_transformer:MapperTransformer.load",
    "nearest-neighbours": "postgrad.methods.mapper_controls:NearestNeighbours.load",
    "coordinates-mlp": "postgrad.methods.mapper_controls:CoordinatesMLP.load",
    "features-mlp": "postgrad.controls.features:FeaturesMLP.load",
    "ensemble": "postgrad.controls.same_price:Ensemble.load",
}
"""Kind in the manifest -> what loads it. A fixed table: a manifest cannot name code."""


class Classifier(Protocol):
    """What every loaded classifier can do."""

    class_names: tuple[str, ...]
    preprocess: Any

    @property
    def classes_(self) -> np.ndarray: ...
    def predict(self, images: Any) -> np.ndarray: ...
    def predict_proba(self, images: Any) -> np.ndarray: ...


def load(path: str | os.PathLike[str], *, factory: Callable[..., Any] | str | None = None) -> Any:
    """Load what postgrad saved: a network as an `nn.Module`, a second-stage classifier as its own class.

    >>> gradnet = load("runs/demo/gradnet")
    >>> network = load("runs/demo/base")

    `path` is the directory of one arm, a .pt2 or .onnx file, or the directory of a whole run: then the arm that its
    validation data recommends is loaded, and named on standard error. `factory` makes the network where its manifest
    cannot, as `postgrad.models.checkpoints.load` says. Raises `UserError` for anything that postgrad did not save.
    """
    if Path(path).suffix in (".pt2", ".onnx"):
        from postgrad.models.export import load_exported

        return load_exported(path)
    directory = arm_directory(path)
    return _loader(directory)(directory, factory=factory)


def load_classifier(
    path: str | os.PathLike[str], *, factory: Callable[..., Any] | str | None = None, device: str = "auto"
) -> Classifier:
    """Load anything that classifies images, networks and exported programs among them.

    >>> load_classifier("runs/demo").predict(images)

    `device` is where it runs; exported files run on the CPU. One that says neither its preprocessing nor its classes
    needs `NetworkClassifier(load(path), preprocess=…, class_names=…)`.
    """
    from postgrad.models.network import NetworkClassifier
    from postgrad.models.preprocessing import own_preprocessing

    exported = Path(path).suffix in (".pt2", ".onnx")
    directory = None if exported else arm_directory(path)
    if directory and _kind(directory) != "network":
        return _loader(directory)(directory, factory=factory, device=device)
    network = load(directory or path, factory=factory)
    preprocess = own_preprocessing(network)
    if preprocess is None:
        raise UserError(f"{path} does not say how images reach it; give its preprocessing")
    return NetworkClassifier(network, preprocess=preprocess, device="cpu" if exported else device)


def arm_directory(path: str | os.PathLike[str]) -> Path:
    """The directory of one arm: `path` itself, or the recommended arm of the run that `path` holds."""
    directory = Path(path).expanduser()
    if (directory / "manifest.json").is_file():
        return directory
    results = directory / "results.json"
    if not results.is_file():
        raise UserError(f"{directory} is neither a saved model (no manifest.json) nor a run (no results.json)")
    name = _read_json(results).get("recommended")
    arms = sorted(file.parent.name for file in directory.glob("*/manifest.json"))
    if name not in arms:
        raise UserError(f"{results} recommends no arm that is here; name one: {', '.join(arms) or 'none was saved'}")
    print(f"{directory}: using {name}, which its validation data recommends", file=sys.stderr)
    return directory / name


def _kind(directory: Path) -> str:
    kind = read_manifest(directory).get("kind")
    if kind not in _LOADERS:
        raise unknown_name(f"kind of model in {directory}/manifest.json:", str(kind), _LOADERS)
    return kind


def _loader(directory: Path) -> Callable[..., Any]:
    module, _, names = _LOADERS[_kind(directory)].partition(":")
    loader: Any = importlib.import_module(module)
    for name in names.split("."):
        loader = getattr(loader, name)
    return loader


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: not readable as JSON ({error}); it is damaged or cut off") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content
