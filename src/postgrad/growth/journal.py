"""The growth of a network, call by call: read from it, done again where it is rebuilt, replayed on another one."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, JsonValue
from torch import Tensor, nn

from postgrad.changes import changes_of, note_change
from postgrad.errors import UserError, unknown_name
from postgrad.growth.transaction import transaction
from postgrad.growth.words import OPERATORS
from postgrad.validation import validated

if TYPE_CHECKING:
    from postgrad.growth.certificate import Certificate

_INSERT = "postgrad.growth.blocks:insert"

_MOST_ELEMENTS = 2**31
"""Of all the tensors that one entry resizes: a damaged manifest shall not take all the memory."""


class Insertion(BaseModel):
    """A block that was put in: into which module, its name in the table of blocks, what it is made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    into: str
    block: str
    options: dict[str, JsonValue] = {}


class Entry(BaseModel):
    """One call of an operator, and all that rebuilds its outcome without computing anything.

    `shapes` are those of every parameter and buffer that was resized, `attributes` what modules say of themselves:
    `{"conv1": {"out_channels": 192}}`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    operator: str
    arguments: dict[str, JsonValue] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    attributes: dict[str, dict[str, JsonValue]] = {}
    insertions: tuple[Insertion, ...] = ()

    @property
    def what(self) -> str:
        """The call in words, to begin a message with."""
        place = next((value for value in self.arguments.values() if isinstance(value, str)), "")
        return f"{self.operator} {place}".rstrip()

    def to_json(self) -> dict[str, JsonValue]:
        """As it stands in a journal: without what is empty."""
        return self.model_dump(mode="json", exclude_defaults=True)


def entry_of(entry: Mapping[str, Any]) -> Entry:
    """A checked entry; `UserError` names what is wrong with it.

    >>> entry_of({"operator": "widn"})
    UserError: unknown growth operator 'widn': did you mean 'widen'? Known: add_skip, branch, …
    """
    checked = validated(Entry, entry, source="the journal of growth")
    if checked.operator not in OPERATORS:
        raise unknown_name("growth operator", checked.operator, OPERATORS)
    return checked


def journal_of(model: nn.Module) -> tuple[dict[str, JsonValue], ...]:
    """All that the network was grown by, call by call, oldest first; empty where it never was.

    >>> journal_of(model)[0]["operator"]
    'widen'
    """
    return tuple(entry_of(change.options).to_json() for change in changes_of(model) if change.name == "growth")


def regrow(model: nn.Module, /, **entry: Any) -> None:
    """Give a fresh network of the same architecture the sizes and blocks of a grown one, in place.

    >>> regrow(model, operator="widen", shapes={"fc.weight": [96, 64]}, attributes={"fc": {"out_features": 96}})

    One entry of the journal at a time. Nothing is computed and new tensors hold zeros: the weights are loaded after
    that. Raises `UserError`, the network left as it was, for an entry that does not fit: an unknown operator or block,
    a tensor or attribute that is not there, a shape of another rank, more than 2³¹ elements.
    """
    checked = entry_of(entry)
    with transaction(model):
        for each in checked.insertions:
            _module(model, each.into)
            _named(_INSERT)(model, each.into, each.block, dict(each.options))
        _resize(model, checked.shapes)
        for name, values in checked.attributes.items():
            _set_attributes(_module(model, name), name, values)
        note_change(model, "growth", **checked.to_json())


def replay(
    model: nn.Module, journal: Iterable[Mapping[str, Any]], *, example: Tensor | tuple[Any, ...]
) -> tuple[Certificate, ...]:
    """Make the same mutations to another network of the same architecture, which keeps its own function.

    >>> certificates = replay(other, journal_of(grown), example=images)

    Unlike `regrow`, each call is made again with its own arguments, and certified on `example`. Raises what the
    operators raise, and `UserError` for an entry that does not fit; all of the calls are made, or none.
    """
    entries = [entry_of(entry) for entry in journal]
    with transaction(model):
        return tuple(_call(model, entry, example) for entry in entries)


def check_rebuildable(model: nn.Module, entry: Entry) -> None:
    """Refuse growth that could not be saved: a resized buffer that is not stored with the weights.

    Raises `UserError` that names the buffer.
    """
    stored = model.state_dict().keys()
    lost = [name for name in entry.shapes if name not in stored]
    if lost:
        raise UserError(
            f"{entry.what}: {', '.join(lost)} is not stored with the weights, so the grown network could not be saved; "
            "register it as a persistent buffer"
        )


def _call(model: nn.Module, entry: Entry, example: Tensor | tuple[Any, ...]) -> Certificate:
    operator = OPERATORS[entry.operator].load()
    arguments: dict[str, Any] = entry.arguments
    try:
        call = inspect.signature(operator).bind(model, **arguments, example=example)
    except TypeError as error:
        raise UserError(f"the journal of growth: {entry.what}: {error}") from error
    certificate: Certificate = operator(*call.args, **call.kwargs)
    return certificate


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _module(model: nn.Module, name: str) -> nn.Module:
    found = dict(model.named_modules(remove_duplicate=False)).get(name)
    if found is None:
        raise UserError(f"the journal of growth: the network has no module '{name}'; it is of another architecture")
    return found


def _resize(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, shape in shapes.items():
        if name not in tensors:
            raise UserError(f"the journal of growth: the network has no tensor '{name}'; it is of another architecture")
        old = tuple(tensors[name].shape)
        if len(shape) != len(old) or min(shape, default=1) < 1:
            raise UserError(f"the journal of growth: {name} of shape {old} cannot become {shape}")
    elements = sum(math.prod(shape) for shape in shapes.values())
    if elements > _MOST_ELEMENTS:
        raise UserError(f"the journal of growth: {elements} elements in one step are more than 2³¹; it is damaged")
    heirs = {tensors[name]: _zeros(tensors[name], shape) for name, shape in shapes.items()}
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor in heirs:  # a tied one stands in several places
                setattr(module, name, heirs[tensor])


def _zeros(old: Tensor, shape: tuple[int, ...]) -> Tensor:
    new = torch.zeros(shape, dtype=old.dtype, device=old.device)
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _set_attributes(module: nn.Module, name: str, values: Mapping[str, JsonValue]) -> None:
    for attribute, value in values.items():
        old = vars(module).get(attribute, ...)
        if attribute == "training" or not _is_plain(old) or not _fits(old, value):
            raise UserError(f"the journal of growth: {name}.{attribute} cannot become {value!r}")
        setattr(module, attribute, tuple(value) if isinstance(value, list) and not isinstance(old, list) else value)


def _is_plain(value: object) -> bool:
    """Whether it is a size or a word: what an entry may set, unlike a function or a module."""
    if isinstance(value, (tuple, list)):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _fits(old: Any, new: JsonValue) -> bool:
    """Whether a value may follow another: of the same kind, or, as a convolution's padding, sizes for a word."""
    if isinstance(old, (tuple, list)) or (isinstance(old, str) and isinstance(new, list)):
        return isinstance(new, list) and all(isinstance(each, (int, float)) for each in new)
    if isinstance(old, (int, float)) and not isinstance(old, bool):
        return isinstance(new, (int, float)) and not isinstance(new, bool)
    return old is None or isinstance(new, type(old))
