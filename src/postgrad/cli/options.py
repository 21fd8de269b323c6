"""The options that several verbs share, spelt alike everywhere: data, model, preprocessing, run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from postgrad.errors import UserError, unknown_name
from postgrad.methods.registry import parse_settings
from postgrad.studies.config import PREPROCESS_FIELDS, RunConfig

Config = TypeVar("Config", bound=RunConfig)


def converted(convert: Callable[[str], Any], metavar: str) -> tuple[Any, Any]:
    """What tyro needs to know of a value that one word gives: how it is read, and how `--help` calls it."""
    reading = tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: convert(words[0]),
        is_instance=lambda _: True,
        str_from_instance=lambda value: [str(value)],
    )
    return reading, tyro.conf.arg(help_behavior_hint="")


def _text(word: str) -> str:
    if not word.strip():
        raise ValueError("expected a value, got nothing")
    return word


def _path(word: str) -> Path:
    return Path(_text(word)).expanduser()


def _whole(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"expected a whole number, got '{word}'") from None


def _count(word: str) -> int:
    if (count := _whole(word)) < 1:
        raise ValueError(f"expected a number of 1 or more, got {count}")
    return count


def _seed(word: str) -> int:
    if (seed := _whole(word)) < 0:
        raise ValueError(f"expected a whole number of 0 or more, got {seed}")
    return seed


def _number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise ValueError(f"expected a number, got '{word}'") from None
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got '{word}'")
    return value


def _numbers(word: str) -> tuple[float, ...]:
    return tuple(_number(part) for part in word.split(","))


# What is not given is None, so that a recipe's word stands where the command line is silent.
Spec = Annotated[str | None, *converted(_text, "MODEL")]
Name = Annotated[str | None, *converted(_text, "NAME")]
Source = Annotated[str | None, *converted(_text, "FILE|folder:DIR")]
Text = Annotated[str | None, *converted(_text, "TEXT")]
Amount = Annotated[str | None, *converted(_text, "AMOUNT")]
Time = Annotated[str | None, *converted(_text, "TIME")]
Numbers = Annotated[tuple[float, ...] | None, *converted(_numbers, "X,X,X")]
File = Annotated[Path | None, *converted(_path, "FILE")]
Folder = Annotated[Path | None, *converted(_path, "DIR")]
Count = Annotated[int | None, *converted(_count, "N")]
Seed = Annotated[int | None, *converted(_seed, "N")]
Number = Annotated[float | None, *converted(_number, "X")]
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class DataOptions:
    """Which images."""

    data: Name = None
    """digits | mnist | fashion-mnist | kmnist | notmnist | cifar10 | cifar100 | svhn | folder:DIR | npz:FILE"""
    data_dir: Folder = None
    """Where the data sets lie. Default: $POSTGRAD_DATA, else a cache folder, downloading where there is a network."""
    limit: Count = None
    """Use N training and N test images, stratified, first in file order. Default: all."""
    memory: Amount = None
    """How much memory data and gradients may take, such as 500MB. Default: 8GB."""


@dataclass(frozen=True)
class ModelOptions:
    """Which network."""

    model: Spec = None
    """seed-cnn | mlp | resnet20 | torchvision:NAME | timm:NAME | pkg.mod:factory | file.py:factory | RUN | RUN/ARM |
    FILE.pt2 | FILE.onnx"""
    weights: File = None
    """Trained weights for it: .safetensors, .pt, .pth, or a Chainer snapshot for seed-cnn."""


@dataclass(frozen=True)
class PreprocessOptions:
    """How stored images become what the network sees. Default: the checkpoint's, else the model's, else the data's."""

    preprocess: Text = None
    """The parts below in one word: size=256,crop=224,mean=.5+.5+.5,std=.5+.5+.5,per_image_standardise=false."""
    size: Count = None
    """Resize the shorter side to N pixels."""
    crop: Count = None
    """Then cut the centre square of N pixels."""
    mean: Numbers = None
    """Then subtract this mean for each channel, of pixels in [0, 1], such as .485,.456,.406."""
    std: Numbers = None
    """Then divide by this for each channel, such as .229,.224,.225."""
    per_image_standardise: Flag = False
    """Instead, give each image mean 0 and standard deviation 1."""


@dataclass(frozen=True)
class MachineOptions:
    """Where and how loudly it runs."""

    device: Name = None
    """auto | cpu | cuda | cuda:1 | mps. Default: auto."""
    threads: Count = None
    """Processor threads. Default: as many as there are cores."""
    json: Flag = False
    """Print one JSON document on standard output, and nothing else there."""
    quiet: Flag = False
    """Show no progress."""


def given(*groups: Any) -> dict[str, Any]:
    """The options among these groups that the user gave, by name."""
    values = [pair for group in groups for pair in vars(group).items()]
    return {name: value for name, value in values if value is not None and value is not False and value != ()}


def required(value: Any, option: str) -> Any:
    """`value`, or the error that says which option is missing."""
    if value is None:
        raise UserError(f"{option} is missing; --help shows what it can be")
    return value


def preprocess_flags(options: PreprocessOptions) -> dict[str, Any]:
    """The parts of the preprocessing that the user gave; a part's own option stands over the word of `--preprocess`."""
    parts = given(options)
    word = parts.pop("preprocess", None)
    settings = parse_settings(word, source="--preprocess") if word else {}
    for name in settings:
        if name not in PREPROCESS_FIELDS:
            raise unknown_name("part of --preprocess", name, PREPROCESS_FIELDS)
    return settings | parts


def resumed_config(
    config: type[Config], directory: Path, groups: Sequence[Any], *, of_this_call: Sequence[str] = ("json", "quiet")
) -> Config:
    """The settings of an interrupted run, from its directory; only options `of_this_call` may be given beside them."""
    others = set(given(*groups)) - {"resume", *of_this_call}
    if others:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(others))
        raise UserError(f"--resume goes on with the run's own settings; leave out {names}")
    file = directory / "config.yaml"
    if not file.is_file():
        raise UserError(f"{directory} holds no config.yaml, so it is no run to resume; give a run directory")
    return config.load(file).model_copy(update={"resume": directory, "out": directory})
