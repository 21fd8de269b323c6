"""Corruptions against scipy, matplotlib and statistics of noise; what is kept against counts by hand."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from scipy import ndimage

from postgrad.data.datasets import Dataset
from postgrad.errors import UserError
from postgrad.evaluation.corruptions import (
    CORRUPTIONS,
    GROUPS,
    corrupt,
    corruption_means,
    corruption_names,
    measure_corruptions,
)
from postgrad.evaluation.resampling import RESAMPLES
from postgrad.models.network import NetworkClassifier


def smooth(n: int = 20, channels: int = 3, side: int = 32) -> torch.Tensor:
    """Soft random pictures, away from black and white."""
    noise = np.random.default_rng(0).random((n, channels, side, side))
    soft = ndimage.gaussian_filter(noise, (0, 0, 2, 2), mode="nearest")
    return torch.from_numpy(np.rint(60 + 130 * (soft - soft.min()) / np.ptp(soft)).astype(np.uint8))


def change(name: str, severity: int, images: torch.Tensor) -> float:
    return float((corrupt(images, name, severity).double() - images.double()).square().mean())


@given(
    name=st.sampled_from(list(CORRUPTIONS)),
    n=st.integers(1, 3),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_any_image_stays_an_image(name: str, n: int, channels: int, height: int, width: int) -> None:
    images = torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8)
    before = images.clone()
    worse = corrupt(images, name, len(CORRUPTIONS[name].amounts))
    assert (worse.dtype, worse.shape) == (torch.uint8, images.shape)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_does_harm_and_seeds_repeat(name: str) -> None:
    images = smooth()
    changes = [change(name, severity, images) for severity in range(1, len(CORRUPTIONS[name].amounts) + 1)]
    assert changes[0] < changes[-1]
    assert changes == sorted(changes)
    assert torch.equal(corrupt(images, name, 2), corrupt(images, name, 2))
    drawn = {"gaussian-noise", "salt-and-pepper", "translation", "mapper-gaussian-noise", "mapper-salt-and-pepper"}
    assert torch.equal(corrupt(images, name, 5, seed=1), corrupt(images, name, 5)) == (name not in drawn)


def test_gaussian_noise_has_its_deviation() -> None:
    images = torch.full((40, 1, 32, 32), 128, dtype=torch.uint8)
    assert corrupt(images, "gaussian-noise", 5).double().std() == pytest.approx(0.1 * 255, rel=0.02)
    assert corrupt(images, "gaussian-noise", 1).double().mean() == pytest.approx(128, abs=0.2)


def test_salt_and_pepper_flips_its_share() -> None:
    worse = corrupt(torch.full((40, 3, 32, 32), 128, dtype=torch.uint8), "salt-and-pepper", 5)
    for value in (0, 255):
        assert (worse == value).double().mean() == pytest.approx(0.035, rel=0.05)
    assert ((worse == 0) | (worse == 128) | (worse == 255)).all()


def test_blur_is_scipys_and_grows_with_the_image() -> None:
    for side, sigma in ((32, 1.0), (64, 2.0), (8, 1.0)):
        images = smooth(2, 3, side)
        expected = [
            [ndimage.gaussian_filter(c.astype(float), sigma, mode="nearest") for c in i] for i in images.numpy()
        ]
        assert np.abs(corrupt(images, "gaussian-blur", 5).numpy() - np.array(expected)).max() <= 0.51


def test_contrast_shrinks_the_deviation_and_keeps_the_mean() -> None:
    images = smooth()
    worse = corrupt(images, "contrast", 3).double()
    assert worse.std(dim=(2, 3)) == pytest.approx(0.4 * images.double().std(dim=(2, 3)).numpy(), rel=0.05)
    assert worse.mean(dim=(2, 3)) == pytest.approx(images.double().mean(dim=(2, 3)).numpy(), abs=0.5)


def test_brightness_is_the_value_of_hsv() -> None:
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[0, :, 0, 0] = 0
    hsv = rgb_to_hsv(images.permute(0, 2, 3, 1).numpy() / 255)
    hsv[..., 2] = np.clip(hsv[..., 2] + 0.3, 0, 1)
    expected = 255 * hsv_to_rgb(hsv).transpose(0, 3, 1, 2)
    assert np.abs(corrupt(images, "brightness", 5).numpy() - expected).max() <= 0.51


def test_translation_is_a_shift_by_the_stated_distance() -> None:
    images = torch.zeros(50, 1, 32, 32)
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    images[:, 0] = 250 * torch.exp(-((rows - 16) ** 2 + (columns - 16) ** 2) / 20)
    worse = corrupt(images.round().to(torch.uint8), "translation", 5).double()[:, 0]
    mass = worse.sum((1, 2))
    moved = torch.stack([(worse * rows).sum((1, 2)) / mass - 16, (worse * columns).sum((1, 2)) / mass - 16])
    assert moved.norm(dim=0) == pytest.approx(np.full(50, 0.2 * 32), abs=0.1)
    angles = torch.atan2(*moved)
    assert -1 < angles.mean() < 1
    assert angles.std() > 1


def test_jpeg_gets_worse_with_less_quality_and_refuses_other_channels() -> None:
    assert change("jpeg", 1, smooth()) < change("jpeg", 5, smooth()) < 100
    with pytest.raises(UserError, match="2 channels"):
        corrupt(smooth(2, 2), "jpeg", 1)


def test_the_noise_of_the_mapper_paper() -> None:
    images = torch.full((40, 1, 28, 28), 128, dtype=torch.uint8)
    images[:, :, 0, 0], images[:, :, 0, 1] = 0, 255
    noisy = corrupt(images, "mapper-gaussian-noise", 4).double()
    kept_in_range = np.clip(np.random.default_rng(0).normal(128 / 255, 0.2, 10**6), 0, 1).std() * 255
    assert noisy.std() == pytest.approx(kept_in_range, rel=0.03)
    flipped = corrupt(images, "mapper-salt-and-pepper", 6)
    assert (flipped == 0).double().mean() == pytest.approx(0.03, abs=0.004)
    picture = smooth(1, 1, 28)
    blurred = ndimage.gaussian_filter(picture[0, 0].numpy().astype(float), 0.06 * 28)
    assert np.abs(corrupt(picture, "mapper-blur", 6)[0, 0].numpy() - blurred).max() <= 0.51
    narrow = corrupt(picture, "mapper-gaussian-noise", 6)
    assert (narrow.min(), narrow.max()) == (picture.min(), picture.max())


class ByBrightness:
    """Calls an image 1 if its first pixel is above the middle."""

    def predict_proba(self, images: torch.Tensor) -> np.ndarray:
        bright = (images[:, 0, 0, 0] > 127).double().numpy()
        return np.column_stack([0.9 - 0.8 * bright, 0.1 + 0.8 * bright])


def test_what_is_kept_by_hand() -> None:
    images = torch.full((400, 1, 2, 2), 112, dtype=torch.uint8)
    labels = np.zeros(400, int)
    labels[:100] = 1  # wrong from the start
    scores = measure_corruptions(ByBrightness(), images, labels, ["gaussian-noise", "mapper-gaussian-noise"])
    plain, paper = scores[:5], scores[5:]
    for severity, entry in enumerate(plain, start=1):
        called_1 = (corrupt(images, "gaussian-noise", severity)[:, 0, 0, 0] > 127).numpy()
        accuracy = float((called_1 == labels).mean())
        assert entry["metrics"]["accuracy"]["mean"] == accuracy
        assert entry["metrics"]["kept"]["mean"] == pytest.approx(accuracy / 0.75)
        low, high = entry["metrics"]["kept"]["ci95"]
        assert low <= accuracy / 0.75 <= high
    right = labels == 0
    for severity, entry in enumerate(paper, start=1):
        images_worse = corrupt(images, "mapper-gaussian-noise", severity)
        right = right & ((images_worse[:, 0, 0, 0] > 127).numpy() == labels)
        assert entry["metrics"]["kept"]["mean"] == pytest.approx(right.sum() / 300)
    assert len(paper) == 6


def test_the_interval_of_kept_is_that_of_a_ratio() -> None:
    images, labels = torch.full((100, 1, 2, 2), 112, dtype=torch.uint8), np.repeat([0, 1], [70, 30])
    entry = measure_corruptions(ByBrightness(), images, labels, ["gaussian-noise"])[4]
    after = (corrupt(images, "gaussian-noise", 5)[:, 0, 0, 0] > 127).numpy() == labels
    generator = np.random.default_rng(0)
    drawn = [generator.integers(0, 100, 100) for _ in range(RESAMPLES)]
    ratios = [after[i].mean() / (labels[i] == 0).mean() for i in drawn]
    assert entry["metrics"]["kept"]["ci95"] == pytest.approx(list(np.percentile(ratios, [2.5, 97.5])))


def test_nothing_right_before_leaves_no_share_to_keep() -> None:
    images = torch.zeros(5, 1, 2, 2, dtype=torch.uint8)
    scores = measure_corruptions(ByBrightness(), images, np.ones(5, int), ["jpeg"])
    assert all(set(entry["metrics"]) == {"accuracy", "nll", "ece"} for entry in scores)


def test_means_and_names(classifier: NetworkClassifier, digits: Dataset) -> None:
    assert digits.test is not None
    scores = measure_corruptions(classifier, digits.test.images, digits.test.labels, ["jpeg", "contrast"])
    means = corruption_means(scores)
    assert list(means) == ["all", "jpeg", "contrast"]
    accuracies = [entry["metrics"]["accuracy"]["mean"] for entry in scores]
    assert means["all"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert means["jpeg"]["accuracy"] == pytest.approx(np.mean(accuracies[:5]))
    assert corruption_names("all") == GROUPS["all"] == list(CORRUPTIONS)[:7]
    assert corruption_names("jpeg, mapper-paper,jpeg") == ["jpeg", *GROUPS["mapper-paper"]]
    with pytest.raises(UserError, match="did you mean 'jpeg'"):
        corruption_names("all,jpg")


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match="1 to 5, got 6"):
        corrupt(smooth(1), "jpeg", 6)
    with pytest.raises(UserError, match="uint8"):
        corrupt(smooth(1).float(), "jpeg", 1)


@pytest.mark.slow
def test_ten_thousand_photographs_take_seconds() -> None:
    images = torch.randint(0, 256, (10_000, 3, 32, 32), dtype=torch.uint8)
    for name in CORRUPTIONS:
        began = time.process_time()
        corrupt(images, name, 3)
        assert time.process_time() - began < 20, name
    assert math.isfinite(change("jpeg", 1, images[:10]))
