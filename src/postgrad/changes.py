"""What was done to a network after it was made: noted on it, kept in its manifest, done again where it is rebuilt."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue
from torch import nn

from postgrad.errors import unknown_name

_APPLIED_BY = {
    "fixed_classifier": "postgrad.methods.fixed_classifier:apply_fixed_classifier",
    "fixup": "postgrad.methods.fixup:apply_fixup",
    "frn": "postgrad.methods.frn:apply_frn",
    "growth": "postgrad.growth.journal:regrow",
    "norm": "postgrad.methods.norm:apply_norm",
    "mimicnorm": "postgrad.methods.mimicnorm:apply_mimicnorm",
    "mimicnorm_baked": "postgrad.methods.mimicnorm:bake_mimicnorm",
    "remove_normalisation": "postgrad.methods.normalisation:remove_normalisation",
}
"""Name in the manifest -> what makes that change. A fixed table: a manifest cannot name code."""


class Change(BaseModel):
    """One call of a surgery: its name, and the options that its outcome hangs on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: dict[str, JsonValue] = {}


def note_change(model: nn.Module, name: str, **options: Any) -> None:
    """Note on the network that it was changed; every surgery does so once it is done.

    >>> note_change(model, "frn", learnable_eps=True)
    """
    object.__setattr__(model, "postgrad_changes", (*changes_of(model), Change(name=name, options=options)))


def changes_of(model: nn.Module) -> tuple[Change, ...]:
    """The changes made to a network since it was made, in their order."""
    found: tuple[Change, ...] = getattr(model, "postgrad_changes", ())
    return found


def apply_changes(model: nn.Module, changes: Iterable[Change]) -> None:
    """Make the same changes to another network of the same architecture; its weights are loaded after that."""
    for change in changes:
        if change.name not in _APPLIED_BY:
            raise unknown_name("change of a network", change.name, _APPLIED_BY)
        module, _, function = _APPLIED_BY[change.name].partition(":")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # said when the network was changed for the first time
            getattr(importlib.import_module(module), function)(model, **change.options)
