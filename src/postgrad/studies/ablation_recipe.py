"""What a study of ablations consists of: its base, its images, and groups of settings of GradNet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from postgrad.errors import unknown_name
from postgrad.methods.registry import check_options
from postgrad.methods.separators import SEPARATORS

SEPARATOR_GROUP = "separators"

_SETTLED = {"augment", "class_names", "device", "directory", "memory", "preprocess", "random_state"}
"""Parameters of GradNet that the study itself gives."""


class Group(BaseModel):
    """Settings that one figure compares: by label, what each changes of GradNet's. Several `lr` are tried in turn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    settings: dict[str, dict[str, Any]]


class Separators(BaseModel):
    """Which separators are compared, on gradients projected to `size` numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: PositiveInt = 512
    names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.names:
            if name not in SEPARATORS:
                raise unknown_name("separator", name, SEPARATORS)
        return self


class Ablations(BaseModel):
    """A whole study: its base, its images, what GradNet is by default, and the groups of settings.

    `images` of the second half fit GradNet; `validation_images` of that half's last tenth choose between learning rates
    (after `tuning_passes`) and nothing else; `test_images`, spread evenly over the test set, choose nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    model: str = "seed-cnn"
    base_accuracy: float = Field(gt=0, le=1)
    seed: int = Field(default=0, ge=0)
    threads: PositiveInt = 1
    memory: str = "4GB"
    images: PositiveInt
    validation_images: PositiveInt
    test_images: PositiveInt
    tuning_passes: float = Field(default=1, gt=0)
    gradnet: dict[str, Any]
    groups: dict[str, Group]
    separators: Separators = Separators()

    @model_validator(mode="after")
    def _options_of_gradnet(self) -> Self:
        if SEPARATOR_GROUP in self.groups:
            raise ValueError(f"groups: '{SEPARATOR_GROUP}' has a section of its own")
        for group in self.groups.values():
            for options in group.settings.values():
                if settled := sorted(_SETTLED & (self.gradnet | options).keys()):
                    raise ValueError(f"the study itself gives {', '.join(settled)}; leave it out")
                for rate in rates(options):
                    check_options("gradnet", {**self.gradnet, **options, **rate})
        return self

    def quick(self) -> Ablations:
        """The same on the embedded digits with so few images that it takes one or two CPU minutes."""
        few = {"data": "digits", "base_accuracy": 0.8, "images": 60, "validation_images": 20, "test_images": 30}
        separators = self.separators.model_copy(update={"size": min(32, self.separators.size)})
        return self.model_copy(update={**few, "gradnet": {**self.gradnet, "epochs": 2}, "separators": separators})


def rates(options: Mapping[str, Any]) -> list[dict[str, float]]:
    """The learning rates of a setting, one after the other: `{"lr": rate}`, or nothing where it gives none."""
    if "lr" not in options:
        return [{}]
    return [{"lr": rate} for rate in (options["lr"] if isinstance(options["lr"], list) else [options["lr"]])]


def setting_file(directory: Path, settled: Mapping[str, Any], defaults: Mapping[str, Any]) -> Path:
    """Where the results of a setting lie: a name made of what differs from the defaults, the same for equal settings.

    >>> setting_file(Path("settings"), {"hidden": [5, 25, 10], "lr": 0.01}, {"hidden": [5, 100, 25], "lr": 0.01})
    PosixPath('settings/hidden=5+25+10.json')
    """
    changed = {key: value for key, value in settled.items() if key not in defaults or defaults[key] != value}
    name = ",".join(f"{key}={_written(value)}" for key, value in sorted(changed.items()))
    return directory / f"{name or 'default'}.json"


def separator_file(directory: Path, name: str) -> Path:
    """Where the results of a separator lie."""
    return directory / f"separator={name.replace(' ', '-')}.json"


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return "+".join(f"{key}-{_written(part)}" for key, part in sorted(value.items()))
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
