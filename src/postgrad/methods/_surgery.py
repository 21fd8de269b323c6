"""Putting new layers in place of old ones in any network, and keeping its optimizer in step."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping

from torch import nn
from torch.optim import Optimizer

from postgrad.errors import UserError


def replace_modules(model: nn.Module, swaps: Mapping[nn.Module, nn.Module]) -> int:
    """Put each new module in place of its old one, under every name that it has; returns how many were replaced.

    >>> replace_modules(model, {model.bn1: FilterResponseNorm(64)})
    1

    A new module takes over the mode (training or evaluation), the device and the dtype of the old one. Raises
    `UserError` where the network is itself to be replaced.
    """
    if model in swaps:
        raise UserError("the network is itself the layer to be replaced; put it into an nn.Sequential first")
    replaced = set()
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in swaps:
                setattr(parent, name, _like(child, swaps[child]))
                replaced.add(child)
    return len(replaced)


@contextlib.contextmanager
def optimizer_follows(model: nn.Module, optimizer: Optimizer | None) -> Iterator[dict[nn.Parameter, nn.Parameter]]:
    """Change a network inside the block; then its optimizer trains the parameters that it has after it.

    >>> with optimizer_follows(model, optimizer) as heir_of:
    ...     replace_modules(model, {model.bn1: new})
    ...     heir_of[new.weight] = model.bn1.weight

    Parameters that left the network leave the optimizer, with what it kept for them. A new one that wants a gradient
    joins the group of the old one that `heir_of` names; without a word there, or where that one was not trained, the
    first group. Where the block raises, the optimizer stays as it was. None is no optimizer.
    """
    before = set(model.parameters())
    heir_of: dict[nn.Parameter, nn.Parameter] = {}
    yield heir_of
    if optimizer is None:
        return
    after = {parameter: name for name, parameter in model.named_parameters()}
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    for parameter in after:
        if parameter not in before and parameter not in groups and parameter.requires_grad:
            group = groups.get(heir_of.get(parameter, parameter), optimizer.param_groups[0])
            group["params"].append(parameter)
            if "param_names" in group:  # made from named_parameters()
                group["param_names"].append(after[parameter])
    for group in optimizer.param_groups:
        stays = [each in after or each not in before for each in group["params"]]
        for key in group.keys() & {"params", "param_names"}:
            group[key] = list(itertools.compress(group[key], stays))
    for parameter in before - after.keys():
        optimizer.state.pop(parameter, None)


def _like(old: nn.Module, new: nn.Module) -> nn.Module:
    sample = next(itertools.chain(old.parameters(), old.buffers()), None)
    if sample is not None:
        new.to(sample.device, sample.dtype if sample.is_floating_point() else None)
    return new.train(old.training)
