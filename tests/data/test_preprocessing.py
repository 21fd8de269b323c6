"""Resizing, cropping and standardisation, against torchvision, PIL and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from postgrad._compat import prepare_torchvision
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError

prepare_torchvision()
from torchvision.transforms import v2  # noqa: E402 (needs the line above)

SIZES = st.integers(1, 40)


def random_images(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def test_nothing_set_gives_pixels_from_0_to_1() -> None:
    images = random_images(3, 3, 5, 7)
    expected = images.numpy().astype(np.float64) / 255
    assert Preprocessing()(images).dtype == torch.float32
    np.testing.assert_allclose(Preprocessing()(images).numpy(), expected, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(height=SIZES, width=SIZES, size=SIZES, channels=st.sampled_from([1, 3]))
def test_resize_is_torchvisions(height: int, width: int, size: int, channels: int) -> None:
    images = random_images(2, channels, height, width)
    expected = v2.functional.resize(images.float() / 255, [size], antialias=True)
    torch.testing.assert_close(Preprocessing(size=size)(images), expected, atol=1e-6, rtol=0)


def test_resize_is_near_pils() -> None:
    images = random_images(1, 3, 40, 60)
    pil = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((30, 20), Image.Resampling.BILINEAR)
    ours = Preprocessing(size=20)(images)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(ours - np.asarray(pil)).max() <= 1.01, "PIL rounds to whole numbers after each of two passes"


def test_resize_without_antialiasing_would_differ() -> None:
    images = random_images(1, 3, 40, 60)
    plain = torch.nn.functional.interpolate(images.float() / 255, size=(20, 30), mode="bilinear", align_corners=False)
    assert (Preprocessing(size=20)(images) - plain).abs().max() > 0.1


@settings(max_examples=60, deadline=None)
@given(height=SIZES, width=SIZES, crop=SIZES)
def test_centre_crop_is_torchvisions(height: int, width: int, crop: int) -> None:
    images = random_images(2, 1, height, width)
    if crop > min(height, width):
        with pytest.raises(UserError, match="cannot be cropped"):
            Preprocessing(crop=crop)(images)
        return
    expected = v2.functional.center_crop(images, [crop, crop]).float() / 255
    torch.testing.assert_close(Preprocessing(crop=crop)(images), expected)


def test_resize_comes_before_the_crop() -> None:
    images = random_images(2, 3, 50, 40)
    expected = v2.functional.center_crop(v2.functional.resize(images.float() / 255, [32], antialias=True), [24, 24])
    torch.testing.assert_close(Preprocessing(size=32, crop=24)(images), expected, atol=1e-6, rtol=0)


def test_mean_and_std_per_channel() -> None:
    images = random_images(4, 3, 8, 8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (images.numpy() / 255.0 - mean[:, None, None]) / std[:, None, None]
    ours = Preprocessing(mean=tuple(mean), std=tuple(std))(images)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


def test_one_mean_serves_all_channels() -> None:
    images = random_images(4, 3, 8, 8)
    one, three = Preprocessing(mean=(0.5,), std=(0.25,)), Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3)
    torch.testing.assert_close(one(images), three(images))


def per_image(images: np.ndarray) -> np.ndarray:
    """The seed's rule, one image at a time."""
    out = []
    for image in images.astype(np.float64) / 255:
        out.append((image - image.mean()) / max(image.std(), 1 / np.sqrt(image.size)))
    return np.stack(out)


def test_each_image_is_standardised_by_its_population_deviation() -> None:
    images = random_images(6, 3, 9, 9)
    images[1] = 77  # constant: the floor of the deviation counts
    images[2, 0, 0, 0], images[2, :, 1:] = 3, 2  # nearly constant
    ours = Preprocessing(per_image_standardise=True)(images).numpy()
    np.testing.assert_allclose(ours, per_image(images.numpy()), atol=2e-6)
    assert np.all(ours[1] == 0)


def test_the_sample_deviation_would_differ() -> None:
    images = random_images(2, 1, 4, 4)
    ours = Preprocessing(per_image_standardise=True)(images)
    pixels = images.float() / 255
    std, mean = torch.std_mean(pixels, dim=(1, 2, 3), correction=1, keepdim=True)
    assert (ours - (pixels - mean) / std).abs().max() > 1e-3


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 3), channels=st.integers(1, 4), side=st.integers(6, 12), standardise=st.booleans())
def test_any_number_of_images_any_memory_layout(count: int, channels: int, side: int, standardise: bool) -> None:
    preprocess = Preprocessing(size=6, crop=5, per_image_standardise=standardise)
    images = random_images(count, channels, side, side + 1)
    expected = preprocess(images)
    assert expected.shape == (count, channels, 5, 5)
    torch.testing.assert_close(preprocess(images.to(memory_format=torch.channels_last)), expected)
    strided = torch.zeros(count, channels, side, 2 * (side + 1), dtype=torch.uint8)[..., ::2]
    strided.copy_(images)
    torch.testing.assert_close(preprocess(strided), expected)
    one_by_one = [preprocess(images[i : i + 1]) for i in range(count)]
    if one_by_one:
        torch.testing.assert_close(torch.cat(one_by_one), expected)


def test_a_gradient_goes_through_without_a_warning() -> None:
    images = torch.rand(2, 3, 6, 6, requires_grad=True)
    Preprocessing(crop=4, mean=(0.5,), std=(0.25,))(images).sum().backward()
    expected = torch.zeros(2, 3, 6, 6)
    expected[:, :, 1:5, 1:5] = 4
    assert images.grad is not None
    assert torch.equal(images.grad, expected)


def test_input_is_left_alone() -> None:
    for images in (random_images(2, 3, 8, 8), torch.rand(2, 3, 8, 8)):
        before = images.clone()
        for preprocess in (
            Preprocessing(),
            Preprocessing(per_image_standardise=True),
            Preprocessing(mean=(0.5,), std=(0.5,)),
        ):
            preprocess(images).add_(1) if images.dtype == torch.uint8 else preprocess(images)
            assert torch.equal(images, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_floating_point_images_count_as_unit_pixels(dtype: torch.dtype) -> None:
    images = random_images(2, 3, 8, 8)
    preprocess = Preprocessing(crop=6, mean=(0.5,), std=(0.5,))
    out = preprocess((images.double() / 255).to(dtype))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, preprocess(images), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "four axes"),
        (torch.zeros(2, 3, 0, 8, dtype=torch.uint8), "at least one channel"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "expected uint8"),
        (torch.full((2, 3, 8, 8), 255.0), "from 0 to 1|0 to 1"),
        (torch.full((2, 3, 8, 8), torch.nan), "0 to 1"),
        (torch.zeros(2, 2, 8, 8, dtype=torch.uint8), "2 channels"),
    ],
)
def test_unusable_images_are_refused(images: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3)(images)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"mean": (0.5,)}, "belong together"),
        ({"mean": (0.5,), "std": (0.5, 0.5)}, "one for each channel"),
        ({"mean": (), "std": ()}, "one for each channel"),
        ({"mean": (0.5,), "std": (0.0,)}, "greater than 0"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "finite"),
        ({"mean": (0.5,), "std": (0.5,), "per_image_standardise": True}, "one of the two"),
        ({"size": 20, "crop": 24}, "does not fit"),
        ({"size": 0}, "greater than 0"),
        ({"sise": 24}, "Extra inputs"),
    ],
)
def test_contradictory_settings_are_refused(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Preprocessing.model_validate(settings_)


def test_describe_is_one_line_and_names_what_is_done() -> None:
    assert Preprocessing().describe() == "pixels from 0 to 1"
    text = Preprocessing(size=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).describe()
    assert text == (
        "shorter side resized to 256, centre crop to 224×224, "
        "standardised with mean (0.485, 0.456, 0.406) and deviation (0.229, 0.224, 0.225)"
    )


def test_survives_json() -> None:
    preprocess = Preprocessing(size=32, crop=24, mean=(0.5,), std=(0.25,))
    assert Preprocessing.model_validate_json(preprocess.model_dump_json()) == preprocess
