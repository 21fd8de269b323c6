"""Networks on disk: the same network comes back, nothing of this machine goes in, and nothing is guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from postgrad import create_model, load, save
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.models.source import source_of

PREPROCESS = Preprocessing(size=32, mean=(0.5,), std=(0.25,))
NET = """
import torch
class Net(torch.nn.Sequential):
    def __init__(self, num_classes, width=4):
        super().__init__(torch.nn.Flatten(), torch.nn.LazyLinear(width), torch.nn.Linear(width, num_classes))
        self(torch.zeros(1, 3, 8, 8))
"""


class Own(nn.Module):
    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.a = nn.Linear(3, num_classes, bias=False)
        self.b = nn.Linear(3, num_classes, bias=False)
        self.b.weight = self.a.weight  # tied

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x.mean((2, 3))) + self.b(x.amax((2, 3)))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "mine.py").write_text(NET)
    return tmp_path


@pytest.mark.parametrize("spec", ["seed-cnn", "mlp", "resnet20", "torchvision:shufflenet_v2_x0_5", "timm:resnet10t"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_network_comes_back(tmp_path: Path, spec: str, dtype: torch.dtype) -> None:
    network = create_model(spec, num_classes=3).to(dtype).eval()
    save(network, tmp_path / "net", preprocess=PREPROCESS, class_names=("cat", "dog", "Äffchen"))
    again = load(tmp_path / "net")
    x = torch.rand(2, 3, 24, 24, dtype=dtype) if spec == "seed-cnn" else torch.rand(2, 3, 32, 32, dtype=dtype)
    assert torch.equal(again(x), network(x))
    assert (again.preprocess, again.class_names) == (PREPROCESS, ("cat", "dog", "Äffchen"))
    assert not again.training
    assert source_of(again) == source_of(network)
    assert sorted(file.name for file in (tmp_path / "net").iterdir()) == ["manifest.json", "model.safetensors"]


def test_what_is_not_given_comes_from_the_network(tmp_path: Path) -> None:
    save(create_model("mlp", num_classes=3), tmp_path / "a", preprocess=PREPROCESS, class_names="abc")
    save(load(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "b" / "manifest.json").read_text() == (tmp_path / "a" / "manifest.json").read_text()


def test_nothing_is_saved_without_preprocessing_and_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="with its preprocessing and class names"):
        save(create_model("mlp", num_classes=3), tmp_path / "a", class_names="abc")
    assert not (tmp_path / "a").exists()


def test_a_networks_own_file_is_found_from_its_folder(here: Path) -> None:
    network = create_model("nets/mine.py:Net", num_classes=3)
    save(network, "saved", preprocess=PREPROCESS, class_names="abc")
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(load("saved")(x), network(x))


@pytest.mark.parametrize("given", ["nets/mine.py", "{here}/nets/mine.py", "./nets/../nets/mine.py"])
def test_the_manifest_holds_no_path_of_this_machine(here: Path, given: str) -> None:
    network = create_model(f"{given.format(here=here)}:Net", num_classes=3)
    save(network, "saved", preprocess=PREPROCESS, class_names="abc")
    manifest = Path("saved/manifest.json").read_text()
    assert str(here) not in manifest
    assert json.loads(manifest)["source"]["factory_file"]["name"] == "nets/mine.py"
    load("saved")


def test_a_file_outside_the_folder_is_known_by_its_bare_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    save(create_model(f"{here}/nets/mine.py:Net", num_classes=3), "saved", preprocess=PREPROCESS, class_names="abc")
    with pytest.raises(UserError, match=r"mine\.py:Net: the file mine\.py that makes this network is not here"):
        load("saved")
    monkeypatch.chdir(here / "nets")
    load(here / "elsewhere" / "saved")


def test_a_file_that_has_changed_is_not_run(here: Path) -> None:
    save(create_model("nets/mine.py:Net", num_classes=3), "saved", preprocess=PREPROCESS, class_names="abc")
    Path("nets/mine.py").write_text(NET + "\nraise SystemExit('this ran')\n")
    with pytest.raises(UserError, match=r"nets/mine\.py has changed since .*… then, .*… now\); load\(…, factory=\)"):
        load("saved")
    Path("nets/mine.py").write_text(NET + "\n# a comment\n")
    load("saved", factory="nets/mine.py:Net")


def test_a_file_that_was_given_options_is_not_called_with_them_by_a_manifest(here: Path) -> None:
    network = create_model("nets/mine.py:Net", num_classes=3, width=6)
    save(network, "saved", preprocess=PREPROCESS, class_names="abc")
    with pytest.raises(UserError, match=r"was called with options of its own \(width\)"):
        load("saved")
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(load("saved", factory="nets/mine.py:Net")(x), network(x))


def test_a_manifest_cannot_call_a_function_with_arguments(tmp_path: Path) -> None:
    save(create_model("mlp", num_classes=3), tmp_path, preprocess=PREPROCESS, class_names="abc")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["source"] |= {"spec": "pathlib:Path.touch", "kwargs": {"self": str(tmp_path / "ran")}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="options of its own"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_network_of_the_users_own_code_needs_the_factory(tmp_path: Path) -> None:
    network = Own()
    save(network, tmp_path, preprocess=PREPROCESS, class_names="ab")
    with pytest.raises(UserError, match=r"made by code of its own; load\(…, factory=\)"):
        load(tmp_path)
    again = load(tmp_path, factory=Own)
    assert again.a.weight is again.b.weight
    assert torch.equal(again.a.weight, network.a.weight)


def test_a_factory_of_another_network_is_refused(tmp_path: Path) -> None:
    save(Own(), tmp_path, preprocess=PREPROCESS, class_names="ab")
    with pytest.raises(UserError, match=r"model\.safetensors does not fit the network: missing: bias, weight"):
        load(tmp_path, factory=lambda: nn.Linear(3, 2))


def test_weights_that_are_not_numbers_are_not_saved(tmp_path: Path) -> None:
    network = create_model("mlp", num_classes=3)
    network.l1.bias.data[0] = float("nan")
    with pytest.raises(UserError, match=r"NaN or infinity: l1\.bias"):
        save(network, tmp_path / "a", preprocess=PREPROCESS, class_names="abc")
    assert not (tmp_path / "a").exists()


def break_manifest(directory: Path, **changes: Any) -> None:
    file = directory / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "not a manifest of format 1"),
        ({"kind": "gradnot"}, "unknown kind of model .*'gradnot': did you mean 'gradnet'"),
        ({"dtype": "float8"}, r"manifest\.json: dtype: should be"),
        ({"preprocess": {"size": -4}}, r"preprocess\.size"),
        ({"more": 1}, "unknown setting 'more'"),
        ({"source": {"spec": "mlp"}}, r"source\.num_classes: missing"),
    ],
)
def test_a_manifest_that_makes_no_sense(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save(create_model("mlp", num_classes=3), tmp_path, preprocess=PREPROCESS, class_names="abc")
    break_manifest(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "\x00\xff"])
def test_a_manifest_that_is_no_json_object(tmp_path: Path, content: str) -> None:
    save(create_model("mlp", num_classes=3), tmp_path, preprocess=PREPROCESS, class_names="abc")
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        load(tmp_path)


def test_missing_and_truncated_weights(tmp_path: Path) -> None:
    save(create_model("mlp", num_classes=3), tmp_path, preprocess=PREPROCESS, class_names="abc")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged or cut off"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="no such weights file"):
        load(tmp_path)


def test_saving_onto_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/taken"):
        save(create_model("mlp", num_classes=3), tmp_path / "taken", preprocess=PREPROCESS, class_names="abc")
