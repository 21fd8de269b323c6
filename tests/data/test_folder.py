"""`folder:DIR`: classes, parts, odd files and broken pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from postgrad.data.folder import read_folder
from postgrad.errors import UserError

BUDGET = 10**9


def pixels_of(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def test_class_folders_alone_are_one_part(picture_folder: Callable[..., Path]) -> None:
    root = picture_folder({"dog": 3, "cat": 2})
    found = read_folder(root, size=None, budget=BUDGET)
    assert found.class_names == ("cat", "dog")
    assert found.test is None
    assert found.notes == ()
    assert found.train.labels.tolist() == [0, 0, 1, 1, 1]
    files = [root / "cat/000.png", root / "cat/001.png", *(root / f"dog/00{i}.png" for i in range(3))]
    assert torch.equal(found.train.images, torch.stack([pixels_of(file) for file in files]))


def test_train_and_test_folders_are_two_parts(picture_folder: Callable[..., Path]) -> None:
    root = picture_folder({"train/cat": 3, "train/dog": 2, "test/dog": 2})
    found = read_folder(root, size=None, budget=BUDGET)
    assert found.class_names == ("cat", "dog")
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert found.test.labels.tolist() == [1, 1]


def test_a_test_folder_alone(picture_folder: Callable[..., Path]) -> None:
    found = read_folder(picture_folder({"test/cat": 1, "test/dog": 2}), size=None, budget=BUDGET)
    assert found.train is None
    assert found.class_names == ("cat", "dog")


def test_a_class_may_be_called_train(picture_folder: Callable[..., Path]) -> None:
    """Trains, planes and automobiles."""
    found = read_folder(picture_folder({"train": 2, "plane": 2}), size=None, budget=BUDGET)
    assert found.class_names == ("plane", "train")


def test_pictures_may_lie_deeper(picture_folder: Callable[..., Path]) -> None:
    found = read_folder(picture_folder({"cat/indoors": 2, "cat/outdoors/night": 1, "dog": 1}), size=None, budget=BUDGET)
    assert found.train.labels.tolist() == [0, 0, 0, 1]


def test_odd_files_are_named_and_skipped(picture_folder: Callable[..., Path]) -> None:
    root = picture_folder({"train/cat": 3, "train/dog": 3, "test/cat": 1})
    (root / "train/cat/.DS_Store").write_bytes(b"\0")
    (root / "train/cat/notes.txt").write_text("hello")
    (root / "train/dog/broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    whole = root / "train/dog/000.png"
    (root / "train/dog/half.png").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (root / "train/dog/empty.png").touch()
    (root / "train/loose.png").write_bytes(whole.read_bytes())
    (root / "train/.ipynb_checkpoints").mkdir()
    (root / "train/bird").mkdir()
    (root / "README.md").write_text("pictures")
    found = read_folder(root, size=None, budget=BUDGET)
    assert len(found.train) == 6
    assert found.class_names == ("cat", "dog")
    (note,) = found.notes
    assert "skipped 9: README.md (not in train or test)" in note
    assert note.endswith("and 4 more.")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (".DS_Store", b"\0", "not a picture"),
        ("notes.txt", b"x", "not a picture"),
        ("broken.jpg", b"no picture", "not a picture"),
        ("empty.png", b"", "not a picture"),
    ],
)
def test_each_skipped_file_has_its_reason(picture_folder, name: str, content: bytes, reason: str) -> None:
    root = picture_folder({"cat": 2, "dog": 2})
    (root / "cat" / name).write_bytes(content)
    assert read_folder(root, size=None, budget=BUDGET).notes == (f"{root}: skipped 1: cat/{name} ({reason}).",)


def test_a_truncated_jpeg_is_named_and_skipped(picture_folder: Callable[..., Path], rng: np.random.Generator) -> None:
    root = picture_folder({"cat": 2, "dog": 2})
    file = root / "cat" / "photo.jpg"
    Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:-60])
    for budget in (BUDGET, 10, 10):  # in memory, mapped, mapped again
        found = read_folder(root, size=None, budget=budget)
        assert found.train.labels.tolist() == [0, 0, 1, 1]
        assert "cat/photo.jpg (image file is truncated" in found.notes[0]


def test_larger_than_memory_is_mapped_and_equal(picture_folder: Callable[..., Path]) -> None:
    root = picture_folder({"train/cat": 5, "train/dog": 5, "test/cat": 2})
    resident, mapped = (read_folder(root, size=None, budget=budget) for budget in (BUDGET, 10))
    assert (resident.train.mapped, mapped.train.mapped) == (False, True)
    assert torch.equal(resident.train.images, mapped.train.images)
    assert torch.equal(resident.test.images, mapped.test.images)


def test_different_sizes_need_a_size(picture_folder: Callable[..., Path]) -> None:
    picture_folder({"cat": 2}, shape=(20, 30, 3))
    root = picture_folder({"dog": 2}, shape=(40, 16, 3))
    with pytest.raises(UserError, match="from 20×30 to 40×16 pixels; give --size N"):
        read_folder(root, size=None, budget=BUDGET)
    found = read_folder(root, size=8, budget=BUDGET)
    assert found.train.images.shape == (4, 3, 8, 8)
    assert "cut to the square" in found.notes[0]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, "no such folder"),
        ({"train/cat": 0}, "no pictures in class folders"),
        ({"cat": 0}, r"skipped 1: cat \(an empty folder\)"),
        ({"": 3}, "not in a class folder"),
        ({"train/cat": 2, "test/bird": 1, "test/cat": 1}, "class bird has no pictures in"),
    ],
)
def test_unusable_folders_are_refused(picture_folder, tmp_path: Path, classes, message: str) -> None:
    picture_folder(classes)
    with pytest.raises(UserError, match=message):
        read_folder(tmp_path / "pictures", size=None, budget=BUDGET)


def test_an_empty_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pictures in class folders; expected"):
        read_folder(tmp_path, size=None, budget=BUDGET)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a folder"):
        read_folder(tmp_path / "file", size=None, budget=BUDGET)
