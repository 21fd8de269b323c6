"""Test images made worse in stated ways and amounts, and what a classifier keeps of its accuracy on them."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from postgrad.data.inputs import image_tensor
from postgrad.errors import UserError, unknown_name
from postgrad.evaluation.metrics import BINS, Outcomes, bin_of, outcomes, summarise
from postgrad.evaluation.resampling import Array
from postgrad.evaluation.scorecard import Card, with_intervals

_NUMBERS_AT_A_TIME = 2**22
_SIDE = 32
"""The side in pixels for which the sizes of blurs are given; larger images get a blur larger in proportion."""

Pixels = NDArray[np.float32]
"""Some images (n, C, H, W) in [0, 1]."""


@dataclass(frozen=True)
class Corruption:
    """A way to make images worse: a function of pixels, an amount and a generator, and the amount of each severity.

    `cumulative`: an image counts as kept where it is right at this severity and all below it.
    """

    change: Callable[[Pixels, float, Generator], Pixels]
    amounts: tuple[float, ...]
    cumulative: bool = False


def corrupt(images: Tensor, name: str, severity: int, *, seed: int = 0) -> Tensor:
    """Images (N, C, H, W) uint8 made worse, uint8 again; the same for the same seed.

    >>> corrupt(images, "gaussian-noise", 3).dtype
    torch.uint8
    """
    corruption = _known(name)
    if not 1 <= severity <= len(corruption.amounts):
        raise UserError(f"severity: {name} has 1 to {len(corruption.amounts)}, got {severity}")
    stored = image_tensor(images)
    if stored.dtype != torch.uint8:
        raise UserError(f"corruptions take uint8 images, got {stored.dtype}; give pixels from 0 to 255")
    generator = np.random.default_rng([seed, zlib.crc32(name.encode()), severity])
    amount = corruption.amounts[severity - 1]
    parts = (
        _changed(part, corruption, amount, generator)
        for part in stored.split(max(1, _NUMBERS_AT_A_TIME // stored[0].numel()))
    )
    return torch.cat(list(parts))


def corruption_names(word: str) -> list[str]:
    """The corruptions that one word asks for: `all`, `mapper-paper`, or names with commas between them.

    >>> corruption_names("jpeg,contrast")
    ['jpeg', 'contrast']
    """
    names: list[str] = []
    for part in word.split(","):
        part = part.strip()
        names += GROUPS.get(part, [part])
    for name in names:
        _known(name)
    return list(dict.fromkeys(names))


def measure_corruptions(
    classifier: Any, images: Tensor, labels: Any, names: Sequence[str], *, seed: int = 0
) -> list[dict[str, Any]]:
    """Accuracy, NLL, ECE and `kept` for each corruption and severity, as the `corruptions` entries of results.json.

    >>> measure_corruptions(classifier, images, labels, ["jpeg"])[0]["metrics"]["kept"]["mean"]
    0.93

    `kept` is the accuracy over that on the clean images; for the corruptions of the Mapper paper it is the share of the
    images right before that are still right at this severity and at all below it. It is absent for a classifier that
    gets no clean image right.
    """
    clean = outcomes(classifier.predict_proba(images), labels)
    return [entry for name in names for entry in _severities(classifier, images, labels, clean, name, seed)]


def corruption_means(scores: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The plain mean of each metric over the severities of each corruption, and under "all" over everything."""
    groups = {"all": list(scores)} | {
        name: [each for each in scores if each["corruption"] == name]
        for name in dict.fromkeys(each["corruption"] for each in scores)
    }
    return {
        name: {key: float(np.mean([each["metrics"][key]["mean"] for each in group])) for key in group[0]["metrics"]}
        for name, group in groups.items()
        if group
    }


def _severities(
    classifier: Any, images: Tensor, labels: Any, clean: Outcomes, name: str, seed: int
) -> Iterator[dict[str, Any]]:
    corruption, surviving = _known(name), clean.correct
    for severity in range(1, len(corruption.amounts) + 1):
        found = outcomes(classifier.predict_proba(corrupt(images, name, severity, seed=seed)), labels)
        surviving = surviving & found.correct if corruption.cumulative else found.correct
        yield {"corruption": name, "severity": severity, "metrics": _card(found, clean.correct, surviving)}


def _card(found: Outcomes, right_before: NDArray[np.bool_], kept: NDArray[np.bool_]) -> Card:
    whole = summarise(found)
    values = {name: whole[name] for name in ("accuracy", "nll", "ece")}
    if right_before.any():
        values["kept"] = float(kept.sum() / right_before.sum())
    columns = np.column_stack([found.correct, found.loss, right_before, kept]).astype(np.float64)
    gap = found.correct - found.confidence
    in_bins = np.eye(BINS)[bin_of(found.confidence, BINS)] * gap[:, None]

    def statistic(counts: Array) -> dict[str, Array]:
        total = counts.sum(axis=1)
        correct, loss, before, after = (counts @ columns).T
        drawn = {"accuracy": correct / total, "nll": loss / total, "ece": np.abs(counts @ in_bins).sum(axis=1) / total}
        if "kept" in values:
            drawn["kept"] = np.divide(after, before, out=np.full_like(after, np.nan), where=before > 0)
        return drawn

    return with_intervals(values, statistic, len(found))


def _known(name: str) -> Corruption:
    if name not in CORRUPTIONS:
        raise unknown_name("corruption", name, [*CORRUPTIONS, *GROUPS])
    return CORRUPTIONS[name]


def _changed(images: Tensor, corruption: Corruption, amount: float, generator: Generator) -> Tensor:
    pixels = images.numpy().astype(np.float32) / np.float32(255)
    changed = corruption.change(pixels, amount, generator)
    return torch.from_numpy(np.rint(np.clip(changed, 0, 1) * 255).astype(np.uint8))


def _gaussian_noise(pixels: Pixels, deviation: float, generator: Generator) -> Pixels:
    return pixels + np.float32(deviation) * generator.standard_normal(pixels.shape, dtype=np.float32)


def _gaussian_blur(pixels: Pixels, sigma: float, generator: Generator) -> Pixels:
    wide = sigma * max(1.0, min(pixels.shape[2:]) / _SIDE)
    return ndimage.gaussian_filter(pixels, sigma=(0, 0, wide, wide), mode="nearest")


def _salt_and_pepper(pixels: Pixels, share: float, generator: Generator) -> Pixels:
    return _flipped(pixels, share, generator, np.float32(0), np.float32(1))


def _contrast(pixels: Pixels, factor: float, generator: Generator) -> Pixels:
    mean = pixels.mean(axis=(2, 3), keepdims=True)
    return (pixels - mean) * np.float32(factor) + mean


def _brightness(pixels: Pixels, added: float, generator: Generator) -> Pixels:
    """Add to the value of hue, saturation and value: each pixel is scaled as its largest channel is."""
    value = pixels.max(axis=1, keepdims=True)
    wanted = np.minimum(value + np.float32(added), 1)
    return np.where(value > 0, pixels * (wanted / np.maximum(value, np.float32(1e-6))), wanted)


def _translation(pixels: Pixels, share: float, generator: Generator) -> Pixels:
    """Shift each image in a direction of its own; edge pixels fill what becomes free."""
    height, width = pixels.shape[2:]
    angles = torch.from_numpy(generator.uniform(0, 2 * math.pi, len(pixels)).astype(np.float32))
    distance = 2 * share * min(height, width)  # in grid_sample's units an image is 2 wide and 2 high
    moves = torch.zeros(len(pixels), 2, 3)
    moves[:, 0, 0], moves[:, 1, 1] = 1, 1
    moves[:, 0, 2], moves[:, 1, 2] = -distance / width * angles.cos(), -distance / height * angles.sin()
    grid = F.affine_grid(moves, list(pixels.shape), align_corners=False)
    return F.grid_sample(torch.from_numpy(pixels), grid, padding_mode="border", align_corners=False).numpy()


def _jpeg(pixels: Pixels, quality: float, generator: Generator) -> Pixels:
    if pixels.shape[1] not in (1, 3):
        raise UserError(f"jpeg: takes grey or RGB images, these have {pixels.shape[1]} channels; leave jpeg out")
    stored = np.rint(pixels * 255).astype(np.uint8).transpose(0, 2, 3, 1).squeeze(-1 if pixels.shape[1] == 1 else ())
    back = np.stack([_through_jpeg(each, int(quality)) for each in stored]).reshape(len(pixels), *pixels.shape[2:], -1)
    return back.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)


def _through_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


# The authors of the Mapper paper cut their noise off at the darkest and the brightest pixel of each image.


def _mapper_gaussian_noise(pixels: Pixels, level: float, generator: Generator) -> Pixels:
    noisy = _gaussian_noise(pixels, 0.1 * math.sqrt(level), generator)
    return np.clip(noisy, *_ends(pixels))


def _mapper_blur(pixels: Pixels, level: float, generator: Generator) -> Pixels:
    sigma = 0.01 * level * pixels.shape[2]
    return np.clip(ndimage.gaussian_filter(pixels, sigma=(0, 0, sigma, sigma), mode="reflect"), *_ends(pixels))


def _mapper_salt_and_pepper(pixels: Pixels, level: float, generator: Generator) -> Pixels:
    return _flipped(pixels, 0.01 * level, generator, *_ends(pixels))


def _ends(pixels: Pixels) -> tuple[Pixels, Pixels]:
    return pixels.min(axis=(1, 2, 3), keepdims=True), pixels.max(axis=(1, 2, 3), keepdims=True)


def _flipped(pixels: Pixels, share: float, generator: Generator, low: Any, high: Any) -> Pixels:
    """A share of all pixels (of each channel alone) made the lowest or the highest value, half of them each."""
    drawn = generator.random(pixels.shape, dtype=np.float32)
    return np.where(drawn < share / 2, low, np.where(drawn < share, high, pixels))


_LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)

CORRUPTIONS = {
    "gaussian-noise": Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "gaussian-blur": Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "salt-and-pepper": Corruption(_salt_and_pepper, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "contrast": Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": Corruption(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "translation": Corruption(_translation, (0.04, 0.08, 0.12, 0.16, 0.20)),
    "jpeg": Corruption(_jpeg, (80, 65, 58, 50, 40)),
    "mapper-gaussian-noise": Corruption(_mapper_gaussian_noise, _LEVELS, cumulative=True),
    "mapper-blur": Corruption(_mapper_blur, _LEVELS, cumulative=True),
    "mapper-salt-and-pepper": Corruption(_mapper_salt_and_pepper, _LEVELS, cumulative=True),
}
"""Name -> what it does, and how much at each severity.

All but translation and those of the Mapper paper are of Hendrycks and Dietterich, "Benchmarking neural network
robustness to common corruptions and perturbations", 2019, in the sizes of their CIFAR-10-C.
"""

GROUPS = {
    "all": [name for name in CORRUPTIONS if not name.startswith("mapper-")],
    "mapper-paper": [name for name in CORRUPTIONS if name.startswith("mapper-")],
}
"""A word for several corruptions. `mapper-paper` is the protocol of arXiv 1910.08103, from its authors' code."""
