"""Anything that postgrad saved, loaded by its manifest: arms, runs, exported files; all else is refused."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from postgrad import _loading, create_model, load, save
from postgrad._loading import load_classifier
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.models.export import export
from postgrad.models.network import NetworkClassifier

IMAGES = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)


def save_arm(directory: Path) -> None:
    network = create_model("mlp", num_classes=3, in_channels=1, image_size=8)
    save(network, directory, preprocess=Preprocessing(mean=(0.5,), std=(0.5,)), class_names="abc")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for arm in ("base", "gradnet"):
        save_arm(tmp_path / "run" / arm)
    (tmp_path / "run" / "results.json").write_text(json.dumps({"recommended": "gradnet"}))
    return tmp_path / "run"


def test_an_arm_is_loaded_without_a_word(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(load(run / "base"), torch.nn.Module)
    assert capsys.readouterr() == ("", "")


def test_a_run_is_its_recommended_arm_and_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = load(str(run))
    assert torch.equal(network.l0.weight, load(run / "gradnet").l0.weight)
    assert not torch.equal(network.l0.weight, load(run / "base").l0.weight)
    assert capsys.readouterr() == ("", f"{run}: using gradnet, which its validation data recommends\n")


def test_a_network_becomes_a_classifier(run: Path) -> None:
    classifier = load_classifier(run, device="cpu")
    assert isinstance(classifier, NetworkClassifier)
    assert classifier.class_names == ("a", "b", "c")
    assert classifier.preprocess == Preprocessing(mean=(0.5,), std=(0.5,))
    assert classifier.predict_proba(IMAGES).shape == (2, 3)


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_an_exported_file_becomes_a_classifier(run: Path, tmp_path: Path, format: str) -> None:
    network = load(run / "base")
    export(network, tmp_path / f"net.{format}", format=format, example=torch.rand(2, 1, 8, 8))
    expected = load_classifier(run / "base", device="cpu").predict_proba(IMAGES)
    np.testing.assert_allclose(load_classifier(tmp_path / f"net.{format}").predict_proba(IMAGES), expected, atol=1e-6)


def test_an_exported_file_that_says_no_preprocessing(tmp_path: Path) -> None:
    export(torch.nn.Flatten(), tmp_path / "net.onnx", format="onnx", example=torch.rand(2, 1, 8, 8))
    with pytest.raises(UserError, match="does not say how images reach it"):
        load_classifier(tmp_path / "net.onnx")


@pytest.mark.parametrize("target", _loading._LOADERS.values())
def test_everything_in_the_table_exists(target: str) -> None:
    module, _, names = target.partition(":")
    loader: Any = importlib.import_module(module)
    for name in names.split("."):
        loader = getattr(loader, name)
    assert callable(loader)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"recommended": "control-finetune"}, "recommends no arm that is here; name one: base, gradnet"),
        ({}, "recommends no arm that is here; name one: base, gradnet"),
        ([], "expected a JSON object, got list"),
        (None, "not readable as JSON"),
    ],
)
def test_a_run_that_recommends_nothing(run: Path, results: object, message: str) -> None:
    (run / "results.json").write_text("{" if results is None else json.dumps(results))
    with pytest.raises(UserError, match=message):
        load(run)


def test_what_postgrad_did_not_save(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a saved model \(no manifest\.json\) nor a run"):
        load(tmp_path)
    with pytest.raises(UserError, match="neither a saved model"):
        load(tmp_path / "gone")


def test_a_manifest_cannot_name_code(run: Path) -> None:
    manifest = json.loads((run / "base" / "manifest.json").read_text())
    (run / "base" / "manifest.json").write_text(json.dumps(manifest | {"kind": "os:system"}))
    with pytest.raises(UserError, match=r"unknown kind of model in .* 'os:system'"):
        load(run / "base")
