"""Every setting of a study, checked, and how a recipe differs from the study that it is to go on with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from postgrad.errors import UserError, unknown_name
from postgrad.methods.registry import TRAINING_SHAPES, get_method
from postgrad.studies.arm_config import ArmName, MethodConfig, Names, TrainingArm, as_method
from postgrad.studies.config import CONTROLS, TRAINING_CONTROLS, ComparisonConfig, UserPath

FURTHER_METRICS = ("nll", "ece", "brier", "aurc")
"""What verdicts are about beside accuracy."""

ON_TRAINING = ("train_accuracy",)
"""The same for trainings: the accuracy on images that they were trained on, without augmentation."""

_OF_ONE_CALL = ("out", "resume", "data_dir", "claims")
"""Settings that say where things lie, or how the results are read, and may be others when a study goes on."""


_OF_SECOND_STAGES = (
    "epochs", "budget", "base_accuracy", "base_accuracy_on", "base_validate_every", "bases", "base_targets",
    "whole_halves",
)  # fmt: skip
_OF_TRAININGS = ("training", "rates")


def _mapping(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"expected lines of the form 'name: method', got {value!r}")
    return value


def _arm(value: Any) -> Any:
    """A second-stage method or a training, whichever the words describe."""
    if isinstance(value, dict) and not {"name", "options", "arm"} & value.keys():
        return TrainingArm.model_validate(value)
    method = MethodConfig.model_validate(as_method(value)) if isinstance(value, (str, dict)) else value
    if isinstance(method, MethodConfig) and get_method(method.name).shape in TRAINING_SHAPES:
        return TrainingArm(methods=(method,))
    return method


Arm = Annotated[MethodConfig | TrainingArm, BeforeValidator(_arm)]


class Claim(BaseModel):
    """What was published, and the arm of a study that tests it.

    `published_base` and `published` are the figures before and after. `expects` says what was claimed: a gain, or that
    there is no difference to what the arm is compared with. `not_testable` says what is missing where a claim cannot be
    tested here, and then no arm is needed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: str
    source: str
    arm: str | None = None
    metric: str = "accuracy"
    expects: Literal["gain", "no difference"] = "gain"
    published_base: float | None = None
    published: float | None = None
    not_testable: str | None = None


def _rates(value: Any) -> Any:
    return (value,) if isinstance(value, (int, float)) else value


def _controls_of(arms: Mapping[str, Any]) -> tuple[str, ...]:
    return TRAINING_CONTROLS if any(isinstance(arm, TrainingArm) for arm in arms.values()) else CONTROLS


class StudyConfig(ComparisonConfig):
    """What `postgrad study` is told.

    >>> config = StudyConfig(arms={"gradnet": "gradnet", "gradnet-last": "gradnet:layers=[fc]"}, seeds=5)
    >>> config.method_arms()[1].label
    'gradnet-last'

    `arms` names the methods that are compared: the same one may stand there several times, with other options under
    other names. They are second-stage methods over a base network, or trainings (`TrainingArm`) of the same network
    from the same first weights. `training` is then what all of these have of a `postgrad.training.Recipe`, and each arm
    takes that of the `rates` (of learning) which the validation images favour on the first seed.

    `seeds` is their number, or a list. `ood` and `corruptions` are data sets and corruptions on which all arms are
    scored too. `claims` are what was published, to be judged by the results.
    """

    out: UserPath = Path("runs/study")
    arms: Annotated[dict[ArmName, Arm], BeforeValidator(_mapping)]
    training: dict[str, Any] = Field(default={})
    rates: Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], BeforeValidator(_rates)] = ()
    ood: Names = ()
    corruptions: Names = ()
    claims: tuple[Claim, ...] = ()

    def method_arms(self) -> tuple[MethodConfig, ...]:
        methods = {name: arm for name, arm in self.arms.items() if isinstance(arm, MethodConfig)}
        return tuple(method.model_copy(update={"arm": name}) for name, method in methods.items())

    def training_arms(self) -> dict[str, TrainingArm]:
        return {name: arm for name, arm in self.arms.items() if isinstance(arm, TrainingArm)}

    def further_metrics(self) -> tuple[str, ...]:
        return (*FURTHER_METRICS, *ON_TRAINING) if self.training_arms() else FURTHER_METRICS

    def command(self) -> str:
        return "postgrad study config.yaml"

    def arms_against(self) -> dict[str, tuple[str, ...]]:
        trainings = self.training_arms()
        of_trainings = {
            name: tuple(other for other in arm.against if other != "base") for name, arm in trainings.items()
        }
        return of_trainings or super().arms_against()

    def left_out(self) -> tuple[str, ...]:
        """The controls that the recipe leaves out, which a reader of the results must know."""
        return tuple(name for name in _controls_of(self.arms) if name not in self.controls)

    @model_validator(mode="before")
    @classmethod
    def _controls_of_its_arms(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """All controls that arms of this kind have, where the recipe names none."""
        arms = settings.get("arms")
        if not isinstance(arms, dict) or "controls" in settings:
            return settings
        try:
            read = {name: _arm(value) for name, value in arms.items()}
        except ValueError:
            return settings  # told with the other mistakes
        return settings | {"controls": _controls_of(read)}

    @field_validator("arms")
    @classmethod
    def _named_by_their_keys(cls, arms: dict[str, MethodConfig | TrainingArm]) -> dict[str, MethodConfig | TrainingArm]:
        if not arms:
            raise ValueError("expected at least one method, such as gradnet: 'gradnet:epochs=2'")
        for name, arm in arms.items():
            if isinstance(arm, MethodConfig) and arm.arm not in (None, name):
                raise ValueError(f"{name}: the name of an arm stands before its method; leave out arm: {arm.arm}")
        if len({type(arm) for arm in arms.values()}) > 1:
            raise ValueError("second-stage methods and trainings need studies of their own; make two recipes")
        return arms

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        trainings = self.training_arms()
        foreign = _OF_SECOND_STAGES if trainings else _OF_TRAININGS
        given = [name for name in foreign if getattr(self, name) != type(self).model_fields[name].default]
        if given:
            kind = "trainings; its lengths stand under training" if trainings else "second-stage methods"
            raise ValueError(f"{', '.join(given)}: no setting of a study of {kind}")
        known = _controls_of(self.arms)
        if others := [name for name in self.controls if name not in known]:
            raise ValueError(f"controls: {', '.join(others)}: arms of this kind have {', '.join(known)}")
        for name, arm in trainings.items():
            for other in arm.against:
                if other == name or other not in ("base", *trainings):
                    raise unknown_name(f"arm that {name} is compared with", other, ["base", *trainings])
            if arm.time_of is not None:
                timed = [
                    other for other in ("base", *trainings) if other not in trainings or not trainings[other].time_of
                ]
                if arm.time_of not in timed:
                    raise unknown_name(f"arm whose time {name} has", arm.time_of, timed)
                if arm.growth:
                    raise ValueError(
                        f"{name}: a network that grows has its epochs, since steps cost more then; leave out time_of"
                    )
        return self

    @model_validator(mode="after")
    def _claims_of_arms(self) -> Self:
        for claim in self.claims:
            tested = claim.not_testable is None and (claim.arm is not None or len(self.arms) > 1)
            if tested and claim.arm not in self.arms:
                raise unknown_name(f"arm of the claim '{claim.claim}'", claim.arm or "", self.arms)
            if claim.metric not in (known := ("accuracy", *self.further_metrics())):
                raise unknown_name(f"metric of the claim '{claim.claim}'", claim.metric, known)
        return self

    @model_validator(mode="after")
    def _once(self) -> Self:
        for field in ("ood", "corruptions"):
            names = getattr(self, field)
            if len(set(names)) != len(names) or not all(names):
                raise ValueError(f"{field}: expected each name once, got {list(names)}")
        return self


def check_same(there: StudyConfig, recipe: StudyConfig, *, where: Path, source: Path) -> None:
    """Raise `UserError` where a recipe is not that of the study in a directory, naming each setting that differs.

    Settings that the recipe leaves open may have been filled in there; step counts may have been added.
    """
    filled_in = {name for name in ("threads", "base_accuracy") if getattr(recipe, name) is None}
    compared = [n for n in StudyConfig.model_fields if n not in _OF_ONE_CALL and n != "steps" and n not in filled_in]
    a, b = there.model_dump(mode="json"), recipe.model_dump(mode="json")
    different = [f"{name} is {a[name]} there, {b[name]} here" for name in compared if a[name] != b[name]]
    if not recipe.steps.items() <= there.steps.items():
        different.append("steps are others")
    if different:
        raise UserError(
            f"{source} is not the recipe of {where}: {'; '.join(different)}; leave the recipe out to go on with that "
            "study, or leave out --resume to begin another"
        )
