"""The order in which preprocessing is found: flags, manifest, the network's own word, the data's default."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from postgrad import create_model, load, save
from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.errors import UserError
from postgrad.models.preprocessing import resolve_preprocessing

DATA = SimpleNamespace(name="cifar10", preprocess=Preprocessing(size=30, crop=28), augmentation=Augmentation(flip=True))
NORMALISED = {"mean": (0.5,), "std": (0.2,)}


def test_the_data_set_has_the_last_word() -> None:
    network = create_model("resnet20", num_classes=10)
    assert resolve_preprocessing({}, network, DATA) == (DATA.preprocess, DATA.augmentation, "the default for cifar10")


def test_the_networks_own_word_comes_before_it() -> None:
    network = create_model("seed-cnn", num_classes=10)
    found = resolve_preprocessing({"size": None}, network, DATA)
    assert found == (network.preprocess, network.augmentation, "the word of seed-cnn itself")


def test_the_manifest_comes_before_the_networks_own_word(tmp_path: Path) -> None:
    saved = Preprocessing(size=26, crop=24)
    save(create_model("seed-cnn", num_classes=3), tmp_path, preprocess=saved, class_names="abc")
    preprocess, _, origin = resolve_preprocessing({}, load(tmp_path), DATA)
    assert (preprocess, origin) == (saved, "the checkpoint's manifest")


def test_a_network_of_nobody_in_particular() -> None:
    network = torch.nn.Linear(2, 2)
    network.preprocess = {"crop": 5}
    assert resolve_preprocessing({}, network, DATA)[::2] == (Preprocessing(crop=5), "the network itself")


@pytest.mark.parametrize(
    ("own", "flags", "expected"),
    [
        ({"crop": 24, "per_image_standardise": True}, {"crop": 20}, {"crop": 20, "per_image_standardise": True}),
        ({"crop": 24, "per_image_standardise": True}, NORMALISED, {"crop": 24, **NORMALISED}),
        ({"size": 9, **NORMALISED}, {"per_image_standardise": True}, {"size": 9, "per_image_standardise": True}),
        ({"size": 256, "crop": 224}, {"size": 224}, {"size": 224, "crop": 224}),
        ({"size": 256, "crop": 224}, {"size": 32}, {"size": 32}),
        ({"size": 256, "crop": 224}, {"crop": 300}, {"size": 300, "crop": 300}),
        ({"size": 256, "crop": 224}, {"crop": 32}, {"size": 256, "crop": 32}),
    ],
)
def test_flags_replace_their_part_and_what_contradicts_them(
    own: dict[str, Any], flags: dict[str, Any], expected: dict[str, Any]
) -> None:
    network = torch.nn.Linear(2, 2)
    network.preprocess = own
    preprocess, _, origin = resolve_preprocessing(flags, network, DATA)
    assert preprocess == Preprocessing(**expected)
    assert origin.startswith("--")
    assert origin.endswith("the rest from the network itself")


@pytest.mark.parametrize("flags", [{"mean": (0.5,)}, {"crop": 9, "size": 8}, {"croop": 3}, {"size": -1}])
def test_flags_that_make_no_sense_name_themselves(flags: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^--{next(iter(flags))}"):
        resolve_preprocessing(flags, create_model("resnet20", num_classes=10), DATA)
