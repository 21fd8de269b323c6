"""Weights from files: what fits is loaded, what does not is named key by key, and no file runs code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from postgrad import create_model
from postgrad.errors import UserError
from postgrad.models.weights import fit_weights, load_weights
from postgrad.training.state import copy_of_weights

State = dict[str, torch.Tensor]


@pytest.fixture
def trained() -> nn.Module:
    torch.manual_seed(1)
    return create_model("resnet20", num_classes=4)


def fresh() -> nn.Module:
    torch.manual_seed(2)
    return create_model("resnet20", num_classes=4)


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.1},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "ddp": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "compiled inside ddp": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "ddp inside compiled": lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
    "one layer compiled": lambda state: {key.replace("layer2.", "layer2._orig_mod."): v for key, v in state.items()},
    "before batch norm counted": lambda state: {k: v for k, v in state.items() if not k.endswith("batches_tracked")},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_pytorch_file_is_unwrapped(trained: nn.Module, tmp_path: Path, wrapping: str, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    torch.save(WRAPPINGS[wrapping](trained.state_dict()), file)
    network = fresh()
    load_weights(network, file)
    assert_same(network, trained)


def test_safetensors(trained: nn.Module, tmp_path: Path) -> None:
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "w.safetensors")
    network = fresh()
    load_weights(network, str(tmp_path / "w.safetensors"))
    assert_same(network, trained)


def test_a_network_that_is_itself_called_module(tmp_path: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 3)

    torch.save(Wrapper().state_dict(), tmp_path / "w.pt")
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "bare.pt")
    load_weights(Wrapper(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"missing: module\.bias, module\.weight; unexpected: bias, weight"):
        load_weights(Wrapper(), tmp_path / "bare.pt")


def test_another_architecture_is_named_key_by_key_and_nothing_is_loaded(trained: nn.Module, tmp_path: Path) -> None:
    state = trained.state_dict()
    state["head.weight"] = state.pop("fc.weight")
    state["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    torch.save(state, tmp_path / "w.pt")
    network, before = fresh(), fresh()
    with pytest.raises(UserError) as caught:
        load_weights(network, tmp_path / "w.pt")
    assert str(caught.value) == (
        f"{tmp_path / 'w.pt'} does not fit the network: missing: fc.weight; unexpected: head.weight; "
        f"shape: conv1.weight is (16, 1, 3, 3), the network has (16, 3, 3, 3). Nothing was loaded"
    )
    assert_same(network, before)


def test_long_lists_are_cut(trained: nn.Module, tmp_path: Path) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"missing: c0\.bias, .*unexpected: bn1\.bias, .* and \d+ more\. Nothing"):
        load_weights(create_model("seed-cnn", num_classes=4), tmp_path / "w.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(trained: nn.Module, tmp_path: Path, value: float) -> None:
    state = trained.state_dict()
    state["layer3.1.bn2.running_var"] = torch.full((64,), value)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"NaN or infinity: layer3\.1\.bn2\.running_var; take an earlier checkpoint"):
        load_weights(fresh(), tmp_path / "w.pt")


class Payload:
    """Unpickled, it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_the_payload_would_run(tmp_path: Path) -> None:
    torch.save({"w": Payload(tmp_path / "ran")}, tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_runs_code_is_not_opened(tmp_path: Path, zipped: bool) -> None:
    content = {"state_dict": {"w": Payload(tmp_path / "ran")}}
    torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="is not opened, since that could run code"):
        load_weights(fresh(), tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(UserError):
        load_weights(fresh(), tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_network_is_not_opened(trained: nn.Module, tmp_path: Path) -> None:
    torch.save(trained, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"save its state dict alone: torch\.save\(model\.state_dict\(\), file\)"):
        load_weights(fresh(), tmp_path / "w.pt")


@pytest.mark.parametrize("kept", [0, 1, 7, 100, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_a_file_cut_off_is_named(trained: nn.Module, tmp_path: Path, suffix: str, kept: float) -> None:
    file = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(trained.state_dict(), file)
    else:
        torch.save(trained.state_dict(), file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    with pytest.raises(UserError, match=f"^{file}: "):
        load_weights(fresh(), file)


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, torch.zeros(3), {"state_dict": {"w": [1.0]}}])
def test_a_pytorch_file_without_a_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="not a state dict"):
        load_weights(fresh(), tmp_path / "w.pt")


@pytest.mark.parametrize(("name", "message"), [("w.txt", "this is neither"), ("gone.pt", "no such weights file")])
def test_files_of_no_known_kind(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "w.txt").write_text("weights")
    with pytest.raises(UserError, match=message):
        load_weights(fresh(), tmp_path / name)


def test_some_other_zip_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pictures", "w") as archive:
        archive.writestr("cat.txt", "meow")
    with pytest.raises(UserError, match="damaged, cut off or of another kind"):
        load_weights(fresh(), tmp_path / "pictures")


class Versioned(nn.Linear):
    """A layer that refuses weights of an unknown version, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        assert local_metadata.get("version") == 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_layers_find_their_version_beside_weights_without_one() -> None:
    model, other = nn.Sequential(Versioned(3, 2)), nn.Sequential(Versioned(3, 2))
    fit_weights(other, dict(model.state_dict()), where="a file")
    assert torch.equal(other[0].weight, model[0].weight)
    other.load_state_dict(copy_of_weights(model))
