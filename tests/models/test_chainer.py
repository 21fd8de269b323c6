"""Snapshots as Chainer wrote them: archives of arrays under any file name, read without pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from postgrad import create_model
from postgrad.errors import UserError
from postgrad.models.chainer import is_chainer_snapshot
from postgrad.models.weights import load_weights

SHAPES = {
    "c0/W": (64, 3, 5, 5),
    "c0/b": (64,),
    "c1/W": (64, 64, 5, 5),
    "c1/b": (64,),
    "l1/W": (10, 2304),
    "l1/b": (10,),
}


def write_snapshot(file: Path, prefix: str = "updater/model:main/predictor/", **changes: Any) -> dict[str, np.ndarray]:
    """A snapshot like the released ones, with momentum beside the weights; returns the weights."""
    rng = np.random.default_rng(0)
    weights = {key: rng.normal(size=shape).astype(np.float32) for key, shape in SHAPES.items()}
    entries = {f"{prefix}{key}": value for key, value in weights.items()}
    entries |= {f"updater/optimizer:main/predictor/{key}/v": value * 0 for key, value in weights.items()}
    entries |= {"updater/iteration": np.array(91016), **changes}
    with open(file, "wb") as handle:
        np.savez_compressed(handle, **entries)
    return weights


@pytest.mark.parametrize("prefix", ["updater/model:main/predictor/", "predictor/"])
@pytest.mark.parametrize("name", ["snapshot_iter_91016", "base.npz"])
def test_the_weights_are_read(tmp_path: Path, prefix: str, name: str) -> None:
    expected = write_snapshot(tmp_path / name, prefix)
    assert is_chainer_snapshot(tmp_path / name)
    network = create_model("seed-cnn", num_classes=10)
    load_weights(network, tmp_path / name)
    for key, value in expected.items():
        ours = key.replace("/W", ".weight").replace("/b", ".bias")
        np.testing.assert_array_equal(network.get_parameter(ours).detach().numpy(), value)


def test_another_network_is_refused_key_by_key(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot")
    network = create_model("seed-cnn", num_classes=10, in_channels=1, image_size=28)
    with pytest.raises(UserError, match=r"shape: c0\.weight is \(64, 3, 5, 5\), the network has \(64, 1, 5, 5\)"):
        load_weights(network, tmp_path / "snapshot")
    with pytest.raises(UserError, match=r"missing: .*unexpected: c0\.bias"):
        load_weights(create_model("mlp", num_classes=10), tmp_path / "snapshot")


def test_an_incomplete_snapshot_names_what_is_missing(tmp_path: Path) -> None:
    with open(tmp_path / "snapshot", "wb") as handle:
        np.savez(handle, **{"predictor/c0/W": np.zeros((64, 3, 5, 5), np.float32)})
    with pytest.raises(UserError, match=r"missing: c0\.bias, c1\.bias, c1\.weight, l1\.bias, l1\.weight"):
        load_weights(create_model("seed-cnn", num_classes=10), tmp_path / "snapshot")


class Payload:
    def __reduce__(self) -> Any:
        return pytest.fail, ("the snapshot ran code",)


def test_pickled_entries_are_not_opened(tmp_path: Path) -> None:
    evil = np.array([Payload()], dtype=object)
    write_snapshot(tmp_path / "snapshot", **{"updater/model:main/predictor/c0/W": evil})
    with pytest.raises(UserError, match="damaged or cut off"):
        load_weights(create_model("seed-cnn", num_classes=10), tmp_path / "snapshot")


def test_pickled_entries_beside_the_weights_are_left_alone(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot", **{"extensions/LogReport/_log": np.array([Payload()], dtype=object)})
    load_weights(create_model("seed-cnn", num_classes=10), tmp_path / "snapshot")


def test_a_corrupt_entry_is_told(tmp_path: Path) -> None:
    file = tmp_path / "snapshot"
    write_snapshot(file)
    content = bytearray(file.read_bytes())
    content[2000:3000] = bytes(1000)
    file.write_bytes(content)
    with pytest.raises(UserError, match="this Chainer snapshot is damaged or cut off"):
        load_weights(create_model("seed-cnn", num_classes=10), file)


def test_other_archives_are_no_snapshots(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x_train=np.zeros(3))
    torch.save({"predictor/c0/W": torch.zeros(3)}, tmp_path / "w.pt")
    (tmp_path / "text").write_text("predictor/c0/W")
    assert not any(is_chainer_snapshot(tmp_path / name) for name in ("data.npz", "w.pt", "text"))
