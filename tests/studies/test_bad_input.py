"""All that can be got wrong with `improve`, `score` and `predict`: exit code 2, and one line that says what to do."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from postgrad.cli import main
from postgrad.models.registry import create_model

NETS = """
import torch
from torch import nn


def seven_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))


def other_size(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(100, num_classes))


def three_channels(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, num_classes))


class Dictionary(nn.Linear):
    def forward(self, x):
        return {"logits": super().forward(x.flatten(1))}


def dictionary(num_classes):
    return Dictionary(64, num_classes)


class NotANumber(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)) / 0


def not_a_number(num_classes):
    return NotANumber(64, num_classes)


def breaks(num_classes):
    raise KeyError("depth")


def number():
    return 3
"""


class RunsCode:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """A folder full of mistakes."""
    folder, rng = tmp_path_factory.mktemp("bad"), np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 10
    arrays: dict[str, Any] = {"x_train": pixels, "y_train": labels, "x_test": pixels[::-1][:20], "y_test": labels[:20]}

    def npz(name: str, **changes: Any) -> Path:
        np.savez(folder / name, **{key: value for key, value in (arrays | changes).items() if value is not None})
        return folder / name

    def cut(name: str, whole: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])

    cut("cut.npz", npz("good.npz"))
    (folder / "noise.npz").write_bytes(rng.bytes(5000))
    npz("one-class.npz", y_train=labels * 0, y_test=labels[:20] * 0)
    npz("negative.npz", y_train=labels - 1)
    npz("too-large.npz", y_test=labels[:20] + 5)
    npz("nan.npz", **{f"x_{part}": np.full((n, 8, 8), np.nan) for part, n in (("train", 40), ("test", 20))})
    npz("constant.npz", **{f"x_{part}": np.full((n, 8, 8), 7, np.uint8) for part, n in (("train", 40), ("test", 20))})
    npz("test-only.npz", x_train=None, y_train=None)
    npz("three-images.npz", x_train=pixels[:3], y_train=labels[:3], x_test=pixels[:3], y_test=labels[:3])
    npz("larger.npz", x_test=rng.integers(0, 256, (20, 9, 9), dtype=np.uint8), x_train=None, y_train=None)

    (folder / "empty").mkdir()
    (folder / "no-pictures" / "cats").mkdir(parents=True)
    (folder / "no-pictures" / "cats" / "notes.txt").write_text("x")
    (folder / "one-class" / "cats").mkdir(parents=True)
    for number in range(6):
        Image.fromarray(pixels[number]).save(folder / "one-class" / "cats" / f"{number}.png")

    torch.manual_seed(0)
    weights = create_model("mlp", num_classes=10, in_channels=1, image_size=8).state_dict()
    save_file(create_model("resnet20", num_classes=10, in_channels=1).state_dict(), folder / "resnet.safetensors")
    save_file(weights | {"l0.bias": weights["l0.bias"] * torch.nan}, folder / "nan.safetensors")
    save_file(weights, folder / "good.safetensors")
    cut("cut.safetensors", folder / "good.safetensors")
    torch.save(weights, folder / "good.pt")
    cut("cut.pt", folder / "good.pt")
    torch.save(RunsCode(), folder / "code.pt")
    (folder / "text.pt").write_text("weights")
    (folder / "nets.py").write_text(NETS)
    save_file({"1.weight": torch.ones(10, 100), "1.bias": torch.ones(10)}, folder / "size.safetensors")
    save_file({"weight": torch.ones(10, 64), "bias": torch.ones(10)}, folder / "linear.safetensors")
    save_file({"1.weight": torch.ones(7, 64), "1.bias": torch.ones(7)}, folder / "seven.safetensors")
    with open(folder / "snapshot", "wb") as file:
        np.savez(file, **{"updater/model:main/predictor/c0/W": np.zeros((64, 3, 5, 5), np.float32)})

    for arm in ("base", "gradnet", "control-features"):
        shutil.copytree(finished / arm, folder / "runs" / "cut" / arm)
    cut("runs/cut/base/model.safetensors", finished / "base" / "model.safetensors")
    cut("runs/cut/gradnet/gradnet.safetensors", finished / "gradnet" / "gradnet.safetensors")
    cut("runs/cut/control-features/manifest.json", finished / "control-features" / "manifest.json")
    (folder / "runs" / "broken").mkdir()
    (folder / "runs" / "broken" / "config.yaml").write_text("model: [mlp\n")
    (folder / "runs" / "stranger").mkdir()
    (folder / "runs" / "stranger" / "config.yaml").write_text("colour: blue\n")
    (folder / "file").write_text("")
    return folder


DATA = {
    "missing folder": ("folder:{bad}/nowhere", "no such folder"),
    "missing file": ("npz:{bad}/nowhere.npz", "nowhere.npz"),
    "missing data set": ("mnist --data-dir {bad}/nowhere", "nowhere"),
    "unknown data": ("digit", "did you mean 'digits'?"),
    "cut npz": ("npz:{bad}/cut.npz", "cut.npz"),
    "noise": ("npz:{bad}/noise.npz", "noise.npz"),
    "NaN pixels": ("npz:{bad}/nan.npz", "NaN"),
    "empty folder": ("folder:{bad}/empty", "no pictures"),
    "folder without pictures": ("folder:{bad}/no-pictures", "no pictures"),
    "a file as a folder": ("folder:{bad}/file", "not a folder"),
}
"""What no verb takes."""

LABELLED = {
    "constant images": ("npz:{bad}/constant.npz", "single colour"),
    "one class": ("npz:{bad}/one-class.npz", "one class"),
    "one class in a folder": ("folder:{bad}/one-class", "cats"),
    "negative label": ("npz:{bad}/negative.npz", "label -1 is negative"),
    "label out of range": ("npz:{bad}/too-large.npz", "out of range"),
}
"""What does not matter to `predict`, which reads no labels and learns nothing."""

OPTIONS = {
    "unknown method": ("gradnut", "did you mean 'gradnet'?"),
    "unknown option": ("gradnet:epoch=1", "did you mean 'epochs'?"),
    "a word for epochs": ("gradnet:epochs=many", "gradnet:epochs: should be a valid number, got 'many'"),
    "no epochs": ("gradnet:epochs=0", "epochs: should be greater than 0"),
    "one hidden size": ("gradnet:hidden=5", "gradnet:hidden: should be a list or 'auto', got 5"),
    "a word for hidden": ("gradnet:hidden=large", "gradnet:hidden: should be a list or 'auto', got 'large'"),
    "half a unit": ("gradnet:hidden=2.5+3+4", "gradnet:hidden: should be a valid integer"),
    "too few hidden sizes": ("gradnet:hidden=2+3", "this network has 3 hidden blocks"),
    "no hidden units": ("gradnet:hidden=0+3+4", "expected sizes of 1 or more"),
    "select in percent": ("gradnet:select=15", "select: expected a share above 0 and at most 1"),
    "a word for select": ("gradnet:select=few", "gradnet:select: should be a valid number"),
    "unknown labels": ("gradnet:labels=true", "gradnet:labels: should be 'random' or 'all', got True"),
    "unknown normalisation": ("gradnet:normalise=scaling", "did you mean 'scale'?"),
    "unknown layer": ("gradnet:layers=[l7]", "unknown layer 'l7'"),
    "a name for layers": ("gradnet:layers=l1", "gradnet:layers: should be a list, got 'l1'"),
    "unknown optimizer": ("gradnet:optimizer=sgdd", "sgdd"),
    "unknown option of the optimizer": ("'gradnet:optimizer_options={{momentums: 1}}'", "momentums"),
    "negative rate": ("gradnet:lr=-1", "lr: should be greater than 0"),
    "dropout in percent": ("gradnet:dropout=50", "dropout: expected a share from 0 to below 1"),
    "time without unit": ("gradnet:budget=10", "gradnet:budget: should be a valid string"),
    "too little memory": ("gradnet:memory=100KB", "trial of its gradients need"),
}
"""Method options. They are all tried before the base network is trained."""

NETWORKS = {
    "unknown network": ("--model resnet21", "did you mean 'resnet20'?"),
    "unknown torchvision network": ("--model torchvision:resnet19", "resnet18"),
    "no such file": ("--model {bad}/nowhere.py:build", "nowhere.py"),
    "no such function": ("--model {bad}/nets.py:seven", "did you mean 'seven_classes'?"),
    "factory that raises": ("--model {bad}/nets.py:breaks", "depth"),
    "factory of something else": ("--model {bad}/nets.py:number", "must return a torch.nn.Module"),
    "other number of classes": ("--model {bad}/nets.py:seven_classes", "logits of shape (2, 10)"),
    "trained for other classes": (
        "--model {bad}/nets.py:seven_classes --weights {bad}/seven.safetensors",
        "logits of shape (2, 10)",
    ),
    "made for other images": (
        "--model {bad}/nets.py:other_size --weights {bad}/size.safetensors",
        "the network cannot take these images",
    ),
    "made for colour": ("--model {bad}/nets.py:three_channels", "the network cannot take these images"),
    "output that is no tensor": (
        "--model {bad}/nets.py:dictionary --weights {bad}/linear.safetensors",
        "returned a dict",
    ),
    "output that is no number": ("--model {bad}/nets.py:not_a_number --weights {bad}/linear.safetensors", "NaN"),
    "no such weights": ("--model mlp --weights {bad}/nowhere.pt", "no such weights file"),
    "weights of another network": ("--model mlp --weights {bad}/resnet.safetensors", "does not fit the network"),
    "weights of NaN": ("--model mlp --weights {bad}/nan.safetensors", "l0.bias"),
    "cut safetensors": ("--model mlp --weights {bad}/cut.safetensors", "damaged or cut off"),
    "cut state dict": ("--model mlp --weights {bad}/cut.pt", "damaged, cut off"),
    "state dict that is text": ("--model mlp --weights {bad}/text.pt", "text.pt"),
    "state dict that runs code": ("--model mlp --weights {bad}/code.pt", "could run code"),
    "snapshot of another network": ("--model seed-cnn --weights {bad}/snapshot", "does not fit the network"),
    "crop that is too large": ("--model mlp --crop 9", "cannot be cropped to 9×9"),
    "mean of another image": ("--model mlp --mean .4,.5,.6 --std .1,.1,.1", "1 channels"),
}


@pytest.fixture
def refused(bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command line that must be refused: `refused(words, hint)`."""

    def unreachable(*_: object, **__: object) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr("socket.create_connection", unreachable)
    monkeypatch.chdir(tmp_path)

    def check(words: str, hint: str, *, leaves: bool = False) -> None:
        assert main([*shlex.split(words.format(bad=bad)), "--quiet"]) == 2, capsys.readouterr()
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        mistakes = [line for line in err.splitlines() if not line.startswith(("note: ", "preprocessing: "))]
        assert len(mistakes) == 1, err
        assert mistakes[0].startswith("postgrad: ")
        assert hint in mistakes[0]
        assert leaves or list(tmp_path.iterdir()) == []

    return check


IMPROVE = "improve --model mlp --limit 60"


@pytest.mark.parametrize("data_and_hint", (DATA | LABELLED).values(), ids=(DATA | LABELLED).keys())
def test_data_that_improve_cannot_use(refused: Any, data_and_hint: tuple[str, str]) -> None:
    data, hint = data_and_hint
    refused(f"improve --model mlp --data {data}", hint)


@pytest.mark.parametrize("data_and_hint", (DATA | LABELLED).values(), ids=(DATA | LABELLED).keys())
def test_data_that_score_cannot_use(refused: Any, finished: Path, data_and_hint: tuple[str, str]) -> None:
    data, hint = data_and_hint
    refused(f"score --model {finished / 'base'} --data {data}", hint)


@pytest.mark.parametrize("data_and_hint", DATA.values(), ids=DATA.keys())
def test_data_that_predict_cannot_use(refused: Any, finished: Path, data_and_hint: tuple[str, str]) -> None:
    data, hint = data_and_hint
    refused(f"predict --model {finished / 'base'} --data {data}", hint)


def test_a_test_part_alone_is_scored_but_not_improved_on(refused: Any, finished: Path, bad: Path) -> None:
    refused("improve --model mlp --data npz:{bad}/test-only.npz", "there are no training images")
    assert main(["score", "--model", str(finished / "base"), "--data", f"npz:{bad}/test-only.npz", "--quiet"]) == 0


def test_too_few_images_to_divide(refused: Any) -> None:
    refused("improve --model mlp --data npz:{bad}/three-images.npz", "at least 4")


@pytest.mark.parametrize("arm", ["base", "gradnet", "control-features", "control-same-price"])
@pytest.mark.parametrize("verb", ["score", "predict"])
def test_images_that_a_classifier_was_not_made_for(refused: Any, finished: Path, arm: str, verb: str) -> None:
    refused(f"{verb} --model {finished / arm} --data npz:{{bad}}/larger.npz", "9")


@pytest.mark.parametrize("option_and_hint", OPTIONS.values(), ids=OPTIONS.keys())
def test_method_options_are_refused_before_anything_is_trained(
    refused: Any, option_and_hint: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(*_: object) -> None:
        raise AssertionError("the base network was trained first")

    monkeypatch.setattr("postgrad.studies.improve.run_trial", trained)
    option, hint = option_and_hint
    refused(f"{IMPROVE} --data digits --method {option}", hint)


@pytest.mark.parametrize("network_and_hint", NETWORKS.values(), ids=NETWORKS.keys())
def test_networks_that_improve_cannot_use(refused: Any, network_and_hint: tuple[str, str]) -> None:
    words, hint = network_and_hint
    refused(f"improve --data digits --limit 60 {words}", hint)


@pytest.mark.parametrize(
    "name",
    [
        "unknown network",
        "weights of another network",
        "cut safetensors",
        "state dict that runs code",
        "no such weights",
    ],
)
@pytest.mark.parametrize("verb", ["score", "predict --classes 0,1,2,3,4,5,6,7,8,9"])
def test_networks_that_score_and_predict_cannot_use(refused: Any, name: str, verb: str) -> None:
    words, hint = NETWORKS[name]
    refused(f"{verb} --data digits {words}", hint)


@pytest.mark.parametrize("verb", ["improve", "score", "predict"])
@pytest.mark.parametrize(
    ("arm", "hint"),
    [
        ("base", "model.safetensors"),
        ("gradnet", "gradnet.safetensors"),
        ("control-features", "manifest.json"),
        ("", "no results.json"),
    ],
)
def test_run_directories_that_are_damaged(refused: Any, verb: str, arm: str, hint: str) -> None:
    refused(f"{verb} --model {{bad}}/runs/cut/{arm} --data digits", hint)


@pytest.mark.parametrize(
    "place", ["{bad}/file/run", "/proc/postgrad"], ids=["below a file", "where nothing can be made"]
)
def test_places_that_cannot_be_written(refused: Any, finished: Path, place: str) -> None:
    refused(f"{IMPROVE} --data digits --epochs 1 --method gradnet:steps=1 --out {place}", "another place with --out")
    refused(f"predict --model {finished / 'base'} --data digits --limit 20 --out {place}/p.csv", "cannot write")


RESUMED = {
    "nowhere": ("{bad}/nowhere", "no config.yaml"),
    "no run": ("{bad}/empty", "no config.yaml"),
    "broken settings": ("{bad}/runs/broken", "not valid YAML"),
    "other settings": ("{bad}/runs/stranger", "unknown setting 'colour'"),
}


@pytest.mark.parametrize("place_and_hint", RESUMED.values(), ids=RESUMED.keys())
def test_what_is_no_run_is_not_resumed(refused: Any, place_and_hint: tuple[str, str]) -> None:
    place, hint = place_and_hint
    refused(f"improve --resume {place}", hint)


SETTINGS = {
    "accuracy in percent": ("--base-accuracy 72", "72 % is 0.72"),
    "unknown device": ("--device tpu", "unknown device 'tpu'"),
    "a device that is not here": ("--device cuda:99", "cuda:99"),
    "an exported program": ("--model net.onnx", "which has no gradients"),
}


@pytest.mark.parametrize("setting_and_hint", SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_of_a_run(refused: Any, setting_and_hint: tuple[str, str]) -> None:
    setting, hint = setting_and_hint
    refused(f"improve --data digits --limit 60 {setting}", hint)


def few_steps_recipe(folder: Path, steps: dict[str, int]) -> Path:
    recipe = folder / "few-steps.yaml"
    content = {"data": "digits", "limit": 60, "model": "mlp", "epochs": 1, "threads": 1, "steps": steps}
    recipe.write_text(yaml.safe_dump(content | {"methods": ["gradnet:epochs=1,hidden=2+4+3"]}))
    return recipe


@pytest.mark.parametrize("after", [1, 4, 9, 25])
def test_disk_that_becomes_full(
    refused: Any, tmp_path: Path, few_steps: dict[str, int], disk_full_after: Any, after: int
) -> None:
    recipe = few_steps_recipe(tmp_path, few_steps)
    disk_full_after(after)
    refused(f"improve --recipe {recipe} --out {tmp_path}/run", "the disk is full", leaves=True)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [16, 64, 256, 1024, 2048])
def test_disk_that_is_really_small(refused: Any, tmp_path: Path, few_steps: dict[str, int], kilobytes: int) -> None:
    """A file system of a few kilobytes, which only root may mount: every way of writing meets its end."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small file system")
    recipe = few_steps_recipe(tmp_path, few_steps)
    try:
        refused(f"improve --recipe {recipe} --out {disk}/run", "the disk is full", leaves=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
