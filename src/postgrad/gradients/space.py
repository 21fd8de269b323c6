"""The gradient space of a network: its per-sample gradients, selected and normalised, for second-stage methods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from postgrad.errors import UserError, unknown_name
from postgrad.gradients.coordinates import CoordinateGradients
from postgrad.gradients.engine import Block, GradientEngine, Labels
from postgrad.gradients.fisher import KroneckerFisher, fisher_rows
from postgrad.gradients.names import weights_of
from postgrad.gradients.normalise import (
    KINDS,
    Normaliser,
    fusible,
    kept_numbers,
    select_and_normalise_,
    select_and_normalise_into,
)
from postgrad.gradients.project import ProjectedGradients
from postgrad.gradients.rows import SelectedRows
from postgrad.gradients.scratch import Scratch
from postgrad.gradients.select import select_, select_global_

MASK = "mask"
"""The normalisation that keeps nothing of a selected entry but that it was selected: a 1."""

_STATISTICS_AT_ONCE = 32
"""Images whose gradients are whole at a time while statistics are gathered."""

_INTEGERS, _COUNTS = torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.int64)

KFAC = "kfac"
"""The normalisation by the Kronecker-factored Fisher metric: gradients are whitened before anything is selected."""

ROWS_AT_ONCE = 320
"""Gradients made at a time when many images are read: larger buffers fall out of the processor's caches."""

MOMENTS_BYTES = 8
"""Mean and deviation are added up in float64."""

_GLOBAL_COPIES = 3
"""A selection over all layers together holds the rows, their absolute values side by side, and those partly sorted."""


class GradientSpace:
    """Blocks of selected, normalised gradients of cross-entropy, one block for each weight of the network.

    >>> space = GradientSpace(model, images[:3], select=0.15, normalise="scale+power")
    >>> space.fit((x, labels) for x, labels in batches)
    >>> [block.shape for block in space(x, labels)]
    [torch.Size([N, 4800]), torch.Size([N, 102400]), torch.Size([N, 23040])]

    `select` is the share of entries kept, of each layer or of all together (`scope`); `weight_decay` adds
    weight_decay·W to each gradient before the selection. Selection comes before every normalisation but "kfac", which
    mixes the entries of a layer. Blocks are buffers that the next call overwrites.

    For networks whose whole gradients are too long: `project` makes about that many numbers of each layer's gradient
    (see `ProjectedGradients`), `coordinates` takes that many entries of all layers together (see
    `CoordinateGradients`; they are found by `locate`, which comes before `fit`). Selection and normalisation then act
    on what there is. `seed` draws the projection.

    `memory` is the bytes that gradients, statistics and the work on them may take.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        *,
        layers: Sequence[str] | None = None,
        select: float | None = 0.15,
        scope: Literal["layer", "global"] = "layer",
        normalise: str = "scale+power",
        exponent: float = 0.5,
        weight_decay: float = 0.0,
        project: int | None = None,
        coordinates: int | None = None,
        seed: int = 0,
        memory: int = 2 << 30,
    ) -> None:
        if normalise not in (*KINDS, KFAC, MASK):
            raise unknown_name("normalisation", normalise, (*KINDS, KFAC, MASK))
        if scope not in ("layer", "global"):
            raise unknown_name("scope", scope, ("layer", "global"))
        if select is not None and not 0 < select <= 1:
            raise UserError(f"select: expected a share above 0 and at most 1, or None for all, got {select}")
        if normalise in (KFAC, "fisher") and (project or coordinates):
            raise UserError(
                f"normalise='{normalise}' measures whole gradients, which project= and coordinates= never make"
            )
        names = weights_of(model, layers)
        self.engine = GradientEngine(model, example, parameters=names, memory=memory)
        self.metric = KroneckerFisher(model, names, example, memory=memory) if normalise == KFAC else None
        self.source = _source(self.engine, project, coordinates, seed)
        self.select = select
        self.scope = scope
        self.masked = normalise == MASK
        self.normaliser = Normaliser("none" if normalise in (KFAC, MASK) else normalise, exponent)
        self.weight_decay = weight_decay
        self._weights = dict(model.named_parameters())
        self._scratch = Scratch()

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Name, shape and size of each block, in the network's order."""
        return self.source.blocks

    @property
    def num_classes(self) -> int:
        return self.engine.num_classes

    @property
    def needs_locating(self) -> bool:
        """Whether `locate` must see gradients before there are any blocks."""
        return isinstance(self.source, CoordinateGradients)

    @property
    def needs_statistics(self) -> bool:
        """Whether `fit` must see gradients before blocks can be made."""
        return self.metric is not None or self.normaliser.needs_statistics

    def row_bytes(self) -> int:
        """What one gradient takes here, with the copies that the selection makes of it."""
        copies = _GLOBAL_COPIES if self.scope == "global" and self.select is not None else 1
        return copies * self.source.row_numbers() * self.engine.like.element_size()

    def statistics_bytes(self) -> int:
        """What the normalisation's statistics take at most: while extremes or moments become offset and width."""
        if not self.needs_statistics:
            return 0
        itemsize = self.engine.like.element_size() if self.normaliser.kind.startswith("scale") else MOMENTS_BYTES
        return 4 * itemsize * self.source.row_numbers()

    def step_bytes(self, images: int, labels: int) -> int:
        """What the gradients of so many images at once, each under so many labels, take with all that makes them."""
        return images * labels * self.row_bytes() + self.statistics_bytes() + self.engine.working_bytes(labels)

    def images_per_chunk(self, labels: Labels) -> int:
        """How many images to give at a time, within the memory budget and the caches."""
        rows = self.num_classes if isinstance(labels, str) else 1
        numbers = self.row_bytes() // self.engine.like.element_size()
        fitting = self.engine.images_per_chunk(labels, numbers=numbers, beside=self.statistics_bytes())
        return max(1, min(fitting, ROWS_AT_ONCE // rows))

    def locate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> GradientSpace:
        """Find the coordinates of largest mean gradient over (images, labels), where `coordinates` asks for them."""
        if isinstance(self.source, CoordinateGradients):
            self.source.locate(batches)
        return self

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> GradientSpace:
        """Gather the normalisation's statistics over selected gradients of (images, labels).

        Those of the Fisher metric are over all gradients, whole, under the labels that the network itself expects.
        """
        chunk = min(_STATISTICS_AT_ONCE, self.images_per_chunk(torch.empty(0)))
        for images, labels in batches:
            if self.metric is not None:
                self.metric.update(images)
                continue
            for some, under in zip(images.split(chunk), labels.split(chunk), strict=True):
                for name, rows in self._of_statistics(some, under):
                    self.normaliser.update(name, rows)
        (self.metric or self.normaliser).finish()
        self.engine.release()  # what is asked for next may be made in smaller pieces, with buffers of their own
        return self

    def __call__(self, images: Tensor, labels: Labels) -> list[Tensor]:
        """The blocks [(R, numel), …] of some images: R = N for given labels, N·C in (image, label) order for "all"."""
        if self.scope == "global" and self.select is not None:
            finished = [self.normaliser.apply_(name, rows) for name, rows in self._selected(images, labels)]
        else:
            finished = [
                select_and_normalise_(rows, self.select, self.normaliser, name)
                for name, rows in self._raw(images, labels)
            ]
        return [rows.ne_(0) if self.masked else rows for rows in finished]

    @property
    def selects_rows(self) -> bool:
        """Whether `selected` can be asked for: float32 on a CPU, a share of each layer, entrywise normalisation."""
        weight = next(iter(self._weights.values()))
        return (
            self.select is not None
            and self.scope == "layer"
            and fusible(self.normaliser)
            and weight.device.type == "cpu"
            and weight.dtype == torch.float32
        )

    def selected(self, images: Tensor, labels: Labels) -> list[SelectedRows]:
        """The same blocks with only what was selected, made a few rows at a time: less memory, and faster."""
        assert self.select is not None
        total = len(images) * (self.num_classes if isinstance(labels, str) else 1)
        kept = [self._kept_buffers(block, total) for block in self.blocks]
        keep = self.select

        def use(rows: slice, blocks: Mapping[str, Tensor]) -> None:
            for (values, places, counts), (name, raw) in zip(kept, self._decayed(blocks.items()), strict=True):
                out = (values[rows], places[rows], counts[rows])
                select_and_normalise_into(raw, keep, self.normaliser, name, *out)

        if isinstance(self.source, GradientEngine):
            self.source.pieces(images, labels, use)
        else:  # what is read of large gradients is short, and comes at once
            use(slice(None), dict(self.source.gradients(images, labels)))
        if self.masked:
            for values, _, _ in kept:
                values.fill_(1)
        return [SelectedRows(*part, block.numel) for part, block in zip(kept, self.blocks, strict=True)]

    def _kept_buffers(self, block: Block, total: int) -> tuple[Tensor, Tensor, Tensor]:
        assert self.select is not None
        shape = (total, kept_numbers(block.numel, self.select))
        weight = self._weights[block.name]
        return (
            self._scratch(("values", block.name), shape, like=weight),
            self._scratch(("places", block.name), shape, like=_INTEGERS),
            self._scratch(("counts", block.name), shape[:1], like=_COUNTS),
        )

    def statistics(self) -> dict[str, Tensor]:
        """The fitted statistics, by name."""
        places = self.source.state_dict() if isinstance(self.source, CoordinateGradients) else {}
        return {**(self.metric or self.normaliser).state_dict(), **places}

    def load_statistics(self, state: Mapping[str, Tensor]) -> None:
        """Take statistics that `statistics` gave."""
        (self.metric or self.normaliser).load_state_dict(state)
        if isinstance(self.source, CoordinateGradients):
            self.source.load_state_dict(state)

    def _of_statistics(self, images: Tensor, labels: Labels) -> Iterator[tuple[str, Tensor]]:
        if self.normaliser.kind == "fisher":
            return fisher_rows(self.engine, images, chunk=self.images_per_chunk("all"))
        return self._selected(images, labels)

    def _selected(self, images: Tensor, labels: Labels) -> Iterator[tuple[str, Tensor]]:
        if self.select is None:
            yield from self._raw(images, labels)
        elif self.scope == "global":
            named = list(self._raw(images, labels))
            select_global_([rows for _, rows in named], self.select)
            yield from named
        else:
            for name, rows in self._raw(images, labels):
                yield name, select_(rows, self.select)

    def _raw(self, images: Tensor, labels: Labels) -> Iterator[tuple[str, Tensor]]:
        yield from self._decayed(self.source.gradients(images, labels))

    def _decayed(self, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, rows in named:
            if self.weight_decay:
                rows.add_(self.source.project(name, self._weights[name]), alpha=self.weight_decay)
            yield name, rows if self.metric is None else self.metric.whiten_(name, rows)


def _source(
    engine: GradientEngine, project: int | None, coordinates: int | None, seed: int
) -> GradientEngine | ProjectedGradients | CoordinateGradients:
    for option, value in (("project", project), ("coordinates", coordinates)):
        if value is not None and value < 1:
            raise UserError(f"{option}: expected 1 or more, or None, got {value}")
    if project is not None and coordinates is not None:
        raise UserError("give either project or coordinates, not both")
    if project is not None:
        return ProjectedGradients(engine, project, seed=seed)
    return engine if coordinates is None else CoordinateGradients(engine, coordinates)
