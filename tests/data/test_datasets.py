"""`load_dataset`: what every data set has in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from postgrad.data import datasets
from postgrad.data.datasets import data_folder, load_dataset
from postgrad.data.names import DATASETS
from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.errors import UserError


def save(path: Path, rng: np.random.Generator, **changes: np.ndarray) -> str:
    arrays = {
        "x_train": rng.integers(0, 256, (40, 6, 7), dtype=np.uint8),
        "y_train": np.arange(40) % 4,
        "x_test": rng.integers(0, 256, (12, 6, 7), dtype=np.uint8),
        "y_test": np.arange(12) % 4,
    }
    np.savez(path, **(arrays | changes))
    return f"npz:{path}"


def test_digits_are_scikit_learns() -> None:
    dataset = load_dataset("digits")
    assert dataset.shape == (1, 8, 8)
    assert dataset.num_classes == 10
    assert (len(dataset.train), len(dataset.test)) == (1438, 359)
    assert not dataset.prescribed_order
    theirs, labels = load_digits(return_X_y=True)
    pixels = torch.cat([dataset.train.images, dataset.test.images]).flatten(1).double() * (16 / 255)
    stored = {(row.astype(int).tobytes(), label) for row, label in zip(theirs, labels, strict=True)}
    ours = zip(pixels.round().int().numpy(), torch.cat([dataset.train.labels, dataset.test.labels]), strict=True)
    assert {(row.astype(int).tobytes(), int(label)) for row, label in ours} == stored


def test_digits_test_part_is_stratified_and_said() -> None:
    dataset = load_dataset("digits")
    both = torch.stack([dataset.train.labels.bincount(), dataset.test.labels.bincount()]).double()
    assert (both[1] - both.sum(0) / 5).abs().max() <= 1
    assert any("359 images (a fifth, stratified)" in note for note in dataset.notes)


def test_loading_twice_gives_the_same() -> None:
    first, second = load_dataset("digits"), load_dataset("digits")
    assert first.fingerprint == second.fingerprint
    assert torch.equal(first.test.images, second.test.images)
    assert len(first.fingerprint) == 16


@pytest.mark.parametrize(("limit", "sizes"), [(100, (100, 100)), (500, (500, 359)), (5000, (1438, 359))])
def test_limit_counts_for_each_part(limit: int, sizes: tuple[int, int]) -> None:
    dataset = load_dataset("digits", limit=limit)
    assert (len(dataset.train), len(dataset.test)) == sizes
    counts = dataset.train.labels.bincount()
    assert int(counts.max() - counts.min()) <= 8
    with pytest.raises(UserError, match="at least 1"):
        load_dataset("digits", limit=0)


def test_the_fingerprint_is_of_every_pixel_and_label(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels, labels = rng.integers(0, 256, (40, 6, 7), dtype=np.uint8), np.arange(40) % 4
    test, test_labels = rng.integers(0, 256, (12, 6, 7), dtype=np.uint8), np.arange(12) % 4
    other_pixel, other_label, other_test = pixels.copy(), labels.copy(), test.copy()
    other_pixel[-1, -1, -1] ^= 1
    other_label[-1] = 0
    other_test[0, 0, 0] ^= 1
    variants = [
        (pixels, labels, test, test_labels),
        (other_pixel, labels, test, test_labels),
        (pixels, other_label, test, test_labels),
        (pixels, labels, other_test, test_labels),
        (pixels[::-1], labels[::-1], test, test_labels),
        (pixels.reshape(40, 7, 6), labels, test.reshape(12, 7, 6), test_labels),
    ]
    prints = []
    for x, y, a, b in variants:
        spec = save(tmp_path / "data.npz", rng, x_train=x, y_train=y, x_test=a, y_test=b)
        prints.append(load_dataset(spec).fingerprint)
    assert len(set(prints)) == len(variants)
    spec = save(tmp_path / "again.npz", rng, x_train=pixels, y_train=labels, x_test=test, y_test=test_labels)
    assert load_dataset(spec).fingerprint == prints[0]


def test_copies_of_training_images_in_the_test_part_are_counted(tmp_path: Path, rng: np.random.Generator) -> None:
    train = rng.integers(0, 256, (40, 6, 7), dtype=np.uint8)
    test = rng.integers(0, 256, (12, 6, 7), dtype=np.uint8)
    test[3], test[5], test[6] = train[7], train[7], train[39]
    test[8] = train[9]
    test[8, 0, 0] ^= 1  # not an exact copy
    dataset = load_dataset(save(tmp_path / "data.npz", rng, x_train=train, x_test=test))
    assert [note for note in dataset.notes if "copies" in note] == [
        f"npz:{tmp_path / 'data.npz'}: 3 of the 12 test images are exact copies of training images."
    ]
    assert not any("copies" in note for note in load_dataset(save(tmp_path / "b.npz", rng)).notes)


def test_own_data_is_standardised_by_its_own_statistics(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(20, 200, (40, 6, 7, 3), dtype=np.uint8)
    spec = save(tmp_path / "data.npz", rng, x_train=pixels, x_test=pixels[:12])
    unit = pixels.reshape(-1, 3) / 255
    preprocess = load_dataset(spec).preprocess
    np.testing.assert_allclose(preprocess.mean, unit.mean(0), atol=6e-5)
    np.testing.assert_allclose(preprocess.std, unit.std(0), atol=6e-5)


def test_statistics_of_many_images_come_from_a_fair_sample(
    tmp_path: Path, rng: np.random.Generator, monkeypatch
) -> None:
    monkeypatch.setattr(datasets, "_SAMPLE", 100)
    pixels = rng.integers(0, 256, (1000, 4, 4), dtype=np.uint8)
    pixels[::10] //= 16  # every tenth is dark, and a step of ten would see only these
    labels = np.arange(1000) % 4
    spec = save(tmp_path / "data.npz", rng, x_train=pixels, y_train=labels, x_test=pixels[:12])
    preprocess = load_dataset(spec).preprocess
    assert abs(preprocess.mean[0] - pixels.mean() / 255) < 0.05
    assert abs(preprocess.mean[0] - pixels[::10].mean() / 255) > 0.3


def test_own_data_is_not_flipped_or_cropped_unasked(tmp_path: Path, rng: np.random.Generator) -> None:
    assert load_dataset(save(tmp_path / "data.npz", rng)).augmentation == Augmentation()


@pytest.mark.parametrize("memory", ["8GB", "1KB"])
def test_mapped_data_is_the_same_data(picture_folder: Callable[..., Path], memory: str) -> None:
    root = picture_folder({"cat": 15, "dog": 10})
    dataset = load_dataset(f"folder:{root}", memory=memory)
    assert dataset.train.mapped == dataset.test.mapped == (memory == "1KB")
    expected = load_dataset(f"folder:{root}")
    assert dataset.fingerprint == expected.fingerprint
    assert torch.equal(dataset.train.images, expected.train.images)
    assert dataset.preprocess == expected.preprocess


def test_names_without_torch_are_all_known(tmp_path: Path) -> None:
    for name in DATASETS:
        if ":" in name:
            spec = name.replace("DIR", str(tmp_path / "none")).replace("FILE", str(tmp_path / "none.npz"))
            with pytest.raises(UserError, match="no such"):
                load_dataset(spec)
        else:
            assert name == "digits" or name in datasets.SOURCES


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar-10", "did you mean 'cifar10'"),
        ("", "unknown data set ''"),
        ("folder:", "unknown data set 'folder:'"),
        ("digits:8", "unknown data set 'digits:8'"),
        ("mnist:train", "unknown data set"),
    ],
)
def test_unknown_names_are_refused(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_dataset(spec)


def test_where_published_data_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_folder(None) == tmp_path / "cache" / "postgrad" / "data"
    monkeypatch.setenv("POSTGRAD_DATA", "~/data")
    assert data_folder(None) == tmp_path / "data"
    assert data_folder("~/other") == tmp_path / "other"


def test_a_tilde_in_a_path_is_the_home_folder(monkeypatch, picture_folder: Callable[..., Path]) -> None:
    root = picture_folder({"cat": 5, "dog": 5})
    monkeypatch.setenv("HOME", str(root.parent))
    assert load_dataset(f"folder:~/{root.name}").num_classes == 2


def test_every_default_can_be_applied() -> None:
    dataset = load_dataset("digits", limit=10)
    assert dataset.preprocess(dataset.train.images).shape == (10, 1, 8, 8)
    for source in datasets.SOURCES.values():
        assert isinstance(source.preprocess, Preprocessing)
        channels = len(source.preprocess.mean)
        side = 32 if channels == 3 else 28
        images = torch.zeros(2, channels, side, side, dtype=torch.uint8)
        assert source.preprocess(images).shape == images.shape
