"""Normalisation of selected gradients by per-coordinate statistics, and its fused form with the selection."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from postgrad.errors import UserError, unknown_name
from postgrad.gradients import _kernels
from postgrad.gradients.fisher import DAMPING
from postgrad.gradients.select import percentile_rank, select_

Kind = Literal["none", "scale", "std", "std+l2", "power", "scale+power", "fisher"]
KINDS: tuple[str, ...] = get_args(Kind)
NEED_STATISTICS = ("scale", "std", "std+l2", "scale+power", "fisher")


def scale_(rows: Tensor, low: Tensor, width: Tensor) -> Tensor:
    """(g − low) / width for each coordinate, in place; entries that are zero stay zero.

    >>> scale_(torch.tensor([[0.0, 3.0]]), low=torch.tensor([-1.0, 1.0]), width=torch.tensor([2.0, 4.0]))
    tensor([[0.0000, 0.5000]])
    """
    dropped = rows == 0
    return rows.sub_(low).div_(width).masked_fill_(dropped, 0)


def power_(rows: Tensor, exponent: float) -> Tensor:
    """sign(n)·|n|^exponent, in place; an exponent of 1/2, 1/4, … is taken by square roots."""
    negative = torch.signbit(rows)
    rows.abs_()
    roots = _roots(exponent)
    if roots is None:
        rows.pow_(exponent)
    else:
        for _ in range(roots):
            rows.sqrt_()
    return rows.mul_(1 - 2 * negative.to(rows.dtype))


def unit_length_(rows: Tensor) -> Tensor:
    """Divide each row of a block by its Euclidean length (a row of zeros stays), in place."""
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows.div_(torch.where(length > 0, length, torch.ones_like(length)))


@dataclass
class Extremes:
    """Smallest and largest value of each coordinate so far, over all rows given to `update`."""

    low: Tensor
    high: Tensor

    @classmethod
    def empty(cls, numel: int, like: Tensor) -> Extremes:
        return cls(like.new_full((numel,), math.inf), like.new_full((numel,), -math.inf))

    def update(self, rows: Tensor) -> None:
        if len(rows) == 0:
            return
        if _kernels.applies(rows):
            _kernels.extremes(rows, self.low, self.high)
            return
        torch.minimum(self.low, rows.amin(0), out=self.low)
        torch.maximum(self.high, rows.amax(0), out=self.high)

    def offset_and_width(self) -> tuple[Tensor, Tensor]:
        width = self.high - self.low
        return self.low, torch.where(width > 0, width, torch.ones_like(width))


@dataclass
class Moments:
    """Mean and standard deviation of each coordinate so far, added up in float64."""

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def empty(cls, numel: int, like: Tensor) -> Moments:
        zeros = torch.zeros(numel, dtype=torch.float64, device=like.device)
        return cls(0, zeros, zeros.clone())

    def update(self, rows: Tensor) -> None:
        """Chan's formula for joining two sets (Welford's, in the compiled form): no squared mean takes the digits."""
        if len(rows) == 0:
            return
        if _kernels.applies(rows):
            _kernels.moments(rows, self.count, self.mean, self.squares)
            self.count += len(rows)
            return
        new = rows.double()
        mean = new.mean(0)
        total = self.count + len(rows)
        difference = mean - self.mean
        self.squares += (new - mean).square_().sum(0) + difference.square() * (self.count * len(rows) / total)
        self.mean += difference * (len(rows) / total)
        self.count = total

    def offset_and_width(self) -> tuple[Tensor, Tensor]:
        deviation = (self.squares / max(self.count, 1)).sqrt()
        return self.mean, torch.where(deviation > 0, deviation, torch.ones_like(deviation))


@dataclass
class SecondMoments(Moments):
    """Mean square of each coordinate so far, which is the diagonal of the Fisher matrix over `fisher_rows`."""

    def offset_and_width(self) -> tuple[Tensor, Tensor]:
        """No offset; √(mean square + damping), the damping a share of the block's mean."""
        squares = self.squares / max(self.count, 1) + self.mean.square()
        width = (squares + DAMPING * squares.mean()).sqrt()
        return torch.zeros_like(width), torch.where(width > 0, width, torch.ones_like(width))


class Normaliser:
    """One of the seven normalisations of gradient blocks, with its fitted statistics.

    >>> normaliser = Normaliser("scale+power", exponent=0.5)
    >>> for name, rows in engine.gradients(x, labels):          # as often as there are batches
    ...     normaliser.update(name, select_(rows, 0.15))
    >>> normaliser.finish()
    >>> for name, rows in engine.gradients(x, labels):
    ...     select_and_normalise_(rows, 0.15, normaliser, name)

    Kinds: "none"; "scale": (g − min) / (max − min); "std": (g − mean) / deviation; "std+l2": then each block of a
    gradient to length one; "power": sign(g)·|g|^exponent; "scale+power"; "fisher": g / √(F + damping), where `update`
    takes `fisher_rows`, not selected, and F is their mean square. Statistics are per coordinate, of the others over the
    selected gradients with their zeros; a coordinate that never varied is divided by one. Entries that the selection
    zeroed stay zero under every kind.
    """

    def __init__(self, kind: str = "scale+power", exponent: float = 0.5) -> None:
        if kind not in KINDS:
            raise unknown_name("normalisation", kind, KINDS)
        if not 0 < exponent <= 1:
            raise UserError(f"exponent: expected a number above 0 and at most 1, got {exponent}")
        self.kind = kind
        self.exponent = exponent if kind.endswith("power") else 1.0
        self._gathered: dict[str, Extremes | Moments] = {}
        self._fitted: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def needs_statistics(self) -> bool:
        """Whether a pass over gradients must come before `apply_`."""
        return self.kind in NEED_STATISTICS

    def update(self, name: str, rows: Tensor) -> None:
        """Take rows (R, P) of a block into its statistics: selected ones, or for "fisher" those of `fisher_rows`."""
        if not self.needs_statistics:
            return
        if name not in self._gathered:
            self._gathered[name] = _gather(self.kind).empty(rows.shape[1], rows)
        self._gathered[name].update(rows)

    def finish(self) -> Normaliser:
        """Turn what was gathered into what is subtracted and divided by."""
        for name, gathered in self._gathered.items():
            offset, width = gathered.offset_and_width()
            self._fitted[name] = (offset.contiguous(), width.contiguous())
        self._gathered.clear()
        return self

    def apply_(self, name: str, rows: Tensor) -> Tensor:
        """Normalise the (selected) rows (R, P) of a block in place."""
        if rows.numel() == 0:
            return rows
        if self.needs_statistics:
            scale_(rows, *self.offset_and_width(name, rows))
        if self.kind == "std+l2":
            unit_length_(rows)
        return power_(rows, self.exponent) if self.exponent != 1 else rows

    def offset_and_width(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """What is subtracted from, and what divides, each coordinate of a block, in the rows' number type."""
        if name not in self._fitted:
            raise UserError(f"the normalisation has no statistics of '{name}'; fit it first")
        offset, width = self._fitted[name]
        if offset.dtype != like.dtype or offset.device != like.device:
            offset, width = offset.to(like), width.to(like)
            self._fitted[name] = (offset, width)
        return offset, width

    def state_dict(self) -> dict[str, Tensor]:
        """The fitted statistics: `NAME.offset` and `NAME.width` for each block."""
        return {
            f"{name}.{part}": tensor
            for name, pair in self._fitted.items()
            for part, tensor in zip(("offset", "width"), pair, strict=True)
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Normaliser:
        """Take statistics that `state_dict` gave."""
        names = [key.removesuffix(".offset") for key in state if key.endswith(".offset")]
        self._fitted = {name: (state[f"{name}.offset"], state[f"{name}.width"]) for name in names}
        return self


def select_and_normalise_(rows: Tensor, keep: float | None, normaliser: Normaliser, name: str) -> Tensor:
    """`select_` (none where `keep` is None) and `Normaliser.apply_` in one visit of the rows, in place.

    The result is that of the two after each other, but for one unit in the last place of each square root, which is
    correctly rounded here and not always in torch.
    """
    if not _kernels.applies(rows) or not fusible(normaliser):
        if keep is not None:
            select_(rows, keep)
        return normaliser.apply_(name, rows)
    rank = -1 if keep is None else percentile_rank(rows.shape[1], keep)
    _kernels.select_scale_root_(
        rows, rank, *_offset_and_width(normaliser, name, rows), _roots(normaliser.exponent) or 0
    )
    return rows


def select_and_normalise_into(
    rows: Tensor, keep: float, normaliser: Normaliser, name: str, values: Tensor, places: Tensor, counts: Tensor
) -> None:
    """The same numbers, of which only the selected are written: values and places (R, `kept_numbers`), counts (R,)."""
    rank = percentile_rank(rows.shape[1], keep)
    offset, width = _offset_and_width(normaliser, name, rows)
    _kernels.select_rows(rows, rank, offset, width, _roots(normaliser.exponent) or 0, values, places, counts)


def kept_numbers(numel: int, keep: float) -> int:
    """How many numbers of a block `select_and_normalise_into` wants room for: those kept at most, and one."""
    return numel - percentile_rank(numel, keep)


def _offset_and_width(normaliser: Normaliser, name: str, rows: Tensor) -> tuple[Tensor, Tensor]:
    if normaliser.needs_statistics:
        return normaliser.offset_and_width(name, rows)
    return torch.zeros(rows.shape[1]), torch.ones(rows.shape[1])


def fusible(normaliser: Normaliser) -> bool:
    """Whether selection and this normalisation go through the rows together."""
    entrywise = ("none", "scale", "std", "power", "scale+power", "fisher")
    return normaliser.kind in entrywise and _roots(normaliser.exponent) is not None


def _gather(kind: str) -> type[Extremes] | type[Moments]:
    """What a kind that needs statistics gathers."""
    if kind == "fisher":
        return SecondMoments
    return Extremes if kind.startswith("scale") else Moments


def _roots(exponent: float) -> int | None:
    """How many square roots make this power: 1 for 1/2, 2 for 1/4, …; None where none do."""
    mantissa, power = math.frexp(exponent)
    return 1 - power if mantissa == 0.5 and power <= 1 else None
