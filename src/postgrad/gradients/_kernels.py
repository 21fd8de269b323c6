"""Selection and normalisation of float32 rows on a CPU, compiled by numba and run on as many threads as torch has.

Absolute values of float32 numbers sort as their bits do (without the sign), so order statistics are found exactly on
integers. A sample of a row says between which two values its threshold lies; one pass counts what is below them and
collects the few per cent between; those are sorted out by counting digits. Where the sample was wrong, which the count
shows, everything is collected instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from postgrad.gradients._threads import in_ranges
from postgrad.gradients._vector import bits_set, compiled, lowest_bit, within_64

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_DIGIT = 11
_DIGITS = 1 << _DIGIT
_SAMPLE = 2048
_SAMPLE_FROM = 16384
_WANDER = 7
_STRETCH = 1024


@compiled()
def _nth_value(values, count, rank, histogram):  # type: ignore[no-untyped-def]
    """The `rank`-th smallest (from 0) of the first `count` values below 2³¹; what it reads, it overwrites."""
    shift = np.uint32(31)
    while shift > 0:
        bits = min(shift, np.uint32(_DIGIT))
        shift -= bits
        mask = np.uint32((1 << bits) - 1)
        histogram[: mask + 1] = 0
        for i in range(count):
            histogram[np.uint64((values[i] >> shift) & mask)] += 1
        digit = np.uint64(0)
        while rank >= histogram[digit]:
            rank -= histogram[digit]
            digit += np.uint64(1)
        kept = np.uint64(0)
        for i in range(count):
            value = values[i]
            values[kept] = value
            kept += np.uint64(np.uint64((value >> shift) & mask) == digit)
        count = kept
        if count == 1:
            break
    return values[0]


@compiled()
def _bracket(bits, rank, bound, work, histogram):  # type: ignore[no-untyped-def]
    """Two values that the `rank`-th magnitude of a long row is almost surely between, by a sample of the row."""
    size = len(bits)
    stride = size // _SAMPLE
    # The place within each stretch wanders, since gradients repeat with the kernel's size.
    inside = 0
    for i in range(_SAMPLE):
        value = bits[i * stride + inside] & _MAGNITUDE
        work[i] = value
        work[_SAMPLE + i] = value
        inside += _WANDER
        inside -= stride if inside >= stride else 0
    share = rank / size
    middle, spread = share * _SAMPLE, 3.0 * np.sqrt(_SAMPLE * share * (1 - share)) + 2
    low, high = np.uint32(0), bound
    if middle - spread >= 0:
        low = _nth_value(work, _SAMPLE, np.int64(middle - spread), histogram)
    if middle + spread < _SAMPLE:
        high = _nth_value(work[_SAMPLE:], _SAMPLE, np.int64(middle + spread), histogram)
    return low, high


@compiled()
def _count_within(bits, low, span):  # type: ignore[no-untyped-def]
    """How many magnitudes are from `low` to `low + span`."""
    count = np.int64(0)
    whole = len(bits) // 64 * 64
    for at in range(0, whole, 64):
        count += bits_set(within_64(bits, at, low, span))
    for i in range(whole, len(bits)):
        count += np.int64((bits[i] & _MAGNITUDE) - low <= span)
    return count


@compiled()
def _values_within(bits, low, span, values):  # type: ignore[no-untyped-def]
    """Write how far above `low` those magnitudes are; return how many there are."""
    count = np.int64(0)
    whole = len(bits) // 64 * 64
    for at in range(0, whole, 64):
        mask = within_64(bits, at, low, span)
        while mask != 0:
            values[count] = (bits[at + lowest_bit(mask)] & _MAGNITUDE) - low
            count += 1
            mask &= mask - np.uint64(1)
    for i in range(whole, len(bits)):
        values[count] = (bits[i] & _MAGNITUDE) - low
        count += np.int64(values[count] <= span)
    return count


@compiled()
def places_above(bits, threshold, places):  # type: ignore[no-untyped-def]
    """Write the places, ascending, of numbers whose magnitude is above that of the bits `threshold`; return how many.

    What is not a number is above nothing.
    """
    count = np.int64(0)
    if threshold >= _INFINITY:
        return count
    low, span = threshold + np.uint32(1), _INFINITY - threshold - np.uint32(1)
    whole = len(bits) // 64 * 64
    for at in range(0, whole, 64):
        mask = within_64(bits, at, low, span)
        while mask != 0:
            places[count] = at + lowest_bit(mask)
            count += 1
            mask &= mask - np.uint64(1)
    for i in range(whole, len(bits)):
        if (bits[i] & _MAGNITUDE) - low <= span:
            places[count] = i
            count += 1
    return count


@compiled()
def _nth_magnitude(bits, rank, work, histogram):  # type: ignore[no-untyped-def]
    """The bits of the `rank`-th smallest (from 0) absolute value of one row."""
    # This vectorised pass also brings a row from memory at full speed, which the loop below does not: a row that is in
    # no cache (102,400 numbers) takes 90 µs instead of 146.
    bound = np.uint32(0)
    for i in range(len(bits)):
        bound |= bits[i]
    bound &= _MAGNITUDE  # no magnitude is larger than all bits that occur
    low, high = np.uint32(0), bound
    if len(bits) >= _SAMPLE_FROM:
        low, high = _bracket(bits, rank, bound, work, histogram)
    while True:
        span = high - low
        below = _count_within(bits, np.uint32(0), low - np.uint32(1)) if low > 0 else np.int64(0)
        between = _values_within(bits, low, span, work)
        if below <= rank < below + between:
            break
        low, high = np.uint32(0), bound
    if span == 0:
        return low
    return low + _nth_value(work, between, rank - below, histogram)


@compiled()
def _workspace(size):  # type: ignore[no-untyped-def]
    return np.empty(max(size + 1, 2 * _SAMPLE), np.uint32), np.empty(_DIGITS, np.int64)


@compiled()
def _thresholds(bits, rank, thresholds, start, stop):  # type: ignore[no-untyped-def]
    work, histogram = _workspace(bits.shape[1])
    for row in range(start, stop):
        thresholds[row] = _nth_magnitude(bits[row], rank, work, histogram)


@compiled()
def _zero_below(values, threshold):  # type: ignore[no-untyped-def]
    for i in range(len(values)):
        values[i] = values[i] if np.abs(values[i]) > threshold else np.float32(0)


@compiled()
def _scale_root_above(values, threshold, low, width, roots):  # type: ignore[no-untyped-def]
    """(v − low) / width for values above the threshold and its signed square root `roots` times; zero for others."""
    if roots == 1:
        for i in range(len(values)):
            value = values[i]
            scaled = (value - low[i]) / width[i]
            scaled = np.copysign(np.sqrt(np.abs(scaled)), scaled)
            values[i] = scaled if np.abs(value) > threshold else np.float32(0)
        return
    for i in range(len(values)):
        value = values[i]
        scaled = (value - low[i]) / width[i]
        for _ in range(roots):
            scaled = np.copysign(np.sqrt(np.abs(scaled)), scaled)
        values[i] = scaled if np.abs(value) > threshold else np.float32(0)


@compiled()
def _select(rows, bits, rank, start, stop):  # type: ignore[no-untyped-def]
    work, histogram = _workspace(bits.shape[1])
    threshold = np.empty(1, np.uint32)
    for row in range(start, stop):
        threshold[0] = _nth_magnitude(bits[row], rank, work, histogram)
        _zero_below(rows[row], threshold.view(np.float32)[0])


@compiled()
def _select_scale_root(rows, bits, rank, low, width, roots, start, stop):  # type: ignore[no-untyped-def]
    work, histogram = _workspace(bits.shape[1])
    threshold = np.zeros(1, np.uint32)
    for row in range(start, stop):
        if rank >= 0:
            threshold[0] = _nth_magnitude(bits[row], rank, work, histogram)
        _scale_root_above(rows[row], threshold.view(np.float32)[0], low, width, roots)


@compiled()
def _select_rows(rows, bits, rank, low, width, roots, values, places, counts, start, stop):  # type: ignore[no-untyped-def]
    """The same, keeping only what is above the threshold, with its places."""
    work, histogram = _workspace(bits.shape[1])
    for row in range(start, stop):
        every, kept, where = rows[row], values[row], places[row]
        count = places_above(bits[row], _nth_magnitude(bits[row], rank, work, histogram), where)
        for i in range(count):
            place = where[i]
            scaled = (every[place] - low[place]) / width[place]
            for _ in range(roots):
                scaled = np.copysign(np.sqrt(np.abs(scaled)), scaled)
            kept[i] = scaled
        kept[count:] = np.float32(0)
        counts[row] = count


@compiled()
def _extremes(rows, low, high, start, stop):  # type: ignore[no-untyped-def]
    """Each coordinate's extremes, from `start` to `stop`; a stretch of coordinates stays in the first cache."""
    for first in range(start, stop, _STRETCH):
        last = min(first + _STRETCH, stop)
        lows, highs = low[first:last], high[first:last]
        for row in range(len(rows)):
            values = rows[row, first:last]
            for i in range(last - first):
                lows[i] = min(lows[i], values[i])
                highs[i] = max(highs[i], values[i])


@compiled()
def _moments(rows, count, mean, squares, start, stop):  # type: ignore[no-untyped-def]
    """Welford's running mean and sum of squared deviations in float64, after `count` earlier rows."""
    for first in range(start, stop, _STRETCH):
        last = min(first + _STRETCH, stop)
        means, sums = mean[first:last], squares[first:last]
        for row in range(len(rows)):
            share = 1.0 / (count + row + 1)
            values = rows[row, first:last]
            for i in range(last - first):
                difference = values[i] - means[i]
                means[i] += difference * share
                sums[i] += difference * (values[i] - means[i])


def applies(rows: Tensor) -> bool:
    """Whether rows (R, P) are what the compiled loops take."""
    return rows.device.type == "cpu" and rows.dtype == torch.float32 and rows.is_contiguous() and rows.numel() > 0


def thresholds(rows: Tensor, rank: int) -> Tensor:
    """The `rank`-th smallest absolute value of each row, (R, 1)."""
    found = np.empty(len(rows), np.uint32)
    in_ranges(_thresholds, len(rows), _bits(rows), rank, found)
    return torch.from_numpy(found.view(np.float32)).unsqueeze(1)


def select_(rows: Tensor, rank: int) -> None:
    """Zero what is not strictly above each row's `rank`-th smallest absolute value."""
    in_ranges(_select, len(rows), _values(rows), _bits(rows), rank)


def select_scale_root_(rows: Tensor, rank: int, low: Tensor, width: Tensor, roots: int) -> None:
    """Selection (none where rank < 0), (g − low) / width and `roots` square roots in one visit of each row."""
    in_ranges(_select_scale_root, len(rows), _values(rows), _bits(rows), rank, _values(low), _values(width), roots)


def select_rows(
    rows: Tensor,
    rank: int,
    low: Tensor,
    width: Tensor,
    roots: int,
    values: Tensor,
    places: Tensor,
    counts: Tensor,
) -> None:
    """The same, written as values and places (R, P − rank) and how many of them are used (R,)."""
    out = (_values(values), _values(places), _values(counts))
    arguments = (_values(rows), _bits(rows), rank, _values(low), _values(width), roots, *out)
    in_ranges(_select_rows, len(rows), *arguments)


def extremes(rows: Tensor, low: Tensor, high: Tensor) -> None:
    """Take rows (R, P) into the smallest and largest value of each coordinate, in place."""
    in_ranges(_extremes, rows.shape[1], _values(rows), _values(low), _values(high))


def moments(rows: Tensor, count: int, mean: Tensor, squares: Tensor) -> None:
    """Take rows (R, P) into the float64 mean and sum of squared deviations of `count` earlier ones, in place."""
    in_ranges(_moments, rows.shape[1], _values(rows), count, _values(mean), _values(squares))


def _values(tensor: Tensor) -> Any:
    return tensor.detach().numpy()


def _bits(tensor: Tensor) -> Any:
    return tensor.detach().numpy().view(np.uint32)
