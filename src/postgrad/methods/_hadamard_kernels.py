"""Walsh–Hadamard transforms of many sign-flipped copies of a row side by side, compiled by numba for CPUs.

Sixteen blocks are transformed at once, one in each lane, so that every step of every transform is a vector instruction
on contiguous memory. A tile of (rows × 16) numbers stays in the cache; beyond it, each output is written once.
"""

from __future__ import annotations

import numpy as np

from postgrad.gradients._vector import compiled

LANES = 16


@compiled()
def _transform(tile, rows):  # type: ignore[no-untyped-def]
    """H · tile for a tile (rows, LANES), flat and in place; `rows` is a power of two."""
    height = rows
    while height >= 4:  # two steps at once, to read and write half as often
        run = height // 4 * LANES
        for start in range(0, rows * LANES, 4 * run):
            a, b = tile[start : start + run], tile[start + run : start + 2 * run]
            c, d = tile[start + 2 * run : start + 3 * run], tile[start + 3 * run : start + 4 * run]
            for i in range(run):
                e, f, g, h = a[i] + b[i], a[i] - b[i], c[i] + d[i], c[i] - d[i]
                a[i], b[i], c[i], d[i] = e + g, f + h, e - g, f - h
        height //= 4
    if height == 2:
        for start in range(0, rows * LANES, 2 * LANES):
            a, b = tile[start : start + LANES], tile[start + LANES : start + 2 * LANES]
            for i in range(LANES):
                e, f = a[i], b[i]
                a[i], b[i] = e + f, e - f


@compiled()
def stacked(x, signs, bias, out, first, last):  # type: ignore[no-untyped-def]
    """out[b] = bias + the first outputs of H · (signs[g] · x[b]), g = 0, 1, …; task t is group t // B of row t % B.

    x (B, N), signs (G, N · LANES), bias (C), out (B, C).
    """
    batch, rows = x.shape
    width = rows * LANES
    tile, flips = np.empty(width, x.dtype), np.empty(width, x.dtype)
    ready = -1
    for task in range(first, last):
        group, row = task // batch, task % batch
        if group != ready:  # as floating point numbers: converting them within the product is slower
            for i in range(width):
                flips[i] = signs[group, i]
            ready = group
        for i in range(rows):
            value = x[row, i]
            to, flip = tile[i * LANES : (i + 1) * LANES], flips[i * LANES : (i + 1) * LANES]
            for lane in range(LANES):
                to[lane] = value * flip[lane]
        _transform(tile, rows)
        start = group * width
        count = min(width, out.shape[1] - start)
        target, shift = out[row, start : start + count], bias[start : start + count]
        for i in range(count):
            target[i] = tile[i] + shift[i]


@compiled()
def adjoint(gradient, signs, out, first, last):  # type: ignore[no-untyped-def]
    """The transposed product: out[b] = Σ over groups and lanes of signs[g] · H · gradient[b, group g]; task t is row t.

    gradient (B, C), signs (G, N · LANES), out (B, N).
    """
    rows = out.shape[1]
    width = rows * LANES
    tile, total = np.empty(width, out.dtype), np.empty(width, out.dtype)
    for row in range(first, last):
        total[:] = 0
        for group in range(signs.shape[0]):
            start = group * width
            count = min(width, gradient.shape[1] - start)
            source, flips = gradient[row, start : start + count], signs[group]
            for i in range(count):
                tile[i] = source[i]
            tile[count:] = 0
            _transform(tile, rows)
            for i in range(width):
                total[i] += tile[i] * flips[i]
        for i in range(rows):
            out[row, i] = total[i * LANES : (i + 1) * LANES].sum()
