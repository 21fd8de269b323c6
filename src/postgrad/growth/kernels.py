"""Larger kernels that compute the same: new taps around the old ones, all zero, and as much more padding.

Idea. A 3×3 kernel inside a 5×5 one whose outer ring is zero sees the same pixels, if the image is padded by one more on
each side. The ring then learns.

Cost. A 5×5 kernel has 2.8 times the weights and work of a 3×3 one. When it fails. Sizes of another parity have no
centre in common with the old one; transposed convolutions would give larger images; both are refused.

Paper. T. Wei, C. Wang, Y. Rui, C. Chen, "Network Morphism", arXiv 1603.01670 (kernel size morphing).
Licence or patent note: Apache-2.0; none known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from postgrad.errors import UserError
from postgrad.growth._calls import certified, check_own_weight
from postgrad.growth._places import Example
from postgrad.growth.blocks import submodule
from postgrad.growth.certificate import Certificate, Witness
from postgrad.growth.moves import Along, Move, memory_format_of
from postgrad.growth.transaction import transaction
from postgrad.growth.transfer import Averages, transfer

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def grow_kernel(
    model: nn.Module,
    layer: str,
    *,
    to: int | Sequence[int],
    example: Example,
    optimizer: Optimizer | None = None,
    averages: Averages = (),
) -> Certificate:
    """Give a convolution a larger kernel, in place, without changing what the network computes.

    >>> grow_kernel(model, "layer1.0.conv1", to=5, example=images).mode  # from 3×3 to 5×5
    'train'
    >>> grow_kernel(model, "layer1.0.conv1", to=(3, 7), example=images)

    Parameters
    ----------
    model : the network; its hooks, the names of its parameters and its training mode survive.
    layer : the dotted name of a convolution (1-D, 2-D, 3-D; dilated, strided, grouped, depthwise: all the same).
    to : the new size of the kernel in taps, one number or one for each axis, none below the old one or of another
        parity. Padding grows by dilation·(to − k)/2 on each side; "valid" becomes a number, "same" stays.
    example : what the network takes, (N, …), or a tuple of its arguments; its certificate is measured on it.
    optimizer : keeps what it knows of the old taps; the new ones start without history.
    averages : of the network's weights; they grow with it (`postgrad.growth.transfer_average`).

    `UserError`, network and optimizer left as they were: no such layer; a transposed or lazy convolution; a weight that
    is shared or parametrized; a size that cannot be; a padding that images of the example's size do not allow
    (reflected padding has to be smaller than the image). Source: arXiv 1603.01670.
    """
    module = submodule(model, layer)
    if not isinstance(module, Convolution):
        transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
        reason = "more taps would make its output larger" if transposed else "only convolutions have a kernel"
        raise UserError(f"'{layer}' is a {type(module).__name__}: {reason}; name a convolution")
    check_own_weight(model, layer, module)
    size = _size(layer, module.kernel_size, to)
    witness = Witness.of(model, example)
    with transaction(model, optimizer):
        move = _enlarge(module, size)
        entry: dict[str, Any] = {
            "operator": "grow_kernel",
            "arguments": {"layer": layer, "to": list(size)},
            "shapes": {f"{layer}.weight": list(module.weight.shape)},
            "attributes": {layer: _attributes(module)},
        }
        if optimizer is not None:
            transfer(optimizer, [move])
        return certified(
            model, witness, entry, train=True, moves=[move], changed=[f"{layer}.weight"], averages=averages
        )


def _size(name: str, old: tuple[int, ...], to: int | Sequence[int]) -> tuple[int, ...]:
    new = (to,) * len(old) if isinstance(to, int) else tuple(to)
    shown = "×".join(map(str, old))
    if len(new) != len(old) or any(type(each) is not int for each in new):
        raise UserError(f"to: expected one size or {len(old)} for the {shown} kernel of '{name}', got {to}")
    if new == old or any(after < before for before, after in zip(old, new, strict=True)):
        raise UserError(f"to: the {shown} kernel of '{name}' grows only; give a size above it, not {to}")
    if any((after - before) % 2 for before, after in zip(old, new, strict=True)):
        raise UserError(
            f"to: as many taps go to each side of the {shown} kernel of '{name}', so that each size grows by an even "
            f"number, not to {to}"
        )
    return new


def _enlarge(layer: Convolution, size: tuple[int, ...]) -> Move:
    rings = [(after - before) // 2 for before, after in zip(layer.kernel_size, size, strict=True)]
    old = layer.weight
    along = tuple(
        _placed(axis, before, ring)
        for axis, (before, ring) in enumerate(zip(layer.kernel_size, rings, strict=True), start=2)
        if ring
    )
    weight = nn.functional.pad(old.detach(), [ring for ring in reversed(rings) for _ in range(2)])
    weight = weight.contiguous(memory_format=memory_format_of(old))
    layer.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    layer.kernel_size = size
    more = [each * ring for each, ring in zip(layer.dilation, rings, strict=True)]
    if layer.padding == "valid":
        layer.padding = tuple(more)
    elif not isinstance(layer.padding, str):
        layer.padding = tuple(each + further for each, further in zip(layer.padding, more, strict=True))
    # What torch pads by itself for "same" and for reflected, replicated and circular padding, last axis first.
    sides = layer._reversed_padding_repeated_twice
    layer._reversed_padding_repeated_twice = type(sides)(each + more[-1 - at // 2] for at, each in enumerate(sides))
    return Move(old, layer.weight, along)


def _placed(dim: int, old: int, ring: int) -> Along:
    index = torch.full((old + 2 * ring,), -1)
    index[ring : ring + old] = torch.arange(old)
    is_old = (index >= 0).double()
    return Along(dim, index, value=is_old, gradient=is_old)


def _attributes(layer: Convolution) -> dict[str, Any]:
    padding = layer.padding if isinstance(layer.padding, str) else list(layer.padding)
    return {
        "kernel_size": list(layer.kernel_size),
        "padding": padding,
        "_reversed_padding_repeated_twice": list(layer._reversed_padding_repeated_twice),
    }
