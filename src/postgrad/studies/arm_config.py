"""What one arm of a comparison is told: a method and its options, or a training. Imports no torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PositiveInt,
    field_validator,
    model_validator,
)

from postgrad.growth.words import parse_stages
from postgrad.methods.registry import LEARN_FROM_TEACHER, TRAINING_SHAPES, get_method, parse_method


def _names(value: Any) -> Any:
    """Take `control-finetune,control-features` as well as a list of names."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _one_or_more(value: Any) -> Any:
    """Take one thing as well as a list of things."""
    return value if isinstance(value, (list, tuple)) else (value,)


def _arm_name(name: str) -> str:
    """What a folder may be called everywhere, and no other arm is."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name == "base" or name.startswith(("control-", "seed-")):
        raise ValueError(
            f"an arm's name consists of letters, digits, - and _, is not base, and begins neither with control- nor "
            f"with seed-, got '{name}'"
        )
    return name


ArmName = Annotated[str, AfterValidator(_arm_name)]


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class MethodConfig(BaseModel):
    """One method with its options, as in `--method gradnet:epochs=10`; `arm` where its arm has another name.

    `against` names further arms that it is compared with, beside the base and its controls. One that is compared with
    nothing itself is a control then, and is made without controls of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    options: dict[str, Any] = {}
    arm: ArmName | None = None
    against: Names = ()

    @property
    def label(self) -> str:
        """The name of its arm."""
        return self.arm or self.name

    def __str__(self) -> str:
        """The form that `--method` takes."""
        options = ",".join(f"{key}={_written(value)}" for key, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return get_method(name).name

    @field_validator("options")
    @classmethod
    def _tuples(cls, options: dict[str, Any]) -> dict[str, Any]:
        """YAML has no tuples; make its lists ones, so that settings read back equal those written."""
        return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


def _written(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def as_method(value: Any) -> Any:
    """Take the form of `--method` as well as a mapping."""
    if isinstance(value, str):
        name, options = parse_method(value)
        return {"name": name, "options": options}
    return value


Method = Annotated[MethodConfig, BeforeValidator(as_method)]


def _of_training(method: MethodConfig) -> MethodConfig:
    if get_method(method.name).shape not in TRAINING_SHAPES:
        raise ValueError(f"{method.name} is no part of a training; `postgrad improve --method {method.name}` uses it")
    return method


def _second_stage(method: MethodConfig) -> MethodConfig:
    if get_method(method.name).shape in TRAINING_SHAPES:
        raise ValueError(
            f"{method.name} is part of a network's training; use `postgrad train --method {method.name}`, or a recipe "
            "for `postgrad study`"
        )
    return method


TrainingMethod = Annotated[Method, AfterValidator(_of_training)]
SecondStageMethod = Annotated[Method, AfterValidator(_second_stage)]


def _stages(value: Any) -> Any:
    """Take one operation as well as a list of them, and say what cannot be read."""
    if not isinstance(value, dict):
        raise ValueError(f"expected the operations of each epoch, as in 3: ['widen:layer=conv1,to=96'], got {value!r}")
    return {epoch: [str(each) for each in calls] for epoch, calls in parse_stages(value).items()}


Stages = Annotated[dict[int, tuple[str, ...]], BeforeValidator(_stages)]
"""How many epochs are over -> what grows then, in the words of `postgrad.growth.words`."""


def _words(value: Any) -> Any:
    """Take one name as well as a list of names."""
    return (value,) if isinstance(value, str) else value


class Taught(BaseModel):
    """What a training learns from beside its images and labels.

    `teacher` is a run, an arm or a checkpoint, several are an ensemble; `teacher_views` is the number of augmented
    views of each image for which its answers are kept, None where it is asked at each step. `transfer` are images that
    join the training's, with labels or without.
    """

    methods: Annotated[tuple[TrainingMethod, ...], BeforeValidator(_one_or_more)] = ()
    teacher: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    teacher_views: PositiveInt | None = None
    transfer: str | None = None

    @model_validator(mode="after")
    def _teacher_and_method(self) -> Self:
        learns = [method.name for method in self.methods if method.name in LEARN_FROM_TEACHER]
        if learns and not self.teacher:
            raise ValueError(f"{learns[0]} needs a teacher: a run, an arm of one or a checkpoint, as in --teacher RUN")
        if self.teacher and not learns:
            raise ValueError("a teacher is learnt from by a method such as distillation; give --method distillation")
        if self.teacher_views is not None and not self.teacher:
            raise ValueError("teacher_views: there is no teacher; leave it out")
        return self


class TrainingArm(Taught):
    """One way to train the network: with these methods, and with these settings in place of the study's.

    `training` holds fields of `postgrad.training.Recipe`, `growth` says what grows after which epoch. `model` is
    another network than the study's, drawn anew. `teacher`, `teacher_views` and `transfer` are those of `postgrad
    train`. `tune` names options of its method with the values in question, which are chosen as the learning rate is:
    each is tried at each rate on the first seed, and what the validation images favour is taken. `time_of` names an
    arm: as many steps are taken as fit into the CPU time of that. `against` names the arms that it is compared with;
    where it names none, that is the base, the training as it is without any of this.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    training: dict[str, Any] = {}
    growth: Stages = {}
    model: str | None = None
    tune: dict[str, tuple[Any, ...]] = {}
    time_of: str | None = None
    against: Names = ()

    @model_validator(mode="after")
    def _tunes_its_method(self) -> Self:
        if not self.tune:
            return self
        if len(self.methods) != 1 or not all(self.tune.values()):
            raise ValueError("tune: expected an arm of one method, and for each of its options the values in question")
        if twice := self.tune.keys() & self.methods[0].options.keys():
            raise ValueError(f"tune: {', '.join(sorted(twice))} is an option of the method already; leave one out")
        return self

    def tries(self) -> list[dict[str, Any]]:
        """The options in question, one combination after the other; where nothing is tuned, one without any."""
        combinations = itertools.product(*self.tune.values())
        return [dict(zip(self.tune, values, strict=True)) for values in combinations]

    def at(self, options: Mapping[str, Any]) -> TrainingArm:
        """The same arm with these options of its method, and nothing left to tune."""
        methods = tuple(
            each.model_copy(update={"options": {**each.options, **options}}) if options else each
            for each in self.methods
        )
        return self.model_copy(update={"methods": methods, "tune": {}})

    def __str__(self) -> str:
        settings = [f"{name}={value}" for name, value in self.training.items()]
        grows = [f"after epoch {epoch} {', '.join(calls)}" for epoch, calls in self.growth.items()]
        of = [self.model] if self.model else []
        time = [f"for the time of {self.time_of}"] if self.time_of else []
        taught = [f"taught by {' and '.join(self.teacher)}"] if self.teacher else []
        more = [f"with {self.transfer}"] if self.transfer else []
        tuned = [f"{name} of {', '.join(map(str, values))}" for name, values in self.tune.items()]
        parts = [*of, *map(str, self.methods), *tuned, *taught, *more, *settings, *grows, *time]
        return ", ".join(parts) or "the training as it is"
