"""Convolutions whose output's gradient is mostly zero, as after ReLU and max-pooling: only the rest is multiplied.

A max-pool hands each window's gradient to one of its inputs and ReLU stops what was negative: at the output of the
seed's first convolution less than a quarter of the numbers are left, at that of the second less than a third.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
def _unfold(image, channels_last, geometry, line, patches):  # type: ignore[no-untyped-def]
    """The patches of one padded image (C, H, W), or (H, W, C), a row of (C, *kernel) for each place.

    A kernel's row of up to 8 numbers is copied as 8, of which the next ones overwrite what is too much; `line` is a
    copy of the image with so many numbers to spare, and so has `patches`.
    """
    high, wide, down, right, step_down, step_right, rows, columns = geometry
    if channels_last:
        height, width, channels = image.shape
        for y in range(height):
            for x in range(width):
                for channel in range(channels):
                    line[(channel * height + y) * width + x] = image[y, x, channel]
    else:
        channels, height, width = image.shape
        line[: image.size] = image.ravel()
    short = wide <= 8 and step_right == 1
    at = 0
    for y in range(rows):
        for x in range(columns):
            for channel in range(channels):
                for i in range(high):
                    start = (channel * height + y * down + i * step_down) * width + x * right
                    if short:
                        copy_of_8(patches, at, line, start)
                    else:
                        for j in range(wide):
                            patches[at + j] = line[start + j * step_right]
                    at += wide


@compiled()
def _along(delta, bits, kept, places, counts):  # type: ignore[no-untyped-def]
    """What is not zero of each row of delta (R, S), with its places: S slots to a row."""
    rows, size = delta.shape
    for row in range(rows):
        found = places[row * size :]
        count = places_above(bits[row], np.uint32(0), found)
        for i in range(count):
            kept[row * size + i] = delta[row, found[i]]
        counts[row] = count


@compiled()
def _across(delta, bits, kept, places, counts, found):  # type: ignore[no-untyped-def]
    """The same for each column of delta (S, R)."""
    size, _ = delta.shape
    counts[:] = 0
    for place in range(size):
        for i in range(places_above(bits[place], np.uint32(0), found)):
            row = found[i]
            at = row * size + counts[row]
            kept[at] = delta[place, row]
            places[at] = place
            counts[row] += 1


@compiled()
def _weight_gradients(  # type: ignore[no-untyped-def]
    images, images_last, deltas, bits, deltas_last, geometry, out, starts, add, first, last
):
    """Σ over places of delta × patch for images `first` to `last`, each label, at `starts` (N, L) of the flat `out`."""
    labels = deltas.shape[1]
    channels, size = (deltas.shape[3], deltas.shape[2]) if deltas_last else (deltas.shape[2], deltas.shape[3])
    inputs = images.shape[3 if images_last else 1] * geometry[0] * geometry[1]
    line, patches = np.empty(images[0].size + 8, np.float32), np.empty(size * inputs + 8, np.float32)
    kept, places = np.empty(channels * size + 1, np.float32), np.empty(channels * size + 1, np.int32)
    counts, found = np.empty(channels, np.int64), np.empty(channels, np.int32)
    for n in range(first, last):
        _unfold(images[n], images_last, geometry, line, patches)
        for label in range(labels):
            if deltas_last:
                _across(deltas[n, label], bits[n, label], kept, places, counts, found)
            else:
                _along(deltas[n, label], bits[n, label], kept, places, counts)
            # A strip of patches stays in the first cache for all channels.
            for column in range(0, inputs, _STRIP):
                width = min(_STRIP, inputs - column)
                if width < 16 and inputs >= 16 and not add:
                    # Rather than a narrow rest, sixteen numbers of which some are found again.
                    width, column = 16, inputs - 16
                at = starts[n, label] + column
                for channel in range(channels):
                    begin = channel * size
                    end = begin + counts[channel]
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
    flat = out.as_strided((extent,), (1,)).numpy()
    pixels, pixels_last = _either_way(images, images.permute(0, 2, 3, 1))
    deltas, deltas_last = _either_way(delta, delta.transpose(2, 3))
    bits = deltas.view(np.uint32)
    in_ranges(
        _weight_gradients,
        len(images),
        pixels,
        pixels_last,
        deltas,
        bits,
        deltas_last,
        geometry.numbers(),
        flat,
        rows,
        add,
    )


@compiled()
def _input_gradients(deltas, bits, deltas_last, weight, geometry, edge, out, out_last, first, last):  # type: ignore[no-untyped-def]
    """What reaches the input (N, C, H, W), from deltas (N, O, P) and the weight laid out as (*kernel, O, C)."""
    high, wide, down, right, step_down, step_right, rows, columns = geometry
    channels, size = (deltas.shape[2], deltas.shape[1]) if deltas_last else (deltas.shape[1], deltas.shape[2])
    if out_last:
        height, width, inputs = out.shape[1:]
    else:
        inputs, height, width = out.shape[1:]
    reach = width + 2 * edge[1]
    padded = np.empty((height + 2 * edge[0]) * reach * inputs, np.float32)
    kept, from_channel = np.empty(channels * size + 1, np.float32), np.empty(channels * size + 1, np.int32)
    counts, found = np.empty(size, np.int64), np.empty(size, np.int32)
    for n in range(first, last):
        if deltas_last:
            _along(deltas[n], bits[n], kept, from_channel, counts)
        else:
            _across(deltas[n], bits[n], kept, from_channel, counts, found)
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
        for y in range(height):
            at = ((y + edge[0]) * reach + edge[1]) * inputs
            if out_last:
                out[n, y] = padded[at : at + width * inputs].reshape(width, inputs)
            else:
                for channel in range(inputs):
                    for x in range(width):
                        out[n, channel, y, x] = padded[at + x * inputs + channel]


def input_gradients(delta: Tensor, weight: Tensor, geometry: Geometry, edge: tuple[int, int], out: Tensor) -> None:
    """Write what reaches a convolution's input (N, C, H, W), padded by `edge` zeros on both sides of its two axes.

    Args:
        delta: what reaches the output, (N, O, P). weight: (O, C, *kernel). out: contiguous, or its channels last.
    """
    by_place = weight.detach().permute(2, 3, 0, 1).contiguous().view(-1).numpy()
    deltas, deltas_last = _either_way(delta, delta.transpose(1, 2))
    result, result_last = _either_way(out, out.permute(0, 2, 3, 1))
    assert result.ctypes.data == out.data_ptr(), "the gradient would be written to a copy"
    in_ranges(
        _input_gradients,
        len(out),
        deltas,
        deltas.view(np.uint32),
        deltas_last,
        by_place,
        geometry.numbers(),
        edge,
        result,
        result_last,
    )


def _either_way(tensor: Tensor, channels_last: Tensor) -> tuple[Any, bool]:
    """The array whose numbers lie in order: that with its channels last, or the other, copied where neither is."""
    if channels_last.is_contiguous() and not tensor.is_contiguous():
        return channels_last.numpy(), True
    return tensor.contiguous().numpy(), False


def takes(*tensors: Tensor) -> bool:
    """Whether these are what the compiled loops take."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 and t.numel() > 0 for t in tensors)
