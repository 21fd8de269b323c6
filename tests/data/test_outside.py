"""Outside images: right form, right number, the same each time, and honestly described."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from postgrad.data.containers import Images
from postgrad.data.outside import MADE, matched, outside_images
from postgrad.errors import UserError


def photographs(n: int = 40, classes: int = 3) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, 12, 16), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(n) % classes)


@pytest.mark.parametrize("name", MADE)
def test_made_images_have_the_form_of_the_test_images_and_repeat(name: str) -> None:
    like = photographs()
    first, again = (outside_images(name, like=like, seed=3) for _ in range(2))
    assert first.images.shape == like.images.shape
    assert first.images.dtype == torch.uint8
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, outside_images(name, like=like, seed=4).images)


def test_noises_are_distributed_as_said() -> None:
    like = photographs(400)
    uniform = outside_images("noise", like=like).images.double()
    assert uniform.mean() == pytest.approx(127.5, abs=1)
    assert uniform.std() == pytest.approx(255 / np.sqrt(12), abs=1)
    normal = outside_images("gaussian-noise", like=like).images
    for end in (0, 255):
        assert (normal == end).double().mean() == pytest.approx(0.3093, abs=0.01)  # P(z < −.5 ± half a step)


def test_interpolation_is_the_mean_of_two_images_of_different_classes() -> None:
    plain = torch.arange(4, dtype=torch.uint8).mul(50).view(4, 1, 1, 1).expand(4, 1, 2, 2).contiguous()
    like = Images(plain, torch.tensor([0, 0, 1, 1]))
    found = outside_images("interpolation", like=like).images[:, 0, 0, 0]
    possible = {0: {50, 75}, 1: {75, 100}, 2: {50, 75}, 3: {75, 100}}
    assert all(int(value) in possible[number] for number, value in enumerate(found))


def test_interpolation_needs_two_classes() -> None:
    with pytest.raises(UserError, match="two classes or more"):
        outside_images("interpolation", like=photographs(classes=1))


def test_a_named_set_is_cut_and_coloured_like_the_test_images() -> None:
    like = photographs()
    found = outside_images("digits", like=like)
    assert found.images.shape == (40, 3, 12, 16)
    assert "1×8×8 to 3×12×16" in found.matching
    assert "grey repeated as RGB" in found.matching
    assert torch.equal(found.images[:, 0], found.images[:, 2])


@given(height=st.integers(1, 40), width=st.integers(1, 40), channels=st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_any_size_is_matched(height: int, width: int, channels: int) -> None:
    images = torch.full((2, channels, height, width), 200, dtype=torch.uint8)
    found = matched("x", images, photographs().images)
    assert found.images.shape == (2, 3, 12, 16)
    assert (found.images == 200).all()
    grey = matched("x", images, torch.zeros(1, 1, 9, 5, dtype=torch.uint8))
    assert grey.images.shape == (2, 1, 9, 5)
    assert (grey.images == 200).all()


def test_colour_becomes_grey_as_pillow_makes_it() -> None:
    images = photographs().images
    found = matched("x", images, images[:, :1]).images
    expected = [np.asarray(Image.fromarray(each.permute(1, 2, 0).numpy()).convert("L")) for each in images]
    assert np.abs(found[:, 0].numpy().astype(int) - np.stack(expected)).max() <= 1


def test_images_that_fit_stay_as_they_are() -> None:
    images = photographs().images
    found = matched("x", images, images)
    assert found.matching == "none needed"
    assert found.images is images


def test_pictures_and_npz_files(tmp_path: Path) -> None:
    like = photographs()
    (tmp_path / "deep").mkdir()
    Image.new("L", (50, 30), 90).save(tmp_path / "deep" / "one.png")
    np.savez(tmp_path / "a.npz", x_test=np.zeros((60, 5, 5), np.uint8), y_test=np.zeros(60, int))
    assert outside_images(f"folder:{tmp_path}", like=like).images.shape == (1, 3, 12, 16)
    assert len(outside_images(f"npz:{tmp_path / 'a.npz'}", like=like).images) == 40


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'noise'"):
        outside_images("nois", like=photographs())
    with pytest.raises(UserError, match="no such folder"):
        outside_images(f"folder:{tmp_path / 'no'}", like=photographs())
    with pytest.raises(UserError, match="2 channels"):
        matched("x", torch.zeros(1, 2, 4, 4, dtype=torch.uint8), photographs().images)
