"""Batched crops, flips and contrast, against a loop over single images."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from postgrad.data.augmentation import augmented_pictures, draw
from postgrad.data.preprocessing import Augmentation, Preprocessing, augment, views
from postgrad.errors import UserError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator(seed))


def one_at_a_time(
    images: torch.Tensor, preprocessing: Preprocessing, augmentation: Augmentation, draws: torch.Generator
) -> np.ndarray:
    """The same in plain numpy, image by image, with the draws taken in the same order."""
    count = len(images)
    pad = augmentation.pad
    padded = np.pad(images.numpy(), [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    height, width = [preprocessing.crop] * 2 if preprocessing.crop else images.shape[2:]
    tops = [round((padded.shape[2] - height) / 2)] * count
    lefts = [round((padded.shape[3] - width) / 2)] * count
    if augmentation.crop:
        tops = torch.randint(padded.shape[2] - height + 1, (count,), generator=draws).tolist()
        lefts = torch.randint(padded.shape[3] - width + 1, (count,), generator=draws).tolist()
    flips = (torch.rand(count, generator=draws) < 0.5).tolist() if augmentation.flip else [False] * count
    low, high = augmentation.contrast or (1, 1)
    factors = [1.0] * count
    if augmentation.contrast:
        factors = (low + (high - low) * torch.rand(count, generator=draws)).tolist()
    out = []
    for image, top, left, flip, factor in zip(padded, tops, lefts, flips, factors, strict=True):
        cut = image[:, top : top + height, left : left + width].astype(np.float64) / 255
        cut = cut[:, :, ::-1] if flip else cut
        means = cut.mean(axis=(1, 2), keepdims=True)
        cut = (cut - means) * factor + means
        if preprocessing.per_image_standardise:
            cut = (cut - cut.mean()) / max(cut.std(), 1 / np.sqrt(cut.size))
        elif augmentation.contrast:
            cut = cut.clip(0, 1)
        out.append(cut)
    return np.array(out)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 6),
    channels=st.sampled_from([1, 3]),
    height=st.integers(5, 12),
    width=st.integers(5, 12),
    crop_side=st.none() | st.integers(1, 5),
    pad=st.integers(0, 3),
    flip=st.booleans(),
    contrast=st.none() | st.just((0.2, 1.8)),
    standardise=st.booleans(),
    layout=st.sampled_from(["contiguous", "channels_last", "strided"]),
    seed=st.integers(0, 1000),
)
def test_equals_a_loop_over_images(
    count, channels, height, width, crop_side, pad, flip, contrast, standardise, layout, seed
) -> None:
    images = random_images(count, channels, height, width, seed)
    if layout == "channels_last":
        images = images.to(memory_format=torch.channels_last)
    elif layout == "strided":
        images = images.repeat_interleave(2, dim=3)[..., ::2]
    preprocessing = Preprocessing(crop=crop_side, per_image_standardise=standardise)
    augmentation = Augmentation(pad=pad, crop=True, flip=flip, contrast=contrast)
    ours = augment(images, preprocessing, augmentation, generator(seed))
    expected = one_at_a_time(images, preprocessing, augmentation, generator(seed))
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


def test_another_seed_gives_other_crops() -> None:
    images = random_images(8, 3, 12, 12)
    preprocessing, augmentation = Preprocessing(crop=6), Augmentation(crop=True)
    first, second, again = (augment(images, preprocessing, augmentation, generator(seed)) for seed in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_no_augmentation_is_the_preprocessing() -> None:
    images = random_images(5, 3, 12, 10)
    for preprocessing in (Preprocessing(size=8, crop=6), Preprocessing(per_image_standardise=True)):
        torch.testing.assert_close(
            augment(images, preprocessing, Augmentation(), generator()), preprocessing(images), atol=0, rtol=0
        )


def test_flip_alone_keeps_the_centre_crop() -> None:
    images = random_images(40, 3, 13, 12)
    preprocessing = Preprocessing(crop=6)
    plain, ours = preprocessing(images), augment(images, preprocessing, Augmentation(flip=True), generator())
    same = (ours == plain).flatten(1).all(1)
    mirrored = (ours == plain.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 8 < int(mirrored.sum()) < 32


def test_every_crop_and_flip_occurs_equally_often() -> None:
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    out = augment(
        image.expand(9000, -1, -1, -1), Preprocessing(crop=2), Augmentation(crop=True, flip=True), generator()
    )
    first = (out[:, 0, 0, 0] * 255).round().int()
    second = (out[:, 0, 0, 1] * 255).round().int()
    _, counts = torch.unique(torch.stack([first, second]), dim=1, return_counts=True)
    assert len(counts) == 18
    assert int(counts.min()) > 400
    assert int(counts.max()) < 600


def test_resized_images_are_cropped_from_the_resized() -> None:
    images = random_images(4, 3, 20, 30)
    resized = Preprocessing(size=10)(images)
    augmentation = Augmentation(crop=True, flip=True)
    ours = augment(images, Preprocessing(size=10, crop=8), augmentation, generator(3))
    torch.testing.assert_close(ours, augment(resized, Preprocessing(crop=8), augmentation, generator(3)))


def test_no_images_and_one_image() -> None:
    everything = Augmentation(pad=2, crop=True, flip=True, contrast=(0.2, 1.8))
    preprocessing = Preprocessing(crop=6, per_image_standardise=True)
    assert augment(random_images(0, 3, 8, 8), preprocessing, everything, generator()).shape == (0, 3, 6, 6)
    assert augment(random_images(1, 3, 8, 8), preprocessing, everything, generator()).shape == (1, 3, 6, 6)


def test_contrast_stays_in_the_range_that_a_fixed_mean_and_deviation_are_for() -> None:
    stripes = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    stripes[..., ::4] = 255  # a quarter is white: from its mean, contrast leads up to .6 beyond it
    augmentation = Augmentation(contrast=(1.5, 1.8))
    inputs = augment(stripes, Preprocessing(mean=(0.5,), std=(0.5,)), augmentation, generator())
    assert inputs.aminmax() == (-1, 1)
    uncut = augment(stripes, Preprocessing(per_image_standardise=True), augmentation, generator())
    torch.testing.assert_close(uncut, Preprocessing(per_image_standardise=True)(stripes))  # the cut would show there


def test_input_is_left_alone() -> None:
    for images in (random_images(3, 3, 8, 8), torch.rand(3, 3, 8, 8)):
        before = images.clone()
        augment(images, Preprocessing(), Augmentation(contrast=(0.2, 1.8)), generator())
        assert torch.equal(images, before)


def test_a_crop_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be cropped to 24"):
        augment(random_images(1, 3, 8, 8), Preprocessing(crop=24), Augmentation(crop=True), generator())


@pytest.mark.parametrize(
    ("settings_", "message"),
    [({"pad": 2}, "set crop too"), ({"contrast": (1.8, 0.2)}, "swap"), ({"pad": -1, "crop": True}, "greater than")],
)
def test_contradictory_settings_are_refused(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Augmentation.model_validate(settings_)


def test_views_begin_with_the_centre_and_are_all_different() -> None:
    images = random_images(3, 3, 32, 32)
    preprocessing = Preprocessing(crop=24, per_image_standardise=True)
    seen = list(views(images, preprocessing, 20, augmentation=Augmentation(crop=True, flip=True)))
    assert len(seen) == 20
    torch.testing.assert_close(seen[0], preprocessing(images), atol=0, rtol=0)
    torch.testing.assert_close(seen[1], preprocessing(images).flip(3))
    assert len({view.numpy().tobytes() for view in seen}) == 20
    again = views(images, preprocessing, 20, augmentation=Augmentation(crop=True, flip=True))
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))


def test_views_with_room_are_true_crops() -> None:
    images = random_images(1, 1, 32, 32)
    crops = images.unfold(2, 24, 1).unfold(3, 24, 1).reshape(-1, 24 * 24).float() / 255
    for view in views(images, Preprocessing(crop=24), 60, augmentation=Augmentation(crop=True)):
        assert bool((crops == view.reshape(1, -1)).all(1).any())


def test_views_without_room_shift_by_a_pixel_and_repeat_the_edge() -> None:
    images = random_images(2, 1, 8, 8)
    seen = list(views(images, Preprocessing(), 9, augmentation=Augmentation()))
    unit = np.pad(images.numpy() / 255.0, [(0, 0), (0, 0), (1, 1), (1, 1)], mode="edge")
    shifted = {unit[:, :, i : i + 8, j : j + 8].astype(np.float32).tobytes() for i in range(3) for j in range(3)}
    assert {view.numpy().tobytes() for view in seen} == shifted


def test_views_after_training_with_zero_padding_are_filled_with_zeros() -> None:
    images = random_images(2, 1, 8, 8).clamp(min=1)
    seen = list(views(images, Preprocessing(), 9, augmentation=Augmentation(pad=2, crop=True)))
    assert bool((seen[0] > 0).all())
    assert all(bool((view == 0).any()) for view in seen[1:])


@pytest.mark.parametrize("flip", [False, True])
def test_any_number_of_views(flip: bool) -> None:
    images = random_images(1, 1, 8, 8)
    seen = list(views(images, Preprocessing(), 150, augmentation=Augmentation(flip=flip)))
    assert len(seen) == 150
    assert all(view.shape == (1, 1, 8, 8) for view in seen)
    with pytest.raises(UserError, match="at least one"):
        list(views(images, Preprocessing(), 0, augmentation=Augmentation()))


def test_augmentation_is_not_done_image_by_image() -> None:
    """A loop over single images makes a few thousand a second; the batch makes tens of thousands."""
    images = random_images(4096, 3, 32, 32)
    preprocessing, augmentation = Preprocessing(crop=24, per_image_standardise=True), Augmentation(crop=True, flip=True)
    draws = generator()

    def seconds() -> float:
        start = time.process_time()
        for batch in images.split(128):
            augment(batch, preprocessing, augmentation, draws)
        return time.process_time() - start

    assert len(images) / min(seconds() for _ in range(3)) > 10_000


@settings(max_examples=60)
@given(
    height=st.integers(4, 9),
    width=st.integers(4, 9),
    size=st.sampled_from((None, 6)),
    crop=st.sampled_from((None, 3, 4)),
    pad=st.integers(0, 3),
    flip=st.booleans(),
    random=st.booleans(),
    contrast=st.sampled_from((None, (0.2, 1.8))),
    each=st.booleans(),
)
def test_the_centre_of_an_augmented_picture_is_what_augment_cuts(
    height: int,
    width: int,
    size: int | None,
    crop: int | None,
    pad: int,
    flip: bool,
    random: bool,
    contrast: Any,
    each: bool,
) -> None:
    images = random_images(5, 3, height, width)
    preprocessing = Preprocessing(size=size, crop=crop, per_image_standardise=each)
    augmentation = Augmentation(pad=pad if random else 0, crop=random, flip=flip, contrast=contrast)
    resized = preprocessing.resize(images)
    pictures = augmented_pictures(
        resized, preprocessing, augmentation, draw(resized, preprocessing, augmentation, generator(1))
    )
    assert pictures.shape == resized.shape
    expected = augment(images, preprocessing, augmentation, generator(1))
    inputs = preprocessing.standardise(preprocessing.centre_crop(pictures))
    if random or flip:
        assert torch.equal(inputs, expected)
    else:  # there `augment` sums the same pixels as they lie in the whole image
        torch.testing.assert_close(inputs, expected, rtol=1e-5, atol=1e-5)


def test_a_picture_is_the_image_shifted_with_zeros_of_the_padding_and_then_the_edge() -> None:
    images = torch.arange(1, 17, dtype=torch.uint8).view(1, 1, 4, 4)
    preprocessing, augmentation = Preprocessing(crop=2), Augmentation(pad=1, crop=True)
    draws = draw(images, preprocessing, augmentation, generator())
    corner = draws._replace(top=torch.tensor([0]), left=torch.tensor([4]))
    (picture,) = augmented_pictures(images, preprocessing, augmentation, corner)[0].tolist()
    # Two rows up and two columns right of the centre: one of padding, one more that repeats it.
    assert picture == [[0, 0, 0, 0], [0, 0, 0, 0], [3, 4, 0, 0], [7, 8, 0, 0]]
