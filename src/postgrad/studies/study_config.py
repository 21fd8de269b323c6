"""Every setting of a study, checked, and how a recipe differs from the study that it is to go on with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator, model_validator

from postgrad.errors import UserError, unknown_name
from postgrad.studies.config import CONTROLS, ArmName, ComparisonConfig, Method, MethodConfig, Names, UserPath

FURTHER_METRICS = ("nll", "ece", "brier", "aurc")
"""What verdicts are about beside accuracy."""

_OF_ONE_CALL = ("out", "resume", "data_dir", "claims")
"""Settings that say where things lie, or how the results are read, and may be others when a study goes on."""


def _mapping(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"expected lines of the form 'name: method', got {value!r}")
    return value


class Claim(BaseModel):
    """What was published, and the arm of a study that tests it.

    `published_base` and `published` are the figures before and after; `not_testable` says what is missing where a claim
    cannot be tested here, and then no arm is needed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: str
    source: str
    arm: str | None = None
    metric: str = "accuracy"
    published_base: float | None = None
    published: float | None = None
    not_testable: str | None = None


class StudyConfig(ComparisonConfig):
    """What `postgrad study` is told.

    >>> config = StudyConfig(arms={"gradnet": "gradnet", "gradnet-last": "gradnet:layers=[fc]"}, seeds=5)
    >>> config.method_arms()[1].label
    'gradnet-last'

    `arms` names the methods that are compared: the same one may stand there several times, with other options under
    other names. `seeds` is their number, or a list. `ood` and `corruptions` are data sets and corruptions on which all
    arms are scored too. `claims` are what was published, to be judged by the results.
    """

    out: UserPath = Path("runs/study")
    arms: Annotated[dict[ArmName, Method], BeforeValidator(_mapping)]
    ood: Names = ()
    corruptions: Names = ()
    claims: tuple[Claim, ...] = ()

    def method_arms(self) -> tuple[MethodConfig, ...]:
        return tuple(method.model_copy(update={"arm": name}) for name, method in self.arms.items())

    def command(self) -> str:
        return "postgrad study config.yaml"

    def left_out(self) -> tuple[str, ...]:
        """The controls that the recipe leaves out, which a reader of the results must know."""
        return tuple(name for name in CONTROLS if name not in self.controls)

    @field_validator("arms")
    @classmethod
    def _named_by_their_keys(cls, arms: dict[str, MethodConfig]) -> dict[str, MethodConfig]:
        if not arms:
            raise ValueError("expected at least one method, such as gradnet: 'gradnet:epochs=2'")
        for name, method in arms.items():
            if method.arm not in (None, name):
                raise ValueError(f"{name}: the name of an arm stands before its method; leave out arm: {method.arm}")
        return arms

    @model_validator(mode="after")
    def _claims_of_arms(self) -> Self:
        for claim in self.claims:
            tested = claim.not_testable is None and (claim.arm is not None or len(self.arms) > 1)
            if tested and claim.arm not in self.arms:
                raise unknown_name(f"arm of the claim '{claim.claim}'", claim.arm or "", self.arms)
            if claim.metric not in (known := ("accuracy", *FURTHER_METRICS)):
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
