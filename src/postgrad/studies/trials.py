"""What a run consists of: one trial for each arm of each seed, and which arms it stands on. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from postgrad.methods.registry import CONTROLS_OF_SHAPE, get_method
from postgrad.studies.config import ComparisonConfig, MethodConfig

OTHER_CONTROLS = {"control-same-price": ("control-finetune", "control-more-data")}
"""Controls that are made of other controls."""


@dataclass(frozen=True)
class Trial:
    """One arm of one seed, which can be made in any process once the arms in `needs` of its seed are finished."""

    seed: int
    arm: str
    kind: Literal["base", "method", "control"]
    needs: tuple[str, ...] = ()
    method: MethodConfig | None = field(default=None, hash=False)
    """The method of an arm of kind method; of a control, the method that it is a control for."""
    control: str | None = None
    """The name of the control, which `arm` has a suffix to where several methods have one."""

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def trials(config: ComparisonConfig) -> list[Trial]:
    """Every trial of a run, each after those that it needs.

    >>> [trial.arm for trial in trials(ImproveConfig(controls=["control-finetune"]))]
    ['base', 'gradnet', 'control-finetune']
    """
    return [trial for seed in config.seeds for trial in _of_seed(config, seed)]


def control_arm(config: ComparisonConfig, control: str, method: MethodConfig) -> str:
    """The arm of a control: named as it is where there is one method, else with the method's arm."""
    return control if len(config.method_arms()) == 1 else f"{control}-{method.label}"


def _of_seed(config: ComparisonConfig, seed: int) -> list[Trial]:
    found = [Trial(seed, "base", "base")]
    for method in config.method_arms():
        found.append(Trial(seed, method.label, "method", ("base",), method))
        asked_for = CONTROLS_OF_SHAPE[get_method(method.name).shape]
        for control in config.controls:
            if control in asked_for:
                others = (control_arm(config, other, method) for other in OTHER_CONTROLS.get(control, ()))
                needs = ("base", method.label, *others)
                arm = control_arm(config, control, method)
                found.append(Trial(seed, arm, "control", needs, method, control))
    return found
