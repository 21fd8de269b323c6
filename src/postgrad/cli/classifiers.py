"""The classifier that `--model` means: a saved one, an exported one, or a network by name with `--weights`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from postgrad._loading import load_classifier
from postgrad.cli.console import say
from postgrad.cli.options import ModelOptions
from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.devices import pick_device
from postgrad.errors import UserError, unknown_name
from postgrad.models.names import BUILT_IN, FORMS
from postgrad.models.network import NetworkClassifier
from postgrad.models.preprocessing import resolve_preprocessing
from postgrad.models.registry import create_model
from postgrad.models.source import source_of
from postgrad.models.weights import load_weights

EXPORTED = (".pt2", ".onnx")


@dataclass(frozen=True)
class Pictures:
    """What must be known of images to make a network for them."""

    name: str
    shape: tuple[int, int, int]
    class_names: Sequence[str]
    preprocess: Preprocessing = field(default_factory=Preprocessing)
    augmentation: Augmentation = field(default_factory=Augmentation)


def is_saved(model: str) -> bool:
    """Whether `--model` names something on disk that holds all it needs: a run, an arm, an exported file.

    What is neither that nor the name of a network is a `UserError`.
    """
    path = Path(model).expanduser()
    if path.is_dir() or path.suffix in EXPORTED:
        return True
    if model in BUILT_IN or ":" in model:
        return False
    if path.exists():
        raise UserError(
            f"--model {model} is a file of weights, not a network; give it with --weights, and --model by name"
        )
    if "/" in model:
        raise UserError(f"--model {model}: no such directory; give a run, one of its arms, or a network by name")
    raise unknown_name("model", model, [*BUILT_IN, *FORMS])


def saved_classifier(model: str, options: ModelOptions, flags: Mapping[str, Any], device: str) -> Any:
    """Load a saved classifier; preprocessing flags take the place of what a network was saved with."""
    if options.weights is not None:
        raise UserError(f"{model} has weights of its own; leave out --weights, or give --model by name")
    classifier: Any = load_classifier(model, device=str(pick_device(device)))
    if flags and not isinstance(classifier, NetworkClassifier):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in flags)
        raise UserError(f"{model} was fitted with its own preprocessing; leave out {names}")
    if flags:
        unused = Pictures("", (0, 0, 0), ())  # a saved network has its own word, so no default of the data is asked for
        classifier.preprocess = _resolved(flags, classifier.model, unused)
    return classifier


def named_classifier(model: str, options: ModelOptions, flags: Mapping[str, Any], device: str, images: Any) -> Any:
    """Make a network by name for these images (a `Dataset`, or `Pictures`) and load its weights."""
    if options.weights is None:
        raise UserError(f"{model} has no trained weights; add --weights FILE, or name a run that holds a trained one")
    channels, height, width = images.shape
    network = create_model(model, num_classes=len(images.class_names), in_channels=channels, image_size=(height, width))
    load_weights(network, options.weights)
    preprocess = _resolved(flags, network, images)
    return NetworkClassifier(
        network, preprocess=preprocess, class_names=images.class_names, device=str(pick_device(device))
    )


def _resolved(flags: Mapping[str, Any], network: Any, images: Any) -> Preprocessing:
    preprocess, _, origin = resolve_preprocessing(flags, network, images)
    say(f"preprocessing: {preprocess.describe()} ({origin})")
    return preprocess


def made_for(classifier: Any) -> tuple[int | None, int | None, bool]:
    """Channels and shorter side of the images that a classifier was made for (None: it does not say); if squares."""
    networks: list[Any] = [getattr(classifier, "model", None), getattr(classifier, "base", None)]
    networks += getattr(classifier, "members", [])
    for network in networks:
        source = source_of(network)
        if source is not None:
            height, width = source.image_size
            return source.in_channels, min(height, width), height == width
    shape = getattr(networks[0], "input_shape", None)
    return (shape[0], shape[1], shape[1] == shape[2]) if shape else (None, None, False)
