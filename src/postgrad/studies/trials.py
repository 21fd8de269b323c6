"""What a run consists of: one trial for each arm of each seed, and which arms it stands on. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from postgrad.methods.registry import CONTROLS_OF_SHAPE, get_method
from postgrad.studies.arm_config import MethodConfig, TrainingArm
from postgrad.studies.config import ComparisonConfig

Kind = Literal["base", "method", "control"]

OTHER_CONTROLS = {"control-same-price": ("control-finetune", "control-more-data")}
"""Controls that are made of other controls."""


@dataclass(frozen=True)
class Trial:
    """One arm of one seed, which can be made in any process once the arms in `needs` of its seed are finished."""

    seed: int
    arm: str
    kind: Kind
    needs: tuple[str, ...] = ()
    method: MethodConfig | None = field(default=None, hash=False)
    """What an arm fits; where `control` is named, the method that this is a control for."""
    control: str | None = None
    """The name of the control, which `arm` has a suffix to where several methods have one."""
    training: TrainingArm | None = field(default=None, hash=False)
    """What is trained, of an arm that is a training."""
    against: tuple[str, ...] = ()
    """The arms that one of kind method is compared with, where it is not the base and its own controls alone."""
    control_for: tuple[str, ...] = ()
    tuned_on: int | None = None
    """The seed whose learning rate it takes; None where it finds one itself."""

    @property
    def label(self) -> dict[str, Any]:
        """What events say of it."""
        return {"arm": self.arm, "seed": self.seed}

    @property
    def stands_on(self) -> set[tuple[int, str]]:
        """The (seed, arm) that must be finished before it."""
        of_seed = {(self.seed, arm) for arm in self.needs}
        return of_seed if self.tuned_on is None else of_seed | {(self.tuned_on, self.arm)}

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def trials(config: ComparisonConfig) -> list[Trial]:
    """Every trial of a run, each after those that it needs.

    >>> [trial.arm for trial in trials(ImproveConfig(controls=["control-finetune"]))]
    ['base', 'gradnet', 'control-finetune']
    """
    of_seed = _trainings_of_seed if config.training_arms() else _of_seed
    return [trial for seed in config.seeds for trial in of_seed(config, seed)]


def control_arm(config: ComparisonConfig, control: str, method: MethodConfig) -> str:
    """The arm of a control: named as it is where there is one method, else with the method's arm."""
    return _suffixed(control, method.label, alone=len(config.method_arms()) == 1)


def _of_seed(config: ComparisonConfig, seed: int) -> list[Trial]:
    """The base, then each method with the controls that its shape asks for; those that are controls have none."""
    against = {method.label: method.against for method in config.method_arms()}
    found = [Trial(seed, "base", "base")]
    for method in config.method_arms():
        judged = tuple(name for name, others in against.items() if method.label in others)
        if _is_control(against, method.label):
            found.append(Trial(seed, method.label, "control", ("base",), method, control_for=judged))
            continue
        asked_for = CONTROLS_OF_SHAPE[get_method(method.name).shape]
        own = {name: control_arm(config, name, method) for name in config.controls if name in asked_for}
        compared = ("base", *own.values(), *method.against) if method.against else ()
        of_method = Trial(seed, method.label, "method", ("base",), method, against=compared, control_for=judged)
        found.append(of_method)
        for control, arm in own.items():
            others = (control_arm(config, other, method) for other in OTHER_CONTROLS.get(control, ()))
            found.append(Trial(seed, arm, "control", ("base", method.label, *others), method, control))
    return found


def _trainings_of_seed(config: ComparisonConfig, seed: int) -> list[Trial]:
    """The base, which is the training as it is, then each arm, and the control that each method's cost asks for."""
    tuned_on = None if seed == config.seeds[0] else config.seeds[0]

    def trial(arm: str, kind: Kind, training: TrainingArm, **more: Any) -> Trial:
        return Trial(seed, arm, kind, training=training, tuned_on=tuned_on, **more)

    arms = {"base": TrainingArm(), **config.training_arms()}
    named = {name: arm.against for name, arm in arms.items()}
    methods = [name for name in arms if name != "base" and not _is_control(named, name)]
    found = []
    for name, training in sorted(arms.items(), key=lambda arm: arm[1].time_of is not None):
        needs = () if training.time_of is None else (training.time_of,)
        if name not in methods:
            judged = tuple(other for other in methods if name in arms[other].against)
            kind: Kind = "base" if name == "base" else "control"
            found.append(trial(name, kind, training, needs=needs, control_for=judged))
            continue
        of_cost = {control: _suffixed(control, name, alone=len(methods) == 1) for control in config.controls}
        against = (*(training.against or ("base",)), *of_cost.values())
        found.append(trial(name, "method", training, needs=needs, against=against))
        plain = TrainingArm(training=training.training)
        for control, arm in of_cost.items():
            found.append(trial(arm, "control", plain, needs=(name,), control=control, control_for=(name,)))
    return found


def _is_control(against: Mapping[str, Sequence[str]], name: str) -> bool:
    """Whether other arms are compared with it, and it is itself compared with none."""
    return not against[name] and any(name in others for others in against.values())


def _suffixed(control: str, arm: str, *, alone: bool) -> str:
    return control if alone else f"{control}-{arm}"
