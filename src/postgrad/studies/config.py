"""Every setting of one run, checked, and written to and read from YAML. Imports no torch."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

from postgrad.errors import unknown_name
from postgrad.files import write_atomic
from postgrad.methods.registry import CONTROLS_OF_SHAPE
from postgrad.studies.arm_config import MethodConfig, Names, SecondStageMethod, Stages, Taught, TrainingArm
from postgrad.units import parse_memory
from postgrad.validation import read_yaml, validated

PREPROCESS_FIELDS = ("size", "crop", "mean", "std", "per_image_standardise")
CONTROLS = CONTROLS_OF_SHAPE["second stage"]
"""The controls of second-stage methods, in the order in which they are made."""

TRAINING_CONTROLS = CONTROLS_OF_SHAPE["loss"]
"""The controls of methods that are part of a training."""


def _expand(path: Any) -> Any:
    return Path(path).expanduser() if isinstance(path, (str, Path)) else path


def _numbers(value: Any) -> Any:
    """Take `.485,.456,.406` as well as a list of numbers."""
    if isinstance(value, str):
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            raise ValueError(f"expected numbers with commas between them, got '{value}'") from None
    return (value,) if isinstance(value, (int, float)) else value


def _seeds(value: Any) -> Any:
    """Take a number of seeds, which are then 0 … N−1, as well as a list of them."""
    if isinstance(value, int) and not isinstance(value, bool):
        return tuple(range(value))
    return value


def _fraction(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"expected a fraction between 0 and 1 (72 % is 0.72), got {value:g}")
    return value


def _duration(text: str) -> str:
    if not re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*[smh]", text):
        raise ValueError(f"expected a time such as 90s, 10m or 1.5h, got '{text}'")
    return text


Duration = Annotated[str, AfterValidator(_duration)]
Fraction = Annotated[float, AfterValidator(_fraction)]
UserPath = Annotated[Path, BeforeValidator(_expand)]
PerChannel = Annotated[tuple[float, ...], BeforeValidator(_numbers)]


class RunConfig(BaseModel):
    """The settings that every run has: its network, data and machine. The names are those of the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "seed-cnn"
    weights: UserPath | None = None
    data: str = "digits"
    data_dir: UserPath | None = None
    limit: PositiveInt | None = None
    size: PositiveInt | None = None
    crop: PositiveInt | None = None
    mean: PerChannel | None = None
    std: PerChannel | None = None
    per_image_standardise: bool | None = None
    device: str = "auto"
    threads: PositiveInt | None = None
    memory: str = "8GB"
    out: UserPath = Path("runs/run")
    resume: UserPath | None = None

    @field_validator("memory")
    @classmethod
    def _bytes(cls, text: str) -> str:
        parse_memory(text)
        return text

    @field_validator("std")
    @classmethod
    def _not_zero(cls, std: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if std is not None and min(std) <= 0:
            raise ValueError(f"expected numbers above 0, got {std}")
        return std

    @model_validator(mode="after")
    def _mean_and_std(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; give both or neither")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers and std {len(self.std)}; give one for each channel")
        return self

    def preprocess_flags(self) -> dict[str, Any]:
        """The parts of the preprocessing that were asked for; what was left open is not in it."""
        return {name: value for name in PREPROCESS_FIELDS if (value := getattr(self, name)) is not None}

    def to_yaml(self) -> str:
        """The settings as YAML; `resume` is left out, since it belongs to one call and not to the run."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude={"resume"}), sort_keys=False, allow_unicode=True)

    def save(self, path: str | Path) -> None:
        """Write the settings as YAML, whole or not at all."""
        write_atomic(path, self.to_yaml())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read settings from YAML; each mistake is named in one `UserError`."""
        return validated(cls, read_yaml(path), source=str(path))


class TrainConfig(RunConfig, Taught):
    """What `postgrad train` is told.

    `methods` are part of the training; `training` holds the fields of `postgrad.training.Recipe` that were chosen;
    `growth` says what grows after which epoch: `{3: ["widen:layer=conv1,to=96"]}`.
    """

    out: UserPath = Path("runs/train")
    seed: Annotated[int, Field(ge=0)] = 0
    training: dict[str, Any] = {}
    growth: Stages = {}


_BASE_SETTINGS = ("base_accuracy_on", "base_validate_every", "bases", "base_targets")
"""How a base is trained, as far as only a recipe can say it."""


class ComparisonConfig(RunConfig):
    """What every comparison of methods with their controls is told, whichever way the methods are named.

    `controls` names those that each method is compared with, all four by default; control-same-price is made of
    control-finetune and control-more-data, so it needs both.

    `base_accuracy_on` says how the images look on which a base that is trained here must reach `base_accuracy`:
    "plain", as all test images do, or "augmented", as training images do (up to 3,000 of them, the same draw at each
    look). In the second case each base's arm.json also holds its `augmented_accuracy`, from one seeded pass over the
    test images. `base_validate_every` is the number of steps between two looks (default: 50 with a `base_accuracy`,
    else an epoch).

    `bases` is a folder in which runs share the training of a base: those whose bases differ only in where they stop
    train it once, and each goes on where the one before it rested. `base_targets` are the accuracies at which the
    others stop; the weights there are kept on the way. The runs of a ledger get both from what makes them.

    `steps` holds the step counts that time budgets became in an earlier run, under keys such as
    `seed0/control-finetune/final`, so that a rerun from its `config.yaml` repeats it.
    """

    epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    budget: Duration | None = None
    base_accuracy: Fraction | None = None
    base_accuracy_on: Literal["plain", "augmented"] = "plain"
    base_validate_every: PositiveInt | None = None
    bases: UserPath | None = None
    base_targets: tuple[Fraction, ...] = ()
    controls: Names = CONTROLS
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_seeds)] = (0,)
    whole_halves: bool = False
    steps: dict[str, Annotated[int, Field(ge=0)]] = {}

    def training_arms(self) -> Mapping[str, TrainingArm]:
        """The trainings that are compared, by arm; there are none where second-stage methods are."""
        return {}

    def further_metrics(self) -> tuple[str, ...]:
        """What verdicts are about beside accuracy."""
        return ()

    @abstractmethod
    def method_arms(self) -> tuple[MethodConfig, ...]:
        """The methods that are compared, each of them with a label of its own."""

    @abstractmethod
    def command(self) -> str:
        """The command line that asks for this."""

    def arms_against(self) -> dict[str, tuple[str, ...]]:
        """Arm -> the arms that it is compared with beside the base and its own controls."""
        return {method.label: method.against for method in self.method_arms()}

    @model_validator(mode="after")
    def _some_control(self) -> Self:
        against = self.arms_against()
        controls = {name for others in against.values() for name in others}
        alone = [name for name, others in against.items() if not others and name not in controls]
        if not self.controls and alone:
            raise ValueError(f"controls: expected at least one for {', '.join(alone)}")
        return self

    @model_validator(mode="after")
    def _against_arms_that_there_are(self) -> Self:
        labels = [method.label for method in self.method_arms()]
        for method in self.method_arms():
            for other in method.against:
                if other == method.label or other not in labels:
                    raise unknown_name(f"arm that {method.label} is compared with", other, labels)
        return self

    @field_validator("controls")
    @classmethod
    def _known_controls(cls, controls: tuple[str, ...]) -> tuple[str, ...]:
        for name in controls:
            if name not in (*CONTROLS, *TRAINING_CONTROLS):
                raise unknown_name("control", name, (*CONTROLS, *TRAINING_CONTROLS))
        if len(set(controls)) != len(controls):
            raise ValueError(f"expected each control once, got {list(controls)}")
        if "control-same-price" in controls and not {"control-finetune", "control-more-data"} <= set(controls):
            raise ValueError(
                "control-same-price is made of control-finetune and control-more-data; name these two as well"
            )
        return tuple(name for name in (*CONTROLS, *TRAINING_CONTROLS) if name in controls)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) != len(seeds):
            raise ValueError(f"expected at least one seed, each of them once, got {list(seeds)}")
        return seeds


class ImproveConfig(ComparisonConfig):
    """What `postgrad improve` is told.

    >>> config = ImproveConfig(data="cifar10", base_accuracy=0.72, methods=["gradnet:epochs=10"])
    >>> config.save("config.yaml")
    >>> ImproveConfig.load("config.yaml") == config
    True
    """

    out: UserPath = Path("runs/improve")
    methods: tuple[SecondStageMethod, ...] = (MethodConfig(name="gradnet"),)

    def method_arms(self) -> tuple[MethodConfig, ...]:
        return self.methods

    def command(self) -> str:
        """The command line that asks for this, with paths as their last part only.

        >>> ImproveConfig(data="cifar10", base_accuracy=0.72, data_dir="/big/data").command()
        'postgrad improve --data cifar10 --data-dir data --base-accuracy 0.72'
        """
        left_out = {"resume", "steps", "threads", "whole_halves", *_BASE_SETTINGS}
        given = {name: getattr(self, name) for name in type(self).model_fields if name not in left_out}
        fields = type(self).model_fields
        flags = [_flag(name, value) for name, value in given.items() if value != fields[name].default]
        return " ".join(["postgrad improve", *flags])

    @model_validator(mode="after")
    def _together(self) -> Self:
        names = [method.label for method in self.methods]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"expected at least one method, each of them once, got {names}; give others their own run")
        return self


def _flag(name: str, value: Any) -> str:
    """One setting as the command line takes it."""
    if name == "methods":
        return " ".join(f"--method {method}" for method in value)
    if name == "seeds":
        return f"--seeds {len(value)}" if value == tuple(range(len(value))) else f"--seed {value[0]}"
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return option if value else f"--no-{name.replace('_', '-')}"
    if isinstance(value, Path):
        return f"{option} {value.name}"
    return f"{option} {','.join(map(str, value)) if isinstance(value, tuple) else value}"
