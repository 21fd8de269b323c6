"""`postgrad sample` and `postgrad score --purify` on a network trained in a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from postgrad.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "energy"
    words = ["train", "--model", "mlp", "--data", "digits", "--limit", "80", "--epochs", "2", "--quiet"]
    assert main([*words, "--method", "jem:steps=2,buffer_size=70", "--out", str(out)]) == 0
    return out


def test_pictures_are_left_in_the_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "--model", str(run), "--n", "4", "--class", "3", "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(found["files"]) == ["chains.gif", "chains.png", "nearest.png", "samples.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(found["files"])
    assert found["from_training"] is True
    assert found["steps"] == 10
    assert 0 <= found["taken_for_class"] <= 1
    assert "frechet_distance" not in found


def test_samples_are_compared_with_test_images_in_a_networks_features(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", "--model", str(run), "--features", str(run), "--n", "40", "--out", str(tmp_path / "out")]
    assert main([*words, "--steps", "2"]) == 0
    assert "Fréchet distance to test images: " in capsys.readouterr().out
    assert main([*words, "--steps", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["frechet_distance_of_training"] < found["frechet_distance"]


def test_a_plain_network_is_drawn_from_with_a_word_of_caution(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "mlp", "--data", "digits", "--limit", "60", "--epochs", "1", "--mean", ".5", "--std", ".5"]
    assert main(["train", *words, "--quiet", "--out", str(tmp_path / "plain")]) == 0
    few = ["--n", "2", "--steps", "2", "--out", str(tmp_path / "out")]
    assert main(["sample", "--model", str(tmp_path / "plain"), *few]) == 0
    assert "was not trained with --method jem" in capsys.readouterr().err
    assert (tmp_path / "out" / "samples.png").is_file()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["sample"], "--model is missing"),
        (["sample", "--model", "mlp"], "--model mlp: that takes a trained network"),
        (["sample", "--model", "RUN", "--class", "elephant"], "unknown class 'elephant'"),
        (["sample", "--model", "RUN", "--n", "0"], "1 or more"),
        (["sample", "--model", "RUN", "--features", "mlp"], "--features mlp: that takes a trained network"),
        (["score", "--model", "RUN", "--data", "digits", "--limit", "60", "--purify", "2", "--attack", "square",
          "--epsilon", ".1"], "--attack does not go through --purify"),
    ],
)  # fmt: skip
def test_mistakes_are_said(words: list[str], hint: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run) if word == "RUN" else word for word in words]) == 2
    assert hint in capsys.readouterr().err


def test_refined_images_are_scored(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["score", "--model", str(run), "--data", "digits", "--limit", "60", "--json", "--quiet"]
    assert main(words) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main([*words, "--purify", "3"]) == 0
    refined = json.loads(capsys.readouterr().out)
    assert refined["cost"]["inference_passes"] == 4
    assert plain["cost"]["inference_passes"] == 1
    assert refined["metrics"]["nll"]["mean"] != plain["metrics"]["nll"]["mean"]
