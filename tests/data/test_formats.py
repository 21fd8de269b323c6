"""Readers of published formats, against torchvision's and numpy's, and on damaged files."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from postgrad._compat import prepare_torchvision
from postgrad.data.formats import read_cifar, read_idx, read_idx_pair, read_npz_pair, read_svhn, unpickle
from postgrad.errors import UserError

prepare_torchvision()
from torchvision.datasets import CIFAR10  # noqa: E402 (needs the line above)
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor  # noqa: E402


@pytest.mark.parametrize("shape", [(5,), (4, 3, 6), (0, 2, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_reads_what_torchvision_reads(tmp_path: Path, write_idx, rng: np.random.Generator, shape, ending) -> None:
    array = rng.integers(0, 256, shape, dtype=np.uint8)
    write_idx(tmp_path / "plain-ubyte", array)
    write_idx(tmp_path / f"file-ubyte{ending}", array)
    ours = read_idx(tmp_path / f"file-ubyte{ending}")
    np.testing.assert_array_equal(ours, array)
    assert ours.flags.writeable
    if array.size and array.ndim <= 3:
        theirs = read_sn3_pascalvincent_tensor(str(tmp_path / "plain-ubyte"))
        np.testing.assert_array_equal(ours, theirs.numpy())


def test_idx_pair_gives_one_channel(tmp_path: Path, write_idx, rng: np.random.Generator) -> None:
    pixels, classes = rng.integers(0, 256, (6, 4, 5)), rng.integers(0, 10, 6)
    write_idx(tmp_path / "images.gz", pixels)
    write_idx(tmp_path / "labels.gz", classes)
    images, labels = read_idx_pair([tmp_path / "images.gz", tmp_path / "labels.gz"])
    np.testing.assert_array_equal(images, pixels[:, None])
    np.testing.assert_array_equal(labels, classes)
    assert labels.dtype == np.int64
    write_idx(tmp_path / "labels.gz", classes[:5])
    with pytest.raises(UserError, match=r"expected images \(N, height, width\) with N labels"):
        read_idx_pair([tmp_path / "images.gz", tmp_path / "labels.gz"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"PK\3\4 something else", "not an IDX file"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1]) + b"\0" * 4, "only unsigned bytes"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 9]) + b"\0" * 4, "promises 17 bytes, it has 12"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 2]) + b"\0" * 4, "promises 10 bytes, it has 12"),
        (bytes([0, 0, 8, 3, 0, 0]), "it has 6"),
        (bytes([0, 0, 8, 4]) + b"\xff" * 16, "promises"),
    ],
)
def test_damaged_idx_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    for path, stored in ((tmp_path / "file", content), (tmp_path / "file.gz", gzip.compress(content))):
        path.write_bytes(stored)
        with pytest.raises(UserError, match=message) as error:
            read_idx(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("cut", [0, 5, 15, 40, -1])
def test_truncated_gzip_is_named(tmp_path: Path, write_idx, rng: np.random.Generator, cut: int) -> None:
    path = tmp_path / "images.gz"
    write_idx(path, rng.integers(0, 256, (4, 5, 5)))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="damaged"):
        read_idx(path)


def test_gzip_with_a_flipped_bit_is_named(tmp_path: Path, write_idx, rng: np.random.Generator) -> None:
    path = tmp_path / "images.gz"
    write_idx(path, rng.integers(0, 256, (4, 5, 5)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_idx(path)


def test_cifar_reads_what_torchvision_reads(tmp_path: Path, write_cifar, rng: np.random.Generator, monkeypatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        write_cifar(folder / name, rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, 4))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    theirs = CIFAR10(str(tmp_path), train=True)
    images, labels = read_cifar([folder / f"data_batch_{i}" for i in range(1, 6)])
    np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), theirs.data)
    assert labels.tolist() == theirs.targets


def test_cifar100_takes_the_fine_labels(tmp_path: Path, write_cifar, rng: np.random.Generator) -> None:
    write_cifar(tmp_path / "train", rng.integers(0, 256, (3, 3, 32, 32), dtype=np.uint8), [99, 0, 5], "fine_labels")
    assert read_cifar([tmp_path / "train"])[1].tolist() == [99, 0, 5]


class Attack:
    """A pickle of this would make a file as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    victim = tmp_path / "was-here"
    content = pickle.dumps({"data": Attack(victim), "labels": []})
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(UserError, match="which data does not need"):
        unpickle(tmp_path / "batch")
    assert not victim.exists()
    pickle.loads(content)
    assert victim.exists(), "the attack itself must work, or this test shows nothing"


@pytest.mark.parametrize("call", ["builtins.eval", "os.system", "numpy.load", "_codecs.encode", "numpy.memmap"])
def test_a_pickle_gets_no_other_name(tmp_path: Path, call: str) -> None:
    module, name = call.rsplit(".", 1)
    (tmp_path / "batch").write_bytes(f"c{module}\n{name}\n(S'1'\ntR.".encode())
    with pytest.raises(UserError, match=call):
        unpickle(tmp_path / "batch")


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps({"data": np.zeros(9)})[:-20], b"\x80\x05\x95" + b"\xff" * 8]
)
def test_damaged_pickle_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(UserError, match="batch is damaged"):
        unpickle(tmp_path / "batch")


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2],
        {"labels": [1]},
        {"data": np.zeros((1, 3071), np.uint8), "labels": [1]},
        {"data": np.zeros((1, 3072)), "labels": [1]},
        {"data": np.zeros((1, 3072), np.uint8), "labels": [1, 2]},
        {"data": np.zeros((1, 3072), np.uint8), "labels": ["cat"]},
        {"data": np.array([[None] * 3072]), "labels": [1]},
    ],
)
def test_a_batch_of_another_shape_is_refused(tmp_path: Path, batch: object) -> None:
    (tmp_path / "batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(UserError, match="batch is damaged"):
        read_cifar([tmp_path / "batch"])


def test_kmnists_npz_pair(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels, classes = rng.integers(0, 256, (5, 4, 4), dtype=np.uint8), np.arange(5, dtype=np.uint8)
    np.savez_compressed(tmp_path / "imgs.npz", pixels)
    np.savez_compressed(tmp_path / "labels.npz", classes)
    images, labels = read_npz_pair([tmp_path / "imgs.npz", tmp_path / "labels.npz"])
    np.testing.assert_array_equal(images[:, 0], np.load(tmp_path / "imgs.npz")["arr_0"])
    assert labels.tolist() == [0, 1, 2, 3, 4]
    np.savez(tmp_path / "imgs.npz", pixels.astype(float))
    with pytest.raises(UserError, match="float64, expected uint8"):
        read_npz_pair([tmp_path / "imgs.npz", tmp_path / "labels.npz"])


def test_svhn_reads_what_torchvision_reads(tmp_path: Path, rng: np.random.Generator, monkeypatch) -> None:
    from torchvision.datasets import SVHN

    file = tmp_path / "train_32x32.mat"
    savemat(
        file, {"X": rng.integers(0, 256, (32, 32, 3, 7), dtype=np.uint8), "y": np.array([[1, 10, 2, 9, 10, 5, 3]]).T}
    )
    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    theirs = SVHN(str(tmp_path), split="train")
    images, labels = read_svhn([file])
    np.testing.assert_array_equal(images, theirs.data)
    assert labels.tolist() == theirs.labels.tolist() == [1, 0, 2, 9, 0, 5, 3]
    assert torch.from_numpy(images).is_contiguous()


def test_damaged_matlab_files_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    file = tmp_path / "train_32x32.mat"
    pixels = rng.integers(0, 256, (32, 32, 3, 7), dtype=np.uint8)
    savemat(file, {"X": pixels, "y": np.ones((7, 1))})
    content = file.read_bytes()
    for cut in (0, 100, 500, 5000):
        file.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"train_32x32\.mat is damaged"):
            read_svhn([file])
    for content_ in (
        {"X": pixels},
        {"y": np.ones(7)},
        {"X": pixels, "y": np.ones(6)},
        {"X": pixels[0], "y": np.ones(7)},
    ):
        savemat(file, content_)
        with pytest.raises(UserError, match="damaged"):
            read_svhn([file])
