"""Per-sample gradients of parameters that no closed form covers: `torch.func`, or one backward pass at a time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

State = Mapping[str, Tensor]
"""Tensors that stand in for a network's own parameters and buffers, by name."""


class GradientFallbackWarning(UserWarning):
    """Some parameters have no closed form, so that their gradients take a slower way."""


def answer(model: nn.Module, x: Tensor, state: State | None = None) -> Tensor:
    """The network's answer, with `state` in place of its own tensors."""
    return model(x) if state is None else functional_call(model, dict(state), (x,))


def vectorised(
    model: nn.Module, names: Sequence[str], x: Tensor, cotangents: Tensor, state: State | None = None
) -> dict[str, Tensor]:
    """Gradients (N, L, numel) of the named parameters for cotangents (N, L, C), by `torch.func`'s vmap of vjp."""
    tensors = dict(model.named_parameters()) if state is None else state
    chosen = {name: tensors[name].detach() for name in names}
    others = {} if state is None else {name: tensor.detach() for name, tensor in state.items() if name not in chosen}

    def of_one_image(image: Tensor, directions: Tensor) -> dict[str, Tensor]:
        def logits(parameters: dict[str, Tensor]) -> Tensor:
            return functional_call(model, {**others, **parameters}, (image.unsqueeze(0),)).squeeze(0)

        pull = vjp(logits, chosen)[1]
        return torch.vmap(lambda direction: pull(direction)[0])(directions)

    # The fused attention kernels have no vmap rule and would run one image at a time; of other such operations torch
    # would warn each time, where the engine has said once that this way is slow.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        found = torch.vmap(of_one_image)(x, cotangents)
    # The last axis is for parameters that are a single number and have none of their own.
    return {name: gradient.unsqueeze(-1).flatten(2) for name, gradient in found.items()}


def looped(
    model: nn.Module, names: Sequence[str], x: Tensor, cotangents: Tensor, state: State | None = None
) -> dict[str, Tensor | None]:
    """The same by one forward pass for each image and one backward pass for each label: slow, and always right.

    None stands for a parameter that no image's answer depends on.
    """
    tensors = dict(model.named_parameters()) if state is None else state
    chosen = [tensors[name] for name in names]
    rows: list[list[Tensor]] = [[] for _ in names]
    used = [False] * len(names)
    for image, directions in zip(x, cotangents, strict=True):
        logits = answer(model, image.unsqueeze(0), state)
        for direction in directions:
            found = torch.autograd.grad(
                logits, chosen, direction.unsqueeze(0), retain_graph=True, allow_unused=True, materialize_grads=False
            )
            for i, (parameter, gradient) in enumerate(zip(chosen, found, strict=True)):
                used[i] |= gradient is not None
                dense = torch.zeros_like(parameter) if gradient is None else gradient.to_dense()
                rows[i].append(dense.reshape(-1))
    shape = (*cotangents.shape[:2], -1)
    return {
        name: torch.stack(gradients).view(shape) if seen else None
        for name, gradients, seen in zip(names, rows, used, strict=True)
    }
