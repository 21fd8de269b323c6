"""Networks of torchvision and timm with fresh weights, and the preprocessing that goes with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from postgrad._compat import prepare_torchvision
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError, unknown_name
from postgrad.models.preprocessing import set_preprocessing

_WEIGHTS_OPTIONS = {
    "pretrained",
    "weights",
    "weights_backbone",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
}


def torchvision_model(name: str, num_classes: int, in_channels: int, kwargs: Mapping[str, Any]) -> nn.Module:
    """A classifier of torchvision.models; auxiliary heads are left out, so that its output is the logits alone."""
    prepare_torchvision()
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    if in_channels != 3:
        raise UserError(
            f"torchvision:{name} takes images of 3 channels, these have {in_channels}; "
            f"seed-cnn, mlp, resnet20 and timm: networks take any number"
        )
    _refuse_weights(f"torchvision:{name}", kwargs)
    head = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    try:
        model = models.get_model(name, weights=None, num_classes=num_classes, **head, **kwargs)
    except TypeError as error:
        raise UserError(f"torchvision:{name} does not take these options: {error}") from error
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    preprocess = Preprocessing(
        size=transforms.resize_size[0],
        crop=transforms.crop_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )
    set_preprocessing(model, preprocess, "torchvision's default weights")
    return model


def timm_model(name: str, num_classes: int, in_channels: int, kwargs: Mapping[str, Any]) -> nn.Module:
    """A network of timm; its first layer is made for any number of channels."""
    prepare_torchvision()
    try:
        import timm
    except ImportError as error:
        raise UserError(f"timm:{name} needs timm; install it with: pip install 'postgrad[timm]'") from error
    if not timm.is_model(name):
        near = unknown_name("timm model", name, timm.list_models())
        raise UserError(f"{str(near).partition(' Known:')[0].rstrip('.')}; timm.list_models() names them all")
    _refuse_weights(f"timm:{name}", kwargs)
    try:
        model = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **kwargs)
    except TypeError as error:
        raise UserError(f"timm:{name} does not take these options: {error}") from error
    config = timm.data.resolve_model_data_config(model)
    side = int(config["input_size"][-1])
    preprocess = Preprocessing(
        size=math.floor(side / config["crop_pct"]),
        crop=side,
        mean=_per_channel(config["mean"], in_channels),
        std=_per_channel(config["std"], in_channels),
    )
    set_preprocessing(model, preprocess, "timm's pretrained_cfg")
    return model


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """The statistics of colour images for another number of channels: their mean, for each."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _refuse_weights(spec: str, kwargs: Mapping[str, Any]) -> None:
    given = sorted(_WEIGHTS_OPTIONS & kwargs.keys())
    if given:
        raise UserError(f"{spec} is made with fresh weights, so {given[0]} cannot be set; load a file with --weights")
