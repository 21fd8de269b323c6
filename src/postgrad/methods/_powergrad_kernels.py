"""PowerGrad's gradient for class numbers and float32 logits on a CPU, compiled by numba.

A row of logits comes from memory once: it stays in the cache while its largest logit is found, and its powers are
summed and then scaled. Torch's operations would each go through all rows.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor, nn

from postgrad.gradients._threads import in_ranges
from postgrad.gradients._vector import compiled

_ONE_THREAD_UP_TO = 1 << 16
"""Logits up to which a second thread costs more than it brings."""

# All of 32 bits: what numba would widen is vectorised at half the speed.
_ZERO, _ONE, _LOWEST = np.float32(0), np.float32(1), np.int32(-0x80000000)
_SIGN_BIT, _OTHER_BITS, _MANTISSA_BITS = np.int32(31), np.int32(0x7FFFFFFF), np.uint32(23)
_LEAST_POWER = np.float32(-127)
"""Its exponent's bits are those of zero."""
_TO_WHOLE = np.float32((3 << 22) + 127)
"""Added to a number, it leaves nothing behind the point, and the bits of the exponent in the lowest place."""
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = (
    Chebyshev.interpolate(np.exp2, 6, domain=[-0.5, 0.5]).convert(kind=Polynomial).coef.astype(np.float32)
)


def applies(logits: Tensor, target: Tensor, grad_output: Tensor) -> bool:
    """Whether these are what `class_gradient` takes, and nothing is recorded of what is done with them."""
    return (
        not torch.is_grad_enabled()  # as for a second derivative
        and torch._C._len_torch_dispatch_stack() == 0  # as by make_fx
        and type(logits) in (Tensor, nn.Parameter)  # no subclass, which may hold no numbers
        and logits.device.type == "cpu"
        and logits.dtype == grad_output.dtype == torch.float32
        and target.dtype == torch.int64
        and logits.ndim == 2
        and logits.is_contiguous()
        and target.is_contiguous()
    )


def class_gradient(
    logits: Tensor,
    target: Tensor,
    alpha: float,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    grad_output: Tensor,
) -> Tensor:
    """The gradient of logits (N, C) for targets (N,): grad_output · (softmax(αz) − wanted), zero where ignored."""
    out = torch.empty_like(logits)
    z, classes = logits.detach().numpy(), target.numpy()
    factors = grad_output.reshape(-1).numpy()  # one for all rows, or one for each
    if reduction == "mean":
        factors = factors / np.float32(max(1, int((classes != ignore_index).sum())))
    settings = np.float32(alpha / math.log(2)), ignore_index, np.float32(smoothing)
    arguments = z, z.view(np.int32), classes, *settings, factors, out.numpy()
    if logits.numel() <= _ONE_THREAD_UP_TO:
        _class_gradient(*arguments, 0, len(z))
    else:
        in_ranges(_class_gradient, len(z), *arguments)
    return out


@compiled(fastmath={"contract"})
def _exp2(x):  # type: ignore[no-untyped-def]
    """2^x of a float32 x ≤ 0, as 2ⁿ · 2^r with |r| ≤ ½; zero below 2^-126.5, and NaN stays."""
    x = _LEAST_POWER if x < _LEAST_POWER else x
    shifted = np.float32(x + _TO_WHOLE)
    r = x - (shifted - _TO_WHOLE)
    power = np.uint32(shifted.view(np.uint32) << _MANTISSA_BITS).view(np.float32)
    return power * ((((((_C6 * r + _C5) * r + _C4) * r + _C3) * r + _C2) * r + _C1) * r + _C0)


@compiled()
def _largest(bits):  # type: ignore[no-untyped-def]
    """The largest number of a row, by its bits: a comparison of floats that heeds NaN would not be vectorised."""
    largest = _LOWEST
    for i in range(len(bits)):
        ordered = np.int32(bits[i] ^ ((bits[i] >> _SIGN_BIT) & _OTHER_BITS))
        largest = ordered if ordered > largest else largest
    return np.int32(largest ^ ((largest >> _SIGN_BIT) & _OTHER_BITS)).view(np.float32)


@compiled(fastmath={"reassoc", "nsz"})  # a sum in any order, which vectorising needs
def _powers(row, largest, per_power, out):  # type: ignore[no-untyped-def]
    """Write 2^(per_power · (z − largest)) for a row of z, and return the sum."""
    total = _ZERO
    for i in range(len(row)):
        power = _exp2(per_power * (row[i] - largest))
        out[i] = power
        total += power
    return total


@compiled(fastmath={"contract"})
def _class_gradient(z, bits, target, per_power, ignored, smoothing, factors, out, start, stop):  # type: ignore[no-untyped-def]
    """Rows from `start` to `stop`; per_power is α / log 2."""
    classes = z.shape[1]
    for n in range(start, stop):
        out_row = out[n]
        total = _powers(z[n], _largest(bits[n]), per_power, out_row)
        factor = _ZERO if target[n] == ignored else factors[n if len(factors) > 1 else 0]
        share, of_all = factor / total, factor * smoothing / np.float32(classes)
        for i in range(classes):
            out_row[i] = out_row[i] * share - of_all
        if target[n] != ignored:
            out_row[target[n]] -= factor * (_ONE - smoothing)
