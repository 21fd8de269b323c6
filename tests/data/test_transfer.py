"""Transfer images: with labels, with some, with none; and what cannot join the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from postgrad.data.containers import Images
from postgrad.data.transfer import joined, load_transfer
from postgrad.errors import UserError

NAMES = ("cat", "dog", "eel")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def transfer(spec: str, **more: Any) -> Images:
    return load_transfer(spec, class_names=NAMES, shape=(3, 8, 8), **more)


def stored(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (None, [-1] * 5),
        ([0, -1, 2, -1, 1], [0, -1, 2, -1, 1]),
        ([[0], [1], [2], [0], [1]], [0, 1, 2, 0, 1]),
    ],
)
@pytest.mark.parametrize("prefix", ["", "npz:"])
def test_arrays_have_labels_or_none(labels: Any, expected: list[int], prefix: str, tmp_path: Path) -> None:
    arrays = {"x_train": PIXELS} | ({} if labels is None else {"y_train": np.array(labels)})
    found = transfer(prefix + stored(tmp_path / "more.npz", **arrays))
    assert found.labels.tolist() == expected
    assert torch.equal(found.images, torch.from_numpy(PIXELS).permute(0, 3, 1, 2))


def test_pictures_below_a_folder_of_a_class_have_its_label(tmp_path: Path) -> None:
    for number, name in enumerate(["eel/a.png", "cat/deep/b.png", "others/c.png", "d.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[number]).save(tmp_path / name)
    found = transfer(f"folder:{tmp_path}")
    by_pixels = {
        bytes(image.permute(1, 2, 0).numpy().tobytes()): int(label)
        for image, label in zip(found.images, found.labels, strict=True)
    }
    assert [by_pixels[PIXELS[number].tobytes()] for number in range(4)] == [2, 0, -1, -1]


@pytest.mark.parametrize(
    ("arrays", "hint"),
    [
        ({"images": PIXELS}, "needs the array x_train, has images"),
        ({"x_train": PIXELS, "y_train": np.arange(4)}, "one whole number for each of the 5 images"),
        ({"x_train": PIXELS, "y_train": np.ones(5)}, "one whole number"),
        ({"x_train": PIXELS, "y_train": np.array([0, 1, 2, 3, 0])}, "label 3 is none of the 3 classes"),
        ({"x_train": PIXELS, "y_train": np.array([0, 1, 2, -2, 0])}, "label -2 is none"),
        ({"x_train": PIXELS[:, :6]}, "its images are 3×6×8"),
        ({"x_train": PIXELS[..., 0]}, "its images are 1×8×8"),
    ],
)
def test_arrays_that_do_not_fit_are_told(arrays: dict[str, Any], hint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=hint):
        transfer(stored(tmp_path / "more.npz", **arrays))


def test_what_is_no_transfer_set_is_told() -> None:
    with pytest.raises(UserError, match="folder:DIR, got 'cifar10'"):
        transfer("cifar10")
    with pytest.raises(UserError, match="no such file"):
        transfer("nowhere.npz")


@pytest.mark.parametrize("memory", ["8GB", "100B"])
def test_joined_images_follow_the_first(memory: str, tmp_path: Path) -> None:
    more = transfer(stored(tmp_path / "more.npz", x_train=PIXELS), memory=memory)
    assert more.mapped == (memory == "100B")
    own = Images(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([1, 2]))
    both = joined(own, more)
    assert both.mapped == more.mapped
    assert both.labels.tolist() == [1, 2, -1, -1, -1, -1, -1]
    assert torch.equal(both.images, torch.cat([own.images, more.images]))
