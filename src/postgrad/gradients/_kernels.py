"""The inner loops of selection and normalisation for float32 rows on a CPU, compiled by numba and run on torch's threads.

Absolute values of float32 numbers sort as their bits do (without the sign), so the threshold is found exactly by
counting bits: a histogram of the top twelve, then ever finer ones of the few numbers in the bucket that matters.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

MAGNITUDE = np.uint32(0x7FFFFFFF)
_compiled = functools.partial(numba.njit, nogil=True, cache=True)


@_compiled()
def _nth_magnitude(bits, rank, histogram, candidates):  # type: ignore[no-untyped-def]
    """Bits of the `rank`-th smallest (from 0) absolute value of one row."""
    # Four interleaved histograms: neighbouring equal buckets would otherwise wait for each other's store.
    histogram[:] = 0
    size = len(bits)
    whole = size - size % 4
    for i in range(0, whole, 4):
        histogram[(bits[i] & MAGNITUDE) >> 19] += 1
        histogram[4096 + ((bits[i + 1] & MAGNITUDE) >> 19)] += 1
        histogram[8192 + ((bits[i + 2] & MAGNITUDE) >> 19)] += 1
        histogram[12288 + ((bits[i + 3] & MAGNITUDE) >> 19)] += 1
    for i in range(whole, size):
        histogram[(bits[i] & MAGNITUDE) >> 19] += 1
    bucket = 0
    while True:
        count = (
            histogram[bucket] + histogram[4096 + bucket] + histogram[8192 + bucket] + histogram[12288 + bucket]
        )
        if rank < count:
            break
        rank -= count
        bucket += 1
    found = 0
    for i in range(size):
        value = bits[i] & MAGNITUDE
        candidates[found] = value
        found += (value >> 19) == bucket
    for shift in (11, 3, 0):
        width = 256 if shift else 8
        histogram[:width] = 0
        for i in range(found):
            histogram[(candidates[i] >> shift) & (width - 1)] += 1
        digit = 0
        while rank >= histogram[digit]:
            rank -= histogram[digit]
            digit += 1
        kept = 0
        for i in range(found):
            value = candidates[i]
            candidates[kept] = value
            kept += ((value >> shift) & (width - 1)) == digit
        found = kept
    return candidates[0]


@_compiled()
def _thresholds(bits, rank, thresholds, start, stop):  # type: ignore[no-untyped-def]
    histogram = np.empty(4 * 4096, np.int32)
    candidates = np.empty(bits.shape[1] + 1, np.uint32)
    for row in range(start, stop):
        thresholds[row] = _nth_magnitude(bits[row], rank, histogram, candidates)


@_compiled()
def _select(rows, bits, rank, thresholds, start, stop):  # type: ignore[no-untyped-def]
    histogram = np.empty(4 * 4096, np.int32)
    candidates = np.empty(bits.shape[1] + 1, np.uint32)
    for row in range(start, stop):
        threshold = _nth_magnitude(bits[row], rank, histogram, candidates)
        thresholds[row] = threshold
        for i in range(bits.shape[1]):
            if (bits[row, i] & MAGNITUDE) <= threshold:
                rows[row, i] = 0.0


@_compiled()
def _select_scale_root(rows, bits, rank, low, width, roots, thresholds, start, stop):  # type: ignore[no-untyped-def]
    """Selection (none where rank < 0), (g − low) / width for what is kept, then the square root `roots` times."""
    histogram = np.empty(4 * 4096, np.int32)
    candidates = np.empty(bits.shape[1] + 1, np.uint32)
    for row in range(start, stop):
        threshold = np.uint32(0)
        if rank >= 0:
            threshold = _nth_magnitude(bits[row], rank, histogram, candidates)
        thresholds[row] = threshold
        g, b = rows[row], bits[row]
        if roots == 1:
            for i in range(len(g)):
                n = (g[i] - low[i]) / width[i]
                n = np.copysign(np.sqrt(np.abs(n)), n)
                g[i] = n if (b[i] & MAGNITUDE) > threshold else np.float32(0)
        else:
            for i in range(len(g)):
                n = (g[i] - low[i]) / width[i]
                for _ in range(roots):
                    n = np.copysign(np.sqrt(np.abs(n)), n)
                g[i] = n if (b[i] & MAGNITUDE) > threshold else np.float32(0)


def applies(rows: Tensor) -> bool:
    """Whether rows (R, P) are what the compiled loops take."""
    return rows.device.type == "cpu" and rows.dtype == torch.float32 and rows.is_contiguous() and rows.numel() > 0


def thresholds(rows: Tensor, rank: int) -> Tensor:
    """The `rank`-th smallest absolute value of each row, (R, 1)."""
    found = np.empty(len(rows), np.uint32)
    _over_rows(_thresholds, len(rows), _bits(rows), rank, found)
    return torch.from_numpy(found.view(np.float32)).unsqueeze(1)


def select_(rows: Tensor, rank: int) -> None:
    """Zero what is not strictly above each row's `rank`-th smallest absolute value."""
    unused = np.empty(len(rows), np.uint32)
    _over_rows(_select, len(rows), _values(rows), _bits(rows), rank, unused)


def select_scale_root_(rows: Tensor, rank: int, low: Tensor, width: Tensor, roots: int) -> None:
    """Selection, (g − low) / width and `roots` square roots in one visit of each row."""
    unused = np.empty(len(rows), np.uint32)
    _over_rows(
        _select_scale_root, len(rows), _values(rows), _bits(rows), rank, _values(low), _values(width), roots, unused
    )


def _values(tensor: Tensor) -> Any:
    return tensor.detach().numpy()


def _bits(tensor: Tensor) -> Any:
    return tensor.detach().numpy().view(np.uint32)


def _over_rows(kernel: Callable[..., None], rows: int, *arguments: Any) -> None:
    """Run a kernel on ranges of rows, one range for each of torch's threads.

    Plain threads, since the kernels release the interpreter's lock: numba's own threading layers either abort when two
    threads call them at once or break in forked processes.
    """
    threads = min(torch.get_num_threads(), rows)
    bounds = [rows * i // threads for i in range(threads + 1)]
    if threads == 1:
        kernel(*arguments, 0, rows)
        return
    pool = _pool(threads - 1, os.getpid())
    others = [pool.submit(kernel, *arguments, bounds[i], bounds[i + 1]) for i in range(1, threads)]
    kernel(*arguments, bounds[0], bounds[1])
    for other in others:
        other.result()


@functools.lru_cache(maxsize=2)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="postgrad-gradients")
