"""Convolutions in many groups in float64, as one product of matrices: torch goes through the groups one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

_MANY = 8
"""Groups, from which on it is faster."""


class ManyGroups(TorchFunctionMode):
    """Replaces `F.conv2d` where it is of images in float64 and in many groups, as a depthwise convolution is.

    >>> with ManyGroups():
    ...     model.double()(images)  # the same to rounding, and so are its gradients
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.conv2d:
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if groups < _MANY or input.dim() != 4 or input.dtype != torch.float64 or weight.dtype != torch.float64:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    stride, dilation = _pair(stride), _pair(dilation)
    images = F.pad(input, _borders(padding, weight.shape[2:], dilation))
    height, width = (
        (size - d * (kernel - 1) - 1) // s + 1
        for size, kernel, d, s in zip(images.shape[2:], weight.shape[2:], dilation, stride, strict=True)
    )

    def product(images: Tensor, weight: Tensor) -> Tensor:
        patches = F.unfold(images, weight.shape[2:], dilation, 0, stride).unflatten(1, (groups, -1))
        return torch.einsum("gok,ngkl->ngol", weight.reshape(groups, weight.shape[0] // groups, -1), patches)

    # The patches are many times as large as the images, so they are made again for the gradient.
    made = checkpoint(product, images, weight, use_reentrant=False, preserve_rng_state=False)
    made = made.reshape(len(images), weight.shape[0], height, width)
    return made if bias is None else made + bias.reshape(-1, 1, 1)


def _pair(value: Any) -> tuple[int, int]:
    """A setting for height and width, as torch takes it: one number for both, alone or in a sequence."""
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers[0], numbers[-1]


def _borders(padding: Any, kernel: torch.Size, dilation: tuple[int, int]) -> list[int]:
    """Zeros on the left, the right, above and below; of an odd number of "same" ones, the greater half comes behind."""
    if padding == "same":
        whole = [d * (size - 1) for d, size in zip(dilation, kernel, strict=True)]
        return [whole[1] // 2, whole[1] - whole[1] // 2, whole[0] // 2, whole[0] - whole[0] // 2]
    above, left = (0, 0) if padding == "valid" else _pair(padding)
    return [left, left, above, above]
