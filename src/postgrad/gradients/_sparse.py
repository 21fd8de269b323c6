"""Convolutions whose output's gradient is mostly zero, as after ReLU and max-pooling: only the rest is multiplied.

A max-pool hands each window's gradient to one of its inputs and ReLU stops what was negative: at the output of the
seed's first convolution less than a quarter of the numbers are left, at that of the second less than a third.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from postgrad.gradients._kernels import places_above
from postgrad.gradients._threads import in_ranges
from postgrad.gradients._vector import add_sum_of_rows, compiled, copy_of_8, sum_of_rows

_STRIP = 64


@dataclass(frozen=True)
class Geometry:
    """A convolution over two axes: kernel, stride, dilation, and the places of its output."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    places: tuple[int, int]

    def numbers(self) -> tuple[int, ...]:
        return (*self.kernel, *self.stride, *self.dilation, *self.places)


@compiled()
def _unfold(image, geometry, line, patches):  # type: ignore[no-untyped-def]
    """The patches of one padded image (C, H, W), a row of (C, *kernel) for each place.

    A kernel's row of up to 8 numbers is copied as 8, of which the next ones overwrite what is too much; `line` is a
    copy of the image with so many numbers to spare, and so has `patches`.
    """
    high, wide, down, right, step_down, step_right, rows, columns = geometry
    channels, _, width = image.shape
    line[: image.size] = image.ravel()
    short = wide <= 8 and step_right == 1
    at = 0
    for y in range(rows):
        for x in range(columns):
            for channel in range(channels):
                for i in range(high):
                    start = (channel * image.shape[1] + y * down + i * step_down) * width + x * right
                    if short:
                        copy_of_8(patches, at, line, start)
                    else:
                        for j in range(wide):
                            patches[at + j] = line[start + j * step_right]
                    at += wide


@compiled()
def _weight_gradients(images, deltas, bits, geometry, out, starts, add, first, last):  # type: ignore[no-untyped-def]
    """Σ over places of delta × patch for images `first` to `last`, each label, at `starts` (N, L) of the flat `out`."""
    _, labels, channels, size = deltas.shape
    inputs = images.shape[1] * geometry[0] * geometry[1]
    line, patches = np.empty(images[0].size + 8, np.float32), np.empty(size * inputs + 8, np.float32)
    kept, places = np.empty(channels * size + 1, np.float32), np.empty(channels * size + 1, np.int32)
    ends = np.zeros(channels + 1, np.int64)
    for n in range(first, last):
        _unfold(images[n], geometry, line, patches)
        for label in range(labels):
            for channel in range(channels):
                begin = ends[channel]
                end = begin + places_above(bits[n, label, channel], np.uint32(0), places[begin:])
                for i in range(begin, end):
                    kept[i] = deltas[n, label, channel, places[i]]
                ends[channel + 1] = end
            # A strip of patches stays in the first cache for all channels.
            for column in range(0, inputs, _STRIP):
                width = min(_STRIP, inputs - column)
                if width < 16 and inputs >= 16 and not add:
                    # Rather than a narrow rest, sixteen numbers of which some are found again.
                    width, column = 16, inputs - 16
                at = starts[n, label] + column
                for channel in range(channels):
                    begin, end = ends[channel], ends[channel + 1]
                    row = at + channel * inputs
                    if add:
                        add_sum_of_rows(out, row, width, patches, column, inputs, places, kept, begin, end)
                    else:
                        sum_of_rows(out, row, width, patches, column, inputs, places, kept, begin, end)


def weight_gradients(images: Tensor, delta: Tensor, geometry: Geometry, out: Tensor, *, add: bool) -> None:
    """Write a convolution's weight gradients, or add them, from padded images and what reaches its output.

    Args:
        images: (N, C, H, W), padded. delta: (N, L, O, P). out: (N, L, O·C·kernel), rows contiguous, any strides.
    """
    rows = np.arange(out.shape[0])[:, None] * out.stride(0) + np.arange(out.shape[1])[None, :] * out.stride(1)
    extent = int(rows[-1, -1]) + out.shape[2]
    flat, deltas = out.as_strided((extent,), (1,)).numpy(), delta.contiguous().numpy()
    in_ranges(
        _weight_gradients,
        len(images),
        images.contiguous().numpy(),
        deltas,
        deltas.view(np.uint32),
        geometry.numbers(),
        flat,
        rows,
        add,
    )


@compiled()
def _by_place(delta, bits, kept, from_channel, counts, found):  # type: ignore[no-untyped-def]
    """For each place what is not zero of delta (O, P) there: values and channels, O slots to a place."""
    channels = len(delta)
    counts[:] = 0
    for channel in range(channels):
        for i in range(places_above(bits[channel], np.uint32(0), found)):
            place = found[i]
            at = place * channels + counts[place]
            kept[at] = delta[channel, place]
            from_channel[at] = channel
            counts[place] += 1


@compiled()
def _input_gradients(deltas, bits, weight, geometry, edge, out, first, last):  # type: ignore[no-untyped-def]
    """What reaches the input (N, C, H, W), from deltas (N, O, P) and the weight laid out as (*kernel, O, C)."""
    high, wide, down, right, step_down, step_right, rows, columns = geometry
    _, inputs, height, width = out.shape
    _, channels, size = deltas.shape
    reach = width + 2 * edge[1]
    padded = np.empty((height + 2 * edge[0]) * reach * inputs, np.float32)
    kept, from_channel = np.empty(channels * size + 1, np.float32), np.empty(channels * size + 1, np.int32)
    counts, found = np.empty(size, np.int64), np.empty(size, np.int32)
    for n in range(first, last):
        _by_place(deltas[n], bits[n], kept, from_channel, counts, found)
        padded[:] = np.float32(0)
        for i in range(high):
            for j in range(wide):
                tap = (i * wide + j) * channels * inputs
                for y in range(rows):
                    for x in range(columns):
                        pixel = ((y * down + i * step_down) * reach + x * right + j * step_right) * inputs
                        begin = (y * columns + x) * channels
                        end = begin + counts[y * columns + x]
                        add_sum_of_rows(padded, pixel, inputs, weight, tap, inputs, from_channel, kept, begin, end)
        for channel in range(inputs):
            for y in range(height):
                at = ((y + edge[0]) * reach + edge[1]) * inputs + channel
                for x in range(width):
                    out[n, channel, y, x] = padded[at + x * inputs]


def input_gradients(delta: Tensor, weight: Tensor, geometry: Geometry, edge: tuple[int, int], out: Tensor) -> None:
    """Write what reaches a convolution's input (N, C, H, W), padded by `edge` zeros on both sides of its two axes.

    Args:
        delta: what reaches the output, (N, O, P). weight: (O, C, *kernel).
    """
    by_place = weight.detach().permute(2, 3, 0, 1).contiguous().view(-1).numpy()
    deltas = delta.contiguous().numpy()
    in_ranges(
        _input_gradients, len(out), deltas, deltas.view(np.uint32), by_place, geometry.numbers(), edge, out.numpy()
    )


def takes(*tensors: Tensor) -> bool:
    """Whether these are what the compiled loops take."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 and t.numel() > 0 for t in tensors)
