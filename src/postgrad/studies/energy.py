"""An energy model as part of one training: its image range, what is watched and logged of it, what is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.methods.at_work import MethodsAtWork
from postgrad.methods.energy_samples import Chains
from postgrad.methods.registry import LEARN_UNLABELLED
from postgrad.studies.arm_config import MethodConfig

Figures = Callable[[nn.Module], dict[str, float]]

_HALF = (0.5,)
IN_RANGE: dict[str, Any] = {"mean": _HALF, "std": _HALF}
"""The preprocessing that takes black and white to −1 and 1."""

TRAINING: dict[str, Any] = {"epochs": 20, "schedule": "cosine"}
"""Of an energy model where nothing else is said: each epoch costs ten of a plain training, and a falling rate calms."""


def is_energy_model(methods: Sequence[MethodConfig]) -> bool:
    """Whether one of the methods makes an energy model, which learns from images without a label too."""
    return any(method.name in LEARN_UNLABELLED for method in methods)


def training_of(methods: Sequence[MethodConfig], said: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training that were said, and for an energy model its own where nothing was."""
    if not is_energy_model(methods):
        return dict(said)
    length = {"epochs", "steps", "budget"}
    own = {name: value for name, value in TRAINING.items() if name not in length or not length & said.keys()}
    return own | dict(said)


def range_flags(methods: Sequence[MethodConfig], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of the preprocessing, with images from −1 to 1 for an energy model where nothing else is said."""
    said = {"mean", "std", "per_image_standardise"} & flags.keys()
    return {**flags, **({} if said or not is_energy_model(methods) else IN_RANGE)}


def check_range(methods: Sequence[MethodConfig], preprocess: Preprocessing) -> None:
    """Refuse other values for black and white than those that all settings of an energy model are for."""
    halves = set(preprocess.mean or ()) == set(preprocess.std or ()) == {0.5}
    if is_energy_model(methods) and not halves:
        raise UserError(
            f"jem: images must reach the network as values from −1 to 1, but here they are {preprocess.describe()}; "
            "give --mean .5 --std .5 (in a recipe: mean: 0.5, std: 0.5)"
        )


def watching(figures: Figures, at_work: MethodsAtWork) -> Figures:
    """Figures of a network and, of an energy model, what was watched since the last look."""

    def watched(network: nn.Module) -> dict[str, float]:
        found = figures(network)
        energy_model = at_work.energy_model
        if energy_model is None:
            return found
        energy_model.looked(found["accuracy"])
        return {**found, **energy_model.figures()}

    return watched


def in_words(what: Mapping[str, Any]) -> str:
    """What happened where a training went back to an earlier state."""
    return (
        f"diverged at step {what['step']} ({what['reason']}); back to the state of step {what['back_to']}, with "
        f"{what['factor']:g} times the learning rate and the chains' step (return {what['retry']} of {what['of']})"
    )


def say(what: Mapping[str, Any]) -> None:
    print(f"warning: {in_words(what)}", file=sys.stderr)


def keep_chains(at_work: MethodsAtWork, directory: Path) -> None:
    """Leave the chains of an energy model that was trained just now beside its checkpoint, for `postgrad sample`."""
    energy_model = at_work.energy_model
    if energy_model is not None and energy_model.buffer is not None and energy_model.steps_taken:
        Chains.of(energy_model.buffer, energy_model.chains).save(directory)
