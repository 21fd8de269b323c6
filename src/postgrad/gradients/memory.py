"""What a network's forward pass keeps in memory for its backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def answer_and_kept_bytes(model: nn.Module, x: Tensor) -> tuple[Any, int]:
    """The network's answer for images `x`, and the bytes that autograd keeps of them beside parameters and buffers.

    >>> logits, kept = answer_and_kept_bytes(model, images[:3])
    >>> kept // 3                                  # for one image
    262144

    Counted on a real pass, with the parameters' flags as they are: no list of layers knows what each of them keeps.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(x)
    return logits, sum(kept.values())
