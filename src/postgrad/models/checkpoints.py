"""Networks on disk: a directory with the weights as safetensors and a manifest that says how to use them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from postgrad import artifacts
from postgrad.artifacts import save_tensors, write_manifest
from postgrad.changes import Change, apply_changes, changes_of
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.files import sha256
from postgrad.models.factories import call_factory, find_factory
from postgrad.models.preprocessing import own_preprocessing, set_preprocessing
from postgrad.models.registry import rebuild
from postgrad.models.source import Source, set_source, source_of
from postgrad.models.weights import check_finite, fit_weights, read_weights
from postgrad.validation import validated

KIND = "network"
WEIGHTS = "model.safetensors"


class Manifest(BaseModel):
    """What stands beside the weights; `source` is None for a network that `create_model` did not make.

    `changes` were made to it afterwards, such as other layers in place of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Source | None
    changes: tuple[Change, ...] = ()
    dtype: Literal["float16", "bfloat16", "float32", "float64"]
    preprocess: Preprocessing
    class_names: tuple[str, ...]
    versions: dict[str, str]


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    preprocess: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Save a network into the directory `path`: model.safetensors and manifest.json.

    >>> save(model, "runs/mine/base", preprocess=Preprocessing(per_image_standardise=True), class_names=("cat", "dog"))

    What is not given is taken from the network itself (`load` and `create_model` leave it there). The code of a factory
    of one's own is never stored: only its name, and the hash of its file.
    """
    preprocess = preprocess or own_preprocessing(model)
    class_names = class_names if class_names is not None else getattr(model, "class_names", None)
    if preprocess is None or class_names is None:
        raise UserError("a network is saved with its preprocessing and class names: save(…, preprocess=, class_names=)")
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    check_finite(weights, "the network")
    manifest = Manifest(
        source=source_of(model),
        changes=changes_of(model),
        dtype=_dtype(weights),
        preprocess=preprocess,
        class_names=tuple(class_names),
        versions={name: version(name) for name in ("postgrad", "torch")},
    )
    directory = Path(path).expanduser()
    save_tensors(weights, directory / WEIGHTS)
    write_manifest(directory, KIND, manifest.model_dump(mode="json"))


def load(path: str | os.PathLike[str], *, factory: Callable[..., nn.Module] | str | None = None) -> nn.Module:
    """Load a network saved by `save`, in eval mode, with attributes `preprocess` and `class_names`.

    >>> network = load("runs/demo/base")
    >>> network = load("runs/mine/base", factory=MyNet)

    `factory` (a function, a class, or `file.py:factory`) makes the architecture where the manifest cannot: a network
    that `create_model` did not make, a factory's file that has changed or is not here, or that was given options.
    """
    directory = Path(path).expanduser()
    manifest = read_manifest(directory)
    model = _architecture(manifest, directory, factory)
    apply_changes(model, manifest.changes)
    model.to(getattr(torch, manifest.dtype))
    fit_weights(model, read_weights(directory / WEIGHTS), where=str(directory / WEIGHTS))
    set_source(model, manifest.source)
    set_preprocessing(model, manifest.preprocess, "the checkpoint's manifest")
    object.__setattr__(model, "class_names", manifest.class_names)
    return model.eval()


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a network's directory."""
    content = artifacts.read_manifest(directory, KIND)
    fields = {key: value for key, value in content.items() if key not in ("format", "kind")}
    return validated(Manifest, fields, source=str(directory / "manifest.json"))


def _architecture(manifest: Manifest, directory: Path, factory: Callable[..., nn.Module] | str | None) -> nn.Module:
    source = manifest.source
    if factory is not None:
        name = factory if isinstance(factory, str) else getattr(factory, "__name__", "factory")
        arguments = source.model_dump(include={"num_classes", "in_channels", "image_size"}) if source else {}
        arguments.setdefault("num_classes", len(manifest.class_names))
        make = find_factory(factory) if isinstance(factory, str) else factory
        return call_factory(make, name, arguments, source.kwargs if source else {})
    if source is None:
        raise UserError(f"{directory}: this network was made by code of its own; load(…, factory=) must say by which")
    if source.runs_own_code:
        _check_own_code(source, directory)
    return rebuild(source)


def _check_own_code(source: Source, directory: Path) -> None:
    """Let a manifest name a factory of one's own, but neither change its arguments nor stand for another file."""
    way_out = f"load(…, factory=) takes the one that fits {directory}"
    if source.kwargs:
        # Calling any function of any package with any arguments, on the word of a file, would let that file run code.
        raise UserError(f"{source.spec} was called with options of its own ({', '.join(source.kwargs)}); {way_out}")
    if source.factory_file is None:
        return
    file, recorded = Path(source.factory_file.name), source.factory_file.sha256
    if not file.is_file():
        raise UserError(
            f"{source.spec}: the file {file} that makes this network is not here (SHA-256 {recorded[:12]}…); "
            f"go to its folder, or {way_out}"
        )
    if sha256(file) != recorded:
        raise UserError(
            f"{source.spec}: {file} has changed since this network was saved "
            f"(SHA-256 {recorded[:12]}… then, {sha256(file)[:12]}… now); {way_out}"
        )


def _dtype(weights: dict[str, Tensor]) -> str:
    kinds = [value.dtype for value in weights.values() if value.is_floating_point()]
    return str(kinds[0] if kinds else torch.float32).removeprefix("torch.")
