"""Published data sets on disk: layouts, checksums, missing files, fetching. Nothing beyond this machine is asked."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from postgrad.data import sources
from postgrad.data.download import Remote, download
from postgrad.data.sources import SOURCES, read_source
from postgrad.errors import UserError

TRAIN, TEST = 12, 8


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files the tests write have other checksums, and nothing is fetched."""
    for name, source in SOURCES.items():
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(source, md5={}))
    monkeypatch.setattr(sources, "download", lambda remotes, folder: "no network")


@pytest.fixture
def make(
    tmp_path: Path, rng: np.random.Generator, write_idx, write_cifar
) -> Callable[[str, str], dict[str, np.ndarray]]:
    """Write a small data set of a name in a layout; returns its arrays."""

    def write(name: str, layout: str) -> dict[str, np.ndarray]:
        side, channels = (32, 3) if name in ("cifar10", "cifar100", "svhn") else (28, 1)
        written = {}
        for part, count in (("train", TRAIN), ("test", TEST)):
            written[part] = rng.integers(0, 256, (count, channels, side, side), dtype=np.uint8)
            written[f"{part} labels"] = rng.integers(0, 10, count)
            images, labels = written[part], written[f"{part} labels"]
            prefix = "train" if part == "train" else "t10k"
            if layout.startswith("idx"):
                folder, ending = layout[4:].rsplit("|", 1)
                write_idx(tmp_path / folder / f"{prefix}-images-idx3-ubyte{ending}", images[:, 0])
                write_idx(tmp_path / folder / f"{prefix}-labels-idx1-ubyte{ending}", labels)
            elif layout == "npz":
                (tmp_path / "KMNIST").mkdir(exist_ok=True)
                np.savez_compressed(tmp_path / f"KMNIST/kmnist-{part}-imgs.npz", images[:, 0])
                np.savez_compressed(tmp_path / f"KMNIST/kmnist-{part}-labels.npz", labels.astype(np.uint8))
            elif name == "cifar10":
                names = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]
                for file, chunk in zip(names, np.array_split(np.arange(count), len(names)), strict=True):
                    write_cifar(tmp_path / "cifar-10-batches-py" / file, images[chunk], labels[chunk])
            elif name == "cifar100":
                write_cifar(tmp_path / "cifar-100-python" / part, images, labels, "fine_labels")
                meta = {"fine_label_names": [f"kind {number}" for number in range(100)]}
                (tmp_path / "cifar-100-python" / "meta").write_bytes(pickle.dumps(meta))
            else:
                (tmp_path / layout).mkdir(exist_ok=True)
                content = {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None]}
                savemat(tmp_path / layout / f"{part}_32x32.mat", content)
        return written

    return write


LAYOUTS = [
    *[("mnist", f"idx:{folder}|{ending}") for folder in ("MNIST/raw", "MNIST") for ending in ("", ".gz")],
    ("fashion-mnist", "idx:FashionMNIST/raw|.gz"),
    ("kmnist", "idx:KMNIST/raw|.gz"),
    ("kmnist", "npz"),
    ("notmnist", "idx:notMNIST|.gz"),
    ("cifar10", "pickle"),
    ("cifar100", "pickle"),
    ("svhn", "SVHN"),
    ("svhn", "."),
]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_every_layout_is_read(tmp_path: Path, make, name: str, layout: str) -> None:
    written = make(name, layout)
    found = read_source(name, tmp_path)
    for part in ("train", "test"):
        images = getattr(found, part)
        np.testing.assert_array_equal(images.images, written[part])
        assert images.labels.tolist() == written[f"{part} labels"].tolist()
    assert len(found.class_names) == (100 if name == "cifar100" else 10)
    assert found.notes == ()


def test_a_test_part_alone_is_said(tmp_path: Path, make) -> None:
    make("kmnist", "npz")
    for file in (tmp_path / "KMNIST").glob("kmnist-train-*"):
        file.unlink()
    found = read_source("kmnist", tmp_path)
    assert found.train is None
    assert len(found.test) == TEST
    assert found.notes == (f"kmnist: {tmp_path} has no training images; only the test images are used.",)


@pytest.mark.parametrize(
    ("name", "layout", "missing"),
    [
        ("cifar10", "pickle", "cifar-10-batches-py/data_batch_3"),
        ("mnist", "idx:MNIST/raw|.gz", "MNIST/raw/t10k-labels-idx1-ubyte.gz"),
        ("cifar100", "pickle", "cifar-100-python/meta"),
    ],
)
def test_half_a_data_set_is_incomplete(tmp_path: Path, make, name: str, layout: str, missing: str) -> None:
    make(name, layout)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=f"is incomplete: {Path(missing).stem} missing"):
        read_source(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("svhn", "looked for SVHN: train_32x32.mat, test_32x32.mat"),
        ("cifar100", "looked for cifar-100-python: train, meta, test"),
        ("mnist", "looked for MNIST/raw: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-"),
    ],
)
def test_nothing_found_names_folder_and_files(tmp_path: Path, name: str, files: str) -> None:
    with pytest.raises(UserError, match=files) as error:
        read_source(name, tmp_path)
    message = str(error.value)
    assert str(tmp_path) in message
    assert "no network" in message
    assert "\n" not in message


def test_checksums_are_compared_before_anything_is_read(tmp_path: Path, make, monkeypatch) -> None:
    make("cifar10", "pickle")
    folder = tmp_path / "cifar-10-batches-py"
    sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    monkeypatch.setitem(SOURCES, "cifar10", dataclasses.replace(SOURCES["cifar10"], md5=sums))
    assert len(read_source("cifar10", tmp_path).train) == TRAIN
    content = bytearray((folder / "data_batch_2").read_bytes())
    content[200] ^= 1  # one bit of one pixel
    (folder / "data_batch_2").write_bytes(content)
    monkeypatch.setattr("postgrad.data.formats.unpickle", lambda path: pytest.fail(f"{path} was opened"))
    with pytest.raises(UserError, match="data_batch_2 is damaged") as error:
        read_source("cifar10", tmp_path)
    assert "the published file has" in str(error.value)


def test_what_is_not_there_is_fetched(tmp_path: Path, make, serve, monkeypatch) -> None:
    written = make("cifar10", "pickle")
    archive = tmp_path / "set.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    remote = Remote(serve(archive), hashlib.md5(archive.read_bytes()).hexdigest(), "")
    monkeypatch.setattr(sources, "download", download)
    monkeypatch.setitem(SOURCES, "cifar10", dataclasses.replace(SOURCES["cifar10"], remotes=(remote,)))
    found = read_source("cifar10", tmp_path / "elsewhere")
    np.testing.assert_array_equal(found.train.images, written["train"])


def test_every_remote_leads_where_the_files_are_looked_for() -> None:
    for name, source in SOURCES.items():
        for remote in source.remotes:
            if remote.url.endswith(".tar.gz"):
                continue
            file = remote.url.rsplit("/", 1)[1].removesuffix(".gz")
            layouts = [layout for layout in source.layouts if layout.folder == remote.folder]
            assert any(file in layout.train + layout.test for layout in layouts), (name, remote)


def test_checksums_are_torchvisions(monkeypatch) -> None:
    from postgrad._compat import prepare_torchvision

    prepare_torchvision()
    from torchvision import datasets

    monkeypatch.undo()
    for name, theirs in (
        ("mnist", datasets.MNIST),
        ("fashion-mnist", datasets.FashionMNIST),
        ("kmnist", datasets.KMNIST),
    ):
        assert dict(theirs.resources).items() <= dict(SOURCES[name].md5).items()
    for name, theirs in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        assert dict(theirs.train_list + theirs.test_list).items() <= dict(SOURCES[name].md5).items()
        assert SOURCES[name].remotes[0].md5 == theirs.tgz_md5
    for part in ("train", "test"):
        url, file, md5 = datasets.SVHN.split_list[part]
        assert SOURCES["svhn"].md5[file] == md5
        assert url in {remote.url for remote in SOURCES["svhn"].remotes}


def test_an_unpacked_file_beside_its_archive_is_the_archives(tmp_path: Path, make) -> None:
    written = make("mnist", "idx:MNIST/raw|.gz")
    file = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(gzip.decompress(file.with_name(file.name + ".gz").read_bytes())[:-1])
    np.testing.assert_array_equal(read_source("mnist", tmp_path).train.images, written["train"])
