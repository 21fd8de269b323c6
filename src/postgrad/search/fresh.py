"""A grown network's architecture with new weights: what a search's winner is compared with from scratch."""

from __future__ import annotations

import torch
from torch import nn

from postgrad.errors import UserError
from postgrad.growth.beside import Skip, Sum, fresh_copy
from postgrad.growth.blocks import BLOCKS, Layer, gates

_RESIDUAL = tuple(BLOCKS[name] for name in ("residual", "residual_tokens", "residual_features"))
_HE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def drawn_anew(model: nn.Module, seed: int) -> nn.Module:
    """A copy of a network with weights drawn anew, which is as `model` is in everything else.

    >>> drawn_anew(winner, seed=0)

    Convolutions and linear layers are drawn as K. He et al. do (arXiv 1502.01852), which lets deep networks without
    normalisation learn; other layers as their own `reset_parameters` does. The gates of what growth put in begin as
    they did then: a residual block and a skip connection at zero, an identity layer at the identity.

    Raises `UserError` for a layer with parameters that cannot be drawn, since they would stay trained.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = fresh_copy(model)
        for name, layer in made.named_modules():
            _begin(name, layer)
        for layer in made.modules():  # after their own layers have been drawn
            if isinstance(layer, _RESIDUAL):
                for gate in gates(layer):
                    nn.init.zeros_(layer.get_parameter(gate))
    return made.eval()


def _begin(name: str, layer: nn.Module) -> None:
    if isinstance(layer, _HE):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, Layer):
        if hasattr(layer, "gate"):
            nn.init.constant_(layer.gate, 1.0 if layer.form == "gated" else 0.0)
    elif isinstance(layer, Skip):
        nn.init.zeros_(layer.gate)
    elif isinstance(layer, Sum):
        nn.init.constant_(layer.weights, 1 / len(layer.weights))
    elif not callable(getattr(layer, "reset_parameters", None)) and [*layer.parameters(recurse=False)]:
        where = f"{name or 'the network'}: {type(layer).__name__}"
        raise UserError(f"{where} has weights that cannot be drawn anew; give it a method reset_parameters")
