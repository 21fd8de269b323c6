"""Images to be judged: every picture below a folder, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from postgrad.data.datasets import load_dataset
from postgrad.data.unlabelled import load_images
from postgrad.errors import UserError


def test_pictures_anywhere_below_a_folder(picture_folder: Callable[..., Path]) -> None:
    root = picture_folder({"": 2, "holiday/beach": 1})
    (root / "notes.txt").write_text("x")
    (root / "broken.png").write_bytes(b"no picture")
    found = load_images(f"folder:{root}")
    assert found.names == ("000.png", "001.png", "holiday/beach/000.png")
    assert found.images.shape == (3, 3, 10, 12)
    assert found.notes == (f"{root}: skipped 2: notes.txt (not a picture), broken.png (not a picture).",)


def test_a_picture_that_breaks_while_decoding_has_no_name(picture_folder: Callable[..., Path]) -> None:
    root = picture_folder({"": 3})
    file = root / "001.png"
    file.write_bytes(file.read_bytes()[:-40])
    found = load_images(f"folder:{root}")
    assert found.names == ("000.png", "002.png")
    assert len(found.images) == 2


@pytest.mark.parametrize(("shape", "channels"), [((10, 12), 3), ((10, 12, 3), 1)])
def test_channels_are_the_networks(picture_folder, shape: tuple[int, ...], channels: int) -> None:
    root = picture_folder({"": 2}, shape=shape)
    assert load_images(f"folder:{root}", channels=channels).images.shape == (2, channels, 10, 12)
    assert load_images(f"folder:{root}").images.shape[1] == 4 - channels


def test_size_and_limit(picture_folder: Callable[..., Path]) -> None:
    picture_folder({"": 3})
    root = picture_folder({"a": 3}, shape=(20, 10, 3))
    found = load_images(f"folder:{root}", size=8, limit=4)
    assert found.images.shape == (4, 3, 8, 8)
    assert len(found.names) == 4


def test_arrays_and_published_sets_are_numbered(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (7, 6, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x_train=pixels, y_train=np.arange(7))
    found = load_images(f"npz:{tmp_path / 'data.npz'}", limit=5)
    assert found.names == ("0", "1", "2", "3", "4")
    assert torch.equal(found.images, torch.from_numpy(pixels[:5]).permute(0, 3, 1, 2))
    digits = load_images("digits", limit=20)
    assert torch.equal(digits.images, load_dataset("digits").test.images[:20])


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_nothing_to_judge_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match="no pictures"):
        load_images(f"folder:{tmp_path}")
    with pytest.raises(UserError, match="no such folder"):
        load_images(f"folder:{tmp_path / 'none'}")
    with pytest.raises(UserError, match="at least 1"):
        load_images("digits", limit=0)
