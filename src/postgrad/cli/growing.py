"""The network that `postgrad grow` is given, and the images on which its growth is checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from postgrad.cli.classifiers import EXPORTED, Pictures, is_saved, named_classifier, saved_classifier
from postgrad.cli.console import say
from postgrad.cli.labelled import loaded
from postgrad.cli.options import DataOptions, ModelOptions
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.models.checkpoints import save
from postgrad.models.factories import portable_name
from postgrad.models.network import NetworkClassifier
from postgrad.models.preprocessing import own_preprocessing
from postgrad.models.registry import create_model
from postgrad.models.source import source_of
from postgrad.models.weights import read_weights

_RANDOM, _FROM_DATA = 2, 64
"""Images in an example: normalisations that are put in take the statistics of the data set's."""
_SHAPE = (3, 32, 32)
_CLASSES = 10

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Subject:
    """A network to be grown, how images reach it, its classes, and an example of its inputs, (N, C, H, W)."""

    network: nn.Module
    name: str
    preprocess: Preprocessing
    class_names: tuple[str, ...]
    example: Tensor
    described: str

    def save(self, directory: Path) -> None:
        """Write the checkpoint."""
        save(self.network, directory, preprocess=self.preprocess, class_names=self.class_names)


def network_and_example(
    model: ModelOptions,
    data: DataOptions,
    flags: Mapping[str, Any],
    *,
    size: str | None,
    seed: int,
    device: str,
    untrained: bool,
) -> Subject:
    """The network that `--model` means, with an example from `--data`, or of random images.

    `size` is the word of `--example-size`, `untrained` whether a network by name needs no weights. A network by name
    without data has as many classes as its weights.
    """
    spec, shape = str(model.model), _parsed(size)
    if Path(spec).suffix in EXPORTED:
        raise UserError(f"{spec} is an exported program, whose layers cannot be grown; give the network it came from")
    if size is not None and data.data is not None:
        raise UserError("--example-size is of random images; leave out it or --data")
    dataset = loaded(data, size=flags.get("size")) if data.data is not None else None
    if is_saved(spec):
        classifier = saved_classifier(spec, model, flags, device)
        if not isinstance(classifier, NetworkClassifier):
            raise UserError(f"{spec} is a second-stage classifier, not one network; give the network it stands on")
    elif model.weights is None and untrained:
        pictures = dataset or _pictures(shape or _SHAPE, _CLASSES)
        network = create_model(
            spec, num_classes=len(pictures.class_names), in_channels=pictures.shape[0], image_size=pictures.shape[1:]
        )
        preprocess = own_preprocessing(network) or pictures.preprocess
        classifier = NetworkClassifier(network, preprocess=preprocess, class_names=pictures.class_names, device=device)
    else:
        classifier = named_classifier(spec, model, flags, device, dataset or _of_weights(model, shape or _SHAPE))
    example, described = _example(classifier, dataset, shape, seed)
    source = source_of(classifier.model)
    name = portable_name(spec) if Path(spec).expanduser().exists() or source is None else source.spec
    return Subject(classifier.model, name, classifier.preprocess, tuple(classifier.class_names), example, described)


def _example(classifier: NetworkClassifier, dataset: Any, shape: Shape | None, seed: int) -> tuple[Tensor, str]:
    generator = torch.Generator().manual_seed(seed)
    if dataset is not None:
        images = (dataset.train or dataset.test).images[:_FROM_DATA]
        return classifier.inputs(images), f"{len(images)} images of {dataset.name}"
    if shape is not None:
        example = torch.randn(_RANDOM, *shape, generator=generator)
    else:
        source = source_of(classifier.model)
        if source is None:
            raise UserError("the network does not say for which images it was made; give --example-size or --data")
        pixels = torch.rand(_RANDOM, source.in_channels, *source.image_size, generator=generator)
        example = classifier.inputs(pixels)
    parameter = next(classifier.model.parameters())
    sides = "×".join(map(str, example.shape[1:]))
    return example.to(parameter.device, parameter.dtype), f"{_RANDOM} random images of {sides} (seed {seed})"


def _of_weights(model: ModelOptions, shape: Shape) -> Pictures:
    """Pictures of as many classes as a network's weights are for: found by what hangs on their number."""
    if model.weights is None:
        return _pictures(shape, _CLASSES)  # refused with the word on missing weights
    weights = read_weights(model.weights)
    two, three = (
        create_model(str(model.model), num_classes=count, in_channels=shape[0], image_size=shape[1:]).state_dict()
        for count in (2, 3)
    )
    for name, tensor in two.items():
        for a, b, c in zip(tensor.shape, three[name].shape, getattr(weights.get(name), "shape", ()), strict=False):
            if (a, b) == (2, 3):
                say(f"note: {c} classes, as the weights have them, called 0 to {c - 1}; --data would name them")
                return _pictures(shape, c)
    return _pictures(shape, _CLASSES)


def _pictures(shape: Shape, classes: int) -> Pictures:
    return Pictures("random images", shape, [str(number) for number in range(classes)])


def _parsed(word: str | None) -> Shape | None:
    if word is None:
        return None
    match = re.fullmatch(r"(\d+)[x×](\d+)[x×](\d+)", word.strip())
    if match is None or not all(int(each) for each in match.groups()):
        raise UserError(f"--example-size: expected channels, height and width such as 3x64x64, got '{word}'")
    return int(match[1]), int(match[2]), int(match[3])
