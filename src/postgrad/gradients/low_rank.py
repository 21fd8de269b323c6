"""Functionals of rank R on gradients: aᵀ G b for each layer, read off the factors of G."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.gradients.engine import Block, GradientEngine, Labels
from postgrad.gradients.factors import Factor, Part
from postgrad.gradients.names import weights_of
from postgrad.units import format_memory

_PROBES = 32
_SEED = 20180706


def functionals(factor: Factor, a: Tensor, b: Tensor) -> Tensor:
    """The values (N·L, H) of Σ_r a_hrᵀ G b_hr for the gradient matrix G (O, K) of each image and label.

    >>> functionals(factor, torch.randn(100, 2, 64), torch.randn(100, 2, 1600)).shape
    torch.Size([N * L, 100])

    `a` is (H, R, O), `b` (H, R, K); differentiable in both. G is never made: it is Σ over places of δ xᵀ, so that a
    value is Σ (aᵀδ)(bᵀx), where bᵀx is a convolution that all labels share.
    """
    hidden, rank, _ = a.shape
    images, labels = factor.delta.shape[:2]
    sent = factor.send(a.flatten(0, 1))
    read = factor.read(b.flatten(0, 1))
    values = (sent * read.unsqueeze(1)).sum(dim=(2, 4))
    return values.view(images * labels, hidden, rank).sum(2)


def summed(factors: Sequence[Factor], a: Tensor, b: Tensor, *, rows: int) -> Tensor:
    """The functionals (rows, H) of a weight that several calls share, or that these images do not use."""
    return sum((functionals(factor, a, b) for factor in factors), start=a.new_zeros(rows, len(a)))


class FactorSpace:
    """The gradient space of a network as factors, for classifiers that read it by functionals of low rank.

    >>> space = FactorSpace(model, images[:3])
    >>> space.fit((x, labels) for x, labels in batches)
    >>> parts = space(x, labels)              # the factors of all layers, some images at a time
    >>> space.scales()                        # of each layer, the root of the mean square length of its gradient

    The scales take the place of selection and normalisation, which need the entries of gradients. They are estimated
    without bias from the values of 32 random functionals. Raises `UserError` for layers that are neither linear nor
    convolutions, and for one image that does not fit into `memory` (bytes).
    """

    def __init__(
        self, model: nn.Module, example: Tensor, *, layers: Sequence[str] | None = None, memory: int = 2 << 30
    ) -> None:
        self.engine = GradientEngine(model, example, parameters=weights_of(model, layers), memory=memory)
        self.engine.refuse_unfactored("rank=")
        self._scales: dict[str, Tensor] = {}
        self._places, self._inputs = self._geometry(example)
        self.functionals: Mapping[str, int] = {}
        """How many pairs (a, b) read each block: what a classifier's own work on the factors takes depends on it."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Name, shape and size of each block, in the network's order."""
        return self.engine.blocks

    @property
    def num_classes(self) -> int:
        return self.engine.num_classes

    @property
    def needs_statistics(self) -> bool:
        """Whether `fit` must see gradients first: always."""
        return True

    def image_bytes(self, labels: int) -> int:
        """What one image's factors take under so many labels, with (aᵀδ), (bᵀx) and, in training, their gradients."""
        values = sum(self._places[name] * count for name, count in self.functionals.items())
        numbers = self._inputs + labels * self.engine.delta_numbers + 3 * (labels + 1) * values
        return numbers * self.engine.like.element_size()

    def step_bytes(self, images: int, labels: int) -> int:
        """What the factors of so many images at once, each under so many labels, take with all that is done to them."""
        return images * self.image_bytes(labels) + self.engine.working_bytes(labels)

    def images_per_chunk(self, labels: Labels) -> int:
        """How many images to give at a time, within the memory budget and the caches."""
        rows = self.num_classes if isinstance(labels, str) else 1
        needed = self.engine.working_bytes(rows) + self.image_bytes(rows)
        room = self.engine.memory - needed
        if room < 0:
            raise UserError(
                f"reading the gradients of one image takes {format_memory(needed)}, more than the "
                f"{format_memory(self.engine.memory)} that the memory budget leaves for it; raise it, choose fewer "
                "layers, or read them by fewer or smaller functionals"
            )
        return min(self.engine.images_per_tile(rows), 1 + room // self.image_bytes(rows))

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> FactorSpace:
        """Estimate each layer's scale over the gradients of (images, labels)."""
        generator = torch.Generator().manual_seed(_SEED)
        probes = {block.name: self._probe(block, generator) for block in self.blocks}
        squares, total = dict.fromkeys(probes, 0.0), 0
        for images, labels in batches:
            for rows, part in self.engine.factors(images, labels):
                total += rows
                for name, factors in part.items():
                    with torch.no_grad():
                        values = summed(factors, *probes[name], rows=rows)
                    squares[name] += float(values.double().square().mean(1).sum())
        # A layer that no image's answer depends on has zeros only, and stays at 1.
        self._scales = {name: torch.tensor(math.sqrt(square / total) or 1.0) for name, square in squares.items()}
        return self

    def __call__(self, images: Tensor, labels: Labels) -> list[tuple[int, Part]]:
        """(rows, factors) of some images, whose rows follow each other in (image, label) order."""
        # Under several labels the engine's next part overwrites the deltas of the last.
        return [
            (rows, {name: [factor.copied() for factor in factors] for name, factors in part.items()})
            for rows, part in self.engine.factors(images, labels)
        ]

    def scales(self) -> list[Tensor]:
        """The fitted scale of each block."""
        if not self._scales:
            raise UserError("the scales of the gradients are not known yet; fit them first")
        return [self._scales[block.name] for block in self.blocks]

    def statistics(self) -> dict[str, Tensor]:
        """The fitted statistics, by name."""
        return {f"{name}.scale": scale for name, scale in self._scales.items()}

    def load_statistics(self, state: Mapping[str, Tensor]) -> None:
        """Take statistics that `statistics` gave."""
        self._scales = {key.removesuffix(".scale"): value for key, value in state.items()}

    def _probe(self, block: Block, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random functionals whose mean square is the squared length of what they read."""
        sides = (block.shape[0], math.prod(block.shape[1:]))
        a, b = (torch.randn((_PROBES, 1, side), generator=generator).to(self.engine.like) for side in sides)
        return a, b

    def _geometry(self, example: Tensor) -> tuple[dict[str, int], int]:
        """For each block the places at which a functional reads one image, and the numbers of all layers' inputs."""
        places, inputs = dict.fromkeys((block.name for block in self.blocks), 0), 0
        for _, part in self.engine.factors(example[:1], torch.zeros(1, dtype=torch.int64)):
            for name, factors in part.items():
                places[name] += sum(factor.delta[0, 0, :, 0].numel() for factor in factors)
                inputs += sum(factor.input.numel() for factor in factors)
        return places, inputs
