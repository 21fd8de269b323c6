"""`postgrad edges`: what it writes agrees with the network and with itself, and mistakes are one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from postgrad import important_edges, load
from postgrad.cli import main
from postgrad.cli.edges import as_csv, parse_share
from postgrad.data.datasets import load_dataset
from postgrad.errors import UserError
from postgrad.methods.edges import load_masks, top_edges


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("train") / "run"
    words = ["train", "--model", "mlp", "--data", "digits", "--epochs", "1", "--out", str(directory), "--quiet"]
    assert main(words) == 0
    return directory


def edges(trained: Path, out: Path, *more: str) -> list[str]:
    return ["edges", "--model", str(trained), "--data", "digits", "--limit", "100", "--out", str(out), *more]


def test_everything_is_written_and_agrees(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "edges"
    assert main(edges(trained, out, "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert sorted(document["files"]) == sorted(file.name for file in out.iterdir())
    masks = load_masks(out)
    images = load_dataset("digits", limit=100).train
    assert images is not None
    expected = important_edges(load(trained), images.images, images.labels, top=0.1)
    assert masks.keys() == expected.keys()
    assert all(torch.equal(masks[name], expected[name]) for name in masks)
    assert document["kept"] == sum(int(mask.sum()) for mask in masks.values())
    assert document["edges"] == 256 * 64 + 128 * 256 + 10 * 128
    manifest = json.loads((out / "manifest.json").read_text())
    stated = [manifest[key] for key in ("top", "scope", "data", "model", "labels", "images")]
    assert stated == [0.1, "layer", "digits", "run", "true", 100]
    assert str(tmp_path) not in (out / "manifest.json").read_text()


def test_rows_of_the_csv_are_kept_edges_with_their_weights(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "edges"
    assert main(edges(trained, out, "--top", "5%", "--scope", "global", "--quiet")) == 0
    with open(out / "edges.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    masks, weights = load_masks(out), load_file(trained / "model.safetensors")
    assert len(rows) == sum(int(mask.sum()) for mask in masks.values()) == round(0.05 * 50432)
    importance = [float(row["importance"]) for row in rows]
    assert importance == sorted(importance, reverse=True)
    for row in rows:
        place = int(row["to"]), int(row["from"])
        assert masks[row["layer"]][place]
        assert float(row["weight"]) == pytest.approx(float(weights[row["layer"]][place]), rel=1e-5)


def test_kernels_and_groups_in_the_csv() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3, groups=2))
    importance = {"0.weight": torch.zeros(6, 2, 3, 3)}
    importance["0.weight"][4, 1, 2, 0] = 2.0
    importance["0.weight"][1, 0, 0, 1] = 1.0
    masks = {"0.weight": importance["0.weight"] > 0}
    rows = list(csv.DictReader(as_csv(network, importance, masks).splitlines()))
    assert [(row["from"], row["to"], row["kernel"]) for row in rows] == [("3", "4", "2 0"), ("0", "1", "0 1")]


def test_long_tables_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("postgrad.cli.edges.LISTED", 5)
    network = torch.nn.Sequential(torch.nn.Linear(4, 6))
    importance = {"0.weight": torch.rand(6, 4)}
    assert len(as_csv(network, importance, top_edges(importance, top=1.0)).splitlines()) == 6


def test_what_is_there_is_left_alone(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "edges"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert main(edges(trained, out)) == 0
    printed = capsys.readouterr().out
    assert f"{out}-2: edges.svg" in printed
    assert printed == (tmp_path / "edges-2" / "summary.txt").read_text()
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


def test_a_network_by_name_with_weights_is_the_saved_one(trained: Path, tmp_path: Path) -> None:
    words = ["edges", "--model", "mlp", "--weights", str(trained / "model.safetensors"), "--data", "digits"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert main(["edges", "--model", str(trained), "--data", "digits", "--out", str(tmp_path / "b")]) == 0
    for name in ("masks.safetensors", "edges.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.fixture(scope="module")
def true(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The edges that the true labels find."""
    out = tmp_path_factory.mktemp("true") / "edges"
    assert main(edges(trained, out)) == 0
    return (out / "edges.csv").read_text()


@pytest.mark.parametrize("labels", ["predicted", "random"])
def test_labels_need_not_be_known(trained: Path, tmp_path: Path, labels: str, true: str) -> None:
    assert main(edges(trained, tmp_path / "a", "--labels", labels)) == 0
    assert main(edges(trained, tmp_path / "b", "--labels", labels)) == 0
    first, second = ((tmp_path / name / "edges.csv").read_text() for name in "ab")
    assert first == second != true


def test_classes_are_matched_by_name(trained: Path, tmp_path: Path) -> None:
    """A folder of pictures lists its classes in its own order; the labels follow the network's."""
    from PIL import Image

    images = load_dataset("digits", limit=40).train
    assert images is not None
    shifted = tmp_path / "pictures"
    for number, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        (shifted / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(shifted / str(label) / f"{number:03}.png")
    (shifted / "9").rename(shifted / "+")  # sorts first, so that all other labels move up by one
    words = ["edges", "--model", str(trained), "--data", f"folder:{shifted}", "--out"]
    assert main([*words, str(tmp_path / "unnamed")]) == 0
    (shifted / "+").rename(shifted / "9")
    assert main([*words, str(tmp_path / "named")]) == 0
    tables = [(tmp_path / name / "edges.csv").read_text() for name in ("unnamed", "named")]
    assert tables[0] != tables[1]


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0.1", 0.1), (" 5 % ", 0.05), ("100%", 1.0), (".25", 0.25)])
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["0", "0%", "200%", "2", "-1%", "abc", "%", "nan", "inf%", "10 per cent"])
def test_no_shares(text: str) -> None:
    with pytest.raises(UserError, match=r"such as 10% or 0\.1"):
        parse_share(text)


MISTAKES = {
    "no model": ("--data digits", "--model is missing"),
    "no data": ("--model {run}", "--data is missing"),
    "unknown model": ("--model resnet21 --data digits", "did you mean 'resnet20'"),
    "no such directory": ("--model runs/nothing --data digits", "no such directory"),
    "no weights": ("--model mlp --data digits", "no trained weights"),
    "weights elsewhere": ("--model mlp --weights nowhere.pt --data digits", "no such weights file"),
    "weights that do not fit": ("--model seed-cnn --weights {run}/model.safetensors --data digits", "missing"),
    "weights twice": ("--model {run} --weights {run}/model.safetensors --data digits", "weights of its own"),
    "exported program": ("--model base.onnx --data digits", "has no gradients"),
    "no share": ("--model {run} --data digits --top 0", "--top: expected a share"),
    "too large a share": ("--model {run} --data digits --top 200%", "--top: expected a share"),
    "a word for a share": ("--model {run} --data digits --top abc", "such as 10% or 0.1, got 'abc'"),
    "unknown scope": ("--model {run} --data digits --scope layers", "did you mean 'layer'"),
    "unknown labels": ("--model {run} --data digits --labels predict", "did you mean 'predicted'"),
    "unknown data": ("--model {run} --data digit", "did you mean 'digits'"),
    "one class": ("--model {run} --data npz:{arrays}/one-class.npz", "give at least two"),
    "other classes": ("--model {run} --data npz:{arrays}/three-classes.npz", "10 classes"),
    "NaN pixels": ("--model {run} --data npz:{arrays}/nan.npz", "x_train"),
    "no training images": ("--model {run} --data npz:{arrays}/test-only.npz", "no training images"),
    "images of another size": ("--model {run} --data npz:{arrays}/larger.npz", "cannot take these images"),
    "unreadable memory": ("--model {run} --data digits --memory lots", "such as 8GB"),
    "too little memory": ("--model {run} --data digits --memory 100KB", "memory budget"),
    "unknown device": ("--model {run} --data digits --device tpu", "tpu"),
    "no folder to write": ("--model {run} --data digits --limit 20 --out {run}/model.safetensors/x", "cannot write"),
    "misspelt": ("--model {run} --data digits --topp 5%", "did you mean --top?"),
}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arrays")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    ten, zeros = np.arange(40) % 10, np.zeros(40, np.int64)
    np.savez(folder / "one-class.npz", x_train=pixels, y_train=zeros)
    np.savez(folder / "three-classes.npz", x_train=pixels, y_train=ten % 3)
    np.savez(folder / "nan.npz", x_train=np.full((40, 8, 8), np.nan, np.float32), y_train=ten)
    np.savez(folder / "test-only.npz", x_test=pixels, y_test=ten)
    np.savez(folder / "larger.npz", x_train=np.tile(pixels, (1, 2, 2)), y_train=ten)
    return folder


@pytest.mark.parametrize("words_and_hint", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_ends_in_one_line_and_exit_code_2(
    words_and_hint: tuple[str, str],
    trained: Path,
    arrays: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words, hint = words_and_hint
    assert main(["edges", *words.format(run=trained, arrays=arrays).split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    mistakes = [line for line in err.splitlines() if not line.startswith(("note: ", "preprocessing: "))]
    assert len(mistakes) == 1, err
    assert hint in mistakes[0]
    assert list(tmp_path.iterdir()) == []


def test_a_second_stage_classifier_is_no_network(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from postgrad import GradNet

    images = load_dataset("digits", limit=60).train
    assert images is not None
    stage = GradNet(load(trained), steps=1, random_state=0).fit(images.images, images.labels)
    stage.save(tmp_path / "gradnet")
    assert main(["edges", "--model", str(tmp_path / "gradnet"), "--data", "digits"]) == 2
    assert "give the network it stands on" in capsys.readouterr().err
