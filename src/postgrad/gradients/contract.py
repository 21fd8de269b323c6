"""Closed forms: a layer's input and what reaches its output, contracted to a gradient for each image and label."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from postgrad.gradients import _sparse
from postgrad.gradients.scratch import Scratch

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CACHED_NUMBERS = 1 << 18
"""So many numbers (1 MiB of float32) of patches stay in a core's own cache until they are multiplied."""


@dataclass(frozen=True)
class ClosedForm:
    """How a layer's tensors are laid out: features on axis 1 ("second") or last, in `groups` equal groups.

    `activation(x)` turns the layer's input, (B, …), into (B, groups, K, P): for each of P places the K numbers that a
    weight multiplies; K and P may still be several axes each, since a convolution's patches are a view as long as they
    are not flattened. What reaches the output is brought to (B, groups, O, P). The weight's gradient is the sum over P
    of their products, the bias's the sum of the latter. An embedding's input stays what it is: indices (B, …).
    """

    layout: Literal["second", "last"]
    groups: int
    features: int
    activation: Callable[[Tensor], Tensor]


def closed_form(layer: nn.Module) -> ClosedForm | None:
    """The closed form of a layer's own parameters, or None where there is none."""
    if isinstance(layer, nn.Linear):
        return ClosedForm("last", 1, layer.out_features, _linear_inputs)
    if isinstance(layer, _CONVOLUTIONS):
        return ClosedForm("second", layer.groups, layer.out_channels, functools.partial(convolution_patches, layer))
    if isinstance(layer, nn.Embedding):
        # A gradient that is scaled by frequencies within a batch belongs to no image alone.
        return None if layer.scale_grad_by_freq else ClosedForm("last", 1, layer.embedding_dim, lambda x: x)
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        features = math.prod(layer.normalized_shape)
        return ClosedForm("last", features, features, functools.partial(_normalised_last, layer))
    if isinstance(layer, nn.GroupNorm):
        return ClosedForm("second", layer.num_channels, layer.num_channels, functools.partial(_group_norm, layer))
    if isinstance(layer, nn.modules.batchnorm._NormBase):
        return ClosedForm("second", layer.num_features, layer.num_features, functools.partial(_running_norm, layer))
    return None


def fits(layer: nn.Module, x: Tensor, output_shape: Sequence[int], images: int) -> bool:
    """Whether a call's tensors hold `images` images on their first axis (or a multiple: windows of each image)."""
    form = closed_form(layer)
    if form is None or x.dim() == 0 or not output_shape or x.shape[0] != output_shape[0] or x.shape[0] % images:
        return False
    if isinstance(layer, _CONVOLUTIONS):
        return x.dim() == len(layer.kernel_size) + 2
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return tuple(x.shape[-len(layer.normalized_shape) :]) == tuple(layer.normalized_shape)
    return form.features == (output_shape[-1] if form.layout == "last" else output_shape[min(1, len(output_shape) - 1)])


# --- activations -------------------------------------------------------------------------------------------------


def _linear_inputs(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1, x.shape[-1]).transpose(1, 2).unsqueeze(1)


def _normalised_last(layer: nn.LayerNorm | nn.RMSNorm, x: Tensor) -> Tensor:
    shape = list(layer.normalized_shape)
    if isinstance(layer, nn.LayerNorm):
        normalised = F.layer_norm(x, shape, eps=layer.eps)
    else:
        normalised = F.rms_norm(x, shape, eps=layer.eps)
    return normalised.reshape(x.shape[0], -1, math.prod(shape)).transpose(1, 2).unsqueeze(2)


def _group_norm(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x, layer.num_groups, eps=layer.eps).reshape(x.shape[0], x.shape[1], 1, -1)


def _running_norm(layer: Any, x: Tensor) -> Tensor:
    """Batch and instance normalisation in eval mode, without their affine part."""
    if layer.running_mean is None:
        normalised = F.instance_norm(x, eps=layer.eps)
    else:
        mean, variance = layer.running_mean.to(x.dtype), layer.running_var.to(x.dtype)
        normalised = F.batch_norm(x, mean, variance, eps=layer.eps)
    return normalised.reshape(x.shape[0], x.shape[1], 1, -1)


def convolution_patches(layer: Any, x: Tensor) -> Tensor:
    """The patches that a convolution reads, as a view: (B, groups, C / groups, *kernel, *places)."""
    padded = _padded(layer, x)
    batch, channels, *sizes = padded.shape
    places = [
        (size - step * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, step in zip(sizes, layer.kernel_size, layer.stride, layer.dilation, strict=True)
    ]
    per_image, per_channel, *per_pixel = padded.stride()
    per_group = channels // layer.groups
    return padded.as_strided(
        (batch, layer.groups, per_group, *layer.kernel_size, *places),
        (
            per_image,
            per_channel * per_group,
            per_channel,
            *(pixel * step for pixel, step in zip(per_pixel, layer.dilation, strict=True)),
            *(pixel * stride for pixel, stride in zip(per_pixel, layer.stride, strict=True)),
        ),
    )


def _sides(layer: Any) -> list[tuple[int, int]]:
    """How much a convolution pads each axis, before and after."""
    if layer.padding == "same":
        # An odd total goes to the far side, as torch.nn does it.
        totals = [step * (kernel - 1) for step, kernel in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    return [(amount, amount) for amount in layer.padding]


def _padded(layer: Any, x: Tensor) -> Tensor:
    amounts = list(itertools.chain.from_iterable(reversed(_sides(layer))))
    if not any(amounts):
        return x
    return F.pad(x, amounts, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)


# --- what reaches the output -------------------------------------------------------------------------------------


def arrange(form: ClosedForm, delta: Tensor, images: int) -> Tensor:
    """Bring what reaches a layer's output to (images, groups, O, P); windows of one image become places of it."""
    windows = delta.shape[0] // images
    per_group = form.features // form.groups
    if form.layout == "last":
        return delta.reshape(images, -1, form.groups, per_group).permute(0, 2, 3, 1)
    split = delta.reshape(images, windows, form.groups, per_group, -1)
    return split.permute(0, 2, 3, 1, 4).flatten(3)


# --- contraction -------------------------------------------------------------------------------------------------


def contract(
    layer: nn.Module,
    x: Tensor,
    delta: Tensor,
    slots: Mapping[str, str],
    out: Mapping[str, Tensor],
    written: set[str],
    scratch: Scratch,
    *,
    sparse: bool = False,
) -> None:
    """Write one call's part of its blocks, or add it to those that `written` names already.

    Args:
        x: the call's input; delta: what reaches its output, (N, L, G, O, P) for N images and L labels.
        slots: the block of "weight" and of "bias"; out: the blocks (N, L, numel), contiguous.
        sparse: whether to look for zeros in delta (see `takes_sparse`).
    """
    if "weight" in slots:
        rows, add = out[slots["weight"]], slots["weight"] in written
        if isinstance(layer, nn.Embedding):
            _look_up(layer, x.reshape(delta.shape[0], -1), delta.squeeze(2), rows, add=add)
        elif sparse and len(x) == len(delta) and _sparse.takes(x, delta):
            _sparse.weight_gradients(_over_two_axes(layer, x), delta.squeeze(2), geometry(layer, x), rows, add=add)
        else:
            _multiply_in_groups(layer, x, delta, rows, scratch, add=add)
    if "bias" in slots:
        rows, summed = out[slots["bias"]], delta.sum(-1).flatten(2)
        rows.add_(summed) if slots["bias"] in written else rows.copy_(summed)
    written.update(slots.values())


def takes_sparse(layer: nn.Module) -> bool:
    """Whether `contract` can leave out what is zero in the layer's delta: convolutions over one or two axes."""
    return isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups == 1


class SparseBackward(torch.autograd.Function):
    """In place of a convolution's own backward pass to its input: one that leaves out the zeros that reach its output.

    >>> output = SparseBackward.apply(x, output, layer)       # the same numbers
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor, layer: Any) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        together = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        ctx.layout = torch.channels_last if together else torch.contiguous_format
        ctx.geometry = geometry(layer, x)
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *deltas: Any) -> tuple[Tensor, None, None]:
        layer = ctx.layer
        reached = torch.empty(ctx.shape, dtype=deltas[0].dtype, memory_format=ctx.layout)
        axes = len(layer.kernel_size)
        weight = layer.weight.detach().reshape(*layer.weight.shape[:2], *(1,) * (2 - axes), *layer.kernel_size)
        down, right = (0,) * (2 - axes) + (_symmetric_padding(layer) or ())
        over_two = reached.unsqueeze(2) if axes == 1 else reached
        _sparse.input_gradients(deltas[0].flatten(2), weight, ctx.geometry, (down, right), over_two)
        return reached, None, None


def takes_sparse_backward(layer: Any, x: Tensor) -> bool:
    """Whether `SparseBackward` can stand in for a layer's backward pass to such an input."""
    return (
        takes_sparse(layer)
        and x.requires_grad
        and _sparse.takes(x)
        and layer.weight.dtype == x.dtype
        and layer.padding_mode == "zeros"
        and _symmetric_padding(layer) is not None
    )


def _symmetric_padding(layer: Any) -> tuple[int, ...] | None:
    """The zeros on both sides of each axis; None where the sides differ."""
    sides = _sides(layer)
    return None if any(before != after for before, after in sides) else tuple(before for before, _ in sides)


def geometry(layer: Any, x: Tensor) -> _sparse.Geometry:
    """The layer's convolution of inputs like x, as one over two axes."""
    kernel, stride, dilation = (
        (1,) * (2 - len(axes)) + tuple(axes) for axes in (layer.kernel_size, layer.stride, layer.dilation)
    )
    padded = _over_two_axes(layer, x[:1])
    places = (
        (size - step * (length - 1) - 1) // along + 1
        for size, length, along, step in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    )
    return _sparse.Geometry(kernel, stride, dilation, tuple(places))


def _over_two_axes(layer: Any, x: Tensor) -> Tensor:
    """The layer's padded input as (N, C, H, W)."""
    padded = _padded(layer, x)
    return padded.unsqueeze(2) if padded.dim() == 3 else padded


def _multiply_in_groups(
    layer: nn.Module, x: Tensor, delta: Tensor, out: Tensor, scratch: Scratch, *, add: bool
) -> None:
    """The weight's part, under one label for a few images at a time, whose patches then stay in the cores' caches.

    Measured on the second convolution of the seed's network with one thread: 300 µs an image against 410 µs for all 25
    at once. Under ten labels the rows that are written outweigh the patches, and it makes no difference.
    """
    form = closed_form(layer)
    assert form is not None
    images, windows, places = len(delta), len(x) // len(delta), delta.shape[-1]
    group = images
    if x.device.type == "cpu" and delta.shape[1] == 1:
        threads = torch.get_num_threads()
        group = threads * max(1, _CACHED_NUMBERS // patch_numbers(layer, x.numel() // images, places))
    activation = form.activation(x)
    for start in range(0, images, group):
        part = slice(start, start + group)
        some = _flatten(activation[start * windows : (start + group) * windows], windows, places, scratch)
        _multiply(delta[part], some, out[part], add=add)


def _flatten(activation: Tensor, windows: int, places: int, scratch: Scratch) -> Tensor:
    """An activation as one (images, groups, K, places); the windows of an image become places of it."""
    if activation.dim() > 4 and not activation.is_contiguous():
        activation = scratch("patches", activation.shape, like=activation).copy_(activation)
    flat = activation.reshape(*activation.shape[:2], -1, places // windows)
    if windows == 1:
        return flat
    return flat.unflatten(0, (-1, windows)).permute(0, 2, 3, 1, 4).flatten(3)


def patch_numbers(layer: nn.Module, input_numbers: int, places: int) -> int:
    """How many numbers `ClosedForm.activation` gives for an image, whose output has so many places."""
    if isinstance(layer, _CONVOLUTIONS):
        return places * layer.in_channels * math.prod(layer.kernel_size)
    return max(1, input_numbers)


def _multiply(delta: Tensor, activation: Tensor, out: Tensor, *, add: bool) -> None:
    """Σ over places of delta (N, L, G, O, P) × activation (N, G, K, P), written or added to `out` (N, L, G·O·K)."""
    images, labels, groups, outputs, places = delta.shape
    inputs = activation.shape[2]
    if groups > 1:
        left = delta.transpose(1, 2).reshape(images * groups, labels * outputs, places)
        right = activation.reshape(images * groups, inputs, places).transpose(1, 2)
        product = torch.bmm(left, right).view(images, groups, labels, outputs, inputs).transpose(1, 2)
        rows = out.view(images, labels, groups, outputs, inputs)
        rows.add_(product) if add else rows.copy_(product)
        return
    left = delta.reshape(images, labels * outputs, places)
    right = activation.squeeze(1).transpose(1, 2)
    rows = out.view(images, labels * outputs, inputs)
    if add:
        rows.baddbmm_(left, right)
    elif places == 1:
        torch.mul(left, right, out=rows)
    else:
        torch.bmm(left, right, out=rows)


def _look_up(layer: nn.Embedding, indices: Tensor, delta: Tensor, out: Tensor, *, add: bool) -> None:
    """Add delta (N, L, width, P) to the rows of `out` (N, L, entries × width) that `indices` (N, P) looked up."""
    images, labels, width, places = delta.shape
    if not add:
        out.zero_()
    if layer.padding_idx is not None:
        delta = delta * (indices != layer.padding_idx)[:, None, None, :]
    where = indices[:, None, :, None].expand(images, labels, places, width)
    out.view(images, labels, layer.num_embeddings, width).scatter_add_(2, where, delta.transpose(2, 3))
