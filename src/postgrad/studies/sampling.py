"""Images drawn from a classifier seen as an energy model, as pictures: what `postgrad sample` does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from postgrad.controls.features import last_layer, penultimate
from postgrad.data.datasets import Images
from postgrad.errors import UserError
from postgrad.evaluation.frechet import frechet_distance
from postgrad.files import atomic_path
from postgrad.methods.energy_samples import Chains, draw_images
from postgrad.methods.jem import energy
from postgrad.models.network import NetworkClassifier
from postgrad.models.source import source_of

_STRIP_ROWS, _STRIP_COLUMNS = 8, 10
_COMPARED, _NEAREST = 16, 3
_FRAMES, _FRAME_MS = 40, 80
_BATCH = 250
_SIDE = 48
"""Small images are enlarged to about so many pixels."""


@dataclass(frozen=True)
class Drawn:
    """What came of it: the samples (n, C, H, W) in [0, 1], the files, and figures for whoever reads no pictures."""

    samples: Tensor
    files: list[str]
    figures: dict[str, Any]


def write_samples(
    classifier: NetworkClassifier,
    directory: Path,
    n: int,
    *,
    label: int | None = None,
    chains: Chains | None = None,
    steps: int | None = None,
    seed: int = 0,
    training: Images | None = None,
    test: Images | None = None,
    features: NetworkClassifier | None = None,
) -> Drawn:
    """Draw n images and write samples.png, chains.png, chains.gif and, beside `training` images, nearest.png.

    >>> write_samples(classifier, Path("runs/samples"), 64, label=3, chains=Chains.load(run)).files
    ['samples.png', 'chains.png', 'chains.gif']

    samples.png : all of them. chains.png : eight chains that begin at noise, a column for every so many steps.
    chains.gif : sixteen of those, moving. nearest.png : sixteen samples, each with the training images that it is
    nearest to (Euclidean, as the network sees them): a sample that is one of them was learnt by heart. With `features`,
    a network of one's own, its penultimate activations say how far samples are from `test` images, and for comparison
    how far as many training images are.
    """
    settings: dict[str, Any] = {"label": label, "steps": steps, "seed": seed}
    shape = seen_shape(classifier, chains)
    *_, samples = draw_images(classifier, shape, n, chains=chains, **settings)
    from_noise = None if chains is None else Chains(chains.images[:0], chains.langevin)
    if not samples.isfinite().all():
        raise UserError("the chains ran away; take fewer steps, or a network that was trained with --method jem")
    path = torch.stack(list(draw_images(classifier, shape, _COMPARED, chains=from_noise, **settings)))
    chosen = torch.linspace(0, len(path) - 1, min(_STRIP_COLUMNS, len(path))).long()
    strip = path[chosen, :_STRIP_ROWS].transpose(0, 1).flatten(0, 1)
    moving = [grid(frame, 4) for frame in path[torch.linspace(0, len(path) - 1, min(_FRAMES, len(path))).long()]]
    write_picture(directory / "samples.png", grid(samples, math.ceil(math.sqrt(n))))
    write_picture(directory / "chains.png", grid(strip, len(chosen)))
    write_animation(directory / "chains.gif", moving)
    files = ["samples.png", "chains.png", "chains.gif"]
    figures = _figures(classifier, samples, label) | {"steps": len(path) - 1, "from_training": chains is not None}
    if training is not None:
        known = _pixels(classifier, training.images)
        distances, where = _nearest(samples, known)
        beside = torch.cat([samples[:_COMPARED, None], known[where[:_COMPARED]]], dim=1)
        write_picture(directory / "nearest.png", grid(beside.flatten(0, 1), beside.shape[1] * 2))
        files.append("nearest.png")
        figures["distance_to_nearest"] = float(distances[:, 0].mean())
        if features is not None and test is not None:
            sets = (samples, known[: len(samples)], _pixels(classifier, test.images))
            ours, theirs, reference = (_features(features, images) for images in sets)
            figures["frechet_distance"] = frechet_distance(ours, reference)
            figures["frechet_distance_of_training"] = frechet_distance(theirs, reference)
    return Drawn(samples, files, figures)


def seen_shape(classifier: NetworkClassifier, chains: Chains | None) -> tuple[int, ...]:
    """(C, H, W) of what the network sees."""
    if chains is not None:
        return tuple(chains.images.shape[1:])
    source = source_of(classifier.model)
    if source is None:
        raise UserError("this network does not say what images it takes; train one with --method jem")
    stored = torch.zeros(1, source.in_channels, *source.image_size, dtype=torch.uint8)
    return tuple(classifier.inputs(stored).shape[1:])


def grid(images: Tensor, columns: int) -> np.ndarray:
    """Images (n, C, H, W) in [0, 1] as one picture (h, w, 3), uint8, row by row, with a line between them."""
    n, channels, height, width = images.shape
    scale = max(1, round(_SIDE / max(height, width)))
    pixels = images.mul(255).round().to(torch.uint8)
    pixels = pixels.expand(n, 3, height, width) if channels == 1 else pixels[:, :3]
    pixels = pixels.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    rows, (h, w) = math.ceil(n / columns), pixels.shape[2:]
    picture = torch.full((rows * (h + 1) - 1, columns * (w + 1) - 1, 3), 128, dtype=torch.uint8)
    for number, each in enumerate(pixels):
        top, left = number // columns * (h + 1), number % columns * (w + 1)
        picture[top : top + h, left : left + w] = each.permute(1, 2, 0)
    return picture.numpy()


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write one picture (h, w, 3) as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def write_animation(path: Path, frames: list[np.ndarray]) -> None:
    """Write pictures (h, w, 3) as a GIF that begins again at its end."""
    first, *rest = [Image.fromarray(frame) for frame in frames]
    with atomic_path(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=rest, duration=_FRAME_MS, loop=0)


def _figures(classifier: NetworkClassifier, samples: Tensor, label: int | None) -> dict[str, Any]:
    mean = torch.tensor(classifier.preprocess.mean or (0.0,)).view(1, -1, 1, 1)
    std = torch.tensor(classifier.preprocess.std or (1.0,)).view(1, -1, 1, 1)
    with torch.no_grad():
        logits = classifier.model(((samples - mean) / std).to(classifier.device)).cpu()
    share = {} if label is None else {"taken_for_class": float((logits.argmax(1) == label).float().mean())}
    return {"mean_energy": float(energy(logits).mean()), **share}


def _pixels(classifier: NetworkClassifier, images: Tensor) -> Tensor:
    """Training images as the network sees them, but in [0, 1]."""
    cut = classifier.preprocess.centre_crop(classifier.preprocess.resize(images))
    return cut.float() / 255 if cut.dtype == torch.uint8 else cut


def _features(network: NetworkClassifier, images: Tensor) -> np.ndarray:
    """What goes into the last layer of a network that is shown images (n, C, H, W) in [0, 1]: (n, d)."""
    stored = images.mul(255).round().to(torch.uint8)
    try:
        layer = last_layer(network.model, network.inputs(stored[:2]))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--features: the network does not take images of shape {tuple(images.shape[1:])}") from error
    parts = [penultimate(network.model, layer, network.inputs(part)) for part in stored.split(_BATCH)]
    return torch.cat(parts).cpu().numpy()


def _nearest(samples: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Of each sample the distances to the nearest known images (n, 3), and which these are."""
    distances = torch.cdist(samples.flatten(1), known.flatten(1))
    return distances.topk(min(_NEAREST, len(known)), dim=1, largest=False)
