"""Filter response normalisation and its threshold on a CPU, forward and backward, compiled by numba.

A plane is the map of one image and one channel. Its numbers come from memory once: between the pass that sums their
squares and the pass that scales them they stay in the cache. There are kernels for both layouts: planes one after the
other (N, C, S), and channels last (N, S, C); S is the number of places of a map.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from postgrad.gradients._threads import in_ranges
from postgrad.gradients._vector import compiled

DTYPES = (torch.float32, torch.float64)

_ONE_THREAD_UP_TO = 1 << 16
"""Numbers in a tensor up to which a second thread costs more than it brings."""

# Sums in any order and fused multiply-adds, which vectorising needs. Infinities and NaN stay what they are.
_vectorised: Any = compiled(fastmath={"reassoc", "contract", "nsz"})


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, tau: Tensor | None, eps_l: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The output in the layout of x, and 1/√(ν² + ε) (N, C); x is contiguous, or so with its channels last."""
    out, scale = _like_forward(x, weight, bias, tau, eps_l, eps)
    scales = scale.numpy()
    epsilon = eps if eps_l is None else eps + abs(float(eps_l))
    kernel = _forward_channels_last if _channels_last(x) else _forward_planes
    _run(kernel, x, _flat(x), *_parameters(weight, bias, tau), scales.dtype.type(epsilon), _flat(out), scales)
    return out, scale


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, tau: Tensor | None, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of x, and for each plane (3, N, C) the sums of m, of m·x·scale and of grad − m.

    m is the gradient that the threshold lets through.
    """
    grad = grad.contiguous() if x.is_contiguous() else grad.movedim(1, -1).contiguous().movedim(-1, 1)
    out, sums = _like_backward(grad, x, weight, bias, tau, scale)
    kernel = _backward_channels_last if _channels_last(x) else _backward_planes
    arrays = (_flat(x), *_parameters(weight, bias, tau), scale.numpy(), _flat(out), sums.numpy())
    _run(kernel, x, _flat(grad), *arrays)
    return out, sums


def _like_forward(
    x: Tensor, weight: Tensor, bias: Tensor, tau: Tensor | None, eps_l: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[:2])


def _like_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, tau: Tensor | None, scale: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(3, *x.shape[:2])


# For graphs of torch.compile, which would not see what they do.
forward_op = torch.library.custom_op("postgrad::frn_forward", forward, mutates_args=())
backward_op = torch.library.custom_op("postgrad::frn_backward", backward, mutates_args=())
forward_op.register_fake(_like_forward)
backward_op.register_fake(_like_backward)


def _run(kernel: Any, x: Tensor, *arguments: Any) -> None:
    rows = x.shape[0] if _channels_last(x) else x.shape[0] * x.shape[1]
    if x.numel() <= _ONE_THREAD_UP_TO:
        kernel(*arguments, 0, rows)
    else:
        in_ranges(kernel, rows, *arguments)


def _channels_last(x: Tensor) -> bool:
    """Maps of one place are in both layouts at once; with channels last the loop over them is the long one."""
    return not x.is_contiguous() or x.shape[2:].numel() == 1


def _flat(x: Tensor) -> NDArray[Any]:
    """(N, C, S), or (N, S, C) with channels last; a view."""
    if _channels_last(x):
        return x.detach().movedim(1, -1).view(x.shape[0], -1, x.shape[1]).numpy()
    return x.detach().view(*x.shape[:2], -1).numpy()


def _parameters(weight: Tensor, bias: Tensor, tau: Tensor | None) -> list[NDArray[Any]]:
    """As arrays; no threshold is one that nothing falls below."""
    tau = torch.full_like(bias, -torch.inf) if tau is None else tau
    return [each.detach().contiguous().numpy() for each in (weight, bias, tau)]


@_vectorised
def _forward_planes(x, weight, bias, tau, eps, out, scale, start, stop):  # type: ignore[no-untyped-def]
    """Planes from `start` to `stop`, counted over images and channels."""
    channels, size = x.shape[1:]
    for plane in range(start, stop):
        n, c = plane // channels, plane % channels
        row, out_row = x[n, c], out[n, c]
        square = x.dtype.type(0)
        for i in range(size):
            square += row[i] * row[i]
        root = 1 / np.sqrt(square / x.dtype.type(size) + eps)
        scale[n, c] = root
        gain, shift, threshold = weight[c] * root, bias[c], tau[c]
        for i in range(size):
            y = row[i] * gain + shift
            out_row[i] = threshold if y < threshold else y  # NaN is not below it, and stays


@_vectorised
def _forward_channels_last(x, weight, bias, tau, eps, out, scale, start, stop):  # type: ignore[no-untyped-def]
    """Images from `start` to `stop`."""
    size, channels = x.shape[1:]
    one = x.dtype.type(1)
    for n in range(start, stop):
        scales, gain = scale[n], np.empty(channels, x.dtype)
        scales[:] = 0
        for i in range(size):
            row = x[n, i]
            for c in range(channels):
                scales[c] += row[c] * row[c]
        for c in range(channels):
            scales[c] = one / np.sqrt(scales[c] / x.dtype.type(size) + eps)
            gain[c] = weight[c] * scales[c]
        for i in range(size):
            row, out_row = x[n, i], out[n, i]
            for c in range(channels):
                y = row[c] * gain[c] + bias[c]
                out_row[c] = tau[c] if y < tau[c] else y


@_vectorised
def _backward_planes(grad, x, weight, bias, tau, scale, out, sums, start, stop):  # type: ignore[no-untyped-def]
    """Planes from `start` to `stop`, counted over images and channels."""
    channels, size = x.shape[1:]
    zero = x.dtype.type(0)
    for plane in range(start, stop):
        n, c = plane // channels, plane % channels
        row, grad_row, out_row = x[n, c], grad[n, c], out[n, c]
        gain, shift, threshold = weight[c] * scale[n, c], bias[c], tau[c]
        passed, moment, stopped = zero, zero, zero
        for i in range(size):
            m = zero if row[i] * gain + shift < threshold else grad_row[i]
            passed += m
            moment += m * row[i]
            stopped += grad_row[i] - m
        moment *= scale[n, c]
        sums[0, n, c], sums[1, n, c], sums[2, n, c] = passed, moment, stopped
        pull = gain * scale[n, c] * moment / x.dtype.type(size)
        for i in range(size):
            m = zero if row[i] * gain + shift < threshold else grad_row[i]
            out_row[i] = gain * m - pull * row[i]


@_vectorised
def _backward_channels_last(grad, x, weight, bias, tau, scale, out, sums, start, stop):  # type: ignore[no-untyped-def]
    """Images from `start` to `stop`."""
    size, channels = x.shape[1:]
    zero = x.dtype.type(0)
    for n in range(start, stop):
        gain, pull = weight * scale[n], np.empty(channels, x.dtype)
        passed, moment, stopped = sums[0, n], sums[1, n], sums[2, n]
        sums[:, n] = 0
        for i in range(size):
            row, grad_row = x[n, i], grad[n, i]
            for c in range(channels):
                m = zero if row[c] * gain[c] + bias[c] < tau[c] else grad_row[c]
                passed[c] += m
                moment[c] += m * row[c]
                stopped[c] += grad_row[c] - m
        for c in range(channels):
            moment[c] *= scale[n, c]
            pull[c] = gain[c] * scale[n, c] * moment[c] / x.dtype.type(size)
        for i in range(size):
            row, grad_row, out_row = x[n, i], grad[n, i], out[n, i]
            for c in range(channels):
                m = zero if row[c] * gain[c] + bias[c] < tau[c] else grad_row[c]
                out_row[c] = gain[c] * m - pull[c] * row[c]
