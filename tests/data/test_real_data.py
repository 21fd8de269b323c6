"""The published files themselves, where they are on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from postgrad._compat import prepare_torchvision
from postgrad.data.datasets import Dataset, load_dataset
from postgrad.data.splits import halves, limited
from postgrad.errors import UserError


@pytest.fixture(scope="module")
def cifar10(real_data: Path) -> Dataset:
    skip_without(real_data, "cifar-10-batches-py")
    return load_dataset("cifar10", data_dir=real_data)


def skip_without(folder: Path, part: str) -> None:
    if not (folder / part).is_dir():
        pytest.skip(f"{folder / part} is not there")


def test_cifar10(cifar10: Dataset) -> None:
    assert (len(cifar10.train), len(cifar10.test), cifar10.shape) == (50_000, 10_000, (3, 32, 32))
    assert torch.equal(cifar10.train.labels.bincount(), torch.full((10,), 5000))
    assert cifar10.notes == ()


@pytest.mark.parametrize("name", ["kmnist", "notmnist"])
def test_test_parts_alone(real_data: Path, name: str) -> None:
    folder = real_data / {"kmnist": "KMNIST", "notmnist": "notMNIST"}[name]
    skip_without(real_data, folder.name)
    if list(folder.rglob("*train*")):
        pytest.skip(f"{folder} has training files")
    dataset = load_dataset(name, data_dir=real_data)
    assert (dataset.train, len(dataset.test), dataset.shape) == (None, 10_000, (1, 28, 28))
    assert torch.equal(dataset.test.labels.bincount(), torch.full((10,), 1000))
    with pytest.raises(UserError, match=f"{name} has no training images here"):
        halves(dataset)


def test_mnist_is_standardised_by_its_mean_and_deviation(real_data: Path) -> None:
    skip_without(real_data, "MNIST")
    dataset = load_dataset("mnist", data_dir=real_data)
    assert (len(dataset.train), len(dataset.test), dataset.shape) == (60_000, 10_000, (1, 28, 28))
    pixels = dataset.preprocess(dataset.train.images)
    assert abs(float(pixels.mean())) < 1e-3
    assert abs(float(pixels.std()) - 1) < 1e-3


def test_cifar10_is_what_torchvision_reads(real_data: Path, cifar10: Dataset) -> None:
    prepare_torchvision()
    from torchvision.datasets import CIFAR10

    theirs = CIFAR10(str(real_data), train=False)
    np.testing.assert_array_equal(cifar10.test.images.permute(0, 2, 3, 1), theirs.data)
    assert cifar10.test.labels.tolist() == theirs.targets
    assert cifar10.class_names == tuple(theirs.classes)


def test_cifar10s_halves_are_the_first_and_last_25000(cifar10: Dataset) -> None:
    parts = halves(cifar10)
    assert torch.equal(torch.cat([parts.base_train, parts.base_validation]), torch.arange(25_000))
    assert torch.equal(torch.cat([parts.method_train, parts.method_validation]), torch.arange(25_000, 50_000))


def test_limit_is_balanced_and_in_file_order(cifar10: Dataset) -> None:
    part = limited(cifar10.train, 1000)
    assert torch.equal(part.labels.bincount(), torch.full((10,), 100))
    assert torch.equal(part.images[0], cifar10.train.images[0])


def test_a_changed_byte_in_a_real_file_is_noticed(real_data: Path, tmp_path: Path) -> None:
    skip_without(real_data, "MNIST/raw")
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    for file in (real_data / "MNIST/raw").glob("t10k*.gz"):
        content = bytearray(file.read_bytes())
        content[9] ^= 1  # the gzip header's operating system, which no decoder looks at
        (tmp_path / "MNIST/raw" / file.name).write_bytes(content)
    with pytest.raises(UserError, match="its MD5 is"):
        load_dataset("mnist", data_dir=tmp_path)
