"""Chains that go on from step to step of a training, and where new ones start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from postgrad.errors import UserError

Starts = Callable[[Tensor], Tensor]
"""Classes (n,) -> where chains of these classes start (n, …), in the range of images."""

Storage = Literal["float16", "uint8"]


class ReplayBuffer:
    """So many chains, resident, in half precision or as pixels.

    >>> buffer = ReplayBuffer(10_000, starts, classes=10)
    >>> chains, where = buffer.draw(torch.randint(10, (64,)))
    >>> buffer.put(where, langevin(log_density, chains))

    size : how many chains; a multiple of the classes where each has its own.
    starts : where new chains begin.
    classes : how many there are.
    per_class : whether each class has chains of its own; otherwise the class only says where a new chain begins.
    reinit : the probability with which a chain begins anew when it is drawn.
    storage : "float16", or "uint8": 256 levels between `bounds`, in half the memory.

    Random numbers are torch's own. Where the chains are is in `state_dict`.
    """

    def __init__(
        self,
        size: int,
        starts: Starts,
        *,
        classes: int,
        per_class: bool = False,
        reinit: float = 0.05,
        storage: Storage = "float16",
        bounds: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        if per_class and size % classes:
            raise UserError(f"buffer_size: {size} chains do not divide into {classes} classes; give a multiple of it")
        if size < 1:
            raise UserError(f"buffer_size: expected at least one chain, got {size}")
        self._starts, self._classes, self._per_class = starts, classes, per_class
        self._reinit, self._storage, self._bounds = reinit, storage, bounds
        self._section = size // classes if per_class else size
        self.size = size
        self.renew()

    @torch.autocast("cpu", enabled=False)
    def renew(self) -> None:
        """Begin all chains anew."""
        parts = [self._stored(self._starts(labels)) for labels in self._first_classes().split(1000)]
        self._chains = torch.cat(parts)
        self._visits = torch.zeros(self.size, dtype=torch.int32)

    @torch.autocast("cpu", enabled=False)
    def draw(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Chains (n, …) for classes (n,), float32, each of them once, and where they came from (n,)."""
        if not self._per_class:
            where = self._some(len(labels))
        else:
            where = torch.empty_like(labels)
            for label in labels.unique():
                mine = labels == label
                where[mine] = self._some(int(mine.sum())) + label * self._section
        chains = self._loaded(self._chains[where])
        new = torch.rand(len(where)) < self._reinit
        if new.any():
            chains[new] = self._starts(labels[new]).to(chains)
            self._visits[where[new]] = 0
        return chains, where

    def put(self, where: Tensor, chains: Tensor) -> None:
        """Keep where the chains are now."""
        self._chains[where] = self._stored(chains)
        self._visits[where] += 1

    def kept(self, limit: int) -> Tensor:
        """At most so many chains, those that went on most often since they began, as uint8 of the whole range."""
        chosen = self._visits.argsort(descending=True, stable=True)[:limit]
        return _as_pixels(self._loaded(self._chains[chosen]), self._bounds)

    def state_dict(self) -> dict[str, Any]:
        return {"chains": self._chains.clone(), "visits": self._visits.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        chains = state["chains"]
        if chains.shape != self._chains.shape or chains.dtype != self._chains.dtype:
            raise UserError("the checkpoint has other chains: another buffer_size, storage or other images")
        self._chains, self._visits = chains.clone(), state["visits"].clone()

    def _first_classes(self) -> Tensor:
        numbers = torch.arange(self.size)
        return numbers // self._section if self._per_class else numbers % self._classes

    def _some(self, count: int) -> Tensor:
        if count > self._section:
            raise UserError(f"buffer_size: {count} chains were asked for at once, there are {self._section}; make more")
        return torch.randperm(self._section)[:count]

    def _stored(self, chains: Tensor) -> Tensor:
        chains = chains.detach().cpu()
        return _as_pixels(chains, self._bounds) if self._storage == "uint8" else chains.half()

    def _loaded(self, stored: Tensor) -> Tensor:
        if self._storage == "uint8":
            low, high = self._bounds
            return stored.float().mul_((high - low) / 255).add_(low)
        return stored.float()


class ClassGaussians:
    """Chains start at draws from a Gaussian with the mean and covariance of each class (arXiv 2109.09032, section 3.3).

    >>> starts = ClassGaussians(images, labels, classes=10, bounds=(-1, 1))
    >>> starts(torch.tensor([3, 3])).shape
    torch.Size([2, 1, 28, 28])

    A draw is the mean of up to 500 images of its class plus their deviations from it, each times N(0, 1/n): that has
    their covariance, and no matrix of pixels × pixels is ever made. As published, 10⁻⁴ is added to each variance.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        classes: int,
        bounds: tuple[float, float],
        prepare: Callable[[Tensor], Tensor] = Tensor.float,
    ) -> None:
        self._members = [torch.nonzero(labels == number).flatten()[:_MEMBERS] for number in range(classes)]
        empty = [number for number, members in enumerate(self._members) if len(members) == 0]
        if empty:
            raise UserError(f"no image has the label {empty[0]}, so that its chains cannot start there; label some")
        self._images, self._bounds, self._prepare = images, bounds, prepare

    def __call__(self, labels: Tensor) -> Tensor:
        """Starts (n, …) for classes (n,)."""
        shape = self._prepare(self._images[:1]).shape[1:]
        starts = torch.empty(len(labels), *shape)
        for label in labels.unique().tolist():
            mine = labels == label
            rows = self._prepare(self._images[self._members[label]]).flatten(1)
            mean = rows.mean(dim=0)
            share = torch.randn(int(mine.sum()), len(rows)) / len(rows) ** 0.5
            starts[mine] = torch.addmm(mean, share, rows - mean).unflatten(1, shape)
        return starts.add_(torch.randn_like(starts), alpha=_SPREAD).clamp_(*self._bounds)


class UniformStarts:
    """Chains start at noise that is uniform over the range of images."""

    def __init__(self, shape: tuple[int, ...], *, bounds: tuple[float, float]) -> None:
        self._shape, self._bounds = shape, bounds

    def __call__(self, labels: Tensor) -> Tensor:
        return torch.empty(len(labels), *self._shape).uniform_(*self._bounds)


_MEMBERS = 500
_SPREAD = 0.01


def _as_pixels(chains: Tensor, bounds: tuple[float, float]) -> Tensor:
    low, high = bounds
    return chains.sub(low).mul_(255 / (high - low)).round_().clamp_(0, 255).to(torch.uint8)
