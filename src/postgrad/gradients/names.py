"""The names of the parameters that gradients are taken of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from postgrad.errors import UserError, unknown_name


def weight_names(model: nn.Module) -> list[str]:
    """Names of the weights with two axes or more, in order: no biases, no normalisation layers."""
    return [name for name, parameter in model.named_parameters() if parameter.dim() >= 2]


def weights_of(model: nn.Module, layers: Sequence[str] | None) -> list[str]:
    """Names of the weights of the given layers, or of all layers; a weight's own name is taken as well."""
    names = weight_names(model)
    if layers is None:
        return names
    wanted = []
    for layer in layers:
        found = [name for name in names if name == layer or name.startswith(f"{layer}.")]
        if not found:
            raise unknown_name("layer", layer, [name.removesuffix(".weight") for name in names])
        wanted += found
    return [name for name in names if name in wanted]


def select_parameters(
    model: nn.Module, *, layers: Sequence[str] | None = None, parameters: Sequence[str] | None = None
) -> list[str]:
    """The names, in `named_parameters()` order, that `layers` or `parameters` ask for (tied by first name)."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    if not first:
        raise UserError("the model has no parameters, so there is nothing to take gradients of")
    if layers is not None and parameters is not None:
        raise UserError("give either layers or parameters, not both")
    if layers is None and parameters is None:
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not names:
            raise UserError("no parameter of the model requires grad; name the layers that are wanted")
        return names
    wanted = _of_layers(model, layers) if layers is not None else _of_names(model, parameters or ())
    names = [name for name, parameter in model.named_parameters() if id(parameter) in wanted]
    if not names:
        raise UserError("the layers or parameters asked for hold no parameters; name at least one that does")
    return names


def _of_layers(model: nn.Module, layers: Iterable[str]) -> set[int]:
    modules = dict(model.named_modules())
    known = [name for name, module in modules.items() if name and any(True for _ in module.parameters())]
    wanted: set[int] = set()
    for name in layers:
        if name not in modules:
            raise unknown_name("layer", name, known)
        wanted.update(id(parameter) for parameter in modules[name].parameters())
    return wanted


def _of_names(model: nn.Module, parameters: Iterable[str]) -> set[int]:
    known = dict(model.named_parameters(remove_duplicate=False))
    for name in parameters:
        if name not in known:
            raise unknown_name("parameter", name, known)
    return {id(known[name]) for name in parameters}
