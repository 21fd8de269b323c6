"""Networks by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from postgrad.errors import UserError, unknown_name
from postgrad.files import sha256
from postgrad.models.factories import call_factory, find_factory, is_file_factory, portable_name
from postgrad.models.mlp import MLP
from postgrad.models.names import BUILT_IN, FORMS
from postgrad.models.preprocessing import own_augmentation, own_preprocessing, set_preprocessing
from postgrad.models.resnet20 import ResNet20
from postgrad.models.seed_cnn import SeedCNN
from postgrad.models.source import FactoryFile, Source, set_source
from postgrad.models.zoo import timm_model, torchvision_model

__all__ = ["create_model", "own_augmentation", "own_preprocessing"]


def create_model(
    spec: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 32,
    **kwargs: Any,
) -> nn.Module:
    """Make a network by name, with fresh weights from torch's global generator.

    >>> create_model("seed-cnn", num_classes=10, in_channels=1, image_size=28)
    >>> create_model("torchvision:resnet18", num_classes=100)
    >>> create_model("my_net.py:build", num_classes=10, depth=3)

    `spec` is seed-cnn, mlp, resnet20, torchvision:NAME, timm:NAME, pkg.mod:factory or file.py:factory. `image_size` is
    the side of the stored images in pixels, or (height, width). `kwargs` go to the network. A factory of the user's own
    is given those of num_classes, in_channels and image_size that it names. The network may carry an attribute
    `preprocess` (a `Preprocessing`, or a dictionary of its fields): its own word on how images reach it.

    Raises `UserError` for an unknown name, with the nearest known one.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if num_classes < 2 or in_channels < 1 or height < 1 or width < 1:
        raise UserError(
            f"a network needs at least 2 classes, 1 channel and 1 pixel; "
            f"got {num_classes} classes, {in_channels} channels and {height}×{width} pixels"
        )
    size = (height, width)
    model = _build(spec, num_classes, in_channels, size, kwargs)
    own = own_preprocessing(model)
    if own and not hasattr(model, "preprocess_origin"):
        set_preprocessing(model, own, f"the word of {spec} itself")
    set_source(model, _source(spec, num_classes, in_channels, size, kwargs))
    return model


def rebuild(source: Source) -> nn.Module:
    """The same architecture again, with fresh weights."""
    return create_model(
        source.spec,
        num_classes=source.num_classes,
        in_channels=source.in_channels,
        image_size=source.image_size,
        **source.kwargs,
    )


def _build(spec: str, classes: int, channels: int, size: tuple[int, int], kwargs: dict[str, Any]) -> nn.Module:
    if spec in BUILT_IN:
        try:
            return _built_in(spec, classes, channels, size, kwargs)
        except TypeError as error:
            raise UserError(f"{spec} does not take these options: {error}") from error
    family, colon, name = spec.partition(":")
    if not colon:
        raise unknown_name("model", spec, [*BUILT_IN, *FORMS])
    if family == "torchvision":
        return torchvision_model(name, classes, channels, kwargs)
    if family == "timm":
        return timm_model(name, classes, channels, kwargs)
    arguments = {"num_classes": classes, "in_channels": channels, "image_size": size[0] if size[0] == size[1] else size}
    return call_factory(find_factory(spec), spec, arguments, kwargs)


def _built_in(spec: str, classes: int, channels: int, size: tuple[int, int], kwargs: dict[str, Any]) -> nn.Module:
    if spec == "seed-cnn":
        return SeedCNN(channels, classes, size, **kwargs)
    if spec == "mlp":
        return MLP(channels, classes, size, **kwargs)
    return ResNet20(channels, classes, **kwargs)


def _source(spec: str, classes: int, channels: int, size: tuple[int, int], kwargs: dict[str, Any]) -> Source | None:
    """What rebuilds the network, None where an option is an object that no manifest can hold."""
    try:
        plain = json.loads(json.dumps(kwargs))
    except TypeError:
        return None
    file, name = None, spec
    if is_file_factory(spec):
        path, _, factory = spec.rpartition(":")
        file = FactoryFile(name=portable_name(path), sha256=sha256(Path(path).expanduser()))
        name = f"{file.name}:{factory}"
    return Source(
        spec=name, num_classes=classes, in_channels=channels, image_size=size, kwargs=plain, factory_file=file
    )
