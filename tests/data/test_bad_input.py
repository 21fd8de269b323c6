"""Whatever can be wrong with data is told in one line that names the place: the battery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from postgrad.data.datasets import load_dataset
from postgrad.errors import UserError


def refused(spec: str, message: str, **options: object) -> None:
    """Loading fails with one short line that holds `message`."""
    with pytest.raises(UserError, match=message) as error:
        load_dataset(spec, **options)  # type: ignore[arg-type]
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600


def npz(folder: Path, **changes: np.ndarray | None) -> str:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (40, 6, 7), dtype=np.uint8),
        "y_train": np.arange(40) % 4,
        "x_test": rng.integers(0, 256, (12, 6, 7), dtype=np.uint8),
        "y_test": np.arange(12) % 4,
    } | changes
    np.savez(folder / "data.npz", **{key: value for key, value in arrays.items() if value is not None})
    return f"npz:{folder / 'data.npz'}"


def test_the_unchanged_arrays_are_good(tmp_path: Path) -> None:
    assert load_dataset(npz(tmp_path)).notes == ()


RAMP = np.arange(42, dtype=np.uint8).reshape(1, 6, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": np.arange(40) % 4 - 1}, "train part: label -1 is negative"),
        ({"y_test": np.arange(12) % 5}, "test part: label 4 is out of range; there are 4 classes, 0 to 3"),
        ({"y_train": np.zeros(40, int), "y_test": np.zeros(12, int)}, "of one class \\('0'\\)"),
        ({"y_train": np.full(40, 3)}, "of one class \\('3'\\)"),
        ({"x_train": np.zeros((40, 6, 7), np.uint8)}, "every image is of a single colour"),
        ({"x_train": np.repeat(RAMP, 40, axis=0)}, "all 40 images are identical"),
        ({"x_test": np.zeros((12, 6, 7), np.uint8)}, "test part: every image is of a single colour"),
        ({"x_test": np.repeat(RAMP, 12, axis=0)}, "test part: all 12 images are identical"),
        ({"x_train": np.zeros((0, 6, 7), np.uint8), "y_train": np.zeros(0, int)}, "train part: no images"),
        ({"x_train": np.full((40, 6, 7), np.nan)}, "NaN"),
        ({"x_train": np.zeros((40, 6, 7), np.float32)}, "expected uint8"),
        ({"y_train": np.linspace(0, 1, 40)}, "whole numbers"),
        ({"x_train": np.array([None] * 40)}, "Python objects"),
        ({"x_train": None, "y_train": None, "x_test": None, "y_test": None}, "needs the arrays"),
    ],
)
def test_unusable_arrays(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    refused(npz(tmp_path, **changes), message)


def test_parts_of_different_shape(tmp_path: Path, rng: np.random.Generator) -> None:
    spec = npz(tmp_path, x_test=rng.integers(0, 256, (12, 7, 6), dtype=np.uint8))
    refused(spec, r"differ in shape \(channels, height, width\): \(1, 6, 7\) and \(1, 7, 6\)")


def test_what_is_merely_odd_becomes_a_note(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (40, 6, 7), dtype=np.uint8)
    pixels[4], pixels[9] = 0, 255
    dataset = load_dataset(
        npz(tmp_path, x_train=pixels, y_train=np.where(np.arange(40) % 4 == 2, 1, np.arange(40) % 4))
    )
    assert any("train part: 2 images are of a single colour" in note for note in dataset.notes)
    assert any("no training image is of class 2" in note for note in dataset.notes)


@pytest.mark.parametrize("memory", ["", "much", "-1GB", "0"])
def test_an_unreadable_amount_of_memory(memory: str) -> None:
    refused("digits", "memory", memory=memory)


def test_paths_that_do_not_exist(tmp_path: Path) -> None:
    refused(f"folder:{tmp_path / 'none'}", "no such folder")
    refused(f"npz:{tmp_path / 'none.npz'}", "no such file")
    refused(f"npz:{tmp_path}", "no such file")


def test_a_folder_with_nothing_usable(tmp_path: Path) -> None:
    refused(f"folder:{tmp_path}", "no pictures")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(b"no picture")
    refused(f"folder:{tmp_path}", r"skipped 2: cat/a\.jpg \(not a picture\)")


def test_pictures_that_all_break_while_decoding(tmp_path: Path, rng: np.random.Generator) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "a.png"
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file)
        file.write_bytes(file.read_bytes()[:300])
    refused(f"folder:{tmp_path}", r"skipped 2: cat/a\.png \(image file is truncated")


def test_one_class_in_a_folder(picture_folder: Callable[..., Path]) -> None:
    refused(f"folder:{picture_folder({'cat': 8})}", "all 8 training images are of one class \\('cat'\\)")


def test_a_truncated_gzip(tmp_path: Path, write_idx) -> None:
    folder = tmp_path / "notMNIST"  # its training images have no checksum, so the reader itself must notice
    write_idx(folder / "train-images-idx3-ubyte.gz", np.zeros((4, 28, 28)))
    write_idx(folder / "train-labels-idx1-ubyte", np.arange(4))
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-12])
    refused("notmnist", "train-images-idx3-ubyte.gz is damaged: not a whole gzip file", data_dir=tmp_path)


def test_a_corrupt_pickle(tmp_path: Path, write_cifar, rng: np.random.Generator) -> None:
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        write_cifar(tmp_path / "cifar-10-batches-py" / name, rng.integers(0, 256, (2, 3, 32, 32)), [0, 1])
    refused("cifar10", "data_batch_1 is damaged: its MD5 is", data_dir=tmp_path)


def test_no_files_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("postgrad.data.sources.download", lambda remotes, folder: f"{remotes[0].url}: no network")
    refused("mnist", f"mnist: not found in {tmp_path / 'none'}: looked for MNIST/raw", data_dir=tmp_path / "none")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = npz(tmp_path)

    def forbidden(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("zipfile.ZipFile", forbidden)
    refused(spec, r"cannot read .*data\.npz: Permission denied")
