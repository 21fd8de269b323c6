"""`postgrad score` with everything that it can be asked, on runs, exported files and networks by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from postgrad.cli import main
from postgrad.reports.rundir import read_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("train") / "run"
    words = ["train", "--model", "mlp", "--data", "digits", "--epochs", "2", "--out", str(directory), "--quiet"]
    assert main(words) == 0
    return directory


def scored(capsys: pytest.CaptureFixture[str], model: Path | str, *words: str) -> dict:
    capsys.readouterr()
    assert main(["score", "--model", str(model), "--data", "digits", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_everything_at_once_and_a_page_of_it(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("art", reason="needs postgrad[attack]")
    out = tmp_path / "scored"
    more = ["--ood", "noise,interpolation", "--corruptions", "contrast,mapper-paper", "--out", str(out)]
    attack = ["--attack", "square", "--epsilon", "1/255", "--attack-images", "5"]
    document = scored(capsys, trained, *more, *attack)
    given = {"metrics", "cost", "per_class_accuracy", "confusion", "temperature"}
    assert set(document) == given | {"outside", "corruptions", "corruption_means", "attacks"}
    assert {entry["data"] for entry in document["outside"]} == {"noise", "interpolation"}
    assert len(document["corruptions"]) == 5 + 3 * 6
    assert document["attacks"][0]["epsilon"] == pytest.approx(1 / 255)
    run = read_run(out)
    (arm,) = run.results.arms
    assert (arm.name, arm.kind) == ("run", "base")
    assert arm.metrics["nll_scaled"].mean == document["metrics"]["nll_scaled"]["mean"]
    assert len(arm.outside) == 8
    assert run.predictions["run"].probabilities.shape == (359, 10)
    with np.load(out / "run" / "outside_scores.npz") as scores:
        assert scores["inside/energy"].shape == scores["noise/energy"].shape == (359,)
    assert str(tmp_path) not in (out / "results.json").read_text()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").is_file()


def test_an_existing_directory_is_left_alone(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    scored(capsys, trained, "--out", str(tmp_path / "mine"))
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert (tmp_path / "mine-2" / "results.json").is_file()


def test_the_table_names_what_was_measured(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "--model", str(trained), "--data", "digits", "--ood", "noise", "--corruptions", "jpeg"]) == 0
    printed, said = capsys.readouterr()
    for word in ("balanced_accuracy", "nll_scaled", "temperature", "AUROC", "gradient_norm", "jpeg", "kept"):
        assert word in printed
    assert "made in the size of the test images" in said


def test_no_temperature_from_images_that_the_run_may_have_trained_on(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = scored(capsys, trained, "--limit", "300")
    assert "temperature" not in document
    assert "(--data digits, all of it)" in document["notes"][0]
    assert "nll_scaled" not in document["metrics"]


def test_settings_of_something_else_in_a_folder_above_are_left_alone(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("{not: [yaml")
    (tmp_path / "model").mkdir()
    for name in ("manifest.json", "model.safetensors"):
        (tmp_path / "model" / name).write_bytes((trained / name).read_bytes())
    assert scored(capsys, tmp_path / "model")["metrics"] == scored(capsys, trained)["metrics"]


def test_a_network_by_name_is_scored_alike_with_a_word_of_caution(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ["--weights", str(trained / "model.safetensors")]
    by_name = scored(capsys, "mlp", *weights)
    assert by_name["metrics"] == scored(capsys, trained)["metrics"]
    assert main(["score", "--model", "mlp", "--data", "digits", *weights]) == 0
    assert "not trained on the images held back" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_exported_networks_give_the_same_scores(
    trained: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"network.{ending}"
    assert main(["export", "--model", str(trained), "--out", str(file)]) == 0
    expected, found = (scored(capsys, model, "--ood", "noise") for model in (trained, file))
    ours = {entry["score"]: entry["metrics"]["auroc"]["mean"] for entry in expected["outside"]}
    theirs = {entry["score"]: entry["metrics"]["auroc"]["mean"] for entry in found["outside"]}
    if ending == "onnx":
        del ours["gradient_norm"]
        assert "gradient_norm" in found["notes"][0]
    assert theirs == pytest.approx(ours, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ood", "nois"], "did you mean 'noise'"),
        (["--ood", "noise,digits"], "is the data that is scored"),
        (["--ood", "npz:/nowhere/none.npz"], "no such file"),
        (["--corruptions", "jpg"], "did you mean 'jpeg'"),
        (["--attack", "fgsm", "--epsilon", "8/255"], "overstates robustness"),
        (["--attack", "squar", "--epsilon", "8/255"], "did you mean 'square'"),
        (["--attack", "square"], "needs --epsilon"),
        (["--epsilon", "8/255"], "need --attack"),
        (["--attack", "square", "--epsilon", "0"], "above 0"),
        (["--attack", "square", "--epsilon", "8"], "at most 1"),
        (["--attack", "square", "--epsilon", "8/0"], "such as 8/255"),
        (["--attack", "square", "--epsilon", "large"], "such as 8/255"),
    ],
)
def test_mistakes_are_told_in_one_line(
    trained: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["score", "--model", str(trained), "--data", "digits", *words]) == 2
    printed, said = capsys.readouterr()
    assert printed == ""
    assert says in said.splitlines()[-1]
