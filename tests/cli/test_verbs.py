"""The small verbs on the embedded data: train, score, predict and export hand the same network to one another."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from postgrad.cli import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("train") / "run"
    assert (
        main(["train", "--model", "mlp", "--data", "digits", "--epochs", "2", "--out", str(directory), "--quiet"]) == 0
    )
    return directory


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of 8×8, one of another size and in colour, and two files that are no pictures."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deeper").mkdir()
    for number, digit in enumerate(load_digits().images[:6]):
        pixels = np.rint(digit * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / ("deeper" if number % 2 else ".") / f"{number}.png")
    Image.new("RGB", (40, 32), "white").save(folder / "large.jpg")
    (folder / ".DS_Store").write_text("x")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def test_train_writes_a_checkpoint_with_its_settings(trained: Path) -> None:
    assert {"model.safetensors", "manifest.json", "config.yaml", "environment.json"} <= {
        p.name for p in trained.iterdir()
    }


def test_train_repeats_from_its_own_settings(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert main(["train", "--recipe", str(trained / "config.yaml"), "--out", str(out), "--quiet"]) == 0
    assert (out / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_another_seed_gives_another_network(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "other"
    assert main(["train", "--recipe", str(trained / "config.yaml"), "--seed", "1", "--out", str(out), "--quiet"]) == 0
    assert (out / "model.safetensors").read_bytes() != (trained / "model.safetensors").read_bytes()


def test_finished_training_resumes_at_once(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "model.safetensors").read_bytes()
    assert main(["train", "--resume", str(trained), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["checkpoint"] == str(trained)
    assert (trained / "model.safetensors").read_bytes() == before


def test_recipe_may_name_run_and_training_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: mlp\nlimit: 100\nsteps: 3\noptimizer: adamw\nlr: 0.01\n")
    assert main(["train", "--recipe", str(recipe), "--out", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 3


def test_score_prints_the_scorecard(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["score", "--model", str(trained), "--data", "digits"]
    assert main(words) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"metrics", "cost", "per_class_accuracy", "confusion", "temperature"}
    low, high = document["metrics"]["accuracy"]["ci95"]
    assert low < document["metrics"]["accuracy"]["mean"] < high
    assert document["metrics"]["accuracy"]["mean"] > 0.5
    assert document["cost"]["inference_passes"] == 1


def test_predictions_agree_with_the_score(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from postgrad.data.datasets import load_dataset

    assert main(["score", "--model", str(trained), "--data", "digits", "--json"]) == 0
    accuracy = json.loads(capsys.readouterr().out)["metrics"]["accuracy"]["mean"]
    assert main(["predict", "--model", str(trained), "--data", "digits"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    test = load_dataset("digits").test
    assert test is not None
    labels = test.labels.tolist()
    assert [row["file"] for row in rows] == [str(number) for number in range(len(labels))]
    right = [int(row["class"]) == label for row, label in zip(rows, labels, strict=True)]
    assert np.mean(right) == pytest.approx(accuracy)
    assert sum(float(rows[0][f"p_{digit}"]) for digit in range(10)) == pytest.approx(1, abs=1e-4)


def test_predict_takes_a_folder_of_odd_pictures(
    trained: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "predictions.csv"
    assert main(["predict", "--model", str(trained), "--data", f"folder:{pictures}", "--out", str(out)]) == 0
    printed, said = capsys.readouterr()
    assert printed == ""
    assert "broken.jpg" in said
    assert ".DS_Store" in said
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    names = [f"{'deeper/' if number % 2 else ''}{number}.png" for number in range(6)]
    assert sorted(row["file"] for row in rows) == sorted([*names, "large.jpg"])


def test_predict_json_holds_everything(trained: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--model", str(trained), "--data", f"folder:{pictures}", "--out", "-", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["predictions"]) == 7
    first = document["predictions"][0]
    assert first["class"] == max(first["probabilities"], key=first["probabilities"].get)


def test_network_by_name_with_weights_is_the_saved_one(
    trained: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ["--model", "mlp", "--weights", str(trained / "model.safetensors"), "--data", "digits", "--json"]
    assert main(["score", *weights]) == 0
    by_name = json.loads(capsys.readouterr().out)
    assert main(["score", "--model", str(trained), "--data", "digits", "--json"]) == 0
    assert by_name["metrics"] == json.loads(capsys.readouterr().out)["metrics"]
    assert main(["predict", *weights, "--classes", ",".join("0123456789")]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_exported_network_scores_alike(
    trained: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"network.{ending}"
    assert main(["export", "--model", str(trained), "--out", str(file)]) == 0
    capsys.readouterr()
    scores = []
    for model in (trained, file):
        assert main(["score", "--model", str(model), "--data", "digits", "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["metrics"]["nll"]["mean"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_export_of_weights(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "weights.safetensors"
    assert main(["export", "--model", str(trained), "--out", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(file), "format": "safetensors", "max_error": 0.0}
    assert main(["score", "--model", "mlp", "--weights", str(file), "--data", "digits"]) == 0


MISTAKES = {
    "no model": ("score --data digits", "--model is missing"),
    "no data": ("score --model {run}", "--data is missing"),
    "unknown network": ("score --model resnet21 --data digits", "did you mean 'resnet20'"),
    "no such directory": ("score --model runs/nothing --data digits", "no such directory"),
    "weights as a network": ("score --model {run}/model.safetensors --data digits", "give it with --weights"),
    "untrained network": ("score --model mlp --data digits", "no trained weights"),
    "weights twice": ("score --model {run} --weights {run}/model.safetensors --data digits", "weights of its own"),
    "unknown data": ("score --model {run} --data digit", "did you mean 'digits'"),
    "data elsewhere": ("score --model {run} --data folder:nowhere", "nowhere"),
    "size that does not fit": ("score --model {run} --data digits --size 9", "cannot take these images"),
    "unknown device": ("score --model {run} --data digits --device tpu", "tpu"),
    "unreadable memory": ("score --model {run} --data digits --memory lots", "such as 8GB"),
    "unknown classes": ("predict --model mlp --weights {run}/model.safetensors --data digits", "--classes"),
    "other number of classes": (
        "predict --model mlp --weights {run}/model.safetensors --data digits --classes a,b",
        "does not fit",
    ),
    "file is a folder": ("predict --model {run} --data digits --out {run}", "is a folder"),
    "no pictures": ("predict --model {run} --data folder:{run}/training", "no pictures"),
    "unknown format": ("export --model {run} --format tflite --out x", "unknown format 'tflite'"),
    "unnamed format": ("export --model {run} --out x.bin", "unknown format 'bin'"),
    "nothing to export": ("export --out x.onnx", "--model is missing"),
    "no file to write": ("export --model {run}", "--out is missing"),
    "unknown setting": ("train --optimizer sgdd --out x", "sgd"),
    "length twice": ("train --epochs 1 --budget 10s --out x", "exactly one of epochs, steps and budget"),
    "no time at all": ("train --budget 10 --out x", "10"),
    "negative rate": ("train --lr -1 --out x", "lr: should be greater than 0"),
    "accuracy in percent": ("train --base-accuracy 72 --out x", "72 % is 0.72"),
    "resume with settings": ("train --resume {run} --lr 1", "leave out --lr"),
}


def test_data_without_a_training_part_scores_but_does_not_train(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, pixels = tmp_path / "test-only.npz", np.arange(64 * 20).astype(np.uint8).reshape(20, 8, 8)
    np.savez(file, x_test=pixels, y_test=np.arange(20) % 10)
    assert main(["score", "--model", str(trained), "--data", f"npz:{file}"]) == 0
    assert main(["train", "--data", f"npz:{file}", "--out", str(tmp_path / "x")]) == 2
    assert "no training images" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("words_and_hint", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_ends_in_one_line_and_exit_code_2(
    words_and_hint: tuple[str, str],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words, hint = words_and_hint
    assert main(words.format(run=trained).split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    mistakes = [line for line in err.splitlines() if not line.startswith(("note: ", "preprocessing: "))]
    assert len(mistakes) == 1, err
    assert hint in mistakes[0]
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
