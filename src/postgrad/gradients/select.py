"""Selection: which entries of a gradient are kept, exactly by percentile, and zero for the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from postgrad.errors import UserError
from postgrad.gradients import _kernels


def percentile_rank(numbers: int, keep: float) -> int:
    """The place (from 0, ascending) of the largest absolute value that is *not* kept among `numbers` of them.

    What is strictly above the 100·(1 − keep) percentile with linear interpolation is what is strictly above the order
    statistic at or below it: between two neighbours in the sorted order there is nothing else.
    """
    if not 0 < keep <= 1:
        raise UserError(f"select: expected a share above 0 and at most 1, got {keep}")
    # In the percentile's own arithmetic, so that the place is numpy's also where 1 − keep is not a round number.
    return int((numbers - 1) * (100 * (1 - keep) / 100))


def percentile_threshold(rows: Tensor, keep: float) -> Tensor:
    """For each row (R, P) the absolute value (R, 1) strictly above which entries belong to the top `keep` share.

    >>> rows.abs() > percentile_threshold(rows, 0.15)      # what numpy.percentile(abs, 85) keeps, row by row
    """
    rank = percentile_rank(rows.shape[1], keep)
    if _kernels.applies(rows):
        return _kernels.thresholds(rows, rank)
    return rows.abs().kthvalue(rank + 1, dim=1, keepdim=True).values


def select_(rows: Tensor, keep: float) -> Tensor:
    """Keep of each row (R, P) what is strictly above its own percentile of absolute values; zero the rest, in place.

    `keep` is the share that stays (0.15: above the 85th percentile); with 1 only the smallest entries go.
    """
    if rows.numel() == 0:
        return rows
    if _kernels.applies(rows):
        _kernels.select_(rows, percentile_rank(rows.shape[1], keep))
        return rows
    return rows.masked_fill_(rows.abs() <= percentile_threshold(rows, keep), 0)


def select_global_(blocks: Sequence[Tensor], keep: float) -> Sequence[Tensor]:
    """The same over all blocks (R, P₁), (R, P₂), … of a gradient together: one threshold for each row."""
    if not blocks or len(blocks[0]) == 0:
        return blocks
    threshold = percentile_threshold(torch.cat([block.abs() for block in blocks], dim=1), keep)
    for block in blocks:
        block.masked_fill_(block.abs() <= threshold, 0)
    return blocks
