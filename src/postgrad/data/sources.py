"""The published data sets: where their files lie, their checksums, where they come from, their defaults."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from postgrad.data.containers import Found, Images
from postgrad.data.download import Remote, download
from postgrad.data.formats import (
    Arrays,
    damaged,
    read_cifar,
    read_idx_pair,
    read_npz_pair,
    read_svhn,
    unpickle,
)
from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.errors import UserError

_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_DIGITS = tuple("0123456789")
_GREY_AUGMENTATION = Augmentation(pad=2, crop=True)
_PHOTO_AUGMENTATION = Augmentation(pad=4, crop=True, flip=True)


@dataclass(frozen=True)
class Layout:
    """One form in which the files of a data set may lie in a folder; idx files may be gzipped."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    read: Callable[[Sequence[Path]], Arrays]
    names: str | None = None
    """A pickle with the class names, where they are not known beforehand."""

    def files(self, part: Literal["train", "test"]) -> tuple[str, ...]:
        """The files that one part needs."""
        return (self.train if part == "train" else self.test) + ((self.names,) if self.names else ())


@dataclass(frozen=True)
class Source:
    """A published data set."""

    layouts: tuple[Layout, ...]
    preprocess: Preprocessing
    augmentation: Augmentation
    md5: Mapping[str, str]
    remotes: tuple[Remote, ...]
    class_names: tuple[str, ...] = field(default=())


def _idx(folder: str) -> Layout:
    return Layout(folder, _IDX_FILES[:2], _IDX_FILES[2:], read_idx_pair)


def _idx_remotes(base: str, folder: str, md5: Mapping[str, str]) -> tuple[Remote, ...]:
    return tuple(Remote(f"{base}{name}.gz", md5.get(f"{name}.gz"), folder) for name in _IDX_FILES)


def _grey(mean: float, std: float) -> Preprocessing:
    return Preprocessing(mean=(mean,), std=(std,))


_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
_FASHION_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
_KMNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
    "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
    "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
    "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
    "kmnist-test-imgs.npz": "dace6de62ca8b90843cc45366337d02e",
    "kmnist-test-labels.npz": "3ae489a79983d0fe386152684e3b5412",
}
# Nobody publishes checksums for this conversion; these are of its repository's files (not of its training images).
_NOTMNIST_MD5 = {
    "train-labels-idx1-ubyte.gz": "eab59f88903339e01dac19deed3824c0",
    "t10k-images-idx3-ubyte.gz": "2c87c839a4ef9b238846600eec8c35b7",
    "t10k-labels-idx1-ubyte.gz": "7ea9118cbafd0f6e3ee2ad771d782a01",
}
_CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_CIFAR100_MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
_SVHN_MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
_TORONTO = "https://www.cs.toronto.edu/~kriz"
_STANFORD = "http://ufldl.stanford.edu/housenumbers"
_NOTMNIST = "https://github.com/davidflanagan/notMNIST-to-MNIST/raw/master/"

SOURCES: dict[str, Source] = {
    "mnist": Source(
        layouts=(_idx("MNIST/raw"), _idx("MNIST")),
        preprocess=_grey(0.1307, 0.3081),
        augmentation=_GREY_AUGMENTATION,
        md5=_MNIST_MD5,
        remotes=_idx_remotes("https://ossci-datasets.s3.amazonaws.com/mnist/", "MNIST/raw", _MNIST_MD5),
        class_names=_DIGITS,
    ),
    "fashion-mnist": Source(
        layouts=(_idx("FashionMNIST/raw"), _idx("FashionMNIST")),
        preprocess=_grey(0.2860, 0.3530),
        augmentation=_GREY_AUGMENTATION,
        md5=_FASHION_MD5,
        remotes=_idx_remotes(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", "FashionMNIST/raw", _FASHION_MD5
        ),
        class_names=(
            *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
            *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
        ),
    ),
    "kmnist": Source(
        layouts=(
            Layout(
                "KMNIST",
                ("kmnist-train-imgs.npz", "kmnist-train-labels.npz"),
                ("kmnist-test-imgs.npz", "kmnist-test-labels.npz"),
                read_npz_pair,
            ),
            _idx("KMNIST/raw"),
        ),
        preprocess=_grey(0.1918, 0.3483),
        augmentation=_GREY_AUGMENTATION,
        md5=_KMNIST_MD5,
        remotes=_idx_remotes("http://codh.rois.ac.jp/kmnist/dataset/kmnist/", "KMNIST/raw", _KMNIST_MD5),
        class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
    "notmnist": Source(
        layouts=(_idx("notMNIST"), _idx("notMNIST/raw")),
        preprocess=_grey(0.4229, 0.4573),
        augmentation=_GREY_AUGMENTATION,
        md5=_NOTMNIST_MD5,
        remotes=_idx_remotes(_NOTMNIST, "notMNIST", _NOTMNIST_MD5),
        class_names=tuple("ABCDEFGHIJ"),
    ),
    "cifar10": Source(
        layouts=(
            Layout("cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",), read_cifar),
        ),
        preprocess=Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        augmentation=_PHOTO_AUGMENTATION,
        md5=_CIFAR10_MD5,
        remotes=(Remote(f"{_TORONTO}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", ""),),
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "cifar100": Source(
        layouts=(Layout("cifar-100-python", ("train",), ("test",), read_cifar, names="meta"),),
        preprocess=Preprocessing(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
        augmentation=_PHOTO_AUGMENTATION,
        md5=_CIFAR100_MD5,
        remotes=(Remote(f"{_TORONTO}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", ""),),
    ),
    "svhn": Source(
        layouts=tuple(Layout(folder, ("train_32x32.mat",), ("test_32x32.mat",), read_svhn) for folder in ("SVHN", ".")),
        preprocess=Preprocessing(mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970)),
        augmentation=Augmentation(pad=4, crop=True),
        md5=_SVHN_MD5,
        remotes=tuple(Remote(f"{_STANFORD}/{name}", md5, "SVHN") for name, md5 in _SVHN_MD5.items()),
        class_names=_DIGITS,
    ),
}


def read_source(name: str, folder: Path) -> Found:
    """Read a published data set from a data folder, fetching its files into it where none are there."""
    source = SOURCES[name]
    parts = {part: _locate(source, folder, part) for part in ("train", "test")}
    failure = ""
    if not any(parts.values()):
        failure = download(source.remotes, folder)
        parts = {part: _locate(source, folder, part) for part in ("train", "test")}
    if not any(parts.values()):
        raise UserError(_not_found(name, source, folder, failure))
    class_names, read, notes = source.class_names, {}, []
    for part, located in parts.items():
        if located is None:
            absent, present = ("training", "test") if part == "train" else ("test", "training")
            notes.append(f"{name}: {folder} has no {absent} images; only the {present} images are used.")
            continue
        layout, paths = located
        for path in paths:
            _verify(path, source.md5)
        if layout.names:
            class_names = _class_names(paths.pop())
        images, labels = layout.read(paths)
        read[part] = Images(torch.from_numpy(images), torch.from_numpy(labels))
    return Found(read.get("train"), read.get("test"), class_names, tuple(notes))


def _locate(source: Source, folder: Path, part: Literal["train", "test"]) -> tuple[Layout, list[Path]] | None:
    """The files of one part in the first layout that has them all; half of them is a mistake worth telling."""
    incomplete = []
    for layout in source.layouts:
        wanted = [_either(folder / layout.folder / name) for name in layout.files(part)]
        missing = [path for path in wanted if not path.is_file()]
        if not missing:
            return layout, wanted
        if any(path.is_file() and path.name != layout.names for path in wanted):
            incomplete += missing
    if incomplete:
        names = ", ".join(path.name for path in incomplete)
        raise UserError(f"{incomplete[0].parent} is incomplete: {names} missing; fetch what is missing")
    return None


def _either(path: Path) -> Path:
    """The gzipped file of this name if there is one."""
    gzipped = path.with_name(path.name + ".gz")
    return gzipped if gzipped.is_file() else path


def _verify(path: Path, md5: Mapping[str, str]) -> None:
    expected = md5.get(path.name)
    if expected is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise damaged(path, f"its MD5 is {found}, the published file has {expected}")


def _class_names(path: Path) -> tuple[str, ...]:
    content = unpickle(path)
    names = content.get("fine_label_names") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise damaged(path, "no `fine_label_names`")
    return tuple(names)


def _not_found(name: str, source: Source, folder: Path, failure: str) -> str:
    layout = source.layouts[0]
    ending = " (or .gz)" if layout.read is read_idx_pair else ""
    files = ", ".join(dict.fromkeys(layout.files("train") + layout.files("test")))
    return (
        f"{name}: not found in {folder}: looked for {Path(layout.folder) / ''}: {files}{ending}; fetching it failed "
        f"({failure}); put the files there, or say with --data-dir where they are"
    )
