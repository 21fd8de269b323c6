"""A classifier seen as an energy model: images drawn from it, and images refined before they are classified.

Source: W. Grathwohl et al., "Your classifier is secretly an energy based model", arXiv 1912.03263, sections 5.1, 5.4.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from postgrad.artifacts import read_tensors, save_tensors
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.methods._jem_presets import IMAGE_RANGE, PRESETS
from postgrad.methods._replay_buffer import ReplayBuffer
from postgrad.methods._sgld import Langevin, bare
from postgrad.methods.jem import log_density
from postgrad.models.network import NetworkClassifier

CHAINS, SAMPLER = "chains.safetensors", "sampler.json"
KEPT_CHAINS = 1000


@dataclass(frozen=True)
class Chains:
    """Where a training left its chains, uint8 (n, C, H, W), and how it moved them."""

    images: Tensor
    langevin: Langevin

    @classmethod
    def of(cls, buffer: ReplayBuffer, langevin: Langevin) -> Chains:
        """The chains of a buffer that went on longest, at most 1,000."""
        return cls(buffer.kept(KEPT_CHAINS), langevin)

    def save(self, directory: Path) -> None:
        """Write them beside a checkpoint."""
        save_tensors({"chains": self.images}, directory / CHAINS)
        write_atomic(directory / SAMPLER, json.dumps(asdict(self.langevin), indent=1))

    @classmethod
    def load(cls, directory: Path) -> Chains | None:
        """Read them from beside a checkpoint; None where there are none."""
        if not (directory / SAMPLER).is_file():
            return None
        settings = json.loads((directory / SAMPLER).read_text(encoding="utf-8"))
        bounds = settings.pop("bounds")
        langevin = Langevin(**settings, bounds=None if bounds is None else tuple(bounds))
        return cls(read_tensors(directory / CHAINS)["chains"], langevin)


def draw_images(
    classifier: NetworkClassifier,
    shape: tuple[int, ...],
    n: int,
    *,
    label: int | None = None,
    chains: Chains | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Draw n images from a classifier's density: pixels in [0, 1] (n, C, H, W), first at the start, then at each step.

    >>> *_, images = draw_images(classifier, (1, 28, 28), 64, label=3, chains=Chains.load(directory))

    Args:
        shape: (C, H, W) of what the network sees.
        label: draws from p(x | y) by climbing that logit; None draws from p(x).
        chains: where a training left its own: n of them go on; with a label those that the network takes for it most.
            Where there are none, chains begin at noise.
        steps: of each chain; default: five times those of the training.

    Raises `UserError` for a network that standardises each image, for which black and white are no fixed values.
    """
    langevin = PRESETS["jem"].chains if chains is None else chains.langevin
    langevin = replace(langevin, steps=steps or 5 * langevin.steps)
    seen = _sees(classifier.preprocess, classifier.device)
    generator = torch.Generator().manual_seed(seed)
    with bare(classifier.model, training=False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        labels = None if label is None else torch.full((n,), label, device=classifier.device)
        if chains is None or not len(chains.images):
            start = torch.empty(n, *shape).uniform_(*IMAGE_RANGE, generator=generator)
        else:
            start = _as_range(chains.images[_chosen(classifier, seen, chains.images, n, label, generator)])
        start = start.to(classifier.device)
        yield _as_pixels(start)
        density = log_density(lambda u: classifier.model(seen.of(u)), labels)
        for x in langevin.path(density, start):
            yield _as_pixels(x.detach())


class PurifyingClassifier(NetworkClassifier):
    """A classifier that refines each image before it classifies it: chains from the image climb log p(x).

    >>> PurifyingClassifier(network, preprocess=network.preprocess, steps=10).predict(images)

    Each step is a forward and a backward pass. Random numbers are the same at each call. Source: arXiv 1912.03263,
    section 5.4.1, where it is to undo attacks; only an attack that goes through the refinement can say whether it does.
    """

    def __init__(self, *args: Any, steps: int, langevin: Langevin = PRESETS["jem"].chains, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._langevin = replace(langevin, steps=steps)
        self._seen = _sees(self.preprocess, self.device)
        self.inference_passes = 1 + steps

    def inputs(self, images: Tensor) -> Tensor:
        """What the network sees of a batch of images: preprocessed and refined."""
        x = super().inputs(images)
        with bare(self.model, training=False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            refined = self._langevin(log_density(lambda u: self.model(self._seen.of(u))), self._seen.back(x))
        return self._seen.of(refined)


@dataclass(frozen=True)
class _Sees:
    """What a network sees of images from −1 to 1: x = u · scale + shift, per channel."""

    scale: Tensor
    shift: Tensor

    def of(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift

    def back(self, inputs: Tensor) -> Tensor:
        return (inputs - self.shift) / self.scale


def _sees(preprocess: Preprocessing, device: torch.device) -> _Sees:
    if preprocess.per_image_standardise:
        raise UserError(
            "this network standardises each image, so that black and white are no fixed values for it, and nothing can "
            "be drawn or refined; train one with --method jem"
        )
    mean = torch.tensor(preprocess.mean or (0.0,), device=device).view(1, -1, 1, 1)
    std = torch.tensor(preprocess.std or (1.0,), device=device).view(1, -1, 1, 1)
    return _Sees(0.5 / std, (0.5 - mean) / std)


def _chosen(
    classifier: NetworkClassifier,
    seen: _Sees,
    chains: Tensor,
    n: int,
    label: int | None,
    generator: torch.Generator,
) -> Tensor:
    """Which chains go on (n,): any, or those most probably of a class; some of them twice where there are too few."""
    if label is None:
        order = torch.randperm(len(chains), generator=generator)
    else:
        with torch.no_grad():
            parts = [_as_range(part).to(classifier.device) for part in chains.split(classifier.batch_size)]
            probabilities = torch.cat([classifier.model(seen.of(part)).softmax(1)[:, label].cpu() for part in parts])
        order = probabilities.argsort(descending=True)
    return order[torch.arange(n) % len(order)]


def _as_range(pixels: Tensor) -> Tensor:
    return pixels.float().div(127.5).sub(1)


def _as_pixels(images: Tensor) -> Tensor:
    """From −1 … 1 to 0 … 1, as a copy."""
    return images.add(1).div_(2).clamp_(0, 1).cpu()
