"""Exported networks: the file gives the original's logits for any number of images, or is not written."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from postgrad import create_model
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.models import export as module
from postgrad.models.export import export, load_exported
from postgrad.models.network import NetworkClassifier

FORMATS = ["safetensors", "pt2", "onnx"]


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    network = create_model("seed-cnn", num_classes=3)
    network.class_names = ("cat", "dog", "Äffchen")
    return network


@pytest.mark.parametrize("format", ["pt2", "onnx"])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_file_classifies_as_the_network_does(network: nn.Module, tmp_path: Path, format: str, batch: int) -> None:
    file = tmp_path / f"net.{format}"
    error = export(network.train(), file, format=format, example=torch.rand(batch, 3, 24, 24))
    assert 0 <= error < 1e-5
    assert network.training
    again = load_exported(file)
    assert (again.preprocess, again.class_names) == (network.preprocess, network.class_names)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    ours = NetworkClassifier(network, preprocess=network.preprocess, device="cpu", batch_size=2)
    theirs = NetworkClassifier(again, preprocess=again.preprocess, device="cpu", batch_size=3)
    np.testing.assert_allclose(theirs.predict_proba(images), ours.predict_proba(images), atol=1e-5)
    assert theirs.num_parameters == ours.num_parameters
    assert theirs.class_names == ours.class_names


def test_safetensors_hold_the_weights_exactly(network: nn.Module, tmp_path: Path) -> None:
    assert export(network, tmp_path / "net.safetensors", format="safetensors", example=torch.rand(1, 3, 24, 24)) == 0
    weights = safetensors.torch.load_file(tmp_path / "net.safetensors")
    assert all(torch.equal(weights[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("spec", ["resnet20", pytest.param("torchvision:resnet18", marks=pytest.mark.slow)])
@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_other_networks(tmp_path: Path, spec: str, format: str) -> None:
    network = create_model(spec, num_classes=3)
    assert export(network, tmp_path / f"net.{format}", format=format, example=torch.rand(2, 3, 32, 32)) < 1e-4


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_double_precision_stays(tmp_path: Path, format: str) -> None:
    network = create_model("mlp", num_classes=3, in_channels=1, image_size=4).double()
    example = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    assert export(network, tmp_path / f"net.{format}", format=format, example=example) < 1e-12


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_differs_is_not_written(
    network: nn.Module, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module._WRITERS[format]
    other = create_model("seed-cnn", num_classes=3).eval()
    monkeypatch.setitem(module._WRITERS, format, lambda network, pair: write(other, pair))
    with pytest.raises(UserError, match=r"differs from the original by .*; nothing was written"):
        export(network, tmp_path / "net", format=format, example=torch.rand(2, 3, 24, 24))
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_a_network_that_depends_on_its_values_cannot_be_expressed(tmp_path: Path, format: str) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    with pytest.raises(UserError, match=r"torch\.\w+ cannot express this network: "):
        export(Branching(), tmp_path / "net", format=format, example=torch.rand(2, 3, 4, 4))


def test_the_exporters_print_nothing(network: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for format in FORMATS:
        export(network, tmp_path / f"net.{format}", format=format, example=torch.rand(2, 3, 24, 24))
    assert capfd.readouterr() == ("", "")


def test_an_unknown_format(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown export format 'onxx': did you mean 'onnx'"):
        export(network, tmp_path / "net", format="onxx", example=torch.rand(2, 3, 24, 24))


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra_it_says_how_to_install_it(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r"pip install 'postgrad\[export\]'"):
        export(network, tmp_path / "net.onnx", format="onnx", example=torch.rand(2, 3, 24, 24))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """What a file of a small network holds, by its format."""

    @functools.cache
    def made(format: str) -> bytes:
        network = create_model("mlp", num_classes=3, in_channels=1, image_size=4)
        file = tmp_path_factory.mktemp("whole") / f"net.{format}"
        export(network, file, format=format, example=torch.rand(2, 1, 4, 4))
        return file.read_bytes()

    return made


@pytest.mark.parametrize("format", ["pt2", "onnx"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_file_cut_off_is_named(whole: Callable[[str], bytes], tmp_path: Path, format: str, kept: float) -> None:
    file, content = tmp_path / f"net.{format}", whole(format)
    file.write_bytes(content)
    load_exported(file)
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=f"^{file}: damaged, cut off or no"):
        load_exported(file)


@pytest.mark.parametrize(("name", "message"), [("gone.onnx", "cannot be read"), ("net.h5", r"end in \.pt2 or \.onnx")])
def test_files_that_are_no_exports(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_exported(tmp_path / name)


def test_images_that_do_not_fit_an_exported_network(network: nn.Module, tmp_path: Path) -> None:
    export(network, tmp_path / "net.onnx", format="onnx", example=torch.rand(2, 3, 24, 24))
    classifier = NetworkClassifier(load_exported(tmp_path / "net.onnx"), preprocess=Preprocessing(), device="cpu")
    with pytest.raises(UserError, match="it takes 3×24×24; got 3×32×32"):
        classifier.predict(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
