"""Which preprocessing and augmentation a network gets: flags, its checkpoint, its own word, the data's default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel
from torch import nn

from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.errors import UserError
from postgrad.validation import validated

_Model = TypeVar("_Model", bound=BaseModel)


class HasDefaults(Protocol):
    """What is needed of a data set: its name and its defaults."""

    @property
    def name(self) -> str: ...
    @property
    def preprocess(self) -> Preprocessing: ...
    @property
    def augmentation(self) -> Augmentation: ...


def own_preprocessing(model: object) -> Preprocessing | None:
    """The network's own word on how images reach it (its attribute `preprocess`), None if it has none."""
    return _own(model, "preprocess", Preprocessing)


def own_augmentation(model: object) -> Augmentation | None:
    """The network's own word on its training augmentation (its attribute `augmentation`), None if it has none."""
    return _own(model, "augmentation", Augmentation)


def set_preprocessing(model: nn.Module, preprocess: Preprocessing, origin: str) -> None:
    """Note on the network how images reach it, and who said so."""
    object.__setattr__(model, "preprocess", preprocess)
    object.__setattr__(model, "preprocess_origin", origin)


def resolve_preprocessing(
    flags: Mapping[str, Any], model: object, dataset: HasDefaults
) -> tuple[Preprocessing, Augmentation, str]:
    """What is used, and in a few words where it came from.

    >>> preprocess, augmentation, origin = resolve_preprocessing({"size": 224}, model, dataset)
    >>> origin
    "--size, the rest from torchvision's default weights"

    `flags` has any of the fields of `Preprocessing`; those that are None count as not given. A flag replaces its own
    part only, and the parts that contradict it: `mean` and `std` take the place of the standardisation per image and
    the reverse, a crop larger than a given size is left out, and a size smaller than a given crop becomes that crop.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    own = own_preprocessing(model)
    base = own or dataset.preprocess
    origin = getattr(model, "preprocess_origin", "the network itself") if own else f"the default for {dataset.name}"
    augmentation = own_augmentation(model) or dataset.augmentation
    if not given:
        return base, augmentation, origin
    fields = {**base.model_dump(), **_contradicted(given, base), **given}
    names = ", ".join(f"--{key.replace('_', '-')}" for key in given)
    return validated(Preprocessing, fields, source=names), augmentation, f"{names}, the rest from {origin}"


def _contradicted(given: Mapping[str, Any], base: Preprocessing) -> dict[str, Any]:
    """The parts of `base` that cannot stand beside the flags."""
    parts: dict[str, Any] = {}
    if given.get("mean") or given.get("std"):
        parts["per_image_standardise"] = False
    if given.get("per_image_standardise"):
        parts |= {"mean": None, "std": None}
    if base.crop and given.get("size", base.crop) < base.crop:
        parts["crop"] = None
    if base.size and given.get("crop", base.size) > base.size:
        parts["size"] = given["crop"]
    return parts


def _own(model: object, attribute: str, kind: type[_Model]) -> _Model | None:
    found = getattr(model, attribute, None)
    if found is None or isinstance(found, kind):
        return found
    if isinstance(found, Mapping):
        return validated(kind, found, source=f"the network's attribute `{attribute}`")
    raise UserError(
        f"the network's attribute `{attribute}` must be a {kind.__name__} or a dictionary of its fields, "
        f"got {type(found).__name__}"
    )
